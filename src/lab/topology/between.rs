//! Bridges that stand on a link between others and filter what they pass on: a firewall that no
//! packet is addressed to. Which wires it stands between no facts tell.

use super::{Topology, Warning};
use crate::lab::omission::{Omission, OmissionKind, PacketSet};

/// Tells every other router on the link of such a bridge what it may stop.
pub(super) fn name_bridges(topology: &mut Topology) {
    let mut warnings = Vec::new();
    for router in &topology.routers {
        let bridges = router.interfaces.iter();
        for bridge in bridges.filter(|interface| interface.up && interface.link.between) {
            let origin = router.origin(bridge.line);
            let name = format!("{}:{}", router.name, bridge.name);
            let segment = bridge.segment.and_then(|at| topology.segments.get(at));
            let members = segment.iter().flat_map(|segment| &segment.members);
            let others: Vec<_> = members.filter(|(other, _)| *other != router.name).collect();
            if others.is_empty() {
                let message = format!(
                    "{name} is a bridge with rules, and nothing tells whose link it is on: say it in \
                     links.toml"
                );
                warnings.push(Warning::notice(origin.clone(), &router.name, message));
            }
            for (other, interface) in others {
                let message = format!(
                    "{name} is a bridge on the link of {other}:{interface}: rules that are not asked \
                     may stop what passes it"
                );
                let packets = [PacketSet::by(interface.clone())];
                let omission = Omission::of_packets(OmissionKind::Feature, packets).of_passed();
                warnings.push(Warning::omission(origin.clone(), other, message, omission));
            }
        }
    }
    topology.warnings.extend(warnings);
}
