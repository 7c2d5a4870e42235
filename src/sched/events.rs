//! The scheduler's loop: everything that is seen becomes an event of the [policy](super::policy),
//! and its actions are carried out.
//!
//! The loop sleeps in the kernel: in inotify for the queue and for progress, in a pidfd for each
//! runner, in a signal, in the policy's next deadline. Idle, it costs nothing. It keeps nothing
//! that is not in the files or in the kernel, so it may be killed at any instant. What the files do
//! not take, because the disk is full or somebody holds their lock, it tries again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use jiff::{SignedDuration, Timestamp};
use nix::libc;
use thiserror::Error;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant as TokioInstant, sleep_until},
};

use super::{
    board::Board,
    history::ResultLimits,
    job::{FinishedJob, QueuedJob, RunningJob},
    outcome::Left,
    policy::{Action, Event, Limits, State},
    progress::ProgressReader,
    queue::QueueReader,
    resources::Resources,
    runner::{Process, Runners},
    spool::{Spool, SpoolError},
    watch::{Changed, Watches},
};
use crate::{
    config::Config,
    model::{RunId, WithCauses},
    sys::readable::Readable,
};

/// How often finished jobs are looked through for expired ones.
const EXPIRY_PERIOD: Duration = Duration::from_secs(3600);
/// How long the files are left alone after they could not be used. Nothing tells when they can be.
const MEND_PAUSE: Duration = Duration::from_secs(2);
/// Results are held against their limits when this part of one user's is new.
const SWEEP_SHARE: u64 = 16;

/// The scheduler cannot go on; its running jobs do.
#[derive(Debug, Error)]
pub enum SchedulerError {
    /// The queue or the history cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The kernel refused something that the loop waits with.
    #[error("cannot {what}")]
    Wait {
        /// What was refused.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(super) fn wait_error(what: &'static str) -> impl FnOnce(io::Error) -> SchedulerError {
    move |source| SchedulerError::Wait { what, source }
}

/// What a task of the loop reports back.
#[derive(Debug)]
pub(super) enum LoopReport {
    /// A runner's process is gone.
    Gone(RunId),
    /// What it left was looked at.
    Judged(RunId, Left),
    /// A process that held a DSCP value is gone.
    HolderGone,
}

/// A job whose runner lives, or ended and is not closed yet.
#[derive(Debug)]
pub(super) struct LiveJob {
    pub(super) job: RunningJob,
    pub(super) process: Option<Process>,
    pub(super) progress: ProgressReader,
    /// What it left, once it ended.
    pub(super) left: Option<Left>,
}

/// Everything that the loop works with.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) spool: Spool,
    pub(super) runners: Runners,
    pub(super) resources: Arc<dyn Resources>,
    pub(super) board: Arc<Board>,
    pub(super) live: BTreeMap<RunId, LiveJob>,
    pub(super) queued: HashMap<RunId, Arc<QueuedJob>>,
    pub(super) watches: Watches,
    pub(super) report: mpsc::UnboundedSender<LoopReport>,
    state: State,
    reader: QueueReader,
    reports: mpsc::UnboundedReceiver<LoopReport>,
    registry_dir: PathBuf,
    keep: Duration,
    epoch: Instant,
    watches_holders: bool,
    over: bool,
    /// Jobs that are recorded as over and are still among the running ones.
    pub(super) recorded: Vec<RunId>,
    /// Jobs that are over and that the files do not have yet.
    pub(super) unrecorded: Vec<FinishedJob>,
    /// When to try again what the files did not take.
    pub(super) mend_at: Option<Instant>,
    /// Whether it was said that the files cannot be used.
    pub(super) in_trouble: bool,
    results: ResultLimits,
    /// Bytes of results since they were last held against the limits.
    unswept: u64,
}

/// The limits that a configuration sets.
#[must_use]
pub fn limits(config: &Config) -> Limits {
    let scheduler = &config.scheduler;
    Limits {
        quick: scheduler.quick_jobs.min(config.dscp.count()),
        detailed: scheduler.detailed_jobs,
        check: scheduler.check_jobs,
        total: scheduler.jobs,
        overtakes: scheduler.overtakes,
        quick_time: scheduler.quick_time(),
        detailed_time: scheduler.detailed_time(),
        check_time: scheduler.check_time(),
        grace: scheduler.grace(),
    }
}

impl Scheduler {
    /// A scheduler that has not looked at anything yet; call within a tokio runtime, as the leader.
    ///
    /// # Errors
    /// [`SchedulerError::Wait`] when inotify is not to be had.
    pub fn new(
        config: &Config,
        spool: Spool,
        runners: Runners,
        resources: Arc<dyn Resources>,
        board: Arc<Board>,
    ) -> Result<Self, SchedulerError> {
        let (report, reports) = mpsc::unbounded_channel();
        Ok(Self {
            spool,
            runners,
            resources,
            board,
            live: BTreeMap::new(),
            queued: HashMap::new(),
            watches: Watches::new().map_err(wait_error("watch files"))?,
            report,
            state: State::new(limits(config)),
            reader: QueueReader::default(),
            reports,
            registry_dir: config.registry_dir.clone(),
            keep: config.scheduler.keep(),
            epoch: Instant::now(),
            watches_holders: false,
            over: false,
            recorded: Vec::new(),
            unrecorded: Vec::new(),
            mend_at: None,
            in_trouble: false,
            results: ResultLimits::of(config),
            unswept: 0,
        })
    }

