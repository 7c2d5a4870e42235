//! What programs may say of every question, quick or detailed.

use std::{fmt, io, net::IpAddr, time::Duration};

use super::{progress::OnProgress, resolve::RouterChoice};
use crate::{
    lab::trace::EntryName,
    model::{LabName, RunId, Service, ServiceError},
};

/// What is asked, and what is not the default about it.
#[derive(Debug)]
pub(super) struct QuestionOptions {
    pub(super) lab: LabName,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) services: Vec<Service>,
    pub(super) routers: RouterChoice,
    pub(super) from: Option<EntryName>,
    pub(super) source_port: Option<u16>,
    pub(super) size: Option<u16>,
    pub(super) trust_facts: bool,
    pub(super) run_id: Option<RunId>,
    pub(super) lock_timeout: Option<Duration>,
    pub(super) on_progress: Callback,
}

/// What is called, in a form that has no [`fmt::Debug`] to ask for.
pub(super) struct Callback(pub(super) OnProgress);

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback")
    }
}

impl QuestionOptions {
    pub(super) fn new(
        lab: LabName,
        source: IpAddr,
        destination: IpAddr,
        services: Vec<Service>,
    ) -> Self {
        Self {
            lab,
            source,
            destination,
            services,
            routers: RouterChoice::Trace,
            from: None,
            source_port: None,
            size: None,
            trust_facts: false,
            run_id: None,
            lock_timeout: None,
            on_progress: Callback(Box::new(|_, _| {})),
        }
    }

    /// The services as packets between these addresses carry them.
    pub(super) fn services(&self) -> Result<Vec<Service>, QuestionError> {
        let (source_address, destination) = (self.source, self.destination);
        if source_address.is_ipv4() != destination.is_ipv4() {
            return Err(QuestionError::Families {
                source_address,
                destination,
            });
        }
        let v6 = destination.is_ipv6();
        let services = self.services.iter().map(|service| service.in_family(v6));
        Ok(services.collect::<Result<_, _>>()?)
    }

    /// The job's name.
    pub(super) fn run_id(&self) -> Result<RunId, QuestionError> {
        self.run_id.clone().map_or_else(new_run_id, Ok)
    }
}

/// What was asked cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuestionError {
    /// Source and destination are of different families.
    #[error("source {source_address} and destination {destination} are of different IP versions")]
    Families {
        /// The source.
        source_address: IpAddr,
        /// The destination.
        destination: IpAddr,
    },
    /// A service that the addresses' family does not have.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// There are no random numbers to make a name of.
    #[error("cannot draw a name for the job")]
    Name(#[source] io::Error),
}

/// A name for a run that nobody gave one: unique by its random part.
///
/// # Errors
/// [`QuestionError::Name`] without random numbers.
pub fn new_run_id() -> Result<RunId, QuestionError> {
    let other = |error: String| QuestionError::Name(io::Error::other(error));
    let number = getrandom::u64().map_err(|e| other(e.to_string()))?;
    let name = format!("q{:012x}", number & 0xffff_ffff_ffff);
    RunId::new(name).map_err(|e| other(e.to_string()))
}

/// The setters of a job that has a [`QuestionOptions`].
macro_rules! setters {
    ($job:ident) => {
        impl $job {
            /// Which routers are measured; those that packets pass unless this is set.
            pub fn routers(mut self, routers: RouterChoice) -> Self {
                self.question.routers = routers;
                self
            }

            /// The router, or its interface, where packets enter the lab; wherever they may unless
            /// this is set.
            pub fn from(mut self, entry: EntryName) -> Self {
                self.question.from = Some(entry);
                self
            }

            /// The source port of what is sent; a fresh one unless this is set.
            pub fn source_port(mut self, port: u16) -> Self {
                self.question.source_port = Some(port);
                self
            }

            /// The length of the IP packets in bytes; as short as they can be unless this is set.
            pub fn packet_length(mut self, bytes: u16) -> Self {
                self.question.size = Some(bytes);
                self
            }

            /// Give verdicts also where the lab lacks something of the facts that can change them.
            pub fn trust_facts(mut self) -> Self {
                self.question.trust_facts = true;
                self
            }

            /// The job's name in registry and logs; a new one unless this is set.
            pub fn run_id(mut self, name: RunId) -> Self {
                self.question.run_id = Some(name);
                self
            }

            /// How long to wait for the locks of routers; as configured unless this is set.
            pub fn lock_timeout(mut self, most: Duration) -> Self {
                self.question.lock_timeout = Some(most);
                self
            }

            /// Has `call` called with the percentage that is done and the phase, whenever one of
            /// them changes.
            pub fn on_progress(mut self, call: impl FnMut(u8, &str) + Send + 'static) -> Self {
                self.question.on_progress = $crate::run::builder::Callback(Box::new(call));
                self
            }
        }
    };
}

pub(super) use setters;
