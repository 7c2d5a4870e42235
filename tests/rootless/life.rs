//! From nothing to a verdict and back to nothing.

use std::process::Command;

use crate::user::{RootLab, User, await_exit, stage};

const SERVICES: &str = "1-300/tcp,50-70/udp,443/tcp,icmp";

#[test]
fn without_root_the_answers_are_the_same_and_nothing_stays() {
    let user = User::new();
    user.lab_up("mine");
    let root = RootLab::up().ask("tsim-quick", SERVICES);
    assert_eq!(user.ask("tsim-quick", "mine", SERVICES), root);

    let detailed = user.ask("tsim-detailed", "mine", "22/tcp,53/udp");
    let quick = user.ask("tsim-quick", "mine", "22/tcp,53/udp");
    let results = |answer: &serde_json::Value| -> Vec<bool> {
        let services = answer[0].as_array().unwrap().iter();
        services
            .map(|s| s.as_str().unwrap().contains("\"NO\""))
            .collect()
    };
    assert_eq!(results(&detailed), results(&quick));

    let keeper = user.keeper().unwrap();
    // What a job has open may be closed by a process that ends a little later, `sys::leave`.
    for pid in user.processes() {
        assert!(pid == keeper || await_exit(pid), "process {pid} stays");
    }
    assert_eq!(user.processes(), [keeper], "only the keeper stays");
    user.tsim(&["lab", "down", "mine"]);
    user.assert_gone();
    assert_eq!(user.keeper(), None);
}

#[test]
fn exec_and_shell_go_into_the_users_namespaces() {
    let user = User::new();
    user.lab_up("mine");
    let names = user.tsim(&["exec", "ip", "netns", "list"]);
    assert!(names.contains("mine.hq-gw"), "{names}");
    let routes = user.tsim(&["shell", "mine", "hq-gw", "--", "ip", "route", "show"]);
    assert!(routes.contains("default"), "{routes}");
    // What runs in there keeps the keeper, lab or not.
    let mut sleeper = user.command(stage().join("tsim"));
    let mut sleeper = sleeper
        .args(["exec", "sh", "-c", "echo in; exec cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 3];
    std::io::Read::read_exact(sleeper.stdout.as_mut().unwrap(), &mut said).unwrap();
    let keeper = user.keeper();
    user.tsim(&["lab", "down", "mine"]);
    assert_eq!(user.keeper(), keeper, "somebody is inside");
    drop(sleeper.stdin.take());
    assert!(sleeper.wait().unwrap().success());
    user.assert_gone();
}

/// Root's own rights are used unless root says otherwise, on the command line or in the configuration; then
/// root has a keeper as everybody else.
#[test]
fn root_works_without_its_rights_if_told_so() {
    let home = tempfile::tempdir().unwrap();
    let facts = stage().join("corp10");
    let lab = format!("told{}", std::process::id());
    let up = ["lab", "up", &lab, "--facts", facts.to_str().unwrap()];
    let named = || std::fs::exists(format!("/run/netns/{lab}.hq-gw")).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(stage().join("tsim"));
        for variable in [
            "HOME",
            "XDG_RUNTIME_DIR",
            "XDG_STATE_HOME",
            "XDG_CONFIG_HOME",
        ] {
            command.env(variable, home.path());
        }
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let file = home.path().join("told.toml");
    std::fs::write(&file, "rootless = true\n").unwrap();
    for told in [&["--rootless"][..], &["--config", file.to_str().unwrap()]] {
        let run = |args: &[&str]| run(&[told, args].concat());
        run(&up);
        assert!(!named(), "a router of {told:?} is on the machine");
        let state: serde_json::Value = serde_json::from_str(&run(&["keeper", "--json"])).unwrap();
        let keeper = u32::try_from(state["keeper"]["pid"].as_u64().unwrap()).unwrap();
        assert_eq!(state["labs"], serde_json::json!([lab]));
        assert!(run(&["exec", "ls", "/run/netns"]).contains(&lab));
        run(&["lab", "down", &lab]);
        assert!(await_exit(keeper));
    }
    // Who says nothing has no keeper.
    let state: serde_json::Value = serde_json::from_str(&run(&["keeper", "--json"])).unwrap();
    assert_eq!(state["rootless"], false);
}
