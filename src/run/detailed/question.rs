//! A job's question as stretches to be measured, and their results as its answer.

mod spread;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    DetailedError, DetailedJob,
    answering::{self, KnownRules},
    bridges,
    fork::Choice,
    message, omitted,
    plan::{Planned, Planner},
    result::{
        CameBy, DetailedEndToEnd, RouterTest, RouterWay, ServiceResult, ServiceStatus, ServiceTest,
        TakenLeg,
    },
    rounds::Rounds,
    site::{Connector, Stretch, StretchService},
};
use crate::{
    config::Config,
    lab::{
        self, Bridges, Lab, LabState,
        hosts::HostState,
        sockets::RouterSockets,
        trace::{self, Entry, EntryName, Hop, SharedLink, TraceError, TracePacket},
    },
    model::{Protocol, RouterId, RouterName, Service},
    registry::{Job, Unlocked},
    run::{
        caretaker::Caretaker,
        omitted::Omitted,
        report::{EndKind, Verdict},
        resolve::{self, RouterChoice},
        unjoined::{ReachedLink, unjoined},
        unseen_entries::{UnseenEntry, unseen_entries},
    },
};

/// A question, with what it takes to find out what it means.
pub(super) struct Asking<'a> {
    pub(super) job: &'a DetailedJob,
    pub(super) lab: &'a Lab,
}

/// One way into the lab.
struct Way {
    entry: Entry,
    /// The routers that get packets where several may.
    choices: Vec<Choice>,
    /// The stretch that measures it, or why none can.
    stretch: Result<usize, String>,
    /// The planned way of each service.
    planned: Vec<Planned>,
    /// What was measured on copies of the routers by each of several next hops, or why nothing was.
    copied: Result<spread::OnCopies, String>,
}

/// More ways than these from one entry are not measured.
const MAX_WAYS: usize = 8;

/// A router that is measured on its own.
struct Own {
    stretch: Result<usize, String>,
    router: RouterWay,
    services: Vec<usize>,
    reach: CameBy,
}

/// A router behind the one that ended requests, their addresses by then, and which services with
/// which ports.
type Behind = (Hop, (IpAddr, IpAddr), Vec<(usize, u16)>);

/// What is to be measured.
pub(super) struct Question<'a> {
    job: &'a DetailedJob,
    lab: &'a Lab,
    there: Vec<HostState>,
    stretches: Vec<Stretch>,
    ways: Vec<Way>,
    own: Vec<Own>,
    /// Source and destination are on one link.
    shared: Option<SharedLink>,
    /// Where packets may come in, too.
    unseen: Vec<UnseenEntry>,
    /// Why a service cannot be asked about, by its place.
    refused: BTreeMap<usize, String>,
}

