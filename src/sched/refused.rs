//! The kinds of jobs, and why one is refused when it is submitted.

use std::{fmt, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::{LabName, NameError, Protocol, RouterName, ServiceError};

/// How a job measures; `analysis_mode` in `queue.json`, `type` in `current.json`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One probe per service and router; shares routers.
    Quick,
    /// Real connections; takes its routers exclusively.
    Detailed,
    /// A policy, asked as quick jobs are, in chunks between which routers are given back.
    Check,
    /// All pairs of addresses, likewise.
    Matrix,
    /// The questions of a policy or of a matrix in two labs, likewise.
    Diff,
}

impl Mode {
    /// The word for it in files, on command lines and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Detailed => "detailed",
            Self::Check => "check",
            Self::Matrix => "matrix",
            Self::Diff => "diff",
        }
    }

    /// The mode in whose line it waits, and whose limits and options it has: whatever is asked in bulk
    /// goes as checks do.
    #[must_use]
    pub fn lane(self) -> Self {
        match self {
            Self::Quick | Self::Detailed => self,
            Self::Check | Self::Matrix | Self::Diff => Self::Check,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A job was refused when it was submitted.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RefusedJob {
    /// The run id, lab or a router is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The service list is wrong.
    #[error(transparent)]
    Services(#[from] ServiceError),
    /// Source and destination are of different families.
    #[error("source {source_address} and destination {destination} are of different IP versions")]
    Families {
        /// The source as given.
        source_address: IpAddr,
        /// The destination as given.
        destination: IpAddr,
    },
    /// An address that no packet of a job can have.
    #[error("{what} {address} is not allowed: a unicast address is")]
    Address {
        /// `source` or `destination`.
        what: &'static str,
        /// The value.
        address: IpAddr,
    },
    /// An IPv4 address in the form of an IPv6 address, RFC 4291 section 2.5.5.2, which no packet between hosts has.
    #[error("{what} {address} is an IPv4-mapped address, which no packet has: ask about {}", address.to_canonical())]
    Mapped {
        /// `source` or `destination`.
        what: &'static str,
        /// The value.
        address: IpAddr,
    },
    /// More text or names than a job may have.
    #[error("{what} has {found} {unit}, at most {max} are allowed")]
    TooLong {
        /// The field.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much there may be.
        max: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// `routers` is there but names none.
    #[error("routers is empty: leave it out to trace the path, or name at least one")]
    NoRouters,
    /// `routers` names one more than once.
    #[error("routers names {0} twice: each router is measured once")]
    RouterTwice(RouterName),
    /// Both say by which routers it goes.
    #[error("routers and trace both say which routers are meant: one of them is allowed")]
    RoutersAndTrace,
    /// The trace is of another question.
    #[error("the trace is of another question: of {0}")]
    OtherTrace(String),
    /// Several addresses where one is asked about.
    #[error(
        "{what} {found} is not allowed: a {mode} job asks about one address, a matrix about many"
    )]
    Several {
        /// `source` or `destination`.
        what: &'static str,
        /// The value.
        found: String,
        /// How the job measures.
        mode: Mode,
    },
    /// Nothing is left to be asked.
    #[error("no source and destination make a pair: they are one and the same, or of two families")]
    NoPair,
    /// Both sides of a comparison are one lab.
    #[error("before and lab are both {0}: a lab is compared with another one")]
    SameLab(LabName),
    /// Packets to oneself pass no router.
    #[error("source and destination are both {0}: packets to oneself pass no router")]
    ToItself(IpAddr),
    /// An option that jobs of this mode do not have.
    #[error("a {mode} job has no {option}")]
    NotForMode {
        /// The option.
        option: &'static str,
        /// How the job measures.
        mode: Mode,
    },
    /// Something that jobs of this mode cannot do without.
    #[error("{option} is missing: a {mode} job needs it")]
    Missing {
        /// The field.
        option: &'static str,
        /// How the job measures.
        mode: Mode,
    },
    /// The policy cannot be used.
    #[error("policy: {0}")]
    Policy(String),
    /// A time that no job can wait.
    #[error("{option} {found} is not allowed: a number of seconds above 0, at most a day, is")]
    Seconds {
        /// The option.
        option: &'static str,
        /// The value.
        found: f64,
    },
    /// Only protocols with ports can be left out.
    #[error("default_proto {0} is not allowed: tcp, udp or sctp is")]
    DefaultProtocol(Protocol),
    /// The user name is empty or has control characters.
    #[error("user name {0:?} is not allowed: 1 to 64 characters without control characters are")]
    User(String),
}
