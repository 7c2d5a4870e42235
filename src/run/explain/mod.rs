//! The second pass over blocked services: why each was stopped.
//!
//! Each blocked probe is sent once more while its way through the router's chains is traced. A
//! rule or a policy that ended it is the reason. One that was lost at a hook without a trace there
//! is sent again while iptables-legacy reports what its rules do. One that was lost between hooks is
//! sent again, alone, while the router's counters are watched, and judged by look-ups and settings.

mod behind;
mod crowd;
mod doubt;
mod follow;
mod legacy;
mod lost;
mod patience;
mod read;
mod reason;
mod taken;
mod watched;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
    time::Duration,
};

use netlink_sys::Socket;
use thiserror::Error;

pub(in crate::run) use self::reason::notes;
pub use self::reason::{Doubt, EndingAction, Explained, Lots, Reason};
pub(in crate::run) use self::watched::{Watched, WatchedSets, by_open_port, proxy, varies};
use self::{
    behind::behind,
    crowd::Tracing,
    doubt::{RouterRules, SeenProbe},
    follow::{Followed, follow},
    legacy::LegacyReports,
    lost::Lost,
    patience::wait_and_send,
    read::RuleReader,
    taken::perhaps_taken,
};
use crate::{
    firewall::{
        Notebook, RulePlace, TagSpace,
        nft::{
            NftError, NftSocket,
            census::{Census, LaterChain},
            generation,
            trace::{TraceSockets, TraceSpec, Tracer, turn::TraceTurn},
            watch::{RulesetChanges, RulesetWatch},
        },
        place::HookPoint,
        rule::{Field, OpenPorts, Packet, Rewritten, Rule},
        ruletext::{RuleBook, RuleSource, Shelf},
    },
    model::{IfName, Protocol, RunId},
    netlink::{NetlinkError, object::Family},
    netns::{NetnsError, NetnsFd, NetnsId, tool::Tools, visit},
    run::{
        outside::OutsideReason,
        packet::{Headers, Probe},
    },
};

/// How long to let other jobs trace first on a router: 32 that explain a hundred services each are
/// done in a fraction of it. Whose events then find no room beside theirs waits once more.
const TURN_PATIENCE: Duration = Duration::from_secs(1);

/// What is to be explained.
#[derive(Debug, Clone, Copy)]
pub struct ExplainQuestion<'a> {
    /// The router.
    pub netns: &'a NetnsFd,
    /// The job.
    pub run_id: &'a RunId,
    /// The job's tags.
    pub tags: TagSpace,
    /// The router's interface by which they come in, where it is known.
    pub ingress: Option<&'a IfName>,
    /// The probes as they come to the router: blocked ones, and where [`Scrutiny`] asks for it
    /// others, of one family and in ascending order of their indexes.
    pub probes: &'a [Probe],
    /// What makes the measurement of the others doubtful.
    pub scrutiny: &'a Scrutiny,
    /// The router itself sends the probes.
    pub from_itself: bool,
    /// Which source ports the probes may have had as well.
    pub open_ports: OpenPorts,
    /// What other routers may have rewritten of them.
    pub rewritten: &'a Rewritten,
    /// Let probes go on behind the last chain, as [`Taps::pass_on`](crate::firewall::Taps::pass_on).
    pub pass_on: bool,
    /// Where what a trace sets is noted; none where the router goes with the job.
    pub notes: Option<&'a Arc<dyn Notebook>>,
    /// How long to wait while another job traces in the router's iptables, and for others whose events leave no
    /// room for this one's.
    pub patience: Duration,
}

impl ExplainQuestion<'_> {
    /// The family of the probes.
    fn family(&self) -> Family {
        let first = self.probes.first();
        first.map_or(Family::V4, |probe| Family::of(probe.headers.destination))
    }

    /// The protocols of the probes.
    fn protocols(&self) -> Vec<Protocol> {
        let all = self.probes.iter().map(|probe| probe.headers.protocol);
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The headers with which a probe comes to the router.
    fn headers(&self, index: u32) -> Option<&Headers> {
        let at = self
            .probes
            .binary_search_by_key(&index, |probe| probe.index);
        Some(&self.probes.get(at.ok()?)?.headers)
    }
}

