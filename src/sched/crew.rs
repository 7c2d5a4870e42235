//! The loop's hands: starts runners, finds those of an earlier scheduler, closes what is over.
//!
//! The order of the steps of a start and of an end is what makes a crash between any two of them
//! harmless:
//!
//! | start | died right after | the next leader |
//! |---|---|---|
//! | DSCP allocated | the allocation's owner is gone | it is reconciled; the job still waits |
//! | job in `current.json` | no runner, no trace of one | puts it back to the queue |
//! | runner spawned | the runner holds `alive` | adopts it |
//!
//! | end | died right after | the next leader |
//! |---|---|---|
//! | DSCP released | job in `current.json`, runner gone | closes it from what it left |
//! | `job.json` written | job in both | enters it into the index and takes it off |

use std::{collections::BTreeSet, io, sync::Arc};

use jiff::Timestamp;

use super::{
    events::{LiveJob, LoopReport, Scheduler, SchedulerError, wait_error},
    job::{FinishedJob, Mode, RunningJob, Status},
    outcome::Left,
    policy::{EndCause, Event, NotStarted},
    progress::ProgressReader,
    runner::{self, FoundRunner, PROGRESS, Process, RESULT},
    spool::SpoolError,
};
use crate::model::{Dscp, RunId, WithCauses};

impl Scheduler {
    /// Starts jobs, in order, and takes those that are recorded as over off the running ones; returns
    /// what the policy must know about those that did not start.
    pub(super) fn start(&mut self, run_ids: &[RunId]) -> Result<Vec<Event>, SchedulerError> {
        if run_ids.is_empty() && self.recorded.is_empty() {
            return Ok(Vec::new());
        }
        let mut events = Vec::new();
        let wanted = self.allocate(run_ids, &mut events);
        let lock = self.spool.lock();
        let taken = lock.and_then(|lock| lock.exchange(&self.recorded, &wanted, Timestamp::now()));
        let taken = match taken {
            Ok(taken) => {
                self.recorded.clear();
                taken
            }
            Err(error) => {
                self.trouble(error)?;
                for (run_id, dscp) in wanted {
                    self.release(&run_id, dscp);
                    events.push(Event::NotStarted(run_id, NotStarted::Busy));
                }
                return Ok(events);
            }
        };
        let names: BTreeSet<&RunId> = taken.iter().map(|job| &job.run_id).collect();
        for (run_id, dscp) in &wanted {
            if !names.contains(run_id) {
                self.release(run_id, *dscp);
                events.push(Event::NotStarted(run_id.clone(), NotStarted::Gone));
            }
        }
        for job in taken {
            self.queued.remove(&job.run_id);
            events.extend(self.start_one(job)?);
        }
        Ok(events)
    }

    /// A DSCP value for each quick job; from the first one on that gets none, none of them does.
    fn allocate(&self, run_ids: &[RunId], events: &mut Vec<Event>) -> Vec<(RunId, Option<Dscp>)> {
        let mut wanted = Vec::new();
        let mut exhausted = false;
        for run_id in run_ids {
            let Some(job) = self.queued.get(run_id) else {
                events.push(Event::NotStarted(run_id.clone(), NotStarted::Gone));
                continue;
            };
            if job.analysis_mode == Mode::Detailed {
                wanted.push((run_id.clone(), None));
                continue;
            }
            let allocated = if exhausted {
                Ok(None)
            } else {
                self.resources.allocate(run_id, &job.username)
            };
            let why = match allocated {
                Ok(Some(dscp)) => {
                    wanted.push((run_id.clone(), Some(dscp)));
                    continue;
                }
                Ok(None) => NotStarted::NoDscp,
                Err(error) => {
                    tracing::error!(%run_id, error, "cannot allocate a DSCP value");
                    NotStarted::Busy
                }
            };
            exhausted = true;
            events.push(Event::NotStarted(run_id.clone(), why));
        }
        wanted
    }

    fn start_one(&mut self, job: RunningJob) -> Result<Option<Event>, SchedulerError> {
        let run_id = job.run_id.clone();
        let error = match self.runners.start(&job, &self.spool) {
            Ok(process) => {
                let pid = process.pid();
                let dscp = job.dscp.map(Dscp::get);
                tracing::info!(%run_id, pid, mode = %job.mode, dscp, "started");
                self.take_on(job, process)?;
                return Ok(None);
            }
            Err(error) => error,
        };
        self.release(&run_id, job.dscp);
        tracing::error!(%run_id, %error, "not started");
        let now = Timestamp::now();
        if error.is_transient() {
            let lock = self.spool.lock();
            if let Err(error) = lock.and_then(|lock| lock.requeue(job, now)) {
                self.trouble(error)?;
            }
            return Ok(Some(Event::NotStarted(run_id, NotStarted::Busy)));
        }
        let reason = Some(WithCauses(&error).to_string());
        self.settle(finished(job, now, Status::Failed, reason))?;
        Ok(Some(Event::NotStarted(run_id, NotStarted::Failed)))
    }

