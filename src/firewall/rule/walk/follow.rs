//! Following a packet's ways, rule by rule.

use std::collections::{BTreeSet, HashSet};

use super::{
    Base, Led, Program, RoutedTo, RuleNumber, SeenPacket, Suppose, WalkEnd, WalkTarget, WayEnds,
};
use crate::firewall::{
    place::HookPoint,
    rule::{
        Alone, Caveat, Does, Field, Goal, Match, Packet, Rule, RuleVerdict, Test, Translation,
        Truth,
    },
};

/// Rules that are asked in one walk before it is given up.
const PATIENCE: usize = 20_000;

/// Follows the packet's ways through `program`.
pub(super) fn follow(
    program: &Program,
    seen: &SeenPacket,
    suppose: Suppose,
    route: &mut dyn FnMut(&Packet) -> RoutedTo,
) -> WayEnds {
    let mut bases: Vec<&Base> = program.bases.iter().collect();
    bases.sort_by_key(|base| (base.hook, base.priority));
    let mut walk = Walk {
        program,
        bases,
        seen,
        suppose,
        route,
        ways: WayEnds::default(),
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
        chosen: None,
    };
    walk.hook(0, begin);
    while let Some((at, stack, state)) = walk.todo.pop() {
        walk.run(at, stack, state);
    }
    // What ended before its source was made another is not on its way from elsewhere.
    let targets = walk.ways.targets.clone();
    let with_source = |known: &WalkTarget, target: &WalkTarget| {
        let sourceless = WalkTarget {
            source: None,
            ..known.clone()
        };
        known.source.is_some() && sourceless == *target
    };
    let twice = |target: &WalkTarget| targets.iter().any(|known| with_source(known, target));
    walk.ways.targets.retain(|target| !twice(target));
    walk.ways
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
    /// Sets and lists that it was put into.
    sets: BTreeSet<String>,
    /// The rule that sent it to one of several addresses, where what a question fixes chose it.
    chosen: Option<RuleNumber>,
}

/// Where in the chains a packet is: the next rule, behind those that wait for it to come back.
type Stack = Vec<RuleNumber>;

struct Walk<'a> {
    program: &'a Program,
    bases: Vec<&'a Base>,
    seen: &'a SeenPacket,
    suppose: Suppose,
    route: &'a mut dyn FnMut(&Packet) -> RoutedTo,
    ways: WayEnds,
    /// Where both ways were followed before.
    known: HashSet<(usize, Stack, State)>,
    /// Ways that are yet to be followed.
    todo: Vec<(usize, Stack, State)>,
    asked: usize,
}

