//! Why a packet was lost where no rule saw it: routing, and the checks around it.
//!
//! [`judge`] is pure: it weighs what was observed, in the order in which the kernel checks
//! (ip_route_input_slow(), ip_forward(), ip6_forward()). [`Observer`] observes.

pub(crate) mod counters;
mod observe;

use std::{fmt, net::IpAddr};

pub(crate) use self::{counters::Counters, observe::Observer};
use crate::{
    firewall::{nft::trace::PacketHead, place::HookPoint},
    model::IfName,
    netlink::{
        FibDecision, LookupKind,
        object::{PolicyRule, RouteKind},
    },
};

/// What was observed about one lost packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostPacket {
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
    /// The MTU that its route has of its own, which counts before the interface's.
    pub route_mtu: Option<u32>,
    /// The policy rule and the route that decide so, where the router's lists say what the kernel
    /// says. What the kernel refuses may have passed them.
    pub decision: Option<FibDecision>,
    /// The way back to its source, as the kernel's check of the source looks it up.
    pub back: Option<Back>,
    /// The settings that bear on it.
    pub settings: Settings,
    /// An interface that is down and whose network holds the destination.
    pub down: Option<IfName>,
    /// Whether the incoming interface is up.
    pub iif_up: bool,
    /// Whether it has an IPv4 address. Without one even a loose `rp_filter` is strict.
    pub iif_addressed: bool,
    /// What the router counted when the packet was sent once more, alone.
    pub rose: Counters,
}

/// The way back to a packet's source, asked for as __fib_validate_source() does (IPv4): from the
/// packet's destination behind all translation, with its TOS, and with its ports the other way
/// round where a policy rule looks at ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Back {
    /// The destination of the packet, and so the source of one that goes back.
    pub from: IpAddr,
    /// What the rules and tables say of it.
    pub decision: FibDecision,
}

/// sysctls of a router that bear on a forwarded packet; ip-sysctl.rst of the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `forwarding` of the incoming interface (IPv4), or of all (IPv6); or, since Linux 6.17,
    /// `force_forwarding` of the incoming interface (IPv6).
    pub forwarding: bool,
    /// `rp_filter`: the larger of the interface's and that of all. 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// `accept_local`.
    pub accept_local: bool,
    /// `route_localnet`.
    pub route_localnet: bool,
    /// `src_valid_mark`: the check of the source looks at the packet's mark.
    pub src_valid_mark: bool,
    /// `disable_ipv6` of the incoming interface.
    pub disable_ipv6: bool,
}

/// Why a packet was lost outside netfilter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutsideReason {
    /// No route to the address.
    NoRoute(IpAddr),
    /// A policy rule ends it: `blackhole`, `unreachable` or `prohibit`.
    PolicyRule(Box<PolicyRule>),
    /// A route that leads nowhere.
    DeadEnd {
        /// The kind of route.
        kind: RouteKind,
        /// The address.
        to: IpAddr,
        /// The policy rule that chose its table, where it is none that every namespace has.
        by: Option<Box<PolicyRule>>,
    },
    /// `rp_filter` refuses the source on this interface; the way back leads elsewhere or nowhere.
    ReversePath {
        /// The source address.
        source: IpAddr,
        /// The interface by which the packet came in.
        iif: IfName,
        /// The way back, where it could be read.
        back: Option<Box<Back>>,
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
    /// The packet does not fit the outgoing interface, or its route, and must not be fragmented.
    TooBig {
        /// Its length in bytes.
        length: u32,
        /// The outgoing interface.
        dev: IfName,
        /// Its MTU in bytes.
        mtu: u32,
        /// Whether it is the route's and not the interface's.
        of_route: bool,
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
            Self::PolicyRule(rule) => write!(f, "policy rule {rule}"),
            Self::DeadEnd { kind, to, by } => {
                write!(f, "{kind} route to {to}")?;
                chosen(f, by.as_deref())
            }
            Self::ReversePath { source, iif, back } => {
                write!(f, "rp_filter on {iif}: the way back to {source} ")?;
                match back {
                    Some(back) => back.fmt(f),
                    None => f.write_str("is another"),
                }
            }
            Self::MartianSource(source) => write!(f, "martian source {source}"),
            Self::MartianDestination(to) => write!(f, "martian destination {to}"),
            Self::ForwardingOff(Some(dev)) => write!(f, "forwarding is off on {dev}"),
            Self::ForwardingOff(None) => f.write_str("forwarding is off"),
            Self::InterfaceDown(dev) => write!(f, "interface {dev} is down"),
            Self::Ipv6Off(dev) => write!(f, "IPv6 is switched off on {dev}"),
            Self::TtlExceeded(ttl) => write!(f, "TTL {ttl} does not allow another hop"),
            Self::TooBig {
                length,
                dev,
                mtu,
                of_route,
            } => {
                let what = if *of_route { "the route by " } else { "" };
                write!(f, "{length} bytes exceed the MTU {mtu} of {what}{dev}")
            }
            Self::Ipsec => f.write_str("an IPsec policy refuses it"),
            Self::Unknown { after, evidence } => {
                write!(f, "cause unknown, after {after}{}", list(evidence))
            }
            Self::NotSeen(_) => Ok(()),
        }
    }
}

