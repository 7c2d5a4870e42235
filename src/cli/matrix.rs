//! A quick job's answer as text: a matrix of services and routers that fits a terminal.
//!
//! Neighbouring services with the same verdict on every router share a line, so that `all/tcp`
//! does not print 65,535 of them. Routers that do not fit side by side go into further blocks.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use owo_colors::{OwoColorize, Style};

use crate::{
    model::Service,
    run::report::{QuickReport, RouterReport, Verdict},
};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to colour verdicts.
    pub colour: bool,
}

/// Columns between two routers.
const GAP: usize = 2;

/// Services that follow each other and have the same verdict on every router.
struct Line {
    first: Service,
    last: Service,
    /// Index of `first` in each router's list.
    index: usize,
}

impl Line {
    fn label(&self) -> String {
        if self.first == self.last {
            self.first.to_string()
        } else {
            format!(
                "{}-{}/{}",
                self.first.port, self.last.port, self.first.protocol
            )
        }
    }
}

/// Prints the report.
///
/// # Errors
/// When `out` cannot be written.
pub fn print(out: &mut dyn Write, report: &QuickReport, layout: Layout) -> io::Result<()> {
    writeln!(
        out,
        "{} -> {}   run {}, DSCP {}, measured with {}\n",
        report.source, report.destination, report.run_id, report.dscp, report.backend
    )?;
    let lines = lines(report);
    let labels = lines
        .iter()
        .map(|l| l.label().len())
        .max()
        .unwrap_or(0)
        .max("service".len());
    for block in blocks(&report.routers, layout.width.saturating_sub(labels)) {
        print_block(out, block, &lines, labels, layout)?;
    }
    print_reasons(out, report)?;
    for warning in &report.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    print_summary(out, report)
}

fn lines(report: &QuickReport) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let Some(first) = report.routers.first() else {
        return lines;
    };
    for (index, entry) in first.services.iter().enumerate() {
        let service = entry.service();
        if let Some(line) = lines.last_mut()
            && line.last.protocol == service.protocol
            && line.last.port.checked_add(1) == Some(service.port)
            && report
                .routers
                .iter()
                .all(|r| same_result(r, line.index, index))
        {
            line.last = service;
        } else {
            lines.push(Line {
                first: service,
                last: service,
                index,
            });
        }
    }
    lines
}

fn same_result(router: &RouterReport, a: usize, b: usize) -> bool {
    let result = |index: usize| router.services.get(index).map(|s| s.result);
    result(a) == result(b)
}

/// Routers in groups that fit side by side.
fn blocks(routers: &[RouterReport], width: usize) -> Vec<&[RouterReport]> {
    let mut blocks = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (index, router) in routers.iter().enumerate() {
        let column = column_width(router) + GAP;
        if index > start && used + column > width {
            blocks.push(&routers[start..index]);
            (start, used) = (index, 0);
        }
        used += column;
    }
    blocks.push(&routers[start..]);
    blocks
}

fn column_width(router: &RouterReport) -> usize {
    [
        router.name.as_str().len(),
        way(router).len(),
        "UNKNOWN".len(),
    ]
    .into_iter()
    .max()
    .unwrap_or(0)
}

/// The interfaces between which the router forwards.
fn way(router: &RouterReport) -> String {
    let name = |i: &Option<crate::model::IfName>| i.as_ref().map_or("?", |i| i.as_str()).to_owned();
    format!("{}>{}", name(&router.iface_in), name(&router.iface_out))
}

fn print_block(
    out: &mut dyn Write,
    routers: &[RouterReport],
    lines: &[Line],
    labels: usize,
    layout: Layout,
) -> io::Result<()> {
    write!(out, "{:labels$}", "service")?;
    for router in routers {
        write!(
            out,
            "{:GAP$}{:w$}",
            "",
            router.name,
            w = column_width(router)
        )?;
    }
    write!(out, "\n{:labels$}", "")?;
    for router in routers {
        write!(
            out,
            "{:GAP$}{:w$}",
            "",
            way(router),
            w = column_width(router)
        )?;
    }
    writeln!(out)?;
    for line in lines {
        write!(out, "{:labels$}", line.label())?;
        for router in routers {
            let width = column_width(router);
            let Some(service) = router.services.get(line.index) else {
                continue;
            };
            let cell = format!("{:width$}", service.result);
            let style = if layout.colour {
                style(service.result)
            } else {
                Style::new()
            };
            write!(out, "{:GAP$}{}", "", cell.style(style))?;
        }
        writeln!(out)?;
    }
    writeln!(out)
}

fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Yes => Style::new().green(),
        Verdict::No => Style::new().red().bold(),
        Verdict::Unknown => Style::new().yellow().bold(),
    }
}