/// The answer: the routers in the order of the way, and the services.
pub(super) struct DetailedAnswers {
    pub(super) routers: Vec<RouterWay>,
    pub(super) services: Vec<ServiceResult>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Asking<'a> {
    /// Finds out where packets enter and what is expected to be passed.
    pub(super) fn question(
        &self,
        planner: &mut Planner<'_>,
        caretaker: &mut Caretaker,
    ) -> Result<Question<'a>, DetailedError> {
        let job = self.job;
        let named = matches!(job.routers, RouterChoice::Named(_));
        let shared = planner.map.wiring.shared_link(job.source, job.destination);
        let chosen = job.from.is_some() || !matches!(job.routers, RouterChoice::Trace);
        let unseen = match chosen || job.trust_facts {
            true => Vec::new(),
            false => unseen_entries(self.lab, &planner.map.wiring, job.source, job.destination),
        };
        let mut question = Question {
            unseen,
            job,
            lab: self.lab,
            there: caretaker.hosts().lab(&job.lab)?.list()?,
            stretches: Vec::new(),
            ways: Vec::new(),
            own: Vec::new(),
            shared: shared.filter(|_| job.from.is_none() && !named),
            refused: self.refused(),
        };
        if !resolve::placed_by_hand(&job.lab, job.source, &question.there)?.is_empty() {
            question.unseen.clear();
        }
        if let RouterChoice::Named(names) = &job.routers {
            for name in names {
                self.lab.router(name)?;
            }
        }
        if question.shared.is_some() {
            return Ok(question);
        }
        for entry in self.entries(planner, &question.there)? {
            question.enter(&entry, !named, planner, caretaker)?;
        }
        Ok(question)
    }

    /// The services that no client can be made for, and why.
    fn refused(&self) -> BTreeMap<usize, String> {
        let v6 = self.job.source.is_ipv6();
        let services = self.job.services.iter().enumerate();
        let mut known: BTreeMap<Protocol, Option<String>> = BTreeMap::new();
        let refused = services.filter_map(|(at, service)| {
            let protocol = service.protocol;
            let why = known.entry(protocol);
            let why = why.or_insert_with(|| message::refused(v6, protocol));
            Some((at, why.clone()?))
        });
        refused.collect()
    }

    /// Where packets enter. Who put a source host on an interface by hand has decided that.
    fn entries(
        &self,
        planner: &mut Planner<'_>,
        there: &[HostState],
    ) -> Result<Vec<Entry>, DetailedError> {
        let job = self.job;
        let service = job.services.first();
        let packet = TracePacket {
            protocol: service.map(|s| s.protocol),
            source_port: job.source_port,
            destination_port: service.map(|s| s.port),
            ..TracePacket::new(job.source, job.destination)
        };
        let wiring = &planner.map.wiring;
        let sockets = &mut planner.sockets;
        let first = match &job.routers {
            RouterChoice::Named(names) => names.first().cloned().map(EntryName::from),
            RouterChoice::Traced(trace) if job.from.is_none() => return Ok(traced(trace)),
            _ => None,
        };
        let one = first.is_some();
        let from = job.from.clone().or(first);
        let found = trace::entries(wiring, sockets, &packet, from.as_ref());
        let mut entries = match (found, &from) {
            // The result says that nothing comes in there.
            (Err(TraceError::NotFacing { router, .. }), _) if one => vec![Entry {
                router,
                iface_in: None,
            }],
            (found, _) => found?,
        };
        if job.from.is_none() {
            self.heed_hosts(&mut entries, there)?;
        }
        if one && job.from.is_none() {
            entries.truncate(1);
        }
        Ok(entries)
    }

    /// Keeps the entries at which somebody put a host by hand, if there are such.
    fn heed_hosts(
        &self,
        entries: &mut Vec<Entry>,
        there: &[HostState],
    ) -> Result<(), DetailedError> {
        let mut placed = resolve::placed_by_hand(&self.job.lab, self.job.source, there)?;
        placed.retain(|at| entries.iter().any(|entry| entry.router == at.router));
        placed.dedup();
        if !placed.is_empty() {
            *entries = placed;
        }
        Ok(())
    }
}

/// Where the ways of a trace that was made before enter.
fn traced(trace: &trace::Trace) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for (hops, _) in trace.ways() {
        if let Some(first) = hops.first() {
            let entry = Entry {
                router: first.router.clone(),
                iface_in: first.iface_in.clone(),
            };
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
    }
    entries
}

