//! Measuring a chain of routers: services one after the other, each with its evidence.
//!
//! Alone, so that a counter that moves between two readings moved because of this service, or of
//! traffic that is not the job's. Services that nothing decided in the time that a packet could
//! possibly need are tried once more at the end, all at once and with the whole patience: waiting
//! is all that is left to do then, and the evidence has been taken.

mod ends;
mod examine;
mod itself;
mod link;
mod moved;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use futures_util::future::join_all;

pub(super) use self::moved::Growth;
use self::{
    ends::{Listening, ServiceEnds, serve},
    examine::UndecidedResult,
};
use super::{
    DetailedClosing, DetailedError, Setup,
    attempt::{Ears, RouterWatches, Tried, attempt},
    exceptions::KnownExceptions,
    journey::{Ends, SeenPackets, Wires},
    listen::Witness,
    message::is_stream,
    post::{CounterReading, Post},
    result::ServiceTest,
    site::{StretchRound, TargetServices, Task, add},
};
use crate::{
    fault,
    firewall::nft::{NftError, watch::RulesetChanges},
    model::{IfName, Protocol},
    netlink::object::Family,
    netns::NetnsFd,
    sys::readable::Readable,
};

/// Sockets that are open at once: listeners and clients of so many services.
const CHUNK: usize = 128;

/// What measuring a chain came to.
#[derive(Debug, Default)]
pub(super) struct ChainMeasurement {
    /// Results with the places of their services.
    pub(super) tests: Vec<(usize, ServiceTest)>,
    /// Services that are sent elsewhere than tables said: NAT, or routing by mark.
    pub(super) moved: Vec<TargetServices>,
    /// Services whose packets went to routers or neighbours that were not expected.
    pub(super) grown: Vec<(Task, Growth)>,
    /// What the reader should know about a router.
    pub(super) notes: Vec<String>,
    /// To be closed when nobody waits any more.
    pub(super) closing: Vec<DetailedClosing>,
}

/// A chain with everything that measuring there needs.
struct Bench<'a> {
    setup: &'a Setup<'a>,
    site: &'a StretchRound,
    posts: Vec<Post<'a>>,
    wires: Wires,
    /// Who sees connections that no listener hears of, by protocol.
    witnesses: Vec<Witness>,
    interrupt: Readable,
    source: Arc<NetnsFd>,
    /// What the source host knew of paths before.
    exceptions: Option<KnownExceptions>,
    listening: Option<Listening<'a>>,
    /// What the namespace in which services listen knew of paths before, where that is a host's.
    exceptions_there: Option<KnownExceptions>,
    /// The addresses between which the job's connections are.
    addresses: HashSet<IpAddr>,
    result: ChainMeasurement,
}

/// Measures `site`, and once more if somebody changed a ruleset meanwhile.
pub(super) fn measure(
    setup: &Setup<'_>,
    site: &StretchRound,
) -> Result<ChainMeasurement, DetailedError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DetailedError::system("start a runtime"))?;
    runtime.block_on(async {
        let (first, changes) = measure_once(setup, site).await?;
        if changes.is_empty() {
            return Ok(first);
        }
        let (mut second, again) = measure_once(setup, site).await?;
        second.closing.extend(first.closing);
        second.was_changed(&changes, &again);
        Ok(second)
    })
}

/// The routers whose rulesets were changed, and what of them.
type Changed = Vec<(String, RulesetChanges)>;

async fn measure_once(
    setup: &Setup<'_>,
    site: &StretchRound,
) -> Result<(ChainMeasurement, Changed), DetailedError> {
    let mut bench = Bench::open(setup, site)?;
    let measured = bench.run().await;
    let stopped = bench.stop();
    measured.and(stopped)?;
    let changed = bench.changes()?;
    Ok((bench.into_result(), changed))
}

/// Becomes readable in the current runtime when a signal comes.
fn interrupted(setup: &Setup<'_>) -> io::Result<Readable> {
    Readable::new(setup.interrupt.cancel().as_fd().try_clone_to_owned()?)
}

