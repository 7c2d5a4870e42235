//! Runners of quick jobs by fork(2) without exec(2): a process of the scheduler's own, with one thread,
//! that does nothing else.
//!
//! Replacing the program, linking it and starting its runtime costs a quick job as much as a third of
//! its work. The nursery has all of that behind it, as the same code: it is `tsimd` under another name,
//! with an empty environment and nothing open but its [line](super::line). A child is what a runner is
//! that was executed: leader of a process group, in the run directory, with the same three files, and
//! under the same limit. It holds no lock and no socket of the nursery's, which has none.
//!
//! The nursery is the runners' parent, so it is asked for how they ended; it waits for none that it is
//! not asked for, so that their numbers stay theirs until then. When the scheduler dies the nursery
//! ends, and the runners go on as they do in any case: who adopts them finds them by the file that
//! they have as standard input.

use std::{
    io::{self, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::{self, Child, ExitStatus},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::unistd::{Pid as ProcessGroup, dup2_stderr, dup2_stdin, dup2_stdout, fchdir, setpgid};
use rustix::{
    process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid},
    thread::set_name,
};
use serde::{Deserialize, Serialize};

use super::line::{self, Line, Unanswered};
use crate::sys::{
    fork::{Forked, OnlyThread},
    limits,
};

/// How the process calls itself. Whoever is started under this name runs [`run`] and nothing else.
pub const NAME: &str = "tsim-nursery";
/// The same for the kernel.
const NURSERY: &std::ffi::CStr = c"tsim-nursery";
/// How its children are called, as far as that is not their command line.
const RUNNER: &std::ffi::CStr = c"tsim-quick";
/// A fork takes less than a millisecond; a nursery that was stopped must not stop the scheduler.
const PATIENCE: Duration = Duration::from_secs(5);
/// The exit code of a child that could not become a runner, as of one that lacks rights.
const CANNOT_RUN: i32 = 4;

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// With the run directory and the runner's three files.
    Start {
        arguments: Vec<String>,
        max_output: u64,
    },
    Reap(i32),
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// With the child's pidfd.
    Started(i32),
    Status(i32),
    /// An errno, if it was one.
    Refused(Option<i32>),
}

/// What a runner is started with.
#[derive(Debug)]
pub(super) struct Cradle<'a> {
    /// Its command line behind the name.
    pub(super) arguments: Vec<String>,
    /// Most bytes per file.
    pub(super) max_output: u64,
    /// The directory to work in, and standard input, output and error.
    pub(super) files: [BorrowedFd<'a>; 4],
}

/// Why there is no runner.
#[derive(Debug)]
pub(super) enum NoRunner {
    /// The nursery was not asked: there is none, or the question does not fit.
    NotAsked,
    /// It could not fork.
    Refused(io::Error),
    /// It gave no answer and was ended. The runner may have been started.
    Lost(io::Error),
}

/// The scheduler's end.
#[derive(Debug)]
pub struct Nursery(Mutex<Option<(Line, Child)>>);

impl Nursery {
    /// Starts the process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start() -> io::Result<Self> {
        let started = Line::start(line::this_program(NAME).env_clear(), PATIENCE)?;
        Ok(Self(Mutex::new(Some(started))))
    }

    /// Starts a runner, and returns its number and its pidfd.
    pub(super) fn runner(&self, cradle: Cradle<'_>) -> Result<(Pid, OwnedFd), NoRunner> {
        let request = Request::Start {
            arguments: cradle.arguments,
            max_output: cradle.max_output,
        };
        let (reply, along) = self.ask(&request, &cradle.files)?;
        match (reply, along.into_iter().next()) {
            (Reply::Started(pid), Some(pidfd)) => {
                let pid = Pid::from_raw(pid);
                let pid = pid.ok_or_else(|| NoRunner::Lost(io::ErrorKind::InvalidData.into()))?;
                Ok((pid, pidfd))
            }
            (Reply::Refused(errno), _) => {
                let other = || io::Error::other("no process for the runner");
                let error = errno.map_or_else(other, io::Error::from_raw_os_error);
                Err(NoRunner::Refused(error))
            }
            _ => Err(NoRunner::Lost(io::ErrorKind::InvalidData.into())),
        }
    }

    /// How a runner ended that was started here; none where the nursery is gone.
    pub(super) fn reap(&self, pid: Pid) -> Option<ExitStatus> {
        let request = Request::Reap(pid.as_raw_nonzero().get());
        match self.ask(&request, &[]) {
            Ok((Reply::Status(status), _)) => Some(ExitStatus::from_raw(status)),
            Ok(_) => None,
            Err(error) => {
                tracing::error!(?error, "cannot ask how a runner ended");
                None
            }
        }
    }

    fn ask(
        &self,
        request: &Request,
        files: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), NoRunner> {
        let mut nursery = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((line, _)) = nursery.as_mut() else {
            return Err(NoRunner::NotAsked);
        };
        line.ask(request, files).map_err(|unanswered| {
            let too_long = |e: &io::Error| e.kind() == io::ErrorKind::InvalidInput;
            match unanswered {
                Unanswered::NotAsked(error) if too_long(&error) => NoRunner::NotAsked,
                unanswered => {
                    // Whatever it does now it does no later: who looks afterwards sees all of it.
                    let lost = nursery.take().map(|(_, child)| child);
                    lost.into_iter().for_each(end);
                    match unanswered {
                        Unanswered::NotAsked(_) => NoRunner::NotAsked,
                        Unanswered::NoAnswer(error) => NoRunner::Lost(error),
                    }
                }
            }
        })
    }
}

