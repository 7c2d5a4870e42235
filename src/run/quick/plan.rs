//! What is measured at every place, and the routers worked off side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, LazyLock, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    EXPLAIN_AUTO_MAX, EXPLAIN_IN_BURST, ExplainMode, Pair, QuickClosing, QuickError, Terms,
    client_port::{fresh_port, random},
    conclude::conclude,
    copied::Copies,
    grant::Grant,
    lots::Urn,
    measure::{self, LazyShelf, ProbeQuestion, Probing, RouterMeasured, Spent, step},
    note::TapNotes,
    ports::too_long,
    standin::StandIns,
    visit::{ENDS_HERE, Sender, Visit, VisitMeasurement, VisitResult},
};
use crate::{
    config::Config,
    firewall::{
        Notebook, TagSpace, Taps,
        backend::{Backend, BackendChoice, TapSite, choose},
        iptables::{OwnerMark, feature},
        nft::{NftSocket, census::Census, nature::Nature, plain::PlainRulesets},
        rule::{Field, OpenPorts, Packet, Rewritten, Rule},
        ruletext::RuleText,
        taps::ProbeWays,
    },
    lab::{self, Lab},
    model::{Dscp, Protocol, RouterName, Service},
    netlink::object::Family,
    netns::{NetnsDir, NetnsFd, NetnsId, tool::Tools},
    processors,
    registry::Owner,
    run::{
        chosen_port::PortRules,
        explain::{self, Explainer, Explanation, Scrutiny},
        outside::OutsideReason,
        packet::{Headers, Probe, position},
        probe::Catalogue,
        progress::PHASE,
        report::Verdict,
        verdict::{Finding, Findings},
    },
};

/// TTL of the probes, Linux's default.
const TTL: u8 = 64;

/// The job's question in the form that routers are measured with.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) backend: Backend,
    explain: ExplainMode,
    /// How many services of one visit are explained unless all are: blocked ones, and those that got
    /// through where rules vary.
    most: (usize, usize),
    pub(super) tools: Tools,
    /// Where texts of rules are kept.
    shelf: LazyShelf,
    /// Opened when the first router is measured.
    plain: OnceLock<Option<PlainRulesets>>,
    owner: OwnerMark,
    /// Where taps that outlive the job are noted.
    notes: Option<TapNotes>,
    /// How long to wait for others in a router's iptables.
    patience: Duration,
    /// The socket by which the back end was chosen, in the router where that was.
    kept: Mutex<Option<(NetnsId, NftSocket)>>,
    /// How many threads measure a router now.
    workers: AtomicUsize,
    taps: Taps,
    /// The same for probes of a router itself.
    own_taps: Taps,
    /// What tags are drawn from.
    seed: u64,
    /// Whether probes may have any source port.
    any_port: bool,
    /// What routers of the lab rewrite that probes do not carry to the next one.
    rewritten: Rewritten,
    /// The rules of each router that choose source ports, as text.
    choosing: Vec<(RouterName, Vec<String>)>,
    /// Whom copies of packets may reach.
    copies: Copies,
    /// As the source sends them.
    pub(super) probes: Vec<Probe>,
    pub(super) catalogue: Catalogue,
    /// The pair that each probe is of, by the probe's index.
    pair_of: Vec<u32>,
    /// Where each pair's services begin among all that are asked for.
    begins: Vec<usize>,
}

fn lazy_shelf(config: &Config, lab: &Lab) -> LazyShelf {
    let (config, name, open) = (config.clone(), lab.lab.clone(), lab.open_shelf());
    LazyLock::new(Box::new(move || {
        open.or_else(|| lab::shelf(&config, &name))
    }))
}

/// The services that are looked at more closely.
#[derive(Default)]
struct Asked {
    probes: Vec<Probe>,
    /// Those that got through and are not, although rules may decide about them otherwise.
    unlooked: Vec<Probe>,
    /// Those that were stopped and are not.
    stopped: Vec<Probe>,
    /// What to say of blocked ones that are not.
    left_out: Option<String>,
}

