//! One daemon: jobs run, wait, are cancelled, run out of time; the daemon drains.

use std::{collections::BTreeSet, fs, process::Command};

use nix::sys::signal::Signal;
use tsim::{
    model::Dscp,
    sched::job::{Mode, Status, Verdicts},
};

use crate::support::Site;

#[test]
fn a_job_runs_once_and_leaves_its_result() {
    let site = Site::new("");
    let _daemon = site.daemon();
    let submit = ["submit", "quick", "--lab", "any", "-s", "10.0.0.1"];
    let rest = ["-d", "10.0.0.2", "-P", "80,81", "--run-id", "r1", "--json"];
    let output = site.tsim(&[&submit[..], &rest[..]].concat());
    let submitted: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(submitted["position"], 1, "{output:?}");

    assert_eq!(site.tsim(&["watch", "r1"]).status.code(), Some(1));
    let job = site.until_finished("r1");
    let verdicts = Verdicts {
        yes: 1,
        no: 1,
        unknown: 0,
    };
    assert_eq!((job.status, job.exit_code), (Status::Done, Some(1)));
    assert_eq!((job.verdicts, job.reason), (Some(verdicts), None));
    assert_eq!(job.dscp.map(Dscp::get), Some(32));

    let result = site.tsim(&["result", "r1"]);
    assert_eq!(result.status.code(), Some(1));
    let text = String::from_utf8(result.stdout).unwrap();
    assert!(text.contains("hq-gw") && text.contains("NO"), "{text}");
    let again = site.tsim(&[&submit[..], &rest[..]].concat());
    assert_eq!(again.status.code(), Some(0));
    let listed = String::from_utf8(site.tsim(&["queue"]).stdout).unwrap();
    assert!(listed.contains("1 yes, 1 no"), "{listed}");
    assert_eq!(site.starts().into_values().collect::<Vec<_>>(), [1]);
}

