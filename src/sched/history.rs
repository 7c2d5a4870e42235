//! Finished jobs: a directory each with the result, and an index to list them without opening
//! them.
//!
//! The index is one JSON line per job, oldest first, only ever appended to; expiry rewrites it. A
//! job that a crash left twice in it is listed once. A last line that a crash cut off is skipped
//! and the next append starts a line of its own.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, BufRead, BufReader},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use jiff::{SignedDuration, Timestamp};
use nix::{errno::Errno, fcntl::renameat};
use serde::{Deserialize, Serialize};

use super::{
    job::FinishedJob,
    runner::POLICY,
    spool::{LockedSpool, Spool, SpoolError, read_json, replace, write_json},
};
use crate::{
    config::Config,
    model::RunId,
    registry::medium::{Directory, Medium},
};

/// The index within the directory of all runs. No run id begins with a dot, so no run's directory
/// is ever in its place, nor in that of a file that it is written to first.
const INDEX: &str = ".index.jsonl";
/// What earlier versions called it, which may be a run id.
const EARLIER: &str = "index.jsonl";
/// The finished job within its run directory.
const JOB: &str = "job.json";

/// When expiry last looked at the clock.
const CLOCK: &str = ".clock.json";
/// How long the clock must go evenly before results expire by it; longer than that nobody looks
/// away who runs.
const EVEN: SignedDuration = SignedDuration::from_hours(24);
/// How far a clock may be set back that is kept right by somebody.
const SLACK: SignedDuration = SignedDuration::from_mins(5);

/// Most bytes that results may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultLimits {
    /// Of everybody together.
    pub total: u64,
    /// Of one user.
    pub user: u64,
}

impl ResultLimits {
    /// Those that are configured.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            total: config.scheduler.max_results_bytes,
            user: config.scheduler.max_user_results_bytes,
        }
    }
}

/// How much of the index is read at a time, from its end.
const BLOCK: u64 = 64 * 1024;

/// A page of the history, latest job first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FinishedPage {
    /// The jobs.
    pub jobs: Vec<FinishedJob>,
    /// Where the next page begins, if there may be one; pass it as `before`.
    pub next: Option<u64>,
}

impl Spool {
    fn index(&self) -> PathBuf {
        self.runs_dir().join(INDEX)
    }

    /// Gives the index of an earlier version its name, if there is one.
    pub(super) fn move_index(&self) -> Result<(), SpoolError> {
        let earlier = self.runs_dir().join(EARLIER);
        let is_file = fs::symlink_metadata(&earlier).is_ok_and(|found| found.is_file());
        if !is_file || self.index().exists() {
            return Ok(());
        }
        match renameat(self.runs().fd(), EARLIER, self.runs().fd(), INDEX) {
            // Another process was quicker.
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(SpoolError::io("rename", &earlier)(e.into())),
        }
    }

    /// A job that is over.
    ///
    /// # Errors
    /// [`SpoolError`] when its file cannot be read.
    pub fn finished(&self, run_id: &RunId) -> Result<Option<FinishedJob>, SpoolError> {
        match self.runs().sub_existing(run_id.as_str())? {
            Some(dir) => read_json(&dir, JOB),
            None => Ok(None),
        }
    }

    /// At most `limit` finished jobs, latest first, of those whose line begins before the byte
    /// `before` of the index. Reads no more of the index than it returns.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when the index cannot be read.
    pub fn history(&self, before: Option<u64>, limit: usize) -> Result<FinishedPage, SpoolError> {
        self.search(before, limit, "")
    }

    /// The jobs that were over at `since` or later, latest first.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when the index cannot be read.
    pub fn finished_since(&self, since: Timestamp) -> Result<Vec<FinishedJob>, SpoolError> {
        const AT_ONCE: usize = 256;
        let mut jobs = Vec::new();
        let mut before = None;
        loop {
            let page = self.history(before, AT_ONCE)?;
            let whole = page.jobs.last().is_some_and(|job| job.finished_at >= since);
            jobs.extend(page.jobs.into_iter().filter(|job| job.finished_at >= since));
            match page.next.filter(|_| whole) {
                Some(next) => before = Some(next),
                None => return Ok(jobs),
            }
        }
    }

