//! Hosts and leases within and between processes.

use tsim::{
    model::{HostId, RouterId, RunId},
    registry::{
        Collided, Holding, HostKernel, HostSpec, JobType, KernelError, ManagedBy, RegistryError,
        Wait,
    },
};

use crate::child::{Child, Order, Site, host, named_spec, patience, router, spec};

#[test]
fn a_host_is_made_with_the_first_lease_and_removed_with_the_last() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let (mut a, mut b) = (site.job("a"), site.job("b"));
    a.ensure_host_and_lease(&spec(1), &mut kernel, &patience())
        .unwrap();
    let lease = site.open().leases_of(&host(1)).unwrap();
    a.ensure_host_and_lease(&spec(1), &mut kernel, &patience())
        .unwrap();
    let again = site.open().leases_of(&host(1)).unwrap();
    assert_eq!(lease, again, "asking twice gives the same lease");
    b.ensure_host_and_lease(&spec(1), &mut kernel, &patience())
        .unwrap();
    assert_eq!(site.open().leases_of(&host(1)).unwrap().len(), 2);

    let released = a
        .release_and_remove(&host(1), &mut kernel, &patience())
        .unwrap();
    assert_eq!((released.left, released.should_delete), (1, false));
    assert!(kernel.is_complete(&host(1)));
    let released = b
        .release_and_remove(&host(1), &mut kernel, &patience())
        .unwrap();
    assert_eq!((released.left, released.should_delete), (0, true));
    assert!(!kernel.is_complete(&host(1)));
    site.assert_empty("after the last release");
    let error = b
        .release_and_remove(&host(1), &mut kernel, &patience())
        .unwrap_err();
    assert!(matches!(error, RegistryError::NotFound(_)), "{error}");
}

#[test]
fn of_hosts_asked_for_together_all_are_leased_or_none() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let (mut a, mut b) = (site.job("a"), site.job("b"));
    b.ensure_host_and_lease(&spec(2), &mut kernel, &patience())
        .unwrap();
    // The second is there, the third has the address of the second.
    let thief = named_spec("thief", 2, 3);
    let error = a
        .ensure_hosts_and_lease(&[&spec(1), &spec(2), &thief], &mut kernel, &patience())
        .unwrap_err();
    assert!(matches!(error, RegistryError::Collision { .. }), "{error}");
    assert!(!kernel.is_complete(&host(1)));
    assert_eq!(site.open().hosts().unwrap().len(), 1);

    a.ensure_hosts_and_lease(&[&spec(1), &spec(2)], &mut kernel, &patience())
        .unwrap();
    let runs = |n: u8| -> Vec<String> {
        let leases = site.open().leases_of(&host(n)).unwrap();
        leases.iter().map(|l| l.run_id.to_string()).collect()
    };
    assert_eq!(
        (runs(1), runs(2)),
        (vec!["a".to_owned()], vec!["b".to_owned(), "a".to_owned()])
    );

    // What was never leased is reported and keeps nothing else from being released.
    let hosts = [&host(1), &host(2), &host(3)];
    let failed = a.release_and_remove_all(&hosts, &mut kernel, &patience());
    assert!(
        matches!(failed[..], [RegistryError::NotFound(_)]),
        "{failed:?}"
    );
    assert!(!kernel.is_complete(&host(1)));
    assert!(kernel.is_complete(&host(2)), "b has it");
    assert_eq!(runs(2), ["b"]);
}

#[test]
fn hosts_that_stand_in_may_share_an_address_and_others_may_not() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let mut job = site.job("a");
    let stand_in = |name: &str, mac: u8| HostSpec {
        stands_in: true,
        ..named_spec(name, 7, mac)
    };
    for spec in [
        stand_in("dst-1", 1),
        stand_in("dst-2", 2),
        named_spec("owner", 7, 3),
        stand_in("dst-3", 4),
    ] {
        job.ensure_host_and_lease(&spec, &mut kernel, &patience())
            .unwrap();
    }
    let error = job
        .ensure_host_and_lease(&named_spec("thief", 7, 5), &mut kernel, &patience())
        .unwrap_err();
    assert!(error.to_string().contains("owner"), "{error}");
}