/// The services of all pairs in a row, of which pair each index is, and where each pair begins.
fn questions(pairs: &[Pair]) -> (Catalogue, Vec<u32>, Vec<usize>) {
    let mut services: Vec<Service> = Vec::new();
    let mut begins = Vec::with_capacity(pairs.len());
    let mut pair_at = Vec::new();
    for (number, pair) in pairs.iter().enumerate() {
        begins.push(services.len());
        services.extend(&pair.services);
        pair_at.resize(services.len(), number as u32);
    }
    let catalogue = Catalogue::new(&services);
    let mut pair_of = vec![0; services.len()];
    for (&index, &pair) in catalogue.in_order_asked().iter().zip(&pair_at) {
        if let Some(of) = pair_of.get_mut(index as usize) {
            *of = pair;
        }
    }
    (catalogue, pair_of, begins)
}

/// Of pairs that are all of one.
fn family(pairs: &[Pair]) -> Family {
    let first = pairs.first();
    first.map_or(Family::V4, |pair| Family::of(pair.destination))
}

/// The taps of a visit, which each router gets as it needs them.
fn taps(terms: &Terms, family: Family, tags: TagSpace, catalogue: &Catalogue) -> Taps {
    let services = (catalogue.len(), catalogue.runs().clone());
    Taps {
        pass_on: terms.pass_on.is_some(),
        ..Taps::new(terms.run_id.clone(), family, tags, services)
    }
}

/// The same for probes of a router itself.
fn of_itself(taps: &Taps) -> Taps {
    Taps {
        from_itself: true,
        ..taps.clone()
    }
}

fn this_process() -> Result<Owner, QuickError> {
    Owner::current().map_err(|source| QuickError::System {
        what: "tell who this process is",
        source,
    })
}

/// What the routers of a lab rewrite that probes do not carry to the next one.
fn rewritten(lab: &Lab) -> Rewritten {
    Rewritten::of(lab.routers.iter().flat_map(|router| {
        let texts = router.rewriting.iter();
        texts.map(|text| (router.name.as_str(), text.as_str()))
    }))
}

/// The rules of a lab's routers that choose source ports, as text.
fn choosing(lab: &Lab) -> Vec<(RouterName, Vec<String>)> {
    let routers = lab.routers.iter();
    let texts = routers.map(|r| (r.name.clone(), PortRules::texts(r).cloned().collect()));
    texts
        .filter(|(_, texts): &(_, Vec<String>)| !texts.is_empty())
        .collect()
}

impl Plan {
    /// The plan for all services of all `pairs`, which are of one family: each is a question of its
    /// own, with an index of its own.
    pub(super) fn new(
        terms: &Terms,
        pairs: &[Pair],
        lab: &Lab,
        (config, grant): (&Config, &Grant),
    ) -> Result<Self, QuickError> {
        let (catalogue, pair_of, begins) = questions(pairs);
        let family = family(pairs);
        let seed = terms.pass_on.map_or_else(random, Ok)?;
        let tags = TagSpace::new(Dscp::DEFAULT, seed);
        let taps = taps(terms, family, tags, &catalogue);
        let source_port = terms.source_port.map_or_else(fresh_port, Ok)?;
        let options_open = lab.routers.iter().any(|r| r.rewrites_tcp_options);
        let probe = |index: u32| {
            let service = catalogue.service(index)?;
            let pair = pairs.get(*pair_of.get(index as usize)? as usize)?;
            let headers = Headers {
                source: pair.source,
                destination: pair.destination,
                protocol: service.protocol,
                source_port,
                destination_port: service.port,
                tos: terms.probe_dscp.tos(),
                ttl: TTL,
                size: terms.size,
                options_open,
                chosen: None,
            };
            Some(Probe { index, headers })
        };
        let probes = (0..catalogue.len()).filter_map(probe).collect();
        Ok(Self {
            backend: Backend::Nft,
            explain: terms.explain,
            most: (EXPLAIN_AUTO_MAX, EXPLAIN_AUTO_MAX),
            tools: Tools::new(config.tool_dirs.clone()),
            shelf: lazy_shelf(config, lab),
            plain: OnceLock::new(),
            owner: OwnerMark::from(&this_process()?),
            notes: grant.notes(terms),
            patience: terms.lock_timeout,
            kept: Mutex::new(None),
            workers: AtomicUsize::new(0),
            own_taps: of_itself(&taps),
            taps,
            seed,
            any_port: terms.source_port.is_none(),
            rewritten: rewritten(lab),
            choosing: choosing(lab),
            copies: Copies::within(lab),
            probes,
            catalogue,
            pair_of,
            begins,
        })
    }