fn end(mut nursery: Child) {
    tracing::error!("the runners' nursery is lost; runners are started without it");
    // One that is gone can be waited for all the same.
    let _ = nursery.kill();
    let _ = nursery.wait();
}

/// Forks runners until the scheduler is gone. `runner` is what a child does, given its command line.
pub fn run(runner: impl Fn(Vec<String>)) -> ! {
    // Signals of the terminal are for the scheduler.
    let _ = nix::unistd::setsid();
    // For those who look at processes; it is called after the file that it was started by otherwise.
    let _ = set_name(NURSERY);
    process::exit(i32::from(serve(&runner).is_err()))
}

fn serve(runner: &impl Fn(Vec<String>)) -> io::Result<()> {
    let thread = OnlyThread::claim()?;
    line::serve(|request, files| match request {
        Request::Start {
            arguments,
            max_output,
        } => match start(&thread, files, max_output, || runner(arguments)) {
            Ok((pid, pidfd)) => (Reply::Started(pid.as_raw_nonzero().get()), Some(pidfd)),
            Err(error) => (Reply::Refused(error.raw_os_error()), None),
        },
        Request::Reap(pid) => (reap(pid), None),
    })
}

/// The child never comes back from this.
fn start(
    thread: &OnlyThread,
    files: Vec<OwnedFd>,
    max_output: u64,
    runner: impl FnOnce(),
) -> io::Result<(Pid, OwnedFd)> {
    match thread.fork()? {
        Forked::Child => {
            if let Err(error) = settle(files, max_output) {
                let _ = writeln!(io::stderr(), "error: cannot become a runner: {error}");
                process::exit(CANNOT_RUN);
            }
            runner();
            process::exit(0)
        }
        Forked::Parent(pid) => {
            // The lock on its `alive` file is the runner's alone.
            drop(files);
            pidfd_open(pid, PidfdFlags::NONBLOCK)
                .map(|pidfd| (pid, pidfd))
                .map_err(|errno| {
                    // Without a pidfd nobody would see it end: it must not run at all.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    let _ = waitpid(Some(pid), WaitOptions::empty());
                    errno.into()
                })
        }
    }
}

/// Makes of the child what exec(2) would have made of a new program. Its line goes with standard input.
fn settle(files: Vec<OwnedFd>, max_output: u64) -> io::Result<()> {
    let [dir, alive, result, words]: [OwnedFd; 4] = files
        .try_into()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    dup2_stderr(&words)?;
    dup2_stdin(&alive)?;
    dup2_stdout(&result)?;
    fchdir(&dir)?;
    setpgid(ProcessGroup::from_raw(0), ProcessGroup::from_raw(0))?;
    limits::file_size_here(max_output)?;
    set_name(RUNNER)?;
    Ok(())
}

/// Only its own children, each once and when it has ended: others wait for their turn meanwhile.
fn reap(pid: i32) -> Reply {
    let status = Pid::from_raw(pid).map(|pid| waitpid(Some(pid), WaitOptions::NOHANG));
    match status {
        Some(Ok(Some((_, status)))) => Reply::Status(status.as_raw()),
        Some(Err(errno)) => Reply::Refused(Some(errno.raw_os_error())),
        _ => Reply::Refused(None),
    }
}
