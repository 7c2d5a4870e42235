//! The result as JSON: per service in the shape of the Python system, so that its dashboards go on
//! reading, with what is new beside it; and all of it in one document, whose `routers` are those
//! of a quick job's.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::result::{
    DetailedReport, DetailedTiming, LockTime, RouterTest, ServiceResult, ServiceStatus,
    ServiceTest, TakenLeg,
};
use crate::{
    model::{IfName, Protocol, RouterName, Service},
    run::report::{EndKind, RouterReport, ServiceReport, Verdict},
};

/// Everything in one document.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetailedDocument<'a> {
    timestamp: &'a str,
    version: &'static str,
    run_id: &'a str,
    lab: &'a str,
    summary: Summary<'a>,
    /// Whether each service gets from the source to the destination and back.
    end_to_end: Vec<EndDocument<'a>>,
    /// As a quick job would answer.
    routers: Vec<RouterReport>,
    services: Vec<ServiceDocument<'a>>,
    locks: &'a [LockTime],
    warnings: &'a [String],
    timing_ms: DetailedTiming,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Summary<'a> {
    source_ip: &'a IpAddr,
    source_port: Value,
    destination_ip: &'a IpAddr,
    services: usize,
    yes: usize,
    no: usize,
    unknown: usize,
}

/// Whether one service gets there and back, in the shape of a quick job's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EndDocument<'a> {
    port: u16,
    protocol: Protocol,
    result: Verdict,
    status: ServiceStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    router: Option<&'a RouterName>,
    end: EndKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    way: Vec<LegDocument<'a>>,
    answer: Vec<LegDocument<'a>>,
}

/// A router on a way, with the addresses that packets have behind it.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct LegDocument<'a> {
    router: &'a RouterName,
    iface_in: &'a Option<IfName>,
    iface_out: &'a Option<IfName>,
    next_hop: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bridged: Option<Verdict>,
    source: IpAddr,
    destination: IpAddr,
    sport: Option<u16>,
    dport: Option<u16>,
}

impl<'a> EndDocument<'a> {
    fn of(result: &'a ServiceResult) -> Self {
        let end = &result.end;
        let reason = end.reason.as_deref();
        Self {
            port: result.service.port,
            protocol: result.service.protocol,
            result: end.result,
            status: end.status,
            reason: match (end.result, end.kind) {
                (Verdict::Yes, EndKind::Itself) => end.note.as_deref(),
                (Verdict::Yes, _) => None,
                _ => reason,
            },
            router: end.router.as_ref(),
            end: end.kind,
            note: end.note.as_deref(),
            way: end.way.iter().map(LegDocument::of).collect(),
            answer: end.answer.iter().map(LegDocument::of).collect(),
        }
    }
}

impl<'a> LegDocument<'a> {
    fn of(leg: &'a TakenLeg) -> Self {
        Self {
            router: &leg.router,
            iface_in: &leg.iface_in,
            iface_out: &leg.iface_out,
            next_hop: leg.next_hop,
            bridged: leg.bridged,
            source: leg.headers.source,
            destination: leg.headers.destination,
            sport: leg.headers.source_port,
            dport: leg.headers.destination_port,
        }
    }
}

/// One service, as the Python system writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceDocument<'a> {
    timestamp: &'a str,
    version: &'static str,
    run_id: &'a str,
    summary: Value,
    end_to_end: EndDocument<'a>,
    reachability_tests: Tests<'a>,
    router_service_results: Map<String, Value>,
    reachability_summary: Value,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Tests<'a> {
    traceroute: Value,
    service: ServiceTests<'a>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ServiceTests<'a> {
    result: TestList<'a>,
    return_code: u8,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct TestList<'a> {
    tests: &'a [RouterTest],
}

/// The whole result.
#[must_use]
pub fn document(report: &DetailedReport) -> DetailedDocument<'_> {
    let (yes, no, unknown) = report.count();
    DetailedDocument {
        timestamp: &report.started_at,
        version: env!("CARGO_PKG_VERSION"),
        run_id: report.run_id.as_str(),
        lab: report.lab.as_str(),
        summary: Summary {
            source_ip: &report.source,
            source_port: source_port(report),
            destination_ip: &report.destination,
            services: report.services.len(),
            yes,
            no,
            unknown,
        },
        end_to_end: report.services.iter().map(EndDocument::of).collect(),
        routers: as_quick(report),
        services: report
            .services
            .iter()
            .map(|s| service_document(report, s))
            .collect(),
        locks: &report.locks,
        warnings: &report.warnings,
        timing_ms: report.timing_ms,
    }
}

