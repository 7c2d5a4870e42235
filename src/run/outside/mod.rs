//! Why a packet was lost where no rule saw it: routing, and the checks around it.
//!
//! [`judge`] is pure: it weighs what was observed, in the order in which the kernel checks
//! (ip_route_input_slow(), ip_forward(), ip6_forward()). [`Observer`] observes.

pub mod counters;
mod observe;

use std::{fmt, net::IpAddr};

pub use self::{counters::Counters, observe::Observer};
use crate::{
    firewall::{nft::trace::PacketHead, place::HookPoint},
    model::IfName,
    netlink::{Lookup, LookupKind},
};

/// What was observed about one lost packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The last hook that it passed; none when it was not seen at all.
    pub after: Option<HookPoint>,
    /// Its headers behind that hook.
    pub head: PacketHead,
    /// The interface by which it came in.
    pub iif: Option<IfName>,
    /// The kernel's look-up for such a packet coming in there.
    pub way: Option<LookupKind>,
    /// The interface that it would leave by, with its MTU.
    pub out: Option<(IfName, u32)>,
    /// The look-up without the check of its source, for a packet of the router's own.
    pub unchecked: Option<LookupKind>,
    /// The look-up of the way back to its source.
    pub back: Option<Lookup>,
    /// The settings that bear on it.
    pub settings: Settings,
    /// An interface that is down and whose network holds the destination.
    pub down: Option<IfName>,
    /// Whether the incoming interface is up.
    pub iif_up: bool,
    /// What the router counted when the packet was sent once more, alone.
    pub rose: Counters,
}

/// sysctls of a router that bear on a forwarded packet; ip-sysctl.rst of the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// `forwarding` of the incoming interface (IPv4), or of all (IPv6).
    pub forwarding: bool,
    /// `rp_filter`: the larger of the interface's and that of all. 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// `accept_local`.
    pub accept_local: bool,
    /// `route_localnet`.
    pub route_localnet: bool,
    /// `disable_ipv6` of the incoming interface.
    pub disable_ipv6: bool,
}

/// Why a packet was lost outside netfilter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutsideReason {
    /// No route to the address.
    NoRoute(IpAddr),
    /// A blackhole route or policy rule.
    Blackhole(IpAddr),
    /// An unreachable route or policy rule.
    Unreachable(IpAddr),
    /// A prohibit route or policy rule.
    Prohibit(IpAddr),
    /// `rp_filter` refuses the source on this interface; the way back leads elsewhere or nowhere.
    ReversePath {
        /// The source address.
        source: IpAddr,
        /// The interface by which the packet came in.
        iif: IfName,
        /// The interface of the way back; none when there is none.
        back: Option<IfName>,
    },
    /// A source address that may not come in.
    MartianSource(IpAddr),
    /// A destination address that may not be routed.
    MartianDestination(IpAddr),
    /// Forwarding is off on this interface, or everywhere.
    ForwardingOff(Option<IfName>),
    /// The interface is down.
    InterfaceDown(IfName),
    /// IPv6 is switched off on this interface.
    Ipv6Off(IfName),
    /// The TTL or hop limit does not allow another hop.
    TtlExceeded(u8),
    /// The packet does not fit the outgoing interface and must not be fragmented.
    TooBig {
        /// Its length in bytes.
        length: u32,
        /// The outgoing interface.
        dev: IfName,
        /// Its MTU in bytes.
        mtu: u32,
    },
    /// An IPsec policy refuses it.
    Ipsec,
    /// The probe was not seen to come in, and nothing on the router says why.
    NotSeen(Vec<String>),
    /// The cause is not known.
    Unknown {
        /// The last hook that it passed.
        after: HookPoint,
        /// What the router counted.
        evidence: Vec<String>,
    },
}

impl OutsideReason {
    /// Whether the cause is known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown { .. } | Self::NotSeen(_))
    }
}

impl fmt::Display for OutsideReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::NotSeen(evidence) = self {
            return write!(f, "did not come in at the router{}", list(evidence));
        }
        f.write_str("dropped outside netfilter: ")?;
        match self {
            Self::NoRoute(to) => write!(f, "no route to {to}"),
            Self::Blackhole(to) => write!(f, "blackhole route to {to}"),
            Self::Unreachable(to) => write!(f, "unreachable route to {to}"),
            Self::Prohibit(to) => write!(f, "prohibit route to {to}"),
            Self::ReversePath { source, iif, back } => {
                write!(f, "rp_filter on {iif}: the way back to {source} ")?;
                match back {
                    Some(back) => write!(f, "leads to {back}"),
                    None => f.write_str("does not exist"),
                }
            }
            Self::MartianSource(source) => write!(f, "martian source {source}"),
            Self::MartianDestination(to) => write!(f, "martian destination {to}"),
            Self::ForwardingOff(Some(dev)) => write!(f, "forwarding is off on {dev}"),
            Self::ForwardingOff(None) => f.write_str("forwarding is off"),
            Self::InterfaceDown(dev) => write!(f, "interface {dev} is down"),
            Self::Ipv6Off(dev) => write!(f, "IPv6 is switched off on {dev}"),
            Self::TtlExceeded(ttl) => write!(f, "TTL {ttl} does not allow another hop"),
            Self::TooBig { length, dev, mtu } => {
                write!(f, "{length} bytes exceed the MTU {mtu} of {dev}")
            }
            Self::Ipsec => f.write_str("an IPsec policy refuses it"),
            Self::Unknown { after, evidence } => {
                write!(f, "cause unknown, after {after}{}", list(evidence))
            }
            Self::NotSeen(_) => Ok(()),
        }
    }
}

