//! The keeper's own process.

use std::{
    convert::Infallible,
    fs::{self, DirBuilder, File, FileType, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{DirBuilderExt, MetadataExt, symlink},
    },
    path::Path,
    process,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        stat::{Mode, umask},
    },
    unistd::{close, dup2_stderr, dup2_stdin, dup2_stdout, setsid},
};
use rustix::{
    fs::{FlockOperation, flock},
    process::{PidfdFlags, getpid, pidfd_open},
};

use super::{Keeper, Obstacle, RefusedStep, STATE, USE};
use crate::{
    model::owner::{KEEPER_FILE, Owner},
    netns::{self, DEFAULT_DIR},
};

/// How the process calls itself. Whoever is started under this name runs [`run`] and nothing else.
pub(crate) const NAME: &str = "tsim-keeper";

/// What a private `/run` does not have from the real one: iptables' lock and ours of names belong to
/// root, and names of namespaces are those of the first user namespace.
const NOT_SHARED: [&str; 4] = [
    "netns",
    "netns.tsim-lock",
    "xtables.lock",
    "tsim-keeper.json",
];
const NONE: Option<&str> = None;

/// Becomes the keeper that standard input describes, says on standard output what came of it, and
/// holds its namespaces until nobody needs them.
pub(crate) fn run() -> ! {
    let ready = close_inherited().and_then(|()| {
        let plan = plan()?;
        let users = open_use(&plan)?;
        let keeper = take_namespaces(plan)?;
        let watch = watch(&keeper).map_err(failed(RefusedStep::Files))?;
        Ok((keeper, users, watch))
    });
    let told = tell(ready.as_ref().err());
    let held = match (ready, told) {
        (Ok((keeper, users, watch)), Ok(())) => {
            detach().and_then(|()| hold(&keeper, &users, &watch))
        }
        // Nobody has heard of it who could use it.
        _ => process::exit(1),
    };
    process::exit(i32::from(held.is_err()))
}

/// Tells who has started this process: null, or what stood in the way.
fn tell(obstacle: Option<&Obstacle>) -> io::Result<()> {
    let mut out = io::stdout();
    serde_json::to_writer(&mut out, &obstacle)?;
    out.flush()
}

fn failed(step: RefusedStep) -> impl Fn(io::Error) -> Obstacle {
    move |error| Obstacle::new(step, &error)
}

fn refused(step: RefusedStep) -> impl Fn(Errno) -> Obstacle {
    move |errno| Obstacle::new(step, &errno.into())
}

fn plan() -> Result<Keeper, Obstacle> {
    let mut text = Vec::new();
    let read = io::stdin().read_to_end(&mut text);
    read.and_then(|_| Ok(serde_json::from_slice(&text)?))
        .map_err(failed(RefusedStep::Files))
}

/// For reading only: closing it is no event for [`watch`].
fn open_use(plan: &Keeper) -> Result<File, Obstacle> {
    File::open(plan.places.runtime_dir.join(USE)).map_err(failed(RefusedStep::Files))
}

/// One step after the other, so that it is known which one is refused.
fn take_namespaces(plan: Keeper) -> Result<Keeper, Obstacle> {
    // No terminal, no signal of the user's shell. Fails for the leader of a group, which a process
    // that was just started is not.
    let _ = setsid();
    umask(Mode::from_bits_truncate(0o077));
    unshare(CloneFlags::CLONE_NEWUSER).map_err(refused(RefusedStep::User))?;
    become_root(&plan).map_err(failed(RefusedStep::Map))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(refused(RefusedStep::Mount))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(refused(RefusedStep::Network))?;
    netns::moved();
    private_run().map_err(failed(RefusedStep::Run))?;
    try_join().map_err(failed(RefusedStep::Join))?;
    try_unmount().map_err(refused(RefusedStep::Unmount))?;
    OpenOptions::new()
        .write(true)
        .open("/proc/sys/net/ipv4/ip_forward")
        .map_err(failed(RefusedStep::Settings))?;
    let keeper = Keeper {
        owner: Owner::current().map_err(failed(RefusedStep::Files))?,
        ..plan
    };
    write_state(&keeper).map_err(failed(RefusedStep::Files))?;
    Ok(keeper)
}

