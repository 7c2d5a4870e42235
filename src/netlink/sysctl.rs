//! sysctls of one namespace, sysctl(8).
//!
//! `/proc/sys/net` shows the namespace of the thread that opens a file there, so each access runs
//! inside the namespace.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Component, Path, PathBuf},
};

use thiserror::Error;

use crate::netns::{NetnsError, NetnsFd};

/// Where the kernel shows sysctls.
const ROOT: &str = "/proc/sys";
/// Only this part is per namespace; a write elsewhere would change the machine.
const PART: &str = "net";
/// Nearly all settings are shorter.
const PAGE: usize = 4096;
/// Every second of 65,536 ports, each five digits and a comma, is shorter, and the kernel takes no larger
/// buffer than 4 MiB (`KMALLOC_MAX_SIZE` in `proc_sys_call_handler()`).
const LONGEST: usize = 1 << 20;

/// A sysctl could not be read or written.
#[derive(Debug, Error)]
pub enum SysctlError {
    /// The path leads elsewhere than to a namespace's sysctl.
    #[error("sysctl {path:?} is not allowed: a path below {PART}/ without `..` is")]
    Path {
        /// The path as given.
        path: String,
    },
    /// The file could not be read.
    #[error("cannot read sysctl {path} of namespace {netns}")]
    Read {
        /// Path below `/proc/sys`.
        path: String,
        /// The namespace.
        netns: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The value was not taken.
    #[error("cannot set sysctl {path} of namespace {netns} to {value:?}")]
    Write {
        /// Path below `/proc/sys`.
        path: String,
        /// The value.
        value: String,
        /// The namespace.
        netns: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Enter(#[from] NetnsError),
}

impl SysctlError {
    /// The path below `/proc/sys`; none where the namespace itself is the trouble.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Path { path } | Self::Read { path, .. } | Self::Write { path, .. } => Some(path),
            Self::Enter(_) => None,
        }
    }
}

/// Writes `values`, pairs of path below `/proc/sys` and value, in order, all in one visit. One that
/// cannot be written but has its value already is as good as written.
///
/// # Errors
/// Every [`SysctlError`], in the order of the values; the others were written.
pub fn write<P: AsRef<str> + Sync, V: AsRef<str> + Sync>(
    netns: &NetnsFd,
    values: &[(P, V)],
) -> Result<(), Vec<SysctlError>> {
    netns
        .enter(|| write_here(netns.name().as_str(), values))
        .map_err(|error| vec![error.into()])?
}

/// As [`write()`], for a thread that is inside the namespace, which messages call `netns`.
///
/// # Errors
/// As [`write()`].
pub fn write_here<P: AsRef<str>, V: AsRef<str>>(
    netns: &str,
    values: &[(P, V)],
) -> Result<(), Vec<SysctlError>> {
    let one = |(path, value): &(P, V)| write_one(netns, path.as_ref(), value.as_ref());
    let errors: Vec<SysctlError> = values.iter().filter_map(|pair| one(pair).err()).collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn write_one(netns: &str, path: &str, value: &str) -> Result<(), SysctlError> {
    let file = file(path)?;
    fs::write(&file, value).or_else(|source| {
        // Some can only be read (`mc_forwarding`), and are as they are wanted.
        let there = File::open(&file).and_then(|file| value_of(&file));
        let is_so = there.is_ok_and(|there| there == value);
        match is_so {
            true => Ok(()),
            false => Err(SysctlError::Write {
                path: path.to_owned(),
                value: value.to_owned(),
                netns: netns.to_owned(),
                source,
            }),
        }
    })
}

/// Reads the sysctls `paths`, below `/proc/sys`, all in one visit; white space at the end is cut.
///
/// # Errors
/// [`SysctlError`] of the first that cannot be read.
pub fn read<P: AsRef<str> + Sync>(
    netns: &NetnsFd,
    paths: &[P],
) -> Result<Vec<String>, SysctlError> {
    let one = |path: &P| {
        let path = path.as_ref();
        let read = File::open(file(path)?).and_then(|file| value_of(&file));
        read.map_err(|source| SysctlError::Read {
            path: path.to_owned(),
            netns: netns.name().to_string(),
            source,
        })
    };
    netns.enter(|| paths.iter().map(one).collect())?
}

/// What the open file of a setting says, without white space at its end.
///
/// It is read at once, since some settings say nothing but at their beginning: `ip_local_reserved_ports`
/// gives as much as there is room for in the first read (`proc_do_large_bitmap()`), and is at its end
/// in the next.
///
/// # Errors
/// When it cannot be read, or is longer than any setting is.
pub fn value_of(file: &File) -> io::Result<String> {
    let mut page = [0; PAGE];
    let length = file.read_at(&mut page, 0)?;
    if length < PAGE {
        return text(page.get(..length).unwrap_or_default());
    }
    let mut long = vec![0; LONGEST];
    match file.read_at(&mut long, 0)? {
        length if length < LONGEST => text(long.get(..length).unwrap_or_default()),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

fn text(bytes: &[u8]) -> io::Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(text.trim_end().to_owned())
}

fn file(path: &str) -> Result<PathBuf, SysctlError> {
    let mut parts = Path::new(path).components();
    let safe = parts.next() == Some(Component::Normal(PART.as_ref()))
        && parts.all(|part| matches!(part, Component::Normal(_)));
    if safe {
        Ok(Path::new(ROOT).join(path))
    } else {
        Err(SysctlError::Path {
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cannot_leave_the_namespaces_part() {
        assert_eq!(
            file("net/ipv4/conf/eth0.100/rp_filter").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.100/rp_filter")
        );
        for bad in [
            "",
            "kernel/sysrq",
            "/net/ipv4/ip_forward",
            "net/../kernel/sysrq",
            "../sys/net/x",
            "/etc/passwd",
        ] {
            assert!(file(bad).is_err(), "{bad:?}");
        }
    }
}
