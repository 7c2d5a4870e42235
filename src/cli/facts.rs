//! `tsim facts`: collect facts, and look at them before a lab is made.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Context, Exit, Failure, Run};
use crate::{
    lab::{
        self,
        facts::{self, COLLECTOR},
        omission::OmissionKind,
        topology::{
            self, Interface, InterfaceKind, Router, Ruleset, RulesetKind, Severity, Topology,
            Warning,
        },
    },
    model::{IfName, NetnsName, RouterName, printable},
    netns::NetnsDir,
};

/// Collect facts, and check them before a lab is made of them
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tsim facts collect > collect.sh\n  tsim facts check netns-fixtures/corp10"
)]
pub(super) struct FactsArgs {
    #[command(subcommand)]
    command: FactsCommand,
}

#[derive(Debug, Subcommand)]
enum FactsCommand {
    Check(CheckArgs),
    Collect(CollectArgs),
    Show(ShowArgs),
}

impl Run for FactsArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self.command {
            FactsCommand::Check(args) => args.run(context),
            FactsCommand::Collect(args) => args.run(context),
            FactsCommand::Show(args) => args.run(context),
        }
    }
}

const CHECK_EXAMPLES: &str = "Example:
  tsim facts check netns-fixtures/corp10

Says what the facts have and a lab would lack, as far as that shows without loading rulesets; needs \
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
        let strange = topology.routers.iter().flat_map(lab::strange_lines);
        let strange: Vec<_> = strange.collect();
        topology.warnings.extend(strange);
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
  tsim facts collect --local > facts/$(hostname)_facts.txt
  tsim facts collect --netns fw1 > facts/fw1_facts.txt

The script only reads, needs nothing but ip(8) and a POSIX shell, and takes no keys or passwords. It \
needs root to see firewall rules.";

/// Print the shell script that collects a router's facts, or run it here
#[derive(Debug, Args)]
#[command(after_help = COLLECT_EXAMPLES)]
struct CollectArgs {
    /// Collect the facts of this machine
    #[arg(long, conflicts_with = "netns")]
    local: bool,
    /// Collect the facts of a network namespace of this machine (ip-netns(8))
    #[arg(long, value_name = "NAME", value_parser = |name: &str| NetnsName::new(name))]
    netns: Option<NetnsName>,
}

impl Run for CollectArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", COLLECTOR, "sh"]);
        let failed = |error| Failure::cannot_run(format!("cannot start /bin/sh: {error}"));
        match self.netns {
            // exec(3) replaces the whole process by the thread that calls it.
            Some(name) => {
                let netns = NetnsDir::default().open(&name);
                let netns = netns.map_err(Failure::cannot_run)?;
                // The name of the host is that of the machine; the script takes another.
                if let Ok(router) = RouterName::new(name.as_str()) {
                    shell.arg(router.as_str());
                }
                let error = netns.enter(|| shell.exec()).map_err(Failure::cannot_run)?;
                Err(failed(error))
            }
            None if self.local => Err(failed(shell.exec())),
            None => {
                context.print(&COLLECTOR, |out| out.write_all(COLLECTOR.as_bytes()))?;
                Ok(Exit::Ok)
            }
        }
    }
}

/// Show what is read from a facts file
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tsim facts show netns-fixtures/corp10/hq-gw_facts.txt")]
struct ShowArgs {
    /// The facts of one router
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Serialize)]
struct ShowOutput<'a> {
    router: &'a RouterName,
    file: &'a str,
    interfaces: Vec<ShownInterface<'a>>,
    rules: Vec<String>,
    routes: Vec<String>,
    rulesets: Vec<ShownRuleset>,
    settings: BTreeMap<&'a str, &'a str>,
    warnings: &'a [Warning],
}

#[derive(Serialize)]
struct ShownInterface<'a> {
    name: &'a IfName,
    kind: InterfaceKind,
    up: bool,
    mtu: Option<u32>,
    mac: Option<String>,
    addresses: Vec<String>,
}

#[derive(Serialize)]
struct ShownRuleset {
    kind: RulesetKind,
    line: usize,
    lines: usize,
}

impl Run for ShowArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let facts = facts::load_file(&self.file).map_err(Failure::usage)?;
        let mut topology = topology::build(vec![facts]);
        let Some(router) = topology.routers.first() else {
            return Err(Failure::usage("the file has no router"));
        };
        topology.warnings.extend(lab::strange_lines(router));
        let output = shown(router, &topology.warnings);
        context.print(&output, |out| write_shown(out, &output))?;
        Ok(Exit::Ok)
    }
}

fn shown<'a>(router: &'a Router, warnings: &'a [Warning]) -> ShowOutput<'a> {
    let interface = |of: &'a Interface| ShownInterface {
        name: &of.name,
        kind: of.kind,
        up: of.up,
        mtu: of.mtu,
        mac: of.mac.map(|mac| mac.to_string()),
        addresses: of.addresses.iter().map(|a| a.local.to_string()).collect(),
    };
    let ruleset = |of: &Ruleset| ShownRuleset {
        kind: of.kind,
        line: of.origin.line,
        lines: of.text.lines().filter(|line| !line.is_empty()).count(),
    };
    let settings = router.sysctls.iter();
    ShowOutput {
        router: &router.name,
        file: &router.file,
        interfaces: router.interfaces.iter().map(interface).collect(),
        rules: router.rules.iter().map(|rule| rule.to_string()).collect(),
        routes: router
            .routes
            .iter()
            .map(|route| route.to_string())
            .collect(),
        rulesets: router.rulesets.iter().map(ruleset).collect(),
        settings: settings
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect(),
        warnings,
    }
}

fn write_shown(out: &mut dyn Write, shown: &ShowOutput<'_>) -> io::Result<()> {
    writeln!(
        out,
        "router {}, from {}",
        shown.router,
        printable(shown.file)
    )?;
    writeln!(out, "\ninterfaces")?;
    for interface in &shown.interfaces {
        let state = if interface.up { "up" } else { "down" };
        let mtu = interface
            .mtu
            .map_or(String::new(), |mtu| format!(", mtu {mtu}"));
        let addresses = interface.addresses.join(" ");
        writeln!(out, "  {} {state}{mtu} {addresses}", interface.name)?;
    }
    for (head, lines) in [("policy rules", &shown.rules), ("routes", &shown.routes)] {
        writeln!(out, "\n{head}")?;
        for line in lines {
            writeln!(out, "  {line}")?;
        }
    }
    writeln!(out, "\nrulesets")?;
    for ruleset in &shown.rulesets {
        let ShownRuleset { kind, line, lines } = ruleset;
        writeln!(out, "  {kind}: {lines} lines, from line {line}")?;
    }
    writeln!(out, "\nsettings")?;
    for (key, value) in &shown.settings {
        writeln!(out, "  {key} = {}", printable(value))?;
    }
    writeln!(out, "\nleft out, or different in a lab")?;
    for warning in shown.warnings {
        writeln!(out, "  {warning}")?;
    }
    Ok(())
}
