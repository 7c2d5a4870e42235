//! The queue: jobs come in, move to the running ones, go back, are cancelled.
//!
//! Every change holds the lock of [`Spool`]; reading needs none.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use super::{
    job::{FinishedJob, Mode, NewJob, Params, QueuedJob, RunningJob, Status, UserName},
    spool::{JobFile, List, Locked, Spool, SpoolError},
};
use crate::model::{Dscp, RunId};

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
    /// The files could not be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// A job that is in the queue, or was already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Submitted {
    /// Its name.
    pub run_id: RunId,
    /// Where it stands.
    pub status: Status,
    /// Its place among the waiting jobs of its mode, the first being 1; none when it does not wait.
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
    pub queued: Vec<QueuedJob>,
    /// In the order in which they were started.
    pub running: Vec<RunningJob>,
    /// How many entries of the two files are no jobs; they are left as they are.
    pub unreadable: usize,
}

impl Jobs {
    /// The place of a waiting job among those of its mode, the first being 1.
    #[must_use]
    pub fn position(&self, run_id: &RunId) -> Option<usize> {
        let job = self.queued.iter().find(|job| job.run_id == *run_id)?;
        let line = self
            .queued
            .iter()
            .filter(|other| other.analysis_mode == job.analysis_mode);
        Some(line.take_while(|other| other.run_id != *run_id).count() + 1)
    }
}

impl Spool {
    /// The jobs that wait and the jobs that run, as of now.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read.
    pub fn jobs(&self) -> Result<Jobs, SpoolError> {
        // The queue first: a job that moves in between is then seen in both, not in neither.
        let queue = self.read_list(List::Queue)?;
        let current = self.read_list(List::Current)?;
        Ok(jobs(&queue, &current))
    }
}

fn jobs(queue: &JobFile, current: &JobFile) -> Jobs {
    let running: Vec<RunningJob> = current.jobs.iter().filter_map(parse).collect();
    let waiting: Vec<QueuedJob> = queue.jobs.iter().filter_map(parse).collect();
    let unreadable = queue.jobs.len() + current.jobs.len() - running.len() - waiting.len();
    let moved = |job: &QueuedJob| running.iter().any(|other| other.run_id == job.run_id);
    Jobs {
        queued: waiting.into_iter().filter(|job| !moved(job)).collect(),
        running,
        unreadable,
    }
}

fn parse<T: serde::de::DeserializeOwned>(entry: &Value) -> Option<T> {
    T::deserialize(entry).ok()
}

/// The run id of an entry, be it a job or not.
fn is(entry: &Value, run_id: &RunId) -> bool {
    entry.get("run_id").and_then(Value::as_str) == Some(run_id.as_str())
}

fn to_entry<T: Serialize>(job: &T) -> Value {
    // Our own types have string keys and no failing serializer.
    serde_json::to_value(job).unwrap_or_default()
}

