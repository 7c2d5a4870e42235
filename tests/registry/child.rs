//! Other processes: this test binary again, told over a pipe what to do.
//!
//! The child is the ignored test [`child_process`]. It reads one command per line from its
//! standard input and answers each with one line that begins with `@`. Pipes are the barriers.

use std::{
    io::{BufRead, BufReader, Write, stdin, stdout},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child as Process, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tsim::{
    config::Config,
    fault::{self, FaultPlan},
    model::{Dscp, HostId, RouterId, RunId},
    netlink::object::Mac,
    registry::{
        Holding, HostSpec, Job, JobInfo, JobType, LockMode, Locked, NeighbourKey, ReconcileReport,
        ReconcileScope, RefusedLocks, RegistryError, RegistryManager, Unlocked, Wait,
        medium::Directory,
    },
};

use crate::fake::FakeKernel;

/// What a child can be told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Opens the registry below this directory, as if it was on a disk or not, as this run.
    Open(PathBuf, bool, String),
    /// Arms a fault plan.
    Arm(String),
    /// Answers with the number of steps taken since.
    Taken,
    /// Host number n: ensure and lease.
    Ensure(u8),
    /// Host with this name, last octet of address, last octet of MAC.
    Register(String, u8, u8),
    /// Release and remove host n.
    Release(u8),
    /// Lock routers; most milliseconds to wait.
    Lock(Vec<String>, LockMode, u64),
    Unlock,
    /// Lease the neighbour entry, pointing at MAC n; needs routers locked.
    Neighbour(u8),
    Lease(u8),
    Unlease(u8),
    Dscp,
    /// A whole job over host n: reconcile, all that it takes, undo.
    WholeJob(u8),
    /// The same as quick jobs do it, in one beginning and one end.
    QuickJob(u8),
}

/// A place for one registry, its kernel and its jobs.
pub(crate) struct Site {
    dir: tempfile::TempDir,
    on_disk: bool,
}

impl Site {
    /// In memory where there is such a place: thousands of fsync(2) on a disk take minutes.
    pub(crate) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() {
            memory
        } else {
            &std::env::temp_dir()
        };
        Self {
            dir: tempfile::tempdir_in(place).unwrap(),
            on_disk: false,
        }
    }

    /// The same with the registry's files written as on a disk.
    pub(crate) fn as_on_disk() -> Self {
        Self {
            on_disk: true,
            ..Self::new()
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn registry_dir(&self) -> PathBuf {
        self.path().join("registry")
    }

    pub(crate) fn kernel_dir(&self) -> PathBuf {
        self.kernel();
        self.path().join("kernel")
    }

    pub(crate) fn config(&self) -> Config {
        config(self.path())
    }

    pub(crate) fn open(&self) -> RegistryManager {
        open(self.path(), self.on_disk).unwrap()
    }

    pub(crate) fn kernel(&self) -> FakeKernel {
        FakeKernel::new(self.path())
    }

    pub(crate) fn job(&self, run: &str) -> Job<Unlocked> {
        self.open().job(info(run))
    }

    pub(crate) fn child(&self, run: &str) -> Child {
        let mut child = Child::start();
        let opened = child.ask(&Order::Open(
            self.path().to_owned(),
            self.on_disk,
            run.to_owned(),
        ));
        assert_eq!(opened, Ok(String::new()));
        child
    }

    pub(crate) fn reconcile(&self) -> ReconcileReport {
        let run = RunId::new("reconcile").unwrap();
        self.open()
            .reconcile(&run, &ReconcileScope::Everything, &mut self.kernel(), false)
            .unwrap()
    }

    /// Nothing is registered, leased, allocated or queued for.
    pub(crate) fn assert_empty(&self, when: &str) {
        let registry = self.open();
        assert_eq!(registry.hosts().unwrap(), [], "{when}");
        assert_eq!(registry.source_host_leases().unwrap(), [], "{when}");
        assert_eq!(registry.neighbor_leases().unwrap(), [], "{when}");
        assert_eq!(registry.dscp_allocations().unwrap(), [], "{when}");
        let locks = std::fs::read_dir(self.registry_dir().join("locks")).unwrap();
        let queues: Vec<String> = locks
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|n| n.contains(['.', '@']))
            .collect();
        assert_eq!(queues, [""; 0], "{when}");
    }
}

fn open(dir: &Path, on_disk: bool) -> Result<RegistryManager, RegistryError> {
    let config = config(dir);
    if !on_disk {
        return RegistryManager::open(&config);
    }
    let disk = Directory::open(&config.registry_dir)?.as_on_disk();
    RegistryManager::open_on(&config, Box::new(disk))
}

pub(crate) fn config(dir: &Path) -> Config {
    Config {
        registry_dir: dir.join("registry"),
        labs_dir: dir.join("labs"),
        ..Config::default()
    }
}

pub(crate) fn info(run: &str) -> JobInfo {
    JobInfo {
        run_id: RunId::new(run).unwrap(),
        job_type: JobType::Quick,
        dscp: Dscp::new(32).ok(),
    }
}

