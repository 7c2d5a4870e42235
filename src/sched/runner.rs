//! Runner processes: started with arguments only, seen to end by pidfd, found again after a crash.
//!
//! A runner's standard input is its `alive` file, locked (flock(2)) before it is started. The lock
//! belongs to the open file, which only the runner holds: while it is locked the runner lives, and
//! when the runner dies, however it dies, the kernel frees it. So a later scheduler knows for
//! certain whether a job still runs, no job is started twice, and the process is found by the file
//! that it has open and not by a pid that may have been reused. That a runner was started is noted in
//! the file's times, since on a full disk a runner leaves no byte.
//!
//! Quick jobs' runners are forked by the [nursery] where there is one; all others, and those where that
//! cannot be, are executed.
//!
//! A runner gets an empty environment, a process group of its own (a Ctrl-C on the scheduler's
//! terminal is not for it) and a limit on the size of each file that it writes.

use std::{
    collections::HashMap,
    fs::{self, File, FileTimes, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::MetadataExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::Arc,
    time::SystemTime,
};

use nix::libc;
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use thiserror::Error;

use super::{
    job::{Mode, RunningJob},
    nursery::{Cradle, NoRunner, Nursery},
    spool::{Spool, SpoolError, write_json},
};
use crate::{
    bulk::addresses::AskedAddresses,
    model::{LabName, RunId},
    registry::medium::Directory,
    sys::limits,
};

/// The program that runs quick jobs.
const QUICK: &str = "tsim-quick";
/// The runner's standard input, locked while it lives.
const ALIVE: &str = "alive";
/// The trace that the runner is given, where the job has one.
const TRACE: &str = "trace.json";
/// The policy that the runner is given, where the job has one.
pub(super) const POLICY: &str = "policy.json";
/// What a check was answered, rule or no rule: as `tsim matrix --json` writes it.
pub const ANSWERS: &str = "report/answers.json";
/// The runner's standard output.
pub const RESULT: &str = "result.json";
/// The runner's standard error.
pub const STDERR: &str = "stderr.txt";
/// Directory that all but quick jobs fill for people.
const REPORT: &str = "report";
/// Its report as one HTML file.
pub const REPORT_HTML: &str = "report/report.html";
/// The same as text.
pub const REPORT_TEXT: &str = "report/report.txt";
/// What a detailed job found out, without its evidence.
pub const OVERVIEW: &str = "report/overview.json";
/// What a detailed job had measured when it was ended before its result.
pub const MEASURED: &str = "report/measured.jsonl";
/// The runner's progress.
pub const PROGRESS: &str = "progress.jsonl";

/// A runner could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The job is running already.
    #[error("run {0} is running already")]
    Alive(RunId),
    /// The run directory could not be prepared.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The process could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The executable.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    /// Whether the system may be able to start it later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        // EAGAIN and ENOMEM of fork(2); EMFILE, ENFILE, ENOSPC and EDQUOT of open(2) and write(2).
        let busy = [
            libc::EAGAIN,
            libc::ENOMEM,
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOSPC,
            libc::EDQUOT,
        ];
        let source = match self {
            Self::Spawn { source, .. } => Some(source),
            Self::Spool(error) => error.cause(),
            _ => None,
        };
        let errno = source.and_then(io::Error::raw_os_error);
        errno.is_some_and(|errno| busy.contains(&errno))
    }
}

/// Where the runners are and what they may do.
#[derive(Debug, Clone)]
pub struct Runners {
    /// Directory with `tsim-quick`, `tsim-detailed` and `tsim`.
    pub dir: PathBuf,
    /// Passed on as `--config`.
    pub config_file: Option<PathBuf>,
    /// Most bytes per file.
    pub max_output: u64,
    /// Forks runners of quick jobs.
    pub nursery: Option<Arc<QuickNursery>>,
}

/// A nursery that stands for the `tsim-quick` of the scheduler's own installation.
#[derive(Debug)]
pub struct QuickNursery {
    nursery: Nursery,
    /// That program when the nursery was started: one that was put in its place since is executed.
    program: Installed,
}

/// What tells one content of a program's file from another.
#[derive(Debug, PartialEq, Eq)]
struct Installed {
    file: FileId,
    size: u64,
    modified: (i64, i64),
}

