//! `tsim-quick`: the quick job's command line.

use std::{
    fs,
    io::{self, IsTerminal},
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Parser, ValueEnum};

use super::{CommandLine, Context, EXIT_CODES, Exit, Failure, Global, Run, matrix};
use crate::{
    firewall::backend::BackendChoice,
    model::{Dscp, LabName, Protocol, RouterName, RunId, ServiceLimits, parse_services},
    run::{
        quick::{self, DscpChoice, ExplainMode, QuickError, QuickJob, RouterChoice},
        report::Verdict,
    },
};

const EXAMPLES: &str = "Examples:
  tsim-quick --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P 22,80,443/tcp,53/udp
  tsim-quick --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P all/tcp --routers hq-gw,br-gw --json
  tsim trace --lab corp10 -s 10.1.1.100 -d 10.2.1.50 --json > path.json
  tsim-quick --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P https --trace path.json";

/// Measures which services get through each router: YES, NO or UNKNOWN, with the reason.
#[derive(Debug, Parser)]
#[command(name = "tsim-quick", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct Quick {
    #[command(flatten)]
    global: Global,

    /// Lab to measure in
    #[arg(long, value_name = "NAME")]
    lab: LabName,

    /// Source address
    #[arg(short = 's', long, value_name = "ADDRESS")]
    source: IpAddr,

    /// Destination address; it needs no host
    #[arg(short = 'd', long, value_name = "ADDRESS")]
    destination: IpAddr,

    /// Services: `80`, `443/tcp`, `53/udp`, `8000-8100/tcp`, `ssh`, `dns`, `all/tcp`, by commas
    #[arg(short = 'P', long = "ports", value_name = "LIST")]
    services: String,

    /// Protocol of entries that name none
    #[arg(long, value_name = "PROTO", default_value = "tcp", value_parser = ["tcp", "udp"])]
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

    /// DSCP value that tells this job from others: a number, or `auto` for a free one
    #[arg(long, value_name = "N", default_value = "auto")]
    dscp: DscpChoice,

    /// Name of this run [default: a new one]
    #[arg(long, value_name = "ID")]
    run_id: Option<RunId>,

    /// DSCP that the routers' own rules see in the probes
    #[arg(long, value_name = "N", default_value = "0")]
    probe_dscp: Dscp,

    /// Source port of the probes [default: one that was not used before]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    sport: Option<u16>,

    /// Seconds to wait for router locks [default: from the configuration]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    lock_timeout: Option<Duration>,

    /// Whether to find out what stops a blocked service
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    explain: Explain,

    /// What measures: auto, nft, iptables-nft or iptables-legacy
    #[arg(long, value_name = "NAME", default_value_t)]
    backend: BackendChoice,

    /// Work without leases and locks; nothing else may use the lab meanwhile
    #[arg(long)]
    no_registry: bool,

    /// Append progress to this file as JSON lines
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,

    /// Let probes go on behind the last tap, for comparison with a packet capture
    #[arg(long, hide = true, value_name = "SEED")]
    pass_on: Option<u64>,
}

/// When to look for reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Explain {
    /// For blocked services, if there are not too many
    Auto,
    /// For every blocked service
    Always,
    /// Not at all
    Never,
}

pub(super) fn most_services(text: &str) -> Result<usize, String> {
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

impl CommandLine for Quick {
    fn global(&self) -> &Global {
        &self.global
    }
}

impl Run for Quick {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let job = self.resolve(context)?;
        let answered = quick::run(&job, &context.config)?;
        let report = &answered.report;
        let layout = layout();
        context.print(report, |out| matrix::print(out, report, layout))?;
        let exit = match report.overall() {
            Verdict::Yes => Exit::Ok,
            Verdict::No => Exit::SomeNo,
            Verdict::Unknown => Exit::SomeUnknown,
        };
        if !answered.closing.is_empty() {
            context.close_last(answered);
        }
        Ok(exit)
    }
}

impl Quick {
    fn resolve(self, context: &Context) -> Result<QuickJob, Failure> {
        let limits = ServiceLimits {
            max_services: self
                .max_services
                .unwrap_or(context.config.services.max_services),
        };
        let default: Protocol = self.default_proto.parse().map_err(Failure::usage)?;
        let services = parse_services(&self.services, default, limits).map_err(Failure::usage)?;
        if self.source.is_ipv4() != self.destination.is_ipv4() {
            return Err(Failure::usage(format!(
                "source {} and destination {} must be of one address family",
                self.source, self.destination
            )));
        }
        Ok(QuickJob {
            lab: self.lab,
            source: self.source,
            destination: self.destination,
            services,
            routers: choose_routers(self.routers, self.trace)?,
            dscp: self.dscp,
            run_id: self
                .run_id
                .map_or_else(quick::new_run_id, Ok)
                .map_err(Failure::cannot_run)?,
            probe_dscp: self.probe_dscp,
            source_port: self.sport,
            lock_timeout: self.lock_timeout.unwrap_or(context.config.lock_timeout),
            explain: match self.explain {
                Explain::Auto => ExplainMode::Auto,
                Explain::Always => ExplainMode::Always,
                Explain::Never => ExplainMode::Never,
            },
            backend: self.backend,
            use_registry: !self.no_registry,
            progress: self.progress,
            pass_on: self.pass_on,
        })
    }
}

pub(super) fn choose_routers(
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
            Ok(RouterChoice::Traced(trace))
        }
        None if routers.is_empty() => Ok(RouterChoice::Trace),
        None => Ok(RouterChoice::Named(routers)),
    }
}

/// The terminal's width, and colour where the user's terminal and `NO_COLOR` allow it.
pub(super) fn layout() -> matrix::Layout {
    let terminal = io::stdout().is_terminal();
    let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0));
    matrix::Layout {
        width,
        colour: terminal && std::env::var_os("NO_COLOR").is_none(),
    }
}

impl From<QuickError> for Failure {
    fn from(error: QuickError) -> Self {
        match error {
            QuickError::DscpRange { .. } => Self::usage(error),
            _ => Self::cannot_run(error),
        }
    }
}
