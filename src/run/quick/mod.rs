//! The quick job: which services get through which routers, in milliseconds.
//!
//! [`run`] reads as the job's phases: resolve, lease, lock, tap, probe, read, judge, explain, undo.
//! Each phase that takes something gives it back before the function returns, whatever happened in
//! between; a failure to give back is reported beside the answer.
//!
//! The answer is one from end to end: what left one router is what the next one is asked with. The
//! ways are planned by look-ups ([`course`]), measured on all planned routers side by side
//! ([`plan`], [`measure`]), read ([`digest`]) and walked ([`walk`]); a router is asked again where
//! something else comes than was planned ([`inquiry`]).

mod back;
mod branch;
mod bridges;
mod builder;
mod client_port;
mod conclude;
mod copied;
mod course;
mod desk;
mod digest;
mod grant;
mod inquiry;
mod lots;
mod measure;
mod note;
mod omission;
mod plan;
mod ports;
mod report;
mod rounds;
mod session;
mod standin;
pub mod sweep;
mod tables;
mod visit;
mod visited;
mod walk;

use std::{
    any::Any,
    fmt, io,
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::builder::Quick;
use self::{
    desk::{Burst, Desk, Lone},
    plan::Plan,
    report::Frame,
    visited::Ending,
};
pub use super::{
    builder::{QuestionError, new_run_id},
    resolve::RouterChoice,
};
use crate::{
    config::Config,
    firewall::{
        backend::{BackendChoice, ChooseError, TapsError},
        nft::{NftSocket, watch::RulesetWatch},
    },
    lab::{Lab, LabError, hosts::LabHosts, trace::EntryName},
    model::{Dscp, DscpRange, LabName, RunId, Service, WithCauses, dscp::DscpError},
    netns::NetnsError,
    registry::{KernelError, RegistryError},
    run::{
        explain::{ExplainError, Explainer},
        probe::WireSocket,
        progress::{Phase, Progress},
        report::{EndKind, QuickReport, Verdict},
        resolve::ResolveError,
        undo::UndoError,
    },
};

/// What a quick job does, with the share of its time that it usually takes.
const PHASES: &[Phase] = &[
    ("resolving", 10),
    ("waiting", 20),
    ("probing", 60),
    ("undoing", 10),
];

/// A quick job with its arguments resolved.
#[derive(Debug, Clone)]
pub struct QuickJob {
    /// Lab to measure in.
    pub lab: LabName,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Services in the order asked for, each once.
    pub services: Vec<Service>,
    /// Which routers to measure.
    pub routers: RouterChoice,
    /// Where its packets enter the lab; none for everywhere that they may.
    pub from: Option<EntryName>,
    /// The DSCP value that the job holds.
    pub dscp: DscpChoice,
    /// The job's name.
    pub run_id: RunId,
    /// DSCP that the routers' own rules see in the probes.
    pub probe_dscp: Dscp,
    /// Length of the IP packets in bytes; none for what their protocols have at least.
    pub size: Option<u16>,
    /// Source port of the probes; none for one that is new to the routers.
    pub source_port: Option<u16>,
    /// How long to wait for router locks.
    pub lock_timeout: Duration,
    /// When to look for reasons.
    pub explain: ExplainMode,
    /// What measures.
    pub backend: BackendChoice,
    /// Whether verdicts are given although the lab lacks something that can change them.
    pub trust_facts: bool,
    /// Whether to take leases and locks.
    pub use_registry: bool,
    /// Where to append progress.
    pub progress: Option<PathBuf>,
    /// Test hook: let probes go on behind the last tap, with tags from this seed.
    pub pass_on: Option<u64>,
}

/// How questions are asked, whatever they are.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Lab to measure in.
    pub lab: LabName,
    /// The job's name.
    pub run_id: RunId,
    /// The DSCP value that the job holds.
    pub dscp: DscpChoice,
    /// Which routers to measure.
    pub routers: RouterChoice,
    /// Where packets enter the lab; none for everywhere that they may.
    pub from: Option<EntryName>,
    /// Source port of the probes; none for one that is new to the routers.
    pub source_port: Option<u16>,
    /// DSCP that the routers' own rules see in the probes.
    pub probe_dscp: Dscp,
    /// Length of the IP packets in bytes; none for what their protocols have at least.
    pub size: Option<u16>,
    /// When to look for reasons.
    pub explain: ExplainMode,
    /// What measures.
    pub backend: BackendChoice,
    /// How long to wait for router locks.
    pub lock_timeout: Duration,
    /// Whether to take leases and locks.
    pub use_registry: bool,
    /// Whether verdicts are given although the lab lacks something that can change them.
    pub trust_facts: bool,
    /// Test hook: let probes go on behind the last tap, with tags from this seed.
    pub pass_on: Option<u64>,
}

