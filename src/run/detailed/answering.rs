//! The server's own gateway, of which the facts of routers say nothing.

use std::net::IpAddr;

use super::result::DetailedEndToEnd;
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
/// has not seen the request and drops what belongs to none, or from which no way leads back; none
/// where there is no such.
pub(super) fn doubt(
    lab: &LabState,
    sockets: &mut RouterSockets,
    end: &DetailedEndToEnd,
    protocol: Protocol,
    trust: bool,
) -> Option<String> {
    if end.result != Verdict::Yes || end.kind != EndKind::Delivered {
        return None;
    }
    let last = end.way.last()?;
    let (server, client) = (last.headers.destination, last.headers.source);
    let wiring = Wiring::from(lab);
    let legs = || end.way.iter().chain(&end.answer);
    let passed = |router: &RouterName| legs().any(|leg| leg.router == *router);
    if let Some(missing) = wiring.unheard(server).first().filter(|_| !trust) {
        return Some(format!(
            "the lab has no facts of {missing}, which may be the gateway by which {server} answers"
        ));
    }
    let answer = TracePacket {
        protocol: Some(protocol),
        source_port: last.headers.destination_port,
        destination_port: last.headers.source_port,
        ..TracePacket::new(server, client)
    };
    let others = wiring.gateways_of(server, client);
    let mut others = others.into_iter().filter(|entry| !passed(&entry.router));
    others.find_map(|entry| {
        let mut stops = lab.router(&entry.router).ok()?.unseen.iter();
        let stop = stops.find(|unseen| {
            let here = Some(&unseen.interface) == entry.iface_in.as_ref();
            here && unseen.family == Family::of(server) && unseen.stops(protocol)
        });
        let why = match stop {
            Some(stop) => format!(
                "there {} stops answers whose request did not pass",
                stop.stop
            ),
            None => lost(&wiring, sockets, &answer, &entry)?,
        };
        Some(said(server, &entry.router, &why))
    })
}

/// How the answer ends that enters there, where no way of it is known to get back.
fn lost(
    wiring: &Wiring,
    sockets: &mut RouterSockets,
    answer: &TracePacket,
    entry: &Entry,
) -> Option<String> {
    let at = EntryName {
        router: entry.router.clone(),
        interface: entry.iface_in.clone(),
    };
    match trace::trace(wiring, sockets, answer, Some(&at)) {
        Ok(trace) if trace.ways().any(|(_, end)| end.arrives() == Some(true)) => None,
        Ok(trace) => Some(format!("from there {}", trace.end_text())),
        Err(error) => Some(format!("what becomes of it there is not known: {error}")),
    }
}

fn said(server: IpAddr, router: &RouterName, why: &str) -> String {
    format!(
        "{router} may be the gateway by which {server} answers, and {why}; a [[gateway]] in \
         links.toml says which one it is"
    )
}
