//! What joins two interfaces beside their subnets: keys and outer addresses of tunnels, routes that
//! lead to each other, link-local next hops, and who was heard on the link.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Behind, Heard, InterfaceKind, MasterKind, Router, end::LinkEnd, tags};
use crate::{
    lab::links::{Links, split},
    model::IfName,
    netlink::object::{Mac, NextHop},
};

/// A shorter prefix leads to a provider or to everything, not to the other end of one link.
const LONG_ENOUGH: u8 = 8;

/// The `ends`, by index, of each link that the user names.
pub(super) fn named(ends: &[LinkEnd], routers: &[Router], links: &Links) -> Vec<Vec<usize>> {
    let evidence = Evidence { ends, routers };
    let of = |end: &String| {
        let (router, interface) = split(end)?;
        Some(evidence.spoken_for_by(evidence.named(router, interface)?))
    };
    let known = links
        .link
        .iter()
        .map(|link| link.ends.iter().filter_map(of));
    known.map(Iterator::collect).collect()
}

/// Ends that bridges have learned to be in a VLAN: the port, the VLAN, and the end behind the port.
pub(super) fn in_vlans(ends: &[LinkEnd], routers: &[Router]) -> Vec<(usize, u16, usize)> {
    let evidence = Evidence { ends, routers };
    let learned = evidence.learned().into_iter();
    learned
        .filter_map(|(port, behind, end)| Some((port, behind.vlan?, end)))
        .collect()
}

/// Who is behind the ports of bridges: the port, and the end behind it, by what the bridge has learned and
/// by LLDP.
pub(super) fn behind_ports(ends: &[LinkEnd], routers: &[Router]) -> Vec<(usize, usize)> {
    let evidence = Evidence { ends, routers };
    let learned = evidence.learned().into_iter();
    let learned = learned.map(|(port, _, end)| (port, end));
    let told = evidence.by_word().into_iter();
    let told = told.flat_map(|(one, other)| [(one, other), (other, one)]);
    let is_port = |end: usize| {
        let master = evidence
            .end(end)
            .and_then(|end| end.facts.link.master.as_ref());
        master.is_some_and(|master| master.kind == MasterKind::Bridge)
    };
    learned
        .chain(told)
        .map(|(port, end)| (port, evidence.spoken_for_by(end)))
        .filter(|(port, end)| is_port(*port) && evidence.apart(*port, *end))
        .collect()
}

/// Pairs of `ends`, by index, that are on one link.
pub(super) fn pairs(ends: &[LinkEnd], routers: &[Router]) -> Vec<(usize, usize)> {
    let evidence = Evidence { ends, routers };
    let mut pairs = evidence.by_keys();
    pairs.extend(evidence.by_tunnel(|a, b| evidence.outer_addresses_meet(a, b)));
    pairs.extend(evidence.by_tunnel(|a, b| evidence.lead_to_each_other(a, b)));
    pairs.extend(evidence.by_tunnel(|a, b| evidence.one_names_the_other(a, b)));
    pairs.extend(evidence.by_unnumbered_next_hops());
    pairs.extend(evidence.by_neighbours());
    pairs.extend(evidence.by_forwarding());
    pairs.extend(evidence.by_word());
    pairs.extend(evidence.by_shared_link());
    let spoken = |end| evidence.spoken_for_by(end);
    pairs
        .iter()
        .map(|(a, b)| (spoken(*a), spoken(*b)))
        .collect()
}

struct Evidence<'a> {
    ends: &'a [LinkEnd],
    routers: &'a [Router],
}

