//! Stand-ins for transparent proxies.
//!
//! A rule of TPROXY hands a packet to a socket of the router, and drops it where none listens. On
//! the real router a proxy does; in the lab a socket takes its place while the packets in question
//! are measured again, so that they come to INPUT. What arrives there the last tap discards, so no
//! connection is ever made.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::{
    model::Protocol,
    netlink::object::Family,
    netns::{NetnsError, NetnsFd},
};

/// Sockets that listen in a router, until they are dropped.
#[derive(Debug)]
pub(super) struct StandIns {
    _sockets: Vec<OwnedFd>,
}

impl StandIns {
    /// Listens in `router` on each of `ports`. One that is taken has a listener.
    pub(super) fn open(
        router: &NetnsFd,
        family: Family,
        ports: &BTreeSet<(Protocol, u16)>,
    ) -> Result<io::Result<Self>, NetnsError> {
        router.enter(|| {
            let mut sockets = Vec::with_capacity(ports.len());
            for &(protocol, port) in ports {
                match one(family, protocol, port) {
                    Ok(socket) => sockets.push(socket),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(Self { _sockets: sockets })
        })
    }
}

fn one(family: Family, protocol: Protocol, port: u16) -> io::Result<OwnedFd> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
        // The kernel has TPROXY for these two only.
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let (domain, any) = match family {
        Family::V4 => (AddressFamily::Inet, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        Family::V6 => (AddressFamily::Inet6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    };
    let socket = socket(domain, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // A socket of IPv6 takes the option of IPv4, too (ipv6_setsockopt()).
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    if family == Family::V6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    let address = SockaddrStorage::from(SocketAddr::new(any, port));
    bind(socket.as_raw_fd(), &address)?;
    if protocol == Protocol::Tcp {
        listen(&socket, Backlog::new(1)?)?;
    }
    Ok(socket)
}
