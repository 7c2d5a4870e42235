//! Measuring one router: services one after the other, each with its evidence.
//!
//! Alone, so that a counter that moves between two readings moved because of this service, or of
//! traffic that is not the job's. Services that nothing decided in the time that a packet could
//! possibly need are tried once more at the end, all at once and with the whole patience: waiting
//! is all that is left to do then, and the evidence has been taken.

mod ends;
mod examine;
mod moved;
mod own;
mod undo;

use std::{collections::HashSet, io, net::IpAddr, os::fd::AsFd};

use futures_util::future::join_all;

use self::{
    ends::{Ends, Listening, serve},
    examine::Undecided,
};
use super::{
    Closing, DetailedError, Setup,
    attempt::{Ears, Tried, Watch, attempt},
    evidence::Clerk,
    legacy::{Legacy, LegacySnapshot},
    listen::Witness,
    result::RouterTest,
    site::{Sink, Site, Target, Task, add},
};
use crate::{
    fault,
    firewall::{
        conntrack::Conntrack,
        nft::{
            NftError, Ownership,
            counters::{Snapshot, base_chains, snapshot},
            trace::{
                TraceSockets,
                flow::{FlowEnd, FlowSpec, FlowTracer},
            },
            watch::{Changes, RulesetWatch},
        },
    },
    netlink::object::Mac,
    netns::NetnsFd,
    registry::HostSpec,
    sys::readable::Readable,
};

/// Sockets that are open at once: listeners and clients of so many services.
const CHUNK: usize = 128;

/// Said of a router whose kernel has no owner tables (before 5.12).
const TRACE_STAYS: &str = "traces of this kernel stay in the router if the job is killed, until the \
                           next job or `tsim reconcile` sweeps them";

/// What measuring a router came to.
#[derive(Debug, Default)]
pub(super) struct Measurement {
    /// Results with the places of their services.
    pub(super) tests: Vec<(usize, RouterTest)>,
    /// Services that the router sends elsewhere than its tables said: NAT, or routing by mark.
    pub(super) moved: Vec<Target>,
    /// What the reader should know about the router.
    pub(super) notes: Vec<String>,
    /// To be closed when nobody waits any more.
    pub(super) closing: Vec<Closing>,
}

/// A router with everything that measuring there needs.
struct Bench<'a> {
    setup: &'a Setup<'a>,
    site: &'a Site<'a>,
    clerk: Clerk<'a>,
    watch: Option<Watch>,
    witness: Option<Witness>,
    conntrack: Option<Conntrack>,
    rulesets: Option<RulesetWatch>,
    legacy: Option<Legacy<'a>>,
    interrupt: Readable,
    source: NetnsFd,
    listening: Option<Listening<'a>>,
    addresses: Vec<IpAddr>,
    counters: Counters,
    result: Measurement,
}

/// One reading of everything that counts.
#[derive(Debug, Default)]
struct Counters {
    nft: Snapshot,
    legacy: LegacySnapshot,
}

/// Measures `site`, and once more if somebody changed its ruleset meanwhile.
pub(super) fn measure(setup: &Setup<'_>, site: &Site<'_>) -> Result<Measurement, DetailedError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DetailedError::system("start a runtime"))?;
    runtime.block_on(async {
        let (first, changes) = measure_once(setup, site).await?;
        if changes == Changes::None {
            return Ok(first);
        }
        let (mut second, again) = measure_once(setup, site).await?;
        second.closing.extend(first.closing);
        second.was_changed(&changes, &again);
        Ok(second)
    })
}

async fn measure_once(
    setup: &Setup<'_>,
    site: &Site<'_>,
) -> Result<(Measurement, Changes), DetailedError> {
    let mut bench = Bench::open(setup, site)?;
    let measured = bench.run().await;
    let stopped = bench.stop();
    measured.and(stopped)?;
    let changes = bench.changes()?;
    Ok((std::mem::take(&mut bench.result), changes))
}

/// Becomes readable in the current runtime when a signal comes.
fn interrupted(setup: &Setup<'_>) -> io::Result<Readable> {
    Readable::new(setup.interrupt.cancel().as_fd().try_clone_to_owned()?)
}

