//! A quick job's answer as text: the verdicts from end to end, and a matrix of services and routers
//! that fits a terminal.
//!
//! Neighbouring services with the same verdict on every router share a line, so that `all/tcp`
//! does not print 65,535 of them. Routers that do not fit side by side go into further blocks.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
};

use owo_colors::{OwoColorize, Style};

use crate::{
    model::{RouterName, Service},
    run::{
        report::{EndKind, EndToEnd, QuickReport, RouterReport, ServiceReport, Verdict},
        sentence::{Span, folded, sentence},
    },
};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixLayout {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to colour verdicts.
    pub colour: bool,
    /// Whether to print the verdicts from end to end alone.
    pub answer_only: bool,
}

/// Columns between two routers.
const GAP: usize = 2;

/// Services that follow each other and have the same verdict on every router.
struct Line {
    span: Span,
    /// Index of `first` in the list of all services.
    index: usize,
}

/// A router with what became of each service there, in the order asked for; none of those that were
/// not asked about there.
struct Column<'a> {
    router: &'a RouterReport,
    cells: Vec<Option<&'a ServiceReport>>,
}

impl<'a> Column<'a> {
    fn new(router: &'a RouterReport, all: &[Service]) -> Self {
        let mut here = router.services.iter().peekable();
        let cell = |service: &Service| here.next_if(|there| there.service() == *service);
        Self {
            router,
            cells: all.iter().map(cell).collect(),
        }
    }

    fn cell(&self, index: usize) -> Option<(Verdict, bool)> {
        let cell = self.cells.get(index).copied().flatten()?;
        Some((cell.result, cell.reached))
    }

    fn text(&self, index: usize) -> String {
        match self.cell(index) {
            None => "-".to_owned(),
            Some((verdict, true)) => verdict.to_string(),
            Some((verdict, false)) => format!("({verdict})"),
        }
    }
}

/// Prints the report.
///
/// # Errors
/// When `out` cannot be written.
pub fn print(out: &mut dyn Write, report: &QuickReport, layout: MatrixLayout) -> io::Result<()> {
    if layout.answer_only {
        return print_ends(out, report, layout);
    }
    writeln!(
        out,
        "{} → {}   run {}, DSCP {}, measured with {}\n",
        report.source, report.destination, report.run_id, report.dscp, report.backend
    )?;
    print_ends(out, report, layout)?;
    let all: Vec<Service> = services(report);
    let columns: Vec<Column> = report
        .routers
        .iter()
        .map(|r| Column::new(r, &all))
        .collect();
    if !columns.is_empty() {
        print_matrix(out, &columns, &lines(&all, &columns), layout)?;
    }
    print_reasons(out, report)?;
    for warning in &report.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    print_summary(out, report)
}

/// The services in the order asked for. Results of older versions have them per router only.
fn services(report: &QuickReport) -> Vec<Service> {
    if report.end_to_end.is_empty() {
        let first = report.routers.first();
        let services = first.map_or(&[][..], |router| &router.services);
        return services.iter().map(ServiceReport::service).collect();
    }
    report.end_to_end.iter().map(EndToEnd::service).collect()
}

/// The verdicts from end to end, services that end alike together.
fn print_ends(out: &mut dyn Write, report: &QuickReport, layout: MatrixLayout) -> io::Result<()> {
    type Key<'a> = (Verdict, EndKind, Option<&'a str>, Option<&'a str>);
    let mut ends: Vec<(Key, Vec<Service>)> = Vec::new();
    let mut known: HashMap<Key, usize> = HashMap::new();
    for end in &report.end_to_end {
        let router = end.router.as_ref().map(RouterName::as_str);
        let key = (end.result, end.end, router, end.reason.as_deref());
        let at = *known.entry(key).or_insert_with(|| {
            ends.push((key, Vec::new()));
            ends.len() - 1
        });
        if let Some((_, services)) = ends.get_mut(at) {
            services.push(end.service());
        }
    }
    for ((verdict, kind, router, reason), services) in &ends {
        let style = if layout.colour {
            style(*verdict)
        } else {
            Style::new()
        };
        let verdict_text = format!("{verdict:7}");
        writeln!(
            out,
            "{} {} {}",
            verdict_text.style(style),
            folded(services),
            sentence(*verdict, *kind, *router, *reason, report.scope)
        )?;
    }
    if !ends.is_empty() {
        writeln!(out)?;
    }
    Ok(())
}

