//! From the question to what is to be measured: where packets enter, which routers they and their
//! answers are expected to pass, and where they end. What is really passed is measured; a plan that
//! is right saves rounds.

use std::{net::IpAddr, sync::Arc};

use super::{
    DetailedError, DetailedJob,
    fork::{Choice, Junction, SingleHop, SpreadRoute},
    map::LabMap,
    result::{DetailedEndToEnd, KnownHeaders, RouterWay},
    site::{Connector, Sink, Station, Stretch, StretchRound, Task, add},
};
use crate::{
    lab::{
        sockets::RouterSockets,
        trace::{End, Entry, Hop, Onward},
    },
    model::{IfName, LabName, Protocol, RouterId, RouterName, Service},
    netlink::{
        Lookup, LookupKind, LookupQuery,
        object::{Mac, NextHop},
    },
    netns::NetnsDir,
    registry::NeighbourKey,
    run::resolve::RouterChoice,
};

/// A client's port, for look-ups: connections have others of the same range, which matters only to
/// policy rules about source ports.
const CLIENT_PORT: u16 = 40_000;

/// More routers than these are on no way: the TTL of packets is 64.
const MAX_HOPS: usize = 64;

/// The ends of a question, as a service's packets have them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) source_port: u16,
    pub(super) service: Service,
}

impl Flow {
    pub(super) fn new(
        (source, destination): (IpAddr, IpAddr),
        source_port: Option<u16>,
        service: Service,
    ) -> Self {
        Self {
            source,
            destination,
            source_port: source_port.unwrap_or(CLIENT_PORT),
            service,
        }
    }

    fn packet(&self) -> KnownHeaders {
        KnownHeaders {
            source: self.source,
            source_port: Some(self.source_port),
            destination: self.destination,
            destination_port: Some(self.service.port),
        }
    }

    fn answer(&self) -> KnownHeaders {
        self.packet().reversed()
    }
}

/// A way as the routers' tables say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) hops: Vec<Hop>,
    /// A router that may send packets another way, too, which cannot be measured.
    pub(super) forks: Vec<String>,
    /// Routes with next hops over several interfaces.
    pub(super) spreads: Vec<SpreadRoute>,
    /// Where one of several routers is still to be chosen.
    pub(super) open: Vec<Junction>,
    /// The neighbour entries that lead to those that were chosen.
    pub(super) steered: Vec<(NeighbourKey, Mac)>,
    /// Interfaces behind which it makes no difference any more which next hop is taken.
    pub(super) settled: Vec<(RouterName, IfName)>,
}

/// Plans ways through a lab.
pub(super) struct Planner<'a> {
    pub(super) map: &'a LabMap<'a>,
    pub(super) lab: &'a LabName,
    pub(super) dir: &'a NetnsDir,
    pub(super) sockets: RouterSockets,
    /// The routers that packets may pass; none for all.
    pub(super) scope: Option<Vec<RouterName>>,
    /// Which of several routers get packets.
    pub(super) choices: Vec<Choice>,
    /// Which of several next hops, on copies of the routers.
    pub(super) singles: Vec<SingleHop>,
}

/// What is looked up at a router for a packet that comes in there.
fn query_at(at: &Entry, packet: &KnownHeaders, protocol: Protocol) -> LookupQuery {
    LookupQuery {
        from: Some(packet.source),
        iif: at.iface_in.clone(),
        ip_proto: Some(protocol.number()),
        sport: packet.source_port,
        dport: packet.destination_port,
        ..LookupQuery::to(packet.destination)
    }
}

impl<'a> Planner<'a> {
    pub(super) fn new(job: &'a DetailedJob, map: &'a LabMap<'a>, dir: &'a NetnsDir) -> Self {
        Self {
            map,
            lab: &job.lab,
            dir,
            sockets: RouterSockets::new(dir, &job.lab),
            scope: match &job.routers {
                RouterChoice::Named(names) => Some(names.clone()),
                RouterChoice::Trace | RouterChoice::Traced(_) => None,
            },
            choices: Vec::new(),
            singles: Vec::new(),
        }
    }

