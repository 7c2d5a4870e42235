//! `tsim submit`, `queue`, `cancel` and `result`: the queue from the command line.
//!
//! They work on the queue's files, so they need no scheduler to run; one that runs sees the change
//! at once.

use std::{
    io::{self, Write},
    net::IpAddr,
    sync::Arc,
};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use nix::unistd::{User, getuid};
use serde::Serialize;
use serde_json::Map;

use super::{
    Context, Exit, Failure, Run, matrix, question::layout, start::Standing, table::write_table,
};
use crate::{
    model::{LabName, RouterName, RunId},
    run::report::QuickReport,
    sched::{
        admission::{self, NotAdmitted},
        history::Page,
        job::{FinishedJob, Mode, NewJob, Params, Status, UserName, fresh_run_id},
        leader,
        queue::{Cancelled, Jobs, SubmitError},
        runner::{REPORT_TEXT, RESULT},
        spool::{Spool, SpoolError},
    },
};

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Self {
        Self::cannot_run(error)
    }
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Taken { .. } => Self::usage(error),
            other => Self::cannot_run(other),
        }
    }
}

impl From<NotAdmitted> for Failure {
    fn from(error: NotAdmitted) -> Self {
        if error.is_asked_wrong() {
            Self::usage(error)
        } else {
            Self::cannot_run(error)
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeArg {
    Quick,
    Detailed,
}

const SUBMIT_EXAMPLES: &str = "\
Examples:
  tsim submit quick --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P ssh,https,53/udp
  tsim submit detailed --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P https --routers dc-gw,br-gw
  tsim submit quick --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P 1-1024 --run-id change-4711 --json

It prints the job's name (run id) and place and does not wait: `tsim watch RUN` does.";

/// Puts a job into the queue and prints its run id and its place
#[derive(Debug, Args)]
#[command(after_help = SUBMIT_EXAMPLES)]
pub(super) struct Submit {
    /// How to measure
    mode: ModeArg,
    /// Lab to measure in
    #[arg(long, value_name = "NAME")]
    lab: LabName,
    /// Source address
    #[arg(short, long, value_name = "ADDRESS")]
    source: IpAddr,
    /// Destination address
    #[arg(short, long, value_name = "ADDRESS")]
    destination: IpAddr,
    /// Services, e.g. `22,80,443/tcp,53/udp,8000-8100`
    #[arg(short = 'P', long, value_name = "LIST")]
    ports: String,
    /// Routers to measure; without, the path is traced
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    routers: Option<Vec<RouterName>>,
    /// Give verdicts also where the lab lacks something of the facts that can change them
    #[arg(long)]
    trust_facts: bool,
    /// Name of the job; asking twice for the same job under the same name is asking once
    #[arg(long, value_name = "ID")]
    run_id: Option<RunId>,
    /// On whose behalf [default: the login name]
    #[arg(long, value_name = "NAME")]
    user: Option<UserName>,
}

impl Run for Submit {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let mode = match self.mode {
            ModeArg::Quick => Mode::Quick,
            ModeArg::Detailed => Mode::Detailed,
        };
        let now = Timestamp::now();
        let mut extra = Map::new();
        if self.trust_facts {
            extra.insert("trust_facts".to_owned(), true.into());
        }
        let params = Params {
            lab: self.lab,
            source: self.source,
            destination: self.destination,
            ports: self.ports,
            routers: self.routers,
            extra,
        };
        admission::check(&params, &context.config)?;
        let run_id = match self.run_id {
            Some(run_id) => run_id,
            None => fresh_run_id(mode, now)?,
        };
        let job = NewJob {
            run_id,
            username: user(self.user, context)?,
            mode,
            params,
        };
        let spool = Spool::open(&context.config)?;
        let most = context.config.scheduler.max_queued;
        let submitted = spool.lock()?.submit(job, most, now)?;
        context.print(&submitted, |out| {
            write!(out, "{} {}", submitted.run_id, submitted.status)?;
            match submitted.position {
                Some(position) => writeln!(out, ", number {position} of the waiting {mode} jobs"),
                None => writeln!(out),
            }
        })?;
        warn_without_scheduler(&spool)?;
        Ok(Exit::Ok)
    }
}

/// The name given, or the login name of the calling user.
fn user(given: Option<UserName>, context: &Context) -> Result<UserName, Failure> {
    if let Some(user) = given {
        return Ok(user);
    }
    // Inside a user namespace everybody is root.
    if let Standing::Inside(keeper, _) = &context.standing {
        return UserName::new(keeper.user.clone()).map_err(Failure::cannot_run);
    }
    let uid = getuid();
    let user = User::from_uid(uid).map_err(io::Error::from)?;
    let name = user.map_or_else(|| format!("uid {uid}"), |user| user.name);
    UserName::new(name).map_err(Failure::cannot_run)
}

fn warn_without_scheduler(spool: &Spool) -> Result<(), Failure> {
    if !leader::is_led(spool)? {
        tracing::warn!("no scheduler is running: jobs wait until tsimd is started");
    }
    Ok(())
}

/// Lists running and waiting jobs, and the latest that are over
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim queue\n  tsim queue --history 100 --json")]
pub(super) struct Queue {
    /// How many finished jobs to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    history: usize,
}

#[derive(Serialize)]
struct Listing<'a> {
    scheduler: bool,
    running: &'a [crate::sched::job::RunningJob],
    queued: &'a [Arc<crate::sched::job::QueuedJob>],
    history: &'a [FinishedJob],
}

impl Run for Queue {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let spool = Spool::open(&context.config)?;
        let jobs = spool.jobs()?;
        let page = spool.history(None, self.history)?;
        let listing = Listing {
            scheduler: leader::is_led(&spool)?,
            running: &jobs.running,
            queued: &jobs.queued,
            history: &page.jobs,
        };
        context.print(&listing, |out| print_jobs(out, &jobs, &page))?;
        if jobs.unreadable > 0 {
            let count = jobs.unreadable;
            tracing::warn!(
                count,
                "entries of the queue are no jobs and are left as they are"
            );
        }
        warn_without_scheduler(&spool)?;
        Ok(Exit::Ok)
    }
}

