//! Where a packet may get when rules that depend on more than the packet say something else.
//!
//! A trace shows one way of a packet. From the first rule that may have said something else, its
//! way is thought out: rules that the packet was held against, and that read nothing which differs
//! now, say what they said; all others are asked what they may say, and where that cannot be told,
//! both ways are followed. Pure code: the ruleset, what was seen, and routing are arguments.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{Alone, Answer, Does, Field, Packet, Rule, Test, Translation, Verdict};
use crate::firewall::{RulePlace, place::HookPoint};

/// Rules that are asked in one walk before it is given up.
const PATIENCE: usize = 20_000;

/// The rules that a packet can meet, with what was seen of it there.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Base chains.
    pub bases: Vec<Base>,
    /// All chains.
    pub chains: Vec<Chain>,
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
pub struct Chain {
    /// Where it is; the handle is 0.
    pub place: RulePlace,
    /// Its rules in order.
    pub rules: Arc<[Rule]>,
    /// What each said of the packet, where it was asked once.
    pub said: Vec<Option<bool>>,
    /// Whether the packet was seen in it.
    pub visited: bool,
}

/// A rule: the numbers of its chain and of itself therein.
pub type RuleNumber = (usize, usize);

/// How a way ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
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
pub enum Route {
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
pub struct Ways {
    /// How they end.
    pub fates: BTreeSet<Fate>,
    /// Rules on them that depend on more than the packet and can match it.
    pub varying: BTreeSet<RuleNumber>,
    /// Rules that read what such a rule had set, and matched.
    pub readers: BTreeSet<RuleNumber>,
}

/// What the packet was like and how it ended when it was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The packet as it came in.
    pub packet: Packet,
    /// Whether it was on its way to the router itself.
    pub local: bool,
    /// The rule that ended it, if one did.
    pub ended_by: Option<RuleNumber>,
    /// What rules changed that were seen to match.
    pub changed: BTreeSet<Field>,
}

impl Chain {
    /// A chain in which nothing was seen.
    #[must_use]
    pub fn new(place: RulePlace, rules: Arc<[Rule]>) -> Self {
        Self {
            said: vec![None; rules.len()],
            visited: false,
            place,
            rules,
        }
    }
}

impl Program {
    /// Adds a chain, unless it is there.
    pub fn add(&mut self, chain: Chain) {
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

    /// Follows the packet's ways.
    pub fn walk(
        &self,
        seen: &Seen,
        suppose: Suppose,
        route: &mut dyn FnMut(&Packet) -> Route,
    ) -> Ways {
        let mut bases: Vec<&Base> = self.bases.iter().collect();
        bases.sort_by_key(|base| (base.hook, base.priority));
        let mut walk = Walk {
            program: self,
            bases,
            seen,
            suppose,
            route,
            ways: Ways::default(),
            known: HashSet::new(),
            todo: Vec::new(),
            asked: 0,
        };
        let begin = State {
            packet: seen.packet.clone(),
            differs: BTreeSet::new(),
            left: false,
            local: false,
            sets: BTreeSet::new(),
        };
        walk.hook(0, begin);
        while let Some((at, stack, state)) = walk.todo.pop() {
            walk.run(at, stack, state);
        }
        walk.ways
    }
}

/// A packet on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    packet: Packet,
    /// What of it may differ from what was seen.
    differs: BTreeSet<Field>,
    /// Whether it has left the way that was seen.
    left: bool,
    /// Whether it is on its way to the router itself.
    local: bool,
    /// Sets that it was put into since.
    sets: BTreeSet<String>,
}

/// Where in the chains a packet is: the next rule, behind those that wait for it to come back.
type Stack = Vec<RuleNumber>;

struct Walk<'a> {
    program: &'a Program,
    bases: Vec<&'a Base>,
    seen: &'a Seen,
    suppose: Suppose,
    route: &'a mut dyn FnMut(&Packet) -> Route,
    ways: Ways,
    /// Where both ways were followed before.
    known: HashSet<(usize, Stack, State)>,
    /// Ways that are yet to be followed.
    todo: Vec<(usize, Stack, State)>,
    asked: usize,
}

