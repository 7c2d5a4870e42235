//! Measuring one router: services one after the other, each with its evidence.
//!
//! Alone, so that a counter that moves between two readings moved because of this service, or of
//! traffic that is not the job's. Services that nothing decided in the time that a packet could
//! possibly need are tried once more at the end, all at once and with the whole patience: waiting
//! is all that is left to do then, and the evidence has been taken.

use std::net::{IpAddr, SocketAddr};

use futures_util::future::join_all;

use super::{
    DetailedError, Setup,
    attempt::{Tried, Watch, attempt},
    connect::{Client, Experience},
    evidence::{Clerk, Rules},
    judge::{Facts, Fate, Judged, is_settled, judge},
    legacy::{Legacy, LegacySnapshot},
    listen::{Bound, Listener, Witness},
    result::{Direction, Measured, RouterTest, Status},
    site::{Sink, Site, Target, Task, add},
    way,
};
use crate::{
    fault,
    firewall::{
        conntrack::Conntrack,
        nft::{
            NftError,
            counters::{Snapshot, base_chains, snapshot},
            trace::{
                Exit, StoppedBy, TraceSockets,
                flow::{FlowEnd, FlowPacket, FlowSpec, FlowTracer},
            },
        },
    },
    netlink::object::Mac,
    netns::NetnsFd,
    registry::HostSpec,
};

/// Sockets that are open at once: listeners and clients of so many services.
const CHUNK: usize = 128;
/// How often a service may be found to go elsewhere before that is its result.
const MAX_MOVES: u8 = 2;

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
    pub(super) closing: Vec<TraceSockets>,
}

/// A router with everything that measuring there needs.
struct Bench<'a> {
    setup: &'a Setup<'a>,
    site: &'a Site<'a>,
    clerk: Clerk<'a>,
    watch: Option<Watch>,
    witness: Option<Witness>,
    conntrack: Option<Conntrack>,
    legacy: Option<Legacy<'a>>,
    source: NetnsFd,
    listening: Option<Listening<'a>>,
    addresses: Vec<IpAddr>,
    counters: Counters,
    result: Measurement,
}

/// The namespace in which services listen.
enum Listening<'a> {
    Host(NetnsFd),
    Router(&'a NetnsFd),
}

impl Listening<'_> {
    fn netns(&self) -> &NetnsFd {
        match self {
            Self::Host(netns) => netns,
            Self::Router(netns) => netns,
        }
    }
}

/// One reading of everything that counts.
#[derive(Debug, Default)]
struct Counters {
    nft: Snapshot,
    legacy: LegacySnapshot,
}

/// The two ends of one service, bound and not yet used.
struct Ends {
    client: Client,
    listener: Option<Bound>,
}

/// A result that waiting longer may change.
struct Undecided {
    task: Task,
    test: RouterTest,
    request: Fate,
    answer: Fate,
}

