//! `tsim dscp`: which job holds which DSCP value.

use clap::Args;
use serde::Serialize;

use super::{Process, open, or_dash};
use crate::{
    cli::{Context, Exit, Failure, Run, table::write_table},
    model::{self, RunId},
};

/// List the DSCP values that jobs hold
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tsim dscp")]
pub(in crate::cli) struct DscpArgs {}

#[derive(Debug, Serialize)]
struct Report {
    range: String,
    count: usize,
    allocations: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    dscp: model::Dscp,
    run_id: RunId,
    username: Option<String>,
    process: Process,
    since: String,
}

impl Run for DscpArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let registry = open(context)?;
        let allocations = registry.dscp_allocations()?.into_iter();
        let mut rows: Vec<Row> = allocations
            .map(|(run_id, allocation)| Row {
                dscp: allocation.dscp,
                run_id,
                username: allocation.username,
                process: Process::of(&allocation.owner),
                since: allocation.allocated_at,
            })
            .collect();
        rows.sort_by_key(|row| row.dscp);
        let range = registry.dscp_range();
        let report = Report {
            range: range.to_string(),
            count: range.count(),
            allocations: rows,
        };
        context.print(&report, |out| {
            let rows = &report.allocations;
            let head = ["DSCP", "RUN ID", "USER", "PID", "SINCE"];
            write_table(out, head, &rows.iter().map(cells).collect::<Vec<_>>())?;
            let Report { range, count, .. } = &report;
            writeln!(out, "{} of {count} values ({range}) are held", rows.len())
        })?;
        Ok(Exit::Ok)
    }
}

fn cells(row: &Row) -> [String; 5] {
    [
        row.dscp.to_string(),
        row.run_id.to_string(),
        or_dash(row.username.as_ref()),
        row.process.text(),
        row.since.clone(),
    ]
}
