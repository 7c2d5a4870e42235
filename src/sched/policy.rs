//! What the scheduler does next, as pure code: a state, an event and the time give actions.
//!
//! Nothing here reads a clock, a file or a process. The event loop feeds in what it saw and
//! carries out what comes back, so every rule of scheduling can be tested without waiting:
//!
//! - FIFO within a mode; quick jobs first, but a detailed job that could have started is overtaken
//!   by at most [`Limits::overtakes`] later quick jobs.
//! - Checks, matrices and diffs come behind both, and are overtaken as often at most.
//! - A job without a DSCP goes back to where it stood; quick jobs wait until one may be free.
//! - A job that is cancelled or late gets SIGTERM, and SIGKILL when it ignores that.
//! - SIGTERM to the scheduler drains: nothing new starts. A second one cancels what runs.
//!
//! Time is a [`Duration`] since any fixed point that the caller likes.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    time::Duration,
};

use super::job::Mode;
use crate::model::RunId;

/// How many jobs run, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most quick jobs at once; each needs a DSCP value of its own.
    pub quick: usize,
    /// Most detailed jobs at once.
    pub detailed: usize,
    /// Most checks, matrices and diffs at once; each needs a DSCP value of its own.
    pub check: usize,
    /// Most jobs at once, all modes together.
    pub total: usize,
    /// Most jobs that may overtake one that waits for its turn behind those of another mode.
    pub overtakes: u32,
    /// Longest run of a quick job, waiting for router locks included.
    pub quick_time: Duration,
    /// Longest run of a detailed job, waiting for router locks included.
    pub detailed_time: Duration,
    /// Longest run of a check, matrix or diff.
    pub check_time: Duration,
    /// How long a runner has after SIGTERM before SIGKILL.
    pub grace: Duration,
}

impl Limits {
    fn time(&self, mode: Mode) -> Duration {
        match mode {
            Mode::Quick => self.quick_time,
            Mode::Detailed => self.detailed_time,
            Mode::Check | Mode::Matrix | Mode::Diff => self.check_time,
        }
    }

    fn jobs(&self, mode: Mode) -> usize {
        match mode {
            Mode::Quick => self.quick,
            Mode::Detailed => self.detailed,
            Mode::Check | Mode::Matrix | Mode::Diff => self.check,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The queue as it is now, first job first.
    Queue(Vec<(RunId, Mode)>),
    /// A job that an earlier scheduler started is still running, since `age`.
    Adopted {
        /// The job.
        run_id: RunId,
        /// Its mode.
        mode: Mode,
        /// How long it has run.
        age: Duration,
    },
    /// A [`Action::Start`] was not possible.
    NotStarted(RunId, NotStarted),
    /// A DSCP value was released, by whomever.
    DscpMayBeFree,
    /// Somebody wants a running job to end.
    Cancel(RunId),
    /// A runner's process is gone.
    Ended(RunId),
    /// The scheduler was asked to stop.
    Terminate,
    /// The time of [`State::deadline`] has come.
    Time,
}

/// Why a job was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStarted {
    /// It left the queue in the meantime (cancelled).
    Gone,
    /// Every DSCP value is held; the job stays queued.
    NoDscp,
    /// The system cannot start another process just now; the job stays queued.
    Busy,
    /// It cannot be started at all and was closed as failed.
    Failed,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start the runner; answer with [`Event::NotStarted`] when that fails.
    Start(RunId),
    /// Send SIGTERM to the runner.
    Terminate(RunId),
    /// Send SIGKILL to the runner.
    Kill(RunId),
    /// The runner is gone: record how it ended and free what it held.
    Close {
        /// The job.
        run_id: RunId,
        /// Why it was made to end, if it was.
        cause: Option<EndCause>,
        /// Whether it had to be killed, so that what it left must be reconciled.
        killed: bool,
    },
    /// Nothing runs any more and the scheduler was asked to stop.
    Exit,
}

/// Why the scheduler made a job end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// Somebody cancelled it.
    Cancelled,
    /// It exceeded the time limit.
    TimedOut,
    /// The scheduler was told twice to stop.
    Shutdown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    run_id: RunId,
    mode: Mode,
    /// Ascending in the order of the queue.
    place: u64,
    /// How many later jobs started while this one could have.
    overtaken: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running { until: Duration },
    Ending { cause: EndCause, kill_at: Duration },
    Killed { cause: EndCause },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    mode: Mode,
    phase: Phase,
    /// What it was in the queue, should it have to go back there.
    waited: Option<Waiting>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Working,
    Draining,
    Cancelling,
}

