//! The walk: what left one router is what the next one is asked with.
//!
//! Pure: it goes through what was measured, and says what it needs to have measured to go on.

use std::{collections::HashMap, sync::Arc};

use super::{
    branch::Branch,
    visited::{Ending, Exit, Fate, Outcome, Visited},
};
use crate::{
    fault,
    lab::trace::{Entry, Wiring},
    model::RouterName,
    run::{
        packet::{Headers, Probe},
        report::{EndKind, Leg, Verdict},
    },
};

/// More ways of one packet than these are not followed.
const MAX_WAYS: usize = 64;

/// How one way of a packet ends.
#[derive(Debug, Clone)]
pub(super) struct WayEnd {
    /// Where it entered.
    pub(super) entry: Entry,
    pub(super) verdict: Verdict,
    pub(super) kind: EndKind,
    pub(super) reason: Option<Arc<str>>,
    pub(super) router: Option<RouterName>,
    pub(super) legs: Vec<Leg>,
    /// The next hops that it took where routers have several to choose from.
    pub(super) branches: Vec<Arc<Branch>>,
    /// Which visits and which of their probes it went by.
    pub(super) steps: Vec<Step>,
}

/// A visit, by number, and a probe of it, by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) visit: usize,
    pub(super) position: usize,
}

impl Step {
    fn came<'a>(&self, visits: &'a [Visited]) -> Option<(&'a Visited, &'a Probe, &'a Outcome)> {
        let visit = visits.get(self.visit)?;
        let probe = visit.probes.get(self.position)?;
        Some((visit, probe, visit.outcomes.get(self.position)?))
    }
}

/// What was measured, found by place.
pub(super) struct Walk<'a> {
    visits: &'a [Visited],
    at: HashMap<&'a Entry, Vec<usize>>,
    wiring: &'a Wiring,
    /// The routers that were named, where the way goes through these only.
    named: Option<&'a [RouterName]>,
}

