//! Who gets what a router sends out: the other end of the wire, by the lab's wiring alone.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{End, Entry, Plug, SharedLink, Wiring};
use crate::{
    lab::topology::{InterfaceKind, LinkFacts, WireGuardPeer},
    model::{IfName, RouterName},
    netlink::object::Mac,
};

/// Who gets a packet that a router sends out of one of its interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Onward {
    /// These routers, at these interfaces: more than one where several answer for the next hop
    /// (VRRP and the like), or where nothing tells which of a tunnel's ends it is.
    Routers(Vec<Entry>),
    /// No router of the lab: its way ends here.
    End(End),
}

impl Wiring {
    /// Who gets a packet to `destination` that `router` sends out of `out` to `next_hop`, which is
    /// the destination itself where the route names no gateway.
    #[must_use]
    pub fn onward(
        &self,
        router: &RouterName,
        out: &IfName,
        next_hop: IpAddr,
        destination: IpAddr,
    ) -> Onward {
        let plug = self.plug(router, out);
        let Some((plug, segment)) = plug.and_then(|plug| Some((plug, self.segment(plug)?))) else {
            return Onward::End(End::NextHopUnknown { segment: None });
        };
        let segment = segment.to_owned();
        if let Some(wireguard) = &plug.link.wireguard {
            return match wireguard.peer_of(destination) {
                Some(peer) => self.to_peer(plug, peer, segment, destination),
                None => Onward::End(End::NoPeer),
            };
        }
        // The kernel takes a gateway that is the router itself for the link (`fib_check_nh()`).
        let itself = self.owners(next_hop).contains(&router);
        let next_hop = if itself { destination } else { next_hop };
        if let Some(mac) = plug.fixed(next_hop)
            && let Some(onward) = self.to_fixed(plug, next_hop, mac, &segment)
        {
            return onward;
        }
        let reached = self.reached(plug, next_hop);
        let up: Vec<&Plug> = reached.iter().filter(|plug| plug.up).copied().collect();
        if !up.is_empty() {
            return Onward::Routers(entries(&up));
        }
        if !reached.is_empty() {
            return Onward::End(End::NextHopUnknown {
                segment: Some(segment),
            });
        }
        let proxies = self.proxies(plug, next_hop);
        if !proxies.is_empty() {
            return Onward::Routers(entries(&proxies));
        }
        if self.is_silent(plug, next_hop) {
            return Onward::End(End::NextHopUnknown { segment: None });
        }
        self.unanswered(plug, segment, next_hop, destination)
    }

    /// Who gets a packet of which no router of the lab says that it takes it.
    fn unanswered(
        &self,
        plug: &Plug,
        segment: String,
        next_hop: IpAddr,
        destination: IpAddr,
    ) -> Onward {
        let here = (next_hop == destination)
            .then(|| self.prefix_on(plug, destination))
            .flatten();
        let mut places = self.places(destination, here);
        if here.is_some() {
            places.extend(self.twins(plug, destination));
            return self.to_host(plug, segment, destination, places);
        }
        let others = self.other_ends(plug);
        if plug.kind == InterfaceKind::Tunnel {
            match others.as_slice() {
                [] => {}
                // A tunnel knows no neighbours: what goes in comes out at the other end.
                [end] => return Onward::Routers(entries(&[end])),
                ends if places.is_empty() => {
                    return Onward::End(End::SomeEnd {
                        segment,
                        ends: entries(ends),
                    });
                }
                ends => return Onward::Routers(entries(ends)),
            }
        }
        let doubt = self.doubted(plug, &segment, (next_hop, destination), places.is_empty());
        if let Some(end) = doubt {
            let ends = vec![end];
            return Onward::End(End::Absent { segment, ends });
        }
        self.out(plug, segment, places)
    }

    /// To a host of the link itself; `places` are where else it may be.
    fn to_host(&self, plug: &Plug, segment: String, host: IpAddr, places: Vec<Entry>) -> Onward {
        if !places.is_empty() {
            return self.out(plug, segment, places);
        }
        let mut translators = self.translators(plug, host).into_iter();
        let Some(router) = translators.find(|router| **router != plug.router) else {
            return Onward::End(End::Delivered { segment });
        };
        let ends = vec![format!(
            "whoever has {host} on segment {segment}, which {router} translates and does not answer for"
        )];
        Onward::End(End::Absent { segment, ends })
    }

