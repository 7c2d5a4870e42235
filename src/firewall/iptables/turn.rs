//! Turns: of several jobs, one at a time changes a router's iptables.
//!
//! Whether a table or chain came into being with taps, and so has to go with them, can only be
//! told while no other job is in the middle of installing or removing. The lock is on the
//! namespace itself, so it needs no path, and the kernel frees it when its holders die: the job, and
//! the tool that it started, which may be at work still when the job is killed.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use nix::fcntl::Flock;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::{
    flock,
    netns::{NetnsError, NetnsFd},
    wait::Wait,
};

/// The namespace of the calling thread.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";
/// This job's turn in one router, until dropped.
#[derive(Debug)]
pub(super) struct IptablesTurn(#[expect(dead_code, reason = "held for its lock")] Flock<OwnedFd>);

impl IptablesTurn {
    /// Waits at most `patience` for the turn in a router. Another's takes a few tools, each well
    /// below a second, unless it is stopped.
    pub(super) fn wait(
        netns: &NetnsFd,
        patience: Duration,
    ) -> Result<io::Result<Self>, NetnsError> {
        // What a message calls it.
        let name = PathBuf::from(format!("iptables of {}", netns.name()));
        Ok(netns.enter(|| File::open(OWN_NETNS))?.and_then(|file| {
            let wait = Wait::at_most(patience);
            let lock = flock::exclusive(file.into(), &name, &wait);
            Self::of(lock.map_err(|error| error.into_io(&wait))?)
        }))
    }

    fn of(lock: Flock<OwnedFd>) -> io::Result<Self> {
        // Tools inherit it. The drop of this value frees it whoever has it open.
        fcntl_setfd(lock.as_fd(), FdFlags::empty())?;
        Ok(Self(lock))
    }
}
