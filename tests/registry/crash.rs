//! Dies at every step, fails at every step; then the next one comes by.

use crate::child::{Order, Site, host, neighbour, patience, spec};

/// A job, and where its registry is.
struct Run {
    job: Order,
    site: fn() -> Site,
}

impl Run {
    /// All that differ in what they do to the registry's files.
    fn all() -> [Self; 3] {
        let run = |job, site| Self { job, site };
        [
            run(Order::WholeJob(1), Site::as_on_disk),
            run(Order::QuickJob(1), Site::as_on_disk),
            run(Order::QuickJob(1), Site::new),
        ]
    }

    fn steps(&self) -> u64 {
        let site = (self.site)();
        let mut child = site.child("first");
        child.ask(&Order::Arm("count".to_owned())).unwrap();
        child.ask(&self.job).unwrap();
        let steps = child.ask(&Order::Taken).unwrap().parse().unwrap();
        assert!(steps > 20, "{steps}");
        steps
    }
}

#[test]
fn killed_at_any_step_a_job_leaves_nothing_that_the_next_does_not_clear() {
    Run::all().iter().for_each(killed_at_any_step);
}

fn killed_at_any_step(run: &Run) {
    for n in 1..=run.steps() {
        let site = (run.site)();
        site.kernel()
            .put_neighbour(&neighbour(), "02:00:00:00:99:99");
        let before = site.kernel().snapshot();
        let mut first = site.child("first");
        first.ask(&Order::Arm(format!("kill@{n}"))).unwrap();
        assert_eq!(first.ask(&run.job), Err("died".to_owned()), "step {n}");
        first.assert_killed();

        let mut second = site.child("second");
        second
            .ask(&run.job)
            .unwrap_or_else(|e| panic!("step {n}: {e}"));
        let report = site.reconcile();
        assert_eq!(report.failures, [""; 0], "step {n}");
        site.assert_empty(&format!("killed at step {n}"));
        assert_eq!(site.kernel().snapshot(), before, "step {n}");
    }
}

#[test]
fn killed_at_any_step_a_job_does_not_take_a_host_from_another() {
    Run::all().iter().for_each(killed_beside_another);
}

fn killed_beside_another(run: &Run) {
    for n in 1..=run.steps() {
        let site = (run.site)();
        let mut kernel = site.kernel();
        let mut holder = site.job("holder");
        holder
            .ensure_host_and_lease(&spec(1), &mut kernel, &patience())
            .unwrap();
        let mut first = site.child("first");
        first.ask(&Order::Arm(format!("kill@{n}"))).unwrap();
        // With another holder a job has fewer steps: it may come through.
        let _ = first.ask(&run.job);
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
    Run::all().iter().for_each(failing_at_any_step);
}

fn failing_at_any_step(run: &Run) {
    let steps = run.steps();
    for errno in ["ENOSPC", "EIO", "EINTR", "EBUSY", "ENOBUFS"] {
        let site = (run.site)();
        let before = site.kernel().snapshot();
        let mut child = site.child("first");
        for n in 1..=steps {
            child.ask(&Order::Arm(format!("{errno}@{n}"))).unwrap();
            let result = child.ask(&run.job);
            child.ask(&Order::Arm("count".to_owned())).unwrap();
            // A single failure within an undo may leave something: it is reported, and the owner
            // lives, so only the run itself can take it up again.
            if result.is_err() {
                child
                    .ask(&run.job)
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
    Run::all().iter().for_each(full_from_any_step);
}

fn full_from_any_step(run: &Run) {
    for n in 1..=run.steps() {
        let site = (run.site)();
        let before = site.kernel().snapshot();
        let mut first = site.child("first");
        first.ask(&Order::Arm(format!("ENOSPC@{n}+"))).unwrap();
        let _ = first.ask(&run.job);
        first.kill();
        let mut second = site.child("second");
        second
            .ask(&run.job)
            .unwrap_or_else(|e| panic!("step {n}: {e}"));
        site.reconcile();
        site.assert_empty(&format!("full from step {n}"));
        assert_eq!(site.kernel().snapshot(), before, "step {n}");
    }
}

#[test]
fn a_thousand_jobs_in_a_row_leak_nothing() {
    a_thousand_in_a_row(Order::WholeJob);
    a_thousand_in_a_row(Order::QuickJob);
}

fn a_thousand_in_a_row(job: fn(u8) -> Order) {
    let site = Site::new();
    let mut child = site.child("serial");
    let count = |path: &std::path::Path| std::fs::read_dir(path).unwrap().count();
    let fds = std::path::PathBuf::from(format!("/proc/{}/fd", child.pid()));
    child.ask(&job(1)).unwrap();
    let before = (count(&fds), count(&site.registry_dir()));
    for n in 0..1000_u16 {
        child.tell(&job((n % 5) as u8));
    }
    for _ in 0..1000 {
        child.answer().unwrap();
    }
    assert_eq!((count(&fds), count(&site.registry_dir())), before);
    site.assert_empty("after 1,000 jobs");
    assert_eq!(site.kernel().snapshot(), [""; 0]);
}
