//! `tsim-detailed`: the detailed job's command line.

use std::{io, net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser};

use super::{
    CommandLine, Context, EXIT_CODES, Exit, Failure, Global, Run,
    bulk::Files,
    complete,
    question::{TypedQuestion, layout, seconds},
};
use crate::{
    bulk::one,
    lab::trace::EntryName,
    run::detailed::{self, DetailedJob, files, json, text},
    sched::job::check_address,
};

const EXAMPLES: &str = "Examples:
  tsim-detailed --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P 22,443/tcp,53/udp,ping
  tsim-detailed --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P https --routers hq-gw --out report
  tsim-detailed --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P ssh -o report.xml -o comment.md
  tsim trace --lab corp10 -s 10.1.1.100 -d 10.2.1.50 --json > path.json
  tsim-detailed --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P ssh --trace path.json --json

The job holds its routers alone: quick and other detailed jobs on them wait.";

/// Proves with real connections whether each service gets there and back, and which rule decides.
#[derive(Debug, Parser)]
#[command(name = "tsim-detailed", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct TsimDetailed {
    #[command(flatten)]
    global: Global,

    #[command(flatten)]
    asked: DetailedArgs,
}

/// Proves with real connections whether each service gets there and back, and which rule decides
///
/// The same as the program `tsim-detailed`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DetailedArgs {
    #[command(flatten)]
    question: TypedQuestion,

    /// Where the source's packets enter the lab [default: wherever they may]
    #[arg(long, value_name = "ROUTER[:INTERFACE]", add = complete::routers())]
    from: Option<EntryName>,

    /// Source port of all connections [default: a fresh one for each]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    sport: Option<u16>,

    /// Seconds to wait for an answer of which nothing is known
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    timeout: Duration,

    /// Wait that long for every answer, even if the trace shows that the request was dropped
    #[arg(long)]
    patient: bool,

    /// Print every rule that was met, with its counters, and the packets' ways; files and JSON have them
    #[arg(long)]
    evidence: bool,

    /// Write report.html, report.txt, report.json and a JSON file per service into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    files: Files,
}

impl CommandLine for TsimDetailed {
    fn global(&self) -> &Global {
        &self.global
    }
}

impl Run for TsimDetailed {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        self.asked.run(context)
    }
}

impl Run for DetailedArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        self.files.check(false)?;
        let evidence = self.evidence;
        let (job, report_files) = self.resolve(context)?;
        if let Some(dir) = &job.out {
            files::prepare(dir).map_err(|error| match error.source.kind() {
                io::ErrorKind::DirectoryNotEmpty => Failure::usage(error),
                _ => Failure::cannot_run(error),
            })?;
        }
        let answered = detailed::run(&job, &context.config)?;
        let report = &answered.report;
        if let Some(dir) = &job.out {
            files::write(dir, report).map_err(Failure::cannot_run)?;
        }
        let value = json::document(report);
        report_files.write_answer(context, &job.lab, &value, |lab| {
            one::document_of_detailed(report, lab)
        })?;
        let terminal = layout(context);
        let layout = text::DetailedLayout {
            width: terminal.width,
            colour: terminal.colour,
            evidence,
            answer_only: context.quiet,
        };
        context.print(&value, |out| text::print(out, report, layout))?;
        Ok(report.overall().into())
    }
}

impl DetailedArgs {
    fn resolve(self, context: &Context) -> Result<(DetailedJob, Files), Failure> {
        if self.timeout.is_zero() {
            return Err(Failure::usage(
                "--timeout 0: more than 0 seconds is allowed",
            ));
        }
        let asked = self.question.resolve(context)?;
        for (what, address) in [("source", asked.source), ("destination", asked.destination)] {
            connectable(what, address)?;
        }
        let job = DetailedJob {
            lab: asked.lab,
            source: asked.source,
            destination: asked.destination,
            services: asked.services,
            routers: asked.routers,
            from: self.from,
            source_port: self.sport,
            size: asked.size,
            run_id: asked.run_id,
            lock_timeout: context.config.lock_timeout,
            timeout: self.timeout,
            patient: self.patient,
            trust_facts: asked.trust_facts,
            progress: asked.progress,
            out: self.out,
        };
        Ok((job, self.files))
    }
}

/// Refuses an address at which nobody makes a connection through routers, with the name of its option.
fn connectable(what: &'static str, address: IpAddr) -> Result<(), Failure> {
    check_address(what, address).map_err(Failure::usage)?;
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(Failure::usage(format!(
            "{what} {address} is a link-local address: no router forwards its packets"
        ))),
        _ => Ok(()),
    }
}
