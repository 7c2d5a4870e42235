//! The queue: jobs come in, move to the running ones, go back, are cancelled.
//!
//! Every change holds the lock of [`Spool`]; reading needs none.

use std::{borrow::Cow, collections::HashSet, mem, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{
    job::{FinishedJob, Mode, NewJob, Params, QueuedJob, RunningJob, Status, UserName},
    list::{JobFile, List},
    runner::POLICY,
    spool::{LockedSpool, Spool, SpoolError, write_json},
};
use crate::{
    config::Config,
    model::{Dscp, RunId},
};

/// Over which time the run time of a user's jobs is counted.
const SPENT_WITHIN: SignedDuration = SignedDuration::from_hours(1);

/// A job was not taken in.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// Another job has this run id.
    #[error("run id {run_id} is taken: {username} asked something else under it ({status})")]
    Taken {
        /// The run id.
        run_id: RunId,
        /// Whose job it is.
        username: UserName,
        /// Where that job stands.
        status: Status,
    },
    /// The queue holds as many jobs as it may.
    #[error("the queue is full: {0} jobs wait")]
    Full(usize),
    /// One user's jobs fill their part of the queue.
    #[error(
        "{waiting} jobs of {username} wait already, as many as scheduler.max_user_queued allows"
    )]
    UserFull {
        /// Whose they are.
        username: UserName,
        /// How many.
        waiting: usize,
    },
    /// One user's jobs ran as long as they may.
    #[error(
        "jobs of {username} ran {} s within the last hour, as long as scheduler.max_user_seconds \
         allows: ask again later", .spent.as_secs()
    )]
    UserSpent {
        /// Whose they are.
        username: UserName,
        /// How long they ran, all together.
        spent: Duration,
    },
    /// The files could not be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Most jobs that may wait, and how long those of one user may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Of everybody together.
    pub total: usize,
    /// Of one user.
    pub user: usize,
    /// How long one user's jobs may have run within an hour, all together; none for any time.
    pub user_time: Option<Duration>,
}

impl QueueLimits {
    /// Those that are configured.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            total: config.scheduler.max_queued,
            user: config.scheduler.max_user_queued,
            user_time: config.scheduler.user_time(),
        }
    }
}

/// A job that is in the queue, or was already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Submitted {
    /// Its name.
    pub run_id: RunId,
    /// Where it stands.
    pub status: Status,
    /// Its place among the waiting jobs of its mode, the first being 1; none when it does not wait.
    #[schemars(range(min = 1))]
    pub position: Option<usize>,
    /// Whether this call put it there; otherwise it was there already.
    pub new: bool,
}

/// What became of the wish to cancel a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancelled {
    /// It waited, and is over now.
    Queued(Box<FinishedJob>),
    /// It runs; the scheduler ends it.
    Running,
    /// It was over already.
    Over(Status),
    /// There is no such job.
    Unknown,
}

/// The jobs that wait and the jobs that run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Jobs {
    /// In the order of the queue.
    pub queued: Vec<Arc<QueuedJob>>,
    /// In the order in which they were started.
    pub running: Vec<RunningJob>,
    /// How many entries of the two files are no jobs; they are left as they are.
    pub unreadable: usize,
}

impl Jobs {
    /// The place of a waiting job in its lane, the first being 1.
    #[must_use]
    pub fn position(&self, run_id: &RunId) -> Option<usize> {
        position(&self.queued, run_id)
    }
}

/// What `tsim queue` lists.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Listing")]
pub struct QueueListing {
    /// Whether a scheduler runs.
    #[schemars(extend("const" = true))]
    pub scheduler: bool,
    /// The running jobs.
    pub running: Vec<RunningJob>,
    /// How many jobs wait.
    pub waiting: usize,
    /// The first of them.
    #[schemars(length(max = 1000))]
    pub queued: Vec<Arc<QueuedJob>>,
    /// The latest that are over.
    pub history: Vec<FinishedJob>,
}

/// The place of a waiting job in its lane, the first being 1.
#[must_use]
pub fn position(queued: &[Arc<QueuedJob>], run_id: &RunId) -> Option<usize> {
    let job = queued.iter().find(|job| job.run_id == *run_id)?;
    let line = queued
        .iter()
        .filter(|other| other.analysis_mode.lane() == job.analysis_mode.lane());
    Some(line.take_while(|other| other.run_id != *run_id).count() + 1)
}