impl Installed {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            file: (found.dev(), found.ino()),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

impl QuickNursery {
    /// For the runners in `dir`; none where they are not those of this program's own installation, which
    /// has them beside it.
    ///
    /// # Errors
    /// When the nursery cannot be started.
    pub fn beside(dir: &Path) -> io::Result<Option<Self>> {
        let own = std::env::current_exe()?;
        let own_dir = own.parent().ok_or(io::ErrorKind::NotFound)?;
        if fs::canonicalize(dir)? != fs::canonicalize(own_dir)? {
            return Ok(None);
        }
        Ok(Some(Self {
            program: Installed::of(&dir.join(QUICK))?,
            nursery: Nursery::start()?,
        }))
    }
}

/// A runner that was started or adopted.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    parent: Parent,
}

/// Who can wait for a runner.
#[derive(Debug)]
enum Parent {
    /// This process.
    Us(Child),
    /// The nursery.
    Nursery(Arc<QuickNursery>),
    /// Nobody: an earlier scheduler started it.
    Gone,
}

/// The run directory, and what is the runner's standard input, output and error.
struct RunFiles<'a> {
    run: &'a Directory,
    alive: File,
    result: File,
    words: File,
}

impl Runners {
    /// Starts the runner of a job.
    ///
    /// # Errors
    /// [`StartError`]; the job did not run then.
    pub fn start(&self, job: &RunningJob, spool: &Spool) -> Result<Process, StartError> {
        let run = &spool
            .runs()
            .sub(job.run_id.as_str())
            .map_err(SpoolError::from)?;
        let open = |name| run.append_file(name).map_err(SpoolError::from);
        let alive = open(ALIVE)?;
        // Not nix's Flock: dropping that unlocks, here the lock goes on in the runner.
        flock(&alive, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StartError::Alive(job.run_id.clone()))?;
        // They are there, and ours, before the runner is told their paths.
        open(PROGRESS)?;
        if job.mode != Mode::Quick {
            run.sub(REPORT).map_err(SpoolError::from)?;
        }
        if let Some(trace) = &job.params.options.trace {
            write_json(run, TRACE, trace)?;
        }
        let files = RunFiles {
            run,
            alive,
            result: open(RESULT)?,
            words: open(STDERR)?,
        };
        match self.nursery_for(job.mode) {
            Some(nursery) => self.fork(job, spool, nursery, files),
            None => self.execute(job, files),
        }
    }

    /// The nursery that starts runners of this mode, as long as it stands for the program that is there.
    fn nursery_for(&self, mode: Mode) -> Option<&Arc<QuickNursery>> {
        let nursery = self.nursery.as_ref().filter(|_| mode == Mode::Quick)?;
        let there = Installed::of(&self.program(mode)).ok()?;
        (there == nursery.program).then_some(nursery)
    }

    fn fork(
        &self,
        job: &RunningJob,
        spool: &Spool,
        nursery: &Arc<QuickNursery>,
        files: RunFiles<'_>,
    ) -> Result<Process, StartError> {
        let command = self.command(job);
        let arguments = command
            .get_args()
            .map(|one| one.to_str().map(str::to_owned));
        let Some(arguments) = arguments.collect() else {
            return self.execute(job, files);
        };
        let cradle = Cradle {
            arguments,
            max_output: self.max_output,
            files: [
                files.run.fd().as_fd(),
                files.alive.as_fd(),
                files.result.as_fd(),
                files.words.as_fd(),
            ],
        };
        match nursery.nursery.runner(cradle) {
            Ok((pid, pidfd)) => {
                mark_started(&files.alive);
                Ok(Process {
                    pid,
                    pidfd,
                    parent: Parent::Nursery(Arc::clone(nursery)),
                })
            }
            Err(NoRunner::NotAsked) => self.execute(job, files),
            Err(NoRunner::Refused(source)) => Err(self.not_spawned(job.mode, source)),
            Err(NoRunner::Lost(source)) => {
                // The lock is on what these have open.
                drop(files);
                match find_one(spool, &job.run_id, &mut None)? {
                    FoundRunner::Alive(process) => Ok(process),
                    FoundRunner::Ended => Err(self.not_spawned(job.mode, source)),
                    // It goes back to the queue, and is executed the next time.
                    FoundRunner::NeverRan => {
                        let again = io::Error::from_raw_os_error(libc::EAGAIN);
                        Err(self.not_spawned(job.mode, again))
                    }
                }
            }
        }
    }

