//! Bridges that stand on a link between others and filter what they pass on: a firewall that no
//! packet is addressed to. Which wires it stands between no facts tell, and of one without an address
//! not even on whose link it is.

use super::{Interface, InterfaceKind, Router, Topology, Warning};
use crate::{
    lab::{
        facts::is_of_guest,
        omission::{Concern, Extent, Omission, OmissionKind, PacketSet, RuleExtent},
    },
    model::RouterName,
};

/// Tells every other router on the link of such a bridge what it may stop, and all of them where nothing
/// tells whose link that is.
pub(super) fn name_bridges(topology: &mut Topology) {
    let mut warnings = Vec::new();
    for router in &topology.routers {
        let bridges = router.interfaces.iter();
        let bridges = bridges.filter(|interface| {
            interface.up
                && !interface.link.frame_rules.is_empty()
                && stands_between(router, interface)
        });
        for bridge in bridges {
            let segment = bridge.segment.and_then(|at| topology.segments.get(at));
            let members = segment.iter().flat_map(|segment| &segment.members);
            let others: Vec<_> = members.filter(|(other, _)| *other != router.name).collect();
            for (other, interface) in &others {
                let on = format!(" on the link of {other}:{interface}");
                let packets = PacketSet::by(interface.clone());
                warnings.push(warning((router, bridge), other, &on, &packets));
            }
            // One that links.toml joins with a router of which there are no facts is on that one's link.
            if others.is_empty() && segment.is_none_or(|segment| segment.absent.is_empty()) {
                let elsewhere = topology.routers.iter().filter(|r| r.name != router.name);
                for other in elsewhere.filter(|other| other.interfaces.iter().any(has_wire)) {
                    let on = ", and nothing tells whose link it is on (say it in links.toml)";
                    let packets = PacketSet::default();
                    warnings.push(warning((router, bridge), &other.name, on, &packets));
                }
            }
        }
    }
    topology.warnings.extend(warnings);
}

/// Whether several ports of a bridge lead out of the machine, or others of the lab are behind several.
fn stands_between(router: &Router, bridge: &Interface) -> bool {
    let ports = || {
        let ports = router.interfaces.iter();
        ports.filter(|port| {
            let master = port.link.master.as_ref();
            port.up && master.is_some_and(|master| master.name == bridge.name)
        })
    };
    let outward = ports().filter(|port| !is_of_guest(&port.name)).count();
    let known = ports().filter(|port| !port.link.ends.is_empty()).count();
    outward > 1 || known > 1
}

fn has_wire(interface: &Interface) -> bool {
    interface.up && interface.kind == InterfaceKind::Ethernet
}

/// What router `other` is told of a bridge that those of `packets` may pass.
fn warning(
    (router, bridge): (&Router, &Interface),
    other: &RouterName,
    on: &str,
    packets: &PacketSet,
) -> Warning {
    let message = format!(
        "{}:{} is a bridge{on}: rules that are not asked may stop what passes it",
        router.name, bridge.name
    );
    let rules = bridge.link.frame_rules.extents.iter();
    let by = (router.name.clone(), bridge.name.clone());
    let on_bridge = |rule: &RuleExtent| rule.clone().on_bridge(&by, packets.clone());
    let rules = rules.map(|rule| Extent::Rule(on_bridge(rule)));
    let omission = Omission {
        kind: OmissionKind::Feature,
        concern: Concern(rules.collect()),
    };
    Warning::omission(router.origin(bridge.line), other, message, omission)
}
