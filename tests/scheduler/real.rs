//! The real runner in a real lab, through the daemon: needs root.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;
use tsim::sched::job::Status;

use crate::support::{Site, id};

/// A lab of ten routers from real facts, taken down at the end.
struct Lab<'a> {
    site: &'a Site,
    name: String,
}

impl<'a> Lab<'a> {
    fn up(site: &'a Site, number: usize) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "labs need root");
        let name = format!("t{}x{number}", std::process::id());
        let output = site.tsim(&["lab", "up", &name, "--facts", "netns-fixtures/corp10"]);
        assert!(output.status.success(), "{output:?}");
        Self { site, name }
    }

    fn submit(&self, run_id: &str) {
        let output = self.site.tsim(&[
            "submit",
            "quick",
            "--lab",
            &self.name,
            "-s",
            "10.1.1.100",
            "-d",
            "10.2.1.50",
            "-P",
            "22,80,443/tcp,53/udp,8000-8010",
            "--routers",
            "hq-gw,br-gw,dc-gw",
            "--run-id",
            run_id,
        ]);
        assert!(output.status.success(), "{output:?}");
    }

    /// The routers' rulesets, counters left out.
    fn rulesets(&self) -> Vec<String> {
        let routers = ["hq-gw", "br-gw", "dc-gw"].map(|router| format!("{}.{router}", self.name));
        let list = |netns: String| {
            let output = Command::new("ip")
                .args(["netns", "exec", &netns, "nft", "-s", "list", "ruleset"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        routers.map(list).to_vec()
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let output = self.site.tsim(&["lab", "down", &self.name]);
        assert!(
            std::thread::panicking() || output.status.success(),
            "{output:?}"
        );
    }
}

fn real_site(scheduler: &str) -> Site {
    let programs = Path::new(env!("CARGO_BIN_EXE_tsimd")).parent().unwrap();
    let dir = tempfile::tempdir().unwrap().keep();
    // Only the quick runner is wanted here.
    std::os::unix::fs::symlink(programs.join("tsim-quick"), dir.join("tsim-quick")).unwrap();
    Site::over(&dir, scheduler)
}

/// The verdicts of a job, router by router.
fn verdicts(site: &Site, run_id: &str) -> Value {
    let path = site.spool.run_dir(&id(run_id)).join("result.json");
    let result: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    result["routers"].clone()
}

#[test]
fn forty_quick_jobs_at_once_agree_and_leave_nothing() {
    let site = real_site("");
    let lab = Lab::up(&site, 1);
    let before = lab.rulesets();
    let _daemon = site.daemon();
    lab.submit("first");
    let job = site.until_finished("first");
    assert_eq!(job.status, Status::Done, "{:?}", job.reason);
    let want = verdicts(&site, "first");
    assert!(
        want.as_array().is_some_and(|routers| routers.len() == 3),
        "{want:#}"
    );
    for n in 0..40 {
        lab.submit(&format!("q{n}"));
    }
    for n in 0..40 {
        let name = format!("q{n}");
        let job = site.until_finished(&name);
        assert_eq!(job.status, Status::Done, "{name}: {:?}", job.reason);
        assert_eq!(verdicts(&site, &name), want, "{name}");
    }
    assert_nothing_left(&site);
    assert_eq!(lab.rulesets(), before);
}

#[test]
fn kills_of_the_scheduler_and_of_runners_leave_right_verdicts_and_nothing_else() {
    let mut random = crate::crash::Random(7);
    let site = real_site("quick_jobs = 8");
    let lab = Lab::up(&site, 2);
    let before = lab.rulesets();
    let mut daemon = site.daemon();
    lab.submit("first");
    site.until_finished("first");
    let want = verdicts(&site, "first");
    let names: Vec<String> = (0..40).map(|n| format!("q{n}")).collect();
    for name in &names {
        lab.submit(name);
        match random.below(8) {
            0 => {
                daemon.kill();
                daemon = site.daemon();
            }
            1 => kill_a_runner(&site),
            _ => {}
        }
    }
    let mut statuses = BTreeSet::new();
    for name in &names {
        let job = site.until_finished(name);
        statuses.insert(job.status.as_str());
        if job.status == Status::Done {
            assert_eq!(verdicts(&site, name), want, "{name}");
        }
    }
    assert!(statuses.contains("DONE"), "{statuses:?}");
    lab.submit("last");
    assert_eq!(site.until_finished("last").status, Status::Done);
    site.tsim(&["reconcile"]);
    assert_nothing_left(&site);
    assert_eq!(lab.rulesets(), before);
}

/// Kills the runner that holds the input of a running job, if there is one.
fn kill_a_runner(site: &Site) {
    let running = site.jobs().running;
    let Some(job) = running.first() else { return };
    let alive = site.spool.run_dir(&job.run_id).join("alive");
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().parse::<i32>();
        let holds = fs::read_link(entry.path().join("fd/0")).is_ok_and(|file| file == alive);
        if let (Ok(pid), true) = (pid, holds) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn assert_nothing_left(site: &Site) {
    let output = site.tsim(&["reconcile", "--dry-run", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["actions"], Value::Array(Vec::new()), "{report:#}");
    for what in ["dscp", "leases", "locks"] {
        let output = site.tsim(&[what, "--json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let empty = match &list {
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.values().all(|value| {
                value.as_array().is_none_or(Vec::is_empty)
                    && value.as_object().is_none_or(serde_json::Map::is_empty)
            }),
            _ => false,
        };
        assert!(empty, "{what}: {list:#}");
    }
}