    /// The next hop that was chosen of these, if there are several.
    fn single(&self, router: &RouterName, hops: &[NextHop]) -> Option<NextHop> {
        let mut singles = self.singles.iter();
        let is_here = |one: &&SingleHop| one.spread.router == *router && one.spread.has(hops);
        Some(singles.find(is_here)?.hop.clone())
    }

    /// Follows a packet from router to router, to whoever gets it at the end.
    fn follow(
        &mut self,
        packet: &KnownHeaders,
        protocol: Protocol,
        mut at: Entry,
    ) -> Result<(Planned, Sink), DetailedError> {
        let mut planned = Planned::default();
        let mut seen: Vec<Entry> = Vec::new();
        loop {
            let (way, hops) = self.way_out(&at, packet, protocol)?;
            let next_hop = way.via.unwrap_or(packet.destination);
            planned.hops.push(Hop {
                router: at.router.clone(),
                iface_in: at.iface_in.clone(),
                iface_out: way.dev.clone(),
                next_hop: (way.kind == LookupKind::Unicast).then_some(next_hop),
            });
            let dev = match (way.kind, way.dev) {
                (LookupKind::Local, _) => {
                    let sink = Sink::Router {
                        router: at.router,
                        address: packet.destination,
                        proxy: None,
                    };
                    return Ok((planned, sink));
                }
                (LookupKind::Unicast, Some(dev)) => dev,
                _ => return Ok((planned, Sink::Nowhere)),
            };
            seen.push(at.clone());
            let (router, to) = (&at.router, packet.destination);
            let onward = self.map.wiring.onward(router, &dev, next_hop, to);
            if matches!(
                onward,
                Onward::End(End::NextHopUnknown { .. } | End::NoPeer)
            ) {
                return Ok((planned, Sink::Nowhere));
            }
            let next = self.behind((router, &dev), (&hops, next_hop), to, &mut planned);
            match next {
                Some(next) if seen.contains(&next) || seen.len() == MAX_HOPS => {
                    return Ok((planned, Sink::Nowhere));
                }
                Some(next) => at = next,
                None => {
                    let sink = Sink::Host {
                        router: at.router,
                        interface: dev,
                        hop: next_hop,
                        address: packet.destination,
                    };
                    return Ok((planned, sink));
                }
            }
        }
    }

    /// What a router does with a packet, and all next hops of the route; the one that was chosen, if
    /// one was.
    fn way_out(
        &mut self,
        at: &Entry,
        packet: &KnownHeaders,
        protocol: Protocol,
    ) -> Result<(Lookup, Vec<NextHop>), DetailedError> {
        let query = query_at(at, packet, protocol);
        let netlink = self.sockets.router(&at.router)?;
        let mut way = netlink.lookup_one(&query)?;
        if way.kind != LookupKind::Unicast {
            return Ok((way, Vec::new()));
        }
        let mut hops = netlink.next_hops(&query)?;
        if let Some(hop) = self.single(&at.router, &hops) {
            (way.dev, way.via) = (hop.dev.clone(), hop.via);
            hops = vec![hop];
        }
        Ok((way, hops))
    }

    /// The way of a request, who gets it, and the way of the answer.
    fn both(
        &mut self,
        flow: &Flow,
        entry: &Entry,
    ) -> Result<(Planned, Sink, Planned), DetailedError> {
        let protocol = flow.service.protocol;
        let (way, sink) = self.follow(&flow.packet(), protocol, entry.clone())?;
        let back = self.back(&sink, &flow.answer(), protocol)?;
        Ok((way, sink, back))
    }

    /// The way of an answer from whoever stands for the destination.
    fn back(
        &mut self,
        sink: &Sink,
        answer: &KnownHeaders,
        protocol: Protocol,
    ) -> Result<Planned, DetailedError> {
        let Some(router) = sink.router() else {
            return Ok(Planned::default());
        };
        let from = self.gateway(sink, answer.destination).unwrap_or(Entry {
            router: router.clone(),
            iface_in: sink.exit().map(|(_, interface)| interface.clone()),
        });
        Ok(self.follow(answer, protocol, from)?.0)
    }

