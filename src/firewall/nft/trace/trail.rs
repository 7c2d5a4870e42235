//! From events to the way of each probe, and from the way to what stopped it; pure code.

use std::collections::HashMap;

use super::{
    TRACE_TABLES,
    event::{StepKind, TraceDecision, TraceEvent},
    head::PacketHead,
};
use crate::firewall::{RulePlace, TableFamily, TagSpace, place::HookPoint};

/// Something that a chain of the router did with a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceStep {
    /// At which hook.
    pub hook: HookPoint,
    /// The rule; its handle is 0 for the end of a chain.
    pub place: RulePlace,
    /// What the event is about.
    pub kind: StepKind,
    /// What was decided.
    pub decision: TraceDecision,
}

/// How a probe left the router's chains, where the tracer took it out of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeExit {
    /// At the end of POSTROUTING.
    Out,
    /// At the end of INPUT.
    Local,
}

/// How far a probe came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reached {
    /// The last hook where it was seen.
    pub hook: HookPoint,
    /// Whether it was seen behind the last chain there.
    pub whole: bool,
}

/// The way of one probe through a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trail {
    /// What chains did with it, in order; the tracer's own chains are left out.
    pub steps: Vec<TraceStep>,
    /// How far it came.
    pub reached: Reached,
    /// Its headers when they were last shown.
    pub head: PacketHead,
    /// Whether it came to an end where the tracer takes probes away.
    pub exit: Option<ProbeExit>,
    /// Copies that the router made of it and sent (TEE, `dup`).
    pub copies: u32,
    /// The kernel's number for the packet, reused soon.
    pub(super) id: u32,
    /// Whether the last event was a step, and not one of the tracer's own.
    pub(super) ends_with_step: bool,
}

/// What stopped a probe, as far as the trace tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoppedBy<'a> {
    /// A rule whose verdict ended it.
    Rule(&'a TraceStep),
    /// The policy of a base chain.
    Policy(&'a TraceStep),
    /// Something at this hook that nf_tables does not trace: another user of the hook, such as
    /// iptables-legacy or connection tracking.
    Within(HookPoint),
    /// Something behind this hook and before the next, where the kernel routes and checks.
    After(HookPoint),
    /// Nothing: this time it went through.
    Nothing(ProbeExit),
}

impl Trail {
    /// What stopped the probe.
    #[must_use]
    pub fn stopped_by(&self) -> StoppedBy<'_> {
        match self.exit {
            Some(exit) => StoppedBy::Nothing(exit),
            None => stopped_by(
                self.steps.last().filter(|_| self.ends_with_step),
                self.reached,
            ),
        }
    }
}

/// What stopped a packet that did not come to its way's end: the last step, unless one of the
/// tracer's own chains saw the packet afterwards.
pub(super) fn stopped_by(last: Option<&TraceStep>, reached: Reached) -> StoppedBy<'_> {
    if let Some(step) = last {
        let ends = matches!(
            step.decision,
            TraceDecision::Drop | TraceDecision::Stolen | TraceDecision::Queue(_)
        );
        match step.kind {
            StepKind::Policy if ends => return StoppedBy::Policy(step),
            StepKind::Rule if ends => return StoppedBy::Rule(step),
            _ => {}
        }
    }
    match reached {
        Reached { hook, whole: true } => StoppedBy::After(hook),
        Reached { hook, whole: false } => StoppedBy::Within(hook),
    }
}

/// The tracer's own chains, and the tables that are not the router's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    /// The tracer's table.
    pub(super) table: String,
    /// The table of the job's taps.
    pub(super) taps: String,
}

/// The ways of the probes of one job.
#[derive(Debug)]
pub(super) struct Trails {
    own: Own,
    tags: TagSpace,
    by_index: HashMap<u32, Trail>,
    by_id: HashMap<u32, u32>,
}

impl Trails {
    pub(super) fn new(own: Own, tags: TagSpace) -> Self {
        Self {
            own,
            tags,
            by_index: HashMap::new(),
            by_id: HashMap::new(),
        }
    }

    /// Gives away what is known by now and begins anew.
    pub(super) fn take(&mut self) -> HashMap<u32, Trail> {
        self.by_id.clear();
        std::mem::take(&mut self.by_index)
    }

