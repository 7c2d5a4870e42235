//! Turns: of several jobs, one at a time traces on a router.
//!
//! The kernel tells every listener of every traced packet, so that the work of N jobs that trace at
//! once grows with N². The turn is a listening socket under a name that only one of a network namespace
//! can have, unix(7): it needs no path, and nothing of it is left. Who waits connects to it. Whoever has
//! had the turn hands the socket to the one that has waited longest, with all others that wait in it, so
//! that nobody else is woken; and when it dies instead, the kernel tells all of them.
//!
//! It is a courtesy and no lock: each job recognises its own probes. Who has waited for long goes on
//! without.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The name, in the abstract namespace.
const NAME: &str = "tsimtrace";

/// This job's turn on one router, until dropped.
#[derive(Debug)]
pub struct TraceTurn(UnixListener);

impl TraceTurn {
    /// Waits for the turn in the calling thread's network namespace, at most for `patience`; none
    /// if it is not had by then, or cannot be.
    #[must_use]
    pub fn wait_here(patience: Duration) -> Option<Self> {
        Self::wait_for(NAME, patience)
    }

    fn wait_for(name: &str, patience: Duration) -> Option<Self> {
        let address = SocketAddr::from_abstract_name(name).ok()?;
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
                await_word(&holder, left);
                if let Some(listener) = handed(&holder) {
                    return Some(Self(listener));
                }
            }
        }
    }

    /// Hands the turn to the one that has waited longest, if somebody waits.
    fn hand_over(&self) -> io::Result<()> {
        self.0.set_nonblocking(true)?;
        loop {
            let (waiter, _) = self.0.accept()?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut along = SendAncillaryBuffer::new(&mut space);
            let turn = [self.0.as_fd()];
            along.push(SendAncillaryMessage::ScmRights(&turn));
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            // One that has given up is passed over.
            if sendmsg(&waiter, &[IoSlice::new(&[0])], &mut along, flags).is_ok() {
                return Ok(());
            }
        }
    }
}

impl Drop for TraceTurn {
    fn drop(&mut self) {
        // Nobody waits, or they are told by the socket's end.
        let _ = self.hand_over();
    }
}

/// Waits until the other end hands the turn over or has gone.
fn await_word(holder: &UnixStream, left: Duration) {
    let mut fds = [PollFd::new(holder.as_fd(), PollFlags::POLLIN)];
    // Rounded up: a wait that ends a fraction early would spin until the deadline.
    let millis = left.as_micros().div_ceil(1000);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    // A signal, or an error, makes the caller look again.
    let _ = poll(&mut fds, timeout);
}

/// The turn, if the other end has handed it over; does not wait.
fn handed(holder: &UnixStream) -> Option<UnixListener> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut along = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut word = [0];
    recvmsg(holder, &mut [IoSliceMut::new(&mut word)], &mut along, flags).ok()?;
    let mut sockets = along.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    sockets.next().map(|socket: OwnedFd| socket.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, process, sync::mpsc, thread};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(5);

    /// A name of this test's own.
    fn name(test: &str) -> String {
        format!("tsimtest-{test}-{}", process::id())
    }

    /// Waits until so many have connected to the socket of this name, whether they have given up since or not.
    fn until_waiting(name: &str, many: usize) {
        let end = format!("@{name}");
        loop {
            let table = fs::read_to_string("/proc/self/net/unix").unwrap();
            // The socket itself, and one more for each connection.
            if table.lines().filter(|line| line.ends_with(&end)).count() == many + 1 {
                return;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn turns_go_to_who_has_waited_longest_and_none_is_waited_for_for_ever() {
        let name = name("order");
        let first = TraceTurn::wait_for(&name, LONG).unwrap();
        // Leaves its place when it gives up.
        assert!(TraceTurn::wait_for(&name, SHORT).is_none());
        let (send, receive) = mpsc::channel();
        let mut waiters = Vec::new();
        for number in 2..5 {
            let (name, send) = (name.clone(), send.clone());
            let known = waiters.len() + 1;
            until_waiting(&name, known);
            waiters.push(thread::spawn(move || {
                let turn = TraceTurn::wait_for(&name, LONG);
                send.send(number).unwrap();
                turn.is_some()
            }));
        }
        until_waiting(&name, 4);
        assert!(receive.recv_timeout(Duration::from_millis(20)).is_err());
        drop(first);
        assert_eq!(receive.iter().take(3).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
        assert!(TraceTurn::wait_for(&name, LONG).is_some());
    }

    #[test]
    fn a_turn_whose_holder_dies_is_had_by_one_that_waits() {
        let name = name("death");
        // The kernel closes it, and nobody hands it over.
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let killed = UnixListener::bind_addr(&address).unwrap();
        let waiter = {
            let name = name.clone();
            thread::spawn(move || TraceTurn::wait_for(&name, LONG).is_some())
        };
        until_waiting(&name, 1);
        drop(killed);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn a_turn_that_was_handed_to_one_that_has_given_up_is_free() {
        let name = name("late");
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let first = TraceTurn::wait_for(&name, LONG).unwrap();
        let late = UnixStream::connect_addr(&address).unwrap();
        drop(first);
        // It is in that one's hands, who never takes it.
        assert!(TraceTurn::wait_for(&name, SHORT).is_none());
        drop(late);
        assert!(TraceTurn::wait_for(&name, LONG).is_some());
    }
}
