//! The scheduler's unix socket, and who comes by it.
//!
//! Whoever connects is known by the kernel's word (SO_PEERCRED, unix(7)), as uids of the first user
//! namespace count. A scheduler without root works in a user namespace in which nobody but its own
//! user has a number; it leaves a process outside ([`Beside`]) that opens the socket and looks.

use std::{
    ffi::CString,
    fs::{self, DirBuilder, Permissions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use serde::{Deserialize, Serialize};

use crate::config::Config;

mod beside;
mod tcp;

pub use beside::{Beside, NAME, run};

/// Connections that wait to be taken in; the kernel keeps no more than `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// How the kernel shows users that have no number in this user namespace, user_namespaces(7).
const NO_USER: u32 = 65534;

/// Where the socket is, and whom it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorPlan {
    socket: PathBuf,
    /// Whether its directory is the scheduler's own, which everybody may pass.
    own_dir: bool,
    /// Who may use it; the scheduler's own group where none is named.
    group: Option<String>,
    /// Whose members may do what root may.
    admins: Option<String>,
}

impl DoorPlan {
    /// That of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let system = crate::config::Places::system().socket();
        Self {
            own_dir: config.socket == system,
            socket: config.socket.clone(),
            group: config.scheduler.socket_group.clone(),
            admins: config.scheduler.admin_group.clone(),
        }
    }
}

/// A user of this machine who asks something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Their number.
    pub uid: u32,
    /// Their login name, or `uid N`.
    pub name: String,
    /// Whether they are root, the scheduler's own user, or of the administrators' group.
    pub admin: bool,
}

/// Opens the socket and tells who is at the other end of a connection.
#[derive(Debug)]
pub enum Door {
    /// This process does it by itself.
    Here(DoorPlan),
    /// A process outside of the user namespace does.
    Beside(Beside),
}

impl Door {
    /// Listens, in the place of a scheduler that listened there before.
    ///
    /// # Errors
    /// When the socket cannot be made or be given to its group.
    pub fn open(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Here(plan) => open(plan),
            Self::Beside(beside) => beside.open(),
        }
    }

    /// Who is at the other end of `connection`; none when that cannot be said. Of TCP connections
    /// only those from this machine have a user.
    ///
    /// # Errors
    /// When the kernel, the list of users or the process outside does not answer.
    pub fn who(&self, connection: BorrowedFd<'_>) -> io::Result<Option<Caller>> {
        match self {
            Self::Here(plan) => who(plan, connection),
            Self::Beside(beside) => beside.who(connection),
        }
    }
}

/// Makes the socket under a name of its own first, so that it is never seen with other rights, and
/// takes the place of an earlier one at once.
fn open(plan: &DoorPlan) -> io::Result<OwnedFd> {
    let (path, dir) = (&plan.socket, plan.socket.parent());
    if let Some(dir) = dir {
        make_dir(dir, plan.own_dir)?;
    }
    let name = path.file_name().map(|name| name.to_string_lossy());
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    let fresh = path.with_file_name(format!(".{name}.{}", std::process::id()));
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let opened = listen_at(&fresh, plan.group.as_deref());
    let placed = opened.and_then(|socket| fs::rename(&fresh, path).map(|()| socket));
    if placed.is_err() {
        // What went wrong is said; that this one stays as well would say nothing more.
        let _ = fs::remove_file(&fresh);
    }
    placed
}

fn make_dir(dir: &Path, own: bool) -> io::Result<()> {
    let mode = if own { 0o711 } else { 0o700 };
    DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    // systemd makes it with the same mode as that of the registry.
    if own && fs::metadata(dir)?.uid() == geteuid().as_raw() {
        fs::set_permissions(dir, Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Nobody can connect before listen(2), which is when the rights are right.
fn listen_at(path: &Path, group: Option<&str>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    if let Some(group) = group {
        let gid = gid_of(group)?
            .ok_or_else(|| io::Error::other(format!("scheduler.socket_group: no group {group}")))?;
        chown(path, None, Some(gid.as_raw()))?;
    }
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn gid_of(group: &str) -> io::Result<Option<Gid>> {
    Ok(Group::from_name(group)?.map(|group| group.gid))
}

fn who(plan: &DoorPlan, connection: BorrowedFd<'_>) -> io::Result<Option<Caller>> {
    let address = rustix::net::getsockname(connection)?;
    let (uid, gid) = if address.address_family() == AddressFamily::UNIX {
        let peer = rustix::net::sockopt::socket_peercred(connection)?;
        (peer.uid.as_raw(), Some(Gid::from_raw(peer.gid.as_raw())))
    } else {
        match tcp::owner(connection.as_fd())? {
            Some(uid) => (uid, None),
            None => return Ok(None),
        }
    };
    if uid == NO_USER {
        return Ok(None);
    }
    let user = User::from_uid(Uid::from_raw(uid))?;
    let mut admin = uid == 0 || uid == geteuid().as_raw();
    if let (false, Some(group)) = (admin, &plan.admins) {
        admin = is_member(user.as_ref(), gid, group)?;
    }
    let name = user.map_or_else(|| format!("uid {uid}"), |user| user.name);
    Ok(Some(Caller { uid, name, admin }))
}

fn is_member(user: Option<&User>, gid: Option<Gid>, group: &str) -> io::Result<bool> {
    let Some(wanted) = gid_of(group)? else {
        return Ok(false);
    };
    if gid == Some(wanted) {
        return Ok(true);
    }
    let Some(user) = user else {
        return Ok(false);
    };
    let name = CString::new(user.name.as_str())?;
    Ok(getgrouplist(&name, user.gid)?.contains(&wanted))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn plan(socket: PathBuf) -> DoorPlan {
        DoorPlan {
            socket,
            own_dir: false,
            group: None,
            admins: None,
        }
    }

    #[test]
    fn a_later_scheduler_takes_the_place_and_callers_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in/tsimd.sock");
        let door = Door::Here(plan(path.clone()));
        let _earlier = door.open().unwrap();
        let listener = UnixListener::from(door.open().unwrap());
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o660);
        let _client = UnixStream::connect(&path).unwrap();
        let (connection, _) = listener.accept().unwrap();
        let caller = door.who(connection.as_fd()).unwrap().unwrap();
        assert_eq!((caller.uid, caller.admin), (geteuid().as_raw(), true));
        // Nothing but the socket stays.
        assert_eq!(fs::read_dir(dir.path().join("in")).unwrap().count(), 1);
    }

    #[test]
    fn a_group_that_there_is_not_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let plan = DoorPlan {
            group: Some("no-such-group".to_owned()),
            ..plan(dir.path().join("s"))
        };
        let error = open(&plan).unwrap_err().to_string();
        assert!(error.contains("no-such-group"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
