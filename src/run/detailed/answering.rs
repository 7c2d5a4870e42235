//! The server's own gateway, of which the facts of routers say nothing.

use std::net::IpAddr;

use super::result::DetailedEndToEnd;
use crate::{
    lab::{LabState, trace::Wiring},
    model::{Protocol, RouterName},
    netlink::object::Family,
    run::report::{EndKind, Verdict},
};

/// Why an answer that was measured may not come after all: by another gateway of the server that
/// has not seen the request and drops what belongs to none; none where there is no such.
pub(super) fn doubt(
    lab: &LabState,
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
    let passed = |router: &RouterName| end.way.iter().any(|leg| leg.router == *router);
    if let Some(missing) = wiring.unheard(server).first().filter(|_| !trust) {
        return Some(format!(
            "the lab has no facts of {missing}, which may be the gateway by which {server} answers"
        ));
    }
    let others = wiring.gateways_of(server, client);
    let others = others.into_iter().filter(|entry| !passed(&entry.router));
    let doubts = others.filter_map(|entry| {
        let router = lab.router(&entry.router).ok()?;
        let family = Family::of(server);
        let kind = match protocol {
            Protocol::Tcp => Protocol::Tcp,
            _ => Protocol::Udp,
        };
        let stop = router.unseen.iter().find(|unseen| {
            let here = Some(&unseen.interface) == entry.iface_in.as_ref();
            here && unseen.family == family && unseen.protocol == kind
        })?;
        Some(said(server, &entry.router, &stop.stop))
    });
    doubts.into_iter().next()
}

fn said(server: IpAddr, router: &RouterName, stop: &str) -> String {
    format!(
        "{router} may be the gateway by which {server} answers, and there {stop} stops answers whose \
         request did not pass; a [[gateway]] in links.toml says which one it is"
    )
}
