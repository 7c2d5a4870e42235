//! Omissions: what the facts have and the lab lacks, with the packets that each can concern.
//!
//! A verdict that an omission can change is not known; one that it cannot change is as good as in
//! a lab without omissions. So each omission says which packets it can concern, as narrowly as can
//! be told from the facts alone, and everything where that cannot be told.

mod damage;
mod devices;
mod packets;
mod place;
mod reach;
mod rule;
mod rulesets;
mod stops;
mod tables;

use serde::{Deserialize, Serialize};

pub(crate) use devices::{DeviceTable, at_devices};
pub(crate) use packets::{Nets, PacketSet, solicited_node};
pub(crate) use place::Hooks;
pub(crate) use reach::{FactsPlace, Met, Reach};
pub(crate) use rule::RuleExtent;
pub(crate) use rulesets::{
    PlacedRule, RulesetMaps, asking_port_sets, asks_hardware_addresses, placed_rules, redirecting,
    rewrites_tcp_options, rewriting, rules, stopping_frames, translating,
};
pub(crate) use stops::{BridgedFrame, Filters, PossibleStop, Stop, StopQuery, with_sets_of};
pub(crate) use tables::{TableRules, no_kernel_uses};

use crate::{
    firewall::{place::HookPoint, rule::Packet},
    model::{IfName, RouterName},
    netlink::object::Family,
};

/// What kind of thing is missing.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum OmissionKind {
    /// A rule of a ruleset.
    Rule,
    /// A chain with its rules.
    Chain,
    /// A table with its chains.
    Table,
    /// A set, or elements of one.
    Set,
    /// A whole section of the facts.
    Section,
    /// A route, or a table of routes.
    Route,
    /// A policy rule.
    PolicyRule,
    /// An interface, or something about one.
    Interface,
    /// An address of an interface.
    Address,
    /// A setting of the kernel.
    Sysctl,
    /// Something that the router does and no lab does, such as IPVS.
    Feature,
    /// A router.
    Router,
}

impl std::fmt::Display for OmissionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Rule => "rules",
            Self::Chain => "chains",
            Self::Table => "tables",
            Self::Set => "sets",
            Self::Section => "sections",
            Self::Route => "routes",
            Self::PolicyRule => "policy rules",
            Self::Interface => "interfaces",
            Self::Address => "addresses",
            Self::Sysctl => "settings",
            Self::Feature => "features that no lab has",
            Self::Router => "routers",
        })
    }
}

impl OmissionKind {
    /// Whether the router's firewall lacks something.
    #[must_use]
    pub fn is_of_ruleset(self) -> bool {
        matches!(
            self,
            Self::Rule | Self::Chain | Self::Table | Self::Set | Self::Section
        )
    }
}

/// What is missing and which packets it can concern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Omission {
    /// What kind of thing is missing.
    pub kind: OmissionKind,
    /// The packets.
    pub concern: Concern,
}

impl Omission {
    /// Something that can concern every packet.
    #[must_use]
    pub fn of_everything(kind: OmissionKind) -> Self {
        Self {
            kind,
            concern: Concern::everything(),
        }
    }

    /// Something that can concern all packets of `family` only.
    #[must_use]
    pub fn of_family(kind: OmissionKind, family: Family) -> Self {
        Self {
            kind,
            concern: Concern::packets([PacketSet::of_family(family)]),
        }
    }

    /// Something that contradicts the rest of the facts, so that no kernel can have acted on it.
    #[must_use]
    pub fn of_contradiction(kind: OmissionKind) -> Self {
        Self::of_packets(kind, [])
    }

    /// The same, where it contradicts the rest of the facts in a way that no kernel does: it makes
    /// a pass doubtful, but is no reason to think that what is stopped might get through.
    #[must_use]
    pub fn of_passed(mut self) -> Self {
        for extent in &mut self.concern.0 {
            if let Extent::Packets(packets) = extent {
                packets.passed_only = true;
            }
        }
        self
    }

    /// Something that can concern those packets that one of `packets` describes.
    #[must_use]
    pub fn of_packets(kind: OmissionKind, packets: impl IntoIterator<Item = PacketSet>) -> Self {
        Self {
            kind,
            concern: Concern::packets(packets),
        }
    }
}

/// Which packets something can concern: those of any extent; none is no packet at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concern(pub Vec<Extent>);