/// Names the policy rule that chose a table.
fn chosen(f: &mut fmt::Formatter<'_>, by: Option<&PolicyRule>) -> fmt::Result {
    by.map_or(Ok(()), |rule| write!(f, " (policy rule {rule})"))
}

/// Where the way back leads, in words.
impl fmt::Display for Back {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chooser = self.decision.choosing_rule();
        if chooser.is_some() {
            write!(f, "(from {}) ", self.from)?;
        }
        let devs: Vec<&str> = self.decision.devs().map(IfName::as_str).collect();
        match self.decision.kind() {
            LookupKind::Unicast => write!(f, "leads to {}", devs.join(" or "))?,
            LookupKind::NoRoute if chooser.is_none() => f.write_str("does not exist")?,
            _ => f.write_str("leads nowhere")?,
        }
        chosen(f, chooser)
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
pub(crate) fn judge(observed: &LostPacket) -> OutsideReason {
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
        // A mark or an address that OUTPUT has changed leads elsewhere (ip_route_me_harder()).
        Some(HookPoint::Output) => routing(observed)
            .or_else(|| ipsec(observed))
            .unwrap_or_else(|| unknown(HookPoint::Output)),
        Some(after) => ipsec(observed).unwrap_or_else(|| unknown(after)),
    }
}

fn not_seen(observed: &LostPacket) -> OutsideReason {
    match &observed.iif {
        Some(iif) if !observed.iif_up => OutsideReason::InterfaceDown(iif.clone()),
        Some(iif) if observed.head.source.is_ipv6() && observed.settings.disable_ipv6 => {
            OutsideReason::Ipv6Off(iif.clone())
        }
        _ => OutsideReason::NotSeen(observed.rose.evidence()),
    }
}

