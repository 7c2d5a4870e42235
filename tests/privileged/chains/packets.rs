//! What plain hosts send, protocol by protocol, and how it is told from what else is on the wires.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, send, setsockopt,
    socket, sockopt,
};
use rustix::net::{
    self as rnet, Protocol as Number, SocketFlags,
    sockopt::{
        Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    },
};

use super::plan::{Protocol, Service};

const REQUEST: &[u8] = b"request";
/// What a client of SCTP has as its own port.
const CLIENT_PORT: u16 = 40_000;

/// How packets are sent, whatever the service is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sending {
    pub(super) to: IpAddr,
    /// The sender's address, where it has several.
    pub(super) from: Option<IpAddr>,
    pub(super) tos: u8,
    pub(super) mark: u32,
    /// Length of the IP packets, which are not to be fragmented then.
    pub(super) size: Option<u16>,
}

impl Sending {
    /// What a client of the service sends first; each `number` is another client. The kernel may
    /// refuse it: it knows of no way.
    pub(super) fn send(self, service: Service, number: u16) -> OwnedFd {
        let v6 = self.to.is_ipv6();
        let socket = match service.protocol {
            Protocol::Tcp => plain(v6, SockType::Stream),
            Protocol::Udp => plain(v6, SockType::Datagram),
            other => raw(v6, other),
        };
        self.configure(&socket);
        if let Some(from) = self.from {
            let from = SockaddrStorage::from(SocketAddr::new(from, 0));
            bind(socket.as_raw_fd(), &from).unwrap();
        }
        let port = match service.protocol {
            Protocol::Tcp | Protocol::Udp => service.port,
            _ => 0,
        };
        let to = SockaddrStorage::from(SocketAddr::new(self.to, port));
        let connected = connect(socket.as_raw_fd(), &to);
        if service.protocol != Protocol::Tcp && connected.is_ok() {
            let bytes = self.payload(service, number);
            let _ = send(socket.as_raw_fd(), &bytes, MsgFlags::empty());
        }
        socket
    }

    fn configure(self, socket: &OwnedFd) {
        setsockopt(socket, sockopt::Mark, &self.mark).unwrap();
        let v6 = self.to.is_ipv6();
        match v6 {
            false => setsockopt(socket, sockopt::Ipv4Tos, &self.tos.into()).unwrap(),
            true => setsockopt(socket, sockopt::Ipv6TClass, &self.tos.into()).unwrap(),
        }
        // What a host has learned of a path is nothing to the packet that is sent.
        match v6 {
            _ if self.size.is_none() => {}
            false => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE).unwrap(),
            true => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE).unwrap(),
        }
    }

    /// All behind the IP header; of UDP all behind its own.
    fn payload(self, service: Service, number: u16) -> Vec<u8> {
        let v6 = self.to.is_ipv6();
        let [high, low] = number.to_be_bytes();
        let mut bytes = match service.protocol {
            Protocol::Tcp | Protocol::Udp => REQUEST.to_vec(),
            Protocol::Ping => vec![if v6 { 128 } else { 8 }, 0, 0, 0, high, low, 0, 1],
            Protocol::Timestamp => {
                let mut bytes = vec![0; 20];
                (bytes[0], bytes[4], bytes[5]) = (13, high, low);
                bytes
            }
            Protocol::Sctp => init(CLIENT_PORT + number, service.port),
            Protocol::Esp => vec![0, 0, high | 1, low, 0, 0, 0, 1, 0, 0, 0, 0],
            // NAT reads eight octets of it (gre_manip_pkt()).
            Protocol::Gre => [[0, 0, 8, 0], [0; 4]].concat(),
            Protocol::Ospf => vec![2, 1, 0, 4],
        };
        if let Some(size) = self.size {
            let header = if v6 { 40 } else { 20 };
            let own = if service.protocol == Protocol::Udp {
                8
            } else {
                0
            };
            let length = usize::from(size) - header - own;
            pad(&mut bytes, length, service.protocol);
        }
        match service.protocol {
            Protocol::Ping | Protocol::Timestamp if !v6 => {
                let sum = checksum(&bytes);
                bytes[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            Protocol::Sctp => {
                let sum = crc32c(&bytes);
                bytes[8..12].copy_from_slice(&sum.to_le_bytes());
            }
            _ => {}
        }
        bytes
    }
}

/// Makes a payload that long.
fn pad(bytes: &mut Vec<u8>, length: usize, protocol: Protocol) {
    let before = bytes.len();
    bytes.resize(length, 0);
    if protocol == Protocol::Sctp {
        // Padding is a parameter of INIT, RFC 4820, and whole words.
        let more = u16::try_from(length - before).unwrap();
        bytes[before..before + 2].copy_from_slice(&0x8005_u16.to_be_bytes());
        bytes[before + 2..before + 4].copy_from_slice(&more.to_be_bytes());
        let chunk = u16::try_from(length - 12).unwrap();
        bytes[14..16].copy_from_slice(&chunk.to_be_bytes());
    }
}

/// SCTP's common header and INIT, RFC 9260, without the checksum.
fn init(from: u16, to: u16) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend([0; 8]);
    bytes.extend([1, 0, 0, 20]);
    for word in [0x1234_5678_u32, 65_536, 0x000a_000a, 1] {
        bytes.extend(word.to_be_bytes());
    }
    bytes
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(((sum & 0xffff) + (sum >> 16)) & 0xffff).unwrap()
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32, _: u32| match crc & 1 {
        0 => crc >> 1,
        _ => crc >> 1 ^ 0x82f6_3b78,
    };
    let octet = |crc: u32, octet: &u8| (0..8).fold(crc ^ u32::from(*octet), shift);
    !bytes.iter().fold(u32::MAX, octet)
}

