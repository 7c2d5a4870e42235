//! Jobs over whole ways that are killed at their steps, with copies of routers and with chains of
//! them: nothing is left, and the next job says what it said before.

use std::{
    collections::BTreeMap,
    fs,
    net::UdpSocket,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::sched_yield,
    sys::signal::{Signal, kill, killpg},
};
use serde_json::{Value, json};
use tsim::{model::HostId, netns::NetnsFd};

use crate::{
    detailed_chain::{lab, router},
    detailed_kills::EDGE,
    kernels::owner_tables,
    quick::TestLab,
    support::{await_stop, pid},
    untouched::{Traces, Untouched, registered},
};

/// Far enough apart that a run takes seconds, and no divisor of the steps that a write to the
/// registry takes, so that one run meets all kinds.
const STRIDE: usize = 13;

/// How long what a dead job has started may take to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a job is asked that did not come to a step.
const ATTEMPTS: u32 = 5;

/// A question that is asked again and again.
struct Asked {
    lab: TestLab,
    config: PathBuf,
    program: &'static str,
    arguments: &'static str,
    routers: &'static [&'static str],
    /// Those that somebody has put there by hand.
    hosts: Vec<NetnsFd>,
    before: Vec<Untouched>,
    registered: String,
    right: BTreeMap<String, String>,
    _facts: Option<tempfile::TempDir>,
}

impl Asked {
    fn new(
        facts: &str,
        routers: &'static [&'static str],
        question: (&'static str, &'static str),
    ) -> Self {
        Self::of((TestLab::up(facts), None), routers, Vec::new(), question)
    }

    fn of(
        (lab, facts): (TestLab, Option<tempfile::TempDir>),
        routers: &'static [&'static str],
        hosts: Vec<NetnsFd>,
        (program, arguments): (&'static str, &'static str),
    ) -> Self {
        let mut asked = Self {
            config: lab.config_file(),
            before: Untouched::all(&lab, routers, &hosts),
            registered: registered(&lab),
            lab,
            program,
            arguments,
            routers,
            hosts,
            right: BTreeMap::new(),
            _facts: facts,
        };
        asked.right = answers(&asked.ask("first", None));
        assert!(!asked.right.is_empty());
        asked.assert_as_before("after the first");
        asked
    }

    fn command(&self, run_id: &str, fault: Option<&str>) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--config").arg(&self.config);
        command.args([
            "--lab",
            self.lab.bed.lab.as_str(),
            "--json",
            "--run-id",
            run_id,
        ]);
        command.args(self.arguments.split(' '));
        command.args(fault.into_iter().flat_map(|fault| ["--fault", fault]));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).process_group(0);
        command
    }

    /// Asks, and returns when nobody is left of those whom the job has started: what they have open,
    /// copies of routers above all, is gone then.
    fn ask(&self, run_id: &str, fault: Option<&str>) -> Output {
        let child = self.command(run_id, fault).spawn().unwrap();
        let group = pid(&child);
        let output = child.wait_with_output().unwrap();
        let began = Instant::now();
        while killpg(group, None) != Err(Errno::ESRCH) {
            assert!(began.elapsed() < PATIENCE, "{run_id} has left processes");
            sched_yield().unwrap();
        }
        output
    }

    /// How many steps a job takes.
    fn steps(&self) -> u64 {
        let output = self.ask("count", Some("count"));
        let text = String::from_utf8(output.stderr).unwrap();
        let count = text.split("fault: ").nth(1);
        let count = count.and_then(|t| t.split(' ').next()).unwrap();
        count.parse().unwrap()
    }

    /// Kills the job at each of these steps. Every other time a next job comes, and in between
    /// somebody who puts right what is left.
    fn kill_at(&self, steps: impl Iterator<Item = u64>) {
        for (number, step) in steps.enumerate() {
            let when = format!("killed at step {step}");
            self.kill_at_one(step);
            self.assert_put_right(number.is_multiple_of(2), &when);
        }
    }

    /// Kills the job at this step. One that has to wait nowhere takes a step or two less than the one
    /// whose steps were counted, and comes through.
    fn kill_at_one(&self, step: u64) {
        let fault = format!("kill@{step}");
        for _ in 0..ATTEMPTS {
            let output = self.ask(&format!("killed{step}"), Some(&fault));
            if output.status.signal() == Some(9) {
                return;
            }
            assert_eq!(answers(&output), self.right, "not killed at step {step}");
        }
        panic!("{ATTEMPTS} jobs did not come to step {step}");
    }

    fn assert_put_right(&self, by_a_job: bool, when: &str) {
        if owner_tables() {
            let now = Untouched::all(&self.lab, self.routers, &self.hosts);
            let left = Untouched::since(&now, &self.before);
            assert!(!left.rulesets, "{when}: {now:#?}");
        }
        if by_a_job {
            let output = self.ask("next", None);
            assert_eq!(answers(&output), self.right, "{when}");
        } else {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tsim"));
            command.arg("--config").arg(&self.config).arg("reconcile");
            let output = command.output().unwrap();
            assert!(output.status.success(), "{when}: {output:?}");
        }
        self.assert_as_before(when);
    }

    fn assert_as_before(&self, when: &str) {
        let now = Untouched::all(&self.lab, self.routers, &self.hosts);
        Untouched::assert_same(&now, &self.before, when);
        assert_eq!(registered(&self.lab), self.registered, "{when}");
    }

    /// Kills a job between its first connection and the removal of what that left, and says what there
    /// was by then.
    fn kill_behind_a_connection(&self, by_a_job: bool) -> Traces {
        let mut child: Child = self
            .command("tried", Some("stop@detailed.forget"))
            .spawn()
            .unwrap();
        await_stop(&child);
        let now = Untouched::all(&self.lab, self.routers, &self.hosts);
        kill(pid(&child), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        self.assert_put_right(by_a_job, "killed behind a connection");
        Untouched::since(&now, &self.before)
    }
}