/// What is asked between two addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Services in the order asked for, each once.
    pub services: Vec<Service>,
}

impl QuickJob {
    /// What is asked.
    fn pair(&self) -> Pair {
        Pair {
            source: self.source,
            destination: self.destination,
            services: self.services.clone(),
        }
    }

    /// How it is asked.
    fn terms(&self) -> Terms {
        Terms {
            lab: self.lab.clone(),
            routers: self.routers.clone(),
            from: self.from.clone(),
            dscp: self.dscp,
            run_id: self.run_id.clone(),
            probe_dscp: self.probe_dscp,
            size: self.size,
            source_port: self.source_port,
            lock_timeout: self.lock_timeout,
            explain: self.explain,
            backend: self.backend,
            trust_facts: self.trust_facts,
            use_registry: self.use_registry,
            pass_on: self.pass_on,
        }
    }
}

/// The DSCP value that a job asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DscpChoice {
    /// A free one.
    Auto,
    /// This one.
    Value(Dscp),
}

impl FromStr for DscpChoice {
    type Err = DscpError;
    fn from_str(text: &str) -> Result<Self, DscpError> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => Ok(Self::Value(text.parse()?)),
        }
    }
}

/// When to look for reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExplainMode {
    /// For blocked services, up to a thousand per router.
    Auto,
    /// For every blocked service.
    Always,
    /// Not at all: what rules may decide otherwise by more than the packet is UNKNOWN.
    Never,
}

impl fmt::Display for ExplainMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

/// How many blocked services of a router are explained unless all are asked for.
pub const EXPLAIN_AUTO_MAX: usize = 1000;

/// The same in a burst of a sweep, of which there may be thousands.
pub const EXPLAIN_IN_BURST: usize = 50;

