//! What a client sends for a service, and what answers it, by protocol.
//!
//! Protocols without ports look as in the quick job. Echo and timestamp requests are answered by
//! the destination's kernel; of all others nobody knows what an answer looks like, so the listener
//! gives back what it got, as it does with datagrams of UDP.

use std::{io, num::NonZeroU32, ops::Range, os::fd::OwnedFd};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use crate::{
    model::{Protocol, Service, icmp},
    run::{packet, payload},
};

/// Where ICMP has its identifier (RFC 792), and what follows it and the sequence number.
const IDENTIFIER: Range<usize> = 4..6;
const BODY: Range<usize> = 8..12;
/// `IPPROTO_RAW`, of which the kernel takes whole packets only, raw(7).
const RESERVED: u8 = 255;

/// Whether services of the protocol are connections.
pub(super) fn is_stream(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Tcp | Protocol::Sctp)
}

/// Whether services of the protocol have no sockets with ports: clients and listeners write what
/// follows the IP header themselves.
pub(super) fn is_raw(protocol: Protocol) -> bool {
    !protocol.has_ports()
}

/// Opens a socket for services of `protocol`, which does not block, in the calling thread's
/// network namespace.
pub(super) fn open_here(v6: bool, protocol: Protocol) -> io::Result<OwnedFd> {
    let family = match v6 {
        false => AddressFamily::INET,
        true => AddressFamily::INET6,
    };
    let kind = match protocol {
        Protocol::Udp => SocketType::DGRAM,
        protocol if is_stream(protocol) => SocketType::STREAM,
        _ => SocketType::RAW,
    };
    socket(family, kind, protocol)
}

/// Why a detailed job cannot ask about services of `protocol`; none where it can.
pub(super) fn refused(v6: bool, protocol: Protocol) -> Option<String> {
    if protocol.number() == RESERVED {
        return Some(format!(
            "no socket sends what follows an IP header as {protocol}"
        ));
    }
    let error = open_here(v6, protocol).err()?;
    Some(match (protocol, error.raw_os_error()) {
        (Protocol::Sctp, Some(libc::EPROTONOSUPPORT)) => {
            "this kernel has no SCTP (module sctp), so no association can be made; a quick job \
             measures whether the request passes"
                .to_owned()
        }
        _ => format!("no socket can be opened for {protocol}: {error}"),
    })
}

/// Opens a socket that sees all that comes in of `protocol`.
pub(super) fn witness_here(v6: bool, protocol: Protocol) -> io::Result<OwnedFd> {
    let family = match v6 {
        false => AddressFamily::INET,
        true => AddressFamily::INET6,
    };
    socket(family, SocketType::RAW, protocol)
}

fn socket(family: AddressFamily, kind: SocketType, protocol: Protocol) -> io::Result<OwnedFd> {
    let number = NonZeroU32::new(protocol.number().into());
    let number = number.ok_or(io::ErrorKind::Unsupported)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(net::Protocol::from_raw(number));
    Ok(net::socket_with(family, kind, flags, protocol)?)
}

/// What follows the IP header of a request; `id` tells it from others of its client.
pub(super) fn request(service: Service, id: u16, tag: [u8; 4], length: Option<usize>) -> Vec<u8> {
    let Service { port, protocol } = service;
    let least = payload::length(protocol);
    let mut bytes = vec![0; length.unwrap_or(least).max(least)];
    let tag = u32::from_be_bytes(tag);
    payload::fill(&mut bytes, protocol, (id, port), tag, checksum);
    bytes
}

/// The checksum of ICMP; that of IPv6 the kernel fills in, as it knows the addresses.
fn checksum(bytes: &[u8], pseudo: bool) -> u16 {
    if pseudo { 0 } else { packet::checksum(bytes) }
}

/// Whether `came` answers `request`.
pub(super) fn is_answer(protocol: Protocol, request: &[u8], came: &[u8]) -> bool {
    if !protocol.has_types() {
        return came == request;
    }
    let kind = request.first().copied().unwrap_or_default();
    let same = |part: Range<usize>| came.get(part.clone()) == request.get(part);
    let kind = icmp::reply_to(protocol, kind.into());
    same(IDENTIFIER) && same(BODY) && kind == came.first().copied().map(u16::from)
}

/// What the listener of `service` says to a request, if it is one; none where the kernel does.
pub(super) fn reply(service: Service, came: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = came.to_vec();
    if service.protocol.has_types() {
        if icmp::is_answered_by_kernel(service.port) {
            return None;
        }
        let kind = icmp::reply_to(service.protocol, service.port)?;
        *bytes.first_mut()? = u8::try_from(kind).ok()?;
        bytes.get_mut(2..4)?.fill(0);
        let even = bytes.len() & !1;
        let sum = checksum(&bytes[..even], service.protocol == Protocol::Icmpv6);
        bytes.get_mut(2..4)?.copy_from_slice(&sum.to_be_bytes());
    }
    Some(bytes)
}

/// The client's identifier in a request for `service`; none in what is no such request.
pub(super) fn identifier(service: Service, came: &[u8]) -> Option<u16> {
    if !service.protocol.has_types() {
        return Some(0);
    }
    let own = u16::from(*came.first()?) == service.port;
    let id = came.get(IDENTIFIER)?.try_into().ok()?;
    own.then_some(u16::from_be_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_its_type_identifier_and_body() {
        let ping = Service {
            port: 8,
            protocol: Protocol::Icmp,
        };
        let sent = request(ping, 77, [1, 2, 3, 4], None);
        assert_eq!(sent.len(), 64);
        assert_eq!(identifier(ping, &sent), Some(77));
        assert!(!is_answer(Protocol::Icmp, &sent, &sent));
        let mut came = sent.clone();
        came[0] = 0;
        assert!(is_answer(Protocol::Icmp, &sent, &came));
        came[5] += 1;
        assert!(!is_answer(Protocol::Icmp, &sent, &came));
        // The kernel answers.
        assert_eq!(reply(ping, &sent), None);
    }

    #[test]
    fn who_has_no_types_gets_back_what_was_sent() {
        let esp = Service {
            port: 0,
            protocol: Protocol::Esp,
        };
        let sent = request(esp, 0, [1, 2, 3, 4], None);
        let back = reply(esp, &sent).unwrap();
        assert!(is_answer(Protocol::Esp, &sent, &back));
        let mask = Service {
            port: 17,
            protocol: Protocol::Icmp,
        };
        let sent = request(mask, 5, [1, 2, 3, 4], None);
        let back = reply(mask, &sent).unwrap();
        assert_eq!(back[0], 18);
        assert_eq!(packet::checksum(&back), 0);
        assert!(is_answer(Protocol::Icmp, &sent, &back));
    }
}
