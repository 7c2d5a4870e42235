//! From the question to the report.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{
    DetailedClosing, DetailedError, DetailedJob, Setup,
    connect::PAYLOAD,
    files::MeasuredFile,
    map::LabMap,
    millis,
    plan::Planner,
    question::{Asking, DetailedAnswers, Question},
    result::{DetailedReport, DetailedTiming, ServiceTest},
    rounds::{LockTimes, Rounds},
    steer::ask_copies,
};
use crate::{
    config::Config,
    lab::Lab,
    model::WithCauses,
    netns::{NetnsDir, tool::Tools},
    registry::{JobInfo, JobType, RegistryManager, Wait},
    run::{
        caretaker::Caretaker,
        interrupt::Interrupt,
        left,
        progress::{Phase, Progress},
    },
};

/// What a detailed job does, with the share of its time that it usually takes.
pub(super) const PHASES: &[Phase] = &[
    ("resolving", 5),
    ("waiting", 15),
    ("measuring", 70),
    ("undoing", 10),
];

/// A result, and the sockets that are left to close.
///
/// Closing a socket that owned a table waits for the kernel to settle, 10 to 16 ms. All that
/// matters is undone by then, so print the result first and drop this afterwards.
#[derive(Debug)]
pub struct DetailedAnswer {
    /// The result.
    pub report: DetailedReport,
    /// The sockets.
    pub closing: Vec<DetailedClosing>,
}

/// Runs the job.
///
/// # Errors
/// [`DetailedError`] when it could not be run; everything was undone then, or the log says what is
/// left. What could not be undone after a measurement that worked is a warning in the report.
pub fn run(job: &DetailedJob, config: &Config) -> Result<DetailedAnswer, DetailedError> {
    let progress = Progress::new(job.progress.as_deref(), PHASES);
    let progress = progress.map_err(|source| DetailedError::Progress {
        path: job.progress.clone().unwrap_or_default(),
        source,
    })?;
    run_telling(job, config, progress)
}

pub(super) fn run_telling(
    job: &DetailedJob,
    config: &Config,
    progress: Progress,
) -> Result<DetailedAnswer, DetailedError> {
    let (started, started_at) = (Instant::now(), now());
    let interrupt = Interrupt::current().map_err(DetailedError::system("learn of signals"))?;
    let progress = Mutex::new(progress);
    let lab = Lab::open(config, &job.lab)?;
    let (of, run_id) = (config.clone(), job.run_id.clone());
    interrupt.at_stop(move || left::of_run(&of, &run_id));
    let registry = RegistryManager::open(config)?;
    let dir = NetnsDir::default().patient(job.lock_timeout);
    let map = LabMap::new(&lab);
    let mut caretaker = Caretaker::new(&dir, config).leaving_taps();
    let mut planner = Planner::new(job, &map, &dir);
    let asked = Asking { job, lab: &lab };
    let mut question = asked.question(&mut planner, &mut caretaker)?;
    let resolve = started.elapsed();
    let tools = Tools::new(config.tool_dirs.clone());
    let steps = Steps::new(&progress, question.steps());
    let measured = job.out.as_deref().map(MeasuredFile::begin).transpose()?;
    let keep = |service, test: &ServiceTest| {
        if let Some(measured) = &measured {
            measured.add(service, test);
        }
    };
    let setup = Setup {
        run_id: &job.run_id,
        registry: &registry,
        source_port: job.source_port,
        size: job.size,
        timeout: job.timeout,
        patient: job.patient,
        payload: payload()?,
        map: &map,
        tools: &tools,
        dir: &dir,
        interrupt: &interrupt,
        done: &|| steps.one(),
        keep: &keep,
        unchanged: &|| lab.check_unchanged(config),
    };
    let wait = Wait::at_most(job.lock_timeout).or_until(interrupt.cancel().clone());
    let mut rounds = Rounds::new(&setup, planner, wait, caretaker, |phase| steps.enter(phase));
    let result = question.measure(&mut rounds, registry.job(info(job)));
    let held = std::mem::take(&mut rounds.held);
    result.inspect_err(|_| {
        let left = held.left.iter();
        left.for_each(|failure| tracing::error!("{}", WithCauses(failure)));
    })?;
    let timing = timing(started, resolve, &held);
    let answers = answers(job, config, &question, &mut rounds);
    let report = assemble(job, answers, held, started_at, timing);
    steps.finish();
    Ok(DetailedAnswer {
        report,
        closing: rounds.closing,
    })
}