impl ChainMeasurement {
    /// Notes that rulesets were changed during a first measurement, and perhaps during this one.
    fn was_changed(&mut self, first: &Changed, second: &Changed) {
        let after = first.iter().map(|(router, changes)| {
            format!(
                "router {router}: {changes} changed during the measurement; the results are from \
                 after it"
            )
        });
        if second.is_empty() {
            self.notes.extend(after);
            return;
        }
        for (router, changes) in second {
            let warning = format!(
                "router {router}: {changes} changed during the measurement and again when it was \
                 repeated: what is said of its rules may be of different rules"
            );
            let tests = self.tests.iter_mut().flat_map(|(_, test)| &mut test.tests);
            for test in tests.filter(|test| test.router.as_str() == router) {
                test.warnings.push(warning.clone());
            }
            self.notes.push(warning);
        }
    }
}

impl<'a> Bench<'a> {
    fn open(setup: &'a Setup<'a>, site: &'a StretchRound) -> Result<Self, DetailedError> {
        let source = site.source_netns(setup.dir)?;
        let listening = Listening::open(setup, site)?;
        let witnesses = witnesses(site, listening.as_ref())?;
        let family = Family::of(site.from());
        let exceptions = KnownExceptions::of(setup, &source, family);
        let host = listening.as_ref().and_then(Listening::host);
        let exceptions_there = host.and_then(|host| KnownExceptions::of(setup, host, family));
        let clean = exceptions.as_ref().filter(|known| known.are_none());
        let mut client = clean.map(|_| source.id());
        let posts = site.stations.iter();
        let posts = posts.map(|station| Post::open(setup, site, station, client.take()));
        let posts: Vec<Post<'a>> = posts.collect::<Result<_, _>>()?;
        let ends = [Some(site.from()), Some(site.to)];
        Ok(Self {
            setup,
            site,
            wires: wires(setup, &posts),
            posts,
            witnesses,
            interrupt: interrupted(setup).map_err(DetailedError::system("watch for signals"))?,
            exceptions,
            source,
            listening,
            exceptions_there,
            addresses: ends
                .into_iter()
                .chain([site.target.sink.address()])
                .flatten()
                .collect(),
            result: ChainMeasurement::default(),
        })
    }

    async fn run(&mut self) -> Result<(), DetailedError> {
        self.count()?;
        let mut undecided = Vec::new();
        let tasks = &self.site.target.tasks;
        // Services of one proxy all come to its port.
        let most = match self.site.target.sink.proxy() {
            Some(_) => 1,
            None => CHUNK,
        };
        for batch in batches(tasks.clone(), most, |task| task) {
            let ends = self.open_ends(&batch)?;
            for (task, ends) in batch.into_iter().zip(ends) {
                self.setup.stop_if_interrupted()?;
                undecided.extend(self.singly(task, ends).await?);
                self.setup.done();
            }
        }
        for batch in batches(undecided, most, |undecided| &undecided.task) {
            self.setup.stop_if_interrupted()?;
            self.together(batch).await?;
        }
        Ok(())
    }

    /// Stops watching every router, whatever fails.
    fn stop(&mut self) -> Result<(), DetailedError> {
        for unanswered in [true, false] {
            for post in &mut self.posts {
                post.forget_neighbours(unanswered);
            }
        }
        let kept = self.exceptions.as_ref().map(|k| k.forget_new(&self.source));
        self.result.notes.extend(kept.and_then(Result::err));
        let mut result = Ok(());
        for post in &mut self.posts {
            result = result.and(post.stop(&self.addresses));
        }
        result
    }

    /// Forgets what packets of earlier services made known of paths. Where that does not work, it is said in
    /// the end.
    fn forget_paths(&self) {
        let there = self.listening.as_ref().and_then(Listening::host);
        for (known, netns) in [
            (&self.exceptions, Some(&*self.source)),
            (&self.exceptions_there, there),
        ] {
            _ = known
                .as_ref()
                .zip(netns)
                .map(|(known, netns)| known.forget_new(netns));
        }
        for post in &self.posts {
            post.forget_paths();
        }
    }

