//! A scheduler of its own for each test: directory, configuration, fake runners, daemon.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::{Signal, kill},
        stat::Mode as FileMode,
    },
    unistd::{Pid, mkfifo},
};
use serde_json::Map;
use tempfile::TempDir;
use tsim::{
    config::{Config, Places},
    model::{LabName, RunId},
    sched::{
        job::{FinishedJob, Mode, NewJob, Params, UserName},
        options::JobOptions,
        queue::{Jobs, QueueLimits, Submitted},
        spool::Spool,
    },
};

/// Longer than anything takes on a busy machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(900);

pub struct Site {
    dir: TempDir,
    pub spool: Spool,
}

impl Site {
    /// A site whose `[scheduler]` table has these lines beside the necessary ones.
    pub fn new(scheduler: &str) -> Self {
        Self::with(|_| scheduler.to_owned())
    }

    /// The same, for lines that name files of the site.
    pub fn with(scheduler: impl FnOnce(&Path) -> String) -> Self {
        Self::of_fakes(tempfile::tempdir().unwrap(), scheduler)
    }

    /// A site in a directory of its own below `parent`.
    pub fn below(parent: &Path, scheduler: &str) -> Self {
        Self::of_fakes(tempfile::tempdir_in(parent).unwrap(), |_| {
            scheduler.to_owned()
        })
    }

    fn of_fakes(dir: TempDir, scheduler: impl FnOnce(&Path) -> String) -> Self {
        let script = include_str!("runner.sh")
            .replace("SITE", &dir.path().display().to_string())
            .replace("REPO", env!("CARGO_MANIFEST_DIR"));
        for name in ["tsim-quick", "tsim-detailed", "tsim"] {
            let program = dir.path().join(name);
            fs::write(&program, &script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for lab in ["any", "gate", "other", "args"] {
            pretend_lab(&dir.path().join("registry/labs"), lab);
        }
        let scheduler = scheduler(dir.path());
        Self::at(dir, None, &scheduler)
    }

    /// A site of fake runners with one DSCP value only.
    pub fn with_one_dscp() -> Self {
        let mut site = Self::new("");
        site.prepend("dscp_first = 40\ndscp_last = 40");
        let file = site.path("tsim.toml");
        site.spool = Spool::open(&Config::load(Some(&file), &Places::system()).unwrap()).unwrap();
        site
    }

    /// Puts lines of the configuration before its `[scheduler]` table.
    pub fn prepend(&self, lines: &str) {
        let file = self.path("tsim.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{lines}\n{text}")).unwrap();
    }

    /// Puts a line at the end of the configuration, in its `[scheduler]` table.
    pub fn append(&self, line: &str) {
        let file = self.path("tsim.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{text}\n{line}\n")).unwrap();
    }

    /// A site with other runners than the fake ones.
    pub fn over(runners: &Path, scheduler: &str) -> Self {
        Self::at(tempfile::tempdir().unwrap(), Some(runners), scheduler)
    }

