//! `tsim lab`: make labs, take them down, look at them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Context, Exit, Failure, Run, ask::ServerArgs, complete, live};
use crate::{
    lab::{
        self, ChangedFacts, Drift, LabError, LabPhase, LabState, LabStatus, Removed, Replaced,
        TopologyChanges, Up, UpOptions, UpProgress, UpStep,
        omission::OmissionKind,
        topology::{Severity, Warning},
    },
    model::{HostId, LabName, NetnsName, RouterName},
    registry::Wait,
};

/// Make labs from facts, take them down, look at them.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tsim lab up corp10 --facts netns-fixtures/corp10\n  tsim lab status corp10\n  tsim lab down corp10"
)]
pub(super) struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    Up(UpArgs),
    Reload(ReloadArgs),
    Down(DownArgs),
    Status(StatusArgs),
    List(ListArgs),
}

impl LabArgs {
    /// Looking at labs needs no rights where a scheduler runs.
    pub(super) fn asks(&self) -> Option<&ServerArgs> {
        match &self.command {
            LabCommand::Status(args) => Some(&args.at),
            LabCommand::List(args) => Some(&args.at),
            LabCommand::Up(_) | LabCommand::Reload(_) | LabCommand::Down(_) => None,
        }
    }
}

impl Run for LabArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self.command {
            LabCommand::Up(args) => args.run(context),
            LabCommand::Reload(args) => args.run(context),
            LabCommand::Down(args) => args.run(context),
            LabCommand::Status(args) => args.run(context),
            LabCommand::List(args) => args.run(context),
        }
    }
}

const UP_EXAMPLES: &str = "Examples:
  tsim lab up corp --facts netns-fixtures/corp10
  tsim lab up corp --facts /var/lib/facts --strict --json
  tsim lab up corp --facts tomorrow --replace

A lab that is up already from the same facts is left as it is; one from other facts is an error, or \
with --replace those of its routers are made anew whose facts or wires have changed, when no job \
uses them any more. What the lab cannot have as the \
facts do is said as FILE:LINE: MESSAGE; with --strict that is an error. A file that cannot be used \
is a router that is missing: what seems to leave the lab is UNKNOWN then. Nothing is left of a lab \
that could not be made.";

/// Make a lab from the facts of its routers, all or nothing
#[derive(Debug, Args)]
#[command(after_help = UP_EXAMPLES)]
struct UpArgs {
    /// Name of the lab: letters, digits, `_`, `-`
    name: LabName,

    /// Directory with one facts file per router (*_facts.txt, *.txt, *.json)
    #[arg(long, value_name = "DIR")]
    facts: PathBuf,

    /// Refuse a lab that would differ from its facts
    #[arg(long)]
    strict: bool,

    /// Load iptables rulesets with the legacy variant rather than the nft one
    #[arg(long)]
    legacy: bool,

    /// Change a lab that is up from other facts: make the routers anew that differ, or none of them
    #[arg(long)]
    replace: bool,
}

impl Run for UpArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let options = UpOptions {
            strict: self.strict,
            legacy: self.legacy,
        };
        let bar = Bar::new();
        let replaced = self.make(context, options, &bar);
        bar.clear();
        print(context, &replaced?)
    }
}

fn print(context: &Context, replaced: &Replaced) -> Result<Exit, Failure> {
    let Replaced { up, changes, hosts } = replaced;
    let output = UpOutput::new(up, changes.as_ref(), hosts);
    context.print(&output, |out| {
        write_changes(out, changes.as_ref(), hosts)?;
        write_up(out, up)
    })?;
    Ok(Exit::Ok)
}

const RELOAD_EXAMPLES: &str = "Examples:
  tsim lab reload corp hq-gw
  tsim lab reload corp hq-gw br-gw --json

Reads the facts that the lab was made from again, and makes these routers anew, also where their \
facts are what they were. All other routers stay; where facts of others have changed, it is an error. \
Jobs that use the routers are waited for, and hosts on them are removed. If it fails, the lab is as it \
was.";

/// Make routers of a lab anew from their facts, and leave the others
#[derive(Debug, Args)]
#[command(after_help = RELOAD_EXAMPLES)]
struct ReloadArgs {
    /// Name of the lab
    #[arg(add = complete::labs())]
    name: LabName,

    /// Router, as in its facts
    #[arg(required = true, value_name = "ROUTER", add = complete::routers())]
    routers: Vec<RouterName>,
}

impl Run for ReloadArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let (config, bar) = (&context.config, Bar::new());
        let wait = Wait::at_most(config.lock_timeout);
        let reloaded = lab::reload(config, &self.name, &self.routers, &bar, &wait);
        bar.clear();
        print(context, &reloaded?)
    }
}

