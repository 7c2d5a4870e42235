//! Where in a ruleset something is: the hook, and the rule by table, chain and handle.

use std::fmt;

/// Address family of a table (`NFPROTO_*`, linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableFamily(pub u8);

impl TableFamily {
    /// IPv4 and IPv6.
    pub const INET: Self = Self(1);
    /// IPv4.
    pub const IP: Self = Self(2);
    /// One device.
    pub const NETDEV: Self = Self(5);
    /// Bridges.
    pub const BRIDGE: Self = Self(7);
    /// IPv6.
    pub const IP6: Self = Self(10);
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INET => f.pad("inet"),
            Self::IP => f.pad("ip"),
            Self::NETDEV => f.pad("netdev"),
            Self::BRIDGE => f.pad("bridge"),
            Self::IP6 => f.pad("ip6"),
            Self(3) => f.pad("arp"),
            Self(number) => write!(f, "family {number}"),
        }
    }
}

/// A place on a packet's way where chains are asked, in the order in which it comes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookPoint {
    /// On a device, before IP sees the packet.
    Ingress,
    /// Before routing.
    Prerouting,
    /// On the way to a local socket.
    Input,
    /// Between two interfaces.
    Forward,
    /// On the way from a local socket, or from the router itself.
    Output,
    /// On the way out.
    Postrouting,
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

/// One rule, or one chain where the handle is 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RulePlace {
    /// Family of the table.
    pub family: TableFamily,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// The rule's handle, unique in its table.
    pub handle: u64,
}
