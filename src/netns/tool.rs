//! Running the tools that load and print rulesets (`iptables-restore`, `nft`, `ipset`).
//!
//! A tool runs in the network namespace of the thread that starts it: call [`Tools::run`] inside
//! [`NetnsFd::enter`](super::NetnsFd::enter). It gets no environment but `PATH`, `LC_ALL` and `TZ`, and
//! its input and output are memory files (memfd_create(2)), so no pipe can fill up and stop it.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::memfd::{MFdFlags, memfd_create},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;

use crate::sys::{limits, seccomp};

/// How long a tool may take unless [`Tools::with_time_limit`] says otherwise.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(60);

/// Most bytes on standard output of a tool that is [`Tools::locked`].
pub const MOST_PRINTED: u64 = 64 << 20;

/// Most bytes of standard error that are kept; several thousand messages.
const MOST_SAID: usize = 4 << 20;

/// What to do where iptables-legacy finds no tables.
pub const LOAD_LEGACY_TABLES: &str = "this kernel has no tables of iptables-legacy, or does not load their \
     modules for an ordinary user, and then root does: modprobe -a iptable_raw iptable_mangle iptable_nat \
     iptable_filter iptable_security ip6table_raw ip6table_mangle ip6table_nat ip6table_filter \
     ip6table_security";

/// What a tool said, with what to do about it where that is known.
#[must_use]
pub fn with_remedy(said: &str) -> String {
    let said = said.trim();
    // The words of iptables-legacy-restore and of the others.
    let lacks = ["unable to initialize table", "do you need to insmod?"];
    match lacks.iter().any(|words| said.contains(words)) {
        true => format!("{said}; {LOAD_LEGACY_TABLES}"),
        false => said.to_owned(),
    }
}

/// A tool could not be run, or said that it failed.
#[derive(Debug, Error)]
pub enum ToolError {
    /// No directory holds it.
    #[error("there is no {tool} in {}: it comes with the package {}", list(.dirs), package_of(.tool))]
    NotFound {
        /// Its file name.
        tool: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// It could not be started, or its input or output not be passed.
    #[error("cannot {step} {tool}")]
    Start {
        /// Its file name.
        tool: String,
        /// Which step failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error("{tool} did not end within {} s and was killed", .limit.as_secs_f64())]
    TimedOut {
        /// Its file name.
        tool: String,
        /// How long it may take.
        limit: Duration,
    },
    /// It said that it failed.
    #[error("{tool} failed ({status}): {}", with_remedy(.stderr))]
    Failed {
        /// Its file name.
        tool: String,
        /// How it ended.
        status: ExitStatus,
        /// Its own words.
        stderr: String,
    },
}

/// What a tool printed before it ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Printed {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error: warnings.
    pub stderr: String,
}

/// The tools of this machine.
#[derive(Debug, Clone)]
pub struct Tools {
    dirs: Vec<PathBuf>,
    time_limit: Duration,
    locked: bool,
}

impl Tools {
    /// Tools in `dirs`, which are searched in order.
    #[must_use]
    pub fn new(dirs: impl Into<Vec<PathBuf>>) -> Self {
        Self {
            dirs: dirs.into(),
            time_limit: DEFAULT_TIME_LIMIT,
            locked: false,
        }
    }

    /// The same tools, for data from strangers: they can start no other program and make no
    /// sockets but those that rules go to the kernel through ([`seccomp`]), and print at most
    /// [`MOST_PRINTED`].
    #[must_use]
    pub fn locked(self) -> Self {
        let locked = true;
        Self { locked, ..self }
    }

    /// The same tools, killed when they take longer than `limit`.
    #[cfg(test)]
    #[must_use]
    pub fn with_time_limit(self, limit: Duration) -> Self {
        let time_limit = limit;
        Self { time_limit, ..self }
    }

    /// The file of `tool`.
    ///
    /// # Errors
    /// [`ToolError::NotFound`].
    pub fn find(&self, tool: &str) -> Result<PathBuf, ToolError> {
        let files = self.dirs.iter().map(|dir| dir.join(tool));
        files
            .into_iter()
            .find(|file| file.is_file())
            .ok_or_else(|| ToolError::NotFound {
                tool: tool.to_owned(),
                dirs: self.dirs.clone(),
            })
    }