fn family(v6: bool) -> AddressFamily {
    match v6 {
        true => AddressFamily::Inet6,
        false => AddressFamily::Inet,
    }
}

fn plain(v6: bool, kind: SockType) -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(family(v6), kind, flags, None).unwrap()
}

/// A raw socket, which sends what the kernel has no client for, and gets what programs would get.
pub(super) fn raw(v6: bool, protocol: Protocol) -> OwnedFd {
    let family = match v6 {
        true => rnet::AddressFamily::INET6,
        false => rnet::AddressFamily::INET,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let number = NonZeroU32::new(u32::from(protocol.number(v6))).unwrap();
    let protocol = Some(Number::from_raw(number));
    rnet::socket_with(family, rnet::SocketType::RAW, flags, protocol).unwrap()
}

/// Which of these IP packets are requests of the service's protocol, without what TCP sends again.
#[derive(Default)]
pub(super) struct Requests {
    pub(super) count: usize,
    begun: BTreeSet<Vec<u8>>,
}

impl Requests {
    /// Counts an IP packet, if it is one.
    pub(super) fn add(&mut self, packet: &[u8], service: Service) {
        let (v6, protocol, payload) = match packet.first().map(|first| first >> 4) {
            Some(4) => (
                false,
                packet[9],
                packet.get(usize::from(packet[0] & 15) * 4..),
            ),
            Some(6) => (true, packet[6], packet.get(40..)),
            _ => return,
        };
        if let Some(payload) = payload.filter(|_| protocol == service.protocol.number(v6)) {
            self.add_payload(payload, service, v6);
        }
    }

    /// Counts what follows an IP header.
    pub(super) fn add_payload(&mut self, payload: &[u8], service: Service, v6: bool) {
        if !is_request(payload, service, v6) {
            return;
        }
        let is_tcp = service.protocol == Protocol::Tcp;
        let again = is_tcp && !self.begun.insert(payload[4..8].to_vec());
        self.count += usize::from(!again);
    }
}

/// Whether what follows the IP header is a request: of TCP all but what one answers.
fn is_request(payload: &[u8], service: Service, v6: bool) -> bool {
    let begins = |octets: &[u8]| payload.starts_with(octets);
    match service.protocol {
        Protocol::Tcp => payload.get(13).is_some_and(|flags| flags & 0x17 == 0x02),
        Protocol::Udp => payload.get(8..).is_some_and(|p| p.starts_with(REQUEST)),
        Protocol::Ping => begins(&[if v6 { 128 } else { 8 }, 0]),
        Protocol::Timestamp => begins(&[13, 0]),
        Protocol::Sctp => payload.get(12) == Some(&1),
        Protocol::Esp | Protocol::Gre | Protocol::Ospf => true,
    }
}
