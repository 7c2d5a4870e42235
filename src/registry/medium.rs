//! The directory that the registry lives in, and the few file operations that it needs.
//!
//! [`Medium`] is small so that tests can put a medium under the registry that fails, loses power
//! or tears at any step. [`Directory`] is the real one: all names are opened relative to a
//! directory that was checked once, and no symbolic link is followed.
//!
//! Where the directory is in memory (tmpfs), what is in it ends with the kernel: it is not synced
//! there, and no copies are kept.

use std::{
    ffi::{OsStr, OsString},
    fs::{DirBuilder, File},
    io::{self, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStringExt,
            fs::{DirBuilderExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, renameat},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat, mkdirat},
        statfs::{TMPFS_MAGIC, fstatfs},
    },
    unistd::{Uid, UnlinkatFlags, geteuid, unlinkat},
};
use rustix::fs::RawDir;

use crate::{fault, registry::RegistryError};

/// A file that is larger is refused: no registry grows to that, but a mistake or malice does.
pub const MAX_FILE: u64 = 64 << 20;

/// File operations within one directory. Names have no `/`.
pub trait Medium: Send + Sync {
    /// The file's content, or none when it does not exist.
    ///
    /// # Errors
    /// When it cannot be read, or is not a plain file of ours of a sane size.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, RegistryError>;

    /// Makes a new file of this content; one that is there is removed first. The content is on
    /// the medium when this returns; the name is so only after [`Self::sync_names`].
    ///
    /// # Errors
    /// When not all of it could be written.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), RegistryError>;

    /// Replaces a file's content in place, neither atomically nor durably; makes the file if it
    /// is missing. A fraction of the cost of [`Self::write`], because its memory is used again.
    ///
    /// # Errors
    /// When not all of it could be written.
    fn overwrite(&self, name: &str, content: &[u8]) -> Result<(), RegistryError>;

    /// Renames a file, replacing what has the new name, atomically.
    ///
    /// # Errors
    /// When it was not renamed.
    fn rename(&self, from: &str, to: &str) -> Result<(), RegistryError>;

    /// Makes renames durable.
    ///
    /// # Errors
    /// When they may be lost with the power.
    fn sync_names(&self) -> Result<(), RegistryError>;

    /// Whether files outlive the kernel. Where they do not, nothing is gained by copies of them.
    fn outlives_kernel(&self) -> bool {
        true
    }

    /// Appends to a file with one write(2) and returns the file's size then; not durable.
    ///
    /// # Errors
    /// When not all of it could be written.
    fn append(&self, name: &str, content: &[u8]) -> Result<u64, RegistryError>;
}

/// A checked directory.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    /// Who opened it.
    me: Uid,
    /// The device that it is on.
    device: u64,
    /// Whether that outlives the kernel.
    durable: bool,
}

