//! Packets of a length that is asked for: links that are too narrow for them, and whether senders
//! are told so.

use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tsim::run::{
    detailed::DetailedJob,
    quick::{self, QuickJob, RouterChoice},
    report::Verdict,
};
use tsim::{
    model::{HostId, HostName},
    netlink::{Netlink, object::Family},
};

use crate::{
    detailed::{job, run},
    detailed_chain::{lab, said},
    quick::TestLab,
    support::{await_stop, pid},
};

/// `west` and `east`, and between them a link of 1,400 bytes.
fn narrow(rules: &str) -> (TestLab, tempfile::TempDir) {
    let rules: Vec<&str> = rules.lines().collect();
    lab(&[
        json!({
            "version": 1,
            "name": "west",
            "interfaces": [
                {"name": "lan", "addresses": ["10.1.0.1/24"]},
                {"name": "wan", "addresses": ["10.2.0.1/24"], "mtu": 1400}
            ],
            "routes": ["10.3.0.0/24 via 10.2.0.2 dev wan"],
            "nft": rules
        }),
        json!({
            "version": 1,
            "name": "east",
            "interfaces": [
                {"name": "wan", "addresses": ["10.2.0.2/24"], "mtu": 1400},
                {"name": "srv", "addresses": ["10.3.0.1/24"]}
            ],
            "routes": ["10.1.0.0/24 via 10.2.0.1 dev wan"]
        }),
    ])
}

fn detailed(lab: &TestLab, size: u16, service: &str) -> String {
    let asked = DetailedJob {
        routers: RouterChoice::Trace,
        size: Some(size),
        ..job(lab, &[], "10.1.0.50", "10.3.0.60", service)
    };
    let name = asked.services[0].to_string();
    said(&run(lab, &asked), &name)
}

fn quick(lab: &TestLab, size: u16, service: &str) -> (Verdict, String) {
    let asked = QuickJob {
        routers: RouterChoice::Trace,
        size: Some(size),
        ..lab.job("west", "10.1.0.50", "10.3.0.60", service)
    };
    let report = quick::run(&asked, &lab.config).unwrap().report;
    let end = &report.end_to_end[0];
    (
        end.result,
        end.reason.clone().unwrap_or_default().to_string(),
    )
}

const TOO_LONG: &str = "1500 bytes exceed the MTU 1400 of wan";

#[test]
fn what_is_longer_than_a_link_takes_is_stopped_there() {
    let (lab, _dir) = narrow("");
    for service in ["53/udp", "ping", "esp", "443"] {
        assert_eq!(detailed(&lab, 1400, service), "YES", "{service}");
        assert_eq!(quick(&lab, 1400, service).0, Verdict::Yes, "{service}");
        let (verdict, reason) = quick(&lab, 1500, service);
        let right = match service {
            "443" => Verdict::Unknown,
            _ => Verdict::No,
        };
        assert_eq!(verdict, right, "{service}: {reason}");
        assert!(reason.contains(TOO_LONG), "{reason}");
    }
    for service in ["53/udp", "ping", "esp"] {
        let words = detailed(&lab, 1500, service);
        assert!(
            words.starts_with("NO west: fragmentation needed"),
            "{words}"
        );
        assert!(words.contains(TOO_LONG), "{words}");
    }
    // Who is told makes smaller segments.
    assert_eq!(detailed(&lab, 1500, "443"), "YES");
}

/// Nobody hears that packets are too long.
const MUTE: &str = "\
table inet fw {
  chain output {
    type filter hook output priority 0;
    icmp type destination-unreachable drop
  }
}
";
const CLAMP: &str = "\
table inet mss {
  chain forward {
    type filter hook forward priority mangle;
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
  }
}
";

#[test]
fn a_black_hole_of_path_mtu_discovery_is_named_and_clamping_leads_past_it() {
    let (lab, _dir) = narrow(MUTE);
    for service in ["443", "53/udp"] {
        let words = detailed(&lab, 1500, service);
        assert!(words.starts_with("NO west"), "{words}");
        assert!(words.contains(TOO_LONG), "{words}");
        assert!(
            words.contains("black hole of path MTU discovery"),
            "{words}"
        );
    }
    assert_eq!(detailed(&lab, 1400, "443"), "YES");
    let (lab, _dir) = narrow(&format!("{MUTE}{CLAMP}"));
    assert_eq!(detailed(&lab, 1500, "443"), "YES");
}

/// Where large packets begin, the kernel learns the MTU of the path and remembers it for ten minutes: in a
/// host that somebody put there by hand, and in a router that sends itself.
#[test]
fn what_sources_learn_of_a_path_is_forgotten() {
    let (lab, _dir) = lab(&[
        json!({
            "version": 1,
            "name": "west",
            "interfaces": [
                {"name": "lan", "addresses": ["10.1.0.1/24"]},
                {"name": "wan", "addresses": ["10.2.0.1/24"]}
            ],
            "routes": ["10.3.0.0/24 via 10.2.0.2 dev wan"]
        }),
        json!({
            "version": 1,
            "name": "east",
            "interfaces": [
                {"name": "wan", "addresses": ["10.2.0.2/24"]},
                {"name": "srv", "addresses": ["10.3.0.1/24"], "mtu": 1400}
            ],
            "routes": ["10.1.0.0/24 via 10.2.0.1 dev wan"]
        }),
    ]);
    let config = lab.config_file();
    let command = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--config").arg(&config);
        command
    };
    let mut add = command(env!("CARGO_BIN_EXE_tsim"));
    let name = lab.bed.lab.as_str();
    add.args(["host", "add", "--lab", name, "--router", "west"]);
    add.args(["--address", "10.1.0.50", "--name", "client"]);
    assert!(add.output().unwrap().status.success());
    let host = HostId::new(lab.bed.lab.clone(), HostName::new("client").unwrap());
    let west = lab.lab.router_netns(&"west".parse().unwrap()).unwrap();
    let host = lab.bed.dir.open(&host.netns()).unwrap();
    let known = |netns| {
        let mut netlink = Netlink::open(netns).unwrap();
        netlink.route_exceptions(Family::V4).unwrap()
    };
    for (source, netns) in [("10.1.0.50", &host), ("10.2.0.1", &west)] {
        let begin = || {
            let mut job = command(env!("CARGO_BIN_EXE_tsim-detailed"));
            job.args([
                "--lab",
                name,
                "-s",
                source,
                "-d",
                "10.3.0.60",
                "-P",
                "53/udp",
            ]);
            job.args(["--size", "1450", "--fault", "stop@detailed.forget"]);
            job.stdout(Stdio::null()).stderr(Stdio::null());
            let job = job.spawn().unwrap();
            await_stop(&job);
            assert_eq!(known(netns).len(), 1, "{source}");
            job
        };
        let mut job = begin();
        kill(pid(&job), Signal::SIGCONT).unwrap();
        assert!(job.wait().unwrap().code().is_some());
        assert_eq!(known(netns).len(), 0, "{source}");
        // Of a killed one whoever comes next has it forgotten.
        let mut job = begin();
        kill(pid(&job), Signal::SIGKILL).unwrap();
        job.wait().unwrap();
        let reconciled = command(env!("CARGO_BIN_EXE_tsim"))
            .arg("reconcile")
            .output();
        assert!(reconciled.unwrap().status.success());
        assert_eq!(known(netns).len(), 0, "{source}");
    }
}
