//! Probes that were lost at a hook that nf_tables does not trace: the rules of iptables-legacy.

use std::collections::BTreeMap;

use super::{
    ExplainError, Question, SendAgain,
    follow::Followed,
    reason::{Action, Explained, Reason},
};
use crate::{
    firewall::{
        effect::rejected_with,
        iptables::trace::{LegacyRules, LegacyStop, LegacyTrace, LegacyTraceError, LegacyTrails},
        nft::trace::{PROBES_PER_DRAIN, StoppedBy, Tracer},
        place::HookPoint,
    },
    netlink::object::Family,
    netns::tool::Tools,
};

/// By how much a batch shrinks when its reports did not fit.
const SHRINK: usize = 8;

/// What iptables-legacy reported of the lost probes.
#[derive(Default)]
pub(super) struct Legacy {
    /// Where each was lost.
    lost: BTreeMap<u32, HookPoint>,
    found: Option<(LegacyRules, LegacyTrails)>,
    warning: Option<String>,
}

impl Legacy {
    /// Sends the probes that were lost within a hook again, while the router's legacy tables
    /// report what they do with them. `tracer` marks them as traced.
    pub(super) fn follow(
        question: &Question<'_>,
        tools: &Tools,
        tracer: &mut Tracer,
        followed: &Followed,
        send: &mut SendAgain<'_>,
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
        if legacy.lost.is_empty() {
            return Ok(legacy);
        }
        let indexes: Vec<u32> = legacy.lost.keys().copied().collect();
        match listen(question, tools, tracer, &indexes, send)? {
            Ok(found) => legacy.found = found,
            Err(error) => {
                legacy.warning = Some(format!("no reasons from iptables-legacy: {error}"));
            }
        }
        Ok(legacy)
    }

    /// What went wrong, for the reader.
    pub(super) fn warning(&mut self) -> Option<String> {
        self.warning.take()
    }

    /// Puts the rule or policy of iptables-legacy in as the reason, where there is one.
    pub(super) fn improve(&self, question: &Question<'_>, explained: &mut Explained) {
        let (Some(hook), Some((rules, trails))) = (self.lost.get(&explained.index), &self.found)
        else {
            return;
        };
        let steps = trails.get(&explained.index).map_or(&[][..], Vec::as_slice);
        let Some(stop) = rules.stopped_by(steps, *hook) else {
            return;
        };
        explained.reason = reason(stop, *hook);
        let asked = question.blocked.iter().find(|(i, _)| *i == explained.index);
        if let Some((_, service)) = asked {
            let caveats = rules.caveats(steps, service.protocol, &[service.port]);
            explained.caveats.extend(caveats);
        }
    }
}

fn reason(stop: LegacyStop, hook: HookPoint) -> Reason {
    match stop {
        LegacyStop::Policy(chain) => Reason::Policy { hook, chain },
        LegacyStop::Rule(rule) => {
            let with = rule.text.as_deref().and_then(rejected_with);
            Reason::Rule {
                hook,
                action: with.map_or(Action::Dropped, Action::Rejected),
                rule,
            }
        }
    }
}

type Found = Option<(LegacyRules, LegacyTrails)>;

/// The outer error ends the explanation; the inner one only means that legacy tables stay silent.
fn listen(
    question: &Question<'_>,
    tools: &Tools,
    tracer: &mut Tracer,
    indexes: &[u32],
    send: &mut SendAgain<'_>,
) -> Result<Result<Found, LegacyTraceError>, ExplainError> {
    let family = Family::of(question.probe.destination);
    let tags = question.probe.tags;
    let mut trace = match LegacyTrace::start(question.netns, family, tags, PROBES_PER_DRAIN) {
        Ok(Some(trace)) => trace,
        Ok(None) => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error)),
    };
    let trails = batches(&mut trace, tracer, indexes, send);
    let stopped = trace.stop();
    let read = || LegacyRules::read(question.netns, tools, family);
    Ok(match (trails?, stopped) {
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        (Ok(trails), Ok(())) => read().map(|rules| Some((rules, trails))),
    })
}

/// As many probes at a time as the reports have room for.
fn batches(
    trace: &mut LegacyTrace<'_>,
    tracer: &mut Tracer,
    indexes: &[u32],
    send: &mut SendAgain<'_>,
) -> Result<Result<LegacyTrails, LegacyTraceError>, ExplainError> {
    let mut trails = LegacyTrails::new();
    let mut rest = indexes;
    let mut size = PROBES_PER_DRAIN;
    while !rest.is_empty() {
        let (batch, behind) = rest.split_at(size.min(rest.len()));
        send(batch).map_err(ExplainError::Send)?;
        // These events are known already; they only must not fill the buffer.
        tracer.drain()?;
        match trace.drain() {
            Ok(Some(found)) => trails.extend(found),
            Ok(None) if batch.len() > 1 => {
                size = (batch.len() / SHRINK).max(1);
                continue;
            }
            // One alone has more than fit; it stays without a reason.
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
        rest = behind;
    }
    Ok(Ok(trails))
}
