//! Leadership: one scheduler at a time, because one lock is held.
//!
//! The lock is flock(2) on `queue/leader.lock`. The kernel frees it when its holder dies and wakes
//! one of those that wait, so a standby takes over at once and without a clock. The file is never
//! removed; its content (the leader's pid) is for people only.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::spool::{Spool, SpoolError};

/// The right to run jobs; held until it is dropped or the process dies.
#[derive(Debug)]
pub struct Leadership(#[allow(dead_code, reason = "held, not used")] Flock<File>);

/// The leader holds it.
const LOCK: &str = "leader.lock";

fn path(spool: &Spool) -> PathBuf {
    spool.queue_dir().join(LOCK)
}

impl Leadership {
    /// Takes the lead unless somebody has it.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when the lock file cannot be used.
    pub fn try_take(spool: &Spool) -> Result<Option<Self>, SpoolError> {
        match Flock::lock(spool.lock_file(LOCK)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self::taken(lock, spool))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(SpoolError::io("lock", &path(spool))(errno.into())),
        }
    }

    /// Sleeps in the kernel until the lead is free, and takes it.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when the lock file cannot be used.
    pub fn wait(spool: &Spool) -> Result<Self, SpoolError> {
        let mut file = spool.lock_file(LOCK)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(Self::taken(lock, spool)),
                Err((same, Errno::EINTR)) => file = same,
                Err((_, errno)) => return Err(SpoolError::io("lock", &path(spool))(errno.into())),
            }
        }
    }

    fn taken(mut lock: Flock<File>, spool: &Spool) -> Self {
        let mut note = || -> io::Result<()> {
            lock.set_len(0)?;
            lock.write_all(format!("{}\n", std::process::id()).as_bytes())
        };
        // For people only: a full disk is no reason not to lead.
        if let Err(error) = note() {
            let file = path(spool);
            tracing::warn!(%error, file = %file.display(), "cannot note who leads");
        }
        Self(lock)
    }
}

/// Whether a scheduler leads just now.
///
/// # Errors
/// [`SpoolError::Io`] when the lock file cannot be used.
pub fn is_led(spool: &Spool) -> Result<bool, SpoolError> {
    match Flock::lock(spool.lock_file(LOCK)?, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(SpoolError::io("lock", &path(spool))(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::spool::temporary;

    #[test]
    fn a_standby_takes_over_when_the_leader_goes() {
        let (_dir, spool) = temporary();
        assert!(!is_led(&spool).unwrap());
        let leader = Leadership::try_take(&spool).unwrap().unwrap();
        assert!(is_led(&spool).unwrap());
        assert!(Leadership::try_take(&spool).unwrap().is_none());
        std::thread::scope(|scope| {
            let standby = scope.spawn(|| Leadership::wait(&spool).unwrap());
            drop(leader);
            let leader = standby.join().unwrap();
            assert!(Leadership::try_take(&spool).unwrap().is_none());
            drop(leader);
        });
        assert!(!is_led(&spool).unwrap());
    }
}
