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
            source: IpAddr::from([10, 0, 0, 1]),
            destination: IpAddr::from([10, 0, 0, 2]),
            ports: "1,".repeat(200) + "1",
            routers: None,
            options: crate::sched::options::Options::default(),
            extra: Map::new(),
        },
        exit_code: Some(0),
        verdicts: None,
        reason: None,
    }
}

fn close(spool: &Spool, count: i64) {
    let lock = spool.lock().unwrap();
    for n in 0..count {
        lock.close(&job(&format!("j{n}"), n)).unwrap();
    }
}

fn names(page: &Page) -> Vec<&str> {
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
fn no_history_is_an_empty_page() {
    let (_dir, spool) = temporary();
    assert_eq!(spool.history(None, 10).unwrap(), Page::default());
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

#[test]
fn expiry_removes_old_jobs_with_their_directories() {
    let (_dir, spool) = temporary();
    close(&spool, 5);
    let lock = spool.lock().unwrap();
    let until = Timestamp::from_second(3).unwrap();
    assert_eq!(lock.expire(until).unwrap(), 3);
    assert_eq!(lock.expire(until).unwrap(), 0);
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
    let until = Timestamp::from_second(3).unwrap();
    assert_eq!(spool.lock().unwrap().expire(until).unwrap(), 2);
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
