//! An open network namespace, and being inside it.

use std::{
    any::Any,
    cell::RefCell,
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::OnceLock,
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

use serde::{Deserialize, Serialize};

use super::NetnsError;
use crate::model::NetnsName;

/// The calling thread's namespace. `/proc/self` would be the main thread's.
pub(super) const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Tells a namespace from every other one that exists at the same time: device and inode on the
/// kernel's nsfs (namespaces(7)).
///
/// The kernel gives the number of a namespace that is gone to a later one. Two equal values mean
/// the same namespace for sure only while a [`NetnsFd`] of it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device of the nsfs.
    pub dev: u64,
    /// Inode within it.
    pub ino: u64,
}

impl NetnsId {
    /// That of the namespace whose file this is about.
    pub(super) fn of(file: &Metadata) -> Self {
        Self {
            dev: file.dev(),
            ino: file.ino(),
        }
    }
}

/// An open network namespace. It stays alive as long as this value does, even without its name.
#[derive(Debug)]
pub struct NetnsFd {
    file: File,
    name: NetnsName,
    id: NetnsId,
}

impl NetnsFd {
    /// Wraps `file`; none when it is not on the nsfs.
    pub(super) fn from_file(file: File, name: NetnsName) -> io::Result<Option<Self>> {
        let id = NetnsId::of(&file.metadata()?);
        Ok((id.dev == nsfs()?).then_some(Self { file, name, id }))
    }

    /// Makes a namespace that no directory names: it goes with this value and with what was opened
    /// in it. Messages call it `label`.
    ///
    /// # Errors
    /// [`NetnsError`] when it cannot be made.
    pub fn unnamed(label: NetnsName) -> Result<Self, NetnsError> {
        let own = in_scratch(|| File::open(OWN_NETNS))?.map_err(NetnsError::Scratch)?;
        match Self::from_file(own, label) {
            Ok(Some(fd)) => Ok(fd),
            Ok(None) => Err(NetnsError::NotANamespace {
                path: OWN_NETNS.into(),
            }),
            Err(source) => Err(NetnsError::Scratch(source)),
        }
    }

    /// The name under which it was opened.
    #[must_use]
    pub fn name(&self) -> &NetnsName {
        &self.name
    }

    /// Which namespace it is, whatever its name refers to by now.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// [`NetnsError`] when the thread cannot be started or cannot enter, or when `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_own_thread(|| {
            self.join()?;
            Ok(work())
        })
    }

    /// Opens a socket inside the namespace, to be used from anywhere; always `SOCK_CLOEXEC`.
    ///
    /// # Errors
    /// [`NetnsError`] when the namespace cannot be entered or the kernel refuses the socket.
    #[cfg(feature = "internals")]
    pub fn socket(
        &self,
        family: AddressFamily,
        kind: SockType,
        flags: SockFlag,
        protocol: Option<SockProtocol>,
    ) -> Result<OwnedFd, NetnsError> {
        let flags = flags | SockFlag::SOCK_CLOEXEC;
        let mut opened = visit(&[self], |_| socket(family, kind, flags, protocol))?;
        let opened = opened.pop().unwrap_or(Err(Errno::EIO));
        opened.map_err(|errno| NetnsError::Socket {
            netns: self.name.clone(),
            source: errno.into(),
        })
    }

    /// Moves the calling thread into the namespace, for good. Only for threads that end soon.
    fn join(&self) -> Result<(), NetnsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Enter {
            netns: self.name.clone(),
            source: errno.into(),
        })
    }
}

/// The device of the nsfs, of which the kernel has one: that of the process's own namespace is on it.
fn nsfs() -> io::Result<u64> {
    static DEVICE: OnceLock<u64> = OnceLock::new();
    match DEVICE.get() {
        Some(device) => Ok(*device),
        None => {
            let device = fs::metadata(OWN_NETNS)?.dev();
            Ok(*DEVICE.get_or_init(|| device))
        }
    }
}

impl AsFd for NetnsFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `work` in each of `namespaces` in turn. It is for opening what stays in its namespace, and
/// must leave the thread as it was: the calling thread goes there itself and comes back, because a
/// thread for it costs more than twenty system calls.
///
/// Where the calling thread could not come back, all is done on a thread of its own: so it is when
/// an ordinary user's process stands in the machine's own network.
///
/// # Errors
/// [`NetnsError`] of the first namespace that cannot be entered.
pub fn visit<T: Send>(
    namespaces: &[&NetnsFd],
    mut work: impl FnMut(&NetnsFd) -> T + Send,
) -> Result<Vec<T>, NetnsError> {
    let one = |netns: &&NetnsFd| {
        netns.join()?;
        Ok(work(netns))
    };
    let all = || namespaces.iter().map(one).collect();
    match HomeNamespace::of_this_thread() {
        Some(_home) => all(),
        None => on_own_thread(all),
    }
}

thread_local! {
    /// The namespace that the thread stands in, once it was away from there. None while it is away.
    static HOME: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// The namespace that the calling thread is in. Dropping it goes back there.
pub(super) struct HomeNamespace(Option<File>);

impl HomeNamespace {
    /// None when the way back would be refused, setns(2): going there is tried before the thread
    /// leaves for the first time.
    pub(super) fn of_this_thread() -> Option<Self> {
        if let Some(home) = HOME.take() {
            return Some(Self(Some(home)));
        }
        let home = File::open(OWN_NETNS).ok()?;
        setns(&home, CloneFlags::CLONE_NEWNET).ok()?;
        Some(Self(Some(home)))
    }
}

/// To be called when the thread has moved to another namespace for good.
pub(crate) fn moved() {
    HOME.take();
}

impl Drop for HomeNamespace {
    fn drop(&mut self) {
        let Some(home) = self.0.take() else { return };
        if setns(&home, CloneFlags::CLONE_NEWNET).is_ok() {
            HOME.set(Some(home));
        } else {
            // It worked a moment ago. Whatever this thread did next would be done to the wrong
            // network; the end of a process leaves nothing but what the next job clears.
            std::process::abort();
        }
    }
}

/// Runs `work` inside a new namespace without a name, on a thread of its own. The namespace goes
/// with the thread and what was opened in it. Child processes started by `work` run inside it.
///
/// # Errors
/// [`NetnsError`] when the namespace cannot be made, or when `work` panics.
pub fn in_scratch<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Scratch(errno.into()))?;
        Ok(work())
    })
}

/// Runs `work` on a new thread, which then ends: whatever it did to itself goes with it.
pub(super) fn on_own_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    let named = || thread::Builder::new().name("netns".to_owned());
    thread::scope(|scope| {
        let thread = named()
            .spawn_scoped(scope, work)
            .map_err(NetnsError::Thread)?;
        thread.join().unwrap_or_else(|payload| {
            Err(NetnsError::Panicked {
                message: panic_text(payload.as_ref()),
            })
        })
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no message)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_the_thread_is_an_error_with_its_message() {
        let error = on_own_thread::<()>(|| panic!("boom {}", 7)).unwrap_err();
        assert!(
            matches!(&error, NetnsError::Panicked { message } if message == "boom 7"),
            "{error}"
        );
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        let name = NetnsName::new("t").unwrap();
        let file = tempfile::tempfile().unwrap();
        assert!(NetnsFd::from_file(file, name).unwrap().is_none());
    }
}
