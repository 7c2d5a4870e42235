//! `tsim queue` and `cancel`: the queue from the command line; `tsim submit` and `result` are beside.
//!
//! A scheduler that runs is asked. Without one they work on the queue's files, for who may use those.

use std::io::{self, Write};

use clap::Args;
use hyper::StatusCode;
use jiff::Timestamp;
use nix::unistd::{User, getuid};
use serde::Deserialize;
use serde_json::json;

use super::{
    Context, Exit, Failure, Run,
    ask::{self, ChangesGo, ServerArgs},
    complete, start,
    table::write_table,
};
use crate::{
    model::{DidYouMean, RunId, alike},
    sched::{
        client::{Client, ClientError},
        job::{Mode, Params, Status, UserName},
        leader,
        queue::{Cancelled, QueueListing, position},
        spool::{Spool, SpoolError},
    },
};

/// The name given, or the login name of the calling user.
pub(super) fn user(given: Option<UserName>, context: &Context) -> Result<UserName, Failure> {
    if let Some(user) = given {
        return Ok(user);
    }
    // Inside a user namespace everybody is root.
    if let start::Standing::Inside(keeper, _) = &context.standing {
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
    #[command(flatten)]
    pub(super) at: ServerArgs,
}

impl Run for Queue {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let listing = match &context.client {
            Some(client) => client.get(&format!("/listing?history={}", self.history))?,
            None => list(context, self.history)?,
        };
        context.print(&listing, |out| print_jobs(out, &listing))?;
        Ok(Exit::Ok)
    }
}

fn list(context: &Context, history: usize) -> Result<QueueListing, Failure> {
    let spool = Spool::open(&context.config)?;
    let jobs = spool.jobs()?;
    let page = spool.history(None, history)?;
    if jobs.unreadable > 0 {
        let count = jobs.unreadable;
        tracing::warn!(
            count,
            "entries of the queue are no jobs and are left as they are"
        );
    }
    warn_without_scheduler(&spool)?;
    Ok(QueueListing {
        scheduler: leader::is_led(&spool)?,
        running: jobs.running,
        waiting: jobs.queued.len(),
        queued: jobs.queued,
        history: page.jobs,
    })
}

fn print_jobs(out: &mut dyn Write, listing: &QueueListing) -> io::Result<()> {
    let mut rows = Vec::new();
    for job in &listing.running {
        let dscp = job.dscp.map_or(String::new(), |dscp| dscp.to_string());
        let (mode, user) = (job.mode, &job.username);
        rows.push(row(&job.run_id, job.status, mode, user, &job.params, dscp));
    }
    for job in &listing.queued {
        let place = position(&listing.queued, &job.run_id);
        let place = place.map_or(String::new(), |n| format!("#{n}"));
        let (mode, user) = (job.analysis_mode, &job.username);
        rows.push(row(&job.run_id, job.status, mode, user, &job.params, place));
    }
    for job in &listing.history {
        let verdicts = job
            .verdicts
            .map(|v| format!("{} yes, {} no, {} unknown", v.yes, v.no, v.unknown));
        let note = verdicts.or_else(|| job.reason.clone()).unwrap_or_default();
        let (mode, user) = (job.mode, &job.username);
        rows.push(row(&job.run_id, job.status, mode, user, &job.params, note));
    }
    if rows.is_empty() {
        return writeln!(out, "no jobs");
    }
    let head = [
        "RUN ID", "STATUS", "MODE", "USER", "LAB", "FROM", "TO", "NOTE",
    ];
    write_table(out, head, &rows)?;
    match listing.waiting - listing.queued.len() {
        0 => Ok(()),
        more => writeln!(out, "and {more} more that wait"),
    }
}

fn row(
    run_id: &RunId,
    status: Status,
    mode: Mode,
    user: &UserName,
    params: &Params,
    note: String,
) -> [String; 8] {
    let [from, to] = params.ends();
    [
        run_id.to_string(),
        status.to_string(),
        mode.to_string(),
        user.to_string(),
        params.lab.to_string(),
        from,
        to,
        note,
    ]
}

/// Cancels a waiting or running job
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tsim cancel change-4711")]
pub(super) struct CancelArgs {
    /// The job
    #[arg(add = complete::jobs())]
    run_id: RunId,
    /// On whose behalf [default: the login name]; others' only for administrators
    #[arg(long, value_name = "NAME")]
    user: Option<UserName>,
    #[command(flatten)]
    pub(super) at: ServerArgs,
}

/// What became of the wish to end a job.
enum Ending {
    Queued,
    Running,
    Over(Status),
    Unknown,
}

impl From<Cancelled> for Ending {
    fn from(cancelled: Cancelled) -> Self {
        match cancelled {
            Cancelled::Queued(_) => Self::Queued,
            Cancelled::Running => Self::Running,
            Cancelled::Over(status) => Self::Over(status),
            Cancelled::Unknown => Self::Unknown,
        }
    }
}

/// Where a job stands, as the scheduler says it.
#[derive(Deserialize)]
struct Standing {
    status: Status,
}

fn ask_to_end(
    client: &Client,
    run_id: &RunId,
    user: Option<&UserName>,
) -> Result<Ending, ClientError> {
    let job = format!("/jobs/{run_id}");
    let asked = client.post(&format!("{job}/cancel"), &json!({"username": user}));
    match asked {
        Ok(Standing {
            status: Status::Running,
        }) => Ok(Ending::Running),
        Ok(_) => Ok(Ending::Queued),
        Err(ClientError::Refused { status, .. }) if status == StatusCode::CONFLICT => {
            let Standing { status } = client.get(&job)?;
            Ok(Ending::Over(status))
        }
        Err(error) => Err(error),
    }
}

impl Run for CancelArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let run_id = self.run_id;
        let cancelled = match &context.client {
            Some(client) => ask_to_end(client, &run_id, self.user.as_ref())?,
            None => match ask::where_changes_go(context)? {
                ChangesGo::Scheduler(client) => ask_to_end(&client, &run_id, self.user.as_ref())?,
                ChangesGo::Files(spool) => {
                    let user = user(self.user, context)?;
                    let lock = spool.lock()?;
                    lock.cancel(&run_id, &user, Timestamp::now())?.into()
                }
            },
        };
        let (text, status) = match cancelled {
            Ending::Queued => ("cancelled before it started", Status::Cancelled),
            Ending::Running => ("is being ended", Status::Running),
            Ending::Over(status) => ("is over already", status),
            Ending::Unknown => {
                return Err(nowhere(context, &run_id)?);
            }
        };
        let value = json!({"run_id": run_id, "status": status});
        context.print(&value, |out| writeln!(out, "{run_id} {text}"))?;
        Ok(Exit::Ok)
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

/// The same where a scheduler may have been asked, which looked.
fn nowhere(context: &Context, run_id: &RunId) -> Result<Failure, Failure> {
    Ok(no_job(&Spool::open(&context.config)?, run_id)?)
}
