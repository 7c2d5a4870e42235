//! Several users of one scheduler, each another uid without any right to its files.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Value, json};

use tsim::sched::job::Status;

use crate::{
    http::Client,
    support::{Daemon, Site, id},
};

/// Groups that every Debian has and that nothing here belongs to.
const USERS: &str = "users";
const ADMINS: &str = "games";

/// A scheduler for the members of [`USERS`], which the members of [`ADMINS`] look after.
fn serve(scheduler: &str) -> (Site, Daemon) {
    let site = Site::new(&format!(
        "socket_group = \"{USERS}\"\nadmin_group = \"{ADMINS}\"\nquick_jobs = 1\n{scheduler}"
    ));
    // They may pass through to the socket, which is beside the registry here, and to the program.
    let socket = site.path("tsimd.sock");
    site.append(&format!("socket = \"{}\"", socket.display()));
    for (path, mode) in [(site.path(""), 0o711), (site.path("tsim.toml"), 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::copy(env!("CARGO_BIN_EXE_tsim"), site.path("tsim")).unwrap();
    let daemon = site.daemon();
    (site, daemon)
}

struct User<'a> {
    site: &'a Site,
    uid: u32,
    group: &'static str,
    groups: Option<&'static str>,
}

impl<'a> User<'a> {
    fn new(site: &'a Site, uid: u32) -> Self {
        Self {
            site,
            uid,
            group: USERS,
            groups: None,
        }
    }

    fn name(&self) -> String {
        format!("uid {}", self.uid)
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program).args(args).output().unwrap()
    }

    /// Starts to watch a job, and waits until something was said of it.
    fn watching(&self, run_id: &str) -> Child {
        let config = self.site.path("tsim.toml");
        let mut command = self.command(self.site.path("tsim").to_str().unwrap());
        command.arg("--config").arg(config).args(["watch", run_id]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let output = child.stdout.as_mut().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert!(line.starts_with(run_id), "{line}");
        child
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &self.uid.to_string(), "--regid", self.group]);
        match self.groups {
            Some(groups) => command.args(["--groups", groups]),
            None => command.arg("--clear-groups"),
        };
        command.args(["--inh-caps=-all", "--bounding-set=-all", "--", program]);
        command.current_dir("/").env_remove("HOME");
        command
    }

    /// Runs tsim; returns its exit code, and what it said.
    fn tsim(&self, args: &[&str]) -> (i32, String) {
        let program = self.site.path("tsim");
        let config = self.site.path("tsim.toml");
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(args);
        let output = self.run(program.to_str().unwrap(), &all);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        (output.status.code().unwrap(), said)
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, said) = self.tsim(&[&["--json"], args].concat());
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{code} {e}: {said}"))
    }

    fn submit(&self, run_id: &str, lab: &str) -> (i32, String) {
        let question = ["-s", "10.0.0.1", "-d", "10.0.0.2", "-P", "80,81"];
        let job = ["submit", "quick", "--lab", lab, "--run-id", run_id];
        self.tsim(&[&job[..], &question].concat())
    }
}

#[track_caller]
fn says((code, said): (i32, String), want: i32, text: &str) {
    assert_eq!(code, want, "{said}");
    assert!(said.contains(text), "{text:?} is not in {said}");
}

