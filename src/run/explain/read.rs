//! From the way of a probe to the reason, with the texts of the rules that it met.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
};

use super::{
    ExplainError,
    follow::Followed,
    reason::{EndingAction, Explained, Reason},
};
use crate::{
    firewall::{
        Caveat, RulePlace,
        nft::{
            NftSocket, is_own,
            trace::{StepKind, StoppedBy, TraceDecision, TraceStep, Trail},
        },
        rule::{Field, OpenPorts, Packet, Rule, SetLists, TrackingState, entries},
        ruletext::{self, RuleBook, RuleSource, RuleText, TextChain},
    },
    model::Protocol,
    netlink::object::Family,
    netns::NetnsFd,
    run::{
        chosen_port::ChosenPorts,
        outside::OutsideReason,
        packet::{Headers, Probe, ip_length},
    },
};

/// Lists the queues that somebody listens to, one per line, its number first.
const QUEUES: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";

/// The flags of a TCP probe, RFC 9293 section 3.1.
pub(super) const SYN: u32 = 0x02;

/// Reads rules.
pub(super) struct RuleReader<'a> {
    book: RuleBook,
    source: RuleSource<'a>,
    queues: Option<Vec<u16>>,
    warnings: BTreeSet<String>,
}

impl<'a> RuleReader<'a> {
    pub(super) fn new(book: RuleBook, source: RuleSource<'a>) -> Self {
        Self {
            book,
            source,
            queues: None,
            warnings: BTreeSet::new(),
        }
    }

    /// Gives the book back, and what the reader should know.
    pub(super) fn finish(mut self) -> (RuleBook, BTreeSet<String>) {
        self.warnings.extend(self.book.failures().iter().cloned());
        (self.book, self.warnings)
    }

    /// The sets of ipset(8) that consist of others. ipset(8) is asked for the members of these alone, as
    /// others may have thousands.
    pub(super) fn set_lists(&mut self) -> SetLists {
        let print = |args: &[&str]| ruletext::print(&self.source, "ipset", args);
        let read = || {
            let all = SetLists::of_saved(&print(&["list", "-terse", "-output", "save"])?);
            let saved: Result<Vec<String>, _> =
                all.names().map(|list| print(&["save", list])).collect();
            Ok(SetLists::of_saved(&saved?.concat()))
        };
        read().unwrap_or_else(|error: ruletext::PrintError| {
            let what = format!("which sets consist of other sets is not known: {error}");
            self.warnings.insert(what);
            SetLists::unknown()
        })
    }

    /// Takes the way of a probe that was sent by itself for its reason. Where nf_tables did not see
    /// what stopped it, the reason stays as it was.
    pub(super) fn sent_alone(
        &mut self,
        explained: &mut Explained,
        trail: &Trail,
    ) -> Result<(), ExplainError> {
        explained.alone = true;
        match self.reason(trail)? {
            Reason::Within(_)
            | Reason::PerhapsTaken { .. }
            | Reason::Untaken(_)
            | Reason::Outside(_) => {}
            reason => explained.reason = reason,
        }
        Ok(())
    }

    /// Explains one service.
    pub(super) fn explained(
        &mut self,
        probe: &Probe,
        followed: &Followed,
        outside: &BTreeMap<u32, OutsideReason>,
    ) -> Result<Explained, ExplainError> {
        let index = probe.index;
        let trail = followed.trails.get(&index);
        let reason = match (trail, outside.get(&index)) {
            _ if followed.overrun.contains(&index) => Reason::TooManyEvents,
            (_, Some(reason)) => Reason::Outside(reason.clone()),
            (Some(trail), None) => self.reason(trail)?,
            (None, None) => Reason::Outside(OutsideReason::NotSeen(Vec::new())),
        };
        let caveats = match trail {
            Some(trail) => {
                let subject = subject(&probe.headers, Some(trail));
                self.caveats(trail, &subject, probe.headers.source_port)?
            }
            None => Vec::new(),
        };
        Ok(Explained {
            index,
            reason,
            caveats,
            behind: None,
            alone: false,
            doubt: None,
            copied: None,
            led: None,
            steps: trail.map_or_else(Vec::new, |trail| trail.steps.clone()),
        })
    }

