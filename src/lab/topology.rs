//! What a lab consists of, as a plain value: made from facts without touching the system, and
//! built from without looking at facts again.

use serde::{Deserialize, Serialize};

use crate::{
    model::{IfName, RouterName},
    netlink::object::{Address, Mac, PolicyRule, Route},
};

/// Routers, the segments that join them, and what could not be represented.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// Routers in the order of their names.
    pub routers: Vec<Router>,
    /// Layer-2 networks; [`Interface::segment`] is an index into this list.
    pub segments: Vec<Segment>,
    /// What the facts have and the lab cannot have, in the order it was found.
    pub warnings: Vec<Warning>,
}

/// One router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Router {
    /// Name, as in its facts.
    pub name: RouterName,
    /// Interfaces, loopback included, in the order of the facts.
    pub interfaces: Vec<Interface>,
    /// Routes of every table except those that the kernel keeps itself.
    pub routes: Vec<Route>,
    /// Policy rules of both families except the kernel's own three, unless the facts lack these.
    pub rules: Vec<PolicyRule>,
    /// Rulesets in the order in which they are to be loaded.
    pub rulesets: Vec<Ruleset>,
    /// Per-namespace sysctls as path below /proc/sys/ and value, e.g.
    /// (`net/ipv4/ip_forward`, `1`).
    pub sysctls: Vec<(String, String)>,
}

/// What an interface was on the real router. In the lab all but loopback are links of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceKind {
    /// `lo`.
    Loopback,
    /// Ethernet and what looks like it.
    Ethernet,
    /// wireguard, gre, ipip, tun and other point-to-point or tunnel interfaces.
    Tunnel,
}

/// One interface of a router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Name, as in the facts.
    pub name: IfName,
    /// What it was on the real router.
    pub kind: InterfaceKind,
    /// Hardware address, where the facts have one.
    pub mac: Option<Mac>,
    /// MTU in bytes, where the facts have one.
    pub mtu: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Addresses of both families, link-local ones included.
    pub addresses: Vec<Address>,
    /// The segment it is plugged into; none for loopback.
    pub segment: Option<usize>,
}

/// One layer-2 network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// A readable name, unique in the lab: the subnet or, without one, `router:interface`.
    pub name: String,
    /// Its ends.
    pub members: Vec<(RouterName, IfName)>,
}

/// Which tool a ruleset is loaded with; it is the one that it was saved with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RulesetKind {
    /// `ipset save`; loaded before the rulesets that refer to it.
    Ipset,
    /// `iptables-save`.
    Iptables,
    /// `ip6tables-save`.
    Ip6tables,
    /// `nft list ruleset`.
    Nft,
}

/// A ruleset as the tool saved it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset {
    /// The tool.
    pub kind: RulesetKind,
    /// The tool's own text.
    pub text: String,
    /// Where the text stands, for messages about a line of it.
    pub origin: Origin,
}

/// A place in a facts file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// File name as given.
    pub file: String,
    /// Line, counted from 1; 0 where no single line is meant.
    pub line: usize,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line == 0 {
            f.write_str(&self.file)
        } else {
            write!(f, "{}:{}", self.file, self.line)
        }
    }
}

/// Something in the facts that the lab cannot have, or has in another form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Where.
    pub origin: Origin,
    /// The router it is about.
    pub router: Option<RouterName>,
    /// What was found and what the lab does instead.
    pub message: String,
    /// Whether the router's ruleset lacks something because of it, so that verdicts must say so.
    pub ruleset_incomplete: bool,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}
