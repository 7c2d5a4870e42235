//! Jobs at the same time, as processes. A process is held where it is by a fault plan that stops
//! it at a step (SIGSTOP), and goes on when the test says so: nothing is waited for by guess.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::Value;
use tsim::{
    model::{RouterId, RouterName},
    registry::{LockHolder, RegistryManager},
};

use crate::{
    detailed::nothing_is_registered,
    kernels::{taps_stay, traces_stay},
    leaks::iptables_save,
    quick::TestLab,
};

/// What each of the services asked for gets at a router of small3 that filters: 22, 23 and 80.
const RIGHT: &str = "YES NO YES";
/// A quick job that stops while its taps are in the routers.
const PROBING: &[&str] = &["--fault", "stop@quick.probe"];
/// A detailed job that stops while it holds its routers and follows packets there.
const CONNECTING: &[&str] = &["--fault", "stop@detailed.attempt"];
/// A job that stops when it is in a router's queue and has somebody before it.
const QUEUED: &[&str] = &["--fault", "stop@registry.queue.wait"];

/// A lab, and runners as users start them.
struct Stage {
    lab: TestLab,
    config: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let lab = TestLab::up("small3");
        let config = lab.config_file();
        Self { lab, config }
    }

    fn start(&self, program: &str, run_id: &str, routers: &str, more: &[&str]) -> Job {
        let mut command = Command::new(program);
        command.arg("--config").arg(&self.config);
        command.args(["--lab", self.lab.bed.lab.as_str(), "-s", "10.81.1.10"]);
        command.args(["-d", "10.81.3.10", "-P", "22,23,80", "--json"]);
        command.args(["--run-id", run_id, "--routers", routers]);
        command.args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Job(command.spawn().unwrap())
    }

    fn quick(&self, run_id: &str, routers: &str, more: &[&str]) -> Job {
        self.start(env!("CARGO_BIN_EXE_tsim-quick"), run_id, routers, more)
    }

    fn detailed(&self, run_id: &str, routers: &str, more: &[&str]) -> Job {
        self.start(env!("CARGO_BIN_EXE_tsim-detailed"), run_id, routers, more)
    }

    /// Who is in the queue of `router`, in order.
    fn queue(&self, router: &str) -> Vec<LockHolder> {
        let registry = RegistryManager::open(&self.lab.config).unwrap();
        let id = RouterId::new(self.lab.bed.lab.clone(), RouterName::new(router).unwrap());
        registry.is_router_locked(&id).unwrap()
    }

    /// The run ids in the queue of `router`, a `?` behind those that wait.
    fn names(&self, router: &str) -> Vec<String> {
        let name = |h: LockHolder| format!("{}{}", h.run_id, if h.waiting { "?" } else { "" });
        self.queue(router).into_iter().map(name).collect()
    }
}

/// A job that was started.
struct Job(Child);

impl Job {
    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    /// Returns when the job has stopped at its step.
    fn stopped(mut self) -> Self {
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        if !matches!(status, WaitStatus::Stopped(..)) {
            let mut errors = String::new();
            let mut stderr = self.0.stderr.take().unwrap();
            stderr.read_to_string(&mut errors).unwrap();
            panic!("{status:?}: {errors}");
        }
        self
    }

    fn go_on(&self) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    fn kill(self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
        self.end();
    }

    fn end(self) -> Output {
        self.0.wait_with_output().unwrap()
    }

    /// What it answered, whatever that is.
    fn answer(self) -> Value {
        let output = self.end();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"))
    }

    /// What it answered on each router, with nothing to warn of.
    fn verdicts(self) -> Vec<String> {
        let report = self.answer();
        let routers = report["routers"].as_array().into_iter().flatten();
        let routers: Vec<&str> = routers.filter_map(|r| r["name"].as_str()).collect();
        let stay = [taps_stay(&routers), traces_stay(&routers)].concat();
        let warnings = report["warnings"].as_array().unwrap().iter();
        let mut others = warnings.filter(|w| !stay.iter().any(|s| *w == s));
        assert_eq!(others.next(), None, "{report}");
        verdicts(&report)
    }

    /// Asserts that it could not be run, with `words` in what it said.
    fn refused(self, words: &[&str]) {
        self.ended_with(4, words);
    }

    /// It ends without a result, with this exit code, and says all of these words.
    fn ended_with(self, code: i32, words: &[&str]) {
        let output = self.end();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(output.stdout.is_empty());
        for word in words {
            assert!(errors.contains(word), "no {word:?} in {errors}");
        }
    }
}

