//! Turns: of several jobs, one at a time traces on a router.
//!
//! The kernel tells every listener of every traced packet, so that the work of N jobs that trace at
//! once grows with N². The turn is a name that only one socket of a network namespace can have,
//! unix(7): it needs no path, nothing of it is left, and the kernel tells those who have connected
//! when its holder closes it or dies.
//!
//! It is a courtesy and no lock: each job recognises its own probes. Who has waited for long goes on
//! without.

use std::{
    io,
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The name, in the abstract namespace.
const NAME: &str = "tsimtrace";

/// This job's turn on one router, until dropped.
#[derive(Debug)]
pub struct TraceTurn(#[expect(dead_code, reason = "held for its name")] UnixListener);

impl TraceTurn {
    /// Waits for the turn in the calling thread's network namespace, at most for `patience`; none
    /// if it is not had by then, or cannot be.
    #[must_use]
    pub fn wait_here(patience: Duration) -> Option<Self> {
        let address = SocketAddr::from_abstract_name(NAME).ok()?;
        let deadline = Instant::now() + patience;
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Some(Self(listener)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(_) => return None,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            // Refused by one that is about to listen, or has just gone: ask again.
            if let Ok(holder) = UnixStream::connect_addr(&address) {
                await_end(&holder, left);
            }
        }
    }
}

/// Waits until the other end has gone; nobody ever writes to it.
fn await_end(holder: &UnixStream, left: Duration) {
    let mut fds = [PollFd::new(holder.as_fd(), PollFlags::POLLIN)];
    // Rounded up: a wait that ends a fraction early would spin until the deadline.
    let millis = left.as_micros().div_ceil(1000);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    // A signal, or an error, makes the caller look again.
    let _ = poll(&mut fds, timeout);
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn turns_follow_each_other_and_none_is_waited_for_for_ever() {
        // In the tests' own namespace: nobody else has the name but another run of this test.
        let first = TraceTurn::wait_here(LONG).unwrap();
        assert!(TraceTurn::wait_here(Duration::from_millis(5)).is_none());
        let (send, receive) = mpsc::channel();
        let second = thread::spawn(move || {
            let turn = TraceTurn::wait_here(LONG);
            send.send(()).unwrap();
            turn.is_some()
        });
        assert!(receive.recv_timeout(Duration::from_millis(20)).is_err());
        drop(first);
        assert!(second.join().unwrap());
        assert!(TraceTurn::wait_here(LONG).is_some());
    }
}