    /// Takes an event in; false where it comes from other jobs: it is about a packet that is none of this
    /// one's probes, or about a chain of another one's trace.
    pub(super) fn add(&mut self, event: &TraceEvent<'_>) -> bool {
        let head = PacketHead::of(event, self.tags);
        let index = head.map(|(_, index)| index);
        let Some(index) = index.or_else(|| self.by_id.get(&event.id).copied()) else {
            return false;
        };
        self.by_id.insert(event.id, index);
        let ours = event.table == self.own.table || !event.table.starts_with(TRACE_TABLES);
        let marker = (event.table == self.own.table).then(|| marker(event.chain));
        if let (Some(Some(reached)), Some((head, _))) = (marker, head)
            && self.begins(index, event.id, reached)
        {
            self.by_index.insert(index, Trail::begin(event.id, head));
        }
        let Some(trail) = self.by_index.get_mut(&index) else {
            return ours;
        };
        if trail.id != event.id {
            trail.copies += u32::from(marker == Some(LEAVING));
            return ours;
        }
        if let Some((head, _)) = head {
            trail.head = head;
        }
        match marker {
            Some(Some(reached)) => trail.mark(reached),
            Some(None) => {}
            None if event.table == self.own.taps => trail.tap(event),
            None => trail.step(event),
        }
        ours
    }

    /// Whether a packet seen at `reached` is a new one. The first chain of PREROUTING, or of OUTPUT
    /// for the router's own, sees every packet, behind INGRESS where that is watched; numbers of
    /// packets are reused.
    fn begins(&self, index: u32, id: u32, reached: Reached) -> bool {
        let first = match reached.hook {
            HookPoint::Ingress => true,
            HookPoint::Prerouting | HookPoint::Output => !reached.whole,
            _ => false,
        };
        let goes_on = self.by_index.get(&index).is_some_and(|trail| {
            let at_ingress = trail.reached.hook == HookPoint::Ingress;
            trail.id == id && at_ingress && reached.hook == HookPoint::Prerouting
        });
        first && !goes_on
    }
}

impl Trail {
    fn begin(id: u32, head: PacketHead) -> Self {
        Self {
            steps: Vec::new(),
            reached: Reached {
                hook: HookPoint::Ingress,
                whole: false,
            },
            head,
            exit: None,
            copies: 0,
            id,
            ends_with_step: false,
        }
    }

    /// One of the tracer's own chains saw the packet. Behind the last ones its way has ended.
    fn mark(&mut self, reached: Reached) {
        self.reached = reached;
        self.ends_with_step = false;
        self.exit = match (reached.whole, reached.hook) {
            (true, HookPoint::Postrouting) => Some(ProbeExit::Out),
            (true, HookPoint::Input) => Some(ProbeExit::Local),
            _ => None,
        };
    }

    /// The job's taps saw the packet. They take it away only where its way ends.
    fn tap(&mut self, event: &TraceEvent<'_>) {
        if event.decision == TraceDecision::Drop {
            self.mark(Reached {
                whole: true,
                ..self.reached
            });
        }
    }

    fn step(&mut self, event: &TraceEvent<'_>) {
        // A rule without a handle is the end of a chain, where nothing is decided.
        if event.kind == StepKind::Rule && event.handle == 0 {
            return;
        }
        self.ends_with_step = true;
        self.steps.push(TraceStep {
            hook: self.hook_of(event.family),
            place: RulePlace {
                family: event.family,
                table: event.table.to_owned(),
                chain: event.chain.to_owned(),
                handle: event.handle,
            },
            kind: event.kind,
            decision: event.decision.clone(),
        });
    }

    /// Where a chain is asked, given that the last own chain says where the packet is.
    fn hook_of(&self, family: TableFamily) -> HookPoint {
        match family {
            TableFamily::NETDEV => HookPoint::Ingress,
            _ => self.reached.hook,
        }
    }
}

/// The last chain of all.
const LEAVING: Option<Reached> = Some(Reached {
    hook: HookPoint::Postrouting,
    whole: true,
});

/// The name of the tracer's chain at a hook.
pub(super) fn chain_name(reached: Reached) -> String {
    let end = if reached.whole { "last" } else { "first" };
    format!("{}_{end}", reached.hook)
}

/// Which of the tracer's chains this is.
pub(super) fn marker(chain: &str) -> Option<Reached> {
    let (hook, end) = chain.split_once('_')?;
    let hook = match hook {
        "ingress" => HookPoint::Ingress,
        "prerouting" => HookPoint::Prerouting,
        "input" => HookPoint::Input,
        "forward" => HookPoint::Forward,
        "output" => HookPoint::Output,
        "postrouting" => HookPoint::Postrouting,
        _ => return None,
    };
    let whole = end.starts_with("last");
    Some(Reached { hook, whole })
}

#[cfg(test)]
#[path = "trail_tests.rs"]
mod tests;