/// Measures `site`.
pub(super) fn measure(setup: &Setup<'_>, site: &Site<'_>) -> Result<Measurement, DetailedError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DetailedError::system("start a runtime"))?;
    runtime.block_on(async {
        let mut bench = Bench::open(setup, site)?;
        let measured = bench.run().await;
        let stopped = bench.stop();
        measured.and(stopped)?;
        Ok(std::mem::take(&mut bench.result))
    })
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
        let (trace, conntrack) =
            router.enter(|| (TraceSockets::open_here(), Conntrack::open_here()))?;
        let mut result = Measurement::default();
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
        let clerk =
            Clerk::new(router, setup.tools, chains, setup.source).map_err(setup.at(site))?;
        let addresses = clerk.observer.addresses();
        let mut bench = Self {
            setup,
            site,
            clerk,
            watch: None,
            witness,
            conntrack: conntrack.ok(),
            legacy: Legacy::find(router, setup.tools, setup.source).map_err(setup.at(site))?,
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
        let watch = Watch::new(tracer).map_err(DetailedError::system("follow packets"))?;
        self.watch = Some(watch);
        Ok(())
    }

    async fn run(&mut self) -> Result<(), DetailedError> {
        self.counters = self.read_counters()?;
        let mut undecided = Vec::new();
        let tasks = &self.site.target.tasks;
        for chunk in tasks.chunks(CHUNK) {
            let ends = self.open_ends(chunk)?;
            for (task, ends) in chunk.iter().zip(ends) {
                self.setup.stop_if_interrupted()?;
                undecided.extend(self.singly(*task, ends).await?);
                self.setup.done();
            }
        }
        for chunk in chunks(undecided) {
            self.setup.stop_if_interrupted()?;
            self.together(chunk).await?;
        }
        self.result.notes.extend(self.clerk.notes());
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DetailedError> {
        let Some(watch) = self.watch.take() else {
            return Ok(());
        };
        let (sockets, stopped) = watch.into_tracer().stop();
        self.result.closing.push(sockets);
        stopped.map_err(self.setup.at(self.site))
    }

    /// Opens clients and listeners inside their namespaces.
    fn open_ends(&self, tasks: &[Task]) -> Result<Vec<Ends>, DetailedError> {
        fault::step("detailed.listen").map_err(DetailedError::system("listen"))?;
        let Setup {
            source,
            source_port,
            ..
        } = *self.setup;
        let open = |task: &Task| Client::open_here(source, source_port, task.service.protocol);
        let clients = self
            .source
            .enter(|| tasks.iter().map(open).collect::<Vec<_>>())?;
        let bind = |task: &Task| {
            let at = self.site.target.listen_at(task)?;
            Some(Bound::open_here(at, task.service.protocol))
        };
        let listeners = match &self.listening {
            Some(at) => at
                .netns()
                .enter(|| tasks.iter().map(bind).collect::<Vec<_>>())?,
            None => tasks.iter().map(|_| None).collect(),
        };
        let pair = |(client, listener): (Result<Client, _>, Option<Result<Bound, _>>)| {
            Ok(Ends {
                client: client.map_err(DetailedError::system("open a client's socket"))?,
                listener: self.bound(listener)?,
            })
        };
        clients.into_iter().zip(listeners).map(pair).collect()
    }

    /// On the router itself a service of its own may have the port; that one answers then.
    fn bound(
        &self,
        listener: Option<std::io::Result<Bound>>,
    ) -> Result<Option<Bound>, DetailedError> {
        match listener {
            Some(Err(error))
                if error.kind() == std::io::ErrorKind::AddrInUse
                    && matches!(self.listening, Some(Listening::Router(_))) =>
            {
                Ok(None)
            }
            Some(bound) => bound.map(Some).map_err(DetailedError::system("listen")),
            None => Ok(None),
        }
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
        if let Some(sink) = self.moved(task, &tried) {
            self.move_on(sink, task, &tried);
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
        let what = self.setup.attempt(task.service, false);
        let protocol = task.service.protocol;
        let tried = attempt(
            &what,
            protocol,
            ends.client,
            listener.as_ref(),
            self.witness.as_ref(),
            self.watch.as_mut(),
        );
        let tried = tried.await.map_err(self.setup.at(self.site))?;
        self.forget(task, &tried, what.to);
        Ok(tried)
    }

    /// Leaves no connection tracking entry that a later job could be answered by.
    fn forget(&mut self, task: Task, tried: &Tried, to: SocketAddr) {
        let (Some(conntrack), Some(client)) = (&mut self.conntrack, tried.client) else {
            return;
        };
        if let Err(error) = conntrack.forget(task.service.protocol, client, to) {
            let note = "the job's connections stay in the router's connection tracking until they \
                        time out";
            self.result.notes.push(format!("{note}: {error}"));
            self.conntrack = None;
        }
    }

    /// Where the request went, if that is not where somebody listens.
    fn moved(&self, task: Task, tried: &Tried) -> Option<Sink> {
        if tried.arrived.is_some() || task.moves >= MAX_MOVES {
            return None;
        }
        let request = tried.packets.iter().find(|p| {
            self.clerk.direction(p) == Some(Direction::Request)
                && matches!(p.stopped_by(), StoppedBy::Nothing(_))
        })?;
        let StoppedBy::Nothing(exit) = request.stopped_by() else {
            return None;
        };
        let address = request.last.destination;
        let port = request.last.payload.ports().map_or(task.port, |p| p.1);
        let sink = match exit {
            Exit::Local => Sink::Router { address },
            Exit::Out => Sink::Host {
                interface: self.clerk.observer.name(request.last.oif)?.clone(),
                hop: address,
                address,
            },
        };
        let expected = &self.site.target.sink;
        let same = sink.interface() == expected.interface()
            && sink.address() == expected.address()
            && port == task.port;
        (!same).then_some(sink)
    }

    /// Has the service tried again with somebody listening where it went.
    fn move_on(&mut self, sink: Sink, task: Task, tried: &Tried) {
        let requests = tried.packets.iter();
        let request = requests
            .filter(|p| self.clerk.direction(p) == Some(Direction::Request))
            .find(|p| matches!(p.stopped_by(), StoppedBy::Nothing(_)));
        let port = request.and_then(|p| p.last.payload.ports());
        let sink = match (sink, request) {
            (
                Sink::Host {
                    interface, address, ..
                },
                Some(request),
            ) => Sink::Host {
                hop: self.clerk.next_hop(request).unwrap_or(address),
                interface,
                address,
            },
            (sink, _) => sink,
        };
        let task = Task {
            port: port.map_or(task.port, |(_, port)| port),
            moves: task.moves + 1,
            ..task
        };
        add(&mut self.result.moved, sink, task);
    }

    /// What an attempt means, and whether that is the last word.
    fn examine(
        &mut self,
        task: Task,
        tried: &Tried,
        before: &Counters,
        attempts: u32,
    ) -> Result<(Undecided, bool), DetailedError> {
        let at = |error: super::evidence::EvidenceError| self.setup.at(self.site)(error);
        let packets = self.mine(tried);
        let (mut request, mut answer) = (Fate::NotSeen, Fate::NotSeen);
        let (mut rules, mut trace, mut nat) = (Rules::default(), Vec::new(), Vec::new());
        if let Some(watch) = &mut self.watch {
            let socket = watch.tracer().control();
            request = self
                .clerk
                .fate(socket, &packets, Direction::Request)
                .map_err(at)?;
            answer = self
                .clerk
                .fate(socket, &packets, Direction::Answer)
                .map_err(at)?;
            let counters = (&before.nft, &self.counters.nft);
            rules = self.clerk.rules(socket, &packets, counters).map_err(at)?;
            trace = way::ways(&mut self.clerk, socket, &packets).map_err(at)?;
            nat = way::nat(&self.clerk, &packets);
        }
        self.add_legacy(before, &mut rules, &mut request, tried);
        let facts = self.facts(
            tried.experience.as_ref(),
            &request,
            &answer,
            &packets,
            tried,
        );
        let judged = judge(&facts);
        let settled = self.setup.patient || is_settled(&facts);
        let mut test = self.test(task, tried, judged);
        test.attempts = attempts;
        test.trace = trace;
        test.nat = nat;
        test.allowing = rules.allowing;
        test.blocking = rules.blocking;
        test.touched = rules.touched;
        test.other_traffic = rules.other_traffic;
        if tried.overrun {
            let lost = "trace events were lost: what the trace shows may be incomplete";
            test.warnings.push(lost.to_owned());
        }
        self.warn_of_other_traffic(&mut test);
        let undecided = Undecided {
            task,
            test,
            request,
            answer,
        };
        Ok((undecided, settled))
    }

    fn facts<'f>(
        &'f self,
        experience: Option<&'f Experience>,
        request: &Fate,
        answer: &Fate,
        packets: &[FlowPacket],
        tried: &Tried,
    ) -> Facts<'f> {
        let left = |p: &FlowPacket| p.stopped_by() == StoppedBy::Nothing(Exit::Out);
        Facts {
            experience,
            traced: self.watch.is_some() && !tried.overrun,
            request: request.clone(),
            answer: answer.clone(),
            own_left: packets.iter().any(|p| p.is_own() && left(p)),
            arrived: tried.arrived.is_some(),
            destination: self
                .site
                .target
                .sink
                .address()
                .unwrap_or(self.setup.destination),
            router: &self.addresses,
        }
    }

    /// The attempt's own packets: a late one of the attempt before may be among those followed.
    fn mine(&self, tried: &Tried) -> Vec<FlowPacket> {
        let ends = [tried.client, tried.arrived];
        let ours = |port: u16| {
            let known = ends.iter().flatten().any(|end| end.port() == port);
            known || ends.iter().all(Option::is_none)
        };
        let mine = |p: &&FlowPacket| match (self.clerk.direction(p), p.first.payload.ports()) {
            (Some(Direction::Request), Some((source, _))) => ours(source),
            // Behind NAT the request may have had another port that nobody saw.
            (_, Some((_, destination))) => ours(destination) || tried.arrived.is_none(),
            _ => true,
        };
        tried.packets.iter().filter(mine).cloned().collect()
    }

    /// What iptables-legacy's counters add; a rule of it that stopped the request ends the search.
    fn add_legacy(&self, before: &Counters, rules: &mut Rules, request: &mut Fate, tried: &Tried) {
        let legacy = self.counters.legacy.since(&before.legacy);
        let undecided = matches!(request, Fate::NotSeen | Fate::Within(_) | Fate::Lost(_));
        let answered = matches!(tried.experience, Some(Experience::Answered(_)));
        if let Some(rule) = legacy.blocking.first().filter(|_| undecided && !answered) {
            let position = rule
                .position
                .map_or("the policy".to_owned(), |p| format!("rule {p}"));
            *request = Fate::Stopped {
                by: format!(
                    "{position} of chain {} (table {}, iptables-legacy): {}",
                    rule.chain, rule.table, rule.rule
                ),
                rejects_with: crate::firewall::effect::rejected_with(&rule.rule),
            };
        }
        rules.allowing.extend(legacy.allowing);
        rules.blocking.extend(legacy.blocking);
        rules.touched.extend(legacy.touched);
    }

    fn test(&self, task: Task, tried: &Tried, judged: Judged) -> RouterTest {
        let latency = match tried.experience {
            Some(Experience::Answered(time) | Experience::Mute(time)) => Some(super::millis(time)),
            _ => None,
        };
        let icmp = match tried.experience {
            Some(Experience::Icmp(icmp)) => Some(icmp),
            _ => None,
        };
        let mut test =
            RouterTest::not_made(&self.setup.way(self.site), judged.status, judged.message);
        if let (Status::Ok, Some(latency)) = (test.status, latency) {
            test.message = format!("answered in {latency} ms");
        }
        let behind = task.moves > 0;
        if behind && let Some(at) = self.site.target.listen_at(&task) {
            test.message = format!("{}; the router sends it to {at}", test.message);
        }
        test.source_host = Some(self.site.source.id.host.clone());
        test.latency_ms = latency;
        test.measured = Measured::Singly;
        test.icmp = icmp;
        test.refused_by = judged.refused_by;
        test
    }

    /// Warns of other traffic in tables that the service's packets pass, too.
    fn warn_of_other_traffic(&self, test: &mut RouterTest) {
        let elsewhere = match self.setup.source {
            IpAddr::V4(_) => "ip6",
            IpAddr::V6(_) => "ip",
        };
        let others = test.other_traffic.iter().filter(|r| r.family != elsewhere);
        let (rules, packets) = others.fold((0, 0), |(n, sum), r| (n + 1, sum + r.unexplained));
        if rules > 0 {
            test.warnings.push(format!(
                "other traffic passed the router meanwhile: {} that saw none of this service's \
                 packets counted {}",
                plural(rules, "rule"),
                plural(packets, "packet")
            ));
        }
    }

    /// Tries services once more, all at once, with the whole patience.
    async fn together(&mut self, undecided: Vec<Undecided>) -> Result<(), DetailedError> {
        let tasks: Vec<Task> = undecided.iter().map(|u| u.task).collect();
        let ends = self.open_ends(&tasks)?;
        let mut tries = Vec::with_capacity(tasks.len());
        for (task, ends) in tasks.iter().zip(ends) {
            let what = self.setup.attempt(task.service, true);
            let (listener, protocol) = (serve(ends.listener)?, task.service.protocol);
            tries.push(async move {
                attempt(&what, protocol, ends.client, listener.as_ref(), None, None).await
            });
        }
        let results = join_all(tries).await;
        for (undecided, tried) in undecided.into_iter().zip(results) {
            let tried = tried.map_err(self.setup.at(self.site))?;
            let to = self.setup.attempt(undecided.task.service, true).to;
            self.forget(undecided.task, &tried, to);
            let (at, test) = (undecided.task.at, self.decide(undecided, &tried));
            self.result.tests.push((at, test));
        }
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

    /// The last word about a service that was tried twice.
    fn decide(&self, undecided: Undecided, tried: &Tried) -> RouterTest {
        let Undecided {
            mut test,
            request,
            answer,
            task,
        } = undecided;
        test.attempts += 1;
        test.measured = Measured::Together;
        if tried.experience.is_some() || tried.arrived.is_some() {
            let experience = tried.experience.as_ref();
            let facts = self.facts(experience, &request, &answer, &[], tried);
            let second = self.test(task, tried, judge(&facts));
            test.status = second.status;
            test.message = format!("{}, at the second attempt", second.message);
            test.latency_ms = second.latency_ms;
            test.icmp = second.icmp;
            test.refused_by = second.refused_by;
        }
        test
    }
}

fn serve(bound: Option<Bound>) -> Result<Option<Listener>, DetailedError> {
    let served = bound.map(Bound::serve).transpose();
    served.map_err(DetailedError::system("serve a listener"))
}

fn chunks<T>(list: Vec<T>) -> Vec<Vec<T>> {
    let mut chunks: Vec<Vec<T>> = Vec::new();
    for item in list {
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(item),
            _ => chunks.push(vec![item]),
        }
    }
    chunks
}

/// `1 rule`, `2 rules`.
fn plural(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}
