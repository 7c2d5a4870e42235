//! The scheduler's own cost: from submit to start, and jobs per second, with a runner that does
//! nothing, beside the same runner started directly.
//!
//! ```text
//! cargo bench --bench scheduler             200 single jobs, 1,000 at once
//! cargo bench --bench scheduler -- --test   few of each
//! ```
//!
//! Then the same with real quick jobs: ten services over one router whose source host somebody keeps,
//! their verdicts checked, and what they cost with the scheduler and all. That needs root. `--real` does
//! this part alone, with more lines of the table `[scheduler]` from `TSIM_BENCH_SCHEDULER`.
//!
//! Latencies are from a job's own time stamps: submitted, and taken from the queue right before its
//! runner is started.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

mod common;

use std::{
    fs,
    io::Write as _,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::BenchLab;
use jiff::Timestamp;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    unistd::{SysconfVar, sysconf},
};
use tsim::{
    config::{Config, Places},
    model::{LabName, RouterName, RunId},
    sched::{
        job::{Mode, NewJob, Params, Status, UserName, Verdicts},
        leader,
        spool::Spool,
    },
};

/// A question of which [`VERDICTS`] come: what the first router of `small3` accepts, and what it drops.
const SOURCE: &str = "10.81.1.100";
const DESTINATION: &str = "10.81.3.100";
const SERVICES: &str = "22,80,443,53/udp,1-6";
const VERDICTS: Verdicts = Verdicts {
    yes: 4,
    no: 6,
    unknown: 0,
};

const RUNNER: &str = "#!/bin/sh\necho '{\"routers\":[]}'\n";

struct Bench {
    spool: Spool,
    queue: Inotify,
    daemon: Child,
    params: Params,
}

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let (single, many) = if test { (3, 20) } else { (200, 1000) };
    if !std::env::args().any(|arg| arg == "--real") {
        stubs(single, many);
    }
    if nix::unistd::geteuid().is_root() {
        real(if test { 10 } else { 2000 });
    } else {
        println!("real quick jobs need root");
    }
}

/// With a runner that does nothing.
fn stubs(single: u32, many: u32) {
    let dir = tempfile::tempdir().unwrap();
    let runner = dir.path().join("tsim-quick");
    fs::write(&runner, RUNNER).unwrap();
    fs::set_permissions(&runner, fs::Permissions::from_mode(0o755)).unwrap();
    // As an installation has it: what dies with the kernel in memory, results on the disk.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("tsim.toml");
    let text = format!(
        "registry_dir = \"{memory}/registry\"\nresults_dir = \"{disk}/results\"\n\
         [scheduler]\nrunner_dir = \"{disk}\"\nlisten = \"127.0.0.1:0\"\n",
        memory = memory.path().display(),
        disk = dir.path().display(),
    );
    fs::write(&file, text).unwrap();
    let direct = direct(&runner, single);
    let bench = Bench::start(&file, params("none", "80", None));
    println!(
        "runner alone                {:>9.3} ms per job",
        millis(direct)
    );

    let latencies: Vec<f64> = (0..single).map(|n| bench.one(&format!("s{n}"))).collect();
    print_latencies("idle, one at a time", latencies);

    bench.many(many);
    let latencies = (0..many).map(|n| bench.latency(&format!("m{n}"))).collect();
    print_latencies("waiting for a turn among them", latencies);
}

/// With real quick jobs.
fn real(many: u32) {
    let lab = BenchLab::up("small3");
    let router = "r1".to_owned();
    lab.keep_hosts(std::slice::from_ref(&router), SOURCE);
    let runner = Path::new(env!("CARGO_BIN_EXE_tsim-quick"));
    let mut file = fs::File::options().append(true).open(&lab.file).unwrap();
    let dir = runner.parent().unwrap().display();
    let more = std::env::var("TSIM_BENCH_SCHEDULER").unwrap_or_default();
    writeln!(
        file,
        "[scheduler]\nrunner_dir = \"{dir}\"\nlisten = \"127.0.0.1:0\"\n{more}"
    )
    .unwrap();
    let routers = vec![router.parse().unwrap()];
    let bench = Bench::start(
        &lab.file,
        params(lab.lab.lab.as_str(), SERVICES, Some(routers)),
    );
    // The first one finds files cold.
    bench.one("first");
    let before = bench.cpu();
    bench.many(many);
    let cpu = (bench.cpu() - before) / f64::from(many);
    println!(
        "                            {:>9.3} ms CPU per job, its verdicts right",
        cpu * 1e3
    );
    for n in 0..many {
        let run_id = RunId::new(format!("m{n}")).unwrap();
        let job = bench.spool.finished(&run_id).unwrap().unwrap();
        assert_eq!(
            (job.status, job.verdicts),
            (Status::Done, Some(VERDICTS)),
            "{job:?}"
        );
    }
}

