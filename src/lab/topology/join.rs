//! Which interfaces of which routers share a segment.
//!
//! Interfaces join when the facts name the same segment, or else when they are in the same
//! subnet: each one's address is on the other's link, as the kernel sees it. Point-to-point
//! addresses join when each is the other's peer. What else joins ends is in [`evidence`].
//!
//! An interface may borrow the address of another one of its router (an unnumbered tunnel): it is
//! then a host's, and puts the interface on no subnet.
//!
//! The same address twice in a subnet is either two networks that happen to be numbered alike, or
//! one address that routers share (VRRP and the like). An interface that has nothing but
//! duplicates gets a segment of its own, as in the first case; one with an address of its own
//! joins, as in the second.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{
    Interface, InterfaceKind, LinkFacts, Router, Segment, Topology, Warning, alone, between, check,
    end::LinkEnd, evidence, places::VlanPlaces, strangers, tags, tunnels,
};
use crate::{
    lab::{facts::RouterFacts, links::Links},
    model::{IfName, RouterName},
    netlink::object::{Address, Mac},
};

/// Makes the topology of a lab from the facts of its routers.
#[must_use]
pub fn build(facts: Vec<RouterFacts>) -> Topology {
    build_with(facts, &Links::default())
}

/// As [`build`], with what `links.toml` says about wires.
#[must_use]
pub fn build_with(facts: Vec<RouterFacts>, links: &Links) -> Topology {
    let mut topology = Topology::default();
    let mut ends = Vec::new();
    for router in facts {
        add_router(router, &mut topology, &mut ends);
    }
    let named = evidence::named(&ends, &topology.routers, links);
    let evidence = evidence::pairs(&ends, &topology.routers);
    for (port, end) in evidence::behind_ports(&ends, &topology.routers) {
        note_behind(&mut topology, &ends, port, end);
    }
    let learned = evidence::in_vlans(&ends, &topology.routers);
    let places = VlanPlaces::of(&ends, &evidence, &learned);
    let groups = Joiner::new(&ends, &places).groups((&named, &evidence), &mut topology.warnings);
    let told = Joiner::new(&ends, &places).told(&named, &evidence);
    topology
        .warnings
        .extend(places.doubts(&ends, &told, &groups));
    let strangers = strangers::doubts(&ends, &groups, &told);
    topology.warnings.extend(strangers);
    let twins = strangers::twins((&ends, &topology.routers), &groups, &told);
    topology.warnings.extend(twins);
    let apart = tunnels::doubts((&ends, &topology.routers), &groups, &told);
    topology.warnings.extend(apart);
    for group in groups {
        add_segment(&group, &ends, &mut topology);
    }
    alone::name_ends(&mut topology, links);
    between::name_bridges(&mut topology);
    topology
}

fn add_router(facts: RouterFacts, topology: &mut Topology, ends: &mut Vec<LinkEnd>) {
    let mut checked = check::router(facts);
    topology.warnings.append(&mut checked.warnings);
    let at = topology.routers.len();
    let mut interfaces = Vec::with_capacity(checked.interfaces.len());
    for (index, interface) in checked.interfaces.into_iter().enumerate() {
        let (line, facts) = (interface.line, interface.value);
        interfaces.push(Interface {
            name: facts.name.clone(),
            line,
            kind: facts.kind,
            mac: facts.mac,
            mtu: facts.mtu,
            up: facts.up,
            group: facts.group,
            addresses: facts.addresses.clone(),
            link: LinkFacts {
                behind: Vec::new(),
                ..facts.link.clone()
            },
            segment: None,
        });
        if facts.kind != InterfaceKind::Loopback {
            ends.push(LinkEnd {
                at: (at, index),
                router: checked.name.clone(),
                file: checked.file.clone(),
                line,
                facts,
            });
        }
    }
    topology.routers.push(Router {
        name: checked.name,
        file: checked.file,
        interfaces,
        routes: checked.routes,
        rules: checked.rules,
        rulesets: checked.rulesets,
        sysctls: checked.sysctls,
    });
}

