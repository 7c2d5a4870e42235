//! From what was measured and walked to the answer.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use super::{
    QuickAnswer, QuickClosing, QuickJob, Terms, bridges,
    plan::Plan,
    rounds::Through,
    visit::ENDS_HERE,
    visit::VisitResult,
    visited::{Ending, Fate, ProbeOutcome, Visited},
    walk::WayEnd,
};
use crate::{
    firewall::backend::Backend,
    lab::{self, Lab, trace::Entry},
    model::{Dscp, IfName, RouterName, Service},
    run::{
        omitted::Omitted,
        packet::position,
        report::{
            EndKind, EndToEnd, QuickReport, RouterReport, ServiceReport, Timing, Verdict,
            VerdictScope,
        },
        resolve::RouterChoice,
    },
};

/// What is known of every answer.
pub(super) struct Frame<'a> {
    pub(super) job: &'a QuickJob,
    pub(super) lab: &'a Lab,
    pub(super) dscp: Dscp,
    pub(super) backend: Backend,
    pub(super) timing: Timing,
}

/// The answer where no router had to be asked.
pub(super) fn settled(frame: Frame<'_>, ending: &Ending) -> QuickAnswer {
    let services = frame.job.services.iter();
    let end_to_end = services.map(|service| settled_one(*service, ending));
    let end_to_end = end_to_end.collect();
    QuickAnswer {
        report: frame.report(end_to_end, Vec::new(), Vec::new()),
        closing: Vec::new(),
        rest: None,
    }
}

/// The answer for a service that no router had to be asked about.
pub(super) fn settled_one(service: Service, ending: &Ending) -> EndToEnd {
    EndToEnd {
        port: service.port,
        protocol: service.protocol,
        result: ending.verdict,
        reason: ending.reason.clone(),
        router: None,
        end: ending.kind,
        way: Vec::new(),
    }
}

/// What measurements say beside their verdicts.
pub(super) struct Told {
    pub(super) warnings: Vec<String>,
    pub(super) closing: Vec<QuickClosing>,
    timing: Timing,
}

/// What a reader should know of the measurements, each thing once.
pub(super) fn told(lab: &Lab, terms: &Terms, measured: Vec<(RouterName, VisitResult)>) -> Told {
    let mut all = Told {
        warnings: Vec::new(),
        closing: Vec::new(),
        timing: Timing::default(),
    };
    let mut told = BTreeSet::new();
    for (router, answer) in measured {
        if told.insert(router.clone()) {
            all.warnings.extend(incomplete(lab, terms, &router));
        }
        let VisitResult::Measured(measurement) = answer else {
            continue;
        };
        all.timing.add(&measurement.spent);
        let doubts = measurement.doubts.iter();
        all.warnings
            .extend(doubts.map(|doubt| format!("{router}: {doubt}")));
        if !measurement.owned {
            all.warnings.push(format!(
                "{router}: taps of this back end stay in the router if the job is killed, until \
                 the next job or `tsim reconcile` sweeps them"
            ));
        }
        all.closing.extend(measurement.closing);
    }
    let mut seen = BTreeSet::new();
    all.warnings.retain(|warning| seen.insert(warning.clone()));
    all
}

/// Puts the answer together.
pub(super) fn assemble(
    mut frame: Frame<'_>,
    terms: &Terms,
    plan: &Plan,
    through: Through,
) -> QuickAnswer {
    let Told {
        mut warnings,
        mut closing,
        timing,
    } = told(frame.lab, terms, through.measured);
    frame.timing.take_in(&timing);
    let wires = through.wire.into_iter().chain(through.wires);
    closing.extend(wires.map(QuickClosing::Wire));
    if let RouterChoice::Traced(trace) = &frame.job.routers {
        let more = trace
            .warnings
            .iter()
            .filter(|more| !warnings.contains(more));
        let more: Vec<String> = more.cloned().collect();
        warnings.extend(more);
    }
    let reached = Reached::new(&through.visited, &through.ways);
    let order = plan.catalogue.in_order_asked();
    let place = (order, through.aside.as_slice());
    let mut rows = rows(frame.job, place, &through.visited, &reached);
    bridges::add_rows(&mut rows, &frame.job.services, order, &through.ways);
    let services = frame.job.services.iter().zip(order);
    let mut ways = through.ways;
    let end_to_end = services
        .map(|(service, &index)| {
            let ways = ways.get_mut(index as usize).map(std::mem::take);
            conclude(*service, ways.unwrap_or_default())
        })
        .collect();
    QuickAnswer {
        report: frame.report(end_to_end, rows, warnings),
        closing,
        rest: None,
    }
}