    pub(super) fn reason(&mut self, trail: &Trail) -> Result<Reason, ExplainError> {
        Ok(match trail.stopped_by() {
            StoppedBy::Rule(step) => {
                let rule = self.chain(&step.place)?.rule(step.place.handle);
                Reason::Rule {
                    hook: step.hook,
                    action: self.action(step, &rule),
                    rule,
                }
            }
            StoppedBy::Policy(step) => Reason::Policy {
                hook: step.hook,
                chain: self.chain(&step.place)?.to_string(),
            },
            StoppedBy::Within(hook) => Reason::Within(hook),
            StoppedBy::After(after) => Reason::Outside(OutsideReason::Unknown {
                after,
                evidence: Vec::new(),
            }),
            StoppedBy::Nothing(exit) => Reason::WentThrough(exit),
        })
    }

    fn action(&mut self, step: &TraceStep, rule: &RuleText) -> EndingAction {
        match step.decision {
            TraceDecision::Queue(queue) => EndingAction::Queued {
                queue,
                listener: self.queues().contains(&queue),
            },
            TraceDecision::Stolen => EndingAction::Taken,
            _ => match rule.text.as_ref().and(rule.parsed().rejected_with()) {
                Some(with) => EndingAction::Rejected(with.to_owned()),
                None => EndingAction::Dropped,
            },
        }
    }

    fn queues(&mut self) -> &[u16] {
        let netns = self.source.netns;
        self.queues.get_or_insert_with(|| queues(netns))
    }

    /// The socket to the router's nf_tables.
    pub(super) fn socket(&mut self) -> &mut NftSocket {
        self.source.socket
    }

    /// The chain at `place` with its rules.
    pub(super) fn chain(&mut self, place: &RulePlace) -> Result<Arc<TextChain>, ExplainError> {
        Ok(self.book.chain(&mut self.source, place)?)
    }

    /// Rules that a packet was held against and that decide by more than the packet; `subject` is what
    /// they may see of it, which came from `port`.
    pub(super) fn caveats(
        &mut self,
        trail: &Trail,
        subject: &Packet,
        port: u16,
    ) -> Result<Vec<(Caveat, RuleText)>, ExplainError> {
        let mut found = Vec::new();
        let any = self.book.open_ports() != OpenPorts::None;
        let mut chosen = OpenPorts::None;
        let visited = visited(&trail.steps).into_iter();
        // Other jobs' tables see the probe, and neither stop nor change it.
        for (place, end) in visited.filter(|(place, _)| !is_own(&place.table)) {
            let chain = self.chain(&place)?;
            let end = end.and_then(|handle| chain.index(handle));
            self.note_memories(trail, &chain, end, subject);
            let asked = end.map_or(chain.rules.len(), |end| end + 1);
            for (rule, parsed) in chain.rules.iter().zip(chain.parsed.iter()).take(asked) {
                let mut parsed = Cow::Borrowed(parsed);
                if parsed.tells_ports_apart(chosen) {
                    parsed.to_mut().leave_source_port_open(chosen);
                }
                if let Some(caveat) = parsed.caveat().filter(|_| parsed.concerns(subject)) {
                    found.push((caveat.clone(), rule.clone()));
                }
            }
            // What stands behind a rule of this router that chooses a port is asked about that one.
            chosen = chosen_by(&chain, trail).map_or(chosen, |ports| ports.open(port, any));
        }
        Ok(found)
    }

    /// The first rule of those that were seen to match of which `is_it` is true.
    pub(super) fn matched(
        &mut self,
        trail: &Trail,
        is_it: impl Fn(&RuleText, &Rule) -> bool,
    ) -> Result<Option<RuleText>, ExplainError> {
        for (place, _) in visited(&trail.steps) {
            let chain = self.chain(&place)?;
            let mut rules = chain.rules.iter().zip(chain.parsed.iter());
            let found = rules.find(|(rule, parsed)| matched(rule, trail) && is_it(rule, parsed));
            if let Some((rule, _)) = found {
                return Ok(Some(rule.clone()));
            }
        }
        Ok(None)
    }

    /// From which ports this router chose one for a packet that came from `port`.
    pub(super) fn chosen(&mut self, trail: &Trail, port: u16) -> Result<OpenPorts, ExplainError> {
        let any = self.book.open_ports() != OpenPorts::None;
        let mut chosen = OpenPorts::None;
        for (place, _) in visited(&trail.steps) {
            if !is_own(&place.table) {
                let ports = chosen_by(&*self.chain(&place)?, trail);
                chosen = ports.map_or(chosen, |ports| ports.open(port, any));
            }
        }
        Ok(chosen)
    }