/// Notes with a port of a bridge whose end is behind it.
fn note_behind(topology: &mut Topology, ends: &[LinkEnd], port: usize, end: usize) {
    let (Some(port), Some(end)) = (ends.get(port), ends.get(end)) else {
        return;
    };
    let router = topology.routers.get_mut(port.at.0);
    let interface = router.and_then(|router| router.interfaces.get_mut(port.at.1));
    let known = (end.router.clone(), end.facts.name.clone());
    if let Some(interface) = interface
        && !interface.link.ends.contains(&known)
    {
        interface.link.ends.push(known);
    }
}

/// Union-find over the ends.
struct Joiner<'a> {
    ends: &'a [LinkEnd],
    places: &'a VlanPlaces,
    parent: Vec<usize>,
    /// The links that `links.toml` puts ends on, each by one of its ends.
    named: BTreeMap<usize, usize>,
}

impl<'a> Joiner<'a> {
    fn new(ends: &'a [LinkEnd], places: &'a VlanPlaces) -> Self {
        Self {
            ends,
            places,
            parent: (0..ends.len()).collect(),
            named: BTreeMap::new(),
        }
    }

    fn root(&mut self, mut end: usize) -> usize {
        while let Some(&up) = self.parent.get(end).filter(|up| **up != end) {
            let grand = self.parent.get(up).copied().unwrap_or(up);
            if let Some(slot) = self.parent.get_mut(end) {
                *slot = grand;
            }
            end = grand;
        }
        end
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if let Some(slot) = self.parent.get_mut(a.max(b)) {
            *slot = a.min(b);
        }
    }

    /// The ends of each segment, in the order of their first ends.
    fn groups(
        mut self,
        (named, evidence): (&[Vec<usize>], &[(usize, usize)]),
        warnings: &mut Vec<Warning>,
    ) -> Vec<Vec<usize>> {
        self.join_links(named);
        let alone = self.duplicates(warnings);
        self.join_named();
        self.join_subnets(&alone, warnings);
        self.join_peers(&alone);
        for (one, other) in evidence {
            self.join(*one, *other);
        }
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for end in 0..self.ends.len() {
            let root = self.root(end);
            groups.entry(root).or_default().push(end);
        }
        groups.into_values().collect()
    }

    /// For each end one that stands for all that it is joined with by more than its subnet.
    fn told(mut self, named: &[Vec<usize>], evidence: &[(usize, usize)]) -> Vec<usize> {
        self.join_links(named);
        for (one, other) in evidence {
            self.join(*one, *other);
        }
        (0..self.ends.len()).map(|end| self.root(end)).collect()
    }

    fn join_links(&mut self, named: &[Vec<usize>]) {
        for pair in named.iter().flat_map(|link| link.windows(2)) {
            if let [one, other] = pair {
                self.join(*one, *other);
            }
        }
        for end in named.iter().flatten() {
            let link = self.root(*end);
            self.named.insert(*end, link);
        }
    }

    /// Splits ends of one subnet where `links.toml` has several links in it: then only the ends that it
    /// does not name are still to be joined, and nobody knows on which of these links they are.
    fn of_no_link(
        &self,
        (subnet, members): (IpNet, &[(usize, IpNet)]),
        warnings: &mut Vec<Warning>,
    ) -> Option<Vec<(usize, IpNet)>> {
        let links = members.iter().filter_map(|(end, _)| self.named.get(end));
        if links.collect::<BTreeSet<_>>().len() < 2 {
            return None;
        }
        let rest = members
            .iter()
            .filter(|(end, _)| !self.named.contains_key(end));
        let rest: Vec<_> = rest.copied().collect();
        for end in rest.iter().filter_map(|(end, _)| self.ends.get(*end)) {
            warnings.push(end.warning(format!(
                "links.toml has several links in {subnet}, and {} on none of them",
                end.label()
            )));
        }
        Some(rest)
    }

