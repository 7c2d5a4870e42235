//! An ordinary user of a test, with a home, and what is left of them in the end.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{self, Command, Output},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::{
    io::Errno,
    process::{PidfdFlags, pidfd_open},
};
use serde_json::Value;
use std::os::fd::AsFd;
use tsim::{model::NetnsName, netns::NetnsDir};

/// From, to: over three routers of corp10.
pub(crate) const ASK: &[&str] = &["-s", "10.3.10.50", "-d", "10.2.1.60"];

/// Somebody without rights, whom nobody else is.
pub(crate) struct User {
    pub(crate) uid: u32,
    home: tempfile::TempDir,
}

impl User {
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests become other users, which takes root's rights"
        );
        root_was_here();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // The greatest process id is 2^22.
        let uid = 1_000_000 + process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
        let home = tempfile::tempdir().unwrap();
        let user = Self { uid, home };
        for dir in ["", "run", "state", "config"] {
            let dir = user.home().join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
            chown(&dir, Some(uid), Some(uid)).unwrap();
        }
        user
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Where tsim keeps what dies with the kernel.
    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.home().join("run/tsim")
    }

    /// `program` as this user, with what a login sets.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().current_dir("/");
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.env("HOME", self.home());
        for (variable, dir) in [
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_STATE_HOME", "state"),
            ("XDG_CONFIG_HOME", "config"),
        ] {
            command.env(variable, self.home().join(dir));
        }
        command.uid(self.uid).gid(self.uid);
        command
    }

    /// Runs a program of ours and says how it went.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = self.command(stage().join(program));
        command.args(args).output().unwrap()
    }

    /// Runs `tsim`, which succeeds.
    pub(crate) fn tsim(&self, args: &[&str]) -> String {
        let output = self.run("tsim", args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes the lab `name` of the facts of corp10.
    pub(crate) fn lab_up(&self, name: &str) {
        let facts = stage().join("corp10");
        self.tsim(&["lab", "up", name, "--facts", facts.to_str().unwrap()]);
    }

    /// What a job answers in JSON, without what is another each time.
    pub(crate) fn ask(&self, program: &str, lab: &str, services: &str) -> Value {
        let args = [&["--lab", lab, "--json", "-P", services], ASK].concat();
        verdicts(&self.run(program, &args))
    }

    /// The process that holds this user's namespaces, if there is one.
    pub(crate) fn keeper(&self) -> Option<u32> {
        let state: Value = serde_json::from_str(&self.tsim(&["keeper", "--json"])).unwrap();
        let pid = state["keeper"]["pid"].as_u64()?;
        Some(u32::try_from(pid).unwrap())
    }

    /// The processes of this user that still run.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| self.runs(*pid)).collect()
    }

    /// Whether process `pid` is this user's and has not ended. Where the first process of the
    /// machine does not wait for orphans, they stay as zombies, which do nothing.
    fn runs(&self, pid: u32) -> bool {
        let owner = fs::metadata(format!("/proc/{pid}")).map(|meta| meta.uid());
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let is_mine = status.lines().any(|line| {
            let ids = line.strip_prefix("Uid:");
            ids.is_some_and(|ids| ids.split_whitespace().next() == Some(&self.uid.to_string()))
        });
        owner.is_ok() && is_mine && !status.contains("\nState:\tZ")
    }

    /// Waits until no process of this user is left.
    pub(crate) fn await_end(&self) {
        while let Some(pid) = self.processes().first() {
            assert!(await_exit(*pid), "process {pid} of the user stays");
        }
    }

    /// Asserts that nothing of this user is left but files of their own.
    pub(crate) fn assert_gone(&self) {
        self.await_end();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let home = self.home().to_str().unwrap();
        assert!(!table.contains(home), "{table}");
        let labs = self.runtime_dir().join("labs");
        let labs: Vec<_> = fs::read_dir(labs).unwrap().flatten().collect();
        assert!(labs.is_empty(), "{labs:?}");
        let state = self.runtime_dir().join("keeper.json");
        assert!(!state.exists(), "the keeper's file stays");
    }
}

