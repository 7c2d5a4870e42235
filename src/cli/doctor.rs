//! `tsim doctor`: what this machine offers and lacks, as a table or as JSON.

use std::io::{self, Write};

use clap::Args;

use super::{
    Context, Exit, Failure, Run,
    start::{self, Standing},
};
use crate::{
    doctor::{self, Area, Check, Presence, Report, UNTRIED},
    keeper::Networks,
    model::WithCauses,
};

/// Says what this machine offers and lacks, what each absence costs, and how to get it
///
/// Kernel features are tried out in a network namespace that is made for that. Exit code 4 means
/// that something is absent without which nothing works.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim doctor\n  tsim doctor --absent")]
pub(super) struct Doctor {
    /// Only what is absent
    #[arg(long)]
    absent: bool,
}

impl Run for Doctor {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        // Inside the user's namespaces, if they can be had: there everything else is to work.
        let (keeper, _users) = match &context.standing {
            Standing::Root => (None, None),
            Standing::Inside(keeper, _) => (Some(Ok(keeper.owner.pid)), None),
            Standing::Outside(places) => {
                match start::enter(&context.config, places, Networks::Keepers) {
                    Ok(joined) => (Some(Ok(joined.keeper.owner.pid)), Some(joined.users)),
                    Err(error) => (Some(Err(WithCauses(&error).to_string())), None),
                }
            }
        };
        let mut report = doctor::examine(&context.config);
        if let Some(keeper) = keeper {
            report.prepend(doctor::user_namespaces(keeper));
        }
        if self.absent {
            report.checks.retain(|check| check.state != Presence::Yes);
        }
        context.print(&report, |out| write_text(&report, out))?;
        Ok(if report.able {
            Exit::Ok
        } else {
            Exit::CannotRun
        })
    }
}

fn write_text(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "tsim {} on Linux {}", report.version, report.kernel)?;
    for area in [
        Area::Rights,
        Area::Kernel,
        Area::Tools,
        Area::Directories,
        Area::Limits,
    ] {
        write_area(area, report, out)?;
    }
    writeln!(out, "\n{}", summary(report))
}

/// Features that were not tried are one line: dozens of them say nothing more.
fn write_area(area: Area, report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let in_area = report.checks.iter().filter(|check| check.area == area);
    let (untried, tried): (Vec<_>, Vec<_>) = in_area.partition(|check| check.found == UNTRIED);
    if untried.len() + tried.len() > 0 {
        writeln!(out, "\n{}", title(area))?;
    }
    for check in tried {
        write_check(check, out)?;
    }
    if !untried.is_empty() {
        let count = format!("{} features", untried.len());
        writeln!(out, "  ?    {count:<26} {UNTRIED}")?;
    }
    Ok(())
}

fn title(area: Area) -> &'static str {
    match area {
        Area::Rights => "Rights",
        Area::Kernel => "Kernel",
        Area::Tools => "Tools",
        Area::Directories => "Directories",
        Area::Limits => "Limits",
    }
}

fn write_check(check: &Check, out: &mut dyn Write) -> io::Result<()> {
    let state = match check.state {
        Presence::Yes => "yes",
        Presence::No => "NO",
        Presence::Unknown => "?",
    };
    let line = format!("  {state:<4} {:<26} {}", check.name, check.found);
    writeln!(out, "{}", line.trim_end())?;
    if let Some(costs) = check.costs {
        writeln!(out, "       costs:  {costs}")?;
    }
    if let Some(remedy) = check.remedy {
        writeln!(out, "       remedy: {remedy}")?;
    }
    Ok(())
}

fn summary(report: &Report) -> String {
    let absent = |needed| {
        let is = |check: &&Check| check.needed == needed && check.state != Presence::Yes;
        report.checks.iter().filter(is).count()
    };
    match (report.able, absent(false)) {
        (false, _) => format!(
            "Cannot work here: {} needed things are absent.",
            absent(true).max(1)
        ),
        (true, 0) => "All there.".to_owned(),
        (true, n) => format!("Works, without {n} useful things."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: Presence, needed: bool) -> Report {
        let absent = state != Presence::Yes;
        Report {
            version: "1.2.3",
            kernel: "5.10.0".to_owned(),
            kernel_version: String::new(),
            able: !(absent && needed),
            checks: vec![Check {
                area: Area::Kernel,
                name: "owner_tables".to_owned(),
                state,
                needed,
                found: if absent { "refused" } else { "" }.to_owned(),
                costs: absent.then_some("sweeping"),
                remedy: absent.then_some("a newer kernel"),
            }],
        }
    }

    fn text(report: &Report) -> String {
        let mut out = Vec::new();
        write_text(report, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_absence_comes_with_its_cost_and_its_remedy() {
        assert_eq!(
            text(&report(Presence::No, false)),
            "tsim 1.2.3 on Linux 5.10.0\n\nKernel\n  \
             NO   owner_tables               refused\n       \
             costs:  sweeping\n       remedy: a newer kernel\n\n\
             Works, without 1 useful things.\n"
        );
    }

    #[test]
    fn the_last_line_is_the_verdict() {
        let last = |state, needed| {
            text(&report(state, needed))
                .lines()
                .last()
                .unwrap()
                .to_owned()
        };
        assert_eq!(last(Presence::Yes, true), "All there.");
        assert!(last(Presence::Unknown, true).starts_with("Cannot work here: 1"));
    }
}
