//! Routers that a packet passes at layer 2, between two that it is sent to, and whether their rules let
//! it: read, since no lab has ports of bridges.

use std::collections::BTreeSet;

use super::{
    omission::{AskedBridge, BridgedFrame, Filters},
    state::{InterfaceState, LabState, RouterState},
    topology::{MasterKind, Ruleset, RulesetKind},
};
use crate::{
    firewall::rule::Packet,
    model::{IfName, RouterName},
};

/// An end of a link.
pub(crate) type WireEnd<'a> = (&'a RouterName, &'a IfName);

/// By whose bridges packets pass from the first end of each pair to the second one, where it is known
/// behind which ports these are.
pub(crate) fn bridged<'a>(
    lab: &LabState,
    wires: impl Iterator<Item = (WireEnd<'a>, WireEnd<'a>)>,
) -> Vec<String> {
    let wires: BTreeSet<(WireEnd<'a>, WireEnd<'a>)> = wires.collect();
    let mut told = Vec::new();
    for (from, to) in wires {
        for router in &lab.routers {
            if let Some((comes, leaves)) = ports(router, from, to) {
                told.push(format!(
                    "between {} and {} it is bridged by {} ({} → {})",
                    from.0, to.0, router.name, comes.name, leaves.name
                ));
            }
        }
    }
    told
}

/// The two ports of a bridge of `router` that two ends are behind.
fn ports<'r>(
    router: &'r RouterState,
    from: WireEnd<'_>,
    to: WireEnd<'_>,
) -> Option<(&'r InterfaceState, &'r InterfaceState)> {
    let (comes, leaves) = (port(router, from)?, port(router, to)?);
    let hands_on = comes.name != leaves.name && comes.link.master == leaves.link.master;
    hands_on.then_some((comes, leaves))
}

/// The port of a bridge of `router` that an end is behind.
fn port<'r>(router: &'r RouterState, (name, interface): WireEnd<'_>) -> Option<&'r InterfaceState> {
    let mut ports = router.interfaces.iter().filter(|port| is_port(port));
    ports.find(|port| {
        let mut ends = port.link.ends.iter();
        ends.any(|(of, end)| of == name && end == interface)
    })
}

/// Whether a ruleset has chains that rules for filters are not looked for in.
fn has_nat_chains(ruleset: &Ruleset) -> bool {
    ruleset.kind == RulesetKind::Nft && ruleset.text.contains("type nat ")
}

fn is_port(interface: &InterfaceState) -> bool {
    let master = interface.link.master.as_ref();
    master.is_some_and(|master| master.kind == MasterKind::Bridge)
}

/// The bridges of a lab of which it is known who is behind their ports.
#[derive(Debug)]
pub(crate) struct Bridges<'a> {
    lab: &'a LabState,
    routers: Vec<(&'a RouterState, Filters)>,
}

type Ends<'b> = &'b [(RouterName, IfName)];

/// A router that a packet passes at layer 2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crossing<'b> {
    pub(crate) router: &'b RouterName,
    /// The ports by which it comes and leaves.
    pub(crate) comes: &'b IfName,
    pub(crate) leaves: &'b IfName,
    /// Who is behind these ports.
    behind: (Ends<'b>, Ends<'b>),
    bridge: Option<&'b InterfaceState>,
    filters: &'b Filters,
    /// Whether these have every rule that may stop a packet.
    reads_all: bool,
    /// Whether its frames may have a tag, which rules may see and hide behind.
    tagged: bool,
}

/// Whether a router lets a packet pass at layer 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Passing {
    /// No rule that it meets can stop it.
    Free,
    /// This rule or policy may.
    Doubted(String),
    /// This one does.
    Stopped(String),
}

impl<'a> Bridges<'a> {
    pub(crate) fn of(lab: &'a LabState) -> Self {
        let knows = |router: &&RouterState| {
            let mut ports = router.interfaces.iter().filter(|port| is_port(port));
            ports.any(|port| !port.link.ends.is_empty())
        };
        let routers = lab.routers.iter().filter(knows);
        Self {
            lab,
            routers: routers
                .map(|router| (router, Filters::of(&router.rulesets)))
                .collect(),
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.routers.is_empty()
    }

    /// The routers that packets pass at layer 2 from one end to the other, in their order as far as one is
    /// known to be behind a port of another.
    pub(crate) fn between(&self, from: WireEnd<'_>, to: WireEnd<'_>) -> Vec<Crossing<'_>> {
        let tagged = self.is_tagged(from) || self.is_tagged(to);
        let mut found = Vec::new();
        for (router, filters) in &self.routers {
            let Some((comes, leaves)) = ports(router, from, to) else {
                continue;
            };
            let master = comes.link.master.as_ref();
            let mut all = router.interfaces.iter();
            let bridge = all.find(|i| master.is_some_and(|master| master.name == i.name));
            found.push(Crossing {
                router: &router.name,
                comes: &comes.name,
                leaves: &leaves.name,
                behind: (&comes.link.ends, &leaves.link.ends),
                bridge,
                filters,
                reads_all: !router.rulesets.iter().any(has_nat_chains),
                tagged: tagged || bridge.is_none_or(|bridge| bridge.link.heeds_vlans),
            });
        }
        let mut ordered = Vec::with_capacity(found.len());
        while !found.is_empty() {
            let is_first = |one: &Crossing<'_>| {
                !found
                    .iter()
                    .any(|other: &Crossing<'_>| other.is_before(one))
            };
            let first = found.iter().position(is_first).unwrap_or(0);
            ordered.push(found.remove(first));
        }
        ordered
    }

