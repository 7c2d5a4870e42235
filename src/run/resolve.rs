//! From the question to what will be measured: routers, their interfaces, their source hosts.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use thiserror::Error;

use super::{
    omitted::Omitted,
    way::{Flow, Way, WayError},
};
use crate::{
    lab::{
        LabError, LabState,
        hosts::{HostError, HostRequest, HostState, Hosts},
        sockets::{RouterSockets, SocketsError},
        trace::{self, Entry, Packet, Trace, TraceError, Wiring},
    },
    model::{HostId, HostName, IfName, LabName, NameError, RouterId, RouterName, Service},
    netns::{NetnsDir, NetnsFd},
    registry::HostSpec,
};

/// What a job asks, whatever its kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) lab: &'a LabName,
    pub(super) flow: &'a Flow,
    pub(super) services: &'a [Service],
    pub(super) routers: &'a RouterChoice,
    /// Whether verdicts are given although the lab lacks something that can change them.
    pub(super) trust_facts: bool,
}

/// Routers, their interfaces or source hosts could not be found out.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The lab has no such router.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The path through the lab could not be followed.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The path leads through no router.
    #[error("there is no router between {source_address} and {destination} in lab {lab}: {why}")]
    NoRouters {
        /// The lab.
        lab: LabName,
        /// Source address.
        source_address: IpAddr,
        /// Destination address.
        destination: IpAddr,
        /// What the trace says.
        why: String,
    },
    /// A router's interfaces could not be found out.
    #[error(transparent)]
    Way(#[from] WayError),
    /// A router could not be asked.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// A source host could not be planned.
    #[error(transparent)]
    HostSpec(#[from] HostError),
    /// A source host could not be named.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Which routers a job measures.
#[derive(Debug, Clone, PartialEq)]
pub enum RouterChoice {
    /// Those on the path that the lab's own routes take.
    Trace,
    /// Those on a path that was followed before.
    Traced(Box<Trace>),
    /// These, in this order.
    Named(Vec<RouterName>),
}

/// One router's part of the job.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) way: Way,
    /// The host that sends the probes, or why there can be none.
    pub(super) host: Result<HostSpec, String>,
    /// What the router lacks that its facts have.
    pub(super) omitted: Omitted,
}

/// A router to measure and where packets come in, as far as that is known beforehand.
struct Stop {
    router: RouterName,
    iface_in: Option<IfName>,
}

/// Finds out what each router's part is.
pub(super) fn parts(
    question: &Question<'_>,
    lab: &LabState,
    dir: &NetnsDir,
    hosts: &mut Hosts,
) -> Result<Vec<Part>, ResolveError> {
    let there = hosts.list()?;
    let stops = stops(question, lab, dir)?;
    let routers = open(question.lab, &stops, lab, dir, hosts.routers())?;
    let mut parts = Vec::new();
    for (stop, (router, netns)) in stops.into_iter().zip(routers) {
        let state = lab.router(&stop.router)?;
        let existing = there
            .iter()
            .find(|h| h.router == stop.router && h.address.addr() == question.flow.source);
        // Who put a source host on an interface by hand has decided where its packets come in.
        let iface_in = existing.map(|h| h.interface.clone()).or(stop.iface_in);
        let netlink = hosts.routers().router(&stop.router)?;
        let router = (router, netns);
        let way = Way::find(router, netlink, question.flow, question.services, iface_in)?;
        let host = source_host(question, &way, existing, hosts)?;
        parts.push(Part {
            way,
            host,
            omitted: Omitted::of(lab, state, question.trust_facts),
        });
    }
    Ok(parts)
}

/// Opens the routers, and a socket in each, which is quicker than one after the other.
fn open(
    lab: &LabName,
    stops: &[Stop],
    state: &LabState,
    dir: &NetnsDir,
    sockets: &mut RouterSockets,
) -> Result<Vec<(RouterId, Arc<NetnsFd>)>, ResolveError> {
    let mut routers = Vec::with_capacity(stops.len());
    for stop in stops {
        state.router(&stop.router)?;
        let router = RouterId::new(lab.clone(), stop.router.clone());
        let netns = dir.open(&router.netns()).map_err(|source| WayError::Open {
            router: router.clone(),
            source,
        })?;
        routers.push((router, Arc::new(netns)));
    }
    let inside = routers.iter().map(|(id, netns)| (&id.router, &**netns));
    let inside: Vec<(&RouterName, &NetnsFd)> = inside.collect();
    sockets.open_in(&inside).map_err(SocketsError::from)?;
    Ok(routers)
}

fn stops(
    question: &Question<'_>,
    lab: &LabState,
    dir: &NetnsDir,
) -> Result<Vec<Stop>, ResolveError> {
    let traced = match question.routers {
        RouterChoice::Named(names) => {
            let unknown = |router: RouterName| Stop {
                router,
                iface_in: None,
            };
            return Ok(names.iter().cloned().map(unknown).collect());
        }
        RouterChoice::Traced(trace) => Trace::clone(trace),
        RouterChoice::Trace => follow(question, lab, dir)?,
    };
    if traced.hops.is_empty() {
        return Err(ResolveError::NoRouters {
            lab: question.lab.clone(),
            source_address: question.flow.source,
            destination: question.flow.destination,
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
fn follow(question: &Question<'_>, lab: &LabState, dir: &NetnsDir) -> Result<Trace, ResolveError> {
    let flow = question.flow;
    let first = question.services.first();
    let packet = Packet {
        protocol: first.map(|s| s.protocol),
        source_port: first.map(|_| flow.source_port),
        destination_port: first.map(|s| s.port),
        tos: flow.tos,
        ..Packet::new(flow.source, flow.destination)
    };
    let mut sockets = RouterSockets::new(dir, question.lab);
    Ok(trace::trace(
        &Wiring::from(lab),
        &mut sockets,
        &packet,
        None,
    )?)
}

/// The host that sends packets from `source` into the interface `at` of `router`: the one of
/// `there` that does, or a new one; or why there can be none.
pub(super) fn host_at(
    router: &RouterId,
    at: &IfName,
    source: IpAddr,
    there: &[HostState],
    hosts: &mut Hosts,
) -> Result<Result<HostSpec, String>, ResolveError> {
    let existing = there.iter().find(|host| {
        host.router == router.router && host.interface == *at && host.address.addr() == source
    });
    let id = match existing {
        Some(host) => HostId::new(router.lab.clone(), host.host.clone()),
        None => HostId::new(
            router.lab.clone(),
            made_up_name(router, at.as_str(), source)?,
        ),
    };
    plan(
        &HostRequest {
            id,
            router: router.clone(),
            address: source,
            prefix_len: existing.map(|host| host.address.prefix_len()),
            interface: Some(at.clone()),
        },
        hosts,
    )
}

/// Where somebody put hosts with the address `source` by hand.
pub(super) fn placed_by_hand(
    lab: &LabName,
    source: IpAddr,
    there: &[HostState],
) -> Result<Vec<Entry>, ResolveError> {
    let mut placed = Vec::new();
    for host in there.iter().filter(|host| host.address.addr() == source) {
        let router = RouterId::new(lab.clone(), host.router.clone());
        if host.host != made_up_name(&router, host.interface.as_str(), source)? {
            placed.push(Entry {
                router: host.router.clone(),
                iface_in: Some(host.interface.clone()),
            });
        }
    }
    Ok(placed)
}

/// The host that sends probes to the router of `way`: the one that is there, or a new one.
fn source_host(
    question: &Question<'_>,
    way: &Way,
    existing: Option<&HostState>,
    hosts: &mut Hosts,
) -> Result<Result<HostSpec, String>, ResolveError> {
    let router = &way.router;
    let id = match existing {
        Some(host) => HostId::new(question.lab.clone(), host.host.clone()),
        None => host_id(question, way)?,
    };
    let Some(interface) = way.iface_in.clone() else {
        return Ok(Err(format!(
            "router {} has no route to the source {}, so it is not known where its packets come in",
            router.router, question.flow.source
        )));
    };
    let request = HostRequest {
        id,
        router: router.clone(),
        address: question.flow.source,
        prefix_len: existing.map(|host| host.address.prefix_len()),
        interface: Some(interface),
    };
    plan(&request, hosts)
}

/// Plans a host, or says why there can be none.
fn plan(
    request: &HostRequest,
    hosts: &mut Hosts,
) -> Result<Result<HostSpec, String>, ResolveError> {
    match hosts.plan(request) {
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
fn host_id(question: &Question<'_>, way: &Way) -> Result<HostId, ResolveError> {
    let iface = way.iface_in.as_ref().map_or("none", IfName::as_str);
    let name = made_up_name(&way.router, iface, question.flow.source)?;
    Ok(HostId::new(question.lab.clone(), name))
}

/// The name of the host that jobs make for a source address at an interface.
fn made_up_name(router: &RouterId, iface: &str, source: IpAddr) -> Result<HostName, ResolveError> {
    let name = format!("{}:{iface}:{source}", router.router);
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
    Ok(name?)
}