#[test]
fn a_users_whole_day() {
    let (site, _daemon) = serve("");
    let ann = User::new(&site, 48213);
    says(ann.tsim(&["lab", "list"]), 0, "lab any is up");
    // The pretended lab has no namespaces, which its status says.
    says(
        ann.tsim(&["lab", "status", "any"]),
        4,
        "missing: network namespace",
    );
    says(
        ann.tsim(&["lab", "status", "none"]),
        2,
        "there is no lab none",
    );
    says(ann.submit("a1", "any"), 0, "a1 QUEUED, number 1");
    // The fake's verdicts are one YES and one NO.
    says(ann.tsim(&["watch", "a1"]), 1, "a1 DONE");
    says(ann.tsim(&["result", "a1"]), 1, "dropped by policy");
    assert_eq!(ann.json(&["result", "a1"])["run_id"], "a1");
    let listed = ann.json(&["queue"]);
    assert_eq!(listed["history"][0]["username"], ann.name().as_str());
    assert_eq!(
        listed["history"][0]["verdicts"],
        json!({"yes": 1, "no": 1, "unknown": 0})
    );
    let (source, other) = (["-s", "10.0.0.1", "-d", "10.0.0.2"], ["--user", "root"]);
    let job = ["submit", "quick", "--lab", "any", "-P", "80"];
    says(
        ann.tsim(&[&job[..], &source, &other].concat()),
        4,
        "username root is somebody else",
    );
    let port = ["-s", "10.0.0.1", "-d", "10.0.0.2", "-P", "0"];
    let job = ["submit", "quick", "--lab", "any"];
    says(ann.tsim(&[&job[..], &port].concat()), 2, "port 0");
    says(ann.submit("a1", "other"), 2, "run id a1 is taken");

    // A detailed job's report, and its evidence as JSON.
    let job = [
        "submit", "detailed", "--lab", "any", "--run-id", "a2", "-P", "80",
    ];
    says(ann.tsim(&[&job[..], &source].concat()), 0, "a2 QUEUED");
    says(ann.tsim(&["watch", "a2"]), 1, "a2 DONE");
    says(ann.tsim(&["result", "a2"]), 1, "evidence of a2");

    // What waits and what runs can be ended.
    says(ann.submit("runs", "gate"), 0, "runs QUEUED");
    site.until("it runs", |site| site.jobs().running.len() == 1);
    says(ann.submit("waits", "any"), 0, "waits QUEUED, number 1");
    says(ann.tsim(&["result", "waits"]), 4, "waits as number 1");
    says(ann.tsim(&["result", "runs"]), 4, "is running");
    says(
        ann.tsim(&["cancel", "waits"]),
        0,
        "cancelled before it started",
    );
    says(ann.tsim(&["cancel", "waits"]), 0, "is over already");
    says(ann.tsim(&["cancel", "runs"]), 0, "is being ended");
    let over = site.until_finished("runs");
    assert_eq!(over.status, Status::Cancelled);
    assert!(over.reason.unwrap().contains(&ann.name()));
    says(ann.tsim(&["watch", "runs"]), 4, "runs CANCELLED");
    says(ann.tsim(&["cancel", "nobody"]), 2, "there is no job nobody");
}

#[test]
fn what_a_user_gives_travels_as_content() {
    let (site, _daemon) = serve("");
    let ann = User::new(&site, 48213);
    let home = tempfile::tempdir().unwrap();
    let trace = home.path().join("trace.json");
    let text = json!({"lab": "args", "source": "10.0.0.1", "destination": "10.0.0.2",
        "hops": [], "end": {"kind": "no_route"}});
    fs::write(&trace, text.to_string()).unwrap();
    for path in [home.path(), &trace] {
        std::os::unix::fs::chown(path, Some(ann.uid), None).unwrap();
    }
    let job = [
        "submit", "quick", "--lab", "args", "-s", "10.0.0.1", "-d", "10.0.0.2", "-P", "80",
    ];
    let with = ["--run-id", "t", "--trace", trace.to_str().unwrap()];
    says(ann.tsim(&[&job[..], &with].concat()), 0, "t QUEUED");
    site.until_finished("t");
    let arguments = fs::read_to_string(site.path("args")).unwrap();
    let file = arguments.split("--trace=").nth(1).unwrap();
    // In the run directory, into which the runner is put.
    assert_eq!(file.split_whitespace().next(), Some("trace.json"));
    let given = site.spool.run_dir(&id("t")).join("trace.json");
    assert!(fs::read_to_string(given).unwrap().contains("no_route"));
    // A path that only the scheduler could read is refused here, where it cannot be read.
    let secret = site.spool.runs_dir().join(".token");
    let with = ["--trace", secret.to_str().unwrap()];
    says(
        ann.tsim(&[&job[..], &with].concat()),
        2,
        "Permission denied",
    );
}

