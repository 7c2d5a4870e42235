//! What a router does with answers whose request did not pass it.
//!
//! A server has a gateway of its own, and facts of routers do not say which. Where its link has
//! several, the answer may take another one than the request came by; that one has not seen the
//! connection begin, and rules that go by connections often drop what they take for no part of one.
//!
//! When a lab is made, routers are asked about answers of which little is known ([`unseen`]); a
//! detailed job knows all of its answer, and asks again ([`AnswerRules`]).

use std::{cell::LazyCell, collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    omission::{self, Filters, PossibleStop, StopQuery},
    topology::{Interface, InterfaceKind, Router, Topology},
};
use crate::{
    firewall::rule::{Field, Packet, Rule, TrackingState},
    model::{IfName, Protocol, RouterName},
    netlink::object::Family,
};

/// A rule or policy that stops answers of hosts on a router's link whose request it has not seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseen {
    /// The interface by which they come in.
    pub interface: IfName,
    /// Their family.
    pub family: Family,
    /// Their protocol: one of which connection tracking takes answers without a request for no
    /// connection, or UDP in place of all others, of which it takes them for a new one.
    pub protocol: Protocol,
    /// The rule or policy.
    pub stop: String,
}

/// What `router` stops of such answers, on each interface with a prefix.
#[must_use]
pub(super) fn unseen(router: &Router) -> Vec<Unseen> {
    if router.rulesets.is_empty() {
        return Vec::new();
    }
    let filters = LazyCell::new(|| Filters::of(&router.rulesets));
    let mut found = Vec::new();
    let hosts = |kind| kind == InterfaceKind::Ethernet;
    for interface in router.interfaces.iter().filter(|i| i.up && hosts(i.kind)) {
        for family in [Family::V4, Family::V6] {
            let nets = nets_of(interface, family);
            if nets.is_empty() {
                continue;
            }
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, echo(family)] {
                let state = state_without_request(protocol);
                let stopped = |state| {
                    let packet = answer(family, protocol, state, interface, &nets);
                    let mut hooks = HOOKS.into_iter();
                    hooks.find_map(|hook| filters.stop(hook, StopQuery::Packet(&packet)))
                };
                // What stops answers of connections that it has seen, too, is nobody's gateway.
                let stop = stopped(state).filter(|_| stopped(TrackingState::Established).is_none());
                found.extend(stop.map(|stop| Unseen {
                    interface: interface.name.clone(),
                    family,
                    protocol,
                    stop: stop.text,
                }));
            }
        }
    }
    found
}

/// The protocol of echo requests.
fn echo(family: Family) -> Protocol {
    match family {
        Family::V4 => Protocol::Icmp,
        Family::V6 => Protocol::Icmpv6,
    }
}

/// An answer of a host in one of `nets`, as it comes in by `interface`.
fn answer(
    family: Family,
    protocol: Protocol,
    state: TrackingState,
    interface: &Interface,
    nets: &[IpNet],
) -> Packet {
    let packet = Packet::of(family)
        .with(Field::Protocol, protocol.number())
        .with_state(state)
        .with_device(Field::Incoming, interface.name.as_str());
    nets.iter()
        .fold(with_kind(packet, protocol), |packet, net| {
            packet.with_address(Field::Source, *net)
        })
}

/// An answer of which all is known, as it comes to a router.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PassingAnswer<'a> {
    /// Its protocol.
    pub(crate) protocol: Protocol,
    /// Its source, the server's address at this place.
    pub(crate) source: (IpAddr, Option<u16>),
    /// Its destination, the client's address at this place.
    pub(crate) destination: (IpAddr, Option<u16>),
    /// Where it comes in, and where it leaves as far as routes tell.
    pub(crate) interfaces: (&'a IfName, Option<&'a IfName>),
    /// Whether the router has seen the request.
    pub(crate) seen: bool,
}

/// What a router does with such an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnswerStop {
    /// Whether it surely stops it.
    pub(crate) sure: bool,
    /// Whether it stops answers that come in there whatever they belong to: who loses all of them is
    /// nobody's gateway.
    pub(crate) wholesale: bool,
    /// The rule or policy, and what it does.
    pub(crate) text: String,
}