impl Question<'_> {
    /// How many services are to be tried, over all ways.
    pub(super) fn steps(&self) -> usize {
        self.ways.len().max(1) * self.job.services.len()
    }

    /// The services that can be asked about, with their places.
    fn services(&self) -> Vec<(usize, Service)> {
        let services = self.job.services.iter().copied().enumerate();
        let services = services.filter(|(at, _)| !self.refused.contains_key(at));
        services.collect()
    }

    /// Plans what is measured of packets that enter here.
    fn enter(
        &mut self,
        entry: &Entry,
        whole: bool,
        planner: &mut Planner<'_>,
        caretaker: &mut Caretaker,
    ) -> Result<(), DetailedError> {
        let mut open = vec![Vec::new()];
        let first = self.ways.len();
        while let Some(choices) = open.pop() {
            planner.choices.clone_from(&choices);
            let way = self.way(entry, &choices, whole, planner, caretaker)?;
            let forks = way.planned.iter().find_map(|planned| planned.open.first());
            let fork = forks.filter(|_| self.ways.len() - first + open.len() < MAX_WAYS);
            let Some(fork) = fork.filter(|_| whole) else {
                self.ways.push(way);
                continue;
            };
            // The plan of one of its ways takes the place of this one.
            self.stretches
                .truncate(way.stretch.as_ref().map_or(usize::MAX, |at| *at));
            let longer = fork.choices().map(|choice| {
                let mut longer = choices.clone();
                longer.push(choice);
                longer
            });
            let longer: Vec<Vec<Choice>> = longer.collect();
            open.extend(longer.into_iter().rev());
        }
        planner.choices.clear();
        Ok(())
    }

    /// Plans one of the ways that begin at `entry`.
    fn way(
        &mut self,
        entry: &Entry,
        choices: &[Choice],
        whole: bool,
        planner: &mut Planner<'_>,
        caretaker: &mut Caretaker,
    ) -> Result<Way, DetailedError> {
        let services = self.services();
        let ends = (self.job.source, self.job.destination);
        let made = self.stretch(entry, ends, &services, whole, planner, caretaker)?;
        let mut planned = vec![Planned::default(); self.job.services.len()];
        let stretch = made.map(|(stretch, ways)| {
            for ((at, _), way) in services.iter().zip(ways) {
                planned[*at] = way;
            }
            stretch
        });
        Ok(Way {
            entry: entry.clone(),
            choices: choices.to_vec(),
            stretch,
            planned,
            copied: Ok(Vec::new()),
        })
    }

    /// Adds a stretch; why there can be none is a sentence.
    fn stretch(
        &mut self,
        entry: &Entry,
        (source, destination): (IpAddr, IpAddr),
        services: &[(usize, Service)],
        whole: bool,
        planner: &mut Planner<'_>,
        caretaker: &mut Caretaker,
    ) -> Result<Result<(usize, Vec<Planned>), String>, DetailedError> {
        let router = &entry.router;
        let id = RouterId::new(self.job.lab.clone(), router.clone());
        let source = match &entry.iface_in {
            None if planner.map.owns(router, source) => Connector::Router {
                router: id,
                address: source,
            },
            None => {
                return Ok(Err(format!(
                    "router {router} has no route to the source {source}, so it is not known where \
                     its packets come in"
                )));
            }
            Some(interface) => {
                let hosts = caretaker.hosts().lab(&self.job.lab)?;
                match resolve::host_at(&id, interface, source, &self.there, hosts)? {
                    Ok(source) => Connector::Host(source),
                    Err(why) => return Ok(Err(why)),
                }
            }
        };
        let to = (destination, self.job.source_port);
        let (stretch, planned) = planner.stretch((entry, source), to, services, whole)?;
        self.stretches.push(stretch);
        Ok(Ok((self.stretches.len() - 1, planned)))
    }

    /// Measures everything: the ways and beside them the named routers that are on none, then the
    /// routers that nothing reached.
    pub(super) fn measure<P: Fn(&str)>(
        &mut self,
        rounds: &mut Rounds<'_, P>,
        job: Job<Unlocked>,
    ) -> Result<(), DetailedError> {
        self.plan_apart(rounds)?;
        rounds.reconcile(&job, &self.stretches);
        let (job, result) = rounds.run(job, &mut self.stretches);
        result?;
        let job = self.measure_spread(rounds, job)?;
        let beside = std::mem::take(&mut self.own);
        self.plan_own(rounds, beside)?;
        if self.stretches.iter().all(|s| s.pending.is_empty()) {
            return Ok(());
        }
        rounds.reconcile(&job, &self.stretches);
        rounds.run(job, &mut self.stretches).1
    }

    /// Plans the named routers that are on no planned way, so that they need not wait for what becomes of
    /// the packets there.
    fn plan_apart<P: Fn(&str)>(&mut self, rounds: &mut Rounds<'_, P>) -> Result<(), DetailedError> {
        let RouterChoice::Named(names) = &self.job.routers else {
            return Ok(());
        };
        for name in names {
            let planned = self.ways.iter().flat_map(|way| &way.planned);
            let mut hops = planned.flat_map(|planned| &planned.hops);
            let expected = hops.any(|hop| hop.router == *name);
            if !expected && !self.is_met(name, rounds) {
                self.apart(rounds, name)?;
            }
        }
        Ok(())
    }

    /// Plans the routers that no packet reached. `beside` are those that were measured on their own beside the
    /// ways; where packets came to one nevertheless, what became of these is the answer.
    fn plan_own<P: Fn(&str)>(
        &mut self,
        rounds: &mut Rounds<'_, P>,
        mut beside: Vec<Own>,
    ) -> Result<(), DetailedError> {
        let of_beside: BTreeSet<usize> =
            beside.iter().flat_map(|own| own.stretch.clone()).collect();
        let is_beside = |(stretch, _): &StretchService| of_beside.contains(stretch);
        let tests = std::mem::take(&mut rounds.tests).into_iter();
        let (kept, of_ways): (BTreeMap<_, _>, _) = tests.partition(|(of, _)| is_beside(of));
        rounds.tests = of_ways;
        let mut groups: Vec<Behind> = Vec::new();
        for way in &self.ways {
            let Ok(stretch) = way.stretch else { continue };
            for at in 0..self.job.services.len() {
                let Some(test) = rounds.tests.get(&(stretch, at)) else {
                    continue;
                };
                let Some(planned) = way.planned.get(at) else {
                    continue;
                };
                let (hops, ends, port) = self.behind(test, &planned.hops, at);
                for hop in hops {
                    let known = groups.iter_mut().find(|(h, e, _)| h == hop && *e == ends);
                    match known {
                        Some((_, _, services)) => services.push((at, port)),
                        None => groups.push((hop.clone(), ends, vec![(at, port)])),
                    }
                }
            }
        }
        for (hop, ends, services) in groups {
            self.own(rounds, hop, ends, services, CameBy::NotReached)?;
        }
        let RouterChoice::Named(names) = &self.job.routers else {
            return Ok(());
        };
        for name in names {
            if self.is_met(name, rounds) {
                continue;
            }
            let Some(at) = beside.iter().position(|own| own.router.name == *name) else {
                self.apart(rounds, name)?;
                continue;
            };
            let own = beside.swap_remove(at);
            let tests = kept
                .iter()
                .filter(|((of, _), _)| own.stretch.as_ref() == Ok(of));
            rounds
                .tests
                .extend(tests.map(|(of, test)| (*of, test.clone())));
            self.own.push(own);
        }
        Ok(())
    }

    /// The planned routers behind the one that ended a request, and the addresses and the port
    /// that it had by then.
    fn behind<'h>(
        &self,
        test: &ServiceTest,
        hops: &'h [Hop],
        at: usize,
    ) -> (&'h [Hop], (IpAddr, IpAddr), u16) {
        let port = self.job.services.get(at).map_or(0, |s| s.port);
        let asked = (self.job.source, self.job.destination);
        let arrived = matches!(
            test.end.status,
            ServiceStatus::Ok | ServiceStatus::Refused | ServiceStatus::Partial
        );
        let legs = &test.end.way;
        let as_planned = legs.len() <= hops.len()
            && legs
                .iter()
                .zip(hops)
                .all(|(leg, hop)| leg.router == hop.router);
        if arrived || !as_planned {
            return (&[], asked, port);
        }
        let rest = hops.get(legs.len().max(1)..).unwrap_or_default();
        match legs.last() {
            Some(leg) => {
                let headers = leg.came;
                let port = headers.destination_port.unwrap_or(port);
                (rest, (headers.source, headers.destination), port)
            }
            None => (rest, asked, port),
        }
    }

    fn is_met<P: Fn(&str)>(&self, name: &RouterName, rounds: &Rounds<'_, P>) -> bool {
        let met = rounds.tests.values().flat_map(|test| &test.tests);
        let mut met = met.map(|test| &test.router);
        let own = self.own.iter().map(|own| &own.router.name);
        let entries = self.ways.iter().map(|way| &way.entry.router);
        met.any(|router| router == name) || own.chain(entries).any(|router| router == name)
    }

    /// Plans a named router that is on no way.
    fn apart<P: Fn(&str)>(
        &mut self,
        rounds: &mut Rounds<'_, P>,
        name: &RouterName,
    ) -> Result<(), DetailedError> {
        let packet = TracePacket::new(self.job.source, self.job.destination);
        let planner = rounds.planner();
        let from = EntryName::from(name.clone());
        let wiring = &planner.map.wiring;
        let entries = trace::entries(wiring, &mut planner.sockets, &packet, Some(&from));
        let entry = entries
            .ok()
            .and_then(|mut entries| entries.drain(..).next());
        let hop = Hop {
            router: name.clone(),
            iface_in: entry.and_then(|entry| entry.iface_in),
            iface_out: None,
            next_hop: None,
        };
        let ends = (self.job.source, self.job.destination);
        let services = self.services();
        let services = services.into_iter().map(|(at, s)| (at, s.port)).collect();
        self.own(rounds, hop, ends, services, CameBy::NotOnTheWay)
    }

    /// Plans a router that is measured on its own, with services and the ports that they have.
    fn own<P: Fn(&str)>(
        &mut self,
        rounds: &mut Rounds<'_, P>,
        hop: Hop,
        ends: (IpAddr, IpAddr),
        services: Vec<(usize, u16)>,
        reach: CameBy,
    ) -> Result<(), DetailedError> {
        let entry = Entry {
            router: hop.router.clone(),
            iface_in: hop.iface_in.clone(),
        };
        let as_asked: Vec<(usize, Service)> = services
            .iter()
            .filter_map(|&(at, port)| {
                let service = *self.job.services.get(at)?;
                Some((at, Service { port, ..service }))
            })
            .collect();
        let alone = vec![hop.router.clone()];
        let scope = rounds.planner().scope.replace(alone);
        let (planner, caretaker) = rounds.parts();
        let made = self.stretch(&entry, ends, &as_asked, false, planner, caretaker);
        rounds.planner().scope = scope;
        let stretch = made?.map(|(stretch, _)| stretch);
        self.own.push(Own {
            stretch,
            router: RouterWay {
                name: hop.router,
                iface_in: hop.iface_in,
                iface_out: hop.iface_out,
                next_hop: hop.next_hop,
            },
            services: services.into_iter().map(|(at, _)| at).collect(),
            reach,
        });
        Ok(())
    }

    /// Puts what was measured together.
    pub(super) fn answers(
        &self,
        sockets: &mut RouterSockets,
        config: &Config,
        tests: &BTreeMap<StretchService, ServiceTest>,
    ) -> DetailedAnswers {
        let mut routers = self.planned_routers();
        let mut rules = KnownRules::new(config, &self.job.lab);
        let bridges = Bridges::of(self.lab);
        let services = self.job.services.iter().copied().enumerate();
        let mut results: Vec<ServiceResult> = services
            .map(|asked| {
                let mut result = self.answer(asked, (&mut *sockets, &mut rules), tests);
                self.weigh(&bridges, &mut result);
                bridges::cross(&bridges, self.job, &mut result);
                result
            })
            .collect();
        bridges::place(&mut routers, &results);
        for test in results.iter().flat_map(|result| &result.tests) {
            if !routers.iter().any(|way| way.name == test.router) {
                routers.push(RouterWay {
                    name: test.router.clone(),
                    iface_in: test.iface_in.clone(),
                    iface_out: test.iface_out.clone(),
                    next_hop: None,
                });
            }
        }
        let met = |way: &RouterWay| results.iter().any(|result| result.at(&way.name).is_some());
        routers.retain(met);
        let place = |test: &RouterTest| routers.iter().position(|way| way.name == test.router);
        for result in &mut results {
            result.tests.sort_by_key(place);
        }
        let mut warnings = self.warnings();
        warnings.extend(self.lacking(&routers));
        let legs = results.iter().flat_map(|result| &result.end.way);
        let left_by = legs.filter_map(|leg| {
            Some((
                &leg.router,
                leg.iface_out.as_ref()?,
                leg.headers.destination,
            ))
        });
        warnings.extend(lab::taken_as_up(self.lab, left_by));
        warnings.extend(lab::bridged(self.lab, bridges::wires(&results)));
        DetailedAnswers {
            routers,
            services: results,
            warnings,
        }
    }

    /// The places of services that are not known because of several interfaces that they may take.
    pub(super) fn forked(&self, results: &[ServiceResult]) -> Vec<usize> {
        let forks = |at: usize| {
            let is_open = |way: &Way| way.planned.get(at).is_some_and(|p| !p.forks.is_empty());
            let spread = |way: &Way| way.copied.is_err() && way.is_spread(at, &self.stretches);
            self.ways.iter().any(|way| is_open(way) || spread(way))
        };
        let unknown = |(_, result): &(usize, &ServiceResult)| result.end.result == Verdict::Unknown;
        let all = results.iter().enumerate().filter(unknown);
        all.map(|(at, _)| at).filter(|at| forks(*at)).collect()
    }

    /// The routers in the order in which packets were expected to pass them.
    fn planned_routers(&self) -> Vec<RouterWay> {
        let mut routers: Vec<RouterWay> = Vec::new();
        let entries = self.ways.iter().map(|way| RouterWay {
            name: way.entry.router.clone(),
            iface_in: way.entry.iface_in.clone(),
            iface_out: None,
            next_hop: None,
        });
        let hops = self.ways.iter().flat_map(|way| &way.planned);
        let hops = hops.flat_map(|planned| &planned.hops).map(|hop| RouterWay {
            name: hop.router.clone(),
            iface_in: hop.iface_in.clone(),
            iface_out: hop.iface_out.clone(),
            next_hop: hop.next_hop,
        });
        let own = self.own.iter().map(|own| own.router.clone());
        for way in hops.chain(entries).chain(own) {
            if !routers.iter().any(|known| known.name == way.name) {
                routers.push(way);
            }
        }
        routers
    }

    /// What is to be said beside the results.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut names: Vec<String> = self.ways.iter().map(|w| w.entry.to_string()).collect();
        names.dedup();
        if names.len() > 1 {
            warnings.push(format!(
                "{} may enter at {}: each was measured; --from names one",
                self.job.source,
                names.join(", ")
            ));
        }
        warnings
    }

    fn answer(
        &self,
        (at, service): (usize, Service),
        (sockets, rules): (&mut RouterSockets, &mut KnownRules),
        tests: &BTreeMap<StretchService, ServiceTest>,
    ) -> ServiceResult {
        if let Some(shared) = &self.shared {
            return self.on_one_link(service, shared);
        }
        if let Some(why) = self.refused.get(&at) {
            return ServiceResult {
                service,
                end: DetailedEndToEnd::unknown(why.clone()),
                tests: Vec::new(),
            };
        }
        let mut ends: Vec<(String, DetailedEndToEnd)> = Vec::new();
        let mut list: Vec<RouterTest> = Vec::new();
        for way in &self.ways {
            let (mut end, of_way) = way.result(at, tests, &self.stretches);
            let known = (self.job.trust_facts, &mut *rules);
            if let Some(why) = answering::doubt(self.lab, sockets, &end, service.protocol, known) {
                end.result = Verdict::Unknown;
                end.kind = EndKind::Disagree;
                end.reason = Some(why);
            }
            ends.push((way.name(), end));
            for test in of_way {
                keep(&mut list, test);
            }
        }
        ends.extend(self.unseen.iter().map(|unseen| {
            let mut end = DetailedEndToEnd::unknown(unseen.reason.clone());
            end.kind = unseen.kind;
            (unseen.router.to_string(), end)
        }));
        doubt_unjoined(self.lab, &mut ends);
        for own in self.own.iter().filter(|own| own.services.contains(&at)) {
            let test = own.test(at, tests);
            if !list.iter().any(|known| known.router == test.router) {
                list.push(test);
            }
        }
        ServiceResult {
            service,
            end: together(ends),
            tests: list,
        }
    }

    /// Makes unknown what something can change that the lab lacks.
    fn weigh(&self, bridges: &Bridges<'_>, result: &mut ServiceResult) {
        for test in &mut result.tests {
            let apart = bridges::asked_apart(bridges, &result.end, &test.router);
            let Ok(state) = self.lab.router(&test.router) else {
                continue;
            };
            let omitted = Omitted::of(self.lab, state, self.job.trust_facts);
            let at = (&mut *test, apart.as_slice());
            if omitted.is_empty() || !omitted::weigh(self.job, &omitted, result.service, at) {
                continue;
            }
            if test.counts() && result.end.result != Verdict::Unknown {
                result.end.result = Verdict::Unknown;
                result.end.status = ServiceStatus::Unknown;
                result.end.kind = EndKind::NotKnown;
                result.end.reason = Some(test.message.clone());
                result.end.router = Some(test.router.clone());
            }
        }
    }

    /// The routers that lack something of their facts.
    fn lacking(&self, routers: &[RouterWay]) -> Vec<String> {
        let lacks = |way: &&RouterWay| {
            let state = self.lab.router(&way.name);
            let omitted = state.map(|s| Omitted::of(self.lab, s, self.job.trust_facts));
            omitted.is_ok_and(|omitted| !omitted.is_empty())
        };
        let lacking = routers.iter().filter(lacks);
        lacking
            .map(|way| {
                format!(
                    "router {} lacks something of its facts: see `tsim lab status {}`",
                    way.name, self.job.lab
                )
            })
            .collect()
    }

    /// Hosts of one subnet talk to each other past all routers.
    fn on_one_link(&self, service: Service, shared: &SharedLink) -> ServiceResult {
        let words = shared.text(self.job.source, self.job.destination);
        let mut end = DetailedEndToEnd::unknown(words.clone());
        end.note = Some(words);
        end.kind = EndKind::SameLink;
        if shared.is_sure() {
            end.result = Verdict::Yes;
            end.status = ServiceStatus::Ok;
        }
        ServiceResult {
            service,
            end,
            tests: Vec::new(),
        }
    }
}

