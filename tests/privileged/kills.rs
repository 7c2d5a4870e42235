//! A campaign of kills: jobs of all back ends, `lab up` and `lab down`, the daemon and its runners
//! are killed at moments that a seed chooses. After each the next job answers rightly, and nothing
//! is left.
//!
//! `TSIM_KILLS` is how many (100), `TSIM_KILLS_SEED` where they begin (1); the stage `kills` of
//! `tests/run.sh` tries a thousand.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write as _},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tsim::registry::RegistryManager;

use crate::{
    faults::Chance,
    leaks::Remains,
    quick::TestLab,
    support::{Bed, mounts},
};

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Quick(&'static str),
    Detailed,
    Up,
    Down,
    Daemon,
    Runner,
}

/// As often as they are in it.
const VICTIMS: [Victim; 14] = [
    Victim::Quick("nft"),
    Victim::Quick("nft"),
    Victim::Quick("iptables-nft"),
    Victim::Quick("iptables-nft"),
    Victim::Quick("iptables-nft"),
    Victim::Quick("iptables-legacy"),
    Victim::Quick("iptables-legacy"),
    Victim::Detailed,
    Victim::Detailed,
    Victim::Up,
    Victim::Up,
    Victim::Down,
    Victim::Daemon,
    Victim::Runner,
];

/// `NUD_PERMANENT`, linux/neighbour.h.
const PERMANENT: u16 = 0x80;

/// How often what is left is looked at: the kernel closes what a dead process had in its own time.
const LOOKS: usize = 50;

struct Campaign {
    lab: TestLab,
    /// Under whose name a second lab comes and goes.
    other: Bed,
    config: PathBuf,
    before: Remains,
    chance: Chance,
    number: u64,
    /// How long each takes that is not killed.
    spans: BTreeMap<Victim, Duration>,
}