    fn at(dir: TempDir, runners: Option<&Path>, scheduler: &str) -> Self {
        let root = dir.path();
        let runners = runners.unwrap_or(root);
        let text = format!(
            "registry_dir = \"{}/registry\"\n[scheduler]\nrunner_dir = \"{}\"\n\
             listen = \"127.0.0.1:0\"\n{scheduler}\n",
            root.display(),
            runners.display()
        );
        fs::write(root.join("tsim.toml"), text).unwrap();
        fs::write(root.join("log"), "").unwrap();
        mkfifo(&root.join("gate"), FileMode::S_IRWXU).unwrap();
        let config = Config::load(Some(&root.join("tsim.toml")), &Places::system()).unwrap();
        let spool = Spool::open(&config).unwrap();
        Self { dir, spool }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts `tsimd` without waiting for anything.
    pub fn spawn(&self) -> Daemon {
        self.spawn_with(Command::new(env!("CARGO_BIN_EXE_tsimd")))
    }

    fn spawn_with(&self, command: Command) -> Daemon {
        Self::start(command, &self.path("tsim.toml"))
    }

    /// Starts `command` with this configuration and waits until it leads.
    pub fn daemon_with(&self, command: Command, config: &Path) -> Daemon {
        Self::start(command, config).until_leading()
    }

    fn start(mut command: Command, config: &Path) -> Daemon {
        command.arg("--config").arg(config);
        Daemon::new(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Starts `tsimd` and waits until it leads.
    pub fn daemon(&self) -> Daemon {
        self.spawn().until_leading()
    }

    /// The same with the capabilities only that root's systemd unit leaves it.
    pub fn confined_daemon(&self) -> Daemon {
        let tsimd = env!("CARGO_BIN_EXE_tsimd");
        let unit = Command::new(tsimd)
            .arg("--print-root-drop-in")
            .output()
            .unwrap();
        let unit = String::from_utf8(unit.stdout).unwrap();
        let kept = unit
            .lines()
            .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="))
            // An empty one takes back what the unit says.
            .find(|names| !names.is_empty());
        let mut bounds = "-all".to_owned();
        for name in kept.unwrap().split(' ') {
            let name = name.strip_prefix("CAP_").unwrap().to_lowercase();
            bounds += &format!(",+{name}");
        }
        let mut command = Command::new("setpriv");
        command.args([
            "--no-new-privs",
            "--inh-caps=-all",
            "--bounding-set",
            &bounds,
            tsimd,
        ]);
        self.spawn_with(command).until_leading()
    }

    pub fn tsim(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tsim"))
            .arg("--config")
            .arg(self.path("tsim.toml"))
            .args(args)
            .output()
            .unwrap()
    }

    pub fn submit(&self, name: &str, mode: Mode, lab: &str) -> Submitted {
        let job = NewJob {
            run_id: id(name),
            username: UserName::new("ann").unwrap(),
            mode,
            params: Params {
                lab: LabName::new(lab).unwrap(),
                before: None,
                source: Some(IpAddr::from([10, 0, 0, 1]).into()),
                destination: Some(IpAddr::from([10, 0, 0, 2]).into()),
                networks: false,
                ports: Some("80,81".to_owned()),
                policy: None,
                routers: None,
                options: JobOptions::default(),
                extra: Map::new(),
            },
            policy: None,
        };
        let lock = self.spool.lock().unwrap();
        let most = QueueLimits {
            total: 100_000,
            user: 100_000,
            user_time: None,
        };
        lock.submit(job, most, Timestamp::now()).unwrap()
    }

    pub fn quick(&self, name: &str, lab: &str) {
        self.submit(name, Mode::Quick, lab);
    }

    pub fn cancel(&self, name: &str) {
        let lock = self.spool.lock().unwrap();
        let user = UserName::new("bob").unwrap();
        lock.cancel(&id(name), &user, Timestamp::now()).unwrap();
    }

    pub fn finished(&self, name: &str) -> Option<FinishedJob> {
        self.spool.finished(&id(name)).unwrap()
    }

    pub fn jobs(&self) -> Jobs {
        self.spool.jobs().unwrap()
    }

    /// Sleeps until `done`, looking whenever a file of the site changed.
    pub fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MODIFY;
        for dir in [
            self.spool.queue_dir(),
            self.spool.runs_dir(),
            self.dir.path(),
        ] {
            inotify.add_watch(dir, flags).unwrap();
        }
        // There once somebody has used the registry.
        let _ = inotify.add_watch(
            &self.path("registry/locks"),
            AddWatchFlags::IN_CLOSE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE,
        );
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "{what} never came; {:?}\n{}",
                self.jobs(),
                fs::read_to_string(self.path("log")).unwrap()
            );
            let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
            let _ = inotify.read_events();
        }
    }

    pub fn until_finished(&self, name: &str) -> FinishedJob {
        self.until(name, |site| {
            let running = site.jobs().running;
            site.finished(name).is_some() && running.iter().all(|job| job.run_id != id(name))
        });
        self.finished(name).unwrap()
    }

