//! Routes to an interface's own subnets: which of those in the facts the kernel makes itself.
//!
//! `ip route show` lists them among the others. The lab must not make them twice, and must not
//! have one that the router lacks.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{InterfaceFacts, RouterFacts};
use crate::{
    lab::{
        omission::{Omission, OmissionKind, PacketSet},
        topology::{At, InterfaceKind, MasterKind, Warning},
    },
    model::IfName,
    netlink::object::{Address, Family, Route, RouteKind},
};

/// RTPROT_KERNEL, linux/rtnetlink.h.
const KERNEL: u8 = 2;
/// IP6_RT_PRIO_ADDRCONF, linux/ipv6_route.h: the metric of IPv6 prefix routes.
const V6_METRIC: u32 = 256;

/// Takes the routes that the kernel makes out of `facts`, and stops it from making those that the
/// facts do not have or have with another metric or source.
pub(super) fn normalise(facts: &mut RouterFacts) {
    let mut natural = BTreeSet::new();
    let mut missing = Vec::new();
    for interface in &mut facts.interfaces {
        let (line, interface) = (interface.line, &mut interface.value);
        // A VRF's ports have theirs in its table.
        let of_main = interface.up && !is_of_vrf(interface);
        let mut seen = BTreeSet::new();
        let is_loopback = interface.kind == InterfaceKind::Loopback;
        for address in &mut interface.addresses {
            let family = Family::of(address.local.addr());
            let subnet = subnet(address);
            // A second address of a subnet adds no route of its own, and loopback's of IPv4 are in table
            // local (`fib_add_ifaddr()`).
            let elsewhere = !makes_route(address) || is_loopback && family == Family::V4;
            if !address.prefix_route || elsewhere || !seen.insert(subnet) {
                continue;
            }
            let routes = facts.routes.iter().enumerate();
            let listed = |at: &(usize, &At<Route>)| is_to(at.1, subnet, &interface.name);
            let found: Vec<(usize, &At<Route>)> = routes.filter(listed).collect();
            match found.iter().find(|(_, route)| is_natural(route, address)) {
                Some((number, _)) => {
                    natural.insert(*number);
                }
                None if !facts.tables.contains(&(family, Route::MAIN)) => {}
                None => {
                    address.prefix_route = false;
                    if found.is_empty() && of_main && interface.kind != InterfaceKind::Loopback {
                        missing.push((line, interface.name.clone(), subnet));
                    }
                }
            }
        }
    }
    let main = facts.routes.iter().filter(|at| at.table == Route::MAIN);
    let shown: BTreeSet<IpNet> = main.map(|route| route.destination).collect();
    let mut numbers = 0..;
    facts.routes.retain(|_| {
        numbers
            .next()
            .is_none_or(|number| !natural.contains(&number))
    });
    doubt_missing(facts, missing, &shown);
}

/// Doubts what is to subnets that interfaces have, by line, and table main has no route to, where `shown` are
/// the destinations that it has.
fn doubt_missing(
    facts: &mut RouterFacts,
    missing: Vec<(usize, IfName, IpNet)>,
    shown: &BTreeSet<IpNet>,
) {
    for (line, name, subnet) in missing {
        let message = format!(
            "{name}: table main has no route to its own subnet {subnet}; the lab has none either"
        );
        let family = Family::of(subnet.addr());
        let here = |route: &At<Route>| route.destination == subnet && leaves_by(route, &name);
        let any = |route: &At<Route>| {
            route.table == Route::MAIN && Family::of(route.destination.addr()) == family
        };
        let (file, routes) = (facts.origin(line), &facts.routes);
        let warning = if routes.iter().any(here) {
            // As of the ports of a VRF, whose table has it.
            Warning::new(file, &facts.name, message)
        } else {
            let omission = if routes.iter().any(any) && !is_at_an_end(subnet, shown) {
                Omission::of_packets(OmissionKind::Route, [PacketSet::to(subnet)])
            } else {
                Omission::of_family(OmissionKind::Route, family)
            };
            Warning::omission(file, &facts.name, message, omission)
        };
        facts.warnings.push(warning);
    }
}

/// Whether a subnet of IPv4 would stand before or behind all that a table shows, so that more of it may be
/// cut off there: the kernel lists its routes in the order of their destinations.
fn is_at_an_end(subnet: IpNet, shown: &BTreeSet<IpNet>) -> bool {
    let v4 = || shown.iter().filter(|net| matches!(net, IpNet::V4(_)));
    let others = || v4().filter(|net| net.prefix_len() > 0);
    let has_default = v4().count() > others().count();
    let before = !has_default && others().all(|net| subnet < *net);
    matches!(subnet, IpNet::V4(_)) && (before || others().all(|net| subnet > *net))
}

/// Doubts what is to or from addresses that table local has and no interface of the facts: the list
/// of interfaces is not whole then.
pub(super) fn doubt_lost(facts: &mut RouterFacts) {
    let own = std::mem::take(&mut facts.own);
    let interfaces = facts.interfaces.iter();
    let told: BTreeSet<IpAddr> = interfaces
        .flat_map(|interface| &interface.addresses)
        .map(|address| address.local.addr())
        .collect();
    for lost in own.iter().filter(|own| !told.contains(&own.value)) {
        let net = IpNet::from(lost.value);
        let omission = Omission::of_packets(
            OmissionKind::Address,
            [PacketSet::to(net), PacketSet::from(net)],
        );
        let message = format!(
            "table local has {}, and no interface of the facts",
            lost.value
        );
        let origin = facts.origin(lost.line);
        let warning = Warning::omission(origin, &facts.name, message, omission);
        facts.warnings.push(warning);
    }
}

