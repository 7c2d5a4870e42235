//! Probes as bytes: one IP packet per service, with valid checksums, looking like the first
//! packet that a Linux client would send.
//!
//! A firewall that checks options, lengths, windows or checksums must treat a probe as it treats
//! the real thing: a SYN carries MSS, SACK, timestamps and window scale in Linux's order, and
//! fragments are forbidden as path MTU discovery does.

use std::net::IpAddr;

use crate::{
    firewall::TagSpace,
    model::{Dscp, Protocol, Service},
};

/// What all probes of a job to one destination have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSpec {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// DSCP that the router's own rules see.
    pub dscp: Dscp,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The job's tags.
    pub tags: TagSpace,
}

/// Packets of one size, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packets {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// Length of each packet in bytes.
    pub size: usize,
}

const TCP_OPTIONS: [u8; 20] = [
    2, 4, 0x05, 0xb4, // MSS 1460
    4, 2, // SACK permitted
    8, 10, 0, 0, 0, 1, 0, 0, 0, 0, // timestamps
    1, // no operation
    3, 3, 7, // window scale 7
];
const TCP_LENGTH: usize = 20 + TCP_OPTIONS.len();
const TCP_WINDOW: u16 = 64_240;
const TCP_SYN: u8 = 0x02;
/// UDP header, tag, and padding to what a small DNS query has.
const UDP_LENGTH: usize = 8 + 32;

/// Length in bytes of a probe of this protocol, with its IP header.
#[must_use]
pub fn length(spec: &ProbeSpec, protocol: Protocol) -> usize {
    let ip = if spec.destination.is_ipv4() { 20 } else { 40 };
    ip + transport_length(protocol)
}

fn transport_length(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => TCP_LENGTH,
        Protocol::Udp => UDP_LENGTH,
    }
}

/// The probes for services of one protocol, given as (index, service).
#[must_use]
pub fn probes(
    spec: &ProbeSpec,
    protocol: Protocol,
    services: impl ExactSizeIterator<Item = (u32, Service)>,
) -> Packets {
    let payload = transport_length(protocol);
    let mut head = ip_header(spec, protocol, payload);
    let ip_length = head.len();
    let pseudo = pseudo_header_sum(spec, protocol, payload);
    head.resize(ip_length + payload, 0);
    let mut bytes = Vec::with_capacity(head.len() * services.len());
    for (index, service) in services {
        let segment = &mut head[ip_length..];
        match protocol {
            Protocol::Tcp => fill_tcp(segment, spec, index, service.port, pseudo),
            Protocol::Udp => fill_udp(segment, spec, index, service.port, pseudo),
        }
        bytes.extend_from_slice(&head);
    }
    Packets {
        bytes,
        size: head.len(),
    }
}

fn fill_tcp(segment: &mut [u8], spec: &ProbeSpec, index: u32, port: u16, pseudo: u32) {
    segment[0..2].copy_from_slice(&spec.source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[4..8].copy_from_slice(&spec.tags.tag(index).to_be_bytes());
    segment[12] = ((TCP_LENGTH / 4) as u8) << 4;
    segment[13] = TCP_SYN;
    segment[14..16].copy_from_slice(&TCP_WINDOW.to_be_bytes());
    segment[16..18].fill(0);
    segment[20..].copy_from_slice(&TCP_OPTIONS);
    let checksum = finish(sum(segment, pseudo));
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
}

fn fill_udp(segment: &mut [u8], spec: &ProbeSpec, index: u32, port: u16, pseudo: u32) {
    segment[0..2].copy_from_slice(&spec.source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[4..6].copy_from_slice(&(UDP_LENGTH as u16).to_be_bytes());
    segment[6..8].fill(0);
    segment[8..12].copy_from_slice(&spec.tags.tag(index).to_be_bytes());
    // A checksum of 0 means "none" in UDP; its complement says the same number (RFC 768).
    let checksum = match finish(sum(segment, pseudo)) {
        0 => u16::MAX,
        checksum => checksum,
    };
    segment[6..8].copy_from_slice(&checksum.to_be_bytes());
}

/// The IP header of packets with `payload` bytes behind it.
fn ip_header(spec: &ProbeSpec, protocol: Protocol, payload: usize) -> Vec<u8> {
    match (spec.source, spec.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0; 20];
            header[0] = 0x45;
            header[1] = spec.dscp.tos();
            header[2..4].copy_from_slice(&((20 + payload) as u16).to_be_bytes());
            header[4..6].copy_from_slice(&spec.tags.ipv4_id().to_be_bytes());
            header[6] = 0x40; // don't fragment
            header[8] = spec.ttl;
            header[9] = protocol.number();
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let checksum = finish(sum(&header, 0));
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
        (source, destination) => {
            let label = spec.tags.flow_label();
            let first = 6 << 28 | u32::from(spec.dscp.tos()) << 20 | label;
            let mut header = first.to_be_bytes().to_vec();
            header.extend_from_slice(&(payload as u16).to_be_bytes());
            header.extend_from_slice(&[protocol.number(), spec.ttl]);
            header.extend_from_slice(&octets(source));
            header.extend_from_slice(&octets(destination));
            header
        }
    }
}

/// The sum over the pseudo header, RFC 9293 section 3.1 and RFC 8200 section 8.1.
fn pseudo_header_sum(spec: &ProbeSpec, protocol: Protocol, payload: usize) -> u32 {
    let (source, destination) = (octets(spec.source), octets(spec.destination));
    let fixed = u32::from(protocol.number()) + payload as u32;
    sum(&destination, sum(&source, fixed))
}

/// The address as it stands in the header.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Adds 16-bit words, RFC 1071; `bytes` has an even length.
fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks_exact(2).fold(start, |sum, w| {
        sum + u32::from(u16::from_be_bytes([w[0], w[1]]))
    })
}