/// The rules of a lab's routers, read when a router is first asked about.
#[derive(Debug)]
pub(crate) struct AnswerRules {
    routers: Vec<Router>,
    read: BTreeMap<RouterName, AnswerFilters>,
}

/// The rules of one router.
#[derive(Debug)]
struct AnswerFilters {
    filters: Filters,
    /// Those that change what others ask of a packet, and what.
    changing: Vec<(Rule, Field)>,
}

impl AnswerRules {
    /// Those of the routers of `topology`.
    #[must_use]
    pub(crate) fn of(topology: Topology) -> Self {
        Self {
            routers: topology.routers,
            read: BTreeMap::new(),
        }
    }

    /// What stops the answer at `name`, or may stop it.
    pub(crate) fn stop(
        &mut self,
        name: &RouterName,
        answer: PassingAnswer<'_>,
    ) -> Option<AnswerStop> {
        let router = self.routers.iter().find(|router| router.name == *name)?;
        if router.rulesets.is_empty() {
            return None;
        }
        if !self.read.contains_key(name) {
            self.read.insert(name.clone(), AnswerFilters::of(router));
        }
        let rules = self.read.get(name)?;
        if let Some(translated) = rules.translation(answer) {
            return Some(translated);
        }
        let state = match answer.seen {
            true => TrackingState::Established,
            false => state_without_request(answer.protocol),
        };
        let stop = rules.stop(answer, state)?;
        let (known, text) = match answer.seen {
            true => (stop.sure, None),
            false => match rules.stop(answer, TrackingState::Established) {
                Some(known) if known.sure => (true, None),
                _ => (false, Some("stops answers whose request did not pass")),
            },
        };
        let does = match stop.sure {
            true => text.unwrap_or("stops the answer"),
            false => "may stop the answer",
        };
        Some(AnswerStop {
            sure: stop.sure,
            wholesale: known && rules.stops_all(router, answer),
            text: format!("{} {does}", stop.text),
        })
    }
}

impl AnswerFilters {
    fn of(router: &Router) -> Self {
        // What no rule changes, a packet has as it came: no mark, and the state that it should have.
        const CHANGED: [Field; 3] = [Field::Mark, Field::ConnectionMark, Field::Tracking];
        let mut changing = Vec::new();
        for (_, rule) in omission::rules(&router.rulesets) {
            let fields: Vec<Field> = rule.changes().filter(|f| CHANGED.contains(f)).collect();
            changing.extend(fields.into_iter().map(|field| (rule.clone(), field)));
        }
        Self {
            filters: Filters::of(&router.rulesets),
            changing,
        }
    }

    /// What gives an answer another address that connection tracking takes for the first packet of a
    /// connection, or may.
    fn translation(&self, answer: PassingAnswer<'_>) -> Option<AnswerStop> {
        if answer.seen || state_without_request(answer.protocol) != TrackingState::New {
            return None;
        }
        let packet = answer.packet().with_state(TrackingState::New);
        let leaving = match answer.interfaces.1 {
            Some(name) => packet.clone().with_device(Field::Outgoing, name.as_str()),
            None => packet.clone(),
        };
        let found = self.filters.translation("prerouting", &packet);
        let found = found.or_else(|| self.filters.translation("postrouting", &leaving))?;
        // What is not tracked is not translated.
        let tracked = !self.changing.iter().any(|(_, of)| *of == Field::Tracking);
        let sure = found.sure && tracked;
        let does = match sure {
            true => "translates answers whose request did not pass",
            false => "may translate the answer",
        };
        Some(AnswerStop {
            sure,
            wholesale: false,
            text: format!("{} {does}", found.text),
        })
    }