const ALONE: &str = "--no-registry: no leases and locks were taken; a job that ran at the same \
                     time may have removed a source host or measured these probes";

impl Frame<'_> {
    fn report(
        self,
        end_to_end: Vec<EndToEnd>,
        routers: Vec<RouterReport>,
        mut warnings: Vec<String>,
    ) -> QuickReport {
        if !self.job.use_registry {
            warnings.push(ALONE.to_owned());
        }
        let legs = end_to_end.iter().flat_map(|end| &end.way);
        let left_by = legs.filter_map(|leg| {
            let out = leg.hop.iface_out.as_ref()?;
            Some((&leg.hop.router, out, leg.destination))
        });
        warnings.extend(lab::taken_as_up(self.lab, left_by));
        let wires = end_to_end.iter().flat_map(|end| {
            let routed = || {
                let hops = end.way.iter().map(|leg| &leg.hop);
                hops.filter(|hop| hop.bridged.is_none())
            };
            routed().zip(routed().skip(1))
        });
        let wires = wires.filter_map(|(from, to)| {
            let out = (&from.router, from.iface_out.as_ref()?);
            Some((out, (&to.router, to.iface_in.as_ref()?)))
        });
        warnings.extend(lab::bridged(self.lab, wires));
        QuickReport {
            source: self.job.source,
            destination: self.job.destination,
            dscp: self.dscp,
            run_id: self.job.run_id.clone(),
            backend: self.backend.to_string(),
            scope: match self.job.routers {
                RouterChoice::Named(_) => VerdictScope::Named,
                _ => VerdictScope::Whole,
            },
            end_to_end,
            routers,
            warnings,
            timing_ms: self.timing,
        }
    }
}

/// What a reader should know about a router before any probe.
fn incomplete(lab: &Lab, terms: &Terms, router: &RouterName) -> Option<String> {
    let state = lab.router(router).ok()?;
    let omitted = Omitted::of(lab, state, terms.trust_facts);
    (!omitted.is_empty()).then(|| {
        format!(
            "{router} lacks something of its facts; see `tsim lab status {}`",
            terms.lab
        )
    })
}

/// The verdict from end to end: that of all ways, where they agree.
pub(super) fn conclude(service: Service, ways: Vec<WayEnd>) -> EndToEnd {
    let answer = |result, reason, router, end, way| EndToEnd {
        port: service.port,
        protocol: service.protocol,
        result,
        reason,
        router,
        end,
        way,
    };
    let several = ways.len() > 1;
    let verdict = ways.first().map(|way| way.verdict);
    let agree = ways.iter().all(|way| Some(way.verdict) == verdict);
    if several && !agree {
        let reason = disagreement(&ways);
        let first = ways.into_iter().next();
        let legs = first.map(|way| way.legs).unwrap_or_default();
        let end = EndKind::Disagree;
        return answer(Verdict::Unknown, Some(reason.into()), None, end, legs);
    }
    // Who gets through by each may arrive at different places.
    let place = |way: &WayEnd| (way.kind, way.router.clone());
    let first = ways.first().map(place);
    let apart = verdict == Some(Verdict::Yes) && ways.iter().any(|way| Some(place(way)) != first);
    let each = apart.then(|| disagreement(&ways).into());
    match ways.into_iter().next() {
        Some(way) if each.is_some() => answer(way.verdict, each, None, way.kind, way.legs),
        Some(way) => answer(way.verdict, way.reason, way.router, way.kind, way.legs),
        None => {
            let reason = "it is not known where its packets come in";
            let end = EndKind::NotKnown;
            answer(Verdict::Unknown, Some(reason.into()), None, end, Vec::new())
        }
    }
}

