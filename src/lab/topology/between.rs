//! Bridges that stand on a link between others and filter what they pass on: a firewall that no
//! packet is addressed to. Which wires it stands between no facts tell, and of one without an address
//! not even on whose link it is.

use super::{Interface, InterfaceKind, Router, Topology, Warning};
use crate::{
    lab::omission::{Concern, Extent, Omission, OmissionKind, PacketSet},
    model::RouterName,
};

/// Tells every other router on the link of such a bridge what it may stop, and all of them where nothing
/// tells whose link that is.
pub(super) fn name_bridges(topology: &mut Topology) {
    let mut warnings = Vec::new();
    for router in &topology.routers {
        let bridges = router.interfaces.iter();
        let bridges =
            bridges.filter(|interface| interface.up && !interface.link.between.is_empty());
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
    let rules = bridge.link.between.iter();
    let rules = rules.map(|rule| Extent::Rule(rule.clone().on_bridge(packets.clone())));
    let omission = Omission {
        kind: OmissionKind::Feature,
        concern: Concern(rules.collect()),
    };
    Warning::omission(router.origin(bridge.line), other, message, omission)
}
