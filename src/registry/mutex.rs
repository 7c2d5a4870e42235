//! Mutual exclusion for one short change: flock(2) on a file or directory below `locks/`.
//!
//! The kernel queues whoever blocks in flock(2), wakes one at a time, and frees the lock when its
//! holder dies. But flock(2) takes no time-out, and a holder may be stopped (SIGSTOP) between two
//! instructions. So when the lock is taken, a thread blocks in flock(2) and the caller sleeps in
//! poll(2) for that thread, its deadline or its [`Cancel`](crate::registry::Cancel). A thread
//! whose caller gave up ends as soon as it gets the lock, and frees it at once.

use std::{
    fs, io,
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
        let fd = open()?;
        let inode = fstat(&fd).map(|stat| stat.st_ino).unwrap_or_default();
        let held = exclusive(fd, locks, name, wait).map_err(|e| name_holder(e, inode))?;
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

/// Adds to a time-out which process was in the way, as far as `/proc/locks` tells, proc_locks(5).
fn name_holder(error: RegistryError, inode: u64) -> RegistryError {
    let RegistryError::LockTimeout {
        what,
        waited,
        holders,
    } = error
    else {
        return error;
    };
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    let what = match holder(&table, inode) {
        Some(pid) => format!("{what} (locked by process {pid})"),
        None => what,
    };
    RegistryError::LockTimeout {
        what,
        waited,
        holders,
    }
}

/// The process that holds a flock(2) on `inode`. Lines of those that wait have a `->` in them.
fn holder(table: &str, inode: u64) -> Option<u32> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else {
            return None;
        };
        let (_, of) = file.rsplit_once(':')?;
        (of.parse() == Ok(inode)).then_some(pid.parse().ok()?)
    })
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    #[test]
    fn the_kernels_table_of_locks_is_read() {
        let table = "1: POSIX  ADVISORY  WRITE 7 00:2d:31 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 8 00:2d:31 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 00:2d:31 0 EOF\n";
        assert_eq!(holder(table, 31), Some(9));
        assert_eq!(holder(table, 32), None);
    }
}
