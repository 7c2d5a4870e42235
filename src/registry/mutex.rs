//! Mutual exclusion for one short change: a [lock](crate::flock) on a file or directory below
//! `locks/`.
//!
//! A lock's file stays open when it is freed, for whoever locks it next in this process: opening
//! and checking it costs more than locking it. Two at once have it open twice, because the lock
//! belongs to the open file (flock(2)).

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use nix::fcntl::Flock;

use crate::{
    flock::{self, NotLocked},
    registry::{
        RegistryError, Wait,
        medium::Directory,
        order::{Before, Level, Token},
    },
};

/// Files of locks that are open, and nobody's at the moment.
#[derive(Debug, Default)]
pub(crate) struct Opened(Mutex<HashMap<&'static str, OwnedFd>>);

impl Opened {
    fn take(&self, name: &str) -> Option<OwnedFd> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(name)
    }

    fn keep(&self, name: &'static str, fd: OwnedFd) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(name, fd);
    }
}

/// A held lock; dropping frees it.
#[derive(Debug)]
pub(crate) struct RegistryGuard<'t, L: Level> {
    held: Option<Flock<OwnedFd>>,
    name: &'static str,
    opened: &'t Opened,
    token: Token<'t, L>,
}

impl<'t, L: Level> RegistryGuard<'t, L> {
    /// What may be locked while this is held.
    pub(crate) fn token(&mut self) -> &mut Token<'t, L> {
        &mut self.token
    }
}

impl<L: Level> Drop for RegistryGuard<'_, L> {
    fn drop(&mut self) {
        // What could not be unlocked is closed, and free by that.
        if let Some(Ok(fd)) = self.held.take().map(Flock::unlock) {
            self.opened.keep(self.name, fd);
        }
    }
}

/// Locks the file `name`.
pub(crate) fn lock<'t, L: Level, P: Before<L>>(
    token: &'t mut Token<'_, P>,
    (locks, opened): (&Directory, &'t Opened),
    name: &'static str,
    wait: &Wait,
) -> Result<RegistryGuard<'t, L>, RegistryError> {
    let open = || match opened.take(name) {
        Some(fd) => Ok(fd),
        None => locks.lock_file_unchecked(name),
    };
    Ok(RegistryGuard {
        held: Some(lock_linked(locks, name, wait, open)?),
        name,
        opened,
        token: token.then(),
    })
}

/// Opens and locks until what was locked is still linked: a lock on an unlinked file excludes
/// nobody who comes later. What is locked is then looked at, whether it may be trusted.
pub(crate) fn lock_linked(
    locks: &Directory,
    name: &str,
    wait: &Wait,
    mut open: impl FnMut() -> Result<OwnedFd, RegistryError>,
) -> Result<Flock<OwnedFd>, RegistryError> {
    loop {
        let fd = open()?;
        let path = locks.path().join(name);
        let held = flock::exclusive(fd, &path, wait);
        let held = held.map_err(|refused| gave_up(refused, locks, name, wait))?;
        if locks.check(name, &held)? {
            return Ok(held);
        }
    }
}

fn gave_up(refused: NotLocked, locks: &Directory, name: &str, wait: &Wait) -> RegistryError {
    let what = locks.path().join(name).display().to_string();
    match refused {
        NotLocked::Io(error) => locks.error("lock", name, error),
        NotLocked::Cancelled => RegistryError::Cancelled { what },
        NotLocked::TimedOut(holder) => RegistryError::LockTimeout {
            what: format!("{what}, which {} has locked,", flock::described(holder)),
            waited: wait.waited(),
            holders: Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread, time::Duration};

    use nix::sys::stat::fstat;

    use super::*;
    use crate::registry::{
        Cancel,
        order::{Hosts, Nothing},
    };

    /// The locks of one process.
    type Locks = (Directory, Opened);

    fn locks() -> (tempfile::TempDir, Locks) {
        let dir = tempfile::tempdir().unwrap();
        let locks = Directory::open(&dir.path().join("locks")).unwrap();
        (dir, (locks, Opened::default()))
    }

    fn take<'t>(
        token: &'t mut Token<'static, Nothing>,
        (locks, opened): &'t Locks,
        wait: &Wait,
    ) -> Result<RegistryGuard<'t, Hosts>, RegistryError> {
        lock(token, (locks, opened), "hosts", wait)
    }

    #[test]
    fn a_lock_that_was_freed_is_taken_by_the_file_that_is_open_and_excludes_all_the_same() {
        let (_dir, locks) = locks();
        let (mut a, mut b) = (Token::new(), Token::new());
        drop(take(&mut a, &locks, &Wait::not()).unwrap());
        assert!(locks.1.0.lock().unwrap().contains_key("hosts"));
        let held = take(&mut a, &locks, &Wait::not()).unwrap();
        assert!(locks.1.0.lock().unwrap().is_empty(), "it is in use");
        take(&mut b, &locks, &Wait::not()).expect_err("within one process, too");
        drop(held);
        take(&mut b, &locks, &Wait::not()).unwrap();
    }

    #[test]
    fn who_waits_too_long_is_told_which_process_has_it() {
        let (_dir, locks) = locks();
        let (mut a, mut b) = (Token::new(), Token::new());
        let held = take(&mut a, &locks, &Wait::not()).unwrap();
        let wait = Wait::at_most(Duration::from_millis(10));
        let error = take(&mut b, &locks, &wait).unwrap_err().to_string();
        let me = format!("hosts, which process {} (", std::process::id());
        assert!(error.contains(&me), "{error}");
        drop(held);
        take(&mut b, &locks, &Wait::forever()).expect("who gave up does not keep it");
    }

    #[test]
    fn who_waits_is_woken_by_a_release_and_by_cancelling() {
        let (_dir, locks) = locks();
        let (mut a, mut b) = (Token::new(), Token::new());
        let held = take(&mut a, &locks, &Wait::not()).unwrap();
        let cancel = Cancel::new().unwrap();
        cancel.cancel();
        let wait = Wait::forever().or_until(cancel);
        let error = take(&mut b, &locks, &wait).unwrap_err();
        assert!(matches!(error, RegistryError::Cancelled { .. }), "{error}");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| take(&mut b, &locks, &Wait::forever()).map(drop));
            drop(held);
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_lock_on_a_removed_file_is_not_taken_for_one() {
        let (dir, locks) = locks();
        let (mut a, mut b) = (Token::new(), Token::new());
        let held = take(&mut a, &locks, &Wait::not()).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let guard = take(&mut b, &locks, &Wait::forever()).unwrap();
                fstat(guard.held.as_deref().unwrap()).unwrap().st_nlink
            });
            fs::remove_file(dir.path().join("locks/hosts")).unwrap();
            drop(held);
            assert_eq!(waiter.join().unwrap(), 1, "the file that is there now");
        });
    }
}
