//! `tsim-detailed`: the detailed job's command line.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Parser;

use super::{
    CommandLine, Context, EXIT_CODES, Exit, Failure, Global, Run,
    quick::{choose_routers, layout, most_services, seconds},
};
use crate::{
    model::{LabName, Protocol, RouterName, RunId, ServiceLimits, parse_services},
    run::{
        detailed::{self, DetailedError, DetailedJob, files, json, text},
        quick,
        report::Verdict,
    },
};

const EXAMPLES: &str = "Examples:
  tsim-detailed --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P 22,443/tcp,53/udp
  tsim-detailed --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P https --routers hq-gw --out report
  tsim trace --lab corp10 -s 10.1.1.100 -d 10.2.1.50 --json > path.json
  tsim-detailed --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P ssh --trace path.json --json

The job holds its routers alone: quick and other detailed jobs on them wait.";

/// Proves with real connections which rule lets each service through each router, or stops it.
#[derive(Debug, Parser)]
#[command(name = "tsim-detailed", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct Detailed {
    #[command(flatten)]
    global: Global,

    /// Lab to measure in
    #[arg(long, value_name = "NAME")]
    lab: LabName,

    /// Source address
    #[arg(short = 's', long, value_name = "ADDRESS")]
    source: IpAddr,

    /// Destination address; the job makes the host that answers
    #[arg(short = 'd', long, value_name = "ADDRESS")]
    destination: IpAddr,

    /// Services: `80`, `443/tcp`, `53/udp`, `8000-8100/tcp`, `ssh`, `dns`, by commas
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

    /// Name of this run [default: a new one]
    #[arg(long, value_name = "ID")]
    run_id: Option<RunId>,

    /// Source port of all connections [default: a fresh one for each]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    sport: Option<u16>,

    /// Seconds to wait for router locks [default: from the configuration]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    lock_timeout: Option<Duration>,

    /// Seconds to wait for an answer of which nothing is known
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    timeout: Duration,

    /// Wait that long for every answer, even if the trace shows that the request was dropped
    #[arg(long)]
    patient: bool,

    /// Write report.html, report.txt, report.json and a JSON file per service into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Append progress to this file as JSON lines
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
}

impl CommandLine for Detailed {
    fn global(&self) -> &Global {
        &self.global
    }
}

impl Run for Detailed {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let out = self.out.clone();
        let job = self.resolve(context)?;
        let answered = detailed::run(&job, &context.config)?;
        let report = &answered.report;
        if let Some(dir) = &out {
            files::write(dir, report).map_err(Failure::cannot_run)?;
        }
        let terminal = layout();
        let layout = text::Layout {
            width: terminal.width,
            colour: terminal.colour,
        };
        context.print(&json::document(report), |out| {
            text::print(out, report, layout)
        })?;
        Ok(match report.overall() {
            Verdict::Yes => Exit::Ok,
            Verdict::No => Exit::SomeNo,
            Verdict::Unknown => Exit::SomeUnknown,
        })
    }
}

impl Detailed {
    fn resolve(self, context: &Context) -> Result<DetailedJob, Failure> {
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
        if self.timeout.is_zero() {
            return Err(Failure::usage(
                "--timeout 0: more than 0 seconds is allowed",
            ));
        }
        Ok(DetailedJob {
            lab: self.lab,
            source: self.source,
            destination: self.destination,
            services,
            routers: choose_routers(self.routers, self.trace)?,
            source_port: self.sport,
            run_id: self
                .run_id
                .map_or_else(quick::new_run_id, Ok)
                .map_err(Failure::cannot_run)?,
            lock_timeout: self.lock_timeout.unwrap_or(context.config.lock_timeout),
            timeout: self.timeout,
            patient: self.patient,
            progress: self.progress,
        })
    }
}

impl From<DetailedError> for Failure {
    fn from(error: DetailedError) -> Self {
        Self::cannot_run(error)
    }
}