    /// Who would have to take a packet to `next_hop` on the link of `plug`, where somebody's facts speak against that
    /// there is such a one; `nowhere` where no subnet of the lab has the destination.
    fn doubted(
        &self,
        plug: &Plug,
        segment: &str,
        (next_hop, destination): (IpAddr, IpAddr),
        nowhere: bool,
    ) -> Option<String> {
        let direct = next_hop == destination;
        // The route that led here takes it for a neighbour, and another router of the link knows better.
        let near = direct && plug.prefix(destination).is_some();
        if let Some((router, _)) = self.away(plug, destination).filter(|_| near) {
            return Some(format!(
                "whoever has {destination} on segment {segment}, which {router} has elsewhere"
            ));
        }
        let answers_for_some = |end: &&Plug| !end.link.proxy.elsewhere.is_empty();
        if direct && nowhere && self.other_ends(plug).iter().any(answers_for_some) {
            // Those of the lab that answer for others do not for this one.
            return Some(format!("whoever answers ARP for {destination}"));
        }
        // An address of whole length (/32, /128) is of no subnet, and its router may be on any link.
        let whole =
            |own: &IpNet| own.addr() == next_hop && own.prefix_len() == own.max_prefix_len();
        let is_whole = |other: &Plug| other.addresses.iter().any(whole);
        let free = plug.prefix(next_hop).is_none() || self.plugs.iter().any(is_whole);
        let far = plug.kind == InterfaceKind::Ethernet && free;
        let owners = self.owners(next_hop);
        let owner = owners.first().filter(|_| far && nowhere)?;
        // A gateway that the interface has no subnet of (`onlink`), or an address without one, and another router
        // has it.
        Some(format!(
            "whoever has {next_hop} on segment {segment}, an address that {owner} has on another"
        ))
    }

    /// The permanent neighbour entries of a router that lead elsewhere than to who has the address, or
    /// to one of several that have it.
    #[must_use]
    pub fn fixed_entries(&self, router: &RouterName) -> Vec<(IfName, IpAddr, Mac)> {
        let own = self.plugs.iter().filter(|plug| plug.router == *router);
        let entries = own.flat_map(|plug| plug.link.fixed.iter().map(move |entry| (plug, entry)));
        let leads = entries.filter(|(plug, (address, mac))| {
            plug.fixed(*address).is_some() && self.to_fixed(plug, *address, *mac, "").is_some()
        });
        leads
            .map(|(plug, (address, mac))| (plug.interface.clone(), *address, *mac))
            .collect()
    }

    /// To the hardware address that a router was told for `next_hop`; none where it tells nothing, as
    /// of hosts and of routers outside.
    fn to_fixed(&self, from: &Plug, next_hop: IpAddr, mac: Mac, segment: &str) -> Option<Onward> {
        let ends = self.other_ends(from);
        let named: Vec<&Plug> = ends
            .into_iter()
            .filter(|end| end.mac == Some(mac))
            .collect();
        if !named.is_empty() {
            return Some(Onward::Routers(entries(&named)));
        }
        let known = self.reached(from, next_hop).into_iter();
        (known.filter(|end| end.mac.is_some()).count() > 0).then(|| {
            Onward::End(End::Absent {
                segment: segment.to_owned(),
                ends: vec![format!("{next_hop} at {mac} (a permanent neighbour entry)")],
            })
        })
    }

    /// To somebody who is no router of the lab; `places` have the destination.
    fn out(&self, plug: &Plug, segment: String, places: Vec<Entry>) -> Onward {
        let absent = self.absent.iter();
        let absent = absent.filter(|(at, _)| plug.segment == Some(*at));
        let mut ends: Vec<String> = absent.map(|(_, end)| end.clone()).collect();
        if ends.is_empty() && places.is_empty() {
            // What looks like the way out of the lab may be a router without facts, or with fewer
            // addresses than it has.
            let others = self.partly_seen.iter().filter(|r| **r != plug.router);
            ends.extend(self.missing.iter().chain(others).map(ToString::to_string));
        }
        if !ends.is_empty() {
            Onward::End(End::Absent { segment, ends })
        } else if places.is_empty() {
            Onward::End(End::Leaves { segment })
        } else {
            Onward::End(End::Elsewhere { segment, places })
        }
    }