#[test]
fn users_see_and_end_what_is_theirs_and_administrators_all() {
    let (site, _daemon) = serve("");
    let (ann, bob) = (User::new(&site, 48213), User::new(&site, 48214));
    let admin = User {
        group: ADMINS,
        groups: Some(USERS),
        ..User::new(&site, 48215)
    };
    says(ann.submit("done", "any"), 0, "QUEUED");
    site.until_finished("done");
    says(ann.submit("runs", "gate"), 0, "QUEUED");
    site.until("it runs", |site| site.jobs().running.len() == 1);
    says(ann.submit("waits", "any"), 0, "QUEUED");

    says(bob.tsim(&["result", "done"]), 4, "uid 48213's");
    says(bob.tsim(&["result", "done", "--json"]), 4, "uid 48213's");
    says(bob.tsim(&["watch", "runs"]), 4, "uid 48213's");
    says(bob.tsim(&["cancel", "runs"]), 4, "uid 48213's");
    says(bob.tsim(&["cancel", "waits"]), 4, "uid 48213's");
    says(bob.tsim(&["cancel", "done"]), 4, "uid 48213's");
    let listed = bob.json(&["queue"]);
    // Who asks what is for everybody to see, what comes of it is not.
    assert_eq!(listed["running"][0]["run_id"], "runs");
    assert_eq!(listed["queued"][0]["run_id"], "waits");
    assert_eq!(listed["history"][0]["verdicts"], Value::Null);
    assert_eq!(site.jobs().running.len(), 1);
    assert!(site.jobs().running[0].cancelled_by.is_none());
    says(bob.tsim(&["token"]), 4, "is for root");

    says(admin.tsim(&["result", "done"]), 1, "dropped by policy");
    says(
        admin.tsim(&["cancel", "waits"]),
        0,
        "cancelled before it started",
    );
    let root = site.tsim(&["cancel", "runs"]);
    assert!(root.status.success());
    let over = site.until_finished("runs");
    assert!(over.reason.unwrap().contains("root"));
    let token = admin.json(&["token"])["token"].as_str().unwrap().to_owned();
    let root = String::from_utf8(site.tsim(&["token"]).stdout).unwrap();
    assert_eq!(root.trim(), token);
}

