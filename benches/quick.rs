//! A whole quick job as users run it, beside the same taps put in, read and taken out with
//! `ip netns exec` and iptables-restore/-save, as the system that tsim replaces does it.
//!
//! ```text
//! cargo bench --bench quick             1 × 10, 1 × 1,000, 10 × 1,000 and 1 × 65,535
//! cargo bench --bench quick -- --test   once each, without the peer's largest
//! ```
//!
//! Routers × services. Wall and CPU time of the process with its children; the median of all runs.
//! The peer sends no probes and judges nothing: it is only what its taps cost. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::TimeVal,
};
use tsim::{
    config::Config,
    lab::{self, Lab, Options},
    model::LabName,
};

const SOURCE: &str = "10.1.1.100";
const DESTINATION: &str = "10.2.1.50";
const RUNS: usize = 7;

/// A lab of ten routers from real facts, and the configuration file that leads to it.
struct Bench {
    lab: Lab,
    config: Config,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

#[derive(Clone, Copy, Default)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

fn main() {
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    let test = std::env::args().any(|a| a == "--test");
    let runs = if test { 1 } else { RUNS };
    let bench = Bench::up();
    println!("routers x services      tsim-quick wall   cpu (ms)    iptables wall   cpu (ms)");
    for (routers, services) in [(1, 10), (1, 1000), (10, 1000), (1, 65_535)] {
        let routers = bench.routers(routers);
        let quick = median(runs, || bench.quick(&routers, services));
        let peer = match (services, test) {
            (65_535, true) => None,
            (65_535, false) => Some(bench.peer(&routers, services)),
            _ => Some(median(runs.min(3), || bench.peer(&routers, services))),
        };
        let peer = peer.map_or_else(|| "-".to_owned(), |cost| cost.to_string());
        println!(
            "{:>7} x {services:<10} {quick:>30} {peer:>26}",
            routers.len()
        );
    }
    bench.down();
}

impl Bench {
    fn up() -> Self {
        // Where /run is no tmpfs, a registry there waits for a disk at each write.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let config = Config {
            registry_dir: dir.path().join("registry"),
            labs_dir: dir.path().join("labs"),
            ..Config::default()
        };
        let file = dir.path().join("tsim.toml");
        let text = format!(
            "registry_dir = {:?}\nlabs_dir = {:?}\n",
            config.registry_dir, config.labs_dir
        );
        fs::write(&file, text).unwrap();
        let name = LabName::new(format!("bench{}", std::process::id())).unwrap();
        let facts = Path::new(env!("CARGO_MANIFEST_DIR")).join("netns-fixtures/corp10");
        let up = lab::up_from(&config, &name, &facts, Options::default(), &()).unwrap();
        Self {
            lab: up.lab,
            config,
            file,
            _dir: dir,
        }
    }

    fn down(self) {
        lab::down(&self.config, &self.lab.lab).unwrap();
    }

    fn routers(&self, count: usize) -> Vec<String> {
        // hq-gw first, because it has most rules.
        let mut names: Vec<String> = self
            .lab
            .routers
            .iter()
            .map(|r| r.name.to_string())
            .collect();
        names.sort_by_key(|name| name != "hq-gw");
        names.truncate(count);
        names
    }

    fn quick(&self, routers: &[String], services: u32) -> Cost {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-quick"));
        command
            .arg("--config")
            .arg(&self.file)
            .args(["--lab", self.lab.lab.as_str()]);
        command.args([
            "-s",
            SOURCE,
            "-d",
            DESTINATION,
            "--json",
            "--explain",
            "never",
        ]);
        command.args([
            "-P",
            &format!("1-{services}"),
            "--routers",
            &routers.join(","),
        ]);
        command.stdout(Stdio::null());
        cost(|| {
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
        cost(|| {
            for router in routers {
                let netns = format!("{}.{router}", self.lab.lab);
                exec(&netns, &["iptables-restore", "-n"], &insert);
                exec(&netns, &["iptables-save", "-c", "-t", "mangle"], "");
                exec(&netns, &["iptables-restore", "-n"], &delete);
            }
        })
    }
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

/// Wall time of `work`, and CPU time of the children that ended meanwhile.
fn cost(work: impl FnOnce()) -> Cost {
    let cpu = |usage: Usage| span(usage.user_time()) + span(usage.system_time());
    let before = cpu(getrusage(UsageWho::RUSAGE_CHILDREN).unwrap());
    let begin = Instant::now();
    work();
    let wall = begin.elapsed();
    Cost {
        wall,
        cpu: cpu(getrusage(UsageWho::RUSAGE_CHILDREN).unwrap()) - before,
    }
}

fn span(time: TimeVal) -> Duration {
    Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
}

fn median(runs: usize, mut run: impl FnMut() -> Cost) -> Cost {
    let mut costs: Vec<Cost> = (0..runs).map(|_| run()).collect();
    costs.sort_by_key(|cost| cost.wall);
    costs[runs / 2]
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = |d: Duration| d.as_secs_f64() * 1e3;
        f.pad(&format!(
            "{:9.1} {:9.1}",
            millis(self.wall),
            millis(self.cpu)
        ))
    }
}