/// The verdicts of a result, quick or detailed, router by router.
fn verdicts(report: &Value) -> Vec<String> {
    let routers = report["routers"].as_array().unwrap().iter();
    let of = |router: &Value| {
        let services = router["services"].as_array().unwrap().iter();
        let words: Vec<&str> = services.map(|s| s["result"].as_str().unwrap()).collect();
        words.join(" ")
    };
    routers.map(of).collect()
}

/// Asserts that a detailed job's counters moved because of its own packets only.
fn counters_are_clean(report: &Value) {
    for service in report["services"].as_array().unwrap() {
        let result = &service["reachability_tests"]["service"]["result"];
        for test in result["tests"].as_array().unwrap() {
            // The router speaks IPv6 by itself when its interfaces come up.
            let mut others = test["other_traffic"].as_array().unwrap().iter();
            assert!(others.all(|rule| rule["family"] == "ip6"), "{test}");
            for list in ["allowing_rules", "blocking_rules", "touched_rules"] {
                for rule in test[list].as_array().unwrap() {
                    assert_eq!(rule["unexplained"], 0, "{rule}");
                }
            }
        }
    }
}

#[test]
fn two_quick_jobs_share_a_router() {
    let stage = Stage::new();
    let first = stage.quick("a", "r1", PROBING).stopped();
    assert_eq!(stage.quick("b", "r1", &[]).verdicts(), [RIGHT]);
    first.go_on();
    assert_eq!(first.verdicts(), [RIGHT]);
    nothing_is_registered(&stage.lab);
}

#[test]
fn jobs_on_different_routers_do_not_wait_for_each_other() {
    let stage = Stage::new();
    let quick = stage.quick("a", "r1", PROBING).stopped();
    assert_eq!(stage.quick("b", "r2", &[]).verdicts(), [RIGHT]);
    let detailed = stage.detailed("c", "r2", CONNECTING).stopped();
    assert_eq!(
        stage.detailed("d", "r3", &[]).verdicts(),
        ["YES YES YES"],
        "r3 has no rules"
    );
    quick.go_on();
    assert_eq!(quick.verdicts(), [RIGHT]);
    detailed.go_on();
    assert_eq!(detailed.verdicts(), [RIGHT]);
    nothing_is_registered(&stage.lab);
}

#[test]
fn a_detailed_job_waits_for_a_quick_job_and_counts_none_of_its_probes() {
    let stage = Stage::new();
    let quick = stage.quick("quick", "r1", PROBING).stopped();
    let hasty = stage.detailed("hasty", "r1", &["--lock-timeout", "0.1"]);
    hasty.refused(&["held shared by quick"]);

    let detailed = stage.detailed("detailed", "r1", QUEUED).stopped();
    // Who comes later is held back, so that the detailed job does not starve.
    let late = stage.quick("late", "r1", QUEUED).stopped();
    assert_eq!(stage.names("r1"), ["quick", "detailed?", "late?"]);
    quick.go_on();
    assert_eq!(quick.verdicts(), [RIGHT]);
    detailed.go_on();
    late.go_on();
    let report = detailed.answer();
    assert_eq!(verdicts(&report), [RIGHT]);
    counters_are_clean(&report);
    assert_eq!(late.verdicts(), [RIGHT]);
    nothing_is_registered(&stage.lab);
}

#[test]
fn a_quick_job_waits_for_a_detailed_job() {
    let stage = Stage::new();
    let detailed = stage.detailed("detailed", "r1", CONNECTING).stopped();
    let hasty = stage.quick("hasty", "r1", &["--lock-timeout", "0.1"]);
    hasty.refused(&["held exclusive by detailed"]);

    let quick = stage.quick("quick", "r1", QUEUED).stopped();
    assert_eq!(stage.names("r1"), ["detailed", "quick?"]);
    quick.go_on();
    detailed.go_on();
    let report = detailed.answer();
    assert_eq!(verdicts(&report), [RIGHT]);
    counters_are_clean(&report);
    assert_eq!(quick.verdicts(), [RIGHT]);
    nothing_is_registered(&stage.lab);
}