    /// Runs jobs until it is told to stop by SIGTERM or SIGINT: once to drain, twice to cancel.
    ///
    /// # Errors
    /// [`SchedulerError`]; running jobs go on and the next leader adopts them.
    pub async fn run(mut self) -> Result<(), SchedulerError> {
        let mut stop = StopSignals::new()?;
        // Watch first, look afterwards: nothing falls in between.
        let directories = [
            (self.spool.queue_dir().to_owned(), Changed::Queue),
            (self.registry_dir.clone(), Changed::Registry),
        ];
        for (path, changed) in directories {
            let watched = self.watches.directory(&path, changed);
            watched.map_err(wait_error("watch a directory"))?;
        }
        for event in self.recover()? {
            self.step(event)?;
        }
        self.queue_changed()?;
        self.remove_unqueued();
        let mut expiry = tokio::time::interval(EXPIRY_PERIOD);
        while !self.over {
            let deadline = self.state.deadline().map(|at| self.epoch + at);
            tokio::select! {
                () = stop.next() => {
                    tracing::info!(running = self.live.len(), "draining");
                    self.step(Event::Terminate)?;
                }
                Some(seen) = self.reports.recv() => self.seen(seen)?,
                changed = self.watches.next() => {
                    self.changed(changed.map_err(wait_error("read file events"))?)?;
                }
                () = until(deadline) => self.step(Event::Time)?,
                () = until(self.mend_at) => self.mend()?,
                _ = expiry.tick() => self.expire(),
            }
        }
        self.board.render();
        Ok(())
    }

    /// Says that the files cannot be used, once, and has it tried again.
    ///
    /// # Errors
    /// A file of a later version is another scheduler's.
    pub(super) fn trouble(&mut self, error: SpoolError) -> Result<(), SchedulerError> {
        if matches!(error, SpoolError::Version { .. }) {
            return Err(error.into());
        }
        if !self.in_trouble {
            let error = WithCauses(&error).to_string();
            tracing::error!(error, "the scheduler's files cannot be used; trying again");
        }
        self.in_trouble = true;
        self.mend_at = Some(Instant::now() + MEND_PAUSE);
        Ok(())
    }

    /// Counts what a job left, and removes the oldest results where that may be too much.
    pub(super) fn count_results(&mut self, bytes: u64) {
        self.unswept = self.unswept.saturating_add(bytes);
        if self.unswept > self.results.user / SWEEP_SHARE {
            self.expire();
        }
    }

    fn changed(&mut self, changed: HashSet<Changed>) -> Result<(), SchedulerError> {
        for changed in changed {
            match changed {
                Changed::Queue => self.queue_changed()?,
                Changed::Registry => {
                    self.board.registry();
                    if self.state.waits_for_dscp() {
                        self.step(Event::DscpMayBeFree)?;
                    }
                }
                Changed::Progress(run_id) => self.progress(&run_id),
            }
        }
        Ok(())
    }

    /// Takes in what the files say now: who waits, and who is to be cancelled.
    pub(super) fn queue_changed(&mut self) -> Result<(), SchedulerError> {
        let jobs = match self.reader.read(&self.spool) {
            // Readers see a damaged file; who locks it repairs it.
            Err(SpoolError::Damaged { .. }) => self.spool.lock().and_then(|lock| lock.jobs()),
            other => other,
        };
        let jobs = match jobs {
            Ok(jobs) => jobs,
            Err(error) => return self.trouble(error),
        };
        let mut cancelled = Vec::new();
        for job in jobs.running.iter().filter(|job| job.cancelled_by.is_some()) {
            if let Some(live) = self.live.get_mut(&job.run_id) {
                live.job.cancelled_by.clone_from(&job.cancelled_by);
                cancelled.push(job.run_id.clone());
            }
        }
        let order = jobs.queued.iter();
        let order = order
            .map(|job| (job.run_id.clone(), job.analysis_mode))
            .collect();
        let queued = jobs
            .queued
            .iter()
            .map(|job| (job.run_id.clone(), Arc::clone(job)));
        self.queued = queued.collect();
        self.board.queue(Arc::new(jobs));
        for run_id in cancelled {
            self.step(Event::Cancel(run_id))?;
        }
        self.step(Event::Queue(order))
    }

    pub(super) fn progress(&mut self, run_id: &RunId) {
        let Some(live) = self.live.get_mut(run_id) else {
            return;
        };
        match live.progress.read() {
            Ok(true) => {
                if let Some(line) = live.progress.last() {
                    self.board.progress(run_id, line);
                }
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%run_id, %error, "cannot read the progress"),
        }
    }