impl Campaign {
    fn new(seed: u64) -> Self {
        let lab = TestLab::up("small3");
        let config = lab.config_file();
        let dir = config.parent().unwrap().to_owned();
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&config)
            .unwrap();
        let runners = Path::new(env!("CARGO_BIN_EXE_tsim-quick")).parent();
        write!(
            file,
            "results_dir = {:?}\n[scheduler]\nlisten = \"127.0.0.1:0\"\nrunner_dir = {:?}\n",
            dir.join("results"),
            runners.unwrap()
        )
        .unwrap();
        RegistryManager::open(&lab.config).unwrap();
        let mut campaign = Self {
            before: remains(&lab),
            other: Bed::new(),
            lab,
            config,
            chance: Chance(seed),
            number: 0,
            spans: BTreeMap::new(),
        };
        // The first ones make the registry's files, and tables of iptables-legacy, which stay.
        for victim in VICTIMS {
            let started = Instant::now();
            let killed = campaign.one(victim, Duration::MAX);
            assert!(!killed, "{victim:?}");
            campaign.spans.insert(victim, started.elapsed());
        }
        campaign.before = remains(&campaign.lab);
        campaign
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        command.arg("--config").arg(&self.config);
        command
    }

    /// A question whose answer is YES for one service and NO for the other.
    fn question(&self, command: &mut Command, run_id: &str) {
        command.args(["--lab", self.lab.bed.lab.as_str(), "--run-id", run_id]);
        command.args(["-s", "10.81.1.10", "-d", "10.81.3.10", "-P", "22,23"]);
        command.args(["--routers", "r1,r2"]);
    }

    fn tsim(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(env!("CARGO_BIN_EXE_tsim"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.args(arguments).output().unwrap()
    }

    /// Kills one after `delay`; whether it was killed before it ended. What concerns nobody but
    /// the killed one's kind is put right here, as whoever did it would.
    fn one(&mut self, victim: Victim, delay: Duration) -> bool {
        self.number += 1;
        let run_id = format!("kill{}", self.number);
        let other = self.other.lab.to_string();
        let facts = ["--facts", "netns-fixtures/small3"];
        match victim {
            Victim::Quick(backend) => {
                let mut job = self.command(env!("CARGO_BIN_EXE_tsim-quick"));
                self.question(&mut job, &run_id);
                let explain = ["always", "never"][self.chance.below(2) as usize];
                job.args(["--backend", backend, "--explain", explain]);
                killed_after(job.spawn().unwrap(), delay)
            }
            Victim::Detailed => {
                let mut job = self.command(env!("CARGO_BIN_EXE_tsim-detailed"));
                self.question(&mut job, &run_id);
                killed_after(job.spawn().unwrap(), delay)
            }
            Victim::Up => {
                let mut up = self.command(env!("CARGO_BIN_EXE_tsim"));
                up.args(["lab", "up", &other]).args(facts);
                let killed = killed_after(up.spawn().unwrap(), delay);
                self.tsim(&["lab", "down", &other, "--force"]);
                killed
            }
            Victim::Down => {
                let up = self.tsim(&[&["lab", "up", &other][..], &facts].concat());
                assert!(up.status.success(), "{up:?}");
                let mut down = self.command(env!("CARGO_BIN_EXE_tsim"));
                down.args(["lab", "down", &other]);
                let killed = killed_after(down.spawn().unwrap(), delay);
                self.tsim(&["lab", "down", &other, "--force"]);
                killed
            }
            Victim::Daemon | Victim::Runner => self.scheduled(victim, &run_id, delay),
        }
    }

    /// A job through a scheduler, of which one is killed; the next scheduler brings it to its end.
    fn scheduled(&mut self, victim: Victim, run_id: &str, delay: Duration) -> bool {
        let mut daemon = self.daemon();
        let mut submit = self.command(env!("CARGO_BIN_EXE_tsim"));
        submit.args([
            "submit",
            ["quick", "detailed"][self.chance.below(2) as usize],
        ]);
        self.question(&mut submit, run_id);
        assert!(submit.status().unwrap().success());
        let killed = match victim {
            Victim::Daemon if delay < Duration::MAX => killed_after(daemon, delay),
            _ => {
                let killed = delay < Duration::MAX && killed_runner(&daemon, delay);
                self.tsim(&["watch", run_id]);
                end(daemon);
                killed
            }
        };
        daemon = self.daemon();
        let watched = self.tsim(&["watch", run_id]);
        // A job whose runner was killed has failed, and says so.
        let code = watched.status.code();
        let right = match victim {
            Victim::Runner if killed => matches!(code, Some(1 | 4)),
            _ => code == Some(1),
        };
        assert!(right, "{run_id}: {watched:?}");
        end(daemon);
        killed
    }

    fn daemon(&self) -> Child {
        let mut command = self.command(env!("CARGO_BIN_EXE_tsimd"));
        let mut daemon = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(daemon.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("leading") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "tsimd ended");
        }
        // It never waits for a reader.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        daemon
    }

    /// The next job is right, and after it nothing is left.
    fn assert_clean(&self, when: &str) {
        let mut job = self.command(env!("CARGO_BIN_EXE_tsim-quick"));
        self.question(&mut job, "next");
        job.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = job.args(["--json", "--backend", "nft"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{when}: {output:?}");
        let mut left = String::new();
        for _ in 0..LOOKS {
            left = self.left();
            if left.is_empty() {
                return;
            }
        }
        panic!("{when}: {left}");
    }

    /// What there is that was not there before, in words.
    fn left(&self) -> String {
        let registry = RegistryManager::open(&self.lab.config).unwrap();
        let mut left = Vec::new();
        let now = remains(&self.lab);
        if now != self.before {
            left.push(format!("{now:?}\nbefore: {:?}", self.before));
        }
        let other = self.other.lab.as_str();
        let names = self.other.left();
        left.extend((!names.is_empty()).then(|| format!("{names:?}")));
        let mounted = mounts(other);
        left.extend((!mounted.is_empty()).then(|| format!("{mounted:?}")));
        let labs = std::fs::read_dir(&self.lab.config.labs_dir).unwrap();
        let names = labs.map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names
            .filter(|name| name.to_string_lossy().contains(other))
            .collect();
        left.extend((!names.is_empty()).then(|| format!("{names:?}")));
        let notes = registry.tap_notes().unwrap();
        left.extend((!notes.is_empty()).then(|| format!("{notes:?}")));
        let held = registry.locks_held().unwrap();
        left.extend((!held.is_empty()).then(|| format!("{held:?}")));
        let values = registry.dscp_allocations().unwrap();
        left.extend((!values.is_empty()).then(|| format!("{values:?}")));
        let leases = registry.source_host_leases().unwrap();
        left.extend((!leases.is_empty()).then(|| format!("{leases:?}")));
        let hosts = registry.hosts().unwrap();
        left.extend((!hosts.is_empty()).then(|| format!("{hosts:?}")));
        let neighbours = registry.neighbor_leases().unwrap();
        left.extend((!neighbours.is_empty()).then(|| format!("{neighbours:?}")));
        left.join("\n")
    }
}

/// A file that a write was killed at stays under its temporary name until the next write of it, is
/// never read, and one at most for each file. Entries that the kernel has learned by itself from packets
/// of a detailed job it forgets by itself, too; what jobs set is permanent.
fn remains(lab: &TestLab) -> Remains {
    let mut remains = Remains::of(lab);
    for entries in &mut remains.neighbours {
        entries.retain(|entry| entry.state == PERMANENT);
    }
    remains
        .registry_files
        .retain(|name| !name.ends_with(".tmp"));
    remains
}

/// Kills a process after `delay`, unless it ends before; whether it was killed.
fn killed_after(mut child: Child, delay: Duration) -> bool {
    let pid = Pid::from_raw(child.id().cast_signed());
    if delay < Duration::MAX {
        thread::sleep(delay);
        // Not waited for yet, so the pid is its own still.
        kill(pid, Signal::SIGKILL).unwrap();
    }
    child.wait().unwrap().signal() == Some(9)
}

/// Kills what a daemon has started after `delay`, if it still runs then.
fn killed_runner(daemon: &Child, delay: Duration) -> bool {
    thread::sleep(delay);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap();
    let children = tasks.flatten().filter_map(|task| {
        let children = std::fs::read_to_string(task.path().join("children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    });
    let runner: Option<i32> = children.into_iter().next();
    runner.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
}

fn end(mut daemon: Child) {
    kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn whatever_is_killed_nothing_is_left_to_the_next() {
    let (kills, seed) = (number("TSIM_KILLS", 100), number("TSIM_KILLS_SEED", 1));
    let mut campaign = Campaign::new(seed);
    let mut killed: BTreeMap<Victim, u64> = BTreeMap::new();
    while killed.values().sum::<u64>() < kills {
        let which = campaign.chance.below(VICTIMS.len() as u64) as usize;
        let victim = VICTIMS[which];
        let share = campaign.chance.below(1000) as f64 / 1000.0;
        // Of a scheduler's round the job is the lesser part, and begins it; a lab that is taken down was
        // made in the greater part of its round.
        let part = match victim {
            Victim::Daemon | Victim::Runner => 0.5,
            Victim::Down => 0.3,
            _ => 1.0,
        };
        let delay = campaign.spans[&victim].mul_f64(share * part);
        let when = format!(
            "seed {seed}, number {}: {victim:?} after {delay:?}",
            campaign.number
        );
        if campaign.one(victim, delay) {
            *killed.entry(victim).or_default() += 1;
            let all: u64 = killed.values().sum();
            if all.is_multiple_of(100) {
                println!("{all} kills in {} rounds", campaign.number);
            }
        }
        campaign.assert_clean(&when);
    }
    let rounds = campaign.number;
    println!("{kills} kills in {rounds} rounds from seed {seed}, nothing left: {killed:?}");
}