impl UpArgs {
    fn make(&self, context: &Context, options: UpOptions, bar: &Bar) -> Result<Replaced, LabError> {
        let (config, name) = (&context.config, &self.name);
        if self.replace {
            let wait = Wait::at_most(config.lock_timeout);
            return lab::replace(config, name, &self.facts, options, bar, &wait);
        }
        Ok(Replaced {
            up: lab::up_from(config, name, &self.facts, options, bar)?,
            changes: None,
            hosts: Vec::new(),
        })
    }
}

/// What is not as it was in the lab that was replaced.
fn write_changes(
    out: &mut dyn Write,
    changes: Option<&TopologyChanges>,
    hosts: &[HostId],
) -> io::Result<()> {
    let Some(changes) = changes else {
        return Ok(());
    };
    for (what, routers) in [
        ("added", &changes.added),
        ("removed", &changes.removed),
        ("changed", &changes.changed),
        ("made anew", &changes.anew),
    ] {
        if !routers.is_empty() {
            let names: Vec<&str> = routers.iter().map(RouterName::as_str).collect();
            writeln!(out, "{what}: {}", names.join(" "))?;
        }
    }
    for host in hosts {
        writeln!(out, "removed host {host}")?;
    }
    Ok(())
}

/// What `tsim lab up --json` prints.
#[derive(Serialize)]
struct UpOutput<'a> {
    changed: bool,
    timing_ms: serde_json::Map<String, serde_json::Value>,
    /// How the routers differ from those of the lab that was replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<&'a TopologyChanges>,
    #[serde(skip_serializing_if = "<[HostId]>::is_empty")]
    hosts_removed: &'a [HostId],
    #[serde(flatten)]
    lab: &'a LabState,
}

impl<'a> UpOutput<'a> {
    fn new(up: &'a Up, replaced: Option<&'a TopologyChanges>, hosts_removed: &'a [HostId]) -> Self {
        let entry = |(what, took): &(&str, Duration)| ((*what).to_owned(), milliseconds(*took));
        Self {
            changed: up.changed,
            timing_ms: up.timing.iter().map(entry).collect(),
            replaced,
            hosts_removed,
            lab: &up.lab,
        }
    }
}

fn milliseconds(took: Duration) -> serde_json::Value {
    let microseconds = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
    (f64::from(microseconds) / 1000.0).into()
}

fn write_up(out: &mut dyn Write, up: &Up) -> io::Result<()> {
    let lab: &LabState = &up.lab;
    write_grouped(out, lab)?;
    let what = if up.changed { "up" } else { "up already" };
    let total: Duration = up.timing.iter().map(|(_, took)| *took).sum();
    write!(out, "lab {} is {what}: {}", lab.lab, size(lab))?;
    if up.changed {
        write!(out, ", made in {:.3} s", total.as_secs_f64())?;
    }
    writeln!(out)
}

/// What can change a verdict, by kind with one example each, ends that stand alone, and one line for the
/// rest.
fn write_grouped(out: &mut dyn Write, lab: &LabState) -> io::Result<()> {
    for alone in lab.warnings.iter().filter(|w| w.suggestion.is_some()) {
        writeln!(out, "notice: {alone}")?;
    }
    let mut kinds: BTreeMap<OmissionKind, Vec<&Warning>> = BTreeMap::new();
    for warning in lab.warnings.iter().filter(|w| w.matters()) {
        if let Some(omission) = &warning.omission {
            kinds.entry(omission.kind).or_default().push(warning);
        }
    }
    for (kind, warnings) in &kinds {
        if let [first, more @ ..] = warnings.as_slice() {
            let more = match more.len() {
                0 => String::new(),
                more => format!(" (and {more} more {kind} that verdicts can depend on)"),
            };
            writeln!(out, "warning: {first}{more}")?;
        }
    }
    let rest = of(&lab.warnings, Severity::Warning).filter(|w| !w.matters());
    let rest = rest.count();
    let all: usize = kinds.values().map(Vec::len).sum();
    if rest == 0 && all > kinds.len() {
        writeln!(out, "`tsim lab status {}` shows all", lab.lab)?;
    }
    if rest > 0 {
        writeln!(
            out,
            "{rest} more things differ without changing a verdict: `tsim lab status {}` shows all",
            lab.lab
        )?;
    }
    Ok(())
}

