//! A job's result as people are shown it: the verdicts from end to end, services that end alike
//! together; and the matrix of services and routers, line by line, so that nobody has to take in
//! thousands of services and dozens of routers at once.
//!
//! It is read from what the runner wrote, quick or detailed; evidence is skipped over.

use std::{
    collections::HashMap,
    io::{self, BufReader},
    net::IpAddr,
    ops::Range,
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use super::{
    job::Verdicts,
    runner::{OVERVIEW, RESULT},
    spool::Spool,
};
use crate::{
    model::{IfName, Protocol, RouterName, RunId, Service},
    run::{
        report::{EndKind, Verdict, VerdictScope},
        sentence::{Span, folded, sentence},
    },
};

/// A runner's result, as far as it is shown here.
#[derive(Deserialize)]
struct Written {
    backend: Option<String>,
    #[serde(default)]
    scope: VerdictScope,
    #[serde(default)]
    end_to_end: Vec<WrittenEnd>,
    routers: Vec<WrittenRouter>,
    #[serde(default)]
    warnings: Vec<String>,
    timing_ms: Option<WrittenTiming>,
}

#[derive(Deserialize)]
struct WrittenEnd {
    port: u16,
    protocol: Protocol,
    result: Verdict,
    reason: Option<Arc<str>>,
    note: Option<Arc<str>>,
    router: Option<RouterName>,
    end: EndKind,
    way: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct WrittenRouter {
    name: RouterName,
    iface_in: Option<IfName>,
    iface_out: Option<IfName>,
    next_hop: Option<IpAddr>,
    #[serde(default = "yes")]
    on_way: bool,
    services: Vec<WrittenService>,
}

#[derive(Deserialize)]
struct WrittenService {
    port: u16,
    protocol: Protocol,
    result: Verdict,
    reason: Option<Arc<str>>,
    #[serde(default = "yes")]
    reached: bool,
}

#[derive(Deserialize)]
struct WrittenTiming {
    total: f64,
}

fn yes() -> bool {
    true
}

/// A result for people, from end to end first: who was asked, what became of each service, what to know
/// beside it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Answer")]
pub struct AnswerHead {
    /// What measured; none for a detailed job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// What the verdicts from end to end are about: the whole way, or the way through the routers that were
    /// named.
    pub scope: VerdictScope,
    /// The verdicts counted.
    pub verdicts: Verdicts,
    /// From end to end; empty in results of older versions.
    pub ends: Vec<AlikeServices>,
    /// The columns of the matrix.
    pub routers: Vec<Column>,
    /// How many services were asked about.
    pub services: usize,
    /// What the reader should know beside the verdicts.
    pub warnings: Vec<String>,
    /// How long the job took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
}

/// Services that end alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "End")]
pub struct AlikeServices {
    /// The verdict.
    pub result: Verdict,
    /// How the way ends.
    pub end: EndKind,
    /// Where it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterName>,
    /// The services, neighbours folded and long lists cut.
    pub services: String,
    /// How many there are.
    #[schemars(range(min = 1))]
    pub count: usize,
    /// The rest of the sentence, such as `stops first at gw: dropped by …`.
    pub text: String,
    /// The way of the first of them, as it stands in the result.
    pub way: RawLegs,
}

/// Legs of a way as the runner wrote them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "Option<Vec<Map<String, Value>>>", inline)]
pub struct RawLegs(Option<Arc<RawValue>>);

impl PartialEq for RawLegs {
    fn eq(&self, other: &Self) -> bool {
        let text = |legs: &Self| legs.0.as_ref().map(|legs| legs.get().to_owned());
        text(self) == text(other)
    }
}

/// A router of the matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Column {
    /// The router.
    pub name: RouterName,
    /// Where packets come in.
    pub iface_in: Option<IfName>,
    /// Where they leave.
    pub iface_out: Option<IfName>,
    /// To whom they are sent.
    pub next_hop: Option<IpAddr>,
    /// Whether some service's packet really came here.
    pub on_way: bool,
}

/// What became of a service at a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
pub struct ServiceCell {
    /// The verdict.
    pub result: Verdict,
    /// Whether its packet really came here; if not, the verdict does not count.
    pub reached: bool,
    /// Number of the reason among the page's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<u32>,
}

/// Neighbouring services with the same answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MatrixLine {
    /// Such as `22/tcp` or `8000-8100/tcp`.
    pub services: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
    /// The verdict from end to end; none in results of older versions.
    pub result: Option<Verdict>,
    /// One per router; none where it was not asked there.
    pub cells: Vec<Option<ServiceCell>>,
}

/// Some lines of the matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "MatrixPage")]
pub struct MatrixSlice {
    /// How many lines fit what was asked for.
    pub total: usize,
    /// Those of the page.
    pub lines: Vec<MatrixLine>,
    /// The reasons, by the number that cells name.
    pub reasons: HashMap<u32, Arc<str>>,
}

