//! The case table through the detailed job: on the state that a case describes, it never
//! contradicts what is right for the quick one, and names the same rule.
//!
//! Where the two may differ, and why: detailed judges the way back as well, so it may say PARTIAL
//! where quick says YES; a service that the router takes for itself does not get through it, but
//! is answered; and rules that count, remember or draw lots are in another state for each packet.
//! Cases that are about the DSCP of probes are not asked, because real connections have 0.

use std::{collections::BTreeMap, path::Path};

use tsim::{
    firewall::Backend,
    model::Protocol,
    netlink::object::Family,
    run::{
        detailed::{
            self, DetailedJob,
            result::{RouterTest, ServiceStatus},
        },
        report::Verdict,
    },
};

use super::{
    THREADS,
    bed::CaseBed,
    file::{self, CaseFile, Expected, Run},
    kernel::Kernel,
};
use crate::beside;

#[test]
fn the_detailed_job_agrees_with_every_case() {
    let mut cases = file::all(Path::new("netns-fixtures/cases"));
    let only = std::env::var("TSIM_CASES").unwrap_or_default();
    let kernel = Kernel::running();
    cases.retain(|case| {
        let lacks = case.needs.iter().any(|symbol| kernel.lacks(symbol));
        case.name.starts_with(&only) && case.dscp == 0 && !lacks
    });
    let (mut wrong, mut statuses) = (Vec::new(), BTreeMap::new());
    for (found, of_case) in beside::each(THREADS, &cases, asked) {
        wrong.extend(found);
        for status in of_case {
            *statuses.entry(status.to_string()).or_insert(0) += 1;
        }
    }
    println!("{} cases: {statuses:?}", cases.len());
    assert!(
        wrong.is_empty(),
        "{} failures:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Asks one case. Returns what was wrong, and the statuses.
fn asked(case: &CaseFile) -> (Vec<String>, Vec<ServiceStatus>) {
    let run = Run {
        loader: case.loaders()[0],
        backend: Backend::Nft,
        family: case.families()[0],
    };
    let bed = CaseBed::new(case, run.loader, run.family)
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let mut expected = case.expected(run);
    // Without SCTP in the kernel there is nothing to ask.
    expected.retain(|e| e.service.protocol != Protocol::Sctp);
    if expected.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let report = detailed::run(&bed.detailed(case, run.family, &expected), bed.config());
    let report = report.unwrap_or_else(|error| panic!("{}: {error:?}", case.name));
    let report = report.report;
    let tests = report.services.iter().map(|service| &service.tests[0]);
    // Where one service's packets change what becomes of the next, another rule may be first.
    let steady = !expected.iter().any(is_unsteady);
    let wrong = expected
        .iter()
        .zip(tests.clone())
        .filter(|(expected, _)| steady || expected.verdict != Verdict::No)
        .filter_map(|(expected, test)| contradiction(expected, test))
        .map(|text| format!("{} ({run}): {text}", case.name));
    (wrong.collect(), tests.map(|test| test.status).collect())
}

/// Rules that depend on more than the packet, in every form, over IPv4 or IPv6 in turn: the detailed
/// job is asked about a service of each verdict by itself, on a router that no packet has come to.
#[test]
fn the_detailed_job_says_what_quick_says_of_rules_that_vary() {
    let only = std::env::var("TSIM_CASES").unwrap_or_default();
    let kernel = Kernel::running();
    let mut asks = Vec::new();
    for case in file::all(Path::new("netns-fixtures/cases")) {
        let lacks = case.needs.iter().any(|symbol| kernel.lacks(symbol));
        if lacks || case.dscp != 0 || !case.name.starts_with(&only) {
            continue;
        }
        for loader in case.loaders() {
            let families = case.families();
            let family = families[asks.len() % families.len()];
            let backend = Backend::Nft;
            let run = Run {
                loader,
                backend,
                family,
            };
            let mut expected = case.expected(run);
            expected.retain(|e| {
                is_unsteady(e) && matches!(e.service.protocol, Protocol::Tcp | Protocol::Udp)
            });
            expected.dedup_by_key(|e| e.verdict);
            asks.extend(expected.into_iter().map(|e| (case.clone(), run, e)));
        }
    }
    let wrong = beside::each(THREADS, &asks, |(case, run, expected)| {
        odds(case, *run, expected)
    });
    println!("{} services asked alone", asks.len());
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    assert!(
        wrong.is_empty(),
        "{} failures:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What is at odds between a detailed job about one service alone and what is right.
fn odds(case: &CaseFile, run: Run, expected: &Expected) -> Option<String> {
    let bed = CaseBed::new(case, run.loader, run.family)
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let job = bed.detailed(case, run.family, std::slice::from_ref(expected));
    let report = detailed::run(&job, bed.config());
    let report = report.unwrap_or_else(|error| panic!("{}: {error:?}", case.name));
    let test = &report.report.services[0].tests[0];
    let agrees = match (expected.verdict, test.status) {
        (_, ServiceStatus::Unknown) => true,
        (Verdict::Yes, ServiceStatus::Ok | ServiceStatus::Refused | ServiceStatus::Partial) => true,
        (Verdict::No, status) => matches!(
            status,
            ServiceStatus::Timeout | ServiceStatus::Rejected | ServiceStatus::Unreachable
        ),
        // A real connection has more packets than such a rate lets through.
        (Verdict::Yes, _) => says(expected, "rate-limited") || says(expected, "quota"),
        // A rate that the packets of a quick job use up is there for one.
        (Verdict::Unknown, _) => !says(expected, "chance"),
    };
    (!agrees).then(|| {
        format!(
            "{} ({run}): {} is {} ({}) where {} ({}) is right",
            case.name,
            expected.service,
            test.status,
            test.message,
            expected.verdict,
            expected.because.join(" | ")
        )
    })
}

/// What the reasons of verdicts that depend on more than the packet have in them.
const UNSTEADY: [&str; 5] = [
    "rate-limited",
    "quota",
    "chance",
    "depends on what was seen before",
    "depends on the time",
];

fn says(expected: &Expected, part: &str) -> bool {
    expected.because.iter().any(|text| text.contains(part))
}

fn is_unsteady(expected: &Expected) -> bool {
    UNSTEADY.iter().any(|part| says(expected, part))
}

fn contradiction(expected: &Expected, test: &RouterTest) -> Option<String> {
    let taken = says(expected, "ends on the router itself");
    if taken && test.message.contains("the router sends it to") || is_unsteady(expected) {
        return None;
    }
    let agrees = match (expected.verdict, test.status) {
        (Verdict::Unknown, _) | (_, ServiceStatus::Unknown) => true,
        (Verdict::Yes, status) => {
            matches!(
                status,
                ServiceStatus::Ok | ServiceStatus::Refused | ServiceStatus::Partial
            )
        }
        (Verdict::No, status) => matches!(
            status,
            ServiceStatus::Timeout | ServiceStatus::Rejected | ServiceStatus::Unreachable
        ),
    };
    let blocking = test.blocking.iter().map(|rule| rule.rule.as_str());
    let said: Vec<&str> = blocking.chain([test.message.as_str()]).collect();
    // The two have words of their own for how a rule stops a packet.
    let names = |text: &String| match text.split_once("by ") {
        Some((_, rule)) => said.iter().any(|said| said.contains(rule)),
        None if text.starts_with("rejected") => test.status == ServiceStatus::Rejected,
        None => said.iter().any(|said| said.contains(text.as_str())),
    };
    let because = expected.verdict != Verdict::No
        || test.status == ServiceStatus::Unknown
        || expected.because.is_empty()
        || expected.because.iter().any(names);
    (!agrees || !because).then(|| {
        format!(
            "{} is {} ({said:?}) where {} ({}) is right",
            expected.service,
            test.status,
            expected.verdict,
            expected.because.join(" | ")
        )
    })
}

impl CaseBed {
    fn detailed(&self, case: &CaseFile, family: Family, expected: &[Expected]) -> DetailedJob {
        let (source, to) = (case.source(family), case.to(family));
        DetailedJob {
            services: expected.iter().map(|e| e.service).collect(),
            ..crate::detailed::job(&self.lab, &["r"], &source.to_string(), &to.to_string(), "1")
        }
    }

    fn config(&self) -> &tsim::config::Config {
        &self.lab.config
    }
}
