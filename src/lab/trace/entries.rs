//! Where a question's packet enters the lab.
//!
//! Who has the source's address sends it itself. A source in a subnet of the lab may use any router
//! of its segment, and facts rarely say which; one outside comes in wherever a router would send
//! answers out of the lab, by whichever of its tables.

use std::{collections::BTreeSet, net::IpAddr};

use super::{End, Entry, EntryName, Onward, Plug, TraceError, TracePacket, Wiring};
use crate::{
    lab::sockets::RouterSockets,
    model::{IfName, Known, Protocol, RouterName},
    netlink::{
        LookupKind, LookupQuery, Netlink, NetlinkError,
        object::{Family, NextHop, Route, RouteKind, RuleAction},
    },
};

/// More entries than these are not followed: the question must name one.
pub const MAX_ENTRIES: usize = 16;

/// Where `packet` enters the lab: at the entry that `named` names, or else at every one that there
/// may be, those first that do not send it back to where it comes from, then by name.
///
/// # Errors
/// [`TraceError`] when there is none, or no such router or interface.
pub fn entries(
    wiring: &Wiring,
    sockets: &mut RouterSockets,
    packet: &TracePacket,
    named: Option<&EntryName>,
) -> Result<Vec<Entry>, TraceError> {
    let mut finder = Finder {
        wiring,
        sockets,
        packet,
    };
    let mut found = match named {
        Some(name) => finder.named(name)?,
        None => finder.all()?,
    };
    finder.sort(&mut found)?;
    Ok(found)
}

struct Finder<'a> {
    wiring: &'a Wiring,
    sockets: &'a mut RouterSockets,
    packet: &'a TracePacket,
}

