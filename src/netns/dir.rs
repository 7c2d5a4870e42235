//! The directory of named namespaces, kept as iproute2 keeps it (`ip/ipnetns.c`).

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, OFlag},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};

use super::{
    NetnsError, NetnsFd, NetnsId,
    fd::{HomeNamespace, OWN_NETNS, on_own_thread},
};
use crate::{
    fault, flock,
    model::NetnsName,
    wait::{self, Wait},
};

/// Where ip-netns(8) keeps named namespaces.
pub const DEFAULT_DIR: &str = "/run/netns";

const NONE: Option<&str> = None;

/// A directory of named network namespaces.
///
/// ```text
/// /run/netns/              a mount point, shared, so that an unmount is seen everywhere
/// /run/netns/corp10.hq-gw  an empty file with the namespace mounted on it
/// /run/netns.tsim-lock     flock: whoever makes a name here holds it
/// ```
#[derive(Debug, Clone)]
pub struct NetnsDir {
    dir: PathBuf,
    /// Set once the directory is a shared mount; clones share it.
    prepared: Arc<OnceLock<()>>,
    /// How long to wait for somebody else who makes names.
    patience: Duration,
}

/// How long names are waited for unless [`NetnsDir::patient`] says otherwise; making one takes
/// less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(60);

impl Default for NetnsDir {
    fn default() -> Self {
        Self::new(DEFAULT_DIR)
    }
}

