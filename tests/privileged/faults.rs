//! A quick job that is killed, or that fails, at every step of it: the next job's answers are
//! right, and nothing is left.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use tsim::{
    model::RouterName,
    netlink::sysctl,
    netns::{NetnsFd, tool::Tools},
};

use crate::{
    kernels::{owner_tables, taps_stay},
    leaks::iptables_save,
    quick::TestLab,
    support::await_stop,
};

/// A lab, and the quick runner as users start it.
struct Runner {
    lab: TestLab,
    config: PathBuf,
    /// Further options of jobs with faults.
    options: &'static [&'static str],
}

impl Runner {
    fn new() -> Self {
        let lab = TestLab::up("small3");
        let config = lab.config_file();
        Self {
            lab,
            config,
            options: &["--explain", "always"],
        }
    }

    fn command(&self, run_id: &str, fault: Option<&str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-quick"));
        command
            .arg("--config")
            .arg(&self.config)
            .args(["--lab", self.lab.bed.lab.as_str()]);
        command.args([
            "-s",
            "10.81.1.10",
            "-d",
            "10.81.3.10",
            "-P",
            "22,23",
            "--routers",
            "r1,r2",
        ]);
        command.args(["--json", "--run-id", run_id]);
        match fault {
            Some(fault) => command.args(["--fault", fault]).args(self.options),
            None => command.args(["--explain", "always"]),
        };
        command
    }

    fn quick(&self, run_id: &str, fault: Option<&str>) -> Output {
        self.command(run_id, fault).output().unwrap()
    }

    /// How many steps a job takes.
    fn steps(&self) -> u64 {
        let output = self.quick("count", Some("count"));
        let text = String::from_utf8(output.stderr).unwrap();
        let count = text
            .split("fault: ")
            .nth(1)
            .and_then(|t| t.split(' ').next())
            .unwrap();
        count.parse().unwrap()
    }

    /// Has the next job read and keep the texts of the routers' rules again, which are steps of it.
    fn forget_texts(&self) {
        for file in crate::kept::files(&self.lab) {
            fs::remove_file(file).unwrap();
        }
    }

    /// No table of the job is in any router soon after its death; without owner tables it may stay
    /// until the next job. A program that the job was just starting has its sockets until
    /// execve(2): each look at the tables starts one itself, which takes longer than that.
    fn assert_no_taps_after_death(&self, when: &str) {
        const LOOKS: usize = 20;
        let left = |_| self.taps();
        if owner_tables() && (0..LOOKS).map(left).all(|left| left.is_some()) {
            self.assert_no_taps(when);
        }
    }

    /// No job's table is in any router.
    fn assert_no_taps(&self, when: &str) {
        assert_eq!(self.taps(), None, "{when}");
    }

    /// The tables of a router that has some of a job's.
    fn taps(&self) -> Option<String> {
        let tables = ["r1", "r2"].map(|router| {
            let router = RouterName::new(router).unwrap();
            let netns = self.lab.lab.router_netns(&router).unwrap();
            let list = || {
                Command::new("/usr/sbin/nft")
                    .args(["list", "tables"])
                    .output()
            };
            String::from_utf8(netns.enter(list).unwrap().unwrap().stdout).unwrap()
        });
        tables.into_iter().find(|tables| tables.contains("tsim"))
    }

    /// The rules of the routers, as all tools show them.
    fn rulesets(&self) -> Vec<String> {
        let of = |router: &&str| {
            crate::quick::ruleset(&self.lab, router) + &iptables_save(&self.lab, router)
        };
        ["r1", "r2"].iter().map(of).collect()
    }