impl<'a> Bench<'a> {
    fn open(setup: &'a Setup<'a>, site: &'a Site<'a>) -> Result<Self, DetailedError> {
        let router: &NetnsFd = &site.way.netns;
        let source = setup.dir.open(&site.source.id.netns())?;
        let listening = match (&site.destination, &site.target.sink) {
            (Some(host), _) => Some(Listening::Host(setup.dir.open(&host.id.netns())?)),
            (None, Sink::Router { .. }) => Some(Listening::Router(router)),
            (None, _) => None,
        };
        let witness = match (&listening, site.target.sink.address()) {
            (Some(at), Some(address)) => Some(
                at.netns()
                    .enter(|| Witness::open_here(address))?
                    .map_err(DetailedError::system("watch the destination host"))?,
            ),
            _ => None,
        };
        let (trace, conntrack, rulesets) = router.enter(|| {
            let rulesets = RulesetWatch::open_here();
            (
                TraceSockets::open_here(),
                Conntrack::open_here(),
                rulesets.ok(),
            )
        })?;
        let mut result = Measurement::default();
        if let Err(error) = &conntrack {
            result.notes.push(undo::stays(error));
        }
        let mut trace = match trace {
            Ok(sockets) => Some(sockets),
            Err(error) => {
                result
                    .notes
                    .push(format!("packets cannot be followed: {error}"));
                None
            }
        };
        let chains = match &mut trace {
            Some(sockets) => base_chains(sockets.control()).map_err(setup.at(site))?,
            None => Default::default(),
        };
        let clerk = Clerk::new(router, setup.tools, chains, site.source).map_err(setup.at(site))?;
        let addresses = clerk.observer.addresses();
        let mut bench = Self {
            setup,
            site,
            clerk,
            watch: None,
            witness,
            conntrack: conntrack.ok(),
            rulesets,
            legacy: Legacy::find(router, setup.tools, setup.source).map_err(setup.at(site))?,
            interrupt: interrupted(setup).map_err(DetailedError::system("watch for signals"))?,
            source,
            listening,
            addresses,
            counters: Counters::default(),
            result,
        };
        if let Some(sockets) = trace {
            bench.follow(sockets)?;
        }
        Ok(bench)
    }

    /// Begins to follow packets.
    fn follow(&mut self, sockets: TraceSockets) -> Result<(), DetailedError> {
        let end = |host: &HostSpec, mac: Mac| {
            Some(FlowEnd {
                interface: host.interface.clone(),
                index: self.clerk.observer.index(&host.interface)?,
                mac,
            })
        };
        let source = end(self.site.source, self.site.source.mac);
        let destination = self.site.destination.as_ref().and_then(|h| end(h, h.mac));
        let spec = FlowSpec {
            run_id: self.setup.run_id.clone(),
            source: self.setup.source,
            ends: source.into_iter().chain(destination).collect(),
        };
        fault::step("detailed.trace").map_err(DetailedError::system("follow packets"))?;
        let tracer = FlowTracer::start(sockets, &spec).map_err(self.setup.at(self.site))?;
        if tracer.ownership() == Ownership::Unowned {
            self.result.notes.push(TRACE_STAYS.to_owned());
        }
        let watch = Watch::new(tracer, self.clerk.home())
            .map_err(DetailedError::system("follow packets"))?;
        self.watch = Some(watch);
        Ok(())
    }

    async fn run(&mut self) -> Result<(), DetailedError> {
        self.counters = self.read_counters()?;
        let mut undecided = Vec::new();
        let tasks = &self.site.target.tasks;
        for batch in batches(tasks.clone(), |task| task) {
            let ends = self.open_ends(&batch)?;
            for (task, ends) in batch.into_iter().zip(ends) {
                self.setup.stop_if_interrupted()?;
                undecided.extend(self.singly(task, ends).await?);
                self.setup.done();
            }
        }
        for batch in batches(undecided, |undecided| &undecided.task) {
            self.setup.stop_if_interrupted()?;
            self.together(batch).await?;
        }
        self.result.notes.extend(self.clerk.notes());
        Ok(())
    }

    fn read_counters(&mut self) -> Result<Counters, DetailedError> {
        let at = self.setup.at(self.site);
        let nft = match &mut self.watch {
            Some(watch) => snapshot(watch.tracer().control()).map_err(at)?,
            None => Snapshot::default(),
        };
        let legacy = match &self.legacy {
            Some(legacy) => legacy.read().map_err(self.setup.at(self.site))?,
            None => LegacySnapshot::default(),
        };
        Ok(Counters { nft, legacy })
    }