impl NetnsDir {
    /// Namespaces named in `dir`. The directory is made when the first namespace is.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            prepared: Arc::default(),
            patience: PATIENCE,
        }
    }

    /// The same directory, where others are waited for at most for `patience`.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        let patience = wait::for_a_moment(patience);
        Self { patience, ..self }
    }

    /// How long others are waited for.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The file that stands for `name`.
    #[must_use]
    pub fn path(&self, name: &NetnsName) -> PathBuf {
        self.dir.join(name.as_str())
    }

    /// Creates the namespace `name`, with nothing in it but a loopback interface that is down.
    ///
    /// # Errors
    /// [`NetnsError::Exists`] when the name is taken, another [`NetnsError`] when a step fails;
    /// nothing is left then.
    #[cfg(feature = "internals")]
    pub fn create(&self, name: &NetnsName) -> Result<NetnsFd, NetnsError> {
        Ok(self.create_with(name, || ())?.0)
    }

    /// Creates the namespace `name` and runs `inside` in it on the thread that made it, which
    /// saves a thread and an entry: that is the calling thread, if it can come back, as with
    /// [`visit`](super::visit).
    ///
    /// # Errors
    /// As [`NetnsDir::create`], and when `inside` panics on a thread of its own. Then the namespace
    /// exists and is the caller's to delete.
    pub fn create_with<T: Send>(
        &self,
        name: &NetnsName,
        inside: impl FnOnce() -> T + Send,
    ) -> Result<(NetnsFd, T), NetnsError> {
        self.prepare()?;
        if self.exists(name)? {
            return Err(NetnsError::Exists {
                netns: name.clone(),
            });
        }
        let make = || {
            let fd = self.create_here(name)?;
            Ok((fd, inside()))
        };
        match HomeNamespace::of_this_thread() {
            Some(_home) => make(),
            None => on_own_thread(make),
        }
    }

    /// Puts the calling thread into a new namespace and gives that its name.
    fn create_here(&self, name: &NetnsName) -> Result<NetnsFd, NetnsError> {
        let fail = |step| {
            move |source| NetnsError::Create {
                netns: name.clone(),
                step,
                source,
            }
        };
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| fail("create")(e.into()))?;
        let own = File::open(OWN_NETNS).map_err(fail("open the new"))?;
        self.pin(name, Path::new(OWN_NETNS))?;
        match NetnsFd::from_file(own, name.clone()) {
            Ok(Some(fd)) => Ok(fd),
            Ok(None) => Err(NetnsError::NotANamespace {
                path: OWN_NETNS.into(),
            }),
            Err(source) => Err(fail("look at the new")(source)),
        }
    }

    /// Gives the namespace `from` the name `name` instead, which must be free. Where that was
    /// interrupted before, it is gone on with.
    ///
    /// # Errors
    /// [`NetnsError`] when the kernel refuses a step.
    pub fn rename(&self, from: &NetnsName, name: &NetnsName) -> Result<(), NetnsError> {
        self.pin(name, &self.path(from))?;
        self.delete(from)
    }

    /// Mounts the namespace `of` on the file `name`.
    ///
    /// Under the lock, so that a file without a mount is known to be what a crash left, and may
    /// be used again.
    fn pin(&self, name: &NetnsName, of: &Path) -> Result<(), NetnsError> {
        let fail = |step| {
            move |source| NetnsError::Create {
                netns: name.clone(),
                step,
                source,
            }
        };
        let _lock = self.lock_names()?;
        fault::step("netns.name").map_err(fail("name"))?;
        let path = self.path(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(&path);
        match file {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if self.exists(name)? {
                    return Err(NetnsError::Exists {
                        netns: name.clone(),
                    });
                }
            }
            Err(e) => return Err(fail("make the file of")(e)),
        }
        mount(Some(of), &path, NONE, MsFlags::MS_BIND, NONE).map_err(|errno| {
            // Nothing more can be done if this fails too; the next creation uses the file again.
            let _ = fs::remove_file(&path);
            fail("mount")(errno.into())
        })
    }

    /// The names in the directory, sorted, those that tsim does not use left out.
    ///
    /// A name may lack its namespace: see [`NetnsError::NotANamespace`].
    ///
    /// # Errors
    /// [`NetnsError::List`] when the directory exists and cannot be read.
    pub fn list(&self) -> Result<Vec<NetnsName>, NetnsError> {
        let fail = |source| NetnsError::List {
            dir: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(fail(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(fail)?.file_name();
            names.extend(file.to_str().and_then(|text| NetnsName::new(text).ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Whether a namespace of this name exists.
    ///
    /// # Errors
    /// [`NetnsError::Open`] when the kernel cannot say.
    pub fn exists(&self, name: &NetnsName) -> Result<bool, NetnsError> {
        match statfs(&self.path(name)) {
            Ok(stat) => Ok(stat.filesystem_type() == NSFS_MAGIC),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(NetnsError::Open {
                netns: name.clone(),
                source: errno.into(),
            }),
        }
    }

    /// Opens the namespace `name`.
    ///
    /// # Errors
    /// [`NetnsError::NotFound`], [`NetnsError::NotANamespace`] or [`NetnsError::Open`].
    pub fn open(&self, name: &NetnsName) -> Result<NetnsFd, NetnsError> {
        let path = self.path(name);
        let opened = open_namespace(&path).and_then(|file| NetnsFd::from_file(file, name.clone()));
        match opened {
            Ok(Some(netns)) => Ok(netns),
            Ok(None) => Err(NetnsError::NotANamespace { path }),
            Err(_) if path.symlink_metadata().is_err() => Err(NetnsError::NotFound {
                netns: name.clone(),
            }),
            // The file that a crash leaves has mode 0.
            Err(_) if !self.exists(name)? => Err(NetnsError::NotANamespace { path }),
            Err(source) => Err(NetnsError::Open {
                netns: name.clone(),
                source,
            }),
        }
    }

    /// Whether `name` still stands for the namespace `fd`, which is held, so that no other one has its
    /// number.
    #[must_use]
    pub fn is(&self, name: &NetnsName, fd: &NetnsFd) -> bool {
        let now = fs::metadata(self.path(name));
        now.is_ok_and(|now| NetnsId::of(&now) == fd.id())
    }

    /// Takes the name away. The namespace itself, with its interfaces, goes when nothing else
    /// keeps it: no process, no socket, no [`NetnsFd`]; the kernel does that later, by itself.
    /// A name that is already gone is success.
    ///
    /// # Errors
    /// [`NetnsError::Delete`] when the kernel refuses a step.
    pub fn delete(&self, name: &NetnsName) -> Result<(), NetnsError> {
        let fail = |step| {
            move |source| NetnsError::Delete {
                netns: name.clone(),
                step,
                source,
            }
        };
        let path = self.path(name);
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        // More than one mount can lie on the file when two programs raced for the name. EINVAL
        // says that there is no further one.
        loop {
            match umount2(&path, flags) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(fail("unmount")(errno.into())),
            }
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail("remove the file of")(e)),
            _ => Ok(()),
        }
    }

    /// Makes the directory a shared mount point, once.
    ///
    /// Shared, so that deleting a namespace also unmounts it in the mount namespaces of services
    /// that were started meanwhile; otherwise those would keep it alive. Under a lock, because two
    /// programs that both find the directory not mounted would stack mounts on it, which then
    /// double with every further namespace (Debian bug 949235).
    fn prepare(&self) -> Result<(), NetnsError> {
        if self.prepared.get().is_some() {
            return Ok(());
        }
        let fail = |step| {
            move |source| NetnsError::PrepareDir {
                dir: self.dir.clone(),
                step,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.dir)
            .map_err(fail("make"))?;
        // As it is but for the first time: then nobody needs to be waited for.
        if make_shared(&self.dir).is_ok() {
            let _ = self.prepared.set(());
            return Ok(());
        }
        let _lock = self.lock_mount()?;
        match make_shared(&self.dir) {
            // Not a mount point yet.
            Err(Errno::EINVAL) => {
                let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
                mount(Some(&self.dir), &self.dir, NONE, bind, NONE)
                    .map_err(|e| fail("mount")(e.into()))?;
                make_shared(&self.dir).map_err(|e| fail("share")(e.into()))?;
            }
            other => other.map_err(|e| fail("share")(e.into()))?,
        }
        // Another thread may have come first, with the same result.
        let _ = self.prepared.set(());
        Ok(())
    }

    /// The lock of those that make names. Only who may make them can open it: iproute2's, on the
    /// directory, any local user can hold for as long as they like.
    fn lock_names(&self) -> Result<Flock<OwnedFd>, NetnsError> {
        let mut path = self.dir.clone().into_os_string();
        path.push(".tsim-lock");
        let path = PathBuf::from(path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(self.cannot("open the lock of"))?;
        let wait = Wait::at_most(self.patience);
        let held = flock::exclusive(file.into(), &path, &wait);
        held.map_err(|refused| self.cannot("lock the names in")(refused.into_io(&wait)))
    }

    /// The lock that iproute2 takes to make the directory a shared mount.
    fn lock_mount(&self) -> Result<Flock<OwnedFd>, NetnsError> {
        let dir = File::open(&self.dir).map_err(self.cannot("open"))?;
        let wait = Wait::at_most(self.patience);
        let held = flock::exclusive(dir.into(), &self.dir, &wait);
        held.map_err(|refused| self.cannot("lock")(refused.into_io(&wait)))
    }

    fn cannot(&self, step: &'static str) -> impl FnOnce(io::Error) -> NetnsError {
        let dir = self.dir.clone();
        move |source| NetnsError::PrepareDir { dir, step, source }
    }
}

/// Opens what has a namespace's name, and waits for nobody there: what a crash leaves might be anything.
fn open_namespace(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
}

/// Without `MS_REC`, which iproute2 adds: what is mounted below a shared mount from now on is
/// shared by itself, and walking over every namespace's mount costs time in a large lab.
fn make_shared(dir: &Path) -> nix::Result<()> {
    mount(NONE, dir, NONE, MsFlags::MS_SHARED, NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NetnsName {
        NetnsName::new(text).unwrap()
    }

    #[test]
    fn names_without_a_namespace_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("lab.stale"), "").unwrap();
        fs::write(dir.path().join("not allowed"), "").unwrap();
        let netns = NetnsDir::new(dir.path());
        assert_eq!(netns.list().unwrap(), [name("lab.stale")]);
        assert!(!netns.exists(&name("lab.stale")).unwrap());
        let error = netns.open(&name("lab.stale")).unwrap_err();
        assert!(matches!(error, NetnsError::NotANamespace { .. }), "{error}");
        let error = netns.open(&name("lab.none")).unwrap_err();
        assert!(matches!(error, NetnsError::NotFound { .. }), "{error}");
    }

    #[test]
    fn a_missing_directory_holds_no_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let netns = NetnsDir::new(dir.path().join("none"));
        assert!(netns.list().unwrap().is_empty());
        assert!(!netns.exists(&name("a.b")).unwrap());
        netns.delete(&name("a.b")).unwrap();
    }
}
