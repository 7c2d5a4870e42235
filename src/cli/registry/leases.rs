//! `tsim leases`: which job uses which host and neighbour entry.

use clap::Args;
use serde::Serialize;

use super::{Process, open, or_dash};
use crate::{
    cli::{Context, Exit, Failure, Run, table::write_table},
    model::{Dscp, RunId},
    registry::{JobType, Lease},
};

/// List the leases of hosts and of routers' neighbour entries
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tsim leases")]
pub(in crate::cli) struct Leases {}

#[derive(Debug, Serialize)]
struct Row {
    kind: &'static str,
    of: String,
    run_id: RunId,
    job_type: JobType,
    dscp: Option<Dscp>,
    process: Process,
    since: String,
}

impl Row {
    fn new(kind: &'static str, of: &impl ToString, lease: Lease) -> Self {
        Self {
            kind,
            of: of.to_string(),
            process: Process::of(&lease.owner),
            run_id: lease.run_id,
            job_type: lease.job_type,
            dscp: lease.dscp,
            since: lease.allocated_at,
        }
    }
}

impl Run for Leases {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let registry = open(context)?;
        let mut rows = Vec::new();
        for (host, record) in registry.source_host_leases()? {
            rows.extend(
                record
                    .leases
                    .into_iter()
                    .map(|l| Row::new("host", &host, l)),
            );
        }
        for (key, record) in registry.neighbor_leases()? {
            rows.extend(
                record
                    .leases
                    .into_iter()
                    .map(|l| Row::new("neighbour", &key, l)),
            );
        }
        context.print(&rows, |out| {
            let head = ["KIND", "OF", "RUN ID", "TYPE", "DSCP", "PID", "SINCE"];
            write_table(out, head, &rows.iter().map(cells).collect::<Vec<_>>())
        })?;
        Ok(Exit::Ok)
    }
}

fn cells(row: &Row) -> [String; 7] {
    [
        row.kind.to_owned(),
        row.of.clone(),
        row.run_id.to_string(),
        row.job_type.to_string(),
        or_dash(row.dscp),
        row.process.text(),
        row.since.clone(),
    ]
}