    /// What others changed meanwhile.
    fn changes(&mut self) -> Result<Changed, DetailedError> {
        let mut changed = Vec::new();
        for post in &mut self.posts {
            match post.changes()? {
                RulesetChanges::None => {}
                changes => changed.push((post.station.name().to_string(), changes)),
            }
        }
        Ok(changed)
    }

    fn into_result(self) -> ChainMeasurement {
        let mut result = self.result;
        for post in self.posts {
            let router = post.station.name();
            let notes = post.notes.iter();
            let notes = notes.map(|note| format!("router {router}: {note}"));
            result.notes.extend(notes);
            result.closing.extend(post.closing);
        }
        result
    }

    /// Reads all counters of all routers; returns what they were before.
    fn count(&mut self) -> Result<Vec<CounterReading>, DetailedError> {
        self.posts.iter_mut().map(Post::count).collect()
    }

    /// Tries one service while nothing else happens; gives it back when nothing was decided.
    async fn singly(
        &mut self,
        task: Task,
        ends: ServiceEnds,
    ) -> Result<Option<UndecidedResult>, DetailedError> {
        let mut tried = self.attempt(task, ends).await?;
        let mut attempts = 1;
        if tried.overrun {
            let again = self.open_ends(std::slice::from_ref(&task))?.pop();
            if let Some(ends) = again {
                tried = self.attempt(task, ends).await?;
                attempts += 1;
            }
        }
        let before = self.count()?;
        let packets = std::mem::take(&mut tried.packets);
        let seen = SeenPackets::of(packets, &self.wires, &task, &self.ends(&tried));
        self.learn(&seen);
        if let Some((sink, there)) = self.moved(task, &tried, &seen) {
            add(&mut self.result.moved, sink, there);
            return Ok(None);
        }
        if let Some(growth) = self.growth(task, &tried, &seen) {
            let growths = task.growths + 1;
            self.result.grown.push((Task { growths, ..task }, growth));
            return Ok(None);
        }
        let examined = self.examine(task, (&tried, &seen), &before, attempts)?;
        if let Some(sink) = self.proxied(task, examined.0.proxied()) {
            let moves = task.moves + 1;
            add(&mut self.result.moved, sink, Task { moves, ..task });
            return Ok(None);
        }
        if examined.1 {
            let test = examined.0.test;
            (self.setup.keep)(task.service, &test);
            self.result.tests.push((task.at, test));
            return Ok(None);
        }
        Ok(Some(examined.0))
    }

    fn ends(&self, tried: &Tried) -> Ends {
        Ends {
            source: self.site.from(),
            entry: 0,
            itself: self.site.source.host().is_none(),
            client: tried.client,
            arrived: tried.arrived,
        }
    }

    /// Remembers addresses that connections were translated to.
    fn learn(&mut self, seen: &SeenPackets) {
        for sighting in seen.at.iter().flatten() {
            for head in [&sighting.packet.first, &sighting.packet.last] {
                self.addresses.extend([head.source, head.destination]);
            }
        }
    }

    async fn attempt(&mut self, task: Task, ends: ServiceEnds) -> Result<Tried, DetailedError> {
        fault::step("detailed.attempt").map_err(DetailedError::system("connect"))?;
        self.forget_paths();
        let listener = serve(ends.listener)?;
        let what = self.setup.attempt(self.site, &task, false);
        let protocol = task.service.protocol;
        let watches = self.posts.iter_mut().map(|post| post.watch.as_mut());
        let ears = Ears {
            listener: listener.as_ref(),
            witness: self.witnesses.iter().find(|w| w.protocol() == protocol),
            watches: RouterWatches(watches.collect()),
            interrupt: Some(&self.interrupt),
        };
        let tried = attempt(&what, protocol, ends.client, ears).await;
        let tried = tried.map_err(self.failed())?;
        fault::step("detailed.forget").map_err(DetailedError::system("forget connections"))?;
        self.forget(task, tried.client, what.to);
        self.setup.stop_if_interrupted()?;
        Ok(tried)
    }