/// Reads the lists again and again, but only what is new in them: of a queue of thousands, a
/// change of one job costs that job.
#[derive(Debug, Default)]
pub struct QueueReader {
    /// The waiting entries in their order, each with the job that it is.
    known: Vec<(Arc<RawValue>, Option<Arc<QueuedJob>>)>,
}

impl QueueReader {
    /// The waiting and running jobs, as of now.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read, or is damaged and waits for repair.
    pub fn read(&mut self, spool: &Spool) -> Result<Jobs, SpoolError> {
        // The queue first: a job that moves in between is then seen in both, not in neither.
        self.take_in(spool.read_list(List::Queue)?.jobs);
        let current = spool.read_list(List::Current)?;
        let running: Vec<RunningJob> = current.jobs.iter().filter_map(|e| parse(e)).collect();
        let moved: HashSet<&RunId> = running.iter().map(|job| &job.run_id).collect();
        let waiting = || self.known.iter().filter_map(|(_, job)| job.as_ref());
        let unreadable = self.known.len() - waiting().count();
        let queued = waiting().filter(|job| !moved.contains(&job.run_id));
        Ok(Jobs {
            queued: queued.cloned().collect(),
            unreadable: unreadable + current.jobs.len() - running.len(),
            running,
        })
    }

    /// Keeps the jobs of entries that were there before. Entries keep their order, so whoever is
    /// looked for stands behind the one that was found last.
    fn take_in(&mut self, entries: Vec<Arc<RawValue>>) {
        let known = mem::take(&mut self.known);
        let mut earlier = &known[..];
        for entry in entries {
            let same = |known: &(Arc<RawValue>, _)| {
                Arc::ptr_eq(&known.0, &entry) || known.0.get() == entry.get()
            };
            let job = match earlier.iter().position(same) {
                Some(at) => {
                    let job = earlier[at].1.clone();
                    earlier = &earlier[at + 1..];
                    job
                }
                None => parse(&entry).map(Arc::new),
            };
            self.known.push((entry, job));
        }
    }
}

impl Spool {
    /// The jobs that wait and the jobs that run, as of now.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read.
    pub fn jobs(&self) -> Result<Jobs, SpoolError> {
        QueueReader::default().read(self)
    }
}

fn parse<T: serde::de::DeserializeOwned>(entry: &RawValue) -> Option<T> {
    serde_json::from_str(entry.get()).ok()
}

/// As much of an entry as it takes to find it.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    run_id: Cow<'a, str>,
    #[serde(borrow, default)]
    username: Option<Cow<'a, str>>,
    analysis_mode: Option<Mode>,
}

fn head(entry: &RawValue) -> Option<Head<'_>> {
    serde_json::from_str(entry.get()).ok()
}

/// Whether an entry has this run id, be it a job or not.
fn is(entry: &RawValue, run_id: &RunId) -> bool {
    // A run id needs no escapes, so its text is in the entry's text.
    entry.get().contains(run_id.as_str())
        && head(entry).is_some_and(|head| head.run_id == run_id.as_str())
}

fn find<T: serde::de::DeserializeOwned>(file: &JobFile, run_id: &RunId) -> Option<T> {
    let mut entries = file.jobs.iter().filter(|entry| is(entry, run_id));
    entries.find_map(|entry| parse(entry))
}

/// How many entries are this user's.
fn waiting_of(file: &JobFile, username: &UserName) -> usize {
    let names = file.jobs.iter().filter_map(|entry| head(entry)?.username);
    names.filter(|name| name == username.as_str()).count()
}

/// The place of the last entry in its lane.
fn last_position(file: &JobFile, mode: Mode) -> usize {
    let modes = file
        .jobs
        .iter()
        .filter_map(|entry| head(entry)?.analysis_mode);
    modes.filter(|other| other.lane() == mode.lane()).count()
}

fn to_entry<T: Serialize>(job: &T) -> Arc<RawValue> {
    // Our own types have string keys and no failing serializer.
    let text = serde_json::value::to_raw_value(job);
    text.unwrap_or_else(|_| RawValue::NULL.to_owned()).into()
}

