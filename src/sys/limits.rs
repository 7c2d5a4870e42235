//! Limits of this process, and those that hold for a child from its first instruction on.
#![allow(unsafe_code)]

use std::{io, os::unix::process::CommandExt, process::Command};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets the child, and what it starts, write at most `bytes` to one file: SIGXFSZ ends who tries
/// more, setrlimit(2). A limit of this process that is lower stays.
///
/// prlimit(2) after the start would come too late for what a child writes at once.
///
/// # Errors
/// When the kernel does not say what this process itself may.
pub fn file_size(command: &mut Command, bytes: u64) -> io::Result<&mut Command> {
    let most = at_most(bytes)?;
    let limit = move || Ok(setrlimit(Resource::RLIMIT_FSIZE, most, most)?);
    // SAFETY: between fork and exec only the calling thread exists, so the closure must neither
    // allocate nor lock: it makes one system call with two integers, and an Errno becomes an
    // io::Error without allocation.
    Ok(unsafe { command.pre_exec(limit) })
}

/// The same for this process itself.
///
/// # Errors
/// When the kernel refuses.
pub fn file_size_here(bytes: u64) -> io::Result<()> {
    let most = at_most(bytes)?;
    Ok(setrlimit(Resource::RLIMIT_FSIZE, most, most)?)
}

fn at_most(bytes: u64) -> io::Result<u64> {
    // Raising a hard limit takes a capability.
    let (_, own) = getrlimit(Resource::RLIMIT_FSIZE)?;
    Ok(bytes.min(own))
}

/// Lets this process, and what it starts, open as many files as it may ask for. The 1,024 that a
/// login gives are for programs that use select(2), systemd.exec(5).
///
/// # Errors
/// When the kernel refuses; the limit stays as it was.
pub fn open_files() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::process::ExitStatusExt, process::Stdio};

    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_can_be_asked_for() {
        open_files().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }

    #[test]
    fn the_first_write_is_limited_already() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut command = Command::new("dd");
        command
            .args(["if=/dev/zero", "bs=1000000", "count=1"])
            .stdout(fs::File::create(&path).unwrap())
            .stderr(Stdio::null());
        let status = file_size(&mut command, 1000).unwrap().status().unwrap();
        // dd counts what was written and tries the rest.
        assert_eq!(status.signal(), Some(libc::SIGXFSZ));
        assert_eq!(fs::metadata(&path).unwrap().len(), 1000);
    }
}
