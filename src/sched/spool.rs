//! The scheduler's files: where they are, how they are read, and how they are changed.
//!
//! ```text
//! <registry_dir>/
//!   queue/queue.lock       flock: whoever changes one of the files below holds it
//!   queue/leader.lock      flock: the scheduler that leads holds it, see `leader`
//!   queue/queue.json       jobs that wait, first job first
//!   queue/current.json     jobs whose runner was started
//!   runs/index.jsonl       finished jobs, one line each, oldest first
//!   runs/<run id>/job.json      the finished job; its existence says that the job is over
//!   runs/<run id>/alive         flock: held by the runner through its standard input
//!   runs/<run id>/result.json   the runner's standard output
//!   runs/<run id>/stderr.txt    its standard error
//!   runs/<run id>/progress.jsonl  its progress
//! ```
//!
//! A `*.json` file is replaced as a whole (temporary file, fsync, rename, fsync of the directory):
//! a reader sees the old or the new one, and a crash leaves the old or the new one. A job moves by
//! being written to where it goes first: at no instant is it in neither file, and one that a crash
//! left in both counts as further on.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tempfile::NamedTempFile;
use thiserror::Error;

use crate::{config::Config, model::RunId};

/// The one version of `queue.json` and `current.json`.
const VERSION: u32 = 1;

/// A file of the scheduler could not be used.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// A system call failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: serde_json::Error,
    },
    /// A file was written by a later version.
    #[error("{path} has version {found}, this program knows {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl SpoolError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// The scheduler's directories. Cheap to open and to clone; safe from threads and processes.
#[derive(Debug, Clone)]
pub struct Spool {
    queue: PathBuf,
    runs: PathBuf,
}

/// The right to change the files: nobody else has it at the same time.
#[derive(Debug)]
pub struct Locked<'a> {
    pub(super) spool: &'a Spool,
    _lock: Flock<File>,
}

/// `queue.json` or `current.json` with everything that is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct JobFile {
    version: u32,
    updated_at: Timestamp,
    /// Kept as found; entries that are no jobs stay where they are.
    pub(super) jobs: Vec<Value>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl JobFile {
    fn empty() -> Self {
        Self {
            version: VERSION,
            updated_at: Timestamp::UNIX_EPOCH,
            jobs: Vec::new(),
            extra: Map::new(),
        }
    }
}

/// Which of the two lists of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Queue,
    Current,
}

impl List {
    fn file(self) -> &'static str {
        match self {
            Self::Queue => "queue.json",
            Self::Current => "current.json",
        }
    }
}

impl Spool {
    /// Opens the scheduler's directories under the registry directory; makes what is missing.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when a directory cannot be made.
    pub fn open(config: &Config) -> Result<Self, SpoolError> {
        let spool = Self {
            queue: config.registry_dir.join("queue"),
            runs: config.registry_dir.join("runs"),
        };
        for dir in [&config.registry_dir, &spool.queue, &spool.runs] {
            make_dir(dir)?;
        }
        Ok(spool)
    }

    /// The directory that holds `queue.json` and `current.json`; watch it to see them change.
    #[must_use]
    pub fn queue_dir(&self) -> &Path {
        &self.queue
    }

    /// The directory of all runs.
    #[must_use]
    pub fn runs_dir(&self) -> &Path {
        &self.runs
    }

    /// The directory of one run.
    #[must_use]
    pub fn run_dir(&self, run_id: &RunId) -> PathBuf {
        self.runs.join(run_id.as_str())
    }

    /// Waits until nobody else changes the files. The wait is short: no holder waits for anything
    /// but the disk, and the kernel frees the lock of one that dies.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when the lock file cannot be opened or locked.
    pub fn lock(&self) -> Result<Locked<'_>, SpoolError> {
        let path = self.queue.join("queue.lock");
        let mut file = open_lock(&path)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => {
                    return Ok(Locked {
                        spool: self,
                        _lock: lock,
                    });
                }
                Err((again, Errno::EINTR)) => file = again,
                Err((_, errno)) => return Err(SpoolError::io("lock", &path)(errno.into())),
            }
        }
    }

    pub(super) fn read_list(&self, list: List) -> Result<JobFile, SpoolError> {
        let path = self.queue.join(list.file());
        let Some(file): Option<JobFile> = read_json(&path)? else {
            return Ok(JobFile::empty());
        };
        if file.version != VERSION {
            let found = file.version;
            return Err(SpoolError::Version { path, found });
        }
        Ok(file)
    }
}

impl Locked<'_> {
    /// Reads a list to change it. A damaged file is set aside under a name that says when, and the
    /// copy that was good before takes its place.
    pub(super) fn list(&self, list: List) -> Result<JobFile, SpoolError> {
        match self.spool.read_list(list) {
            Err(SpoolError::Damaged { path, source }) => {
                let aside = self.set_aside(&path)?;
                tracing::error!(file = %path.display(), aside = %aside.display(), %source,
                    "damaged file set aside; going on from the last good copy");
                let file = read_json(&good_copy(&path))?.unwrap_or_else(JobFile::empty);
                write_json(&path, &file)?;
                Ok(file)
            }
            other => other,
        }
    }

    fn set_aside(&self, path: &Path) -> Result<PathBuf, SpoolError> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{}", Timestamp::now().as_millisecond()));
        let aside = PathBuf::from(name);
        fs::rename(path, &aside).map_err(SpoolError::io("set aside", path))?;
        Ok(aside)
    }

    pub(super) fn write_list(
        &self,
        list: List,
        mut file: JobFile,
        now: Timestamp,
    ) -> Result<(), SpoolError> {
        file.updated_at = now;
        let path = self.spool.queue.join(list.file());
        let good = good_copy(&path);
        // The copy is a second link to the version before this one; losing it loses nothing yet.
        let _ = fs::remove_file(&good);
        let _ = fs::hard_link(&path, &good);
        write_json(&path, &file)
    }
}

fn good_copy(path: &Path) -> PathBuf {
    path.with_extension("json.good")
}

/// Reads a JSON file; none when there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SpoolError> {
    let text = match read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(SpoolError::io("read", path)(e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| SpoolError::Damaged {
            path: path.to_owned(),
            source,
        })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut file, &mut text)?;
    Ok(text)
}

/// Replaces a JSON file. When this returns the new content survives a crash of the machine, as far
/// as the file system keeps what fsync promised.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), SpoolError> {
    let write = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut temporary = NamedTempFile::new_in(dir)?;
        serde_json::to_writer(io::BufWriter::new(&mut temporary), value)?;
        temporary.write_all(b"\n")?;
        temporary.as_file().sync_all()?;
        temporary.persist(path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(SpoolError::io("write", path))
}

pub(super) fn make_dir(dir: &Path) -> Result<(), SpoolError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(SpoolError::io("make directory", dir))
}

/// Opens a lock file, which nobody ever removes.
pub(super) fn open_lock(path: &Path) -> Result<File, SpoolError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(SpoolError::io("open", path))
}

/// A spool in a directory of its own, for tests.
#[cfg(test)]
pub(super) fn temporary() -> (tempfile::TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        registry_dir: dir.path().join("registry"),
        ..Config::default()
    };
    let spool = Spool::open(&config).unwrap();
    (dir, spool)
}