#[test]
fn bad_parameters_are_refused_when_submitted() {
    let site = Site::new("");
    for (args, want) in [
        (["-s", "10.0.0.1", "-d", "10.0.0.2", "-P", "0"], "port 0"),
        (
            ["-s", "10.0.0.1", "-d", "fd00::2", "-P", "80"],
            "IP versions",
        ),
        (["-s", "10.0.0", "-d", "10.0.0.2", "-P", "80"], "10.0.0"),
        (
            ["-s", "10.0.0.1", "-d", "10.0.0.2", "-P", "80,httpz"],
            "httpz",
        ),
        (["-s", "10.0.0.1", "-d", "224.0.0.1", "-P", "80"], "unicast"),
    ] {
        refused(&site, &args, &["--lab", "any"], want);
    }
    let good = ["-s", "10.0.0.1", "-d", "10.0.0.2", "-P", "80"];
    refused(&site, &good, &["--lab", "nolab"], "no lab nolab");
    let router = ["--lab", "any", "--routers", "hq-gw"];
    refused(&site, &good, &router, "lab any has no router hq-gw");
    let output = site.tsim(&["cancel", "../../etc/passwd"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(site.jobs().queued.is_empty());
}

fn refused(site: &Site, args: &[&str], more: &[&str], want: &str) {
    let output = site.tsim(&[&["submit", "quick"], more, args].concat());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?} {more:?}: {text}");
    assert!(text.contains(want), "{args:?} {more:?}: {text}");
}

#[test]
fn a_detailed_job_leaves_a_report_for_people() {
    let site = Site::new("");
    let _daemon = site.daemon();
    site.submit("d", Mode::Detailed, "any");
    assert_eq!(site.until_finished("d").status, Status::Done);
    let result = site.tsim(&["result", "d"]);
    assert_eq!(result.stdout, b"evidence of d\n");
    let result = site.tsim(&["result", "d", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&result.stdout).unwrap();
    assert_eq!(json["run_id"], "d");
}

#[test]
fn thirty_two_quick_jobs_run_at_once_each_with_its_own_dscp() {
    let site = Site::new("");
    for n in 0..40 {
        site.quick(&format!("q{n:02}"), "gate");
    }
    let daemon = site.daemon();
    site.until("32 runners", |site| site.started().len() == 32);
    let running = site.jobs().running;
    let values: BTreeSet<_> = running.iter().map(|job| job.dscp).collect();
    assert_eq!((running.len(), values.len()), (32, 32));
    let first: Vec<String> = running.iter().map(|job| job.run_id.to_string()).collect();
    let want: Vec<String> = (0..32).map(|n| format!("q{n:02}")).collect();
    assert_eq!(first, want);
    assert_eq!(site.jobs().queued.len(), 8);

    let _gate = site.open_gate();
    site.until("40 jobs done", |site| {
        (0..40).all(|n| site.finished(&format!("q{n:02}")).is_some())
            && site.jobs().running.is_empty()
    });
    assert!(site.starts().into_values().all(|count| count == 1));
    drop(daemon);
}

#[test]
fn detailed_jobs_have_their_own_limit_and_no_dscp() {
    let site = Site::new("detailed_jobs = 2");
    for n in 0..3 {
        site.submit(&format!("d{n}"), Mode::Detailed, "gate");
    }
    site.quick("q", "any");
    let _daemon = site.daemon();
    assert_eq!(site.until_finished("q").status, Status::Done);
    site.until("two detailed", |site| site.started().len() == 3);
    assert_eq!(site.jobs().running.len(), 2);
    let dscps = site
        .started()
        .into_iter()
        .filter(|line| line.dscp == "none");
    assert_eq!(dscps.count(), 2);
    let _gate = site.open_gate();
    assert_eq!(site.until_finished("d2").status, Status::Done);
}

#[test]
fn waiting_and_running_jobs_are_cancelled() {
    let site = Site::new("quick_jobs = 1");
    site.quick("running", "gate");
    site.quick("waiting", "gate");
    let _daemon = site.daemon();
    site.until("the first", |site| site.started().len() == 1);
    site.cancel("waiting");
    site.cancel("running");
    let job = site.until_finished("running");
    assert_eq!(job.status, Status::Cancelled);
    assert_eq!(job.reason.as_deref(), Some("it was cancelled by bob"));
    assert_eq!(site.finished("waiting").unwrap().status, Status::Cancelled);
    assert_eq!(site.started().len(), 1);
}

#[test]
fn a_runner_that_ignores_sigterm_is_killed() {
    let site = Site::new("quick_seconds = 0.05\ngrace_seconds = 0.05");
    site.quick("s", "stubborn");
    let mut daemon = site.daemon();
    let job = site.until_finished("s");
    assert_eq!(job.status, Status::TimedOut);
    daemon.until_log("reconciled");
}

#[test]
fn runners_that_fail_say_why() {
    let site = Site::new("max_output_bytes = 10000");
    let _daemon = site.daemon();
    for (lab, want) in [
        ("fail", "no such lab (the runner ended with exit code 4)"),
        ("crash", "SIGKILL"),
        ("talk", "more than it may"),
    ] {
        site.quick(lab, lab);
        let job = site.until_finished(lab);
        let reason = job.reason.unwrap();
        assert_eq!(job.status, Status::Failed, "{reason}");
        assert!(reason.contains(want), "{reason}");
    }
    let result = site
        .spool
        .run_dir(&crate::support::id("talk"))
        .join("result.json");
    assert!(fs::metadata(result).unwrap().len() <= 10_000);
    assert_eq!(site.tsim(&["result", "fail"]).status.code(), Some(4));
}

#[test]
fn runners_get_arguments_and_no_environment() {
    let site = Site::new("");
    let _daemon = site.daemon();
    site.quick("e", "env");
    assert_eq!(site.until_finished("e").status, Status::Done);
    let text = fs::read_to_string(site.path("env")).unwrap();
    let names = text.lines().filter_map(|line| line.split('=').next());
    // What the shell sets for itself.
    let foreign: Vec<&str> = names
        .filter(|name| !["PWD", "_", "SHLVL", "OLDPWD"].contains(name))
        .collect();
    assert_eq!(foreign, [""; 0]);
}

#[test]
fn sigterm_lets_running_jobs_end_and_starts_no_others() {
    let site = Site::new("quick_jobs = 1");
    site.quick("a", "gate");
    site.quick("b", "gate");
    let mut daemon = site.daemon();
    site.until("the first", |site| site.started().len() == 1);
    daemon.signal(Signal::SIGTERM);
    daemon.until_log("draining");
    let _gate = site.open_gate();
    assert!(daemon.wait());
    assert_eq!(site.finished("a").unwrap().status, Status::Done);
    assert_eq!(site.started().len(), 1);
    assert_eq!(site.jobs().queued.len(), 1);
}

#[test]
fn a_second_sigterm_cancels_what_runs() {
    let site = Site::new("");
    site.quick("a", "gate");
    let mut daemon = site.daemon();
    site.until("the first", |site| site.started().len() == 1);
    daemon.signal(Signal::SIGTERM);
    daemon.until_log("draining");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait());
    let job = site.finished("a").unwrap();
    assert_eq!(job.status, Status::Cancelled);
    assert!(job.reason.unwrap().contains("scheduler was stopped"));
}

#[test]
fn a_job_that_waits_for_a_dscp_starts_when_its_holder_is_killed() {
    let site = Site::with_one_dscp();
    // Somebody else's job, run by hand: it will never say that it is over.
    let mut holder = Command::new("sleep").arg("1000").spawn().unwrap();
    hold_dscp(&site, holder.id());
    let mut daemon = site.daemon();
    site.quick("q", "any");
    daemon.until_log("every DSCP value is held");
    assert!(site.started().is_empty());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(site.until_finished("q").status, Status::Done);
}

/// Enters process `pid` as the holder of the only DSCP value.
fn hold_dscp(site: &Site, pid: u32) {
    let read = |path: &str| fs::read_to_string(path).unwrap().trim().to_owned();
    let stat = read(&format!("/proc/{pid}/stat"));
    let start: u64 = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split(' ')
        .nth(20)
        .unwrap()
        .parse()
        .unwrap();
    let held = serde_json::json!({"allocations": {"by-hand": {"dscp": 40, "job_id": "by-hand",
        "username": "bob", "allocated_at": "2026-01-01T00:00:00Z", "pid": pid,
        "boot_id": read("/proc/sys/kernel/random/boot_id"), "start_time": start,
        "status": "allocated"}}});
    fs::write(site.path("registry/dscp_registry.json"), held.to_string()).unwrap();
}

#[test]
fn what_a_killed_detailed_job_had_measured_is_shown() {
    let site = Site::new("");
    let _daemon = site.daemon();
    site.submit("r1", Mode::Detailed, "crash");
    let reason = site.until_finished("r1").reason.unwrap();
    let want = "`tsim result --measured` shows what it had measured by then (1 lines)";
    assert!(reason.contains(want), "{reason}");
    let shown = site.tsim(&["result", "--measured", "r1"]);
    assert_eq!(shown.status.code(), Some(3), "{shown:?}");
    assert_eq!(shown.stdout, b"{\"port\":80,\"result\":\"YES\"}\n");
    site.submit("r2", Mode::Quick, "any");
    site.until_finished("r2");
    let none = site.tsim(&["result", "--measured", "r2"]);
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(said.contains("job r2 left none"), "{said}");
}