    fn execute(&self, job: &RunningJob, files: RunFiles<'_>) -> Result<Process, StartError> {
        let mut command = self.command(job);
        let mark = files
            .alive
            .try_clone()
            .map_err(SpoolError::io("mark", Path::new(ALIVE)))?;
        // Names below a directory that the runner is put into: whatever its path leads to by now,
        // the runner writes where the scheduler has looked.
        command
            .current_dir(format!("/proc/self/fd/{}", files.run.fd().as_raw_fd()))
            .stdin(files.alive)
            .stdout(files.result)
            .stderr(files.words);
        let limited = limits::file_size(&mut command, self.max_output);
        let child = limited.and_then(Command::spawn);
        let process = child
            .and_then(Process::of_child)
            .map_err(|source| self.not_spawned(job.mode, source))?;
        mark_started(&mark);
        Ok(process)
    }

    fn not_spawned(&self, mode: Mode, source: io::Error) -> StartError {
        StartError::Spawn {
            program: self.program(mode),
            source,
        }
    }

    /// The executable for a mode.
    #[must_use]
    pub fn program(&self, mode: Mode) -> PathBuf {
        self.dir.join(match mode {
            Mode::Quick => QUICK,
            Mode::Detailed => "tsim-detailed",
            Mode::Check | Mode::Matrix | Mode::Diff => "tsim",
        })
    }

    /// All files in its arguments but the configuration are named as below the run directory.
    fn command(&self, job: &RunningJob) -> Command {
        let mut command = Command::new(self.program(job.mode));
        let params = &job.params;
        let lab = params.lab.as_str();
        command.env_clear().process_group(0);
        match job.mode {
            Mode::Quick | Mode::Detailed => {
                command.args(["--lab", lab]);
            }
            Mode::Check => {
                command.args(["check", lab, POLICY, "--sent", "--answers", ANSWERS]);
            }
            Mode::Matrix => {
                command.args(["matrix", lab]);
            }
            Mode::Diff => {
                let before = params.before.as_ref().map_or("", LabName::as_str);
                command.args(["diff", before, lab, "--sent"]);
                let policy = params.policy.as_ref().map(|_| ["--policy", POLICY]);
                command.args(policy.iter().flatten());
            }
        }
        let list = |list: &Option<AskedAddresses>| list.as_ref().map(ToString::to_string);
        for (option, value) in [
            ("-s", list(&params.source)),
            ("-d", list(&params.destination)),
            ("-P", params.ports.clone()),
        ] {
            let value = value.map(|value| [option.to_owned(), value]);
            command.args(value.iter().flatten());
        }
        if params.networks {
            command.arg("--networks");
        }
        if job.mode.lane() == Mode::Check {
            command.args(["-o", REPORT_HTML, "-o", REPORT_TEXT]);
        }
        if let Some(routers) = &params.routers {
            let names: Vec<&str> = routers.iter().map(AsRef::as_ref).collect();
            command.args(["--routers", &names.join(",")]);
        }
        command.args(params.options.arguments(Path::new(TRACE)));
        command.args(["--run-id", job.run_id.as_str()]);
        if let Some(dscp) = job.dscp {
            command.args(["--dscp", &dscp.to_string()]);
        }
        command.args(["--json", "--progress", PROGRESS]);
        if job.mode == Mode::Detailed {
            command.args(["--out", REPORT]);
        }
        if let Some(file) = &self.config_file {
            command.arg("--config").arg(file);
        }
        command
    }
}