    /// To the peer of a WireGuard interface.
    fn to_peer(
        &self,
        from: &Plug,
        peer: &WireGuardPeer,
        segment: String,
        destination: IpAddr,
    ) -> Onward {
        let is_it = |plug: &&Plug| {
            let wireguard = plug.link.wireguard.as_ref();
            wireguard.and_then(|own| own.public_key.as_ref()) == Some(&peer.public_key)
        };
        let Some(end) = self.plugs.iter().find(is_it) else {
            // A peer that is a host has its address in the interface's subnet.
            let here = self.prefix_on(from, destination);
            let places = self.places(destination, here);
            if here.is_some() && places.is_empty() {
                return Onward::End(End::Delivered { segment });
            }
            return self.out(from, segment, places);
        };
        if end.up && end.segment == from.segment {
            Onward::Routers(entries(&[end]))
        } else {
            Onward::End(End::NextHopUnknown {
                segment: Some(segment),
            })
        }
    }

    /// Whether the interface `to` takes a packet from `source` that came out of `out` of `router`.
    /// WireGuard takes from a peer only sources among its allowed addresses
    /// (`wg_allowedips_lookup_src()`).
    #[must_use]
    pub fn takes(&self, router: &RouterName, out: &IfName, to: &Entry, source: IpAddr) -> bool {
        let end = to.iface_in.as_ref();
        let end = end.and_then(|interface| self.plug(&to.router, interface));
        let receiver = end.and_then(|end| end.link.wireguard.as_ref());
        let sender = self.plug(router, out);
        let sender = sender.and_then(|plug| plug.link.wireguard.as_ref()?.public_key.as_ref());
        match (receiver, sender) {
            (Some(receiver), Some(sender)) => {
                let peer = receiver.peer_of(source);
                peer.is_some_and(|peer| peer.public_key == *sender)
            }
            _ => true,
        }
    }

    /// The length of the longest prefix on the segment of `plug` that has `address`.
    fn prefix_on(&self, plug: &Plug, address: IpAddr) -> Option<u8> {
        let near = self.plugs.iter();
        let near = near.filter(|other| other.up && other.segment == plug.segment);
        near.filter_map(|other| self.subnet(other, address)).max()
    }

    /// Other interfaces of the router of `plug` that have the prefix of `address`: the kernel takes one
    /// of the routes, wherever the address is. That both are on one wire, nothing says. None where the
    /// address was heard on `plug`.
    fn twins(&self, plug: &Plug, address: IpAddr) -> Vec<Entry> {
        /// What no host has a wire to.
        const WITHOUT_HOSTS: [&str; 4] = ["dummy", "macvlan", "ipvlan", "vrf"];
        let heard = |end: &Plug| end.link.neighbours.iter().any(|(who, _)| *who == address);
        let wired = |end: &&Plug| {
            let kind = end.link.kind.as_deref();
            end.up && end.segment.is_some() && kind.is_none_or(|k| !WITHOUT_HOSTS.contains(&k))
        };
        let twin = |end: &&Plug| {
            let same = (&plug.router, plug.link.vrf_table) == (&end.router, end.link.vrf_table);
            let other = end.interface != plug.interface;
            same && other && end.prefix(address) == plug.prefix(address)
        };
        if !wired(&plug) {
            return Vec::new();
        }
        let twins = self.plugs.iter().filter(wired).filter(twin);
        let twins: Vec<&Plug> = twins.filter(|end| heard(end) || !heard(plug)).collect();
        entries(&twins)
    }

    /// The interfaces whose subnet has `address`, by a longer prefix than `longer_than`.
    fn places(&self, address: IpAddr, longer_than: Option<u8>) -> Vec<Entry> {
        // Where another answers in its place, it is not.
        let answered = |plug: &Plug| {
            let mut near = self
                .plugs
                .iter()
                .filter(|other| other.segment == plug.segment);
            near.any(|other| other.up && other.link.proxy.answers_for(address))
        };
        let has =
            |plug: &&Plug| plug.up && self.subnet(plug, address) > longer_than && !answered(plug);
        let plugs: Vec<&Plug> = self.plugs.iter().filter(has).collect();
        entries(&plugs)
    }

    /// The interfaces of other routers on the segment of `plug` that answer in the place of
    /// `address`, which no router there has.
    fn proxies(&self, plug: &Plug, address: IpAddr) -> Vec<&Plug> {
        let mut others = self.other_ends(plug);
        others.retain(|end| end.link.proxy.answers_for(address));
        others
    }