fn size(lab: &LabState) -> String {
    let mut text = format!(
        "{}, {}",
        count(lab.routers.len(), "router"),
        count(lab.used_segments(), "segment")
    );
    let incomplete = lab.routers.iter().filter(|r| r.ruleset_incomplete).count();
    let warnings = of(&lab.warnings, Severity::Warning).count();
    if warnings > 0 {
        let _ = write!(text, ", {}", count(warnings, "warning"));
    }
    if incomplete > 0 {
        let _ = write!(
            text,
            " ({} with an incomplete ruleset)",
            count(incomplete, "router")
        );
    }
    text
}

fn count(number: usize, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {what}{s}")
}

fn of(warnings: &[Warning], severity: Severity) -> impl Iterator<Item = &Warning> {
    warnings.iter().filter(move |w| w.severity == severity)
}

fn write_warnings(out: &mut dyn Write, warnings: &[Warning]) -> io::Result<()> {
    for (severity, word) in [(Severity::Notice, "notice"), (Severity::Warning, "warning")] {
        for warning in of(warnings, severity) {
            writeln!(out, "{word}: {warning}")?;
        }
    }
    Ok(())
}

const DOWN_EXAMPLES: &str = "Examples:
  tsim lab down corp
  tsim lab down corp --force

Removes what `up` made and the registered hosts on it, and nothing else. Works without the facts, \
and after an interrupted `up`. A lab that is not there is no error; one that jobs measure in is.";

/// Take a lab down: remove what `up` made, and its hosts
#[derive(Debug, Args)]
#[command(after_help = DOWN_EXAMPLES)]
struct DownArgs {
    /// Name of the lab
    #[arg(add = complete::labs())]
    name: LabName,

    /// Do not ask whether jobs use the lab, and leave its hosts to `tsim reconcile`
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct DownOutput<'a> {
    lab: &'a LabName,
    hosts_removed: &'a [HostId],
    #[serde(flatten)]
    removed: &'a Removed,
}

impl Run for DownArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let wait = Wait::at_most(context.config.lock_timeout);
        // Its locks are held until the lab is down.
        let vacated = match self.force {
            true => None,
            false => Some(lab::vacate(&context.config, &self.name, &wait)?),
        };
        let removed = match self.force {
            true => lab::down_by_force(&context.config, &self.name)?,
            false => lab::down(&context.config, &self.name)?,
        };
        let hosts: &[HostId] = vacated.as_ref().map_or(&[], |v| &v.hosts);
        let output = DownOutput {
            lab: &self.name,
            hosts_removed: hosts,
            removed: &removed,
        };
        context.print(&output, |out| write_down(out, &self.name, hosts, &removed))?;
        Ok(Exit::Ok)
    }
}

fn write_down(
    out: &mut dyn Write,
    name: &LabName,
    hosts: &[HostId],
    removed: &Removed,
) -> io::Result<()> {
    for host in hosts {
        writeln!(out, "removed host {host}")?;
    }
    for netns in &removed.foreign {
        writeln!(
            out,
            "notice: {netns} is not the namespace that was made; left alone"
        )?;
    }
    for netns in &removed.hosts {
        let host = netns
            .split_once('@')
            .map_or(netns.as_str(), |(_, host)| host);
        writeln!(
            out,
            "notice: host {netns} has lost its router; `tsim host remove --lab {name} {host}` removes it"
        )?;
    }
    match removed.removed.len() + removed.absent.len() + removed.foreign.len() {
        0 => writeln!(out, "there is no lab {name}"),
        _ => {
            let namespaces = count(removed.removed.len(), "namespace");
            writeln!(out, "lab {name} is down: {namespaces} removed")
        }
    }
}

/// Say how a lab is: its routers, what it lacks, whether all of it is there
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tsim lab status corp\n  tsim lab status corp --json")]
struct StatusArgs {
    /// Name of the lab
    #[arg(add = complete::labs())]
    name: LabName,
    #[command(flatten)]
    at: ServerArgs,
}

#[derive(Serialize)]
struct StatusOutput<'a> {
    sound: bool,
    missing: Vec<&'a str>,
    drift: &'a BTreeMap<RouterName, Drift>,
    facts_since: Option<&'a ChangedFacts>,
    facts_problem: Option<&'a str>,
    #[serde(flatten)]
    lab: &'a LabState,
}

