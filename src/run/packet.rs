//! Probes as bytes: one IP packet each, with valid checksums, looking like the first packet that
//! a Linux client would send.
//!
//! A firewall that checks options, lengths, windows or checksums must treat a probe as it treats
//! the real thing: a SYN carries MSS, SACK, timestamps and window scale in Linux's order, and
//! fragments are forbidden as path MTU discovery does.

use std::net::IpAddr;

use crate::{
    firewall::{TagSpace, rule::OpenPorts},
    model::{Protocol, Service},
    run::{chosen_port::ChosenPorts, payload},
};

/// What the headers of a probe say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TOS octet or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Length of the IP packet in bytes; none for what its protocol has at least.
    pub size: Option<u16>,
    /// Whether routers of the lab rewrite TCP's options. Nothing tells what a probe has behind the first
    /// router then: the next one is sent a probe as the job made it.
    pub options_open: bool,
    /// What routers chose the source port from; none where it is the sender's.
    pub chosen: Option<ChosenPorts>,
}

impl Headers {
    /// Which source ports the packet may have had as well, where a client may have `any`.
    #[must_use]
    pub(in crate::run) fn open_ports(&self, any: bool) -> OpenPorts {
        let chosen = self.chosen.filter(|chosen| chosen.drawn || any);
        chosen.map_or_else(
            || OpenPorts::as_sent(any),
            |chosen| OpenPorts::Translated(chosen.ports),
        )
    }

    /// The service that the destination port stands for.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn service(&self) -> Service {
        Service {
            port: self.destination_port,
            protocol: self.protocol,
        }
    }
}

/// A packet that is sent to see what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Its number within the job, which its tag carries.
    pub index: u32,
    /// What its headers say.
    pub headers: Headers,
}

/// Where the one with this index is among `all`, which are in ascending order of their indexes.
#[must_use]
pub fn position<T>(all: &[T], index: u32, of: impl Fn(&T) -> u32) -> Option<usize> {
    // Mostly all services are asked everywhere.
    let guess = index as usize;
    match all.get(guess) {
        Some(there) if of(there) == index => Some(guess),
        _ => all.binary_search_by_key(&index, of).ok(),
    }
}

/// Packets of one size and to one destination, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packets {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// Length of each packet in bytes.
    pub size: usize,
    /// Where all of them go.
    pub destination: IpAddr,
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
pub(super) const TCP_SYN: u8 = 0x02;
/// UDP header, tag, and padding to what a small DNS query has.
const UDP_LENGTH: usize = 8 + 32;

/// Length in bytes of a probe with these headers, the IP header included.
#[must_use]
pub fn length(headers: &Headers) -> usize {
    ip_length(headers.destination) + transport_length(headers)
}

/// Length in bytes of the IP header of packets to `destination`.
pub(in crate::run) fn ip_length(destination: IpAddr) -> usize {
    if destination.is_ipv4() { 20 } else { 40 }
}

fn transport_length(headers: &Headers) -> usize {
    let least = match headers.protocol {
        Protocol::Tcp => TCP_LENGTH,
        Protocol::Udp => UDP_LENGTH,
        other => payload::length(other),
    };
    let size = headers.size.map_or(0, usize::from);
    size.saturating_sub(ip_length(headers.destination))
        .max(least)
}

/// The probes as packets with the job's `tags`, in their order: each time the size or the
/// destination changes, new [`Packets`] begin. `frame` goes before each, the header of a link for
/// example.
#[must_use]
pub fn packets(tags: TagSpace, probes: &[Probe], frame: &[u8]) -> Vec<Packets> {
    let mut all: Vec<Packets> = Vec::new();
    for alike in probes.chunk_by(|a, b| alike(&a.headers, &b.headers)) {
        let Some(first) = alike.first() else { continue };
        let mut template = Template::new(tags, first.headers, frame);
        let (size, destination) = (template.packet.len(), first.headers.destination);
        let begins = |last: &Packets| (last.size, last.destination) != (size, destination);
        if all.last().is_none_or(begins) {
            all.push(Packets {
                bytes: Vec::with_capacity(size * alike.len()),
                size,
                destination,
            });
        }
        let Some(last) = all.last_mut() else { continue };
        for probe in alike {
            last.bytes.extend_from_slice(template.fill(probe));
        }
    }
    all
}

/// Whether the packets differ in ports and tags only.
fn alike(a: &Headers, b: &Headers) -> bool {
    let rest = |headers: &Headers| Headers {
        source_port: 0,
        destination_port: 0,
        ..*headers
    };
    rest(a) == rest(b)
}

/// A packet to which ports, tag and checksum are yet to be added.
struct Template {
    tags: TagSpace,
    packet: Vec<u8>,
    /// Where the transport header begins.
    transport: usize,
    /// The sum over the pseudo header.
    pseudo: u32,
}

impl Template {
    fn new(tags: TagSpace, headers: Headers, frame: &[u8]) -> Self {
        let payload = transport_length(&headers);
        let mut packet = frame.to_vec();
        packet.extend(ip_header(tags, &headers, payload));
        let transport = packet.len();
        packet.resize(transport + payload, 0);
        Self {
            tags,
            packet,
            transport,
            pseudo: pseudo_header_sum(&headers, payload),
        }
    }