    /// Notes rules that remember the probe.
    fn note_memories(
        &mut self,
        trail: &Trail,
        chain: &TextChain,
        end: Option<usize>,
        subject: &Packet,
    ) {
        let asked = end.map_or(chain.rules.len(), |end| end + 1);
        let matched = |at: usize| matched(&chain.rules[at], trail);
        for (at, where_to) in entries(&chain.parsed, asked, matched, subject) {
            let rule = &chain.rules[at];
            self.warnings
                .insert(format!("probes left an entry in {where_to} by {rule}"));
        }
    }
}

/// Whether a rule was seen to match.
fn matched(rule: &RuleText, trail: &Trail) -> bool {
    let is_it = |step: &TraceStep| step.place == rule.place && step.kind == StepKind::Rule;
    trail.steps.iter().any(is_it)
}

/// What a rule of the chain that was seen to match chose the source port from.
fn chosen_by(chain: &TextChain, trail: &Trail) -> Option<ChosenPorts> {
    let rules = chain.rules.iter().zip(chain.parsed.iter());
    let mut chosen = rules.filter(|(rule, _)| matched(rule, trail));
    chosen.find_map(|(rule, parsed)| ChosenPorts::by(parsed, rule.text.as_deref()?))
}

/// The queues of a namespace that somebody listens to.
pub(super) fn queues(netns: &NetnsFd) -> Vec<u16> {
    let text = netns.enter(|| fs::read_to_string(QUEUES));
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    let number = |line: &str| line.split_whitespace().next()?.parse().ok();
    text.lines().filter_map(number).collect()
}

/// What rules may see of a probe, before and behind NAT.
pub(super) fn subject(headers: &Headers, trail: Option<&Trail>) -> Packet {
    let sent = Packet::of(Family::of(headers.destination))
        .with(Field::Protocol, headers.protocol.number())
        .with(Field::DestinationPort, headers.destination_port)
        .with(Field::SourcePort, headers.source_port)
        .with_address(Field::Source, headers.source)
        .with_address(Field::Destination, headers.destination)
        // The first packet of a connection: a SYN, new or not tracked.
        .with(Field::TcpFlags, SYN)
        .with_state(TrackingState::New)
        .with_state(TrackingState::Untracked);
    let sent = like_others(with_kind(sent, headers), headers, 0);
    let sent = like_others(sent, headers, 1);
    let Some(Trail { head, .. }) = trail else {
        return sent;
    };
    sent.with(Field::SourcePort, head.source_port)
        .with(Field::DestinationPort, head.destination_port)
        .with_address(Field::Source, head.source)
        .with_address(Field::Destination, head.destination)
}

/// Adds the type of a message of ICMP, for which the destination port stands.
pub(super) fn with_kind(packet: Packet, headers: &Headers) -> Packet {
    match headers.protocol {
        Protocol::Icmp => packet.with(Field::IcmpType, headers.destination_port),
        Protocol::Icmpv6 => packet.with(Field::Icmpv6Type, headers.destination_port),
        _ => packet,
    }
}

/// Adds what packets of other senders may be like where a job makes up what a probe is like, behind
/// as many `hops`.
pub(super) fn like_others(packet: Packet, headers: &Headers, hops: u8) -> Packet {
    /// What Linux and others, Windows, and network devices begin with.
    const TTLS: [u8; 3] = [64, 128, 255];
    /// As many routers are passed at the most before a TTL is one that a rule has set.
    const MOST: u8 = 32;
    let passed = (TTLS[0].checked_sub(headers.ttl)).filter(|passed| *passed < MOST);
    let ttls = match passed {
        Some(passed) => TTLS.map(|ttl| ttl - passed),
        None => [headers.ttl; 3],
    };
    let packet = ttls.into_iter().fold(packet, |packet, ttl| {
        packet.with(Field::Ttl, ttl.saturating_sub(hops))
    });
    let (least, most) = lengths(headers);
    let packet = packet.within(Field::Length, least, most);
    // A sender of the lab begins with this TTL, and each router takes one away.
    let rewritten = headers.options_open && headers.ttl < TTLS[0];
    // From what every host has to take (RFC 9293) to what fits into a jumbo frame.
    match headers.protocol {
        Protocol::Tcp if !rewritten => packet.within(Field::TcpOptions, 536, 8960),
        _ => packet,
    }
}

