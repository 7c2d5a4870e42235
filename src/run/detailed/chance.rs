//! What of a service's end may be otherwise another time: rules that draw lots, count or remember,
//! and programs of the router that the lab has not.

use std::net::IpAddr;

use super::{
    evidence::{Clerk, EvidenceError},
    head::{self, packet_head},
    journey::Sighting,
    judge::Proxied,
    result::{Direction, RuleEvidence},
};
use crate::{
    firewall::{
        Caveat,
        nft::{
            NftSocket,
            trace::{
                PacketHead, StoppedBy, Trail,
                flow::{FlowPacket, Payload},
            },
        },
        rule::{Field, OpenPorts, Packet, PortChoice, Rule},
        ruletext::RuleSource,
    },
    model::{IfName, Protocol, icmp},
    netlink::object::Family,
    run::{
        chosen_port::ChosenPorts,
        explain::{self, Watched},
        outside::OutsideReason,
        packet::Headers,
        source_port,
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
        let (mut begun, mut answered) = (false, false);
        for Sighting { packet, direction } in seen {
            let Some(direction) = *direction else {
                continue;
            };
            let is_first = direction == Direction::Request && !begun && begins(packet);
            begun |= is_first;
            let is_answer = direction == Direction::Answer && !answered;
            answered |= is_answer;
            let open = match is_first || is_answer {
                true => self.open_ports(packet, direction),
                false => OpenPorts::None,
            };
            let translated = matches!(open, OpenPorts::Translated(_));
            let reason = self.doubtful(socket, packet, (is_first, translated))?;
            let reason = reason.into_iter();
            let by_port = self.by_policy_rule(packet, open).into_iter();
            let by_port = by_port.chain(self.by_open_port(socket, packet, open)?);
            let by_port = by_port.chain(self.by_port_set(packet, open));
            for reason in reason.chain(self.forks(packet)).chain(by_port) {
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
        let hops = self
            .observer
            .next_hops(&head)
            .ok()
            .filter(|n| n.len() > 1)?;
        let settled = |dev: &IfName| self.settled.contains(dev);
        if hops.iter().all(|hop| hop.dev.as_ref().is_some_and(settled)) {
            return None;
        }
        let hops = hops.len();
        Some(format!(
            "the route to {} has {hops} next hops, and which one the real router takes is not known",
            head.destination
        ))
    }

    /// Which ports of the client's side the first packet of a direction may have had as well.
    fn open_ports(&self, packet: &FlowPacket, direction: Direction) -> OpenPorts {
        let is_request = direction == Direction::Request;
        // What is translated back is so before rules ask for it.
        let head = if is_request {
            packet.first
        } else {
            packet.last
        };
        if head.is_icmp_error() || !head.protocol().has_ports() {
            return OpenPorts::None;
        }
        let (sport, dport) = head::ports(&head);
        let (client, server) = match is_request {
            true => ((head.source, sport), (head.destination, dport)),
            false => ((head.destination, dport), (head.source, sport)),
        };
        let open = match self.chosen_ports(client, server, head.protocol()) {
            Some(chosen) if chosen.drawn || self.any_port => OpenPorts::Translated(chosen.ports),
            _ => OpenPorts::as_sent(self.any_port),
        };
        match open {
            open if is_request => open,
            OpenPorts::Translated(ports) => OpenPorts::Answered(ports),
            OpenPorts::Clients => OpenPorts::Answered(PortChoice::OF_CLIENTS),
            open => open,
        }
    }

    /// What routers chose the client's port from, as it is at this place; none where it is its own.
    fn chosen_ports(
        &self,
        (client, port): (IpAddr, u16),
        (server, service): (IpAddr, u16),
        protocol: Protocol,
    ) -> Option<ChosenPorts> {
        let mut packet = Packet::of(Family::of(server)).with(Field::Protocol, protocol.number());
        if !self.choosing.translate_destinations() {
            packet = packet
                .with_address(Field::Destination, server)
                .with(Field::DestinationPort, service);
        }
        // As the client sent it, while it has the client's address.
        let by_rule = (client != self.client).then(|| self.choosing.about(&packet, client, port));
        let unclear = self.any_port && !PortChoice::OF_CLIENTS.has(port);
        by_rule.flatten().or(unclear.then_some(ChosenPorts {
            ports: PortChoice::OF_ROUTERS,
            drawn: true,
        }))
    }

    /// That a policy rule sends the packet another way with another of its open ports, in words.
    fn by_policy_rule(&mut self, packet: &FlowPacket, open: OpenPorts) -> Option<String> {
        let head = self.routed_head(packet)?;
        if open == OpenPorts::None {
            return None;
        }
        self.observer.by_open_port(&head, open).ok().flatten()
    }

    /// That a rule would do otherwise to an answer to another port of the client's side, or to a request
    /// to which a router has given a port.
    fn by_open_port(
        &mut self,
        socket: &mut NftSocket,
        packet: &FlowPacket,
        open: OpenPorts,
    ) -> Result<Option<String>, EvidenceError> {
        // Rules on ports as clients send them are left open wherever they are read.
        let elsewhere = matches!(open, OpenPorts::None | OpenPorts::Clients);
        let (Some(head), Some(headers)) = (packet_head(packet), headers(packet)) else {
            return Ok(None);
        };
        if elsewhere {
            return Ok(None);
        }
        let passed = matches!(packet.stopped_by(), StoppedBy::Nothing(_));
        let seen = self.as_asked(packet, head, headers);
        let watched = seen.watched(false, None);
        let source = RuleSource {
            netns: self.netns,
            tools: self.tools,
            socket,
        };
        let book = match open {
            OpenPorts::Translated(_) => &mut self.book_of_translated,
            _ => &mut self.book,
        };
        let rule = explain::by_open_port(source, book, &watched, (open, passed))?;
        Ok(rule.map(|rule| match open {
            OpenPorts::Answered(PortChoice::OF_CLIENTS) => {
                format!("depends on the client's port, and --sport asks about one: {rule}")
            }
            _ => format!("depends on the port that a router chose: {rule}"),
        }))
    }

    /// The rule that asks a set for a port of the client's side, in words.
    fn by_port_set(&self, packet: &FlowPacket, open: OpenPorts) -> Option<String> {
        let head = packet_head(packet)?;
        let answers = matches!(open, OpenPorts::Answered(_));
        let (field, port) = match answers {
            true => (Field::SourcePort, head.source_port),
            false => (Field::DestinationPort, head.destination_port),
        };
        let about = Packet::of(Family::of(head.destination))
            .with(Field::Protocol, packet.first.protocol().number())
            .with_address(Field::Source, head.source)
            .with_address(Field::Destination, head.destination)
            .with(field, port);
        let rule = source_port::by_set(self.asking_port_sets, &about, open)?;
        Some(Caveat::SourcePort(rule.clone()).to_string())
    }

    /// The rule by which nft hands the request to a program of the router. Where none listens, the
    /// rule lets packets go on.
    pub(super) fn proxied(
        &mut self,
        socket: &mut NftSocket,
        seen: &[Sighting],
    ) -> Result<Option<Proxied>, EvidenceError> {
        let first = seen
            .iter()
            .filter(|seen| seen.direction == Some(Direction::Request))
            .map(|seen| &seen.packet)
            .find(|packet| begins(packet));
        let Some((packet, (head, headers))) =
            first.and_then(|p| Some((p, packet_head(p).zip(headers(p))?)))
        else {
            return Ok(None);
        };
        let seen = self.as_asked(packet, head, headers);
        let watched = seen.watched(true, None);
        let source = RuleSource {
            netns: self.netns,
            tools: self.tools,
            socket,
        };
        let taken = explain::proxy(source, &mut self.book, &watched)?;
        Ok(taken.map(|(port, rule)| Proxied {
            port,
            rule: rule.to_string(),
            lets_go: true,
        }))
    }

    fn doubtful(
        &mut self,
        socket: &mut NftSocket,
        packet: &FlowPacket,
        (is_first, translated): (bool, bool),
    ) -> Result<Option<String>, EvidenceError> {
        let (Some(head), Some(headers)) = (packet_head(packet), headers(packet)) else {
            return Ok(None);
        };
        let lost = match packet.stopped_by() {
            StoppedBy::After(hook) => Some(self.lost(packet, hook)?),
            _ => None,
        };
        let seen = self.as_asked(packet, head, headers);
        let watched = seen.watched(is_first, lost);
        let source = RuleSource {
            netns: self.netns,
            tools: self.tools,
            socket,
        };
        let book = match translated {
            true => &mut self.book_of_translated,
            false => &mut self.book,
        };
        let varies = explain::varies(source, (book, &mut self.sets), &mut self.observer, &watched)?;
        Ok(varies)
    }

    fn as_asked(&mut self, packet: &FlowPacket, head: PacketHead, headers: Headers) -> Seen {
        Seen {
            headers,
            ingress: self.observer.name(packet.first.iif).cloned(),
            trail: packet.trail(head),
        }
    }
}

/// A packet as rules are asked about it.
struct Seen {
    headers: Headers,
    ingress: Option<IfName>,
    trail: Trail,
}

impl Seen {
    fn watched(&self, is_first: bool, lost: Option<OutsideReason>) -> Watched<'_> {
        Watched {
            headers: self.headers,
            ingress: self.ingress.as_ref().map(IfName::as_str),
            trail: &self.trail,
            is_first,
            lost,
        }
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
    let (source_port, destination_port) = head::ports(&first);
    Some(Headers {
        source: first.source,
        destination: first.destination,
        protocol: first.protocol(),
        source_port,
        destination_port,
        tos: first.tos,
        ttl: first.ttl,
        size: None,
        // It is a packet of a real connection, which came through the routers before.
        options_open: false,
        chosen: None,
    })
}

/// Why a rule of iptables-legacy that stopped a packet may not stop the next one.
pub(super) fn of_legacy(rule: &RuleEvidence) -> Option<String> {
    let parsed = Rule::of(&rule.rule);
    let caveat = parsed.caveat().filter(|caveat| caveat.may_be_own_doing())?;
    Some(format!("{caveat} on {}", rule.rule))
}

/// Rules of iptables-legacy that draw lots about packets like those that were seen, whose other ways
/// nobody here thinks out.
pub(super) fn of_legacy_lots<'a>(
    mut rules: impl Iterator<Item = &'a str>,
    seen: &[Sighting],
) -> Option<String> {
    let packets = seen.iter().filter_map(|seen| headers(&seen.packet));
    let packets: Vec<Packet> = packets.map(|headers| like(&headers)).collect();
    rules.find_map(|text| {
        let rule = Rule::of(text);
        let caveat = rule.caveat().filter(|c| matches!(c, Caveat::Random(_)))?;
        let concerned = packets.is_empty() || packets.iter().any(|packet| rule.concerns(packet));
        concerned.then(|| format!("{caveat} on {text} (iptables-legacy)"))
    })
}

/// Packets of the same protocol: what else rules see of one, rewriting changes.
fn like(headers: &Headers) -> Packet {
    Packet::of(Family::of(headers.destination)).with(Field::Protocol, headers.protocol.number())
}
