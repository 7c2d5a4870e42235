//! The rounds of a job: hosts, locks, neighbours, the work on chains of routers, and back.

mod replica;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    DetailedClosing, DetailedError, Setup,
    bench::{ChainMeasurement, Growth, measure},
    millis,
    plan::Planner,
    result::{DetailedEndToEnd, LockTime, ServiceTest},
    site::{HostLink, Sink, Stretch, StretchRound, StretchService, TargetServices, Task, add},
};
use crate::{
    lab::hosts::{HostError, HostRequest},
    model::{HostId, HostName, RouterId, RouterName, WithCauses},
    netlink::object::Mac,
    registry::{
        HostSpec, Job, LockMode, Locked, NeighbourKey, ReconcileScope, RegistryError, Unlocked,
        Wait,
    },
    run::{caretaker::Caretaker, undo::UndoError},
};

/// Nobody has this hardware address: a packet that is sent there has left a router, and disturbs
/// nobody.
const NOBODY: Mac = Mac([0x02, 0, 0, 0, 0xff, 0xfe]);

/// What measuring stretches came to, by their places.
type Measured = Vec<(usize, ChainMeasurement)>;

/// What was taken and given back, and how long it took.
#[derive(Debug, Default)]
pub(super) struct LockTimes {
    pub(super) locks: Vec<LockTime>,
    /// What could not be given back.
    pub(super) left: Vec<UndoError>,
    /// What the reader should know.
    pub(super) notes: Vec<String>,
    pub(super) hosts: Duration,
    pub(super) waited: Duration,
    pub(super) measured: Duration,
    pub(super) undone: Duration,
}

/// A job's rounds.
pub(super) struct Rounds<'a, P: Fn(&str)> {
    setup: &'a Setup<'a>,
    planner: Planner<'a>,
    wait: Wait,
    caretaker: Caretaker,
    phase: P,
    pub(super) held: LockTimes,
    pub(super) tests: BTreeMap<StretchService, ServiceTest>,
    pub(super) closing: Vec<DetailedClosing>,
    number: usize,
}

impl<'a, P: Fn(&str)> Rounds<'a, P> {
    pub(super) fn new(
        setup: &'a Setup<'a>,
        planner: Planner<'a>,
        wait: Wait,
        caretaker: Caretaker,
        phase: P,
    ) -> Self {
        Self {
            setup,
            planner,
            wait,
            caretaker,
            phase,
            held: LockTimes::default(),
            tests: BTreeMap::new(),
            closing: Vec::new(),
            number: 0,
        }
    }