    /// Which runs started and ended, in order.
    pub fn log(&self) -> Vec<Logged> {
        let text = fs::read_to_string(self.path("log")).unwrap();
        text.lines().filter_map(Logged::parse).collect()
    }

    pub fn started(&self) -> Vec<Logged> {
        let log = self.log();
        log.into_iter()
            .filter(|line| line.what == "start")
            .collect()
    }

    /// How often each run was started.
    pub fn starts(&self) -> BTreeMap<String, usize> {
        let mut starts = BTreeMap::new();
        for line in self.started() {
            *starts.entry(line.id).or_default() += 1;
        }
        starts
    }

    /// Lets every runner that waits at the gate go on, and those that come.
    pub fn open_gate(&self) -> OpenGate {
        OpenGate::new(&self.path("gate"))
    }
}

/// Writes the file of a lab that has no routers: who submits a job must name a lab that is there.
fn pretend_lab(labs: &Path, name: &str) {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let state = serde_json::json!({"version": 2, "lab": name, "phase": "up",
        "created_at": "2026-01-01T00:00:00Z", "boot_id": boot_id.trim(), "facts": "/nowhere",
        "legacy": false, "segments_netns": null, "routers": [], "segments": [], "warnings": []});
    let mut dirs = fs::DirBuilder::new();
    dirs.recursive(true)
        .mode(0o700)
        .create(labs.join(name))
        .unwrap();
    fs::write(labs.join(name).join("lab.json"), state.to_string()).unwrap();
}

/// A gate that stays open: both ends are held, so opening never blocks, and there is always a line.
pub struct OpenGate(#[allow(dead_code)] fs::File);

impl OpenGate {
    fn new(path: &Path) -> Self {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        // Each runner takes one line; a pipe holds many.
        std::io::Write::write_all(&mut file, "\n".repeat(2000).as_bytes()).unwrap();
        Self(file)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub what: String,
    pub id: String,
    pub pid: i32,
    pub dscp: String,
}

impl Logged {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            what: words.next()?.to_owned(),
            id: words.next()?.to_owned(),
            pid: words.next().and_then(|pid| pid.parse().ok()).unwrap_or(0),
            dscp: words.next().unwrap_or_default().to_owned(),
        })
    }
}

pub fn id(name: &str) -> RunId {
    RunId::new(name).unwrap()
}

pub struct Daemon {
    child: Child,
    log: BufReader<Box<dyn std::io::Read + Send>>,
    address: Option<SocketAddr>,
}

impl Daemon {
    fn new(mut child: Child) -> Self {
        let stderr: Box<dyn std::io::Read + Send> = Box::new(child.stderr.take().unwrap());
        let log = BufReader::new(stderr);
        Self {
            child,
            log,
            address: None,
        }
    }

    fn until_leading(mut self) -> Self {
        let line = self.until_log("serving the viewer");
        let address = line.split("address=").nth(1).unwrap();
        self.address = address.trim().parse().ok();
        self.until_log("leading");
        self
    }

    /// Where its viewer is.
    pub fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    /// Throws its log away from here on, so that it never waits for a reader.
    pub fn drain(&mut self) {
        let empty: Box<dyn std::io::Read + Send> = Box::new(std::io::empty());
        let mut log = std::mem::replace(&mut self.log, BufReader::new(empty));
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    }

    /// Waits for it to fail, and returns what it said.
    pub fn failure(mut self) -> String {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.log, &mut text).unwrap();
        assert!(!self.child.wait().unwrap().success(), "{text}");
        text
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Reads the log up to a line with `text`, and returns that line.
    pub fn until_log(&mut self, text: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            let count = self.log.read_line(&mut line).unwrap();
            assert!(count > 0, "tsimd ended without saying {text:?}:\n{seen}");
            if line.contains(text) {
                return line;
            }
            seen.push_str(&line);
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end and says whether that was a success.
    pub fn wait(mut self) -> bool {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.log, &mut rest).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {rest}");
        true
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already after kill() and wait().
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
