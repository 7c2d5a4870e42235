//! `tsim submit`: puts a job into the queue.

use std::{
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
    ask::{self, ChangesGo, ServerArgs},
    complete,
    jobs::{user, warn_without_scheduler},
    question::{Explain, read_trace, seconds},
};
use crate::{
    bulk::{
        addresses::{Addresses, AskedAddresses},
        policy::{Policy, PolicyText},
    },
    firewall::backend::BackendChoice,
    lab::trace::EntryName,
    model::{Dscp, LabName, Protocol, RouterName, RunId},
    sched::{
        admission,
        job::{Mode, NewJob, Params, UserName, fresh_run_id},
        options::JobOptions,
        queue::{QueueLimits, Submitted},
        spool::Spool,
    },
};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeArg {
    Quick,
    Detailed,
    Check,
    Matrix,
    Diff,
}

/// Modes that ask one question.
const ONE_QUESTION: [(&str, &str); 2] = [("mode", "quick"), ("mode", "detailed")];
/// Modes that ask many.
const IN_BULK: [(&str, &str); 3] = [("mode", "check"), ("mode", "matrix"), ("mode", "diff")];

const EXAMPLES: &str = "\
Examples:
  tsim submit quick --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P ssh,https,53/udp
  tsim submit detailed --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P https --routers dc-gw,br-gw
  tsim submit quick --lab corp10 -s 8.8.8.8 -d 10.2.1.60 -P 443 --from hq-gw:isp2 --trust-facts
  tsim submit quick --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P 1-1024 --run-id change-4711 --json
  tsim submit check policy.toml corp10                   # as `tsim check corp10 policy.toml`
  tsim submit check policy.toml corp10 corp11            # a job for each lab
  tsim submit matrix corp10 -s 10.1.1.0/28 -d 10.3.10.50 -P ssh,@web      # as `tsim matrix corp10 …`
  tsim submit matrix corp10 --networks -P @windows
  tsim submit diff corp10 corp10-new --policy policy.toml                 # as `tsim diff corp10 …`
  tsim submit diff corp10 corp10-new --networks -P @web

The text of a policy is sent with all files that it includes: the scheduler reads none of its own, and \
compares labs that are up. Checks, matrices and diffs come behind quick and detailed jobs, and give routers \
back about twice a second. With --lock-timeout the job waits for its routers as long, too. It prints the \
job's name (run id) and place and does not wait: `tsim watch RUN` does. A scheduler that runs is asked, and \
takes the job under the caller's name; otherwise it waits in the queue of who may write that.";

/// Puts a job into the queue and prints its run id and its place
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Submit {
    /// How to measure
    mode: ModeArg,
    /// Check: a policy and the labs that it is held against; matrix: labs; diff: two labs, BEFORE and
    /// AFTER
    #[arg(value_name = "POLICY|LAB", required_if_eq_any(IN_BULK))]
    named: Vec<String>,
    /// Lab to measure in
    #[arg(long, value_name = "NAME", add = complete::labs(), required_if_eq_any(ONE_QUESTION))]
    lab: Option<LabName>,
    /// Source address; matrix, diff: addresses, ranges and networks, by commas
    #[arg(
        short,
        long,
        value_name = "ADDRESS",
        value_delimiter = ',',
        required_if_eq_any(ONE_QUESTION)
    )]
    source: Vec<Addresses>,
    /// Destination, as the source
    #[arg(
        short,
        long,
        value_name = "ADDRESS",
        value_delimiter = ',',
        required_if_eq_any(ONE_QUESTION)
    )]
    destination: Vec<Addresses>,
    /// Matrix, diff: the lab's end networks as sources and destinations, where none are given
    #[arg(long)]
    networks: bool,
    /// Diff: everything that this policy asks
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "destination", "networks", "ports"])]
    policy: Option<PathBuf>,
    /// Services, e.g. `22,80,443/tcp,53/udp,8000-8100,@web,@FILE`
    #[arg(
        short = 'P',
        long,
        value_name = "LIST",
        add = complete::services(),
        required_if_eq_any(ONE_QUESTION)
    )]
    ports: Option<String>,
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
    pub(super) at: ServerArgs,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a PolicyText>,
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
    /// Quick, check: whether to find out what stops a blocked service
    #[arg(long, value_name = "WHEN")]
    explain: Option<Explain>,
    /// Quick, check: what measures: auto, nft, iptables-nft or iptables-legacy
    #[arg(long, value_name = "NAME")]
    backend: Option<BackendChoice>,
    /// Quick, check: DSCP that the routers' own rules see in the probes
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
    fn resolve(self, context: &Context) -> Result<JobOptions, Failure> {
        let trace = self.trace.as_deref().map(read_trace).transpose()?;
        Ok(JobOptions {
            from: self.from,
            trust_facts: self.trust_facts,
            default_proto: self.default_proto,
            sport: self.sport,
            lock_timeout: context.lock_timeout.map(|time| time.as_secs_f64()),
            trace: trace.map(Box::new),
            explain: self.explain.map(Into::into),
            backend: self.backend,
            probe_dscp: self.probe_dscp,
            timeout: self.timeout.map(|time| time.as_secs_f64()),
            patient: self.patient,
        })
    }
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Quick => Self::Quick,
            ModeArg::Detailed => Self::Detailed,
            ModeArg::Check => Self::Check,
            ModeArg::Matrix => Self::Matrix,
            ModeArg::Diff => Self::Diff,
        }
    }
}

