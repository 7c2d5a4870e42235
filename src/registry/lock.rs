//! Locks with a queue, on disk: the rules of [`queue`](super::queue) applied.

use std::{
    fmt,
    fs::File,
    io::{ErrorKind, Read},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use jiff::Timestamp;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, openat, renameat},
    sys::stat::{Mode as Permissions, fstat},
    unistd::{UnlinkatFlags, mkfifoat, unlinkat},
};
use rustix::fs::SeekFrom;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    fault,
    model::{RouterId, RunId},
    registry::{
        Collided, LockMode, Owner, RegistryError, Wait,
        medium::{self, Directory},
        mutex,
        queue::{Ticket, nearest, next_number},
    },
    wait::Woken,
};

/// Name of a FIFO that is not yet a ticket.
const NEW: &str = ".new";
/// At most so many of the oldest tickets are looked at for dead ones by each who enters.
const SWEEP: usize = 64;

/// Who holds a lock, or waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Holder")]
pub struct LockHolder {
    /// The job.
    pub run_id: RunId,
    /// How it wants the lock.
    pub mode: LockMode,
    /// Its process.
    pub pid: u32,
    /// When it came.
    pub since: Timestamp,
    /// It does not hold the lock yet.
    pub waiting: bool,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            run_id,
            mode,
            pid,
            since,
            waiting,
        } = self;
        let verb = if *waiting { "waited for" } else { "held" };
        write!(f, "{verb} {mode} by {run_id} (pid {pid}) since {since:.0}")
    }
}

/// A held place in a queue; dropping leaves the queue and wakes who comes next.
#[derive(Debug)]
pub(crate) struct QueueLock {
    ticket: Ticket,
    queue: Queue,
    /// The open FIFO is the lock.
    fifo: Option<OwnedFd>,
}

/// A router that this job holds; dropping frees it.
#[derive(Debug)]
pub struct RouterLock {
    router: RouterId,
    #[allow(dead_code, reason = "dropping it leaves the queue")]
    lock: QueueLock,
}

impl RouterLock {
    pub(crate) fn new(router: RouterId, lock: QueueLock) -> Self {
        Self { router, lock }
    }

    /// The router.
    #[must_use]
    pub fn router(&self) -> &RouterId {
        &self.router
    }

    /// How it is held.
    #[must_use]
    pub fn mode(&self) -> LockMode {
        self.lock.ticket.mode
    }
}

/// The directory of one queue, held open.
#[derive(Debug)]
struct Queue {
    locks: Arc<Directory>,
    name: String,
    fd: OwnedFd,
}

/// Enters the queue `name` and waits for its turn.
pub(crate) fn acquire(
    locks: &Arc<Directory>,
    name: &str,
    mode: LockMode,
    run_id: &RunId,
    owner: &Owner,
    wait: &Wait,
) -> Result<QueueLock, RegistryError> {
    let (lock, mut before) = loop {
        if let Some(entered) = enter(locks, name, mode, run_id, owner, wait)? {
            break entered;
        }
    };
    let mut waited = false;
    // Whoever comes later has a higher number, so those who were there before are all that matter.
    while let Some(ahead) = lock.queue.nearest_live(&lock.ticket, &mut before)? {
        waited = true;
        lock.refuse_namesake()?;
        let say = || tracing::warn!("waiting: {}", lock.timed_out(wait));
        let woken = fault::step("registry.queue.wait")
            .and_then(|()| wait.readable_or_say(ahead.as_fd(), say));
        match woken.map_err(|e| locks.error("wait for", name, e))? {
            Woken::Ready => {}
            Woken::TimedOut => return Err(lock.timed_out(wait)),
            Woken::Cancelled => {
                return Err(RegistryError::Cancelled {
                    what: name.to_owned(),
                });
            }
        }
    }
    if waited {
        lock.check_linked()?;
    }
    Ok(lock)
}

/// Who is in the queue `name`, in order.
pub(crate) fn holders(
    locks: &Arc<Directory>,
    name: &str,
) -> Result<Vec<LockHolder>, RegistryError> {
    let Some(queue) = Queue::open_existing(locks, name)? else {
        return Ok(Vec::new());
    };
    let mut live = Vec::new();
    for ticket in queue.tickets()? {
        if queue.is_live(&ticket)? {
            live.push(ticket);
        }
    }
    let holder = |t: &Ticket| LockHolder {
        run_id: t.run_id.clone(),
        mode: t.mode,
        pid: t.pid,
        since: t.since,
        waiting: nearest(&live, (t.number, t.mode)).is_some(),
    };
    Ok(live.iter().map(holder).collect())
}

