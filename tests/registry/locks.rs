//! Router locks between processes: who goes first, who wakes whom, what a death frees.

use std::{thread, time::Duration};

use tsim::registry::{Cancel, LockMode, RegistryError, Wait};

use crate::child::{Child, Order, Site, patience, router};

const FOREVER: u64 = 60_000;

fn lock(name: &str, mode: LockMode) -> Order {
    Order::Lock(vec![name.to_owned()], mode, FOREVER)
}

/// Returns once `run` waits for router r1.
fn await_waiter(site: &Site, run: &str) {
    let registry = site.open();
    loop {
        let queue = registry.is_router_locked(&router("r1")).unwrap();
        if queue.iter().any(|h| h.run_id.as_str() == run && h.waiting) {
            return;
        }
        thread::yield_now();
    }
}

fn queue(site: &Site) -> Vec<(String, bool)> {
    let queue = site.open().is_router_locked(&router("r1")).unwrap();
    queue
        .into_iter()
        .map(|h| (h.run_id.to_string(), h.waiting))
        .collect()
}

#[test]
fn shared_locks_are_shared_and_an_exclusive_one_is_not() {
    let site = Site::new();
    let (mut a, mut b, mut c) = (site.child("a"), site.child("b"), site.child("c"));
    a.ask(&lock("r1", LockMode::Shared)).unwrap();
    b.ask(&lock("r1", LockMode::Shared)).unwrap();
    let now = |mode| Order::Lock(vec!["r1".to_owned()], mode, 0);
    let refused = c.ask(&now(LockMode::Exclusive)).unwrap_err();
    assert!(
        refused.contains("lab.r1") && refused.contains("held shared by a (pid"),
        "{refused}"
    );
    a.ask(&Order::Unlock).unwrap();
    b.ask(&Order::Unlock).unwrap();
    c.ask(&now(LockMode::Exclusive)).unwrap();
    assert!(a.ask(&now(LockMode::Shared)).is_err());
    let holder = &site.open().is_router_locked(&router("r1")).unwrap()[0];
    assert_eq!((holder.pid, holder.mode), (c.pid(), LockMode::Exclusive));
    c.ask(&Order::Unlock).unwrap();
    site.assert_empty("after all left");
}

#[test]
fn first_come_first_served_whatever_the_mode() {
    let site = Site::new();
    let mut holder = site.child("holder");
    holder.ask(&lock("r1", LockMode::Shared)).unwrap();
    let plan = [
        ("x1", LockMode::Exclusive),
        ("s1", LockMode::Shared),
        ("s2", LockMode::Shared),
        ("x2", LockMode::Exclusive),
    ];
    let mut waiters: Vec<Child> = Vec::new();
    for (run, mode) in plan {
        let mut child = site.child(run);
        child.tell(&lock("r1", mode));
        await_waiter(&site, run);
        waiters.push(child);
    }
    let [x1, s1, s2, x2] = &mut waiters[..] else {
        unreachable!()
    };
    holder.ask(&Order::Unlock).unwrap();
    x1.answer().unwrap();
    assert_eq!(
        queue(&site),
        [("x1", false), ("s1", true), ("s2", true), ("x2", true)].map(|(r, w)| (r.to_owned(), w))
    );
    x1.ask(&Order::Unlock).unwrap();
    s1.answer().unwrap();
    s2.answer().unwrap();
    s2.ask(&Order::Unlock).unwrap();
    assert_eq!(
        queue(&site),
        [("s1", false), ("x2", true)].map(|(r, w)| (r.to_owned(), w))
    );
    s1.ask(&Order::Unlock).unwrap();
    x2.answer().unwrap();
}

#[test]
fn the_death_of_a_holder_wakes_the_next_and_the_death_of_a_waiter_nobody() {
    let site = Site::new();
    let mut holder = site.child("holder");
    holder.ask(&lock("r1", LockMode::Exclusive)).unwrap();
    let mut doomed = site.child("doomed");
    doomed.tell(&lock("r1", LockMode::Exclusive));
    await_waiter(&site, "doomed");
    let mut last = site.child("last");
    last.tell(&lock("r1", LockMode::Shared));
    await_waiter(&site, "last");
    doomed.kill();
    assert_eq!(
        queue(&site),
        [("holder", false), ("last", true)].map(|(r, w)| (r.to_owned(), w))
    );
    // A zombie, too, has let go.
    holder.kill_unreaped();
    last.answer().unwrap();
    assert_eq!(queue(&site), [("last".to_owned(), false)]);
    drop(holder);
    last.ask(&Order::Unlock).unwrap();
    site.assert_empty("after everybody left or died");
}

#[test]
fn several_routers_are_had_together_or_not_at_all() {
    let site = Site::new();
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let mut holder = site.child("holder");
    holder.ask(&lock("r2", LockMode::Shared)).unwrap();
    let mut all = site.child("all");
    let refused = all.ask(&Order::Lock(
        names(&["r3", "r2", "r1"]),
        LockMode::Exclusive,
        0,
    ));
    assert!(refused.unwrap_err().contains("lab.r2 was not free"));
    assert_eq!(queue(&site), [], "r1 was let go");
    holder.ask(&Order::Unlock).unwrap();
    all.ask(&Order::Lock(
        names(&["r3", "r1", "r2", "r1"]),
        LockMode::Exclusive,
        0,
    ))
    .unwrap();
    assert_eq!(site.open().locks_held().unwrap().len(), 3);
}

