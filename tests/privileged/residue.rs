//! What interrupted work and damaged files leave, and how labs are got rid of all the same.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
};
use tsim::{
    config::Config,
    lab::{self, LabError, UpOptions},
    model::WithCauses,
};

use crate::{
    lab::{Place, fixture},
    support::{await_stop, pid},
};

/// A question to the lab of small3.
const QUESTION: [&str; 6] = ["-s", "10.81.1.10", "-d", "10.81.3.10", "-P", "22"];

fn state_file(place: &Place) -> PathBuf {
    place
        .config
        .labs_dir
        .join(place.name().as_str())
        .join("lab.json")
}

#[test]
fn a_name_without_its_namespace_goes_with_the_lab() {
    let place = Place::new();
    let lab = place.up(&fixture("small3")).lab;
    let router = &lab.routers[0].name;
    // As `down` leaves it when it is killed between its two steps.
    let path = place.bed.dir.path(&place.bed.name(router.as_str()));
    umount2(&path, MntFlags::MNT_DETACH).unwrap();
    assert!(path.exists());
    let status = lab::status(&place.config, place.name()).unwrap();
    assert_eq!(status.missing, [place.bed.name(router.as_str())]);
    let removed = place.down();
    assert!(removed.foreign.is_empty(), "{removed:?}");
    place.assert_nothing_left();
}

#[test]
fn a_damaged_lab_hides_no_other_and_goes_by_force() {
    for damage in [
        // Cut off in the middle, another release's, nothing.
        |text: &str| text[..text.len() / 2].to_owned(),
        |text: &str| text.replacen("\"version\": 2", "\"version\": 99", 1),
        |_: &str| String::new(),
    ] {
        let place = Place::new();
        place.up(&fixture("small3"));
        let file = state_file(&place);
        let text = fs::read_to_string(&file).unwrap();
        let damaged = damage(&text);
        assert_ne!(damaged, text);
        fs::write(&file, damaged).unwrap();

        let listed = place.tsim(&["lab", "list"]);
        let said = String::from_utf8_lossy(&listed.stderr).into_owned();
        assert!(listed.status.success(), "{said}");
        let name = place.name().as_str();
        assert!(
            said.contains(&format!("lab {name} cannot be read")),
            "{said}"
        );
        assert!(!place.tsim(&["lab", "down", name]).status.success());
        let forced = place.tsim(&["lab", "down", name, "--force"]);
        let said = String::from_utf8_lossy(&forced.stderr).into_owned();
        assert!(forced.status.success(), "{said}");
        place.assert_nothing_left();
    }
}

#[test]
fn a_lab_of_another_registry_is_called_so() {
    let place = Place::new();
    place.up(&fixture("small3"));
    let other = Config {
        registry_dir: place.dir.path().join("other"),
        labs_dir: place.dir.path().join("other-labs"),
        ..Config::default()
    };
    let facts = fixture("small3");
    let refused = lab::up_from(&other, place.name(), &facts, UpOptions::default(), &());
    let refused = refused.unwrap_err();
    let text = WithCauses(&refused).to_string();
    assert!(text.contains("of another registry"), "{text}");
    assert!(!matches!(refused, LabError::Taken { .. }));
    place.down();
    place.assert_nothing_left();
}

/// A place whose users wait for longer than the second after which they say for whom; by enough that a busy
/// machine lets them say it.
fn of_little_patience() -> (Place, PathBuf) {
    let place = Place::new();
    let config = place.config_file();
    let mut file = OpenOptions::new().append(true).open(&config).unwrap();
    let runners = Path::new(env!("CARGO_BIN_EXE_tsim-quick"))
        .parent()
        .unwrap();
    let results = place.dir.path().join("results");
    let text = format!(
        "lock_timeout_seconds = 3\nresults_dir = {results:?}\n[scheduler]\n\
         listen = \"127.0.0.1:0\"\nrunner_dir = {runners:?}\n"
    );
    file.write_all(text.as_bytes()).unwrap();
    (place, config)
}

