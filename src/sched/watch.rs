//! What changed in the files, by inotify(7): the queue, the registry, the runners' progress.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::AsFd,
    path::Path,
};

use crate::{model::RunId, sys::readable::Readable};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// What a change was in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Changed {
    /// `queue.json` or `current.json`.
    Queue,
    /// A file of the registry.
    Registry,
    /// The progress of a job.
    Progress(RunId),
}

/// The one inotify instance of the event loop.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: Inotify,
    /// A duplicate of the same.
    ready: Readable,
    what: HashMap<WatchDescriptor, Changed>,
}

impl Watches {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let duplicate = inotify.as_fd().try_clone_to_owned()?;
        Ok(Self {
            ready: Readable::new(duplicate)?,
            inotify,
            what: HashMap::new(),
        })
    }

    /// Watches for files that are renamed into a directory.
    pub(super) fn directory(&mut self, path: &Path, changed: Changed) -> io::Result<()> {
        self.add(path, AddWatchFlags::IN_MOVED_TO, changed)
    }

    /// Watches for writes to a job's progress file.
    pub(super) fn progress(&mut self, path: &Path, run_id: &RunId) -> io::Result<()> {
        let changed = Changed::Progress(run_id.clone());
        self.add(path, AddWatchFlags::IN_MODIFY, changed)
    }

    fn add(&mut self, path: &Path, flags: AddWatchFlags, changed: Changed) -> io::Result<()> {
        let watch = self.inotify.add_watch(path, flags)?;
        self.what.insert(watch, changed);
        Ok(())
    }

    /// Ends the watch of a job's progress file.
    pub(super) fn forget(&mut self, run_id: &RunId) {
        let gone = Changed::Progress(run_id.clone());
        let inotify = &self.inotify;
        self.what.retain(|watch, changed| {
            let keep = *changed != gone;
            if !keep {
                // The kernel dropped it already when the file was removed.
                let _ = inotify.rm_watch(*watch);
            }
            keep
        });
    }

    /// Sleeps until something changed; each change is named once.
    pub(super) async fn next(&mut self) -> io::Result<HashSet<Changed>> {
        loop {
            let inotify = &self.inotify;
            let events = self.ready.read(|| Ok(inotify.read_events()?)).await?;
            let mut changed = HashSet::new();
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    // Something was missed: everything may have changed.
                    changed.extend(self.what.values().cloned());
                } else if let Some(what) = self.what.get(&event.wd) {
                    changed.insert(what.clone());
                }
            }
            if !changed.is_empty() {
                return Ok(changed);
            }
        }
    }
}