/// Packets that are to be measured before a walk can go on.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub(super) packets: Vec<(Entry, Probe)>,
    /// Nothing more will be measured.
    pub(super) closed: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        visits: &'a [Visited],
        wiring: &'a Wiring,
        named: Option<&'a [RouterName]>,
    ) -> Self {
        let mut at: HashMap<&Entry, Vec<usize>> = HashMap::new();
        for (number, visit) in visits.iter().enumerate() {
            at.entry(&visit.at).or_default().push(number);
        }
        Self {
            visits,
            at,
            wiring,
            named,
        }
    }

    /// All ways of a probe that enters at `entry`, as far as they are measured; what is missing is
    /// added to `needs`.
    pub(super) fn follow(&self, entry: &Entry, probe: Probe, needs: &mut Needs) -> Vec<WayEnd> {
        let mut ends = Vec::new();
        let mut open = vec![Under {
            at: entry.clone(),
            probe,
            steps: Vec::new(),
        }];
        while let Some(way) = open.pop() {
            if ends.len() == MAX_WAYS {
                let more = Ending::new(
                    Verdict::Unknown,
                    EndKind::NotKnown,
                    format!("it has more than {MAX_WAYS} ways"),
                );
                ends.push(self.end(entry, &way.steps, more, None));
                break;
            }
            self.step(entry, way, &mut open, &mut ends, needs);
        }
        ends
    }

    fn step(
        &self,
        entry: &Entry,
        way: Under,
        open: &mut Vec<Under>,
        ends: &mut Vec<WayEnd>,
        needs: &mut Needs,
    ) {
        if let Some(ending) = self.comes_back(&way) {
            let router = way.at.router.clone();
            return ends.push(self.end(entry, &way.steps, ending, Some(router)));
        }
        let found = self.find(&way.at, &way.probe);
        if found.is_empty() {
            if needs.closed {
                let reason = "its way is too long to be followed";
                let ending = Ending::new(Verdict::Unknown, EndKind::NotKnown, reason);
                return ends.push(self.end(entry, &way.steps, ending, Some(way.at.router)));
            }
            return needs.packets.push((way.at, way.probe));
        }
        for step in found {
            self.leave(entry, way.clone(), step, open, ends);
        }
    }

    /// Follows a way behind a router.
    fn leave(
        &self,
        entry: &Entry,
        mut way: Under,
        step: Step,
        open: &mut Vec<Under>,
        ends: &mut Vec<WayEnd>,
    ) {
        let Some((visit, _, outcome)) = step.came(self.visits) else {
            return;
        };
        way.steps.push(step);
        let router = Some(visit.at.router.clone());
        let exit = outcome.exit.and_then(|exit| visit.exits.get(exit));
        let Some(exit) = exit.filter(|_| outcome.verdict == Verdict::Yes) else {
            let kind = match outcome.verdict {
                Verdict::No => EndKind::Stopped,
                _ => EndKind::NotKnown,
            };
            let ending = Ending {
                verdict: outcome.verdict,
                kind,
                reason: outcome.reason.clone(),
            };
            return ends.push(self.end(entry, &way.steps, ending, router));
        };
        for fate in exit.fates.iter().rev() {
            match fate {
                Fate::End(ending) => {
                    ends.push(self.end(entry, &way.steps, ending.clone(), router.clone()));
                }
                Fate::On(next) if self.is_left(next) => {
                    let reason = format!("{} hands it over to {}", visit.at.router, next.router);
                    let ending = Ending::new(Verdict::Yes, EndKind::HandedOver, reason);
                    ends.push(self.end(entry, &way.steps, ending, router.clone()));
                }
                Fate::On(next) if !self.takes(exit, next, outcome) => {
                    let reason = format!(
                        "{next} drops it: {} is not among the allowed IPs of its WireGuard peer {}",
                        outcome.headers.source, visit.at.router
                    );
                    let ending = Ending::new(Verdict::No, EndKind::NoPeer, reason);
                    ends.push(self.end(entry, &way.steps, ending, Some(next.router.clone())));
                }
                Fate::On(next) => open.push(Under {
                    at: next.clone(),
                    probe: Probe {
                        headers: carried(&way.probe.headers, &outcome.headers),
                        ..way.probe
                    },
                    steps: way.steps.clone(),
                }),
            }
        }
    }

    /// Whether the other end of the wire takes a packet from that source.
    fn takes(&self, exit: &Exit, next: &Entry, outcome: &Outcome) -> bool {
        let hop = &exit.hop;
        hop.iface_out.as_ref().is_none_or(|out| {
            self.wiring
                .takes(&hop.router, out, next, outcome.headers.source)
        })
    }

    /// Whether the router at `next` is none of those that were named.
    fn is_left(&self, next: &Entry) -> bool {
        self.named
            .is_some_and(|named| !named.contains(&next.router))
    }

    /// Whether a packet comes to where it, or its connection, was before.
    fn comes_back(&self, way: &Under) -> Option<Ending> {
        let before = way.steps.iter().filter_map(|step| step.came(self.visits));
        for (visit, probe, _) in before {
            if visit.at.router != way.at.router {
                continue;
            }
            let router = &visit.at.router;
            if visit.at == way.at && same_packet(&probe.headers, &way.probe.headers) {
                let reason = format!("it comes back to {router} as it was: a loop");
                return Some(Ending::new(Verdict::No, EndKind::Loop, reason));
            }
            if visit.stateful {
                let reason = format!(
                    "it comes to {router} a second time, whose rules go by the connection that \
                     the first passage leaves: a detailed job decides"
                );
                return Some(Ending::new(Verdict::Unknown, EndKind::SecondVisit, reason));
            }
        }
        None
    }

    /// Where such a packet was measured: once, or for each of several next hops.
    fn find(&self, at: &Entry, probe: &Probe) -> Vec<Step> {
        let visits = self.at.get(at).into_iter().flatten();
        let mut found = visits
            .copied()
            .filter_map(|visit| self.find_in(visit, probe));
        let Some(first) = found.next() else {
            return Vec::new();
        };
        let branches = |step: &Step| {
            let visit = self.visits.get(step.visit);
            visit.is_some_and(|visit| visit.branch.is_some())
        };
        if !branches(&first) {
            return vec![first];
        }
        let others = found.filter(branches);
        let mut all: Vec<Step> = vec![first];
        for step in others {
            let branch = |step: &Step| self.visits.get(step.visit).map(|visit| &visit.branch);
            if all.iter().all(|known| branch(known) != branch(&step)) {
                all.push(step);
            }
        }
        all
    }

    fn find_in(&self, visit: usize, probe: &Probe) -> Option<Step> {
        {
            let probes = &self.visits.get(visit)?.probes;
            // Mostly all services are asked everywhere.
            let guess = probe.index as usize;
            let position = match probes.get(guess) {
                Some(there) if there.index == probe.index => guess,
                _ => probes
                    .binary_search_by_key(&probe.index, |p| p.index)
                    .ok()?,
            };
            (probes.get(position)?.headers == probe.headers).then_some(Step { visit, position })
        }
    }

    fn end(
        &self,
        entry: &Entry,
        steps: &[Step],
        ending: Ending,
        router: Option<RouterName>,
    ) -> WayEnd {
        let came = || steps.iter().filter_map(|step| step.came(self.visits));
        let reason = match ending.verdict {
            Verdict::Yes => with_caveats(ending.reason, came()),
            _ => ending.reason,
        };
        WayEnd {
            entry: entry.clone(),
            verdict: ending.verdict,
            kind: ending.kind,
            reason,
            router,
            legs: came()
                .map(|(visit, _, outcome)| leg(visit, outcome))
                .collect(),
            branches: came()
                .filter_map(|(visit, ..)| visit.branch.clone())
                .collect(),
            steps: steps.to_vec(),
        }
    }
}

