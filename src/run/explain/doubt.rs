//! Whether rules that depend on more than the packet have a part in a probe's end.

use std::collections::BTreeSet;

use super::{
    ExplainError, patience,
    read::RuleReader,
    reason::{Doubt, Explained, Lots, Reason},
};
use crate::{
    firewall::{
        Caveat, RulePlace, TableFamily,
        iptables::{step::LegacyStep, trace::LegacyRules},
        nft::{
            census, is_own,
            trace::{PacketHead, ProbeExit, StepKind, TraceDecision, TraceStep, Trail},
        },
        place::HookPoint,
        rule::{
            Alone, ChangedSets, Field, OpenPorts, Packet, PortChoice, Rule, RuleVerdict, SetLists,
            TrackingState,
            walk::{
                ChainRules, Led, Program, RoutedTo, RuleNumber, SeenPacket, Suppose, WalkEnd,
                WayEnds,
            },
        },
        ruletext::RuleText,
    },
    netlink::{Lookup, LookupKind, object::Family},
    run::{outside::Observer, packet::Headers},
};

/// The rules of one router, before any probe is held against them.
pub(super) struct RouterRules {
    program: Program,
    /// The sets that consist of others, where rules ask for sets and change some.
    lists: SetLists,
}

impl RouterRules {
    /// Reads all that probes can meet.
    pub(super) fn read(
        reader: &mut RuleReader<'_>,
        family: Family,
        legacy: Option<&LegacyRules>,
    ) -> Result<Self, ExplainError> {
        let mut program = Program::default();
        program.bases = census::bases(reader.socket(), family)?;
        let bases = program.bases.iter().map(|base| base.place.clone());
        let bases: Vec<RulePlace> = bases.collect();
        add(&mut program, reader, bases)?;
        if let Some(legacy) = legacy {
            legacy.add_to(&mut program);
        }
        let rules = || program.chains.iter().flat_map(|chain| chain.rules.iter());
        let asks = rules().any(Rule::asks_for_ipsets) && rules().any(Rule::changes_sets);
        let lists = match asks {
            true => reader.set_lists(),
            false => SetLists::of_saved(""),
        };
        Ok(Self { program, lists })
    }

    /// The rules with what they said of a probe.
    fn noted(
        &self,
        reader: &mut RuleReader<'_>,
        met: &SeenProbe<'_>,
    ) -> Result<Program, ExplainError> {
        let mut program = self.program.clone();
        note(&mut program, reader, &met.trail.steps)?;
        leave_out_devices(&mut program);
        if let Some((rules, steps)) = met.legacy {
            rules.note_in(steps, &mut program);
        }
        open_sets(&mut program, &self.lists);
        Ok(program)
    }

    /// What varies in a probe's end; none where its way is not known well enough to say.
    pub(super) fn doubt(
        &self,
        reader: &mut RuleReader<'_>,
        observer: &mut Observer<'_>,
        met: &SeenProbe<'_>,
        explained: &Explained,
    ) -> Result<Option<Doubt>, ExplainError> {
        let seen_through = met
            .legacy
            .and_then(|(rules, steps)| End::of_legacy(rules, steps));
        let Some(mut end) = End::of(&explained.reason).or(seen_through) else {
            return Ok(None);
        };
        // Rules of iptables-legacy reported of the probe when it was sent once more, and it may have
        // fared otherwise then. What they say of other ways starts from how that one ended.
        if end.fate != WalkEnd::Stopped
            && met.legacy.is_some_and(|(rules, steps)| rules.stop(steps))
        {
            end.fate = WalkEnd::Stopped;
        }
        let mut program = self.noted(reader, met)?;
        open_ports(&mut program, explained);
        let out = observer.name(met.trail.head.oif).map(ToString::to_string);
        let seen = seen(&program, met, out.clone(), &end);
        let head = met.trail.head;
        let mut route = |packet: &Packet| routed(observer, out.as_deref(), head, packet);
        let mut walk = |suppose| program.walk(&seen, suppose, &mut route);
        let (any, alone) = (walk(Suppose::Anything), walk(Suppose::Alone));
        let lots = lots(&program, &any, &alone);
        if end.all(&any) {
            return Ok(Some(Doubt {
                sure: true,
                lots,
                ..Doubt::default()
            }));
        }
        let matter = end.matter(&program, &any, &mut walk);
        let alone = end.passes(&alone);
        let mut doubt = Doubt {
            alone,
            soon: alone == Some(false) && matter.iter().any(|id| is_slow(&program, *id)),
            lots,
            ..Doubt::default()
        };
        for id in matter {
            let caveat = program.chains[id.0].rules[id.1].varying().next();
            let caveat = caveat.map(|varying| varying.caveat.clone());
            let named = caveat.zip(text(&program, reader, met, id)?);
            doubt.by.extend(named);
        }
        for id in any.readers {
            let known = |text: &RuleText| doubt.by.iter().any(|(_, by)| by == text);
            let text = text(&program, reader, met, id)?.filter(|text| !known(text));
            doubt.readers.extend(text);
        }
        Ok(Some(doubt))
    }
}