/// Removes what the dead left in the queue `name`, and the queue when nobody is left.
pub(crate) fn sweep(
    locks: &Arc<Directory>,
    name: &str,
    dry_run: bool,
) -> Result<Vec<RunId>, RegistryError> {
    let Some(queue) = Queue::open_existing(locks, name)? else {
        return Ok(Vec::new());
    };
    // Nobody enters meanwhile, so no name that was found dead can be that of a new ticket. If
    // somebody is entering right now, that one sweeps.
    let fd = queue
        .fd
        .try_clone()
        .map_err(|e| queue.error("open", ".", e))?;
    let Ok(_held) = Flock::lock(fd, FlockArg::LockExclusiveNonblock) else {
        return Ok(Vec::new());
    };
    let mut dead = Vec::new();
    for ticket in queue.tickets()? {
        if !queue.is_live(&ticket)? {
            if !dry_run {
                queue.remove(&ticket)?;
            }
            dead.push(ticket.run_id);
        }
    }
    if !dry_run {
        queue.remove_unfinished()?;
        queue.discard_if_empty();
    }
    Ok(dead)
}

/// The names of all queues: those of routers have a `.`, those of hosts an `@`.
pub(crate) fn names(locks: &Directory) -> Result<Vec<String>, RegistryError> {
    let mut names = directories(locks)?;
    names.retain(|n| n.contains(['.', '@']));
    Ok(names)
}

/// The names of all that is in the directory of locks, unless only lock files are.
pub(crate) fn directories(locks: &Directory) -> Result<Vec<String>, RegistryError> {
    if !locks.may_have_directories()? {
        return Ok(Vec::new());
    }
    let names = locks.names()?.into_iter();
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}

/// Enters, and tells who is there, the dead left out as far as they were looked at. None when the
/// queue was discarded by its last user meanwhile: try again.
fn enter(
    locks: &Arc<Directory>,
    name: &str,
    mode: LockMode,
    run_id: &RunId,
    owner: &Owner,
    wait: &Wait,
) -> Result<Option<(QueueLock, Vec<Ticket>)>, RegistryError> {
    let open = || locks.lock_directory_unchecked(name);
    let held = mutex::lock_linked(locks, name, wait, open)?;
    let mut tickets = match read_tickets(&held) {
        Ok(tickets) => tickets,
        // getdents64(2) says so of a directory that was removed.
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(locks.error("list", name, e)),
    };
    let ticket = Ticket {
        number: next_number(tickets.iter().map(|t| t.number)),
        mode,
        run_id: run_id.clone(),
        pid: owner.pid,
        start_time: owner.start_time.unwrap_or(0),
        since: super::time::now(),
    };
    let fifo = match put_ticket(&held, &ticket) {
        Ok(fifo) => fifo,
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(locks.error("enter queue", name, e)),
    };
    let fd = unlock(held).map_err(|e| locks.error("unlock", name, e))?;
    let queue = Queue {
        locks: Arc::clone(locks),
        name: name.to_owned(),
        fd,
    };
    let lock = QueueLock {
        ticket,
        queue,
        fifo: Some(fifo),
    };
    let mut dead = Vec::new();
    for old in tickets.iter().take(SWEEP) {
        if !lock.queue.is_live(old)? {
            lock.queue.remove(old)?;
            dead.push(old.number);
        }
    }
    tickets.retain(|old| !dead.contains(&old.number));
    Ok(Some((lock, tickets)))
}

fn unlock(held: Flock<OwnedFd>) -> Result<OwnedFd, Errno> {
    held.unlock().map_err(|(_, e)| e)
}

/// Makes a FIFO, opens it and only then shows it as `ticket`.
fn put_ticket(queue: &OwnedFd, ticket: &Ticket) -> Result<OwnedFd, Errno> {
    let step = |name| fault::step(name).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)));
    let make = || mkfifoat(queue, NEW, Permissions::S_IRUSR | Permissions::S_IWUSR);
    step("registry.queue.make")?;
    match make() {
        // Whoever made it died before it became a ticket; only one at a time gets here.
        Err(Errno::EEXIST) => {
            unlinkat(queue, NEW, UnlinkatFlags::NoRemoveDir)?;
            make()?;
        }
        other => other?,
    }
    // O_RDWR does not wait for a reader, fifo(7).
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fifo = openat(queue, NEW, flags, Permissions::empty())?;
    step("registry.queue.enter")?;
    renameat(queue, NEW, queue, ticket.to_string().as_str())?;
    Ok(fifo)
}

impl QueueLock {
    fn check_linked(&self) -> Result<(), RegistryError> {
        let name = self.ticket.to_string();
        let linked = match self.fifo.as_ref().map(fstat) {
            Some(Ok(stat)) => stat.st_nlink > 0,
            Some(Err(e)) => return Err(self.queue.error("examine", &name, e)),
            None => false,
        };
        if linked {
            Ok(())
        } else {
            Err(RegistryError::LockLost {
                what: self.queue.name.clone(),
                path: self.queue.path(&name),
            })
        }
    }

    /// Refuses to wait behind another process that has this job's run id: it is the same job started
    /// twice, and would wait for itself.
    fn refuse_namesake(&self) -> Result<(), RegistryError> {
        let mine = &self.ticket;
        let namesake = |t: &&Ticket| t.run_id == mine.run_id && t.pid != mine.pid;
        for ticket in self.queue.tickets()?.iter().filter(namesake) {
            if self.queue.is_live(ticket)? {
                return Err(RegistryError::Collision {
                    subject: format!("a place in the queue of {}", self.queue.name),
                    what: Collided::Run(mine.run_id.clone()),
                    owner: format!("process {}", ticket.pid),
                });
            }
        }
        Ok(())
    }

