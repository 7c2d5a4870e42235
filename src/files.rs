//! Reading files that may be anything: a FIFO nobody writes to, a device without an end, a link to
//! what only root may read.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

/// A file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It has more bytes than are read.
    #[error("it has more than {most} bytes, the most that is read")]
    TooLarge {
        /// How many are read.
        most: u64,
    },
    /// It is a directory, a FIFO, a device …
    #[error("it is not a regular file")]
    NotRegular,
    /// It is a symbolic link, or there is one on the way to it.
    #[error("it is a symbolic link, and none is followed here")]
    Link,
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error,
            other => Self::other(other),
        }
    }
}

/// A FIFO is opened at once, and a terminal does not become this process's.
const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the regular file `path` of at most `most` bytes, which the user named, without a byte order mark.
///
/// # Errors
/// [`ReadError`].
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>, ReadError> {
    let fd = open(path, FLAGS, Mode::empty()).map_err(io::Error::from)?;
    read_regular(fd.into(), most)
}

/// Reads the regular file `name` of at most `most` bytes beneath the directory `dir`, which the
/// user named; neither the file nor a directory on the way to it may be a symbolic link, and no
/// `..` leads out (openat2(2), Linux 5.6).
///
/// # Errors
/// [`ReadError`].
pub(crate) fn read_beneath(dir: &Path, name: &Path, most: u64) -> Result<Vec<u8>, ReadError> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(dir, flags, Mode::empty()).map_err(io::Error::from)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = loop {
        match openat2(&dir, name, FLAGS, Mode::empty(), resolve) {
            // A rename somewhere came in between.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::LOOP) => return Err(ReadError::Link),
            other => break other.map_err(io::Error::from)?,
        }
    };
    read_regular(fd.into(), most)
}

fn read_regular(file: File, most: u64) -> Result<Vec<u8>, ReadError> {
    let stat = fstat(&file).map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ReadError::NotRegular);
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let mut bytes = Vec::new();
    // Files of /proc have no size, and others may grow.
    if size <= most {
        file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    }
    if size > most || bytes.len() as u64 > most {
        return Err(ReadError::TooLarge { most });
    }
    // Editors and shells of Windows begin a text so, and nothing that reads it knows the mark.
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn what_is_no_file_is_neither_waited_for_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        fs::write(at("file"), "12345").unwrap();
        symlink(at("file"), at("link")).unwrap();
        fs::create_dir(at("sub")).unwrap();
        symlink("/etc", at("sub/etc")).unwrap();
        for path in [at("fifo"), at("sub"), "/dev/zero".into()] {
            let error = read(&path, 9).unwrap_err();
            assert!(matches!(error, ReadError::NotRegular), "{error}");
        }
        assert_eq!(read(&at("file"), 5).unwrap(), b"12345");
        assert_eq!(read(&at("link"), 5).unwrap(), b"12345");
        let error = read(&at("file"), 4).unwrap_err();
        assert!(matches!(error, ReadError::TooLarge { most: 4 }), "{error}");
        let beneath = |name: &str| read_beneath(dir.path(), Path::new(name), 5);
        assert_eq!(beneath("file").unwrap(), b"12345");
        for link in ["link", "sub/etc/passwd"] {
            let error = beneath(link).unwrap_err();
            assert!(matches!(error, ReadError::Link), "{link}: {error}");
        }
        for outside in ["../x", "/etc/passwd", "fifo", "sub"] {
            assert!(beneath(outside).is_err(), "{outside}");
        }
    }
}