    /// Runs `tool` in the calling thread's namespace and waits for its end.
    ///
    /// # Errors
    /// [`ToolError`]; everything but status 0 is [`ToolError::Failed`].
    pub fn run(&self, tool: &str, args: &[&str], input: &[u8]) -> Result<Printed, ToolError> {
        let file = self.find(tool)?;
        let fail = |step| {
            move |source| ToolError::Start {
                tool: tool.to_owned(),
                step,
                source,
            }
        };
        let stdin = memory_file(input).map_err(fail("pass the input to"))?;
        let mut stdout = memory_file(&[]).map_err(fail("make room for the output of"))?;
        let shared = stdout
            .try_clone()
            .map_err(fail("make room for the output of"))?;
        let mut command = self.command(&file, args);
        command
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(shared))
            .stderr(Stdio::piped());
        if self.locked {
            limits::file_size(&mut command, MOST_PRINTED).map_err(fail("limit"))?;
            seccomp::confine(&mut command);
        }
        let mut child = command.spawn().map_err(fail("start"))?;
        let stderr = self.wait_for_end(&mut child, tool)?;
        let status = child.wait().map_err(fail("wait for"))?;
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        if !status.success() {
            let tool = tool.to_owned();
            return Err(ToolError::Failed {
                tool,
                status,
                stderr,
            });
        }
        let stdout = read_back(&mut stdout).map_err(fail("read the output of"))?;
        Ok(Printed { stdout, stderr })
    }

    fn command(&self, file: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(file);
        // Tools find other tools (modprobe) where they themselves were found, and nowhere else.
        let path = std::env::join_paths(&self.dirs).unwrap_or_default();
        command
            .args(args)
            .env_clear()
            .env("PATH", path)
            .env("LC_ALL", "C")
            // Facts tell hours and dates of nft(8) in UTC, and so it has to read them.
            .env("TZ", "UTC0")
            .current_dir("/");
        command
    }

    /// Reads standard error until the tool closes it, and waits until it has ended.
    fn wait_for_end(&self, child: &mut Child, tool: &str) -> Result<Vec<u8>, ToolError> {
        let deadline = Instant::now() + self.time_limit;
        let collected = collect(child, deadline);
        match collected.and_then(|text| await_end(child, deadline).map(|()| text)) {
            Ok(stderr) => Ok(stderr),
            Err(source) => {
                // It may have ended by itself meanwhile; it is reaped in any case.
                let _ = child.kill();
                let _ = child.wait();
                let tool = tool.to_owned();
                Err(if source.kind() == io::ErrorKind::TimedOut {
                    let limit = self.time_limit;
                    ToolError::TimedOut { tool, limit }
                } else {
                    let step = "listen to";
                    ToolError::Start { tool, step, source }
                })
            }
        }
    }
}

fn collect(child: &mut Child, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let Some(stderr) = child.stderr.as_mut() else {
        return Ok(text);
    };
    let mut part = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        match stderr.read(&mut part)? {
            0 => return Ok(text),
            n => {
                let room = MOST_SAID.saturating_sub(text.len());
                text.extend(part.iter().take(n.min(room)));
            }
        }
    }
}

/// Waits until `child` has ended, which it need not have when it closed standard error.
fn await_end(child: &Child, deadline: Instant) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn memory_file(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"tsim", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Everything in `file`. The tool wrote through the same open file, so the offset is at its end.
fn read_back(file: &mut File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Debian's package with this tool, of those that are run.
fn package_of(tool: &str) -> &'static str {
    match tool {
        "nft" => "nftables",
        "ip" => "iproute2",
        "ipset" => "ipset",
        _ => "iptables",
    }
}

fn list(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|d| d.display().to_string()).collect();
    dirs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Tools {
        Tools::new(["/nonexistent", "/usr/bin", "/bin"].map(PathBuf::from))
    }

    fn sh(script: &str, input: &[u8]) -> Result<Printed, ToolError> {
        tools().run("sh", &["-c", script], input)
    }

    #[test]
    fn input_and_output_of_any_size_pass() {
        let input = vec![b'x'; 1 << 20];
        let printed = sh("cat; echo note >&2", &input).unwrap();
        assert!(printed.stdout == input);
        assert_eq!(printed.stderr, "note\n");
    }

    #[test]
    fn a_tool_gets_a_fixed_environment() {
        let printed = tools().run("env", &[], &[]).unwrap();
        let mut lines: Vec<_> = std::str::from_utf8(&printed.stdout)
            .unwrap()
            .lines()
            .collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["LC_ALL=C", "PATH=/nonexistent:/usr/bin:/bin", "TZ=UTC0"]
        );
    }

    #[test]
    fn failure_carries_status_and_words() {
        let error = sh("echo bad rule >&2; exit 3", &[]).unwrap_err();
        let ToolError::Failed { status, stderr, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!((status.code(), stderr.as_str()), (Some(3), "bad rule\n"));
        let error = tools().run("no-such-tool", &[], &[]).unwrap_err();
        assert!(error.to_string().contains("/usr/bin, /bin"), "{error}");
    }

    #[test]
    fn a_tool_that_hangs_is_killed() {
        let tools = tools().with_time_limit(Duration::from_millis(20));
        // `exec`, so that the shell's child does not keep standard error open.
        for script in ["exec sleep 600", "exec 2>&- sleep 600"] {
            let error = tools.run("sh", &["-c", script], &[]).unwrap_err();
            assert!(matches!(error, ToolError::TimedOut { .. }), "{error}");
        }
    }
}
