//! Dies at every step, fails at every step; then the next one comes by.

use crate::child::{Order, Site, host, neighbour, patience, spec};

fn steps_of_a_job() -> u64 {
    let site = Site::new();
    let mut child = site.child("first");
    child.ask(&Order::Arm("count".to_owned())).unwrap();
    child.ask(&Order::WholeJob(1)).unwrap();
    child.ask(&Order::Taken).unwrap().parse().unwrap()
}

#[test]
fn killed_at_any_step_a_job_leaves_nothing_that_the_next_does_not_clear() {
    let steps = steps_of_a_job();
    assert!(steps > 50, "{steps}");
    for n in 1..=steps {
        let site = Site::new();
        site.kernel()
            .put_neighbour(&neighbour(), "02:00:00:00:99:99");
        let before = site.kernel().snapshot();
        let mut first = site.child("first");
        first.ask(&Order::Arm(format!("kill@{n}"))).unwrap();
        assert_eq!(
            first.ask(&Order::WholeJob(1)),
            Err("died".to_owned()),
            "step {n}"
        );
        first.assert_killed();

        let mut second = site.child("second");
        second
            .ask(&Order::WholeJob(1))
            .unwrap_or_else(|e| panic!("step {n}: {e}"));
        let report = site.reconcile();
        assert_eq!(report.failures, [""; 0], "step {n}");
        site.assert_empty(&format!("killed at step {n}"));
        assert_eq!(site.kernel().snapshot(), before, "step {n}");
    }
}

#[test]
fn killed_at_any_step_a_job_does_not_take_a_host_from_another() {
    for n in 1..=steps_of_a_job() {
        let site = Site::new();
        let mut kernel = site.kernel();
        let mut holder = site.job("holder");
        holder
            .ensure_host_and_lease(&spec(1), &mut kernel, &patience())
            .unwrap();
        let mut first = site.child("first");
        first.ask(&Order::Arm(format!("kill@{n}"))).unwrap();
        // With another holder a job has fewer steps: it may come through.
        let _ = first.ask(&Order::WholeJob(1));
        first.kill();
        site.reconcile();
        assert!(kernel.is_complete(&host(1)), "step {n}");
        assert_eq!(
            site.open().leases_of(&host(1)).unwrap().len(),
            1,
            "step {n}"
        );
        holder
            .release_and_remove(&host(1), &mut kernel, &patience())
            .unwrap();
        site.reconcile();
        site.assert_empty(&format!("killed at step {n}"));
    }
}

#[test]
fn failing_at_any_step_a_job_says_so_and_undoes_what_it_did() {
    let steps = steps_of_a_job();
    for errno in ["ENOSPC", "EIO", "EINTR", "EBUSY", "ENOBUFS"] {
        let site = Site::new();
        let before = site.kernel().snapshot();
        let mut child = site.child("first");
        for n in 1..=steps {
            child.ask(&Order::Arm(format!("{errno}@{n}"))).unwrap();
            let result = child.ask(&Order::WholeJob(1));
            child.ask(&Order::Arm("count".to_owned())).unwrap();
            // A single failure within an undo may leave something: it is reported, and the owner
            // lives, so only the run itself can take it up again.
            if result.is_err() {
                child
                    .ask(&Order::WholeJob(1))
                    .unwrap_or_else(|e| panic!("{errno}@{n}: {e}"));
            }
            // A place in a queue that could not be removed is dead, and swept.
            site.reconcile();
            site.assert_empty(&format!("{errno}@{n}: {result:?}"));
            assert_eq!(site.kernel().snapshot(), before, "{errno}@{n}: {result:?}");
        }
    }
}

#[test]
fn a_disk_that_stays_full_stops_a_job_and_loses_nothing() {
    let steps = steps_of_a_job();
    for n in 1..=steps {
        let site = Site::new();
        let before = site.kernel().snapshot();
        let mut first = site.child("first");
        first.ask(&Order::Arm(format!("ENOSPC@{n}+"))).unwrap();
        let _ = first.ask(&Order::WholeJob(1));
        first.kill();
        let mut second = site.child("second");
        second
            .ask(&Order::WholeJob(1))
            .unwrap_or_else(|e| panic!("step {n}: {e}"));
        site.reconcile();
        site.assert_empty(&format!("full from step {n}"));
        assert_eq!(site.kernel().snapshot(), before, "step {n}");
    }
}

#[test]
fn a_thousand_jobs_in_a_row_leak_nothing() {
    let site = Site::new();
    let mut child = site.child("serial");
    let count = |path: &std::path::Path| std::fs::read_dir(path).unwrap().count();
    let fds = std::path::PathBuf::from(format!("/proc/{}/fd", child.pid()));
    child.ask(&Order::WholeJob(1)).unwrap();
    let before = (count(&fds), count(&site.registry_dir()));
    for n in 0..1000_u16 {
        child.tell(&Order::WholeJob((n % 5) as u8));
    }
    for _ in 0..1000 {
        child.answer().unwrap();
    }
    assert_eq!((count(&fds), count(&site.registry_dir())), before);
    site.assert_empty("after 1,000 jobs");
    assert_eq!(site.kernel().snapshot(), [""; 0]);
}