/// Why services that were not blocked are looked at as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrutiny {
    /// What nf_tables has.
    pub census: Census,
    /// Rules of nf_tables that may do otherwise with the next packet, also where nothing got through.
    pub varying: Vec<(Option<RulePlace>, Rule)>,
    /// Whether iptables-legacy has a rule that decides by more than the packet.
    pub legacy: bool,
    /// Whether all probes came past the chains before IP, and there are none that decide about them: then
    /// nothing there is traced.
    pub past_ingress: bool,
}

impl Scrutiny {
    /// Whether there is a reason to look at all.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.legacy || self.census.volatile || !self.census.behind.is_empty()
    }

    /// What may make a probe end otherwise that got through and was not looked at more closely, having
    /// come in with these headers by `ingress`; `ports` are those that it may have had as well.
    #[must_use]
    pub fn left_open(
        &self,
        headers: &Headers,
        ingress: Option<&IfName>,
        ports: OpenPorts,
    ) -> Option<String> {
        let here = |chain: &&LaterChain| match &chain.devices {
            Some(devices) if chain.hook == HookPoint::Ingress => {
                ingress.is_none_or(|ingress| devices.iter().any(|name| name == ingress.as_str()))
            }
            _ => true,
        };
        let chain = || {
            let LaterChain { place, .. } = self.census.behind.iter().find(here)?;
            Some(format!("chain {} (table {})", place.chain, place.table))
        };
        let sets = || {
            let what = "rules that ask for what others put into sets";
            self.census.asks_changed_sets.then(|| what.to_owned())
        };
        let legacy = || self.legacy.then(|| "rules of iptables-legacy".to_owned());
        let rule = self.rule_of(headers, ports, Rule::copies);
        let what = rule.or_else(chain).or_else(sets).or_else(legacy)?;
        Some(format!(
            "it got through, and was not held against {what}: --explain always does that"
        ))
    }

    /// The same of a probe that was stopped: by a rate that this job's own burst used up, for example, or
    /// by a rule that took it, which is no end where it answers in the server's place.
    #[must_use]
    pub fn stopped_by_more(&self, headers: &Headers, ports: OpenPorts) -> Option<String> {
        let legacy = || self.legacy.then(|| "rules of iptables-legacy".to_owned());
        let what = self
            .rule_of(headers, ports, Rule::leaves_to_others)
            .or_else(legacy)?;
        Some(format!(
            "it was stopped, and was not held against {what}: --explain always does that"
        ))
    }

    /// A rule that may do otherwise with the next packet like this one, or does what `more` says.
    fn rule_of(
        &self,
        headers: &Headers,
        ports: OpenPorts,
        more: impl Fn(&Rule) -> bool,
    ) -> Option<String> {
        let packet = match self.census.nature.changes {
            true => Packet::of(Family::of(headers.destination))
                .with(Field::Protocol, headers.protocol.number()),
            false if ports == OpenPorts::None => read::subject(headers, None),
            false => read::subject(headers, None).within(Field::SourcePort, 0, u16::MAX.into()),
        };
        let is_open = |rule: &Rule| {
            let by_port = rule.tells_ports_apart(ports) && rule.decides();
            rule.caveat().is_some() || more(rule) || by_port || *rule == Rule::unknown()
        };
        let mut rules = self.varying.iter();
        let (place, rule) = rules.find(|(_, rule)| is_open(rule) && rule.concerns(&packet))?;
        let Some(place) = place else {
            return Some("rules that change all the time".to_owned());
        };
        let why = rule.caveat().map(|caveat| format!(" ({caveat})"));
        let RulePlace {
            handle,
            chain,
            table,
            ..
        } = place;
        let why = why.unwrap_or_default();
        Some(format!(
            "the rule with handle {handle} of chain {chain} (table {table}){why}"
        ))
    }
}

