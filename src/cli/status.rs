//! `tsim status`: what is up, what runs and what waits, on one screen.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use super::{Context, Exit, Failure, Run};
use crate::{
    lab::{self, LabPhase, LabState},
    registry::RegistryManager,
    sched::{leader, spool::Spool},
};

/// Say which labs are up, what runs and waits, and which DSCP values and routers are in use
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim status\n  tsim status --json")]
pub(super) struct ShowStatus {}

#[derive(Serialize)]
struct Overview {
    labs: Vec<LabLine>,
    /// Whether a scheduler runs.
    scheduler: bool,
    running: usize,
    queued: usize,
    dscp_held: usize,
    dscp_values: usize,
    routers_held: usize,
    waiting_for_routers: usize,
    hosts: usize,
}

#[derive(Serialize)]
struct LabLine {
    lab: String,
    up: bool,
    routers: usize,
    warnings: usize,
}

impl LabLine {
    fn new(lab: &LabState) -> Self {
        Self {
            lab: lab.lab.to_string(),
            up: lab.phase == LabPhase::Up,
            routers: lab.routers.len(),
            warnings: lab.warnings.iter().filter(|w| w.matters()).count(),
        }
    }
}

impl Run for ShowStatus {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let config = &context.config;
        let registry = RegistryManager::open(config)?;
        let spool = Spool::open(config)?;
        let jobs = spool.jobs()?;
        let locks = registry.locks_held()?;
        let waits = locks.iter().flat_map(|(_, holders)| holders);
        let overview = Overview {
            labs: lab::list(config)?.iter().map(LabLine::new).collect(),
            scheduler: leader::is_led(&spool)?,
            running: jobs.running.len(),
            queued: jobs.queued.len(),
            dscp_held: registry.dscp_allocations()?.len(),
            dscp_values: registry.dscp_range().count(),
            routers_held: locks
                .iter()
                .filter(|(_, holders)| holders.iter().any(|h| !h.waiting))
                .count(),
            waiting_for_routers: waits.filter(|holder| holder.waiting).count(),
            hosts: registry.hosts()?.len(),
        };
        context.print(&overview, |out| write_overview(out, &overview))?;
        Ok(Exit::Ok)
    }
}

fn write_overview(out: &mut dyn Write, overview: &Overview) -> io::Result<()> {
    if overview.labs.is_empty() {
        writeln!(out, "labs       none: tsim lab up NAME --facts DIR")?;
    }
    for (at, lab) in overview.labs.iter().enumerate() {
        let head = if at == 0 { "labs" } else { "" };
        let state = if lab.up { "up" } else { "half made" };
        let differs = match lab.warnings {
            0 => String::new(),
            n => format!(", {n} things that verdicts can depend on differ from the facts"),
        };
        writeln!(
            out,
            "{head:9}  {} {state}, {} routers{differs}",
            lab.lab, lab.routers
        )?;
    }
    let scheduler = match overview.scheduler {
        true => "runs",
        false => "does not run: jobs wait until tsimd is started",
    };
    writeln!(out, "scheduler  {scheduler}")?;
    writeln!(
        out,
        "queue      {} running, {} waiting",
        overview.running, overview.queued
    )?;
    let Overview {
        dscp_held,
        dscp_values,
        routers_held,
        waiting_for_routers,
        hosts,
        ..
    } = overview;
    writeln!(out, "DSCP       {dscp_held} of {dscp_values} values held")?;
    writeln!(
        out,
        "routers    {routers_held} held, {waiting_for_routers} jobs wait for some"
    )?;
    writeln!(out, "hosts      {hosts} registered")
}
