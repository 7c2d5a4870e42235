//! Turns: of several jobs, one at a time changes a router's iptables.
//!
//! Whether a table or chain came into being with taps, and so has to go with them, can only be
//! told while no other job is in the middle of installing or removing. The lock is on the
//! namespace itself, so it needs no path, and the kernel frees it when its holder dies.

use std::{fs::File, io};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// The namespace of the calling thread.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// This job's turn in one router, until dropped.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "held for its lock")] Flock<File>);

impl Turn {
    /// Waits for the turn in the calling thread's namespace.
    pub(super) fn wait_here() -> io::Result<Self> {
        let mut netns = File::open(OWN_NETNS)?;
        loop {
            match Flock::lock(netns, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(Self(lock)),
                Err((again, Errno::EINTR)) => netns = again,
                Err((_, errno)) => return Err(errno.into()),
            }
        }
    }
}
