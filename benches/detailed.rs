//! A whole detailed job as users run it, beside what the kernel alone costs for it.
//!
//! ```text
//! cargo bench --bench detailed             1 × 1, 3 × 3 and 3 × 30, chains, a router's copy
//! cargo bench --bench detailed -- --test   once each
//! ```
//!
//! Routers × services. Wall and CPU time of the process with its children, the median of all runs.
//! Beside it the kernel's own costs, in this process and without any of our bookkeeping: two
//! namespaces per router made and deleted (the source and the destination host), and a connection
//! made, used and reset over loopback per service and router. Then a chain of three routers, which
//! packets really pass one after the other, and the copy of a router with 225 rules that equal-cost
//! routes need, in this process. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

mod common;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
};

use common::{BenchLab, Cost, millis};
use tsim::{
    lab::copy::RouterCopy,
    model::{NetnsName, RouterName},
    netns::{NetnsDir, tool::Tools},
};

const RUNS: usize = 7;
const ROUTERS: [&str; 3] = ["hq-gw", "br-gw", "br-core"];

/// A lab of ten routers from real facts.
struct Bench(BenchLab);

fn main() {
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    let test = std::env::args().any(|a| a == "--test");
    let runs = if test { 1 } else { RUNS };
    let bench = Bench(BenchLab::up("corp10"));
    println!(
        "routers x services   tsim-detailed wall    cpu (ms)    namespaces    connections (ms)"
    );
    for (routers, services) in [
        (1, "443"),
        (3, "22,443,53/udp"),
        (3, "1-28,53/udp,33434/udp"),
    ] {
        let routers = &ROUTERS[..routers];
        let detailed = Cost::median(runs, || bench.detailed(routers, services));
        let count = count(services) * routers.len();
        let namespaces = Cost::median(runs, || bench.namespaces(2 * routers.len()));
        let connections = Cost::median(runs, || connections(count));
        println!(
            "{:>7} x {:<10} {:>19.1} {:>11.1} {:>13.1} {:>19.1}",
            routers.len(),
            count / routers.len(),
            millis(detailed.wall),
            millis(detailed.cpu),
            millis(namespaces.wall),
            millis(connections.wall),
        );
    }
    let copy = Cost::median(runs, || bench.copy("br-core"));
    println!("copy of a router, 225 rules: {:.1} ms", millis(copy.wall));
    let chain = Bench(BenchLab::up("small3"));
    for services in ["443", "1-28,53/udp,33434/udp"] {
        let cost = Cost::median(runs, || chain.chain(services));
        println!(
            "chain of 3 routers x {:<2} services: {:>6.1} ms wall, {:.1} ms cpu",
            count(services),
            millis(cost.wall),
            millis(cost.cpu),
        );
    }
}

impl Bench {
    /// Asks the routers named.
    fn detailed(&self, routers: &[&str], services: &str) -> Cost {
        let routers = routers.join(",");
        let ends = ["-s", "10.1.1.100", "-d", "10.2.1.50"];
        self.asked(&[&ends[..], &["-P", services, "--routers", &routers]].concat())
    }

    /// Asks about the way from the first router to the last of the small lab.
    fn chain(&self, services: &str) -> Cost {
        let ends = ["-s", "10.81.1.100", "-d", "10.81.3.50"];
        self.asked(&[&ends[..], &["-P", services]].concat())
    }

    /// Copies a router.
    fn copy(&self, router: &str) -> Cost {
        let name = RouterName::new(router).unwrap();
        let netns = self.0.lab.router_netns(&name).unwrap();
        let tools = Tools::new(self.0.config.tool_dirs.clone());
        Cost::of(|| drop(RouterCopy::of(&netns, &tools).unwrap()))
    }

    fn asked(&self, arguments: &[&str]) -> Cost {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-detailed"));
        command.arg("--config").arg(&self.0.file);
        command.args(["--lab", self.0.lab.lab.as_str(), "--json"]);
        command.args(arguments);
        command.stdout(Stdio::null());
        Cost::of(|| {
            let status = command.status().unwrap();
            assert!(matches!(status.code(), Some(0 | 1)), "{status}");
        })
    }

    /// Makes and deletes `count` network namespaces.
    fn namespaces(&self, count: usize) -> Cost {
        let dir = NetnsDir::default();
        let name = |number| NetnsName::new(format!("{}.none{number}", self.0.lab.lab)).unwrap();
        Cost::of(|| {
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
fn connections(count: usize) -> Cost {
    Cost::of(|| {
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