impl Walk<'_> {
    fn end(&mut self, fate: Fate) {
        self.ways.fates.insert(fate);
    }

    /// Goes on at the base chain with this number in the order of hooks.
    fn hook(&mut self, at: usize, state: State) {
        let mut state = state;
        let before = at
            .checked_sub(1)
            .and_then(|at| self.bases.get(at))
            .map(|b| b.hook);
        let next = self.bases.get(at).map(|base| base.hook);
        let was_early = before.is_none_or(|hook| hook <= HookPoint::Prerouting);
        let is_early = next.is_some_and(|hook| hook <= HookPoint::Prerouting);
        if was_early && !is_early {
            match self.routed(&mut state) {
                Some(here) => state.local = here,
                None => return,
            }
        }
        let Some(base) = self.bases.get(at).copied() else {
            return self.leave(&state);
        };
        let passes = match base.hook {
            HookPoint::Ingress | HookPoint::Prerouting => true,
            HookPoint::Input => state.local,
            HookPoint::Forward | HookPoint::Postrouting => !state.local,
            HookPoint::Output => false,
        };
        let chain = self.program.number(&base.place);
        let asked = chain.filter(|chain| passes && self.comes_to(*chain, &state));
        match asked {
            Some(chain) => self.run(at, vec![(chain, 0)], state),
            None => self.hook(at + 1, state),
        }
    }

    /// Whether the packet comes to a base chain: on the way that was seen, if it was seen there.
    fn comes_to(&self, chain: usize, state: &State) -> bool {
        state.left || self.program.chains[chain].visited
    }

    /// Where routing leads, which is done only once: whether to the router itself; none where the
    /// way ends.
    fn routed(&mut self, state: &mut State) -> Option<bool> {
        const READ: [Field; 7] = [
            Field::Destination,
            Field::Source,
            Field::Mark,
            Field::Tos,
            Field::SourcePort,
            Field::DestinationPort,
            Field::Protocol,
        ];
        let local = self.seen.local;
        if !READ.iter().any(|field| state.differs.contains(field)) {
            return Some(local);
        }
        match (self.route)(&state.packet) {
            Route::Same => Some(local),
            Route::Local => Some(true),
            Route::By(name) => {
                state.packet.forget(Field::Outgoing);
                state.packet = state.packet.clone().with_device(Field::Outgoing, name);
                state.differs.insert(Field::Outgoing);
                Some(false)
            }
            Route::Nowhere => {
                self.end(Fate::Stopped);
                None
            }
            Route::Open => {
                self.end(Fate::Open);
                None
            }
        }
    }

    /// The packet is behind all chains.
    fn leave(&mut self, state: &State) {
        let by_another = state.differs.contains(&Field::Outgoing)
            && !state.differs.contains(&Field::Destination);
        self.end(match (state.left, state.local) {
            (false, _) => Fate::Same,
            (true, true) => Fate::Local,
            (true, false) if by_another => Fate::Elsewhere,
            (true, false) => Fate::Out,
        });
    }

    /// Goes on at the top of the stack, in the base chain number `at`.
    fn run(&mut self, at: usize, mut stack: Stack, mut state: State) {
        loop {
            self.asked += 1;
            if self.asked > PATIENCE {
                return self.end(Fate::Open);
            }
            let Some(&(chain, number)) = stack.last() else {
                return self.policy(at, state);
            };
            let Some(rule) = self.program.chains[chain].rules.get(number) else {
                stack.pop();
                continue;
            };
            if let Some(top) = stack.last_mut() {
                top.1 += 1;
            }
            let (matches, fails) = self.ask((chain, number), rule, &state);
            if matches && fails {
                if !self.known.insert((at, stack.clone(), state.clone())) {
                    return;
                }
                let mut other = state.clone();
                self.compare((chain, number), rule, false, &mut other);
                self.todo.push((at, stack.clone(), other));
            }
            self.compare((chain, number), rule, matches, &mut state);
            if matches {
                match self.act(at, (chain, number), rule, stack, state) {
                    Some(next) => (stack, state) = next,
                    None => return,
                }
            }
        }
    }

    fn policy(&mut self, at: usize, state: State) {
        match self.bases.get(at) {
            Some(base) if base.policy_drops => {
                let same = !state.left;
                self.end(if same { Fate::Same } else { Fate::Stopped });
            }
            _ => self.hook(at + 1, state),
        }
    }

    /// Whether a rule may match, and whether it may not.
    fn ask(&mut self, id: RuleNumber, rule: &Rule, state: &State) -> (bool, bool) {
        let said = self.program.chains[id.0].said.get(id.1).copied().flatten();
        let reads_other = reads(rule, state);
        let plain = match (said, reads_other) {
            (Some(true), false) => Answer::Yes,
            (Some(true), true) => {
                let tests = rule.matches.iter().filter(|m| m.varying().is_none());
                let changed = tests.filter(|m| reads_any(&m.test, state));
                Answer::all(changed.map(|m| m.answer(&state.packet)))
            }
            (Some(false), false) if !varies(rule) => Answer::No,
            _ => rule.may_match_at_best(&state.packet),
        };
        if reads_other && (plain != Answer::No || said == Some(true)) {
            self.ways.readers.insert(id);
        }
        let (may, may_not) = match plain {
            Answer::No => return (false, true),
            Answer::Yes => (true, false),
            Answer::CannotTell => (true, true),
        };
        if !varies(rule) {
            return (may, may_not);
        }
        if effects(rule) {
            self.ways.varying.insert(id);
        }
        match self.say(id, rule, said) {
            Some(true) => (may, may_not),
            Some(false) => (false, true),
            None => (true, true),
        }
    }

    /// What a rule that varies is taken to say; none where it may be both.
    fn say(&self, id: RuleNumber, rule: &Rule, said: Option<bool>) -> Option<bool> {
        match self.suppose {
            Suppose::Fixed(fixed, says) if fixed == id => return Some(says),
            _ => {}
        }
        let anything = self.suppose == Suppose::Anything;
        let mut all = Some(true);
        for varying in rule
            .matches
            .iter()
            .filter_map(|m| Some((m.negated, m.varying()?)))
        {
            let (negated, varying) = varying;
            let alone = if negated {
                varying.alone.opposite()
            } else {
                varying.alone
            };
            let one = match alone {
                Alone::Chooses => Some(true),
                Alone::AsMeasured => said,
                _ if anything => None,
                Alone::Matches => Some(true),
                Alone::Fails => Some(false),
                Alone::Either => None,
            };
            all = match (all, one) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            };
        }
        all
    }

    /// Notes whether the packet leaves the way that was seen by what a rule says of it.
    fn compare(&self, id: RuleNumber, rule: &Rule, matches: bool, state: &mut State) {
        let said = self.program.chains[id.0].said.get(id.1).copied().flatten();
        let chooses = matches && rule.varying().any(|v| v.alone == Alone::Chooses);
        if effects(rule) && (said != Some(matches) || chooses) && !state.left {
            state.left = true;
            state.differs.extend(&self.seen.changed);
        }
    }

    /// Does what a rule does; none where the packet's way has been followed to its end.
    fn act(
        &mut self,
        at: usize,
        id: RuleNumber,
        rule: &Rule,
        mut stack: Stack,
        mut state: State,
    ) -> Option<(Stack, State)> {
        for does in &rule.does {
            match does {
                Does::Note | Does::Copy => {}
                Does::Remember(place) => {
                    if state.left {
                        state.sets.insert(place.clone());
                        state.differs.insert(Field::Sets);
                    }
                }
                Does::Set { field, mask, value } => set(&mut state, *field, *mask, *value),
                Does::Translate(translation) => {
                    self.translate(at, translation, &state);
                    return None;
                }
                Does::Decide(verdict) => {
                    return self.decide(at, id, verdict, stack, state);
                }
                Does::Choose(choices) => {
                    let mut rest = Vec::new();
                    for (test, verdict) in choices {
                        let answer = test.as_ref().map(|test| test.answer(&state.packet));
                        match answer {
                            Some(Answer::No) => continue,
                            Some(Answer::Yes) => {
                                rest.push(verdict);
                                break;
                            }
                            _ => rest.push(verdict),
                        }
                    }
                    let last = rest.pop();
                    for verdict in rest {
                        let next = self.decide(at, id, verdict, stack.clone(), state.clone());
                        if let Some((stack, state)) = next {
                            self.todo.push((at, stack, state));
                        }
                    }
                    return match last {
                        Some(verdict) => self.decide(at, id, verdict, stack, state),
                        None => Some((stack, state)),
                    };
                }
            }
        }
        stack.shrink_to_fit();
        Some((stack, state))
    }

    /// Goes on behind a nat chain, once for each address that a packet may get there.
    fn translate(&mut self, at: usize, translation: &Translation, state: &State) {
        let mut one = translation.clone();
        for net in translation.to.iter().skip(1) {
            one.to = vec![*net];
            let mut other = state.clone();
            translate(&mut other, &one);
            self.hook(at + 1, other);
        }
        one.to = translation.to.first().copied().into_iter().collect();
        let mut first = state.clone();
        translate(&mut first, &one);
        self.hook(at + 1, first);
    }

    fn decide(
        &mut self,
        at: usize,
        id: RuleNumber,
        verdict: &Verdict,
        mut stack: Stack,
        state: State,
    ) -> Option<(Stack, State)> {
        let as_seen = !state.left || self.seen.ended_by == Some(id);
        match verdict {
            Verdict::Accept => self.hook(at + 1, state),
            Verdict::Drop | Verdict::Reject(_) if as_seen => self.end(Fate::Same),
            Verdict::Drop | Verdict::Reject(_) => self.end(Fate::Stopped),
            Verdict::Return => {
                stack.pop();
                return Some((stack, state));
            }
            Verdict::Jump(name) | Verdict::Goto(name) => {
                let Some(chain) = self.program.called(id.0, name) else {
                    let fate = if as_seen { Fate::Same } else { Fate::Open };
                    self.end(fate);
                    return None;
                };
                if matches!(verdict, Verdict::Goto(_)) {
                    stack.pop();
                }
                stack.push((chain, 0));
                return Some((stack, state));
            }
            _ if as_seen => self.end(Fate::Same),
            _ => self.end(Fate::Open),
        }
        None
    }
}

