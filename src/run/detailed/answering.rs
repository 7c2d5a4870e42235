//! The server's own gateway, of which the facts of routers say nothing.

use std::net::IpAddr;

use super::result::{DetailedEndToEnd, ServiceStatus, TakenLeg};
use crate::{
    lab::{
        LabState,
        sockets::RouterSockets,
        trace::{self, Entry, EntryName, TracePacket, Wiring},
    },
    model::{Protocol, RouterName},
    netlink::object::Family,
    run::report::{EndKind, Verdict},
};

/// Why an answer that was measured may not come after all: by another gateway of the server that
/// has not seen the request and drops what belongs to none, from which no way leads back, or from
/// which those lead past a router that translated the request; or why one that was lost may come: by
/// another gateway, from which a way does. None where there is no such.
pub(super) fn doubt(
    lab: &LabState,
    sockets: &mut RouterSockets,
    end: &DetailedEndToEnd,
    protocol: Protocol,
    trust: bool,
) -> Option<String> {
    let last = end.way.last()?;
    let (server, client) = (last.headers.destination, last.headers.source);
    let answer = TracePacket {
        protocol: Some(protocol),
        source_port: last.headers.destination_port,
        destination_port: last.headers.source_port,
        ..TracePacket::new(server, client)
    };
    match (end.result, end.status, end.kind) {
        (Verdict::Yes, _, EndKind::Delivered) => stopped(lab, sockets, end, &answer, trust),
        (Verdict::No, ServiceStatus::Partial, _) => carried(lab, sockets, end, &answer),
        _ => None,
    }
}

/// Why an answer that came may not come.
fn stopped(
    lab: &LabState,
    sockets: &mut RouterSockets,
    end: &DetailedEndToEnd,
    answer: &TracePacket,
    trust: bool,
) -> Option<String> {
    let (server, client) = (answer.source, answer.destination);
    let wiring = Wiring::from(lab);
    let legs = || end.way.iter().chain(&end.answer);
    let passed = |router: &RouterName| legs().any(|leg| leg.router == *router);
    if let Some(missing) = wiring.unheard(server).first().filter(|_| !trust) {
        return Some(format!(
            "the lab has no facts of {missing}, which may be the gateway by which {server} answers"
        ));
    }
    let translators = translators(&end.way);
    let others = wiring.gateways_of(server, client);
    let mut others = others.into_iter().filter(|entry| !passed(&entry.router));
    others.find_map(|entry| {
        let why = match stop_of_unseen(lab, &entry, answer) {
            Some(stop) => format!("there {stop} stops answers whose request did not pass"),
            None => lost(&wiring, sockets, (answer, &translators), &entry)?,
        };
        Some(said(server, &entry.router, &why))
    })
}

/// Why an answer that was lost may come.
fn carried(
    lab: &LabState,
    sockets: &mut RouterSockets,
    end: &DetailedEndToEnd,
    answer: &TracePacket,
) -> Option<String> {
    let (server, client) = (answer.source, answer.destination);
    let wiring = Wiring::from(lab);
    let translators = translators(&end.way);
    let first = end.answer.first()?;
    let others = wiring.gateways_of(server, client);
    let mut others = others
        .into_iter()
        .filter(|entry| entry.router != first.router);
    let other = others.find(|entry| {
        let seen = end.way.iter().any(|leg| leg.router == entry.router);
        let stops = !seen && stop_of_unseen(lab, entry, answer).is_some();
        !stops && lost(&wiring, sockets, (answer, &translators), entry).is_none()
    })?;
    let why = format!(
        "by {} the answer is lost, and from there a way leads back",
        first.router
    );
    Some(said(server, &other.router, &why))
}

/// What the router of `entry` stops answers by whose request did not pass it.
fn stop_of_unseen<'l>(lab: &'l LabState, entry: &Entry, answer: &TracePacket) -> Option<&'l str> {
    let mut stops = lab.router(&entry.router).ok()?.unseen.iter();
    let stop = stops.find(|unseen| {
        let here = Some(&unseen.interface) == entry.iface_in.as_ref();
        let of_family = unseen.family == Family::of(answer.source);
        here && of_family && answer.protocol.is_some_and(|asked| unseen.stops(asked))
    });
    stop.map(|unseen| unseen.stop.as_str())
}

/// The routers that gave the request other addresses or ports. The client knows an answer that
/// does not pass them for none: it comes from whom it has not called.
fn translators(way: &[TakenLeg]) -> Vec<&RouterName> {
    let translated = way.iter().filter(|leg| leg.came != leg.headers);
    translated.map(|leg| &leg.router).collect()
}

/// What becomes of the answer that enters there, where no way of it is known to get back by the
/// routers that translated its request.
fn lost(
    wiring: &Wiring,
    sockets: &mut RouterSockets,
    (answer, translators): (&TracePacket, &[&RouterName]),
    entry: &Entry,
) -> Option<String> {
    let at = EntryName {
        router: entry.router.clone(),
        interface: entry.iface_in.clone(),
    };
    let trace = match trace::trace(wiring, sockets, answer, Some(&at)) {
        Ok(trace) => trace,
        Err(error) => return Some(format!("what becomes of it there is not known: {error}")),
    };
    let mut missed = None;
    for (hops, _) in trace.ways().filter(|(_, end)| end.arrives() == Some(true)) {
        let passes = |router: &RouterName| hops.iter().any(|hop| hop.router == *router);
        missed = Some(translators.iter().find(|router| !passes(router))?);
    }
    Some(match missed {
        None => format!("from there {}", trace.end_text()),
        Some(router) => format!("from there it goes past {router}, which translated the request"),
    })
}

fn said(server: IpAddr, router: &RouterName, why: &str) -> String {
    format!(
        "{router} may be the gateway by which {server} answers, and {why}; a [[gateway]] in \
         links.toml says which one it is"
    )
}