/// A quick job could not be run, or not be undone.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QuickError {
    /// Nothing is known of the lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Routers, their interfaces or source hosts could not be found out.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A DSCP value outside the configured range.
    #[error("DSCP {dscp} is outside the range {range} that the configuration gives to jobs")]
    DscpRange {
        /// The value asked for.
        dscp: Dscp,
        /// What is allowed.
        range: DscpRange,
    },
    /// Leases or locks were not had.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A source host could not be made.
    #[error("cannot make source host {host}")]
    Host {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// Taps could not be installed, read or removed.
    #[error("router {router}")]
    Taps {
        /// The router.
        router: String,
        /// Why.
        #[source]
        source: TapsError,
    },
    /// No back end could be chosen.
    #[error(transparent)]
    Backend(#[from] ChooseError),
    /// Blocked services could not be explained.
    #[error("cannot explain what router {router} blocks")]
    Explain {
        /// The router.
        router: String,
        /// Why.
        #[source]
        source: ExplainError,
    },
    /// No probe can be sent from a host.
    #[error("cannot open a raw socket in host {host}")]
    ProbeSocket {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A router and its host are one namespace; somebody changed /run/netns.
    #[error("router {netns} and its source host are one and the same network namespace")]
    NoHost {
        /// The router.
        netns: String,
    },
    /// What was asked cannot be asked.
    #[error(transparent)]
    Question(#[from] QuestionError),
    /// SIGINT or SIGTERM.
    #[error("interrupted; everything was undone")]
    Interrupted,
    /// No random numbers, no thread, no signal handling.
    #[error("cannot {what}")]
    System {
        /// What failed.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A fault on purpose.
    #[error("fault at {step}")]
    Fault {
        /// The step.
        step: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
}

/// An answer, and the sockets that are left to close.
///
/// Closing a socket that owned a table or heard of changes waits for the kernel to settle, 10 to
/// 16 ms. All that matters is undone by then, so print the report first and drop this afterwards.
#[derive(Debug)]
pub struct QuickAnswer {
    /// The answer.
    pub report: QuickReport,
    /// The sockets.
    pub closing: Vec<QuickClosing>,
    /// Other sockets and files, and memory: all that the job has no more use for. A process that ends with the
    /// answer need not let go of it piece by piece.
    #[allow(dead_code, reason = "it is only to be dropped")]
    rest: Option<Box<dyn Any + Send>>,
}

/// A socket that takes its time to close.
#[derive(Debug)]
pub enum QuickClosing {
    /// That of the taps, which owned their table.
    Nft(NftSocket),
    /// One that was in a multicast group.
    Watch(RulesetWatch),
    /// Those of traces.
    Explainer(Explainer),
    /// The hidden sender's.
    Wire(WireSocket),
}

/// Runs the job.
///
/// # Errors
/// [`QuickError`] when it could not be run; everything was undone then, or the log says what is
/// left. What could not be undone after a measurement that worked is a warning in the report.
pub fn run(job: &QuickJob, config: &Config) -> Result<QuickAnswer, QuickError> {
    let progress = Progress::new(job.progress.as_deref(), PHASES);
    let progress = progress.map_err(|source| QuickError::System {
        what: "write progress",
        source,
    })?;
    run_telling(job, config, progress)
}

fn run_telling(
    job: &QuickJob,
    config: &Config,
    mut progress: Progress,
) -> Result<QuickAnswer, QuickError> {
    let started = Instant::now();
    let lab = Lab::open(config, &job.lab)?;
    let mut desk = Desk::open(job.terms(), config)?;
    let pairs = [job.pair()];
    let answered = desk.burst(&lab, &pairs, Lone::Quick, &mut |phase| {
        progress.enter(phase);
    });
    let answered = answered.map(|burst| answered_by(job, &desk.terms, &lab, burst));
    let (failed, grant) = desk.close();
    let mut left: Vec<UndoError> = failed.into_iter().collect();
    match answered {
        Ok((mut answered, more, rest)) => {
            left.splice(..0, more);
            answered.rest = Some(Box::new((rest, grant, lab)));
            answered
                .report
                .warnings
                .extend(left.iter().map(|e| WithCauses(e).to_string()));
            answered.report.timing_ms.total = millis(started.elapsed());
            progress.finish();
            Ok(answered)
        }
        Err(error) => {
            log(&left);
            Err(error)
        }
    }
}

/// Puts the answer together, with what could not be undone, and what is left to be dropped.
fn answered_by(
    job: &QuickJob,
    terms: &Terms,
    lab: &Lab,
    burst: Burst,
) -> (QuickAnswer, Vec<UndoError>, (Plan, Option<LabHosts>)) {
    let frame = Frame {
        job,
        lab,
        dscp: burst.dscp,
        backend: burst.plan.backend,
        timing: burst.timing,
    };
    let answered = match (burst.settled.into_iter().next().flatten(), burst.through) {
        (Some(ending), _) => report::settled(frame, &ending),
        (None, Some(through)) => {
            let mut answered = report::assemble(frame, terms, &burst.plan, through);
            answered.report.warnings.extend(burst.kept);
            answered
        }
        (None, None) => report::settled(frame, &nothing_asked()),
    };
    (answered, burst.left, (burst.plan, burst.sockets))
}

/// How a question ends that was never put.
fn nothing_asked() -> Ending {
    Ending::new(Verdict::Unknown, EndKind::NotKnown, "it was not asked")
}

fn log(left: &[UndoError]) {
    left.iter()
        .for_each(|failure| tracing::error!("{}", WithCauses(failure)));
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