    /// Probes carry the DSCP value that the job holds; it does before it sends any.
    pub(super) fn mark_with(&mut self, dscp: Dscp) {
        let tags = TagSpace::new(dscp, self.seed);
        self.taps.tags = tags;
        self.own_taps.tags = tags;
    }

    /// The DSCP value that probes carry.
    pub(super) fn dscp(&self) -> Dscp {
        self.taps.tags.dscp()
    }

    /// In a burst of `many`, reasons of a few blocked services are enough for a start. But nobody reads
    /// how many were left out that got through, so none is.
    pub(super) fn of_many(self, many: bool) -> Self {
        let most = match many {
            true => (EXPLAIN_IN_BURST, usize::MAX),
            false => self.most,
        };
        Self { most, ..self }
    }

    /// The number of the pair that the probe `index` is of.
    pub(super) fn pair_of(&self, index: u32) -> usize {
        self.pair_of
            .get(index as usize)
            .map_or(0, |&pair| pair as usize)
    }

    /// The first probe of the pair with this number.
    pub(super) fn first_of(&self, pair: usize) -> Option<&Probe> {
        let index = *self
            .catalogue
            .in_order_asked()
            .get(*self.begins.get(pair)?)?;
        (self.pair_of(index) == pair).then(|| self.probes.get(index as usize))?
    }

    /// Chooses the back end by what the kernel shows in `router`, the first that is measured.
    pub(super) fn choose(
        &mut self,
        choice: BackendChoice,
        router: Option<&Arc<NetnsFd>>,
    ) -> Result<(), QuickError> {
        let Some(netns) = router else { return Ok(()) };
        let mut kept = None;
        self.backend = choose(choice, |backend| {
            let site = TapSite {
                netns,
                tools: &self.tools,
                owner: &self.owner,
                notes: None,
                patience: self.patience,
            };
            feature::probe(backend, self.taps.family, site, &mut kept)
        })?;
        let kept = kept.filter(|_| self.backend == Backend::Nft);
        self.kept = Mutex::new(kept.map(|socket| (netns.id(), socket)));
        Ok(())
    }

    /// Makes every visit, at as many routers at once as there are processors. The first failure ends
    /// the job; what is being measured then is finished and undone.
    pub(super) fn measure_all(
        &self,
        visits: &[Visit],
        dir: &NetnsDir,
    ) -> Result<Vec<VisitResult>, QuickError> {
        let routers = by_router(visits);
        let next = AtomicUsize::new(0);
        let answers = Mutex::new(BTreeMap::new());
        let work = || {
            self.workers.fetch_add(1, Ordering::Relaxed);
            while let Some(numbers) = routers.get(next.fetch_add(1, Ordering::Relaxed)) {
                for &number in numbers {
                    let Some(visit) = visits.get(number) else {
                        continue;
                    };
                    let answer = self.measure(visit, dir);
                    if answer.is_err() {
                        next.store(routers.len(), Ordering::Relaxed);
                    }
                    answers
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(number, answer);
                }
            }
            self.workers.fetch_sub(1, Ordering::Relaxed);
        };
        match routers.len() {
            0 | 1 => work(),
            routers => thread::scope(|scope| {
                // One worker is this thread.
                (1..processors::count().min(routers)).for_each(|_| _ = scope.spawn(work));
                work();
            }),
        }
        let answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        answers.into_values().collect()
    }

