//! The course: the routers that probes will come to if nothing changes them, found by look-ups.
//!
//! It is only a plan. Routers on it are measured side by side, each with the packet that would
//! come; what really comes is settled by the walk afterwards. Behind a router that may translate a
//! packet nobody knows what comes, so there the walk asks first.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::tables::{Tables, classes};
use crate::{
    firewall::rule::{Field, Packet, Rule},
    lab::{
        Lab,
        trace::{Entry, Onward},
    },
    model::{IfName, RouterName},
    netlink::object::Family,
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
    /// Those that a router before this one may translate; they come like this if none does.
    pub(super) maybe: Vec<Probe>,
}

/// Rules that translate packets, by router.
pub(super) struct Translators<'a> {
    lab: &'a Lab,
    rules: HashMap<RouterName, Vec<Rule>>,
}

impl PlannedProbes {
    /// A place that no probe comes to yet.
    pub(super) fn none(at: Entry) -> Self {
        Self {
            at,
            probes: Vec::new(),
            maybe: Vec::new(),
        }
    }
}

impl<'a> Translators<'a> {
    pub(super) fn new(lab: &'a Lab) -> Self {
        Self {
            lab,
            rules: HashMap::new(),
        }
    }

    /// Whether the router may translate such a packet, whatever its ports, on its way out of `out`. The
    /// rules are those of its facts: this decides what is asked first, and no verdict.
    fn may_change(&mut self, at: &Entry, headers: &Headers, out: &IfName) -> bool {
        let rules = self.rules.entry(at.router.clone()).or_insert_with(|| {
            let state = self.lab.router(&at.router);
            let texts = state.map_or(&[][..], |router| &router.translating);
            texts.iter().map(|text| Rule::of(text)).collect()
        });
        if rules.is_empty() {
            return false;
        }
        let mut packet = Packet::of(Family::of(headers.destination))
            .with_address(Field::Source, headers.source)
            .with_address(Field::Destination, headers.destination)
            .with_device(Field::Outgoing, out.as_str());
        if let Some(name) = &at.iface_in {
            packet = packet.with_device(Field::Incoming, name.as_str());
        }
        rules.iter().any(|rule| rule.concerns(&packet))
    }
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
        translators: &mut Translators<'_>,
    ) -> Result<Self, ResolveError> {
        let mut planner = Planner {
            tables,
            allowed,
            translators,
            course: Self::default(),
            marked: HashSet::new(),
            open: VecDeque::new(),
        };
        for (start, probes) in starts {
            planner.arrive(&start, probes, Coming::Surely);
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

struct Planner<'a, 't, 'l> {
    tables: &'a mut Tables<'t>,
    allowed: &'a dyn Fn(&RouterName) -> bool,
    translators: &'a mut Translators<'l>,
    course: Course,
    /// Places that marked packets were followed to.
    marked: HashSet<Entry>,
    open: VecDeque<Task>,
}

enum Task {
    /// Follow these probes on from a place.
    Probes(Entry, Vec<Probe>, Coming),
    /// Follow such a packet on, as far as marks may lead it elsewhere.
    Marked(Entry, Headers),
}

/// Whether packets come to a place with the headers that are planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coming {
    Surely,
    /// If no router translates them.
    Maybe,
}

impl Planner<'_, '_, '_> {
    fn run(&mut self) -> Result<(), ResolveError> {
        while let Some(task) = self.open.pop_front() {
            match task {
                Task::Probes(at, probes, coming) => self.follow(&at, &probes, coming)?,
                Task::Marked(at, headers) => self.follow_marked(&at, &headers)?,
            }
        }
        Ok(())
    }

    /// Takes note of probes that come to a place, and leaves out those that were there.
    fn arrive(&mut self, at: &Entry, mut probes: Vec<Probe>, coming: Coming) {
        if !(self.allowed)(&at.router) {
            return;
        }
        probes.sort_by_key(|probe| probe.index);
        let stops = &mut self.course.stops;
        let number = stops.iter().position(|stop| stop.at == *at);
        let number = number.unwrap_or_else(|| {
            stops.push(PlannedProbes::none(at.clone()));
            stops.len() - 1
        });
        let Some(stop) = stops.get_mut(number) else {
            return;
        };
        let known = stop.probes.iter().chain(&stop.maybe);
        let known: HashSet<u32> = known.map(|p| p.index).collect();
        probes.retain(|probe| !known.contains(&probe.index));
        let there = match coming {
            Coming::Surely => &mut stop.probes,
            Coming::Maybe => &mut stop.maybe,
        };
        there.extend(&probes);
        there.sort_by_key(|probe| probe.index);
        if !probes.is_empty() {
            let task = Task::Probes(at.clone(), probes, coming);
            self.open.push_back(task);
        }
    }

    fn follow(&mut self, at: &Entry, probes: &[Probe], coming: Coming) -> Result<(), ResolveError> {
        let rules = self.tables.rules(&at.router)?;
        // All that go to one place go there at once: there may be a class for each pair of addresses.
        let mut onward: Vec<(Entry, Coming, Vec<Probe>)> = Vec::new();
        for class in classes(&rules, probes) {
            let Some(first) = class.first() else { continue };
            for (next, out) in self.next(at, &first.headers, 0)? {
                let changes = self.translators.may_change(at, &first.headers, &out);
                let coming = if changes { Coming::Maybe } else { coming };
                let on = class.iter().map(|probe: &Probe| Probe {
                    headers: passed_on(&probe.headers),
                    ..*probe
                });
                let there = onward
                    .iter_mut()
                    .find(|(place, how, _)| *place == next && *how == coming);
                match there {
                    Some((_, _, probes)) => probes.extend(on),
                    None => onward.push((next, coming, on.collect())),
                }
            }
            self.open.push_back(Task::Marked(at.clone(), first.headers));
        }
        for (next, coming, probes) in onward {
            self.arrive(&next, probes, coming);
        }
        Ok(())
    }

    /// Follows such a packet with every mark that policy rules know, and without, to places that
    /// are not planned.
    fn follow_marked(&mut self, at: &Entry, headers: &Headers) -> Result<(), ResolveError> {
        let marks = self.tables.ask_with_marks(at, headers)?;
        for mark in marks {
            for (next, _) in self.next(at, headers, mark)? {
                let planned = self.course.stops.iter().any(|stop| stop.at == next);
                if !planned && self.marked.insert(next.clone()) {
                    self.course.may.insert(next.router.clone());
                    self.open.push_back(Task::Marked(next, passed_on(headers)));
                }
            }
        }
        Ok(())
    }

    /// Where such a packet comes to next, and by which interface it leaves.
    fn next(
        &mut self,
        at: &Entry,
        headers: &Headers,
        mark: u32,
    ) -> Result<Vec<(Entry, IfName)>, ResolveError> {
        let mut next = Vec::new();
        for (out, via) in self.tables.outs(at, headers, mark)? {
            let to = headers.destination;
            let wiring = self.tables.wiring;
            let onward = wiring.onward(&at.router, &out, via.unwrap_or(to), to);
            if let Onward::Routers(entries) = onward {
                let entries = entries.into_iter().filter(|e| (self.allowed)(&e.router));
                next.extend(entries.map(|entry| (entry, out.clone())));
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