impl Process {
    fn of_child(mut child: Child) -> io::Result<Self> {
        match Self::watch(child.id()) {
            Ok((pid, pidfd)) => Ok(Self {
                pid,
                pidfd,
                parent: Parent::Us(child),
            }),
            Err(error) => {
                // Without a pidfd nobody would see it end: it must not run at all.
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    fn watch(pid: u32) -> io::Result<(Pid, OwnedFd)> {
        let pid = to_pid(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok((pid, pidfd_open(pid, PidfdFlags::NONBLOCK)?))
    }

    /// The process id, for people.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Becomes readable when the process ends.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Sends SIGTERM; a process that is gone is none to worry about.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// How the process ended: call when its pidfd is readable. None for an adopted one, whose
    /// status only its first scheduler could have had, and for one whose nursery is lost.
    ///
    /// # Errors
    /// When the kernel has no status to give.
    pub fn reap(&mut self) -> io::Result<Option<ExitStatus>> {
        match &mut self.parent {
            Parent::Us(child) => child.wait().map(Some),
            Parent::Nursery(nursery) => Ok(nursery.nursery.reap(self.pid)),
            Parent::Gone => Ok(None),
        }
    }
}

/// What became of the runner of a job that an earlier scheduler started.
#[derive(Debug)]
pub enum FoundRunner {
    /// It lives.
    Alive(Process),
    /// It ended, and left traces of having run.
    Ended,
    /// It never ran.
    NeverRan,
}

/// Looks for the runners of jobs that another scheduler started.
///
/// # Errors
/// [`SpoolError::Io`] when a run directory or `/proc` cannot be read.
pub fn find(jobs: &[RunningJob], spool: &Spool) -> Result<Vec<FoundRunner>, SpoolError> {
    let mut holders = None;
    jobs.iter()
        .map(|job| find_one(spool, &job.run_id, &mut holders))
        .collect()
}

/// How often a holder that cannot be found is looked for.
const LOOKS: usize = 100;

type FileId = (u64, u64);

fn find_one(
    spool: &Spool,
    run_id: &RunId,
    holders: &mut Option<HashMap<FileId, Vec<Pid>>>,
) -> Result<FoundRunner, SpoolError> {
    let path = spool.run_dir(run_id).join(ALIVE);
    let Some(alive) = spool.run_file(run_id, ALIVE)? else {
        return Ok(FoundRunner::NeverRan);
    };
    let metadata = alive.metadata().map_err(SpoolError::io("examine", &path))?;
    let file = (metadata.dev(), metadata.ino());
    // A holder may end between the look at the lock and the look for its process: look again.
    for _ in 0..LOOKS {
        if flock(&alive, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(if has_run(spool, run_id, &metadata)? {
                FoundRunner::Ended
            } else {
                FoundRunner::NeverRan
            });
        }
        if holders.is_none() {
            *holders = Some(stdin_holders().map_err(SpoolError::io("list", Path::new("/proc")))?);
        }
        let pids = holders.as_ref().and_then(|holders| holders.get(&file));
        let found = pids.into_iter().flatten().find_map(|pid| adopt(*pid, file));
        if let Some(process) = found {
            mark_started(&alive);
            return Ok(FoundRunner::Alive(process));
        }
        *holders = None;
    }
    let hidden = io::Error::other("its process cannot be seen from here");
    Err(SpoolError::io("find who holds", &path)(hidden))
}

/// Notes in the times of its `alive` file that a runner was started. That needs no room on the disk,
/// which all that a runner writes itself does.
fn mark_started(alive: &File) {
    let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
    if let Err(error) = alive.set_times(times) {
        tracing::warn!(%error, "cannot note that a runner was started");
    }
}

/// Any byte that a runner wrote proves that it ran, as does the note that it was started.
fn has_run(spool: &Spool, run_id: &RunId, alive: &Metadata) -> Result<bool, SpoolError> {
    if alive
        .modified()
        .is_ok_and(|time| time == SystemTime::UNIX_EPOCH)
    {
        return Ok(true);
    }
    for name in [PROGRESS, RESULT, STDERR] {
        let file = spool.run_file(run_id, name)?;
        if file.is_some_and(|file| file.metadata().is_ok_and(|file| file.len() > 0)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every process by the file that it has as standard input; leaders of process groups first.
fn stdin_holders() -> io::Result<HashMap<FileId, Vec<Pid>>> {
    let mut holders: HashMap<FileId, Vec<Pid>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let Some((pid, file)) = pid
            .and_then(to_pid)
            .and_then(|pid| Some((pid, stdin_of(pid)?)))
        else {
            continue;
        };
        let pids = holders.entry(file).or_default();
        // The runner leads its group; a child of it that inherited the file does not.
        match rustix::process::getpgid(Some(pid)) {
            Ok(group) if group == pid => pids.insert(0, pid),
            _ => pids.push(pid),
        }
    }
    Ok(holders)
}

/// The file that a process has as its standard input, proc_pid_fd(5).
fn stdin_of(pid: Pid) -> Option<FileId> {
    let file = fs::metadata(format!("/proc/{}/fd/0", pid.as_raw_nonzero())).ok()?;
    Some((file.dev(), file.ino()))
}

fn adopt(pid: Pid, file: FileId) -> Option<Process> {
    let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
    // The pidfd first: if the pid still has the file now, the pidfd is of that very process.
    (stdin_of(pid)? == file).then_some(Process {
        pid,
        pidfd,
        parent: Parent::Gone,
    })
}

fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// An exit status in words, for a job that has no result.
#[must_use]
pub fn describe(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "the runner ended while no scheduler watched it".to_owned();
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("the runner ended with exit code {code}"),
        (None, Some(libc::SIGXFSZ)) => "the runner wrote more than it may".to_owned(),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal);
            let name = name.map_or_else(|_| signal.to_string(), |name| name.to_string());
            format!("the runner was ended by {name}")
        }
        (None, None) => "the runner ended".to_owned(),
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