impl Evidence<'_> {
    fn end(&self, index: usize) -> Option<&LinkEnd> {
        self.ends.get(index)
    }

    /// The end `interface` of the same router as `of`.
    fn sibling(&self, of: &LinkEnd, interface: &IfName) -> Option<usize> {
        let same = |end: &LinkEnd| end.at.0 == of.at.0 && end.facts.name == *interface;
        self.ends.iter().position(same)
    }

    /// The bridge or bond that the end is a port of, or the end itself.
    fn spoken_for_by(&self, index: usize) -> usize {
        let end = self.end(index);
        let master = end.and_then(|end| self.sibling(end, end.facts.link.spoken_for_by()?));
        master.unwrap_or(index)
    }

    /// WireGuard interfaces that are each other's peers.
    fn by_keys(&self) -> Vec<(usize, usize)> {
        let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
        let mut known: BTreeSet<(usize, &str)> = BTreeSet::new();
        for (index, end) in self.ends.iter().enumerate() {
            let Some(wireguard) = &end.facts.link.wireguard else {
                continue;
            };
            if let Some(key) = &wireguard.public_key {
                owners.insert(key, index);
            }
            let peers = wireguard.peers.iter();
            known.extend(peers.map(|peer| (index, peer.public_key.as_str())));
        }
        let mut pairs = Vec::new();
        for (key, index) in &owners {
            for (other_key, other) in owners.iter().take_while(|(other, _)| *other < key) {
                if known.contains(&(*index, *other_key)) && known.contains(&(*other, *key)) {
                    pairs.push((*index, *other));
                }
            }
        }
        pairs
    }

    /// Pairs of tunnel ends of different routers for which `meet` holds.
    fn by_tunnel(&self, meet: impl Fn(&LinkEnd, &LinkEnd) -> bool) -> Vec<(usize, usize)> {
        let tunnels: Vec<(usize, &LinkEnd)> = self
            .ends
            .iter()
            .enumerate()
            .filter(|(_, end)| is_tunnel(end))
            .collect();
        let mut pairs = Vec::new();
        for (at, (index, end)) in tunnels.iter().enumerate() {
            for (other_index, other) in tunnels.iter().skip(at + 1) {
                if end.at.0 != other.at.0 && meet(end, other) {
                    pairs.push((*index, *other_index));
                }
            }
        }
        pairs
    }

    /// Each sends its outer packets to the other's outer address.
    fn outer_addresses_meet(&self, a: &LinkEnd, b: &LinkEnd) -> bool {
        let (a, b) = (&a.facts.link, &b.facts.link);
        let sends = |from: Option<IpAddr>, to: Option<IpAddr>| from.is_some() && from == to;
        a.kind == b.kind && a.has_keys_of(b) && sends(a.remote, b.local) && sends(b.remote, a.local)
    }

    /// Each router has a route to the other end's address into the tunnel: /32 ends, and the pairs
    /// of four addresses that OpenVPN makes (`topology net30`).
    fn lead_to_each_other(&self, a: &LinkEnd, b: &LinkEnd) -> bool {
        let keys = |end: &LinkEnd| end.facts.link.wireguard.is_some();
        !(keys(a) && keys(b)) && self.leads_to(a, b) && self.leads_to(b, a)
    }

    fn leads_to(&self, from: &LinkEnd, to: &LinkEnd) -> bool {
        let own_peer = |via: IpAddr| {
            let mut peers = from.facts.addresses.iter().filter_map(|a| a.peer);
            peers.any(|peer| peer.addr() == via)
        };
        let into = |hop: &NextHop| {
            hop.dev.as_ref() == Some(&from.facts.name) && hop.via.is_none_or(own_peer)
        };
        let Some(router) = self.routers.get(from.at.0) else {
            return false;
        };
        let routes = router.routes.iter().filter(|route| {
            route.destination.prefix_len() >= LONG_ENOUGH && route.next_hops.iter().any(into)
        });
        let nets: Vec<_> = routes.map(|route| route.destination).collect();
        let mut theirs = to.addresses();
        theirs.any(|address| nets.iter().any(|net| net.contains(&address.local.addr())))
    }

    /// One has the other's address as its peer, and the other names no peer at all.
    fn one_names_the_other(&self, a: &LinkEnd, b: &LinkEnd) -> bool {
        let names = |one: &LinkEnd, other: &LinkEnd| {
            let lone = other.addresses().all(|address| address.peer.is_none());
            let mut peers = one.addresses().filter_map(|address| address.peer);
            lone && peers.any(|peer| {
                let mut theirs = other.addresses();
                theirs.any(|address| address.local.addr() == peer.addr())
            })
        };
        names(a, b) || names(b, a)
    }

    /// Routes by next hops in no subnet of their interface: `via fe80::…`, as BGP unnumbered makes
    /// them, and `via 10.255.0.2 onlink` between addresses of whole length. Two ends join when each is
    /// the only one that can be the other's next hop, when one is by an address that is made of its
    /// hardware address and so is no other's, or when an end with addresses of whole length has its gateway
    /// there, in whose subnet these are, as hosts of clouds do.
    fn by_unnumbered_next_hops(&self) -> Vec<(usize, usize)> {
        let owners = self.owners();
        let mut chosen = BTreeSet::new();
        let mut pairs = Vec::new();
        for (index, end) in self.ends.iter().enumerate() {
            for next_hop in self.unnumbered_next_hops(end) {
                let having = owners.get(&next_hop).into_iter().flatten().copied();
                let having: Vec<usize> = having.filter(|o| self.apart(index, *o)).collect();
                let answers = having.iter().copied().filter(|o| self.answers(*o, end));
                match (answers.collect::<Vec<_>>().as_slice(), having.as_slice()) {
                    (_, [other]) if is_of_mac(&next_hop) => pairs.push((index, *other)),
                    ([other], _) => {
                        chosen.insert((index, *other));
                    }
                    ([], [other]) if self.lies_within(index, *other, &owners) => {
                        pairs.push((index, *other));
                    }
                    _ => {}
                }
            }
        }
        let both = chosen.iter().copied();
        pairs.extend(both.filter(|(one, other)| chosen.contains(&(*other, *one))));
        pairs
    }

    /// Whether the end `one` has addresses of whole length alone, and no other router those that are in a
    /// subnet of `other`.
    fn lies_within(&self, one: usize, other: usize, owners: &BTreeMap<IpAddr, Vec<usize>>) -> bool {
        let own = || self.end(one).into_iter().flat_map(LinkEnd::addresses);
        let is_whole = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let inside = |address: &IpAddr| {
            let nets = self.end(other).into_iter().flat_map(LinkEnd::addresses);
            let mut nets = nets.map(|net| net.local).filter(|net| !is_whole(net));
            nets.any(|net| net.contains(address))
        };
        let alone = |address: &IpAddr| {
            let mut having = owners.get(address).into_iter().flatten();
            having.all(|end| !self.apart(one, *end))
        };
        let addresses: Vec<IpAddr> = own().map(|own| own.local.addr()).filter(inside).collect();
        own().all(|own| own.peer.is_none() && is_whole(&own.local))
            && !addresses.is_empty()
            && addresses.iter().all(alone)
    }

    /// The ends that have each address.
    fn owners(&self) -> BTreeMap<IpAddr, Vec<usize>> {
        let mut owners: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
        for (index, end) in self.ends.iter().enumerate() {
            let own = end.facts.addresses.iter().map(|own| own.local.addr());
            for address in own {
                owners.entry(address).or_default().push(index);
            }
        }
        owners
    }

    /// Whether a route out of the end `index` has an address of `end` as its next hop.
    fn answers(&self, index: usize, end: &LinkEnd) -> bool {
        let back = self
            .end(index)
            .map(|other| self.unnumbered_next_hops(other));
        back.is_some_and(|back| back.iter().any(|next_hop| has(end, *next_hop)))
    }

    /// The next hops in no subnet of `end` that its router sends to out of it.
    fn unnumbered_next_hops(&self, end: &LinkEnd) -> BTreeSet<IpAddr> {
        let on_link = |via: &IpAddr| {
            let mut nets = end.facts.addresses.iter();
            nets.any(|own| own.local.contains(via) || own.peer.is_some_and(|net| net.contains(via)))
        };
        let router = self.routers.get(end.at.0);
        let routes = router.into_iter().flat_map(|router| &router.routes);
        routes
            .flat_map(|route| &route.next_hops)
            .filter(|hop| hop.dev.as_ref() == Some(&end.facts.name))
            .filter_map(|hop| hop.via)
            .filter(|via| is_link_local(*via) || !on_link(via))
            .collect()
    }

    fn apart(&self, one: usize, other: usize) -> bool {
        match (self.end(one), self.end(other)) {
            (Some(one), Some(other)) => one.at.0 != other.at.0,
            _ => false,
        }
    }

    /// Who was heard on a link, by a hardware address that only one interface has; or of several,
    /// as VLANs share that of their parent, the one that has the protocol address too.
    fn by_neighbours(&self) -> Vec<(usize, usize)> {
        let owners = self.owners_of_macs();
        let mut pairs = Vec::new();
        for (index, end) in self.ends.iter().enumerate() {
            for (address, mac) in &end.facts.link.neighbours {
                let having = owners.get(mac).map_or(&[][..], Vec::as_slice);
                let addressed = having.iter().copied().filter(|other| {
                    let other = self.end(*other);
                    other.is_some_and(|other| has(other, *address))
                });
                let addressed: Vec<usize> = addressed.collect();
                match (addressed.as_slice(), having) {
                    ([other], _) | ([], [other]) if self.apart(index, *other) => {
                        pairs.push((index, *other));
                    }
                    _ => {}
                }
            }
        }
        pairs
    }

    /// The ends that have each hardware address.
    fn owners_of_macs(&self) -> BTreeMap<Mac, Vec<usize>> {
        let mut owners: BTreeMap<Mac, Vec<usize>> = BTreeMap::new();
        for (index, end) in self.ends.iter().enumerate() {
            if let Some(mac) = end.facts.mac {
                // A bridge and its first port have one address; they are one end.
                let spoken = self.spoken_for_by(index);
                let having = owners.entry(mac).or_default();
                if !having.contains(&spoken) {
                    having.push(spoken);
                }
            }
        }
        owners
    }
}