/// Some packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// Packets by what they look like.
    Packets(PacketSet),
    /// Packets that a rule may match.
    Rule(RuleExtent),
}

impl Concern {
    /// Every packet.
    #[must_use]
    pub fn everything() -> Self {
        Self::packets([PacketSet::default()])
    }

    /// Those that one of `packets` describes.
    #[must_use]
    pub fn packets(packets: impl IntoIterator<Item = PacketSet>) -> Self {
        Self(packets.into_iter().map(Extent::Packets).collect())
    }

    /// Whether it can change what became of the packet, of which `met` says what it can have met.
    #[must_use]
    pub fn may_change(&self, passage: &Passage<'_>, met: impl Fn() -> Option<Met>) -> bool {
        // What gets through may have become another packet, which counts at the next router.
        let is_over = matches!(passage.outcome, PacketOutcome::Stopped(_));
        let matters = |rule: &RuleExtent| {
            let Some(at) = &rule.at else { return true };
            let same = |met: &Met| met.is_same(at) && (rule.here_only || is_over || met.keeps());
            met().is_none_or(|met| met.can(at) && !same(&met))
        };
        self.0.iter().any(|extent| match extent {
            Extent::Packets(packets) => packets.may_be(passage),
            Extent::Rule(rule) => rule.may_change(passage) && matters(rule),
        })
    }

    /// Whether packets that differ in their ports only may be told apart.
    #[must_use]
    pub fn looks_at_ports(&self) -> bool {
        self.0.iter().any(|extent| match extent {
            Extent::Packets(packets) => packets.sport.is_some() || packets.dport.is_some(),
            Extent::Rule(_) => true,
        })
    }

    /// The rules that it may be about whose place is known.
    pub fn rules(&self) -> impl Iterator<Item = (&FactsPlace, &RuleExtent)> {
        self.0.iter().filter_map(|extent| match extent {
            Extent::Rule(rule) => Some((rule.at.as_ref()?, rule)),
            Extent::Packets(_) => None,
        })
    }

    /// Whether there is a packet at all that it can concern.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }
}

/// A packet's way through one router, as far as it is known, and what became of it.
#[derive(Debug, Clone)]
pub struct Passage<'a> {
    /// What it looked like, all that it did on its way.
    pub packet: &'a Packet,
    /// Between what it went; none where that is not known.
    pub course: Option<Endpoints>,
    /// What became of it.
    pub outcome: PacketOutcome,
    /// Bridges that are asked by themselves what they stop of it.
    pub apart: &'a [AskedBridge],
}

/// A bridge on the link of a router's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedBridge {
    /// The router's interface.
    pub interface: IfName,
    /// The bridge and whose it is.
    pub bridge: (RouterName, IfName),
}

/// Between what a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoints {
    /// From one interface to another.
    Forwarded,
    /// To the router itself.
    Delivered,
    /// From the router itself.
    Sent,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketOutcome {
    /// It went through.
    Passed,
    /// It was stopped; at this hook, where that is known.
    Stopped(Option<HookPoint>),
}

/// A setting of the kernel, a path below `/proc/sys`, that could not be made.
#[must_use]
pub(crate) fn of_sysctl(path: &str) -> Omission {
    /// These decide about the router's own traffic, about ARP and about multicast, not about what
    /// else it forwards.
    const NO_MATTER: [&str; 13] = [
        "mc_forwarding",
        "ip_default_ttl",
        "ip_nonlocal_bind",
        "ip_forward_use_pmtu",
        "tcp_fwmark_accept",
        "fwmark_reflect",
        // It is gone from newer kernels; helpers open only what an earlier connection asked for.
        "nf_conntrack_helper",
        "secure_redirects",
        "shared_media",
        "accept_redirects",
        "arp_ignore",
        "arp_announce",
        "arp_filter",
    ];
    let key = path.rsplit('/').next().unwrap_or_default();
    if NO_MATTER.contains(&key) {
        return Omission::of_packets(OmissionKind::Sysctl, []);
    }
    match path.split('/').nth(1) {
        Some("ipv4") => Omission::of_family(OmissionKind::Sysctl, Family::V4),
        Some("ipv6") => Omission::of_family(OmissionKind::Sysctl, Family::V6),
        _ => Omission::of_everything(OmissionKind::Sysctl),
    }
}