    /// An attempt failed; it is the first router that is named.
    fn failed<E: Into<super::MeasureError>>(&self) -> impl Fn(E) -> DetailedError + use<E> {
        let router = self.site.stations.first();
        self.setup.at_router(router.map(|s| s.name().clone()))
    }

    /// Leaves no connection behind in any of the routers.
    fn forget(&mut self, task: Task, client: Option<SocketAddr>, to: SocketAddr) {
        let Some(client) = client else {
            return;
        };
        for post in &mut self.posts {
            post.forget(task.service.protocol, (client, to), &self.addresses);
        }
    }

    /// Tries services once more, all at once, with the whole patience.
    async fn together(&mut self, undecided: Vec<UndecidedResult>) -> Result<(), DetailedError> {
        let tasks: Vec<Task> = undecided.iter().map(|u| u.task).collect();
        let ends = self.open_ends(&tasks)?;
        let mut tries = Vec::with_capacity(tasks.len());
        for (task, ends) in tasks.iter().zip(ends) {
            let what = self.setup.attempt(self.site, task, true);
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
            let tried = tried.map_err(self.failed())?;
            let to = self.setup.attempt(self.site, &undecided.task, true).to;
            self.forget(undecided.task, tried.client, to);
            let Task { at, service, .. } = undecided.task;
            let test = self.decide(undecided, &tried);
            (self.setup.keep)(service, &test);
            self.result.tests.push((at, test));
        }
        self.setup.stop_if_interrupted()?;
        for post in &mut self.posts {
            if let Some(watch) = &mut post.watch {
                let read = watch.tracer().read();
                read.map_err(self.setup.at::<NftError>(post.station))?;
                watch.tracer().take();
            }
        }
        self.count()?;
        Ok(())
    }
}

/// Those who see the connections of `site` where they end.
fn witnesses(
    site: &StretchRound,
    at: Option<&Listening<'_>>,
) -> Result<Vec<Witness>, DetailedError> {
    let (Some(at), Some(address)) = (at, site.target.sink.address()) else {
        return Ok(Vec::new());
    };
    let protocols = site.target.tasks.iter().map(|task| task.service.protocol);
    let protocols: HashSet<Protocol> = protocols.filter(|p| is_stream(*p)).collect();
    let open = || {
        let protocols = protocols.iter();
        let all = protocols.map(|protocol| Witness::open_here(address, *protocol));
        all.collect::<io::Result<_>>()
    };
    let opened = at.netns().enter(open)?;
    opened.map_err(DetailedError::system("watch the destination host"))
}

/// The segments behind the routers' interfaces. What a router sends to itself leaves by its loopback
/// interface and comes in there, which is on a segment of its own.
fn wires(setup: &Setup<'_>, posts: &[Post<'_>]) -> Wires {
    let of = |(at, post): (usize, &Post<'_>)| {
        let interfaces = setup.map.interfaces(post.station.name()).iter();
        let interfaces = interfaces.filter_map(|i| Some((post.index(&i.name)?, i.segment?)));
        let lo = IfName::new("lo").ok().and_then(|lo| post.index(&lo));
        let lo = lo.map(|lo| (lo, usize::MAX - at));
        interfaces.chain(lo).collect::<HashMap<u32, usize>>()
    };
    Wires(posts.iter().enumerate().map(of).collect())
}

/// Splits a list so that what is in one part may be open at once: not too many sockets, and no two
/// listeners of one port, which services have that routers send to the same one.
fn batches<T>(list: Vec<T>, most: usize, task: impl Fn(&T) -> &Task) -> Vec<Vec<T>> {
    let mut batches: Vec<Vec<T>> = Vec::new();
    let mut ports = HashSet::new();
    for item in list {
        let port = task(&item).listens_on();
        let fits = ports.len() < most && !ports.contains(&port);
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
    use crate::model::Service;

    fn task(at: usize, protocol: Protocol, port: u16) -> Task {
        Task {
            at,
            service: Service { port: 1, protocol },
            dial: port,
            port,
            moves: 0,
            growths: 0,
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
        let batches = batches(tasks.clone(), CHUNK, |task| task);
        let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 1, 128, 128, 45]);
        assert_eq!(batches.concat(), tasks);
    }
}
