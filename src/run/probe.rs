//! Sending probes: from inside a source host, or straight into a router's wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    panic,
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, socket},
};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

use crate::{
    firewall::{Runs, TagSpace},
    model::{Protocol, Service},
    netlink::{
        buffers,
        object::{Family, Mac},
    },
    processors,
    run::packet::{Probe, packets},
    sys::{
        in_flight,
        mmsg::{Target, send_each},
    },
};

/// The services of a job, numbered as its taps expect: protocol by protocol, TCP first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    by_index: Vec<Service>,
    index_of: Vec<u32>,
    runs: Runs,
}

impl Catalogue {
    /// Numbers `services`, which are in the order asked for.
    #[must_use]
    pub fn new(services: &[Service]) -> Self {
        let mut by_index = Vec::with_capacity(services.len());
        let mut index_of = vec![0; services.len()];
        let protocols: BTreeSet<Protocol> = services.iter().map(|s| s.protocol).collect();
        let mut runs = Vec::with_capacity(protocols.len());
        for protocol in protocols {
            let start = by_index.len();
            for (position, service) in services.iter().enumerate() {
                if service.protocol == protocol {
                    index_of[position] = by_index.len() as u32;
                    by_index.push(*service);
                }
            }
            runs.push((protocol, (by_index.len() - start) as u32));
        }
        Self {
            by_index,
            index_of,
            runs: Runs::new(&runs),
        }
    }

    /// How many services there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.by_index.len() as u32
    }

    /// Whether there are none.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_index.is_empty()
    }

    /// Which indexes are of which protocol.
    #[must_use]
    pub fn runs(&self) -> &Runs {
        &self.runs
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
    #[cfg(feature = "internals")]
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
pub type RefusedProbes = BTreeMap<u32, String>;

/// Where probes are sent from.
#[derive(Debug, Clone)]
pub struct ProbeSocket {
    socket: Arc<OwnedFd>,
    from: From,
}

/// How packets of a [`ProbeSocket`] find the router.
#[derive(Debug, Clone)]
enum From {
    /// By the routes of the source host.
    Host,
    /// The router itself sends them.
    Itself,
    /// Out of the segments' end of the router's wire, in frames that are addressed to it.
    Wire {
        /// Number of that end.
        device: u32,
        /// The Ethernet header.
        frame: [u8; ETHERNET_HEADER],
    },
}

/// Length of an Ethernet header: two addresses and the type (IEEE 802.3).
const ETHERNET_HEADER: usize = 14;

/// A socket in the namespace of a lab's segments that sends into the wires of all its routers: the
/// hidden sender of the later legs of a way. The kernel takes its time to close it (16 ms).
#[derive(Debug, Clone)]
pub struct WireSocket(Arc<OwnedFd>);

impl WireSocket {
    /// Opens it in the calling thread's network namespace, packet(7). It receives nothing.
    ///
    /// # Errors
    /// When the kernel refuses, for want of CAP_NET_RAW for example.
    pub fn open_here() -> io::Result<Self> {
        let none = None::<SockProtocol>;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, none)?;
        buffers::send(&socket, SEND_BUFFER)?;
        Ok(Self(Arc::new(socket)))
    }

    /// Sends to the router interface `to` at the other end of the wire `device`, as if from the
    /// interface `from`.
    #[must_use]
    pub fn on_wire(&self, device: u32, to: Mac, from: Mac, family: Family) -> ProbeSocket {
        let ether_type: u16 = match family {
            Family::V4 => libc::ETH_P_IP as u16,
            Family::V6 => libc::ETH_P_IPV6 as u16,
        };
        let mut frame = [0; ETHERNET_HEADER];
        frame[..6].copy_from_slice(&to.0);
        frame[6..12].copy_from_slice(&from.0);
        frame[12..].copy_from_slice(&ether_type.to_be_bytes());
        ProbeSocket {
            socket: Arc::clone(&self.0),
            from: From::Wire { device, frame },
        }
    }
}

impl ProbeSocket {
    /// Opens a socket in the calling thread's network namespace, that of a source host, that sends
    /// whole IP packets of `family`, raw(7). One of protocol IPPROTO_RAW receives nothing and
    /// closes at once.
    ///
    /// # Errors
    /// When the kernel refuses, for want of CAP_NET_RAW for example.
    pub fn open_here(family: Family) -> io::Result<Self> {
        let socket = Self::open(family)?;
        // What the host learned of the path from one probe would keep the next one back.
        match family {
            Family::V4 => set_ip_mtu_discover(&socket.socket, Ipv4PathMtuDiscovery::PROBE)?,
            Family::V6 => set_ipv6_mtu_discover(&socket.socket, Ipv6PathMtuDiscovery::PROBE)?,
        }
        Ok(socket)
    }

