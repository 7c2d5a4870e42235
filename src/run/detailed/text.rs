//! The result as text for people: a matrix first; then per service the verdict, the rule, the way.

use std::io::{self, Write};

use owo_colors::{OwoColorize, Style};

use super::result::{
    DetailedReport, Direction, PacketWay, RouterTest, RuleEvidence, ServiceResult, Status,
};
use crate::run::report::Verdict;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to colour statuses.
    pub colour: bool,
}

/// Columns between two routers.
const GAP: usize = 2;
/// As wide as the longest status.
const STATUS_WIDTH: usize = 11;

/// Prints the result.
///
/// # Errors
/// When `out` cannot be written.
pub fn print(out: &mut dyn Write, report: &DetailedReport, layout: Layout) -> io::Result<()> {
    let printer = Printer { report, layout };
    writeln!(
        out,
        "{} → {}   lab {}, run {}, {}\n",
        report.source, report.destination, report.lab, report.run_id, report.started_at
    )?;
    printer.matrix(out)?;
    for service in &report.services {
        printer.service(out, service)?;
    }
    for warning in &report.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    printer.summary(out)
}

struct Printer<'a> {
    report: &'a DetailedReport,
    layout: Layout,
}

impl Printer<'_> {
    fn style(&self, status: Status) -> Style {
        if !self.layout.colour {
            return Style::new();
        }
        match status.verdict() {
            Verdict::Yes => Style::new().green(),
            Verdict::No => Style::new().red().bold(),
            Verdict::Unknown => Style::new().yellow().bold(),
        }
    }

    fn matrix(&self, out: &mut dyn Write) -> io::Result<()> {
        let names = self.report.services.iter();
        let label = names.map(|s| s.service.to_string().len()).max();
        let label = label.unwrap_or(0).max("service".len());
        let width = |at: usize| {
            let name = self
                .report
                .routers
                .get(at)
                .map_or(0, |r| r.name.as_str().len());
            name.max(STATUS_WIDTH)
        };
        for block in self.blocks(label, &width) {
            write!(out, "{:label$}", "service")?;
            for at in block.clone() {
                let name = self.report.routers.get(at).map_or("", |r| r.name.as_str());
                write!(out, "{:GAP$}{name:w$}", "", w = width(at))?;
            }
            writeln!(out)?;
            for service in &self.report.services {
                write!(out, "{:label$}", service.service)?;
                for at in block.clone() {
                    let Some(test) = service.tests.get(at) else {
                        continue;
                    };
                    let cell = format!("{:w$}", test.status, w = width(at));
                    write!(out, "{:GAP$}{}", "", cell.style(self.style(test.status)))?;
                }
                writeln!(out)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// Routers in groups that fit side by side.
    fn blocks(&self, label: usize, width: &impl Fn(usize) -> usize) -> Vec<std::ops::Range<usize>> {
        let room = self.layout.width.saturating_sub(label);
        let mut blocks = Vec::new();
        let (mut start, mut used) = (0, 0);
        for at in 0..self.report.routers.len() {
            let column = width(at) + GAP;
            if at > start && used + column > room {
                blocks.push(start..at);
                (start, used) = (at, 0);
            }
            used += column;
        }
        blocks.push(start..self.report.routers.len());
        blocks
    }

    fn service(&self, out: &mut dyn Write, service: &ServiceResult) -> io::Result<()> {
        let verdict = service.verdict();
        writeln!(out, "{}  {verdict}: {}", service.service, headline(service))?;
        for test in &service.tests {
            self.test(out, test)?;
        }
        writeln!(out)
    }

    fn test(&self, out: &mut dyn Write, test: &RouterTest) -> io::Result<()> {
        let status = format!("{:STATUS_WIDTH$}", test.status);
        let name = |iface: &Option<crate::model::IfName>| {
            iface.as_ref().map_or("?", |i| i.as_str()).to_owned()
        };
        writeln!(
            out,
            "  {} {} ({} → {}): {}",
            status.style(self.style(test.status)),
            test.router,
            name(&test.iface_in),
            name(&test.iface_out),
            test.message
        )?;
        for (what, rules) in [
            ("stopped by", &test.blocking),
            ("allowed by", &test.allowing),
            ("seen by", &test.touched),
            ("other traffic", &test.other_traffic),
        ] {
            for rule in rules {
                write_rule(out, what, rule)?;
            }
        }
        for nat in &test.nat {
            writeln!(
                out,
                "      {} rewritten: {} ⇒ {}",
                nat.direction, nat.before, nat.after
            )?;
        }
        for way in &test.trace {
            write_way(out, way)?;
        }
        for warning in &test.warnings {
            writeln!(out, "      warning: {warning}")?;
        }
        Ok(())
    }

    fn summary(&self, out: &mut dyn Write) -> io::Result<()> {
        let (yes, no, unknown) = self.report.count();
        let all = self.report.services.len();
        let s = if all == 1 { "" } else { "s" };
        write!(
            out,
            "{all} service{s}: {yes} YES, {no} NO, {unknown} UNKNOWN"
        )?;
        writeln!(out, "; {:.0} ms", self.report.timing_ms.total)
    }
}

/// What a service's verdict means.
pub(super) fn headline(service: &ServiceResult) -> String {
    let list = |want: Verdict| {
        let tests = service.tests.iter();
        let names = tests.filter(|t| t.status.verdict() == want);
        names
            .map(|t| t.router.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match service.verdict() {
        Verdict::Yes => "it passes every router".to_owned(),
        Verdict::No => format!("stopped at {}", list(Verdict::No)),
        Verdict::Unknown => format!("not known at {}", list(Verdict::Unknown)),
    }
}

/// Where a rule is: `rule 4 of chain FORWARD (table ip filter)`.
pub(super) fn place(rule: &RuleEvidence) -> String {
    let RuleEvidence {
        chain,
        table,
        family,
        ..
    } = rule;
    match rule.position {
        Some(position) => format!("rule {position} of chain {chain} (table {family} {table})"),
        None => format!("policy of chain {chain} (table {family} {table})"),
    }
}

/// A rule's counters: `12 → 15 packets (+3)`.
pub(super) fn counters(rule: &RuleEvidence) -> String {
    let traced = match rule.packets_traced {
        0 => String::new(),
        1 => "1 packet traced".to_owned(),
        n => format!("{n} packets traced"),
    };
    let counted = match (
        rule.packets_before,
        rule.packets_after,
        rule.packet_increase,
    ) {
        (Some(before), Some(after), Some(more)) => format!("{before} → {after} packets (+{more})"),
        _ => "no counter".to_owned(),
    };
    let mut parts = vec![counted];
    if !traced.is_empty() {
        parts.push(traced);
    }
    if rule.unexplained > 0 && rule.packets_traced > 0 {
        parts.push(format!("{} not explained by the trace", rule.unexplained));
    }
    parts.join(", ")
}

fn write_rule(out: &mut dyn Write, what: &str, rule: &RuleEvidence) -> io::Result<()> {
    writeln!(out, "      {what:13} {}: {}", place(rule), rule.rule)?;
    writeln!(out, "                    {}", counters(rule))
}

fn write_way(out: &mut dyn Write, way: &PacketWay) -> io::Result<()> {
    let arrow = match way.direction {
        Direction::Request => "→",
        Direction::Answer => "←",
    };
    let times = match way.count {
        1 => String::new(),
        n => format!(" ({n} packets went this way)"),
    };
    writeln!(out, "      {arrow} {} {}{times}", way.packet, way.headers)?;
    for step in &way.steps {
        let at = step.position.map_or(String::new(), |p| format!(" {p}"));
        writeln!(
            out,
            "          {:11} {} {} {}{at}: {} [{}]",
            step.hook, step.family, step.table, step.chain, step.rule, step.verdict
        )?;
    }
    writeln!(out, "          {}", way.end)
}
