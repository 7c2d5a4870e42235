//! The walk: what left one router is what the next one is asked with.
//!
//! Pure: it goes through what was measured, and says what it needs to have measured to go on.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use super::{
    branch::Branch,
    visited::{Ending, Fate, ProbeOutcome, Visited, WayOut},
};
use crate::{
    fault,
    lab::trace::{Entry, Undelivered, Wiring},
    model::RouterName,
    run::{
        packet::{Headers, Probe, position},
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
    pub(super) steps: Vec<VisitProbe>,
    /// The routers that it passes at layer 2.
    pub(super) crossed: Vec<Crossed>,
}

/// A leg at layer 2, by its number, and why where its verdict is not a plain YES.
#[derive(Debug, Clone)]
pub(super) struct Crossed {
    pub(super) leg: usize,
    pub(super) why: Option<Arc<str>>,
}

/// A visit, by number, and a probe of it, by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VisitProbe {
    pub(super) visit: usize,
    pub(super) position: usize,
}

impl VisitProbe {
    fn came<'a>(
        &self,
        visits: &'a [Visited],
    ) -> Option<(&'a Visited, &'a Probe, &'a ProbeOutcome)> {
        let visit = visits.get(self.visit)?;
        let probe = visit.probes.get(self.position)?;
        Some((visit, probe, visit.outcomes.get(self.position)?))
    }
}

/// What was measured, found by place.
pub(super) struct Walk<'a> {
    visits: &'a [Visited],
    /// In order of their places.
    at: Vec<(&'a Entry, Vec<usize>)>,
    wiring: &'a Wiring,
    /// The routers that were named, where the way goes through these only.
    named: Option<&'a [RouterName]>,
    /// What was said last of a packet that one router handed over to another.
    handed: RefCell<Option<Handed>>,
}

/// Two routers, and that one hands a packet over to the other in words.
struct Handed {
    between: [RouterName; 2],
    words: Arc<str>,
}

