//! Jobs over whole ways that are killed at their steps, with copies of routers and with chains of
//! them: nothing is left, and the next job says what it said before.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;
use tsim::{
    model::RouterName,
    netlink::{
        Netlink,
        object::{Family, Neighbour, Route},
    },
};

use crate::{detailed::nothing_is_registered, kernels::owner_tables, quick::TestLab};

/// Far enough apart that a run takes seconds, and no divisor of the steps that a write to the
/// registry takes, so that one run meets all kinds.
const STRIDE: usize = 13;

/// What of the routers' state jobs change while they run.
#[derive(Debug, PartialEq)]
struct State {
    namespaces: usize,
    rulesets: Vec<String>,
    /// Those that were set; what routers learn of each other is theirs.
    neighbours: Vec<Neighbour>,
    routes: Vec<Route>,
    /// Connections that would live for hours.
    established: Vec<String>,
}

/// A question that is asked again and again.
struct Asked {
    lab: TestLab,
    config: PathBuf,
    program: &'static str,
    arguments: &'static str,
    routers: &'static [&'static str],
    before: State,
    right: BTreeMap<String, String>,
}

impl Asked {
    fn new(
        facts: &str,
        routers: &'static [&'static str],
        (program, arguments): (&'static str, &'static str),
    ) -> Self {
        let lab = TestLab::up(facts);
        let mut asked = Self {
            config: lab.config_file(),
            before: state(&lab, routers),
            lab,
            program,
            arguments,
            routers,
            right: BTreeMap::new(),
        };
        asked.right = answers(&asked.ask("first", None));
        assert!(!asked.right.is_empty());
        asked
    }

    fn ask(&self, run_id: &str, fault: Option<&str>) -> Output {
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
        command.output().unwrap()
    }

    /// How many steps a job takes.
    fn steps(&self) -> u64 {
        let output = self.ask("count", Some("count"));
        let text = String::from_utf8(output.stderr).unwrap();
        let count = text.split("fault: ").nth(1);
        let count = count.and_then(|t| t.split(' ').next()).unwrap();
        count.parse().unwrap()
    }

    fn kill_at(&self, steps: impl Iterator<Item = u64>) {
        for step in steps {
            let when = format!("killed at step {step}");
            let output = self.ask(&format!("killed{step}"), Some(&format!("kill@{step}")));
            assert_eq!(output.status.signal(), Some(9), "{when}");
            if owner_tables() {
                let now = state(&self.lab, self.routers);
                assert_eq!(now.rulesets, self.before.rulesets, "{when}");
            }
            assert_eq!(answers(&self.ask("next", None)), self.right, "{when}");
            nothing_is_registered(&self.lab);
            assert_eq!(state(&self.lab, self.routers), self.before, "{when}");
        }
    }
}

/// The verdicts from end to end by service.
fn answers(output: &Output) -> BTreeMap<String, String> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let ends = report["end_to_end"].as_array().into_iter().flatten();
    let one = |end: &Value| {
        let service = format!("{}/{}", end["port"], end["protocol"]);
        (service, end["result"].to_string())
    };
    ends.map(one).collect()
}

fn state(lab: &TestLab, routers: &[&str]) -> State {
    let mut state = State {
        namespaces: lab.bed.left().len(),
        rulesets: Vec::new(),
        neighbours: Vec::new(),
        routes: Vec::new(),
        established: Vec::new(),
    };
    for name in routers {
        let netns = lab.lab.router_netns(&RouterName::new(*name).unwrap());
        let netns = netns.unwrap();
        let mut netlink = Netlink::open(&netns).unwrap();
        for family in [Family::V4, Family::V6] {
            let mut neighbours = netlink.neighbours(family).unwrap();
            neighbours.retain(|n| n.state & Neighbour::PERMANENT != 0);
            state.neighbours.extend(neighbours);
            state.routes.extend(netlink.routes(family, None).unwrap());
        }
        state.rulesets.push(crate::quick::ruleset(lab, name));
        let connections = || fs::read_to_string("/proc/thread-self/net/nf_conntrack");
        let connections = netns.enter(connections).unwrap().unwrap_or_default();
        let lines = connections
            .lines()
            .filter(|line| line.contains("ESTABLISHED"));
        state.established.extend(lines.map(ToOwned::to_owned));
    }
    state
}

const QUICK: &str = env!("CARGO_BIN_EXE_tsim-quick");
const DETAILED: &str = env!("CARGO_BIN_EXE_tsim-detailed");

#[test]
fn a_job_killed_while_it_has_copies_of_a_router_leaves_nothing() {
    let asked = Asked::new(
        "reports/equal-cost-two-uplinks",
        &["gw"],
        (QUICK, "-s 10.0.0.9 -d 8.8.8.8 -P 443,ping"),
    );
    asked.kill_at((1..=asked.steps()).step_by(STRIDE));
}

/// The request takes two routers, and the answer another one.
const TRIANGLE: &str = "reports/triangle-with-invalid";

#[test]
fn a_detailed_job_killed_anywhere_on_a_chain_leaves_nothing() {
    let asked = Asked::new(
        TRIANGLE,
        &["ap", "srv", "fw"],
        (DETAILED, "-s 192.168.1.120 -d 10.50.0.2 -P 22,53/udp,ping"),
    );
    asked.kill_at((2..=asked.steps()).step_by(3 * STRIDE));
}

#[test]
#[ignore = "takes minutes: cargo test --test privileged -- --ignored every_step"]
fn jobs_over_whole_ways_killed_at_every_step_leave_nothing() {
    let asked = Asked::new(
        TRIANGLE,
        &["ap", "srv", "fw"],
        (DETAILED, "-s 192.168.1.120 -d 10.50.0.2 -P 22,53/udp,ping"),
    );
    asked.kill_at(1..=asked.steps());
    let asked = Asked::new(
        "reports/equal-cost-two-uplinks",
        &["gw"],
        (QUICK, "-s 10.0.0.9 -d 8.8.8.8 -P 443,ping"),
    );
    asked.kill_at(1..=asked.steps());
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
    nothing_is_registered(&there.lab);
    assert_eq!(state(&there.lab, there.routers), there.before);
}
