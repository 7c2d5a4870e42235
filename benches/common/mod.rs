//! What benches of whole jobs share: a lab of their own, and what a process costs.
#![allow(
    dead_code,
    reason = "each bench is a crate of its own, and none uses everything"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::TimeVal,
};
use tsim::{
    config::Config,
    lab::{
        self, Lab, UpOptions,
        hosts::{HostRequest, LabHosts},
    },
    model::{HostId, LabName, NetnsName, RouterId, RouterName},
    netns::NetnsDir,
    registry::{RegistryManager, Wait},
};

/// A lab from shipped facts, and the configuration that leads to it.
pub(crate) struct BenchLab {
    pub(crate) lab: Lab,
    pub(crate) config: Config,
    /// The configuration as a file, for processes.
    pub(crate) file: PathBuf,
    _dir: tempfile::TempDir,
}

impl BenchLab {
    /// A lab from the facts in this folder of `netns-fixtures`.
    pub(crate) fn up(facts: &str) -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("netns-fixtures");
        Self::up_from(&shipped.join(facts), facts)
    }

    /// A lab from the facts in this directory; `what` is part of its name.
    pub(crate) fn up_from(facts: &Path, what: &str) -> Self {
        // In memory: where /run is no tmpfs, a registry there waits for a disk at each write.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let config = Config {
            registry_dir: dir.path().join("registry"),
            labs_dir: dir.path().join("labs"),
            ..Config::default()
        };
        let file = dir.path().join("tsim.toml");
        let text = format!(
            "registry_dir = {:?}\nlabs_dir = {:?}\n",
            config.registry_dir, config.labs_dir
        );
        fs::write(&file, text).unwrap();
        let what = what.replace('/', "-");
        let name = LabName::new(format!("bench{}{what}", std::process::id())).unwrap();
        let up = lab::up_from(&config, &name, facts, UpOptions::default(), &()).unwrap();
        Self {
            lab: up.lab,
            config,
            file,
            _dir: dir,
        }
    }

    /// Leases a host with the address `source` on each of `routers`, under the name that jobs give it, and
    /// returns the names of its namespace and the router's.
    pub(crate) fn keep_hosts(&self, routers: &[String], source: &str) -> Vec<[String; 2]> {
        let mut hosts = LabHosts::new(&NetnsDir::default());
        let registry = RegistryManager::open(&self.config).unwrap();
        let mut job = registry.operator().unwrap();
        let lab = &self.lab.lab;
        let keep = |router: &String| {
            let router: RouterName = router.parse().unwrap();
            let mut request = HostRequest {
                id: HostId::new(lab.clone(), "any".parse().unwrap()),
                router: RouterId::new(lab.clone(), router.clone()),
                address: source.parse().unwrap(),
                prefix_len: None,
                interface: None,
            };
            let hosts_of_lab = hosts.lab(lab).unwrap();
            let interface = hosts_of_lab.plan(&request).unwrap().interface;
            let name = format!("{router}:{interface}:{source}");
            request.id = HostId::new(lab.clone(), name.parse().unwrap());
            request.interface = Some(interface);
            let spec = hosts_of_lab.plan(&request).unwrap();
            job.ensure_host_and_lease(&spec, &mut hosts, &Wait::not())
                .unwrap();
            [&request.id.netns(), &request.router.netns()].map(ToString::to_string)
        };
        routers.iter().map(keep).collect()
    }
}

/// Takes the lab down, and the hosts that a bench kept on it, also where the bench panicked.
impl Drop for BenchLab {
    fn drop(&mut self) {
        let removed = match lab::down(&self.config, &self.lab.lab) {
            Ok(removed) => removed,
            Err(error) => return println!("{} stays: {error}", self.lab.lab),
        };
        for host in removed.hosts {
            let deleted = NetnsName::new(&host).map(|name| NetnsDir::default().delete(&name));
            if !matches!(deleted, Ok(Ok(_))) {
                println!("{host} stays");
            }
        }
    }
}

/// What some work cost.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// CPU time of the children that ended meanwhile.
    pub(crate) cpu: Duration,
}

impl Cost {
    pub(crate) fn of(work: impl FnOnce()) -> Self {
        let cpu = |usage: Usage| span(usage.user_time()) + span(usage.system_time());
        let before = cpu(getrusage(UsageWho::RUSAGE_CHILDREN).unwrap());
        let begin = Instant::now();
        work();
        let wall = begin.elapsed();
        let after = cpu(getrusage(UsageWho::RUSAGE_CHILDREN).unwrap());
        Self {
            wall,
            cpu: after - before,
        }
    }

    /// That of the run of median wall time.
    pub(crate) fn median(runs: usize, mut run: impl FnMut() -> Self) -> Self {
        let mut costs: Vec<Self> = (0..runs).map(|_| run()).collect();
        costs.sort_by_key(|cost| cost.wall);
        costs[runs / 2]
    }
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn span(time: TimeVal) -> Duration {
    Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
}
