//! The result as text for people: a matrix first; then per service the verdict, the rule, the way.

use std::io::{self, Write};

use owo_colors::{OwoColorize, Style};

use super::result::{
    CameBy, DetailedReport, Direction, PacketWay, RouterTest, RuleEvidence, ServiceResult,
    ServiceStatus, TakenLeg,
};
use crate::{model::printable, run::report::Verdict};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetailedLayout {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to colour statuses.
    pub colour: bool,
    /// Whether to show every rule that was met, and the packets' ways through the routers.
    pub evidence: bool,
    /// Whether to print the verdicts from end to end alone.
    pub answer_only: bool,
}

/// Columns between two routers.
const GAP: usize = 2;
/// As wide as the longest status of a router that was not reached.
const STATUS_WIDTH: usize = 13;
/// As wide as the longest verdict.
const VERDICT_WIDTH: usize = 7;

/// Prints the result.
///
/// # Errors
/// When `out` cannot be written.
pub fn print(
    out: &mut dyn Write,
    report: &DetailedReport,
    layout: DetailedLayout,
) -> io::Result<()> {
    let printer = Printer { report, layout };
    if layout.answer_only {
        return printer.verdicts(out);
    }
    writeln!(
        out,
        "{} → {}   lab {}, run {}, {}\n",
        report.source, report.destination, report.lab, report.run_id, report.started_at
    )?;
    printer.verdicts(out)?;
    printer.matrix(out)?;
    for service in &report.services {
        printer.service(out, service)?;
    }
    for warning in &report.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    if !layout.evidence {
        writeln!(
            out,
            "--evidence shows every rule that was met, with counters, and the packets' ways\n"
        )?;
    }
    printer.summary(out)
}

struct Printer<'a> {
    report: &'a DetailedReport,
    layout: DetailedLayout,
}

impl Printer<'_> {
    fn style(&self, status: ServiceStatus) -> Style {
        self.verdict_style(status.verdict())
    }

    fn verdict_style(&self, verdict: Verdict) -> Style {
        if !self.layout.colour {
            return Style::new();
        }
        match verdict {
            Verdict::Yes => Style::new().green(),
            Verdict::No => Style::new().red().bold(),
            Verdict::Unknown => Style::new().yellow().bold(),
        }
    }

    /// Each service's end-to-end verdict.
    fn verdicts(&self, out: &mut dyn Write) -> io::Result<()> {
        let names = self.report.services.iter();
        let label = names
            .map(|s| s.service.to_string().len())
            .max()
            .unwrap_or(0);
        for service in &self.report.services {
            let verdict = service.verdict();
            let style = self.verdict_style(verdict);
            let cell = format!("{verdict:VERDICT_WIDTH$}");
            let words = headline(service);
            writeln!(
                out,
                "{:label$}  {}  {words}",
                service.service,
                cell.style(style)
            )?;
        }
        match self.layout.answer_only {
            true => Ok(()),
            false => writeln!(out),
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
        if self.report.routers.is_empty() {
            return Ok(());
        }
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
                    let router = self.report.routers.get(at);
                    let test = router.and_then(|router| service.at(&router.name));
                    let (text, style) = match test {
                        Some(test) if test.counts() => {
                            (test.status.to_string(), self.style(test.status))
                        }
                        Some(test) => (format!("({})", test.status), Style::new().dimmed()),
                        None => ("-".to_owned(), Style::new()),
                    };
                    let style = if self.layout.colour {
                        style
                    } else {
                        Style::new()
                    };
                    let cell = format!("{text:w$}", w = width(at));
                    write!(out, "{:GAP$}{}", "", cell.style(style))?;
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
        write_legs(out, "→", &service.end.way)?;
        write_legs(out, "←", &service.end.answer)?;
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
            "  {} {} ({} → {}): {}{}",
            status.style(self.style(test.status)),
            test.router,
            name(&test.iface_in),
            name(&test.iface_out),
            reach(test.reach),
            test.message
        )?;
        for (what, rules) in [
            ("stopped by", &test.blocking),
            ("allowed by", &test.allowing),
            ("seen by", &test.touched),
            ("other traffic", &test.other_traffic),
        ] {
            if !self.layout.evidence && what != "stopped by" {
                continue;
            }
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
        let ways = test.trace.iter().filter(|_| self.layout.evidence);
        for way in ways {
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

/// What is said of a router that has no part in the result.
pub(super) fn reach(reach: CameBy) -> &'static str {
    match reach {
        CameBy::Reached | CameBy::ByAnswer => "",
        CameBy::NotReached => "not reached; on its own: ",
        CameBy::NotOnTheWay => "not on the way; on its own: ",
    }
}

fn write_legs(out: &mut dyn Write, arrow: &str, legs: &[TakenLeg]) -> io::Result<()> {
    for leg in legs {
        writeln!(out, "    {arrow} {leg}")?;
    }
    Ok(())
}

/// What a service's verdict means.
pub(super) fn headline(service: &ServiceResult) -> String {
    let end = &service.end;
    let reason = end.reason.as_deref().unwrap_or_default();
    let note = end.note.as_ref().filter(|note| note.as_str() != reason);
    let note = note.map_or(String::new(), |note| format!("; {note}"));
    match (end.result, &end.router) {
        (Verdict::Yes, _) if end.way.is_empty() => reason.to_owned(),
        (Verdict::Yes, _) => format!("it gets there and the answer comes back{note}"),
        (Verdict::No, Some(router)) => format!("stopped at {router}: {reason}"),
        (Verdict::Unknown, Some(router)) => format!("not known at {router}: {reason}"),
        (_, None) => reason.to_owned(),
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
    let (chain, table) = (printable(chain), printable(table));
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
    let text = printable(&rule.rule);
    writeln!(out, "      {what:13} {}: {text}", place(rule))?;
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
            step.hook,
            step.family,
            printable(&step.table),
            printable(&step.chain),
            printable(&step.rule),
            printable(&step.verdict)
        )?;
    }
    writeln!(out, "          {}", way.end)
}
