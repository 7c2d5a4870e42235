//! `tsim facts`: collect facts, and look at them before a lab is made.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Context, Exit, Failure, Run};
use crate::lab::{
    facts::{self, COLLECTOR},
    omission::OmissionKind,
    topology::{self, Severity, Topology, Warning},
};

/// Collect facts, and check them before a lab is made of them
#[derive(Debug, Args)]
pub(super) struct Facts {
    #[command(subcommand)]
    command: FactsCommand,
}

#[derive(Debug, Subcommand)]
enum FactsCommand {
    Check(CheckArgs),
    Collect(CollectArgs),
}

impl Run for Facts {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self.command {
            FactsCommand::Check(args) => args.run(context),
            FactsCommand::Collect(args) => args.run(context),
        }
    }
}

const CHECK_EXAMPLES: &str = "Example:
  tsim facts check netns-fixtures/corp10

Says what the facts have and a lab would lack, as far as that shows without loading rulesets; needs
no rights. Exit codes: 0 nothing that can change a verdict, 1 something, 2 unusable facts.";

/// Say what of the facts in a directory is missing, odd or not modelled
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
struct CheckArgs {
    /// Directory with one facts file per router
    #[arg(value_name = "DIR")]
    facts: PathBuf,
}

#[derive(Serialize)]
struct CheckOutput<'a> {
    routers: Vec<&'a str>,
    warnings: &'a [Warning],
}

impl Run for CheckArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let (facts, missing) = facts::load_usable(&self.facts).map_err(Failure::usage)?;
        let mut topology = topology::build(facts);
        topology.warnings.extend(missing);
        let output = CheckOutput {
            routers: topology.routers.iter().map(|r| r.name.as_str()).collect(),
            warnings: &topology.warnings,
        };
        context.print(&output, |out| write_check(out, &topology))?;
        Ok(match topology.warnings.iter().any(Warning::matters) {
            true => Exit::SomeNo,
            false => Exit::Ok,
        })
    }
}

fn write_check(out: &mut dyn Write, topology: &Topology) -> io::Result<()> {
    let matter = topology.warnings.iter().filter(|w| w.matters());
    let mut kinds: BTreeMap<OmissionKind, Vec<&Warning>> = BTreeMap::new();
    for warning in matter {
        if let Some(omission) = &warning.omission {
            kinds.entry(omission.kind).or_default().push(warning);
        }
    }
    for (kind, warnings) in &kinds {
        writeln!(out, "can change verdicts: {kind}, {}", warnings.len())?;
        for warning in warnings {
            writeln!(out, "  {warning}")?;
        }
    }
    let others = || topology.warnings.iter().filter(|w| !w.matters());
    for warning in others() {
        let word = match warning.severity {
            Severity::Warning => "differs",
            Severity::Notice => "note",
        };
        writeln!(out, "{word}: {warning}")?;
    }
    let found: usize = kinds.values().map(Vec::len).sum();
    writeln!(
        out,
        "{} routers: {found} that can change verdicts, {} that cannot",
        topology.routers.len(),
        others().count()
    )
}

const COLLECT_EXAMPLES: &str = "Examples:
  tsim facts collect > collect.sh
  ssh router sh -s < collect.sh > facts/router_facts.txt
  ip netns exec NAME sh collect.sh > facts/NAME_facts.txt

The script only reads, needs nothing but ip(8) and a POSIX shell, and takes no keys or passwords.";

/// Print the shell script that collects a router's facts
#[derive(Debug, Args)]
#[command(after_help = COLLECT_EXAMPLES)]
struct CollectArgs {}

impl Run for CollectArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        context.print(&COLLECTOR, |out| out.write_all(COLLECTOR.as_bytes()))?;
        Ok(Exit::Ok)
    }
}