fn print_jobs(out: &mut dyn Write, jobs: &Jobs, page: &Page) -> io::Result<()> {
    let mut rows = Vec::new();
    for job in &jobs.running {
        let dscp = job.dscp.map_or(String::new(), |dscp| dscp.to_string());
        rows.push(row(
            &job.run_id,
            job.status,
            job.mode,
            &job.username,
            &job.params,
            dscp,
        ));
    }
    for job in &jobs.queued {
        let place = jobs
            .position(&job.run_id)
            .map_or(String::new(), |n| format!("#{n}"));
        let mode = job.analysis_mode;
        rows.push(row(
            &job.run_id,
            job.status,
            mode,
            &job.username,
            &job.params,
            place,
        ));
    }
    for job in &page.jobs {
        let verdicts = job
            .verdicts
            .map(|v| format!("{} yes, {} no, {} unknown", v.yes, v.no, v.unknown));
        let note = verdicts.or_else(|| job.reason.clone()).unwrap_or_default();
        rows.push(row(
            &job.run_id,
            job.status,
            job.mode,
            &job.username,
            &job.params,
            note,
        ));
    }
    if rows.is_empty() {
        return writeln!(out, "no jobs");
    }
    let head = [
        "RUN ID", "STATUS", "MODE", "USER", "LAB", "FROM", "TO", "NOTE",
    ];
    write_table(out, head, &rows)
}

fn row(
    run_id: &RunId,
    status: Status,
    mode: Mode,
    user: &UserName,
    params: &Params,
    note: String,
) -> [String; 8] {
    [
        run_id.to_string(),
        status.to_string(),
        mode.to_string(),
        user.to_string(),
        params.lab.to_string(),
        params.source.to_string(),
        params.destination.to_string(),
        note,
    ]
}

/// Cancels a waiting or running job
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tsim cancel change-4711")]
pub(super) struct Cancel {
    /// The job
    run_id: RunId,
    /// On whose behalf [default: the login name]
    #[arg(long, value_name = "NAME")]
    user: Option<UserName>,
}

impl Run for Cancel {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let spool = Spool::open(&context.config)?;
        let user = user(self.user, context)?;
        let run_id = self.run_id;
        let cancelled = spool.lock()?.cancel(&run_id, &user, Timestamp::now())?;
        let (text, status) = match &cancelled {
            Cancelled::Queued(_) => ("cancelled before it started", Status::Cancelled),
            Cancelled::Running => ("is being ended", Status::Running),
            Cancelled::Over(status) => ("is over already", *status),
            Cancelled::Unknown => {
                return Err(Failure::usage(format!("there is no job {run_id}")));
            }
        };
        let value = serde_json::json!({"run_id": run_id, "status": status});
        context.print(&value, |out| writeln!(out, "{run_id} {text}"))?;
        Ok(Exit::Ok)
    }
}

/// Prints the result of a job that is over; the exit code is that of its verdicts
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim result change-4711\n  tsim result change-4711 --json")]
pub(super) struct Show {
    /// The job
    run_id: RunId,
}

impl Run for Show {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let spool = Spool::open(&context.config)?;
        let run_id = &self.run_id;
        let Some(job) = spool.finished(run_id)? else {
            let jobs = spool.jobs()?;
            let running = jobs.running.iter().any(|job| job.run_id == *run_id);
            let waits = jobs.position(run_id);
            return Err(Failure::cannot_run(match (running, waits) {
                (true, _) => format!("job {run_id} is running: see `tsim watch {run_id}`"),
                (_, Some(place)) => format!("job {run_id} waits as number {place}"),
                _ => format!("there is no job {run_id}"),
            }));
        };
        if job.status != Status::Done {
            let reason = job.reason.unwrap_or_default();
            return Err(Failure::cannot_run(format!(
                "job {run_id} {}: {reason}",
                job.status
            )));
        }
        print_result(context, &spool, &job)?;
        Ok(exit_of(&job))
    }
}

/// As JSON the runner's own output byte for byte; as text the matrix of a quick job, and the report
/// that a detailed one wrote beside it.
fn print_result(context: &Context, spool: &Spool, job: &FinishedJob) -> Result<(), Failure> {
    let detailed = job.mode == Mode::Detailed;
    let name = if detailed && !context.json {
        REPORT_TEXT
    } else {
        RESULT
    };
    let Some(mut file) = spool.run_file(&job.run_id, name)? else {
        return Err(Failure::cannot_run(format!(
            "job {} left no {name}",
            job.run_id
        )));
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let printed = if context.json || detailed {
        io::copy(&mut file, &mut out).map(drop)
    } else {
        let report: QuickReport =
            serde_json::from_reader(io::BufReader::new(file)).map_err(io::Error::from)?;
        matrix::print(&mut out, &report, layout())
    };
    match printed.and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

pub(super) fn exit_of(job: &FinishedJob) -> Exit {
    match job.verdicts {
        Some(verdicts) if verdicts.unknown > 0 => Exit::SomeUnknown,
        Some(verdicts) if verdicts.no > 0 => Exit::SomeNo,
        _ => Exit::Ok,
    }
}