impl Finder<'_> {
    fn named(&mut self, name: &EntryName) -> Result<Vec<Entry>, TraceError> {
        let router = &name.router;
        if !self.wiring.routers().contains(&router) {
            return Err(TraceError::NoRouter {
                lab: self.sockets.lab().clone(),
                router: router.clone(),
                known: Known::instead_of(
                    router.as_str(),
                    self.wiring.routers().iter().map(|name| name.as_str()),
                ),
            });
        }
        if let Some(interface) = &name.interface {
            return Ok(vec![self.interface(router, interface)?]);
        }
        let source = self.packet.source;
        if self.wiring.owners(source).contains(&router) {
            return Ok(vec![itself(router)]);
        }
        let near = self.wiring.neighbours(source).into_iter();
        let near: Vec<Entry> = near
            .filter(|plug| plug.router == *router)
            .map(Plug::entry)
            .collect();
        if !near.is_empty() {
            return Ok(near);
        }
        let hops = self.own_next_hops(router)?;
        let mut facing: Vec<Entry> = hops
            .into_iter()
            .filter_map(|hop| Some(at(router, hop.dev?)))
            .collect();
        facing.dedup();
        let uplinks = self.uplinks(router)?;
        if let Some(direct) = self.on_the_destinations_link(&uplinks) {
            return Ok(direct);
        }
        if facing.is_empty() {
            return Err(TraceError::NotFacing {
                router: router.clone(),
                source_address: source,
            });
        }
        Ok(facing)
    }

    fn interface(&self, router: &RouterName, interface: &IfName) -> Result<Entry, TraceError> {
        let plug = self.wiring.plug(router, interface);
        match plug.filter(|plug| plug.segment.is_some()) {
            Some(plug) => Ok(plug.entry()),
            None => Err(TraceError::NoInterface {
                router: router.clone(),
                interface: interface.clone(),
                allowed: self.wiring.wired(router).join(", "),
            }),
        }
    }

    fn all(&mut self) -> Result<Vec<Entry>, TraceError> {
        let source = self.packet.source;
        let mut found: Vec<Entry> = self.wiring.owners(source).into_iter().map(itself).collect();
        if found.is_empty() {
            found = self.near();
        }
        if found.is_empty() {
            found = self.edges()?;
        }
        if found.is_empty() {
            return Err(TraceError::NoStart {
                lab: self.sockets.lab().clone(),
                source_address: source,
            });
        }
        Ok(found)
    }

    /// The interfaces on the source's segment; of these the destination's own, where it is in the
    /// source's subnet: a host does not ask a gateway for that.
    fn near(&self) -> Vec<Entry> {
        let TracePacket {
            source,
            destination,
            ..
        } = *self.packet;
        let mut near = self.wiring.neighbours(source);
        near.extend(self.wiring.addressed_within(&near, source));
        let is_destination = |plug: &&&Plug| {
            let answers = plug.has(destination) || self.wiring.answers_arp(plug, destination);
            answers && plug.shares(source, destination)
        };
        let own: Vec<&Plug> = near.iter().filter(is_destination).copied().collect();
        // Nor for what another answers in the destination's place.
        let proxies = |plug: &&&Plug| {
            let own = plug.prefix(source) == plug.prefix(destination);
            own && plug.link.proxy.answers_for(destination)
        };
        let proxies: Vec<&Plug> = near.iter().filter(proxies).copied().collect();
        let is_gateway = |plug: &&&Plug| {
            let mut gateways = self.wiring.gateways.iter();
            gateways.any(|(at, router)| plug.segment == Some(*at) && plug.router == *router)
        };
        let gateways: Vec<&Plug> = near.iter().filter(is_gateway).copied().collect();
        let chosen = [own, proxies, gateways, near];
        let chosen = chosen.into_iter().find(|plugs| !plugs.is_empty());
        chosen
            .unwrap_or_default()
            .into_iter()
            .map(Plug::entry)
            .collect()
    }

    /// Every interface by which a router sends to the source out of the lab; only those on the destination's
    /// own link, where there are such.
    fn edges(&mut self) -> Result<Vec<Entry>, TraceError> {
        let source = self.packet.source;
        let routers = self.wiring.routers();
        self.sockets.open_all(&routers)?;
        let mut edges = BTreeSet::new();
        let mut uplinks = BTreeSet::new();
        for router in routers {
            let mut hops = self.own_next_hops(router)?;
            let netlink = self.sockets.router(router)?;
            hops.extend(by_other_tables(netlink, source)?);
            edges.extend(self.leaving(router, hops));
            uplinks.extend(self.uplinks(router)?);
        }
        let direct = self.on_the_destinations_link(&uplinks);
        Ok(direct.unwrap_or_else(|| edges.into_iter().collect()))
    }

    /// The interfaces by which `hops` leave the lab.
    fn leaving(&self, router: &RouterName, hops: Vec<NextHop>) -> BTreeSet<Entry> {
        let source = self.packet.source;
        let leaves = |hop: NextHop| {
            let dev = hop.dev?;
            let next_hop = hop.via.unwrap_or(source);
            let end = self.wiring.onward(router, &dev, next_hop, source);
            // Of routers whose facts lack something it is not known whether they are on the segment.
            let lost = !self.wiring.missing.is_empty() || !self.wiring.partly_seen.is_empty();
            let maybe = lost && matches!(end, Onward::End(End::Absent { .. }));
            let leaves = matches!(end, Onward::End(End::Leaves { .. } | End::SomeEnd { .. }));
            (maybe || leaves).then(|| at(router, dev))
        };
        hops.into_iter().filter_map(leaves).collect()
    }

    /// The interfaces by which any route of `router` leads to the source out of the lab, those included that
    /// wait for an equally narrow one to go: a second uplink. A wider route is none, since the network that
    /// the narrowest names is not where that leads. None where the destination is on no link of it.
    fn uplinks(&mut self, router: &RouterName) -> Result<BTreeSet<Entry>, TraceError> {
        let source = self.packet.source;
        let links = self.wiring.neighbours(self.packet.destination);
        if !links.iter().any(|plug| plug.router == *router) {
            return Ok(BTreeSet::new());
        }
        let netlink = self.sockets.router(router)?;
        let mut routes = netlink.routes(Family::of(source), None)?;
        let leads = |route: &Route| {
            route.kind == RouteKind::Unicast
                && route.table != Route::LOCAL
                && route.destination.contains(&source)
        };
        routes.retain(leads);
        let length = |route: &Route| route.destination.prefix_len();
        let narrowest = routes.iter().map(length).max();
        routes.retain(|route| Some(length(route)) == narrowest);
        let hops = routes.into_iter().flat_map(|route| route.next_hops);
        Ok(self.leaving(router, hops.collect()))
    }

    /// Of `uplinks` those in whose subnet the destination is, and of these its owner's: who is outside sends
    /// there what is for that network, by whichever of its interfaces the router would answer.
    fn on_the_destinations_link(&self, uplinks: &BTreeSet<Entry>) -> Option<Vec<Entry>> {
        let destination = self.packet.destination;
        let near = self.wiring.neighbours(destination).into_iter();
        let on_link = near.filter(|plug| uplinks.contains(&plug.entry()));
        let on_link: Vec<&Plug> = on_link.collect();
        let own = on_link.iter().filter(|plug| plug.has(destination));
        let own: Vec<Entry> = own.map(|plug| plug.entry()).collect();
        let all = on_link.into_iter().map(Plug::entry).collect();
        let chosen: Vec<Entry> = if own.is_empty() { all } else { own };
        (!chosen.is_empty()).then_some(chosen)
    }

    /// How `router` sends to the source: as its answers to this packet go, and as what is of
    /// another protocol does. A look-up without a protocol is taken for UDP by policy rules
    /// (inet_rtm_getroute()).
    fn own_next_hops(&mut self, router: &RouterName) -> Result<Vec<NextHop>, TraceError> {
        let plain = LookupQuery::to(self.packet.source);
        let of_protocol = self.packet.protocol.map(|protocol| LookupQuery {
            ip_proto: Some(protocol.number()),
            sport: self.packet.destination_port,
            dport: self.packet.source_port,
            ..plain.clone()
        });
        let queries: Vec<LookupQuery> = of_protocol.into_iter().chain([plain]).collect();
        let netlink = self.sockets.router(router)?;
        let mut hops = Vec::new();
        for hop in netlink.all_next_hops(&queries)?.into_iter().flatten() {
            if !hops.contains(&hop) {
                hops.push(hop);
            }
        }
        Ok(hops)
    }

    /// Those first that do not send the packet back to the segment that it comes from.
    fn sort(&mut self, entries: &mut Vec<Entry>) -> Result<(), TraceError> {
        if entries.len() < 2 {
            return Ok(());
        }
        let mut order = Vec::with_capacity(entries.len());
        for entry in entries.drain(..) {
            let query = query(self.packet, &entry);
            let way = self.sockets.router(&entry.router)?.lookup_one(&query)?;
            let back = way.kind != LookupKind::Local && way.dev == entry.iface_in;
            order.push((back, entry));
        }
        order.sort();
        order.dedup();
        entries.extend(order.into_iter().map(|(_, entry)| entry));
        Ok(())
    }
}

