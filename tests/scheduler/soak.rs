//! A thousand jobs: none lost, none twice, nothing leaked, whoever is killed meanwhile.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tsim::sched::job::Status;

use crate::{crash::Random, support::Site};

const JOBS: usize = 1000;

/// What a process holds.
#[derive(Debug, PartialEq, Eq)]
struct Holds {
    fds: usize,
    threads: usize,
}

fn holds(pid: Pid) -> Holds {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    Holds {
        fds: count("fd"),
        threads: count("task"),
    }
}

/// Resident memory in KiB, proc_pid_status(5).
fn memory(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

fn submit(site: &Site, range: std::ops::Range<usize>) {
    for n in range {
        site.quick(&format!("j{n}"), "any");
    }
}

fn until_all_finished(site: &Site, jobs: usize) {
    site.until("all jobs", |site| {
        let now = site.jobs();
        now.queued.is_empty()
            && now.running.is_empty()
            && (0..jobs).all(|n| site.finished(&format!("j{n}")).is_some())
    });
}

#[test]
fn a_thousand_jobs_leave_nothing_in_the_scheduler() {
    let site = Site::new("");
    let mut daemon = site.daemon();
    daemon.drain();
    // The first hundred warm up threads and buffers.
    submit(&site, 0..100);
    until_all_finished(&site, 100);
    let (before, memory_before) = (holds(daemon.pid()).fds, memory(daemon.pid()));
    submit(&site, 100..JOBS);
    until_all_finished(&site, JOBS);
    let grown = memory(daemon.pid()).saturating_sub(memory_before);
    assert!(grown < 16 * 1024, "{grown} KiB more for 900 jobs");
    site.until("the last descriptors", |_| {
        holds(daemon.pid()).fds <= before
    });
    let starts = site.starts();
    assert_eq!(starts.len(), JOBS);
    assert!(starts.into_values().all(|count| count == 1));
    let history = site.spool.history(None, 2 * JOBS).unwrap().jobs;
    assert_eq!(history.len(), JOBS);
    assert!(history.iter().all(|job| job.status == Status::Done));
    let held = fs::read_to_string(site.path("registry/dscp_registry.json")).unwrap();
    assert!(!held.contains("\"j"), "{held}");
}

#[test]
fn a_thousand_jobs_survive_kills_of_schedulers_and_runners() {
    let mut random = Random(42);
    let site = Site::new("quick_jobs = 16");
    let mut daemon = site.spawn();
    daemon.drain();
    let mut killed = 0;
    for n in 0..JOBS {
        site.quick(&format!("j{n}"), "any");
        if random.below(25) == 0 {
            daemon.kill();
            daemon = site.spawn();
            daemon.drain();
        }
        if random.below(25) == 0 {
            killed += usize::from(kill_a_runner(&site, &mut random));
        }
    }
    until_all_finished(&site, JOBS);
    let starts = site.starts();
    // One that is killed before it wrote its first line leaves no trace of a start.
    assert!(starts.len() + killed >= JOBS && starts.len() <= JOBS);
    let twice: Vec<_> = starts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    let history = site.spool.history(None, 2 * JOBS).unwrap().jobs;
    assert_eq!(history.len(), JOBS);
    let failed = history.iter().filter(|job| job.status != Status::Done);
    assert!(
        failed.count() <= killed,
        "more jobs failed than {killed} runners were killed"
    );
}

/// Kills one of the runners that have not ended; false when there is none.
fn kill_a_runner(site: &Site, random: &mut Random) -> bool {
    let log = site.log();
    let ended = |id: &str| log.iter().any(|line| line.what == "end" && line.id == id);
    let alive: Vec<_> = log
        .iter()
        .filter(|line| line.what == "start" && !ended(&line.id))
        .collect();
    let Some(victim) = alive.get(usize::try_from(random.below(16)).unwrap()) else {
        return false;
    };
    // The pid may be another process's by now: only one that runs our script is killed.
    let line = fs::read_to_string(format!("/proc/{}/cmdline", victim.pid)).unwrap_or_default();
    line.contains(&victim.id) && kill(Pid::from_raw(victim.pid), Signal::SIGKILL).is_ok()
}
