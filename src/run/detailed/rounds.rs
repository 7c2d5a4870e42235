//! The rounds of a job: hosts, locks, neighbours, the work on all routers at once, and back.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Closing, DetailedError, Setup,
    bench::{Measurement, measure},
    job::Tests,
    millis,
    result::LockTime,
    site::{Sink, Site, Target},
};
use crate::{
    lab::hosts::{HostError, HostRequest},
    model::{HostId, HostName, IfName, RouterId},
    netlink::{LookupKind, LookupQuery, Netlink},
    netns::NetnsFd,
    registry::{HostSpec, Job, Locked, Mode, NeighbourKey, RegistryError, Scope, Unlocked, Wait},
    run::{caretaker::Caretaker, resolve::Part, undo::UndoError},
};

/// What was taken and given back, and how long it took.
#[derive(Debug, Default)]
pub(super) struct Held {
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
    parts: &'a [Part],
    wait: Wait,
    caretaker: Caretaker,
    phase: P,
    held: Held,
    pub(super) tests: Tests,
    pub(super) closing: Vec<Closing>,
}

impl<'a, P: Fn(&str)> Rounds<'a, P> {
    pub(super) fn new(
        setup: &'a Setup<'a>,
        parts: &'a [Part],
        wait: Wait,
        caretaker: Caretaker,
        phase: P,
    ) -> Self {
        Self {
            setup,
            parts,
            wait,
            caretaker,
            phase,
            held: Held::default(),
            tests: Tests::new(),
            closing: Vec::new(),
        }
    }

    /// Measures `pending`, the targets of each router, until none is left. Everything is given
    /// back by then, or is in [`Held::left`].
    pub(super) fn run(
        &mut self,
        mut job: Job<Unlocked>,
        mut pending: Vec<Vec<Target>>,
    ) -> (Result<(), DetailedError>, Held) {
        (self.phase)("waiting");
        self.reconcile(&job);
        let mut leased = Vec::new();
        let mut result = self.lease_sources(&mut job, &pending, &mut leased);
        let mut round = 0;
        while result.is_ok() && pending.iter().any(|targets| !targets.is_empty()) {
            let ended;
            (job, ended) = self.round(job, &mut pending, round);
            result = ended;
            round += 1;
        }
        (self.phase)("undoing");
        self.release(&mut job, &leased);
        (result, std::mem::take(&mut self.held))
    }