    /// The gateway of the host at a sink for what it sends to `client`, where `links.toml` names it.
    /// Within a scope it is the router that sends to it.
    pub(super) fn gateway(&self, sink: &Sink, client: IpAddr) -> Option<Entry> {
        let (server, _) = (sink.address()?, sink.exit()?);
        let said = self.map.wiring.gateway_said(server, client);
        said.filter(|_| self.scope.is_none())
    }

    /// Adds the routers that a service's answers pass if they come from `sink`.
    pub(super) fn expect_answers(
        &mut self,
        stretch: &mut Stretch,
        sink: &Sink,
        task: &Task,
    ) -> Result<(), DetailedError> {
        let Some(address) = sink.address().filter(|_| stretch.whole) else {
            return Ok(());
        };
        let answer = KnownHeaders {
            source: address,
            source_port: Some(task.port),
            destination: stretch.source.address(),
            destination_port: Some(CLIENT_PORT),
        };
        self.choose_as(stretch);
        let back = self.back(sink, &answer, task.service.protocol)?;
        stretch.discover(&back);
        self.join(stretch, &back.hops)
    }

    /// Adds the router that packets were found to be sent to, and those behind it.
    pub(super) fn expect(
        &mut self,
        stretch: &mut Stretch,
        (entry, packet): (Entry, &KnownHeaders),
        protocol: Protocol,
    ) -> Result<(), DetailedError> {
        self.choose_as(stretch);
        let (planned, _) = self.follow(packet, protocol, entry)?;
        stretch.discover(&planned);
        self.join(stretch, &planned.hops)
    }

    /// Takes note of routes with next hops over several interfaces that packets took and no table told
    /// beforehand: to an address that a router translated to, or by another router's answer.
    pub(super) fn discover_taken(
        &mut self,
        stretch: &mut Stretch,
        (service, protocol): (usize, Protocol),
        end: &DetailedEndToEnd,
    ) -> Result<(), DetailedError> {
        self.choose_as(stretch);
        for leg in end.way.iter().chain(&end.answer).filter(|_| stretch.whole) {
            let at = Entry {
                router: leg.router.clone(),
                iface_in: leg.iface_in.clone(),
            };
            let packet = KnownHeaders {
                destination: leg.headers.destination,
                destination_port: leg.headers.destination_port,
                ..leg.came
            };
            let (_, hops) = self.way_out(&at, &packet, protocol)?;
            let spread = SpreadRoute {
                router: at.router,
                to: packet.destination,
                hops,
            };
            if spread.is_over_several() {
                stretch.taken.push((service, spread));
            }
        }
        Ok(())
    }

    /// Has packets led as those of a stretch.
    fn choose_as(&mut self, stretch: &Stretch) {
        self.choices.clone_from(&stretch.choices);
        self.singles.clone_from(&stretch.singles);
    }

    /// A router that is to be held.
    pub(super) fn station(&self, planned: RouterWay) -> Result<Arc<Station>, DetailedError> {
        let router = RouterId::new(self.lab.clone(), planned.name.clone());
        let netns = Arc::new(self.dir.open(&router.netns())?);
        Ok(Arc::new(Station {
            router,
            netns,
            planned,
        }))
    }

    /// What is to be measured for packets that come from `source` at `entry`, and the planned ways
    /// of the services, in the order of `services`.
    pub(super) fn stretch(
        &mut self,
        (entry, source): (&Entry, Connector),
        (destination, source_port): (IpAddr, Option<u16>),
        services: &[(usize, Service)],
        whole: bool,
    ) -> Result<(Stretch, Vec<Planned>), DetailedError> {
        let ends = (source.address(), destination);
        let mut stretch = Stretch {
            stations: Vec::new(),
            source,
            destination,
            whole,
            pending: Vec::new(),
            learned: Vec::new(),
            choices: self.choices.clone(),
            singles: self.singles.clone(),
            settled: Vec::new(),
            open: Vec::new(),
            spreads: Vec::new(),
            taken: Vec::new(),
        };
        let mut ways = Vec::with_capacity(services.len());
        let mut backs = Vec::new();
        for &(at, service) in services {
            let flow = Flow::new(ends, source_port, service);
            let (mut way, sink, back) = self.both(&flow, entry)?;
            let task = Task {
                at,
                service,
                dial: service.port,
                port: service.port,
                moves: 0,
                growths: 0,
            };
            add(&mut stretch.pending, sink, task);
            stretch.lead(&way);
            stretch.lead(&back);
            self.join(&mut stretch, &way.hops)?;
            way.forks.extend(back.forks);
            way.spreads.extend(back.spreads);
            way.open.extend(back.open);
            ways.push(way);
            backs.push(back.hops);
        }
        for hops in backs {
            self.join(&mut stretch, &hops)?;
        }
        Ok((stretch, ways))
    }

