//! From nothing to a verdict and back to nothing.

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
