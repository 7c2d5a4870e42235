//! `tsim result`: what a job that is over found out.

use std::io::{self, BufReader, Write};

use clap::Args;

use super::{
    Context, Exit, Failure, Run, ask::ServerArgs, complete, jobs::no_job, matrix, question::layout,
};
use crate::{
    model::RunId,
    run::report::{QuickReport, Verdict},
    sched::{
        client::{Client, ClientError},
        job::{FinishedJob, Mode, Status, Verdicts},
        queue::position,
        runner::{MEASURED, REPORT_TEXT, RESULT},
        spool::Spool,
    },
};

/// Prints the result of a job that is over; the exit code is that of its verdicts
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim result change-4711\n  tsim result change-4711 --json")]
pub(super) struct Show {
    /// The job
    #[arg(add = complete::jobs())]
    run_id: RunId,
    /// Of a detailed job that was ended before its result: what it had measured by then, as JSON lines
    #[arg(long)]
    measured: bool,
    #[command(flatten)]
    pub(super) at: ServerArgs,
}

impl Run for Show {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        match &context.client {
            _ if self.measured => measured(context, &self.run_id),
            Some(client) => ask(context, client, &self.run_id),
            None => look(context, &self.run_id),
        }
    }
}

/// Prints what a job without a result had measured. Nothing is known of what it had not.
fn measured(context: &Context, run_id: &RunId) -> Result<Exit, Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = match &context.client {
        Some(client) => {
            let path = format!("/jobs/{run_id}/measured");
            client.read(&path, |part| out.write_all(part))?;
            Ok(())
        }
        None => {
            let spool = Spool::open(&context.config)?;
            let Some(mut file) = spool.run_file(run_id, MEASURED)? else {
                let none = format!("job {run_id} left nothing of that kind");
                return Err(Failure::cannot_run(none));
            };
            io::copy(&mut file, &mut out).map(drop)
        }
    };
    printed(done, out)?;
    Ok(Exit::SomeUnknown)
}

/// From a scheduler, which shows users their own results.
fn ask(context: &Context, client: &Client, run_id: &RunId) -> Result<Exit, Failure> {
    let job = finished(client, run_id)?;
    only_done(&job)?;
    let path = |what: &str| format!("/jobs/{run_id}/{what}");
    let mut out = io::BufWriter::new(io::stdout().lock());
    if job.mode == Mode::Quick && !context.json {
        let report: QuickReport = client.get(&path("result"))?;
        printed(matrix::print(&mut out, &report, layout(context)), out)?;
    } else {
        let path = path(if context.json { "result" } else { "text" });
        match client.read(&path, |part| out.write_all(part)) {
            // The reader has seen enough.
            Err(ClientError::Answer { source, .. })
                if source.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error.into()),
            Ok(()) => printed(Ok(()), out)?,
        }
    }
    Ok(exit_of(&job))
}

/// The job, as the scheduler has it once it is over.
pub(super) fn finished(client: &Client, run_id: &RunId) -> Result<FinishedJob, Failure> {
    let job: serde_json::Value = client.get(&format!("/jobs/{run_id}"))?;
    match job.get("status").and_then(|status| status.as_str()) {
        Some("RUNNING") => Err(running(run_id)),
        Some("QUEUED") => {
            let place = job.get("position").and_then(serde_json::Value::as_u64);
            Err(waits(run_id, place.unwrap_or_default()))
        }
        _ => serde_json::from_value(job).map_err(Failure::cannot_run),
    }
}

/// From the files, for who may read those.
fn look(context: &Context, run_id: &RunId) -> Result<Exit, Failure> {
    let spool = Spool::open(&context.config)?;
    let Some(job) = spool.finished(run_id)? else {
        let jobs = spool.jobs()?;
        if jobs.running.iter().any(|job| job.run_id == *run_id) {
            return Err(running(run_id));
        }
        return Err(match position(&jobs.queued, run_id) {
            Some(place) => waits(run_id, place as u64),
            None => no_job(&spool, run_id)?,
        });
    };
    only_done(&job)?;
    print_result(context, &spool, &job)?;
    Ok(exit_of(&job))
}

fn running(run_id: &RunId) -> Failure {
    Failure::cannot_run(format!(
        "job {run_id} is running: see `tsim watch {run_id}`"
    ))
}

fn waits(run_id: &RunId, place: u64) -> Failure {
    Failure::cannot_run(format!("job {run_id} waits as number {place}"))
}

fn only_done(job: &FinishedJob) -> Result<(), Failure> {
    if job.status == Status::Done {
        return Ok(());
    }
    let reason = job.reason.as_deref().unwrap_or_default();
    let (run_id, status) = (&job.run_id, job.status);
    Err(Failure::cannot_run(format!(
        "job {run_id} {status}: {reason}"
    )))
}

/// As JSON the runner's own output byte for byte; as text the matrix of a quick job, and the report
/// that a detailed one wrote beside it.
fn print_result(context: &Context, spool: &Spool, job: &FinishedJob) -> Result<(), Failure> {
    // What is asked in bulk writes its report as detailed jobs do.
    let detailed = job.mode != Mode::Quick;
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
    let done = if context.json || detailed {
        io::copy(&mut file, &mut out).map(drop)
    } else {
        let report: QuickReport =
            serde_json::from_reader(BufReader::new(file)).map_err(io::Error::from)?;
        matrix::print(&mut out, &report, layout(context))
    };
    printed(done, out)
}

fn printed(done: io::Result<()>, mut out: impl Write) -> Result<(), Failure> {
    match done.and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
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
    // What is known to be otherwise, than a policy says or than before, goes before what is not known.
    let wanted = matches!(job.mode, Mode::Check | Mode::Diff);
    if wanted && matches!(job.verdicts, Some(Verdicts { no: 1.., .. })) {
        return Exit::SomeNo;
    }
    match (runner, counted) {
        (Verdict::Unknown, _) | (_, Verdict::Unknown) => Verdict::Unknown.into(),
        (Verdict::No, _) | (_, Verdict::No) => Verdict::No.into(),
        (Verdict::Yes, Verdict::Yes) => Verdict::Yes.into(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::sched::job::UserName;

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
