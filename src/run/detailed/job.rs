//! From the question to the report.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{
    Closing, DetailedError, DetailedJob, Setup,
    connect::PAYLOAD,
    millis, omitted,
    result::{DetailedReport, RouterTest, RouterWay, ServiceResult, Status, Timing},
    rounds::{Held, Rounds},
    site::{self, Target},
};
use crate::{
    config::Config,
    lab::Lab,
    netns::{NetnsDir, tool::Tools},
    registry::{JobInfo, JobType, RegistryManager, Wait},
    run::{
        caretaker::Caretaker,
        interrupt::Interrupt,
        progress::{Phase, Progress},
        resolve::{self, Part, Question},
        undo::UndoError,
        way::Flow,
    },
};

/// What a detailed job does, with the share of its time that it usually takes.
const PHASES: &[Phase] = &[
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
pub struct Answered {
    /// The result.
    pub report: DetailedReport,
    /// The sockets.
    pub closing: Vec<Closing>,
}

/// Results by router and service.
pub(super) type Tests = BTreeMap<(usize, usize), RouterTest>;

/// Runs the job.
///
/// # Errors
/// [`DetailedError`] when it could not be run; everything was undone then, or the log says what is
/// left. What could not be undone after a measurement that worked is a warning in the report.
pub fn run(job: &DetailedJob, config: &Config) -> Result<Answered, DetailedError> {
    let started = Instant::now();
    let started_at = now();
    let interrupt = Interrupt::watch().map_err(DetailedError::system("watch for signals"))?;
    let progress = Progress::new(job.progress.as_deref(), PHASES);
    let progress = Mutex::new(progress.map_err(|source| DetailedError::Progress {
        path: job.progress.clone().unwrap_or_default(),
        source,
    })?);
    let lab = Lab::open(config, &job.lab)?;
    let registry = RegistryManager::open(config)?;
    let dir = NetnsDir::default();
    let mut caretaker = Caretaker::new(&dir, config).leaving_taps();
    let parts = parts(job, &lab, &dir, &mut caretaker)?;
    let resolve = started.elapsed();

    let tools = Tools::new(config.tool_dirs.clone());
    let steps = Steps::new(&progress, parts.len() * job.services.len());
    let done = || steps.one();
    let setup = Setup {
        run_id: &job.run_id,
        source: job.source,
        source_port: job.source_port,
        destination: job.destination,
        timeout: job.timeout,
        patient: job.patient,
        payload: payload()?,
        tools: &tools,
        dir: &dir,
        interrupt: &interrupt,
        done: &done,
    };
    let info = JobInfo {
        run_id: job.run_id.clone(),
        job_type: JobType::Detailed,
        dscp: None,
    };
    let wait = Wait::at_most(job.lock_timeout).or_until(interrupt.cancel().clone());
    let mut rounds = Rounds::new(&setup, &parts, wait, caretaker, |phase| steps.enter(phase));
    let (result, held) = rounds.run(registry.job(info), targets(job, &parts));
    match result {
        Ok(()) => {
            let timing = timing(started, resolve, &held);
            let report = assemble(job, &parts, rounds.tests, held, started_at, timing);
            steps.finish();
            Ok(Answered {
                report,
                closing: rounds.closing,
            })
        }
        Err(error) => {
            held.left
                .iter()
                .for_each(|failure| tracing::error!("{}", full(failure)));
            Err(error)
        }
    }
}

/// A client's port, for look-ups: connections have others of the same range, which matters only to
/// policy rules about source ports.
const CLIENT_PORT: u16 = 40_000;

/// The time in whole seconds, RFC 3339.
fn now() -> String {
    let now = jiff::Timestamp::now();
    let whole = jiff::Timestamp::from_second(now.as_second());
    whole.unwrap_or(now).to_string()
}

/// What each router's part is.
fn parts(
    job: &DetailedJob,
    lab: &Lab,
    dir: &NetnsDir,
    caretaker: &mut Caretaker,
) -> Result<Vec<Part>, DetailedError> {
    let flow = Flow {
        source: job.source,
        destination: job.destination,
        source_port: job.source_port.unwrap_or(CLIENT_PORT),
        tos: 0,
    };
    let question = Question {
        lab: &job.lab,
        flow: &flow,
        services: &job.services,
        routers: &job.routers,
        trust_facts: job.trust_facts,
    };
    Ok(resolve::parts(
        &question,
        lab,
        dir,
        caretaker.hosts().lab(&job.lab)?,
    )?)
}

/// What to measure at each router that has a source host.
fn targets(job: &DetailedJob, parts: &[Part]) -> Vec<Vec<Target>> {
    let of = |part: &Part| match part.host {
        Ok(_) => site::targets(&part.way, job.destination, &job.services),
        Err(_) => Vec::new(),
    };
    parts.iter().map(of).collect()
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

fn timing(started: Instant, resolve: Duration, held: &Held) -> Timing {
    Timing {
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
    parts: &[Part],
    mut tests: Tests,
    held: Held,
    started_at: String,
    timing_ms: Timing,
) -> DetailedReport {
    let routers: Vec<RouterWay> = parts.iter().map(|part| RouterWay::of(&part.way)).collect();
    let mut test = |router: usize, service: usize| {
        let made = tests.remove(&(router, service));
        made.unwrap_or_else(|| {
            let why = match &parts[router].host {
                Err(why) => why.clone(),
                Ok(_) => "it was not measured".to_owned(),
            };
            RouterTest::not_made(&routers[router], Status::Unknown, why)
        })
    };
    let services = job.services.iter().enumerate();
    let mut weighed = |router: usize, at: usize, service| {
        let mut test = test(router, at);
        omitted::weigh(job, &parts[router], service, &mut test);
        test
    };
    let services = services.map(|(at, &service)| ServiceResult {
        service,
        tests: (0..parts.len())
            .map(|router| weighed(router, at, service))
            .collect(),
    });
    let services = services.collect();
    let mut warnings = held.notes;
    let lacking = parts.iter().filter(|part| !part.omitted.is_empty());
    warnings.extend(lacking.map(|part| {
        format!(
            "router {} lacks something of its facts: see `tsim lab status {}`",
            part.way.router.router, job.lab
        )
    }));
    warnings.extend(held.left.iter().map(full));
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

/// A failure with its causes on one line.
fn full(failure: &UndoError) -> String {
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
