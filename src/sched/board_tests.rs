//! What viewers get: everything once, in order, and all of it when they come back late.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::*;
use crate::{
    model::LabName,
    sched::{
        job::{Params, Status, UserName},
        policy::Limits,
    },
};

fn board() -> Board {
    let limits = Limits {
        quick: 1,
        detailed: 1,
        check: 1,
        total: 2,
        overtakes: 1,
        quick_time: Duration::ZERO,
        detailed_time: Duration::ZERO,
        check_time: Duration::ZERO,
        grace: Duration::ZERO,
    };
    Board::new(this_scheduler(&limits, Timestamp::UNIX_EPOCH))
}

fn job(name: &str) -> QueuedJob {
    QueuedJob {
        run_id: RunId::new(name).unwrap(),
        username: UserName::new("<b>ann</b>").unwrap(),
        created_at: Timestamp::UNIX_EPOCH,
        status: Status::Queued,
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
        analysis_mode: Mode::Quick,
        extra: Map::new(),
    }
}

fn running(name: &str) -> RunningJob {
    RunningJob::from_queued(job(name), None, Timestamp::UNIX_EPOCH)
}

fn data(event: &BoardEvent) -> Value {
    serde_json::from_str(&event.data).unwrap()
}

fn events(board: &Board, last: u64) -> Vec<BoardEvent> {
    match board.since(Some(last)) {
        Resumed::Events(events) => events,
        Resumed::Snapshot(..) => panic!("no events since {last}"),
    }
}

#[test]
fn changes_between_two_renderings_are_one_event() {
    let board = board();
    board.started(running("a"), Some(7));
    for percent in 1..=50 {
        let phase = "probing".to_owned();
        board.progress(&RunId::new("a").unwrap(), &ProgressLine { percent, phase });
    }
    board.render();
    board.render();
    let events = events(&board, 0);
    assert_eq!(events.len(), 1);
    let data = data(&events[0]);
    assert_eq!(data["running"][0]["run_id"], "a");
    assert_eq!(data["running"][0]["percent"], 50);
    assert_eq!(data["running"][0]["type"], "quick");
    assert!(data.get("queue").is_none());
}

#[test]
fn a_job_that_came_and_went_in_between_is_seen_ended() {
    let board = board();
    board.started(running("a"), None);
    let job = running("a");
    board.ended(FinishedJob {
        run_id: job.run_id,
        username: job.username,
        status: Status::Done,
        mode: job.mode,
        dscp: None,
        created_at: job.created_at,
        started_at: Some(job.started_at),
        finished_at: job.started_at,
        params: job.params,
        exit_code: Some(0),
        verdicts: None,
        bytes: None,
        reason: None,
    });
    board.render();
    let data = data(&events(&board, 0)[0]);
    assert_eq!(data["ended"][0]["status"], "DONE");
    assert!(data.get("running").is_none());
}

#[test]
fn a_long_queue_is_counted_and_only_its_beginning_listed() {
    let board = board();
    let queued = (0..1000).map(|n| Arc::new(job(&format!("j{n}")))).collect();
    let jobs = Jobs {
        queued,
        ..Jobs::default()
    };
    board.queue(Arc::new(jobs.clone()));
    board.queue(Arc::new(jobs));
    board.render();
    let data = data(&events(&board, 0)[0]);
    assert_eq!(data["queue"]["quick"], 1000);
    assert_eq!(data["queue"]["first"].as_array().unwrap().len(), LISTED);
}

#[test]
fn a_long_queue_does_not_fill_the_memory_with_events() {
    let board = board();
    for round in 0..400 {
        let queued = (0..LISTED).map(|n| Arc::new(job(&format!("j{round}x{n}"))));
        board.queue(Arc::new(Jobs {
            queued: queued.collect(),
            ..Jobs::default()
        }));
        board.render();
    }
    let kept = board.lock().events.clone();
    let bytes: usize = kept.iter().map(|event| event.data.len()).sum();
    assert_eq!(board.lock().event_bytes, bytes);
    assert!(bytes <= KEPT_BYTES && kept.len() < 400, "{bytes} bytes");
    assert_eq!(kept.back().unwrap().number, 400);
    assert!(matches!(board.since(Some(1)), Resumed::Snapshot(400, _)));
}

#[test]
fn who_was_away_gets_what_was_missed_or_starts_over() {
    let board = board();
    for n in 0..KEPT as u64 + 10 {
        board.scheduler(n % 2 == 0, false);
        board.render();
    }
    let head = KEPT as u64 + 10;
    assert_eq!(*board.watch().borrow(), head);
    assert_eq!(events(&board, head).len(), 0);
    let missed = events(&board, head - 3);
    let numbers: Vec<u64> = missed.iter().map(|event| event.number).collect();
    assert_eq!(numbers, [head - 2, head - 1, head]);
    assert_eq!(events(&board, 10).len(), KEPT);
    for last in [Some(9), Some(head + 1), None] {
        let resumed = board.since(last);
        assert!(matches!(resumed, Resumed::Snapshot(at, _) if at == head));
    }
}
