//! A whole quick job as users run it, beside the same taps put in, read and taken out with
//! `ip netns exec` and iptables-restore/-save, as the system that tsim replaces does it.
//!
//! ```text
//! cargo bench --bench quick             1 × 10, 1 × 1,000, 10 × 1,000 and 1 × 65,535
//! cargo bench --bench quick -- --test   once each, without the peer's largest
//! ```
//!
//! Then what reasons cost: `--explain auto` beside `--explain never` for ten blocked services, and for a
//! thousand of which most get through, in pairs one after the other.
//!
//! Routers × services. Wall and CPU time of the process with its children; the median of all runs.
//! The peer sends no probes and judges nothing: it is only what its taps cost. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

mod common;

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use common::{BenchLab, Cost, millis};

const SOURCE: &str = "10.1.1.100";
const DESTINATION: &str = "10.2.1.50";
const RUNS: usize = 7;
/// Pairs of jobs with and without reasons.
const PAIRS: usize = 20;

/// A lab of ten routers from real facts.
struct Bench(BenchLab);

fn main() {
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    let test = std::env::args().any(|a| a == "--test");
    let runs = if test { 1 } else { RUNS };
    let bench = Bench(BenchLab::up("corp10"));
    println!("routers x services      tsim-quick wall   cpu (ms)    iptables wall   cpu (ms)");
    for (routers, services) in [(1, 10), (1, 1000), (10, 1000), (1, 65_535)] {
        let routers = bench.routers(routers);
        let quick = Cost::median(runs, || bench.quick(&routers, services));
        let peer = match (services, test) {
            (65_535, true) => None,
            (65_535, false) => Some(bench.peer(&routers, services)),
            _ => Some(Cost::median(runs.min(3), || bench.peer(&routers, services))),
        };
        let peer = peer.map_or_else(|| "-".to_owned(), column);
        let quick = column(quick);
        println!(
            "{:>7} x {services:<10} {quick:>30} {peer:>26}",
            routers.len()
        );
    }
    bench.reasons(if test { 1 } else { PAIRS });
    bench.0.down();
}

impl Bench {
    fn routers(&self, count: usize) -> Vec<String> {
        // hq-gw first, because it has most rules.
        let mut names: Vec<String> = self
            .0
            .lab
            .routers
            .iter()
            .map(|r| r.name.to_string())
            .collect();
        names.sort_by_key(|name| name != "hq-gw");
        names.truncate(count);
        names
    }

    /// What `--explain auto` adds.
    fn reasons(&self, pairs: usize) {
        println!("services   --explain never   auto   more (ms, median of {pairs} pairs)");
        let router = self.routers(1);
        let open = [SOURCE, DESTINATION];
        for (from_to, ports) in [(STOPPED, "1001-1010"), (open, "1-1000")] {
            let job = |explain| self.ask(from_to, &router, ports, explain);
            // The first job on a lab runs the tools.
            job("auto");
            let pair = |_| (millis(job("never").wall), millis(job("auto").wall));
            let (never, auto): (Vec<f64>, Vec<f64>) = (0..pairs).map(pair).unzip();
            let more = never.iter().zip(&auto).map(|(never, auto)| auto - never);
            let (more, never, auto) = (median(more.collect()), median(never), median(auto));
            println!("{ports:<10} {never:15.1} {auto:6.1} {more:6.1}");
        }
    }

    fn quick(&self, routers: &[String], services: u32) -> Cost {
        let from_to = [SOURCE, DESTINATION];
        self.ask(from_to, routers, &format!("1-{services}"), "never")
    }

    fn ask(&self, from_to: [&str; 2], routers: &[String], ports: &str, explain: &str) -> Cost {
        let [source, destination] = from_to;
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-quick"));
        command
            .arg("--config")
            .arg(&self.0.file)
            .args(["--lab", self.0.lab.lab.as_str()]);
        command.args([
            "-s",
            source,
            "-d",
            destination,
            "--json",
            "--explain",
            explain,
        ]);
        command.args(["-P", ports, "--routers", &routers.join(",")]);
        command.stdout(Stdio::null());
        Cost::of(|| {
            let status = command.status().unwrap();
            assert!(matches!(status.code(), Some(0 | 1 | 3)), "{status}");
        })
    }

    /// Per router: two tap rules per service in, one listing, the same rules out.
    fn peer(&self, routers: &[String], services: u32) -> Cost {
        let payload = |what: &str| {
            let mut text = String::from("*mangle\n");
            for port in 1..=services {
                for chain in ["PREROUTING", "POSTROUTING"] {
                    writeln!(
                        text,
                        "{what} {chain} -p tcp -d {DESTINATION} --dport {port}"
                    )
                    .unwrap();
                }
            }
            text + "COMMIT\n"
        };
        let (insert, delete) = (payload("-A"), payload("-D"));
        Cost::of(|| {
            for router in routers {
                let netns = format!("{}.{router}", self.0.lab.lab);
                exec(&netns, &["iptables-restore", "-n"], &insert);
                exec(&netns, &["iptables-save", "-c", "-t", "mangle"], "");
                exec(&netns, &["iptables-restore", "-n"], &delete);
            }
        })
    }
}

/// From and to where hq-gw stops every service.
const STOPPED: [&str; 2] = ["10.3.10.50", "10.1.1.100"];

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn exec(netns: &str, tool: &[&str], input: &str) {
    let mut child = Command::new("ip")
        .args(["netns", "exec", netns])
        .args(tool)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{tool:?} in {netns}");
}

/// Wall and CPU time in a column of the table.
fn column(cost: Cost) -> String {
    format!("{:9.1} {:9.1}", millis(cost.wall), millis(cost.cpu))
}