impl Run for StatusArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let status = match &context.client {
            Some(client) => client.get(&format!("/lab-states/{}", self.name))?,
            None => lab::status(&context.config, &self.name)?,
        };
        let sound = status.missing.is_empty() && status.state.phase == LabPhase::Up;
        let output = StatusOutput {
            sound,
            missing: status.missing.iter().map(NetnsName::as_str).collect(),
            drift: &status.drift,
            facts_since: status.facts.as_ref(),
            facts_problem: status.facts_problem.as_deref(),
            lab: &status.state,
        };
        context.print(&output, |out| write_status(out, &status))?;
        Ok(match (sound, status.has_drifted()) {
            (false, _) => Exit::CannotRun,
            (true, true) => Exit::SomeNo,
            (true, false) => Exit::Ok,
        })
    }
}

fn write_status(out: &mut dyn Write, status: &LabStatus) -> io::Result<()> {
    let lab = &status.state;
    writeln!(out, "{}", line(lab))?;
    writeln!(out, "made {} from {}", lab.created_at, lab.facts.display())?;
    if let Some(changed) = &lab.changed_at {
        writeln!(out, "routers made anew {changed}")?;
    }
    let width = lab.routers.iter().map(|r| r.name.as_str().len()).max();
    for router in &lab.routers {
        let interfaces: Vec<_> = router
            .interfaces
            .iter()
            .filter(|i| i.segment.is_some())
            .map(|i| {
                if i.up {
                    i.name.to_string()
                } else {
                    format!("{} (down)", i.name)
                }
            })
            .collect();
        let mark = if router.ruleset_incomplete {
            "  incomplete ruleset"
        } else {
            ""
        };
        let width = width.unwrap_or(0);
        writeln!(
            out,
            "  {:width$}  {}{mark}",
            router.name,
            interfaces.join(" ")
        )?;
    }
    write_warnings(out, &lab.warnings)?;
    for netns in &status.missing {
        writeln!(out, "missing: network namespace {netns}")?;
    }
    let drift = status.drift_text();
    drift.iter().try_for_each(|what| writeln!(out, "{what}"))
}

fn line(lab: &LabState) -> String {
    let phase = match lab.phase {
        LabPhase::Up => "up",
        LabPhase::Building => "half made (run `tsim lab down`, or `up` again)",
    };
    format!("lab {} is {phase}: {}", lab.lab, size(lab))
}

/// List the labs of this machine
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim lab list\n  tsim lab list --json")]
struct ListArgs {
    #[command(flatten)]
    at: ServerArgs,
}

impl Run for ListArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let labs: Vec<LabState> = match &context.client {
            Some(client) => client.get("/lab-states")?,
            None => lab::list(&context.config)?,
        };
        let entries: Vec<_> = labs.iter().map(ListEntry::new).collect();
        context.print(&entries, |out| {
            for lab in &labs {
                writeln!(out, "{}", line(lab))?;
            }
            Ok(())
        })?;
        Ok(Exit::Ok)
    }
}

#[derive(Serialize)]
struct ListEntry<'a> {
    lab: &'a LabName,
    phase: LabPhase,
    created_at: &'a str,
    facts: &'a std::path::Path,
    routers: usize,
    segments: usize,
    warnings: usize,
}

impl<'a> ListEntry<'a> {
    fn new(lab: &'a LabState) -> Self {
        Self {
            lab: &lab.lab,
            phase: lab.phase,
            created_at: &lab.created_at,
            facts: &lab.facts,
            routers: lab.routers.len(),
            segments: lab.used_segments(),
            warnings: of(&lab.warnings, Severity::Warning).count(),
        }
    }
}

/// One line on standard error that says what `up` is at; nothing when that is no terminal.
struct Bar {
    terminal: bool,
    /// Routers filled, of how many.
    filled: Mutex<(usize, usize)>,
}

impl Bar {
    fn new() -> Self {
        Self {
            terminal: live::can_rewrite(),
            filled: Mutex::new((0, 0)),
        }
    }

    fn show(&self, text: &str) {
        if self.terminal {
            // Back to the start of the line, and clear it.
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }

    fn clear(&self) {
        self.show("");
    }
}

impl UpProgress for Bar {
    fn step(&self, step: UpStep) {
        match step {
            UpStep::Facts => self.show("reading facts"),
            UpStep::Sweep => self.show("removing what an interrupted run left"),
            UpStep::Namespaces(n) => self.show(&format!("making {n} namespaces")),
            UpStep::Segments(n) => self.show(&format!("making {n} segments")),
            UpStep::Refused => self.show("finding the rules that this kernel refuses"),
            UpStep::Routers(_) | UpStep::Filled => {
                if let Ok(mut filled) = self.filled.lock() {
                    match step {
                        UpStep::Routers(n) => filled.1 = n,
                        _ => filled.0 += 1,
                    }
                    self.show(&format!("loading routers: {} of {}", filled.0, filled.1));
                }
            }
        }
    }
}