pub(crate) fn router(name: &str) -> RouterId {
    format!("lab.{name}").parse().unwrap()
}

pub(crate) fn host(n: u8) -> HostId {
    format!("lab@src-{n}").parse().unwrap()
}

pub(crate) fn spec(n: u8) -> HostSpec {
    named_spec(&format!("src-{n}"), n, n)
}

pub(crate) fn named_spec(name: &str, ip: u8, mac: u8) -> HostSpec {
    HostSpec {
        id: format!("lab@{name}").parse().unwrap(),
        router: router("r1"),
        interface: "eth0".parse().unwrap(),
        address: format!("10.0.0.{ip}/24").parse().unwrap(),
        gateway: Some("10.0.0.254".parse().unwrap()),
        mac: Mac([2, 0, 0, 0, 0, mac]),
        stands_in: false,
    }
}

pub(crate) fn neighbour() -> NeighbourKey {
    "lab.r1|eth1|192.0.2.1".parse().unwrap()
}

pub(crate) fn patience() -> Wait {
    Wait::at_most(Duration::from_secs(60))
}

/// A running child.
pub(crate) struct Child {
    process: Process,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Child {
    fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child::child_process",
                "--ignored",
                "--nocapture",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            orders: process.stdin.take(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        }
    }

    /// Gives an order and does not wait for the answer.
    pub(crate) fn tell(&mut self, order: &Order) {
        let line = serde_json::to_string(order).unwrap();
        // A child that was killed meanwhile shows in the answer.
        let _ = writeln!(self.orders.as_mut().unwrap(), "{line}");
    }

