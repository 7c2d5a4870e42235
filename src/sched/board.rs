//! What everybody sees: the jobs as of now, and the stream of changes.
//!
//! The event loop pins changes on the board; that is cheap and never waits for a viewer. A task of
//! its own renders what changed, at most every [`PERIOD`], once for all viewers. The last events
//! are kept, so that a viewer that was away for a moment goes on where it stopped; one that was
//! away for longer, or saw an earlier scheduler, starts over from a snapshot.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use super::{
    job::{FinishedJob, Mode, QueuedJob, RunningJob},
    metrics::Metrics,
    queue::Jobs,
};
use crate::{model::RunId, run::progress::ProgressLine};

/// Shortest time between two events.
pub const PERIOD: Duration = Duration::from_millis(50);
/// How many events are kept for viewers that come back.
const KEPT: usize = 1024;
/// How many bytes they may have; with a long queue, one event has tens of kilobytes.
const KEPT_BYTES: usize = 4 << 20;
/// How many waiting jobs an event lists; their number is always said.
const LISTED: usize = 100;

/// A running job as viewers see it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "RunningJob")]
pub struct RunningView {
    /// The job.
    #[serde(flatten)]
    pub job: RunningJob,
    /// How much is done, 0 to 100.
    #[schemars(range(max = 100))]
    pub percent: u8,
    /// What is being done.
    pub phase: String,
    /// The runner's process id.
    pub pid: Option<i32>,
}

/// The queue as viewers see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, JsonSchema)]
#[schemars(rename = "Queue")]
pub struct QueueView {
    /// How many quick jobs wait.
    pub quick: usize,
    /// How many detailed jobs wait.
    pub detailed: usize,
    /// How many checks, matrices and diffs wait.
    pub check: usize,
    /// The first of them, in the order of the queue.
    #[schemars(length(max = LISTED))]
    pub first: Vec<Arc<QueuedJob>>,
}

/// The scheduler itself as viewers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Scheduler")]
pub struct SchedulerView {
    /// Its process id.
    pub pid: u32,
    /// Since when it leads.
    #[schemars(extend("format" = "date-time"))]
    pub since: String,
    /// Whether it was asked to stop and starts nothing new.
    pub draining: bool,
    /// Whether quick jobs wait because every DSCP value is held.
    pub waits_for_dscp: bool,
    /// Most quick jobs at once.
    pub quick_jobs: usize,
    /// Most detailed jobs at once.
    pub detailed_jobs: usize,
    /// Most checks, matrices and diffs at once.
    pub check_jobs: usize,
    /// Most jobs at once.
    pub jobs: usize,
}

/// Everything, for a viewer that starts.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Snapshot {
    /// The scheduler.
    pub scheduler: SchedulerView,
    /// The running jobs, in the order of their run ids.
    pub running: Vec<RunningView>,
    /// The waiting jobs.
    pub queue: QueueView,
}

/// What changed since the last event; what did not is left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, JsonSchema)]
pub(super) struct Update {
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler: Option<SchedulerView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    running: Vec<RunningView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ended: Vec<FinishedJob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<QueueView>,
    /// Whether locks, leases or DSCP allocations changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("const" = true))]
    registry: bool,
}

/// One event as it goes to every viewer.
#[derive(Debug, Clone)]
pub struct BoardEvent {
    /// Its number; the next one's is one more.
    pub number: u64,
    /// The JSON text.
    pub data: Arc<str>,
    /// The same for those who may not see results.
    pub without_results: Arc<str>,
}

#[derive(Debug)]
struct Inner {
    scheduler: SchedulerView,
    running: BTreeMap<RunId, RunningView>,
    jobs: Arc<Jobs>,
    changed: BTreeSet<RunId>,
    ended: Vec<FinishedJob>,
    /// Jobs that are over and that the files still have as running ones, with why.
    unrecorded: BTreeMap<RunId, String>,
    scheduler_changed: bool,
    queue_changed: bool,
    registry_changed: bool,
    events: VecDeque<BoardEvent>,
    event_bytes: usize,
}

