//! What can go wrong with the registry.

use std::{fmt, io, path::PathBuf, time::Duration};

use thiserror::Error;

use crate::{
    model::{HostId, RunId},
    registry::{KernelError, LockHolder},
};

/// What two hosts may not share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Collided {
    /// The name.
    Name,
    /// This address on this router.
    Address(String),
    /// This hardware address in one lab.
    Mac(String),
    /// The hardware address that a leased neighbour entry points at.
    Neighbour(String),
    /// The name of a job.
    Run(RunId),
}

impl fmt::Display for Collided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("the name"),
            Self::Address(a) => write!(f, "the address {a}"),
            Self::Mac(m) => write!(f, "the MAC address {m}"),
            Self::Neighbour(m) => write!(f, "the neighbour's MAC address {m}"),
            Self::Run(run_id) => write!(f, "the run id {run_id}"),
        }
    }
}

/// An operation on the registry failed; unless the text says otherwise nothing was changed.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// A file operation failed.
    #[error("registry: cannot {op} {path}")]
    Io {
        /// What was tried, e.g. `write`.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory is not what the registry may trust.
    #[error("registry: {path} is refused: {reason}")]
    Unsafe {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it and what is allowed.
        reason: String,
    },
    /// One record of a file does not have its shape.
    #[error("registry: {file}: the record of {key} is damaged: {reason}")]
    Corruption {
        /// The file.
        file: &'static str,
        /// Key of the record.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A lock was not had in time.
    #[error("{what} was not free within {:.1} s{}", .waited.as_secs_f64(), Holders(.holders))]
    LockTimeout {
        /// What was to be locked.
        what: String,
        /// How long was waited.
        waited: Duration,
        /// Who held it or waited for it first.
        holders: Vec<LockHolder>,
    },
    /// Waiting was called off.
    #[error("waiting for {what} was cancelled")]
    Cancelled {
        /// What was waited for.
        what: String,
    },
    /// The own entry in a queue has been removed by somebody else.
    #[error("the lock on {what} was lost: its file {path} was removed by somebody else")]
    LockLost {
        /// What was locked.
        what: String,
        /// The file.
        path: PathBuf,
    },
    /// A host, address or MAC is taken.
    #[error("{subject}: {what} is already in use by {owner}")]
    Collision {
        /// What was to be registered.
        subject: String,
        /// What is taken.
        what: Collided,
        /// By whom.
        owner: String,
    },
    /// Something that is not registered.
    #[error("{0} is not registered")]
    NotFound(String),
    /// A host that another job has registered and not made yet.
    #[cfg(feature = "internals")]
    #[error("host {0} is registered but not made yet, or about to be removed")]
    NotReady(HostId),
    /// A host that is leased is to be unregistered.
    #[error("host {host} is in use by {}", Runs(.by))]
    InUse {
        /// The host.
        host: HostId,
        /// The jobs that hold a lease.
        by: Vec<RunId>,
    },
    /// No DSCP value is free.
    #[error("all {count} DSCP values ({range}) are in use by {}", Runs(.by))]
    DscpExhausted {
        /// How many there are.
        count: usize,
        /// The configured range.
        range: String,
        /// The jobs that hold them.
        by: Vec<RunId>,
    },
    /// The DSCP value asked for is held by another job.
    #[error("DSCP {dscp} is in use by {by}")]
    DscpTaken {
        /// The value.
        dscp: u8,
        /// The job.
        by: RunId,
    },
    /// The DSCP value asked for is outside the configured range.
    #[error("DSCP {dscp} is outside the configured range {range}")]
    DscpOutOfRange {
        /// The value.
        dscp: u8,
        /// What is allowed.
        range: String,
    },
    /// The kernel side of an operation failed.
    #[error("cannot {op} {what}")]
    Kernel {
        /// What was tried.
        op: &'static str,
        /// On what.
        what: String,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// An operation failed and so did parts of its undoing.
    #[error("{first}; undoing it failed too: {}", Lines(.undo))]
    Undo {
        /// What failed first.
        #[source]
        first: Box<RegistryError>,
        /// What could not be undone.
        undo: Vec<RegistryError>,
    },
}

impl RegistryError {
    /// The errno of the system call that failed, where one did.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Undo { first, .. } => first.errno(),
            _ => None,
        }
    }

    /// Adds what could not be undone to the error that made undoing necessary.
    pub(crate) fn with_undo(self, undo: Vec<Self>) -> Self {
        if undo.is_empty() {
            self
        } else {
            Self::Undo {
                first: Box::new(self),
                undo,
            }
        }
    }
}

struct Runs<'a>(&'a [RunId]);

impl fmt::Display for Runs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, self.0)
    }
}

struct Lines<'a>(&'a [RegistryError]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, self.0)
    }
}

struct Holders<'a>(&'a [LockHolder]);

impl fmt::Display for Holders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = if self.0.is_empty() { "" } else { ": " };
        f.write_str(before)?;
        list(f, self.0)
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
    }
    Ok(())
}
