//! The course: the routers that probes will come to if nothing changes them, found by look-ups.
//!
//! It is only a plan. Routers on it are measured side by side, each with the packet that would
//! come; what really comes is settled by the walk afterwards.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::tables::{Tables, classes};
use crate::{
    lab::trace::{Entry, Onward},
    model::RouterName,
    run::{
        packet::{Headers, Probe},
        resolve::ResolveError,
    },
};

/// Probes that are planned to come to one place.
#[derive(Debug, Clone)]
pub(super) struct PlannedProbes {
    pub(super) at: Entry,
    /// In ascending order of their indexes.
    pub(super) probes: Vec<Probe>,
}

/// A planned course.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// In the order in which a packet comes there.
    pub(super) stops: Vec<PlannedProbes>,
    /// Routers that packets come to if a router marks them.
    pub(super) may: BTreeSet<RouterName>,
}

impl Course {
    /// Follows probes from the places where they start. Routers that are not `allowed` are not entered.
    pub(super) fn plan(
        tables: &mut Tables<'_>,
        starts: Vec<(Entry, Vec<Probe>)>,
        allowed: &dyn Fn(&RouterName) -> bool,
    ) -> Result<Self, ResolveError> {
        let mut planner = Planner {
            tables,
            allowed,
            course: Self::default(),
            marked: HashSet::new(),
            open: VecDeque::new(),
        };
        for (start, probes) in starts {
            planner.arrive(&start, probes);
        }
        planner.run()?;
        Ok(planner.course)
    }

    /// All routers that are to be locked.
    pub(super) fn routers(&self) -> BTreeSet<RouterName> {
        let stops = self.stops.iter().map(|stop| stop.at.router.clone());
        stops.chain(self.may.iter().cloned()).collect()
    }
}

struct Planner<'a, 't> {
    tables: &'a mut Tables<'t>,
    allowed: &'a dyn Fn(&RouterName) -> bool,
    course: Course,
    /// Places that marked packets were followed to.
    marked: HashSet<Entry>,
    open: VecDeque<Task>,
}

enum Task {
    /// Follow these probes on from a place.
    Probes(Entry, Vec<Probe>),
    /// Follow such a packet on, as far as marks may lead it elsewhere.
    Marked(Entry, Headers),
}

impl Planner<'_, '_> {
    fn run(&mut self) -> Result<(), ResolveError> {
        while let Some(task) = self.open.pop_front() {
            match task {
                Task::Probes(at, probes) => self.follow(&at, &probes)?,
                Task::Marked(at, headers) => self.follow_marked(&at, &headers)?,
            }
        }
        Ok(())
    }

    /// Takes note of probes that come to a place, and leaves out those that were there.
    fn arrive(&mut self, at: &Entry, mut probes: Vec<Probe>) {
        if !(self.allowed)(&at.router) {
            return;
        }
        probes.sort_by_key(|probe| probe.index);
        let stops = &mut self.course.stops;
        let probes = match stops.iter_mut().find(|stop| stop.at == *at) {
            None => {
                stops.push(PlannedProbes {
                    at: at.clone(),
                    probes: probes.clone(),
                });
                probes
            }
            Some(stop) => {
                let known: HashSet<u32> = stop.probes.iter().map(|p| p.index).collect();
                let new = probes.into_iter().filter(|p| !known.contains(&p.index));
                let new: Vec<Probe> = new.collect();
                stop.probes.extend(&new);
                stop.probes.sort_by_key(|probe| probe.index);
                new
            }
        };
        if !probes.is_empty() {
            self.open.push_back(Task::Probes(at.clone(), probes));
        }
    }

    fn follow(&mut self, at: &Entry, probes: &[Probe]) -> Result<(), ResolveError> {
        let rules = self.tables.rules(&at.router)?;
        // All that go to one place go there at once: there may be a class for each pair of addresses.
        let mut onward: Vec<(Entry, Vec<Probe>)> = Vec::new();
        for class in classes(&rules, probes) {
            let Some(first) = class.first() else { continue };
            for next in self.next(at, &first.headers, 0)? {
                let on = class.iter().map(|probe: &Probe| Probe {
                    headers: passed_on(&probe.headers),
                    ..*probe
                });
                match onward.iter_mut().find(|(place, _)| *place == next) {
                    Some((_, probes)) => probes.extend(on),
                    None => onward.push((next, on.collect())),
                }
            }
            self.open.push_back(Task::Marked(at.clone(), first.headers));
        }
        for (next, probes) in onward {
            self.arrive(&next, probes);
        }
        Ok(())
    }

    /// Follows such a packet with every mark that policy rules know, and without, to places that
    /// are not planned.
    fn follow_marked(&mut self, at: &Entry, headers: &Headers) -> Result<(), ResolveError> {
        let rules = self.tables.rules(&at.router)?;
        let marks = rules.iter().filter_map(|rule| Some(rule.fwmark?.0));
        let marks: BTreeSet<u32> = marks.chain([0]).collect();
        for mark in marks {
            for next in self.next(at, headers, mark)? {
                let planned = self.course.stops.iter().any(|stop| stop.at == next);
                if !planned && self.marked.insert(next.clone()) {
                    self.course.may.insert(next.router.clone());
                    self.open.push_back(Task::Marked(next, passed_on(headers)));
                }
            }
        }
        Ok(())
    }

    /// Where such a packet comes to next.
    fn next(
        &mut self,
        at: &Entry,
        headers: &Headers,
        mark: u32,
    ) -> Result<Vec<Entry>, ResolveError> {
        let mut next = Vec::new();
        for (out, via) in self.tables.outs(at, headers, mark)? {
            let to = headers.destination;
            let wiring = self.tables.wiring;
            let onward = wiring.onward(&at.router, &out, via.unwrap_or(to), to);
            if let Onward::Routers(entries) = onward {
                next.extend(entries.into_iter().filter(|e| (self.allowed)(&e.router)));
            }
        }
        Ok(next)
    }
}

/// The headers behind a router that changes nothing else.
pub(super) fn passed_on(headers: &Headers) -> Headers {
    Headers {
        ttl: headers.ttl.saturating_sub(1),
        ..*headers
    }
}