impl Evidence<'_> {
    /// Who was learned to be behind a port, and who speaks for the port there.
    fn by_forwarding(&self) -> Vec<(usize, usize)> {
        let pair = |(port, behind, end): (usize, &Behind, usize)| {
            let speaker = behind.speaker.as_ref()?;
            Some((self.sibling(self.end(port)?, speaker)?, end))
        };
        self.learned().into_iter().filter_map(pair).collect()
    }

    /// What bridges have learned: the port, what was learned, and the one end that can have sent such
    /// frames. VLAN interfaces share the hardware address of what is below them: of these it is the
    /// one with the frame's tag, and without a tag the frame is in the port's own VLAN.
    fn learned(&self) -> Vec<(usize, &Behind, usize)> {
        let owners = self.owners_of_macs();
        let mut learned = Vec::new();
        for (port, end) in self.ends.iter().enumerate() {
            for behind in &end.facts.link.behind {
                let sends = |other: &usize| {
                    let tags = self.end(*other).map(|other| tags::tags(self.ends, other));
                    match (tags.as_deref(), behind.vlan) {
                        (Some([]), None) => true,
                        (Some([]), vlan) => vlan == end.facts.link.pvid,
                        (Some([tag]), Some(vlan)) => *tag == u32::from(vlan),
                        _ => false,
                    }
                };
                let having = owners.get(&behind.mac).into_iter().flatten().copied();
                let having: Vec<usize> = having
                    .filter(|other| self.apart(port, *other) && sends(other))
                    .collect();
                if let [one] = having.as_slice() {
                    learned.push((port, behind, *one));
                }
            }
        }
        learned
    }

    /// What LLDP says.
    fn by_word(&self) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (index, end) in self.ends.iter().enumerate() {
            let heard = end.facts.link.heard.iter();
            let others = heard.filter_map(|heard| self.who(heard));
            pairs.extend(others.map(|other| (index, other)));
        }
        pairs
    }

    /// Interfaces with a hardware address of their own on the link of another (macvlan), as VRRP has them.
    fn by_shared_link(&self) -> Vec<(usize, usize)> {
        let ends = self.ends.iter().enumerate();
        let shares = ends.filter(|(_, end)| end.facts.link.kind.as_deref() == Some("macvlan"));
        let below = |(index, end): (usize, &LinkEnd)| {
            let over = end.facts.link.over.as_ref()?;
            Some((index, self.sibling(end, over)?))
        };
        shares.filter_map(below).collect()
    }

    /// The end that somebody says to be: by its hardware address where one interface alone has that, VLANs
    /// and others that hang on it aside; or else by its name.
    fn who(&self, heard: &Heard) -> Option<usize> {
        let named = || self.named(&heard.router, heard.interface.as_ref()?);
        let Some(mac) = heard.mac else { return named() };
        let has = |end: &(usize, &LinkEnd)| {
            let facts = &end.1.facts;
            end.1.router.as_str() == heard.router
                && facts.mac == Some(mac)
                && facts.link.over.is_none()
                && !matches!(facts.link.kind.as_deref(), Some("bridge" | "bond" | "team"))
        };
        let ends: Vec<_> = self.ends.iter().enumerate().filter(has).collect();
        match ends.as_slice() {
            [(only, _)] => Some(*only),
            _ => named(),
        }
    }

    /// The end `interface` of `router`.
    fn named(&self, router: &str, interface: &str) -> Option<usize> {
        self.ends
            .iter()
            .position(|end| end.router.as_str() == router && end.facts.name.as_str() == interface)
    }
}

fn has(end: &LinkEnd, address: IpAddr) -> bool {
    let mut own = end.facts.addresses.iter();
    own.any(|own| own.local.addr() == address)
}

fn is_tunnel(end: &LinkEnd) -> bool {
    end.facts.kind == InterfaceKind::Tunnel || end.facts.link.remote.is_some()
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Whether the interface identifier is made of a hardware address, RFC 4291 appendix A.
fn is_of_mac(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.octets()[11..13] == [0xff, 0xfe])
}
