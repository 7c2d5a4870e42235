//! `tsim locks`: who holds which router, and who waits for it.

use clap::Args;
use serde::Serialize;

use super::open;
use crate::{
    cli::{Context, Exit, Failure, Run, table::write_table},
    registry::LockHolder,
};

/// List who holds routers and who waits for them, in order
///
/// A name with `@` is a host that is being made or removed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim locks\n  tsim locks --json")]
pub(in crate::cli) struct Locks {}

#[derive(Debug, Serialize)]
struct Row {
    of: String,
    #[serde(flatten)]
    holder: LockHolder,
}

impl Run for Locks {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let rows: Vec<Row> = open(context)?
            .locks_held()?
            .into_iter()
            .flat_map(|(of, holders)| {
                holders.into_iter().map(move |holder| Row {
                    of: of.clone(),
                    holder,
                })
            })
            .collect();
        context.print(&rows, |out| {
            let head = ["OF", "STATE", "MODE", "RUN ID", "PID", "SINCE"];
            write_table(out, head, &rows.iter().map(cells).collect::<Vec<_>>())
        })?;
        Ok(Exit::Ok)
    }
}

fn cells(row: &Row) -> [String; 6] {
    let holder = &row.holder;
    [
        row.of.clone(),
        if holder.waiting { "waits" } else { "holds" }.to_owned(),
        holder.mode.to_string(),
        holder.run_id.to_string(),
        holder.pid.to_string(),
        format!("{:.3}", holder.since),
    ]
}
