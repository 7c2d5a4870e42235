//! What a verdict costs as the router's ruleset grows, and what reasons for blocked services cost.
//!
//! ```text
//! cargo bench --bench verdict             10 to 20,000 rules, iptables and nft
//! cargo bench --bench verdict -- --test   the smallest sizes, once
//! ```
//!
//! One router, 100 services through `--explain never` (the measurement alone) and `auto` (with the
//! search for rules that make a YES doubtful), and 1,000 blocked services through `--explain
//! always`. The rules are walked by every probe: none of them matches. Times are those that the
//! job itself reports, the median of all runs. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

mod common;

use std::{fmt::Write as _, time::Duration};

use common::BenchLab;

use tsim::{
    firewall::BackendChoice,
    model::{Dscp, Protocol, RouterName, ServiceLimits, parse_services},
    netns::tool::Tools,
    run::{
        quick::{self, DscpChoice, ExplainMode, QuickJob, RouterChoice},
        report::{Timing, Verdict},
    },
};

const SIZES: [usize; 6] = [10, 100, 1000, 5000, 10_000, 20_000];
const RUNS: usize = 5;

struct Bench {
    lab: BenchLab,
}

fn main() {
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    let test = std::env::args().any(|a| a == "--test");
    let (runs, sizes) = if test {
        (1, &SIZES[..2])
    } else {
        (RUNS, &SIZES[..])
    };
    println!("                  100 services that pass (ms)      1,000 blocked, explained (ms)");
    println!("rules             never total    auto total            always total    explain");
    for iptables in [true, false] {
        for &size in sizes {
            let bench = Bench::up(&rules(iptables, size), iptables);
            let never = bench.median(runs, "1-100/udp", ExplainMode::Never, Verdict::Yes);
            let auto = bench.median(runs, "1-100/udp", ExplainMode::Auto, Verdict::Yes);
            let always = bench.median(runs, "1-1000/tcp", ExplainMode::Always, Verdict::No);
            let kind = if iptables { "iptables" } else { "nft" };
            println!(
                "{size:>6} {kind:<9} {:>13.1} {:>13.1} {:>23.1} {:>10.1}",
                never.total, auto.total, always.total, always.explain
            );
        }
    }
}

/// `size` rules for other hosts, and then one that drops TCP.
fn rules(iptables: bool, size: usize) -> String {
    let mut text = String::from(if iptables {
        "*filter\n"
    } else {
        "table inet fw {\n chain forward {\n  type filter hook forward priority filter;\n"
    });
    for number in 0..size {
        let address = format!("172.16.{}.{}", number / 250 % 250, 1 + number % 250);
        let port = 1 + number % 60_000;
        if iptables {
            writeln!(
                text,
                "-A FORWARD -s {address} -p tcp --dport {port} -j ACCEPT"
            )
            .unwrap();
        } else {
            writeln!(text, "  ip saddr {address} tcp dport {port} accept").unwrap();
        }
    }
    text + if iptables {
        "-A FORWARD -p tcp -j DROP\nCOMMIT\n"
    } else {
        "  meta l4proto tcp drop\n }\n}\n"
    }
}

impl Bench {
    fn up(rules: &str, iptables: bool) -> Self {
        let lab = BenchLab::up("cases/lab");
        let name = RouterName::new("r").unwrap();
        let router = lab.lab.router_netns(&name).unwrap();
        let tools = Tools::new(lab.config.tool_dirs.clone());
        let (tool, args): (_, &[&str]) = if iptables {
            ("iptables-nft-restore", &["--noflush"])
        } else {
            ("nft", &["-f", "-"])
        };
        let load = || tools.run(tool, args, rules.as_bytes());
        router.enter(load).unwrap().unwrap();
        Self { lab }
    }

    fn median(&self, runs: usize, services: &str, explain: ExplainMode, want: Verdict) -> Timing {
        let mut timings: Vec<Timing> = (0..runs)
            .map(|_| self.run(services, explain, want))
            .collect();
        timings.sort_by(|a, b| a.total.total_cmp(&b.total));
        timings[runs / 2]
    }

    fn run(&self, services: &str, explain: ExplainMode, want: Verdict) -> Timing {
        let limits = ServiceLimits::default();
        let job = QuickJob {
            lab: self.lab.lab.lab.clone(),
            source: "10.0.0.2".parse().unwrap(),
            destination: "10.9.0.2".parse().unwrap(),
            services: parse_services(services, Protocol::Tcp, limits).unwrap(),
            routers: RouterChoice::Named(vec![RouterName::new("r").unwrap()]),
            dscp: DscpChoice::Auto,
            run_id: quick::new_run_id().unwrap(),
            probe_dscp: Dscp::DEFAULT,
            source_port: None,
            size: None,
            lock_timeout: Duration::from_secs(5),
            explain,
            backend: BackendChoice::Auto,
            trust_facts: false,
            use_registry: false,
            progress: None,
            from: None,
            pass_on: None,
        };
        let report = quick::run(&job, &self.lab.config).unwrap().report;
        let answers = &report.routers[0].services;
        assert!(answers.iter().all(|answer| answer.result == want));
        report.timing_ms
    }
}