impl Way {
    /// Where it begins, and which routers it was led to.
    fn name(&self) -> String {
        let choices = self.choices.iter().map(|choice| format!(", {choice},"));
        std::iter::once(self.entry.to_string())
            .chain(choices)
            .collect()
    }

    /// What became of a service that came in here, and the tests of the routers.
    fn result(
        &self,
        at: usize,
        tests: &BTreeMap<StretchService, ServiceTest>,
        stretches: &[Stretch],
    ) -> (DetailedEndToEnd, Vec<RouterTest>) {
        let stretch = match &self.stretch {
            Ok(stretch) => *stretch,
            Err(why) => return self.not_made(why.clone()),
        };
        let Some(test) = tests.get(&(stretch, at)) else {
            return self.not_made("it was not measured".to_owned());
        };
        let mut list = test.tests.clone();
        let spread = self.is_spread(at, stretches);
        let each = self.by_each(at, (&test.end, &mut list), tests);
        let unmeasured = spread && each.is_none();
        let mut end = each.unwrap_or_else(|| test.end.clone());
        let forks = self.forks(at, stretches.get(stretch), unmeasured);
        if end.result == Verdict::Unknown && unmeasured {
            let each: Vec<String> = forks.iter().cloned().collect();
            let reason = end.reason.take().unwrap_or_default();
            end.reason = Some(format!("{reason}; {}", each.join(", ")));
        }
        if end.result != Verdict::Unknown && !forks.is_empty() {
            let measured = match (&end.reason, end.result) {
                (_, Verdict::Yes) | (None, _) => end.result.to_string(),
                (Some(reason), result) => format!("{result}: {reason}"),
            };
            end.reason = Some(format!(
                "{}: which one the real router takes is not known; by the one that was taken here \
                 {measured}",
                forks.into_iter().collect::<Vec<_>>().join(", ")
            ));
            end.result = Verdict::Unknown;
            end.kind = EndKind::Disagree;
        }
        (end, list)
    }

