//! What the heads of traced packets say, in the terms of services and reports.

use super::result::KnownHeaders;
use crate::{
    firewall::nft::trace::{
        PacketHead, TraceDecision,
        flow::{FlowHead, FlowPacket, Payload},
    },
    model::icmp,
};

/// The flag RST of a TCP header, RFC 9293 section 3.1.
const RST: u8 = 0x04;
/// SCTP's chunk that refuses or ends an association, RFC 9260 section 3.3.7.
const ABORT: u8 = 6;

/// Whether this says no: an ICMP error, a TCP reset or an abort of SCTP.
pub(super) fn is_refusal(head: &FlowHead) -> bool {
    match head.payload {
        Payload::Tcp { flags, .. } => flags & RST != 0,
        Payload::Sctp { chunk, .. } => chunk == ABORT,
        Payload::Icmp { .. } => head.is_icmp_error(),
        Payload::Udp { .. } | Payload::Other(_) => false,
    }
}

/// Source and destination port, or what services and their clients have in place of them: of ICMP
/// the identifier and the type that opened the exchange, on the client's and on the server's side.
pub(super) fn ports(head: &FlowHead) -> (u16, u16) {
    match head.payload {
        Payload::Icmp { kind, id, .. } => match icmp::opened_by(head.protocol(), kind.into()) {
            Some(opening) => (opening, id),
            None => (id, kind.into()),
        },
        payload => payload.ports().unwrap_or((0, 0)),
    }
}

/// Addresses and ports as reports show them.
pub(super) fn headers(head: &FlowHead) -> KnownHeaders {
    let ports = head.payload.ports();
    KnownHeaders {
        source: head.source,
        source_port: ports.map(|(source, _)| source),
        destination: head.destination,
        destination_port: ports.map(|(_, destination)| destination),
    }
}

/// The packet's headers when they were last shown, for look-ups; none for ICMP errors.
pub(super) fn packet_head(packet: &FlowPacket) -> Option<PacketHead> {
    let head = packet.last;
    if head.is_icmp_error() {
        return None;
    }
    let (source_port, destination_port) = ports(&head);
    Some(PacketHead {
        source: head.source,
        destination: head.destination,
        protocol: head.protocol(),
        source_port,
        destination_port,
        tos: head.tos,
        ttl: head.ttl,
        length: head.length,
        mark: head.mark,
        iif: head.iif,
        oif: head.oif,
    })
}

/// A decision in words.
pub(super) fn decision(decision: &TraceDecision) -> String {
    match decision {
        TraceDecision::Continue => "continue".to_owned(),
        TraceDecision::Accept => "accept".to_owned(),
        TraceDecision::Drop => "drop".to_owned(),
        TraceDecision::Stolen => "stolen".to_owned(),
        TraceDecision::Queue(number) => format!("queue {number}"),
        TraceDecision::Jump(chain) => format!("jump {chain}"),
        TraceDecision::Goto(chain) => format!("goto {chain}"),
        TraceDecision::Return => "return".to_owned(),
        TraceDecision::Other(code) => format!("verdict {code}"),
    }
}