/// A lab of root's of the facts of corp10, beside those of users, with state of its own. It is taken down when
/// this goes.
pub(crate) struct RootLab {
    pub(crate) name: String,
    dir: tempfile::TempDir,
}

impl RootLab {
    pub(crate) fn up() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let place = |name| dir.path().join(name);
        let config = format!(
            "registry_dir = {:?}\nlabs_dir = {:?}\nresults_dir = {:?}\n",
            place("registry"),
            place("labs"),
            place("results")
        );
        fs::write(place("tsim.toml"), config).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("root{}x{number}", process::id());
        let lab = Self { name, dir };
        let facts = stage().join("corp10");
        let args = ["lab", "up", &lab.name, "--facts", facts.to_str().unwrap()];
        let up = lab.run("tsim", &args);
        assert!(up.status.success(), "{up:?}");
        lab
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new(stage().join(program));
        command.arg("--config").arg(self.dir().join("tsim.toml"));
        command.args(args).output().unwrap()
    }

    /// As [`User::ask`].
    pub(crate) fn ask(&self, program: &str, services: &str) -> Value {
        let args = [&["--lab", &self.name, "--json", "-P", services], ASK].concat();
        verdicts(&self.run(program, &args))
    }
}

impl Drop for RootLab {
    fn drop(&mut self) {
        let down = self.run("tsim", &["lab", "down", &self.name]);
        assert!(down.status.success() || thread::panicking(), "{down:?}");
    }
}

/// Root has used tsim on this machine before: what that leaves in `/run` is root's.
fn root_was_here() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let name = NetnsName::new(format!("root{}.before", process::id())).unwrap();
        let dir = NetnsDir::default();
        dir.create(&name).unwrap();
        dir.delete(&name).unwrap();
    });
}

impl Drop for User {
    fn drop(&mut self) {
        for pid in self.processes() {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Waits for the end of a process, at most 30 seconds. Says whether it came.
pub(crate) fn await_exit(pid: u32) -> bool {
    let raw = i32::try_from(pid).unwrap();
    match pidfd_open(
        rustix::process::Pid::from_raw(raw).unwrap(),
        PidfdFlags::empty(),
    ) {
        Ok(pidfd) => {
            let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            poll(&mut ended, PollTimeout::from(30_000_u16)).unwrap() == 1
        }
        Err(Errno::SRCH) => true,
        Err(errno) => panic!("pidfd_open {pid}: {errno}"),
    }
}

/// The verdicts and reasons of a job, without its own name and times.
pub(crate) fn verdicts(output: &Output) -> Value {
    assert!(
        matches!(output.status.code(), Some(0 | 1 | 3)),
        "{output:?}"
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let judged = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|s| {
            format!(
                "{}/{} {} {}",
                s["port"], s["protocol"], s["result"], s["reason"]
            )
        })
        .collect()
    };
    let routers = report["routers"].as_array().unwrap().iter();
    let routers: Vec<_> = routers
        .map(|router| (router["name"].clone(), judged(&router["services"])))
        .collect();
    serde_json::json!([judged(&report["end_to_end"]), routers])
}

/// The programs and the facts where every user can read them, which a checkout may not be.
pub(crate) fn stage() -> &'static Path {
    static STAGE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = STAGE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        for program in [
            env!("CARGO_BIN_EXE_tsim"),
            env!("CARGO_BIN_EXE_tsimd"),
            env!("CARGO_BIN_EXE_tsim-quick"),
            env!("CARGO_BIN_EXE_tsim-detailed"),
        ] {
            let name = Path::new(program).file_name().unwrap();
            fs::copy(program, dir.path().join(name)).unwrap();
        }
        let facts = dir.path().join("corp10");
        fs::create_dir(&facts).unwrap();
        let from = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-fixtures/corp10");
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), facts.join(file.file_name())).unwrap();
        }
        for path in [dir.path(), &facts] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    });
    dir.path()
}
