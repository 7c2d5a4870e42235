//! Directories of the configuration, and limits of the kernel and of this process.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::AtFlags,
    sys::resource::{Resource, getrlimit},
    unistd::{AccessFlags, faccessat, geteuid},
};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::{Area, Check, check};
use crate::{config::Config, firewall::Support, netlink::buffers, netns};

/// Least values, enough for 32 jobs at once on some hundreds of routers.
const INOTIFY_INSTANCES: u64 = 128;
const INOTIFY_WATCHES: u64 = 8192;
const OPEN_FILES: u64 = 4096;
/// As the kernel counts, which is twice what is asked for: its default is 212,992 bytes.
const SOCKET_BUFFER: u64 = 400 * 1024;

pub(super) fn directories(config: &Config) -> Vec<Check> {
    [
        ("registry", config.registry_dir.as_path()),
        ("labs", &config.labs_dir),
        ("namespaces", Path::new(netns::DEFAULT_DIR)),
    ]
    .map(|(name, dir)| {
        let found = dir.display().to_string();
        check(Area::Directories, name, usable(dir), found)
    })
    .into()
}

/// Whether state may be kept in `dir`, which may still have to be made.
fn usable(dir: &Path) -> Support {
    let meta = match fs::symlink_metadata(dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return makeable(dir),
        Err(error) => return Support::Unknown(format!("{}: {error}", dir.display())),
    };
    let no = |what: &str| Support::No(format!("{} {what}", dir.display()));
    if !meta.is_dir() {
        no("is not a directory")
    } else if meta.uid() != geteuid().as_raw() && meta.uid() != 0 {
        no("belongs to somebody else")
    } else if meta.mode() & 0o002 != 0 {
        no("can be written by everybody")
    } else if !writable(dir) {
        no("cannot be written by this user")
    } else {
        Support::Yes
    }
}

fn makeable(dir: &Path) -> Support {
    let ancestor: Option<PathBuf> = dir
        .ancestors()
        .skip(1)
        .find(|ancestor| ancestor.exists())
        .map(Path::to_owned);
    match ancestor {
        Some(ancestor) if writable(&ancestor) => Support::Yes,
        Some(ancestor) => Support::No(format!(
            "{} is not there and cannot be made in {}",
            dir.display(),
            ancestor.display()
        )),
        None => Support::Unknown(format!("{} has no parent", dir.display())),
    }
}

fn writable(dir: &Path) -> bool {
    let wanted = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(nix::fcntl::AT_FDCWD, dir, wanted, AtFlags::AT_EACCESS).is_ok()
}

pub(super) fn limits() -> Vec<Check> {
    vec![
        sysctl(
            "inotify_instances",
            INOTIFY_INSTANCES,
            &["fs/inotify/max_user_instances"],
        ),
        sysctl(
            "inotify_watches",
            INOTIFY_WATCHES,
            &["fs/inotify/max_user_watches"],
        ),
        socket_buffers(),
        open_files(),
    ]
}

/// What a socket really gets: a user namespace does not see `net.core.rmem_max` and `wmem_max`.
fn socket_buffers() -> Check {
    let name = "socket_buffers";
    let wanted = SOCKET_BUFFER as usize;
    let granted = || -> io::Result<usize> {
        let socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        let send = buffers::send(&socket, wanted)?;
        Ok(send.min(buffers::receive(&socket, wanted)?))
    };
    match granted() {
        Ok(bytes) => at_least(name, SOCKET_BUFFER, bytes as u64),
        Err(error) => {
            let support = Support::Unknown(error.to_string());
            check(Area::Limits, name, support, String::new())
        }
    }
}

/// All of `paths`, below `/proc/sys`, must be at least `least`.
fn sysctl(name: &str, least: u64, paths: &[&str]) -> Check {
    let read = |path: &&str| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(path))?;
        text.trim().parse().map_err(io::Error::other)
    };
    let values: io::Result<Vec<u64>> = paths.iter().map(read).collect();
    match values {
        Err(error) => {
            let words = format!("{}: {error}", paths.join(", "));
            check(Area::Limits, name, Support::Unknown(words), String::new())
        }
        Ok(values) => at_least(name, least, values.iter().min().copied().unwrap_or(0)),
    }
}

/// The hard limit: the soft one is raised to it where many files are needed.
fn open_files() -> Check {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => at_least("open_files", OPEN_FILES, hard),
        Err(errno) => {
            let support = Support::Unknown(errno.to_string());
            check(Area::Limits, "open_files", support, String::new())
        }
    }
}

fn at_least(name: &str, least: u64, value: u64) -> Check {
    let support = if value >= least {
        Support::Yes
    } else {
        Support::No(format!("{value}, at least {least} is wanted"))
    };
    check(Area::Limits, name, support, value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(usable(dir.path()), Support::Yes);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(usable(dir.path()), Support::No(why) if why.contains("everybody")));
    }

    #[test]
    fn what_is_no_directory_is_refused_and_what_is_missing_can_be_made() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(usable(&dir.path().join("a/b")), Support::Yes);
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(usable(&dir.path().join("file")), Support::No(_)));
    }

    #[test]
    fn a_limit_names_what_is_wanted() {
        let low = at_least("open_files", 4096, 1024);
        assert_eq!(low.found, "1024, at least 4096 is wanted");
        assert_eq!(at_least("open_files", 4096, 4096).found, "4096");
    }
}
