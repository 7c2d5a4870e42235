//! `tsim log`: what was changed in the registry, when, by which job.

use clap::Args;

use super::open;
use crate::{
    cli::{Context, Exit, Failure, Run, complete},
    model::RunId,
    registry::log::LogEntry,
};

/// Show the latest changes to the registry, oldest first
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim log -n 100\n  tsim log --run-id change-4711")]
pub(in crate::cli) struct LogArgs {
    /// How many
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20)]
    lines: usize,
    /// Only those of this job
    #[arg(long, value_name = "ID", add = complete::jobs())]
    run_id: Option<RunId>,
}

impl Run for LogArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let registry = open(context)?;
        let entries = match &self.run_id {
            None => registry.log_tail(self.lines)?,
            Some(run_id) => {
                let mut all = registry.log_tail(usize::MAX)?;
                all.retain(|entry| entry.run_id.as_ref() == Some(run_id));
                let first = all.len().saturating_sub(self.lines);
                all.split_off(first)
            }
        };
        context.print(&entries, |out| {
            entries
                .iter()
                .try_for_each(|e| writeln!(out, "{}", line(e)))
        })?;
        Ok(Exit::Ok)
    }
}

fn line(entry: &LogEntry) -> String {
    let LogEntry {
        time,
        operation,
        run_id,
        details,
    } = entry;
    let by = run_id.as_ref().map_or("-", RunId::as_str);
    let details: Vec<String> = match details.as_object() {
        Some(fields) => fields
            .iter()
            .map(|(k, v)| format!("{k}={}", bare(v)))
            .collect(),
        None => vec![details.to_string()],
    };
    format!("{time}  {operation:<22}  {by}  {}", details.join(" "))
        .trim_end()
        .to_owned()
}

fn bare(value: &serde_json::Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
