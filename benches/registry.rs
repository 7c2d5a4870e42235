//! What the registry costs: one operation at 0 to 10,000 hosts, many processes at once, and the
//! time from a release or a SIGKILL to the next holder.
//!
//! ```text
//! cargo bench --bench registry [-- DIR...]     DIR: where to put registries; default the
//!                                              temporary directory, and /dev/shm if it is there
//! ```
//!
//! Every operation is a whole one: lock, read, change, write, fsync, rename, fsync, log. The
//! kernel's part (making a namespace) is left out.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tsim::{
    config::Config,
    model::{HostId, RouterId, RunId},
    netlink::object::Mac,
    registry::{
        HostKernel, HostSpec, JobInfo, JobType, KernelError, LockMode, ManagedBy, RegistryError,
        RegistryManager, Wait,
    },
    sys::limits,
};

/// Operations per figure.
const ROUNDS: usize = 201;

fn main() {
    // A crowd of a thousand takes more than the 1,024 of a login.
    limits::open_files().unwrap();
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench" && a != "--test")
        .collect();
    match args.first().map(String::as_str) {
        Some("--contender") => return contend(&args[1], &args[2]),
        Some("--holder") => return hold(&args[1]),
        Some("--waiter") => return wait_in_line(&args[1]),
        _ => {}
    }
    let mut places: Vec<PathBuf> = args.iter().map(PathBuf::from).collect();
    if places.is_empty() {
        places.push(std::env::temp_dir());
        places.extend(Some(PathBuf::from("/dev/shm")).filter(|p| p.is_dir()));
    }
    for place in places {
        println!("registry in {}", place.display());
        operations(&place);
        contention(&place);
        hand_over(&place);
        crowd(&place);
    }
}

fn operations(place: &Path) {
    println!("\n  one operation, median / 99th percentile in µs, by number of hosts");
    println!("  {:<22}{:>15}{:>15}{:>15}{:>15}", "", 0, 100, 1000, 10_000);
    let columns: Vec<Vec<(&str, Vec<Duration>)>> = [0, 100, 1000, 10_000]
        .into_iter()
        .map(|hosts| one_size(place, hosts))
        .collect();
    for row in 0..columns[0].len() {
        print!("  {:<22}", columns[0][row].0);
        for column in &columns {
            print!("{:>15}", figure(&column[row].1));
        }
        println!();
    }
}

fn one_size(place: &Path, hosts: usize) -> Vec<(&'static str, Vec<Duration>)> {
    let dir = tempfile::tempdir_in(place).unwrap();
    populate(dir.path(), hosts);
    let registry = open(dir.path());
    let mut job = registry.job(info("bench"));
    let wait = Wait::forever();
    let spec = spec(60_000);
    let run = RunId::new("bench").unwrap();
    let mut column = Column::default();
    for _ in 0..if hosts > 1000 { ROUNDS / 4 } else { ROUNDS } {
        column.time("open", || RegistryManager::open(&config(dir.path())));
        column.time("register host", || {
            job.check_and_register_host(&spec, ManagedBy::Job, &wait)
        });
        column.time("lease host", || {
            job.acquire_source_host_lease(&spec.id, &wait)
        });
        column.time("release host", || {
            job.release_source_host_lease(&spec.id, &wait)
        });
        column.time("unregister host", || job.unregister_host(&spec.id, &wait));
        column.time("ensure and lease", || {
            job.ensure_host_and_lease(&spec, &mut NoKernel, &wait)
        });
        column.time("release and remove", || {
            job.release_and_remove(&spec.id, &mut NoKernel, &wait)
        });
        let free = registry.job(info("bench"));
        let held = column.time("router lock", || {
            free.router_lock(&router(), LockMode::Shared, &wait)
        });
        column.time("router unlock", || {
            drop(held);
            Ok::<_, RegistryError>(())
        });
        column.time("DSCP allocate", || registry.allocate_dscp(&run, None, None));
        column.time("DSCP release", || registry.release_dscp(&run));
    }
    column.0
}

/// Times of several operations, by name.
#[derive(Default)]
struct Column(Vec<(&'static str, Vec<Duration>)>);

impl Column {
    fn time<T, E: std::fmt::Debug>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> T {
        let started = Instant::now();
        let result = work().unwrap();
        let took = started.elapsed();
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, times)) => times.push(took),
            None => self.0.push((name, vec![took])),
        }
        result
    }
}

