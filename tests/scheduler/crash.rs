//! Daemons that are killed: standby, adoption, and random moments.

use std::collections::BTreeMap;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tsim::sched::job::{Mode, Status};

use crate::support::Site;

#[test]
fn a_standby_takes_over_and_adopts() {
    let site = Site::new("");
    let leader = site.daemon();
    let mut standby = site.spawn();
    standby.until_log("standing by");
    for n in 0..3 {
        site.quick(&format!("q{n}"), "gate");
    }
    site.submit("d", Mode::Detailed, "gate");
    site.until("all", |site| site.started().len() == 4);
    leader.kill();
    standby.until_log("leading");
    site.quick("later", "any");
    assert_eq!(site.until_finished("later").status, Status::Done);
    let _gate = site.open_gate();
    for name in ["q0", "q1", "q2", "d"] {
        let job = site.until_finished(name);
        assert_eq!(job.status, Status::Done, "{name}: {:?}", job.reason);
    }
    assert!(site.starts().into_values().all(|count| count == 1));
}

#[test]
fn jobs_that_ended_while_nobody_watched_are_closed_from_what_they_left() {
    let site = Site::new("");
    let daemon = site.daemon();
    site.quick("done", "gate");
    site.quick("killed", "gate");
    site.until("both", |site| site.started().len() == 2);
    daemon.kill();
    let victim = site.started().into_iter().find(|line| line.id == "killed");
    kill(Pid::from_raw(victim.unwrap().pid), Signal::SIGKILL).unwrap();
    let _gate = site.open_gate();
    site.until("the end", |site| {
        site.log().iter().any(|line| line.what == "end")
    });
    let _daemon = site.daemon();
    assert_eq!(site.until_finished("done").status, Status::Done);
    let job = site.until_finished("killed");
    assert_eq!(job.status, Status::Failed);
    assert!(job.reason.unwrap().contains("no scheduler watched"));
    assert!(site.starts().into_values().all(|count| count == 1));
}

#[test]
fn a_cancel_while_no_scheduler_runs_is_carried_out_by_the_next() {
    let site = Site::new("");
    let daemon = site.daemon();
    site.quick("a", "gate");
    site.until("it", |site| site.started().len() == 1);
    daemon.kill();
    site.cancel("a");
    let _daemon = site.daemon();
    assert_eq!(site.until_finished("a").status, Status::Cancelled);
}

/// xorshift64*, so that a seed is a history.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// Kills daemons and runners at random points of the run's own history: after the N-th line that
/// runners wrote, or without waiting for any.
fn storm(seed: u64) {
    const JOBS: usize = 60;
    let mut random = Random(seed);
    let site = Site::new("quick_jobs = 8\njobs = 10");
    let mut daemon = site.spawn();
    for n in 0..JOBS {
        let mode = if random.below(10) == 0 {
            Mode::Detailed
        } else {
            Mode::Quick
        };
        site.submit(&format!("j{n}"), mode, "any");
        if random.below(4) == 0 {
            let lines = site.log().len() + usize::try_from(random.below(6)).unwrap();
            let finished = (n + 1) * 2;
            site.until("more lines", |site| {
                site.log().len() >= lines.min(finished - 1)
                    || site.jobs().running.is_empty() && site.jobs().queued.is_empty()
            });
            daemon.kill();
            daemon = site.spawn();
        }
    }
    site.until("all jobs", |site| {
        (0..JOBS).all(|n| site.finished(&format!("j{n}")).is_some())
            && site.jobs().running.is_empty()
    });
    let want: BTreeMap<String, usize> = (0..JOBS).map(|n| (format!("j{n}"), 1)).collect();
    assert_eq!(
        site.starts(),
        want,
        "seed {seed}: not every job ran exactly once"
    );
    for n in 0..JOBS {
        let job = site.finished(&format!("j{n}")).unwrap();
        assert_eq!(
            job.status,
            Status::Done,
            "seed {seed}: j{n}: {:?}",
            job.reason
        );
    }
    assert_eq!(site.spool.history(None, 1000).unwrap().jobs.len(), JOBS);
    drop(daemon);
}

#[test]
fn no_job_is_lost_or_run_twice_however_often_the_scheduler_is_killed() {
    for seed in 1..=8 {
        storm(seed);
    }
}