    /// The next answer; the error is the text of the child's error, or `died`.
    pub(crate) fn answer(&mut self) -> Result<String, String> {
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line).unwrap() == 0 {
                return Err("died".to_owned());
            }
            // The test harness of the child talks too, and not always on a line of its own.
            if let Some((_, answer)) = line.trim_end().split_once('@') {
                return serde_json::from_str(answer).unwrap();
            }
        }
    }

    pub(crate) fn ask(&mut self, order: &Order) -> Result<String, String> {
        self.tell(order);
        self.answer()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Kills and does not reap: what is left is a zombie.
    pub(crate) fn kill_unreaped(&mut self) {
        self.process.kill().unwrap();
    }

    /// Waits for the end that the fault plan brings.
    pub(crate) fn assert_killed(mut self) {
        let status: ExitStatus = self.process.wait().unwrap();
        assert_eq!(status.signal(), Some(9));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the child is in the middle of.
struct Actor {
    dir: PathBuf,
    registry: RegistryManager,
    job: Option<Job<Unlocked>>,
    locked: Option<Job<Locked>>,
}

#[test]
#[ignore = "the body of the child processes of other tests"]
fn child_process() {
    let mut actor: Option<Actor> = None;
    for line in stdin().lock().lines() {
        let order = serde_json::from_str(&line.unwrap()).unwrap();
        let answer = obey(&mut actor, order).map_err(|e| format!("{e} ({e:?})"));
        println!("@{}", serde_json::to_string(&answer).unwrap());
        stdout().flush().unwrap();
    }
}

fn obey(actor: &mut Option<Actor>, order: Order) -> Result<String, RegistryError> {
    match order {
        Order::Open(dir, on_disk, run) => {
            let registry = open(&dir, on_disk)?;
            *actor = Some(Actor {
                job: Some(registry.job(info(&run))),
                registry,
                dir,
                locked: None,
            });
            Ok(String::new())
        }
        Order::Arm(plan) => {
            fault::arm(plan.parse::<FaultPlan>().unwrap());
            Ok(String::new())
        }
        Order::Taken => Ok(fault::taken().0.to_string()),
        order => actor.as_mut().unwrap().obey(order),
    }
}

impl Actor {
    fn obey(&mut self, order: Order) -> Result<String, RegistryError> {
        let mut kernel = FakeKernel::new(&self.dir);
        let said = |_| String::new();
        match order {
            Order::Lock(names, mode, millis) => {
                let routers: Vec<RouterId> = names.iter().map(|n| router(n)).collect();
                let wait = Wait::at_most(Duration::from_millis(millis));
                self.lock(&routers, mode, &wait).map(said)
            }
            Order::Unlock => {
                self.job = self.locked.take().map(Job::unlock);
                Ok(String::new())
            }
            Order::Neighbour(n) => {
                let locked = self.locked.as_mut().unwrap();
                let mac = Mac([2, 0, 0, 0, 1, n]);
                locked
                    .acquire_neighbor_lease(&neighbour(), mac, &mut kernel)
                    .map(|_| String::new())
            }
            Order::Dscp => {
                let run = &self.job.as_ref().unwrap().info().run_id;
                let grant = self.registry.allocate_dscp(run, None, None)?;
                Ok(grant.dscp.to_string())
            }
            Order::WholeJob(n) => self.whole_job(n, &mut kernel).map(|()| String::new()),
            Order::QuickJob(n) => self.quick_job(n).map(|()| String::new()),
            other => self.obey_about_hosts(other, &mut kernel),
        }
    }

    fn obey_about_hosts(
        &mut self,
        order: Order,
        kernel: &mut FakeKernel,
    ) -> Result<String, RegistryError> {
        let job = self.job.as_mut().unwrap();
        let text = |released: tsim::registry::Released| {
            format!("{} {}", released.left, released.should_delete)
        };
        match order {
            Order::Ensure(n) => job
                .ensure_host_and_lease(&spec(n), kernel, &patience())
                .map(|_| String::new()),
            Order::Register(name, ip, mac) => {
                let spec = named_spec(&name, ip, mac);
                let by = tsim::registry::ManagedBy::Job;
                job.check_and_register_host(&spec, by, &patience())
                    .map(|()| String::new())
            }
            Order::Release(n) => job
                .release_and_remove(&host(n), kernel, &patience())
                .map(text),
            Order::Lease(n) => job
                .acquire_source_host_lease(&host(n), &patience())
                .map(|_| String::new()),
            Order::Unlease(n) => job
                .release_source_host_lease(&host(n), &patience())
                .map(text),
            _ => unreachable!(),
        }
    }

    fn lock(
        &mut self,
        routers: &[RouterId],
        mode: LockMode,
        wait: &Wait,
    ) -> Result<(), RegistryError> {
        match self
            .job
            .take()
            .unwrap()
            .all_router_locks(routers, mode, wait)
        {
            Ok(locked) => {
                self.locked = Some(locked);
                Ok(())
            }
            Err(refused) => {
                let RefusedLocks { job, error } = *refused;
                self.job = Some(job);
                Err(error)
            }
        }
    }

    /// Takes everything in order and gives it back in reverse; a failure does not stop the undo.
    fn whole_job(&mut self, n: u8, kernel: &mut FakeKernel) -> Result<(), RegistryError> {
        let run = self.job.as_ref().unwrap().info().run_id.clone();
        let scope = ReconcileScope::Touching {
            routers: vec![router("r1"), router("r2")],
            hosts: vec![host(n)],
        };
        self.registry.reconcile(&run, &scope, kernel, false)?;
        self.registry.allocate_dscp(&run, None, None)?;
        let done = self.with_hosts(n, kernel);
        let freed = self.registry.release_dscp(&run).map(drop);
        done.and(freed)
    }

    /// Takes everything at once and gives it back at once; a failure does not stop the undo.
    fn quick_job(&mut self, n: u8) -> Result<(), RegistryError> {
        let kernel = || FakeKernel::new(&self.dir).leaving_taps();
        let run = self.job.as_ref().unwrap().info().run_id.clone();
        let mut holding = Holding::new(self.registry.clone(), run, JobType::Quick, None);
        let (first, second) = (spec(n), spec(n + 100));
        let specs = [&second, &first, &second];
        let routers = [router("r2"), router("r1")];
        let mut notes = Vec::new();
        let hands = (&mut kernel(), &mut notes);
        let begun = holding.begin((&specs, &routers), &mut kernel(), hands, &patience());
        let mut failed: Vec<RegistryError> = match begun {
            Ok((locked, dscp)) => {
                assert_eq!(holding.dscp(), Some(dscp));
                for host in [&first.id, &second.id] {
                    assert!(kernel().is_complete(host), "leased, so it is made");
                    let leases = self.registry.leases_of(host).unwrap();
                    assert!(leases.iter().any(|lease| lease.dscp == Some(dscp)));
                }
                holding.end(locked, &mut kernel(), &patience(), true)
            }
            Err(error) => vec![error],
        };
        failed.extend(holding.release_dscp().err());
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    fn with_hosts(&mut self, n: u8, kernel: &mut FakeKernel) -> Result<(), RegistryError> {
        let job = self.job.as_mut().unwrap();
        let (first, second) = (spec(n), spec(n + 100));
        // Named in another order than they are taken in, and one of them twice.
        job.ensure_hosts_and_lease(&[&second, &first, &second], kernel, &patience())?;
        assert!(kernel.is_complete(&second.id), "leased, so it is made");
        let done = self.with_locks(n, kernel);
        let job = self.job.as_mut().unwrap();
        let hosts = [&second.id, &first.id];
        let mut failed = job.release_and_remove_all(&hosts, kernel, &patience());
        done.and(failed.pop().map_or(Ok(()), Err))
    }

    fn with_locks(&mut self, n: u8, kernel: &mut FakeKernel) -> Result<(), RegistryError> {
        assert!(kernel.is_complete(&host(n)), "leased, so it is made");
        self.lock(
            &[router("r2"), router("r1")],
            LockMode::Exclusive,
            &patience(),
        )?;
        let mut locked = self.locked.take().unwrap();
        let mac = Mac([2, 0, 0, 0, 1, n]);
        let done = locked
            .acquire_neighbor_lease(&neighbour(), mac, kernel)
            .and_then(|_| locked.release_neighbor_lease(&neighbour(), kernel));
        self.job = Some(locked.unlock());
        done.map(drop)
    }
}