/// Addresses that the kernel refuses without looking anything up.
fn before_routing(observed: &LostPacket) -> Option<OutsideReason> {
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
fn routing(observed: &LostPacket) -> Option<OutsideReason> {
    let to = observed.head.destination;
    if observed.rose.get("TcpExt.IPReversePathFilter") > 0 {
        return filtered(observed);
    }
    let way = observed.way?;
    let own = observed.after == Some(HookPoint::Output);
    let goes_on = own || matches!(way, LookupKind::Local | LookupKind::Broadcast);
    if !observed.settings.forwarding && !goes_on {
        let dev = observed.iif.clone().filter(|_| to.is_ipv4());
        return Some(OutsideReason::ForwardingOff(dev));
    }
    match way {
        LookupKind::NoRoute => Some(ended_by_rule(observed).unwrap_or(match &observed.down {
            Some(dev) => OutsideReason::InterfaceDown(dev.clone()),
            None => OutsideReason::NoRoute(to),
        })),
        LookupKind::Blackhole => Some(dead_end(observed, RouteKind::Blackhole)),
        LookupKind::Unreachable => Some(dead_end(observed, RouteKind::Unreachable)),
        LookupKind::Prohibit => Some(dead_end(observed, RouteKind::Prohibit)),
        LookupKind::Refused => refused(observed),
        LookupKind::Unicast | LookupKind::Local | LookupKind::Broadcast | LookupKind::Multicast => {
            None
        }
    }
}

fn ended_by_rule(observed: &LostPacket) -> Option<OutsideReason> {
    let rule = observed.decision.as_ref()?.ending_rule()?;
    Some(OutsideReason::PolicyRule(Box::new(rule.clone())))
}

/// A policy rule or a route that ends the packet.
fn dead_end(observed: &LostPacket, kind: RouteKind) -> OutsideReason {
    ended_by_rule(observed).unwrap_or_else(|| {
        let by = observed
            .decision
            .as_ref()
            .and_then(FibDecision::choosing_rule);
        OutsideReason::DeadEnd {
            kind,
            to: observed.head.destination,
            by: by.cloned().map(Box::new),
        }
    })
}

/// A blackhole, a source that the router has itself, or one that `rp_filter` refuses: the kernel
/// gives one errno for all of these. None where neither explains it.
fn refused(observed: &LostPacket) -> Option<OutsideReason> {
    let decided = observed.decision.as_ref().map(FibDecision::kind);
    if decided == Some(LookupKind::Blackhole) {
        return Some(dead_end(observed, RouteKind::Blackhole));
    }
    let back = &observed.back.as_ref()?.decision;
    let straight = back.devs().any(|dev| Some(dev) == observed.iif.as_ref());
    let passes = match (back.kind(), observed.settings.rp_filter) {
        (LookupKind::Local, _) if observed.settings.accept_local => return None,
        (LookupKind::Local | LookupKind::Broadcast, _) => {
            return Some(OutsideReason::MartianSource(observed.head.source));
        }
        (_, 0) => true,
        (LookupKind::Unicast, 2) => straight || observed.iif_addressed,
        (LookupKind::Unicast, _) => straight,
        _ => false,
    };
    if passes { None } else { filtered(observed) }
}

/// `rp_filter` refuses the source.
fn filtered(observed: &LostPacket) -> Option<OutsideReason> {
    Some(OutsideReason::ReversePath {
        source: observed.head.source,
        iif: observed.iif.clone()?,
        back: observed.back.clone().map(Box::new),
    })
}

/// What is checked behind the route look-up and before FORWARD.
fn forwarding(observed: &LostPacket) -> Option<OutsideReason> {
    let head = &observed.head;
    if observed.way != Some(LookupKind::Unicast) {
        return ipsec(observed);
    }
    if head.ttl <= 1 {
        return Some(OutsideReason::TtlExceeded(head.ttl));
    }
    let Some((dev, mtu)) = &observed.out else {
        return ipsec(observed);
    };
    // Of what is forwarded only IPv4 takes a route's MTU for more than that of its interface.
    let narrower = |route: &u32| route < mtu || head.destination.is_ipv4();
    let of_route = observed.route_mtu.filter(narrower);
    let mtu = of_route.unwrap_or(*mtu);
    if head.length <= mtu {
        return ipsec(observed);
    }
    Some(OutsideReason::TooBig {
        length: head.length,
        dev: dev.clone(),
        mtu,
        of_route: of_route.is_some(),
    })
}

fn ipsec(observed: &LostPacket) -> Option<OutsideReason> {
    let rose = observed.rose.evidence();
    rose.iter()
        .any(|counter| counter.starts_with("Xfrm"))
        .then_some(OutsideReason::Ipsec)
}

#[cfg(test)]
mod tests;