/// The verdicts from end to end by service.
fn answers(output: &Output) -> BTreeMap<String, String> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let ends = report["end_to_end"].as_array().into_iter().flatten();
    let one = |end: &Value| {
        let text = |key: &str| end[key].as_str().unwrap_or_default().to_owned();
        let service = format!("{}/{}", end["port"], text("protocol"));
        (service, text("result"))
    };
    ends.map(one).collect()
}

const QUICK: &str = env!("CARGO_BIN_EXE_tsim-quick");
const DETAILED: &str = env!("CARGO_BIN_EXE_tsim-detailed");

/// What the edge does with IPv6 besides.
const EDGE_V6: &str = "
table ip6 nat {
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"mid\" masquerade
    }
}
";

/// Whoever connects to port 80 is expected to be called back, in both families.
fn expecting() -> String {
    let family = |family| {
        format!(
            "
table {family} expecting {{
    ct expectation back {{
        protocol tcp
        dport 9876
        timeout 1h
        size 12
        l3proto {family}
    }}
    chain forward {{
        type filter hook forward priority 10; policy accept;
        tcp dport 80 ct expectation set \"back\"
    }}
}}
"
        )
    };
    let drop = "
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        tcp sport 82 drop
    }
}
";
    ["ip", "ip6"].map(family).concat() + drop
}

const CHAIN: [&str; 3] = ["edge", "middle", "core"];

/// Three routers of both families, between the last two of which a link takes 1,300 bytes, and connections
/// of the one in the middle that somebody else made.
fn chain() -> (TestLab, tempfile::TempDir) {
    let edge = router(
        "edge",
        &[
            ("lan", &["10.96.1.1/24", "fd96:0:0:1::1/64"]),
            ("mid", &["10.96.2.1/24", "fd96:0:0:2::1/64"]),
        ],
        &[
            "10.96.0.0/16 via 10.96.2.2 dev mid",
            "fd96::/32 via fd96:0:0:2::2 dev mid",
        ],
        &[EDGE, EDGE_V6, &expecting()].concat(),
    );
    let mut middle = router(
        "middle",
        &[
            ("mid", &["10.96.2.2/24", "fd96:0:0:2::2/64"]),
            ("in", &["10.96.3.2/24", "fd96:0:0:3::2/64"]),
        ],
        &[
            "10.96.4.0/24 via 10.96.3.3 dev in",
            "fd96:0:0:4::/64 via fd96:0:0:3::3 dev in",
        ],
        &expecting(),
    );
    let mut core = router(
        "core",
        &[
            ("in", &["10.96.3.3/24", "fd96:0:0:3::3/64"]),
            ("srv", &["10.96.4.1/24", "fd96:0:0:4::1/64"]),
        ],
        &[
            "10.96.0.0/16 via 10.96.3.2 dev in",
            "fd96::/32 via fd96:0:0:3::2 dev in",
        ],
        "",
    );
    for end in [&mut middle["interfaces"][1], &mut core["interfaces"][0]] {
        end["mtu"] = json!(1300);
    }
    let (lab, facts) = lab(&[edge, middle, core]);
    let inside = |router: &str, work: &(dyn Fn() + Sync)| {
        let netns = lab.lab.router_netns(&router.parse().unwrap());
        netns.unwrap().enter(work).unwrap();
    };
    for router in CHAIN {
        let timeout = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout";
        inside(router, &|| fs::write(timeout, "3600").unwrap());
    }
    inside("middle", &|| {
        for (own, other) in [
            ("10.96.2.2:4000", "10.96.2.1:4000"),
            ("[fd96:0:0:2::2]:4000", "[fd96:0:0:2::1]:4000"),
        ] {
            let socket = UdpSocket::bind(own).unwrap();
            socket.send_to(b"before", other).unwrap();
        }
    });
    (lab, facts)
}