#[test]
fn a_waiting_quick_job_wakes_when_the_detailed_job_is_killed() {
    let stage = Stage::new();
    let detailed = stage.detailed("detailed", "r1", CONNECTING).stopped();
    let quick = stage.quick("quick", "r1", QUEUED).stopped();
    quick.go_on();
    detailed.kill();
    assert_eq!(quick.verdicts(), [RIGHT]);
    assert_eq!(stage.detailed("next", "r1", &[]).verdicts(), [RIGHT]);
    nothing_is_registered(&stage.lab);
}

/// The job cannot undo anything: somebody else has its turn at the router's iptables.
#[test]
fn a_second_signal_says_what_is_left_and_the_next_job_removes_it() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let stage = Stage::new();
        let r1 = RouterName::new("r1").unwrap();
        let before = iptables_save(&stage.lab, "r1");
        let path = stage.lab.bed.dir.path(&stage.lab.bed.name("r1"));
        let options = ["--backend", "iptables-nft", "--fault", "stop@quick.read"];
        let mut job = stage.quick("stopped", "r1", &options).stopped();
        let turn = Flock::lock(File::open(path).unwrap(), FlockArg::LockExclusive).unwrap();
        let mut said = BufReader::new(job.0.stderr.take().unwrap());
        let mut line = String::new();
        kill(job.pid(), signal).unwrap();
        job.go_on();
        while !line.starts_with("interrupted: undoing") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "it did not say so");
        }
        kill(job.pid(), signal).unwrap();
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert_eq!(job.0.wait().unwrap().code(), Some(code), "{rest}");
        let router = RouterId::new(stage.lab.bed.lab.clone(), r1);
        for left in [
            format!("host {}@", stage.lab.bed.lab),
            format!("taps (iptables-nft) on {router}"),
            "DSCP value 32".to_owned(),
        ] {
            assert!(rest.contains(&left), "{left}: {rest}");
        }
        drop(turn);
        assert_ne!(iptables_save(&stage.lab, "r1"), before);
        assert_eq!(stage.quick("next", "r1", &[]).verdicts(), [RIGHT]);
        assert_eq!(iptables_save(&stage.lab, "r1"), before);
        nothing_is_registered(&stage.lab);
    }
}

#[test]
fn a_crashed_quick_job_does_not_disturb_the_next_with_its_dscp() {
    let stage = Stage::new();
    let dscp = ["--dscp", "40"];
    let reading = [&dscp[..], &["--fault", "stop@quick.read"]].concat();
    stage.quick("crashed", "r1", &reading).stopped().kill();
    assert_eq!(stage.quick("next", "r1", &dscp).verdicts(), [RIGHT]);
    nothing_is_registered(&stage.lab);
}

#[test]
fn thirty_two_quick_jobs_share_a_router_and_the_33rd_is_told_who_holds_the_dscp_values() {
    let stage = Stage::new();
    // Reasons take longer the more jobs ask for them at once.
    let probing = [PROBING, &["--explain", "never"]].concat();
    let start = |number| stage.quick(&format!("job{number}"), "r1", &probing);
    let jobs: Vec<Job> = (0..32).map(start).collect();
    let jobs: Vec<Job> = jobs.into_iter().map(Job::stopped).collect();
    let late = stage.quick("one-too-many", "r1", &[]);
    late.refused(&["all 32 DSCP values (32-63) are in use by", "job0", "job31"]);
    // Detailed jobs need none.
    assert_eq!(
        stage.detailed("detailed", "r3", &[]).verdicts(),
        ["YES YES YES"]
    );
    jobs.iter().for_each(Job::go_on);
    for job in jobs {
        assert_eq!(job.verdicts(), [RIGHT]);
    }
    assert_eq!(stage.quick("after", "r1", &[]).verdicts(), [RIGHT]);
    nothing_is_registered(&stage.lab);
}

#[test]
fn detailed_jobs_with_overlapping_routers_in_opposite_order_do_not_deadlock() {
    let stage = Stage::new();
    let quick = stage.quick("quick", "r2", PROBING).stopped();
    // Would each take its routers in the order that it was given, `first` had r1 and `second`
    // would be next on r2 by now, and each would wait for the other.
    let first = stage.detailed("first", "r1,r2", QUEUED).stopped();
    let second = stage.detailed("second", "r2,r1", QUEUED).stopped();
    assert_eq!(stage.names("r1"), ["first", "second?"]);
    assert_eq!(stage.names("r2"), ["quick", "first?"]);
    for job in [&first, &second, &quick] {
        job.go_on();
    }
    for (job, routers) in [(first, 2), (second, 2), (quick, 1)] {
        assert_eq!(job.verdicts(), vec![RIGHT; routers]);
    }
    nothing_is_registered(&stage.lab);
}

