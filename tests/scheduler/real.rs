//! Real runners in a real lab, through the daemon: who runs beside whom, who waits for whom, and
//! that every verdict is what a job alone finds.
//!
//! Nothing here depends on how long a job takes: the test itself holds a router where jobs are to
//! meet, looks at the lines of those who wait, and lets go.

use tsim::{
    model::Dscp,
    registry::LockMode::{Exclusive, Shared},
    sched::job::{Mode, Status},
};

use crate::lab::{Lab, ROUTERS, kill_a_runner};

type Found = Vec<(String, Vec<String>)>;

/// What one quick job finds that has the lab for itself.
fn alone(lab: &Lab) -> Found {
    lab.submit("quick", "alone", &ROUTERS);
    let found = lab.verdicts("alone");
    let text = format!("{found:?}");
    assert_eq!(found.len(), ROUTERS.len(), "{text}");
    assert!(
        text.contains("443/tcp YES") && text.contains("443/tcp NO"),
        "{text}"
    );
    found
}

#[test]
fn one_detailed_job_finds_what_a_quick_one_finds() {
    let lab = Lab::up(1, "");
    let _daemon = lab.site.daemon();
    let want = alone(&lab);
    lab.submit("detailed", "d", &ROUTERS);
    assert_eq!(lab.verdicts("d"), want);
    lab.assert_nothing_left();
}

#[test]
fn the_units_capabilities_are_enough_for_every_kind_of_job() {
    let lab = Lab::up(7, "");
    let _daemon = lab.site.confined_daemon();
    let want = alone(&lab);
    lab.submit("detailed", "d", &ROUTERS);
    assert_eq!(lab.verdicts("d"), want);
    lab.assert_nothing_left();
}

#[test]
fn detailed_jobs_that_share_a_router_take_turns_and_the_others_go_on() {
    let lab = Lab::up(2, "");
    let _daemon = lab.site.daemon();
    let want = alone(&lab);
    // d1 waits for hq-gw, and takes br-gw no earlier than it has that; d2 waits behind it; the others
    // need neither.
    let held = lab.hold("hq-gw", Exclusive);
    lab.submit("detailed", "d1", &["hq-gw", "br-gw"]);
    lab.until_line("hq-gw", &["held", "d1 …"]);
    lab.submit("detailed", "d2", &["hq-gw"]);
    lab.until_line("hq-gw", &["held", "d1 …", "d2 …"]);
    lab.submit("detailed", "d3", &["dc-gw"]);
    lab.submit("detailed", "d4", &["dc-gw"]);
    lab.assert_agree(&["d3", "d4"], &want);
    assert_eq!(lab.line("hq-gw"), ["held", "d1 …", "d2 …"]);
    drop(held);
    lab.assert_agree(&["d1", "d2"], &want);
    lab.assert_nothing_left();
}

#[test]
fn quick_jobs_share_routers_pass_by_detailed_jobs_elsewhere_and_queue_behind_them_here() {
    let lab = Lab::up(3, "");
    let _daemon = lab.site.daemon();
    let want = alone(&lab);
    // A quick job is at br-gw: another one joins it, a detailed one waits, and holds back those
    // who come later.
    let held = lab.hold("br-gw", Shared);
    lab.submit("quick", "q1", &["br-gw"]);
    lab.assert_agree(&["q1"], &want);
    lab.submit("detailed", "d1", &["br-gw"]);
    lab.until_line("br-gw", &["held", "d1 …"]);
    lab.submit("quick", "q2", &["br-gw"]);
    lab.until_line("br-gw", &["held", "d1 …", "q2 …"]);
    lab.submit("quick", "q3", &["dc-gw", "hq-gw"]);
    lab.submit("detailed", "d2", &["dc-gw"]);
    lab.assert_agree(&["q3", "d2"], &want);
    assert_eq!(lab.line("br-gw"), ["held", "d1 …", "q2 …"]);
    drop(held);
    lab.assert_agree(&["d1", "q2"], &want);
    lab.assert_nothing_left();
}

