//! Many jobs over the same host and routers, some of them killed at random moments.

use std::{process, thread};

use crate::child::{Order, Site};

const JOBS: u64 = 12;
const ROUNDS: u64 = 6;

/// A step below `limit`, from a seed: splitmix64.
fn random(seed: u64, limit: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) % limit
}

#[test]
fn jobs_that_die_do_not_harm_those_that_live() {
    let seed = u64::from(process::id());
    println!("seed {seed}");
    let site = Site::new();
    let before = site.kernel().snapshot();
    for round in 0..ROUNDS {
        thread::scope(|scope| {
            for n in 0..JOBS {
                let site = &site;
                scope.spawn(move || {
                    let mut child = site.child(&format!("job-{round}-{n}"));
                    let dies = n % 2 == 0;
                    if dies {
                        let step = 1 + random(seed * 1000 + round * JOBS + n, 90);
                        child.ask(&Order::Arm(format!("kill@{step}"))).unwrap();
                    }
                    // A job that lives asserts itself that its host is there while it is leased.
                    let result = child.ask(&Order::WholeJob(1));
                    assert!(dies || result.is_ok(), "seed {seed}: {result:?}");
                });
            }
        });
        let report = site.reconcile();
        assert_eq!(report.failures, [""; 0], "seed {seed}");
        site.assert_empty(&format!("seed {seed}, round {round}"));
        assert_eq!(
            site.kernel().snapshot(),
            before,
            "seed {seed}, round {round}"
        );
    }
}

#[test]
fn the_33rd_job_is_told_who_holds_all_dscp_values() {
    let site = Site::new();
    let registry = site.open();
    let run = |n: u8| tsim::model::RunId::new(format!("run-{n}")).unwrap();
    for n in 0..32 {
        let grant = registry.allocate_dscp(&run(n), Some("eve"), None).unwrap();
        assert_eq!(grant.dscp.get(), 32 + n);
    }
    let again = registry.allocate_dscp(&run(7), None, None).unwrap();
    assert_eq!(again.dscp.get(), 39, "asking again gives the same");
    let error = registry.allocate_dscp(&run(32), None, None).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("all 32 DSCP values (32-63) are in use by run-0, run-1"),
        "{text}"
    );
    registry.release_dscp(&run(7)).unwrap();
    let freed = registry.allocate_dscp(&run(32), None, None).unwrap();
    assert_eq!(freed.dscp.get(), 39, "the lowest free one");
    let taken = registry
        .allocate_dscp(&run(7), None, freed.dscp.into())
        .unwrap_err();
    assert!(taken.to_string().contains("in use by run-32"), "{taken}");
}

#[test]
fn the_dscp_value_of_a_dead_job_is_given_on_and_the_dead_job_named() {
    let site = Site::new();
    let mut doomed = site.child("doomed");
    assert_eq!(doomed.ask(&Order::Dscp), Ok("32".to_owned()));
    doomed.kill();
    let run = tsim::model::RunId::new("heir").unwrap();
    let grant = site.open().allocate_dscp(&run, None, None).unwrap();
    assert_eq!(grant.dscp.get(), 32);
    assert_eq!(grant.dead[0].as_str(), "doomed");
}