impl Directory {
    /// Opens `path`, made with mode 0700 if it is missing.
    ///
    /// # Errors
    /// [`RegistryError::Unsafe`] when it is a symbolic link, belongs to somebody else or is
    /// world-writable; [`RegistryError::Io`] when it cannot be made or opened.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        if let Ok(file) = Self::open_plain(path) {
            return Self::checked(file.into(), path.to_owned());
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        match (Self::open_plain(path), made) {
            (Ok(file), _) => Self::checked(file.into(), path.to_owned()),
            (Err(_), Err(e)) => Err(io_error("make", path, e)),
            (Err(e), Ok(())) => Err(refused_link("open", path, e)),
        }
    }

    /// The same directory, treated as one that outlives the kernel; for tests in memory.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn as_on_disk(self) -> Self {
        Self {
            durable: true,
            ..self
        }
    }

    /// As [`Self::open`]; none when there is no such directory.
    pub(crate) fn open_existing(path: &Path) -> Result<Option<Self>, RegistryError> {
        match Self::open_plain(path) {
            Ok(file) => Self::checked(file.into(), path.to_owned()).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(refused_link("open", path, e)),
        }
    }

    fn open_plain(path: &Path) -> io::Result<File> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let mut options = File::options();
        options.read(true).custom_flags(flags.bits()).open(path)
    }

    /// The sub-directory `name`, made if it is missing.
    pub(crate) fn sub(&self, name: &str) -> Result<Self, RegistryError> {
        match self.sub_existing(name)? {
            Some(found) => Ok(found),
            None => self.new_sub(name),
        }
    }

    /// The same where it is likely to be missing.
    fn new_sub(&self, name: &str) -> Result<Self, RegistryError> {
        let fd = self.lock_directory_unchecked(name)?;
        self.below(fd, self.path.join(name))
    }

    /// Opens the sub-directory `name` for locking, made if it is missing, without looking at it:
    /// whoever locks it does, with [`Self::check`].
    pub(crate) fn lock_directory_unchecked(&self, name: &str) -> Result<OwnedFd, RegistryError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        loop {
            match mkdirat(&self.fd, name, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(self.error("make", name, e)),
            }
            match openat(&self.fd, name, flags, Mode::empty()) {
                Ok(fd) => return Ok(fd),
                // Somebody has removed it again.
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(refused_link("open", &self.path.join(name), e.into())),
            }
        }
    }

    /// The sub-directory `name`, if it is there.
    pub(crate) fn sub_existing(&self, name: &str) -> Result<Option<Self>, RegistryError> {
        let path = self.path.join(name);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => self.below(fd, path).map(Some),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(refused_link("open", &path, e.into())),
        }
    }

    /// Opens the file `name` for locking, made if it is missing.
    pub(crate) fn lock_file(&self, name: &str) -> Result<OwnedFd, RegistryError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT;
        match self.open_checked(name, flags)? {
            Some((file, _)) => Ok(file.into()),
            None => Err(self.error("open", name, io::ErrorKind::NotFound)),
        }
    }

    /// The same without looking at what was opened: whoever locks it does, with [`Self::check`].
    pub(crate) fn lock_file_unchecked(&self, name: &str) -> Result<OwnedFd, RegistryError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT;
        let opened = self.open_plain_file(name, flags)?;
        opened.ok_or_else(|| self.error("open", name, io::ErrorKind::NotFound))
    }

    /// Looks whether what is open as `name` may be trusted, and whether it still has that name.
    pub(crate) fn check(&self, name: &str, fd: &OwnedFd) -> Result<bool, RegistryError> {
        let path = self.path.join(name);
        let stat = fstat(fd).map_err(|e| io_error("examine", &path, e.into()))?;
        check_owner(&stat, self.me, &path)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if !matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR) {
            return Err(refuse(&path, "it is not a regular file".to_owned()));
        }
        Ok(stat.st_nlink > 0)
    }

    /// Opens the file `name` for reading; none when it does not exist.
    pub(crate) fn open_file(&self, name: &str) -> Result<Option<File>, RegistryError> {
        let opened = self.open_checked(name, OFlag::O_RDONLY)?;
        Ok(opened.map(|(file, _)| file))
    }

    /// The content of the file `name`, however large; none when it does not exist.
    pub(crate) fn content(&self, name: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        let Some((file, stat)) = self.open_checked(name, OFlag::O_RDONLY)? else {
            return Ok(None);
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let content = read_whole(file, size, u64::MAX);
        content.map(Some).map_err(|e| self.error("read", name, e))
    }

    /// Opens the file `name` for appending and reading, made if it is missing.
    pub(crate) fn append_file(&self, name: &str) -> Result<File, RegistryError> {
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT;
        match self.open_checked(name, flags)? {
            Some((file, _)) => Ok(file),
            None => Err(self.error("open", name, io::ErrorKind::NotFound)),
        }
    }

    /// Opens the file `name` for reading and writing anywhere in it, made if it is missing.
    pub(crate) fn record_file(&self, name: &str) -> Result<File, RegistryError> {
        match self.open_checked(name, OFlag::O_RDWR | OFlag::O_CREAT)? {
            Some((file, _)) => Ok(file),
            None => Err(self.error("open", name, io::ErrorKind::NotFound)),
        }
    }

    /// The names in the directory, in no order.
    pub(crate) fn names(&self) -> Result<Vec<OsString>, RegistryError> {
        let fail = |e: Errno| self.error("list", ".", e);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // Another open file: reading moves its offset, and others read here, too.
        let dir = openat(&self.fd, ".", flags, Mode::empty()).map_err(fail)?;
        let names = entries(dir.as_fd()).map_err(fail)?;
        Ok(names.into_iter().map(OsString::from_vec).collect())
    }

    /// Whether there is a directory in it; where the file system does not count them, there may be.
    pub(crate) fn may_have_directories(&self) -> Result<bool, RegistryError> {
        let stat = fstat(&self.fd).map_err(|e| self.error("examine", ".", e))?;
        // Its own name and `.` are two links, and each directory's `..` is one.
        Ok(stat.st_nlink != 2)
    }

    /// Removes the name of a file; of a symbolic link, the link's.
    pub(crate) fn remove_file(&self, name: &OsStr) -> Result<(), RegistryError> {
        unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)
            .map_err(|e| self.error("remove", &name.to_string_lossy(), e))
    }

    /// Removes the empty directory `name`; false when something is in it.
    pub(crate) fn remove_dir(&self, name: &str) -> Result<bool, RegistryError> {
        match unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
            Err(e) => Err(self.error("remove", name, e)),
        }
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn checked(fd: OwnedFd, path: PathBuf) -> Result<Self, RegistryError> {
        let stat = fstat(&fd).map_err(|e| io_error("examine", &path, e.into()))?;
        let me = geteuid();
        check_owner(&stat, me, &path)?;
        Ok(Self {
            durable: is_durable(&fd),
            fd,
            path,
            me,
            device: stat.st_dev,
        })
    }

    /// A directory that was opened within this one.
    fn below(&self, fd: OwnedFd, path: PathBuf) -> Result<Self, RegistryError> {
        let stat = fstat(&fd).map_err(|e| io_error("examine", &path, e.into()))?;
        check_owner(&stat, self.me, &path)?;
        let durable = match stat.st_dev == self.device {
            true => self.durable,
            false => is_durable(&fd),
        };
        Ok(Self {
            fd,
            path,
            me: self.me,
            device: stat.st_dev,
            durable,
        })
    }

    /// Where the directory is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn error(
        &self,
        op: &'static str,
        name: &str,
        e: impl Into<io::Error>,
    ) -> RegistryError {
        io_error(op, &self.path.join(name), e.into())
    }

    fn open_checked(
        &self,
        name: &str,
        flags: OFlag,
    ) -> Result<Option<(File, FileStat)>, RegistryError> {
        let Some(fd) = self.open_plain_file(name, flags)? else {
            return Ok(None);
        };
        let path = self.path.join(name);
        let stat = fstat(&fd).map_err(|e| io_error("examine", &path, e.into()))?;
        check_owner(&stat, self.me, &path)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(refuse(&path, "it is not a regular file".to_owned()));
        }
        Ok(Some((fd.into(), stat)))
    }

    /// Opens a file, whatever it is but a symbolic link.
    fn open_plain_file(&self, name: &str, flags: OFlag) -> Result<Option<OwnedFd>, RegistryError> {
        // O_NONBLOCK: a FIFO in the file's place must not make anybody wait.
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let mode = Mode::from_bits_truncate(0o600);
        match retry(|| Ok(openat(&self.fd, name, flags, mode)?)) {
            Ok(fd) => Ok(Some(fd)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(refused_link("open", &self.path.join(name), e)),
        }
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(&self.fd, name, flags, Mode::from_bits_truncate(0o600));
        fault::step("registry.create")?;
        let fd = match open() {
            Err(Errno::EEXIST) => {
                unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)?;
                open()
            }
            other => other,
        };
        Ok(fd?.into())
    }

    fn write_steps(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut file = retry(|| self.create(name))?;
        retry(|| fault::step("registry.write"))?;
        file.write_all(content)?;
        if !self.durable {
            return Ok(());
        }
        retry(|| {
            fault::step("registry.fsync")?;
            file.sync_all()
        })
    }
}