#[test]
fn an_operators_host_stays_and_cannot_be_removed_while_leased() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let (mut operator, mut job) = (site.job("operator"), site.job("a"));
    operator
        .add_host(&spec(1), &mut kernel, &patience())
        .unwrap();
    let error = operator
        .add_host(&spec(1), &mut kernel, &patience())
        .unwrap_err();
    assert!(
        matches!(
            error,
            RegistryError::Collision {
                what: Collided::Name,
                ..
            }
        ),
        "{error}"
    );
    job.ensure_host_and_lease(&spec(1), &mut kernel, &patience())
        .unwrap();
    let error = operator
        .remove_host(&host(1), &mut kernel, &patience())
        .unwrap_err();
    assert!(error.to_string().contains("in use by a"), "{error}");
    let released = job
        .release_and_remove(&host(1), &mut kernel, &patience())
        .unwrap();
    assert!(!released.should_delete);
    assert!(kernel.is_complete(&host(1)));
    operator
        .remove_host(&host(1), &mut kernel, &patience())
        .unwrap();
    site.assert_empty("after the operator removed it");
    assert_eq!(kernel.snapshot(), [""; 0]);
}

#[test]
fn a_collision_says_what_and_whose() {
    let site = Site::new();
    let mut job = site.job("a");
    let by = ManagedBy::Operator;
    job.check_and_register_host(&spec(1), by, &patience())
        .unwrap();
    for (other, what) in [
        (named_spec("src-1", 9, 9), "the name"),
        (named_spec("other", 1, 9), "the address 10.0.0.1 on lab.r1"),
        (
            named_spec("other", 9, 1),
            "the MAC address 02:00:00:00:00:01",
        ),
    ] {
        let error = job
            .check_and_register_host(&other, by, &patience())
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(what) && text.contains("by host lab@src-1"),
            "{text}"
        );
    }
    let mut elsewhere = named_spec("other", 1, 9);
    elsewhere.router = "lab.r2".parse().unwrap();
    job.check_and_register_host(&elsewhere, by, &patience())
        .expect("the same address on another router is allowed");
}

#[test]
fn of_two_processes_that_register_at_once_one_wins() {
    for (a, b) in [
        (("x", 1, 1), ("x", 2, 2)),
        (("x", 1, 1), ("y", 1, 2)),
        (("x", 1, 1), ("y", 2, 1)),
    ] {
        let site = Site::new();
        let mut children = [site.child("a"), site.child("b")];
        for (child, (name, ip, mac)) in children.iter_mut().zip([a, b]) {
            child.tell(&Order::Register(name.to_owned(), ip, mac));
        }
        let answers: Vec<_> = children.iter_mut().map(Child::answer).collect();
        assert_eq!(
            answers.iter().filter(|a| a.is_ok()).count(),
            1,
            "{answers:?}"
        );
        assert_eq!(site.open().hosts().unwrap().len(), 1);
    }
}

#[test]
fn the_last_release_and_a_new_lease_at_once_leave_a_leased_host_that_exists() {
    for _ in 0..20 {
        let site = Site::new();
        let (mut a, mut b) = (site.child("a"), site.child("b"));
        a.ask(&Order::Ensure(1)).unwrap();
        a.tell(&Order::Release(1));
        b.tell(&Order::Ensure(1));
        a.answer().unwrap();
        b.answer().unwrap();
        assert!(
            site.kernel().is_complete(&host(1)),
            "no host is removed while leased"
        );
        assert_eq!(site.open().leases_of(&host(1)).unwrap().len(), 1);
        b.ask(&Order::Release(1)).unwrap();
        site.assert_empty("after both");
    }
}

#[test]
fn a_host_whose_namespace_somebody_removed_is_made_again() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let (mut a, mut b) = (site.job("a"), site.job("b"));
    a.ensure_host_and_lease(&spec(1), &mut kernel, &patience())
        .unwrap();
    std::fs::remove_dir_all(site.path().join("kernel/ns/lab@src-1")).unwrap();
    b.ensure_host_and_lease(&spec(1), &mut kernel, &patience())
        .unwrap();
    assert!(kernel.is_complete(&host(1)));
}

#[test]
fn an_operator_may_add_a_host_again_whose_namespace_is_gone() {
    let site = Site::new();
    let mut kernel = site.kernel();
    let mut operator = site.job("operator");
    operator
        .add_host(&spec(1), &mut kernel, &patience())
        .unwrap();
    std::fs::remove_dir_all(site.path().join("kernel/ns/lab@src-1")).unwrap();
    operator
        .add_host(&spec(1), &mut kernel, &patience())
        .unwrap();
    assert!(kernel.is_complete(&host(1)));
    assert_eq!(site.open().hosts().unwrap().len(), 1);
}