/// The board; shared by the event loop and the viewers.
#[derive(Debug)]
pub struct Board {
    inner: Mutex<Inner>,
    changed: Notify,
    /// Number of the last event.
    head: watch::Sender<u64>,
    /// What is counted for `/metrics`.
    pub metrics: Metrics,
}

/// Where a viewer goes on.
#[derive(Debug)]
pub enum Resumed {
    /// These events came since.
    Events(Vec<BoardEvent>),
    /// It starts over: all there is, as of the event of this number.
    Snapshot(u64, Box<Snapshot>),
}

impl Board {
    /// An empty board.
    #[must_use]
    pub fn new(scheduler: SchedulerView) -> Self {
        Self {
            inner: Mutex::new(Inner {
                scheduler,
                running: BTreeMap::new(),
                jobs: Arc::default(),
                changed: BTreeSet::new(),
                ended: Vec::new(),
                unrecorded: BTreeMap::new(),
                scheduler_changed: false,
                queue_changed: false,
                registry_changed: false,
                events: VecDeque::new(),
                event_bytes: 0,
            }),
            changed: Notify::new(),
            head: watch::Sender::new(0),
            metrics: Metrics::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change below is complete when it panics, if it ever does.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    /// The files of the queue have new content.
    pub fn queue(&self, jobs: Arc<Jobs>) {
        self.change(|inner| {
            inner.queue_changed |= inner.jobs.queued != jobs.queued;
            for job in &jobs.running {
                if let Some(view) = inner.running.get_mut(&job.run_id)
                    && view.job != *job
                {
                    view.job = job.clone();
                    inner.changed.insert(job.run_id.clone());
                }
            }
            inner.jobs = jobs;
        });
    }

    /// A job's runner was started or adopted.
    pub fn started(&self, job: RunningJob, pid: Option<i32>) {
        self.change(|inner| {
            let run_id = job.run_id.clone();
            inner.changed.insert(run_id.clone());
            let view = RunningView {
                job,
                percent: 0,
                phase: "starting".to_owned(),
                pid,
            };
            inner.running.insert(run_id, view);
        });
    }

    /// A job came further.
    pub fn progress(&self, run_id: &RunId, line: &ProgressLine) {
        self.change(|inner| {
            if let Some(view) = inner.running.get_mut(run_id) {
                view.percent = line.percent;
                view.phase.clone_from(&line.phase);
                inner.changed.insert(run_id.clone());
            }
        });
    }

    /// A job is over.
    pub fn ended(&self, job: FinishedJob) {
        self.metrics.ended(&job);
        self.change(|inner| {
            inner.running.remove(&job.run_id);
            inner.changed.remove(&job.run_id);
            inner.ended.push(job);
        });
    }

    /// The scheduler drains, or waits for DSCP values, or no longer does.
    pub fn scheduler(&self, draining: bool, waits_for_dscp: bool) {
        let mut inner = self.lock();
        let view = &mut inner.scheduler;
        if (view.draining, view.waits_for_dscp) != (draining, waits_for_dscp) {
            (view.draining, view.waits_for_dscp) = (draining, waits_for_dscp);
            inner.scheduler_changed = true;
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Locks, leases or DSCP allocations changed.
    pub fn registry(&self) {
        self.change(|inner| inner.registry_changed = true);
    }

    /// Everything as of now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    /// The waiting and running jobs as of now.
    #[must_use]
    pub fn jobs(&self) -> Arc<Jobs> {
        Arc::clone(&self.lock().jobs)
    }

    /// A job that is over is recorded, or cannot be for the reason given.
    pub fn recorded(&self, run_id: &RunId, failed: Option<String>) {
        let unrecorded = &mut self.lock().unrecorded;
        match failed {
            Some(why) => _ = unrecorded.insert(run_id.clone(), why),
            None => _ = unrecorded.remove(run_id),
        }
    }

    /// Why the files have a job as a running one that is over.
    #[must_use]
    pub fn unrecorded(&self, run_id: &RunId) -> Option<String> {
        self.lock().unrecorded.get(run_id).cloned()
    }

    /// One running job.
    #[must_use]
    pub fn running(&self, run_id: &RunId) -> Option<RunningView> {
        self.lock().running.get(run_id).cloned()
    }

    /// What came after event `last`; none starts over.
    #[must_use]
    pub fn since(&self, last: Option<u64>) -> Resumed {
        let inner = self.lock();
        let head = *self.head.borrow();
        let first = inner.events.front().map_or(head + 1, |event| event.number);
        match last {
            Some(last) if last <= head && last + 1 >= first => {
                let new = inner.events.iter().filter(|event| event.number > last);
                Resumed::Events(new.cloned().collect())
            }
            _ => Resumed::Snapshot(head, Box::new(inner.snapshot())),
        }
    }

    /// Tells the number of the last event whenever there is a new one.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Renders changes for ever; run it as a task.
    pub async fn publish(&self) {
        loop {
            self.changed.notified().await;
            self.render();
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Makes one event of what changed.
    pub fn render(&self) {
        let mut inner = self.lock();
        let mut update = inner.take_update();
        // Our own types have string keys and no failing serializer.
        let Ok(data) = serde_json::to_string(&update) else {
            return;
        };
        if data == "{}" {
            return;
        }
        let data: Arc<str> = data.into();
        let mut without_results = Arc::clone(&data);
        if !update.ended.is_empty() {
            let ended = mem::take(&mut update.ended).into_iter();
            update.ended = ended.map(FinishedJob::without_result).collect();
            let Ok(text) = serde_json::to_string(&update) else {
                return;
            };
            without_results = text.into();
        }
        let number = *self.head.borrow() + 1;
        inner.keep(BoardEvent {
            number,
            data,
            without_results,
        });
        drop(inner);
        self.head.send_replace(number);
    }
}

impl Inner {
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            scheduler: self.scheduler.clone(),
            running: self.running.values().cloned().collect(),
            queue: self.queue_view(),
        }
    }

    /// Keeps an event; the last one always, for those that are only one behind.
    fn keep(&mut self, event: BoardEvent) {
        self.event_bytes += event.data.len();
        self.events.push_back(event);
        while self.events.len() > KEPT || self.event_bytes > KEPT_BYTES && self.events.len() > 1 {
            let oldest = self.events.pop_front();
            self.event_bytes -= oldest.map_or(0, |event| event.data.len());
        }
    }

    fn queue_view(&self) -> QueueView {
        let queued = &self.jobs.queued;
        let count = |mode| {
            let same = queued.iter().filter(|job| job.analysis_mode.lane() == mode);
            same.count()
        };
        QueueView {
            quick: count(Mode::Quick),
            detailed: count(Mode::Detailed),
            check: count(Mode::Check),
            first: queued.iter().take(LISTED).cloned().collect(),
        }
    }

    fn take_update(&mut self) -> Update {
        let changed = mem::take(&mut self.changed);
        let running = changed.iter().filter_map(|run_id| self.running.get(run_id));
        let queue = mem::take(&mut self.queue_changed).then(|| self.queue_view());
        Update {
            scheduler: mem::take(&mut self.scheduler_changed).then(|| self.scheduler.clone()),
            running: running.cloned().collect(),
            ended: mem::take(&mut self.ended),
            queue,
            registry: mem::take(&mut self.registry_changed),
        }
    }
}

/// The scheduler of this process.
#[must_use]
pub fn this_scheduler(limits: &super::policy::Limits, since: Timestamp) -> SchedulerView {
    SchedulerView {
        pid: std::process::id(),
        since: since.to_string(),
        draining: false,
        waits_for_dscp: false,
        quick_jobs: limits.quick,
        detailed_jobs: limits.detailed,
        check_jobs: limits.check,
        jobs: limits.total,
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