/// Where lots lead a packet whose ways are `any`, and `alone` when it comes alone.
fn lots(program: &Program, any: &WayEnds, alone: &WayEnds) -> Option<Lots> {
    let caveat = |(chain, rule): &RuleNumber| {
        let rule = &program.chains[*chain].rules[*rule];
        rule.varying().next().map(|varying| &varying.caveat)
    };
    let draws = |id: &&RuleNumber| matches!(caveat(id), Some(Caveat::Random(_)));
    any.varying.iter().find(draws)?;
    Some(Lots {
        targets: (!alone.elsewhere).then(|| alone.targets.clone()),
        only_where: any.varying.iter().all(|id| program.only_chooses(*id)),
    })
}

/// What was seen of a probe.
pub(super) struct SeenProbe<'a> {
    pub(super) headers: &'a Headers,
    /// The interface it came in by.
    pub(super) ingress: Option<&'a str>,
    pub(super) trail: &'a Trail,
    pub(super) legacy: Option<(&'a LegacyRules, &'a [LegacyStep])>,
    /// Whether a router of the lab sent it on, whose hardware address is that of the facts.
    pub(super) by_router: bool,
}

/// How a probe's way ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    fate: WalkEnd,
    rule: Option<RuleText>,
}

impl End {
    fn of(reason: &Reason) -> Option<Self> {
        let (fate, rule) = match reason {
            Reason::WentThrough(ProbeExit::Out) => (WalkEnd::Out, None),
            Reason::WentThrough(ProbeExit::Local) => (WalkEnd::Local, None),
            Reason::Rule { rule, .. } => (WalkEnd::Stopped, Some(rule.clone())),
            Reason::Policy { .. } => (WalkEnd::Stopped, None),
            Reason::Outside(reason) if reason.is_known() => (WalkEnd::Stopped, None),
            _ => return None,
        };
        Some(Self { fate, rule })
    }

    /// The end of a probe that rules of iptables-legacy let through when it was sent once more,
    /// whatever had become of it before.
    fn of_legacy(rules: &LegacyRules, steps: &[LegacyStep]) -> Option<Self> {
        let last = steps.last().filter(|_| !rules.stop(steps))?;
        let fate = match last.hook {
            HookPoint::Input => WalkEnd::Local,
            _ => WalkEnd::Out,
        };
        Some(Self { fate, rule: None })
    }

    /// The ends of ways, with the one that was seen in its own name.
    fn kinds(&self, ways: &WayEnds) -> BTreeSet<WalkEnd> {
        let named = |fate: &WalkEnd| match fate {
            WalkEnd::Same => self.fate.clone(),
            other => other.clone(),
        };
        ways.fates.iter().map(named).collect()
    }

    /// The rules of those that vary by which this end varies; all of them, where none does so by itself.
    fn matter(
        &self,
        program: &Program,
        any: &WayEnds,
        mut walk: impl FnMut(Suppose) -> WayEnds,
    ) -> Vec<RuleNumber> {
        let is_free = |id: &RuleNumber| {
            let mut all = program.chains[id.0].rules[id.1].varying();
            !all.any(|v| v.alone == Alone::AsMeasured)
        };
        let free: Vec<RuleNumber> = any.varying.iter().copied().filter(is_free).collect();
        let mut matter = free.clone();
        matter.retain(|id| {
            let (yes, no) = (
                walk(Suppose::Fixed(*id, true)),
                walk(Suppose::Fixed(*id, false)),
            );
            self.kinds(&yes) != self.kinds(&no) || self.kinds(&yes).len() > 1
        });
        if matter.is_empty() { free } else { matter }
    }

    fn all(&self, ways: &WayEnds) -> bool {
        self.kinds(ways).iter().all(|kind| *kind == self.fate)
    }

    /// Whether all ways lead through; none where they differ or cannot be told.
    fn passes(&self, ways: &WayEnds) -> Option<bool> {
        let kinds = self.kinds(ways);
        let mut kinds = kinds.iter();
        match (kinds.next(), kinds.next()) {
            (Some(WalkEnd::Out | WalkEnd::Local), None) => Some(true),
            (Some(WalkEnd::Stopped), None) => Some(false),
            _ => None,
        }
    }
}