    /// Makes one visit.
    pub(super) fn measure(&self, visit: &Visit, dir: &NetnsDir) -> Result<VisitResult, QuickError> {
        let host = match &visit.from {
            Ok(Sender::Host(name)) => Some(dir.open(name)?),
            Ok(Sender::Itself(_)) if self.backend != Backend::Nft => {
                let why = "what a router sends itself is measured by the nft back end only";
                return Ok(VisitResult::Unmeasured(why.to_owned()));
            }
            Ok(Sender::Wire(_) | Sender::Itself(_)) => None,
            Err(why) => return Ok(VisitResult::Unmeasured(why.clone())),
        };
        let from = match (&visit.from, &host) {
            (Ok(Sender::Wire(socket)), _) => measure::From::Wire(socket.clone()),
            (Ok(Sender::Itself(source)), _) => measure::From::Itself(*source),
            (_, Some(host)) => measure::From::Host(host),
            _ => return Ok(VisitResult::Unmeasured("there is no sender".to_owned())),
        };
        let notes = self.notes_about(visit);
        let rewritten = self.rewritten_before(&visit.probes);
        let question = self.question(visit, notes.as_ref(), &rewritten);
        let kept = self.kept.lock();
        let kept = kept.unwrap_or_else(PoisonError::into_inner);
        let kept = { kept }.take_if(|(at, _)| *at == visit.netns.id());
        let kept = kept.map(|(_, socket)| socket);
        let mut probing = Probing::open(question, &visit.netns, from, kept)?;
        let mut census = probing.census()?;
        census.volatile |= census.asks_sender && matches!(visit.from, Ok(Sender::Itself(_)));
        let nature = probing.nature(&census);
        let _listening = match census.nature.proxies {
            true => self.stand_in(visit)?,
            false => None,
        };
        // What the iptables back ends note costs them nothing.
        let note_ways = nature.changes || self.backend != Backend::Nft;
        let indexes: Vec<u32> = visit.probes.iter().map(|probe| probe.index).collect();
        let measured = probing.measure(&indexes, note_ways)?;
        let mut measurement = self.explained(visit, probing, (census, nature), measured)?;
        if !visit.copied && !dir.is(visit.netns.name(), &visit.netns) {
            let what = "the router was rebuilt or removed during the measurement";
            measurement.doubts.push(what.to_owned());
        }
        Ok(VisitResult::Measured(Box::new(measurement)))
    }

    /// Adds to what was measured why probes were stopped, and where chance sends them.
    fn explained(
        &self,
        visit: &Visit,
        mut probing: Probing<'_>,
        (census, nature): (Census, Nature),
        mut measured: RouterMeasured,
    ) -> Result<VisitMeasurement, QuickError> {
        let mut findings = measured.findings;
        let unsent = match &visit.from {
            Ok(Sender::Itself(_)) => unsent(&mut findings),
            _ => BTreeMap::new(),
        };
        let mut closing = Vec::new();
        let begin = Instant::now();
        let scrutiny = probing.scrutiny(census, &findings);
        let asked = self.worth_explaining(&visit.probes, &findings, &scrutiny);
        let explained = self.reasons(visit, &mut probing, &asked, &scrutiny, &mut closing)?;
        let mut taken = BTreeMap::new();
        let proxied = proxied(&explained, &visit.probes);
        if !proxied.is_empty() {
            let before = (&mut findings, &mut measured.ways);
            taken = self.proxied(visit, &mut probing, &proxied, before)?;
        }
        let urn = Urn {
            taps: self.taps_of(visit),
            probes: &visit.probes,
            any_port: self.any_port,
        };
        let ways = measured.ways.as_ref();
        let mut lots = urn.draw(&mut probing, &explained.reasons, (&findings, ways))?;
        let explain = begin.elapsed();
        closing.extend(probing.into_closing());
        // What was found out later goes before what the trace told.
        let mut reasons = self.told(visit, &explained, &findings);
        reasons.extend(unsent);
        reasons.extend(taken);
        reasons.extend(self.unlooked(visit, &asked, &scrutiny));
        let targets = std::mem::take(&mut lots.targets);
        lots.tell(&mut reasons);
        let mut doubts = measured.doubts;
        doubts.extend(explained.warnings);
        doubts.extend(asked.left_out);
        Ok(VisitMeasurement {
            findings,
            reasons,
            ways: measured.ways,
            targets,
            nature,
            doubts,
            owned: measured.owned,
            spent: Spent {
                explain,
                ..measured.spent
            },
            closing,
        })
    }