/// Registers and leases `hosts` hosts. Written in one go: one by one would take minutes.
fn populate(dir: &Path, hosts: usize) {
    let mut job = open(dir).job(info("other"));
    if hosts == 0 {
        return;
    }
    let wait = Wait::forever();
    job.ensure_host_and_lease(&spec(0), &mut NoKernel, &wait)
        .unwrap();
    for file in ["hosts.json", "host_leases.json"] {
        let path = dir.join(file);
        let one: serde_json::Map<_, _> =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let record = &one[&spec(0).id.to_string()];
        let all: serde_json::Map<_, _> = (0..hosts)
            .map(|n| {
                let spec = spec(n);
                let mut record = record.clone();
                if file == "hosts.json" {
                    record["primary_ip"] = spec.address.to_string().into();
                    record["mac_address"] = spec.mac.to_string().into();
                }
                (spec.id.to_string(), record)
            })
            .collect();
        std::fs::write(path, serde_json::to_vec(&all).unwrap()).unwrap();
    }
}

fn contention(place: &Path) {
    println!("\n  processes at once, each ensuring, locking (shared) and removing its own host");
    println!(
        "  {:<22}{:>15}{:>18}",
        "processes", "cycles/s in all", "cycle, median µs"
    );
    for count in [1, 8, 32] {
        let dir = tempfile::tempdir_in(place).unwrap();
        populate(dir.path(), 100);
        let mut children: Vec<Child> = (0..count)
            .map(|n| start(&["--contender", path(&dir), &n.to_string()]))
            .collect();
        children.iter_mut().for_each(read_line);
        let started = Instant::now();
        children.iter_mut().for_each(go);
        let mut times = Vec::new();
        for mut child in children {
            let mut text = String::new();
            child
                .stdout
                .take()
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            times.extend(
                text.split_whitespace()
                    .map(|t| Duration::from_nanos(t.parse().unwrap())),
            );
            child.wait().unwrap();
        }
        let rate = times.len() as f64 / started.elapsed().as_secs_f64();
        println!("  {count:<22}{rate:>15.0}{:>18}", figure(&times));
    }
}

fn contend(dir: &str, number: &str) {
    let number: usize = number.parse().unwrap();
    let registry = open(Path::new(dir));
    let mut job = registry.job(info(&format!("contender-{number}")));
    let (wait, spec) = (Wait::forever(), spec(50_000 + number));
    ready_and_wait();
    let mut times = Vec::new();
    for _ in 0..50 {
        let started = Instant::now();
        job.ensure_host_and_lease(&spec, &mut NoKernel, &wait)
            .unwrap();
        let locked = job.router_lock(&router(), LockMode::Shared, &wait).unwrap();
        job = locked.unlock();
        job.release_and_remove(&spec.id, &mut NoKernel, &wait)
            .unwrap();
        times.push(started.elapsed());
    }
    times.iter().for_each(|t| println!("{}", t.as_nanos()));
}

fn hand_over(place: &Path) {
    println!("\n  exclusive lock, from the end of one holder to the next having it, µs");
    for (name, kill) in [("released", false), ("holder SIGKILLed", true)] {
        let mut times = Vec::new();
        for _ in 0..ROUNDS / 2 {
            let dir = tempfile::tempdir_in(place).unwrap();
            let registry = open(dir.path());
            let mut holder = start(&["--holder", path(&dir)]);
            read_line(&mut holder);
            let waiter = std::thread::spawn({
                let job = registry.job(info("waiter"));
                move || {
                    let locked = job.router_lock(&router(), LockMode::Exclusive, &Wait::forever());
                    (Instant::now(), locked)
                }
            });
            while registry.is_router_locked(&router()).unwrap().len() < 2 {
                std::thread::yield_now();
            }
            // Time for the waiter to go to sleep: it is that wake-up that counts.
            std::thread::sleep(Duration::from_millis(2));
            let ended = if kill {
                let now = Instant::now();
                holder.kill().unwrap();
                now
            } else {
                go(&mut holder);
                let mut nanos = String::new();
                BufReader::new(holder.stdout.as_mut().unwrap())
                    .read_line(&mut nanos)
                    .unwrap();
                Instant::now()
                    .checked_sub(monotonic() - Duration::from_nanos(nanos.trim().parse().unwrap()))
                    .unwrap()
            };
            let (had, locked) = waiter.join().unwrap();
            times.push(had.saturating_duration_since(ended));
            drop(locked);
            holder.wait().unwrap();
        }
        println!("  {name:<22}{:>15}", figure(&times));
    }
}

