//! Probes that were lost at a hook that nf_tables does not trace: the rules of iptables-legacy.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ExplainError, ExplainQuestion,
    crowd::Tracing,
    follow::Followed,
    read::{queues, subject},
    reason::{EndingAction, Explained, Reason},
};
use crate::{
    firewall::{
        iptables::{
            step::LegacyStep,
            trace::{
                LegacyDrained, LegacyRules, LegacyStop, LegacyTrace, LegacyTraceError, LegacyTrails,
            },
        },
        nft::trace::{PROBES_PER_DRAIN, StoppedBy, Trail},
        place::HookPoint,
        rule::Rule,
        ruletext::Shelf,
    },
    netns::tool::Tools,
};

/// By how much a batch shrinks when its reports did not fit.
const SHRINK: usize = 8;

/// What iptables-legacy reported of the lost probes.
#[derive(Default)]
pub(super) struct LegacyReports {
    /// Where each was lost.
    lost: BTreeMap<u32, HookPoint>,
    found: Option<(LegacyRules, LegacyTrails)>,
    queues: Vec<u16>,
    warnings: BTreeSet<String>,
}

impl LegacyReports {
    /// Sends the probes that were lost within a hook again, and all of them where legacy rules
    /// decide by more than the packet, while the router's legacy tables report what they do. `tracing` marks
    /// them as traced.
    pub(super) fn follow(
        question: &ExplainQuestion<'_>,
        tools: (&Tools, Option<&Shelf>),
        tracing: &mut Tracing<'_, '_>,
        followed: &Followed,
    ) -> Result<Self, ExplainError> {
        let lost = followed.trails.iter().filter_map(|(index, trail)| {
            let StoppedBy::Within(hook) = trail.stopped_by() else {
                return None;
            };
            (!followed.overrun.contains(index)).then_some((*index, hook))
        });
        let mut legacy = Self {
            lost: lost.collect(),
            ..Self::default()
        };
        let every = question.scrutiny.legacy;
        if legacy.lost.is_empty() && !every {
            return Ok(legacy);
        }
        let all = question.probes.iter().map(|probe| probe.index);
        let indexes: Vec<u32> = all
            .filter(|index| every || legacy.lost.contains_key(index))
            .collect();
        match listen(question, tools, tracing, &indexes)? {
            Ok(found) => legacy.found = found,
            Err(error) => {
                let warning = format!("no reasons from iptables-legacy: {error}");
                legacy.warnings.insert(warning);
            }
        }
        if legacy.found.is_some() {
            legacy.queues = queues(question.netns);
        }
        Ok(legacy)
    }

    /// The rules, where they were read.
    pub(super) fn rules(&self) -> Option<&LegacyRules> {
        self.found.as_ref().map(|(rules, _)| rules)
    }

    /// The rules with what they reported of one probe.
    pub(super) fn met(&self, index: u32) -> Option<(&LegacyRules, &[LegacyStep])> {
        let (rules, trails) = self.found.as_ref()?;
        Some((rules, trails.get(&index).map_or(&[][..], Vec::as_slice)))
    }

    /// What the reader should know.
    pub(super) fn into_warnings(self) -> BTreeSet<String> {
        self.warnings
    }

    /// Puts the rule or policy of iptables-legacy in as the reason, where there is one, and adds
    /// the rules that decide by more than the packet.
    pub(super) fn improve(
        &mut self,
        question: &ExplainQuestion<'_>,
        trail: Option<&Trail>,
        explained: &mut Explained,
    ) {
        let Some((rules, trails)) = &self.found else {
            return;
        };
        let steps = trails.get(&explained.index).map_or(&[][..], Vec::as_slice);
        let lost = self.lost.get(&explained.index);
        if let Some((hook, stop)) = lost.and_then(|hook| {
            let stop = rules.stopped_by(steps, *hook)?;
            Some((*hook, stop))
        }) {
            explained.reason = reason(stop, hook, &self.queues);
        }
        if let Some(headers) = question.headers(explained.index) {
            let subject = subject(headers, trail);
            explained.caveats.extend(rules.caveats(steps, &subject));
            for (where_to, rule) in rules.memories(steps, &subject) {
                self.warnings
                    .insert(format!("probes left an entry in {where_to} by {rule}"));
            }
        }
    }
}

fn reason(stop: LegacyStop, hook: HookPoint, queues: &[u16]) -> Reason {
    match stop {
        LegacyStop::Policy(chain) => Reason::Policy { hook, chain },
        LegacyStop::Rule(rule) => Reason::Rule {
            hook,
            action: action(&rule.parsed(), queues),
            rule,
        },
    }
}

fn action(rule: &Rule, queues: &[u16]) -> EndingAction {
    if let Some(with) = rule.rejected_with() {
        return EndingAction::Rejected(with.to_owned());
    }
    match (rule.queue(), rule.answers_itself()) {
        (Some(queue), _) => EndingAction::Queued {
            queue,
            listener: queues.contains(&queue),
        },
        (None, true) => EndingAction::Taken,
        (None, false) => EndingAction::Dropped,
    }
}

type Found = Option<(LegacyRules, LegacyTrails)>;

/// The outer error ends the explanation; the inner one only means that legacy tables stay silent.
fn listen(
    question: &ExplainQuestion<'_>,
    tools: (&Tools, Option<&Shelf>),
    tracing: &mut Tracing<'_, '_>,
    indexes: &[u32],
) -> Result<Result<Found, LegacyTraceError>, ExplainError> {
    let (family, tags) = (question.family(), question.tags);
    let terms = (question.notes, question.patience);
    let started = LegacyTrace::start(question.netns, family, tags, PROBES_PER_DRAIN, terms);
    let mut trace = match started {
        Ok(Some(trace)) => trace,
        Ok(None) => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error)),
    };
    let trails = batches(&mut trace, tracing, indexes);
    let stopped = trace.stop();
    let read = || {
        let rules = LegacyRules::read(question.netns, tools, family);
        let rules = rules.map(|rules| rules.of_open_ports(question.open_ports));
        rules.map(|rules| rules.of_rewritten(question.rewritten))
    };
    Ok(match (trails?, stopped) {
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        (Ok(trails), Ok(())) => read().map(|rules| Some((rules, trails))),
    })
}

/// As many probes at a time as the reports have room for.
fn batches(
    trace: &mut LegacyTrace<'_>,
    tracing: &mut Tracing<'_, '_>,
    indexes: &[u32],
) -> Result<Result<LegacyTrails, LegacyTraceError>, ExplainError> {
    let mut trails = LegacyTrails::new();
    let mut rest = indexes;
    let mut most = trace.probes_at_once();
    while !rest.is_empty() {
        let size = tracing.tracer.probes_at_once().min(most);
        let (batch, behind) = rest.split_at(size.min(rest.len()));
        // These events are known already; they only must not fill the buffer.
        tracing.send(batch)?;
        let alone = batch.len() == 1;
        match trace.drain() {
            Ok(LegacyDrained::Whole(found)) => trails.extend(found),
            // No wait for the turn to trace: whoever has it may wait for this one.
            Ok(LegacyDrained::Crowded) if tracing.insists(alone) => continue,
            Ok(LegacyDrained::Crowded | LegacyDrained::Overrun) if !alone => {
                most = (batch.len() / SHRINK).max(1);
                continue;
            }
            // One alone has more than fit; it stays without a reason.
            Ok(LegacyDrained::Crowded | LegacyDrained::Overrun) => {}
            Err(error) => return Ok(Err(error)),
        }
        rest = behind;
        most = most.saturating_mul(2);
    }
    Ok(Ok(trails))
}
