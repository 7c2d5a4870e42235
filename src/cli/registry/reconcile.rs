//! `tsim reconcile`: removes what dead jobs left.

use std::process;

use clap::Args;
use serde::Serialize;

use super::open;
use crate::{
    cli::{Context, Exit, Failure, Run},
    model::RunId,
    netns::NetnsDir,
    registry::{ReconcileReport, Repair},
    run::caretaker::Caretaker,
};

/// Remove what dead jobs left: taps, neighbour entries, leases, hosts, places in queues, DSCP values,
/// and what an interrupted change of a lab left
///
/// Something is removed only if its owner is provably gone; what cannot be told is kept and said.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim reconcile --dry-run\n  tsim reconcile")]
pub(in crate::cli) struct ReconcileArgs {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    report: ReconcileReport,
    repairs: Vec<Repair>,
}

impl Run for ReconcileArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let registry = open(context)?;
        let run_id =
            RunId::new(format!("reconcile-{}", process::id())).map_err(Failure::cannot_run)?;
        let dir = NetnsDir::default().patient(context.config.lock_timeout);
        let mut kernel = Caretaker::new(&dir, &context.config);
        let report = kernel.reconcile(&registry, &run_id, self.dry_run)?;
        let report = Report {
            report,
            repairs: registry.take_repairs(),
        };
        context.print(&report, |out| {
            lines(&report).iter().try_for_each(|l| writeln!(out, "{l}"))
        })?;
        if report.report.failures.is_empty() {
            Ok(Exit::Ok)
        } else {
            Ok(Exit::CannotRun)
        }
    }
}

fn lines(report: &Report) -> Vec<String> {
    let Report { report, repairs } = report;
    let prefix = if report.dry_run { "would " } else { "" };
    let mut lines: Vec<String> = repairs
        .iter()
        .map(|repair| {
            let Repair {
                file,
                reason,
                set_aside,
                from_copy,
            } = repair;
            let now = if *from_copy {
                "its copy took its place"
            } else {
                "it starts anew, empty"
            };
            format!("{file} was damaged ({reason}); kept as {set_aside}, {now}")
        })
        .collect();
    lines.extend(
        report
            .actions
            .iter()
            .map(|action| format!("{prefix}{action}")),
    );
    if report.actions.is_empty() {
        lines.push("nothing to remove".to_owned());
    }
    lines.extend(
        report
            .notices
            .iter()
            .map(|notice| format!("note: {notice}")),
    );
    lines.extend(
        report
            .failures
            .iter()
            .map(|failure| format!("failed: {failure}")),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::ReconcileAction;

    #[test]
    fn a_dry_run_speaks_in_the_conditional_and_failures_are_not_hidden() {
        let host: crate::model::HostId = "lab@src".parse().unwrap();
        let report = Report {
            report: ReconcileReport {
                dry_run: true,
                actions: vec![ReconcileAction::RemoveHost { host }],
                notices: vec!["kept x".to_owned()],
                failures: vec!["cannot y".to_owned()],
            },
            repairs: Vec::new(),
        };
        assert_eq!(
            lines(&report),
            [
                "would remove host lab@src",
                "note: kept x",
                "failed: cannot y"
            ]
        );
    }
}