    /// The packet of one probe.
    fn fill(&mut self, probe: &Probe) -> &[u8] {
        let segment = &mut self.packet[self.transport..];
        let tag = self.tags.tag(probe.index);
        match probe.headers.protocol {
            Protocol::Tcp => fill_tcp(segment, &probe.headers, tag, self.pseudo),
            Protocol::Udp => fill_udp(segment, &probe.headers, tag, self.pseudo),
            other => {
                let Headers {
                    source_port,
                    destination_port,
                    ..
                } = probe.headers;
                let start = |pseudo| if pseudo { self.pseudo } else { 0 };
                let checksum = |bytes: &[u8], pseudo| finish(sum(bytes, start(pseudo)));
                payload::fill(
                    segment,
                    other,
                    (source_port, destination_port),
                    tag,
                    checksum,
                );
            }
        }
        &self.packet
    }
}

fn fill_tcp(segment: &mut [u8], headers: &Headers, tag: u32, pseudo: u32) {
    segment[0..2].copy_from_slice(&headers.source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&headers.destination_port.to_be_bytes());
    segment[4..8].copy_from_slice(&tag.to_be_bytes());
    segment[12] = ((TCP_LENGTH / 4) as u8) << 4;
    segment[13] = TCP_SYN;
    segment[14..16].copy_from_slice(&TCP_WINDOW.to_be_bytes());
    segment[16..18].fill(0);
    segment[20..TCP_LENGTH].copy_from_slice(&TCP_OPTIONS);
    let checksum = finish(sum(segment, pseudo));
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
}

fn fill_udp(segment: &mut [u8], headers: &Headers, tag: u32, pseudo: u32) {
    segment[0..2].copy_from_slice(&headers.source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&headers.destination_port.to_be_bytes());
    let length = segment.len() as u16;
    segment[4..6].copy_from_slice(&length.to_be_bytes());
    segment[6..8].fill(0);
    segment[8..12].copy_from_slice(&tag.to_be_bytes());
    // A checksum of 0 means "none" in UDP; its complement says the same number (RFC 768).
    let checksum = match finish(sum(segment, pseudo)) {
        0 => u16::MAX,
        checksum => checksum,
    };
    segment[6..8].copy_from_slice(&checksum.to_be_bytes());
}

/// The IP header of packets with `payload` bytes behind it.
fn ip_header(tags: TagSpace, headers: &Headers, payload: usize) -> Vec<u8> {
    match (headers.source, headers.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0; 20];
            header[0] = 0x45;
            header[1] = headers.tos;
            header[2..4].copy_from_slice(&((20 + payload) as u16).to_be_bytes());
            header[4..6].copy_from_slice(&tags.ipv4_id().to_be_bytes());
            header[6] = 0x40; // don't fragment
            header[8] = headers.ttl;
            header[9] = headers.protocol.number();
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let checksum = finish(sum(&header, 0));
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
        (source, destination) => {
            let label = tags.flow_label();
            let first = 6 << 28 | u32::from(headers.tos) << 20 | label;
            let mut header = first.to_be_bytes().to_vec();
            header.extend_from_slice(&(payload as u16).to_be_bytes());
            header.extend_from_slice(&[headers.protocol.number(), headers.ttl]);
            header.extend_from_slice(&octets(source));
            header.extend_from_slice(&octets(destination));
            header
        }
    }
}

/// The sum over the pseudo header, RFC 9293 section 3.1 and RFC 8200 section 8.1.
fn pseudo_header_sum(headers: &Headers, payload: usize) -> u32 {
    let (source, destination) = (octets(headers.source), octets(headers.destination));
    let fixed = u32::from(headers.protocol.number()) + payload as u32;
    sum(&destination, sum(&source, fixed))
}

/// The address as it stands in the header.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The checksum of the internet over `bytes`, RFC 1071.
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    finish(sum(bytes, 0))
}

