//! Routers that a way passes at layer 2: legs of their own, and where it may end.

use std::{mem, sync::Arc};

use super::{
    Terms,
    walk::{Crossed, WayEnd},
};
use crate::{
    lab::{Bridges, Crossing},
    model::{Protocol, Service},
    run::{
        bridged,
        report::{EndKind, Leg, LegHop, RouterReport, ServiceReport, Verdict},
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
            way.crossed.push(Crossed {
                leg: way.legs.len(),
                why: (!why.is_empty()).then(|| why.as_str().into()),
            });
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

/// Puts a row for each router that ways pass at layer 2 behind that of the router before it; `order` has
/// the numbers of the services' ways.
pub(super) fn add_rows(
    rows: &mut Vec<RouterReport>,
    services: &[Service],
    order: &[u32],
    ways: &[Vec<WayEnd>],
) {
    for (service, &index) in services.iter().zip(order) {
        for way in ways.get(index as usize).into_iter().flatten() {
            for crossed in &way.crossed {
                let before = crossed.leg.checked_sub(1).and_then(|at| way.legs.get(at));
                let (Some(before), Some(leg)) = (before, way.legs.get(crossed.leg)) else {
                    continue;
                };
                let verdict = leg.hop.bridged.unwrap_or(Verdict::Unknown);
                let row = row(rows, &before.hop, &leg.hop);
                put(row, *service, verdict, crossed.why.as_ref());
            }
        }
    }
}

/// The row of a router that is passed at layer 2, which is made behind that of the hop before it.
fn row<'a>(rows: &'a mut Vec<RouterReport>, before: &LegHop, hop: &LegHop) -> &'a mut RouterReport {
    let at = |row: &RouterReport, hop: &LegHop| {
        (&row.name, &row.iface_in) == (&hop.router, &hop.iface_in)
            && row.bridged == hop.bridged.is_some()
    };
    let known = rows
        .iter()
        .position(|row| at(row, hop) && row.iface_out == hop.iface_out);
    let place = known.unwrap_or_else(|| {
        let place = rows.iter().position(|row| at(row, before));
        let place = place.map_or(rows.len(), |place| place + 1);
        let row = RouterReport {
            name: hop.router.clone(),
            iface_in: hop.iface_in.clone(),
            iface_out: hop.iface_out.clone(),
            next_hop: None,
            on_way: true,
            bridged: true,
            services: Vec::new(),
        };
        rows.insert(place, row);
        place
    });
    &mut rows[place]
}

/// Notes a service's verdict in a row. Where its ways have several there, that is not known.
fn put(row: &mut RouterReport, service: Service, result: Verdict, why: Option<&Arc<str>>) {
    if let Some(last) = row.services.last_mut()
        && last.service() == service
    {
        if last.result != result {
            last.result = Verdict::Unknown;
            last.reason = last.reason.take().or_else(|| why.cloned());
        }
        return;
    }
    row.services.push(ServiceReport {
        port: service.port,
        protocol: service.protocol,
        result,
        reason: why.cloned(),
        reached: true,
    });
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