/// A shell that started the first command may have left descriptors open, locked files among them.
/// This program has opened nothing yet.
fn close_inherited() -> Result<(), Obstacle> {
    let list = || -> io::Result<Vec<RawFd>> {
        let mut open = Vec::new();
        for entry in fs::read_dir("/proc/self/fd")? {
            let name = entry?.file_name();
            open.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
        Ok(open)
    };
    for fd in list().map_err(failed(RefusedStep::Files))? {
        if fd > 2 {
            // The list's own descriptor was among them and is closed.
            let _ = close(fd);
        }
    }
    Ok(())
}

/// Maps the user to root, user_namespaces(7). Who has no right over other groups must first give up
/// setgroups(2).
fn become_root(plan: &Keeper) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1\n", plan.uid))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1\n", plan.gid))
}

/// Mounts an empty `/run` and puts what is in the real one there, so that directories of sessions,
/// facts and sockets of services are where they were.
fn private_run() -> io::Result<()> {
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(NONE, "/", NONE, slave, NONE)?;
    let old = open(
        "/run",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut entries = Vec::new();
    for entry in fs::read_dir("/run")? {
        let entry = entry?;
        let name = entry.file_name();
        if !NOT_SHARED.iter().any(|not| name == *not) {
            entries.push((name, entry.file_type()?));
        }
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tsim"), "/run", Some("tmpfs"), flags, Some("mode=755"))?;
    let old = Path::new("/proc/self/fd").join(old.as_raw_fd().to_string());
    for (name, kind) in entries {
        // What cannot be shared is missing inside, which few notice. Whether the user's own files are
        // there is seen when they are written.
        let _ = share(&old.join(&name), &Path::new("/run").join(&name), kind);
    }
    for (name, mode) in [("netns", 0o755), ("lock", 0o1777)] {
        let dir = Path::new("/run").join(name);
        match DirBuilder::new().mode(mode).create(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Goes by a pidfd where this process is already, as every later command comes here and every job goes
/// into a router: there are filters that let namespaces be made and refuse setns(2).
fn try_join() -> io::Result<()> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(setns(own, CloneFlags::CLONE_NEWNET)?)
}

/// Takes away what is mounted over a directory where nothing is, umount(2): the name of a namespace goes
/// so.
fn try_unmount() -> Result<(), Errno> {
    match umount2(DEFAULT_DIR, MntFlags::MNT_DETACH) {
        Err(Errno::EINVAL) => Ok(()),
        other => other,
    }
}

fn share(from: &Path, to: &Path, kind: FileType) -> io::Result<()> {
    if kind.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if kind.is_dir() {
        fs::create_dir(to)?;
    } else {
        File::create(to)?;
    }
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, NONE, bind, NONE).map_err(|errno| {
        let _ = if kind.is_dir() {
            fs::remove_dir(to)
        } else {
            fs::remove_file(to)
        };
        errno.into()
    })
}

/// Inside first: who finds the keeper in the runtime directory finds all of it.
fn write_state(keeper: &Keeper) -> io::Result<()> {
    let text = serde_json::to_vec(keeper)?;
    fs::write(KEEPER_FILE, &text)?;
    let dir = &keeper.places.runtime_dir;
    let mut file = tempfile::Builder::new().prefix(STATE).tempfile_in(dir)?;
    file.write_all(&text)?;
    file.persist(keeper.state_file()).map_err(|e| e.error)?;
    Ok(())
}

/// Nobody is told anything any more.
fn detach() -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    std::env::set_current_dir("/")
}

fn watch(keeper: &Keeper) -> io::Result<Inotify> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
    // IN_ATTRIB tells that the file was removed: with the runtime directory, when the user's last
    // session ends.
    let events = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
    watch.add_watch(&keeper.places.runtime_dir.join(USE), events)?;
    Ok(watch)
}

/// Sleeps until somebody leaves, and ends when nobody and nothing is left.
fn hold(keeper: &Keeper, users: &File, watch: &Inotify) -> io::Result<Infallible> {
    loop {
        match watch.read_events() {
            Err(Errno::EINTR) | Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        if users.metadata()?.nlink() == 0 {
            process::exit(0);
        }
        // Whoever comes meanwhile waits for the lock, and then finds no keeper.
        if flock(users, FlockOperation::NonBlockingLockExclusive).is_ok() {
            if fs::read_dir(DEFAULT_DIR)?.next().is_none() {
                fs::remove_file(keeper.state_file())?;
                process::exit(0);
            }
            flock(users, FlockOperation::Unlock)?;
            // Who waits hears of closing only.
            drop(File::open(keeper.places.runtime_dir.join(USE))?);
        }
    }
}