fn hold(dir: &str) {
    let job = open(Path::new(dir)).job(info("holder"));
    let locked = job
        .router_lock(&router(), LockMode::Exclusive, &Wait::forever())
        .unwrap();
    ready_and_wait();
    let now = monotonic();
    drop(locked);
    println!("{}", now.as_nanos());
}

/// A thousand processes in one queue: what they cost while they wait, and how fast they pass.
fn crowd(place: &Path) {
    const CROWD: usize = 1000;
    let dir = tempfile::tempdir_in(place).unwrap();
    let registry = open(dir.path());
    let first =
        registry
            .job(info("first"))
            .router_lock(&router(), LockMode::Exclusive, &Wait::forever());
    let children: Vec<Child> = (0..CROWD)
        .map(|_| start(&["--waiter", path(&dir)]))
        .collect();
    while registry.is_router_locked(&router()).unwrap().len() <= CROWD {
        std::thread::sleep(Duration::from_millis(20));
    }
    let before: u64 = children.iter().map(cpu_ticks).sum();
    std::thread::sleep(Duration::from_secs(2));
    let burnt = children.iter().map(cpu_ticks).sum::<u64>() - before;
    let started = Instant::now();
    drop(first);
    for mut child in children {
        child.wait().unwrap();
    }
    let each = started.elapsed() / u32::try_from(CROWD).unwrap();
    println!("\n  {CROWD} processes waiting exclusively: {burnt} clock ticks of CPU in 2 s;");
    println!(
        "  then each had the lock and left in {} µs (process exit included)\n",
        each.as_micros()
    );
}

fn wait_in_line(dir: &str) {
    // Each is a job of its own: a namesake of a job that is ahead would be refused.
    let job = open(Path::new(dir)).job(info(&format!("waiter-{}", std::process::id())));
    drop(
        job.router_lock(&router(), LockMode::Exclusive, &Wait::forever())
            .unwrap(),
    );
}

/// utime + stime of a process, fields 14 and 15 of proc_pid_stat(5).
fn cpu_ticks(child: &Child) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn figure(times: &[Duration]) -> String {
    let mut micros: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e6).collect();
    micros.sort_by(f64::total_cmp);
    let at = |q: usize| micros[(micros.len() - 1) * q / 100];
    format!("{:.0} / {:.0}", at(50), at(99))
}

fn monotonic() -> Duration {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    nix::time::clock_gettime(clock).unwrap().into()
}

fn start(args: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ready_and_wait() {
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
}

fn read_line(child: &mut Child) {
    // Byte by byte: what follows the line is read elsewhere.
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {}
}

fn go(child: &mut Child) {
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
}

fn path(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}

fn config(dir: &Path) -> Config {
    Config {
        registry_dir: dir.to_owned(),
        ..Config::default()
    }
}

fn open(dir: &Path) -> RegistryManager {
    RegistryManager::open(&config(dir)).unwrap()
}

fn info(run: &str) -> JobInfo {
    JobInfo {
        run_id: RunId::new(run).unwrap(),
        job_type: JobType::Quick,
        dscp: None,
    }
}

fn router() -> RouterId {
    "lab.r1".parse().unwrap()
}

fn spec(n: usize) -> HostSpec {
    let [.., high, low] = u32::try_from(n).unwrap().to_be_bytes();
    HostSpec {
        id: format!("lab@source-{n}").parse().unwrap(),
        router: router(),
        interface: "eth0".parse().unwrap(),
        address: format!("10.0.{high}.{low}/16").parse().unwrap(),
        gateway: Some("10.0.255.254".parse().unwrap()),
        mac: Mac([2, 0, 0, 0, high, low]),
        stands_in: false,
    }
}

struct NoKernel;

impl HostKernel for NoKernel {
    fn host_exists(&mut self, _: &HostId) -> Result<bool, KernelError> {
        Ok(true)
    }
    fn create_host(&mut self, _: &HostSpec) -> Result<(), KernelError> {
        Ok(())
    }
    fn remove_host(&mut self, _: &HostId) -> Result<(), KernelError> {
        Ok(())
    }
    fn list_hosts(&mut self) -> Result<Vec<HostId>, KernelError> {
        Ok(Vec::new())
    }
}
