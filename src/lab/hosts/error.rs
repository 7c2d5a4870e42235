//! Why a host could not be made or removed.

use std::net::IpAddr;

use thiserror::Error;

use super::plan::HostState;
use crate::{
    lab::sockets::SocketsError,
    model::{HostId, IfName, NameError, RouterId, WithCauses},
    netlink::{LookupKind, NetlinkError, NetlinkErrors, sysctl::SysctlError},
    netns::NetnsError,
};

/// A host could not be made, removed or listed.
#[derive(Debug, Error)]
pub enum HostError {
    /// A namespace of the lab cannot be reached.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// Router and host are of different labs.
    #[error("host {host} cannot join router {router}: they are of different labs")]
    OtherLab {
        /// The host.
        host: HostId,
        /// The router.
        router: RouterId,
    },
    /// The prefix length does not fit the address.
    #[error("prefix length {length} is not allowed for {address}: at most {max} is")]
    PrefixLength {
        /// The length.
        length: u8,
        /// The address.
        address: IpAddr,
        /// The longest.
        max: u8,
    },
    /// The router has no such interface.
    #[error("router {router} has no interface {interface}")]
    NoInterface {
        /// The router.
        router: RouterId,
        /// The interface.
        interface: IfName,
    },
    /// The interface leads to no segment of the lab (loopback).
    #[error("interface {interface} of router {router} is on no segment that a host could join")]
    NoSegment {
        /// The router.
        router: RouterId,
        /// The interface.
        interface: IfName,
    },
    /// The router does not send packets to the address anywhere.
    #[error(
        "router {router} routes {address} to no segment ({kind:?}): name the interface that the \
         host shall join"
    )]
    NoWay {
        /// The router.
        router: RouterId,
        /// The address.
        address: IpAddr,
        /// What the router does instead.
        kind: LookupKind,
    },
    /// The address is one of the router's own.
    #[error("{address} is an address of router {router} itself: a host needs one of its own")]
    RouterAddress {
        /// The router.
        router: RouterId,
        /// The address.
        address: IpAddr,
    },
    /// The address is one to which a router broadcasts.
    #[error("{address} is a broadcast address at router {router}: no host has it")]
    Broadcast {
        /// The router.
        router: RouterId,
        /// The address.
        address: IpAddr,
    },
    /// Another host of the same name exists.
    #[error(
        "host {host} exists already: {} on {} of {}", .found.address, .found.interface, .found.router
    )]
    Exists {
        /// The host.
        host: HostId,
        /// What it is.
        found: Box<HostState>,
    },
    /// There are remains of a host of this name, or it is being made.
    #[error("host {host} exists in part: remove it first")]
    InPart {
        /// The host.
        host: HostId,
    },
    /// Making failed; what was made was undone.
    #[error("cannot make {}{}", names(.hosts), undone(.undo))]
    Make {
        /// The hosts.
        hosts: Vec<HostId>,
        /// What failed.
        #[source]
        source: Box<HostError>,
        /// What could not be undone.
        undo: Vec<HostError>,
    },
    /// Several things failed.
    #[error("{}", list(.0))]
    Many(Vec<HostError>),
    /// The kernel refused a list or look-up.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel refused changes.
    #[error(transparent)]
    Changes(#[from] NetlinkErrors),
    /// A namespace could not be made or deleted.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A sysctl could not be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A fault on purpose.
    #[error("fault at {step}")]
    Fault {
        /// The step.
        step: &'static str,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// A name could not be derived.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl HostError {
    /// One error for all of `errors`; none for none.
    pub(super) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.swap_remove(0)),
            _ => Err(Self::Many(errors)),
        }
    }
}

fn names(hosts: &[HostId]) -> String {
    let names: Vec<String> = hosts.iter().map(HostId::to_string).collect();
    format!("host {}", names.join(", "))
}

fn list(errors: &[HostError]) -> String {
    let texts: Vec<String> = errors.iter().map(|e| WithCauses(e).to_string()).collect();
    texts.join("; ")
}

fn undone(errors: &[HostError]) -> String {
    if errors.is_empty() {
        String::new()
    } else {
        format!(" (and not everything was undone: {})", list(errors))
    }
}
