//! Network namespaces: create, list, open, enter, delete; sockets opened inside, used outside.
//!
//! Named namespaces are those of ip-netns(8): a file in [`NetnsDir`] on which the namespace is
//! bind-mounted. Whoever wants to be inside one passes a closure to [`NetnsFd::enter`]; it runs
//! on a thread of its own that ends afterwards, so no thread of the program ever has to find its
//! way back (setns(2), network_namespaces(7)). Only to open sockets ([`visit`]) a thread goes itself,
//! after it has made sure of its way back. Nothing is forked; the only commands are the tools
//! for which no library does ([`tool`]).
//!
//! A socket belongs for ever to the namespace that it was opened in and may be used from any
//! thread. Every descriptor is `O_CLOEXEC`, because an open one keeps its namespace alive after
//! the name is gone.

mod dir;
mod fd;
pub mod shut_in;
pub mod tool;

use std::{io, path::PathBuf};

use thiserror::Error;

pub(crate) use self::fd::moved;
pub use self::{
    dir::{DEFAULT_DIR, NetnsDir},
    fd::{NetnsFd, NetnsId, in_scratch, visit},
};
use crate::model::NetnsName;

/// Something about a named network namespace failed.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// The directory of named namespaces could not be made, or not be made a shared mount.
    #[error("cannot {step} the namespace directory {dir}")]
    PrepareDir {
        /// The directory.
        dir: PathBuf,
        /// Which step failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The name is taken.
    #[error("network namespace {netns} already exists")]
    Exists {
        /// The name.
        netns: NetnsName,
    },
    /// There is no namespace of this name.
    #[error("there is no network namespace {netns}")]
    NotFound {
        /// The name.
        netns: NetnsName,
    },
    /// The file of this name is no namespace: what a crash between two steps of a creation
    /// leaves. Creating or deleting the name puts it right.
    #[error("{path} is not a network namespace")]
    NotANamespace {
        /// The file.
        path: PathBuf,
    },
    /// A namespace could not be created.
    #[error("cannot {step} network namespace {netns}")]
    Create {
        /// The name.
        netns: NetnsName,
        /// Which step failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A namespace could not be opened.
    #[error("cannot open network namespace {netns}")]
    Open {
        /// The name.
        netns: NetnsName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory could not be read.
    #[error("cannot list the network namespaces in {dir}")]
    List {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A namespace could not be deleted.
    #[error("cannot {step} network namespace {netns}")]
    Delete {
        /// The name.
        netns: NetnsName,
        /// Which step failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread could not join a namespace.
    #[error("cannot enter network namespace {netns}")]
    Enter {
        /// The name.
        netns: NetnsName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A socket could not be opened inside a namespace.
    #[cfg(feature = "internals")]
    #[error("cannot open a socket in network namespace {netns}")]
    Socket {
        /// The name.
        netns: NetnsName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A namespace without a name could not be made.
    #[error("cannot make a network namespace")]
    Scratch(#[source] io::Error),
    /// The thread for work inside a namespace could not be started.
    #[error("cannot start a thread for work inside a network namespace")]
    Thread(#[source] io::Error),
    /// The work inside a namespace panicked.
    #[error("work inside a network namespace panicked: {message}")]
    Panicked {
        /// What it panicked with.
        message: String,
    },
}
