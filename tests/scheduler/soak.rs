//! Many jobs: none lost, none twice, nothing leaked, whoever is killed meanwhile.
//!
//! A hundred and some always; a thousand with `cargo test --test scheduler -- --ignored soak
//! --nocapture`, which prints the figures.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use nix::unistd::Pid;
use tsim::sched::job::Status;

use crate::{crash::Random, lab::kill_a_runner, support::Site};

/// Enough for two hours of a busy team, and for a leak to show.
const LONG: usize = 1000;
const SHORT: usize = 150;

fn descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
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

/// What each job left in its directory.
fn files(site: &Site) -> BTreeMap<String, BTreeSet<String>> {
    let names = |dir: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(dir).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        entries.map(|entry| name(entry.unwrap())).collect()
    };
    let runs = site.spool.runs_dir();
    let of_run =
        |name: String| (runs.join(&name).is_dir()).then(|| (names(&runs.join(&name)), name));
    let left = names(runs).into_iter().filter_map(of_run);
    left.map(|(files, name)| (name, files)).collect()
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
fn jobs_leave_nothing_in_the_scheduler() {
    leave_nothing(SHORT);
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_jobs_leave_nothing_in_the_scheduler() {
    leave_nothing(LONG);
}

fn leave_nothing(jobs: usize) {
    let site = Site::new("");
    let mut daemon = site.daemon();
    daemon.drain();
    // The first hundred warm up threads and buffers.
    submit(&site, 0..100);
    until_all_finished(&site, 100);
    let (before, memory_before) = (descriptors(daemon.pid()), memory(daemon.pid()));
    submit(&site, 100..jobs);
    until_all_finished(&site, jobs);
    let grown = memory(daemon.pid()).saturating_sub(memory_before);
    println!("{jobs} jobs: {before} descriptors, {memory_before} KiB; then {grown} KiB more");
    assert!(grown < 16 * 1024, "{grown} KiB more");
    site.until("the last descriptors", |_| {
        descriptors(daemon.pid()) <= before
    });
    let starts = site.starts();
    assert_eq!(starts.len(), jobs);
    assert!(starts.into_values().all(|count| count == 1));
    let history = site.spool.history(None, 2 * jobs).unwrap().jobs;
    assert_eq!(history.len(), jobs);
    assert!(history.iter().all(|job| job.status == Status::Done));
    let files = files(&site);
    let want = [
        "alive",
        "job.json",
        "progress.jsonl",
        "result.json",
        "stderr.txt",
    ];
    assert_eq!(files.len(), jobs);
    assert!(files.into_values().all(|names| names.iter().eq(want)));
    let held = fs::read_to_string(site.path("registry/dscp_registry.json")).unwrap();
    assert!(!held.contains("\"j"), "{held}");
}

#[test]
fn jobs_survive_kills_of_schedulers_and_runners() {
    survive(SHORT);
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_jobs_survive_kills_of_schedulers_and_runners() {
    survive(LONG);
}

fn survive(jobs: usize) {
    let mut random = Random(42);
    let site = Site::new("quick_jobs = 16");
    let mut daemon = site.spawn();
    daemon.drain();
    let (mut daemons, mut killed) = (0, 0);
    for n in 0..jobs {
        site.quick(&format!("j{n}"), "any");
        if random.below(25) == 0 {
            daemon.kill();
            daemons += 1;
            daemon = site.spawn();
            daemon.drain();
        }
        if random.below(25) == 0 {
            let nth = usize::try_from(random.below(16)).unwrap();
            killed += usize::from(kill_a_runner(&site, nth));
        }
    }
    until_all_finished(&site, jobs);
    let starts = site.starts();
    // One that is killed before it wrote its first line leaves no trace of a start.
    assert!(starts.len() + killed >= jobs && starts.len() <= jobs);
    let twice: Vec<_> = starts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    let history = site.spool.history(None, 2 * jobs).unwrap().jobs;
    assert_eq!(history.len(), jobs);
    let failed = history.iter().filter(|job| job.status != Status::Done);
    let failed = failed.count();
    println!("{jobs} jobs: {failed} failed, {daemons} schedulers and {killed} runners killed");
    assert!(
        failed <= killed,
        "more jobs failed than runners were killed"
    );
}
