//! Which hooks a chain of a ruleset can be reached from, read in the ruleset's text.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};

use super::{Endpoints, PacketOutcome};
use crate::firewall::place::HookPoint;

/// Hooks that something can be reached from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// On a device, before IP.
    pub ingress: bool,
    /// Before routing.
    pub prerouting: bool,
    /// On the way to a local socket.
    pub input: bool,
    /// Between two interfaces.
    pub forward: bool,
    /// On the way from the router itself.
    pub output: bool,
    /// On the way out.
    pub postrouting: bool,
}

impl Hooks {
    /// Any hook.
    pub const ALL: Self = Self {
        ingress: true,
        prerouting: true,
        input: true,
        forward: true,
        output: true,
        postrouting: true,
    };

    /// The hook of a base chain, by the name that nft(8) or iptables(8) has for it.
    pub(super) fn named(name: &str) -> Self {
        let mut hooks = Self::default();
        match name.to_ascii_lowercase().as_str() {
            "prerouting" => hooks.prerouting = true,
            "input" => hooks.input = true,
            "forward" => hooks.forward = true,
            "output" => hooks.output = true,
            "postrouting" => hooks.postrouting = true,
            "ingress" => hooks.ingress = true,
            _ => return Self::ALL,
        }
        hooks
    }

    /// The hooks at which what a router hands on goes out by the interface that it was routed to: all
    /// rules of FORWARD, and those of `nat` at POSTROUTING, where the rest sees the router's own as well.
    pub(crate) fn of_forwarded(nat: bool) -> Self {
        Self {
            forward: true,
            postrouting: nat,
            ..Self::default()
        }
    }

    /// Whether there are none but these.
    pub(crate) fn is_within(self, others: Self) -> bool {
        self.with(others) == others
    }

    fn with(self, other: Self) -> Self {
        Self {
            ingress: self.ingress || other.ingress,
            prerouting: self.prerouting || other.prerouting,
            input: self.input || other.input,
            forward: self.forward || other.forward,
            output: self.output || other.output,
            postrouting: self.postrouting || other.postrouting,
        }
    }

    /// Whether what comes behind it may look a packet's way up.
    pub(super) fn decides_routes(self) -> bool {
        self.ingress || self.prerouting || self.output
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn all(self) -> impl Iterator<Item = HookPoint> {
        [
            (self.ingress, HookPoint::Ingress),
            (self.prerouting, HookPoint::Prerouting),
            (self.input, HookPoint::Input),
            (self.forward, HookPoint::Forward),
            (self.output, HookPoint::Output),
            (self.postrouting, HookPoint::Postrouting),
        ]
        .into_iter()
        .filter_map(|(has, hook)| has.then_some(hook))
    }

    /// Those of the hooks that a packet with this course and outcome comes to.
    pub(super) fn met(
        self,
        course: Option<Endpoints>,
        outcome: PacketOutcome,
    ) -> impl Iterator<Item = HookPoint> {
        let on_course = move |hook: &HookPoint| match course {
            None => true,
            Some(Endpoints::Forwarded) => !matches!(hook, HookPoint::Input | HookPoint::Output),
            Some(Endpoints::Delivered) => matches!(
                hook,
                HookPoint::Ingress | HookPoint::Prerouting | HookPoint::Input
            ),
            Some(Endpoints::Sent) => matches!(hook, HookPoint::Output | HookPoint::Postrouting),
        };
        let reached = move |hook: &HookPoint| match outcome {
            PacketOutcome::Stopped(Some(at)) => *hook <= at,
            _ => true,
        };
        self.all().filter(on_course).filter(reached)
    }
}

/// The chains of one table: their hooks, and which chains each leads to.
#[derive(Debug, Default)]
pub(super) struct Chains {
    declared: BTreeSet<String>,
    hooks: BTreeMap<String, Hooks>,
    /// Base chains that do more than to filter: nat and route chains.
    others: BTreeSet<String>,
    leads: BTreeMap<String, BTreeSet<String>>,
    /// Led to from a map, which any rule may use.
    mapped: BTreeSet<String>,
    /// What each chain can be reached from, once it was asked for.
    reached: OnceCell<BTreeMap<String, Hooks>>,
}

impl Chains {
    /// Notes that the table has the chain.
    pub(super) fn add(&mut self, chain: &str) {
        self.declared.insert(chain.to_owned());
    }