/// The reasons, and what in them does not add up.
#[derive(Debug, Default)]
pub struct Explanation {
    /// One entry per service, in the order of the question.
    pub reasons: Vec<Explained>,
    /// What the reader should know beside them.
    pub warnings: Vec<String>,
}

/// Blocked services could not be explained.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// The router's namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The trace, or reading the ruleset, failed.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Look-ups failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The router's counters could not be read.
    #[error("cannot read the router's counters of discarded packets")]
    Counters(#[source] io::Error),
    /// Probes could not be sent again.
    #[error("cannot send probes again")]
    Send(#[source] io::Error),
    /// The trace could not be removed; and why it was given up, if it was.
    #[error("cannot remove the trace{}", .earlier.as_ref().map(|e| format!(", after: {e}")).unwrap_or_default())]
    Stop {
        /// Why it failed.
        #[source]
        source: NftError,
        /// What had failed before.
        earlier: Option<Box<ExplainError>>,
    },
}

/// Sends the probes of the services with these indexes again, from the router's source host, and
/// returns when they have gone their way.
pub type SendAgain<'a> = dyn FnMut(&[u32]) -> io::Result<()> + 'a;

/// Explains blocked services. Keep it for all routers of a job: it remembers what the tools printed
/// as long as a router's ruleset does not change. Closing its sockets waits for the kernel (10 to
/// 16 ms), so drop it when nobody waits any more.
#[derive(Debug)]
pub struct Explainer {
    tools: Tools,
    shelf: Option<Shelf>,
    /// Books with the generation at which each is right.
    books: HashMap<NetnsId, (u32, RuleBook)>,
    closing: Vec<Closing>,
}

/// Sockets that are left to close.
#[derive(Debug)]
#[expect(dead_code, reason = "held until nobody waits")]
enum Closing {
    Events(Socket),
    Own(NftSocket, RulesetWatch),
}

/// What talks to a router's nf_tables, and what hears of their changes.
#[derive(Debug)]
pub(in crate::run) struct RulesetSockets {
    /// For requests.
    pub(in crate::run) nft: NftSocket,
    /// Not asked for changes yet, but for those of which `changed` tells.
    pub(in crate::run) watch: RulesetWatch,
    /// Whether it has told of changes.
    pub(in crate::run) changed: bool,
}

impl RulesetSockets {
    fn open_here() -> Result<Self, NftError> {
        Ok(Self {
            nft: NftSocket::open_here()?,
            watch: RulesetWatch::open_here()?,
            changed: false,
        })
    }
}

/// The turn to trace in the namespace of the calling thread, and the sockets for it: those of the measurement,
/// or new ones.
fn take_turn(
    sockets: &mut Option<RulesetSockets>,
) -> Result<(Option<TraceTurn>, TraceSockets, RulesetWatch, bool), NftError> {
    let turn = TraceTurn::wait_here(TURN_PATIENCE);
    let mut own = match sockets.take() {
        Some(open) => open,
        None => RulesetSockets::open_here()?,
    };
    // What was changed before the first probe is sent again matters to whoever measured.
    own.changed |= own.watch.changes()? != RulesetChanges::None;
    let RulesetSockets {
        nft,
        watch,
        changed,
    } = own;
    Ok((turn, TraceSockets::beside(nft)?, watch, changed))
}

impl Explainer {
    /// Rules are printed by `tools`.
    #[must_use]
    pub fn new(tools: Tools) -> Self {
        Self {
            tools,
            shelf: None,
            books: HashMap::new(),
            closing: Vec::new(),
        }
    }

    /// Takes what tools printed for earlier jobs from `shelf`, and keeps there what they print now.
    #[must_use]
    pub fn beside(self, shelf: Option<Shelf>) -> Self {
        Self { shelf, ..self }
    }

    /// Says why the services of `question` were blocked on its router.
    ///
    /// Traced probes are counted by the job's taps as they come in, and by no tap as they go out:
    /// read the taps before.
    ///
    /// # Errors
    /// [`ExplainError`]; the router is left as it was found, unless that is what failed.
    pub fn explain(
        &mut self,
        question: &ExplainQuestion<'_>,
        send: &mut SendAgain<'_>,
    ) -> Result<Explanation, ExplainError> {
        let mut sockets = None;
        let explained = self.explain_by(question, &mut sockets, send);
        if let Some(RulesetSockets { nft, watch, .. }) = sockets {
            watch.end();
            self.closing.push(Closing::Own(nft, watch));
        }
        explained
    }

    /// As [`Explainer::explain`], by sockets that are open already, if there are any. Unless it is why nothing
    /// can be explained, they are left in their place, or those that were opened instead.
    ///
    /// # Errors
    /// As [`Explainer::explain`].
    pub(in crate::run) fn explain_by(
        &mut self,
        question: &ExplainQuestion<'_>,
        sockets: &mut Option<RulesetSockets>,
        send: &mut SendAgain<'_>,
    ) -> Result<Explanation, ExplainError> {
        if question.probes.is_empty() {
            return Ok(Explanation::default());
        }
        // What need not be done while others wait for their turn is done before.
        let lost = Lost::new(question)?;
        let opened = visit(&[question.netns], |_| take_turn(sockets))?;
        let Some(opened) = opened.into_iter().next() else {
            return Ok(Explanation::default());
        };
        let (turn, mut traced, mut watch, mut changed) = opened?;
        let before = generation(traced.control())?;
        let mut tracer = Tracer::start(traced, &trace_spec(question))?;
        let explained = self
            .with_tracer((question, lost), &mut tracer, before, send, turn)
            .and_then(|mut explanation| {
                match watch.changes()? {
                    RulesetChanges::None => {}
                    changes => {
                        changed = true;
                        explanation.warnings.push(format!(
                            "{changes} changed while blocked services were explained"
                        ));
                    }
                }
                Ok(explanation)
            });
        let (traced, stopped) = tracer.stop();
        let (nft, events) = traced.into_parts();
        self.closing.push(Closing::Events(events));
        *sockets = Some(RulesetSockets {
            nft,
            watch,
            changed,
        });
        match stopped {
            Ok(()) => explained,
            Err(source) => Err(ExplainError::Stop {
                source,
                earlier: explained.err().map(Box::new),
            }),
        }
    }

    fn with_tracer(
        &mut self,
        (question, mut lost): (&ExplainQuestion<'_>, Lost<'_>),
        tracer: &mut Tracer,
        before: u32,
        send: &mut SendAgain<'_>,
        turn: Option<TraceTurn>,
    ) -> Result<Explanation, ExplainError> {
        let indexes: Vec<u32> = question.probes.iter().map(|probe| probe.index).collect();
        let mut tracing = Tracing::new(question, tracer, send, turn);
        let mut followed = follow(&mut tracing, &indexes)?;
        let outside = lost.explain(&mut tracing, &mut followed)?;
        let tools = (&self.tools, self.shelf.as_ref());
        let legacy = LegacyReports::follow(question, tools, &mut tracing, &followed)?;
        // The tools need longer than all of this, and few probes are sent after them.
        let (tracer, send) = tracing.end_turn();
        tracer.pause();
        let found = Found {
            followed,
            outside,
            lost,
            legacy,
        };
        let book = self.book(question, before);
        let (mut reasons, book, mut warnings) =
            found.reasons(question, self.reader(question, book, tracer))?;
        let alone = wait_and_send(&reasons, tracer, send)?;
        let mut reader = self.reader(question, book, tracer);
        for explained in &mut reasons {
            if let Some(trail) = alone.get(&explained.index) {
                reader.sent_alone(explained, trail)?;
            }
        }
        let (mut book, more) = reader.finish();
        warnings.extend(more);
        book.store(&mut RuleSource {
            netns: question.netns,
            tools: &self.tools,
            socket: tracer.control(),
        });
        // If installing the trace was the only change, what was read stays right; removing it will
        // be the next one.
        let now = generation(tracer.control())?;
        if now == before.wrapping_add(1) {
            let settled = now.wrapping_add(1);
            self.books.insert(question.netns.id(), (settled, book));
        }
        let warnings = warnings.into_iter().collect();
        Ok(Explanation { reasons, warnings })
    }

    fn reader<'t>(
        &'t self,
        question: &ExplainQuestion<'t>,
        book: RuleBook,
        tracer: &'t mut Tracer,
    ) -> RuleReader<'t> {
        let source = RuleSource {
            netns: question.netns,
            tools: &self.tools,
            socket: tracer.control(),
        };
        RuleReader::new(book, source)
    }

    /// The book of a router if its ruleset has not changed since, or a new one.
    fn book(&mut self, question: &ExplainQuestion<'_>, generation: u32) -> RuleBook {
        match self.books.remove(&question.netns.id()) {
            Some((settled, book))
                if settled == generation && book.open_ports() == question.open_ports =>
            {
                book
            }
            _ => RuleBook::beside(self.shelf.clone())
                .of_open_ports(question.open_ports)
                .of_rewritten(question.rewritten)
                .of_any_sender(question.from_itself),
        }
    }
}