    /// A job without faults answers rightly.
    fn assert_right(&self, when: &str) {
        let output = self.quick("next", None);
        right(&output, when);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            report["warnings"],
            json!(taps_stay(&["r1", "r2"])),
            "{when}"
        );
    }

    /// Neither namespaces nor leases nor DSCP values are left.
    fn assert_empty(&self, when: &str) {
        let left: Vec<String> = self
            .lab
            .bed
            .left()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            !left.iter().any(|name| name.contains('@')),
            "{when}: {left:?}"
        );
        for file in ["hosts.json", "host_leases.json", "dscp_registry.json"] {
            let text = read(&self.lab.config.registry_dir.join(file));
            assert!(!text.contains("pid"), "{when}: {file}: {text}");
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_quick_job_killed_at_any_step_leaves_nothing_to_the_next() {
    let runner = Runner::new();
    let steps = runner.steps();
    assert!(steps >= 50, "{steps} steps");
    for step in 1..=steps {
        let when = format!("killed at step {step} of {steps}");
        runner.forget_texts();
        let output = runner.quick(&format!("killed{step}"), Some(&format!("kill@{step}")));
        assert_eq!(output.status.signal(), Some(9), "{when}");
        runner.assert_no_taps_after_death(&when);
        runner.assert_right(&when);
        runner.assert_no_taps(&when);
        runner.assert_empty(&when);
    }
}

#[test]
fn a_quick_job_that_fails_at_any_step_leaves_nothing_to_the_next() {
    let runner = Runner::new();
    let steps = runner.steps();
    for step in 1..=steps {
        let errno = ["ENOSPC", "EIO", "EBUSY", "ENOBUFS"][step as usize % 4];
        let when = format!("{errno} at step {step} of {steps}");
        runner.forget_texts();
        let output = runner.quick(&format!("failed{step}"), Some(&format!("{errno}@{step}")));
        assert!(output.status.code().is_some(), "{when}: {output:?}");
        runner.assert_no_taps_after_death(&when);
        runner.assert_right(&when);
        runner.assert_no_taps(&when);
        runner.assert_empty(&when);
    }
}

/// The next job measures with nf_tables: it does not look for rules of iptables, and reads in notes
/// where there are some.
#[test]
fn a_job_of_iptables_killed_at_any_step_leaves_no_table_to_the_next_of_nft() {
    // Each is tried at random moments by the campaign of kills, too.
    for (options, every) in [
        (&["--explain", "never", "--backend", "iptables-nft"], 3),
        (&["--explain", "never", "--backend", "iptables-legacy"], 6),
    ] {
        let runner = Runner {
            options,
            ..Runner::new()
        };
        let notes = runner.lab.config.registry_dir.join("locks/taps");
        // With the legacy variant the first job brings tables into being, which stay.
        let steps = runner.steps();
        let before = runner.rulesets();
        let mut noted = 0;
        for step in (1..=steps).step_by(every) {
            let when = format!("{options:?} killed at step {step} of {steps}");
            let output = runner.quick(&format!("killed{step}"), Some(&format!("kill@{step}")));
            assert_eq!(output.status.signal(), Some(9), "{when}");
            noted += usize::from(notes.exists());
            runner.assert_right(&when);
            assert_eq!(runner.rulesets(), before, "{when}");
            assert!(!notes.exists(), "{when}");
            runner.assert_empty(&when);
        }
        assert!(noted > 0, "{noted} of {steps} steps left a note");
    }
}

/// The setting is not the job's table, so the kernel does not put it back: the next job does, and so
/// does `tsim reconcile`.
#[test]
fn a_trace_of_iptables_legacy_killed_at_any_step_leaves_its_logger_to_nobody() {
    let runner = Runner::new();
    let r1 = RouterName::new("r1").unwrap();
    let r1 = runner.lab.lab.router_netns(&r1).unwrap();
    let rule = "*raw\n-A PREROUTING -p tcp --dport 23 -j DROP\nCOMMIT\n";
    load(&r1, "iptables-legacy-restore", rule);
    let logger = || sysctl::read(&r1, &["net/netfilter/nf_log/2"]).unwrap();
    let before = logger();
    let notes = runner.lab.config.registry_dir.join("locks/taps");
    let assert_put_back = |when: &str| {
        runner.assert_right(when);
        assert_eq!(logger(), before, "{when}");
        assert!(!notes.exists(), "{when}");
    };
    for reconciles in [false, true] {
        let when = format!("killed while it traces; reconcile: {reconciles}");
        let run_id = format!("traces-{reconciles}");
        let mut job = runner.command(&run_id, Some("stop@iptables.traced"));
        let mut job = job.stdout(Stdio::null()).spawn().unwrap();
        await_stop(&job);
        job.kill().unwrap();
        job.wait().unwrap();
        assert_ne!(logger(), before, "{when}");
        assert!(notes.exists(), "{when}");
        if reconciles {
            let mut reconcile = Command::new(env!("CARGO_BIN_EXE_tsim"));
            let config = reconcile.arg("--config").arg(&runner.config);
            let output = config.arg("reconcile").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("nf_log-2"), "{when}: {output:?}");
            assert_eq!(logger(), before, "{when}");
        }
        assert_put_back(&when);
    }
    let steps = runner.steps();
    // All of them are tried without legacy rules above.
    for step in (1..=steps).step_by(3) {
        let when = format!("killed at step {step} of {steps}");
        runner.forget_texts();
        let output = runner.quick(&format!("killed{step}"), Some(&format!("kill@{step}")));
        assert_eq!(output.status.signal(), Some(9), "{when}");
        assert_put_back(&when);
    }
}

