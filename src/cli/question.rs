//! What every job is asked: the arguments that quick and detailed jobs share.

use std::{
    fs,
    io::{self, IsTerminal},
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::Args;

use super::{Context, Exit, Failure, matrix::Layout};
use crate::{
    model::{LabName, Protocol, RouterName, RunId, Service, ServiceLimits, parse_services},
    run::{
        quick::{self, RouterChoice},
        report::Verdict,
    },
};

/// A job's question as typed.
#[derive(Debug, Args)]
pub(super) struct Question {
    /// Lab to measure in
    #[arg(long, value_name = "NAME")]
    lab: LabName,

    /// Source address
    #[arg(short = 's', long, value_name = "ADDRESS")]
    source: IpAddr,

    /// Destination address; it needs no host
    #[arg(short = 'd', long, value_name = "ADDRESS")]
    destination: IpAddr,

    /// Services: `80`, `443/tcp`, `53/udp`, `8000-8100/tcp`, `ssh`, `dns`, `all/tcp`,
    /// `36412/sctp`, `ping`, `esp`, `gre`, `ip/89`, by commas
    #[arg(short = 'P', long = "ports", value_name = "LIST")]
    services: String,

    /// Protocol of entries that name none
    #[arg(long, value_name = "PROTO", default_value = "tcp", value_parser = ["tcp", "udp", "sctp"])]
    default_proto: String,

    /// Most services in one job [default: from the configuration]
    #[arg(long, value_name = "N", value_parser = most_services)]
    max_services: Option<usize>,

    /// Routers to measure, in this order [default: the path that the lab's routes take]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        conflicts_with = "trace"
    )]
    routers: Vec<RouterName>,

    /// Take the routers from this file, as `tsim trace --json` prints it
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Give verdicts also where the lab lacks something of the facts that can change them, and say
    /// what; without, they are UNKNOWN
    #[arg(long)]
    trust_facts: bool,

    /// Name of this run [default: a new one]
    #[arg(long, value_name = "ID")]
    run_id: Option<RunId>,

    /// Seconds to wait for router locks [default: from the configuration]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    lock_timeout: Option<Duration>,

    /// Append progress to this file as JSON lines
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
}

/// A job's question, checked.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) lab: LabName,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) services: Vec<Service>,
    pub(super) routers: RouterChoice,
    pub(super) trust_facts: bool,
    pub(super) run_id: RunId,
    pub(super) lock_timeout: Duration,
    pub(super) progress: Option<PathBuf>,
}

impl Question {
    /// Checks what was typed; reads the trace, if one was named.
    pub(super) fn resolve(self, context: &Context) -> Result<Asked, Failure> {
        let configured = context.config.services.max_services;
        let limits = ServiceLimits {
            max_services: self.max_services.unwrap_or(configured),
        };
        let default: Protocol = self.default_proto.parse().map_err(Failure::usage)?;
        let services = parse_services(&self.services, default, limits).map_err(Failure::usage)?;
        if self.source.is_ipv4() != self.destination.is_ipv4() {
            return Err(Failure::usage(format!(
                "source {} and destination {} must be of one address family",
                self.source, self.destination
            )));
        }
        let v6 = self.destination.is_ipv6();
        let services = services.into_iter().map(|service| service.in_family(v6));
        let services = services.collect::<Result<_, _>>().map_err(Failure::usage)?;
        if self.source == self.destination {
            return Err(Failure::usage(format!(
                "source and destination are both {}: packets to oneself pass no router",
                self.source
            )));
        }
        let run_id = self.run_id.map_or_else(quick::new_run_id, Ok);
        Ok(Asked {
            lab: self.lab,
            source: self.source,
            destination: self.destination,
            services,
            routers: choose_routers(self.routers, self.trace)?,
            trust_facts: self.trust_facts,
            run_id: run_id.map_err(Failure::cannot_run)?,
            lock_timeout: self.lock_timeout.unwrap_or(context.config.lock_timeout),
            progress: self.progress,
        })
    }
}

fn most_services(text: &str) -> Result<usize, String> {
    let most = text
        .parse()
        .ok()
        .filter(|most| (1..=ServiceLimits::ALL).contains(most));
    most.ok_or_else(|| format!("1 to {} are allowed", ServiceLimits::ALL))
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let refuse = |_| "a number of seconds ≥ 0 is allowed".to_owned();
    let seconds = f64::from_str(text).map_err(|_| refuse(()))?;
    Duration::try_from_secs_f64(seconds).map_err(|_| refuse(()))
}

fn choose_routers(
    routers: Vec<RouterName>,
    trace: Option<PathBuf>,
) -> Result<RouterChoice, Failure> {
    match trace {
        Some(path) => {
            let text = fs::read_to_string(&path).map_err(|e| {
                Failure::usage(format!("cannot read the trace {}: {e}", path.display()))
            })?;
            let trace = serde_json::from_str(&text).map_err(|e| {
                Failure::usage(format!(
                    "{} is not a trace of `tsim trace --json`: {e}",
                    path.display()
                ))
            })?;
            Ok(RouterChoice::Traced(Box::new(trace)))
        }
        None if routers.is_empty() => Ok(RouterChoice::Trace),
        None => match routers
            .iter()
            .enumerate()
            .find(|(at, r)| routers[..*at].contains(r))
        {
            Some((_, twice)) => Err(Failure::usage(format!(
                "--routers names {twice} twice: each router is measured once"
            ))),
            None => Ok(RouterChoice::Named(routers)),
        },
    }
}

/// The terminal's width, and colour where the user's terminal and `NO_COLOR` allow it.
pub(super) fn layout() -> Layout {
    let terminal = io::stdout().is_terminal();
    let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0));
    Layout {
        width,
        colour: terminal && std::env::var_os("NO_COLOR").is_none(),
    }
}

impl From<Verdict> for Exit {
    /// The exit code of a job whose verdicts amount to this one.
    fn from(overall: Verdict) -> Self {
        match overall {
            Verdict::Yes => Self::Ok,
            Verdict::No => Self::SomeNo,
            Verdict::Unknown => Self::SomeUnknown,
        }
    }
}
