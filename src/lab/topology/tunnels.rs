//! Tunnels that one subnet puts on a segment, and whose own facts say that they are not two ends of one.
//!
//! The kernel finds a packet's tunnel by outer addresses and key (`ip_tunnel_lookup()`), a VXLAN by its
//! number and port (`vxlan_vs_find_vni()`), and drops what is of no tunnel. An outer address that the other
//! end has not may be one that a translating router stands for.

use std::net::IpAddr;

use super::{Router, Warning, end::LinkEnd};
use crate::lab::omission::{Omission, OmissionKind, PacketSet};

/// Types of links whose packets are told apart by a key, as ip-link(8) calls them.
const KEYED: [&str; 8] = [
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "erspan",
    "vti",
    "vxlan",
    "geneve",
];

/// Those without.
const PLAIN: [&str; 3] = ["ipip", "sit", "ip6tnl"];

/// Doubts what goes over tunnels of one segment (`groups`) that contradict each other, where nothing but their
/// subnet told (`told`) that they are joined.
pub(super) fn doubts(
    (ends, routers): (&[LinkEnd], &[Router]),
    groups: &[Vec<usize>],
    told: &[usize],
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for group in groups.iter().filter(|group| group.len() > 1) {
        let tunnels = group
            .iter()
            .filter_map(|at| Some((*at, ends.get(*at)?)))
            .filter(|(_, end)| kind(end).is_some());
        let tunnels: Vec<(usize, &LinkEnd)> = tunnels.collect();
        for (at, end) in &tunnels {
            let others = tunnels
                .iter()
                .filter(|(other, _)| told.get(*other) != told.get(*at));
            let found = others.filter(|(_, other)| other.router != end.router);
            let mut found =
                found.filter_map(|(_, other)| Some((other, differ(routers, end, other)?)));
            if let Some((other, why)) = found.next() {
                warnings.push(warning(end, other, &why));
            }
        }
    }
    warnings
}

fn kind(end: &LinkEnd) -> Option<&str> {
    let kind = end.facts.link.kind.as_deref()?;
    (KEYED.contains(&kind) || PLAIN.contains(&kind)).then_some(kind)
}

/// Why packets of one tunnel are not the other's.
fn differ(routers: &[Router], one: &LinkEnd, other: &LinkEnd) -> Option<String> {
    let (a, b) = (&one.facts.link, &other.facts.link);
    let kinds = (kind(one)?, kind(other)?);
    if kinds.0 != kinds.1 {
        return Some(format!("one is {} and one {}", kinds.0, kinds.1));
    }
    let keys = a.keys_between(b);
    if let Some((sent, taken)) = keys.iter().find(|(sent, taken)| sent != taken)
        && KEYED.contains(&kinds.0)
    {
        let key = |key: &Option<u32>| key.map_or("none".to_owned(), |key| key.to_string());
        return Some(format!(
            "one sends with key {}, and one takes {}",
            key(sent),
            key(taken)
        ));
    }
    if let (Some(port), Some(other)) = (a.outer_port, b.outer_port)
        && port != other
    {
        return Some(format!("one sends to port {port}, and one to {other}"));
    }
    [(one, other), (other, one)]
        .into_iter()
        .find_map(|(from, to)| elsewhere(routers, from, to))
}

/// Whether `from` sends to an address that the router of `to` has not.
fn elsewhere(routers: &[Router], from: &LinkEnd, to: &LinkEnd) -> Option<String> {
    let remote = from
        .facts
        .link
        .remote
        .filter(|remote| !remote.is_multicast())?;
    let has = |address: IpAddr| {
        let router = routers.get(to.at.0);
        let interfaces = router.into_iter().flat_map(|router| &router.interfaces);
        let mut own = interfaces.flat_map(|interface| &interface.addresses);
        own.any(|own| own.local.addr() == address)
    };
    (to.facts.link.local != Some(remote) && !has(remote)).then(|| {
        format!(
            "{} sends to {remote}, which {} has not",
            from.label(),
            to.router
        )
    })
}

fn warning(end: &LinkEnd, other: &LinkEnd, why: &str) -> Warning {
    let message = format!(
        "{} and {} are in one subnet and perhaps not ends of one tunnel: {why} (say in links.toml whether they are)",
        end.label(),
        other.label()
    );
    let packets = [PacketSet::by(end.facts.name.clone())];
    let omission = Omission::of_packets(OmissionKind::Interface, packets);
    end.omission(message, omission)
}