/// Whether a rule matches what comes alone, by a rate that lets the next packet match only later
/// than anybody waits here.
fn is_slow(program: &Program, (chain, rule): RuleNumber) -> bool {
    program.chains[chain].rules[rule].varying().any(|varying| {
        let slow = varying
            .caveat
            .interval()
            .is_none_or(|i| i > patience::AT_MOST);
        let rate = matches!(varying.caveat, Caveat::RateLimited(_));
        rate && slow && varying.alone == Alone::Matches
    })
}

/// The packet as it came in, and what was seen of it.
fn seen(program: &Program, met: &SeenProbe<'_>, out: Option<String>, end: &End) -> SeenPacket {
    let headers = met.headers;
    let mut changed = BTreeSet::new();
    for chain in &program.chains {
        let rules = chain.rules.iter().zip(&chain.said);
        let matched =
            rules.filter(|(_, said)| **said == Some(true) || chain.visited && said.is_none());
        changed.extend(matched.flat_map(|(rule, _)| rule.changes()));
    }
    let mut packet = Packet::of(Family::of(headers.destination))
        .with(Field::Protocol, headers.protocol.number())
        .with(Field::SourcePort, headers.source_port)
        .with(Field::DestinationPort, headers.destination_port)
        .with_address(Field::Source, headers.source)
        .with_address(Field::Destination, headers.destination)
        .with(Field::TcpFlags, super::read::SYN)
        .with(Field::Tos, headers.tos)
        // Nothing carries marks from one namespace to the next, and the connection is new.
        .with(Field::Mark, 0u32)
        .with(Field::ConnectionMark, 0u32)
        .with_state(TrackingState::New);
    packet = super::read::like_others(super::read::with_kind(packet, headers), headers, 0);
    if changed.contains(&Field::Tracking) {
        packet = packet.with_state(TrackingState::Untracked);
    }
    if let Some(name) = met.ingress {
        packet = packet.with_device(Field::Incoming, name);
    }
    if let Some(name) = out {
        packet = packet.with_device(Field::Outgoing, name);
    }
    let came_to = |hook| met.trail.steps.iter().any(|step| step.hook == hook);
    let input = came_to(HookPoint::Input);
    SeenPacket {
        sent: came_to(HookPoint::Output),
        packet,
        local: end.fate == WalkEnd::Local || input,
        by_router: met.by_router,
        ended_by: end
            .rule
            .as_ref()
            .and_then(|rule| ended_by(program, rule, met)),
        changed,
    }
}

fn ended_by(program: &Program, rule: &RuleText, met: &SeenProbe<'_>) -> Option<RuleNumber> {
    let chain = match (rule.place.handle, met.legacy) {
        (0, Some((rules, _))) => rules.number_in(program, &rule.place)?,
        _ => program.number(&rule.place)?,
    };
    Some((chain, rule.position?.checked_sub(1)?))
}

/// Makes tests of sets that rules change depend on more than the packet.
fn open_sets(program: &mut Program, lists: &SetLists) {
    let mut sets = ChangedSets::default();
    for rule in program.chains.iter().flat_map(|chain| chain.rules.iter()) {
        sets.add(rule);
    }
    sets.spread(lists);
    for chain in &mut program.chains {
        let rules = chain.rules.iter().zip(&chain.said);
        let opened: Vec<Option<Rule>> = rules.map(|(rule, said)| sets.open(rule, *said)).collect();
        if opened.iter().any(Option::is_some) {
            let rules = chain.rules.iter().zip(opened);
            let rules = rules.map(|(rule, opened)| opened.unwrap_or_else(|| rule.clone()));
            chain.rules = rules.collect();
        }
    }
}

/// Makes rules that a port concerns which this router chose depend on more than the packet.
fn open_ports(program: &mut Program, explained: &Explained) {
    let by_port = |(caveat, _): &&(Caveat, RuleText)| matches!(caveat, Caveat::SourcePort(_));
    for (_, rule) in explained.caveats.iter().filter(by_port) {
        let at = rule.position.and_then(|position| position.checked_sub(1));
        let chain = program
            .number(&rule.place)
            .and_then(|chain| program.chains.get_mut(chain));
        let (Some(chain), Some(at)) = (chain, at) else {
            continue;
        };
        let mut rules = chain.rules.to_vec();
        if let Some(open) = rules.get_mut(at) {
            open.leave_source_port_open(OpenPorts::Translated(PortChoice::OF_ROUTERS));
            chain.rules = rules.into();
        }
    }
}