    /// Watches a runner, started or adopted.
    fn take_on(&mut self, job: RunningJob, process: Process) -> Result<(), SchedulerError> {
        let run_id = job.run_id.clone();
        let path = self.spool.run_dir(&run_id).join(PROGRESS);
        let watched = self.watches.progress(&path, &run_id);
        watched.map_err(wait_error("watch the progress"))?;
        let missing = || SpoolError::io("open", &path)(io::ErrorKind::NotFound.into());
        let progress = self.spool.run_file(&run_id, PROGRESS)?;
        let progress = ProgressReader::new(progress.ok_or_else(missing)?);
        self.board.started(job.clone(), Some(process.pid()));
        self.watch_end(run_id.clone(), &process)?;
        let live = LiveJob {
            job,
            process: Some(process),
            progress,
            left: None,
        };
        self.live.insert(run_id.clone(), live);
        // It may have written before it was watched.
        self.progress(&run_id);
        Ok(())
    }

    pub(super) fn signal(&self, run_id: &RunId, send: impl FnOnce(&Process) -> io::Result<()>) {
        let process = self.live.get(run_id).and_then(|live| live.process.as_ref());
        if let Some(Err(error)) = process.map(send) {
            tracing::error!(%run_id, %error, "cannot signal the runner");
        }
    }

    /// Reaps a runner that is gone, and has its result read where that holds nobody up.
    pub(super) fn look_at_what_it_left(&mut self, run_id: RunId) {
        let Some(mut process) = self
            .live
            .get_mut(&run_id)
            .and_then(|live| live.process.take())
        else {
            return;
        };
        let spool = self.spool.clone();
        let report = self.report.clone();
        tokio::task::spawn_blocking(move || {
            let status = process.reap().unwrap_or_else(|error| {
                tracing::error!(%run_id, %error, "cannot reap the runner");
                None
            });
            let left = Left::look(&spool, &run_id, status);
            // The loop is gone only when nobody needs to know any more.
            let _ = report.send(LoopReport::Judged(run_id, left));
        });
    }

    /// Records how a job ended and frees what it held.
    pub(super) fn close(
        &mut self,
        run_id: &RunId,
        cause: Option<EndCause>,
        killed: bool,
    ) -> Result<(), SchedulerError> {
        let Some(live) = self.live.remove(run_id) else {
            return Ok(());
        };
        self.watches.forget(run_id);
        let left = live.left;
        // One whose end nobody saw may have been killed, too.
        let unseen = |left: &Left| !left.complete && left.exit_code.is_none();
        let crashed = killed
            || left
                .as_ref()
                .is_some_and(|left| left.crashed || unseen(left));
        self.conclude(live.job, left.as_ref(), cause)?;
        if crashed {
            self.reconcile(run_id.clone());
        }
        Ok(())
    }

    fn conclude(
        &mut self,
        job: RunningJob,
        left: Option<&Left>,
        cause: Option<EndCause>,
    ) -> Result<(), SchedulerError> {
        self.release(&job.run_id, job.dscp);
        let concluded = left.map(|left| left.conclude(cause, job.cancelled_by.as_ref()));
        let (status, reason) = concluded.unwrap_or((Status::Failed, None));
        let mut finished = finished(job, Timestamp::now(), status, reason);
        finished.exit_code = left.and_then(|left| left.exit_code);
        finished.verdicts = left.and_then(|left| left.verdicts);
        finished.bytes = left.map(|left| left.bytes);
        tracing::info!(run_id = %finished.run_id, %status, reason = finished.reason, "ended");
        self.settle(finished)
    }

    /// Records a job that is over, at once or, where the files cannot be written, as soon as they
    /// can.
    fn settle(&mut self, job: FinishedJob) -> Result<(), SchedulerError> {
        let recorded = self.record(&job);
        self.board.ended(job.clone());
        self.count_results(job.bytes.unwrap_or(0));
        if let Err(error) = recorded {
            self.unrecorded.push(job);
            self.trouble(error)?;
        }
        Ok(())
    }

    /// Tries again what the files did not take.
    pub(super) fn mend(&mut self) -> Result<(), SchedulerError> {
        self.mend_at = None;
        for job in std::mem::take(&mut self.unrecorded) {
            if let Err(error) = self.record(&job) {
                self.unrecorded.push(job);
                self.trouble(error)?;
            }
        }
        if self.mend_at.is_some() {
            return Ok(());
        }
        for event in self.recover()? {
            self.step(event)?;
        }
        self.queue_changed()?;
        if self.mend_at.is_none() {
            self.in_trouble = false;
            tracing::info!("the scheduler's files can be used again");
        }
        Ok(())
    }

