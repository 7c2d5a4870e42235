//! What interrupted work and damaged files leave, and how labs are got rid of all the same.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
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

/// A place whose users wait for somewhat more than the second after which they say for whom.
fn of_little_patience() -> (Place, PathBuf) {
    let place = Place::new();
    let config = place.config_file();
    let mut file = OpenOptions::new().append(true).open(&config).unwrap();
    let runners = Path::new(env!("CARGO_BIN_EXE_tsim-quick"))
        .parent()
        .unwrap();
    let results = place.dir.path().join("results");
    let text = format!(
        "lock_timeout_seconds = 1.2\nresults_dir = {results:?}\n[scheduler]\n\
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
fn stopped_up(config: &Path, name: &str, step: &str) -> Child {
    let stop = format!("stop@{step}");
    let up = ["--fault", &stop, "lab", "up", name, "--facts"];
    let mut up = tsim(config, &up);
    let up = up
        .arg(fixture("small3"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    await_stop(&up);
    up
}

/// It gave up, and has said before for whom it waits.
fn assert_gave_up(output: &Output, holder: &Child, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{what}: {said}");
    let holder = format!("process {} (", holder.id());
    assert!(
        said.contains(&format!("waiting for {holder}")),
        "{what}: {said}"
    );
    let last = said.rsplit("error: ").next().unwrap();
    assert!(last.contains(&holder), "{what}: {said}");
}

#[test]
fn a_stopped_lab_up_is_named_by_all_who_wait_for_it_and_they_give_up() {
    let (place, config) = of_little_patience();
    let other = crate::support::Bed::new();
    let (name, other) = (place.name().as_str(), other.lab.as_str());
    let facts = fixture("small3").display().to_string();
    let mut up = stopped_up(&config, name, "lab.ruleset");
    for arguments in [
        &["lab", "up", name, "--facts", &facts][..],
        &["lab", "down", name],
        &["lab", "down", name, "--force"],
    ] {
        let output = tsim(&config, arguments).output().unwrap();
        assert_gave_up(&output, &up, &format!("{arguments:?}"));
    }
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
    kill(pid(&up), Signal::SIGCONT).unwrap();
    assert!(up.wait().unwrap().success());
    place.down();
    place.assert_nothing_left();
}

/// Names of namespaces are made under one lock of the machine, so whoever stops there is in the way of
/// every job that makes a host; the scheduler is not in anybody's way.
#[test]
fn a_lab_up_stopped_while_it_makes_a_name_ends_jobs_and_never_hangs_the_scheduler() {
    let (place, config) = of_little_patience();
    place.up(&fixture("small3"));
    let other = crate::support::Bed::new();
    let mut up = stopped_up(&config, other.lab.as_str(), "netns.name");
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
    let question = [
        "-s",
        "10.81.1.10",
        "-d",
        "10.81.3.10",
        "-P",
        "22",
        "--run-id",
        "job",
    ];
    let submit = [
        &["submit", "quick", "--lab", place.name().as_str()][..],
        &question,
    ]
    .concat();
    assert!(tsim(&config, &submit).output().unwrap().status.success());
    assert!(
        tsim(&config, &["lab", "list"])
            .output()
            .unwrap()
            .status
            .success()
    );
    let watched = tsim(&config, &["watch", "job"]).output().unwrap();
    let said = String::from_utf8_lossy(&watched.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&watched.stderr);
    assert_eq!(watched.status.code(), Some(4), "{said}");
    assert!(said.contains(&format!("process {} (", up.id())), "{said}");
    kill(pid(&daemon), Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    kill(pid(&up), Signal::SIGCONT).unwrap();
    assert!(up.wait().unwrap().success());
    let down = ["lab", "down", other.lab.as_str()];
    assert!(tsim(&config, &down).output().unwrap().status.success());
    place.down();
    place.assert_nothing_left();
}
