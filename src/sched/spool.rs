//! The scheduler's files: where they are, how they are read, and how they are changed.
//!
//! ```text
//! <registry_dir>/        and <results_dir>, by default <registry_dir>/runs
//!   queue/queue.lock       flock: whoever changes one of the files below holds it
//!   queue/leader.lock      flock: the scheduler that leads holds it, see `leader`
//!   queue/queue.json       jobs that wait, first job first
//!   queue/current.json     jobs whose runner was started
//!   runs/.index.jsonl      finished jobs, one line each, oldest first
//!   runs/<run id>/job.json      the finished job; its existence says that the job is over
//!   runs/<run id>/trace.json    the way that the job was given, if it was
//!   runs/<run id>/alive         flock: held by the runner through its standard input
//!   runs/<run id>/result.json   the runner's standard output
//!   runs/<run id>/stderr.txt    its standard error
//!   runs/<run id>/progress.jsonl  its progress
//! ```
//!
//! A `*.json` file is replaced as a whole (temporary file, fsync, rename, fsync of the directory):
//! a reader sees the old or the new one, and a crash leaves the old or the new one. A list has a
//! safety copy beside it, `*.json.bak`, where it outlives the kernel. A job moves by
//! being written to where it goes first: at no instant is it in neither file, and one that a crash
//! left in both counts as further on.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use nix::fcntl::Flock;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use super::list::{Edition, JobFile, List, SeenLists, VERSION};
use crate::{
    config::Config,
    flock,
    model::RunId,
    registry::{
        RegistryError,
        medium::{Directory, Medium},
    },
    wait::Wait,
};

/// How long a scheduler waits for another process that changes the files: changes take
/// milliseconds, and many may stand in line.
const SCHEDULER_PATIENCE: Duration = Duration::from_millis(900);
/// Whoever changes the lists of jobs holds it.
const LOCK: &str = "queue.lock";

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
    /// A file cannot be read or replaced.
    #[error(transparent)]
    Registry(#[from] RegistryError),
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
    /// What the system said, where that was the cause.
    pub(super) fn cause(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } | Self::Registry(RegistryError::Io { source, .. }) => {
                Some(source)
            }
            _ => None,
        }
    }

    /// Whether the disk, or somebody's share of it, is full.
    pub(super) fn is_for_want_of_room(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        self.cause()
            .is_some_and(|error| full.contains(&error.kind()))
    }

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
    queue: Arc<Directory>,
    runs: Arc<Directory>,
    seen: Arc<SeenLists>,
    /// How long to wait for somebody else who changes the files.
    patience: Duration,
}

/// The right to change the files: nobody else has it at the same time.
#[derive(Debug)]
pub struct LockedSpool<'a> {
    pub(super) spool: &'a Spool,
    _lock: Flock<OwnedFd>,
}

impl Spool {
    /// Opens the scheduler's directories under the registry directory; makes what is missing.
    ///
    /// # Errors
    /// [`SpoolError::Registry`] when a directory cannot be made or is not to be trusted.
    pub fn open(config: &Config) -> Result<Self, SpoolError> {
        let registry = Directory::open(&config.registry_dir)?;
        let spool = Self {
            queue: Arc::new(registry.sub("queue")?),
            runs: Arc::new(Directory::open(&config.results_dir)?),
            seen: Arc::default(),
            patience: config.lock_timeout,
        };
        spool.move_index()?;
        Ok(spool)
    }

    /// The directory that holds `queue.json` and `current.json`; watch it to see them change.
    #[must_use]
    pub fn queue_dir(&self) -> &Path {
        self.queue.path()
    }

    /// The directory of all runs.
    #[must_use]
    pub fn runs_dir(&self) -> &Path {
        self.runs.path()
    }

    /// The directory of one run.
    #[must_use]
    pub fn run_dir(&self, run_id: &RunId) -> PathBuf {
        self.runs_dir().join(run_id.as_str())
    }

    pub(super) fn runs(&self) -> &Directory {
        &self.runs
    }

