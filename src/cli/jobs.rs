//! `tsim queue`, `cancel` and `result`: the queue from the command line; `tsim submit` is beside.
//!
//! They work on the queue's files, so they need no scheduler to run; one that runs sees the change
//! at once.

use std::{
    io::{self, Write},
    sync::Arc,
};

use clap::Args;
use jiff::Timestamp;
use nix::unistd::{User, getuid};
use serde::Serialize;

use super::{
    Context, Exit, Failure, Run, complete, matrix, question::layout, start::Standing,
    table::write_table,
};
use crate::{
    model::{DidYouMean, RunId, alike},
    run::report::{QuickReport, Verdict},
    sched::{
        history::Page,
        job::{FinishedJob, Mode, Params, Status, UserName, Verdicts},
        leader,
        queue::{Cancelled, Jobs},
        runner::{REPORT_TEXT, RESULT},
        spool::{Spool, SpoolError},
    },
};

/// The name given, or the login name of the calling user.
pub(super) fn user(given: Option<UserName>, context: &Context) -> Result<UserName, Failure> {
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

pub(super) fn warn_without_scheduler(spool: &Spool) -> Result<(), Failure> {
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
    #[arg(add = complete::jobs())]
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
                return Err(no_job(&spool, &run_id)?);
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
    #[arg(add = complete::jobs())]
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
            return Err(match (running, waits) {
                (true, _) => {
                    let text = format!("job {run_id} is running: see `tsim watch {run_id}`");
                    Failure::cannot_run(text)
                }
                (_, Some(place)) => {
                    Failure::cannot_run(format!("job {run_id} waits as number {place}"))
                }
                _ => no_job(&spool, run_id)?,
            });
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

/// Jobs that are over and that a name is compared with which nothing has.
const COMPARED: usize = 100;

/// What a command says that was given the name of no job.
pub(super) fn no_job(spool: &Spool, run_id: &RunId) -> Result<Failure, SpoolError> {
    let jobs = spool.jobs()?;
    let running = jobs.running.iter().map(|job| job.run_id.to_string());
    let queued = jobs.queued.iter().map(|job| job.run_id.to_string());
    let page = spool.history(None, COMPARED)?;
    let over = page.jobs.iter().map(|job| job.run_id.to_string());
    let names: Vec<String> = running.chain(queued).chain(over).collect();
    let alike = alike(run_id.as_str(), names.iter().map(String::as_str));
    let hint = DidYouMean(alike);
    Ok(Failure::usage(format!("there is no job {run_id}{hint}")))
}

/// The exit code of a job that is done: that of its verdicts, and never better than its runner's
/// own. One whose verdicts cannot be told is not known.
pub(super) fn exit_of(job: &FinishedJob) -> Exit {
    let runner = job.exit_code.map_or(Verdict::Yes, |code| match code {
        0 => Verdict::Yes,
        1 => Verdict::No,
        _ => Verdict::Unknown,
    });
    let counted = match job.verdicts {
        Some(Verdicts { unknown: 1.., .. }) => Verdict::Unknown,
        Some(Verdicts { no: 1.., .. }) => Verdict::No,
        Some(Verdicts { yes: 1.., .. }) => Verdict::Yes,
        _ => Verdict::Unknown,
    };
    match (runner, counted) {
        (Verdict::Unknown, _) | (_, Verdict::Unknown) => Verdict::Unknown.into(),
        (Verdict::No, _) | (_, Verdict::No) => Verdict::No.into(),
        (Verdict::Yes, Verdict::Yes) => Verdict::Yes.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(exit_code: Option<i32>, verdicts: Option<[u64; 3]>) -> FinishedJob {
        let now = Timestamp::UNIX_EPOCH;
        let params = serde_json::json!({"lab": "l", "source": "10.0.0.1",
            "destination": "10.0.0.2", "ports": "80"});
        FinishedJob {
            run_id: RunId::new("r").unwrap(),
            username: UserName::new("ann").unwrap(),
            status: Status::Done,
            mode: Mode::Quick,
            dscp: None,
            created_at: now,
            started_at: Some(now),
            finished_at: now,
            params: serde_json::from_value(params).unwrap(),
            exit_code,
            verdicts: verdicts.map(|[yes, no, unknown]| Verdicts { yes, no, unknown }),
            bytes: None,
            reason: None,
        }
    }

    #[test]
    fn only_yes_everywhere_is_success() {
        for (code, verdicts, want) in [
            (Some(0), Some([2, 0, 0]), Exit::Ok),
            (None, Some([2, 0, 0]), Exit::Ok),
            (Some(1), Some([1, 1, 0]), Exit::SomeNo),
            (Some(3), Some([1, 1, 1]), Exit::SomeUnknown),
            // The runner knows better than what was counted, and the other way round.
            (Some(3), Some([2, 0, 0]), Exit::SomeUnknown),
            (Some(0), Some([1, 1, 0]), Exit::SomeNo),
            // Nothing was counted, so nothing is known.
            (Some(0), Some([0, 0, 0]), Exit::SomeUnknown),
            (Some(0), None, Exit::SomeUnknown),
            (None, None, Exit::SomeUnknown),
        ] {
            assert_eq!(exit_of(&job(code, verdicts)), want, "{code:?} {verdicts:?}");
        }
    }
}
