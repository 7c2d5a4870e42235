//! Progress of a job, written for whoever watches: JSON lines `{"percent":40,"phase":"probing"}`.
//!
//! The phases and their weights are known before the first step, so the percentage only grows and
//! reaches 100 at the end. A line is written when the percentage or the phase changed, in one
//! write(2) to a file opened for appending: a reader never sees half of two lines. A file that
//! cannot be written does not fail the job; that is logged once.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use serde::{Deserialize, Serialize};

/// The target of the events by which a job says what it is at.
pub(crate) const PHASE: &str = "tsim::phase";

/// One line of progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressLine {
    /// How much is done, 0 to 100.
    pub percent: u8,
    /// What is being done.
    pub phase: String,
}

/// One phase of a job and its share of the whole, in any unit.
pub(crate) type Phase = (&'static str, u32);

/// Opens `path` for appending. A FIFO that nobody reads would make the job wait, and one that is
/// read slowly would too: a regular file or a character device is wanted.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_char_device() {
        Ok(file)
    } else {
        let text = format!("{} is neither a file nor a terminal", path.display());
        Err(io::Error::other(text))
    }
}

/// Called with the percentage that is done, and the phase.
pub(crate) type OnProgress = Box<dyn FnMut(u8, &str) + Send>;

/// Who is told how far a job is.
enum Watcher {
    Nobody,
    /// Lines are appended to it.
    File(File),
    Call(OnProgress),
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::File(_) => "File",
            Self::Call(_) => "Call",
        })
    }
}

/// Where a job stands among its phases.
#[derive(Debug)]
pub(crate) struct Progress {
    watcher: Watcher,
    phases: &'static [Phase],
    current: usize,
    last: Option<(u8, usize)>,
}

impl Progress {
    /// Progress over `phases`, appended to `path` if one is given. Writes the first line.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(crate) fn new(path: Option<&Path>, phases: &'static [Phase]) -> io::Result<Self> {
        let file = path.map(open).transpose()?;
        Ok(Self::begin(
            file.map_or(Watcher::Nobody, Watcher::File),
            phases,
        ))
    }

    /// Progress over `phases`, of which `call` is told, with the percentage and the phase.
    pub(crate) fn telling(call: OnProgress, phases: &'static [Phase]) -> Self {
        Self::begin(Watcher::Call(call), phases)
    }

    fn begin(watcher: Watcher, phases: &'static [Phase]) -> Self {
        let mut progress = Self {
            watcher,
            phases,
            current: 0,
            last: None,
        };
        if let Some((phase, _)) = phases.first() {
            tracing::info!(target: PHASE, "{phase}");
        }
        progress.part(0, 1);
        progress
    }

    /// Enters a phase; earlier ones count as done. An unknown or earlier phase changes nothing.
    pub(crate) fn enter(&mut self, phase: &str) {
        let place = self.phases.iter().position(|(name, _)| *name == phase);
        if let Some(place) = place.filter(|place| *place >= self.current) {
            self.current = place;
            tracing::info!(target: PHASE, "{phase}");
            self.part(0, 1);
        }
    }

    /// `done` of the `total` steps of this phase are done.
    pub(crate) fn part(&mut self, done: usize, total: usize) {
        let weight = |phases: &[Phase]| phases.iter().map(|(_, w)| u128::from(*w)).sum::<u128>();
        let whole = weight(self.phases).max(1) * total.max(1) as u128;
        let before = weight(&self.phases[..self.current]) * total.max(1) as u128;
        let own = self.phases.get(self.current).map_or(0, |(_, w)| *w);
        let now = before + u128::from(own) * done.min(total) as u128;
        if total > 1 {
            tracing::trace!(target: PHASE, done = done as u64, total = total as u64);
        }
        // At most 100.
        self.write((now * 100 / whole) as u8);
    }

    /// Everything is done.
    pub(crate) fn finish(&mut self) {
        self.current = self.phases.len().saturating_sub(1);
        self.write(100);
    }

    fn write(&mut self, percent: u8) {
        let percent = percent.max(self.last.map_or(0, |(last, _)| last));
        let now = (percent, self.current);
        if self.last.replace(now) == Some(now) {
            return;
        }
        let phase = self.phases.get(self.current).map_or("", |(name, _)| name);
        let file = match &mut self.watcher {
            Watcher::Nobody => return,
            Watcher::Call(call) => return call(percent, phase),
            Watcher::File(file) => file,
        };
        let line = ProgressLine {
            percent,
            phase: phase.to_owned(),
        };
        let written = serde_json::to_vec(&line)
            .map_err(io::Error::from)
            .and_then(|mut text| {
                text.push(b'\n');
                file.write_all(&text)
            });
        if let Err(error) = written {
            tracing::warn!(%error, "progress is no longer written");
            self.watcher = Watcher::Nobody;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: &[Phase] = &[("waiting", 10), ("probing", 80), ("undoing", 10)];

    fn lines(path: &Path) -> Vec<(u8, String)> {
        let text = std::fs::read_to_string(path).unwrap();
        let parse = |line| serde_json::from_str::<ProgressLine>(line).unwrap();
        let lines = text.lines().map(parse);
        lines.map(|line| (line.percent, line.phase)).collect()
    }

    #[test]
    fn the_percentage_only_grows_and_ends_at_100() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let mut progress = Progress::new(Some(&path), PHASES).unwrap();
        progress.enter("probing");
        for done in [0, 1, 1, 3, 2, 4] {
            progress.part(done, 4);
        }
        progress.enter("waiting");
        progress.enter("no such phase");
        progress.enter("undoing");
        progress.finish();
        let want = [
            (0, "waiting"),
            (10, "probing"),
            (30, "probing"),
            (70, "probing"),
            (90, "probing"),
            (90, "undoing"),
            (100, "undoing"),
        ];
        let want: Vec<_> = want.iter().map(|(n, s)| (*n, (*s).to_owned())).collect();
        assert_eq!(lines(&path), want);
    }

    #[test]
    fn many_steps_make_at_most_a_line_per_percent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let mut progress = Progress::new(Some(&path), &[("probing", 1)]).unwrap();
        for done in 0..=65_535 {
            progress.part(done, 65_535);
        }
        assert_eq!(lines(&path).len(), 101);
    }

    #[test]
    fn what_would_make_the_job_wait_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = |path: &Path| Progress::new(Some(path), PHASES).unwrap_err().to_string();
        // Nobody reads it: open(2) says so instead of waiting.
        assert!(refused(&fifo).contains("No such device or address"));
        let slow = nix::fcntl::open(
            &fifo,
            nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_NONBLOCK,
            nix::sys::stat::Mode::empty(),
        )
        .unwrap();
        let error = refused(&fifo);
        assert!(error.contains("neither a file nor a terminal"), "{error}");
        drop(slow);
        assert!(refused(dir.path()).contains("Is a directory"));
        // Writing to it ends at once, and nothing of it is ever read.
        Progress::new(Some(Path::new("/dev/zero")), PHASES)
            .unwrap()
            .finish();
    }

    #[test]
    fn without_a_file_or_phases_nothing_happens() {
        let mut progress = Progress::new(None, &[]).unwrap();
        progress.enter("x");
        progress.part(1, 0);
        progress.finish();
    }
}