/// How long the IP packet may be at least and at most, in bytes.
fn lengths(headers: &Headers) -> (u32, u32) {
    if let Some(size) = headers.size {
        return (size.into(), size.into());
    }
    let ip = ip_length(headers.destination) as u32;
    let (least, most) = match headers.protocol {
        // A header with options of 40 bytes at the most; an echo of 32 bytes, of 56 or 64.
        Protocol::Tcp => (20, 60),
        Protocol::Icmp | Protocol::Icmpv6 => (8 + 32, 8 + 64),
        _ => (8, u16::MAX.into()),
    };
    (ip + least, ip + most)
}

/// Whether a rule or policy is of this chain.
fn is_of(chain: &RulePlace, place: &RulePlace) -> bool {
    (chain.family, &chain.table, &chain.chain) == (place.family, &place.table, &place.chain)
}

/// The chains that a probe went through, in order, each with the rule that ended its stay there;
/// none where it came to the end.
pub(super) fn visited(steps: &[TraceStep]) -> Vec<(RulePlace, Option<u64>)> {
    let mut chains: Vec<(RulePlace, Option<u64>)> = Vec::new();
    let visit = |chains: &mut Vec<(RulePlace, Option<u64>)>, of: &RulePlace, chain: &str, end| {
        let same = |(place, _): &&mut (RulePlace, _)| {
            place.family == of.family && place.table == of.table && place.chain == chain
        };
        match chains.iter_mut().find(same) {
            Some((_, known)) => *known = end,
            None => {
                let place = RulePlace {
                    chain: chain.to_owned(),
                    handle: 0,
                    ..of.clone()
                };
                chains.push((place, end));
            }
        }
    };
    for step in steps {
        let place = &step.place;
        // A policy follows what has come to a base chain's end, and what a `return` or a chain that
        // was gone to led there past the rules behind it.
        let known =
            step.kind == StepKind::Policy && chains.iter().any(|(known, _)| is_of(known, place));
        if known {
            continue;
        }
        let stays = matches!(
            step.decision,
            TraceDecision::Continue | TraceDecision::Jump(_)
        );
        let ended = !stays && step.kind == StepKind::Rule;
        visit(
            &mut chains,
            place,
            &place.chain,
            ended.then_some(place.handle),
        );
        if let TraceDecision::Jump(target) | TraceDecision::Goto(target) = &step.decision {
            visit(&mut chains, place, target, None);
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{TableFamily, place::HookPoint};

    fn step(chain: &str, handle: u64, decision: TraceDecision) -> TraceStep {
        let kind = if handle == 0 {
            StepKind::Policy
        } else {
            StepKind::Rule
        };
        TraceStep {
            hook: HookPoint::Forward,
            place: RulePlace {
                family: TableFamily::IP,
                table: "t".to_owned(),
                chain: chain.to_owned(),
                handle,
            },
            kind,
            decision,
        }
    }

    #[test]
    fn a_chain_counts_up_to_the_rule_that_ended_the_stay_there() {
        let jump = |to: &str| TraceDecision::Jump(to.to_owned());
        let steps = [
            step("base", 1, jump("empty")),
            step("base", 2, jump("sub")),
            step("sub", 7, TraceDecision::Return),
            step("base", 3, TraceDecision::Continue),
            step("base", 0, TraceDecision::Drop),
        ];
        let seen: Vec<_> = visited(&steps)
            .into_iter()
            .map(|(place, end)| (place.chain, end))
            .collect();
        let chain = |name: &str, end| (name.to_owned(), end);
        assert_eq!(
            seen,
            [
                chain("base", None),
                chain("empty", None),
                chain("sub", Some(7))
            ]
        );
        let stopped = visited(&[step("base", 4, TraceDecision::Drop)]);
        assert_eq!(stopped[0].1, Some(4));
        for decision in [TraceDecision::Return, TraceDecision::Goto("sub".to_owned())] {
            let past = visited(&[
                step("base", 2, decision),
                step("base", 0, TraceDecision::Drop),
            ]);
            assert_eq!(past[0].1, Some(2), "rules behind it were not asked");
        }
    }
}