/// What the tests amount to, where next hops over several interfaces are asked about one by one.
fn answers(
    job: &DetailedJob,
    config: &Config,
    question: &Question<'_>,
    rounds: &mut Rounds<'_, impl Fn(&str)>,
) -> DetailedAnswers {
    let tests = std::mem::take(&mut rounds.tests);
    let mut answers = question.answers(&mut rounds.planner().sockets, config, &tests);
    let forked = question.forked(&answers.services);
    if !forked.is_empty()
        && let Err(error) = ask_copies(job, config, &mut answers.services, &forked)
    {
        let note = format!("each of several next hops was not asked about: {error}");
        answers.warnings.push(note);
    }
    answers
}

/// What the registry is told of the job.
fn info(job: &DetailedJob) -> JobInfo {
    JobInfo {
        run_id: job.run_id.clone(),
        job_type: JobType::Detailed,
        dscp: None,
    }
}

/// The time in whole seconds, RFC 3339.
fn now() -> String {
    let now = jiff::Timestamp::now();
    let whole = jiff::Timestamp::from_second(now.as_second());
    whole.unwrap_or(now).to_string()
}

/// What clients send: nothing that a rule would look for.
fn payload() -> Result<[u8; PAYLOAD], DetailedError> {
    let mut payload = [0; PAYLOAD];
    getrandom::fill(&mut payload).map_err(|e| DetailedError::System {
        what: "draw random numbers",
        source: std::io::Error::other(e.to_string()),
    })?;
    Ok(payload)
}

/// Counts services on routers for the progress.
struct Steps<'a> {
    progress: &'a Mutex<Progress>,
    done: std::sync::atomic::AtomicUsize,
    total: usize,
}

impl<'a> Steps<'a> {
    fn new(progress: &'a Mutex<Progress>, total: usize) -> Self {
        Self {
            progress,
            done: 0.into(),
            total,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Progress)) {
        let lock = self.progress.lock();
        change(&mut lock.unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn enter(&self, phase: &str) {
        self.with(|progress| progress.enter(phase));
    }

    fn one(&self) {
        let done = 1 + self.done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.with(|progress| progress.part(done, self.total));
    }

    fn finish(&self) {
        self.with(Progress::finish);
    }
}

fn timing(started: Instant, resolve: Duration, held: &LockTimes) -> DetailedTiming {
    DetailedTiming {
        resolve: millis(resolve),
        hosts: millis(held.hosts),
        lock: millis(held.waited),
        measure: millis(held.measured),
        undo: millis(held.undone),
        total: millis(started.elapsed()),
    }
}

fn assemble(
    job: &DetailedJob,
    answers: DetailedAnswers,
    held: LockTimes,
    started_at: String,
    timing_ms: DetailedTiming,
) -> DetailedReport {
    let DetailedAnswers {
        routers,
        services,
        mut warnings,
    } = answers;
    warnings.extend(held.notes);
    warnings.extend(held.left.iter().map(|e| WithCauses(e).to_string()));
    DetailedReport {
        started_at,
        lab: job.lab.clone(),
        run_id: job.run_id.clone(),
        source: job.source,
        source_port: job.source_port,
        destination: job.destination,
        routers,
        services,
        locks: held.locks,
        warnings,
        timing_ms,
    }
}