/// The runner started and waited for, without any scheduler.
fn direct(runner: &Path, count: u32) -> Duration {
    let started = Instant::now();
    for _ in 0..count {
        let mut runner = Command::new(runner);
        assert!(runner.stdout(Stdio::null()).status().unwrap().success());
    }
    started.elapsed() / count
}

fn params(lab: &str, ports: &str, routers: Option<Vec<RouterName>>) -> Params {
    Params {
        lab: LabName::new(lab).unwrap(),
        before: None,
        source: Some(SOURCE.parse().unwrap()),
        destination: Some(DESTINATION.parse().unwrap()),
        networks: false,
        ports: Some(ports.to_owned()),
        policy: None,
        routers,
        options: tsim::sched::options::JobOptions::default(),
        extra: serde_json::Map::new(),
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn print_latencies(what: &str, mut ms: Vec<f64>) {
    ms.sort_by(f64::total_cmp);
    let at = |part: usize| ms[(ms.len() - 1) * part / 100];
    println!(
        "{what}: submit to start, median {:.3} ms, 99 % {:.3} ms",
        at(50),
        at(99)
    );
}

/// The scheduler ends with the bench, also where that panicked.
impl Drop for Bench {
    fn drop(&mut self) {
        // It fails only where the scheduler has ended already.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Bench {
    fn start(file: &Path, params: Params) -> Self {
        let spool = Spool::open(&Config::load(Some(file), &Places::system()).unwrap()).unwrap();
        let queue = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        queue
            .add_watch(spool.queue_dir(), AddWatchFlags::IN_ALL_EVENTS)
            .unwrap();
        let daemon = daemon(file);
        let bench = Self {
            spool,
            queue,
            daemon,
            params,
        };
        bench.until(|spool| leader::is_led(spool).unwrap());
        bench
    }

    /// Submits so many jobs, and waits until all are over.
    fn many(&self, many: u32) {
        let started = Instant::now();
        for n in 0..many {
            self.submit(&format!("m{n}"));
        }
        let submitted = started.elapsed();
        // One job after the other is looked for: reading the whole queue at each change of it would
        // take a processor from the jobs.
        for n in 0..many {
            let run_id = RunId::new(format!("m{n}")).unwrap();
            self.until(|spool| spool.finished(&run_id).unwrap().is_some());
        }
        self.until_idle();
        let all = started.elapsed();
        println!(
            "{many} at once                {:>9.3} ms per submit, {:.0} jobs per second in all",
            millis(submitted) / f64::from(many),
            f64::from(many) / all.as_secs_f64()
        );
    }

    /// The CPU time of the scheduler, of its children, and of all that those have waited for, in
    /// seconds, proc(5).
    fn cpu(&self) -> f64 {
        let own = self.daemon.id().to_string();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
        let ticks = |process: &str| {
            // One that ended meanwhile is counted in who waited for it.
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            let fields = stat.rsplit(')').next().unwrap_or_default();
            let times = fields.split_whitespace().skip(11).take(4);
            times.map(|n| n.parse::<f64>().unwrap()).sum::<f64>()
        };
        let all = ticks(&own) + children.split_whitespace().map(ticks).sum::<f64>();
        all / sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as f64
    }

    fn submit(&self, name: &str) {
        let job = NewJob {
            run_id: RunId::new(name).unwrap(),
            username: UserName::new("bench").unwrap(),
            mode: Mode::Quick,
            params: self.params.clone(),
            policy: None,
        };
        let lock = self.spool.lock().unwrap();
        let most = tsim::sched::queue::QueueLimits {
            total: usize::MAX,
            user: usize::MAX,
            user_time: None,
        };
        lock.submit(job, most, Timestamp::now()).unwrap();
    }

    /// Submits one job, waits until it is over, and returns how long it waited.
    fn one(&self, name: &str) -> f64 {
        self.submit(name);
        self.until_idle();
        self.latency(name)
    }

    fn latency(&self, name: &str) -> f64 {
        let run_id = RunId::new(name).unwrap();
        let job = self.spool.finished(&run_id).unwrap().unwrap();
        let waited = job.started_at.unwrap().duration_since(job.created_at);
        waited.as_secs_f64() * 1000.0
    }

    fn until_idle(&self) {
        self.until(|spool| {
            let jobs = spool.jobs().unwrap();
            jobs.queued.is_empty() && jobs.running.is_empty()
        });
    }

    fn until(&self, done: impl Fn(&Spool) -> bool) {
        while !done(&self.spool) {
            let mut fds = [PollFd::new(self.queue.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
            let _ = self.queue.read_events();
        }
    }
}

fn daemon(file: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tsimd"))
        .arg("--config")
        .arg(file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