    /// The same of those jobs alone that have every word of `find`, whatever its case, in their
    /// name, user, status, mode, lab, question or reason.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when the index cannot be read.
    pub fn search(
        &self,
        before: Option<u64>,
        limit: usize,
        find: &str,
    ) -> Result<FinishedPage, SpoolError> {
        let words = find.to_lowercase();
        let words: Vec<&str> = words.split_whitespace().collect();
        let Some(file) = self.runs().open_file(INDEX)? else {
            return Ok(FinishedPage::default());
        };
        page(&file, before, limit, |job| has_words(job, &words))
            .map_err(SpoolError::io("read", &self.index()))
    }
}

fn has_words(job: &FinishedJob, words: &[&str]) -> bool {
    if words.is_empty() {
        return true;
    }
    let params = &job.params;
    let text = format!(
        "{} {} {} {} {} {} {}",
        job.run_id,
        job.username,
        job.status,
        job.mode,
        params.lab,
        params.question(),
        job.reason.as_deref().unwrap_or_default()
    );
    let text = text.to_lowercase();
    words.iter().all(|word| text.contains(word))
}

fn page(
    file: &File,
    before: Option<u64>,
    limit: usize,
    fits: impl Fn(&FinishedJob) -> bool,
) -> io::Result<FinishedPage> {
    let length = file.metadata()?.len();
    let mut start = before.unwrap_or(length).min(length);
    let mut seen = HashSet::new();
    let mut page = FinishedPage::default();
    // Bytes from `start` on whose line begins before `start`.
    let mut tail = Vec::new();
    while start > 0 && page.jobs.len() < limit {
        let from = start.saturating_sub(BLOCK);
        // At most BLOCK, which fits.
        let mut block = vec![0; (start - from) as usize];
        file.read_exact_at(&mut block, from)?;
        block.append(&mut tail);
        let first = if from == 0 {
            0
        } else {
            block
                .iter()
                .position(|b| *b == b'\n')
                .map_or(block.len(), |at| at + 1)
        };
        let mut end = block.len();
        let mut at = from + block.len() as u64;
        for line in block[first..].rsplit(|b| *b == b'\n') {
            let begin = end - line.len();
            at = from + begin as u64;
            end = begin.saturating_sub(1);
            let Ok(job) = serde_json::from_slice::<FinishedJob>(line) else {
                continue;
            };
            if seen.insert(job.run_id.clone()) && fits(&job) {
                page.jobs.push(job);
            }
            if page.jobs.len() == limit {
                break;
            }
        }
        if page.jobs.len() == limit {
            page.next = Some(at).filter(|at| *at > 0);
            return Ok(page);
        }
        block.truncate(first);
        tail = block;
        start = from;
    }
    Ok(page)
}

impl LockedSpool<'_> {
    /// Records a job as over: its own file first, whose existence says so, then the index.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when a file cannot be written.
    pub fn close(&self, job: &FinishedJob) -> Result<(), SpoolError> {
        let runs = self.spool.runs();
        write_json(&runs.sub(job.run_id.as_str())?, JOB, job)?;
        let mut line = serde_json::to_vec(job).unwrap_or_default();
        line.push(b'\n');
        if !ends_with_newline(runs) {
            line.insert(0, b'\n');
        }
        runs.append(INDEX, &line)?;
        Ok(())
    }

    /// Removes the finished jobs that were over for longer than `keep`, and the oldest of those
    /// whose results are more than `limits` allows; returns how many.
    ///
    /// A clock that was set ahead must not cost all results: none expires by age before the clock
    /// has gone evenly for a day, or for as long as results are kept if that is less.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read, written or removed.
    pub fn expire(
        &self,
        now: Timestamp,
        keep: SignedDuration,
        limits: ResultLimits,
    ) -> Result<usize, SpoolError> {
        let even = self.clock_is_even(now, keep.min(EVEN))?;
        let until = now.checked_sub(keep).ok().filter(|_| even);
        let Some(file) = self.spool.runs().open_file(INDEX)? else {
            return Ok(0);
        };
        let path = self.spool.index();
        let found = split(file, until, limits).map_err(SpoolError::io("read", &path));
        let (kept, expired) = found?;
        if expired.is_empty() {
            return Ok(0);
        }
        // The directories first: what a crash leaves in the index is expired again.
        for run_id in &expired {
            let dir = self.spool.run_dir(run_id);
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(SpoolError::io("remove", &dir)(e));
                }
                _ => {}
            }
        }
        replace(self.spool.runs(), INDEX, &kept)?;
        Ok(expired.len())
    }

    /// Removes what submissions left that were killed before their jobs were in the queue: directories
    /// with a policy and nothing else.
    ///
    /// # Errors
    /// [`SpoolError`] when a directory cannot be read or removed.
    pub fn remove_unqueued(&self) -> Result<(), SpoolError> {
        let jobs = self.jobs()?;
        let queued = jobs.queued.iter().map(|job| &job.run_id);
        let known: HashSet<&RunId> = queued
            .chain(jobs.running.iter().map(|job| &job.run_id))
            .collect();
        for name in self.spool.runs().names()? {
            let Some(run_id) = name.to_str().and_then(|name| RunId::new(name).ok()) else {
                continue;
            };
            let run = self.spool.run_dir(&run_id);
            if known.contains(&run_id) || !run.is_dir() {
                continue;
            }
            let Some(dir) = self.spool.runs().sub_existing(run_id.as_str())? else {
                continue;
            };
            let names = dir.names()?;
            if names
                .iter()
                .all(|name| name.to_string_lossy().starts_with(POLICY))
            {
                fs::remove_dir_all(&run).map_err(SpoolError::io("remove", &run))?;
            }
        }
        Ok(())
    }

    /// Notes the clock, and tells whether it has gone evenly for `patience`.
    fn clock_is_even(&self, now: Timestamp, patience: SignedDuration) -> Result<bool, SpoolError> {
        let runs = self.spool.runs();
        let seen: Option<Clock> = read_json(runs, CLOCK).ok().flatten();
        let even_since = match seen {
            Some(clock) if clock.goes_on_to(now) => clock.even_since,
            Some(_) => {
                tracing::warn!("the clock was set, or the scheduler away: no result expires yet");
                now
            }
            None => now,
        };
        let clock = Clock {
            seen: now,
            even_since,
        };
        write_json(runs, CLOCK, &clock)?;
        Ok(now.duration_since(even_since) >= patience)
    }
}