#[test]
fn the_registry_is_closed_and_the_socket_is_for_its_group() {
    let (site, _daemon) = serve("");
    let ann = User::new(&site, 48213);
    for name in [
        "registry",
        "registry/hosts.json",
        "registry/queue/queue.json",
        "registry/runs",
    ] {
        let path = site.path(name);
        let read = ann.run("test", &["-r", path.to_str().unwrap()]);
        assert!(!read.status.success(), "{name} can be read");
    }
    let mode = fs::metadata(site.path("registry"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
    let (code, said) = ann.tsim(&["hosts"]);
    assert_ne!(code, 0, "{said}");
    let stranger = User {
        group: "nogroup",
        ..User::new(&site, 48216)
    };
    let (code, said) = stranger.tsim(&["queue"]);
    assert_ne!(code, 0);
    assert!(said.contains("its group alone may use"), "{said}");
}

#[test]
fn one_user_does_not_use_up_the_queue_or_the_connections() {
    let (site, daemon) = serve("max_user_queued = 2\nmax_user_connections = 3");
    let (ann, bob) = (User::new(&site, 48213), User::new(&site, 48214));
    says(ann.submit("runs", "gate"), 0, "QUEUED");
    site.until("it runs", |site| site.jobs().running.len() == 1);
    says(ann.submit("w1", "any"), 0, "QUEUED");
    says(ann.submit("w2", "any"), 0, "QUEUED");
    says(ann.submit("w3", "any"), 4, "scheduler.max_user_queued");
    says(bob.submit("b1", "any"), 0, "QUEUED");

    // Bob keeps as many connections as he may; ann, and root by TCP, are served.
    let mut watching: Vec<_> = (0..3).map(|_| bob.watching("b1")).collect();
    says(bob.tsim(&["queue"]), 4, "scheduler.max_user_connections");
    says(ann.tsim(&["queue"]), 0, "w1");
    let tcp = Client {
        address: daemon.address(),
        token: None,
    };
    assert_eq!(tcp.get("/healthz").status, 200);
    for watcher in &mut watching {
        watcher.kill().unwrap();
        watcher.wait().unwrap();
    }
    // Runners outlive their scheduler: one that waits at the gate would stay on the machine.
    let _gate = site.open_gate();
    for run in ["runs", "w1", "w2", "b1"] {
        site.until_finished(run);
    }
}

#[test]
fn with_a_scheduler_running_nobody_else_writes_the_queue() {
    let (site, _daemon) = serve("");
    let submit = [
        "submit", "quick", "--lab", "any", "-s", "10.0.0.1", "-d", "10.0.0.2", "-P", "80",
    ];
    let named = |run_id| [&submit[..], &["--run-id", run_id]].concat();
    assert!(site.tsim(&named("r1")).status.success());
    assert_eq!(site.until_finished("r1").username.as_str(), "root");
    let own = site.tsim(&[&named("r2")[..], &["--user", "carol"]].concat());
    assert!(own.status.success());
    assert_eq!(site.until_finished("r2").username.as_str(), "carol");
    // Where it cannot be asked, it is not passed over.
    fs::remove_file(site.path("tsimd.sock")).unwrap();
    for args in [named("r3"), vec!["cancel", "r1"]] {
        let refused = site.tsim(&args);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(4), "{said}");
        assert!(said.contains("does not listen at"), "{said}");
    }
    assert!(site.finished("r3").is_none() && site.jobs().queued.is_empty());
}

#[test]
fn by_tcp_the_token_does_what_the_socket_does_for_root() {
    let (site, daemon) = serve("");
    let ann = User::new(&site, 48213);
    says(ann.submit("a1", "any"), 0, "QUEUED");
    site.until_finished("a1");
    let server = format!("http://{}", daemon.address());
    let token = site.path("given");
    fs::write(&token, site.tsim(&["token"]).stdout).unwrap();
    let at = ["--server", &server, "--token-file", token.to_str().unwrap()];
    let asked = site.tsim(&[&["result", "a1"], &at[..]].concat());
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    // Without it the queue can be looked at, and nothing else.
    says(ann.tsim(&["queue", "--server", &server]), 0, "a1");
    says(
        ann.tsim(&["result", "a1", "--server", &server]),
        4,
        "tsim token",
    );
    says(
        ann.tsim(&["cancel", "a1", "--server", &server]),
        4,
        "a token is needed",
    );
    fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
    let wrong = site.tsim(&[&["queue"], &at[..]].concat());
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert!(said.contains("the token is wrong"), "{said}");

    let client = Client {
        address: daemon.address(),
        token: None,
    };
    for what in ["result", "stderr", "answer", "matrix", "watch"] {
        let answer = client.get(&format!("/api/v1/jobs/a1/{what}"));
        assert_eq!(answer.status, 401, "{what}");
    }
    assert_eq!(
        client.get("/api/v1/jobs/a1").json()["verdicts"],
        Value::Null
    );
    assert_eq!(client.get("/api/v1/token").status, 403);
    let who = client.get("/api/v1/whoami").json();
    assert_eq!(who["may_submit"], false);
}

#[test]
fn results_that_are_shared_are_everybodys_to_read_and_nobodys_to_end() {
    let (site, _daemon) = serve("share_results = true");
    let (ann, bob) = (User::new(&site, 48213), User::new(&site, 48214));
    says(ann.submit("a1", "any"), 0, "QUEUED");
    says(bob.tsim(&["watch", "a1"]), 1, "a1 DONE");
    says(bob.tsim(&["result", "a1"]), 1, "dropped by policy");
    says(bob.tsim(&["cancel", "a1"]), 4, "uid 48213's");
}