/// A way as far as it is known.
#[derive(Clone)]
struct Under {
    at: Entry,
    probe: Probe,
    steps: Vec<Step>,
}

/// A YES that depends on something says so.
fn with_caveats<'a>(
    reason: Option<Arc<str>>,
    came: impl Iterator<Item = (&'a Visited, &'a Probe, &'a Outcome)>,
) -> Option<Arc<str>> {
    let caveats = came.filter_map(|(visit, _, outcome)| {
        let caveat = outcome.reason.as_ref()?;
        Some(format!("{}: {caveat}", visit.at.router))
    });
    let caveats: Vec<String> = caveats.collect();
    if caveats.is_empty() {
        return reason;
    }
    let all = reason.iter().map(ToString::to_string);
    Some(all.chain(caveats).collect::<Vec<_>>().join("; ").into())
}

fn leg(visit: &Visited, outcome: &Outcome) -> Leg {
    let exit: Option<&Exit> = outcome.exit.and_then(|exit| visit.exits.get(exit));
    let hop = exit.map_or(&visit.hop, |exit| &exit.hop);
    Leg {
        hop: Arc::clone(hop),
        source: outcome.headers.source,
        destination: outcome.headers.destination,
        sport: outcome.headers.source_port,
        dport: outcome.headers.destination_port,
    }
}

/// What the next router gets of a packet that came as `came` and left as `left`: all of it, unless a
/// test wants to see that forgetting something is noticed.
fn carried(came: &Headers, left: &Headers) -> Headers {
    let mut next = *left;
    if fault::forgets("nat") {
        next = Headers {
            tos: left.tos,
            ttl: left.ttl,
            ..*came
        };
    }
    if fault::forgets("dscp") {
        next.tos = came.tos;
    }
    next
}

/// Whether the packets differ in their TTL only, or not at all.
fn same_packet(a: &Headers, b: &Headers) -> bool {
    let rest = |headers: &Headers| Headers { ttl: 0, ..*headers };
    rest(a) == rest(b)
}