impl Run for Submit {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let mode = Mode::from(self.mode);
        let Named {
            policy,
            before,
            labs,
        } = self.named(context)?;
        let list = |entries: &[Addresses]| match entries {
            [] => Ok(None),
            entries => AskedAddresses::new(entries.iter().copied().map(Ok)).map(Some),
        };
        let source = list(&self.source).map_err(Failure::usage)?;
        let destination = list(&self.destination).map_err(Failure::usage)?;
        let ports = self.ports.map(|ports| {
            let expanded = context.config.groups.expand(&ports, Some(Path::new("")));
            expanded.map_err(Failure::usage)
        });
        let (ports, options) = (ports.transpose()?, self.told.resolve(context)?);
        for lab in labs {
            let params = Params {
                lab,
                before: before.clone(),
                source: source.clone(),
                destination: destination.clone(),
                networks: self.networks,
                ports: ports.clone(),
                policy: None,
                routers: self.routers.clone(),
                options: options.clone(),
                extra: Map::new(),
            };
            let submission = Submission {
                mode,
                run_id: self.run_id.clone(),
                username: self.user.clone(),
                params: &params,
                policy: policy.as_ref(),
            };
            let submitted = submit(context, &submission)?;
            context.print(&submitted, |out| {
                write!(out, "{} {}", submitted.run_id, submitted.status)?;
                match submitted.position {
                    Some(position) => {
                        writeln!(out, ", number {position} of the waiting {mode} jobs")
                    }
                    None => writeln!(out),
                }
            })?;
        }
        Ok(Exit::Ok)
    }
}

/// What a job is about, by name.
struct Named {
    /// The policy with all its files.
    policy: Option<PolicyText>,
    /// The lab that another one is compared with.
    before: Option<LabName>,
    /// The labs that are asked.
    labs: Vec<LabName>,
}

impl Submit {
    fn named(&self, context: &Context) -> Result<Named, Failure> {
        let usage = |text: &str| Err(Failure::usage(text));
        let named = &self.named[..];
        let (policy, before, labs) = match (self.mode, named) {
            (ModeArg::Quick | ModeArg::Detailed, []) => (None, None, None),
            (ModeArg::Quick | ModeArg::Detailed, [found, ..]) => {
                let text = format!("{found:?} is not expected: --lab says the lab");
                return Err(Failure::usage(text));
            }
            (ModeArg::Check, [path, labs @ ..]) if !labs.is_empty() => {
                (Some(Path::new(path)), None, Some(labs))
            }
            (ModeArg::Check, _) => return usage("POLICY and at least one LAB are wanted"),
            (ModeArg::Matrix, labs) => (self.policy.as_deref(), None, Some(labs)),
            (ModeArg::Diff, [before, after @ ..]) if after.len() == 1 => {
                (self.policy.as_deref(), Some(before), Some(after))
            }
            (ModeArg::Diff, _) => return usage("two labs are wanted: BEFORE and AFTER"),
        };
        if labs.is_some() && self.lab.is_some() {
            return usage("--lab: the labs of what is asked in bulk are named without it");
        }
        let parse = |lab: &String| lab.parse::<LabName>().map_err(Failure::usage);
        let labs: Vec<LabName> = match labs {
            Some(labs) => labs.iter().map(parse).collect::<Result<_, _>>()?,
            None => self.lab.iter().cloned().collect(),
        };
        if labs.len() > 1 && self.run_id.is_some() {
            return usage("--run-id names one job, and each lab is one");
        }
        let policy = policy.map(|path| Policy::load(path, &context.config.groups));
        let policy = policy.transpose().map_err(Failure::usage)?;
        Ok(Named {
            policy: policy.map(|policy| policy.text),
            before: before.map(parse).transpose()?,
            labs,
        })
    }
}

/// To the scheduler that runs, or else into the queue's files.
fn submit(context: &Context, submission: &Submission<'_>) -> Result<Submitted, Failure> {
    if let Some(client) = &context.client {
        return Ok(client.post("/jobs", submission)?);
    }
    match ask::where_changes_go(context)? {
        ChangesGo::Scheduler(client) => Ok(client.post("/jobs", submission)?),
        ChangesGo::Files(spool) => enqueue(context, &spool, submission),
    }
}

/// Puts the job into the queue's files, for a scheduler that is started later.
fn enqueue(
    context: &Context,
    spool: &Spool,
    submission: &Submission<'_>,
) -> Result<Submitted, Failure> {
    let now = Timestamp::now();
    let (mode, policy) = (submission.mode, submission.policy);
    let mut params = submission.params.clone();
    admission::with_policy(&mut params, policy, &context.config)?;
    admission::check(&params, mode, &context.config)?;
    let run_id = match &submission.run_id {
        Some(run_id) => run_id.clone(),
        None => fresh_run_id(mode, now)?,
    };
    let job = NewJob {
        run_id,
        username: user(submission.username.clone(), context)?,
        mode,
        params,
        policy: policy.cloned(),
    };
    let most = QueueLimits::of(&context.config);
    let submitted = spool.lock()?.submit(job, most, now)?;
    warn_without_scheduler(spool)?;
    Ok(submitted)
}
