//! A whole quick job as users run it, beside its lower bound ([`floor`]) and beside the same taps put
//! in, read and taken out with `ip netns exec` and iptables-restore/-save, as the system that tsim
//! replaces does it.
//!
//! ```text
//! cargo bench --bench quick             20 runs of each
//! cargo bench --bench quick -- --test   once each, the small ones only
//! ```
//!
//! Then a way over ten routers, and what reasons cost: `--explain auto` beside `--explain never` for
//! ten blocked services, and for a thousand of which most get through.
//!
//! Services × routers. Wall and CPU time of the process with its children, one of each in turn; the
//! medians, and of the ratios to the lower bound the least and the greatest, too. `made`: the job makes
//! and removes its source hosts; `kept`: they are there. The peer sends no probes and judges nothing:
//! it is only what its taps cost, and it runs three times at most. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

mod common;
#[path = "common/floor.rs"]
mod floor;

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use common::{BenchLab, Cost, millis};
use floor::Pair;

/// The address of hosts that are kept.
const SOURCE: &str = "10.1.1.100";
/// The address of hosts that jobs make.
const MADE: &str = "10.1.1.101";
const DESTINATION: &str = "10.2.1.50";
/// Runs of each kind, one of each in turn.
const ROUNDS: usize = 20;
/// Services and routers.
const SIZES: [(u32, usize); 6] = [
    (10, 1),
    (1000, 1),
    (10, 10),
    (1000, 10),
    (65_535, 1),
    (65_535, 10),
];

/// A lab of ten routers from real facts.
struct Bench(BenchLab);

fn main() {
    floor::run_if_called();
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    let test = std::env::args().any(|a| a == "--test");
    let rounds = if test { 1 } else { ROUNDS };
    let bench = Bench(BenchLab::up("corp10"));
    let pairs = bench.keep_hosts();
    println!("{HEAD}");
    let small = |(services, _): &&(u32, usize)| !test || *services <= 1000;
    for &(services, routers) in SIZES.iter().filter(small) {
        bench.compare(&pairs[..routers], services, rounds);
    }
    bench.reasons(rounds);
    drop(bench);
    chain(rounds);
}

const HEAD: &str = "\
services       made        kept       floor        made/floor         kept/floor        made/floor  kept/floor  iptables
x routers   wall   cpu  wall   cpu  wall   cpu   wall (min-max)     wall (min-max)     cpu         cpu         wall   cpu";

/// A way over ten routers, each with rules, from end to end.
fn chain(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    for at in 0..10 {
        let text = format!(
            r#"{{"version": 1, "name": "c{at}", "interfaces": [
                {{"name": "left", "addresses": ["10.77.{at}.2/24"]}},
                {{"name": "right", "addresses": ["10.77.{}.1/24"]}}],
              "routes": ["default via 10.77.{}.2 dev right", "10.77.0.0/24 {}"]}}"#,
            at + 1,
            at + 1,
            match at {
                0 => "dev left".to_owned(),
                _ => format!("via 10.77.{at}.1 dev left"),
            }
        );
        fs::write(dir.path().join(format!("c{at}.json")), text).unwrap();
    }
    let bench = Bench(BenchLab::up_from(dir.path(), "chain"));
    for services in [10, 1000] {
        let ports = format!("1-{services}");
        let ask = || bench.ask(["10.77.0.100", "10.77.10.100"], None, &ports, "auto");
        ask();
        let cost = Cost::median(rounds, ask);
        println!(
            "way over 10 routers, {services:>4} services {}",
            column(cost)
        );
    }
}

/// Costs of runs that took turns.
struct Turns(Vec<Cost>);

impl Turns {
    fn wall(&self) -> f64 {
        median(self.0.iter().map(|cost| millis(cost.wall)).collect())
    }

    fn cpu(&self) -> f64 {
        median(self.0.iter().map(|cost| millis(cost.cpu)).collect())
    }

    /// The median of `part` to that of `other`, round by round, with the least and the greatest.
    fn ratio(&self, other: &Self, part: impl Fn(&Cost) -> f64) -> (f64, f64, f64) {
        let pairs = self.0.iter().zip(&other.0);
        let mut ratios: Vec<f64> = pairs.map(|(a, b)| part(a) / part(b)).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        (ratios[ratios.len() / 2], least, most)
    }
}

impl Bench {
    /// Keeps a host with the address [`SOURCE`] on ten routers.
    fn keep_hosts(&self) -> Vec<Pair> {
        let kept = self.0.keep_hosts(&self.routers(10), SOURCE).into_iter();
        kept.map(|[host, router]| Pair { router, host }).collect()
    }

    /// One line of the table.
    fn compare(&self, pairs: &[Pair], services: u32, rounds: usize) {
        let routers = self.routers(pairs.len());
        let [mut made, mut kept, mut floor, mut peer] = [const { Vec::new() }; 4];
        let bound = || {
            let mut command = floor::command(pairs, [SOURCE, DESTINATION], services);
            Cost::of(|| assert!(command.status().unwrap().success()))
        };
        for round in 0..rounds {
            floor.push(bound());
            kept.push(self.quick(SOURCE, &routers, services));
            made.push(self.quick(MADE, &routers, services));
            if round < 3 && services <= 1000 {
                peer.push(self.peer(&routers, services));
            }
        }
        let [made, kept, floor] = [made, kept, floor].map(Turns);
        print!("{services:>6} x {:<2}", pairs.len());
        for turns in [&made, &kept, &floor] {
            print!(" {:>5.1} {:>5.1}", turns.wall(), turns.cpu());
        }
        for turns in [&made, &kept] {
            let (middle, least, most) = turns.ratio(&floor, |cost| millis(cost.wall));
            print!("   {middle:>4.2} ({least:.2}-{most:.2})");
        }
        for turns in [&made, &kept] {
            let (middle, ..) = turns.ratio(&floor, |cost| millis(cost.cpu));
            print!("   {middle:>5.2}");
        }
        match peer.is_empty() {
            true => println!("      -"),
            false => {
                let peer = Turns(peer);
                println!("  {:>7.1} {:>6.1}", peer.wall(), peer.cpu());
            }
        }
    }

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
            let job = |explain| self.ask(from_to, Some(&router), ports, explain);
            // The first job on a lab runs the tools.
            job("auto");
            let pair = |_| (millis(job("never").wall), millis(job("auto").wall));
            let (never, auto): (Vec<f64>, Vec<f64>) = (0..pairs).map(pair).unzip();
            let more = never.iter().zip(&auto).map(|(never, auto)| auto - never);
            let (more, never, auto) = (median(more.collect()), median(never), median(auto));
            println!("{ports:<10} {never:15.1} {auto:6.1} {more:6.1}");
        }
    }

    fn quick(&self, source: &str, routers: &[String], services: u32) -> Cost {
        let from_to = [source, DESTINATION];
        self.ask(from_to, Some(routers), &format!("1-{services}"), "never")
    }

    /// A job, over these routers or over those that its packets pass.
    fn ask(
        &self,
        from_to: [&str; 2],
        routers: Option<&[String]>,
        ports: &str,
        explain: &str,
    ) -> Cost {
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
        command.args(["-P", ports]);
        if let Some(routers) = routers {
            command.args(["--routers", &routers.join(",")]);
        }
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
