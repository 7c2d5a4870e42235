//! Which hooks a chain of a ruleset can be reached from, read in the ruleset's text.

use std::collections::{BTreeMap, BTreeSet};

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

    pub(super) fn is_empty(self) -> bool {
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
        self.hooks.insert(chain.to_owned(), hooks);
        if !filters {
            self.others.insert(chain.to_owned());
        }
    }

    /// Whether no base chain of the table does more than to filter.
    pub(super) fn filter(&self) -> bool {
        self.others.is_empty()
    }

    pub(super) fn add_jump(&mut self, from: Option<&str>, to: &str) {
        match from {
            Some(from) => {
                self.leads
                    .entry(from.to_owned())
                    .or_default()
                    .insert(to.to_owned());
            }
            None => {
                self.mapped.insert(to.to_owned());
            }
        }
    }

    /// The hooks that `chain` can be reached from; none where no chain of a hook leads to it.
    pub(super) fn of(&self, chain: &str) -> Hooks {
        let mut hooks = Hooks::default();
        let mut seen = BTreeSet::new();
        let mut pending = vec![chain];
        while let Some(chain) = pending.pop() {
            if !seen.insert(chain) {
                continue;
            }
            if self.mapped.contains(chain) {
                return Hooks::ALL;
            }
            hooks = hooks.with(self.hooks.get(chain).copied().unwrap_or_default());
            let callers = self.leads.iter().filter(|(_, to)| to.contains(chain));
            pending.extend(callers.map(|(from, _)| from.as_str()));
        }
        hooks
    }
}