/// A host that somebody puts at the edge by hand.
fn host(lab: &TestLab, name: &str, address: &str) -> NetnsFd {
    let mut add = Command::new(env!("CARGO_BIN_EXE_tsim"));
    add.arg("--config").arg(lab.config_file());
    add.args(["host", "add", "--lab", lab.bed.lab.as_str()]);
    add.args(["--router", "edge", "--address", address, "--name", name]);
    let added = add.output().unwrap();
    assert!(added.status.success(), "{added:?}");
    let host = HostId::new(lab.bed.lab.clone(), name.parse().unwrap());
    lab.bed.dir.open(&host.netns()).unwrap()
}

/// Each leaves traces of all kinds while it runs: the path of large packets is told to hosts that stay,
/// or to the router that sends them itself.
const FROM_HOSTS: [&str; 2] = [
    "-s 10.96.1.50 -d 10.96.4.80 -P 80,82,53/udp --size 1400",
    "-s fd96:0:0:1::50 -d fd96:0:0:4::80 -P 80,82,53/udp --size 1400",
];
const FROM_THE_ROUTER: [&str; 2] = [
    "-s 10.96.2.1 -d 10.96.4.80 -P 80,53/udp --size 1400",
    "-s fd96:0:0:2::1 -d fd96:0:0:4::80 -P 80,53/udp --size 1400",
];

fn over_the_chain(question: &'static str) -> Asked {
    let (lab, facts) = chain();
    let mut hosts = vec![
        host(&lab, "client4", "10.96.1.50"),
        host(&lab, "client6", "fd96:0:0:1::50"),
    ];
    if FROM_THE_ROUTER.contains(&question) {
        hosts.clear();
    }
    let asked = Asked::of((lab, Some(facts)), &CHAIN, hosts, (DETAILED, question));
    assert_eq!(asked.right["80/tcp"], "YES", "{:?}", asked.right);
    asked
}

/// While the first connection is known, all five kinds of traces are there, and none when it was put
/// right.
fn assert_that_all_is_removed(question: &'static str) -> Asked {
    let asked = over_the_chain(question);
    for by_a_job in [true, false] {
        let left = asked.kill_behind_a_connection(by_a_job);
        let all = Traces {
            connections: true,
            expectations: true,
            neighbours: true,
            exceptions: true,
            rulesets: true,
        };
        assert_eq!(left, all, "{question}");
    }
    asked
}

#[test]
fn a_job_of_ipv4_that_is_killed_leaves_no_trace_of_any_kind() {
    let asked = assert_that_all_is_removed(FROM_HOSTS[0]);
    asked.kill_at((2..=asked.steps()).step_by(3 * STRIDE));
}

#[test]
fn a_job_of_ipv6_that_is_killed_leaves_no_trace_of_any_kind() {
    let asked = assert_that_all_is_removed(FROM_HOSTS[1]);
    asked.kill_at((7..=asked.steps()).step_by(3 * STRIDE));
}

#[test]
fn a_router_that_is_killed_while_it_asks_itself_keeps_no_trace_of_any_kind() {
    for question in FROM_THE_ROUTER {
        assert_that_all_is_removed(question);
    }
}

#[test]
fn a_job_killed_while_it_has_copies_of_a_router_leaves_nothing() {
    let asked = Asked::new(
        "reports/equal-cost-two-uplinks",
        &["gw"],
        (QUICK, "-s 10.0.0.9 -d 8.8.8.8 -P 443,ping"),
    );
    asked.kill_at((1..=asked.steps()).step_by(STRIDE));
}