/// The result without its evidence and the answers' ways, which are most of it.
pub(super) fn overview(report: &DetailedReport) -> DetailedDocument<'_> {
    let mut document = DetailedDocument {
        services: Vec::new(),
        ..document(report)
    };
    for end in &mut document.end_to_end {
        end.answer.clear();
    }
    document
}

/// One service of the result.
#[must_use]
pub fn service_document<'a>(
    report: &'a DetailedReport,
    result: &'a ServiceResult,
) -> ServiceDocument<'a> {
    let Service { port, protocol } = result.service;
    let statuses = result.tests.iter();
    let statuses = statuses.map(|t| (t.router.to_string(), json!(t.status)));
    ServiceDocument {
        timestamp: &report.started_at,
        version: env!("CARGO_PKG_VERSION"),
        run_id: report.run_id.as_str(),
        summary: json!({
            "source_ip": report.source,
            "source_port": source_port(report),
            "destination_ip": report.destination,
            "destination_port": port,
            "protocol": protocol,
        }),
        end_to_end: EndDocument::of(result),
        reachability_tests: Tests {
            traceroute: traceroute(report),
            service: ServiceTests {
                result: TestList {
                    tests: &result.tests,
                },
                return_code: return_code(result.verdict()),
            },
        },
        router_service_results: statuses.collect(),
        reachability_summary: reachability(result),
    }
}

/// What was measured of a service through the routers of one stretch of its way.
pub(super) fn measured(service: Service, test: &ServiceTest) -> impl Serialize {
    let end = &test.end;
    json!({
        "port": service.port,
        "protocol": service.protocol,
        "result": end.result,
        "status": end.status,
        "reason": end.reason,
        "tests": test.tests,
    })
}

fn source_port(report: &DetailedReport) -> Value {
    report.source_port.map_or(json!("ephemeral"), |p| json!(p))
}

fn traceroute(report: &DetailedReport) -> Value {
    let hops = report.routers.iter().zip(1..).map(|(router, hop)| {
        json!({
            "hop": hop,
            "router": router.name,
            "incoming_interface": router.iface_in,
            "outgoing_interface": router.iface_out,
            "next_hop": router.next_hop,
        })
    });
    let hops: Vec<_> = hops.collect();
    json!({ "result": { "hops": hops }, "return_code": 0 })
}

/// The exit code that a job about this service alone would have.
fn return_code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Yes => 0,
        Verdict::No => 1,
        Verdict::Unknown => 3,
    }
}

fn reachability(result: &ServiceResult) -> Value {
    let with = |want: Verdict| {
        let tests = result.tests.iter().filter(|t| t.counts());
        let tests = tests.filter(move |t| t.status.verdict() == want);
        tests.map(|t| &t.router).collect::<Vec<_>>()
    };
    let reachable = match result.verdict() {
        Verdict::Yes => Some(true),
        Verdict::No => Some(false),
        Verdict::Unknown => None,
    };
    json!({
        "service_reachable": reachable,
        "reachable_via_routers": with(Verdict::Yes),
        "blocked_by_routers": with(Verdict::No),
        "unknown_at_routers": with(Verdict::Unknown),
    })
}

/// The same result as a quick job words it: per router, then per service.
#[must_use]
pub fn as_quick(report: &DetailedReport) -> Vec<RouterReport> {
    let routers = report.routers.iter();
    let is_bridge = |name: &RouterName| {
        let ends = report.services.iter().map(|service| &service.end);
        let legs = ends.flat_map(|end| end.way.iter().chain(&end.answer));
        let mut legs = legs.filter(|leg| leg.router == *name).peekable();
        legs.peek().is_some() && legs.all(|leg| leg.bridged.is_some())
    };
    let services = |name: &'_ RouterName| {
        let tests = report.services.iter();
        let tests = tests.filter_map(|s| Some((s.service, s.at(name)?)));
        let reports = tests.map(|(service, test)| service_report(service, test));
        reports.collect()
    };
    routers
        .map(|router| RouterReport {
            name: router.name.clone(),
            iface_in: router.iface_in.clone(),
            iface_out: router.iface_out.clone(),
            next_hop: router.next_hop,
            on_way: report
                .services
                .iter()
                .filter_map(|s| s.at(&router.name))
                .any(RouterTest::counts),
            bridged: is_bridge(&router.name),
            services: services(&router.name),
        })
        .collect()
}

fn service_report(service: Service, test: &RouterTest) -> ServiceReport {
    let result = test.status.verdict();
    let reason = (result != Verdict::Yes).then(|| format!("{}: {}", test.status, test.message));
    ServiceReport {
        port: service.port,
        protocol: service.protocol,
        result,
        reason: reason.map(Into::into),
        reached: test.counts(),
    }
}