#[test]
fn a_lease_needs_a_registered_host() {
    let site = Site::new();
    let mut job = site.job("a");
    let error = job
        .acquire_source_host_lease(&host(1), &patience())
        .unwrap_err();
    assert!(matches!(error, RegistryError::NotFound(_)), "{error}");
    let mut other = site.child("b");
    other
        .ask(&Order::Register("src-1".to_owned(), 1, 1))
        .unwrap();
    let error = job
        .acquire_source_host_lease(&host(1), &patience())
        .unwrap_err();
    assert!(matches!(error, RegistryError::NotReady(_)), "{error}");
    other.ask(&Order::Lease(1)).unwrap();
    job.acquire_source_host_lease(&host(1), &patience())
        .unwrap();
    let released = other.ask(&Order::Unlease(1)).unwrap();
    assert_eq!(released, "1 false");
}

/// A kernel in which somebody comes for a host while it is being removed.
struct Meanwhile<'a> {
    site: &'a Site,
    came: Option<Result<(), RegistryError>>,
}

impl HostKernel for Meanwhile<'_> {
    fn host_exists(&mut self, host: &HostId) -> Result<bool, KernelError> {
        self.site.kernel().host_exists(host)
    }

    fn create_host(&mut self, spec: &HostSpec) -> Result<(), KernelError> {
        self.site.kernel().create_host(spec)
    }

    fn remove_host(&mut self, host: &HostId) -> Result<(), KernelError> {
        self.came = Some(quick_job_comes_by(self.site));
        self.site.kernel().remove_host(host)
    }

    fn list_hosts(&mut self) -> Result<Vec<HostId>, KernelError> {
        self.site.kernel().list_hosts()
    }
}

/// A quick job over host 1 that waits for nobody.
fn quick_job_comes_by(site: &Site) -> Result<(), RegistryError> {
    let run = RunId::new("quick").unwrap();
    let mut holding = Holding::new(site.open(), run, JobType::Quick, None);
    let mut caretaker = site.kernel().leaving_taps();
    let mut kernel = site.kernel();
    let hands = (&mut caretaker, &mut Vec::new());
    let wait = Wait::not();
    let what: (&[&HostSpec], &[RouterId]) = (&[&spec(1)], &[router("r1")]);
    let (locked, _) = holding.begin(what, &mut kernel, hands, &wait)?;
    assert!(kernel.is_complete(&host(1)));
    assert_eq!(holding.end(locked, &mut kernel, &wait, true).len(), 0);
    Ok(())
}

#[test]
fn nobody_leases_a_host_that_is_being_removed_by_its_operator_or_with_its_last_lease() {
    for by_operator in [true, false] {
        let site = Site::new();
        let mut job = site.job("maker");
        let (spec, wait) = (spec(1), patience());
        match by_operator {
            true => job.add_host(&spec, &mut site.kernel(), &wait).unwrap(),
            false => job
                .ensure_host_and_lease(&spec, &mut site.kernel(), &wait)
                .unwrap(),
        }
        quick_job_comes_by(&site).expect("it is made, and stays");
        let mut kernel = Meanwhile {
            site: &site,
            came: None,
        };
        match by_operator {
            true => drop(job.remove_host(&spec.id, &mut kernel, &wait).unwrap()),
            false => drop(
                job.release_and_remove(&spec.id, &mut kernel, &wait)
                    .unwrap(),
            ),
        }
        let came = kernel.came.unwrap().unwrap_err();
        assert!(matches!(came, RegistryError::LockTimeout { .. }), "{came}");
        assert_eq!(site.open().dscp_allocations().unwrap().len(), 1);
        site.reconcile();
        quick_job_comes_by(&site).expect("it is made anew");
        site.assert_empty("after the job");
    }
}

#[test]
fn an_operators_host_that_could_not_be_removed_is_leased_as_before() {
    let site = Site::new();
    let mut job = site.job("operator");
    job.add_host(&spec(1), &mut site.kernel(), &patience())
        .unwrap();
    struct Stuck;
    impl HostKernel for Stuck {
        fn host_exists(&mut self, _: &HostId) -> Result<bool, KernelError> {
            Ok(true)
        }
        fn create_host(&mut self, _: &HostSpec) -> Result<(), KernelError> {
            Ok(())
        }
        fn remove_host(&mut self, _: &HostId) -> Result<(), KernelError> {
            Err("stuck".into())
        }
        fn list_hosts(&mut self) -> Result<Vec<HostId>, KernelError> {
            Ok(Vec::new())
        }
    }
    job.remove_host(&host(1), &mut Stuck, &patience())
        .unwrap_err();
    assert!(!site.open().host(&host(1)).unwrap().creating);
    quick_job_comes_by(&site).unwrap();
    assert_eq!(site.open().hosts().unwrap().len(), 1, "it is an operator's");
}
