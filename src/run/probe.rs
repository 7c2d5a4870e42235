//! Sending probes from inside a source host.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    panic, thread,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{
    model::{Protocol, Service},
    netlink::buffers,
    processors,
    run::packet::{ProbeSpec, probes},
    sys::{in_flight, mmsg::send_each},
};

/// The services of a job, numbered as its taps expect: TCP first, then UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    by_index: Vec<Service>,
    index_of: Vec<u32>,
    tcp: u32,
}

impl Catalogue {
    /// Numbers `services`, which are in the order asked for.
    #[must_use]
    pub fn new(services: &[Service]) -> Self {
        let mut by_index = Vec::with_capacity(services.len());
        let mut index_of = vec![0; services.len()];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (position, service) in services.iter().enumerate() {
                if service.protocol == protocol {
                    index_of[position] = by_index.len() as u32;
                    by_index.push(*service);
                }
            }
        }
        let tcp = by_index
            .iter()
            .filter(|s| s.protocol == Protocol::Tcp)
            .count() as u32;
        Self {
            by_index,
            index_of,
            tcp,
        }
    }

    /// How many services there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.by_index.len() as u32
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_index.is_empty()
    }

    /// How many are TCP; these have the lowest indexes.
    #[must_use]
    pub fn tcp(&self) -> u32 {
        self.tcp
    }

    /// The service with this index.
    #[must_use]
    pub fn service(&self, index: u32) -> Option<Service> {
        self.by_index.get(index as usize).copied()
    }

    /// The indexes in the order in which the services were asked for.
    #[must_use]
    pub fn in_order_asked(&self) -> &[u32] {
        &self.index_of
    }

    /// All indexes, ascending.
    #[must_use]
    pub fn all(&self) -> Vec<u32> {
        (0..self.len()).collect()
    }
}

/// From how many probes on a thread is worth its start: they take a millisecond or two.
const SHARE_MIN: usize = 256;

/// The kernel doubles it, and charges 768 bytes for a probe: 682 may be under way at once, and the
/// sender waits for more. A processor's back log holds 1000 packets (`net.core.netdev_max_backlog`)
/// and loses the others.
const SEND_BUFFER: usize = 256 << 10;

/// Probes that the source host's kernel refused to send: index and its reason.
pub type Refused = BTreeMap<u32, String>;

/// A raw socket inside a source host.
#[derive(Debug)]
pub struct ProbeSocket {
    socket: OwnedFd,
    destination: IpAddr,
}

impl ProbeSocket {
    /// Opens a socket in the calling thread's network namespace that sends whole IP packets to
    /// `destination`, raw(7). One of protocol IPPROTO_RAW receives nothing and closes at once.
    ///
    /// # Errors
    /// When the kernel refuses, for want of CAP_NET_RAW for example.
    pub fn open_here(destination: IpAddr) -> io::Result<Self> {
        let family = match destination {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        // The protocol is IPPROTO_RAW, which implies that headers are included.
        let socket = socket(
            family,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            nix::sys::socket::SockProtocol::Raw,
        )?;
        buffers::send(&socket, SEND_BUFFER)?;
        Ok(Self {
            socket,
            destination,
        })
    }

    /// Sends the probes with these indexes, ascending, and waits until they have come through the
    /// first router, or are lost. Many are shared out among threads: the
    /// kernel takes a packet through all namespaces on the processor that sends it.
    #[must_use]
    pub fn send(&self, spec: &ProbeSpec, catalogue: &Catalogue, indexes: &[u32]) -> Refused {
        let share = indexes.len().div_ceil(processors::count()).max(SHARE_MIN);
        let mut shares = indexes.chunks(share);
        let first = shares.next().unwrap_or_default();
        let refused = thread::scope(|scope| {
            let others: Vec<_> = shares
                .map(|share| scope.spawn(move || self.send_share(spec, catalogue, share)))
                .collect();
            let mut refused = self.send_share(spec, catalogue, first);
            for other in others {
                refused.extend(other.join().unwrap_or_else(|e| panic::resume_unwind(e)));
            }
            refused
        });
        in_flight::wait(self.socket.as_fd());
        refused
    }

    fn send_share(&self, spec: &ProbeSpec, catalogue: &Catalogue, indexes: &[u32]) -> Refused {
        let split = indexes.partition_point(|&index| index < catalogue.tcp());
        let (tcp, udp) = indexes.split_at(split);
        let mut refused = Refused::new();
        for (protocol, indexes) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
            if indexes.is_empty() {
                continue;
            }
            let service = |&index: &u32| {
                let port = catalogue.service(index).map_or(0, |s| s.port);
                (index, Service { port, protocol })
            };
            let packets = probes(spec, protocol, indexes.iter().map(service));
            let errors = send_each(
                self.socket.as_fd(),
                &packets.bytes,
                packets.size,
                self.destination,
            );
            refused.extend(errors.into_iter().filter_map(|(at, error)| {
                indexes.get(at).map(|&index| (index, why_refused(&error)))
            }));
        }
        refused
    }
}

/// A refusal of sendmmsg(2) in words.
fn why_refused(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "the source host's own firewall drops it (EPERM)".to_owned(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => {
            format!("the source host has no route to the destination: {error}")
        }
        Some(libc::ENETDOWN) => format!("the source host's interface is down: {error}"),
        _ => format!("the source host could not send: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ServiceLimits, parse_services};

    #[test]
    fn services_are_numbered_tcp_first_and_found_again_in_the_order_asked() {
        let asked = parse_services(
            "53/udp,80,67/udp,443",
            Protocol::Tcp,
            ServiceLimits::default(),
        );
        let asked = asked.unwrap();
        let catalogue = Catalogue::new(&asked);
        assert_eq!((catalogue.len(), catalogue.tcp()), (4, 2));
        let again: Vec<_> = catalogue
            .in_order_asked()
            .iter()
            .filter_map(|&i| catalogue.service(i))
            .collect();
        assert_eq!(again, asked);
        assert!((0..2).all(|i| catalogue.service(i).unwrap().protocol == Protocol::Tcp));
    }
}
