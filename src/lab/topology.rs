//! What a lab consists of, as a plain value: made from facts without touching the system, and
//! built from without looking at facts again.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::omission::{Concern, Omission, OmissionKind};
use crate::{
    model::{IfName, RouterName, printable},
    netlink::object::{Address, Mac, PolicyRule, Route},
};

mod alone;
mod between;
mod check;
mod end;
mod evidence;
mod join;
mod link;
mod places;
mod strangers;
mod tags;
mod tunnels;

pub use self::{
    join::{build, build_with},
    link::{
        Arp, Behind, FrameRules, Heard, LinkFacts, Master, MasterKind, ProxyAddresses, WireGuard,
        WireGuardPeer,
    },
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

/// A value together with the line of its router's facts file that it was read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct At<T> {
    /// Line, counted from 1; 0 where no single line is meant.
    pub line: usize,
    /// The value.
    #[serde(flatten)]
    pub value: T,
}

impl<T> At<T> {
    /// Notes that `value` stands in `line`.
    pub fn new(line: usize, value: T) -> Self {
        Self { line, value }
    }
}

impl<T> Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// One router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Router {
    /// Name, as in its facts.
    pub name: RouterName,
    /// The facts file, for messages about a line of it.
    pub file: String,
    /// Interfaces, loopback included, in the order of the facts.
    pub interfaces: Vec<Interface>,
    /// Routes of every table except those that the kernel makes from the addresses.
    pub routes: Vec<At<Route>>,
    /// All policy rules of both families. The kernel's own (priorities 0, 32766, 32767) are among
    /// them unless the real router lacks them.
    pub rules: Vec<At<PolicyRule>>,
    /// Rulesets in the order in which they are to be loaded.
    pub rulesets: Vec<Ruleset>,
    /// Per-namespace sysctls as path below /proc/sys/ and value, e.g.
    /// (`net/ipv4/ip_forward`, `1`), in the order in which they are to be set.
    pub sysctls: Vec<(String, String)>,
}

/// What an interface was on the real router. In the lab all but loopback are links of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceKind {
    /// `lo`.
    Loopback,
    /// Ethernet and what looks like it.
    Ethernet,
    /// wireguard, gre, ipip, tun and other point-to-point or tunnel interfaces.
    Tunnel,
}

impl Router {
    /// A place in this router's facts.
    #[must_use]
    pub fn origin(&self, line: usize) -> Origin {
        Origin {
            file: self.file.clone(),
            line,
        }
    }
}

/// One interface of a router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Name, as in the facts.
    pub name: IfName,
    /// Where it begins in the router's facts; 0 where they do not list it.
    pub line: usize,
    /// What it was on the real router.
    pub kind: InterfaceKind,
    /// Hardware address, where the facts have one.
    pub mac: Option<Mac>,
    /// MTU in bytes, where the facts have one.
    pub mtu: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Its group, which rules may ask for (`iifgroup`); 0 is that of every new interface.
    #[serde(default)]
    pub group: u32,
    /// Addresses of both families, link-local ones included.
    pub addresses: Vec<Address>,
    /// What leads to the other end of its link.
    #[serde(default, skip_serializing_if = "LinkFacts::is_unknown")]
    pub link: LinkFacts,
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
    /// Ends that it has at routers without facts, as `router:interface`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<String>,
    /// The routers that its hosts use, where `links.toml` says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<RouterName>,
}

impl Segment {
    /// A segment that no router is on: a bridge that is left of one.
    pub(super) fn unused(number: usize) -> Self {
        Self {
            name: format!("unused {number}"),
            members: Vec::new(),
            absent: Vec::new(),
            gateways: Vec::new(),
        }
    }
}

/// Which tool a ruleset is loaded with; it is the one that it was saved with. In the order in
/// which a router's rulesets are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

impl std::fmt::Display for RulesetKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ipset => "ipset",
            Self::Iptables => "iptables",
            Self::Ip6tables => "ip6tables",
            Self::Nft => "nft",
        })
    }
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
    /// Whether all of it stands there: it was made of a form that has other lines.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_one_line: bool,
    /// What is known of the clock that its rules go by.
    #[serde(default)]
    pub clock: Clock,
}

