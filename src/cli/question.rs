//! What every job is asked: the arguments that quick and detailed jobs share.

use std::{
    io::{self, IsTerminal},
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{Colour, Context, Failure, complete, matrix::MatrixLayout};
use crate::{
    files,
    lab::trace::Trace,
    model::{LabName, Protocol, RouterName, RunId, Service, ServiceLimits, parse_services},
    run::{
        interrupt::Interrupt,
        quick::{self, ExplainMode, RouterChoice},
    },
    sched::job::{check_address, is_for_many, twice},
};

/// A job's question as typed.
#[derive(Debug, Args)]
pub(super) struct TypedQuestion {
    /// Lab to measure in
    #[arg(long, value_name = "NAME", add = complete::labs())]
    lab: LabName,

    /// Source address
    #[arg(short = 's', long, value_name = "ADDRESS")]
    source: IpAddr,

    /// Destination address; it needs no host
    #[arg(short = 'd', long, value_name = "ADDRESS")]
    destination: IpAddr,

    /// Services: `80`, `443/tcp`, `53/udp`, `8000-8100/tcp`, `ssh`, `dns`, `all/tcp`,
    /// `36412/sctp`, `ping`, `esp`, `gre`, `ip/89`, `@web` (a group, see `tsim services`) or `@FILE`,
    /// by commas
    #[arg(short = 'P', long = "ports", value_name = "LIST", add = complete::services())]
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
        conflicts_with = "trace",
        add = complete::routers()
    )]
    routers: Vec<RouterName>,

    /// Take the routers from this file, as `tsim trace --json` prints it
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Length of the IP packets in bytes, which are not to be fragmented: 128 to 65535
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(128..))]
    size: Option<u16>,

    /// Give verdicts also where the lab lacks something of the facts that can change them, and say
    /// what; without, they are UNKNOWN
    #[arg(long)]
    trust_facts: bool,

    /// Name of this run [default: a new one]
    #[arg(long, value_name = "ID")]
    run_id: Option<RunId>,

    /// Append progress to this file as JSON lines
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
}

/// When to look for reasons, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Explain {
    /// For up to 1,000 services per router
    Auto,
    /// For every service
    Always,
    /// Not at all: what rules by more than the packet may decide otherwise (rate, chance, time,
    /// history, what probes make up) is UNKNOWN
    Never,
}

impl From<Explain> for ExplainMode {
    fn from(typed: Explain) -> Self {
        match typed {
            Explain::Auto => Self::Auto,
            Explain::Always => Self::Always,
            Explain::Never => Self::Never,
        }
    }
}

/// A job's question, checked.
#[derive(Debug)]
pub(super) struct CheckedQuestion {
    pub(super) lab: LabName,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) services: Vec<Service>,
    pub(super) routers: RouterChoice,
    pub(super) size: Option<u16>,
    pub(super) trust_facts: bool,
    pub(super) run_id: RunId,
    pub(super) progress: Option<PathBuf>,
}

impl TypedQuestion {
    /// Checks what was typed; reads the trace, if one was named.
    pub(super) fn resolve(self, context: &Context) -> Result<CheckedQuestion, Failure> {
        let configured = context.config.services.max_services;
        let limits = ServiceLimits {
            max_services: self.max_services.unwrap_or(configured),
        };
        let default: Protocol = self.default_proto.parse().map_err(Failure::usage)?;
        let groups = &context.config.groups;
        let list = groups.expand(&self.services, Some(Path::new("")));
        let list = list.map_err(Failure::usage)?;
        let services = parse_services(&list, default, limits).map_err(Failure::usage)?;
        if self.source.is_ipv4() != self.destination.is_ipv4() {
            return Err(Failure::usage(format!(
                "source {} and destination {} must be of one address family",
                self.source, self.destination
            )));
        }
        // A quick job may ask what becomes of a broadcast or multicast address.
        check_address("source", self.source).map_err(Failure::usage)?;
        if !is_for_many(self.destination) {
            check_address("destination", self.destination).map_err(Failure::usage)?;
        }
        let v6 = self.destination.is_ipv6();
        let services = services.into_iter().map(|service| service.in_family(v6));
        let services: Vec<Service> = services.collect::<Result<_, _>>().map_err(Failure::usage)?;
        if self.source == self.destination {
            return Err(Failure::usage(format!(
                "source and destination are both {}: packets to oneself pass no router",
                self.source
            )));
        }
        let routers = match &self.trace {
            Some(path) => {
                let trace = read_trace(path)?;
                let (lab, from, to) = (&self.lab, self.source, self.destination);
                if let Some(what) = trace.of_another(lab, from, to, &services) {
                    let path = path.display();
                    return Err(Failure::usage(format!(
                        "{path} is the trace of another question: of {what}"
                    )));
                }
                RouterChoice::Traced(Box::new(trace))
            }
            None => choose_routers(self.routers)?,
        };
        Interrupt::watch().map_err(Failure::cannot_run)?;
        let run_id = self.run_id.map_or_else(quick::new_run_id, Ok);
        Ok(CheckedQuestion {
            lab: self.lab,
            source: self.source,
            destination: self.destination,
            services,
            routers,
            size: self.size,
            trust_facts: self.trust_facts,
            run_id: run_id.map_err(Failure::cannot_run)?,
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

/// Most bytes of a trace; a way of a thousand routers has a few hundred thousand.
const MOST_OF_TRACE: u64 = 16 << 20;

pub(super) fn read_trace(path: &Path) -> Result<Trace, Failure> {
    let shown = path.display();
    let bytes = files::read(path, MOST_OF_TRACE)
        .map_err(|e| Failure::usage(format!("cannot read the trace {shown}: {e}")))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        let found = serde_json::from_slice::<serde_json::Value>(&bytes);
        // {"success": …, "path": [[hop, router, …]], "timing_ms": …}
        let python = found.is_ok_and(|trace| trace.get("path").is_some_and(serde_json::Value::is_array));
        Failure::usage(match python {
            true => format!(
                "{shown} is a trace of the Python system, which names no interfaces and no lab: what \
                 `tsim trace --json` prints is wanted, or the routers with --routers"
            ),
            false => format!("{shown} is not a trace of `tsim trace --json`: {e}"),
        })
    })
}

fn choose_routers(routers: Vec<RouterName>) -> Result<RouterChoice, Failure> {
    if let Some(twice) = twice(&routers) {
        return Err(Failure::usage(format!(
            "--routers names {twice} twice: each router is measured once"
        )));
    }
    Ok(if routers.is_empty() {
        RouterChoice::Trace
    } else {
        RouterChoice::Named(routers)
    })
}

/// The terminal's width, and colour where the user, their terminal and `NO_COLOR` allow it.
pub(super) fn layout(context: &Context) -> MatrixLayout {
    let set = |name| std::env::var_os(name);
    let dumb = set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb");
    let colour = match context.colour {
        Colour::Auto => io::stdout().is_terminal() && !dumb,
        Colour::Always => true,
        Colour::Never => false,
    };
    let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0));
    MatrixLayout {
        width,
        colour,
        answer_only: context.quiet,
    }
}
