//! The second pass over blocked services: why each was stopped.
//!
//! Each blocked probe is sent once more while its way through the router's chains is traced. A
//! rule or a policy that ended it is the reason. One that was lost at a hook without a trace there
//! is sent again while iptables-legacy reports what its rules do. One that was lost between hooks is
//! sent again, alone, while the router's counters are watched, and judged by look-ups and settings.

mod follow;
mod legacy;
mod lost;
mod read;
mod reason;

use std::{collections::HashMap, io};

use thiserror::Error;

pub use self::reason::{Action, Explained, Reason};
use self::{follow::follow, legacy::Legacy, lost::Lost, read::Reader};
use crate::{
    firewall::{
        nft::{
            NftError, generation,
            trace::{TraceSockets, TraceSpec, Tracer},
            watch::{Changes, RulesetWatch},
        },
        ruletext::{RuleBook, Source},
    },
    model::{IfName, RunId, Service},
    netlink::{NetlinkError, object::Family},
    netns::{NetnsError, NetnsFd, NetnsId, tool::Tools},
    run::packet::ProbeSpec,
};

/// What is to be explained.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The router.
    pub netns: &'a NetnsFd,
    /// The job.
    pub run_id: &'a RunId,
    /// What its probes look like.
    pub probe: &'a ProbeSpec,
    /// The router's interface by which they come in, where it is known.
    pub ingress: Option<&'a IfName>,
    /// The blocked services with their indexes.
    pub blocked: &'a [(u32, Service)],
}

/// The reasons, and what in them does not add up.
#[derive(Debug, Default)]
pub struct Explanation {
    /// One entry per blocked service, in the order of the question.
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
    /// Books with the generation at which each is right.
    books: HashMap<NetnsId, (u32, RuleBook)>,
    closing: Vec<(TraceSockets, RulesetWatch)>,
}

impl Explainer {
    /// Rules are printed by `tools`.
    #[must_use]
    pub fn new(tools: Tools) -> Self {
        Self {
            tools,
            books: HashMap::new(),
            closing: Vec::new(),
        }
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
        question: &Question<'_>,
        send: &mut SendAgain<'_>,
    ) -> Result<Explanation, ExplainError> {
        if question.blocked.is_empty() {
            return Ok(Explanation::default());
        }
        let open = || Ok::<_, NftError>((TraceSockets::open_here()?, RulesetWatch::open_here()?));
        let (mut sockets, mut watch) = question.netns.enter(open)??;
        let before = generation(sockets.control())?;
        let mut tracer = Tracer::start(sockets, &trace_spec(question))?;
        let explained = self
            .with_tracer(question, &mut tracer, before, send)
            .and_then(|mut explanation| {
                match watch.changes()? {
                    Changes::None => {}
                    changes => explanation.warnings.push(format!(
                        "{changes} changed while blocked services were explained"
                    )),
                }
                Ok(explanation)
            });
        let (sockets, stopped) = tracer.stop();
        self.closing.push((sockets, watch));
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
        question: &Question<'_>,
        tracer: &mut Tracer,
        before: u32,
        send: &mut SendAgain<'_>,
    ) -> Result<Explanation, ExplainError> {
        let indexes: Vec<u32> = question.blocked.iter().map(|(index, _)| *index).collect();
        let mut followed = follow(tracer, &indexes, send)?;
        let outside = Lost::new(question)?.explain(tracer, &mut followed, send)?;
        let mut legacy = Legacy::follow(question, &self.tools, tracer, &followed, send)?;
        let mut reader = Reader::new(
            self.book(question.netns, before),
            Source {
                netns: question.netns,
                tools: &self.tools,
                socket: tracer.control(),
            },
        );
        let one = |(index, service): &_| reader.explained(*index, *service, &followed, &outside);
        let mut reasons: Vec<Explained> =
            question.blocked.iter().map(one).collect::<Result<_, _>>()?;
        for explained in &mut reasons {
            legacy.improve(question, explained);
        }
        let (book, mut warnings) = reader.finish();
        warnings.extend(legacy.warning());
        // If installing the trace was the only change, what was read stays right; removing it will
        // be the next one.
        let now = generation(tracer.control())?;
        if now == before.wrapping_add(1) {
            let settled = now.wrapping_add(1);
            self.books.insert(question.netns.id(), (settled, book));
        }
        Ok(Explanation { reasons, warnings })
    }

    /// The book of a router if its ruleset has not changed since, or a new one.
    fn book(&mut self, netns: &NetnsFd, generation: u32) -> RuleBook {
        match self.books.remove(&netns.id()) {
            Some((settled, book)) if settled == generation => book,
            _ => RuleBook::new(),
        }
    }
}

fn trace_spec(question: &Question<'_>) -> TraceSpec {
    TraceSpec {
        run_id: question.run_id.clone(),
        family: Family::of(question.probe.destination),
        tags: question.probe.tags,
        ingress: question.ingress.cloned(),
    }
}