    /// Whether routers on the segment of `plug` have `address` elsewhere and do not say so.
    fn is_silent(&self, plug: &Plug, address: IpAddr) -> bool {
        let owners = self.owners(address);
        let mut others = self.other_ends(plug).into_iter();
        address.is_ipv4() && others.any(|end| owners.contains(&&end.router))
    }

    /// The interfaces of other routers on the segment of `plug` that are up.
    fn other_ends(&self, plug: &Plug) -> Vec<&Plug> {
        let other =
            |end: &&Plug| end.up && end.segment == plug.segment && end.router != plug.router;
        self.plugs.iter().filter(other).collect()
    }

    /// The segment that `source` and `destination` share as hosts of one subnet; none where either
    /// is an address of a router, a router answers in the destination's place, or the link is a
    /// tunnel, whose hosts do not hear each other.
    #[must_use]
    pub fn shared_link(&self, source: IpAddr, destination: IpAddr) -> Option<SharedLink> {
        let near = self.neighbours(source);
        let owners = self.owners(destination);
        let answers = |plug: &&Plug| plug.has(destination) || self.answers_arp(plug, destination);
        let answered = !owners.is_empty() && (near.is_empty() || near.iter().any(answers));
        if !self.owners(source).is_empty() || answered {
            return None;
        }
        let shares = |plug: &&Plug| plug.shares(source, destination);
        let with = |what: fn(&LinkFacts) -> bool| {
            let some = near.iter().filter(|plug| what(&plug.link));
            let mut routers: Vec<RouterName> = some.map(|plug| plug.router.clone()).collect();
            routers.dedup();
            routers
        };
        let all = near
            .iter()
            .all(|plug| plug.kind != InterfaceKind::Tunnel && shares(plug));
        let first = near.first().filter(|_| all)?;
        if near
            .iter()
            .any(|plug| plug.link.proxy.answers_for(destination))
        {
            return None;
        }
        let mut proxied_by = with(|link| link.proxy.same_link);
        proxied_by.retain(|_| destination.is_ipv4());
        // A narrower subnet has the destination on a link where the source does not look for it.
        let narrowest = self.neighbours(destination);
        let here = narrowest
            .iter()
            .any(|plug| near.iter().any(|n| n.segment == plug.segment));
        let elsewhere = narrowest.iter().filter(|_| !here).map(|plug| &plug.router);
        let away = near.iter().filter_map(|plug| self.away(plug, destination));
        let away = away.map(|(router, _)| router);
        let silent: BTreeSet<&RouterName> =
            owners.into_iter().chain(elsewhere).chain(away).collect();
        let others = near.iter().filter(|plug| plug.segment != first.segment);
        let mut or_on: Vec<String> = others
            .filter_map(|plug| Some(self.segment(plug)?.to_owned()))
            .collect();
        or_on.dedup();
        Some(SharedLink {
            segment: self.segment(first)?.to_owned(),
            filtered_by: with(|link| link.filters_bridged),
            tracked_by: with(|link| link.tracks_bridged),
            proxied_by,
            isolated_by: with(|link| link.isolates),
            silent: silent.into_iter().cloned().collect(),
            between: self.with_twins(&near, [source, destination]),
            translated_by: self
                .translators(first, destination)
                .into_iter()
                .cloned()
                .collect(),
            to_all: near.iter().any(|plug| plug.is_broadcast(destination)),
            or_on,
        })
    }

    /// Routers with several interfaces of `near`, which have the prefix of both hosts, and of which none is
    /// known to have both behind it: a router may stand between them, and answer each for the other.
    fn with_twins(&self, near: &[&Plug], hosts: [IpAddr; 2]) -> Vec<RouterName> {
        let has_both = |plug: &&&Plug| hosts.iter().all(|host| self.twins(plug, *host).is_empty());
        let mut routers: Vec<RouterName> = near.iter().map(|plug| plug.router.clone()).collect();
        routers.dedup();
        routers.retain(|router| {
            let own = near.iter().filter(|plug| plug.router == *router);
            own.filter(has_both).count() == 0
        });
        routers
    }
}

fn entries(plugs: &[&Plug]) -> Vec<Entry> {
    plugs.iter().map(|plug| plug.entry()).collect()
}