/// Each reason once per router, with the services that it holds for.
fn print_reasons(out: &mut dyn Write, report: &QuickReport) -> io::Result<()> {
    for router in &report.routers {
        let mut reasons: BTreeMap<(&str, &str), Vec<Service>> = BTreeMap::new();
        for service in &router.services {
            if let Some(reason) = &service.reason {
                let verdict = match service.result {
                    Verdict::Yes => "YES",
                    Verdict::No => "NO",
                    Verdict::Unknown => "UNKNOWN",
                };
                reasons
                    .entry((verdict, reason))
                    .or_default()
                    .push(service.service());
            }
        }
        for ((verdict, reason), services) in reasons {
            writeln!(
                out,
                "{}: {verdict} {}: {reason}",
                router.name,
                ranges(&services)
            )?;
        }
    }
    Ok(())
}

/// A list of services, neighbours folded, cut after a dozen entries with a count of the rest.
fn ranges(services: &[Service]) -> String {
    const MOST: usize = 12;
    let mut runs: Vec<(Service, Service)> = Vec::new();
    for &service in services {
        match runs.last_mut() {
            Some((_, last))
                if last.protocol == service.protocol
                    && last.port.checked_add(1) == Some(service.port) =>
            {
                *last = service;
            }
            _ => runs.push((service, service)),
        }
    }
    let shown: Vec<_> = runs
        .iter()
        .take(MOST)
        .map(|&(first, last)| {
            Line {
                first,
                last,
                index: 0,
            }
            .label()
        })
        .collect();
    match runs.len().saturating_sub(MOST) {
        0 => shown.join(","),
        more => format!("{} and {more} more", shown.join(",")),
    }
}

fn print_summary(out: &mut dyn Write, report: &QuickReport) -> io::Result<()> {
    let (mut yes, mut no, mut unknown) = (0, 0, 0);
    for service in report.routers.iter().flat_map(|r| &r.services) {
        match service.result {
            Verdict::Yes => yes += 1,
            Verdict::No => no += 1,
            Verdict::Unknown => unknown += 1,
        }
    }
    writeln!(
        out,
        "{yes} YES, {no} NO, {unknown} UNKNOWN in {:.1} ms",
        report.timing_ms.total
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Dscp, Protocol, RouterName, RunId},
        run::report::{ServiceReport, Timing},
    };

    fn router(name: &str, results: &[(u16, Verdict)]) -> RouterReport {
        let service = |&(port, result): &(u16, Verdict)| ServiceReport {
            port,
            protocol: Protocol::Tcp,
            result,
            reason: (result == Verdict::No).then(|| "dropped by the policy".to_owned()),
        };
        RouterReport {
            name: RouterName::new(name).unwrap(),
            iface_in: None,
            iface_out: None,
            next_hop: None,
            services: results.iter().map(service).collect(),
        }
    }

    fn show(routers: Vec<RouterReport>, width: usize) -> String {
        let report = QuickReport {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.1.1".parse().unwrap(),
            dscp: Dscp::new(32).unwrap(),
            run_id: RunId::new("r").unwrap(),
            backend: "nft".to_owned(),
            routers,
            warnings: vec!["watch out".to_owned()],
            timing_ms: Timing::default(),
        };
        let mut out = Vec::new();
        print(
            &mut out,
            &report,
            Layout {
                width,
                colour: false,
            },
        )
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn neighbours_with_equal_verdicts_share_a_line() {
        use Verdict::{No, Yes};
        let a = router("a", &[(1, Yes), (2, Yes), (3, No), (4, No)]);
        let b = router("b", &[(1, Yes), (2, Yes), (3, No), (4, Yes)]);
        let text = show(vec![a, b], 80);
        assert!(text.contains("1-2/tcp  YES      YES"), "{text}");
        assert!(text.contains("3/tcp    NO       NO"), "{text}");
        assert!(text.contains("4/tcp    NO       YES"), "{text}");
        assert!(
            text.contains("a: NO 3-4/tcp: dropped by the policy"),
            "{text}"
        );
        assert!(text.contains("warning: watch out"), "{text}");
        assert!(text.contains("5 YES, 3 NO, 0 UNKNOWN"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let routers: Vec<_> = (0..20)
            .map(|i| router(&format!("router-{i:02}"), &[(443, Verdict::Yes)]))
            .collect();
        let text = show(routers, 60);
        let matrix = text.lines().skip(1).filter(|l| !l.contains("watch"));
        assert!(matrix.clone().all(|l| l.len() <= 60), "{text}");
        assert_eq!(text.matches("router-").count(), 20);
    }
}