    /// Whether the table has the chain.
    pub(super) fn has(&self, chain: &str) -> bool {
        self.declared.contains(chain)
    }

    /// Whether the chain is a hook's own.
    pub(super) fn is_base(&self, chain: &str) -> bool {
        self.hooks.contains_key(chain)
    }

    pub(super) fn add_base(&mut self, chain: &str, hooks: Hooks, filters: bool) {
        self.reached.take();
        self.hooks.insert(chain.to_owned(), hooks);
        if !filters {
            self.others.insert(chain.to_owned());
        }
    }

    /// Whether no base chain of the table does more than to filter.
    pub(super) fn filter(&self) -> bool {
        self.others.is_empty()
    }

    /// Whether the chain is a hook's own and does more than to filter: of the hooks that packets pass on
    /// their way through the router, these are the chains of nat.
    pub(super) fn translates(&self, chain: &str) -> bool {
        self.others.contains(chain)
    }

    pub(super) fn add_jump(&mut self, from: Option<&str>, to: &str) {
        self.reached.take();
        match from {
            Some(from) => {
                // Thousands of rules lead to the same few chains and targets.
                let noted = self.leads.get(from).is_some_and(|led| led.contains(to));
                if !noted {
                    let led = self.leads.entry(from.to_owned()).or_default();
                    led.insert(to.to_owned());
                }
            }
            None => {
                self.mapped.insert(to.to_owned());
            }
        }
    }

    /// The hooks that `chain` can be reached from; none where no chain of a hook leads to it.
    pub(super) fn of(&self, chain: &str) -> Hooks {
        let reached = self.reached.get_or_init(|| self.follow());
        reached.get(chain).copied().unwrap_or_default()
    }

    /// What each chain can be reached from. A chain is looked at again only where that adds a hook to it, so
    /// that the time grows with the jumps and not with their square.
    fn follow(&self) -> BTreeMap<String, Hooks> {
        let mut reached: BTreeMap<&str, Hooks> = BTreeMap::new();
        let based = self.hooks.iter().map(|(chain, hooks)| (chain, *hooks));
        let mapped = self.mapped.iter().map(|chain| (chain, Hooks::ALL));
        let mut pending: Vec<(&str, Hooks)> = based
            .chain(mapped)
            .map(|(chain, hooks)| (chain.as_str(), hooks))
            .collect();
        while let Some((chain, hooks)) = pending.pop() {
            let known = reached.entry(chain).or_default();
            let all = known.with(hooks);
            if *known == all {
                continue;
            }
            *known = all;
            let next = self.leads.get(chain).into_iter().flatten();
            pending.extend(next.map(|to| (to.as_str(), all)));
        }
        let reached = reached.into_iter();
        reached.map(|(chain, at)| (chain.to_owned(), at)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    fn table() -> Chains {
        let mut chains = Chains::default();
        chains.add_base("FORWARD", Hooks::named("forward"), true);
        chains.add_base("INPUT", Hooks::named("input"), true);
        for (from, to) in [("FORWARD", "a"), ("a", "b"), ("b", "a"), ("b", "c")] {
            chains.add_jump(Some(from), to);
        }
        chains.add_jump(Some("INPUT"), "b");
        chains.add_jump(Some("orphan"), "leaf");
        chains
    }

    #[test]
    fn hooks_follow_jumps_in_circles_and_from_several_chains() {
        let chains = table();
        let both = Hooks::named("forward").with(Hooks::named("input"));
        for chain in ["a", "b", "c"] {
            assert_eq!(chains.of(chain), both, "{chain}");
        }
        assert_eq!(chains.of("INPUT"), Hooks::named("input"));
        for chain in ["orphan", "leaf", "nosuch"] {
            assert!(chains.of(chain).is_empty(), "{chain}");
        }
    }

    #[test]
    fn the_ways_of_a_table_are_followed_once_and_again_where_one_is_added() {
        let mut chains = table();
        assert!(chains.of("leaf").is_empty());
        let first = chains.reached.get().map(ptr::from_ref);
        assert!(first.is_some() && !chains.of("c").is_empty());
        assert_eq!(chains.reached.get().map(ptr::from_ref), first);
        assert_eq!(chains.follow().len(), 5, "only what is reached is kept");
        chains.add_jump(None, "orphan");
        assert_eq!(chains.of("leaf"), Hooks::ALL);
        chains.add_base("new", Hooks::named("output"), true);
        assert_eq!(chains.of("new"), Hooks::named("output"));
    }
}