impl Medium for Directory {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        let Some((file, stat)) = self.open_checked(name, OFlag::O_RDONLY)? else {
            return Ok(None);
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let path = self.path.join(name);
        let too_large = || {
            let reason = format!("it has more than {MAX_FILE} bytes, the most that is read");
            refuse(&path, reason)
        };
        if size > MAX_FILE {
            return Err(too_large());
        }
        let content =
            read_whole(file, size, MAX_FILE + 1).map_err(|e| self.error("read", name, e))?;
        if content.len() as u64 > MAX_FILE {
            return Err(too_large());
        }
        Ok(Some(content))
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), RegistryError> {
        self.write_steps(name, content).map_err(|e| {
            // Half a file under a temporary name is of no use; that it cannot be removed either
            // adds nothing to the error.
            let _ = unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir);
            self.error("write", name, e)
        })
    }

    fn overwrite(&self, name: &str, content: &[u8]) -> Result<(), RegistryError> {
        let Some((mut file, stat)) = self.open_checked(name, OFlag::O_WRONLY | OFlag::O_CREAT)?
        else {
            return Err(self.error("open", name, io::ErrorKind::NotFound));
        };
        let length = content.len() as u64;
        retry(|| fault::step("registry.copy"))
            .and_then(|()| file.write_all(content))
            .and_then(|()| match u64::try_from(stat.st_size) {
                Ok(old) if old <= length => Ok(()),
                _ => file.set_len(length),
            })
            .map_err(|e| self.error("write", name, e))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), RegistryError> {
        retry(|| {
            fault::step("registry.rename")?;
            Ok(renameat(&self.fd, from, &self.fd, to)?)
        })
        .map_err(|e| self.error("replace", to, e))
    }

    fn sync_names(&self) -> Result<(), RegistryError> {
        if !self.durable {
            return Ok(());
        }
        retry(|| {
            fault::step("registry.fsync_dir")?;
            Ok(nix::unistd::fsync(self.fd.as_fd())?)
        })
        .map_err(|e| self.error("sync", ".", e))
    }

    fn outlives_kernel(&self) -> bool {
        self.durable
    }

    fn append(&self, name: &str, content: &[u8]) -> Result<u64, RegistryError> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT;
        let Some((mut file, stat)) = self.open_checked(name, flags)? else {
            return Err(self.error("open", name, io::ErrorKind::NotFound));
        };
        retry(|| {
            fault::step("registry.append")?;
            file.write_all(content)
        })
        .map_err(|e| self.error("append to", name, e))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0) + content.len() as u64)
    }
}