/// Each way with its verdict, ways with the same end together.
fn disagreement(ways: &[WayEnd]) -> String {
    let entries: BTreeSet<_> = ways.iter().map(|way| &way.entry).collect();
    let mut texts: Vec<String> = Vec::new();
    let branches = ways.iter().filter_map(|way| way.branches.first());
    if entries.len() == 1 {
        texts.extend(branches.map(|branch| branch.choice()).next());
    }
    for way in ways {
        let by = if way.kind == EndKind::Absent && way.legs.is_empty() {
            // Of a router without facts no interface is known.
            way.entry.router.to_string()
        } else if entries.len() > 1 {
            way.entry.to_string()
        } else if !way.branches.is_empty() {
            let names = way.branches.iter().map(|branch| {
                let leg = way.legs.iter().find(|leg| leg.hop.router == branch.router);
                leg.map_or_else(
                    || branch.choice(),
                    |leg| branch.name((leg.destination, leg.dport)),
                )
            });
            names.collect::<Vec<_>>().join(", ")
        } else {
            let routers = way.legs.iter().map(|leg| leg.hop.router.as_str());
            routers.collect::<Vec<_>>().join(", ")
        };
        let at = way.router.as_ref().filter(|_| way.verdict != Verdict::Yes);
        let at = at.map(|router| format!(" at {router}")).unwrap_or_default();
        let why = way.reason.as_ref();
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        let text = format!("by {by} {}{at}{why}", way.verdict);
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts.join("; ")
}

/// Which probes of which visits packets really came as.
struct Reached(Vec<Vec<bool>>);

impl Reached {
    fn new(visited: &[Visited], ways: &[Vec<WayEnd>]) -> Self {
        let none = |visit: &Visited| vec![false; visit.probes.len()];
        let mut reached: Vec<Vec<bool>> = visited.iter().map(none).collect();
        for step in ways.iter().flatten().flat_map(|way| &way.steps) {
            let visit = reached.get_mut(step.visit);
            if let Some(there) = visit.and_then(|visit| visit.get_mut(step.position)) {
                *there = true;
            }
        }
        Self(reached)
    }

    fn any(&self, visit: usize) -> bool {
        self.0.get(visit).is_some_and(|visit| visit.contains(&true))
    }

    fn get(&self, visit: usize, position: usize) -> bool {
        self.0
            .get(visit)
            .and_then(|visit| visit.get(position).copied())
            .unwrap_or(false)
    }
}

/// One row for each place, in the order in which places were asked first.
fn rows(
    job: &QuickJob,
    (order, aside): (&[u32], &[Entry]),
    visited: &[Visited],
    reached: &Reached,
) -> Vec<RouterReport> {
    let mut rows: Vec<RouterReport> = Vec::new();
    let mut done: Vec<&Entry> = Vec::new();
    for visit in visited {
        if done.contains(&&visit.at) {
            continue;
        }
        done.push(&visit.at);
        let here: Vec<(usize, &Visited)> = visited
            .iter()
            .enumerate()
            .filter(|(_, other)| other.at == visit.at)
            .collect();
        let services = job.services.iter().zip(order);
        let services = services
            .filter_map(|(service, &index)| cell(service, index, &here, reached))
            .collect();
        let (iface_out, next_hop) = way_out(visit);
        rows.push(RouterReport {
            name: visit.at.router.clone(),
            iface_in: visit.at.iface_in.clone(),
            iface_out,
            next_hop,
            on_way: !aside.contains(&visit.at)
                || here.iter().any(|(number, _)| reached.any(*number)),
            bridged: false,
            services,
        });
    }
    if let RouterChoice::Named(names) = &job.routers {
        let place = |row: &RouterReport| names.iter().position(|name| *name == row.name);
        rows.sort_by_key(place);
    }
    rows
}

/// Where the router sends packets: by its tables, or else where one went.
fn way_out(visit: &Visited) -> (Option<IfName>, Option<IpAddr>) {
    if visit.planned.0.is_some() {
        return visit.planned.clone();
    }
    let hops = visit.exits.iter().map(|exit| &exit.hop);
    let out = hops.filter_map(|hop| hop.iface_out.clone()).next();
    (out, None)
}

/// What became of a service at one place: of its packet that really came there, or else of the one
/// that was planned to. None where none was.
fn cell(
    service: &Service,
    index: u32,
    here: &[(usize, &Visited)],
    reached: &Reached,
) -> Option<ServiceReport> {
    let mut found: Option<(bool, &Visited, &ProbeOutcome)> = None;
    for (number, visit) in here {
        let Some(position) = position(&visit.probes, index, |p| p.index) else {
            continue;
        };
        let came = reached.get(*number, position);
        let outcome = visit.outcomes.get(position)?;
        if found.is_none_or(|(before, ..)| came && !before) {
            found = Some((came, visit, outcome));
        }
    }
    let (reached, visit, outcome) = found?;
    if visit.branch.is_some()
        && let Some((result, reason)) = by_branch(index, here)
    {
        return Some(ServiceReport {
            port: service.port,
            protocol: service.protocol,
            result,
            reason: Some(reason.into()),
            reached,
        });
    }
    let itself = || {
        let exit = visit.exits.get(outcome.exit?)?;
        let end = exit.fates.iter().find_map(|fate| match fate {
            Fate::End(ending) => Some(ending),
            Fate::On(_) => None,
        })?;
        let local = exit.hop.iface_out.as_ref()?.as_str() == "lo";
        (local && outcome.verdict == Verdict::Yes).then_some(end)
    };
    let (result, reason) = match itself() {
        Some(end) if end.kind == EndKind::Itself => {
            let itself = "the destination is the router itself; judged at the end of INPUT";
            let taken = end.reason.as_deref();
            let taken = taken.filter(|reason| reason.starts_with(ENDS_HERE));
            let mut text = taken.unwrap_or(itself).to_owned();
            if let Some(caveat) = &outcome.reason {
                text = format!("{text}; {caveat}");
            }
            (Verdict::Yes, Some(Arc::from(text)))
        }
        Some(end) => (end.verdict, end.reason.clone()),
        None => (outcome.verdict, outcome.reason.clone()),
    };
    Some(ServiceReport {
        port: service.port,
        protocol: service.protocol,
        result,
        reason,
        reached,
    })
}

/// What a router that has several next hops does, where that depends on which of them it takes.
fn by_branch(index: u32, here: &[(usize, &Visited)]) -> Option<(Verdict, String)> {
    let outcomes = here.iter().filter_map(|(_, visit)| {
        let branch = visit.branch.as_ref()?;
        let at = position(&visit.probes, index, |p| p.index)?;
        Some((branch, visit.outcomes.get(at)?))
    });
    let outcomes: Vec<_> = outcomes.collect();
    let (first, one) = outcomes.first()?;
    if outcomes
        .iter()
        .all(|(_, other)| other.verdict == one.verdict)
    {
        return None;
    }
    let mut texts = vec![first.choice()];
    for (branch, outcome) in &outcomes {
        let why = outcome.reason.as_ref();
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        let left = &outcome.headers;
        let name = branch.name((left.destination, left.destination_port));
        let text = format!("by {name} {}{why}", outcome.verdict);
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    Some((Verdict::Unknown, texts.join("; ")))
}

impl Timing {
    /// Takes over what measuring took.
    fn take_in(&mut self, measured: &Self) {
        let Self {
            install,
            probe,
            read,
            explain,
            undo,
            ..
        } = measured;
        (self.install, self.probe, self.read) = (*install, *probe, *read);
        self.explain = *explain;
        self.undo = super::millis(Duration::from_secs_f64((self.undo + undo) / 1e3));
    }

    /// Adds what one router took. Routers are measured side by side, so the sum may exceed the
    /// total.
    fn add(&mut self, spent: &super::measure::Spent) {
        for (sum, part) in [
            (&mut self.install, spent.install),
            (&mut self.probe, spent.probe),
            (&mut self.read, spent.read),
            (&mut self.explain, spent.explain),
            (&mut self.undo, spent.undo),
        ] {
            *sum = super::millis(Duration::from_secs_f64(*sum / 1e3) + part);
        }
    }
}