/// Leaves out chains at the egress of devices by which the packet did not leave.
fn leave_out_devices(program: &mut Program) {
    let mut bases = std::mem::take(&mut program.bases);
    bases.retain(|base| {
        let egress =
            (base.place.family, base.hook) == (TableFamily::NETDEV, HookPoint::Postrouting);
        let chain = program
            .number(&base.place)
            .and_then(|chain| program.chains.get(chain));
        !egress || chain.is_some_and(|chain| chain.visited)
    });
    program.bases = bases;
}

/// Adds chains and those that they call.
fn add(
    program: &mut Program,
    reader: &mut RuleReader<'_>,
    chains: Vec<RulePlace>,
) -> Result<(), ExplainError> {
    let mut open = chains;
    while let Some(place) = open.pop() {
        if program.number(&place).is_some() {
            continue;
        }
        let chain = reader.chain(&place)?;
        let called = chain.parsed.iter().flat_map(Rule::called);
        open.extend(called.map(|name| RulePlace {
            chain: name.to_owned(),
            ..place.clone()
        }));
        program.add(ChainRules::new(place, chain.parsed.clone()));
    }
    Ok(())
}

/// Notes what rules of nf_tables said of the probe.
fn note(
    program: &mut Program,
    reader: &mut RuleReader<'_>,
    steps: &[TraceStep],
) -> Result<(), ExplainError> {
    for (place, end) in super::read::visited(steps) {
        if is_own(&place.table) {
            continue;
        }
        // Chains that only maps lead to were not known yet.
        add(program, reader, vec![place.clone()])?;
        let Some(number) = program.number(&place) else {
            continue;
        };
        let chain = reader.chain(&place)?;
        let here = |step: &&TraceStep| {
            let at = &step.place;
            (at.family, &at.table, &at.chain) == (place.family, &place.table, &place.chain)
        };
        let often = steps.iter().filter(|step| calls(step, &place)).count() > 1;
        let known = &mut program.chains[number];
        known.visited = true;
        // What was said once may not be what was said the other time.
        if often {
            continue;
        }
        let end = end.and_then(|handle| chain.index(handle));
        let mut asked = end.map_or(known.said.len(), |end| end + 1);
        if ended_elsewhere(steps, &place) && !came_back(steps, &place) {
            let matched = steps
                .iter()
                .filter(here)
                .filter(|s| s.kind == StepKind::Rule);
            let last = matched
                .filter_map(|step| chain.index(step.place.handle))
                .max();
            asked = asked.min(last.map_or(0, |last| last + 1));
        }
        for said in known.said.iter_mut().take(asked) {
            *said = Some(false);
        }
        for step in steps
            .iter()
            .filter(here)
            .filter(|s| s.kind == StepKind::Rule)
        {
            let at = chain.index(step.place.handle);
            if let Some((at, said)) = at.and_then(|at| Some((at, known.said.get_mut(at)?))) {
                *said = Some(true);
                known.led.extend(led(&step.decision).map(|led| (at, led)));
            }
        }
    }
    Ok(())
}

/// Whether a step led to the chain at `place`.
fn calls(step: &TraceStep, place: &RulePlace) -> bool {
    let from = &step.place;
    (from.family, &from.table) == (place.family, &place.table)
        && matches!(&step.decision, TraceDecision::Jump(chain) | TraceDecision::Goto(chain) if *chain == place.chain)
}

/// Where a rule led the packet; none where that ended its way.
fn led(decision: &TraceDecision) -> Option<Led> {
    Some(match decision {
        TraceDecision::Continue => Led::On,
        TraceDecision::Accept => Led::To(RuleVerdict::Accept),
        TraceDecision::Return => Led::To(RuleVerdict::Return),
        TraceDecision::Jump(chain) => Led::To(RuleVerdict::Jump(chain.clone())),
        TraceDecision::Goto(chain) => Led::To(RuleVerdict::Goto(chain.clone())),
        TraceDecision::Drop
        | TraceDecision::Stolen
        | TraceDecision::Queue(_)
        | TraceDecision::Other(_) => return None,
    })
}