#[cfg(test)]
impl Ruleset {
    /// A ruleset that a test wrote.
    pub(crate) fn for_test(kind: RulesetKind, text: &str) -> Self {
        Self {
            kind,
            text: text.to_owned(),
            origin: Origin {
                file: "r".to_owned(),
                line: 1,
            },
            in_one_line: false,
            clock: Clock::default(),
        }
    }
}

/// What is known of the clock that rules about the time go by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Whether the hours and dates of nft(8) are UTC. It prints them in the time zone of who asks it,
    /// and reads them so.
    pub prints_utc: bool,
    /// Whether the kernel has no time zone of its own (settimeofday(2)), which the days of nft(8) and
    /// iptables' `--kerneltz` go by.
    pub kernel_in_utc: bool,
}

impl Clock {
    /// Of a router that knows no time but UTC.
    pub const UTC: Self = Self {
        prints_utc: true,
        kernel_in_utc: true,
    };
}

impl Ruleset {
    /// Where line `at` of the text stands, counted from 0.
    #[must_use]
    pub fn origin_of(&self, at: usize) -> Origin {
        let mut origin = self.origin.clone();
        origin.line += if self.in_one_line { 0 } else { at };
        origin
    }
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
        // The file's name comes with the facts.
        let file = printable(&self.file);
        if self.line == 0 {
            f.write_str(&file)
        } else {
            write!(f, "{file}:{}", self.line)
        }
    }
}

/// How much a [`Warning`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The lab has it in another form that no verdict depends on; strict mode lets it pass.
    Notice,
    /// The lab differs from the facts; strict mode refuses it.
    Warning,
}

/// Something in the facts that the lab cannot have, or has in another form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// How much it matters.
    pub severity: Severity,
    /// Where.
    pub origin: Origin,
    /// The router it is about.
    pub router: Option<RouterName>,
    /// What was found and what the lab does instead.
    pub message: String,
    /// What the lab lacks because of it that can change a verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omission: Option<Omission>,
    /// The line that says in `links.toml` what the facts do not tell, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

impl Warning {
    /// The lab of `router` differs from what stands at `origin`. The message may have words of the
    /// facts in it; they are made [`printable`].
    pub fn new(origin: Origin, router: &RouterName, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            origin,
            router: Some(router.clone()),
            message: printable(&message.into()).into_owned(),
            omission: None,
            suggestion: None,
        }
    }

    /// As [`Warning::new`], for something that no verdict depends on.
    pub fn notice(origin: Origin, router: &RouterName, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Notice,
            ..Self::new(origin, router, message)
        }
    }

    /// As [`Warning::new`], and the lab lacks `omission` because of it.
    pub fn omission(
        origin: Origin,
        router: &RouterName,
        message: impl Into<String>,
        omission: Omission,
    ) -> Self {
        Self {
            omission: Some(omission),
            ..Self::new(origin, router, message)
        }
    }

    /// Whether a verdict can depend on it.
    #[must_use]
    pub fn matters(&self) -> bool {
        let omission = self.omission.as_ref();
        omission.is_some_and(|omission| !omission.concern.is_nothing())
    }

    /// Whether a whole router is missing.
    #[must_use]
    pub fn is_of_router(&self) -> bool {
        let omission = self.omission.as_ref();
        omission.is_some_and(|omission| omission.kind == OmissionKind::Router)
    }

    /// Whether interfaces of the router are lost, which may have had any address.
    #[must_use]
    pub fn hides_addresses(&self) -> bool {
        self.omission.as_ref().is_some_and(|omission| {
            omission.kind == OmissionKind::Interface && omission.concern == Concern::everything()
        })
    }

    /// Whether the router's firewall lacks something because of it.
    #[must_use]
    pub fn is_of_ruleset(&self) -> bool {
        let omission = self.omission.as_ref();
        self.matters() && omission.is_some_and(|omission| omission.kind.is_of_ruleset())
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod tests;