    fn open(family: Family) -> io::Result<Self> {
        let family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        // The protocol is IPPROTO_RAW, which implies that headers are included.
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Raw, flags, SockProtocol::Raw)?;
        buffers::send(&socket, SEND_BUFFER)?;
        Ok(Self {
            socket: Arc::new(socket),
            from: From::Host,
        })
    }

    /// Opens a socket in the calling thread's network namespace, that of the router itself, which
    /// sends from its own address `source`. Its packets are routed by their addresses and TOS, and
    /// not by their ports, raw(7).
    ///
    /// # Errors
    /// When the kernel refuses, or `source` is none of its addresses.
    pub fn of_router_here(source: IpAddr) -> io::Result<Self> {
        let socket = Self::open(Family::of(source))?;
        let address = SockaddrStorage::from(SocketAddr::new(source, 0));
        bind(socket.socket.as_raw_fd(), &address)?;
        Ok(Self {
            from: From::Itself,
            ..socket
        })
    }

    /// Sends `probes`, in ascending order of their indexes, and waits until they have come through
    /// the first router, or are lost. Many are shared out among threads: the kernel takes a packet
    /// through all namespaces on the processor that sends it.
    #[must_use]
    pub fn send(&self, tags: TagSpace, probes: &[Probe]) -> RefusedProbes {
        self.send_beside(0, tags, probes)
    }

    /// The same beside so many other threads that send or read at other routers: all together are no
    /// more than there are processors, if this one alone is not.
    #[must_use]
    pub fn send_beside(&self, others: usize, tags: TagSpace, probes: &[Probe]) -> RefusedProbes {
        let share = match probes.len() {
            // How many processors there are takes twenty system calls.
            ..=SHARE_MIN => SHARE_MIN,
            more => {
                let threads = processors::count() / (others + 1);
                more.div_ceil(threads.max(1)).max(SHARE_MIN)
            }
        };
        let mut shares = probes.chunks(share);
        let first = shares.next().unwrap_or_default();
        let refused = thread::scope(|scope| {
            let others: Vec<_> = shares
                .map(|share| scope.spawn(move || self.send_share(tags, share)))
                .collect();
            let mut refused = self.send_share(tags, first);
            for other in others {
                refused.extend(other.join().unwrap_or_else(|e| panic::resume_unwind(e)));
            }
            refused
        });
        in_flight::wait(self.socket.as_fd());
        refused
    }

    fn send_share(&self, tags: TagSpace, probes: &[Probe]) -> RefusedProbes {
        let frame = match &self.from {
            From::Host | From::Itself => &[][..],
            From::Wire { frame, .. } => frame,
        };
        let mut refused = RefusedProbes::new();
        let mut rest = probes;
        for packets in packets(tags, probes, frame) {
            let (sent, behind) = rest.split_at(packets.bytes.len() / packets.size);
            let to = match &self.from {
                From::Host | From::Itself => Target::Address(packets.destination),
                From::Wire { device, .. } => Target::Device(*device),
            };
            let errors = send_each(self.socket.as_fd(), &packets.bytes, packets.size, to);
            // Sending tells of every discarded packet, at the last tap as well.
            let discarded = |error: &io::Error| error.raw_os_error() == Some(libc::EPERM);
            let told = errors
                .into_iter()
                .filter(|(_, error)| !matches!(self.from, From::Itself) || !discarded(error));
            let why = match self.from {
                From::Itself => why_unsent,
                From::Host | From::Wire { .. } => why_refused,
            };
            refused.extend(
                told.filter_map(|(at, error)| sent.get(at).map(|probe| (probe.index, why(&error)))),
            );
            rest = behind;
        }
        refused
    }
}

/// Why a router cannot send something itself, in words; the errnos are those of `fib_props`.
fn why_unsent(error: &io::Error) -> String {
    let why = match error.raw_os_error() {
        Some(libc::EMSGSIZE) => Some("the probe exceeds the MTU"),
        Some(errno) => no_way(Errno::from_raw(errno)),
        None => None,
    };
    let why = why.map_or_else(|| error.to_string(), str::to_owned);
    format!("the router itself cannot send it: {why}")
}

/// What of routing an errno stands for; none where it stands for something else.
pub(super) fn no_way(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::ENETUNREACH => "no route leads there",
        Errno::EHOSTUNREACH => "an unreachable route",
        Errno::EACCES => "a prohibit route or policy rule",
        Errno::EINVAL => "a blackhole route or policy rule",
        _ => return None,
    })
}

/// A refusal of sendmmsg(2) in words.
fn why_refused(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "the source host's own firewall drops it (EPERM)".to_owned(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => {
            format!("the source host has no route to the destination: {error}")
        }
        Some(libc::ENETDOWN) => format!("the source host's interface is down: {error}"),
        Some(libc::EMSGSIZE) => "the probe exceeds the MTU of the source host's link".to_owned(),
        // A wire of the lab discards what its other end is too narrow for.
        Some(libc::ENOBUFS) => {
            "the probe exceeds the MTU of the router's interface, or a queue is full".to_owned()
        }
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
        assert_eq!(
            (catalogue.len(), catalogue.runs().of(Protocol::Tcp)),
            (4, 0..2)
        );
        let again: Vec<_> = catalogue
            .in_order_asked()
            .iter()
            .filter_map(|&i| catalogue.service(i))
            .collect();
        assert_eq!(again, asked);
        assert!((0..2).all(|i| catalogue.service(i).unwrap().protocol == Protocol::Tcp));
    }
}