fn list(evidence: &[String]) -> String {
    if evidence.is_empty() {
        String::new()
    } else {
        format!(" ({})", evidence.join(", "))
    }
}

/// Says why a packet was lost.
#[must_use]
pub fn judge(observed: &Observed) -> OutsideReason {
    let unknown = |after| OutsideReason::Unknown {
        after,
        evidence: observed.rose.evidence(),
    };
    match observed.after {
        None | Some(HookPoint::Ingress) => not_seen(observed),
        Some(HookPoint::Prerouting) => before_routing(observed)
            .or_else(|| routing(observed))
            .or_else(|| forwarding(observed))
            .unwrap_or_else(|| unknown(HookPoint::Prerouting)),
        Some(after) => ipsec(observed).unwrap_or_else(|| unknown(after)),
    }
}

fn not_seen(observed: &Observed) -> OutsideReason {
    match &observed.iif {
        Some(iif) if !observed.iif_up => OutsideReason::InterfaceDown(iif.clone()),
        Some(iif) if observed.head.source.is_ipv6() && observed.settings.disable_ipv6 => {
            OutsideReason::Ipv6Off(iif.clone())
        }
        _ => OutsideReason::NotSeen(observed.rose.evidence()),
    }
}

/// Addresses that the kernel refuses without looking anything up.
fn before_routing(observed: &Observed) -> Option<OutsideReason> {
    let PacketHead {
        source,
        destination,
        ..
    } = observed.head;
    let localnet = observed.settings.route_localnet && source.is_ipv4();
    let outlandish = |address: IpAddr| {
        let zero = matches!(address, IpAddr::V4(a) if a.octets()[0] == 0);
        zero || address.is_unspecified() || (address.is_loopback() && !localnet)
    };
    let broadcast = matches!(source, IpAddr::V4(a) if a.is_broadcast());
    if source.is_multicast() || broadcast || outlandish(source) {
        Some(OutsideReason::MartianSource(source))
    } else if outlandish(destination) {
        Some(OutsideReason::MartianDestination(destination))
    } else {
        None
    }
}

/// What the route look-up says.
fn routing(observed: &Observed) -> Option<OutsideReason> {
    let to = observed.head.destination;
    let source = observed.head.source;
    let filtered = || {
        observed.iif.clone().map(|iif| OutsideReason::ReversePath {
            source,
            iif,
            back: observed.back.as_ref().and_then(|back| back.dev.clone()),
        })
    };
    if observed.rose.get("TcpExt.IPReversePathFilter") > 0 {
        return filtered();
    }
    let way = observed.way?;
    let goes_on = matches!(way, LookupKind::Local | LookupKind::Broadcast);
    if !observed.settings.forwarding && !goes_on {
        let dev = observed.iif.clone().filter(|_| to.is_ipv4());
        return Some(OutsideReason::ForwardingOff(dev));
    }
    match way {
        LookupKind::NoRoute => Some(match &observed.down {
            Some(dev) => OutsideReason::InterfaceDown(dev.clone()),
            None => OutsideReason::NoRoute(to),
        }),
        LookupKind::Blackhole => Some(OutsideReason::Blackhole(to)),
        LookupKind::Unreachable => Some(OutsideReason::Unreachable(to)),
        LookupKind::Prohibit => Some(OutsideReason::Prohibit(to)),
        LookupKind::Refused => refused(observed).or_else(filtered),
        LookupKind::Unicast | LookupKind::Local | LookupKind::Broadcast | LookupKind::Multicast => {
            None
        }
    }
}

/// A blackhole, or a source that the router has itself; the kernel gives one errno for these and
/// for what `rp_filter` refuses. A blackhole of a policy rule that looks at the incoming interface
/// is seen by no other look-up, so it is what remains where the source is in order.
fn refused(observed: &Observed) -> Option<OutsideReason> {
    let back = observed.back.as_ref();
    let own = back.is_some_and(|back| back.kind == LookupKind::Local);
    let blackhole = Some(OutsideReason::Blackhole(observed.head.destination));
    let exists = back.is_some_and(|back| back.kind == LookupKind::Unicast);
    let straight = exists && back.and_then(|back| back.dev.as_ref()) == observed.iif.as_ref();
    match observed.settings.rp_filter {
        _ if own && !observed.settings.accept_local => {
            Some(OutsideReason::MartianSource(observed.head.source))
        }
        _ if observed.unchecked == Some(LookupKind::Blackhole) => blackhole,
        0 => blackhole,
        1 if straight => blackhole,
        2 if exists => blackhole,
        _ => None,
    }
}

/// What is checked behind the route look-up and before FORWARD.
fn forwarding(observed: &Observed) -> Option<OutsideReason> {
    let head = &observed.head;
    if observed.way != Some(LookupKind::Unicast) {
        return ipsec(observed);
    }
    if head.ttl <= 1 {
        return Some(OutsideReason::TtlExceeded(head.ttl));
    }
    match &observed.out {
        Some((dev, mtu)) if head.length > *mtu => Some(OutsideReason::TooBig {
            length: head.length,
            dev: dev.clone(),
            mtu: *mtu,
        }),
        _ => ipsec(observed),
    }
}

fn ipsec(observed: &Observed) -> Option<OutsideReason> {
    let rose = observed.rose.evidence();
    rose.iter()
        .any(|counter| counter.starts_with("Xfrm"))
        .then_some(OutsideReason::Ipsec)
}

#[cfg(test)]
mod tests;