    /// Adds the routers of a way, and those entries of neighbours without which packets would not
    /// get from one to the next: nobody answers for who is at the other end of a tunnel that asks.
    fn join(&self, stretch: &mut Stretch, hops: &[Hop]) -> Result<(), DetailedError> {
        for hop in hops {
            if stretch.has(&hop.router) {
                continue;
            }
            let planned = RouterWay {
                name: hop.router.clone(),
                iface_in: hop.iface_in.clone(),
                iface_out: hop.iface_out.clone(),
                next_hop: hop.next_hop,
            };
            stretch.stations.push(self.station(planned)?);
        }
        for pair in hops.windows(2) {
            let [here, next] = pair else { continue };
            let (Some(out), Some(address), Some(iface_in)) =
                (&here.iface_out, here.next_hop, &next.iface_in)
            else {
                continue;
            };
            // Who alone has the address answers for it; of several (VRRP) the one that is held shall.
            let alone = self.map.wiring.owners(address) == [&next.router];
            if alone || self.map.leads_itself(&here.router, out) {
                continue;
            }
            if let Some(mac) = self.map.mac(&next.router, iface_in) {
                let key = NeighbourKey {
                    router: RouterId::new(self.lab.clone(), here.router.clone()),
                    interface: out.clone(),
                    address,
                };
                if !stretch.learned.iter().any(|(known, _)| *known == key) {
                    stretch.learned.push((key, mac));
                }
            }
        }
        Ok(())
    }
}

impl Planner<'_> {
    /// The neighbour entries by which a station reaches the source host of `site`.
    pub(super) fn homes(
        &mut self,
        site: &StretchRound,
        station: &Station,
    ) -> Result<Vec<NeighbourKey>, DetailedError> {
        let source = site.from();
        // A router that calls by itself is its own home.
        let Some((home_router, home_interface)) = site.source.place() else {
            return Ok(Vec::new());
        };
        let home = self.map.segment(home_router, home_interface);
        let sink = &site.target.sink;
        let mut query = LookupQuery::to(source);
        match (sink.exit(), sink) {
            (Some((router, interface)), _) if router == station.name() => {
                query.from = sink.address();
                query.iif = Some(interface.clone());
            }
            (
                None,
                Sink::Router {
                    router, address, ..
                },
            ) if router == station.name() => {
                query.from = Some(*address);
            }
            _ => {}
        }
        if let Some(task) = site.target.tasks.first() {
            query.ip_proto = Some(task.service.protocol.number());
            query.sport = Some(task.port);
            query.dport = Some(CLIENT_PORT);
        }
        let way = self.sockets.router(station.name())?.lookup_one(&query)?;
        let (LookupKind::Unicast, Some(dev)) = (way.kind, way.dev) else {
            return Ok(Vec::new());
        };
        // An answer that leaves by another interface does not reach the source host there, as it
        // would not in the real network.
        let at_home = station.name() == home_router && dev == *home_interface;
        if !at_home && (home.is_none() || self.map.segment(station.name(), &dev) != home) {
            return Ok(Vec::new());
        }
        let address = way.via.unwrap_or(source);
        let onward = self
            .map
            .wiring
            .onward(station.name(), &dev, address, source);
        if site.whole && matches!(onward, Onward::Routers(_)) {
            return Ok(Vec::new());
        }
        Ok(vec![NeighbourKey {
            router: station.router.clone(),
            interface: dev,
            address,
        }])
    }
}
