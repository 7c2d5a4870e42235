//! What of a service's end may be otherwise another time: rules that draw lots, count or remember,
//! and programs of the router that the lab has not.

use super::{
    evidence::{Clerk, EvidenceError, packet_head},
    journey::Sighting,
    result::{Direction, RuleEvidence},
    way,
};
use crate::{
    firewall::{
        nft::{
            NftSocket,
            trace::{
                StoppedBy,
                flow::{FlowPacket, Payload},
            },
        },
        rule::Rule,
        ruletext::{RuleText, Source},
    },
    model::{IfName, icmp},
    run::{
        explain::{self, Watched},
        packet::Headers,
    },
};

/// The flags SYN and ACK of a TCP header, RFC 9293 section 3.1.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// SCTP's chunk that begins an association, RFC 9260 section 3.3.2.
const INIT: u8 = 1;

impl Clerk<'_> {
    /// Why the job's packets may end otherwise another time, in words; none where they do not.
    pub(super) fn doubt(
        &mut self,
        socket: &mut NftSocket,
        seen: &[Sighting],
    ) -> Result<Option<String>, EvidenceError> {
        let mut reasons: Vec<String> = Vec::new();
        let mut begun = false;
        for Sighting { packet, direction } in seen {
            let Some(direction) = *direction else {
                continue;
            };
            let is_first = direction == Direction::Request && !begun && begins(packet);
            begun |= is_first;
            let reason = self.doubtful(socket, packet, is_first)?;
            for reason in reason.into_iter().chain(self.forks(packet)) {
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
        }
        Ok((!reasons.is_empty()).then(|| reasons.join("; ")))
    }

    /// That routing has other next hops for a packet, in words: the kernel chooses by a hash with a
    /// secret, so that the real router may take another one.
    fn forks(&mut self, packet: &FlowPacket) -> Option<String> {
        // A packet that was stopped before routing has no way out yet.
        let head = self.routed_head(packet).filter(|head| head.oif != 0)?;
        let hops = self.observer.next_hops(&head).ok().filter(|n| *n > 1)?;
        Some(format!(
            "the route to {} has {hops} next hops, and which one the real router takes is not known",
            head.destination
        ))
    }

    fn doubtful(
        &mut self,
        socket: &mut NftSocket,
        packet: &FlowPacket,
        is_first: bool,
    ) -> Result<Option<String>, EvidenceError> {
        let (Some(head), Some(headers)) = (packet_head(packet), headers(packet)) else {
            return Ok(None);
        };
        let lost = match packet.stopped_by() {
            StoppedBy::After(hook) => Some(self.lost(packet, hook)?),
            _ => None,
        };
        let ingress = self.observer.name(packet.first.iif).cloned();
        let trail = packet.trail(head);
        let watched = Watched {
            headers,
            ingress: ingress.as_ref().map(IfName::as_str),
            trail: &trail,
            is_first,
            lost,
        };
        let (netns, tools) = (self.netns, self.tools);
        if is_first {
            let source = Source {
                netns,
                tools,
                socket: &mut *socket,
            };
            let taken = explain::proxy(source, &mut self.book, &watched)?;
            if let Some((port, rule)) = taken {
                return Ok(Some(proxied(port, &rule)));
            }
        }
        let source = Source {
            netns,
            tools,
            socket,
        };
        let varies = explain::varies(source, &mut self.book, &mut self.observer, &watched)?;
        Ok(varies)
    }
}

/// Whether a packet can be the first of its connection.
fn begins(packet: &FlowPacket) -> bool {
    match packet.first.payload {
        Payload::Tcp { flags, .. } => flags & (SYN | ACK) == SYN,
        Payload::Sctp { chunk, .. } => chunk == INIT,
        Payload::Icmp { kind, .. } => {
            icmp::reply_to(packet.first.protocol(), kind.into()).is_some()
        }
        Payload::Udp { .. } | Payload::Other(_) => true,
    }
}

fn headers(packet: &FlowPacket) -> Option<Headers> {
    let first = packet.first;
    if first.is_icmp_error() {
        return None;
    }
    let (source_port, destination_port) = way::ports(&first);
    Some(Headers {
        source: first.source,
        destination: first.destination,
        protocol: first.protocol(),
        source_port,
        destination_port,
        tos: first.tos,
        ttl: first.ttl,
    })
}

/// What is to be said of a packet that TPROXY takes where a program listens.
pub(super) fn proxied(port: Option<u16>, rule: &RuleText) -> String {
    let port = port.map_or_else(|| "its own port".to_owned(), |port| format!("port {port}"));
    format!(
        "it ends on the router itself, taken by TPROXY to {port} by {rule}, if a program listens \
         there; the lab has none"
    )
}

/// Why a rule of iptables-legacy that stopped a packet may not stop the next one.
pub(super) fn of_legacy(rule: &RuleEvidence) -> Option<String> {
    let parsed = Rule::of(&rule.rule);
    let caveat = parsed.caveat().filter(|caveat| caveat.may_be_own_doing())?;
    Some(format!("{caveat} on {}", rule.rule))
}