    /// What forks the way of a service and was not measured by each of its branches, in words.
    fn forks(&self, at: usize, stretch: Option<&Stretch>, spread: bool) -> BTreeSet<String> {
        let planned = self.planned.get(at);
        let spreads = planned.map(|p| &p.spreads).into_iter();
        let taken = stretch.into_iter().flat_map(|stretch| &stretch.taken);
        let taken = taken.filter(|(service, _)| *service == at);
        let spreads = spreads.chain(stretch.map(|s| &s.spreads)).flatten();
        let spreads = spreads.chain(taken.map(|(_, spread)| spread));
        let why = self.copied.as_ref().err();
        let spreads = spreads.filter(|_| spread);
        let spreads = spreads.map(|spread| spread.text(why.map(String::as_str)));
        let forks = [planned.map(|p| &p.forks), stretch.map(|s| &s.open)];
        let forks = forks.into_iter().flatten().flatten().cloned();
        forks.chain(spreads).collect()
    }

    fn not_made(&self, why: String) -> (DetailedEndToEnd, Vec<RouterTest>) {
        let way = RouterWay {
            name: self.entry.router.clone(),
            iface_in: self.entry.iface_in.clone(),
            iface_out: None,
            next_hop: None,
        };
        let test = RouterTest::not_made(&way, ServiceStatus::Unknown, why.clone());
        let mut end = DetailedEndToEnd::unknown(why);
        end.router = Some(way.name);
        (end, vec![test])
    }
}

