//! What a job says when the ruleset changes under it, and that it says nothing when it does not.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tsim::{
    firewall::nft::watch::{RulesetChanges, RulesetWatch},
    model::RouterName,
    run::quick::{DscpChoice, ExplainMode},
};

use crate::{kernels::taps_stay, quick::TestLab};

#[test]
fn changes_of_others_are_told_from_tsims_own() {
    let lab = TestLab::up("small3");
    let router = RouterName::new("r1").unwrap();
    let netns = lab.lab.router_netns(&router).unwrap();
    let mut watch = netns.enter(RulesetWatch::open_here).unwrap().unwrap();
    let mut job = lab.job("r1", "10.81.1.10", "10.81.3.10", "1-5000");
    job.explain = ExplainMode::Always;
    assert_eq!(lab.run(&job).warnings, taps_stay(&["r1"]));
    assert_eq!(watch.changes().unwrap(), RulesetChanges::None);

    lab.nft(
        "r1",
        "add table ip one; add table ip two; add chain ip two c",
    );
    let both = BTreeSet::from(["one".to_owned(), "two".to_owned()]);
    assert_eq!(watch.changes().unwrap(), RulesetChanges::Tables(both));
    lab.nft("r1", "add rule ip two c drop");
    let two = BTreeSet::from(["two".to_owned()]);
    assert_eq!(watch.changes().unwrap(), RulesetChanges::Tables(two));
    assert_eq!(watch.changes().unwrap(), RulesetChanges::None);
}

#[test]
fn a_ruleset_that_changes_all_the_time_is_warned_about() {
    let lab = TestLab::up("small3");
    let over = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        // A job of so many services lasts much longer than one of these changes.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                lab.nft("r1", "add table ip restless; delete table ip restless");
            }
        });
        let mut job = lab.job("r1", "10.81.1.10", "10.81.3.10", "all/tcp");
        job.explain = ExplainMode::Never;
        let report = lab.run(&job);
        over.store(true, Ordering::Relaxed);
        report
    });
    let warned = |w: &String| w.contains("table restless changed during the measurement and again");
    assert!(report.warnings.iter().any(warned), "{:?}", report.warnings);
}

#[test]
fn jobs_beside_each_other_do_not_make_each_other_doubt() {
    let lab = TestLab::up("small3");
    thread::scope(|scope| {
        let one = |_| {
            for _ in 0..5 {
                let mut job = lab.job("r1", "10.81.1.10", "10.81.3.10", "22,23,100-200");
                job.explain = ExplainMode::Always;
                job.dscp = DscpChoice::Auto;
                assert_eq!(lab.run(&job).warnings, taps_stay(&["r1"]));
            }
        };
        let jobs: Vec<_> = (0..4).map(|n| scope.spawn(move || one(n))).collect();
        jobs.into_iter().for_each(|job| job.join().unwrap());
    });
}

#[test]
fn blocked_services_that_are_not_explained_are_counted() {
    let lab = TestLab::up("small3");
    lab.nft(
        "r1",
        "add table ip wall; add chain ip wall brick { type filter hook forward priority 0; policy drop; }",
    );
    let report = lab.run(&lab.job("r1", "10.81.1.10", "10.81.3.10", "1-1500"));
    let said = "r1: only 1000 of 1500 blocked services were explained; --explain always takes all";
    let warnings = [vec![said.to_owned()], taps_stay(&["r1"])].concat();
    assert_eq!(report.warnings, warnings);
    let services = &report.routers[0].services;
    let policy = |s: &&_| matches!(s, tsim::run::report::ServiceReport { reason: Some(r), .. } if r.contains("policy"));
    assert_eq!(services.iter().filter(policy).count(), 1000);
}
