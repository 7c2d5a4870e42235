//! Kernel objects as plain values: what a caller asks the kernel to hold, and what it reports.
//!
//! Interfaces are named, not numbered, because a value of these types is made before the
//! interface exists (from facts) and outlives it (in a report).

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{IfName, fnv1a, text_in_json};

/// An Ethernet hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Mac {
    /// Whether an interface can have it: neither multicast nor all zero, as
    /// is_valid_ether_addr() in linux/etherdevice.h.
    #[must_use]
    pub fn is_usable(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }

    /// A locally administered address for what has none, the same every time for one `seed`.
    #[must_use]
    pub fn made_up(seed: &str) -> Self {
        let [a, b, c, d, e, ..] = fnv1a(seed.as_bytes()).to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// The IPv6 link-local address that the kernel would make of it, RFC 4291 appendix A.
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, g] = self.0;
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfe, 0x80]);
        octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, g]);
        octets.into()
    }
}

/// Text that is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address: six hexadecimal octets separated by `:` are allowed")]
pub struct MacError(pub String);

impl std::str::FromStr for Mac {
    type Err = MacError;
    fn from_str(text: &str) -> Result<Self, MacError> {
        let refuse = || MacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(refuse)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() {
            Err(refuse())
        } else {
            Ok(Self(octets))
        }
    }
}

text_in_json!(Mac);

/// Address family of an object that carries no address of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// Scope of an address or route, rtnetlink(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Valid everywhere.
    Global,
    /// Valid within the site (deprecated, IPv6).
    Site,
    /// Valid on the link.
    Link,
    /// Valid on this node.
    Host,
    /// Destination does not exist.
    Nowhere,
}

/// An address on an interface, ip-address(8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Address and prefix length.
    pub local: IpNet,
    /// The far end of a point-to-point link (`peer`), with its prefix length.
    pub peer: Option<IpNet>,
    /// Scope.
    pub scope: Scope,
    /// Whether the kernel adds the prefix route itself (no `noprefixroute`).
    pub prefix_route: bool,
}

impl Address {
    /// A global address whose prefix route the kernel adds.
    #[must_use]
    pub fn new(local: IpNet) -> Self {
        Self {
            local,
            peer: None,
            scope: Scope::Global,
            prefix_route: true,
        }
    }
}

/// What happens to packets that a route matches, ip-route(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// Forwarded to the next hops.
    Unicast,
    /// Delivered to this node.
    Local,
    /// A broadcast address.
    Broadcast,
    /// Discarded silently.
    Blackhole,
    /// Discarded with ICMP host unreachable.
    Unreachable,
    /// Discarded with ICMP communication administratively prohibited.
    Prohibit,
    /// Look-up goes on with the next policy rule.
    Throw,
}

/// One way out of a unicast route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Gateway; none for a destination on the link.
    pub via: Option<IpAddr>,
    /// Outgoing interface; the kernel derives it from the gateway where it is absent.
    pub dev: Option<IfName>,
    /// Relative weight in a multipath route, 1 to 256.
    pub weight: u16,
    /// The gateway is taken to be on the link even if no prefix says so.
    pub onlink: bool,
}

/// A route, ip-route(8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination prefix.
    pub destination: IpNet,
    /// Source prefix: only packets from there take it (IPv6 only, CONFIG_IPV6_SUBTREES).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpNet>,
    /// What happens to packets.
    pub kind: RouteKind,
    /// Routing table; 254 is main, 255 local.
    pub table: u32,
    /// Ways out; more than one makes a multipath route, none where the kind needs none.
    pub next_hops: Vec<NextHop>,
    /// Metric (priority); absent means the kernel's default.
    pub metric: Option<u32>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Scope; absent means what ip(8) would derive.
    pub scope: Option<Scope>,
    /// Who installed it (`RTPROT_*`, linux/rtnetlink.h); absent means static.
    pub protocol: Option<u8>,
    /// TOS key of the route, IPv4 only.
    pub tos: u8,
    /// Path MTU lock-in in bytes.
    pub mtu: Option<u32>,
}

impl Route {
    /// Table main.
    pub const MAIN: u32 = 254;
    /// Table local, kept by the kernel.
    pub const LOCAL: u32 = 255;
    /// Table default, which is empty unless somebody fills it.
    pub const DEFAULT: u32 = 253;