    /// What the traces tell of each probe.
    fn told(
        &self,
        visit: &Visit,
        explained: &Explanation,
        findings: &Findings,
    ) -> BTreeMap<u32, (Verdict, String)> {
        let told = explained.reasons.iter().filter_map(|e| {
            let told = conclude(findings.get(e.index)?, e)?;
            let told = self.of_long_segment(e).unwrap_or(told);
            let probe = position(&visit.probes, e.index, |p| p.index);
            let probe = probe.and_then(|at| visit.probes.get(at));
            let copied = probe.and_then(|p| self.copies.told(&p.headers, e, &told));
            Some((e.index, copied.unwrap_or(told)))
        });
        told.collect()
    }

    /// The reasons of the probes that are looked at more closely.
    fn reasons(
        &self,
        visit: &Visit,
        probing: &mut Probing<'_>,
        asked: &Asked,
        scrutiny: &Scrutiny,
        closing: &mut Vec<QuickClosing>,
    ) -> Result<Explanation, QuickError> {
        if asked.probes.is_empty() {
            return Ok(Explanation::default());
        }
        // A copy of a router is gone with the job.
        let shelf = (!visit.copied).then(|| LazyLock::force(&self.shelf).clone());
        let mut explainer = Explainer::new(self.tools.clone()).beside(shelf.flatten());
        let explained = self.explain(&mut explainer, visit, probing, &asked.probes, scrutiny);
        closing.push(QuickClosing::Explainer(explainer));
        explained
    }

