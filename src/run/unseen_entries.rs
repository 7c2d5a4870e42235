//! Where packets may enter the lab, too, and nobody can say whether they do.

use std::net::IpAddr;

use crate::{
    firewall::rule::{Field, Packet},
    lab::{
        LabState,
        omission::{Endpoints, Omission, OmissionKind, PacketOutcome, Passage},
        trace::Wiring,
    },
    model::RouterName,
    netlink::object::Family,
    run::report::EndKind,
};

/// A router by which a question's packets may enter the lab beside the entries that were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnseenEntry {
    /// The router.
    pub router: RouterName,
    /// What kind of end the way by it is.
    pub kind: EndKind,
    /// Why that is not known, and what the user can say about it.
    pub reason: String,
}

/// Those of packets from `source` to `destination`: routers without facts, and where the source is on no
/// link of the lab, so that routes tell where it comes in, those that lack a route to it.
pub(crate) fn unseen_entries(
    lab: &LabState,
    wiring: &Wiring,
    source: IpAddr,
    destination: IpAddr,
) -> Vec<UnseenEntry> {
    let without_facts = wiring.unheard(source).iter().map(|router| UnseenEntry {
        router: router.clone(),
        kind: EndKind::Absent,
        reason: format!(
            "the lab has no facts of {router}, which may be a gateway of {source}, too; name the one that \
             it uses with --from"
        ),
    });
    let mut all: Vec<UnseenEntry> = without_facts.collect();
    if !wiring.is_within(source) {
        all.extend(lacking_routes(lab, source, destination));
    }
    all
}

/// The routers that lack a route which answers would take, each with the first such route.
fn lacking_routes(lab: &LabState, source: IpAddr, destination: IpAddr) -> Vec<UnseenEntry> {
    let answer = Packet::of(Family::of(source))
        .with_address(Field::Source, destination)
        .with_address(Field::Destination, source);
    let passage = Passage {
        packet: &answer,
        course: Some(Endpoints::Forwarded),
        outcome: PacketOutcome::Passed,
        apart: &[],
    };
    let takes = |omission: &Omission| {
        omission.kind == OmissionKind::Route && omission.concern.may_change(&passage, || None)
    };
    let mut found: Vec<UnseenEntry> = Vec::new();
    for warning in lab.warnings.iter().filter(|warning| warning.matters()) {
        let Some(router) = &warning.router else {
            continue;
        };
        let known = |entry: &UnseenEntry| entry.router == *router;
        if !warning.omission.as_ref().is_some_and(takes) || found.iter().any(known) {
            continue;
        }
        found.push(UnseenEntry {
            router: router.clone(),
            kind: EndKind::NotKnown,
            reason: format!(
                "{source} may come in elsewhere at {router}, of which the lab lacks {warning}; say with \
                 --from ROUTER:INTERFACE where it does"
            ),
        });
    }
    found
}
