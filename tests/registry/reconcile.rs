//! Reconcile takes from the dead, and from nobody else.

use std::fs;

use serde_json::{Value, json};
use tsim::{
    model::RunId,
    registry::{LockMode, ReconcileAction, ReconcileScope},
};

use crate::child::{Order, Site, host, info, neighbour, patience, router, spec};

fn me() -> RunId {
    RunId::new("reconcile").unwrap()
}

/// Changes the only lease of host 1 in the file.
fn edit_lease(site: &Site, change: impl FnOnce(&mut Value)) {
    let file = site.registry_dir().join("host_leases.json");
    let mut all: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut all["lab@src-1"]["leases"][0]);
    fs::write(file, serde_json::to_vec(&all).unwrap()).unwrap();
}

#[test]
fn a_dry_run_says_what_a_real_one_then_does() {
    let site = Site::new();
    let mut kernel = site.kernel();
    kernel.put_neighbour(&neighbour(), "02:00:00:00:99:99");
    let before = kernel.snapshot();
    let mut doomed = site.child("doomed");
    doomed.ask(&Order::Dscp).unwrap();
    doomed.ask(&Order::Ensure(1)).unwrap();
    let lock = Order::Lock(vec!["r1".to_owned()], LockMode::Shared, 0);
    doomed.ask(&lock).unwrap();
    doomed.ask(&Order::Neighbour(1)).unwrap();
    let (_, allocation) = &site.open().dscp_allocations().unwrap()[0];
    kernel.put_tap("doomed", &allocation.owner);
    doomed.kill();
    let left = kernel.snapshot();

    let registry = site.open();
    let dry = registry
        .reconcile(&me(), &ReconcileScope::Everything, &mut kernel, true)
        .unwrap();
    assert_eq!(kernel.snapshot(), left, "a dry run changes nothing");
    assert_eq!(registry.hosts().unwrap().len(), 1);
    let real = registry
        .reconcile(&me(), &ReconcileScope::Everything, &mut kernel, false)
        .unwrap();
    assert_eq!(dry.actions, real.actions);
    let said: Vec<String> = real
        .actions
        .iter()
        .map(ReconcileAction::to_string)
        .collect();
    assert_eq!(
        said,
        [
            "remove tap doomed",
            "put back neighbour lab.r1|eth1|192.0.2.1",
            "drop the lease of neighbour lab.r1|eth1|192.0.2.1 by doomed",
            "drop the lease of host lab@src-1 by doomed",
            "remove host lab@src-1",
            "remove doomed from the queue of lab.r1",
            "free DSCP 32 of doomed",
        ]
    );
    assert_eq!(kernel.snapshot(), before);
    site.assert_empty("after reconcile");
    let again = site.reconcile();
    assert_eq!(again.actions, []);
}

#[test]
fn what_the_living_hold_is_left_alone() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let mut other = site.child("other");
    other.ask(&Order::Dscp).unwrap();
    other.ask(&Order::Ensure(1)).unwrap();
    let mut operator = site.job("operator");
    operator
        .add_host(&spec(2), &mut kernel, &patience())
        .unwrap();
    kernel.put_tap("other", site.open().owner());
    let there = kernel.snapshot();
    let report = site.reconcile();
    assert_eq!((report.actions, report.notices), (vec![], vec![]));
    assert_eq!(kernel.snapshot(), there);
}

#[test]
fn a_reused_pid_does_not_keep_a_lease_and_a_bare_pid_does() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let mut job = site.job("a");
    job.ensure_host_and_lease(&spec(1), &mut kernel, &patience())
        .unwrap();

    // As the Python system writes it: whether that process is the owner cannot be told.
    edit_lease(&site, |lease| {
        let old = lease.as_object_mut().unwrap();
        old.retain(|key, _| {
            ["run_id", "pid", "job_type", "dscp", "allocated_at"].contains(&&**key)
        });
    });
    let report = site.reconcile();
    assert_eq!(report.actions, []);
    assert!(
        report.notices[0].contains("cannot tell"),
        "{:?}",
        report.notices
    );
    assert!(kernel.is_complete(&host(1)));

    // The same pid, but of a process that started at another time.
    let mine = serde_json::to_value(site.open().owner()).unwrap();
    edit_lease(&site, |lease| {
        lease["boot_id"] = mine["boot_id"].clone();
        lease["pid_ns"] = mine["pid_ns"].clone();
        lease["start_time"] = json!(mine["start_time"].as_u64().unwrap() - 1);
    });
    site.reconcile();
    site.assert_empty("the lease belonged to an earlier process of this pid");
    assert_eq!(kernel.snapshot(), [""; 0]);
}