    /// Tries one service while nothing else happens; gives it back when nothing was decided.
    async fn singly(&mut self, task: Task, ends: Ends) -> Result<Option<Undecided>, DetailedError> {
        let mut tried = self.attempt(task, ends).await?;
        let mut attempts = 1;
        if tried.overrun {
            let again = self.open_ends(std::slice::from_ref(&task))?.pop();
            if let Some(ends) = again {
                tried = self.attempt(task, ends).await?;
                attempts += 1;
            }
        }
        let now = self.read_counters()?;
        let before = std::mem::replace(&mut self.counters, now);
        if let Some((sink, there)) = self.moved(task, &tried) {
            add(&mut self.result.moved, sink, there);
            return Ok(None);
        }
        let examined = self.examine(task, &tried, &before, attempts)?;
        if examined.1 {
            self.result.tests.push((task.at, examined.0.test));
            return Ok(None);
        }
        Ok(Some(examined.0))
    }

    async fn attempt(&mut self, task: Task, ends: Ends) -> Result<Tried, DetailedError> {
        fault::step("detailed.attempt").map_err(DetailedError::system("connect"))?;
        let listener = serve(ends.listener)?;
        let what = self.setup.attempt(&task, false);
        let protocol = task.service.protocol;
        let ears = Ears {
            listener: listener.as_ref(),
            witness: self.witness.as_ref(),
            watch: self.watch.as_mut(),
            interrupt: Some(&self.interrupt),
        };
        let tried = attempt(&what, protocol, ends.client, ears).await;
        let mut tried = tried.map_err(self.setup.at(self.site))?;
        own::keep(&mut tried, &task, |packet| self.clerk.direction(packet));
        self.forget(task, tried.client, what.to);
        self.setup.stop_if_interrupted()?;
        Ok(tried)
    }

    /// Tries services once more, all at once, with the whole patience.
    async fn together(&mut self, undecided: Vec<Undecided>) -> Result<(), DetailedError> {
        let tasks: Vec<Task> = undecided.iter().map(|u| u.task).collect();
        let ends = self.open_ends(&tasks)?;
        let mut tries = Vec::with_capacity(tasks.len());
        for (task, ends) in tasks.iter().zip(ends) {
            let what = self.setup.attempt(task, true);
            let (listener, protocol) = (serve(ends.listener)?, task.service.protocol);
            let interrupt = &self.interrupt;
            tries.push(async move {
                let ears = Ears {
                    listener: listener.as_ref(),
                    interrupt: Some(interrupt),
                    ..Ears::default()
                };
                attempt(&what, protocol, ends.client, ears).await
            });
        }
        let results = join_all(tries).await;
        for (undecided, tried) in undecided.into_iter().zip(results) {
            let tried = tried.map_err(self.setup.at(self.site))?;
            let to = self.setup.attempt(&undecided.task, true).to;
            self.forget(undecided.task, tried.client, to);
            let (at, test) = (undecided.task.at, self.decide(undecided, &tried));
            self.result.tests.push((at, test));
        }
        self.setup.stop_if_interrupted()?;
        if let Some(watch) = &mut self.watch {
            watch
                .tracer()
                .read()
                .map_err(self.setup.at::<NftError>(self.site))?;
            watch.tracer().take();
        }
        self.counters = self.read_counters()?;
        Ok(())
    }
}

/// Splits a list so that what is in one part may be open at once: not too many sockets, and no two
/// listeners of one port, which services have that the router sends to the same one.
fn batches<T>(list: Vec<T>, task: impl Fn(&T) -> &Task) -> Vec<Vec<T>> {
    let mut batches: Vec<Vec<T>> = Vec::new();
    let mut ports = HashSet::new();
    for item in list {
        let port = task(&item).listens_on();
        let fits = ports.len() < CHUNK && !ports.contains(&port);
        match batches.last_mut().filter(|_| fits) {
            Some(batch) => batch.push(item),
            None => {
                ports.clear();
                batches.push(vec![item]);
            }
        }
        ports.insert(port);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, Service};

    fn task(at: usize, protocol: Protocol, port: u16) -> Task {
        Task {
            at,
            service: Service { port: 1, protocol },
            port,
            moves: 0,
        }
    }

    #[test]
    fn no_two_of_a_batch_listen_on_one_port_and_the_order_stays() {
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let ports = [(tcp, 80), (udp, 80), (tcp, 81), (tcp, 80), (tcp, 80)];
        let mut tasks: Vec<Task> = ports
            .iter()
            .enumerate()
            .map(|(at, &(protocol, port))| task(at, protocol, port))
            .collect();
        let many = (0..300).map(|number| task(5 + number, tcp, 1000 + number as u16));
        tasks.extend(many);
        let batches = batches(tasks.clone(), |task| task);
        let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 1, 128, 128, 45]);
        assert_eq!(batches.concat(), tasks);
    }
}
