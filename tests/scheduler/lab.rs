//! A real lab under a scheduler with real runners: needs root.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tsim::{
    config::{Config, Places},
    model::RouterId,
    registry::{Job, JobInfo, JobType, LockMode, Locked, RegistryManager, Wait},
    sched::job::Status,
};

use crate::support::{Site, id};

/// On the way from one branch to the other; in the order in which jobs lock them.
pub const ROUTERS: [&str; 3] = ["br-gw", "dc-gw", "hq-gw"];

/// A lab of ten routers from real facts, taken down at the end.
pub struct Lab {
    pub site: Site,
    name: String,
    namespaces: BTreeSet<String>,
    rulesets: Vec<String>,
}

impl Lab {
    pub fn up(number: usize, scheduler: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "labs need root");
        let programs = Path::new(env!("CARGO_BIN_EXE_tsimd")).parent().unwrap();
        let site = Site::over(programs, scheduler);
        let name = format!("t{}x{number}", std::process::id());
        let output = site.tsim(&["lab", "up", &name, "--facts", "netns-fixtures/corp10"]);
        assert!(output.status.success(), "{output:?}");
        let mut lab = Self {
            site,
            name,
            namespaces: BTreeSet::new(),
            rulesets: Vec::new(),
        };
        lab.namespaces = lab.namespaces();
        lab.rulesets = lab.rulesets();
        lab
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn submit(&self, mode: &str, run_id: &str, routers: &[&str]) {
        let output = self.site.tsim(&[
            "submit",
            mode,
            "--lab",
            &self.name,
            "-s",
            "10.1.1.100",
            "-d",
            "10.2.1.50",
            "-P",
            "22,80,443/tcp,53/udp,8000-8010",
            "--routers",
            &routers.join(","),
            "--run-id",
            run_id,
        ]);
        assert!(output.status.success(), "{output:?}");
    }

    fn router(&self, router: &str) -> RouterId {
        RouterId {
            lab: self.name.parse().unwrap(),
            router: router.parse().unwrap(),
        }
    }

    fn registry(&self) -> RegistryManager {
        let config = Config::load(Some(&self.site.path("tsim.toml")), &Places::system()).unwrap();
        RegistryManager::open(&config).unwrap()
    }

    /// Holds a router as a job would that is in the middle of its measurement.
    pub fn hold(&self, router: &str, mode: LockMode) -> Job<Locked> {
        let info = JobInfo {
            run_id: id("held"),
            job_type: JobType::Detailed,
            dscp: None,
        };
        let job = self.registry().job(info);
        job.router_lock(&self.router(router), mode, &Wait::not())
            .unwrap()
    }

    /// Who holds or waits for a router, in order: `d1` holds it, `d1 …` waits for it.
    pub fn line(&self, router: &str) -> Vec<String> {
        let line = self.registry().is_router_locked(&self.router(router));
        let name = |holder: tsim::registry::LockHolder| {
            let waits = if holder.waiting { " …" } else { "" };
            format!("{}{waits}", holder.run_id)
        };
        line.unwrap().into_iter().map(name).collect()
    }

    /// Sleeps until exactly these hold or wait for a router.
    pub fn until_line(&self, router: &str, want: &[&str]) {
        self.site.until(&format!("{router}: {want:?}"), |_| {
            self.line(router) == want
        });
    }

    /// The verdicts of a job that must have come to its end: per router, service by service.
    pub fn verdicts(&self, run_id: &str) -> Vec<(String, Vec<String>)> {
        let job = self.site.until_finished(run_id);
        assert_eq!(job.status, Status::Done, "{run_id}: {:?}", job.reason);
        let path = self.site.spool.run_dir(&job.run_id).join("result.json");
        let result: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let routers = result["routers"].as_array().unwrap();
        let mut verdicts: Vec<_> = routers.iter().map(of_router).collect();
        verdicts.sort();
        verdicts
    }

    /// What a job says of its end-to-end verdicts, as it stands in its result.
    fn reasons(&self, run_id: &str) -> String {
        let run_id = run_id.parse().unwrap();
        let path = self.site.spool.run_dir(&run_id).join("result.json");
        fs::read_to_string(path).unwrap_or_else(|e| e.to_string())
    }

    /// That each of the jobs found, on the routers it asked, what `want` says.
    pub fn assert_agree(&self, run_ids: &[&str], want: &[(String, Vec<String>)]) {
        for run_id in run_ids {
            let found = self.verdicts(run_id);
            assert!(!found.is_empty(), "{run_id} measured nothing");
            for router in found {
                assert!(
                    want.contains(&router),
                    "{run_id}: {router:?}, {want:?}; {}",
                    self.reasons(run_id)
                );
            }
        }
    }

    /// The routers' rulesets, counters left out.
    fn rulesets(&self) -> Vec<String> {
        let list = |router: &str| {
            let netns = self.router(router).to_string();
            let output = Command::new("ip")
                .args(["netns", "exec", &netns, "nft", "-s", "list", "ruleset"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        ROUTERS.map(list).to_vec()
    }

    /// The lab's namespaces: routers, segments, and hosts while jobs have some.
    fn namespaces(&self) -> BTreeSet<String> {
        let output = Command::new("ip").args(["netns", "list"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let names = text.lines().filter_map(|line| line.split(' ').next());
        // Those of lab 12 are not lab 1's.
        let is_own = |name: &&str| {
            let rest = name.strip_prefix(&self.name);
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        names.filter(is_own).map(str::to_owned).collect()
    }

    /// That no job left anything: in the kernel, in the registry, in the routers' rulesets.
    pub fn assert_nothing_left(&self) {
        let output = self.site.tsim(&["reconcile", "--dry-run", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["actions"], Value::Array(Vec::new()), "{report:#}");
        for what in ["dscp", "leases", "locks"] {
            let output = self.site.tsim(&[what, "--json"]);
            let list: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(is_empty(&list), "{what}: {list:#}");
        }
        assert_eq!(self.namespaces(), self.namespaces);
        assert_eq!(self.rulesets(), self.rulesets);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = self.site.tsim(&["lab", "down", &self.name]);
        assert!(
            std::thread::panicking() || output.status.success(),
            "{output:?}"
        );
    }
}

fn of_router(router: &Value) -> (String, Vec<String>) {
    let services = router["services"].as_array().unwrap();
    let verdict = |service: &Value| {
        let text = |key: &str| service[key].as_str().unwrap().to_owned();
        format!(
            "{}/{} {}",
            service["port"],
            text("protocol"),
            text("result")
        )
    };
    let name = router["name"].as_str().unwrap().to_owned();
    (name, services.iter().map(verdict).collect())
}

fn is_empty(list: &Value) -> bool {
    match list {
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(|value| match value {
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => true,
        }),
        _ => false,
    }
}

/// Kills the runner of a running job, the `nth` of them; false when none runs.
pub fn kill_a_runner(site: &Site, nth: usize) -> bool {
    let running = site.jobs().running;
    let Some(job) = running.get(nth % running.len().max(1)) else {
        return false;
    };
    let alive = site.spool.run_dir(&job.run_id).join("alive");
    let mut killed = false;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().parse::<i32>();
        let holds = fs::read_link(entry.path().join("fd/0")).is_ok_and(|file| file == alive);
        if let (Ok(pid), true) = (pid, holds) {
            killed |= kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
        }
    }
    killed
}