#[test]
fn after_a_reboot_everything_is_free() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let mut job = site.job("a");
    job.ensure_host_and_lease(&spec(1), &mut kernel, &patience())
        .unwrap();
    edit_lease(&site, |lease| {
        lease["boot_id"] = json!("00000000-0000-0000-0000-000000000000");
    });
    let report = site.reconcile();
    assert_eq!(report.actions.len(), 2, "{:?}", report.actions);
    site.assert_empty("after a reboot");
}

#[test]
fn a_job_only_clears_what_it_touches() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let mut doomed = site.child("doomed");
    doomed.ask(&Order::Ensure(1)).unwrap();
    doomed.kill();
    let elsewhere = ReconcileScope::Touching {
        routers: vec![router("r9")],
        hosts: vec![host(9)],
    };
    let registry = site.open();
    let report = registry
        .reconcile(&me(), &elsewhere, &mut kernel, false)
        .unwrap();
    assert_eq!(report.actions, []);
    let here = ReconcileScope::Touching {
        routers: vec![router("r1")],
        hosts: vec![],
    };
    let report = registry
        .reconcile(&me(), &here, &mut kernel, false)
        .unwrap();
    assert_eq!(report.actions.len(), 2, "{:?}", report.actions);
    site.assert_empty("after the job on r1");
}

#[test]
fn what_could_not_be_removed_is_reported_and_left_to_the_next() {
    let site = Site::new();
    let kernel = site.kernel();
    let mut doomed = site.child("doomed");
    doomed.ask(&Order::Ensure(1)).unwrap();
    doomed.kill();
    // The namespace cannot be removed: something is in it.
    let guest = site.path().join("kernel/ns/lab@src-1/guest");
    fs::write(&guest, "").unwrap();
    let report = site.reconcile();
    assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
    assert!(
        report.failures[0].contains("lab@src-1"),
        "{:?}",
        report.failures
    );
    assert_eq!(site.open().hosts().unwrap().len(), 1, "it is still known");
    fs::remove_file(guest).unwrap();
    site.reconcile();
    site.assert_empty("the second time");
    assert_eq!(kernel.snapshot(), [""; 0]);
}

#[test]
fn namespaces_that_nobody_registered_are_reported_and_kept() {
    let site = Site::new();
    fs::create_dir(site.kernel_dir().join("ns/lab@stranger")).unwrap();
    let report = site.reconcile();
    assert_eq!(report.actions, []);
    assert!(
        report.notices[0].contains("lab@stranger"),
        "{:?}",
        report.notices
    );
}

#[test]
fn the_log_says_who_changed_what() {
    let site = Site::new();
    let mut job = site.open().job(info("a"));
    let mut kernel = site.kernel();
    job.ensure_host_and_lease(&spec(1), &mut kernel, &patience())
        .unwrap();
    job.release_and_remove(&host(1), &mut kernel, &patience())
        .unwrap();
    let log = site.open().log_tail(10).unwrap();
    let said: Vec<&str> = log.iter().map(|e| e.operation.as_str()).collect();
    assert_eq!(
        said,
        [
            "host.register",
            "host.create",
            "host_lease.acquire",
            "host_lease.release",
            "host.unregister"
        ]
    );
    assert!(log.iter().all(|e| e.details["host"] == "lab@src-1"));
    assert!(
        log.iter()
            .all(|e| e.run_id.as_ref().is_some_and(|r| r.as_str() == "a"))
    );
}