/// The look-up for `packet` as it is routed at `entry`.
pub(super) fn query(packet: &TracePacket, entry: &Entry) -> LookupQuery {
    LookupQuery {
        from: Some(packet.source),
        iif: entry.iface_in.clone(),
        mark: packet.mark,
        tos: packet.tos,
        ip_proto: packet.protocol.map(Protocol::number),
        sport: packet.source_port,
        dport: packet.destination_port,
        ..LookupQuery::to(packet.destination)
    }
}

fn itself(router: &RouterName) -> Entry {
    Entry {
        router: router.clone(),
        iface_in: None,
    }
}

fn at(router: &RouterName, dev: IfName) -> Entry {
    Entry {
        router: router.clone(),
        iface_in: Some(dev),
    }
}

/// The next hops to `address` of the tables that only some packets are led to: by mark, source,
/// port or incoming interface. A router with several uplinks has one for each.
fn by_other_tables(netlink: &mut Netlink, address: IpAddr) -> Result<Vec<NextHop>, NetlinkError> {
    let family = Family::of(address);
    let asked = netlink.lookup_one(&LookupQuery::to(address))?.table;
    let rules = netlink.rules(family)?;
    let tables: BTreeSet<u32> = rules
        .iter()
        .filter_map(|rule| match rule.action {
            RuleAction::Table(table) => Some(table),
            _ => None,
        })
        .filter(|table| *table != Route::LOCAL && *table != asked)
        .collect();
    let mut hops = Vec::new();
    for table in tables {
        let routes = netlink.routes(family, Some(table))?;
        hops.extend(best(routes, address));
    }
    Ok(hops)
}

/// The next hops of the route among `routes` that a packet to `address` takes.
fn best(routes: Vec<Route>, address: IpAddr) -> Vec<NextHop> {
    let matching = routes
        .into_iter()
        .filter(|route| route.destination.contains(&address) && route.kind != RouteKind::Throw);
    let rank = |route: &Route| {
        let length = u8::MAX - route.destination.prefix_len();
        (length, route.metric.unwrap_or(0))
    };
    let best = matching.min_by_key(rank);
    best.filter(|route| route.kind == RouteKind::Unicast)
        .map(|route| route.next_hops)
        .unwrap_or_default()
}