fn tsim(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tsim"));
    command.arg("--config").arg(config).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// A `lab up` that stops at its first step of this name.
fn stopped_up(config: &Path, name: &str, step: &str) -> Stopped {
    let facts = fixture("small3").display().to_string();
    stopped(config, step, &["lab", "up", name, "--facts", &facts])
}

/// A command that stops at its first step of this name.
fn stopped(config: &Path, step: &str, arguments: &[&str]) -> Stopped {
    let mut command = tsim(config, &["--fault", &format!("stop@{step}")]);
    command.args(arguments).stdout(Stdio::null());
    let stopped = Stopped(command.spawn().unwrap());
    await_stop(&stopped.0);
    stopped
}

/// Each of the commands gives up when it has waited as long as it was told, and has said before for
/// whom it waits: a process or a job.
fn assert_all_give_up(config: &Path, holder: &Stopped, commands: &[&[&str]]) {
    let started = commands.iter().map(|arguments| {
        let mut command = tsim(config, &["--lock-timeout", "3"]);
        command.args(*arguments).stdout(Stdio::null());
        command.stderr(Stdio::piped()).spawn().unwrap()
    });
    let started: Vec<Child> = started.collect();
    let pid = holder.0.id();
    let named = [
        format!("process {pid} ("),
        format!("(pid {pid})"),
        HOLDER.to_owned(),
    ];
    let names = |said: &str| named.iter().any(|name| said.contains(name));
    for (command, arguments) in started.into_iter().zip(commands) {
        let output = command.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {said}");
        let (waiting, error) = said.split_once("error: ").unwrap();
        assert!(waiting.contains("waiting"), "{arguments:?}: {said}");
        assert!(names(waiting) && names(error), "{arguments:?}: {said}");
    }
}

/// A command that has stopped; killed unless it is told to go on.
struct Stopped(Child);

impl Stopped {
    /// Lets it do what it was told.
    fn go_on(mut self) {
        kill(pid(&self.0), Signal::SIGCONT).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

/// The run id of a job that is stopped.
const HOLDER: &str = "has-stopped";

#[test]
fn a_stopped_lab_up_is_named_by_all_who_wait_for_it_and_they_give_up() {
    let place = Place::new();
    let config = place.config_file();
    let other = crate::support::Bed::new();
    let (name, other) = (place.name().as_str(), other.lab.as_str());
    let facts = fixture("small3").display().to_string();
    let up = stopped_up(&config, name, "lab.ruleset");
    let waiting: [&[&str]; 4] = [
        &["lab", "up", name, "--facts", &facts],
        &["lab", "up", name, "--replace", "--facts", &facts],
        &["lab", "down", name],
        &["lab", "down", name, "--force"],
    ];
    assert_all_give_up(&config, &up, &waiting);
    // Who only looks, and who makes another lab, do not wait.
    for arguments in [
        &["lab", "list"][..],
        &["lab", "up", other, "--facts", &facts],
        &["lab", "down", other],
    ] {
        let output = tsim(&config, arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("waiting"));
    }
    up.go_on();
    place.down();
    place.assert_nothing_left();
}

#[test]
fn whatever_a_stopped_command_holds_those_who_wait_name_it_and_give_up() {
    let place = Place::new();
    let config = place.config_file();
    place.up(&fixture("small3"));
    let name = place.name().as_str();
    let ask = [&["--lab", name], &QUESTION[..]].concat();
    let (quick, detailed) = (
        [&["quick"], &ask[..]].concat(),
        [&["detailed"], &ask[..]].concat(),
    );
    let host = ["--lab", name, "--router", "r1", "--name"];
    let add = |host_name, address| {
        [
            &["host", "add"],
            &host[..],
            &[host_name, "--address", address],
        ]
        .concat()
    };
    let (first, second) = (add("one", "10.81.1.77/24"), add("two", "10.81.1.78/24"));

    // A file of the registry.
    let holder = stopped(&config, "registry.rename", &first);
    let waiting: [&[&str]; 9] = [
        &second,
        &["host", "remove", "--lab", name, "one"],
        &["host", "list", "--lab", name],
        &["hosts"],
        &["reconcile"],
        &["lab", "down", name],
        &["lab", "reload", name, "r1"],
        &quick,
        &[
            "detailed",
            "--lab",
            name,
            "-s",
            "10.81.1.11",
            "-d",
            "10.81.3.10",
            "-P",
            "22",
        ],
    ];
    assert_all_give_up(&config, &holder, &waiting);
    holder.go_on();

    // The queue, while no scheduler runs.
    let submit = [&["submit", "quick"], &ask[..]].concat();
    let holder = stopped(&config, "registry.rename", &submit);
    assert_all_give_up(&config, &holder, &[&submit, &["cancel", "none"]]);
    holder.go_on();

    // Names of namespaces.
    let other = crate::support::Bed::new();
    let holder = stopped_up(&config, other.lab.as_str(), "netns.name");
    let third = crate::support::Bed::new();
    let facts = fixture("small3").display().to_string();
    let up = ["lab", "up", third.lab.as_str(), "--facts", &facts];
    assert_all_give_up(&config, &holder, &[&second, &up]);
    holder.go_on();
    let down = ["lab", "down", other.lab.as_str()];
    assert!(tsim(&config, &down).output().unwrap().status.success());

    // A router.
    let held = [&detailed[..], &["--run-id", HOLDER]].concat();
    let holder = stopped(&config, "detailed.attempt", &held);
    let waiting: [&[&str]; 3] = [&["exec", name, "r1", "--", "true"], &quick, &detailed];
    assert_all_give_up(&config, &holder, &waiting);
    let reload = ["lab", "reload", name, "r1"];
    assert_all_give_up(&config, &holder, &[&reload]);
    holder.go_on();
    let exec = ["exec", name, "r1", "--", "true"];
    let down = ["lab", "down", name];
    for arguments in [&exec[..], &down] {
        let output = tsim(&config, arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    place.assert_nothing_left();
    assert_log_balances(&place);
}

/// Every router that was locked by whomever was freed by them, by what the registry's log says.
fn assert_log_balances(place: &Place) {
    let log = place.config.registry_dir.join("transactions.jsonl");
    let log = fs::read_to_string(log).unwrap();
    let mut held = std::collections::BTreeMap::new();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let change = match line["operation"].as_str() {
            Some("router.lock") => 1,
            Some("router.unlock") => -1,
            _ => continue,
        };
        for router in line["details"]["routers"].as_array().unwrap() {
            let key = (line["run_id"].to_string(), router.to_string());
            *held.entry(key).or_insert(0) += change;
        }
    }
    assert!(held.len() > 3, "{log}");
    assert!(held.values().all(|held| *held == 0), "{held:?}");
}

/// Names of namespaces are made under one lock of the machine, so whoever stops there is in the way of
/// every job that makes a host; the scheduler is not in anybody's way.
#[test]
fn a_lab_up_stopped_while_it_makes_a_name_ends_jobs_and_never_hangs_the_scheduler() {
    let (place, config) = of_little_patience();
    place.up(&fixture("small3"));
    let other = crate::support::Bed::new();
    let up = stopped_up(&config, other.lab.as_str(), "netns.name");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_tsimd"));
    daemon.arg("--config").arg(&config).stderr(Stdio::piped());
    let mut daemon = daemon.stdin(Stdio::null()).spawn().unwrap();
    let mut log = BufReader::new(daemon.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("leading") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "tsimd ended");
    }
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    let submit = [
        &["submit", "quick", "--lab", place.name().as_str()],
        &QUESTION[..],
        &["--run-id", "job"],
    ]
    .concat();
    assert!(tsim(&config, &submit).output().unwrap().status.success());
    // Who asks a scheduler that has stopped is told so.
    kill(pid(&daemon), Signal::SIGSTOP).unwrap();
    let mut list = tsim(&config, &["lab", "list"]);
    let mut list = list.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(list.stderr.take().unwrap());
    line.clear();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for the scheduler at"), "{line}");
    kill(pid(&daemon), Signal::SIGCONT).unwrap();
    assert!(list.wait().unwrap().success());
    let watched = tsim(&config, &["watch", "job"]).output().unwrap();
    let said = String::from_utf8_lossy(&watched.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&watched.stderr);
    assert_eq!(watched.status.code(), Some(4), "{said}");
    assert!(said.contains(&format!("process {} (", up.0.id())), "{said}");
    kill(pid(&daemon), Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    up.go_on();
    let down = ["lab", "down", other.lab.as_str()];
    assert!(tsim(&config, &down).output().unwrap().status.success());
    place.down();
    place.assert_nothing_left();
}
