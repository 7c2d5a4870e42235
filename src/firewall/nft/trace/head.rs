//! The headers of a traced packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::event::TraceEvent;
use crate::{
    firewall::{TagSpace, layout, nft::wire::array},
    model::Protocol,
};

/// A packet as a router's own look-up sees it at some point of its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketHead {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, possibly rewritten by now.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Source port.
    pub source_port: u16,
    /// Destination port, possibly rewritten by now.
    pub destination_port: u16,
    /// TOS or traffic class, the whole octet.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Length of the IP packet in bytes.
    pub length: u32,
    /// Firewall mark.
    pub mark: u32,
    /// Number of the interface it came in by; 0 where that is not known.
    pub iif: u32,
    /// Number of the interface it is to leave by; 0 where that is not known.
    pub oif: u32,
}

impl PacketHead {
    /// The headers that came with an event, and the tag in them; none when they are not those of
    /// a probe of which enough is there.
    pub(super) fn of(event: &TraceEvent<'_>, tags: TagSpace) -> Option<(Self, u32)> {
        let (network, transport) = (event.network?, event.transport?);
        let ip = Ip::parse(network)?;
        let protocol = Protocol::of(ip.protocol);
        let tag = u32::from_be_bytes(array(transport, layout::tag_offset(protocol) as usize)?);
        let ports = layout::ports_offset(protocol) as usize;
        let head = Self {
            source: ip.source,
            destination: ip.destination,
            protocol,
            source_port: u16::from_be_bytes(array(transport, ports)?),
            destination_port: u16::from_be_bytes(array(transport, ports + 2)?),
            tos: ip.tos,
            ttl: ip.ttl,
            length: ip.length,
            mark: event.mark,
            iif: event.iif,
            oif: event.oif,
        };
        Some((head, tags.index(tag)?))
    }
}

/// What an IP header says.
pub(super) struct Ip {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// The number of the next header.
    pub(super) protocol: u8,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) length: u32,
}

impl Ip {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Some(Self {
                source: Ipv4Addr::from(array::<4>(bytes, 12)?).into(),
                destination: Ipv4Addr::from(array::<4>(bytes, 16)?).into(),
                protocol: *bytes.get(9)?,
                tos: *bytes.get(1)?,
                ttl: *bytes.get(8)?,
                length: u16::from_be_bytes(array(bytes, 2)?).into(),
            }),
            6 => Some(Self {
                source: Ipv6Addr::from(array::<16>(bytes, 8)?).into(),
                destination: Ipv6Addr::from(array::<16>(bytes, 24)?).into(),
                protocol: *bytes.get(6)?,
                tos: (u16::from_be_bytes(array(bytes, 0)?) >> 4) as u8,
                ttl: *bytes.get(7)?,
                length: 40 + u32::from(u16::from_be_bytes(array(bytes, 4)?)),
            }),
            _ => None,
        }
    }
}
