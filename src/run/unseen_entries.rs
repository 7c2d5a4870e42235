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
};

/// A router by which a question's packets may enter the lab beside the entries that were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnseenEntry {
    /// The router.
    pub router: RouterName,
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
        reason: format!(
            "the lab has no facts of {router}, which may be a gateway of {source}, too; name the one that \
             it uses with --from"
        ),
    });
    let by_routes = !wiring.is_within(source);
    let lacking = lacking_routes(lab, source, destination).filter(|_| by_routes);
    without_facts.chain(lacking).collect()
}

/// The routers that lack a route which answers would take, each with the first such route.
fn lacking_routes(
    lab: &LabState,
    source: IpAddr,
    destination: IpAddr,
) -> impl Iterator<Item = UnseenEntry> {
    let answer = Packet::of(Family::of(source))
        .with_address(Field::Source, destination)
        .with_address(Field::Destination, source);
    let takes = move |omission: &Omission| {
        let passage = Passage {
            packet: &answer,
            course: Some(Endpoints::Forwarded),
            outcome: PacketOutcome::Passed,
            apart: &[],
        };
        omission.kind == OmissionKind::Route && omission.concern.may_change(&passage, || None)
    };
    lab.routers.iter().filter_map(move |router| {
        let mut own = lab.warnings.iter().filter(|warning| {
            warning.router.as_ref() == Some(&router.name)
                && warning.matters()
                && warning.omission.as_ref().is_some_and(&takes)
        });
        let lost = own.next()?;
        Some(UnseenEntry {
            router: router.name.clone(),
            reason: format!(
                "{source} may come in elsewhere at {}, of which the lab lacks {lost}; say with --from \
                 ROUTER:INTERFACE where it does",
                router.name
            ),
        })
    })
}