fn load(netns: &NetnsFd, tool: &str, rules: &str) {
    let tools = Tools::new(["/usr/sbin".into()]);
    let load = || tools.run(tool, &[], rules.as_bytes());
    netns.enter(load).unwrap().unwrap();
}

/// Numbers that are the same in every run (a linear congruential generator).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// 32 jobs at once over the same routers and source hosts, half of them killed at some step.
fn crowd(rounds: u64, seed: u64) {
    let runner = Runner::new();
    let steps = runner.steps();
    let before = runner.rulesets();
    let mut chance = Chance(seed);
    for round in 0..rounds {
        let faults: Vec<Option<String>> = (0..32)
            .map(|_| (chance.below(2) == 0).then(|| format!("kill@{}", 1 + chance.below(steps))))
            .collect();
        let outputs: Vec<Output> = std::thread::scope(|scope| {
            let runner = &runner;
            let start = |(job, fault): (usize, &Option<String>)| {
                let (run_id, fault) = (format!("round{round}job{job}"), fault.clone());
                scope.spawn(move || runner.quick(&run_id, fault.as_deref()))
            };
            let jobs: Vec<_> = faults.iter().enumerate().map(start).collect();
            jobs.into_iter().map(|job| job.join().unwrap()).collect()
        });
        for (fault, output) in faults.iter().zip(&outputs) {
            let when = format!("seed {seed}, round {round}, {fault:?}");
            match fault {
                // A job that had fewer steps than the count, because a host was there, ends well.
                Some(_) if output.status.signal() == Some(9) => {}
                _ => right(output, &when),
            }
        }
    }
    runner.assert_right("after the crowd");
    runner.assert_empty("after the crowd");
    runner.assert_no_taps("after the crowd");
    assert_eq!(runner.rulesets(), before);
}

/// The job ended and its answers are right.
fn right(output: &Output, when: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{when}: {errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for router in report["routers"].as_array().unwrap() {
        let results: Vec<&Value> = router["services"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| &s["result"])
            .collect();
        assert_eq!(results, ["YES", "NO"], "{when}: {report}");
    }
}

#[test]
fn thirty_two_jobs_at_once_answer_rightly_while_half_of_them_die() {
    crowd(3, 1);
}

#[test]
#[ignore = "a hundred rounds take minutes: cargo test --test privileged -- --ignored hundred"]
fn a_hundred_rounds_of_thirty_two_jobs_answer_rightly_while_half_of_them_die() {
    crowd(100, 2);
}