impl Own {
    fn test(&self, at: usize, tests: &BTreeMap<StretchService, ServiceTest>) -> RouterTest {
        let measured = match &self.stretch {
            Ok(stretch) => {
                let test = tests.get(&(*stretch, at));
                let test = test.and_then(|test| test.tests.first().cloned());
                test.ok_or_else(|| "it was not measured".to_owned())
            }
            Err(why) => Err(why.clone()),
        };
        let mut test = measured
            .unwrap_or_else(|why| RouterTest::not_made(&self.router, ServiceStatus::Unknown, why));
        test.reach = self.reach;
        test
    }
}

/// Adds a test to those of a service; of two of one router the one that does not let it through is
/// kept.
fn keep(list: &mut Vec<RouterTest>, test: RouterTest) {
    let known = list.iter_mut().find(|known| known.router == test.router);
    match known {
        Some(known) if known.status.verdict() == Verdict::Yes => *known = test,
        Some(_) => {}
        None => list.push(test),
    }
}

/// Leaves open what ways deliver to one address on segments that are not joined.
fn doubt_unjoined(lab: &LabState, ends: &mut [(String, DetailedEndToEnd)]) {
    let all = ends.iter().filter_map(|(_, end)| reached_link(end));
    let all: Vec<ReachedLink<'_>> = all.collect();
    let Some(why) = unjoined(lab, &all) else {
        return;
    };
    for (_, end) in ends.iter_mut() {
        if reached_link(end).is_some() {
            (end.result, end.status) = (Verdict::Unknown, ServiceStatus::Unknown);
            end.kind = EndKind::Disagree;
            end.reason = Some(why.clone());
        }
    }
}