    /// A route in table main to `destination` by one gateway.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn via(destination: IpNet, via: IpAddr, dev: IfName) -> Self {
        Self {
            next_hops: vec![NextHop {
                via: Some(via),
                dev: Some(dev),
                weight: 1,
                onlink: false,
            }],
            ..Self::without_hops(destination, RouteKind::Unicast)
        }
    }

    /// A route in table main that needs no way out.
    #[must_use]
    pub fn without_hops(destination: IpNet, kind: RouteKind) -> Self {
        Self {
            destination,
            from: None,
            kind,
            table: Self::MAIN,
            next_hops: Vec::new(),
            metric: None,
            source: None,
            scope: None,
            protocol: None,
            tos: 0,
            mtu: None,
        }
    }
}

/// What a matching policy rule does, ip-rule(8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleAction {
    /// Look the destination up in this table.
    Table(u32),
    /// Go on at the rule of this priority.
    Goto(u32),
    /// Do nothing.
    Nop,
    /// Discard silently.
    Blackhole,
    /// Discard with ICMP network unreachable.
    Unreachable,
    /// Discard with ICMP administratively prohibited.
    Prohibit,
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// A policy rule, ip-rule(8). Absent selectors match everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Address family that the rule belongs to.
    pub family: Family,
    /// Order among rules, lowest first.
    pub priority: u32,
    /// Matches what the selectors do not match (`not`).
    pub invert: bool,
    /// Source prefix.
    pub from: Option<IpNet>,
    /// Destination prefix.
    pub to: Option<IpNet>,
    /// Firewall mark and mask.
    pub fwmark: Option<(u32, u32)>,
    /// TOS / DS field octet.
    pub tos: Option<u8>,
    /// Incoming interface; `lo` means locally generated. Kept as text: it need not exist.
    pub iif: Option<IfName>,
    /// Outgoing interface of a bound local socket.
    pub oif: Option<IfName>,
    /// IP protocol number.
    pub ip_proto: Option<u8>,
    /// Source ports.
    pub sport: Option<PortRange>,
    /// Destination ports.
    pub dport: Option<PortRange>,
    /// What a match does.
    pub action: RuleAction,
    /// Refuses a result whose prefix is at most this long (`suppress_prefixlength`).
    pub suppress_prefix_len: Option<u32>,
}

impl PolicyRule {
    /// A rule that matches every packet.
    #[must_use]
    pub fn new(family: Family, priority: u32, action: RuleAction) -> Self {
        Self {
            family,
            priority,
            invert: false,
            from: None,
            to: None,
            fwmark: None,
            tos: None,
            iif: None,
            oif: None,
            ip_proto: None,
            sport: None,
            dport: None,
            action,
            suppress_prefix_len: None,
        }
    }

    /// The rules that a new namespace has: tables local, main and, for IPv4, default.
    #[must_use]
    pub fn kernel_defaults(family: Family) -> Vec<Self> {
        let rule = |priority, table| Self::new(family, priority, RuleAction::Table(table));
        let mut rules = vec![rule(0, Route::LOCAL), rule(32_766, Route::MAIN)];
        if family == Family::V4 {
            rules.push(rule(32_767, Route::DEFAULT));
        }
        rules
    }
}

/// A neighbour (ARP, NDP) entry, ip-neighbour(8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Interface.
    pub dev: IfName,
    /// Protocol address.
    pub address: IpAddr,
    /// Link-layer address; none while unresolved.
    pub mac: Option<Mac>,
    /// `NUD_*` state bits, linux/neighbour.h.
    pub state: u16,
}

impl Neighbour {
    /// `NUD_PERMANENT`: never looked up again.
    pub const PERMANENT: u16 = 0x80;

    /// An entry that stays as it is.
    #[must_use]
    pub fn permanent(dev: IfName, address: IpAddr, mac: Mac) -> Self {
        Self {
            dev,
            address,
            mac: Some(mac),
            state: Self::PERMANENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_read_back_and_junk_is_refused() {
        let mac: Mac = "02:00:5e:00:53:AF".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:00:53:af");
        for bad in [
            "",
            "02:00:5e:00:53",
            "02:00:5e:00:53:af:00",
            "2:0:5e:0:53:af",
            "zz:00:5e:00:53:af",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn made_up_addresses_are_local_and_stay_the_same() {
        let mac = Mac::made_up("r1:eth0");
        assert_eq!(mac, Mac::made_up("r1:eth0"));
        assert_ne!(mac, Mac::made_up("r1:eth1"));
        assert!(mac.is_usable() && mac.0[0] & 2 != 0);
        let mac = Mac([0x02, 0, 0x5e, 0, 0x53, 0xaf]);
        assert_eq!(mac.link_local().to_string(), "fe80::5eff:fe00:53af");
    }
}
