//! The history on real files: paging, expiry, torn lines.

use std::net::IpAddr;

use serde_json::Map;

use super::*;
use crate::{
    model::LabName,
    sched::{
        job::{Mode, Params, Status, UserName},
        spool::temporary,
    },
};

fn job(name: &str, second: i64) -> FinishedJob {
    FinishedJob {
        run_id: RunId::new(name).unwrap(),
        username: UserName::new("ann").unwrap(),
        status: Status::Done,
        mode: Mode::Quick,
        dscp: None,
        created_at: Timestamp::UNIX_EPOCH,
        started_at: None,
        finished_at: Timestamp::from_second(second).unwrap(),
        params: Params {
            lab: LabName::new("corp10").unwrap(),
            source: Some(IpAddr::from([10, 0, 0, 1]).into()),
            destination: Some(IpAddr::from([10, 0, 0, 2]).into()),
            networks: false,
            before: None,
            ports: Some("1,".repeat(200) + "1"),
            policy: None,
            routers: None,
            options: crate::sched::options::JobOptions::default(),
            extra: Map::new(),
        },
        exit_code: Some(0),
        verdicts: None,
        bytes: None,
        reason: None,
    }
}

fn close(spool: &Spool, count: i64) {
    let lock = spool.lock().unwrap();
    for n in 0..count {
        lock.close(&job(&format!("j{n}"), n)).unwrap();
    }
}

fn names(page: &FinishedPage) -> Vec<&str> {
    page.jobs.iter().map(|job| job.run_id.as_str()).collect()
}

