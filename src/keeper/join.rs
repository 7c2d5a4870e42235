//! Going into the keeper's namespaces, which are made if there are none.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use rustix::{
    fs::FlockOperation,
    process::{Pid, PidfdFlags, pidfd_open},
};
use thiserror::Error;

use super::{Keeper, NAME, Obstacle, RefusedStep, USE};
use crate::{
    config::Places,
    flock::{self, NotLocked},
    model::owner::Liveness,
    netns,
    registry::{RegistryError, medium::Directory},
    wait::{Wait, Woken},
};

/// How often a keeper that ended in this very moment is replaced.
const ATTEMPTS: usize = 16;

/// Namespaces of an ordinary user could not be had.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// The runtime directory is not to be trusted or cannot be made.
    #[error(transparent)]
    Directory(#[from] RegistryError),
    /// Something in it could not be used.
    #[error("cannot {call} {path}")]
    File {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The keeper could not be started.
    #[error("cannot start the keeper of this user's namespaces")]
    Start(#[source] io::Error),
    /// Something that it needs is forbidden here.
    #[error("cannot work without root here")]
    Obstacle(#[from] Obstacle),
    /// It is there and does not let this process in.
    #[error("cannot join the namespaces of the keeper, process {pid}")]
    Join {
        /// The keeper.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Each one that was started ended at once.
    #[error("the keeper of this user's namespaces ended again and again")]
    Unstable,
}

/// Which network a process that joins is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Networks {
    /// The keeper's, where the user may do everything.
    Keepers,
    /// The machine's, as before: for who listens there.
    Machines,
}

/// The calling process is in a keeper's namespaces.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The keeper.
    pub keeper: Keeper,
    /// Whether this process started it.
    pub started: bool,
    /// Locked as long as this is open: the keeper waits for that.
    pub users: File,
}

/// The keeper of the user whose places these are, if it lives.
///
/// # Errors
/// [`KeeperError::File`].
pub(crate) fn find(places: &Places) -> Result<Option<Keeper>, KeeperError> {
    let path = places.runtime_dir.join(super::STATE);
    let keeper: Keeper = match fs::read(&path) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(keeper) => keeper,
            Err(e) => return Err(file_error("read", &path)(e.into())),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(file_error("read", &path)(e)),
    };
    Ok((keeper.owner.liveness() == Liveness::Alive).then_some(keeper))
}

fn file_error(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeeperError {
    let path = path.to_owned();
    move |source| KeeperError::File { call, path, source }
}

/// Takes the calling process into the namespaces of its user's keeper, and starts one if there is
/// none. The process must have one thread only: the kernel lets no other change its user namespace
/// (setns(2)). It keeps its working directory.
///
/// # Errors
/// [`KeeperError`], also when `wait` is over before; the process is where it was then, unless half of
/// [`KeeperError::Join`] was done.
pub(crate) fn join(
    places: &Places,
    networks: Networks,
    wait: &Wait,
) -> Result<Joined, KeeperError> {
    let path = Directory::open(&places.runtime_dir)?.path().join(USE);
    let (mut starts, mut users, mut closed) = (0, open_use(&path)?, None);
    loop {
        let failed = |e| file_error("lock", &path)(e);
        if locked(&users, FlockOperation::NonBlockingLockShared).map_err(failed)? {
            if starts > 0 {
                // Who waits for the lock hears of closing only.
                drop(File::open(&path));
            }
            if let Some(keeper) = find(places)? {
                match enter(&keeper, networks) {
                    Ok(()) => {
                        return Ok(Joined {
                            keeper,
                            started: starts > 0,
                            users,
                        });
                    }
                    Err(KeeperError::Join { source, .. }) if is_of_ended(&source) => {
                        await_end(&keeper, wait).map_err(failed)?;
                    }
                    Err(error) => return Err(error),
                }
            }
            // Of several who find none, the first starts one, and the others find that. Whoever is
            // still inside of one that is gone is waited for.
        }
        if !locked(&users, FlockOperation::NonBlockingLockExclusive).map_err(failed)? {
            await_close(&users, &path, &mut closed, wait).map_err(failed)?;
        } else if users.metadata().map_err(failed)?.nlink() == 0 {
            // The directory was removed and made again.
            (users, closed) = (open_use(&path)?, None);
        } else if find(places)?.is_none() {
            if starts == ATTEMPTS {
                return Err(KeeperError::Unstable);
            }
            // The file stays open and the lock becomes a shared one without being given up in between: a
            // new keeper ends when it hears of closing and finds that nobody holds the lock.
            start(places)?;
            starts += 1;
        }
    }
}

/// Whether a keeper could not be joined because it is ending: the kernel closes its files, locks with
/// them, and takes it out of its namespaces before it counts as ended.
fn is_of_ended(source: &io::Error) -> bool {
    source.raw_os_error() == Some(libc::ESRCH) || source.kind() == io::ErrorKind::NotFound
}

/// Waits until a keeper that is ending has ended; from then on it is not found.
fn await_end(keeper: &Keeper, wait: &Wait) -> io::Result<()> {
    let pid = i32::try_from(keeper.owner.pid).ok().and_then(Pid::from_raw);
    let Some(Ok(pidfd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return Ok(());
    };
    // Its number may be that of another process by now, which nobody waits for.
    match keeper.owner.liveness() {
        Liveness::Alive => wait.readable(pidfd.as_fd()).map(drop),
        _ => Ok(()),
    }
}

fn locked(users: &File, how: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(users, how) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Sleeps until somebody has closed the file since this was first called. Without a thread, as others
/// wait for such a lock: [`enter`] must be alone.
fn await_close(
    users: &File,
    path: &Path,
    closed: &mut Option<Inotify>,
    wait: &Wait,
) -> io::Result<()> {
    let Some(watch) = closed else {
        let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
        watch.add_watch(path, AddWatchFlags::IN_CLOSE)?;
        *closed = Some(watch);
        return Ok(());
    };
    let inode = users.metadata()?.ino();
    let holder = || flock::described(flock::holder_of(inode));
    let say = || tracing::warn!("waiting for {}, which is in namespaces of before", holder());
    match wait.readable_or_say(watch.as_fd(), say)? {
        Woken::Ready => Ok(watch.read_events().map(drop)?),
        _ => Err(NotLocked::TimedOut(flock::holder_of(inode)).into_io(wait)),
    }
}

/// Whoever closes the file after writing may have been the last, whatever they wrote.
fn open_use(path: &Path) -> Result<File, KeeperError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    options
        .truncate(false)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(file_error("open", path))
}

/// Starts a keeper and waits until it has its namespaces.
fn start(places: &Places) -> Result<(), KeeperError> {
    let mut child = Command::new("/proc/self/exe")
        .arg0(NAME)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(KeeperError::Start)?;
    let mut said = Vec::new();
    let mut exchange = || -> io::Result<()> {
        if let Some(mut input) = child.stdin.take() {
            serde_json::to_writer(&mut input, &Keeper::planned(places))?;
            input.flush()?;
        }
        if let Some(output) = child.stdout.as_mut() {
            output.read_to_end(&mut said)?;
        }
        Ok(())
    };
    exchange().map_err(KeeperError::Start)?;
    match serde_json::from_slice::<Option<Obstacle>>(&said) {
        Ok(None) => Ok(()),
        Ok(Some(obstacle)) => {
            // It ends by itself; its status says no more.
            let _ = child.wait();
            Err(obstacle.into())
        }
        Err(error) => Err(KeeperError::Start(error.into())),
    }
}

/// All at once: the kernel sees to it that the user namespace goes first.
fn enter(keeper: &Keeper, networks: Networks) -> Result<(), KeeperError> {
    let pid = keeper.owner.pid;
    let fail = |source| KeeperError::Join { pid, source };
    let here = env::current_dir();
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let target = target.ok_or_else(|| fail(io::ErrorKind::InvalidData.into()))?;
    // A filter that whoever started the keeper does not have may refuse either.
    let refused = |source: io::Error| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            Obstacle::new(RefusedStep::Join, &source).into()
        }
        _ => fail(source),
    };
    let pidfd = pidfd_open(target, PidfdFlags::empty()).map_err(|e| refused(e.into()))?;
    // Looked at after the descriptor was opened, which from then on means one process for ever.
    if keeper.owner.liveness() != Liveness::Alive {
        return Err(fail(io::ErrorKind::NotFound.into()));
    }
    let mut namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    if networks == Networks::Keepers {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    setns(&pidfd, namespaces).map_err(|e| refused(e.into()))?;
    netns::moved();
    // A process that changes its mount namespace is put into the root directory. One that was removed
    // meanwhile is nowhere.
    if let Ok(here) = here {
        let _ = env::set_current_dir(here);
    }
    Ok(())
}

/// Has the keeper wait for the calling process, which is inside already.
///
/// # Errors
/// When the file cannot be opened or locked.
pub(crate) fn stay(keeper: &Keeper) -> io::Result<File> {
    let path = keeper.places.runtime_dir.join(USE);
    let users = OpenOptions::new().read(true).write(true).open(path)?;
    rustix::fs::flock(&users, FlockOperation::LockShared)?;
    Ok(users)
}
