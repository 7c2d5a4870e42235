//! Taking a lab down while it is in use, and with hosts on it.

use std::process::{Command, Output};

use serde_json::Value;
use tsim::{
    lab::hosts::{HostRequest, LabHosts},
    model::{HostId, RouterId, RouterName},
    netns::NetnsDir,
    registry::{HostKernel, JobInfo, JobType, LockMode, RegistryManager, Wait},
};

use crate::quick::TestLab;

fn lab_down(lab: &TestLab, more: &[&str]) -> Output {
    let config = lab.config_file();
    Command::new(env!("CARGO_BIN_EXE_tsim"))
        .arg("--config")
        .arg(config)
        .args(["--json", "lab", "down", lab.bed.lab.as_str()])
        .args(more)
        .output()
        .unwrap()
}

fn host(lab: &TestLab, name: &str) -> HostRequest {
    HostRequest {
        id: format!("{}@{name}", lab.bed.lab).parse::<HostId>().unwrap(),
        router: RouterId::new(lab.bed.lab.clone(), RouterName::new("r1").unwrap()),
        address: "10.81.1.77".parse().unwrap(),
        prefix_len: None,
        interface: None,
    }
}

fn job_info(run_id: &str) -> JobInfo {
    JobInfo {
        run_id: run_id.parse().unwrap(),
        job_type: JobType::Quick,
        dscp: None,
    }
}

#[test]
fn a_lab_in_use_is_not_taken_down() {
    let lab = TestLab::up("small3");
    let before = lab.bed.left();
    let registry = RegistryManager::open(&lab.config).unwrap();
    let mut kernel = LabHosts::new(&NetnsDir::default());
    let spec = kernel.lab(&lab.bed.lab).unwrap();
    let spec = spec.plan(&host(&lab, "leased")).unwrap();
    let mut job = registry.job(job_info("user1"));
    job.ensure_host_and_lease(&spec, &mut kernel, &Wait::not())
        .unwrap();

    let refused = lab_down(&lab, &[]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("in use by user1"), "{said}");
    assert!(kernel.host_exists(&spec.id).unwrap());

    job.release_and_remove(&spec.id, &mut kernel, &Wait::not())
        .unwrap();
    assert_eq!(lab.bed.left(), before);
    let done = lab_down(&lab, &[]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(lab.bed.left(), []);
}

#[test]
fn who_takes_a_lab_down_waits_for_its_routers() {
    let lab = TestLab::up("small3");
    let registry = RegistryManager::open(&lab.config).unwrap();
    let router = RouterId::new(lab.bed.lab.clone(), RouterName::new("r2").unwrap());
    let job = registry.job(job_info("holder"));
    let job = job
        .router_lock(&router, LockMode::Shared, &Wait::not())
        .unwrap();
    let down = std::thread::scope(|scope| {
        let down = scope.spawn(|| lab_down(&lab, &[]));
        // The lock is only handed over once somebody waits for it.
        while registry.is_router_locked(&router).unwrap().len() < 2 {
            std::thread::yield_now();
        }
        assert_eq!(lab.bed.left().len(), 4, "not before the lock is free");
        drop(job);
        down.join().unwrap()
    });
    assert!(down.status.success(), "{down:?}");
    assert_eq!(lab.bed.left(), []);
}

#[test]
fn hosts_go_with_their_lab() {
    let lab = TestLab::up("small3");
    let registry = RegistryManager::open(&lab.config).unwrap();
    let mut kernel = LabHosts::new(&NetnsDir::default());
    let spec = kernel.lab(&lab.bed.lab).unwrap();
    let spec = spec.plan(&host(&lab, "mine")).unwrap();
    let mut operator = registry.operator().unwrap();
    operator.add_host(&spec, &mut kernel, &Wait::not()).unwrap();

    let done = lab_down(&lab, &[]);
    assert!(done.status.success(), "{done:?}");
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        said["hosts_removed"],
        serde_json::json!([spec.id.to_string()])
    );
    assert_eq!(lab.bed.left(), []);
    assert!(registry.hosts().unwrap().is_empty());
}

#[test]
fn by_force_a_lab_goes_and_its_hosts_are_left_to_reconcile() {
    let lab = TestLab::up("small3");
    let registry = RegistryManager::open(&lab.config).unwrap();
    let mut kernel = LabHosts::new(&NetnsDir::default());
    let spec = kernel.lab(&lab.bed.lab).unwrap();
    let spec = spec.plan(&host(&lab, "left")).unwrap();
    let mut job = registry.job(job_info("user2"));
    job.ensure_host_and_lease(&spec, &mut kernel, &Wait::not())
        .unwrap();
    let done = lab_down(&lab, &["--force"]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(lab.bed.left(), [spec.id.netns()]);
    let mut kernel = LabHosts::new(&NetnsDir::default());
    job.release_and_remove(&spec.id, &mut kernel, &Wait::not())
        .unwrap();
    assert_eq!(lab.bed.left(), []);
}