impl Walk<'_> {
    /// Ends a way before the packet left: by `plain`, as the rules say it.
    fn end(&mut self, plain: WalkEnd, state: &State) {
        self.end_seen(plain.clone(), plain, state);
    }

    /// Ends a way as the one that was seen, where the rules say that it ends so as `plain`.
    fn end_seen(&mut self, fate: WalkEnd, plain: WalkEnd, state: &State) {
        self.keep(plain, state);
        let mut packet = state.packet.clone();
        packet.forget(Field::Source);
        self.end_as(fate, &packet, state.chosen);
    }

    fn end_as(&mut self, fate: WalkEnd, packet: &Packet, chosen: Option<RuleNumber>) {
        self.ways.fates.insert(fate);
        match target(packet, chosen) {
            Some(target) => _ = self.ways.targets.insert(target),
            None => self.ways.elsewhere = true,
        }
    }

    /// Notes how the rules say that a way ends that is the one that was measured.
    fn keep(&mut self, plain: WalkEnd, state: &State) {
        if !state.left {
            self.ways.kept.insert(plain);
        }
    }

    /// Ends a way of which nothing is known from here, a rule of base chain number `at`. Behind
    /// PREROUTING its destination is.
    fn lose(&mut self, at: usize, state: &State) {
        let hook = self.bases.get(at).map(|base| base.hook);
        self.ways.elsewhere |= hook.is_none_or(|hook| hook <= HookPoint::Prerouting);
        self.end(WalkEnd::Open, state);
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
                Ok(here) => state.local = here,
                Err(fate) => return self.end(fate, &state),
            }
        }
        if was_early && !is_early && !state.local && !self.seen.sent {
            state.packet.pass_on();
        }
        let Some(base) = self.bases.get(at).copied() else {
            return self.leave(&state);
        };
        let sent = self.seen.sent;
        let passes = match base.hook {
            HookPoint::Ingress | HookPoint::Prerouting => !sent,
            HookPoint::Input => state.local && !sent,
            HookPoint::Forward => !state.local && !sent,
            HookPoint::Output => sent,
            HookPoint::Postrouting => !state.local,
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

    /// Where routing leads, which is done only once: whether to the router itself; an error where
    /// the way ends.
    fn routed(&mut self, state: &mut State) -> Result<bool, WalkEnd> {
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
            return Ok(local);
        }
        match (self.route)(&state.packet) {
            RoutedTo::Same => Ok(local),
            RoutedTo::Local => Ok(true),
            RoutedTo::By(name) => {
                state.packet.forget(Field::Outgoing);
                state.packet = state.packet.clone().with_device(Field::Outgoing, name);
                state.differs.insert(Field::Outgoing);
                Ok(false)
            }
            RoutedTo::Nowhere => Err(WalkEnd::Stopped),
            RoutedTo::Open => Err(WalkEnd::Open),
        }
    }

    /// The packet is behind all chains.
    fn leave(&mut self, state: &State) {
        let by_another = state.differs.contains(&Field::Outgoing)
            && !state.differs.contains(&Field::Destination);
        let fate = match (state.left, state.local) {
            (false, _) => WalkEnd::Same,
            (true, true) => WalkEnd::Local,
            (true, false) if by_another => WalkEnd::Elsewhere,
            (true, false) => WalkEnd::Out,
        };
        let plain = if state.local {
            WalkEnd::Local
        } else {
            WalkEnd::Out
        };
        self.keep(plain, state);
        self.end_as(fate, &state.packet, state.chosen);
    }

    /// Goes on at the top of the stack, in the base chain number `at`.
    fn run(&mut self, at: usize, mut stack: Stack, mut state: State) {
        loop {
            self.asked += 1;
            if self.asked > PATIENCE {
                self.ways.elsewhere = true;
                return self.end(WalkEnd::Open, &state);
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
                let fate = if state.left {
                    WalkEnd::Stopped
                } else {
                    WalkEnd::Same
                };
                self.end_seen(fate, WalkEnd::Stopped, &state);
            }
            _ => self.hook(at + 1, state),
        }
    }

    /// Whether a rule may match, and whether it may not.
    fn ask(&mut self, id: RuleNumber, rule: &Rule, state: &State) -> (bool, bool) {
        let said = self.program.chains[id.0].said.get(id.1).copied().flatten();
        let reads_other = reads(rule, state);
        let plain = match (said, reads_other) {
            (Some(true), false) => Truth::Yes,
            (Some(true), true) => {
                let tests = rule.matches.iter().filter(|m| m.varying().is_none());
                let changed = tests.filter(|m| reads_any(&m.test, state));
                Truth::all(changed.map(|m| m.answer(&state.packet)))
            }
            (Some(false), false) if !varies(rule) => Truth::No,
            _ => rule.may_match_at_best(&state.packet),
        };
        if reads_other && (plain != Truth::No || said == Some(true)) {
            self.ways.readers.insert(id);
        }
        let (may, may_not) = match plain {
            Truth::No => return (false, true),
            Truth::Yes => (true, false),
            Truth::CannotTell => (true, true),
        };
        if self.is_left_out(id) {
            self.ways.met.insert(id);
            return (true, true);
        }
        if !varies(rule) {
            return (may, may_not);
        }
        if effects(rule) {
            self.ways.varying.insert(id);
        }
        match self.say((id, rule), said, state) {
            Some(true) => (may, may_not),
            Some(false) => (false, true),
            None => (true, true),
        }
    }

    fn is_left_out(&self, id: RuleNumber) -> bool {
        let left_out = self.program.left_out.as_ref();
        left_out.is_some_and(|rules| rules.contains(&id))
    }

    /// What a rule that varies is taken to say; none where it may be both.
    fn say(
        &self,
        (id, rule): (RuleNumber, &Rule),
        said: Option<bool>,
        state: &State,
    ) -> Option<bool> {
        let packet = &state.packet;
        let open = |m: &&Match| m.varying().is_some() && m.answer(packet) == Truth::CannotTell;
        match self.suppose {
            Suppose::Fixed(fixed, says) if fixed == id && rule.matches.iter().any(|m| open(&m)) => {
                return Some(says);
            }
            _ => {}
        }
        let anything = self.suppose == Suppose::Anything;
        let mut all = Some(true);
        for (m, varying) in (rule.matches.iter()).filter_map(|m| Some((m, m.varying()?))) {
            let negated = m.negated;
            let held = varying.list.as_ref();
            let held = held.is_some_and(|list| state.sets.contains(list));
            let alone = if negated != held {
                varying.alone.opposite()
            } else {
                varying.alone
            };
            let rewritten = matches!(varying.caveat, Caveat::Hardware(_))
                && (self.seen.by_router || self.seen.changed.contains(&Field::Link));
            let one = match alone {
                _ if rewritten => said,
                _ if self.has_no_socket(&varying.caveat) => Some(negated),
                _ if !open(&m) => Some(m.answer(packet) == Truth::Yes),
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

    /// Whether a test asks for a socket that is bound to the destination (`-m socket` of iptables), and
    /// that is no address of the router.
    fn has_no_socket(&self, caveat: &Caveat) -> bool {
        let Caveat::Sockets(text) = caveat else {
            return false;
        };
        let any = ["wildcard", "mark "].iter().any(|word| text.contains(word));
        !any && !self.seen.local
    }

    /// Notes whether the packet leaves the way that was seen by what a rule says of it.
    fn compare(&self, id: RuleNumber, rule: &Rule, matches: bool, state: &mut State) {
        if self.program.left_out.is_some() {
            if matches && self.is_left_out(id) && !state.left {
                state.left = true;
                state.differs.extend(&self.seen.changed);
            }
            return;
        }
        let said = self.program.chains[id.0].said.get(id.1).copied().flatten();
        // What is the same for all senders chooses nothing.
        let open = |m: &Match| m.answer(&state.packet) == Truth::CannotTell;
        let chooses = |m: &Match| {
            m.varying().is_some_and(|v| {
                v.alone == Alone::Chooses || (v.caveat.is_open() && maps(rule) && open(m))
            })
        };
        let chooses = matches && rule.matches.iter().any(chooses);
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
                Does::Note | Does::Copy | Does::Forget(_) => {}
                Does::Remember(place) => {
                    state.sets.insert(place.clone());
                    if state.left {
                        state.differs.insert(Field::Sets);
                    }
                }
                Does::Set { field, mask, value } => set(&mut state, *field, *mask, *value),
                Does::Translate(translation) => {
                    let lots = rule
                        .varying()
                        .any(|v| matches!(v.caveat, Caveat::Random(_)));
                    // Of a map that is not known, chance may give anything.
                    self.ways.elsewhere |= lots && translation.to.is_empty();
                    self.translate(at, id, translation, &state);
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
                            Some(Truth::No) => continue,
                            Some(Truth::Yes) => {
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
    fn translate(&mut self, at: usize, id: RuleNumber, translation: &Translation, state: &State) {
        let goals: Vec<Option<&Goal>> = match translation.to.as_slice() {
            [] => vec![None],
            goals => goals.iter().map(Some).collect(),
        };
        for goal in goals {
            let mut one = state.clone();
            if translation.fixed && translation.to.len() > 1 {
                one.chosen = Some(id);
            }
            translate(&mut one, translation, goal);
            self.hook(at + 1, one);
        }
    }

    /// Where the rule was seen to lead the packet, if nothing that it reads differs now.
    fn led(&self, (chain, rule): RuleNumber, state: &State) -> Option<&Led> {
        let chain = &self.program.chains[chain];
        let led = chain.led.get(&rule)?;
        (!reads(chain.rules.get(rule)?, state)).then_some(led)
    }

    fn decide(
        &mut self,
        at: usize,
        id: RuleNumber,
        verdict: &RuleVerdict,
        mut stack: Stack,
        state: State,
    ) -> Option<(Stack, State)> {
        let ended = self.seen.ended_by == Some(id);
        let as_seen = !state.left || ended;
        match verdict {
            RuleVerdict::Accept => self.hook(at + 1, state),
            RuleVerdict::Drop | RuleVerdict::Reject(_) if as_seen => {
                self.end_seen(WalkEnd::Same, WalkEnd::Stopped, &state);
            }
            RuleVerdict::Drop | RuleVerdict::Reject(_) => self.end(WalkEnd::Stopped, &state),
            RuleVerdict::Return => {
                stack.pop();
                return Some((stack, state));
            }
            RuleVerdict::Jump(name) | RuleVerdict::Goto(name) => {
                let Some(chain) = self.program.called(id.0, name) else {
                    return self.obscure(at, id, stack, state);
                };
                if matches!(verdict, RuleVerdict::Goto(_)) {
                    stack.pop();
                }
                stack.push((chain, 0));
                return Some((stack, state));
            }
            RuleVerdict::Unknown(_) => return self.obscure(at, id, stack, state),
            _ if as_seen => self.end_seen(WalkEnd::Same, WalkEnd::Open, &state),
            _ => self.lose(at, &state),
        }
        None
    }

    /// Goes on where a rule that nobody here understands was seen to lead the packet.
    fn obscure(
        &mut self,
        at: usize,
        id: RuleNumber,
        stack: Stack,
        state: State,
    ) -> Option<(Stack, State)> {
        if self.seen.ended_by == Some(id) {
            self.end(WalkEnd::Same, &state);
            return None;
        }
        match self.led(id, &state).cloned() {
            Some(Led::On) => Some((stack, state)),
            // What was seen names a chain that is there, or none.
            Some(Led::To(verdict)) if !self.is_obscure(id, &verdict) => {
                self.decide(at, id, &verdict, stack, state)
            }
            _ => {
                self.lose(at, &state);
                None
            }
        }
    }

    fn is_obscure(&self, (chain, _): RuleNumber, verdict: &RuleVerdict) -> bool {
        match verdict {
            RuleVerdict::Jump(name) | RuleVerdict::Goto(name) => {
                self.program.called(chain, name).is_none()
            }
            RuleVerdict::Unknown(_) => true,
            _ => false,
        }
    }
}

/// Whether what a rule does is chosen by what it asks.
fn maps(rule: &Rule) -> bool {
    rule.does.iter().any(|does| matches!(does, Does::Choose(_)))
}

fn varies(rule: &Rule) -> bool {
    rule.varying().next().is_some()
}

/// Whether it makes a difference for the packet's way whether the rule matches.
fn effects(rule: &Rule) -> bool {
    let some = |does: &Does| !matches!(does, Does::Note | Does::Copy | Does::Forget(_));
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
    state.packet.rewrite(field, mask, value);
    if state.left {
        state.differs.insert(field);
    }
}

/// Makes a packet one that goes to `goal`, or comes from there; none where that is not known.
fn translate(state: &mut State, by: &Translation, goal: Option<&Goal>) {
    let source = by.source;
    let (address, port) = if source {
        (Field::Source, Field::SourcePort)
    } else {
        (Field::Destination, Field::DestinationPort)
    };
    let packet = &mut state.packet;
    packet.forget(address);
    if let Some(net) = goal.and_then(|goal| goal.net) {
        *packet = std::mem::take(packet).with_address(address, net);
    }
    if let Some((first, last)) = goal.and_then(|goal| goal.ports) {
        packet.forget(port);
        *packet = std::mem::take(packet).within(port, u32::from(first), u32::from(last));
    } else if source || goal.is_none() && !by.here {
        // A map that is not known may give a port, too.
        packet.forget(port);
    }
    if state.left {
        state.differs.insert(address);
        let moved = source || goal.is_none_or(|goal| goal.ports.is_some());
        state.differs.extend(moved.then_some(port));
    }
}

/// Where a packet is on its way to; none where that is not known.
fn target(packet: &Packet, chosen: Option<RuleNumber>) -> Option<WalkTarget> {
    let net = |field| match packet.addresses(field) {
        Some([net]) => Some(*net),
        _ => None,
    };
    let ports = packet.numbers(Field::DestinationPort);
    Some(WalkTarget {
        source: net(Field::Source),
        destination: net(Field::Destination)?,
        ports: match ports {
            Some([ports]) => Some(*ports),
            _ => None,
        },
        chosen,
    })
}