/// Adds 16-bit words, RFC 1071; a last byte alone is the upper half of one.
fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, word| {
        let low = word.get(1).copied().unwrap_or(0);
        sum + u32::from(u16::from_be_bytes([word[0], low]))
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
    use crate::{firewall::layout, model::Dscp};

    fn tags() -> TagSpace {
        TagSpace::new(Dscp::new(40).unwrap(), 0xdead_beef_0123_4567)
    }

    fn headers(source: &str, destination: &str) -> Headers {
        Headers {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: Protocol::Tcp,
            source_port: 40_000,
            destination_port: 80,
            tos: 0,
            ttl: 64,
            size: None,
            options_open: false,
            chosen: None,
        }
    }

    fn to_ports(headers: &Headers, ports: std::ops::Range<u16>) -> Vec<Probe> {
        let one = |(index, destination_port)| Probe {
            index,
            headers: Headers {
                destination_port,
                ..*headers
            },
        };
        (0u32..).zip(ports).map(one).collect()
    }

    /// A receiver's view: the sum over pseudo header and segment must be all ones.
    fn transport_sum_is_valid(headers: &Headers, packet: &[u8], ip: usize) -> bool {
        let pseudo = pseudo_header_sum(headers, packet.len() - ip);
        finish(sum(&packet[ip..], pseudo)) == 0
    }

    #[test]
    fn every_probe_has_valid_checksums_its_own_tag_and_port() {
        for (headers, ip) in [
            (headers("10.1.2.3", "192.0.2.200"), 20),
            (headers("2001:db8::1", "2001:db8:ffff::2"), 40),
        ] {
            let own = if ip == 20 {
                Protocol::Icmp
            } else {
                Protocol::Icmpv6
            };
            for protocol in [Protocol::Tcp, Protocol::Udp, own] {
                let headers = Headers {
                    protocol,
                    ..headers
                };
                let all = packets(tags(), &to_ports(&headers, 1..3000), &[]);
                assert_eq!(all.len(), 1);
                for (index, packet) in all[0].bytes.chunks_exact(all[0].size).enumerate() {
                    let valid = match protocol {
                        Protocol::Icmp => finish(sum(&packet[ip..], 0)) == 0,
                        _ => transport_sum_is_valid(&headers, packet, ip),
                    };
                    assert!(valid, "{protocol}");
                    let tag = ip + layout::tag_offset(protocol) as usize;
                    let tag = u32::from_be_bytes(packet[tag..tag + 4].try_into().unwrap());
                    assert_eq!(tags().index(tag), Some(index as u32));
                    let at = ip + layout::ports_offset(protocol) as usize + 2;
                    let port = u16::from_be_bytes(packet[at..at + 2].try_into().unwrap());
                    assert_eq!(usize::from(port), index + 1);
                }
            }
        }
    }

    #[test]
    fn a_packet_is_as_long_as_asked_and_its_checksums_hold() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            for size in [400, 1401] {
                let headers = Headers {
                    protocol,
                    size: Some(size),
                    ..headers("10.1.2.3", "192.0.2.200")
                };
                let packet = &packets(tags(), &to_ports(&headers, 80..81), &[])[0].bytes;
                assert_eq!(packet.len(), usize::from(size));
                assert_eq!(packet[2..4], size.to_be_bytes());
                let valid = match protocol {
                    Protocol::Icmp => finish(sum(&packet[20..], 0)) == 0,
                    _ => transport_sum_is_valid(&headers, packet, 20),
                };
                assert!(valid, "{protocol} {size}");
            }
        }
    }

    #[test]
    fn each_probe_has_its_own_addresses_and_ttl() {
        let sent = [
            headers("10.1.2.3", "192.0.2.200"),
            Headers {
                source: "10.1.2.4".parse().unwrap(),
                ttl: 9,
                tos: 0x20,
                ..headers("10.1.2.3", "192.0.2.200")
            },
            headers("10.1.2.3", "192.0.2.201"),
        ];
        let probes: Vec<Probe> = (0u32..)
            .zip(sent)
            .map(|(index, headers)| Probe { index, headers })
            .collect();
        let all = packets(tags(), &probes, &[]);
        let destinations: Vec<_> = all.iter().map(|p| p.destination).collect();
        assert_eq!(destinations, [sent[0].destination, sent[2].destination]);
        let bytes: Vec<u8> = all.iter().flat_map(|p| p.bytes.clone()).collect();
        for (packet, headers) in bytes.chunks_exact(60).zip(&sent) {
            assert_eq!((packet[1], packet[8]), (headers.tos, headers.ttl));
            assert_eq!(packet[12..16], octets(headers.source)[..]);
            assert_eq!(packet[16..20], octets(headers.destination)[..]);
            assert_eq!(finish(sum(&packet[..20], 0)), 0);
            assert!(transport_sum_is_valid(headers, packet, 20));
        }
    }

    #[test]
    fn an_ipv4_header_is_valid_and_marked() {
        let probes = to_ports(&headers("10.1.2.3", "192.0.2.200"), 80..81);
        let packet = &packets(tags(), &probes, &[])[0].bytes;
        assert_eq!(packet.len(), 60);
        assert_eq!(finish(sum(&packet[..20], 0)), 0);
        assert_eq!(packet[4..6], tags().ipv4_id().to_be_bytes());
        assert_eq!(packet[6..8], [0x40, 0]);
    }

    #[test]
    fn an_ipv6_header_carries_class_and_label() {
        let headers = Headers {
            tos: 46 << 2,
            protocol: Protocol::Udp,
            ..headers("2001:db8::1", "2001:db8::2")
        };
        let packet = &packets(tags(), &to_ports(&headers, 53..54), &[])[0].bytes;
        let first = u32::from_be_bytes(packet[..4].try_into().unwrap());
        assert_eq!(first >> 28, 6);
        assert_eq!(first >> 20 & 0xff, 46 << 2);
        assert_eq!(first & 0xf_ffff, tags().flow_label());
        assert_eq!(packet[4..6], 40u16.to_be_bytes());
    }
}