/// Packets that are to be measured before a walk can go on.
#[derive(Debug, Default)]
pub(super) struct WalkNeeds {
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
        let mut at: BTreeMap<&Entry, Vec<usize>> = BTreeMap::new();
        for (number, visit) in visits.iter().enumerate() {
            at.entry(&visit.at).or_default().push(number);
        }
        Self {
            visits,
            // Few places are searched more quickly than they are hashed, for each of many probes.
            at: at.into_iter().collect(),
            wiring,
            named,
            handed: RefCell::new(None),
        }
    }

    /// Adds all ways of a probe that enters at `entry`, as far as they are measured, to `ends`; what is
    /// missing is added to `needs`.
    pub(super) fn follow(
        &self,
        entry: &Entry,
        probe: Probe,
        needs: &mut WalkNeeds,
        ends: &mut Vec<WayEnd>,
    ) {
        let before = ends.len();
        let mut open = vec![Under {
            at: entry.clone(),
            probe,
            steps: Vec::new(),
        }];
        while let Some(way) = open.pop() {
            if ends.len() - before == MAX_WAYS {
                let more = Ending::new(
                    Verdict::Unknown,
                    EndKind::NotKnown,
                    format!("it has more than {MAX_WAYS} ways"),
                );
                push(ends, self.end(entry, way.steps, more, None));
                break;
            }
            self.step(entry, way, &mut open, ends, needs);
        }
    }

    fn step(
        &self,
        entry: &Entry,
        way: Under,
        open: &mut Vec<Under>,
        ends: &mut Vec<WayEnd>,
        needs: &mut WalkNeeds,
    ) {
        if let Some(ending) = self.comes_back(&way) {
            let router = way.at.router.clone();
            return push(ends, self.end(entry, way.steps, ending, Some(router)));
        }
        let found = self.find(&way.at, &way.probe);
        if found.is_empty() {
            if needs.closed {
                let reason = "its way is too long to be followed";
                let ending = Ending::new(Verdict::Unknown, EndKind::NotKnown, reason);
                return push(
                    ends,
                    self.end(entry, way.steps, ending, Some(way.at.router)),
                );
            }
            return needs.packets.push((way.at, way.probe));
        }
        let (last, others) = match found.split_last() {
            Some((last, others)) => (*last, others),
            None => return,
        };
        for step in others {
            self.leave(entry, way.clone(), *step, open, ends);
        }
        self.leave(entry, way, last, open, ends);
    }

    /// Follows a way behind a router.
    fn leave(
        &self,
        entry: &Entry,
        mut way: Under,
        step: VisitProbe,
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
            return push(ends, self.end(entry, way.steps, ending, router));
        };
        for fate in exit.fates.iter().rev() {
            let steps = way.steps.clone();
            match fate {
                Fate::End(ending) => {
                    push(ends, self.end(entry, steps, ending.clone(), router.clone()));
                }
                Fate::On(next) if self.is_left(next) => {
                    let reason = self.hands_over(&visit.at.router, &next.router);
                    let ending = Ending::new(Verdict::Yes, EndKind::HandedOver, reason);
                    push(ends, self.end(entry, steps, ending, router.clone()));
                }
                Fate::On(next) => match self.kept_from(exit, next, outcome) {
                    Some(ending) => {
                        let at = Some(next.router.clone());
                        push(ends, self.end(entry, steps, ending, at));
                    }
                    None => open.push(Under {
                        at: next.clone(),
                        probe: Probe {
                            headers: carried(&way.probe.headers, &outcome.headers),
                            ..way.probe
                        },
                        steps,
                    }),
                },
            }
        }
    }

    /// How the way ends where the other end of the wire does not get a packet from that source.
    fn kept_from(&self, exit: &WayOut, next: &Entry, outcome: &ProbeOutcome) -> Option<Ending> {
        let (hop, source) = (&exit.hop, outcome.headers.source);
        let from = (&hop.router, hop.iface_out.as_ref()?);
        Some(
            match self.wiring.kept_from(from, hop.next_hop, next, source)? {
                Undelivered::NotAllowed => {
                    let reason = format!(
                        "{next} drops it: {source} is not among the allowed IPs of its WireGuard peer {}",
                        hop.router
                    );
                    Ending::new(Verdict::No, EndKind::NoPeer, reason)
                }
                Undelivered::Unheard => {
                    let reason = format!(
                        "{next} does not answer ARP to {}, which asks from an address that is not of its \
                     subnet (arp_ignore 2, or rp_filter without a way back) or is its own",
                        hop.router
                    );
                    Ending::new(Verdict::No, EndKind::Nobody, reason)
                }
            },
        )
    }

    /// That one router hands a packet over to another, in words that packets share.
    fn hands_over(&self, from: &RouterName, to: &RouterName) -> Arc<str> {
        let mut last = self.handed.borrow_mut();
        let same = |last: &&Handed| last.between.each_ref() == [from, to];
        if let Some(last) = last.as_ref().filter(same) {
            return Arc::clone(&last.words);
        }
        let words: Arc<str> = format!("{from} hands it over to {to}").into();
        *last = Some(Handed {
            between: [from.clone(), to.clone()],
            words: Arc::clone(&words),
        });
        words
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

    /// Whether such a packet was measured there.
    pub(super) fn is_measured(&self, at: &Entry, probe: &Probe) -> bool {
        !self.find(at, probe).is_empty()
    }

    /// Where such a packet was measured: once, or for each of several next hops.
    fn find(&self, at: &Entry, probe: &Probe) -> Vec<VisitProbe> {
        let visits = self.at.binary_search_by_key(&at, |(place, _)| place);
        let visits = visits.ok().and_then(|found| self.at.get(found));
        let visits = visits.into_iter().flat_map(|(_, visits)| visits);
        let mut found = visits
            .copied()
            .filter_map(|visit| self.find_in(visit, probe));
        let Some(first) = found.next() else {
            return Vec::new();
        };
        let branches = |step: &VisitProbe| {
            let visit = self.visits.get(step.visit);
            visit.is_some_and(|visit| visit.branch.is_some())
        };
        if !branches(&first) {
            return vec![first];
        }
        let others = found.filter(branches);
        let mut all: Vec<VisitProbe> = vec![first];
        for step in others {
            let branch = |step: &VisitProbe| self.visits.get(step.visit).map(|visit| &visit.branch);
            if all.iter().all(|known| branch(known) != branch(&step)) {
                all.push(step);
            }
        }
        all
    }

    fn find_in(&self, visit: usize, probe: &Probe) -> Option<VisitProbe> {
        let probes = &self.visits.get(visit)?.probes;
        let position = position(probes, probe.index, |p| p.index)?;
        (probes.get(position)?.headers == probe.headers).then_some(VisitProbe { visit, position })
    }

    fn end(
        &self,
        entry: &Entry,
        steps: Vec<VisitProbe>,
        ending: Ending,
        router: Option<RouterName>,
    ) -> WayEnd {
        let came = || steps.iter().filter_map(|step| step.came(self.visits));
        let mut legs = Vec::with_capacity(steps.len());
        legs.extend(came().map(|(visit, _, outcome)| leg(visit, outcome)));
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
            legs,
            branches: came()
                .filter_map(|(visit, ..)| visit.branch.clone())
                .collect(),
            steps,
            crossed: Vec::new(),
        }
    }
}

/// Adds a way. Mostly there is one, of 65,535 probes: no room is kept for others.
fn push(ends: &mut Vec<WayEnd>, way: WayEnd) {
    ends.reserve_exact(1);
    ends.push(way);
}

/// A way as far as it is known.
#[derive(Clone)]
struct Under {
    at: Entry,
    probe: Probe,
    steps: Vec<VisitProbe>,
}

/// A YES that depends on something says so.
fn with_caveats<'a>(
    reason: Option<Arc<str>>,
    came: impl Iterator<Item = (&'a Visited, &'a Probe, &'a ProbeOutcome)>,
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

fn leg(visit: &Visited, outcome: &ProbeOutcome) -> Leg {
    let exit: Option<&WayOut> = outcome.exit.and_then(|exit| visit.exits.get(exit));
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
