//! From the question to what will be measured: routers, their interfaces, their source hosts.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{QuickError, QuickJob};
use crate::{
    lab::{
        LabState,
        hosts::{HostError, HostRequest, HostState, Hosts},
        sockets::RouterSockets,
        trace::{self, Packet, Trace, Wiring},
    },
    model::{HostId, HostName, IfName, RouterId, RouterName},
    netns::NetnsDir,
    registry::HostSpec,
    run::way::{Flow, Way},
};

/// Which routers a job measures.
#[derive(Debug, Clone, PartialEq)]
pub enum RouterChoice {
    /// Those on the path that the lab's own routes take.
    Trace,
    /// Those on a path that was followed before.
    Traced(Trace),
    /// These, in this order.
    Named(Vec<RouterName>),
}

/// One router's part of the job.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) way: Way,
    /// The host that sends the probes, or why there can be none.
    pub(super) host: Result<HostSpec, String>,
    /// Whether the router lacks rules that its facts have.
    pub(super) incomplete: bool,
}

/// A router to measure and where packets come in, as far as that is known beforehand.
struct Stop {
    router: RouterName,
    iface_in: Option<IfName>,
}

/// Finds out what each router's part is.
pub(super) fn parts(
    job: &QuickJob,
    flow: &Flow,
    lab: &LabState,
    dir: &NetnsDir,
    hosts: &mut Hosts,
) -> Result<Vec<Part>, QuickError> {
    let there = hosts.list()?;
    let mut parts = Vec::new();
    for stop in stops(job, flow, lab, dir)? {
        let state = lab.router(&stop.router)?;
        let existing = there
            .iter()
            .find(|h| h.router == stop.router && h.address.addr() == job.source);
        // Who put a source host on an interface by hand has decided where its packets come in.
        let iface_in = existing.map(|h| h.interface.clone()).or(stop.iface_in);
        let router = RouterId::new(job.lab.clone(), stop.router);
        let way = Way::find(dir, router, flow, &job.services, iface_in)?;
        let host = source_host(job, &way, existing, hosts)?;
        parts.push(Part {
            way,
            host,
            incomplete: state.ruleset_incomplete,
        });
    }
    Ok(parts)
}

fn stops(
    job: &QuickJob,
    flow: &Flow,
    lab: &LabState,
    dir: &NetnsDir,
) -> Result<Vec<Stop>, QuickError> {
    let traced = match &job.routers {
        RouterChoice::Named(names) => {
            let unknown = |router: RouterName| Stop {
                router,
                iface_in: None,
            };
            return Ok(names.iter().cloned().map(unknown).collect());
        }
        RouterChoice::Traced(trace) => trace.clone(),
        RouterChoice::Trace => follow(job, flow, lab, dir)?,
    };
    if traced.hops.is_empty() {
        return Err(QuickError::NoRouters {
            lab: job.lab.clone(),
            source_address: job.source,
            destination: job.destination,
            why: traced.end_text(),
        });
    }
    let stop = |hop: trace::Hop| Stop {
        router: hop.router,
        iface_in: hop.iface_in,
    };
    Ok(traced.hops.into_iter().map(stop).collect())
}

/// Follows the first service's packet through the lab.
fn follow(
    job: &QuickJob,
    flow: &Flow,
    lab: &LabState,
    dir: &NetnsDir,
) -> Result<Trace, QuickError> {
    let first = job.services.first();
    let packet = Packet {
        protocol: first.map(|s| s.protocol),
        source_port: first.map(|_| flow.source_port),
        destination_port: first.map(|s| s.port),
        tos: flow.tos,
        ..Packet::new(flow.source, flow.destination)
    };
    let mut sockets = RouterSockets::new(dir, &job.lab);
    Ok(trace::trace(
        &Wiring::from(lab),
        &mut sockets,
        &packet,
        None,
    )?)
}

/// The host that sends probes to the router of `way`: the one that is there, or a new one.
fn source_host(
    job: &QuickJob,
    way: &Way,
    existing: Option<&HostState>,
    hosts: &mut Hosts,
) -> Result<Result<HostSpec, String>, QuickError> {
    let router = &way.router;
    let id = match existing {
        Some(host) => HostId::new(job.lab.clone(), host.host.clone()),
        None => host_id(job, way)?,
    };
    let Some(interface) = way.iface_in.clone() else {
        return Ok(Err(format!(
            "router {} has no route to the source {}, so it is not known where its packets come in",
            router.router, job.source
        )));
    };
    let request = HostRequest {
        id,
        router: router.clone(),
        address: job.source,
        prefix_len: existing.map(|host| host.address.prefix_len()),
        interface: Some(interface),
    };
    match hosts.plan(&request) {
        Ok(plan) => Ok(Ok(plan)),
        Err(
            error @ (HostError::RouterAddress { .. }
            | HostError::NoWay { .. }
            | HostError::NoSegment { .. }
            | HostError::NoInterface { .. }),
        ) => Ok(Err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// One host per router, interface and address, so that jobs with the same question share it.
fn host_id(job: &QuickJob, way: &Way) -> Result<HostId, QuickError> {
    let iface = way.iface_in.as_ref().map_or("none", IfName::as_str);
    let name = format!("{}:{iface}:{}", way.router.router, job.source);
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || "_-.:".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = name.chars().map(allowed).collect();
    let name = HostName::new(name.clone()).or_else(|_| {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        HostName::new(format!("h:{:016x}", hasher.finish()))
    });
    Ok(HostId::new(
        job.lab.clone(),
        name.map_err(super::impossible)?,
    ))
}
