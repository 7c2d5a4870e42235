//! From the question to what will be measured: routers, their interfaces, their source hosts.

use std::net::IpAddr;

use thiserror::Error;

use crate::{
    lab::{
        LabError,
        hosts::{HostError, HostRequest, HostState, Hosts},
        sockets::SocketsError,
        trace::{Entry, Trace, TraceError},
    },
    model::{HostId, HostName, IfName, LabName, NameError, RouterId, RouterName, fnv1a},
    registry::HostSpec,
};

/// Routers, their interfaces or source hosts could not be found out.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The lab has no such router.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The path through the lab could not be followed.
    #[error(transparent)]
    Trace(#[from] TraceError),
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
    let request = HostRequest {
        id,
        router: router.clone(),
        address: source,
        prefix_len: existing.map(|host| host.address.prefix_len()),
        interface: Some(at.clone()),
    };
    match existing {
        Some(_) => Ok(Ok(hosts.plan_of_made(&request, at)?)),
        None => plan(&request, hosts),
    }
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

/// Plans a host, or says why there can be none.
fn plan(
    request: &HostRequest,
    hosts: &mut Hosts,
) -> Result<Result<HostSpec, String>, ResolveError> {
    match hosts.plan(request) {
        Ok(plan) => Ok(Ok(plan)),
        Err(
            error @ (HostError::RouterAddress { .. }
            | HostError::Broadcast { .. }
            | HostError::NoWay { .. }
            | HostError::NoSegment { .. }
            | HostError::NoInterface { .. }),
        ) => Ok(Err(error.to_string())),
        Err(error) => Err(error.into()),
    }
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
    let name = HostName::new(name.clone())
        .or_else(|_| HostName::new(format!("h:{:016x}", fnv1a(name.as_bytes()))));
    Ok(name?)
}