impl Locked<'_> {
    /// Puts a job at the end of the queue. Asking twice for the same job is asking once.
    ///
    /// # Errors
    /// [`SubmitError::Taken`] when the run id stands for another job, [`SubmitError::Full`] when
    /// `most` jobs wait already.
    pub fn submit(
        &self,
        job: NewJob,
        most: usize,
        now: Timestamp,
    ) -> Result<Submitted, SubmitError> {
        if let Some(known) = self.known(&job)? {
            return Ok(known);
        }
        let mut queue = self.list(List::Queue)?;
        if queue.jobs.len() >= most {
            return Err(SubmitError::Full(queue.jobs.len()));
        }
        let run_id = job.run_id;
        let entry = QueuedJob {
            run_id: run_id.clone(),
            username: job.username,
            created_at: now,
            status: Status::Queued,
            params: job.params,
            analysis_mode: job.mode,
            extra: serde_json::Map::new(),
        };
        queue.jobs.push(to_entry(&entry));
        let position = jobs(&queue, &self.list(List::Current)?).position(&run_id);
        self.write_list(List::Queue, queue, now)?;
        Ok(Submitted {
            run_id,
            status: Status::Queued,
            position,
            new: true,
        })
    }

    /// The job that already has this run id, if it is the same one.
    fn known(&self, job: &NewJob) -> Result<Option<Submitted>, SubmitError> {
        let jobs = self.jobs()?;
        let same = |mode: Mode, params: &Params| mode == job.mode && *params == job.params;
        let known = if let Some(other) = jobs.running.iter().find(|o| o.run_id == job.run_id) {
            let same = same(other.mode, &other.params);
            (other.username.clone(), Status::Running, same)
        } else if let Some(other) = jobs.queued.iter().find(|o| o.run_id == job.run_id) {
            let same = same(other.analysis_mode, &other.params);
            (other.username.clone(), Status::Queued, same)
        } else if let Some(other) = self.spool.finished(&job.run_id)? {
            (
                other.username,
                other.status,
                same(other.mode, &other.params),
            )
        } else {
            return Ok(None);
        };
        let (username, status, same) = known;
        let run_id = job.run_id.clone();
        if !same || username != job.username {
            return Err(SubmitError::Taken {
                run_id,
                username,
                status,
            });
        }
        Ok(Some(Submitted {
            position: jobs.position(&run_id),
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
        Ok(jobs(&self.list(List::Queue)?, &self.list(List::Current)?))
    }

    /// Moves waiting jobs to the running ones, each with the DSCP value that it was given. Returns
    /// those that were still waiting.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read or written.
    pub fn take(
        &self,
        wanted: &[(RunId, Option<Dscp>)],
        now: Timestamp,
    ) -> Result<Vec<RunningJob>, SpoolError> {
        let mut queue = self.list(List::Queue)?;
        let mut current = self.list(List::Current)?;
        let waiting = jobs(&queue, &current).queued;
        let mut taken = Vec::new();
        for (run_id, dscp) in wanted {
            if let Some(job) = waiting.iter().find(|job| job.run_id == *run_id) {
                let job = RunningJob::from_queued(job.clone(), *dscp, now);
                current.jobs.push(to_entry(&job));
                queue.jobs.retain(|entry| !is(entry, run_id));
                taken.push(job);
            }
        }
        if !taken.is_empty() {
            self.write_list(List::Current, current, now)?;
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
        self.forget_running(&[run_id], now)
    }

    /// Takes jobs that are over off the running ones; record them with
    /// [`close`](Self::close) before.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read or written.
    pub fn forget_running(&self, over: &[RunId], now: Timestamp) -> Result<(), SpoolError> {
        let mut current = self.list(List::Current)?;
        current
            .jobs
            .retain(|entry| !over.iter().any(|run_id| is(entry, run_id)));
        self.write_list(List::Current, current, now)
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
        let jobs = self.jobs()?;
        if let Some(job) = jobs.running.into_iter().find(|job| job.run_id == *run_id) {
            self.mark_cancelled(&job, by, now)?;
            return Ok(Cancelled::Running);
        }
        let Some(job) = jobs.queued.into_iter().find(|job| job.run_id == *run_id) else {
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
            reason: Some(format!("cancelled by {by} before it started")),
        };
        self.close(&finished)?;
        self.forget_queued(run_id, now)?;
        Ok(Cancelled::Queued(Box::new(finished)))
    }

    fn mark_cancelled(
        &self,
        job: &RunningJob,
        by: &UserName,
        now: Timestamp,
    ) -> Result<(), SpoolError> {
        if job.cancelled_by.is_some() {
            return Ok(());
        }
        let mut current = self.list(List::Current)?;
        for entry in current.jobs.iter_mut().filter(|e| is(e, &job.run_id)) {
            if let Some(fields) = entry.as_object_mut() {
                fields.insert("cancelled_by".to_owned(), by.as_str().into());
            }
        }
        self.write_list(List::Current, current, now)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