    /// Opens `name` in the directory of a run, or in a directory in there, for reading; none when
    /// there is no such file.
    ///
    /// # Errors
    /// [`SpoolError::Registry`] when the file, or a directory on the way to it, is a symbolic link,
    /// somebody else's or no plain file.
    pub fn run_file(&self, run_id: &RunId, name: &str) -> Result<Option<File>, SpoolError> {
        let Some(run) = self.runs.sub_existing(run_id.as_str())? else {
            return Ok(None);
        };
        let Some((inner, name)) = name.split_once('/') else {
            return Ok(run.open_file(name)?);
        };
        match run.sub_existing(inner)? {
            Some(inner) => Ok(inner.open_file(name)?),
            None => Ok(None),
        }
    }

    /// Removes `name` from the directory of a run, if it is there.
    ///
    /// # Errors
    /// [`SpoolError::Registry`] when it cannot be removed.
    pub(super) fn drop_run_file(&self, run_id: &RunId, name: &str) -> Result<(), SpoolError> {
        if let Some(run) = self.runs.sub_existing(run_id.as_str())? {
            run.remove_file(OsStr::new(name))?;
        }
        Ok(())
    }

    /// Opens a lock file, which nobody ever removes.
    pub(super) fn lock_file(&self, name: &str) -> Result<File, SpoolError> {
        Ok(self.queue.lock_file(name)?.into())
    }

    /// The same files for a scheduler, which waits for nobody: what it cannot do now it tries again.
    #[must_use]
    pub fn impatient(&self) -> Self {
        self.waiting_at_most(SCHEDULER_PATIENCE)
    }

    /// The same files for somebody who has no longer than `patience`.
    #[must_use]
    pub fn waiting_at_most(&self, patience: Duration) -> Self {
        Self {
            patience: patience.min(self.patience),
            ..self.clone()
        }
    }

    /// Waits until nobody else changes the files. The wait is short: no holder waits for anything
    /// but the disk, and the kernel frees the lock of one that dies. For one that was stopped it
    /// lasts `lock_timeout_seconds`, and says after a second who that is.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when the lock file cannot be opened, or not be locked in time.
    pub fn lock(&self) -> Result<LockedSpool<'_>, SpoolError> {
        let path = self.queue_dir().join(LOCK);
        let wait = Wait::at_most(self.patience);
        let held = flock::exclusive(self.lock_file(LOCK)?.into(), &path, &wait);
        let held = held.map_err(|refused| refused.into_io(&wait));
        Ok(LockedSpool {
            spool: self,
            _lock: held.map_err(SpoolError::io("lock", &path))?,
        })
    }

    pub(super) fn read_list(&self, list: List) -> Result<JobFile, SpoolError> {
        // Its edition before its content: at worst it is read again for nothing.
        let Some(edition) = self.edition(list)? else {
            return Ok(JobFile::empty());
        };
        if let Some(file) = self.seen.get(list, &edition) {
            return Ok(file);
        }
        let Some(file): Option<JobFile> = read_json(&self.queue, list.file())? else {
            return Ok(JobFile::empty());
        };
        if file.version != VERSION {
            return Err(SpoolError::Version {
                path: self.queue_dir().join(list.file()),
                found: file.version,
            });
        }
        self.seen.set(list, Some(edition), file.clone());
        Ok(file)
    }

    /// Which content a list has now; none where there is no such file.
    fn edition(&self, list: List) -> Result<Option<Edition>, SpoolError> {
        let path = || self.queue_dir().join(list.file());
        let file = self.queue.open_file(list.file())?;
        let edition = file.map(|file| Edition::of(&file)).transpose();
        edition.map_err(|e| SpoolError::io("read", &path())(e))
    }
}

