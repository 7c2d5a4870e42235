//! Routers that a packet passes at layer 2, between two that it is sent to.

use std::collections::BTreeSet;

use super::{
    state::{InterfaceState, LabState, RouterState},
    topology::MasterKind,
};
use crate::model::{IfName, RouterName};

/// An end of a link.
type End<'a> = (&'a RouterName, &'a IfName);

/// By whose bridges packets pass from the first end of each pair to the second one, where it is known
/// behind which ports these are.
pub(crate) fn bridged<'a>(
    lab: &LabState,
    wires: impl Iterator<Item = (End<'a>, End<'a>)>,
) -> Vec<String> {
    let wires: BTreeSet<(End<'a>, End<'a>)> = wires.collect();
    let mut told = Vec::new();
    for (from, to) in wires {
        for router in &lab.routers {
            if let (Some(comes), Some(leaves)) = (port(router, from), port(router, to))
                && comes.name != leaves.name
                && comes.link.master == leaves.link.master
            {
                told.push(format!(
                    "between {} and {} it is bridged by {} ({} → {})",
                    from.0, to.0, router.name, comes.name, leaves.name
                ));
            }
        }
    }
    told
}

/// The port of a bridge of `router` that an end is behind.
fn port<'r>(router: &'r RouterState, (name, interface): End<'_>) -> Option<&'r InterfaceState> {
    let mut ports = router.interfaces.iter().filter(|port| {
        let master = port.link.master.as_ref();
        master.is_some_and(|master| master.kind == MasterKind::Bridge)
    });
    ports.find(|port| {
        let mut ends = port.link.ends.iter();
        ends.any(|(of, end)| of == name && end == interface)
    })
}