/// Whether the packet came back from the chain at `place` to the one from which a rule sent it there, or to
/// one before that: all that stands there was asked by then.
fn came_back(steps: &[TraceStep], place: &RulePlace) -> bool {
    let call = steps.iter().rposition(|step| calls(step, place));
    let behind = call.map(|at| steps.split_at(at));
    let Some((before, [call, behind @ ..])) = behind else {
        return false;
    };
    let of_call = |step: &&TraceStep| {
        (step.hook, step.place.family, &step.place.table)
            == (call.hook, call.place.family, &call.place.table)
    };
    let open = callers(before.iter().chain([call]).filter(of_call));
    let mut behind = behind.iter().filter(of_call);
    behind.any(|step| open.contains(&step.place.chain.as_str()))
}

/// The chains that are to be gone on with behind the last of `steps`, all of one hook and table, which leads
/// to another one.
fn callers<'s>(steps: impl Iterator<Item = &'s TraceStep>) -> Vec<&'s str> {
    let mut open: Vec<&str> = Vec::new();
    for step in steps {
        let chain = step.place.chain.as_str();
        match open.iter().position(|known| *known == chain) {
            Some(at) => open.truncate(at),
            None => open.clear(),
        }
        match &step.decision {
            TraceDecision::Jump(to) => open.extend([chain, to.as_str()]),
            TraceDecision::Goto(to) => open.push(to),
            _ => open.push(chain),
        }
    }
    open.pop();
    open
}

/// Whether the way through the table of a chain ended by a rule of another chain: then what stands
/// behind the jump there was not asked.
fn ended_elsewhere(steps: &[TraceStep], place: &RulePlace) -> bool {
    let table =
        |step: &&TraceStep| (step.place.family, &step.place.table) == (place.family, &place.table);
    let mut here = steps
        .iter()
        .filter(table)
        .filter(|s| s.place.chain == place.chain);
    let hook = here.next_back().map(|step| step.hook);
    let last = steps
        .iter()
        .filter(table)
        .rfind(|step| hook.is_none_or(|hook| step.hook == hook));
    last.is_some_and(|step| {
        let goes_on = matches!(
            step.decision,
            TraceDecision::Continue
                | TraceDecision::Jump(_)
                | TraceDecision::Goto(_)
                | TraceDecision::Return
        );
        step.kind == StepKind::Rule && !goes_on && step.place.chain != place.chain
    })
}

fn text(
    program: &Program,
    reader: &mut RuleReader<'_>,
    met: &SeenProbe<'_>,
    (chain, rule): RuleNumber,
) -> Result<Option<RuleText>, ExplainError> {
    let place = &program.chains[chain].place;
    if let Some(text) = met.legacy.and_then(|(rules, _)| rules.text_at(place, rule)) {
        return Ok(Some(text));
    }
    Ok(reader.chain(place)?.rules.get(rule).cloned())
}

/// Where routing leads a packet that was seen with the headers `seen`, to leave by `out`, and is now
/// `packet`.
fn routed(
    observer: &mut Observer<'_>,
    out: Option<&str>,
    seen: PacketHead,
    packet: &Packet,
) -> RoutedTo {
    let Some(head) = headers_of(seen, packet) else {
        return RoutedTo::Open;
    };
    let ways = observer.ways(&[head]).ok();
    let way = ways.and_then(|mut ways| ways.pop());
    route_of(way.flatten().as_ref(), out)
}

/// Where a look-up leads, against the interface by which the packet was seen to leave.
fn route_of(way: Option<&Lookup>, out: Option<&str>) -> RoutedTo {
    let Some(way) = way else {
        return RoutedTo::Open;
    };
    match way.kind {
        LookupKind::Local => RoutedTo::Local,
        _ if way.errno.is_some() => RoutedTo::Nowhere,
        _ => match &way.dev {
            Some(dev) if out == Some(dev.as_str()) => RoutedTo::Same,
            Some(dev) => RoutedTo::By(dev.to_string()),
            None => RoutedTo::Open,
        },
    }
}

/// The headers of a packet that goes another way than the one that was seen; none where they are
/// not known.
fn headers_of(seen: PacketHead, packet: &Packet) -> Option<PacketHead> {
    let address = |field, old| match packet.addresses(field) {
        Some([net]) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
        Some(_) => None,
        None => Some(old),
    };
    let number = |field| packet.number(field);
    let port = |field, old: u16| number(field).and_then(|n| n.try_into().ok()).unwrap_or(old);
    Some(PacketHead {
        source: address(Field::Source, seen.source)?,
        destination: address(Field::Destination, seen.destination)?,
        source_port: port(Field::SourcePort, seen.source_port),
        destination_port: port(Field::DestinationPort, seen.destination_port),
        mark: number(Field::Mark)?,
        tos: number(Field::Tos)
            .and_then(|n| n.try_into().ok())
            .unwrap_or(seen.tos),
        ..seen
    })
}