/// Which lines are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Words, each of which has to be in the line: a port, a protocol, a router, part of a reason.
    pub find: String,
    /// A verdict that the line has, from end to end or at a router that was reached.
    pub result: Option<Verdict>,
    /// The first line.
    pub offset: usize,
    /// Most lines.
    pub limit: usize,
}

/// The answer of a job that is over.
#[derive(Debug)]
pub struct Answer {
    /// What is said first.
    pub head: AnswerHead,
    lines: Vec<Row>,
    /// All cells, line by line.
    cells: Vec<Option<ServiceCell>>,
    reasons: Vec<Arc<str>>,
}

/// A line as it is kept.
#[derive(Debug)]
struct Row {
    span: Span,
    result: Option<Verdict>,
    cells: Range<usize>,
}

impl Answer {
    /// Reads the result of a run.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none; otherwise that it cannot be read, or has
    /// another shape.
    pub fn read(spool: &Spool, run_id: &RunId) -> io::Result<Self> {
        let open = |name| spool.run_file(run_id, name).map_err(io::Error::other);
        // Of thousands of services the evidence is most of a result; quick jobs have none.
        let file = match open(OVERVIEW)? {
            Some(overview) => Some(overview),
            None => open(RESULT)?,
        };
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        let file = BufReader::with_capacity(1 << 16, file);
        Ok(Self::of(serde_json::from_reader(file)?))
    }

    fn of(written: Written) -> Self {
        let services = services(&written);
        let mut matrix = Matrix::default();
        let columns: Vec<Vec<Option<ServiceCell>>> = written
            .routers
            .iter()
            .map(|router| matrix.column(router, &services))
            .collect();
        let results = written.end_to_end.iter().map(|end| end.result);
        let results: Vec<Verdict> = results.collect();
        let (lines, cells) = fold(&services, &results, &columns);
        let column = |router: WrittenRouter| Column {
            name: router.name,
            iface_in: router.iface_in,
            iface_out: router.iface_out,
            next_hop: router.next_hop,
            on_way: router.on_way,
        };
        let head = AnswerHead {
            backend: written.backend,
            scope: written.scope,
            verdicts: count(&results, &columns),
            ends: ends(written.end_to_end, written.scope),
            routers: written.routers.into_iter().map(column).collect(),
            services: services.len(),
            warnings: written.warnings,
            total_ms: written.timing_ms.map(|timing| timing.total),
        };
        Self {
            head,
            lines,
            cells,
            reasons: matrix.reasons,
        }
    }

    /// The lines that are asked for.
    #[must_use]
    pub fn page(&self, wanted: &Wanted) -> MatrixSlice {
        let words = wanted.find.to_lowercase();
        let words: Vec<&str> = words.split_whitespace().collect();
        let matching: Vec<bool> = words
            .iter()
            .flat_map(|word| self.reasons.iter().map(move |reason| (word, reason)))
            .map(|(word, reason)| reason.to_lowercase().contains(word))
            .collect();
        let fits = |row: &&Row| {
            let mut words = words.iter().enumerate();
            self.has_result(row, wanted.result)
                && words.all(|(at, word)| {
                    let reasons = matching.get(at * self.reasons.len()..).unwrap_or_default();
                    self.has_word(row, word, reasons)
                })
        };
        let found: Vec<&Row> = self.lines.iter().filter(fits).collect();
        let shown = found.iter().skip(wanted.offset).take(wanted.limit);
        let lines: Vec<MatrixLine> = shown.map(|row| self.line(row)).collect();
        let named = lines.iter().flat_map(|line| &line.cells).flatten();
        let named = named.filter_map(|cell| {
            let number = cell.reason?;
            Some((number, Arc::clone(self.reasons.get(number as usize)?)))
        });
        MatrixSlice {
            total: found.len(),
            reasons: named.collect(),
            lines,
        }
    }

    fn cells(&self, row: &Row) -> &[Option<ServiceCell>] {
        self.cells.get(row.cells.clone()).unwrap_or_default()
    }

    fn line(&self, row: &Row) -> MatrixLine {
        MatrixLine {
            services: row.span.to_string(),
            protocol: row.span.first.protocol,
            first: row.span.first.port,
            last: row.span.last.port,
            result: row.result,
            cells: self.cells(row).to_vec(),
        }
    }

    fn has_result(&self, row: &Row, wanted: Option<Verdict>) -> bool {
        let Some(wanted) = wanted else {
            return true;
        };
        let reached = self.cells(row).iter().flatten().filter(|cell| cell.reached);
        let mut results = row
            .result
            .into_iter()
            .chain(reached.map(|cell| cell.result));
        results.any(|result| result == wanted)
    }

