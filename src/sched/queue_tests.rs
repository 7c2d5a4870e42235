//! The queue's promises on real files in a temporary directory.

use std::{fs, net::IpAddr, thread};

use serde_json::{Map, Value, json};

use super::*;
use crate::{
    model::LabName,
    sched::{job::Params, spool::temporary},
};

fn id(name: &str) -> RunId {
    RunId::new(name).unwrap()
}

fn most(jobs: usize) -> QueueLimits {
    QueueLimits {
        total: jobs,
        user: jobs,
        user_time: None,
    }
}

fn new_job(name: &str, mode: Mode) -> NewJob {
    NewJob {
        run_id: id(name),
        username: UserName::new("ann").unwrap(),
        mode,
        params: Params {
            lab: LabName::new("corp10").unwrap(),
            source: Some(IpAddr::from([10, 0, 0, 1]).into()),
            destination: Some(IpAddr::from([10, 0, 0, 2]).into()),
            networks: false,
            before: None,
            ports: Some("80".to_owned()),
            policy: None,
            routers: None,
            options: crate::sched::options::JobOptions::default(),
            extra: Map::new(),
        },
        policy: None,
    }
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn submit(spool: &Spool, name: &str, mode: Mode) -> Submitted {
    let lock = spool.lock().unwrap();
    lock.submit(new_job(name, mode), most(1000), now()).unwrap()
}

fn waiting(spool: &Spool) -> Vec<String> {
    let jobs = spool.jobs().unwrap().queued;
    jobs.iter().map(|job| job.run_id.to_string()).collect()
}

#[test]
fn positions_count_within_a_mode() {
    let (_dir, spool) = temporary();
    assert_eq!(submit(&spool, "q1", Mode::Quick).position, Some(1));
    assert_eq!(submit(&spool, "d1", Mode::Detailed).position, Some(1));
    assert_eq!(submit(&spool, "q2", Mode::Quick).position, Some(2));
    assert_eq!(waiting(&spool), ["q1", "d1", "q2"]);
}

#[test]
fn a_run_id_is_one_job_wherever_it_stands() {
    let (_dir, spool) = temporary();
    assert!(submit(&spool, "a", Mode::Quick).new);
    let again = submit(&spool, "a", Mode::Quick);
    assert_eq!((again.new, again.position), (false, Some(1)));

    let lock = spool.lock().unwrap();
    let other = lock.submit(new_job("a", Mode::Detailed), most(1000), now());
    assert!(matches!(other, Err(SubmitError::Taken { .. })), "{other:?}");

    lock.exchange(&[], &[(id("a"), None)], now()).unwrap();
    let running = lock
        .submit(new_job("a", Mode::Quick), most(1000), now())
        .unwrap();
    assert_eq!((running.new, running.status), (false, Status::Running));

    let job = lock.jobs().unwrap().running.remove(0);
    lock.close(&finished(job)).unwrap();
    lock.exchange(&[id("a")], &[], now()).unwrap();
    let done = lock
        .submit(new_job("a", Mode::Quick), most(1000), now())
        .unwrap();
    assert_eq!((done.new, done.status), (false, Status::Done));
    assert!(lock.jobs().unwrap().queued.is_empty());
}

fn finished(job: RunningJob) -> FinishedJob {
    FinishedJob {
        run_id: job.run_id,
        username: job.username,
        status: Status::Done,
        mode: job.mode,
        dscp: job.dscp,
        created_at: job.created_at,
        started_at: Some(job.started_at),
        finished_at: now(),
        params: job.params,
        exit_code: Some(0),
        verdicts: None,
        bytes: None,
        reason: None,
    }
}

#[test]
fn a_full_queue_refuses() {
    let (_dir, spool) = temporary();
    let lock = spool.lock().unwrap();
    lock.submit(new_job("a", Mode::Quick), most(1), now())
        .unwrap();
    let refused = lock.submit(new_job("b", Mode::Quick), most(1), now());
    assert!(matches!(refused, Err(SubmitError::Full(1))), "{refused:?}");
}

#[test]
fn many_at_once_lose_nothing_and_double_nothing() {
    let (_dir, spool) = temporary();
    thread::scope(|scope| {
        for worker in 0..8 {
            let spool = &spool;
            scope.spawn(move || {
                for n in 0..20 {
                    // Every second name is asked for by all workers.
                    let who = if n % 2 == 0 { 0 } else { worker };
                    submit(spool, &format!("j{who}-{n}"), Mode::Quick);
                }
            });
        }
    });
    let mut names = waiting(&spool);
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!((names.len(), count), (10 + 8 * 10, 90));
}

#[test]
fn taking_moves_only_what_still_waits() {
    let (_dir, spool) = temporary();
    submit(&spool, "a", Mode::Quick);
    submit(&spool, "b", Mode::Quick);
    let lock = spool.lock().unwrap();
    let dscp = Dscp::new(40).ok();
    let taken = lock
        .exchange(&[], &[(id("gone"), None), (id("a"), dscp)], now())
        .unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(waiting(&spool), ["b"]);
    let running = spool.jobs().unwrap().running;
    assert_eq!((running[0].run_id.as_str(), running[0].dscp), ("a", dscp));
    assert!(
        lock.exchange(&[], &[(id("a"), dscp)], now())
            .unwrap()
            .is_empty()
    );

    lock.requeue(running[0].clone(), now()).unwrap();
    assert_eq!(waiting(&spool), ["a", "b"]);
    assert!(spool.jobs().unwrap().running.is_empty());
}

#[test]
fn a_job_that_a_crash_left_in_both_files_counts_as_running() {
    let (_dir, spool) = temporary();
    submit(&spool, "a", Mode::Quick);
    let lock = spool.lock().unwrap();
    let queue = lock.list(List::Queue).unwrap();
    lock.exchange(&[], &[(id("a"), None)], now()).unwrap();
    lock.write_list(List::Queue, queue, now()).unwrap();
    let jobs = spool.jobs().unwrap();
    assert_eq!((jobs.queued.len(), jobs.running.len()), (0, 1));
    assert!(
        lock.exchange(&[], &[(id("a"), None)], now())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn cancelling_ends_a_waiting_job_and_marks_a_running_one() {
    let (_dir, spool) = temporary();
    submit(&spool, "a", Mode::Quick);
    submit(&spool, "b", Mode::Quick);
    let lock = spool.lock().unwrap();
    let bob = UserName::new("bob").unwrap();
    let cancelled = lock.cancel(&id("a"), &bob, now()).unwrap();
    assert!(matches!(cancelled, Cancelled::Queued(_)), "{cancelled:?}");
    let over = lock.cancel(&id("a"), &bob, now()).unwrap();
    assert_eq!(over, Cancelled::Over(Status::Cancelled));

    lock.exchange(&[], &[(id("b"), None)], now()).unwrap();
    assert_eq!(
        lock.cancel(&id("b"), &bob, now()).unwrap(),
        Cancelled::Running
    );
    let running = spool.jobs().unwrap().running;
    assert_eq!(running[0].cancelled_by, Some(bob.clone()));
    assert_eq!(
        lock.cancel(&id("c"), &bob, now()).unwrap(),
        Cancelled::Unknown
    );
}

#[test]
fn what_other_programs_wrote_is_kept() {
    let (_dir, spool) = temporary();
    let text = json!({"version": 1, "updated_at": "2026-01-01T00:00:00Z", "owner": "them",
        "jobs": [{"run_id": "x", "odd": true}, 7]});
    fs::write(spool.queue_dir().join("queue.json"), text.to_string()).unwrap();
    submit(&spool, "a", Mode::Quick);
    let jobs = spool.jobs().unwrap();
    assert_eq!((jobs.queued.len(), jobs.unreadable), (1, 2));
    let file: Value =
        serde_json::from_slice(&fs::read(spool.queue_dir().join("queue.json")).unwrap()).unwrap();
    assert_eq!(file["owner"], "them");
    assert_eq!(file["jobs"][0]["odd"], true);
    assert_eq!(file["jobs"][1], 7);
}

#[test]
fn a_damaged_queue_is_set_aside_and_the_last_good_one_used() {
    let (_dir, spool) = temporary();
    submit(&spool, "a", Mode::Quick);
    submit(&spool, "b", Mode::Quick);
    fs::write(
        spool.queue_dir().join("queue.json"),
        "{\"version\": 1, \"jo",
    )
    .unwrap();
    assert!(matches!(spool.jobs(), Err(SpoolError::Damaged { .. })));
    submit(&spool, "c", Mode::Quick);
    assert_eq!(waiting(&spool), ["a", "b", "c"]);
    let names = fs::read_dir(spool.queue_dir()).unwrap();
    let aside = names
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().contains("corrupt"));
    assert_eq!(aside.count(), 1);
}

#[test]
fn a_later_version_is_not_touched() {
    let (_dir, spool) = temporary();
    let text = r#"{"version":2,"updated_at":"2026-01-01T00:00:00Z","jobs":[]}"#;
    fs::write(spool.queue_dir().join("queue.json"), text).unwrap();
    let lock = spool.lock().unwrap();
    let refused = lock.submit(new_job("a", Mode::Quick), most(9), now());
    assert!(matches!(
        refused,
        Err(SubmitError::Spool(SpoolError::Version { found: 2, .. }))
    ));
}

#[test]
fn whose_jobs_ran_as_long_as_they_may_waits_for_the_hour_to_pass() {
    let (_dir, spool) = temporary();
    let minutes = |count: i64| Timestamp::from_second(count * 60).unwrap();
    let limit = QueueLimits {
        user_time: Some(Duration::from_secs(20 * 60)),
        ..most(10)
    };
    let ask = |name: &str, user: &str, at: i64| {
        let job = NewJob {
            username: UserName::new(user).unwrap(),
            ..new_job(name, Mode::Quick)
        };
        spool.lock().unwrap().submit(job, limit, minutes(at))
    };
    ask("long", "ann", 100).unwrap();
    let take = |lock: &LockedSpool<'_>| lock.exchange(&[], &[(id("long"), None)], minutes(100));
    let long = take(&spool.lock().unwrap()).unwrap().remove(0);
    // Before its limit is reached, and then while it runs still.
    ask("early", "ann", 119).unwrap();
    let text = ask("late", "ann", 120).unwrap_err().to_string();
    assert!(text.contains("ran 1200 s"), "{text}");
    assert!(text.contains("scheduler.max_user_seconds"), "{text}");
    ask("other", "bob", 120).unwrap();
    let lock = spool.lock().unwrap();
    let ended = FinishedJob {
        finished_at: minutes(130),
        ..finished(long)
    };
    lock.close(&ended).unwrap();
    lock.exchange(&[id("long")], &[], minutes(130)).unwrap();
    drop(lock);
    // 100 to 130: of the hour before 169 it has 21 minutes, of that before 171 19.
    ask("still", "ann", 169).unwrap_err();
    ask("again", "ann", 171).unwrap();
}

/// Each opens the files by itself, as two processes do, and remembers what it saw.
#[test]
fn what_somebody_else_wrote_is_seen_however_alike() {
    let (dir, here) = temporary();
    let config = Config {
        registry_dir: dir.path().join("registry"),
        results_dir: dir.path().join("results"),
        ..Config::default()
    };
    let there = Spool::open(&config).unwrap();
    let mut reader = QueueReader::default();
    let mut names = |spool: &Spool| -> Vec<String> {
        let jobs = reader.read(spool).unwrap().queued;
        jobs.iter().map(|job| job.run_id.to_string()).collect()
    };

    submit(&here, "a", Mode::Quick);
    assert_eq!(waiting(&there), ["a"]);
    // The same length, and as a rule within the same tick of the file system's clock.
    let now = Timestamp::now();
    let lock = there.lock().unwrap();
    lock.submit(new_job("c", Mode::Quick), most(9), now)
        .unwrap();
    drop(lock);
    assert_eq!(names(&here), ["a", "c"]);
    for (gone, new) in [("a", "b"), ("b", "e"), ("c", "d")] {
        let lock = there.lock().unwrap();
        lock.cancel(&id(gone), &UserName::new("ann").unwrap(), Timestamp::now())
            .unwrap();
        lock.submit(new_job(new, Mode::Quick), most(9), Timestamp::now())
            .unwrap();
        drop(lock);
        assert_eq!(names(&here), waiting(&there));
        assert_eq!(waiting(&here).last().unwrap(), new);
    }

    // Written to in its place, as an editor may.
    let file = here.queue_dir().join("queue.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"run_id\":\"d\"", "\"run_id\":\"f\"")).unwrap();
    assert_eq!(names(&here), ["e", "f"]);
}