    /// Takes the place of the programs that nft's tproxy would hand packets to: without them it lets
    /// packets go on, as they never do where a proxy listens.
    fn stand_in(&self, visit: &Visit) -> Result<Option<StandIns>, QuickError> {
        let list = || self.tools.run("nft", &["-s", "list", "ruleset"], &[]);
        let Ok(printed) = visit.netns.enter(list)? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&printed.stdout);
        let proxied = text
            .lines()
            .filter_map(|line| Rule::of(line.trim()).proxied_to());
        let ports: BTreeSet<u16> = proxied.flatten().collect();
        let both = |port: u16| [(Protocol::Tcp, port), (Protocol::Udp, port)];
        let ports = ports.into_iter().flat_map(both).collect();
        Ok(StandIns::open(&visit.netns, self.taps.family, &ports)?.ok())
    }

    /// Measures probes again that a rule of TPROXY wants to hand to a program of the router, while
    /// sockets take that program's place. Returns what is to be said of them.
    fn proxied(
        &self,
        visit: &Visit,
        probing: &mut Probing<'_>,
        proxied: &BTreeMap<u32, Proxied>,
        (findings, ways): (&mut Findings, &mut Option<ProbeWays>),
    ) -> Result<BTreeMap<u32, (Verdict, String)>, QuickError> {
        let ports: BTreeSet<(Protocol, u16)> = proxied.values().map(|p| p.listener).collect();
        let family = self.taps.family;
        let indexes: Vec<u32> = proxied.keys().copied().collect();
        let measured = match StandIns::open(&visit.netns, family, &ports)? {
            Ok(_listening) => {
                let again = probing.measure(&indexes, ways.is_some())?;
                if let (Some(ways), Some(other)) = (ways.as_mut(), &again.ways) {
                    ways.correct(other, indexes.iter().copied());
                }
                again.findings
            }
            Err(_) => Findings::default(),
        };
        let one = |(&index, proxied): (&u32, &Proxied)| {
            let (protocol, port) = proxied.listener;
            let rule = &proxied.rule;
            let taken = format!("taken by TPROXY to port {port}/{protocol} by {rule}");
            let told = match measured.get(index) {
                // That it ends there is said with where it went.
                Some(Finding::Delivered) => (Verdict::Yes, taken),
                Some(Finding::Stopped) => (
                    Verdict::No,
                    format!(
                        "dropped by {rule}, where no program listens on port {port}/{protocol}, and \
                         behind it where one does"
                    ),
                ),
                _ => (
                    Verdict::Unknown,
                    format!("{ENDS_HERE}, {taken}; what becomes of it there is not known"),
                ),
            };
            (index, told)
        };
        let told = proxied.iter().map(one).collect();
        findings.take_over(measured);
        Ok(told)
    }

    /// What to say of a probe of TCP that is longer than a link takes.
    fn of_long_segment(&self, explained: &explain::Explained) -> Option<(Verdict, String)> {
        let explain::Reason::Outside(too_big @ OutsideReason::TooBig { .. }) = &explained.reason
        else {
            return None;
        };
        let service = self.catalogue.service(explained.index)?;
        (service.protocol == Protocol::Tcp).then(|| too_long(Protocol::Tcp, too_big))
    }

    /// The blocked services, whose reasons are to be found, and the others, where the router has
    /// something that makes a plain YES doubtful.
    fn worth_explaining(&self, all: &[Probe], findings: &Findings, scrutiny: &Scrutiny) -> Asked {
        let (most_blocked, most_passed) = match self.explain {
            ExplainMode::Never => (0, 0),
            ExplainMode::Auto => self.most,
            ExplainMode::Always => (usize::MAX, usize::MAX),
        };
        let (mut blocked, mut passed) = (0, 0);
        let (mut probes, mut unlooked, mut stopped) = (Vec::new(), Vec::new(), Vec::new());
        for (index, finding) in findings.iter() {
            let (count, most, left) = match finding {
                Finding::Stopped | Finding::NotArrived => {
                    (&mut blocked, most_blocked, &mut stopped)
                }
                Finding::Passed | Finding::Delivered if scrutiny.is_needed() => {
                    (&mut passed, most_passed, &mut unlooked)
                }
                _ => continue,
            };
            *count += 1;
            let probe = position(all, index, |p| p.index).and_then(|at| all.get(at));
            let to = if *count <= most { &mut probes } else { left };
            to.extend(probe);
        }
        let left_out = (blocked > most_blocked).then(|| match most_blocked {
            // Said once of a whole sweep, and not of each burst with its own numbers.
            EXPLAIN_IN_BURST => {
                "not all blocked services were explained; --explain always takes all".to_owned()
            }
            most => format!(
                "only {most} of {blocked} blocked services were explained; --explain always takes \
                 all"
            ),
        });
        Asked {
            probes,
            unlooked,
            stopped,
            left_out: left_out.filter(|_| self.explain != ExplainMode::Never),
        }
    }

    /// What to say of probes that were not looked at more closely.
    fn unlooked(
        &self,
        visit: &Visit,
        asked: &Asked,
        scrutiny: &Scrutiny,
    ) -> BTreeMap<u32, (Verdict, String)> {
        if asked.unlooked.is_empty() && asked.stopped.is_empty() {
            return BTreeMap::new();
        }
        let came_by = visit.at.iface_in.as_ref();
        let choosing = self.choosing_at(&visit.at.router);
        let passed = asked.unlooked.iter().filter_map(|probe| {
            let mut ports = self.ports_at(&choosing, &probe.headers);
            let why = ports.find_map(|ports| scrutiny.left_open(&probe.headers, came_by, ports))?;
            Some((probe.index, (Verdict::Unknown, why)))
        });
        let stopped = asked.stopped.iter().filter_map(|probe| {
            let mut ports = self.ports_at(&choosing, &probe.headers);
            let why = ports.find_map(|ports| scrutiny.stopped_by_more(&probe.headers, ports))?;
            Some((probe.index, (Verdict::Unknown, why)))
        });
        passed.chain(stopped).collect()
    }

    /// The rules of a router that choose source ports.
    fn choosing_at(&self, router: &RouterName) -> PortRules {
        let here = self.choosing.iter().find(|(name, _)| name == router);
        PortRules::of_texts(here.into_iter().flat_map(|(_, texts)| texts))
    }

    /// Which source ports a probe may have had as well, as it comes and behind rules of the router itself
    /// that choose one.
    fn ports_at(&self, choosing: &PortRules, headers: &Headers) -> impl Iterator<Item = OpenPorts> {
        let packet = Packet::of(Family::of(headers.destination))
            .with(Field::Protocol, headers.protocol.number());
        let here = choosing.for_packet(&packet);
        let here = here.map(|ports| ports.open(headers.source_port, self.any_port));
        std::iter::once(headers.open_ports(self.any_port)).chain(here)
    }

    /// Explains probes, those together whose source ports are open alike: rules are read for these.
    fn explain(
        &self,
        explainer: &mut Explainer,
        visit: &Visit,
        probing: &mut Probing<'_>,
        probes: &[Probe],
        scrutiny: &Scrutiny,
    ) -> Result<Explanation, QuickError> {
        let ports = |probe: &Probe| probe.headers.open_ports(self.any_port);
        let mut kinds: Vec<OpenPorts> = Vec::new();
        for probe in probes {
            if kinds.last() != Some(&ports(probe)) && !kinds.contains(&ports(probe)) {
                kinds.push(ports(probe));
            }
        }
        let mut all = Explanation::default();
        for kind in kinds {
            let some: Vec<Probe> = probes
                .iter()
                .filter(|p| ports(p) == kind)
                .copied()
                .collect();
            let found = self.explain_alike(explainer, visit, probing, (&some, kind), scrutiny)?;
            all.reasons.extend(found.reasons);
            all.warnings.extend(found.warnings);
        }
        all.reasons.sort_by_key(|explained| explained.index);
        Ok(all)
    }

    fn explain_alike(
        &self,
        explainer: &mut Explainer,
        visit: &Visit,
        probing: &mut Probing<'_>,
        (probes, open_ports): (&[Probe], OpenPorts),
        scrutiny: &Scrutiny,
    ) -> Result<Explanation, QuickError> {
        step("quick.explain")?;
        let (asked, router) = (probes.len(), &visit.at.router);
        tracing::info!(target: PHASE, "explaining {asked} services at {router}");
        let notes = self.notes_about(visit);
        let rewritten = self.rewritten_before(probes);
        let question = explain::ExplainQuestion {
            notes: notes.as_ref(),
            patience: self.patience,
            netns: &visit.netns,
            run_id: &self.taps.run_id,
            tags: self.taps.tags,
            from_itself: matches!(visit.from, Ok(Sender::Itself(_))),
            ingress: visit.at.iface_in.as_ref(),
            probes,
            scrutiny,
            open_ports,
            rewritten: &rewritten,
            pass_on: self.taps.pass_on,
        };
        // Probes that went on left connections, whose later packets no nat rule is asked about.
        let again = u16::from(self.taps.pass_on && self.any_port);
        let mut sendings = 0;
        let mut looked_into = 0;
        let mut sockets = probing.lend();
        let sender = &*probing;
        let mut send = |indexes: &[u32]| {
            looked_into = asked.min(looked_into + indexes.len());
            tracing::trace!(target: PHASE, done = looked_into as u64, total = asked as u64);
            sendings += again;
            match sender.send_again(indexes, sendings).into_values().next() {
                None => Ok(()),
                Some(why) => Err(io::Error::other(why)),
            }
        };
        let explained = match &mut sockets {
            // The iptables back ends have none.
            None => explainer.explain(&question, &mut send),
            lent => explainer.explain_by(&question, lent, &mut send),
        };
        probing.take_back(sockets);
        explained.map_err(|source| QuickError::Explain {
            router: visit.netns.name().to_string(),
            source,
        })
    }

    /// What routers may have rewritten of these probes on their way: each takes one from the TTL.
    fn rewritten_before(&self, probes: &[Probe]) -> Rewritten {
        let passed = probes.iter().filter(|probe| probe.headers.ttl != TTL);
        self.rewritten.of_packets(passed.map(|probe| {
            let sent = self.probes.get(probe.index as usize);
            let headers = [Some(&probe.headers), sent.map(|sent| &sent.headers)];
            let packet = Packet::of(Family::of(probe.headers.destination))
                .with(Field::Protocol, probe.headers.protocol.number());
            let headers = headers.into_iter().flatten();
            headers.fold(packet, |packet, headers| {
                packet.with(Field::DestinationPort, headers.destination_port)
            })
        }))
    }

    fn taps_of(&self, visit: &Visit) -> &Taps {
        match &visit.from {
            Ok(Sender::Itself(_)) => &self.own_taps,
            _ => &self.taps,
        }
    }

    /// Where taps and settings are noted that outlive the job: a copy of a router does not.
    fn notes_about(&self, visit: &Visit) -> Option<Arc<dyn Notebook>> {
        let notes = self.notes.as_ref().filter(|_| !visit.copied)?;
        Some(notes.about(&visit.at.router, &visit.netns))
    }

    /// The rulesets that need no census.
    fn plain(&self, visit: &Visit) -> Option<&PlainRulesets> {
        if visit.copied || self.backend != Backend::Nft {
            return None;
        }
        let beside = || PlainRulesets::beside(LazyLock::force(&self.shelf).as_deref()?);
        self.plain.get_or_init(beside).as_ref()
    }

    fn question<'a>(
        &'a self,
        visit: &'a Visit,
        notes: Option<&'a Arc<dyn Notebook>>,
        rewritten: &'a Rewritten,
    ) -> ProbeQuestion<'a> {
        ProbeQuestion {
            taps: self.taps_of(visit),
            probes: &visit.probes,
            backend: self.backend,
            tools: &self.tools,
            shelf: (!visit.copied).then_some(&self.shelf),
            plain: self.plain(visit),
            owner: &self.owner,
            notes,
            patience: self.patience,
            rewritten,
            workers: &self.workers,
        }
    }
}

