//! The scheduler's own cost: from submit to start, and jobs per second, with a runner that does
//! nothing, beside the same runner started directly.
//!
//! ```text
//! cargo bench --bench scheduler             200 single jobs, 1,000 at once
//! cargo bench --bench scheduler -- --test   few of each
//! ```
//!
//! Latencies are from a job's own time stamps: submitted, and taken from the queue right before its
//! runner is started.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

use std::{
    fs,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tsim::{
    config::{Config, Places},
    model::{LabName, RunId},
    sched::{
        job::{Mode, NewJob, Params, UserName},
        leader,
        spool::Spool,
    },
};

const RUNNER: &str = "#!/bin/sh\necho '{\"routers\":[]}'\n";

struct Bench {
    spool: Spool,
    queue: Inotify,
    daemon: Child,
    dir: tempfile::TempDir,
}

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let (single, many) = if test { (3, 20) } else { (200, 1000) };
    let mut bench = Bench::start();
    let direct = bench.direct(single);
    println!(
        "runner alone                {:>9.3} ms per job",
        millis(direct)
    );

    let latencies: Vec<f64> = (0..single).map(|n| bench.one(&format!("s{n}"))).collect();
    print_latencies("idle, one at a time", latencies);

    let started = Instant::now();
    for n in 0..many {
        bench.submit(&format!("m{n}"));
    }
    let submitted = started.elapsed();
    bench.until_idle();
    let all = started.elapsed();
    println!(
        "{many} at once                {:>9.3} ms per submit, {:.0} jobs per second in all",
        millis(submitted) / f64::from(many),
        f64::from(many) / all.as_secs_f64()
    );
    let latencies = (0..many).map(|n| bench.latency(&format!("m{n}"))).collect();
    print_latencies("waiting for a turn among them", latencies);
    bench.daemon.kill().unwrap();
    bench.daemon.wait().unwrap();
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

impl Bench {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runner = dir.path().join("tsim-quick");
        fs::write(&runner, RUNNER).unwrap();
        fs::set_permissions(&runner, fs::Permissions::from_mode(0o755)).unwrap();
        let file = dir.path().join("tsim.toml");
        let text = format!(
            "registry_dir = \"{0}/registry\"\n[scheduler]\nrunner_dir = \"{0}\"\n\
             listen = \"127.0.0.1:0\"\n",
            dir.path().display()
        );
        fs::write(&file, text).unwrap();
        let spool = Spool::open(&Config::load(Some(&file), &Places::system()).unwrap()).unwrap();
        let queue = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        queue
            .add_watch(spool.queue_dir(), AddWatchFlags::IN_ALL_EVENTS)
            .unwrap();
        let daemon = daemon(&file);
        let bench = Self {
            spool,
            queue,
            daemon,
            dir,
        };
        bench.until(|spool| leader::is_led(spool).unwrap());
        bench
    }

    /// The runner started and waited for, without any scheduler.
    fn direct(&self, count: u32) -> Duration {
        let started = Instant::now();
        for _ in 0..count {
            let mut runner = Command::new(self.dir.path().join("tsim-quick"));
            assert!(runner.stdout(Stdio::null()).status().unwrap().success());
        }
        started.elapsed() / count
    }

    fn submit(&self, name: &str) {
        let job = NewJob {
            run_id: RunId::new(name).unwrap(),
            username: UserName::new("bench").unwrap(),
            mode: Mode::Quick,
            params: Params {
                lab: LabName::new("none").unwrap(),
                source: [10, 0, 0, 1].into(),
                destination: [10, 0, 0, 2].into(),
                ports: "80".to_owned(),
                routers: None,
                options: tsim::sched::options::Options::default(),
                extra: serde_json::Map::new(),
            },
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
