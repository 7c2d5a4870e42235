//! Exclusive flock(2) with an end: who waits is told for whom after a second, and gives up at its
//! deadline.
//!
//! The kernel queues whoever blocks in flock(2), wakes one at a time, and frees the lock when its
//! holder dies. But flock(2) takes no time-out, and a holder may be stopped (SIGSTOP) between two
//! instructions. So when the lock is taken, a thread blocks in flock(2) and the caller sleeps in
//! poll(2) for that thread, its deadline or its [`Cancel`](crate::wait::Cancel). A thread whose
//! caller gave up ends as soon as it gets the lock, and frees it at once.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
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

use crate::{
    model::printable,
    wait::{Wait, Woken},
};

/// Stack of the thread that blocks in flock(2) and does nothing else.
const STACK: usize = 64 << 10;

/// Why a lock was not had.
#[derive(Debug)]
pub(crate) enum NotLocked {
    /// The deadline came; the process that has the lock, as far as the kernel tells.
    TimedOut(Option<u32>),
    /// The wait was cancelled.
    Cancelled,
    /// The kernel refused.
    Io(io::Error),
}

impl NotLocked {
    /// As an error of the system; `waited` says for how long.
    pub(crate) fn into_io(self, wait: &Wait) -> io::Error {
        match self {
            Self::Io(error) => error,
            Self::Cancelled => io::ErrorKind::Interrupted.into(),
            Self::TimedOut(holder) => {
                let holder = described(holder);
                let waited = wait.waited().as_secs_f64();
                let text = format!("{holder} has it locked for more than {waited:.1} s");
                io::Error::new(io::ErrorKind::TimedOut, text)
            }
        }
    }
}

/// Locks the file `path`, open as `fd`.
pub(crate) fn exclusive(
    fd: OwnedFd,
    path: &Path,
    wait: &Wait,
) -> Result<Flock<OwnedFd>, NotLocked> {
    let fd = match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
        Ok(held) => return Ok(held),
        Err((fd, Errno::EWOULDBLOCK)) => fd,
        Err((_, errno)) => return Err(NotLocked::Io(errno.into())),
    };
    let inode = fstat(&fd).map(|stat| stat.st_ino).unwrap_or_default();
    // A thread that blocks for nobody would get the lock when it is freed, before whoever tries then.
    if wait.is_over() {
        return Err(NotLocked::TimedOut(holder_of(inode)));
    }
    let say = || {
        let lock = path.display();
        tracing::warn!(
            "waiting for {}, which has {lock} locked",
            described(holder_of(inode))
        );
    };
    match blocking(fd, wait, say).map_err(NotLocked::Io)? {
        Ok(held) => Ok(held),
        Err(Woken::Cancelled) => Err(NotLocked::Cancelled),
        Err(_) => Err(NotLocked::TimedOut(holder_of(inode))),
    }
}

/// A process in words: its number and its command line, behind its name where that is no part of it, as of
/// one that was forked and goes on as another program.
pub(crate) fn described(pid: Option<u32>) -> String {
    let Some(pid) = pid else {
        return "another process".to_owned();
    };
    let read = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = read("cmdline");
    let words = line.split(|b| *b == 0).take(4);
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    let words = words.join(" ");
    let name = read("comm");
    let name = String::from_utf8_lossy(&name);
    match (words.trim(), name.trim()) {
        ("", _) => format!("process {pid}"),
        (words, name) if words.contains(name) => format!("process {pid} ({})", printable(words)),
        (words, name) => format!("process {pid} ({}: {})", printable(name), printable(words)),
    }
}

pub(crate) fn holder_of(inode: u64) -> Option<u32> {
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    holder(&table, inode)
}

/// The process that holds a flock(2) on `inode`, by proc_locks(5). Lines of those that wait have a
/// `->` in them.
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

fn blocking(
    fd: OwnedFd,
    wait: &Wait,
    say: impl FnOnce(),
) -> io::Result<Result<Flock<OwnedFd>, Woken>> {
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
    match wait.readable_or_say(ready.as_fd(), say)? {
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

    #[test]
    fn the_kernels_table_of_locks_is_read() {
        let table = "1: POSIX  ADVISORY  WRITE 7 00:2d:31 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 8 00:2d:31 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 00:2d:31 0 EOF\n";
        assert_eq!(holder(table, 31), Some(9));
        assert_eq!(holder(table, 32), None);
    }

    #[test]
    fn who_gives_up_names_the_process_that_has_the_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || OwnedFd::from(file.reopen().unwrap());
        let held = exclusive(open(), file.path(), &Wait::not()).unwrap();
        let wait = Wait::at_most(Duration::from_millis(10));
        let refused = exclusive(open(), file.path(), &wait).unwrap_err();
        let text = refused.into_io(&wait).to_string();
        let me = format!("process {} (", std::process::id());
        assert!(text.contains(&me), "{text}");
        drop(held);
        exclusive(open(), file.path(), &Wait::forever()).expect("who gave up does not keep it");
    }
}