/// The clock as expiry saw it last.
#[derive(Debug, Serialize, Deserialize)]
struct Clock {
    seen: Timestamp,
    /// Since when it has gone on without a leap.
    even_since: Timestamp,
}

impl Clock {
    fn goes_on_to(&self, now: Timestamp) -> bool {
        let step = now.duration_since(self.seen);
        (-SLACK..=EVEN).contains(&step)
    }
}

/// The lines to keep, and the jobs to remove: those over before `until`, and the oldest ones beyond
/// the limits.
fn split(
    file: File,
    until: Option<Timestamp>,
    limits: ResultLimits,
) -> io::Result<(Vec<u8>, HashSet<RunId>)> {
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let mut line = line?;
        if let Ok(job) = serde_json::from_slice::<Indexed>(&line) {
            line.push(b'\n');
            lines.push((line, job));
        }
    }
    let mut expired = HashSet::new();
    let mut users: HashMap<&str, u64> = HashMap::new();
    let mut total = 0u64;
    // The latest first: it is there until something later needs its place.
    for (_, job) in lines.iter().rev() {
        let bytes = job.bytes.unwrap_or(0);
        let user = users.entry(&job.username).or_default();
        let latest = *user == 0;
        *user = user.saturating_add(bytes);
        total = total.saturating_add(bytes);
        let too_much = !latest && (*user > limits.user || total > limits.total);
        if too_much || until.is_some_and(|until| job.finished_at < until) {
            *user = user.saturating_sub(bytes);
            total = total.saturating_sub(bytes);
            expired.insert(job.run_id.clone());
        }
    }
    let kept = lines
        .iter()
        .filter(|(_, job)| !expired.contains(&job.run_id));
    let kept = kept.flat_map(|(line, _)| line).copied().collect();
    Ok((kept, expired))
}

/// What expiry needs to know of a line of the index.
#[derive(Deserialize)]
struct Indexed {
    run_id: RunId,
    username: String,
    finished_at: Timestamp,
    bytes: Option<u64>,
}

/// Whether the next line can be appended as it is; a crash may have cut the last one off.
fn ends_with_newline(runs: &Directory) -> bool {
    let last = || -> io::Result<u8> {
        let mut last = *b"\n";
        let Some(file) = runs.open_file(INDEX).map_err(io::Error::other)? else {
            return Ok(last[0]);
        };
        if let Some(at) = file.metadata()?.len().checked_sub(1) {
            file.read_exact_at(&mut last, at)?;
        }
        Ok(last[0])
    };
    // What cannot be read cannot be appended to either, and that will say why.
    last().map_or(true, |last| last == b'\n')
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