#[test]
fn pages_together_list_every_job_once_latest_first() {
    let (_dir, spool) = temporary();
    close(&spool, 300);
    for limit in [1, 7, 100, 299, 300, 1000] {
        let mut all = Vec::new();
        let mut before = None;
        loop {
            let page = spool.history(before, limit).unwrap();
            assert!(page.jobs.len() <= limit);
            all.extend(names(&page).into_iter().map(str::to_owned));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        let want: Vec<String> = (0..300).rev().map(|n| format!("j{n}")).collect();
        assert_eq!(all, want, "limit {limit}");
    }
}

#[test]
fn a_search_finds_jobs_by_words_wherever_they_stand() {
    let (_dir, spool) = temporary();
    close(&spool, 300);
    let mut other = job("change-4711", 300);
    other.username = UserName::new("Zoë").unwrap();
    other.reason = Some("it was cancelled by bob".to_owned());
    spool.lock().unwrap().close(&other).unwrap();
    let found = |find: &str| {
        let page = spool.search(None, 10, find).unwrap();
        let names = page.jobs.iter().map(|job| job.run_id.to_string());
        names.collect::<Vec<_>>()
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(found("zoë BOB"), ["change-4711"]);
    assert_eq!(
        found("j7 ann"),
        [
            "j79", "j78", "j77", "j76", "j75", "j74", "j73", "j72", "j71", "j70"
        ]
    );
    assert_eq!(found("4711 ann"), none);
    // The rest of them comes with the next page.
    let first = spool.search(None, 10, "j7").unwrap();
    let rest = spool.search(first.next, 10, "j7").unwrap();
    assert_eq!(names(&rest), ["j7"]);
}

#[test]
fn no_history_is_an_empty_page() {
    let (_dir, spool) = temporary();
    assert_eq!(spool.history(None, 10).unwrap(), FinishedPage::default());
    let unknown = RunId::new("nobody").unwrap();
    assert_eq!(spool.finished(&unknown).unwrap(), None);
}

#[test]
fn a_torn_line_costs_nothing_but_itself() {
    let (_dir, spool) = temporary();
    close(&spool, 2);
    let index = spool.index();
    let length = fs::metadata(&index).unwrap().len();
    let file = File::options().write(true).open(&index).unwrap();
    file.set_len(length - 30).unwrap();
    let lock = spool.lock().unwrap();
    lock.close(&job("j9", 9)).unwrap();
    assert_eq!(names(&spool.history(None, 10).unwrap()), ["j9", "j0"]);
    // Recorded again, as the next leader does after a crash.
    lock.close(&job("j1", 1)).unwrap();
    lock.close(&job("j1", 1)).unwrap();
    assert_eq!(names(&spool.history(None, 10).unwrap()), ["j1", "j9", "j0"]);
}

const NO_LIMIT: ResultLimits = ResultLimits {
    total: u64::MAX,
    user: u64::MAX,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Expires what was over before `second`, by a clock that has gone evenly for long.
fn expire_before(lock: &LockedSpool<'_>, second: i64) -> usize {
    let keep = SignedDuration::ZERO;
    lock.expire(at(second), keep, NO_LIMIT).unwrap()
}

#[test]
fn a_clock_that_was_set_ahead_costs_no_result() {
    let (_dir, spool) = temporary();
    close(&spool, 3);
    let lock = spool.lock().unwrap();
    let keep = SignedDuration::from_hours(7 * 24);
    let day = 24 * 3600;
    let expire = |now| lock.expire(at(now), keep, NO_LIMIT).unwrap();
    assert_eq!(expire(10), 0);
    // One start with the clock 30 days ahead, and one with it right again.
    assert_eq!(expire(30 * day), 0);
    assert_eq!(expire(30 * day + 3600), 0);
    assert_eq!(expire(20), 0);
    // It goes on evenly, hour by hour: results expire when they are a week old.
    let expired: Vec<i64> = (1..9 * 24)
        .filter(|hour| expire(20 + hour * 3600) > 0)
        .collect();
    assert_eq!(expired, [7 * 24]);
    assert!(spool.history(None, 10).unwrap().jobs.is_empty());
}

#[test]
fn the_oldest_results_go_when_they_are_too_much() {
    let (_dir, spool) = temporary();
    let lock = spool.lock().unwrap();
    for (n, user, bytes) in [
        (0, "ann", 40),
        (1, "bob", 40),
        (2, "ann", 50),
        (3, "ann", 20),
        (4, "bob", 200),
    ] {
        let mut job = job(&format!("j{n}"), n);
        job.username = UserName::new(user).unwrap();
        job.bytes = Some(bytes);
        lock.close(&job).unwrap();
    }
    let expire = |total, user| {
        let limits = ResultLimits { total, user };
        lock.expire(at(9), SignedDuration::MAX, limits).unwrap()
    };
    // Ann's oldest is one too many; Bob's latest stays although it is too large by itself.
    assert_eq!(expire(1000, 100), 2);
    assert_eq!(names(&spool.history(None, 10).unwrap()), ["j4", "j3", "j2"]);
    assert_eq!(expire(230, 100), 1);
    assert_eq!(names(&spool.history(None, 10).unwrap()), ["j4", "j3"]);
    assert!(!spool.run_dir(&RunId::new("j2").unwrap()).exists());
}

#[test]
fn expiry_removes_old_jobs_with_their_directories() {
    let (_dir, spool) = temporary();
    close(&spool, 5);
    let lock = spool.lock().unwrap();
    assert_eq!(expire_before(&lock, 3), 3);
    assert_eq!(expire_before(&lock, 3), 0);
    assert_eq!(names(&spool.history(None, 10).unwrap()), ["j4", "j3"]);
    assert!(!spool.run_dir(&RunId::new("j2").unwrap()).exists());
    assert!(spool.run_dir(&RunId::new("j3").unwrap()).exists());
}

/// Names of our own files among the runs ended the scheduler for good.
#[test]
fn a_run_may_be_called_as_any_of_our_files_is() {
    let (_dir, spool) = temporary();
    assert!(RunId::new(INDEX).is_err() && RunId::new(format!("{INDEX}.tmp")).is_err());
    let names = [
        "index.jsonl",
        "index.jsonl.tmp",
        "job.json",
        "queue.json",
        "queue.lock",
    ];
    for (second, name) in (1..).zip(names) {
        spool.lock().unwrap().close(&job(name, second)).unwrap();
    }
    // As the next process finds them.
    let page = spool.history(None, 10).unwrap();
    assert_eq!(page.jobs.len(), names.len());
    spool.move_index().unwrap();
    assert_eq!(expire_before(&spool.lock().unwrap(), 3), 2);
    let left = spool.history(None, 10).unwrap().jobs;
    let left: Vec<_> = left.iter().map(|job| job.run_id.as_str()).collect();
    assert_eq!(left, ["queue.lock", "queue.json", "job.json"]);
}

#[test]
fn the_index_of_an_earlier_version_is_renamed() {
    let (_dir, spool) = temporary();
    spool.lock().unwrap().close(&job("a", 1)).unwrap();
    fs::rename(spool.index(), spool.runs_dir().join(EARLIER)).unwrap();
    spool.move_index().unwrap();
    assert_eq!(spool.history(None, 10).unwrap().jobs.len(), 1);
    assert!(!spool.runs_dir().join(EARLIER).exists());
}

#[test]
fn what_a_killed_submission_left_is_removed_and_nothing_else() {
    let (_dir, spool) = temporary();
    close(&spool, 1);
    let made = |name: &str, file: Option<&str>| {
        let dir = spool.runs_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        if let Some(file) = file {
            fs::write(dir.join(file), "{}").unwrap();
        }
        dir
    };
    let gone = [
        made("empty", None),
        made("killed", Some("policy.json")),
        made("cut", Some("policy.json.tmp")),
    ];
    let kept = [
        made("j0", Some("policy.json")),
        made("ran", Some("stderr.txt")),
    ];
    spool.lock().unwrap().remove_unqueued().unwrap();
    assert!(gone.iter().all(|dir| !dir.exists()));
    assert!(kept.iter().all(|dir| dir.exists()));
}