    fn timed_out(&self, wait: &Wait) -> RegistryError {
        let mut holders = holders(&self.queue.locks, &self.queue.name).unwrap_or_default();
        holders.retain(|h| h.run_id != self.ticket.run_id || h.pid != self.ticket.pid);
        RegistryError::LockTimeout {
            what: self.queue.name.clone(),
            waited: wait.waited(),
            holders,
        }
    }
}

impl Drop for QueueLock {
    fn drop(&mut self) {
        // A ticket that stays linked is dead as soon as the FIFO is closed, and is swept.
        if let Err(e) = self.queue.remove(&self.ticket) {
            tracing::warn!(error = %e, "cannot remove a lock's ticket");
        }
        self.fifo = None;
        self.queue.discard_if_empty();
    }
}

impl Queue {
    fn open_existing(locks: &Arc<Directory>, name: &str) -> Result<Option<Self>, RegistryError> {
        let fd = locks.sub_existing(name)?.map(Directory::into_fd);
        Ok(fd.map(|fd| Self {
            locks: Arc::clone(locks),
            name: name.to_owned(),
            fd,
        }))
    }

    /// Who is in it, in order; nobody where its last user discarded it meanwhile.
    fn tickets(&self) -> Result<Vec<Ticket>, RegistryError> {
        rustix::fs::seek(&self.fd, SeekFrom::Start(0)).map_err(|e| self.error("list", ".", e))?;
        match read_tickets(&self.fd) {
            Err(Errno::ENOENT) => Ok(Vec::new()),
            other => other.map_err(|e| self.error("list", ".", e)),
        }
    }

    /// The FIFO of the nearest live ticket of `tickets` in the way of `mine`; dead ones in the way
    /// are removed.
    fn nearest_live(
        &self,
        mine: &Ticket,
        tickets: &mut Vec<Ticket>,
    ) -> Result<Option<File>, RegistryError> {
        while let Some(ahead) = nearest(tickets, (mine.number, mine.mode)).cloned() {
            if let Some(fifo) = self.open_live(&ahead)? {
                return Ok(Some(fifo));
            }
            self.remove(&ahead)?;
            tickets.retain(|t| *t != ahead);
        }
        Ok(None)
    }

    fn is_live(&self, ticket: &Ticket) -> Result<bool, RegistryError> {
        Ok(self.open_live(ticket)?.is_some())
    }

    /// The ticket's FIFO if somebody has it open for writing. A poll(2) on it reports POLLHUP once
    /// nobody has: it does so only for writers that were there after the FIFO was opened here, and
    /// the read(2) has shown that there is one.
    fn open_live(&self, ticket: &Ticket) -> Result<Option<File>, RegistryError> {
        let name = ticket.to_string();
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut fifo: File = match openat(&self.fd, name.as_str(), flags, Permissions::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(self.error("open", &name, e)),
        };
        match fifo.read(&mut [0; 64]) {
            // End of file: nobody has it open for writing.
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(fifo)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Some(fifo)),
            Err(e) => Err(self.error("examine", &name, e)),
        }
    }

    fn remove(&self, ticket: &Ticket) -> Result<(), RegistryError> {
        let name = ticket.to_string();
        fault::step("registry.queue.leave").map_err(|e| self.error("remove", &name, e))?;
        match unlinkat(&self.fd, name.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(self.error("remove", &name, e)),
        }
    }

    /// Removes a FIFO that did not become a ticket; the directory is locked.
    fn remove_unfinished(&self) -> Result<(), RegistryError> {
        match unlinkat(&self.fd, NEW, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(self.error("remove", NEW, e)),
        }
    }

    /// Who enters at the same time either has its FIFO in the directory, then it stays, or finds
    /// the directory gone and makes it anew.
    fn discard_if_empty(&self) {
        let _ = unlinkat(
            self.locks.fd(),
            self.name.as_str(),
            UnlinkatFlags::RemoveDir,
        );
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.locks.path().join(&self.name).join(name)
    }

    fn error(&self, op: &'static str, name: &str, e: impl Into<std::io::Error>) -> RegistryError {
        RegistryError::Io {
            op,
            path: self.path(name),
            source: e.into(),
        }
    }
}

fn read_tickets(queue: &OwnedFd) -> Result<Vec<Ticket>, Errno> {
    let names = entries(queue)?;
    let mut tickets: Vec<Ticket> = names.iter().filter_map(|n| n.parse().ok()).collect();
    tickets.sort_unstable_by_key(|t| t.number);
    Ok(tickets)
}

/// The names in a directory that this process has open for itself alone.
fn entries(directory: &OwnedFd) -> Result<Vec<String>, Errno> {
    let names = medium::entries(directory.as_fd())?.into_iter();
    Ok(names
        .filter_map(|name| String::from_utf8(name).ok())
        .collect())
}