fn print_matrix(
    out: &mut dyn Write,
    columns: &[Column<'_>],
    lines: &[Line],
    layout: MatrixLayout,
) -> io::Result<()> {
    let labels = lines
        .iter()
        .map(|l| l.span.to_string().len())
        .max()
        .unwrap_or(0)
        .max("service".len());
    for block in blocks(columns, layout.width.saturating_sub(labels)) {
        print_block(out, block, lines, labels, layout)?;
    }
    let mut cells = columns.iter().flat_map(|column| &column.cells).flatten();
    if cells.any(|cell| !cell.reached) {
        writeln!(
            out,
            "(in brackets: not reached; measured with the packet that was planned to come)\n"
        )?;
    }
    Ok(())
}

fn lines(all: &[Service], columns: &[Column<'_>]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (index, &service) in all.iter().enumerate() {
        let alike = |line: &Line| {
            let mut columns = columns.iter();
            columns.all(|column| column.cell(line.index) == column.cell(index))
        };
        let last = lines.last_mut().filter(|line| alike(line));
        if !last.is_some_and(|line| line.span.extend(service)) {
            lines.push(Line {
                span: Span::one(service),
                index,
            });
        }
    }
    lines
}

/// Routers in groups that fit side by side.
fn blocks<'a, 'r>(routers: &'a [Column<'r>], width: usize) -> Vec<&'a [Column<'r>]> {
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

fn column_width(column: &Column<'_>) -> usize {
    let mut cells = column.cells.iter().flatten();
    [
        column.router.name.as_str().len(),
        way(column.router).len(),
        place(column.router).len(),
        if cells.any(|cell| !cell.reached) {
            "(UNKNOWN)".len()
        } else {
            "UNKNOWN".len()
        },
    ]
    .into_iter()
    .max()
    .unwrap_or(0)
}

/// What is unlike others about the router's place.
fn place(router: &RouterReport) -> String {
    let text = match router {
        RouterReport { bridged: true, .. } => "by a bridge",
        RouterReport { on_way: false, .. } => "not on the way",
        _ => "",
    };
    text.to_owned()
}

/// The interfaces between which the router forwards.
fn way(router: &RouterReport) -> String {
    let name = |i: &Option<crate::model::IfName>| i.as_ref().map_or("?", |i| i.as_str()).to_owned();
    format!("{}>{}", name(&router.iface_in), name(&router.iface_out))
}

fn print_block(
    out: &mut dyn Write,
    columns: &[Column<'_>],
    lines: &[Line],
    labels: usize,
    layout: MatrixLayout,
) -> io::Result<()> {
    let head = |out: &mut dyn Write, label: &str, text: &dyn Fn(&RouterReport) -> String| {
        write!(out, "{label:labels$}")?;
        for column in columns {
            let width = column_width(column);
            write!(out, "{:GAP$}{:width$}", "", text(column.router))?;
        }
        writeln!(out)
    };
    head(out, "service", &|router| router.name.to_string())?;
    head(out, "", &way)?;
    let routers = || columns.iter().map(|column| column.router);
    if routers().any(|router| router.bridged || !router.on_way) {
        head(out, "", &place)?;
    }
    for line in lines {
        write!(out, "{:labels$}", line.span.to_string())?;
        for column in columns {
            let width = column_width(column);
            let cell = format!("{:width$}", column.text(line.index));
            let style = match column.cell(line.index) {
                Some((verdict, true)) if layout.colour => style(verdict),
                _ => Style::new(),
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
        let mut reasons: BTreeMap<(String, &str), Vec<Service>> = BTreeMap::new();
        for service in &router.services {
            if let Some(reason) = &service.reason {
                let verdict = match service.result {
                    Verdict::Yes => "YES",
                    Verdict::No => "NO",
                    Verdict::Unknown => "UNKNOWN",
                };
                let verdict = match service.reached {
                    true => verdict.to_owned(),
                    false => format!("({verdict})"),
                };
                reasons
                    .entry((verdict, &**reason))
                    .or_default()
                    .push(service.service());
            }
        }
        for ((verdict, reason), services) in reasons {
            writeln!(
                out,
                "{}: {verdict} {}: {reason}",
                router.name,
                folded(&services)
            )?;
        }
    }
    Ok(())
}

fn print_summary(out: &mut dyn Write, report: &QuickReport) -> io::Result<()> {
    let (mut yes, mut no, mut unknown) = (0, 0, 0);
    // Results of older versions have verdicts per router only.
    let routers = report.routers.iter().flat_map(|router| &router.services);
    let routers = routers.filter(|_| report.end_to_end.is_empty());
    let ends = report.end_to_end.iter().map(|end| end.result);
    for result in ends.chain(routers.map(|service| service.result)) {
        match result {
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
        run::report::{ServiceReport, Timing, VerdictScope},
    };

    fn router(name: &str, results: &[(u16, Verdict)]) -> RouterReport {
        let service = |&(port, result): &(u16, Verdict)| ServiceReport {
            port,
            protocol: Protocol::Tcp,
            result,
            reason: (result == Verdict::No).then(|| "dropped by the policy".into()),
            reached: true,
        };
        RouterReport {
            name: RouterName::new(name).unwrap(),
            iface_in: None,
            iface_out: None,
            next_hop: None,
            on_way: true,
            bridged: false,
            services: results.iter().map(service).collect(),
        }
    }

    /// Services that end where the first router that stops them does.
    fn ends(routers: &[RouterReport]) -> Vec<EndToEnd> {
        let first = routers.first().map_or(&[][..], |router| &router.services);
        let one = |(at, service): (usize, &ServiceReport)| {
            let stops = routers
                .iter()
                .find(|r| r.services[at].result != Verdict::Yes);
            EndToEnd {
                port: service.port,
                protocol: service.protocol,
                result: stops.map_or(Verdict::Yes, |router| router.services[at].result),
                reason: stops.and_then(|router| router.services[at].reason.clone()),
                router: stops.or(routers.last()).map(|router| router.name.clone()),
                end: stops.map_or(EndKind::Delivered, |_| EndKind::Stopped),
                way: Vec::new(),
            }
        };
        first.iter().enumerate().map(one).collect()
    }

    fn show(routers: Vec<RouterReport>, width: usize) -> String {
        let report = QuickReport {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.1.1".parse().unwrap(),
            dscp: Dscp::new(32).unwrap(),
            run_id: RunId::new("r").unwrap(),
            backend: "nft".to_owned(),
            scope: VerdictScope::Whole,
            end_to_end: ends(&routers),
            routers,
            warnings: vec!["watch out".to_owned()],
            timing_ms: Timing::default(),
        };
        let mut out = Vec::new();
        print(
            &mut out,
            &report,
            MatrixLayout {
                width,
                colour: false,
                answer_only: false,
            },
        )
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_router_at_layer_2_has_a_column_that_says_so() {
        let mut bridge = router("f", &[(22, Verdict::Yes), (80, Verdict::No)]);
        bridge.bridged = true;
        let plain = router("a", &[(22, Verdict::Yes), (80, Verdict::Yes)]);
        let text = show(vec![plain.clone(), bridge], 80);
        assert!(text.contains("\n                  by a bridge\n"), "{text}");
        assert!(
            text.contains("f: NO 80/tcp: dropped by the policy"),
            "{text}"
        );
        assert!(!show(vec![plain], 80).contains("bridge"));
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
        assert!(text.contains("YES     1-2/tcp arrives"), "{text}");
        assert!(
            text.contains("NO      3-4/tcp stops first at a: dropped by the policy"),
            "{text}"
        );
        assert!(text.contains("2 YES, 2 NO, 0 UNKNOWN"), "{text}");
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