#[test]
fn a_second_job_under_the_name_of_a_running_one_is_refused() {
    let stage = Stage::new();
    let first = stage.detailed("same", "r1", CONNECTING).stopped();
    let words = ["the run id same is already in use by process"];
    stage.detailed("same", "r1", &[]).refused(&words);
    stage.quick("same", "r1", &[]).refused(&words);
    first.go_on();
    assert_eq!(first.verdicts(), [RIGHT]);
    assert_eq!(stage.detailed("same", "r1", &[]).verdicts(), [RIGHT]);
    nothing_is_registered(&stage.lab);
}

#[test]
fn a_crowd_of_detailed_jobs_in_all_orders_finishes() {
    let stage = Stage::new();
    let orders = ["r1,r2", "r2,r1", "r2,r3", "r3,r1", "r3,r2,r1", "r1,r3"];
    let start = |(number, order): (usize, &&str)| {
        stage.detailed(&format!("job{number}"), order, &["--lock-timeout", "30"])
    };
    let jobs: Vec<Job> = orders.iter().enumerate().map(start).collect();
    for (job, order) in jobs.into_iter().zip(orders) {
        let right = |router| if router == "r3" { "YES YES YES" } else { RIGHT };
        let want: Vec<&str> = order.split(',').map(right).collect();
        let report = job.answer();
        assert_eq!(verdicts(&report), want);
        counters_are_clean(&report);
    }
    nothing_is_registered(&stage.lab);
}

#[test]
fn a_signal_makes_a_detailed_job_undo_everything() {
    let stage = Stage::new();
    for (step, router, signal) in [
        ("host.link", "r1", Signal::SIGTERM),
        ("detailed.trace", "r2", Signal::SIGINT),
        ("detailed.listen", "r2", Signal::SIGTERM),
        ("detailed.attempt", "r1", Signal::SIGINT),
    ] {
        let before = crate::quick::ruleset(&stage.lab, router);
        let namespaces = stage.lab.bed.left();
        let stop = format!("stop@{step}");
        let job = stage.detailed("stopped", router, &["--fault", &stop]);
        let job = job.stopped();
        kill(job.pid(), signal).unwrap();
        job.go_on();
        job.ended_with(128 + signal as i32, &["interrupted"]);
        nothing_is_registered(&stage.lab);
        assert_eq!(crate::quick::ruleset(&stage.lab, router), before);
        assert_eq!(stage.lab.bed.left(), namespaces);
    }
}

#[test]
fn a_signal_ends_a_wait_for_a_router() {
    let stage = Stage::new();
    let detailed = stage.detailed("detailed", "r1", CONNECTING).stopped();
    for start in [Stage::detailed, Stage::quick] {
        let waiting = start(&stage, "waiting", "r1,r2", QUEUED).stopped();
        kill(waiting.pid(), Signal::SIGTERM).unwrap();
        waiting.go_on();
        waiting.ended_with(128 + Signal::SIGTERM as i32, &[]);
        assert_eq!(stage.names("r1"), ["detailed"]);
    }
    detailed.go_on();
    assert_eq!(detailed.verdicts(), [RIGHT]);
    nothing_is_registered(&stage.lab);
}

#[test]
fn who_is_stopped_at_a_routers_iptables_is_named_and_waited_for_as_long_as_the_job_says() {
    let stage = Stage::new();
    let before = iptables_save(&stage.lab, "r1");
    let iptables = ["--backend", "iptables-nft"];
    let stop = [&iptables[..], &["--fault", "stop@iptables.restore"]].concat();
    let stopped = stage.quick("stopped", "r1", &stop).stopped();
    let short = [&iptables[..], &["--lock-timeout", "1.2"]].concat();
    let waiting = stage.quick("waiting", "r1", &short);
    let holder = format!("process {} (", stopped.pid());
    let said = format!("waiting for {holder}");
    waiting.ended_with(
        4,
        &[&said, "iptables of ", "has it locked for more than 1."],
    );
    stopped.go_on();
    assert_eq!(verdicts(&stopped.answer()), [RIGHT]);
    assert_eq!(iptables_save(&stage.lab, "r1"), before);
    nothing_is_registered(&stage.lab);
}
