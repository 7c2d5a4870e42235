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
mod conclude;
mod course;
mod digest;
mod grant;
mod inquiry;
mod lots;
mod measure;
mod omission;
mod plan;
mod ports;
mod report;
mod session;
mod standin;
mod tables;
mod walk;

use std::{
    collections::BTreeSet,
    fmt, io,
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::{
    grant::Grant,
    inquiry::{Asked, Beginning, Inquiry, Prepared},
    plan::Plan,
    report::Frame,
    session::{Hands, Needs, Outcome},
};
use super::left;
pub use super::resolve::RouterChoice;
use crate::{
    config::Config,
    firewall::{
        backend::{Backend, BackendChoice, ChooseError, TapsError},
        nft::{NftSocket, watch::RulesetWatch},
    },
    lab::{
        Lab, LabError,
        hosts::LabHosts,
        trace::{EntryName, Wiring},
    },
    model::{
        Dscp, DscpRange, LabName, NameError, RouterId, RouterName, RunId, Service, dscp::DscpError,
    },
    netns::{NetnsDir, NetnsError},
    registry::{KernelError, RegistryError, Wait},
    run::{
        caretaker::Caretaker,
        explain::{ExplainError, Explainer},
        interrupt::Interrupt,
        probe::WireSocket,
        progress::{Phase, Progress},
        report::{QuickReport, Timing},
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExplainMode {
    /// For blocked services, up to [`EXPLAIN_AUTO_MAX`] per router.
    Auto,
    /// For every blocked service.
    Always,
    /// Not at all.
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

/// A quick job could not be run, or not be undone.
#[derive(Debug, Error)]
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

/// A name for a run that nobody gave one: unique by its random part.
///
/// # Errors
/// [`QuickError::System`] without random numbers.
pub fn new_run_id() -> Result<RunId, QuickError> {
    let name = format!("q{:012x}", random()? & 0xffff_ffff_ffff);
    RunId::new(name).map_err(impossible)
}

fn impossible(error: NameError) -> QuickError {
    QuickError::System {
        what: "name a run",
        source: io::Error::other(error),
    }
}

fn random() -> Result<u64, QuickError> {
    getrandom::u64().map_err(|e| QuickError::System {
        what: "draw random numbers",
        source: io::Error::other(e.to_string()),
    })
}

/// An answer, and the sockets that are left to close.
///
/// Closing a socket that owned a table or heard of changes waits for the kernel to settle, 10 to
/// 16 ms. All that matters is undone by then, so print the report first and drop this afterwards.
#[derive(Debug)]
pub struct Answered {
    /// The answer.
    pub report: QuickReport,
    /// The sockets.
    pub closing: Vec<Closing>,
}

/// A socket that takes its time to close.
#[derive(Debug)]
pub enum Closing {
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
pub fn run(job: &QuickJob, config: &Config) -> Result<Answered, QuickError> {
    let started = Instant::now();
    let system = |what| move |source| QuickError::System { what, source };
    let interrupt = Interrupt::watch().map_err(system("watch for signals"))?;
    let mut progress =
        Progress::new(job.progress.as_deref(), PHASES).map_err(system("write progress"))?;
    let lab = Lab::open(config, &job.lab)?;
    let (of, run_id) = (config.clone(), job.run_id.clone());
    let taps = !matches!(job.backend, BackendChoice::Only(Backend::Nft));
    interrupt.at_stop(move || left::of_run(&of, &run_id, taps));
    let mut grant = Grant::open(job, config)?;
    let answered = answer(job, config, &lab, &mut grant, &interrupt, &mut progress);
    let mut left: Vec<UndoError> = grant.give_back().into_iter().collect();
    match answered {
        Ok((mut answered, more)) => {
            left.splice(..0, more);
            answered.report.warnings.extend(left.iter().map(full));
            answered.report.timing_ms.total = millis(started.elapsed());
            progress.finish();
            Ok(answered)
        }
        Err(error) => {
            left.iter()
                .for_each(|failure| tracing::error!("{}", full(failure)));
            Err(error)
        }
    }
}

/// The job, with its part of the registry at hand.
fn answer(
    job: &QuickJob,
    config: &Config,
    lab: &Lab,
    grant: &mut Grant,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> Result<(Answered, Vec<UndoError>), QuickError> {
    let started = Instant::now();
    let dir = NetnsDir::default().patient(job.lock_timeout);
    let wiring = Wiring::from(&**lab);
    let inquiry = Inquiry {
        job,
        lab,
        dir: &dir,
        wiring: &wiring,
    };
    let mut kernel = LabHosts::new(&dir);
    let mut plan = Plan::new(job, config)?;
    let hosts = kernel.lab(&job.lab).map_err(ResolveError::from)?;
    let there = hosts.list().map_err(ResolveError::from)?;
    let frame = |dscp, backend, timing| Frame {
        job,
        lab,
        dscp,
        backend,
        timing,
    };
    let starts = match inquiry.begin(hosts.routers(), &there, plan.probes.first())? {
        Beginning::Enter(starts) => starts,
        Beginning::Settled(ending) => {
            let timing = Timing {
                resolve: millis(started.elapsed()),
                ..Timing::default()
            };
            let frame = frame(grant.dscp()?, plan.backend, timing);
            return Ok((report::settled(frame, &ending), Vec::new()));
        }
    };
    let mut larger = BTreeSet::new();
    let mut with_hosts = true;
    loop {
        let hosts = kernel.lab(&job.lab).map_err(ResolveError::from)?;
        let there = with_hosts.then_some(there.as_slice());
        let mut prepared = inquiry.prepare(hosts, there, &starts, &plan.probes)?;
        prepared.routers.extend(larger.iter().cloned());
        plan.choose(job, prepared.visits.first().map(|visit| &visit.netns))?;
        let resolve = millis(started.elapsed());
        progress.enter("waiting");
        let caretaker = Caretaker::new(&dir, config);
        let mut caretaker = match plan.backend {
            Backend::Nft => caretaker.leaving_taps(),
            Backend::IptablesNft | Backend::IptablesLegacy => caretaker,
        };
        let specs = prepared.hosts.clone();
        let needs = Needs {
            hosts: &specs.iter().collect::<Vec<_>>(),
            routers: &ids(job, &prepared),
            wait: Wait::at_most(job.lock_timeout).or_until(interrupt.cancel().clone()),
        };
        let hands = Hands {
            hosts: &mut kernel,
            caretaker: &mut caretaker,
        };
        let work = |dscp, hosts: &mut LabHosts| {
            progress.enter("probing");
            plan.mark_with(dscp);
            let go_on = || stop_if(interrupt);
            let hosts = hosts.lab(&job.lab).map_err(ResolveError::from)?;
            let asked = inquiry.ask(&plan, prepared, hosts.routers(), &go_on)?;
            stop_if(interrupt)?;
            Ok(asked)
        };
        let outcome = grant.run(&needs, hands, work, |result| {
            matches!(result, Ok(Asked::Larger(_)))
        });
        progress.enter("undoing");
        let timing = undone(resolve, &outcome);
        match outcome.result {
            Ok(Asked::Through(through)) => {
                let frame = frame(plan.dscp(), plan.backend, timing);
                let mut answered = report::assemble(frame, &plan, through);
                answered.report.warnings.extend(outcome.kept);
                return Ok((answered, outcome.left));
            }
            Ok(Asked::Larger(more)) => {
                log(&outcome.left);
                larger.extend(more);
            }
            // Another job has a host with this address at another interface of the router.
            Err(QuickError::Registry(RegistryError::Collision { .. })) if with_hosts => {
                log(&outcome.left);
                with_hosts = false;
            }
            Err(error) => {
                log(&outcome.left);
                return Err(error);
            }
        }
    }
}

/// The routers to be locked.
fn ids(job: &QuickJob, prepared: &Prepared) -> Vec<RouterId> {
    let id = |router: &RouterName| RouterId::new(job.lab.clone(), router.clone());
    prepared.routers.iter().map(id).collect()
}

fn undone<T>(resolve: f64, outcome: &Outcome<T>) -> Timing {
    Timing {
        resolve,
        hosts: millis(outcome.hosts),
        lock: millis(outcome.lock),
        undo: millis(outcome.undo),
        ..Timing::default()
    }
}

fn log(left: &[UndoError]) {
    left.iter()
        .for_each(|failure| tracing::error!("{}", full(failure)));
}

fn stop_if(interrupt: &Interrupt) -> Result<(), QuickError> {
    if interrupt.is_set() {
        Err(QuickError::Interrupted)
    } else {
        Ok(())
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A failure with its causes on one line.
fn full(failure: &UndoError) -> String {
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
