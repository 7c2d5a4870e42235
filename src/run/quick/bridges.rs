//! Routers that a way passes at layer 2: legs of their own, and where it may end.

use std::{mem, sync::Arc};

use super::{Terms, walk::WayEnd};
use crate::{
    lab::{Bridges, Crossing},
    model::Protocol,
    run::{
        bridged,
        report::{EndKind, Leg, LegHop, Verdict},
    },
};

/// Puts the routers in that the way passes between two others; it ends at the first that stops it, or
/// may.
pub(super) fn cross(bridges: &Bridges<'_>, protocol: Protocol, terms: &Terms, way: &mut WayEnd) {
    let before = mem::take(&mut way.legs);
    let mut nexts = before.iter().skip(1);
    for (at, leg) in before.iter().enumerate() {
        way.legs.push(leg.clone());
        let next = nexts.next().map(|next| &next.hop);
        let to = next.and_then(|hop| Some((&hop.router, hop.iface_in.as_ref()?)));
        let from = leg.hop.iface_out.as_ref();
        let (Some(to), Some(from)) = (to, from.map(|out| (&leg.hop.router, out))) else {
            continue;
        };
        let ends = (leg.source, leg.destination);
        let packet = bridged::request(
            protocol,
            ends,
            (Some(leg.sport), Some(leg.dport)),
            bridged::client_ports(terms.source_port),
        );
        for crossing in bridges.between(from, to) {
            let (verdict, why) = bridged::verdict(&crossing, &packet, terms.trust_facts);
            way.legs.push(crossed(&crossing, verdict, leg));
            if verdict == Verdict::Yes {
                way.note(&why);
                continue;
            }
            way.steps.truncate(at + 1);
            way.verdict = verdict;
            way.kind = match verdict {
                Verdict::No => EndKind::Stopped,
                _ => EndKind::NotKnown,
            };
            way.reason = Some(why.into());
            way.router = Some(crossing.router.clone());
            return;
        }
    }
}

fn crossed(crossing: &Crossing<'_>, verdict: Verdict, before: &Leg) -> Leg {
    Leg {
        hop: Arc::new(LegHop {
            router: crossing.router.clone(),
            iface_in: Some(crossing.comes.clone()),
            iface_out: Some(crossing.leaves.clone()),
            next_hop: None,
            bridged: Some(verdict),
        }),
        ..*before
    }
}

impl WayEnd {
    /// Says more beside what is said, if there is more.
    fn note(&mut self, more: &str) {
        if more.is_empty() {
            return;
        }
        self.reason = Some(match &self.reason {
            Some(reason) => format!("{reason}; {more}").into(),
            None => more.into(),
        });
    }
}