    /// Removes what dead jobs left on the routers. What cannot be removed does not stop the job.
    fn reconcile(&mut self, job: &Job<Unlocked>) {
        let scope = Scope::Touching {
            routers: self.parts.iter().map(|p| p.way.router.clone()).collect(),
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

    fn lease_sources(
        &mut self,
        job: &mut Job<Unlocked>,
        pending: &[Vec<Target>],
        leased: &mut Vec<HostId>,
    ) -> Result<(), DetailedError> {
        let needed = self.parts.iter().zip(pending);
        let needed: Vec<&HostSpec> = needed
            .filter(|(_, targets)| !targets.is_empty())
            .filter_map(|(part, _)| part.host.as_ref().ok())
            .collect();
        self.lease(job, &needed, leased)
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

    /// One round: the first target of each router that has one.
    fn round(
        &mut self,
        mut job: Job<Unlocked>,
        pending: &mut [Vec<Target>],
        round: usize,
    ) -> (Job<Unlocked>, Result<(), DetailedError>) {
        let mut leased = Vec::new();
        let mut result = self.sites(pending, round);
        if let Ok(sites) = &result {
            let specs: Vec<&HostSpec> = sites
                .iter()
                .filter_map(|s| s.destination.as_ref())
                .collect();
            if let Err(error) = self.lease(&mut job, &specs, &mut leased) {
                result = Err(error);
            }
        }
        let result = match result {
            Ok(sites) => {
                let ended;
                (job, ended) = self.locked(job, &sites, pending);
                ended
            }
            Err(error) => Err(error),
        };
        self.release(&mut job, &leased);
        (job, result)
    }

    /// Takes the first target of each router and plans the host that stands for the destination.
    fn sites(
        &mut self,
        pending: &mut [Vec<Target>],
        round: usize,
    ) -> Result<Vec<Site<'a>>, DetailedError> {
        let mut sites = Vec::new();
        for (at, (part, targets)) in self.parts.iter().zip(pending).enumerate() {
            let Ok(source) = &part.host else {
                continue;
            };
            if targets.is_empty() {
                continue;
            }
            let target = targets.remove(0);
            let destination = self.destination(&part.way.router, &target.sink, round)?;
            let back = way_back(&part.way.netns, source, &target.sink)?;
            sites.push(Site {
                at,
                way: &part.way,
                source,
                target,
                destination,
                back,
            });
        }
        Ok(sites)
    }

    fn destination(
        &mut self,
        router: &RouterId,
        sink: &Sink,
        round: usize,
    ) -> Result<Option<HostSpec>, DetailedError> {
        let Sink::Host {
            interface, address, ..
        } = sink
        else {
            return Ok(None);
        };
        // The payload is random: a second job of the same name does not take this one's host.
        let job = (self.setup.run_id.as_str(), self.setup.payload);
        let mut hasher = DefaultHasher::new();
        (job, router.to_string(), round).hash(&mut hasher);
        let name = HostName::new(format!("dst:{:016x}", hasher.finish()))?;
        let request = HostRequest {
            id: HostId::new(router.lab.clone(), name),
            router: router.clone(),
            address: *address,
            prefix_len: None,
            interface: Some(interface.clone()),
        };
        match self.caretaker.hosts().lab(&router.lab)?.plan(&request) {
            Ok(spec) => Ok(Some(HostSpec {
                stands_in: true,
                ..spec
            })),
            Err(error @ (HostError::NoSegment { .. } | HostError::NoInterface { .. })) => {
                let note = format!("nobody can stand for the destination at {router}: {error}");
                self.held.notes.push(note);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Locks the routers, works on them, and releases each as soon as it is done.
    fn locked(
        &mut self,
        job: Job<Unlocked>,
        sites: &[Site<'a>],
        pending: &mut [Vec<Target>],
    ) -> (Job<Unlocked>, Result<(), DetailedError>) {
        let routers: Vec<RouterId> = sites.iter().map(|s| s.way.router.clone()).collect();
        let started = Instant::now();
        let locked = job.all_router_locks(&routers, Mode::Exclusive, &self.wait);
        let waited = started.elapsed();
        self.held.waited += waited;
        let mut job = match locked {
            Ok(locked) => locked,
            Err(refused) => return (refused.job, Err(refused.error.into())),
        };
        (self.phase)("measuring");
        let mut taken: HashMap<usize, Vec<NeighbourKey>> = HashMap::new();
        let mut result = Ok(());
        for site in sites {
            if let Err(error) = self.answer_for(&mut job, site, taken.entry(site.at).or_default()) {
                result = Err(error.into());
                break;
            }
        }
        if result.is_ok() {
            result = self.work(&mut job, sites, pending, &mut taken, waited);
        }
        let started = Instant::now();
        for keys in taken.into_values() {
            self.put_back(&mut job, keys);
        }
        self.held.undone += started.elapsed();
        (job.unlock(), result)
    }

    /// Has the router's next hops answered for by the job's hosts; what was had is in `taken`.
    fn answer_for(
        &mut self,
        job: &mut Job<Locked>,
        site: &Site<'_>,
        taken: &mut Vec<NeighbourKey>,
    ) -> Result<(), RegistryError> {
        let key = |interface: &IfName, address: IpAddr| NeighbourKey {
            router: site.way.router.clone(),
            interface: interface.clone(),
            address,
        };
        let mut wanted = Vec::new();
        if let (Sink::Host { interface, hop, .. }, Some(host)) =
            (&site.target.sink, &site.destination)
        {
            wanted.push((key(interface, *hop), host.mac));
        }
        if let Some((interface, hop)) = &site.back {
            let back = key(interface, *hop);
            if wanted.iter().any(|(key, _)| *key == back) {
                self.held.notes.push(format!(
                    "router {} sends requests and answers to the same neighbour {back}: answers \
                     do not come back to the source host",
                    site.way.router
                ));
            } else {
                wanted.push((back, site.source.mac));
            }
        }
        for (key, mac) in wanted {
            job.acquire_neighbor_lease(&key, mac, &mut self.caretaker)?;
            taken.push(key);
        }
        Ok(())
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

    /// Works on all routers at once.
    fn work(
        &mut self,
        job: &mut Job<Locked>,
        sites: &[Site<'a>],
        pending: &mut [Vec<Target>],
        taken: &mut HashMap<usize, Vec<NeighbourKey>>,
        waited: Duration,
    ) -> Result<(), DetailedError> {
        let started = Instant::now();
        let setup = self.setup;
        let mut result = Ok(());
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let mut running = BTreeSet::new();
            for site in sites {
                let sender = sender.clone();
                let work = move || {
                    // Nobody listens only when the scope's own thread panicked.
                    let _ = sender.send((site.at, measure(setup, site)));
                };
                let named = thread::Builder::new().name(format!("router {}", site.at));
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
                job.release_router(&site.way.router);
                self.held.locks.push(LockTime {
                    router: site.way.router.router.clone(),
                    waited_ms: millis(waited),
                    held_ms: millis(started.elapsed()),
                });
                match measured {
                    Ok(measurement) => self.keep(site, measurement, &mut pending[at]),
                    Err(error) if result.is_ok() => result = Err(error),
                    Err(error) => tracing::error!("{error}"),
                }
            }
            if let Some(at) = running.first()
                && result.is_ok()
                && let Some(site) = sites.iter().find(|site| site.at == *at)
            {
                result = Err(DetailedError::Panicked(site.way.router.clone()));
            }
        });
        self.held.measured += started.elapsed();
        result
    }

    fn keep(&mut self, site: &Site<'_>, measurement: Measurement, pending: &mut Vec<Target>) {
        let Measurement {
            tests,
            moved,
            notes,
            closing,
        } = measurement;
        for (service, test) in tests {
            self.tests.insert((site.at, service), test);
        }
        pending.extend(moved);
        let router = &site.way.router.router;
        for note in notes {
            let note = format!("router {router}: {note}");
            if !self.held.notes.contains(&note) {
                self.held.notes.push(note);
            }
        }
        self.closing.extend(closing);
    }
}

/// The interface and neighbour of the router's way back to the source.
fn way_back(
    netns: &NetnsFd,
    source: &HostSpec,
    sink: &Sink,
) -> Result<Option<(IfName, IpAddr)>, DetailedError> {
    let to = source.address.addr();
    let mut query = LookupQuery::to(to);
    if let Sink::Host {
        interface, address, ..
    } = sink
    {
        query = LookupQuery::forwarded(*address, to, interface.clone());
    }
    let fail = |source| DetailedError::Back {
        netns: netns.name().to_string(),
        source,
    };
    let mut netlink = Netlink::open(netns).map_err(fail)?;
    let lookup = netlink.lookup_one(&query).map_err(fail)?;
    Ok(match (lookup.kind, lookup.dev) {
        // An answer that leaves by another interface does not reach the source host there, as it
        // would not in the real network.
        (LookupKind::Unicast, Some(dev)) if dev == source.interface => {
            Some((dev, lookup.via.unwrap_or(to)))
        }
        _ => None,
    })
}