impl LockedSpool<'_> {
    /// Reads a list to change it. A damaged file is set aside under a name that says when, and its
    /// copy takes its place.
    pub(super) fn list(&self, list: List) -> Result<JobFile, SpoolError> {
        match self.spool.read_list(list) {
            Err(SpoolError::Damaged { path, source }) => {
                let dir = &self.spool.queue;
                let name = list.file();
                let aside = format!("{name}.corrupt-{}", Timestamp::now().as_millisecond());
                dir.rename(name, &aside)?;
                tracing::error!(file = %path.display(), aside, %source,
                    "damaged file set aside; going on from its copy");
                let file = read_json(dir, &backup(name));
                let file = file.ok().flatten().unwrap_or_else(JobFile::empty);
                replace(dir, name, &to_text(&file))?;
                Ok(file)
            }
            other => other,
        }
    }

    pub(super) fn write_list(
        &self,
        list: List,
        mut file: JobFile,
        now: Timestamp,
    ) -> Result<(), SpoolError> {
        file.updated_at = now;
        let (dir, name, text) = (&self.spool.queue, list.file(), to_text(&file));
        replace(dir, name, &text)?;
        // Nobody else replaces it while this lock is held.
        let edition = self.spool.edition(list).ok().flatten();
        self.spool.seen.set(list, edition, file);
        if !dir.outlives_kernel() {
            return Ok(());
        }
        // The change is made; what may be missing is a copy for when somebody damages the file. It
        // is written after the original was replaced, so at least one of the two is whole.
        if let Err(error) = dir.overwrite(&backup(name), &text) {
            tracing::warn!(%error, file = name, "the change is made, its safety copy is not");
        }
        Ok(())
    }
}

fn backup(name: &str) -> String {
    format!("{name}.bak")
}

fn to_text<T: Serialize>(value: &T) -> Vec<u8> {
    // Our own types have string keys and no failing serializer.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Reads a JSON file; none when there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(
    dir: &Directory,
    name: &str,
) -> Result<Option<T>, SpoolError> {
    let Some(text) = dir.read(name)? else {
        return Ok(None);
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| SpoolError::Damaged {
            path: dir.path().join(name),
            source,
        })
}

/// Replaces a JSON file. When this returns the new content survives a crash of the machine, as far
/// as the file system keeps what fsync promised.
pub(super) fn write_json<T: Serialize>(
    dir: &Directory,
    name: &str,
    value: &T,
) -> Result<(), SpoolError> {
    replace(dir, name, &to_text(value))
}

pub(super) fn replace(dir: &Directory, name: &str, text: &[u8]) -> Result<(), SpoolError> {
    let temporary = format!("{name}.tmp");
    dir.write(&temporary, text)?;
    dir.rename(&temporary, name)?;
    Ok(dir.sync_names()?)
}

/// A spool in a directory of its own, for tests.
#[cfg(test)]
pub(super) fn temporary() -> (tempfile::TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        registry_dir: dir.path().join("registry"),
        results_dir: dir.path().join("results"),
        ..Config::default()
    };
    let spool = Spool::open(&config).unwrap();
    (dir, spool)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::symlink};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn files_of_runs_are_opened_beneath_their_directory_and_through_no_link() {
        let (dir, spool) = temporary();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("f"), "secret").unwrap();
        let id = |name: &str| RunId::new(name).unwrap();
        let run = spool.run_dir(&id("run"));
        fs::create_dir_all(run.join("report")).unwrap();
        fs::write(run.join("report/f"), "own").unwrap();
        symlink(outside.join("f"), run.join("link")).unwrap();
        symlink(&outside, run.join("linked")).unwrap();
        symlink(&outside, spool.run_dir(&id("linked"))).unwrap();
        mkfifo(&run.join("fifo"), Mode::S_IRWXU).unwrap();

        let mut own = spool.run_file(&id("run"), "report/f").unwrap().unwrap();
        let mut text = String::new();
        own.read_to_string(&mut text).unwrap();
        assert_eq!(text, "own");
        for (run, name) in [("run", "none"), ("run", "none/f"), ("none", "f")] {
            assert!(spool.run_file(&id(run), name).unwrap().is_none());
        }
        for (run, name) in [
            ("run", "link"),
            ("run", "linked/f"),
            ("linked", "f"),
            ("run", "fifo"),
        ] {
            let error = spool.run_file(&id(run), name).unwrap_err();
            assert!(
                matches!(error, SpoolError::Registry(RegistryError::Unsafe { .. })),
                "{run} {name}: {error}"
            );
        }
    }
}
