//! Source validation (`rp_filter`) that a list of settings does not tell.
//!
//! With 1 a router drops what comes in by an interface that its way back to the source does not use,
//! and kernels of most distributions have 1 or 2. Facts without a section of settings are taken as they are,
//! with 0, as docs/facts.md says; a section that is empty, or ends before an interface's own value, was cut.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{
    InterfaceFacts, RouterFacts, away::tables_of_all, connected::is_of_vrf, section::Section,
};
use crate::{
    lab::{
        omission::{Nets, Omission, OmissionKind, PacketSet},
        topology::{InterfaceKind, Warning},
    },
    model::IfName,
    netlink::object::Family,
};

/// Prefixes that would be doubted one by one, at most; beyond, what leads to an interface is not looked at.
const MOST: usize = 1000;

/// Doubts what passes although the way back to its source leaves by another interface than the one it came in
/// by, where the section of settings does not tell that interface's `rp_filter`.
pub(super) fn doubt_unknown_filter(facts: &mut RouterFacts, sections: &[Section<'_>]) {
    let Some(section) = sections.iter().find(|section| section.name == "sysctl") else {
        return;
    };
    if !facts.routes.iter().any(|route| is_v4(&route.destination)) {
        return;
    }
    let unknown = not_told(facts, section);
    let by = |interface: &&InterfaceFacts| returns_by(facts, &interface.name);
    let packets: Vec<PacketSet> = unknown.iter().flat_map(by).collect();
    let names: Vec<&str> = unknown.iter().map(|i| i.name.as_str()).collect();
    if packets.is_empty() {
        return;
    }
    let message = format!(
        "section `sysctl` does not tell rp_filter of {}: taken as 0; with 1 the router drops what comes in by \
         an interface that its way back to the source does not use",
        names.join(", ")
    );
    let omission = Omission::of_packets(OmissionKind::Sysctl, packets).of_passed();
    let origin = facts.origin(section.line);
    let warning = Warning::omission(origin, &facts.name, message, omission);
    facts.warnings.push(warning);
}

/// The interfaces whose setting is missing in a section that is empty or has that of others.
fn not_told<'f>(facts: &'f RouterFacts, section: &Section<'_>) -> Vec<&'f InterfaceFacts> {
    let key = |name: &str| format!("net/ipv4/conf/{name}/rp_filter");
    if facts
        .sysctl(&key("all"))
        .is_some_and(|all| all.trim() != "0")
    {
        return Vec::new();
    }
    let told = |interface: &&InterfaceFacts| facts.sysctl(&key(interface.name.as_str())).is_some();
    let is_empty = section.body.iter().all(|(_, line)| line.trim().is_empty());
    let interfaces = || facts.interfaces.iter().map(|interface| &interface.value);
    if !is_empty && !interfaces().any(|interface| told(&interface)) {
        return Vec::new();
    }
    interfaces()
        .filter(|i| i.up && i.kind != InterfaceKind::Loopback)
        .filter(|i| !told(i) && !is_of_vrf(i))
        .collect()
}

fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

/// What comes in by `name` from sources to which the way back leaves by another interface, by the tables that
/// all packets ask (`fib_validate_source()`).
fn returns_by(facts: &RouterFacts, name: &IfName) -> Vec<PacketSet> {
    let (here, elsewhere) = ways(facts, name);
    let from = |nets: Nets| PacketSet {
        incoming: Some(name.clone()),
        from: Some(nets),
        ..PacketSet::of_family(Family::V4)
    };
    let inside = elsewhere.iter().filter(|net| {
        let within = |wider: &&IpNet| wider.contains(*net) && wider != net;
        here.iter().any(|wider| within(&wider))
    });
    let inside: Vec<&IpNet> = inside.take(MOST + 1).collect();
    let inside = inside.into_iter().map(|net| Nets {
        within: *net,
        except: here.iter().filter(|h| net.contains(*h)).copied().collect(),
    });
    let all = Nets {
        within: IpNet::default(),
        except: here.iter().copied().collect(),
    };
    let sets: Vec<PacketSet> = inside.chain([all]).map(from).collect();
    match sets.len() > MOST {
        true => vec![from(IpNet::default().into())],
        false => sets,
    }
}

/// Where routes of IPv4 lead by interface `name`, and where by others only.
fn ways(facts: &RouterFacts, name: &IfName) -> (BTreeSet<IpNet>, BTreeSet<IpNet>) {
    let tables = tables_of_all(facts, Family::V4);
    let (mut here, mut elsewhere) = (BTreeSet::new(), BTreeSet::new());
    let mut sort = |net: IpNet, leads_here: bool| match leads_here {
        true => here.insert(net),
        false => elsewhere.insert(net),
    };
    for interface in facts.interfaces.iter().filter(|interface| interface.up) {
        for address in &interface.addresses {
            let subnet = address.peer.map_or(address.local.trunc(), IpNet::from);
            if is_v4(&subnet) {
                sort(subnet, interface.name == *name);
            }
        }
    }
    for route in &facts.routes {
        if tables.contains(&route.table) && is_v4(&route.destination) {
            let mut hops = route.next_hops.iter();
            let leads_here = hops.any(|hop| hop.dev.as_ref() == Some(name));
            sort(route.destination, leads_here);
        }
    }
    elsewhere.retain(|net| !here.contains(net));
    (here, elsewhere)
}