    /// Records a job that is over; the next [`Self::start`] takes it off the running ones.
    fn record(&mut self, job: &FinishedJob) -> Result<(), SpoolError> {
        let close = || self.spool.lock().and_then(|lock| lock.close(job));
        let mut closed = close();
        // What was cut serves nobody, and on a full disk it has the room that the job's end needs.
        if closed.as_ref().is_err_and(SpoolError::is_for_want_of_room)
            && job.status != Status::Done
            && self.spool.drop_run_file(&job.run_id, RESULT).is_ok()
        {
            closed = close();
        }
        let why = closed.as_ref().err().map(|error| {
            let (status, error) = (job.status, WithCauses(error));
            format!("it is over ({status}), and that cannot be written down: {error}; the scheduler tries again")
        });
        self.board.recorded(&job.run_id, why);
        closed?;
        self.recorded.push(job.run_id.clone());
        Ok(())
    }

    fn release(&self, run_id: &RunId, dscp: Option<Dscp>) {
        if dscp.is_some()
            && let Err(error) = self.resources.release(run_id)
        {
            tracing::error!(%run_id, error, "cannot release the DSCP value");
        }
    }

    /// Removes what a runner that could not undo its work left.
    fn reconcile(&self, run_id: RunId) {
        let (resources, board) = (Arc::clone(&self.resources), Arc::clone(&self.board));
        tokio::task::spawn_blocking(move || match resources.reconcile() {
            Ok(removed) => {
                board.metrics.reconciled(removed);
                tracing::info!(%run_id, removed, "reconciled after a runner that was killed");
            }
            Err(error) => tracing::error!(%run_id, error, "cannot reconcile"),
        });
    }

    /// Takes over from an earlier scheduler: closes what ended, adopts what runs, queues again
    /// what never ran.
    pub(super) fn recover(&mut self) -> Result<Vec<Event>, SchedulerError> {
        let (jobs, found) = match self.look_for_others() {
            Ok(found) => found,
            Err(error) => {
                self.trouble(error)?;
                return Ok(Vec::new());
            }
        };
        let mut events = Vec::new();
        // Backwards, so that jobs which go back to the head of the queue keep their order.
        for (job, found) in jobs.into_iter().zip(found).rev() {
            match self.recover_one(job, found) {
                Ok(event) => events.extend(event),
                Err(SchedulerError::Spool(error)) => self.trouble(error)?,
                Err(other) => return Err(other),
            }
        }
        Ok(events)
    }

    /// The jobs that run by the files and that this scheduler knows nothing of.
    fn look_for_others(&self) -> Result<(Vec<RunningJob>, Vec<FoundRunner>), SpoolError> {
        let spool = &self.spool;
        let lock = spool.lock()?;
        let jobs = lock.jobs()?;
        for job in &jobs.queued {
            // A cancel that died before its last step.
            if let Some(over) = spool.finished(&job.run_id)? {
                lock.close(&over)?;
                lock.forget_queued(&job.run_id, Timestamp::now())?;
            }
        }
        let over = |id: &RunId| {
            self.recorded.contains(id) || self.unrecorded.iter().any(|job| job.run_id == *id)
        };
        let others = jobs.running.into_iter();
        let others: Vec<RunningJob> = others
            .filter(|job| !self.live.contains_key(&job.run_id) && !over(&job.run_id))
            .collect();
        let found = runner::find(&others, spool)?;
        Ok((others, found))
    }

    fn recover_one(
        &mut self,
        job: RunningJob,
        found: FoundRunner,
    ) -> Result<Option<Event>, SchedulerError> {
        let run_id = job.run_id.clone();
        let mode = job.mode;
        if let Some(over) = self.spool.finished(&run_id)? {
            self.release(&run_id, job.dscp);
            self.record(&over)?;
            return Ok(None);
        }
        match found {
            FoundRunner::Alive(process) => {
                tracing::info!(%run_id, pid = process.pid(), "adopted");
                let age = Timestamp::now().duration_since(job.started_at);
                let age = age.try_into().unwrap_or_default();
                let kept = job.dscp.map(|dscp| self.resources.keep(&run_id, dscp));
                if let Some(Err(error)) = kept {
                    tracing::error!(%run_id, error, "the adopted job's DSCP value is not its own");
                }
                self.take_on(job, process)?;
                return Ok(Some(Event::Adopted { run_id, mode, age }));
            }
            FoundRunner::Ended => {
                let left = Left::look(&self.spool, &run_id, None);
                let cause = job.cancelled_by.is_some().then_some(EndCause::Cancelled);
                self.conclude(job, Some(&left), cause)?;
                if !left.complete {
                    self.reconcile(run_id);
                }
            }
            FoundRunner::NeverRan => {
                tracing::info!(%run_id, "never ran; back to the queue");
                self.release(&run_id, job.dscp);
                self.spool.lock()?.requeue(job, Timestamp::now())?;
            }
        }
        Ok(None)
    }
}

fn finished(
    job: RunningJob,
    now: Timestamp,
    status: Status,
    reason: Option<String>,
) -> FinishedJob {
    FinishedJob {
        run_id: job.run_id,
        username: job.username,
        status,
        mode: job.mode,
        dscp: job.dscp,
        created_at: job.created_at,
        started_at: Some(job.started_at),
        finished_at: now,
        params: job.params,
        exit_code: None,
        verdicts: None,
        bytes: None,
        reason,
    }
}