#[test]
fn opposite_orders_do_not_deadlock() {
    let site = Site::new();
    let (mut a, mut b) = (site.child("a"), site.child("b"));
    let names = |names: [&str; 2]| {
        Order::Lock(
            names.map(str::to_owned).into(),
            LockMode::Exclusive,
            FOREVER,
        )
    };
    for _ in 0..50 {
        a.tell(&names(["r1", "r2"]));
        b.tell(&names(["r2", "r1"]));
        a.tell(&Order::Unlock);
        b.tell(&Order::Unlock);
        for child in [&mut a, &mut b] {
            child.answer().unwrap();
            child.answer().unwrap();
        }
    }
    site.assert_empty("after 100 locks");
}

#[test]
fn waiting_can_be_called_off() {
    let site = Site::new();
    let mut holder = site.child("holder");
    holder.ask(&lock("r1", LockMode::Exclusive)).unwrap();
    let cancel = Cancel::new().unwrap();
    let wait = Wait::forever().or_until(cancel.clone());
    let job = site.job("patient");
    let waiting = thread::spawn(move || job.router_lock(&router("r1"), LockMode::Shared, &wait));
    await_waiter(&site, "patient");
    cancel.cancel();
    let refused = waiting.join().unwrap().unwrap_err();
    assert!(
        matches!(refused.error, RegistryError::Cancelled { .. }),
        "{refused}"
    );
    assert_eq!(queue(&site).len(), 1, "who gave up is not in the queue");
    // The job is as good as before.
    holder.ask(&Order::Unlock).unwrap();
    let job = refused
        .job
        .router_lock(&router("r1"), LockMode::Shared, &patience());
    assert_eq!(job.unwrap().locks().len(), 1);
}

#[test]
fn a_timeout_is_kept_and_names_who_was_in_the_way() {
    let site = Site::new();
    let mut holder = site.child("holder");
    holder.ask(&lock("r1", LockMode::Exclusive)).unwrap();
    let wait = Wait::at_most(Duration::from_millis(20));
    let refused = site
        .job("late")
        .router_lock(&router("r1"), LockMode::Shared, &wait)
        .unwrap_err();
    let RegistryError::LockTimeout {
        waited, holders, ..
    } = &refused.error
    else {
        panic!("{refused}");
    };
    assert!(*waited >= Duration::from_millis(20));
    assert_eq!(holders.len(), 1);
    assert_eq!(holders[0].run_id.as_str(), "holder");
}

#[test]
fn a_lock_whose_file_is_removed_by_hand_is_not_handed_out() {
    let site = Site::new();
    let mut holder = site.child("holder");
    holder.ask(&lock("r1", LockMode::Exclusive)).unwrap();
    let mut robbed = site.child("robbed");
    robbed.tell(&lock("r1", LockMode::Exclusive));
    await_waiter(&site, "robbed");
    let dir = site.registry_dir().join("locks/lab.r1");
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("robbed") {
            std::fs::remove_file(path).unwrap();
        }
    }
    holder.ask(&Order::Unlock).unwrap();
    let error = robbed.answer().unwrap_err();
    assert!(error.contains("was lost"), "{error}");
}

/// The last one out removes the queue, at any moment of another one's coming in or looking.
#[test]
fn jobs_that_come_while_the_last_one_leaves_find_no_queue_and_make_one() {
    let site = Site::new();
    thread::scope(|scope| {
        for number in 0..4 {
            let registry = site.open();
            scope.spawn(move || {
                for turn in 0..400 {
                    let job = registry.job(crate::child::info(&format!("j{number}-{turn}")));
                    let locked = job.router_lock(&router("r1"), LockMode::Shared, &patience());
                    let locked = locked.unwrap();
                    drop(locked.unlock());
                    registry.is_router_locked(&router("r1")).unwrap();
                }
            });
        }
    });
}

#[test]
fn many_waiters_each_get_their_turn() {
    let site = Site::new();
    let registry = site.open();
    let first = site
        .job("first")
        .router_lock(&router("r1"), LockMode::Exclusive, &patience());
    let waiters: Vec<_> = (0..200)
        .map(|n| {
            let job = registry.job(crate::child::info(&format!("w{n}")));
            let mode = if n % 3 == 0 {
                LockMode::Exclusive
            } else {
                LockMode::Shared
            };
            thread::Builder::new()
                .stack_size(128 << 10)
                .spawn(move || job.router_lock(&router("r1"), mode, &patience()).map(drop))
                .unwrap()
        })
        .collect();
    drop(first);
    for waiter in waiters {
        waiter.join().unwrap().unwrap();
    }
    site.assert_empty("after all had their turn");
}
