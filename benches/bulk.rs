//! Questions in bulk beside the same questions asked one address pair after the other.
//!
//! ```text
//! cargo bench --bench bulk             10 to 1,000 pairs of ten services each
//! cargo bench --bench bulk -- --test   ten pairs, once
//! ```
//!
//! Three routers in a row, reasons left out. In bulk taps go in once for a burst and the ways of all
//! questions are walked together; one by one each pair is a quick job with locks, a source host and taps of
//! its own. Both must give the same verdicts. Times are of the calls, the lab is up before. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

mod common;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use common::BenchLab;
use tsim::{
    bulk::ask::ask,
    firewall::BackendChoice,
    model::{Dscp, Protocol, Service, ServiceLimits, parse_services},
    run::{
        quick::{self, DscpChoice, ExplainMode, Pair, QuickJob, RouterChoice, Terms},
        report::Verdict,
    },
};

const SIZES: [u32; 3] = [10, 100, 1000];
const SERVICES: &str = "22,23,25,80,443,53/udp,161/udp,8000-8002";
const WAIT: Duration = Duration::from_secs(5);

fn main() {
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    let test = std::env::args().any(|a| a == "--test");
    let sizes = if test { &SIZES[..1] } else { &SIZES[..] };
    let limits = ServiceLimits::default();
    let services = parse_services(SERVICES, Protocol::Tcp, limits).unwrap();
    let lab = BenchLab::up("small3");
    println!(" pairs  questions    in bulk (ms)   one by one (ms)   times");
    for &size in sizes {
        let pairs = pairs(size, &services);
        let (bulk, together) = timed(|| in_bulk(&lab, &pairs));
        let (single, apart) = timed(|| one_by_one(&lab, &pairs));
        assert_eq!(together, apart, "{size} pairs");
        let questions = together.len();
        let (bulk, single) = (bulk.as_secs_f64() * 1e3, single.as_secs_f64() * 1e3);
        let times = single / bulk;
        println!("{size:>6} {questions:>10} {bulk:>15.1} {single:>17.1} {times:>7.1}");
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begin = Instant::now();
    let done = work();
    (begin.elapsed(), done)
}

/// So many destinations behind the last router, from one source behind the first.
fn pairs(size: u32, services: &[Service]) -> Vec<Pair> {
    let first = u32::from(Ipv4Addr::new(10, 81, 3, 10));
    let to = |number| IpAddr::V4(Ipv4Addr::from(first + number % 200));
    let from = |number: u32| IpAddr::V4(Ipv4Addr::from(0x0a51_010a + number / 200));
    let pair = |number| Pair {
        source: from(number),
        destination: to(number),
        services: services.to_vec(),
    };
    (0..size).map(pair).collect()
}

fn in_bulk(lab: &BenchLab, pairs: &[Pair]) -> Vec<Verdict> {
    let terms = Terms {
        lab: lab.lab.lab.clone(),
        routers: RouterChoice::Trace,
        from: None,
        dscp: DscpChoice::Auto,
        run_id: quick::new_run_id().unwrap(),
        probe_dscp: Dscp::DEFAULT,
        size: None,
        source_port: None,
        lock_timeout: WAIT,
        explain: ExplainMode::Never,
        backend: BackendChoice::Auto,
        trust_facts: false,
        use_registry: true,
        pass_on: None,
    };
    let answers = ask(&lab.config, terms, pairs.to_vec(), "matrix", &mut |_| {}).unwrap();
    answers.cells.iter().map(|cell| cell.end.result).collect()
}

fn one_by_one(lab: &BenchLab, pairs: &[Pair]) -> Vec<Verdict> {
    let ask = |pair: &Pair| {
        let job = QuickJob {
            lab: lab.lab.lab.clone(),
            source: pair.source,
            destination: pair.destination,
            services: pair.services.clone(),
            routers: RouterChoice::Trace,
            dscp: DscpChoice::Auto,
            run_id: quick::new_run_id().unwrap(),
            probe_dscp: Dscp::DEFAULT,
            source_port: None,
            size: None,
            lock_timeout: WAIT,
            explain: ExplainMode::Never,
            backend: BackendChoice::Auto,
            trust_facts: false,
            use_registry: true,
            progress: None,
            from: None,
            pass_on: None,
        };
        quick::run(&job, &lab.config).unwrap().report.end_to_end
    };
    let ends = pairs.iter().flat_map(ask);
    ends.map(|end| end.result).collect()
}
