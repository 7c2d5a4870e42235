//! The two lists of jobs, `queue.json` and `current.json`, as files and as this process knows them.
//!
//! A queue of a thousand jobs has half a megabyte, and every job that comes, starts or ends changes a
//! list. So a list is taken apart once: what this process wrote itself, or read before and nobody has
//! replaced since, comes from memory, and each entry is one text that all copies of the list share.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

/// The one version of both files.
pub(super) const VERSION: u32 = 1;

/// Which of the two lists of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Queue,
    Current,
}

impl List {
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Queue => "queue.json",
            Self::Current => "current.json",
        }
    }
}

/// `queue.json` or `current.json` with everything that is in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct JobFile {
    pub(super) version: u32,
    pub(super) updated_at: Timestamp,
    /// Kept as the text that they are: cheap, and what is not ours survives.
    pub(super) jobs: Vec<Arc<RawValue>>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl JobFile {
    pub(super) fn empty() -> Self {
        Self {
            version: VERSION,
            updated_at: Timestamp::UNIX_EPOCH,
            jobs: Vec::new(),
            extra: Map::new(),
        }
    }
}

/// Tells one content of a list from another. A file is replaced, never written to, and begins with the
/// time of its writing in nanoseconds; an inode alone is soon used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edition {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// As much of its content as has that time.
    head: Vec<u8>,
}

/// How many bytes of a file hold its version and the time of its writing.
const HEAD: usize = 64;

impl Edition {
    /// Of an open list.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        let mut head = vec![0; HEAD];
        let count = file.read_at(&mut head, 0)?;
        head.truncate(count);
        Ok(Self {
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            head,
        })
    }
}

/// Both lists as this process saw them last; shared by all that work with the same files.
#[derive(Debug, Default)]
pub(super) struct SeenLists([Mutex<Option<(Edition, JobFile)>>; 2]);

impl SeenLists {
    /// The content of a list, if this edition was the last one seen.
    pub(super) fn get(&self, list: List, edition: &Edition) -> Option<JobFile> {
        let seen = self.seen(list);
        let (same, file) = seen.as_ref()?;
        (same == edition).then(|| file.clone())
    }

    /// This edition has this content; without an edition the list is read the next time.
    pub(super) fn set(&self, list: List, edition: Option<Edition>, file: JobFile) {
        *self.seen(list) = edition.map(|edition| (edition, file));
    }

    fn seen(&self, list: List) -> MutexGuard<'_, Option<(Edition, JobFile)>> {
        // A value is put there whole.
        let seen = self.0[list as usize].lock();
        seen.unwrap_or_else(PoisonError::into_inner)
    }
}