    pub(super) fn planner(&mut self) -> &mut Planner<'a> {
        &mut self.planner
    }

    pub(super) fn parts(&mut self) -> (&mut Planner<'a>, &mut Caretaker) {
        (&mut self.planner, &mut self.caretaker)
    }

    /// Measures what `stretches` have pending until nothing is. Everything is given back by then,
    /// or is in [`LockTimes::left`].
    pub(super) fn run(
        &mut self,
        mut job: Job<Unlocked>,
        stretches: &mut [Stretch],
    ) -> (Job<Unlocked>, Result<(), DetailedError>) {
        let mut result = Ok(());
        while result.is_ok() && stretches.iter().any(|s| !s.pending.is_empty()) {
            (self.phase)("waiting");
            let ended;
            (job, ended) = self.round(job, stretches);
            result = ended;
            self.number += 1;
        }
        (self.phase)("undoing");
        (job, result)
    }

    /// Removes what dead jobs left on routers. What cannot be removed does not stop the job.
    pub(super) fn reconcile(&mut self, job: &Job<Unlocked>, stretches: &[Stretch]) {
        let stations = stretches.iter().flat_map(|s| &s.stations);
        let routers: BTreeSet<RouterId> = stations.map(|s| s.router.clone()).collect();
        let scope = ReconcileScope::Touching {
            routers: routers.into_iter().collect(),
            hosts: Vec::new(),
        };
        let run_id = self.setup.run_id;
        match job
            .registry()
            .reconcile(run_id, &scope, &mut self.caretaker, false)
        {
            Ok(report) => {
                for action in &report.actions {
                    tracing::info!("left by a dead job: {action}");
                }
                self.held.notes.extend(report.failures);
            }
            Err(error) => {
                let note = format!("what dead jobs left was not looked for: {error}");
                self.held.notes.push(note);
            }
        }
    }

    /// Makes and leases hosts, all or none, and adds them to `leased`.
    fn lease(
        &mut self,
        job: &mut Job<Unlocked>,
        specs: &[&HostSpec],
        leased: &mut Vec<HostId>,
    ) -> Result<(), DetailedError> {
        let started = Instant::now();
        let result = job.ensure_hosts_and_lease(specs, &mut self.caretaker, &self.wait);
        if result.is_ok() {
            leased.extend(specs.iter().map(|spec| spec.id.clone()));
        }
        self.held.hosts += started.elapsed();
        Ok(result?)
    }

    fn release(&mut self, job: &mut Job<Unlocked>, leased: &[HostId]) {
        let started = Instant::now();
        let leased: Vec<&HostId> = leased.iter().collect();
        // Not `self.wait`: an interrupted job gives back, too.
        let failed = job.release_and_remove_all(&leased, &mut self.caretaker, &Wait::forever());
        let what = || "hosts and their leases".to_owned();
        let failed = failed.into_iter().map(|source| UndoError {
            what: what(),
            source: source.into(),
        });
        self.held.left.extend(failed);
        self.held.undone += started.elapsed();
    }

    /// One round: the first target of each stretch that has one and shares no router with another
    /// one of the round.
    fn round(
        &mut self,
        mut job: Job<Unlocked>,
        stretches: &mut [Stretch],
    ) -> (Job<Unlocked>, Result<(), DetailedError>) {
        let mut leased = Vec::new();
        let sites = self.sites(stretches);
        let leasing = sites.and_then(|sites| self.populate(&mut job, sites, &mut leased));
        let result = match leasing {
            Ok(sites) => {
                let ended;
                (job, ended) = self.locked(job, &sites);
                ended.and_then(|measured| self.keep_all(&sites, measured, stretches))
            }
            Err(error) => Err(error),
        };
        self.release(&mut job, &leased);
        (job, result)
    }

    /// Makes and leases the hosts of all sites, and returns these. Where the kernel does not make them,
    /// what is not known is what was to be measured there, and no more.
    fn populate(
        &mut self,
        job: &mut Job<Unlocked>,
        sites: Vec<StretchRound>,
        leased: &mut Vec<HostId>,
    ) -> Result<Vec<StretchRound>, DetailedError> {
        let all: Vec<&HostSpec> = sites.iter().flat_map(StretchRound::hosts).collect();
        match self.lease(job, &all, leased) {
            Err(error) if is_of_kernel(&error) => {}
            result => return result.map(|()| sites),
        }
        let mut kept = Vec::with_capacity(sites.len());
        for site in sites {
            let hosts: Vec<&HostSpec> = site.hosts().collect();
            match self.lease(job, &hosts, leased) {
                Ok(()) => kept.push(site),
                Err(error) if is_of_kernel(&error) => self.give_up(&site, &error),
                Err(error) => return Err(error),
            }
        }
        Ok(kept)
    }

    /// Notes that the services of a site cannot be measured.
    fn give_up(&mut self, site: &StretchRound, error: &DetailedError) {
        let why = format!("no host can be made for it: {}", WithCauses(error));
        for task in &site.target.tasks {
            let test = ServiceTest {
                tests: Vec::new(),
                end: DetailedEndToEnd::unknown(why.clone()),
            };
            self.tests.insert((site.at, task.at), test);
        }
    }

    fn sites(&mut self, stretches: &mut [Stretch]) -> Result<Vec<StretchRound>, DetailedError> {
        let mut sites = Vec::new();
        let mut taken: BTreeSet<RouterName> = BTreeSet::new();
        for (at, stretch) in stretches.iter_mut().enumerate() {
            let routers: Vec<RouterName> =
                stretch.stations.iter().map(|s| s.name().clone()).collect();
            if stretch.pending.is_empty() || routers.iter().any(|r| taken.contains(r)) {
                continue;
            }
            taken.extend(routers);
            let target = stretch.pending.remove(0);
            sites.push(self.site(at, stretch, target)?);
        }
        Ok(sites)
    }

    /// Plans the hosts and neighbour entries of a stretch for one target.
    fn site(
        &mut self,
        at: usize,
        stretch: &Stretch,
        target: TargetServices,
    ) -> Result<StretchRound, DetailedError> {
        let map = self.setup.map;
        let source = &stretch.source;
        let home = source.place().and_then(|(r, i)| map.segment(r, i));
        let exit = target.sink.exit();
        let there = exit.and_then(|(router, interface)| map.segment(router, interface));
        let beside = home.is_some() && home == there;
        let turns_back = beside && target.sink.address() == Some(source.address());
        let destination = match turns_back {
            true => None,
            false => self.destination((&target.sink, source.address()), at)?,
        };
        let mut site = StretchRound {
            at,
            stations: stretch.stations.clone(),
            source: source.clone(),
            to: stretch.destination,
            whole: stretch.whole,
            link: self.link(&target.sink, source.host().filter(|_| beside)),
            target,
            destination,
            turns_back,
            homes: Vec::new(),
            others: stretch.learned.clone(),
            settled: stretch.settled.clone(),
            standins: None,
        };
        for station in &stretch.stations {
            let fixed = map.wiring.fixed_entries(station.name()).into_iter();
            site.others.extend(fixed.map(|(interface, address, mac)| {
                let router = station.router.clone();
                let key = NeighbourKey {
                    router,
                    interface,
                    address,
                };
                (key, mac)
            }));
            let homes = self.planner.homes(&site, station)?;
            site.homes.extend(homes);
        }
        let learned = stretch.learned.iter();
        let mac = source.host().map(|host| host.mac);
        let learned = learned.filter(|(_, known)| Some(*known) == mac);
        site.homes.extend(learned.map(|(key, _)| key.clone()));
        if stretch.whole {
            let caught = self.caught(&site);
            site.others.extend(caught);
        }
        Ok(site)
    }

    /// What the host at a sink knows of its link.
    fn link(&self, sink: &Sink, beside: Option<&HostSpec>) -> Option<HostLink> {
        let map = self.setup.map;
        let (router, interface) = sink.exit()?;
        let address = sink.address()?;
        let subnet = map.subnet(router, interface, address)?;
        let segment = map.segment(router, interface)?;
        let (mut routers, mut answered) = (Vec::new(), Vec::new());
        for (name, interface) in map.plugged(segment).filter(|(_, i)| i.up) {
            answered.extend(map.answered(name, interface, subnet));
            let inside = interface.addresses.iter().map(|a| a.local.addr());
            let inside = inside.filter(|a| subnet.contains(a) && *a != address);
            routers.extend(inside.filter_map(|a| Some((a, name != router, interface.mac?))));
        }
        // An address that routers share (VRRP) is had by the one that requests come by.
        routers.sort();
        routers.dedup_by_key(|(address, ..)| *address);
        let routers = routers.into_iter().map(|(address, _, mac)| (address, mac));
        let routers = routers.collect();
        let has_source = beside.is_some_and(|host| subnet.contains(&host.address.addr()));
        let mut tracking = map.plugged(segment).filter(|(_, i)| i.link.tracks_bridged);
        Some(HostLink {
            subnet,
            routers,
            answered,
            has_source,
            tracked_by: tracking.next().map(|(name, _)| name.clone()),
        })
    }

    /// Entries that keep packets from routers that are not held: the packets leave, which shows
    /// that more routers are needed, and come to nobody.
    fn caught(&self, site: &StretchRound) -> Vec<(NeighbourKey, Mac)> {
        let map = self.setup.map;
        let v4 = site.from().is_ipv4();
        let mut caught = Vec::new();
        for station in &site.stations {
            let interfaces = map.interfaces(station.name()).iter().filter(|i| i.up);
            for interface in interfaces {
                let Some(segment) = interface.segment else {
                    continue;
                };
                let others = map.plugged(segment);
                let others = others.filter(|(router, _)| site.place(router).is_none());
                let addresses = others.flat_map(|(_, i)| &i.addresses);
                let addresses = addresses.map(|a| a.local.addr());
                for address in addresses.filter(|a| a.is_ipv4() == v4) {
                    let key = NeighbourKey {
                        router: station.router.clone(),
                        interface: interface.name.clone(),
                        address,
                    };
                    let known = site.homes.contains(&key)
                        || site.others.iter().any(|(k, _)| *k == key)
                        || caught.iter().any(|(k, _)| *k == key);
                    if !known {
                        caught.push((key, NOBODY));
                    }
                }
            }
        }
        caught
    }

    fn destination(
        &mut self,
        (sink, client): (&Sink, IpAddr),
        at: usize,
    ) -> Result<Option<HostSpec>, DetailedError> {
        let (Some((router, interface)), Some(address)) = (sink.exit(), sink.address()) else {
            return Ok(None);
        };
        let gateway = self.planner.gateway(sink, client);
        let gateway = gateway.and_then(|entry| Some((entry.router, entry.iface_in?)));
        let (router, interface) = gateway.unwrap_or((router.clone(), interface.clone()));
        let lab = self.planner.lab;
        // The payload is random: a second job of the same name does not take this one's host.
        let job = (self.setup.run_id.as_str(), self.setup.payload);
        let mut hasher = DefaultHasher::new();
        (job, router.to_string(), at, self.number).hash(&mut hasher);
        let name = HostName::new(format!("dst:{:016x}", hasher.finish()))?;
        let request = HostRequest {
            id: HostId::new(lab.clone(), name),
            router: RouterId::new(lab.clone(), router.clone()),
            address,
            prefix_len: None,
            interface: Some(interface),
        };
        match self.caretaker.hosts().lab(lab)?.plan(&request) {
            Ok(spec) => Ok(Some(HostSpec {
                stands_in: true,
                ..spec
            })),
            Err(
                error @ (HostError::NoSegment { .. }
                | HostError::NoInterface { .. }
                | HostError::RouterAddress { .. }
                | HostError::Broadcast { .. }),
            ) => {
                let note = format!("nobody can stand for the destination at {router}: {error}");
                self.held.notes.push(note);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Locks the routers, works on them, and releases those of each site as soon as it is done.
    fn locked(
        &mut self,
        job: Job<Unlocked>,
        sites: &[StretchRound],
    ) -> (Job<Unlocked>, Result<Measured, DetailedError>) {
        let stations = sites.iter().flat_map(|site| &site.stations);
        let routers: Vec<RouterId> = stations.map(|s| s.router.clone()).collect();
        let started = Instant::now();
        let locked = job.all_router_locks(&routers, LockMode::Exclusive, &self.wait);
        let waited = started.elapsed();
        self.held.waited += waited;
        let mut job = match locked {
            Ok(locked) => locked,
            Err(refused) => return (refused.job, Err(refused.error.into())),
        };
        // Routers that were waited for may have been made anew.
        if let Err(changed) = (self.setup.unchanged)() {
            return (job.unlock(), Err(changed.into()));
        }
        if let Err(error) = self.forget_left(&routers) {
            return (job.unlock(), Err(error));
        }
        (self.phase)("measuring");
        let mut taken: HashMap<usize, Vec<NeighbourKey>> = HashMap::new();
        let mut result = Ok(());
        for site in sites {
            if let Err(error) = self.answer_for(&mut job, site, taken.entry(site.at).or_default()) {
                result = Err(error.into());
                break;
            }
        }
        let result = match result {
            Ok(()) => self.work(&mut job, sites, &mut taken, waited),
            Err(error) => Err(error),
        };
        let started = Instant::now();
        for keys in taken.into_values() {
            self.put_back(&mut job, keys);
        }
        self.held.undone += started.elapsed();
        (job.unlock(), result)
    }

    /// Removes what connections of jobs left that died while this one waited for the locks.
    fn forget_left(&mut self, routers: &[RouterId]) -> Result<(), DetailedError> {
        let (registry, run_id) = (self.setup.registry, self.setup.run_id);
        let left = registry.forget_connections(run_id, routers, &mut self.caretaker)?;
        self.held.notes.extend(left);
        Ok(())
    }

    /// Has the routers' next hops answered for by the job's hosts; what was had is in `taken`.
    fn answer_for(
        &mut self,
        job: &mut Job<Locked>,
        site: &StretchRound,
        taken: &mut Vec<NeighbourKey>,
    ) -> Result<(), RegistryError> {
        for (key, mac) in self.wanted(site) {
            job.acquire_neighbor_lease(&key, mac, &mut self.caretaker)?;
            taken.push(key);
        }
        Ok(())
    }

    /// The neighbour entries that lead to the job's hosts, and those that lead elsewhere.
    fn wanted(&mut self, site: &StretchRound) -> Vec<(NeighbourKey, Mac)> {
        let mut wanted = site.neighbours(self.planner.lab);
        let homes = site.source.host().map(|host| (host.mac, &site.homes));
        for (home, key) in homes
            .into_iter()
            .flat_map(|(mac, keys)| keys.iter().map(move |k| (mac, k)))
        {
            match wanted.iter().find(|(known, _)| known == key) {
                Some((_, mac)) if *mac == home => {}
                Some(_) => self.held.notes.push(format!(
                    "router {} sends requests and answers to the same neighbour {key}: answers do \
                     not come back to the source host",
                    key.router
                )),
                None => wanted.push((key.clone(), home)),
            }
        }
        for (key, mac) in &site.others {
            if !wanted.iter().any(|(known, _)| known == key) {
                wanted.push((key.clone(), *mac));
            }
        }
        wanted
    }

    fn put_back(&mut self, job: &mut Job<Locked>, keys: Vec<NeighbourKey>) {
        for key in keys.into_iter().rev() {
            if let Err(source) = job.release_neighbor_lease(&key, &mut self.caretaker) {
                self.held.left.push(UndoError {
                    what: format!("neighbour {key}"),
                    source: source.into(),
                });
            }
        }
    }

    /// Works on all sites at once.
    fn work(
        &mut self,
        job: &mut Job<Locked>,
        sites: &[StretchRound],
        taken: &mut HashMap<usize, Vec<NeighbourKey>>,
        waited: Duration,
    ) -> Result<Measured, DetailedError> {
        let started = Instant::now();
        let setup = self.setup;
        let mut result = Ok(Vec::new());
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let mut running = BTreeSet::new();
            for site in sites {
                let sender = sender.clone();
                let work = move || {
                    // Nobody listens only when the scope's own thread panicked.
                    let _ = sender.send((site.at, measure(setup, site)));
                };
                let named = thread::Builder::new().name(format!("way {}", site.at));
                match named.spawn_scoped(scope, work) {
                    Ok(_) => _ = running.insert(site.at),
                    Err(e) => result = Err(DetailedError::system("start a thread")(e)),
                }
            }
            drop(sender);
            for (at, measured) in receiver {
                running.remove(&at);
                let Some(site) = sites.iter().find(|site| site.at == at) else {
                    continue;
                };
                self.put_back(job, taken.remove(&at).unwrap_or_default());
                for station in &site.stations {
                    job.release_router(&station.router);
                    self.held.locks.push(LockTime {
                        router: station.name().clone(),
                        waited_ms: millis(waited),
                        held_ms: millis(started.elapsed()),
                    });
                }
                match (measured, &mut result) {
                    (Ok(measurement), Ok(list)) => list.push((at, measurement)),
                    (Ok(_), Err(_)) => {}
                    (Err(error), Ok(_)) => result = Err(error),
                    (Err(error), Err(_)) => tracing::error!("{error}"),
                }
            }
            if let Some(at) = running.first()
                && result.is_ok()
                && let Some(site) = sites.iter().find(|site| site.at == *at)
            {
                let names = site.stations.iter().map(|s| s.name().to_string());
                let names: Vec<String> = names.collect();
                result = Err(DetailedError::Panicked(names.join(", ")));
            }
        });
        self.held.measured += started.elapsed();
        result
    }

    /// Keeps what was measured, and what is to be measured next.
    fn keep_all(
        &mut self,
        sites: &[StretchRound],
        measured: Measured,
        stretches: &mut [Stretch],
    ) -> Result<(), DetailedError> {
        for (at, measurement) in measured {
            let site = sites.iter().find(|site| site.at == at);
            let (Some(site), Some(stretch)) = (site, stretches.get_mut(at)) else {
                continue;
            };
            self.keep(site, measurement, stretch)?;
        }
        Ok(())
    }

    fn keep(
        &mut self,
        site: &StretchRound,
        measurement: ChainMeasurement,
        stretch: &mut Stretch,
    ) -> Result<(), DetailedError> {
        let ChainMeasurement {
            tests,
            moved,
            grown,
            notes,
            closing,
        } = measurement;
        for (service, test) in tests {
            let task = site.target.tasks.iter().find(|task| task.at == service);
            if let Some(protocol) = task.map(|task| task.service.protocol) {
                let of = (service, protocol);
                self.planner.discover_taken(stretch, of, &test.end)?;
            }
            self.tests.insert((site.at, service), test);
        }
        for target in moved {
            for task in target.tasks {
                self.planner.expect_answers(stretch, &target.sink, &task)?;
                add(&mut stretch.pending, target.sink.clone(), task);
            }
        }
        for (task, growth) in grown {
            self.grow(stretch, &task, growth)?;
            add(&mut stretch.pending, site.target.sink.clone(), task);
        }
        for note in notes {
            if !self.held.notes.contains(&note) {
                self.held.notes.push(note);
            }
        }
        self.closing.extend(closing);
        Ok(())
    }

    fn grow(
        &mut self,
        stretch: &mut Stretch,
        task: &Task,
        growth: Growth,
    ) -> Result<(), DetailedError> {
        match growth {
            Growth::Router(entry, packet) => {
                let protocol = task.service.protocol;
                self.planner.expect(stretch, (entry, &packet), protocol)
            }
            Growth::Neighbour(key, mac) => {
                if !stretch.learned.iter().any(|(known, _)| *known == key) {
                    stretch.learned.push((key, mac));
                }
                Ok(())
            }
        }
    }
}

/// Whether the kernel did not do something, rather than the registry or another job.
fn is_of_kernel(error: &DetailedError) -> bool {
    matches!(error, DetailedError::Registry(RegistryError::Kernel { .. }))
}

impl StretchRound {
    /// The job's hosts.
    fn hosts(&self) -> impl Iterator<Item = &HostSpec> {
        self.source.host().into_iter().chain(&self.destination)
    }

    /// The neighbour entry by which the last router reaches the host that listens.
    fn neighbours(&self, lab: &crate::model::LabName) -> Vec<(NeighbourKey, Mac)> {
        let Sink::Host {
            router,
            interface,
            hop,
            ..
        } = &self.target.sink
        else {
            return Vec::new();
        };
        let mac = match &self.destination {
            Some(host) => host.mac,
            None if self.turns_back => match self.source.host() {
                Some(host) => host.mac,
                None => return Vec::new(),
            },
            None => return Vec::new(),
        };
        let key = NeighbourKey {
            router: RouterId::new(lab.clone(), router.clone()),
            interface: interface.clone(),
            address: *hop,
        };
        vec![(key, mac)]
    }
}