/// How long starting pauses when the system refused another process.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// Everything that scheduling decides upon.
#[derive(Debug, Clone)]
pub struct State {
    limits: Limits,
    waiting: VecDeque<Waiting>,
    running: BTreeMap<RunId, Running>,
    next_place: u64,
    no_dscp: bool,
    busy_until: Option<Duration>,
    life: Life,
    exited: bool,
}

impl State {
    /// Nothing waits, nothing runs.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            next_place: 0,
            no_dscp: false,
            busy_until: None,
            life: Life::Working,
            exited: false,
        }
    }

    /// Takes in one event and says what to do, in order.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Queue(queue) => self.replace_queue(queue),
            Event::Adopted { run_id, mode, age } => self.adopt(run_id, mode, age, now),
            Event::NotStarted(run_id, why) => self.not_started(&run_id, why, now),
            Event::DscpMayBeFree => self.no_dscp = false,
            Event::Cancel(run_id) => self.end(&run_id, EndCause::Cancelled, now, &mut actions),
            Event::Ended(run_id) => self.ended(run_id, &mut actions),
            Event::Terminate => self.terminate(now, &mut actions),
            Event::Time => {}
        }
        self.pass_time(now, &mut actions);
        self.start(now, &mut actions);
        self.exit(&mut actions);
        actions
    }

    /// When [`Event::Time`] is due, if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let phases = self.running.values().filter_map(|job| match job.phase {
            Phase::Running { until } => Some(until),
            Phase::Ending { kill_at, .. } => Some(kill_at),
            Phase::Killed { .. } => None,
        });
        let retry = (self.life == Life::Working && !self.waiting.is_empty())
            .then_some(self.busy_until)
            .flatten();
        phases.chain(retry).min()
    }

    /// Whether jobs wait because every DSCP value is held.
    #[must_use]
    pub fn waits_for_dscp(&self) -> bool {
        self.no_dscp && self.waiting.iter().any(|job| job.mode != Mode::Detailed)
    }

    /// Whether the scheduler was asked to stop and starts nothing new.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.life != Life::Working
    }

    /// The file is the truth about what waits; only the overtaking counts are ours.
    fn replace_queue(&mut self, queue: Vec<(RunId, Mode)>) {
        let mut before: BTreeMap<RunId, Waiting> = mem::take(&mut self.waiting)
            .into_iter()
            .map(|job| (job.run_id.clone(), job))
            .collect();
        for (run_id, mode) in queue {
            // A job on its way from the queue to the running ones is seen in both.
            if self.running.contains_key(&run_id) {
                continue;
            }
            let place = self.next_place;
            self.next_place += 1;
            let known = before.remove(&run_id);
            self.waiting.push_back(known.unwrap_or(Waiting {
                run_id,
                mode,
                place,
                overtaken: 0,
            }));
        }
    }

    fn adopt(&mut self, run_id: RunId, mode: Mode, age: Duration, now: Duration) {
        self.waiting.retain(|job| job.run_id != run_id);
        let until = now + self.limits.time(mode).saturating_sub(age);
        self.running.entry(run_id).or_insert(Running {
            mode,
            phase: Phase::Running { until },
            waited: None,
        });
    }

    fn not_started(&mut self, run_id: &RunId, why: NotStarted, now: Duration) {
        let job = self.running.remove(run_id);
        match why {
            NotStarted::Gone | NotStarted::Failed => return,
            NotStarted::NoDscp => self.no_dscp = true,
            NotStarted::Busy => self.busy_until = Some(now + BUSY_PAUSE),
        }
        if let Some(waited) = job.and_then(|job| job.waited) {
            let after = |job: &Waiting| job.place > waited.place;
            let index = self.waiting.iter().position(after);
            self.waiting
                .insert(index.unwrap_or(self.waiting.len()), waited);
        }
    }

    /// The first cause stays: a cancelled job that then runs out of time was cancelled.
    fn end(&mut self, run_id: &RunId, cause: EndCause, now: Duration, actions: &mut Vec<Action>) {
        let Some(job) = self.running.get_mut(run_id) else {
            return;
        };
        if matches!(job.phase, Phase::Running { .. }) {
            let kill_at = now + self.limits.grace;
            job.phase = Phase::Ending { cause, kill_at };
            actions.push(Action::Terminate(run_id.clone()));
        }
    }

    fn ended(&mut self, run_id: RunId, actions: &mut Vec<Action>) {
        let Some(job) = self.running.remove(&run_id) else {
            return;
        };
        let (cause, killed) = match job.phase {
            Phase::Running { .. } => (None, false),
            Phase::Ending { cause, .. } => (Some(cause), false),
            Phase::Killed { cause } => (Some(cause), true),
        };
        self.no_dscp = false;
        self.busy_until = None;
        actions.push(Action::Close {
            run_id,
            cause,
            killed,
        });
    }

    fn terminate(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.life == Life::Working {
            self.life = Life::Draining;
            return;
        }
        self.life = Life::Cancelling;
        let all: Vec<RunId> = self.running.keys().cloned().collect();
        for run_id in all {
            self.end(&run_id, EndCause::Shutdown, now, actions);
        }
    }

    fn pass_time(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.busy_until.is_some_and(|until| until <= now) {
            self.busy_until = None;
        }
        let grace = self.limits.grace;
        for (run_id, job) in &mut self.running {
            match job.phase {
                Phase::Running { until } if until <= now => {
                    job.phase = Phase::Ending {
                        cause: EndCause::TimedOut,
                        kill_at: now + grace,
                    };
                    actions.push(Action::Terminate(run_id.clone()));
                }
                Phase::Ending { cause, kill_at } if kill_at <= now => {
                    job.phase = Phase::Killed { cause };
                    actions.push(Action::Kill(run_id.clone()));
                }
                _ => {}
            }
        }
    }

    fn start(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.life != Life::Working || self.busy_until.is_some() {
            return;
        }
        while let Some(job) = self.next().and_then(|index| self.waiting.remove(index)) {
            let until = now + self.limits.time(job.mode);
            let running = Running {
                mode: job.mode,
                phase: Phase::Running { until },
                waited: Some(job.clone()),
            };
            self.running.insert(job.run_id.clone(), running);
            actions.push(Action::Start(job.run_id));
        }
    }

    /// The place in the queue of the job that starts next.
    fn next(&mut self) -> Option<usize> {
        if self.running.len() >= self.limits.total {
            return None;
        }
        let quick = self.first(Mode::Quick).filter(|_| !self.no_dscp);
        let detailed = self.first(Mode::Detailed);
        let check = self.first(Mode::Check).filter(|_| !self.no_dscp);
        let first = self.before(quick, detailed);
        self.before(first, check)
    }

    /// Which of two starts: the first, unless that has overtaken the second often enough.
    fn before(&mut self, first: Option<usize>, second: Option<usize>) -> Option<usize> {
        let (Some(one), Some(other)) = (first, second) else {
            return first.or(second);
        };
        if one < other {
            return first;
        }
        let waiting = self.waiting.get_mut(other)?;
        if waiting.overtaken >= self.limits.overtakes {
            return second;
        }
        waiting.overtaken += 1;
        first
    }

    /// The first waiting job of a lane that has room.
    fn first(&self, lane: Mode) -> Option<usize> {
        let running = self.running.values().filter(|job| job.mode.lane() == lane);
        (running.count() < self.limits.jobs(lane))
            .then(|| self.waiting.iter().position(|job| job.mode.lane() == lane))
            .flatten()
    }

    fn exit(&mut self, actions: &mut Vec<Action>) {
        if self.life != Life::Working && self.running.is_empty() && !self.exited {
            self.exited = true;
            actions.push(Action::Exit);
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