    fn join_named(&mut self) {
        let mut first: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, end) in self.ends.iter().enumerate() {
            if let Some(name) = &end.facts.segment {
                let with = *first.entry(name).or_insert(index);
                self.join(with, index);
            }
        }
    }

    /// Whether the address is one of another interface of the same router, which is in a subnet
    /// with it.
    fn is_borrowed(&self, end: &LinkEnd, address: &Address) -> bool {
        let host = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let lends = |other: &LinkEnd| {
            let mut own = other.facts.addresses.iter().map(|address| address.local);
            own.any(|net| net.addr() == address.local.addr() && !host(&net))
        };
        let mut others = self.ends.iter().filter(|other| other.at.0 == end.at.0);
        host(&address.local) && others.any(|other| other.at != end.at && lends(other))
    }

    /// Ends without a named segment, with their indices.
    fn unnamed(&self) -> impl Iterator<Item = (usize, &'a LinkEnd)> + use<'a> {
        let ends = self.ends.iter().enumerate();
        ends.filter(|(_, end)| end.facts.segment.is_none())
    }

    /// Ends that stay alone because another end has all their addresses already. Whom a server of PPP and the
    /// like calls itself may be the same towards all of its peers.
    fn duplicates(&self, warnings: &mut Vec<Warning>) -> BTreeSet<usize> {
        let mut owner: BTreeMap<(IpNet, Option<IpNet>), &LinkEnd> = BTreeMap::new();
        let mut alone = BTreeSet::new();
        for (index, end) in self.unnamed() {
            let taken: Vec<_> = end
                .addresses()
                .filter_map(|a| Some((a.local, *owner.get(&(a.local, a.peer))?)))
                .collect();
            if let Some((address, other)) = taken.first() {
                let all = taken.len() == end.addresses().count();
                warnings.push(end.warning(duplicate_message(end, other, *address, all)));
                if all {
                    alone.insert(index);
                    continue;
                }
            }
            for address in end.addresses() {
                owner.entry((address.local, address.peer)).or_insert(end);
            }
        }
        alone
    }

    /// Joins what is in one subnet, also where prefix lengths differ and both ends still see
    /// each other on the link.
    fn join_subnets(&mut self, alone: &BTreeSet<usize>, warnings: &mut Vec<Warning>) {
        let mut subnets: BTreeMap<IpNet, Vec<(usize, IpNet)>> = BTreeMap::new();
        for (index, end) in self.unnamed().filter(|(index, _)| !alone.contains(index)) {
            let own = |a: &&Address| a.peer.is_none() && !self.is_borrowed(end, a);
            for address in end.addresses().filter(own) {
                let members = subnets.entry(address.local.trunc()).or_default();
                members.push((index, address.local));
            }
        }
        let on_links = |(subnet, members): (&IpNet, &Vec<_>)| {
            Some((*subnet, self.of_no_link((*subnet, members), warnings)?))
        };
        let on_links: Vec<_> = subnets.iter().filter_map(on_links).collect();
        subnets.extend(on_links);
        for (subnet, members) in &subnets {
            for members in &self.split((*subnet, members), warnings) {
                for pair in members.windows(2) {
                    if let [(a, _), (b, _)] = pair
                        && !self.keys_tell(*a, *b)
                    {
                        self.join(*a, *b);
                    }
                }
            }
            for wider in wider(*subnet).filter_map(|net| subnets.get(&net)) {
                self.join_across(members, wider, warnings);
            }
        }
    }

    /// The members of a subnet without those in other VLANs, each part by itself.
    fn split(
        &self,
        (subnet, members): (IpNet, &[(usize, IpNet)]),
        warnings: &mut Vec<Warning>,
    ) -> Vec<tags::Members> {
        let by_tags = tags::split(self.ends, (subnet, members), warnings);
        let parts = by_tags.unwrap_or_else(|| vec![members.to_vec()]);
        let split = |part: tags::Members| {
            let split = self.places.split(self.ends, (subnet, &part), warnings);
            split.unwrap_or_else(|| vec![part])
        };
        parts.into_iter().flat_map(split).collect()
    }

    /// Whether both ends know their WireGuard peers, so that keys say who is joined.
    fn keys_tell(&self, a: usize, b: usize) -> bool {
        let known = |end: usize| {
            let end = self.ends.get(end);
            end.is_some_and(|end| end.facts.link.wireguard.is_some())
        };
        known(a) && known(b)
    }

    fn join_across(
        &mut self,
        narrow: &[(usize, IpNet)],
        wide: &[(usize, IpNet)],
        warnings: &mut Vec<Warning>,
    ) {
        for (a, a_net) in narrow {
            let sees = |(_, b_net): &&(usize, IpNet)| a_net.contains(&b_net.addr());
            let seen = wide.iter().filter(sees);
            let apart = |b: usize| tags::differ(self.ends, *a, b) || self.places.differ(*a, b);
            let seen: Vec<_> = seen.filter(|(b, _)| !apart(*b)).collect();
            for (b, b_net) in seen {
                self.join(*a, *b);
                if let (Some(a), Some(b)) = (self.ends.get(*a), self.ends.get(*b)) {
                    warnings.push(a.warning(format!(
                        "{a_net} on {} and {b_net} on {} share a link with different prefix \
                         lengths; joined",
                        a.label(),
                        b.label()
                    )));
                }
            }
        }
    }

    fn join_peers(&mut self, alone: &BTreeSet<usize>) {
        let mut seen = BTreeMap::new();
        for (index, end) in self.unnamed().filter(|(index, _)| !alone.contains(index)) {
            for address in end.addresses() {
                let Some(peer) = address.peer else { continue };
                let (own, peer) = (address.local.addr(), peer.addr());
                if let Some(other) = seen.get(&(peer, own)) {
                    self.join(*other, index);
                }
                seen.insert((own, peer), index);
            }
        }
    }
}