    /// Whether an interface gives its frames a tag.
    fn is_tagged(&self, (router, interface): WireEnd<'_>) -> bool {
        let router = self.lab.routers.iter().find(|state| state.name == *router);
        let mut all = router.into_iter().flat_map(|router| &router.interfaces);
        all.find(|i| i.name == *interface)
            .is_none_or(|interface| interface.link.over.is_some())
    }

    /// The bridges that all pass which comes from `others` to one end, as they are known there. What a
    /// bridge's own router sends passes it as little as others do that are behind the same port.
    pub(crate) fn asked_before(&self, to: WireEnd<'_>, others: &[WireEnd<'_>]) -> Vec<AskedBridge> {
        let is_bridge = |end: &&WireEnd<'_>| self.routers.iter().any(|(r, _)| r.name == *end.0);
        let own: BTreeSet<&RouterName> = others.iter().filter(is_bridge).map(|end| end.0).collect();
        let routed: Vec<WireEnd<'_>> = others.iter().filter(|e| !is_bridge(e)).copied().collect();
        let mut asked = self.asked(to, &routed);
        asked.retain(|asked| own.iter().all(|router| **router == asked.bridge.0));
        asked
    }

    /// The bridges between one end and all of the others, as they are known at the first.
    pub(crate) fn asked(&self, from: WireEnd<'_>, to: &[WireEnd<'_>]) -> Vec<AskedBridge> {
        let mut asked: Option<Vec<AskedBridge>> = None;
        for to in to {
            let here: Vec<AskedBridge> = self
                .between(from, *to)
                .iter()
                .filter_map(|crossing| {
                    let bridge = (crossing.router.clone(), crossing.bridge?.name.clone());
                    let interface = from.1.clone();
                    Some(AskedBridge { interface, bridge })
                })
                .collect();
            asked = Some(match asked {
                Some(before) => before
                    .into_iter()
                    .filter(|one| here.contains(one))
                    .collect(),
                None => here,
            });
        }
        asked.unwrap_or_default()
    }
}

impl Crossing<'_> {
    /// Whether packets are known to pass it before another.
    fn is_before(&self, other: &Self) -> bool {
        let has = |ends: Ends<'_>, of: &Self| {
            self.router != other.router && ends.iter().any(|(router, _)| router == of.router)
        };
        has(self.behind.1, other) || has(other.behind.0, self)
    }

    /// What becomes of a packet there, of which all is known but for interfaces.
    pub(crate) fn passing(&self, packet: &Packet) -> Passing {
        let Some(bridge) = self.bridge else {
            return Passing::Doubted("a bridge that the facts do not show".to_owned());
        };
        let rules = &bridge.link.frame_rules;
        let may = rules.extents.iter();
        let may: Vec<_> = may.filter(|rule| rule.may_match_bridged(packet)).collect();
        let Some(first) = may.first() else {
            return Passing::Free;
        };
        let name = |text: &str| match text {
            "" => "a rule that is not known".to_owned(),
            text => format!("`{text}`"),
        };
        let rewritten = may
            .iter()
            .any(|rule| rule.may_rewrite() && !rule.text.is_empty());
        if self.tagged || rewritten || !rules.whole {
            return Passing::Doubted(name(&first.text));
        }
        let stop = |meets_ip_rules| {
            self.filters.stop_of_bridged(&BridgedFrame {
                packet,
                bridge: &bridge.name,
                comes: self.comes,
                leaves: self.leaves,
                meets_ip_rules,
            })
        };
        let surely_of_ip = |family| rules.surely_of_ip.contains(&family);
        match stop(packet.family.is_some_and(surely_of_ip)) {
            Some(stop) if stop.sure => return Passing::Stopped(stop.text),
            Some(stop) => return Passing::Doubted(stop.text),
            None => {}
        }
        match stop(rules.of_ip) {
            Some(stop) => Passing::Doubted(stop.text),
            None if self.reads_all => Passing::Free,
            None => Passing::Doubted(name(&first.text)),
        }
    }
}