/// What sending the probes again showed.
struct Found<'a> {
    followed: Followed,
    outside: BTreeMap<u32, OutsideReason>,
    lost: Lost<'a>,
    legacy: LegacyReports,
}

impl Found<'_> {
    /// The reasons in the order of the question, and what the reader should know.
    fn reasons(
        mut self,
        question: &ExplainQuestion<'_>,
        mut reader: RuleReader<'_>,
    ) -> Result<(Vec<Explained>, RuleBook, BTreeSet<String>), ExplainError> {
        let chains = &question.scrutiny.census.behind;
        let mut open = question.scrutiny.varying.iter();
        let copies = open.any(|(place, rule)| place.is_none() || rule.copies());
        let mut rules = None;
        let mut reasons = Vec::with_capacity(question.probes.len());
        for probe in question.probes {
            let trail = self.followed.trails.get(&probe.index);
            let mut explained = reader.explained(probe, &self.followed, &self.outside)?;
            let came_by = question.ingress.map(IfName::as_str);
            let index = |name: &str| self.lost.index(name);
            explained.behind =
                behind(&mut reader, chains, (&probe.headers, came_by), trail, index)?;
            self.legacy.improve(question, trail, &mut explained);
            perhaps_taken(&mut reader, question, &probe.headers, trail, &mut explained)?;
            let Scrutiny { census, legacy, .. } = question.scrutiny;
            let varies = !explained.caveats.is_empty() || census.asks_changed_sets || *legacy;
            if let Some(trail) = trail.filter(|_| varies) {
                if rules.is_none() {
                    let legacy = self.legacy.rules();
                    rules = Some(RouterRules::read(&mut reader, question.family(), legacy)?);
                }
                let met = SeenProbe {
                    headers: &probe.headers,
                    ingress: question.ingress.map(IfName::as_str),
                    trail,
                    legacy: self.legacy.met(probe.index),
                    by_router: false,
                };
                if let Some(rules) = &rules {
                    let observer = self.lost.observer();
                    explained.doubt = rules.doubt(&mut reader, observer, &met, &explained)?;
                }
            }
            let stopped = matches!(
                explained.reason,
                Reason::Rule { .. } | Reason::Policy { .. }
            );
            if let Some(trail) = trail.filter(|_| stopped) {
                explained.led = self.lost.observer().led_by_mark(&trail.head)?;
                if copies {
                    explained.copied = reader.matched(trail, |_, rule| rule.copies())?;
                }
            }
            reasons.push(explained);
        }
        let (book, mut warnings) = reader.finish();
        warnings.extend(self.legacy.into_warnings());
        Ok((reasons, book, warnings))
    }
}

fn trace_spec(question: &ExplainQuestion<'_>) -> TraceSpec {
    TraceSpec {
        run_id: question.run_id.clone(),
        family: question.family(),
        tags: question.tags,
        protocols: question.protocols(),
        from_itself: question.from_itself,
        ingress: question
            .ingress
            .filter(|_| !question.scrutiny.past_ingress)
            .cloned(),
        pass_on: question.pass_on,
    }
}