/// All prefixes that hold `net`, the default route excepted.
fn wider(net: IpNet) -> impl Iterator<Item = IpNet> {
    let lengths = 1..net.prefix_len();
    lengths.filter_map(move |len| Some(IpNet::new(net.addr(), len).ok()?.trunc()))
}

fn duplicate_message(end: &LinkEnd, other: &LinkEnd, address: IpNet, all: bool) -> String {
    let (own, other) = (end.label(), other.label());
    if all {
        format!("{address} of {own} is on {other} too; {own} gets a segment of its own")
    } else {
        format!("{address} of {own} is on {other} too; on their segment both answer for it")
    }
}

fn add_segment(group: &[usize], ends: &[LinkEnd], topology: &mut Topology) {
    let index = topology.segments.len();
    let members: Vec<&LinkEnd> = group.iter().filter_map(|end| ends.get(*end)).collect();
    let name = segment_name(&members, &topology.segments);
    let mut macs: BTreeMap<Mac, &LinkEnd> = BTreeMap::new();
    for end in &members {
        let interface = topology
            .routers
            .get_mut(end.at.0)
            .and_then(|router| router.interfaces.get_mut(end.at.1));
        let Some(interface) = interface else { continue };
        interface.segment = Some(index);
        if let Some(mac) = interface.mac
            && let Some(other) = macs.insert(mac, end)
        {
            interface.mac = None;
            topology.warnings.push(end.warning(format!(
                "{mac} of {} is on {} in the same segment too; {0} gets another one",
                end.label(),
                other.label()
            )));
        }
    }
    let member =
        |end: &&LinkEnd| -> (RouterName, IfName) { (end.router.clone(), end.facts.name.clone()) };
    topology.segments.push(Segment {
        name,
        members: members.iter().map(member).collect(),
        absent: Vec::new(),
        gateways: Vec::new(),
    });
}

/// The name that the facts give, the subnet, or `router:interface`; the first that is free.
fn segment_name(members: &[&LinkEnd], others: &[Segment]) -> String {
    let free = |name: &String| !others.iter().any(|s| s.name == *name);
    let given = members.iter().find_map(|end| end.facts.segment.clone());
    let subnet = members.iter().flat_map(|end| end.addresses()).next();
    let subnet = subnet.map(|a| a.local.trunc().to_string());
    let label = members.first().map(|end| end.label());
    let fallback = label.clone().unwrap_or_default();
    [given, subnet, label]
        .into_iter()
        .flatten()
        .find(free)
        .unwrap_or(fallback)
}