fn varies(rule: &Rule) -> bool {
    rule.varying().next().is_some()
}

/// Whether it makes a difference for the packet's way whether the rule matches.
fn effects(rule: &Rule) -> bool {
    let some = |does: &Does| !matches!(does, Does::Note | Does::Copy);
    rule.does.iter().any(some)
}

/// Whether the rule reads something that differs from what was seen.
fn reads(rule: &Rule, state: &State) -> bool {
    let chooses = rule.does.iter().any(|does| match does {
        Does::Choose(choices) => {
            let mut tests = choices.iter().filter_map(|(test, _)| test.as_ref());
            tests.any(|test| reads_any(test, state))
        }
        _ => false,
    });
    chooses || rule.matches.iter().any(|m| reads_any(&m.test, state))
}

fn reads_any(test: &Test, state: &State) -> bool {
    let unknown = |field: &Field| *field == Field::Other && !state.differs.is_empty();
    let mut fields = test.reads().iter();
    fields.any(|field| state.differs.contains(field) || unknown(field))
}

fn set(state: &mut State, field: Field, mask: u32, value: Option<u32>) {
    let old = if mask == u32::MAX {
        Some(0)
    } else {
        state.packet.number(field)
    };
    state.packet.forget(field);
    if let Some(new) = value.zip(old).map(|(value, old)| (old & !mask) ^ value) {
        state.packet = state.packet.clone().with(field, new);
    }
    if state.left {
        state.differs.insert(field);
    }
}

fn translate(state: &mut State, translation: &Translation) {
    let (address, port) = if translation.source {
        (Field::Source, Field::SourcePort)
    } else {
        (Field::Destination, Field::DestinationPort)
    };
    let mut packet = state.packet.clone();
    packet.forget(address);
    for net in &translation.to {
        packet = packet.with_address(address, *net);
    }
    if let Some((first, last)) = translation.ports.first() {
        packet.forget(port);
        packet = packet.within(port, u32::from(*first), u32::from(*last));
    } else if translation.source {
        packet.forget(port);
    }
    state.packet = packet;
    if state.left {
        state.differs.extend([address, port]);
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
