//! The result as JSON: per service in the shape of the Python system, so that its dashboards go on
//! reading, with what is new beside it; and all of it in one document, whose `routers` are those
//! of a quick job's.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::result::{DetailedReport, LockTime, RouterTest, ServiceResult, Timing};
use crate::{
    model::Service,
    run::report::{RouterReport, ServiceReport, Verdict},
};

/// Everything in one document.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Document<'a> {
    timestamp: &'a str,
    version: &'static str,
    run_id: &'a str,
    lab: &'a str,
    summary: Summary<'a>,
    /// As a quick job would answer.
    routers: Vec<RouterReport>,
    services: Vec<ServiceDocument<'a>>,
    locks: &'a [LockTime],
    warnings: &'a [String],
    timing_ms: Timing,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Summary<'a> {
    source_ip: &'a std::net::IpAddr,
    source_port: Value,
    destination_ip: &'a std::net::IpAddr,
    services: usize,
    yes: usize,
    no: usize,
    unknown: usize,
}

/// One service, as the Python system writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceDocument<'a> {
    timestamp: &'a str,
    version: &'static str,
    run_id: &'a str,
    summary: Value,
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
pub fn document(report: &DetailedReport) -> Document<'_> {
    let (yes, no, unknown) = report.count();
    Document {
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
        let tests = result.tests.iter();
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
    let routers = report.routers.iter().enumerate();
    let services = |at: usize| {
        let tests = report.services.iter();
        let tests = tests.filter_map(move |s| Some((s.service, s.tests.get(at)?)));
        tests.map(|(service, test)| service_report(service, test))
    };
    routers
        .map(|(at, router)| RouterReport {
            name: router.name.clone(),
            iface_in: router.iface_in.clone(),
            iface_out: router.iface_out.clone(),
            next_hop: router.next_hop,
            on_way: true,
            services: services(at).collect(),
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
        reached: true,
    }
}