/// Where a way gets through to, if that is on a link of its last router.
fn reached_link(end: &DetailedEndToEnd) -> Option<ReachedLink<'_>> {
    let delivered = end.result == Verdict::Yes && end.kind == EndKind::Delivered;
    let routed = |leg: &&TakenLeg| leg.bridged.is_none();
    let last = end.way.iter().rfind(routed).filter(|_| delivered)?;
    Some(ReachedLink {
        router: &last.router,
        interface: last.iface_out.as_ref()?,
        destination: last.headers.destination,
    })
}

/// One result of all ways into the lab: theirs where they agree, else it is not known.
fn together(mut ends: Vec<(String, DetailedEndToEnd)>) -> DetailedEndToEnd {
    let Some(first) = ends.first().map(|(_, end)| end.result) else {
        return DetailedEndToEnd::unknown("there is no way into the lab".to_owned());
    };
    let is_partial = |(_, end): &(_, DetailedEndToEnd)| end.status == ServiceStatus::Partial;
    if ends.iter().all(|(_, end)| end.result == first) {
        // What gets through by one of them and gets no answer is not stopped where others stop it.
        let arriving = ends.iter().position(is_partial);
        let reason = match arriving {
            Some(_) if !ends.iter().all(is_partial) => Some(of_each(&ends)),
            _ => None,
        };
        let mut end = ends.swap_remove(arriving.unwrap_or(0)).1;
        end.reason = reason.or(end.reason);
        return end;
    }
    let reason = of_each(&ends);
    let mut end = ends.swap_remove(0).1;
    end.result = Verdict::Unknown;
    end.status = ServiceStatus::Unknown;
    end.kind = EndKind::Disagree;
    end.router = None;
    end.reason = Some(reason);
    end
}

/// What each of the ways came to, in words.
fn of_each(ends: &[(String, DetailedEndToEnd)]) -> String {
    let each = ends
        .iter()
        .map(|(entry, end)| match (&end.reason, end.result) {
            (Some(reason), Verdict::No | Verdict::Unknown) => {
                format!("by {entry} {}: {reason}", end.result)
            }
            _ => format!("by {entry} {}", end.result),
        });
    each.collect::<Vec<_>>().join("; ")
}
