//! A detailed job that is killed, or that fails, at its steps: the next job's results are right,
//! and nothing is left to reconcile.

use std::{
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-detailed"));
        command.arg("--config").arg(&self.config);
        command.args(["--lab", self.lab.bed.lab.as_str(), "-s", "10.81.1.10"]);
        command.args(["-d", "10.81.3.10", "-P", "22,23", "--routers", "r1"]);
        command.args(["--json", "--run-id", run_id]);
        if let Some(fault) = fault {
            command.args(["--fault", fault]);
        }
        command.output().unwrap()
    }

    fn steps(&self) -> u64 {
        let output = self.detailed("count", Some("count"));
        let text = String::from_utf8(output.stderr).unwrap();
        let count = text.split("fault: ").nth(1);
        let count = count.and_then(|t| t.split(' ').next()).unwrap();
        let count = count.parse().unwrap();
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
