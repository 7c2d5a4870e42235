//! Mutual exclusion for one short change: a [lock](crate::flock) on a file or directory below
//! `locks/`.

use std::os::fd::OwnedFd;

use nix::{fcntl::Flock, sys::stat::fstat};

use crate::{
    flock::{self, NotLocked},
    registry::{
        RegistryError, Wait,
        medium::Directory,
        order::{Before, Level, Token},
    },
};

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
        let fd = open()?;
        let path = locks.path().join(name);
        let held = flock::exclusive(fd, &path, wait);
        let held = held.map_err(|refused| gave_up(refused, locks, name, wait))?;
        let stat = fstat(&*held).map_err(|e| locks.error("examine", name, e))?;
        if stat.st_nlink > 0 {
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
            what: match holder {
                Some(pid) => format!("{what} (locked by process {pid})"),
                None => what,
            },
            waited: wait.waited(),
            holders: Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread, time::Duration};

    use super::*;
    use crate::registry::{
        Cancel,
        order::{Hosts, Nothing},
    };

    fn locks() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        let locks = Directory::open(&dir.path().join("locks")).unwrap();
        (dir, locks)
    }

    fn take<'t>(
        token: &'t mut Token<'static, Nothing>,
        locks: &Directory,
        wait: &Wait,
    ) -> Result<Guard<'t, Hosts>, RegistryError> {
        lock(token, locks, "hosts", wait)
    }

    #[test]
    fn who_waits_too_long_is_told_which_process_has_it() {
        let (_dir, locks) = locks();
        let (mut a, mut b) = (Token::new(), Token::new());
        let held = take(&mut a, &locks, &Wait::not()).unwrap();
        let wait = Wait::at_most(Duration::from_millis(10));
        let error = take(&mut b, &locks, &wait).unwrap_err().to_string();
        let me = format!("hosts (locked by process {})", std::process::id());
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
                fstat(&*guard._held).unwrap().st_nlink
            });
            fs::remove_file(dir.path().join("locks/hosts")).unwrap();
            drop(held);
            assert_eq!(waiter.join().unwrap(), 1, "the file that is there now");
        });
    }
}
