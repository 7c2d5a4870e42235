//! The detailed job: which rule lets a service through or stops it, proved with real connections.
//!
//! [`run`] measures the whole way at once: a source host where packets enter, a destination host
//! where they end, and between them the lab's own routers and segments, all of them locked, traced
//! and counted. The answer takes its own way. It goes in rounds: what turned out to go elsewhere
//! (NAT, routing by mark or port, a router that nobody expected) is measured in a further round
//! with the host there, or with more routers. Routers behind the one that stops a service are
//! measured on their own. Whatever was taken is given back, in reverse, however it ends.

mod answering;
mod attempt;
mod bench;
mod bridges;
mod builder;
mod chance;
pub mod connect;
mod evidence;
mod exceptions;
pub mod files;
mod fork;
mod head;
pub mod html;
mod job;
mod journey;
pub mod json;
mod judge;
mod legacy;
mod listen;
mod map;
mod message;
mod noted;
mod omitted;
mod plan;
mod post;
mod question;
pub mod result;
mod rounds;
mod site;
mod steer;
mod svg;
pub mod text;
mod way;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use thiserror::Error;

pub use self::{
    attempt::AttemptError,
    builder::Detailed,
    evidence::EvidenceError,
    job::{DetailedAnswer, run},
    legacy::LegacyError,
};
use self::{
    attempt::Try,
    connect::PAYLOAD,
    map::LabMap,
    site::{Station, StretchRound, Task},
};
use crate::{
    firewall::nft::{NftError, trace::TraceSockets, watch::RulesetWatch},
    lab::{
        LabError,
        hosts::HostError,
        sockets::SocketsError,
        trace::{EntryName, TraceError},
    },
    model::{LabName, NameError, RouterName, RunId, Service},
    netlink::{NetlinkError, NetlinkErrors},
    netns::{NetnsDir, NetnsError, tool::Tools},
    registry::{RegistryError, RegistryManager},
    run::{
        builder::QuestionError,
        interrupt::Interrupt,
        resolve::{ResolveError, RouterChoice},
    },
};

/// How long a service is tried while nothing else happens. Packets through a lab take well below a
/// millisecond; who needs longer is tried again with the whole patience.
const GRACE: Duration = Duration::from_millis(50);

/// A socket that takes its time to close.
#[derive(Debug)]
pub enum DetailedClosing {
    /// Those of a trace, which owned its tables.
    Trace(TraceSockets),
    /// One that heard of changes of a ruleset.
    Watch(RulesetWatch),
}

/// A detailed job with its arguments resolved.
#[derive(Debug, Clone)]
pub struct DetailedJob {
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
    /// Where the source's packets enter the lab; none for wherever they may.
    pub from: Option<EntryName>,
    /// Source port of all connections; none for a fresh one each.
    pub source_port: Option<u16>,
    /// Length of the IP packets that clients send, in bytes; none for short ones.
    pub size: Option<u16>,
    /// The job's name.
    pub run_id: RunId,
    /// How long to wait for router locks.
    pub lock_timeout: Duration,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// Wait that long for every answer, even when the trace shows that none can come.
    pub patient: bool,
    /// Whether verdicts are given although the lab lacks something that can change them.
    pub trust_facts: bool,
    /// Where to append progress.
    pub progress: Option<PathBuf>,
    /// The directory in which each service is written down as soon as it was measured.
    pub out: Option<PathBuf>,
}

/// A detailed job could not be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DetailedError {
    /// What was asked cannot be asked.
    #[error(transparent)]
    Question(#[from] QuestionError),
    /// Nothing is known of the lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Routers, their interfaces or source hosts could not be found out.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// What is measured cannot be written down.
    #[error(transparent)]
    Write(#[from] files::WriteError),
    /// Leases or locks were not had.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A destination host could not be planned.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The way could not be looked up.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A router could not be asked.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// A router refused a look-up.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A name could not be made.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A router could not be measured.
    #[error("cannot measure router {router}")]
    Router {
        /// The router.
        router: RouterName,
        /// Why.
        #[source]
        source: MeasureError,
    },
    /// The work on a router panicked.
    #[error("the work on router {0} panicked")]
    Panicked(String),
    /// The file for progress could not be opened.
    #[error("cannot write progress to {path}")]
    Progress {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// SIGINT or SIGTERM.
    #[error("interrupted; everything was undone")]
    Interrupted,
    /// A system call failed.
    #[error("cannot {what}")]
    System {
        /// What failed.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a router could not be measured.
#[derive(Debug, Error)]
pub enum MeasureError {
    /// nf_tables failed.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Evidence could not be read.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// An attempt could not be followed.
    #[error(transparent)]
    Attempt(#[from] AttemptError),
    /// Legacy rules could not be read.
    #[error(transparent)]
    Legacy(#[from] LegacyError),
    /// The router could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Entries could not be set or removed.
    #[error(transparent)]
    Undo(NetlinkErrors),
}

impl DetailedError {
    fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// What measuring needs to know of the job.
struct Setup<'a> {
    run_id: &'a RunId,
    registry: &'a RegistryManager,
    source_port: Option<u16>,
    size: Option<u16>,
    timeout: Duration,
    patient: bool,
    payload: [u8; PAYLOAD],
    map: &'a LabMap<'a>,
    tools: &'a Tools,
    dir: &'a NetnsDir,
    interrupt: &'a Interrupt,
    /// Called for each service that was tried.
    done: &'a (dyn Fn() + Sync),
    /// Called with what was found out about a service.
    keep: &'a (dyn Fn(Service, &result::ServiceTest) + Sync),
    /// Whether the lab is the one that was planned for.
    unchanged: &'a (dyn Fn() -> Result<(), LabError> + Sync),
}

impl Setup<'_> {
    /// How to try a service: as long as a packet could need, or with the whole patience.
    fn attempt(&self, site: &StretchRound, task: &Task, patient: bool) -> Try {
        let patient = patient || self.patient;
        Try {
            to: SocketAddr::new(site.to, task.dial),
            answers_from: task.port,
            payload: self.payload,
            size: self.size,
            patience: if patient {
                self.timeout
            } else {
                GRACE.min(self.timeout)
            },
            patient,
        }
    }

    /// Says at which router something failed.
    fn at<E: Into<MeasureError>>(&self, station: &Station) -> impl Fn(E) -> DetailedError + use<E> {
        self.at_router(Some(station.name().clone()))
    }

    fn at_router<E: Into<MeasureError>>(
        &self,
        router: Option<RouterName>,
    ) -> impl Fn(E) -> DetailedError + use<E> {
        move |error| match &router {
            Some(router) => DetailedError::Router {
                router: router.clone(),
                source: error.into(),
            },
            None => DetailedError::Panicked(error.into().to_string()),
        }
    }

    fn stop_if_interrupted(&self) -> Result<(), DetailedError> {
        if self.interrupt.is_set() {
            Err(DetailedError::Interrupted)
        } else {
            Ok(())
        }
    }

    fn done(&self) {
        (self.done)();
    }
}

/// Milliseconds with three digits behind the point.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