    /// Takes in what a task reported, and what others did meanwhile.
    fn seen(&mut self, first: LoopReport) -> Result<(), SchedulerError> {
        let mut events = Vec::new();
        let mut next = Some(first);
        while let Some(seen) = next {
            match seen {
                LoopReport::Gone(run_id) => {
                    self.progress(&run_id);
                    self.look_at_what_it_left(run_id);
                }
                LoopReport::Judged(run_id, left) => {
                    if let Some(live) = self.live.get_mut(&run_id) {
                        live.left = Some(left);
                    }
                    events.push(Event::Ended(run_id));
                }
                LoopReport::HolderGone => {
                    self.watches_holders = false;
                    events.push(Event::DscpMayBeFree);
                }
            }
            next = self.reports.try_recv().ok();
        }
        self.step_all(events)
    }

    pub(super) fn step(&mut self, event: Event) -> Result<(), SchedulerError> {
        self.step_all(vec![event])
    }

    /// Carries out what follows from several events: what they end and what starts in its place is
    /// written to the lists at once.
    fn step_all(&mut self, mut events: Vec<Event>) -> Result<(), SchedulerError> {
        while !events.is_empty() {
            let now = self.epoch.elapsed();
            let mut starts = Vec::new();
            for event in events {
                for action in self.state.step(event, now) {
                    match action {
                        Action::Start(run_id) => starts.push(run_id),
                        Action::Terminate(run_id) => self.signal(&run_id, Process::terminate),
                        Action::Kill(run_id) => self.signal(&run_id, Process::kill),
                        Action::Close {
                            run_id,
                            cause,
                            killed,
                        } => self.close(&run_id, cause, killed)?,
                        Action::Exit => self.over = true,
                    }
                }
            }
            events = self.start(&starts)?;
        }
        let draining = self.state.is_draining();
        let waits = self.state.waits_for_dscp();
        self.board.scheduler(draining, waits);
        if waits && !self.watches_holders {
            self.watch_holders()?;
        }
        Ok(())
    }

    /// Reports when one of those that hold a DSCP value is gone: who is killed releases nothing.
    fn watch_holders(&mut self) -> Result<(), SchedulerError> {
        let holders = match self.resources.holders() {
            Ok(holders) => holders,
            Err(error) => {
                tracing::error!(error, "cannot see who holds DSCP values");
                return Ok(());
            }
        };
        let holders: io::Result<Vec<Readable>> = holders.into_iter().map(Readable::new).collect();
        let holders = holders.map_err(wait_error("watch a process"))?;
        if holders.is_empty() {
            return Ok(());
        }
        tracing::info!("every DSCP value is held; quick jobs wait");
        self.watches_holders = true;
        let report = self.report.clone();
        tokio::spawn(async move {
            let ends = holders.iter().map(|holder| Box::pin(holder.wait()));
            let _ = select_all(ends).await;
            let _ = report.send(LoopReport::HolderGone);
        });
        Ok(())
    }

    /// Reports when a runner's process is gone.
    pub(super) fn watch_end(&self, run_id: RunId, process: &Process) -> Result<(), SchedulerError> {
        let pidfd = process.pidfd().and_then(Readable::new);
        let pidfd = pidfd.map_err(wait_error("watch a process"))?;
        let report = self.report.clone();
        tokio::spawn(async move {
            // An error here would be of epoll itself; looking at the job early is harmless then.
            let _ = pidfd.wait().await;
            // The loop is gone only when this task is about to be.
            let _ = report.send(LoopReport::Gone(run_id));
        });
        Ok(())
    }

    /// Once is enough: only a submission that was killed leaves such a thing.
    fn remove_unqueued(&self) {
        let spool = self.spool.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = spool.lock().and_then(|lock| lock.remove_unqueued()) {
                tracing::error!(%error, "cannot remove what a killed submission left");
            }
        });
    }

    fn expire(&mut self) {
        self.unswept = 0;
        let (spool, keep, limits) = (self.spool.clone(), self.keep, self.results);
        tokio::task::spawn_blocking(move || {
            let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX);
            let lock = spool.lock();
            match lock.and_then(|lock| lock.expire(Timestamp::now(), keep, limits)) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "removed expired jobs"),
                Err(error) => tracing::error!(%error, "cannot remove expired jobs"),
            }
        });
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(TokioInstant::from_std(deadline)).await,
        None => std::future::pending().await,
    }
}

/// SIGTERM and SIGINT; both mean the same here.
pub(super) struct StopSignals(Signal, Signal);

impl StopSignals {
    pub(super) fn new() -> Result<Self, SchedulerError> {
        let listen = |kind| signal(kind).map_err(wait_error("listen for signals"));
        Ok(Self(
            listen(SignalKind::from_raw(libc::SIGTERM))?,
            listen(SignalKind::from_raw(libc::SIGINT))?,
        ))
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}
