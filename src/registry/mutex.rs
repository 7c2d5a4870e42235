//! Mutual exclusion for one short change: flock(2) on a file or directory below `locks/`.
//!
//! The kernel queues whoever blocks in flock(2), wakes one at a time, and frees the lock when its
//! holder dies. But flock(2) takes no time-out, and a holder may be stopped (SIGSTOP) between two
//! instructions. So when the lock is taken, a thread blocks in flock(2) and the caller sleeps in
//! poll(2) for that thread, its deadline or its [`Cancel`](crate::registry::Cancel). A thread
//! whose caller gave up ends as soon as it gets the lock, and frees it at once.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::mpsc,
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::{
        eventfd::{EfdFlags, EventFd},
        stat::fstat,
    },
};

use crate::registry::{
    RegistryError, Wait,
    medium::Directory,
    order::{Before, Level, Token},
    wait::Woken,
};

/// Stack of the thread that blocks in flock(2) and does nothing else.
const STACK: usize = 64 << 10;

/// A held lock; dropping frees it.
#[derive(Debug)]
pub(crate) struct Guard<'t, L: Level> {
    _held: Flock<OwnedFd>,
    token: Token<'t, L>,
}

impl<'t, L: Level> Guard<'t, L> {
    /// What may be locked while this is held.
    pub(crate) fn token(&mut self) -> &mut Token<'t, L> {
        &mut self.token
    }
}

/// Locks the file `name`.
pub(crate) fn lock<'t, L: Level, P: Before<L>>(
    token: &'t mut Token<'_, P>,
    locks: &Directory,
    name: &str,
    wait: &Wait,
) -> Result<Guard<'t, L>, RegistryError> {
    let held = lock_linked(locks, name, wait, || locks.lock_file(name))?;
    Ok(Guard {
        _held: held,
        token: token.then(),
    })
}

/// Opens and locks until what was locked is still linked: a lock on an unlinked file excludes
/// nobody who comes later.
pub(crate) fn lock_linked(
    locks: &Directory,
    name: &str,
    wait: &Wait,
    mut open: impl FnMut() -> Result<OwnedFd, RegistryError>,
) -> Result<Flock<OwnedFd>, RegistryError> {
    loop {
        let held = exclusive(open()?, locks, name, wait)?;
        let stat = fstat(&*held).map_err(|e| locks.error("examine", name, e))?;
        if stat.st_nlink > 0 {
            return Ok(held);
        }
    }
}

fn exclusive(
    fd: OwnedFd,
    locks: &Directory,
    name: &str,
    wait: &Wait,
) -> Result<Flock<OwnedFd>, RegistryError> {
    match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(held),
        Err((fd, Errno::EWOULDBLOCK)) => blocking(fd, wait)
            .map_err(|e| locks.error("lock", name, e))?
            .map_err(|woken| gave_up(woken, locks, name, wait)),
        Err((_, e)) => Err(locks.error("lock", name, e)),
    }
}

fn gave_up(woken: Woken, locks: &Directory, name: &str, wait: &Wait) -> RegistryError {
    let what = locks.path().join(name).display().to_string();
    match woken {
        Woken::Cancelled => RegistryError::Cancelled { what },
        _ => RegistryError::LockTimeout {
            what,
            waited: wait.waited(),
            holders: Vec::new(),
        },
    }
}

fn blocking(fd: OwnedFd, wait: &Wait) -> io::Result<Result<Flock<OwnedFd>, Woken>> {
    let ready = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
    let (send, receive) = mpsc::sync_channel(1);
    let signal = ready.as_fd().try_clone_to_owned()?;
    thread::Builder::new()
        .name("tsim-flock".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            // A receiver that has gone drops the lock with the message.
            let _ = send.send(block(fd));
            let _ = nix::unistd::write(&signal, &1u64.to_ne_bytes());
        })?;
    match wait.readable(ready.as_fd())? {
        Woken::Ready => receive
            .recv()
            .map_err(io::Error::other)?
            .map(Ok)
            .map_err(Into::into),
        gave_up => Ok(Err(gave_up)),
    }
}

fn block(mut fd: OwnedFd) -> Result<Flock<OwnedFd>, Errno> {
    loop {
        match Flock::lock(fd, FlockArg::LockExclusive) {
            Ok(held) => return Ok(held),
            Err((same, Errno::EINTR)) => fd = same,
            Err((_, e)) => return Err(e),
        }
    }
}
