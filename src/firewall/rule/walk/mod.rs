//! Where a packet may get when rules that depend on more than the packet say something else.
//!
//! A trace shows one way of a packet. From the first rule that may have said something else, its
//! way is thought out: rules that the packet was held against, and that read nothing which differs
//! now, say what they said; all others are asked what they may say, and where that cannot be told,
//! both ways are followed. Pure code: the ruleset, what was seen, and routing are arguments.

mod follow;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;

use super::{Does, Field, Packet, Rule, RuleVerdict};
use crate::firewall::{RulePlace, place::HookPoint};

/// The rules that a packet can meet, with what was seen of it there.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Base chains.
    pub bases: Vec<Base>,
    /// All chains.
    pub chains: Vec<ChainRules>,
    /// Rules that the lab lacks, where the packet was measured and not traced: it keeps to the way
    /// that was measured until such a rule may have matched it. None where it was traced.
    pub left_out: Option<BTreeSet<RuleNumber>>,
    find: HashMap<RulePlace, usize>,
}

/// A chain that packets come to by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Where it is; the handle is 0.
    pub place: RulePlace,
    /// At which hook.
    pub hook: HookPoint,
    /// Chains of lower priority come first.
    pub priority: i32,
    /// Whether it drops what no rule decides on.
    pub policy_drops: bool,
}

/// The rules of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainRules {
    /// Where it is; the handle is 0.
    pub place: RulePlace,
    /// Its rules in order.
    pub rules: Arc<[Rule]>,
    /// What each said of the packet, where it was asked once.
    pub said: Vec<Option<bool>>,
    /// Where rules that matched were seen to lead it, by their index: what a map holds, and what a
    /// rule does that nobody here understands.
    pub led: BTreeMap<usize, Led>,
    /// Whether the packet was seen in it.
    pub visited: bool,
}

/// Where a rule was seen to lead a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Led {
    /// To the next rule.
    On,
    /// Elsewhere.
    To(RuleVerdict),
}

/// A rule: the numbers of its chain and of itself therein.
pub type RuleNumber = (usize, usize);

/// How a way ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalkEnd {
    /// As it ended when it was seen.
    Same,
    /// The packet leaves the router.
    Out,
    /// It leaves by another interface than the one seen, because of a mark or the like.
    Elsewhere,
    /// It ends at the router itself.
    Local,
    /// A rule, a policy or routing stops it.
    Stopped,
    /// That cannot be told.
    Open,
}

/// Where routing leads a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutedTo {
    /// The same way as it was seen to go.
    Same,
    /// Out by this interface.
    By(String),
    /// To the router itself.
    Local,
    /// Nowhere.
    Nowhere,
    /// That cannot be told.
    Open,
}

/// What rules that depend on more than the packet are taken to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suppose {
    /// What they say of a packet that comes alone; where chance decides, both.
    Alone,
    /// Anything.
    Anything,
    /// One of them this, the others what they say of a packet that comes alone.
    Fixed(RuleNumber, bool),
}

/// Ends of a packet's ways.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WayEnds {
    /// How they end.
    pub fates: BTreeSet<WalkEnd>,
    /// Rules on them that depend on more than the packet and can match it.
    pub varying: BTreeSet<RuleNumber>,
    /// Rules that read what such a rule had set, and matched.
    pub readers: BTreeSet<RuleNumber>,
    /// Where the packet is on its way to when they end.
    pub targets: BTreeSet<WalkTarget>,
    /// Whether it may be on its way elsewhere, too: to what a map holds that is not known.
    pub elsewhere: bool,
    /// Rules that the lab lacks and that may match it on its way.
    pub met: BTreeSet<RuleNumber>,
    /// How the ways end that meet none of these, as far as the other rules tell.
    pub kept: BTreeSet<WalkEnd>,
}

/// Where a packet is on its way to, and from where, behind what rewrites it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalkTarget {
    /// Its source; none where a rule makes it one of the router's own.
    pub source: Option<IpNet>,
    /// Its destination.
    pub destination: IpNet,
    /// First and last of the ports that it may go to; none where it has no port.
    pub ports: Option<(u32, u32)>,
    /// The rule that sends it here or to another of its addresses, always to the same one.
    pub chosen: Option<RuleNumber>,
}

/// What the packet was like and how it ended when it was seen.
#[derive(Debug, Clone)]
pub struct SeenPacket {
    /// The packet as it came in.
    pub packet: Packet,
    /// Whether it was on its way to the router itself.
    pub local: bool,
    /// Whether the router itself sent it.
    pub sent: bool,
    /// The rule that ended it, if one did.
    pub ended_by: Option<RuleNumber>,
    /// What rules changed that were seen to match.
    pub changed: BTreeSet<Field>,
    /// Whether it came from the hardware address that it really has: a router's.
    pub by_router: bool,
}

impl ChainRules {
    /// A chain in which nothing was seen.
    #[must_use]
    pub fn new(place: RulePlace, rules: Arc<[Rule]>) -> Self {
        Self {
            said: vec![None; rules.len()],
            led: BTreeMap::new(),
            visited: false,
            place,
            rules,
        }
    }
}

impl Program {
    /// Adds a chain, unless it is there.
    pub fn add(&mut self, chain: ChainRules) {
        let key = chain.place.clone();
        if !self.find.contains_key(&key) {
            self.find.insert(key, self.chains.len());
            self.chains.push(chain);
        }
    }

    /// The number of the chain at `place`, whatever its handle.
    #[must_use]
    pub fn number(&self, place: &RulePlace) -> Option<usize> {
        let key = RulePlace {
            handle: 0,
            ..place.clone()
        };
        self.find.get(&key).copied()
    }

    fn called(&self, from: usize, name: &str) -> Option<usize> {
        let place = RulePlace {
            chain: name.to_owned(),
            ..self.chains[from].place.clone()
        };
        self.find.get(&place).copied()
    }

    /// Whether what chance has a part in at a rule is only where a packet goes: the rule leads to
    /// rewriting, and nothing that it leads to can stop a packet.
    #[must_use]
    pub fn only_chooses(&self, (chain, rule): RuleNumber) -> bool {
        let rule = self.chains.get(chain).and_then(|c| c.rules.get(rule));
        rule.is_some_and(|rule| self.leads_to(chain, rule, 0) == Some(true))
    }

    /// Whether a rule leads to rewriting; none where it may stop a packet, or do what is not known.
    fn leads_to(&self, chain: usize, rule: &Rule, depth: usize) -> Option<bool> {
        /// The kernel's own limit to jumps.
        const DEEPEST: usize = 16;
        let mut rewrites = false;
        for does in &rule.does {
            rewrites |= matches!(does, Does::Translate(_));
        }
        for verdict in rule.verdicts() {
            match verdict {
                RuleVerdict::Accept | RuleVerdict::Return => {}
                RuleVerdict::Jump(name) | RuleVerdict::Goto(name) if depth < DEEPEST => {
                    let called = self.called(chain, name)?;
                    for rule in self.chains.get(called)?.rules.iter() {
                        rewrites |= self.leads_to(called, rule, depth + 1)?;
                    }
                }
                _ => return None,
            }
        }
        Some(rewrites)
    }

    /// Follows the packet's ways.
    pub fn walk(
        &self,
        seen: &SeenPacket,
        suppose: Suppose,
        route: &mut dyn FnMut(&Packet) -> RoutedTo,
    ) -> WayEnds {
        follow::follow(self, seen, suppose, route)
    }
}

#[cfg(test)]
mod tests;
