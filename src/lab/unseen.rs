//! What a router does with answers whose request did not pass it.
//!
//! A server has a gateway of its own, and facts of routers do not say which. Where its link has
//! several, the answer may take another one than the request came by; that one has not seen the
//! connection begin, and rules that go by connections often drop what they take for no part of one.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    omission::{Filters, StopQuery},
    topology::{Interface, InterfaceKind, Router},
};
use crate::{
    firewall::rule::{Field, Packet, TrackingState},
    model::{IfName, Protocol},
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
    let filters = Filters::of(&router.rulesets);
    let mut found = Vec::new();
    let hosts = |kind| kind == InterfaceKind::Ethernet;
    for interface in router.interfaces.iter().filter(|i| i.up && hosts(i.kind)) {
        for family in [Family::V4, Family::V6] {
            let nets = interface
                .addresses
                .iter()
                .map(|address| address.local.trunc());
            let nets: Vec<IpNet> = nets
                .filter(|net| Family::of(net.addr()) == family)
                .collect();
            if nets.is_empty() {
                continue;
            }
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, echo(family)] {
                let state = match protocol {
                    Protocol::Udp => TrackingState::New,
                    _ => TrackingState::Invalid,
                };
                let stopped = |state| {
                    let packet = answer(family, protocol, state, interface, &nets);
                    let mut hooks = ["prerouting", "forward", "postrouting"].into_iter();
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

impl Unseen {
    /// Whether it stops answers of a protocol.
    #[must_use]
    pub fn stops(&self, protocol: Protocol) -> bool {
        let own = matches!(
            protocol,
            Protocol::Tcp | Protocol::Sctp | Protocol::Icmp | Protocol::Icmpv6
        );
        self.protocol == if own { protocol } else { Protocol::Udp }
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
    let mut packet = Packet::of(family)
        .with(Field::Protocol, protocol.number())
        .with_state(state)
        .with_device(Field::Incoming, interface.name.as_str());
    packet = match protocol {
        Protocol::Tcp => packet.with(Field::TcpFlags, SYN_ACK),
        Protocol::Icmp => packet.with(Field::IcmpType, ECHO_REPLY),
        Protocol::Icmpv6 => packet.with(Field::IcmpType, ECHO_REPLY_V6),
        _ => packet,
    };
    nets.iter()
        .fold(packet, |p, net| p.with_address(Field::Source, *net))
}

/// The flags of a TCP header that answers the first one, RFC 9293 section 3.1.
const SYN_ACK: u32 = 0x12;

/// Types of echo replies, RFC 792 and RFC 4443 section 4.2.
const ECHO_REPLY: u32 = 0;
const ECHO_REPLY_V6: u32 = 129;