/// Asks again when a signal came in between.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Reads a file that had `size` bytes a moment ago, or `most` bytes of it if it has grown. A read
/// that leaves room has come to the end.
fn read_whole(mut file: File, size: u64, most: u64) -> io::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(size).unwrap_or(0) + 1];
    let mut length = 0;
    loop {
        match file.read(&mut content[length..]) {
            Ok(read) => length += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        if length < content.len() {
            content.truncate(length);
            return Ok(content);
        }
        // It has grown.
        let most = most.saturating_sub(length as u64);
        file.take(most).read_to_end(&mut content)?;
        return Ok(content);
    }
}

/// The names in the directory that is open as `fd`, but for `.` and `..`, in no order, from where
/// it was read last.
pub(crate) fn entries(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let failed = |e: rustix::io::Errno| Errno::from_raw(e.raw_os_error());
    let mut buffer = [MaybeUninit::uninit(); 8 << 10];
    let mut names = Vec::new();
    let mut dir = RawDir::new(fd, &mut buffer);
    while let Some(entry) = dir.next() {
        let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether what is written to the file system of `fd` may be there when another kernel runs.
fn is_durable(fd: &OwnedFd) -> bool {
    !fstatfs(fd).is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC)
}

fn check_owner(stat: &FileStat, me: Uid, path: &Path) -> Result<(), RegistryError> {
    let me = me.as_raw();
    if stat.st_uid != me && stat.st_uid != 0 {
        let uid = stat.st_uid;
        let reason = format!("it belongs to uid {uid}; only uid {me} and root are trusted");
        return Err(refuse(path, reason));
    }
    if stat.st_mode & 0o002 != 0 {
        let mode = stat.st_mode & 0o7777;
        let reason = format!("its mode is {mode:04o}: everybody may write to it");
        return Err(refuse(path, reason));
    }
    Ok(())
}

fn refuse(path: &Path, reason: String) -> RegistryError {
    RegistryError::Unsafe {
        path: path.to_owned(),
        reason,
    }
}

/// O_NOFOLLOW reports a symbolic link as ELOOP, with O_DIRECTORY as ENOTDIR, open(2).
fn refused_link(op: &'static str, path: &Path, e: io::Error) -> RegistryError {
    let is_link = path.symlink_metadata().is_ok_and(|m| m.is_symlink());
    match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
        Errno::ELOOP | Errno::ENOTDIR if is_link => refuse(
            path,
            "it is a symbolic link, and none is followed".to_owned(),
        ),
        Errno::ENOTDIR => refuse(path, "it is not a directory".to_owned()),
        _ => io_error(op, path, e),
    }
}

fn io_error(op: &'static str, path: &Path, source: io::Error) -> RegistryError {
    RegistryError::Io {
        op,
        path: path.to_owned(),
        source,
    }
}
