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
    path::Path,
    time::Duration,
};

use nix::fcntl::Flock;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::{flock, wait::Wait};

/// The namespace of the calling thread.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";
/// How long a job waits for another's turn to end; it takes a few tools, each well below a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// This job's turn in one router, until dropped.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "held for its lock")] Flock<OwnedFd>);

impl Turn {
    /// Waits for the turn in the calling thread's namespace.
    pub(super) fn wait_here() -> io::Result<Self> {
        let netns = OwnedFd::from(File::open(OWN_NETNS)?);
        let wait = Wait::at_most(PATIENCE);
        let lock = flock::exclusive(netns, Path::new(OWN_NETNS), &wait)
            .map_err(|error| error.into_io(&wait))?;
        // Tools inherit it. The drop of this value frees it whoever has it open.
        fcntl_setfd(lock.as_fd(), FdFlags::empty())?;
        Ok(Self(lock))
    }
}
