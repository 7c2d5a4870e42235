//! A detailed job that is killed, or that fails, at its steps: the next job's results are right,
//! and nothing is left to reconcile.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::{Value, json};
use tsim::{
    model::RouterName,
    netlink::{
        Netlink,
        object::{Family, Neighbour},
    },
};

use crate::{
    detailed::nothing_is_registered,
    kernels::{owner_tables, traces_stay},
    quick::TestLab,
};

/// What of the router's state a job changes while it runs.
#[derive(Debug, PartialEq)]
struct State {
    namespaces: usize,
    ruleset: String,
    neighbours: Vec<Neighbour>,
}

/// A lab, and the detailed runner as users start it.
struct Runner {
    lab: TestLab,
    config: PathBuf,
    before: State,
}

impl Runner {
    fn new() -> Self {
        let lab = TestLab::up("small3");
        Self {
            config: lab.config_file(),
            before: state(&lab),
            lab,
        }
    }

    fn detailed(&self, run_id: &str, fault: Option<&str>) -> Output {
        self.command(run_id, fault).output().unwrap()
    }

    fn command(&self, run_id: &str, fault: Option<&str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-detailed"));
        command.arg("--config").arg(&self.config);
        command.args(["--lab", self.lab.bed.lab.as_str(), "-s", "10.81.1.10"]);
        command.args(["-d", "10.81.3.10", "-P", "22,23", "--routers", "r1"]);
        command.args(["--json", "--run-id", run_id]);
        if let Some(fault) = fault {
            command.args(["--fault", fault]);
        }
        command
    }

    fn steps(&self) -> u64 {
        let count = steps(&self.detailed("count", Some("count")));
        assert!(count >= 50, "{count} steps");
        count
    }

    /// Kills the job at each of these steps.
    fn kill_at(&self, steps: impl Iterator<Item = u64>) {
        for step in steps {
            let when = format!("killed at step {step}");
            let output = self.detailed(&format!("killed{step}"), Some(&format!("kill@{step}")));
            assert_eq!(output.status.signal(), Some(9), "{when}");
            self.assert_untraced(&when);
            self.assert_right(&when);
        }
    }

    /// Has each of these steps fail.
    fn fail_at(&self, steps: impl Iterator<Item = u64>) {
        for step in steps {
            let errno = ["ENOSPC", "EIO", "EBUSY", "ENOBUFS"][step as usize % 4];
            let when = format!("{errno} at step {step}");
            let output = self.detailed(&format!("failed{step}"), Some(&format!("{errno}@{step}")));
            assert!(output.status.code().is_some(), "{when}: {output:?}");
            self.assert_untraced(&when);
            self.assert_right(&when);
        }
    }

    /// The tables of a dead job are gone at once; without owner tables the next job takes them away.
    fn assert_untraced(&self, when: &str) {
        if !owner_tables() {
            return;
        }
        let now = crate::quick::ruleset(&self.lab, "r1");
        assert!(!now.contains("tsim"), "{when}: {now}");
    }

    /// A job without faults finds out what is right, and then nothing is left of either.
    fn assert_right(&self, when: &str) {
        let output = self.detailed("next", None);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{when}: {errors}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let status = |at: usize| {
            let tests = &report["services"][at]["reachability_tests"]["service"]["result"]["tests"];
            tests[0]["status"].as_str().unwrap_or_default().to_owned()
        };
        let statuses = [status(0), status(1)];
        assert_eq!(statuses, ["OK", "TIMEOUT"], "{when}: {report}");
        assert_eq!(report["warnings"], json!(traces_stay(&["r1"])), "{when}");
        nothing_is_registered(&self.lab);
        assert_eq!(state(&self.lab), self.before, "{when}");
        self.assert_reconciled(when);
    }

    /// Reconcile finds nothing to do.
    fn assert_reconciled(&self, when: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsim"));
        command.arg("--config").arg(&self.config);
        let output = command.args(["reconcile", "--dry-run", "--json"]).output();
        let report: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        assert_eq!(report["actions"], Value::Array(Vec::new()), "{when}");
    }
}

/// The number of steps that a job counted.
fn steps(output: &Output) -> u64 {
    let text = String::from_utf8_lossy(&output.stderr);
    let count = text.split("fault: ").nth(1);
    let count = count.and_then(|t| t.split(' ').next()).unwrap();
    count.parse().unwrap()
}

fn state(lab: &TestLab) -> State {
    let router = lab.lab.router_netns(&RouterName::new("r1").unwrap());
    let mut netlink = Netlink::open(&router.unwrap()).unwrap();
    State {
        namespaces: lab.bed.left().len(),
        ruleset: crate::quick::ruleset(lab, "r1"),
        neighbours: netlink.neighbours(Family::V4).unwrap(),
    }
}

/// Far enough apart that a run takes seconds, and no divisor of the steps that a write to the
/// registry takes, so that one run meets all kinds.
const STRIDE: usize = 9;

#[test]
fn a_detailed_job_killed_at_a_step_leaves_nothing_to_the_next() {
    let runner = Runner::new();
    runner.kill_at((1..=runner.steps()).step_by(STRIDE));
}

#[test]
fn a_detailed_job_that_fails_at_a_step_leaves_nothing_to_the_next() {
    let runner = Runner::new();
    runner.fail_at((4..=runner.steps()).step_by(STRIDE));
}

/// Each service is written down as soon as it was measured, and the report takes its place.
#[test]
fn what_was_measured_outlives_a_job_that_is_killed_before_its_report() {
    let runner = Runner::new();
    let out = tempfile::tempdir().unwrap();
    let report = out.path().join("report");
    let ask = |fault: &str| {
        let mut command = runner.command("out", Some(fault));
        command.arg("--out").arg(&report).output().unwrap()
    };
    let counted = ask("count");
    assert_eq!(counted.status.code(), Some(1), "{counted:?}");
    assert!(report.join("report.json").exists());
    let overview = fs::read(report.join("overview.json")).unwrap();
    let overview: Value = serde_json::from_slice(&overview).unwrap();
    assert_eq!(overview["services"], json!([]));
    assert_eq!(overview["end_to_end"].as_array().unwrap().len(), 2);
    assert!(!report.join("measured.jsonl").exists());

    // While it gives back what it had.
    let step = steps(&counted) - 3;
    assert_eq!(ask(&format!("kill@{step}")).status.signal(), Some(9));
    let text = fs::read_to_string(report.join("measured.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let found: Vec<_> = lines
        .map(|line: Value| (line["port"].clone(), line["result"].clone()))
        .collect();
    let want = [(22, "YES"), (23, "NO")].map(|(port, result)| (json!(port), json!(result)));
    assert_eq!(found, want, "{text}");
    assert!(text.contains("blocking_rules"), "{text}");
    ask("count");
    assert!(!report.join("measured.jsonl").exists());
}

#[test]
#[ignore = "takes a minute: cargo test --test privileged -- --ignored every_step"]
fn a_detailed_job_killed_at_every_step_leaves_nothing_to_the_next() {
    let runner = Runner::new();
    runner.kill_at(1..=runner.steps());
}

#[test]
#[ignore = "takes a minute: cargo test --test privileged -- --ignored every_step"]
fn a_detailed_job_that_fails_at_every_step_leaves_nothing_to_the_next() {
    let runner = Runner::new();
    runner.fail_at(1..=runner.steps());
}