    /// What stops the answer where connection tracking says this of it.
    fn stop(&self, answer: PassingAnswer<'_>, state: TrackingState) -> Option<PossibleStop> {
        let (incoming, outgoing) = answer.interfaces;
        let bare = answer.packet();
        let changes = |field| {
            // What a rule made of the request's connection holds for the answer, too.
            let of_connection = answer.seen && field != Field::Mark;
            let mut changing = self.changing.iter();
            changing.any(|(rule, of)| *of == field && (of_connection || rule.concerns(&bare)))
        };
        let mut packet = bare.clone().with_state(state);
        if changes(Field::Tracking) {
            packet = packet
                .with_state(TrackingState::Untracked)
                .with_state(TrackingState::Invalid);
        }
        for field in [Field::Mark, Field::ConnectionMark] {
            if !changes(field) {
                packet = packet.with(field, 0u32);
            }
        }
        let leaving = outgoing.map(|name| {
            let name = name.as_str();
            packet.clone().with_device(Field::Outgoing, name)
        });
        let leaving = leaving.unwrap_or_else(|| packet.clone());
        let queries = [
            ("ingress", Some(StopQuery::OnDevice(&bare, incoming))),
            ("prerouting", Some(StopQuery::Packet(&packet))),
            ("forward", Some(StopQuery::Packet(&leaving))),
            ("postrouting", Some(StopQuery::Packet(&leaving))),
            (
                "egress",
                outgoing.map(|name| StopQuery::OnDevice(&bare, name)),
            ),
        ];
        let stops = queries
            .into_iter()
            .filter_map(|(hook, asked)| self.filters.possible_stop(hook, asked?));
        let mut stops: Vec<PossibleStop> = stops.collect();
        // One that is sure stands before those that may be.
        stops.sort_by_key(|stop| !stop.sure);
        stops.into_iter().next()
    }

    /// Whether the router stops all answers of connections that come in where this one does.
    fn stops_all(&self, router: &Router, passing: PassingAnswer<'_>) -> bool {
        let mut interfaces = router.interfaces.iter();
        let incoming = interfaces.find(|interface| interface.name == *passing.interfaces.0);
        let Some(interface) = incoming else {
            return false;
        };
        let family = Family::of(passing.source.0);
        let nets = nets_of(interface, family);
        let established = TrackingState::Established;
        let packet = answer(family, passing.protocol, established, interface, &nets);
        let mut hooks = HOOKS.into_iter();
        hooks.any(|hook| {
            self.filters
                .stop(hook, StopQuery::Packet(&packet))
                .is_some()
        })
    }
}

impl PassingAnswer<'_> {
    /// What rules see of it before it is known where it leaves.
    fn packet(&self) -> Packet {
        let mut packet = Packet::of(Family::of(self.source.0))
            .with(Field::Protocol, self.protocol.number())
            .with_device(Field::Incoming, self.interfaces.0.as_str())
            .with_address(Field::Source, self.source.0)
            .with_address(Field::Destination, self.destination.0)
            // Hosts send with 64, 128 or 255, and few routers are passed.
            .within(Field::Ttl, 32, 255);
        for (field, port) in [
            (Field::SourcePort, self.source.1),
            (Field::DestinationPort, self.destination.1),
        ] {
            if let Some(port) = port {
                packet = packet.with(field, port);
            }
        }
        with_kind(packet, self.protocol)
    }
}

/// What connection tracking says of an answer whose request it has not seen: the second segment of
/// TCP, of SCTP and an echo reply open nothing, whatever `nf_conntrack_tcp_loose` says.
fn state_without_request(protocol: Protocol) -> TrackingState {
    match protocol {
        Protocol::Tcp | Protocol::Sctp | Protocol::Icmp | Protocol::Icmpv6 => {
            TrackingState::Invalid
        }
        _ => TrackingState::New,
    }
}

/// The prefixes of an interface.
fn nets_of(interface: &Interface, family: Family) -> Vec<IpNet> {
    let addresses = interface.addresses.iter();
    let nets = addresses.map(|address| address.local.trunc());
    nets.filter(|net| Family::of(net.addr()) == family)
        .collect()
}

/// What an answer of the protocol is like whoever sends it.
fn with_kind(packet: Packet, protocol: Protocol) -> Packet {
    match protocol {
        Protocol::Tcp => packet.with(Field::TcpFlags, SYN_ACK),
        Protocol::Icmp => packet.with(Field::IcmpType, ECHO_REPLY),
        Protocol::Icmpv6 => packet.with(Field::Icmpv6Type, ECHO_REPLY_V6),
        _ => packet,
    }
}

/// The hooks that forwarded packets pass.
const HOOKS: [&str; 3] = ["prerouting", "forward", "postrouting"];

/// The flags of a TCP header that answers the first one, RFC 9293 section 3.1.
const SYN_ACK: u32 = 0x12;

/// Types of echo replies, RFC 792 and RFC 4443 section 4.2.
const ECHO_REPLY: u32 = 0;
const ECHO_REPLY_V6: u32 = 129;
