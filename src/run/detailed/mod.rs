//! The detailed job: which rule lets a service through or stops it, proved with real connections.
//!
//! [`run`] goes in rounds. A round makes a destination host at every router's egress, locks the
//! routers (exclusively, all or none), has each router's next hop answered for by that host, and
//! measures all routers at once; each router is released as soon as it is done. What a router
//! turned out to send elsewhere (NAT, routing by mark or port) is measured in a further round with
//! a destination host there. Whatever was taken is given back, in reverse, however it ends.

mod attempt;
mod bench;
pub mod connect;
mod evidence;
pub mod files;
pub mod html;
mod job;
pub mod json;
mod judge;
mod legacy;
mod listen;
mod omitted;
pub mod result;
mod rounds;
mod site;
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
    evidence::EvidenceError,
    job::{Answered, run},
    legacy::LegacyError,
};
use self::{
    attempt::Try,
    connect::PAYLOAD,
    result::RouterWay,
    site::{Site, Task},
};
use crate::{
    firewall::nft::{NftError, trace::TraceSockets, watch::RulesetWatch},
    lab::{LabError, hosts::HostError},
    model::{LabName, NameError, RouterId, RunId, Service},
    netns::{NetnsDir, NetnsError, tool::Tools},
    registry::RegistryError,
    run::{
        interrupt::Interrupt,
        resolve::{ResolveError, RouterChoice},
    },
};

/// How long a service is tried while nothing else happens. Packets through a lab take well below a
/// millisecond; who needs longer is tried again with the whole patience.
const GRACE: Duration = Duration::from_millis(50);

/// A socket that takes its time to close.
#[derive(Debug)]
pub enum Closing {
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
    /// Source port of all connections; none for a fresh one each.
    pub source_port: Option<u16>,
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
}

/// A detailed job could not be run.
#[derive(Debug, Error)]
pub enum DetailedError {
    /// Nothing is known of the lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Routers, their interfaces or source hosts could not be found out.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Leases or locks were not had.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A destination host could not be planned.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The way of answers could not be looked up.
    #[error("cannot look up the way of answers through router {netns}")]
    Back {
        /// The router's namespace.
        netns: String,
        /// Why.
        #[source]
        source: crate::netlink::NetlinkError,
    },
    /// A name could not be made.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A router could not be measured.
    #[error("cannot measure router {router}")]
    Router {
        /// The router.
        router: RouterId,
        /// Why.
        #[source]
        source: MeasureError,
    },
    /// The work on a router panicked.
    #[error("the work on router {0} panicked")]
    Panicked(RouterId),
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
}

impl DetailedError {
    fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// What measuring needs to know of the job.
struct Setup<'a> {
    run_id: &'a RunId,
    source: IpAddr,
    source_port: Option<u16>,
    destination: IpAddr,
    timeout: Duration,
    patient: bool,
    payload: [u8; PAYLOAD],
    tools: &'a Tools,
    dir: &'a NetnsDir,
    interrupt: &'a Interrupt,
    /// Called for each service that was tried on a router.
    done: &'a (dyn Fn() + Sync),
}

impl Setup<'_> {
    /// How to try a service: as long as a packet could need, or with the whole patience.
    fn attempt(&self, task: &Task, patient: bool) -> Try {
        let patient = patient || self.patient;
        Try {
            to: SocketAddr::new(self.destination, task.service.port),
            answers_from: task.port,
            payload: self.payload,
            patience: if patient {
                self.timeout
            } else {
                GRACE.min(self.timeout)
            },
            patient,
        }
    }

    /// Says at which router something failed.
    fn at<E: Into<MeasureError>>(&self, site: &Site<'_>) -> impl Fn(E) -> DetailedError + use<E> {
        let router = site.way.router.clone();
        move |error| DetailedError::Router {
            router: router.clone(),
            source: error.into(),
        }
    }

    /// The router as a result shows it.
    fn way(&self, site: &Site<'_>) -> RouterWay {
        RouterWay {
            iface_out: match &site.target.sink {
                site::Sink::Host { interface, .. } => Some(interface.clone()),
                _ => site.way.iface_out().cloned(),
            },
            ..RouterWay::of(site.way)
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