#[test]
fn thirty_two_of_forty_quick_jobs_run_beside_four_detailed_ones() {
    let lab = Lab::up(4, "jobs = 40");
    let _daemon = lab.site.daemon();
    let want = alone(&lab);
    let held = ROUTERS.map(|router| lab.hold(router, Exclusive));
    let detailed: [&[&str]; 5] = [
        &["br-gw"],
        &["br-gw", "dc-gw"],
        &["dc-gw"],
        &ROUTERS,
        &["hq-gw"],
    ];
    for (n, routers) in detailed.iter().enumerate() {
        lab.submit("detailed", &format!("d{n}"), routers);
    }
    for n in 0..40 {
        // Every third one everywhere, the others at one router.
        let routers = if n % 3 == 0 {
            &ROUTERS[..]
        } else {
            &ROUTERS[n % 3..=n % 3]
        };
        lab.submit("quick", &format!("q{n}"), routers);
    }
    lab.site
        .until("36 at once", |site| site.jobs().running.len() == 36);
    let jobs = lab.site.jobs();
    let ids = |mode: Mode| -> Vec<String> {
        let same = jobs.running.iter().filter(|job| job.mode == mode);
        same.map(|job| job.run_id.to_string()).collect()
    };
    let first = |prefix: &str, count: usize| -> Vec<String> {
        (0..count).map(|n| format!("{prefix}{n}")).collect()
    };
    assert_eq!(ids(Mode::Quick), first("q", 32));
    assert_eq!(ids(Mode::Detailed), first("d", 4));
    let mut values: Vec<u8> = jobs
        .running
        .iter()
        .filter_map(|job| job.dscp.map(Dscp::get))
        .collect();
    values.sort_unstable();
    assert_eq!(values, (32..64).collect::<Vec<u8>>());
    drop(held);
    let all = [first("q", 40), first("d", 5)].concat();
    lab.assert_agree(&all.iter().map(String::as_str).collect::<Vec<_>>(), &want);
    lab.assert_nothing_left();
}

#[test]
fn kills_of_the_scheduler_and_of_runners_leave_right_verdicts_and_nothing_else() {
    let lab = Lab::up(5, "quick_jobs = 8");
    let storm = Storm {
        jobs: 40,
        seed: 7,
        kills_in: 8,
    };
    storm.rage(&lab);
}

/// The same at length; `cargo test --release --test scheduler -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn a_thousand_real_jobs_survive_kills_of_schedulers_and_runners() {
    let lab = Lab::up(6, "");
    let storm = Storm {
        jobs: 1000,
        seed: 42,
        kills_in: 25,
    };
    storm.rage(&lab);
}

/// Jobs are submitted while schedulers and runners are killed, one time in `kills_in` each.
struct Storm {
    jobs: usize,
    seed: u64,
    kills_in: u64,
}

impl Storm {
    fn rage(&self, lab: &Lab) {
        let site = &lab.site;
        let mut random = crate::crash::Random(self.seed);
        let mut daemon = site.daemon();
        let want = alone(lab);
        let (mut daemons, mut runners) = (0, 0);
        let mode = |n: usize| if n % 10 == 9 { "detailed" } else { "quick" };
        for n in 0..self.jobs {
            let routers = &ROUTERS[usize::try_from(random.below(3)).unwrap()..];
            lab.submit(mode(n), &format!("j{n}"), routers);
            if random.below(self.kills_in) == 0 {
                daemon.kill();
                daemons += 1;
                daemon = site.daemon();
                daemon.drain();
            }
            if random.below(self.kills_in) == 0 {
                let nth = usize::try_from(random.below(32)).unwrap();
                runners += usize::from(kill_a_runner(site, nth));
            }
        }
        let mut done = 0;
        for n in 0..self.jobs {
            let name = format!("j{n}");
            if site.until_finished(&name).status == Status::Done {
                lab.assert_agree(&[&name], &want);
                done += 1;
            }
        }
        println!(
            "{} jobs: {done} done, {daemons} schedulers and {runners} runners killed",
            self.jobs
        );
        assert!(
            done + runners >= self.jobs,
            "more jobs failed than runners were killed"
        );
        let history = site.spool.history(None, 2 * self.jobs).unwrap().jobs;
        assert_eq!(history.len(), self.jobs + 1);
        // What was killed is cleared up by the next job or by reconcile.
        lab.submit("quick", "last", &ROUTERS);
        lab.assert_agree(&["last"], &want);
        site.tsim(&["reconcile"]);
        lab.assert_nothing_left();
    }
}