/// Two routers with two links between them, and a hash that decides over which packets go, both ways: each
/// of the four choices is measured on copies of both.
fn forked() -> Asked {
    let both = |own: u8| {
        [
            (
                format!("10.95.11.{own}/24"),
                format!("fd95:0:0:11::{own}/64"),
            ),
            (
                format!("10.95.12.{own}/24"),
                format!("fd95:0:0:12::{own}/64"),
            ),
        ]
    };
    let spread = |to: &str, v6: &str, other: u8| {
        [
            format!(
                "{to} nexthop via 10.95.11.{other} dev one nexthop via 10.95.12.{other} dev two"
            ),
            format!(
                "{v6} nexthop via fd95:0:0:11::{other} dev one nexthop via fd95:0:0:12::{other} dev two"
            ),
        ]
    };
    let make = |name: &str, local: (&str, &[&str]), own: u8, routes: &[String; 2], nft: &str| {
        let [one, two] = both(own);
        let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
        let one: [&str; 2] = [&one.0, &one.1];
        let two: [&str; 2] = [&two.0, &two.1];
        router(name, &[local, ("one", &one), ("two", &two)], &routes, nft)
    };
    let near = make(
        "near",
        ("lan", &["10.95.1.1/24", "fd95:0:0:1::1/64"]),
        1,
        &spread("10.95.3.0/24", "fd95:0:0:3::/64", 2),
        "",
    );
    let far = make(
        "far",
        ("srv", &["10.95.3.1/24", "fd95:0:0:3::1/64"]),
        2,
        &spread("10.95.1.0/24", "fd95:0:0:1::/64", 1),
        "table inet filter {
            chain forward {
                type filter hook forward priority filter; policy accept;
                tcp dport 82 drop
            }
        }",
    );
    let (lab, facts) = lab(&[near, far]);
    let question = "-s 10.95.1.9 -d 10.95.3.9 -P 80,82";
    let asked = Asked::of(
        (lab, Some(facts)),
        &["near", "far"],
        Vec::new(),
        (DETAILED, question),
    );
    let right = [("80/tcp", "YES"), ("82/tcp", "NO")];
    let right = right.map(|(service, answer)| (service.to_owned(), answer.to_owned()));
    assert_eq!(asked.right, right.into());
    asked
}

#[test]
fn a_detailed_job_killed_while_it_has_copies_of_routers_leaves_nothing() {
    let asked = forked();
    asked.kill_at((3..=asked.steps()).step_by(3 * STRIDE));
}

/// The request takes two routers, and the answer another one.
fn triangle() -> Asked {
    Asked::new(
        "reports/triangle-with-invalid",
        &["ap", "srv", "fw"],
        (DETAILED, "-s 192.168.1.120 -d 10.50.0.2 -P 22,53/udp,ping"),
    )
}

#[test]
fn a_detailed_job_killed_anywhere_on_a_chain_leaves_nothing() {
    let asked = triangle();
    asked.kill_at((2..=asked.steps()).step_by(3 * STRIDE));
}

#[test]
#[ignore = "takes minutes: cargo test --test privileged -- --ignored every_step"]
fn jobs_over_whole_ways_killed_at_every_step_leave_nothing() {
    let quick = Asked::new(
        "reports/equal-cost-two-uplinks",
        &["gw"],
        (QUICK, "-s 10.0.0.9 -d 8.8.8.8 -P 443,ping"),
    );
    for asked in [triangle(), quick] {
        asked.kill_at(1..=asked.steps());
    }
}

#[test]
#[ignore = "takes minutes: cargo test --test privileged -- --ignored every_step"]
fn jobs_of_both_families_killed_at_every_step_leave_no_trace_of_any_kind() {
    for question in FROM_HOSTS.into_iter().chain(FROM_THE_ROUTER) {
        let asked = assert_that_all_is_removed(question);
        let steps = asked.steps();
        println!("{steps} steps: {question}");
        asked.kill_at(1..=steps);
    }
}

#[test]
#[ignore = "takes minutes: cargo test --test privileged -- --ignored every_step"]
fn a_detailed_job_on_copies_killed_at_every_step_leaves_nothing() {
    let asked = forked();
    let steps = asked.steps();
    println!("{steps} steps");
    asked.kill_at(1..=steps);
}

/// Each takes the routers in the order in which its packets come to them.
#[test]
fn detailed_jobs_over_one_chain_in_opposite_order_both_come_through() {
    let there = Asked::new(
        "small3",
        &["r1", "r2", "r3"],
        (DETAILED, "-s 10.81.1.10 -d 10.81.3.10 -P 22,443,ping"),
    );
    let back = "-s 10.81.3.10 -d 10.81.1.10 -P 22,443,ping";
    let ask = |number: usize| {
        let mut command = Command::new(DETAILED);
        command.arg("--config").arg(&there.config);
        command.args(["--lab", there.lab.bed.lab.as_str(), "--json"]);
        command.args(["--lock-timeout", "60", "--run-id", &format!("job{number}")]);
        let arguments = [there.arguments, back][number % 2];
        answers(&command.args(arguments.split(' ')).output().unwrap())
    };
    let right = ask(1);
    assert_eq!(right.len(), 3);
    let all: Vec<BTreeMap<String, String>> = std::thread::scope(|scope| {
        let jobs = (2..8).map(|number| scope.spawn(move || ask(number)));
        let jobs: Vec<_> = jobs.collect();
        jobs.into_iter().map(|job| job.join().unwrap()).collect()
    });
    for (number, answers) in (2..).zip(all) {
        let right = [&there.right, &right][number % 2];
        assert_eq!(answers, *right, "job {number}");
    }
    there.assert_as_before("after all of them");
}
