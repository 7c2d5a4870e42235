//! `tsim submit`: puts a job into the queue.

use std::{
    net::IpAddr,
    num::NonZeroU16,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Map;

use super::{
    Context, Exit, Failure, Run,
    ask::{self, At, ChangesGo},
    complete,
    jobs::{user, warn_without_scheduler},
    question::{Explain, read_trace, seconds},
};
use crate::{
    firewall::backend::BackendChoice,
    lab::trace::EntryName,
    model::{Dscp, LabName, Protocol, RouterName, RunId},
    sched::{
        admission,
        job::{Mode, NewJob, Params, UserName, fresh_run_id},
        options::Options,
        queue::{QueueLimits, Submitted},
        spool::Spool,
    },
};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeArg {
    Quick,
    Detailed,
}

const EXAMPLES: &str = "\
Examples:
  tsim submit quick --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P ssh,https,53/udp
  tsim submit detailed --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P https --routers dc-gw,br-gw
  tsim submit quick --lab corp10 -s 8.8.8.8 -d 10.2.1.60 -P 443 --from hq-gw:isp2 --trust-facts
  tsim submit quick --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P 1-1024 --run-id change-4711 --json

It prints the job's name (run id) and place and does not wait: `tsim watch RUN` does. A scheduler that
runs is asked, and takes the job under the caller's name; otherwise it waits in the queue of who may
write that.";

/// Puts a job into the queue and prints its run id and its place
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Submit {
    /// How to measure
    mode: ModeArg,
    /// Lab to measure in
    #[arg(long, value_name = "NAME", add = complete::labs())]
    lab: LabName,
    /// Source address
    #[arg(short, long, value_name = "ADDRESS")]
    source: IpAddr,
    /// Destination address
    #[arg(short, long, value_name = "ADDRESS")]
    destination: IpAddr,
    /// Services, e.g. `22,80,443/tcp,53/udp,8000-8100,@web,@FILE`
    #[arg(short = 'P', long, value_name = "LIST", add = complete::services())]
    ports: String,
    /// Routers to measure; without, the path is traced
    #[arg(long, value_name = "NAMES", value_delimiter = ',', add = complete::routers())]
    routers: Option<Vec<RouterName>>,
    #[command(flatten)]
    told: Told,
    /// Name of the job; asking twice for the same job under the same name is asking once
    #[arg(long, value_name = "ID")]
    run_id: Option<RunId>,
    /// On whose behalf [default: the login name]; others' only for administrators
    #[arg(long, value_name = "NAME")]
    user: Option<UserName>,
    #[command(flatten)]
    pub(super) at: At,
}

/// The body of a request that submits a job.
#[derive(Serialize)]
struct Submission<'a> {
    mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<UserName>,
    #[serde(flatten)]
    params: &'a Params,
}

/// The runners' options, as they are typed.
#[derive(Debug, Args)]
struct Told {
    /// Router, or its interface, where the packets enter the lab [default: wherever they may]
    #[arg(long, value_name = "ROUTER[:INTERFACE]", add = complete::routers())]
    from: Option<EntryName>,
    /// Give verdicts also where the lab lacks something of the facts that can change them
    #[arg(long)]
    trust_facts: bool,
    /// Enter where this trace does, as `tsim trace --json` prints it; its content is submitted
    #[arg(long, value_name = "FILE", conflicts_with = "routers")]
    trace: Option<PathBuf>,
    /// Protocol of services that name none [default: tcp]
    #[arg(long, value_name = "PROTO")]
    default_proto: Option<Protocol>,
    /// Source port [default: one that was not used before]
    #[arg(long, value_name = "PORT")]
    sport: Option<NonZeroU16>,
    /// Seconds to wait for router locks [default: from the scheduler's configuration]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    lock_timeout: Option<Duration>,
    /// Quick: whether to find out what stops a blocked service
    #[arg(long, value_name = "WHEN")]
    explain: Option<Explain>,
    /// Quick: what measures: auto, nft, iptables-nft or iptables-legacy
    #[arg(long, value_name = "NAME")]
    backend: Option<BackendChoice>,
    /// Quick: DSCP that the routers' own rules see in the probes
    #[arg(long, value_name = "N")]
    probe_dscp: Option<Dscp>,
    /// Detailed: seconds to wait for an answer of which nothing is known
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Detailed: wait that long for every answer
    #[arg(long)]
    patient: bool,
}

impl Told {
    fn resolve(self) -> Result<Options, Failure> {
        let trace = self.trace.as_deref().map(read_trace).transpose()?;
        Ok(Options {
            from: self.from,
            trust_facts: self.trust_facts,
            default_proto: self.default_proto,
            sport: self.sport,
            lock_timeout: self.lock_timeout.map(|time| time.as_secs_f64()),
            trace: trace.map(Box::new),
            explain: self.explain.map(Into::into),
            backend: self.backend,
            probe_dscp: self.probe_dscp,
            timeout: self.timeout.map(|time| time.as_secs_f64()),
            patient: self.patient,
        })
    }
}

impl Run for Submit {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let mode = match self.mode {
            ModeArg::Quick => Mode::Quick,
            ModeArg::Detailed => Mode::Detailed,
        };
        let params = Params {
            lab: self.lab,
            source: self.source,
            destination: self.destination,
            ports: context
                .config
                .groups
                .expand(&self.ports, Some(Path::new("")))
                .map_err(Failure::usage)?,
            routers: self.routers,
            options: self.told.resolve()?,
            extra: Map::new(),
        };
        let submission = Submission {
            mode,
            run_id: self.run_id,
            username: self.user,
            params: &params,
        };
        let submitted: Submitted = match &context.client {
            Some(client) => client.post("/jobs", &submission)?,
            None => match ask::where_changes_go(context)? {
                ChangesGo::Scheduler(client) => client.post("/jobs", &submission)?,
                ChangesGo::Files(spool) => {
                    let Submission {
                        run_id, username, ..
                    } = submission;
                    enqueue(context, &spool, mode, params, run_id, username)?
                }
            },
        };
        context.print(&submitted, |out| {
            write!(out, "{} {}", submitted.run_id, submitted.status)?;
            match submitted.position {
                Some(position) => writeln!(out, ", number {position} of the waiting {mode} jobs"),
                None => writeln!(out),
            }
        })?;
        Ok(Exit::Ok)
    }
}

/// Puts the job into the queue's files, for a scheduler that is started later.
fn enqueue(
    context: &Context,
    spool: &Spool,
    mode: Mode,
    params: Params,
    run_id: Option<RunId>,
    user_name: Option<UserName>,
) -> Result<Submitted, Failure> {
    let now = Timestamp::now();
    admission::check(&params, mode, &context.config)?;
    let run_id = match run_id {
        Some(run_id) => run_id,
        None => fresh_run_id(mode, now)?,
    };
    let job = NewJob {
        run_id,
        username: user(user_name, context)?,
        mode,
        params,
    };
    let most = QueueLimits::of(&context.config);
    let submitted = spool.lock()?.submit(job, most, now)?;
    warn_without_scheduler(spool)?;
    Ok(submitted)
}