/// A probe that a rule of TPROXY hands to a program of the router.
struct Proxied {
    /// Where the program listens.
    listener: (Protocol, u16),
    rule: RuleText,
}

/// The probes that such rules stopped, for want of a listener.
fn proxied(explained: &Explanation, probes: &[Probe]) -> BTreeMap<u32, Proxied> {
    let one = |explained: &explain::Explained| {
        let explain::Reason::Rule { rule, .. } = &explained.reason else {
            return None;
        };
        let port = rule.parsed().proxied_to()?;
        let at = position(probes, explained.index, |p| p.index)?;
        let headers = probes.get(at)?.headers;
        let proxied = Proxied {
            // Without a port of its own it is the packet's.
            listener: (
                headers.protocol,
                port.filter(|port| *port > 0)
                    .unwrap_or(headers.destination_port),
            ),
            rule: rule.clone(),
        };
        Some((explained.index, proxied))
    };
    explained.reasons.iter().filter_map(one).collect()
}

/// Probes that a router could not send itself: no route leads to where they go, or one that ends
/// them. Returns why, and leaves them out of what is looked into.
fn unsent(findings: &mut Findings) -> BTreeMap<u32, (Verdict, String)> {
    let refused = findings
        .iter()
        .filter_map(|(index, finding)| match finding {
            Finding::NotSent(why) => Some((index, (Verdict::No, why.clone()))),
            _ => None,
        });
    let refused: BTreeMap<u32, (Verdict, String)> = refused.collect();
    for index in refused.keys() {
        findings.correct(*index, Finding::Refused);
    }
    refused
}

/// The numbers of the visits at each router: one is made after the other there.
fn by_router(visits: &[Visit]) -> Vec<Vec<usize>> {
    let mut routers: Vec<(&RouterName, Vec<usize>)> = Vec::new();
    for (number, visit) in visits.iter().enumerate() {
        let router = &visit.at.router;
        match routers.iter_mut().find(|(known, _)| *known == router) {
            Some((_, numbers)) => numbers.push(number),
            None => routers.push((router, vec![number])),
        }
    }
    routers.into_iter().map(|(_, numbers)| numbers).collect()
}