/// Doubts addresses of interfaces that table local lacks where it is listed: the router does not take
/// packets for them, and nobody who asks for them finds it.
pub(super) fn doubt_disowned(facts: &mut RouterFacts) {
    let mut warnings = Vec::new();
    for interface in facts.interfaces.iter().filter(|i| i.up && !is_of_vrf(i)) {
        for address in &interface.addresses {
            let own = address.local.addr();
            if !facts.own_listed.contains(&Family::of(own)) || is_elsewhere(own) {
                continue;
            }
            let listed = facts.own.iter().any(|listed| listed.value == own);
            let by_hand = |route: &At<Route>| {
                route.kind == RouteKind::Local && route.destination.contains(&own)
            };
            if listed || facts.routes.iter().any(by_hand) {
                continue;
            }
            let (name, net) = (&interface.name, IpNet::from(own));
            let comes = PacketSet {
                incoming: Some(name.clone()),
                ..PacketSet::of_family(Family::of(own))
            };
            let mut extents = Omission::of_packets(OmissionKind::Route, [comes]).of_passed();
            let both = [PacketSet::to(net), PacketSet::from(net)];
            let both = Omission::of_packets(OmissionKind::Route, both);
            extents.concern.0.extend(both.concern.0);
            let message = format!(
                "table local has no route to {own}, which {name} has: the router does not take it \
                 for its own, nor answers who asks for it"
            );
            let origin = facts.origin(interface.line);
            warnings.push(Warning::omission(origin, &facts.name, message, extents));
        }
    }
    facts.warnings.extend(warnings);
}

/// Doubts what comes in for the broadcast address of another link, where `bc_forwarding` lets it go on
/// there (RFC 2644): no job measures that. The kernel asks `all` and the interface (`IN_DEV_BFORWARD`).
pub(super) fn doubt_broadcasts(facts: &mut RouterFacts) {
    let is_on = |name: &str| {
        let value = facts.sysctl(&format!("net/ipv4/conf/{name}/bc_forwarding"));
        value.is_some_and(|value| value.trim() == "1")
    };
    if !is_on("all") {
        return;
    }
    let nets = facts.interfaces.iter().flat_map(|i| &i.addresses);
    let nets: BTreeSet<IpNet> = nets
        .filter(|address| address.local.addr().is_ipv4() && address.local.prefix_len() < 31)
        .map(|address| IpNet::from(address.local.broadcast()))
        .collect();
    let on = facts.interfaces.iter().filter(|i| is_on(i.name.as_str()));
    let warnings: Vec<Warning> = on
        .map(|interface| {
            let name = &interface.name;
            let packets = nets.iter().map(|net| PacketSet {
                incoming: Some(name.clone()),
                ..PacketSet::to(*net)
            });
            let omission = Omission::of_packets(OmissionKind::Feature, packets);
            let message = format!(
                "bc_forwarding is set: what comes in by {name} for the broadcast address of another \
                 link goes on there, which no job measures"
            );
            Warning::omission(facts.origin(interface.line), &facts.name, message, omission)
        })
        .collect();
    facts.warnings.extend(warnings);
}

/// Whether an interface's addresses are in the table of a VRF.
pub(super) fn is_of_vrf(interface: &InterfaceFacts) -> bool {
    let master = interface.link.master.as_ref();
    let port = master.is_some_and(|master| master.kind == MasterKind::Vrf);
    interface.link.vrf_table.is_some() || port
}

/// Whether the route to such an address is not noted here: loopback's is to a whole prefix, and
/// interfaces may have one link-local address.
fn is_elsewhere(address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    address.is_loopback() || link_local
}

/// The prefix that the kernel makes a route to.
fn subnet(address: &Address) -> IpNet {
    address.peer.unwrap_or(address.local).trunc()
}

/// IPv4 makes no route to a whole address of one's own; loopback's is in table local.
fn makes_route(address: &Address) -> bool {
    let own = address.local.addr();
    let whole = address.peer.is_none() && address.local.prefix_len() == 32;
    !(own.is_loopback() || own.is_ipv4() && whole)
}

fn is_to(route: &Route, subnet: IpNet, dev: &IfName) -> bool {
    route.table == Route::MAIN
        && route.kind == RouteKind::Unicast
        && route.destination == subnet
        && leaves_by(route, dev)
}

/// Whether the route leads onto the link of an interface.
fn leaves_by(route: &Route, dev: &IfName) -> bool {
    let mut hops = route.next_hops.iter();
    hops.any(|hop| hop.via.is_none() && hop.dev.as_ref() == Some(dev))
}

/// Whether the kernel makes just this route from `address`.
fn is_natural(route: &Route, address: &Address) -> bool {
    let own = address.local.addr();
    let (source, metric) = match Family::of(own) {
        Family::V4 => (route.source == Some(own), None),
        Family::V6 => (route.source.is_none(), Some(V6_METRIC)),
    };
    source
        && route.protocol == Some(KERNEL)
        && route.tos == 0
        && (route.metric.is_none() || route.metric == metric)
}
