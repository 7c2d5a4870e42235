//! A whole detailed job as users run it, beside what the kernel alone costs for it.
//!
//! ```text
//! cargo bench --bench detailed             1 × 1, 3 × 3 and 3 × 30
//! cargo bench --bench detailed -- --test   once each
//! ```
//!
//! Routers × services. Wall and CPU time of the process with its children, the median of all runs.
//! Beside it the kernel's own costs, in this process and without any of our bookkeeping: two
//! namespaces per router made and deleted (the source and the destination host), and a connection
//! made, used and reset over loopback per service and router. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
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
    model::{LabName, NetnsName},
    netns::NetnsDir,
};

const RUNS: usize = 7;
const ROUTERS: [&str; 3] = ["hq-gw", "br-gw", "br-core"];

/// A lab of ten routers from real facts, and the configuration file that leads to it.
struct Bench {
    lab: Lab,
    config: Config,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

fn main() {
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    let test = std::env::args().any(|a| a == "--test");
    let runs = if test { 1 } else { RUNS };
    let bench = Bench::up();
    println!(
        "routers x services   tsim-detailed wall    cpu (ms)    namespaces    connections (ms)"
    );
    for (routers, services) in [
        (1, "443"),
        (3, "22,443,53/udp"),
        (3, "1-28,53/udp,33434/udp"),
    ] {
        let routers = &ROUTERS[..routers];
        let detailed = median(runs, || bench.detailed(routers, services));
        let count = count(services) * routers.len();
        let namespaces = median(runs, || bench.namespaces(2 * routers.len()));
        let connections = median(runs, || connections(count));
        println!(
            "{:>7} x {:<10} {:>19.1} {:>11.1} {:>13.1} {:>19.1}",
            routers.len(),
            count / routers.len(),
            millis(detailed.0),
            millis(detailed.1),
            millis(namespaces.0),
            millis(connections.0),
        );
    }
    bench.down();
}

impl Bench {
    fn up() -> Self {
        // In memory, as /run is, where the registry has its place by default.
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

    fn detailed(&self, routers: &[&str], services: &str) -> (Duration, Duration) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-detailed"));
        command.arg("--config").arg(&self.file);
        command.args(["--lab", self.lab.lab.as_str(), "--json"]);
        command.args(["-s", "10.1.1.100", "-d", "10.2.1.50", "-P", services]);
        command.args(["--routers", &routers.join(",")]);
        command.stdout(Stdio::null());
        cost(|| {
            let status = command.status().unwrap();
            assert!(matches!(status.code(), Some(0 | 1)), "{status}");
        })
    }

    /// Makes and deletes `count` network namespaces.
    fn namespaces(&self, count: usize) -> (Duration, Duration) {
        let dir = NetnsDir::default();
        let name = |number| NetnsName::new(format!("{}.none{number}", self.lab.lab)).unwrap();
        cost(|| {
            for number in 0..count {
                drop(dir.create(&name(number)).unwrap());
            }
            for number in 0..count {
                dir.delete(&name(number)).unwrap();
            }
        })
    }
}

/// Makes `count` connections over loopback, one after the other, with 32 bytes there and back.
fn connections(count: usize) -> (Duration, Duration) {
    cost(|| {
        for _ in 0..count {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let mut bytes = [7; 32];
            client.write_all(&bytes).unwrap();
            server.read_exact(&mut bytes).unwrap();
            server.write_all(&bytes).unwrap();
            client.read_exact(&mut bytes).unwrap();
        }
    })
}

/// How many services a list has.
fn count(services: &str) -> usize {
    let port = |text: &str| text.split('/').next().unwrap().parse::<usize>().unwrap();
    let one = |entry: &str| match entry.split_once('-') {
        Some((first, last)) => port(last) - port(first) + 1,
        None => 1,
    };
    services.split(',').map(one).sum()
}

/// Wall time of `work`, and CPU time of the children that ended meanwhile.
fn cost(work: impl FnOnce()) -> (Duration, Duration) {
    let cpu = |usage: Usage| span(usage.user_time()) + span(usage.system_time());
    let before = cpu(getrusage(UsageWho::RUSAGE_CHILDREN).unwrap());
    let begin = Instant::now();
    work();
    let wall = begin.elapsed();
    let after = cpu(getrusage(UsageWho::RUSAGE_CHILDREN).unwrap());
    (wall, after - before)
}

fn span(time: TimeVal) -> Duration {
    Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
}

/// The run of median wall time.
fn median(runs: usize, mut run: impl FnMut() -> (Duration, Duration)) -> (Duration, Duration) {
    let mut costs: Vec<(Duration, Duration)> = (0..runs).map(|_| run()).collect();
    costs.sort_by_key(|cost| cost.0);
    costs[runs / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