impl LockedSpool<'_> {
    /// Puts a job at the end of the queue. Asking twice for the same job is asking once.
    ///
    /// # Errors
    /// [`SubmitError::Taken`] when the run id stands for another job, [`SubmitError::Full`] and
    /// [`SubmitError::UserFull`] when as many jobs wait already as may.
    pub fn submit(
        &self,
        job: NewJob,
        most: QueueLimits,
        now: Timestamp,
    ) -> Result<Submitted, SubmitError> {
        if let Some(known) = self.known(&job)? {
            return Ok(known);
        }
        let mut queue = self.list(List::Queue)?;
        if queue.jobs.len() >= most.total {
            return Err(SubmitError::Full(queue.jobs.len()));
        }
        // Whose they are is looked at only where they could be too many.
        if queue.jobs.len() >= most.user {
            let waiting = waiting_of(&queue, &job.username);
            if waiting >= most.user {
                let username = job.username;
                return Err(SubmitError::UserFull { username, waiting });
            }
        }
        if let Some(most) = most.user_time {
            let spent = self.spent(&job.username, now)?;
            if spent >= most {
                let username = job.username;
                return Err(SubmitError::UserSpent { username, spent });
            }
        }
        if let Some(policy) = &job.policy {
            let run = self.spool.runs().sub(job.run_id.as_str());
            write_json(&run.map_err(SpoolError::from)?, POLICY, policy)?;
        }
        let (run_id, mode) = (job.run_id, job.mode);
        let entry = QueuedJob {
            run_id: run_id.clone(),
            username: job.username,
            created_at: now,
            status: Status::Queued,
            params: job.params,
            analysis_mode: mode,
            extra: serde_json::Map::new(),
        };
        queue.jobs.push(to_entry(&entry));
        let position = Some(last_position(&queue, mode));
        self.write_list(List::Queue, queue, now)?;
        Ok(Submitted {
            run_id,
            status: Status::Queued,
            position,
            new: true,
        })
    }

    /// How long a user's jobs ran within the last hour, those that run still included.
    fn spent(&self, username: &UserName, now: Timestamp) -> Result<Duration, SpoolError> {
        let since = now.checked_sub(SPENT_WITHIN).unwrap_or(Timestamp::MIN);
        let within = |from: Timestamp, to: Timestamp| {
            let time = to.duration_since(from.max(since));
            Duration::try_from(time).unwrap_or_default()
        };
        let running = self.list(List::Current)?;
        let running = running
            .jobs
            .iter()
            .filter_map(|entry| parse::<RunningJob>(entry));
        let running = running.filter(|job| job.username == *username);
        let mut spent: Duration = running.map(|job| within(job.started_at, now)).sum();
        for job in self.spool.finished_since(since)? {
            if let (true, Some(started)) = (job.username == *username, job.started_at) {
                spent += within(started, job.finished_at);
            }
        }
        Ok(spent)
    }

    /// The job that already has this run id, if it is the same one.
    fn known(&self, job: &NewJob) -> Result<Option<Submitted>, SubmitError> {
        let run_id = job.run_id.clone();
        let same = |mode: Mode, params: &Params| mode == job.mode && *params == job.params;
        let known = if let Some(other) = find::<RunningJob>(&self.list(List::Current)?, &run_id) {
            let same = same(other.mode, &other.params);
            (other.username, Status::Running, same)
        } else if let Some(other) = find::<QueuedJob>(&self.list(List::Queue)?, &run_id) {
            let same = same(other.analysis_mode, &other.params);
            (other.username, Status::Queued, same)
        } else if let Some(other) = self.spool.finished(&run_id)? {
            let same = same(other.mode, &other.params);
            (other.username, other.status, same)
        } else {
            return Ok(None);
        };
        let (username, status, same) = known;
        if !same || username != job.username {
            return Err(SubmitError::Taken {
                run_id,
                username,
                status,
            });
        }
        let waits = status == Status::Queued;
        let position = waits.then(|| self.spool.jobs()).transpose()?;
        Ok(Some(Submitted {
            position: position.and_then(|jobs| jobs.position(&run_id)),
            run_id,
            status,
            new: false,
        }))
    }

    /// The waiting and running jobs, nobody changing them.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read.
    pub fn jobs(&self) -> Result<Jobs, SpoolError> {
        // Repairs what is damaged; what is read afterwards is whole, because nobody changes it.
        self.list(List::Queue)?;
        self.list(List::Current)?;
        self.spool.jobs()
    }

    /// Moves waiting jobs to the running ones, each with the DSCP value that it was given, and takes
    /// jobs that are [recorded](Self::close) as over off those. Returns the jobs that were still
    /// waiting.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read or written.
    pub fn exchange(
        &self,
        over: &[RunId],
        wanted: &[(RunId, Option<Dscp>)],
        now: Timestamp,
    ) -> Result<Vec<RunningJob>, SpoolError> {
        let mut queue = self.list(List::Queue)?;
        let mut current = self.list(List::Current)?;
        let is_over = |entry: &RawValue| over.iter().any(|run_id| is(entry, run_id));
        current.jobs.retain(|entry| !is_over(entry));
        let mut taken = Vec::new();
        for (run_id, dscp) in wanted {
            let runs = current.jobs.iter().any(|entry| is(entry, run_id));
            let waiting = if runs { None } else { find(&queue, run_id) };
            if let Some(job) = waiting {
                let job = RunningJob::from_queued(job, *dscp, now);
                current.jobs.push(to_entry(&job));
                queue.jobs.retain(|entry| !is(entry, run_id));
                taken.push(job);
            }
        }
        if !taken.is_empty() || !over.is_empty() {
            self.write_list(List::Current, current, now)?;
        }
        if !taken.is_empty() {
            self.write_list(List::Queue, queue, now)?;
        }
        Ok(taken)
    }

    /// Puts a running job that never ran back to the head of the queue.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read or written.
    pub fn requeue(&self, job: RunningJob, now: Timestamp) -> Result<(), SpoolError> {
        let run_id = job.run_id.clone();
        let mut queue = self.list(List::Queue)?;
        queue.jobs.retain(|entry| !is(entry, &run_id));
        queue.jobs.insert(0, to_entry(&job.into_queued()));
        self.write_list(List::Queue, queue, now)?;
        self.exchange(&[run_id], &[], now).map(drop)
    }

    /// Takes a job that is over off the waiting ones.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read or written.
    pub fn forget_queued(&self, over: &RunId, now: Timestamp) -> Result<(), SpoolError> {
        let mut queue = self.list(List::Queue)?;
        queue.jobs.retain(|entry| !is(entry, over));
        self.write_list(List::Queue, queue, now)
    }

    /// Whose job this is, wherever it stands; none when there is no such job.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read.
    pub fn owner(&self, run_id: &RunId) -> Result<Option<UserName>, SpoolError> {
        if let Some(job) = find::<RunningJob>(&self.list(List::Current)?, run_id) {
            return Ok(Some(job.username));
        }
        if let Some(job) = find::<QueuedJob>(&self.list(List::Queue)?, run_id) {
            return Ok(Some(job.username));
        }
        Ok(self.spool.finished(run_id)?.map(|job| job.username))
    }

    /// Cancels a job: a waiting one is over at once, a running one is marked for the scheduler.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read or written.
    pub fn cancel(
        &self,
        run_id: &RunId,
        by: &UserName,
        now: Timestamp,
    ) -> Result<Cancelled, SpoolError> {
        if let Some(job) = find(&self.list(List::Current)?, run_id) {
            self.mark_cancelled(job, by, now)?;
            return Ok(Cancelled::Running);
        }
        let Some(job) = find::<QueuedJob>(&self.list(List::Queue)?, run_id) else {
            let over = self.spool.finished(run_id)?;
            return Ok(over.map_or(Cancelled::Unknown, |job| Cancelled::Over(job.status)));
        };
        let finished = FinishedJob {
            run_id: job.run_id,
            username: job.username,
            status: Status::Cancelled,
            mode: job.analysis_mode,
            dscp: None,
            created_at: job.created_at,
            started_at: None,
            finished_at: now,
            params: job.params,
            exit_code: None,
            verdicts: None,
            bytes: None,
            reason: Some(format!("it was cancelled by {by} before it started")),
        };
        self.close(&finished)?;
        self.forget_queued(run_id, now)?;
        Ok(Cancelled::Queued(Box::new(finished)))
    }

    fn mark_cancelled(
        &self,
        mut job: RunningJob,
        by: &UserName,
        now: Timestamp,
    ) -> Result<(), SpoolError> {
        if job.cancelled_by.is_some() {
            return Ok(());
        }
        job.cancelled_by = Some(by.clone());
        let mut current = self.list(List::Current)?;
        for entry in current.jobs.iter_mut().filter(|e| is(e, &job.run_id)) {
            *entry = to_entry(&job);
        }
        self.write_list(List::Current, current, now)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