fn finish(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(source: &str, destination: &str) -> ProbeSpec {
        ProbeSpec {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port: 40_000,
            dscp: Dscp::DEFAULT,
            ttl: 64,
            tags: TagSpace::new(Dscp::new(40).unwrap(), 0xdead_beef_0123_4567),
        }
    }

    fn make(spec: &ProbeSpec, protocol: Protocol, ports: std::ops::Range<u16>) -> Packets {
        let list: Vec<_> = (0u32..)
            .zip(ports.map(|port| Service { port, protocol }))
            .collect();
        probes(spec, protocol, list.into_iter())
    }

    /// A receiver's view: the sum over pseudo header and segment must be all ones.
    fn transport_sum_is_valid(
        spec: &ProbeSpec,
        protocol: Protocol,
        packet: &[u8],
        ip: usize,
    ) -> bool {
        let pseudo = pseudo_header_sum(spec, protocol, packet.len() - ip);
        finish(sum(&packet[ip..], pseudo)) == 0
    }

    #[test]
    fn every_probe_has_valid_checksums_its_own_tag_and_port() {
        for (spec, ip) in [
            (spec("10.1.2.3", "192.0.2.200"), 20),
            (spec("2001:db8::1", "2001:db8:ffff::2"), 40),
        ] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let packets = make(&spec, protocol, 1..3000);
                for (index, packet) in packets.bytes.chunks_exact(packets.size).enumerate() {
                    assert!(transport_sum_is_valid(&spec, protocol, packet, ip));
                    let tag = ip + if protocol == Protocol::Tcp { 4 } else { 8 };
                    let tag = u32::from_be_bytes(packet[tag..tag + 4].try_into().unwrap());
                    assert_eq!(spec.tags.index(tag), Some(index as u32));
                    let port = u16::from_be_bytes(packet[ip + 2..ip + 4].try_into().unwrap());
                    assert_eq!(usize::from(port), index + 1);
                }
            }
        }
    }

    #[test]
    fn an_ipv4_header_is_valid_and_marked() {
        let spec = spec("10.1.2.3", "192.0.2.200");
        let packet = make(&spec, Protocol::Tcp, 80..81).bytes;
        assert_eq!(packet.len(), 60);
        assert_eq!(finish(sum(&packet[..20], 0)), 0);
        assert_eq!(packet[4..6], spec.tags.ipv4_id().to_be_bytes());
        assert_eq!(packet[6..8], [0x40, 0]);
    }

    #[test]
    fn an_ipv6_header_carries_class_and_label() {
        let dscp = Dscp::new(46).unwrap();
        let spec = ProbeSpec {
            dscp,
            ..spec("2001:db8::1", "2001:db8::2")
        };
        let packet = make(&spec, Protocol::Udp, 53..54).bytes;
        let first = u32::from_be_bytes(packet[..4].try_into().unwrap());
        assert_eq!(first >> 28, 6);
        assert_eq!(first >> 20 & 0xff, 46 << 2);
        assert_eq!(first & 0xf_ffff, spec.tags.flow_label());
        assert_eq!(packet[4..6], 40u16.to_be_bytes());
    }
}