    /// `reasons` tells for each reason whether it has the word.
    fn has_word(&self, row: &Row, word: &str, reasons: &[bool]) -> bool {
        let within = |port: u16| (row.span.first.port..=row.span.last.port).contains(&port);
        let cells = self.cells(row).iter().zip(&self.head.routers);
        word.parse().is_ok_and(within)
            || row.span.to_string().contains(word)
            || cells.clone().any(|(cell, router)| {
                let cell = cell.filter(|_| !word.is_empty());
                let stops = cell.is_some_and(|cell| cell.reached && cell.result != Verdict::Yes);
                stops && router.name.as_str().to_lowercase().contains(word)
            })
            || cells.into_iter().any(|(cell, _)| {
                let reason = cell.and_then(|cell| cell.reason);
                reason.is_some_and(|at| reasons.get(at as usize) == Some(&true))
            })
    }
}

/// The services in the order asked for. Results of older versions have them per router only.
fn services(written: &Written) -> Vec<Service> {
    let service = |port, protocol| Service { port, protocol };
    if written.end_to_end.is_empty() {
        let first = written.routers.first();
        let services = first.map_or(&[][..], |router| &router.services);
        return services
            .iter()
            .map(|s| service(s.port, s.protocol))
            .collect();
    }
    let ends = written.end_to_end.iter();
    ends.map(|end| service(end.port, end.protocol)).collect()
}

/// Cells with each reason noted once.
#[derive(Default)]
struct Matrix {
    numbers: HashMap<Arc<str>, u32>,
    reasons: Vec<Arc<str>>,
}

impl Matrix {
    fn number(&mut self, reason: &Arc<str>) -> Option<u32> {
        if let Some(number) = self.numbers.get(reason) {
            return Some(*number);
        }
        let number = u32::try_from(self.reasons.len()).ok()?;
        self.numbers.insert(Arc::clone(reason), number);
        self.reasons.push(Arc::clone(reason));
        Some(number)
    }

    /// A router's cells, one per service; it may not have been asked about all of them.
    fn column(&mut self, router: &WrittenRouter, services: &[Service]) -> Vec<Option<ServiceCell>> {
        let mut here = router.services.iter().peekable();
        let cell = |service: &Service| {
            let is_it = |there: &&WrittenService| {
                (there.port, there.protocol) == (service.port, service.protocol)
            };
            let there = here.next_if(is_it)?;
            Some(ServiceCell {
                result: there.result,
                reached: there.reached && router.on_way,
                reason: there.reason.as_ref().and_then(|r| self.number(r)),
            })
        };
        services.iter().map(cell).collect()
    }
}

/// Neighbouring services with the same answers as one line each.
fn fold(
    services: &[Service],
    results: &[Verdict],
    columns: &[Vec<Option<ServiceCell>>],
) -> (Vec<Row>, Vec<Option<ServiceCell>>) {
    let mut lines: Vec<Row> = Vec::new();
    let mut cells: Vec<Option<ServiceCell>> = Vec::new();
    for (at, &service) in services.iter().enumerate() {
        let result = results.get(at).copied();
        let here = columns.iter();
        let here: Vec<Option<ServiceCell>> = here
            .map(|column| column.get(at).copied().flatten())
            .collect();
        let alike = |row: &Row| {
            let there = cells.get(row.cells.clone());
            row.result == result && there == Some(here.as_slice())
        };
        let last = lines.last_mut().filter(|row| alike(row));
        if last.is_some_and(|row| row.span.extend(service)) {
            continue;
        }
        let start = cells.len();
        cells.extend(here);
        lines.push(Row {
            span: Span::one(service),
            result,
            cells: start..cells.len(),
        });
    }
    (lines, cells)
}

/// The verdicts from end to end; of an older version's result those at each router.
fn count(results: &[Verdict], columns: &[Vec<Option<ServiceCell>>]) -> Verdicts {
    let cells = columns.iter().flatten().flatten();
    let cells = cells.filter(|cell| results.is_empty() && cell.reached);
    let all = results.iter().copied().chain(cells.map(|cell| cell.result));
    all.collect()
}

/// Services that end alike together, in the order of the first of each.
fn ends(written: Vec<WrittenEnd>, scope: VerdictScope) -> Vec<AlikeServices> {
    type Key = (Verdict, EndKind, Option<RouterName>, Option<Arc<str>>);
    let mut groups: Vec<(Key, Option<Box<RawValue>>, Vec<Service>)> = Vec::new();
    let mut known: HashMap<Key, usize> = HashMap::new();
    for end in written {
        let service = Service {
            port: end.port,
            protocol: end.protocol,
        };
        let reason = end.reason.or(end.note);
        let key = (end.result, end.end, end.router, reason);
        if let Some(group) = known.get(&key).and_then(|at| groups.get_mut(*at)) {
            group.2.push(service);
        } else {
            known.insert(key.clone(), groups.len());
            groups.push((key, end.way, vec![service]));
        }
    }
    let group = |(key, way, services): (Key, Option<Box<RawValue>>, Vec<Service>)| {
        let (result, end, router, reason) = key;
        let name = router.as_ref().map(RouterName::as_str);
        AlikeServices {
            result,
            end,
            text: sentence(result, end, name, reason.as_deref(), scope),
            router,
            services: folded(&services),
            count: services.len(),
            way: RawLegs(way.map(Arc::from)),
        }
    };
    groups.into_iter().map(group).collect()
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
