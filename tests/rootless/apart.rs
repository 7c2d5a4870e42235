//! Users beside each other and beside root: nobody sees or touches what is another's.

use std::{
    fs,
    io::Read as _,
    process::{Command, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::user::{RootLab, User, await_exit, stage};

#[test]
fn users_neither_see_nor_touch_each_others_labs() {
    let (one, other) = (User::new(), User::new());
    one.lab_up("same");
    other.lab_up("same");
    other.tsim(&["lab", "down", "same"]);
    other.assert_gone();

    // The first one's lab is there as before, and the other user knows nothing of it.
    let answer = one.ask("tsim-quick", "same", "1-40/tcp");
    assert!(answer[0].as_array().is_some_and(|list| list.len() == 40));
    let list = other.tsim(&["lab", "list"]);
    assert!(!list.contains("same"), "{list}");
    let shell = other.run("tsim", &["shell", "same", "hq-gw", "--", "true"]);
    assert!(!shell.status.success());

    let keeper = one.keeper().unwrap();
    let reach = |command: &str| {
        let output = other.command("/bin/sh").args(["-c", command]).output();
        let output = output.unwrap();
        assert!(!output.status.success(), "{command}: {output:?}");
    };
    reach(&format!("kill -KILL {keeper}"));
    reach(&format!("nsenter --target {keeper} --user --net true"));
    reach(&format!("ls /proc/{keeper}/root/run/netns"));
    reach(&format!("ls {}", one.runtime_dir().display()));
    one.tsim(&["lab", "down", "same"]);
    one.assert_gone();
}

/// Two users and root ask at the same time, one user has their lab taken down meanwhile.
#[test]
fn users_and_root_at_once_have_each_their_own() {
    let (one, other, root) = (User::new(), User::new(), RootLab::up());
    thread::scope(|scope| {
        scope.spawn(|| one.lab_up("same"));
        scope.spawn(|| other.lab_up("same"));
    });
    let asked = "1-200/tcp,50-60/udp";
    let want = root.ask("tsim-quick", asked);
    let same = |ask: &dyn Fn() -> serde_json::Value| (0..4).for_each(|_| assert_eq!(ask(), want));
    thread::scope(|scope| {
        scope.spawn(|| same(&|| root.ask("tsim-quick", asked)));
        scope.spawn(|| same(&|| one.ask("tsim-quick", "same", asked)));
        scope.spawn(|| one.ask("tsim-detailed", "same", "22/tcp"));
        scope.spawn(|| {
            same(&|| other.ask("tsim-quick", "same", asked));
            other.tsim(&["lab", "down", "same"]);
            other.assert_gone();
        });
    });
    root_is_out_of_reach(&one, &root);
    let names = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    assert!(
        names.contains(&root.name) && !names.contains("same."),
        "{names}"
    );
    assert_eq!(root.ask("tsim-quick", asked), want);
    one.tsim(&["lab", "down", "same"]);
    one.assert_gone();
}

/// Asserts that `user` neither sees nor touches root's lab, inside of their namespaces or outside.
fn root_is_out_of_reach(user: &User, root: &RootLab) {
    let name = &root.name;
    for args in [&["lab", "list"][..], &["exec", "ls", "/run/netns"]] {
        let seen = user.tsim(args);
        assert!(!seen.contains(name) && seen.contains("same"), "{seen}");
    }
    // Of a lab that there is none of, nothing is removed.
    let down = user.tsim(&["lab", "down", name, "--force"]);
    assert!(down.contains("there is no lab"), "{down}");
    let netns = format!("/run/netns/{name}.hq-gw");
    assert!(fs::exists(&netns).unwrap());
    for command in [
        format!("nsenter --net={netns} true"),
        format!("umount {netns}"),
        format!("rm {netns}"),
        format!("ls {}/registry", root.dir().display()),
        format!("ls {}/labs", root.dir().display()),
    ] {
        let output = user.command("/bin/sh").args(["-c", &command]).output();
        let output = output.unwrap();
        assert!(!output.status.success(), "{command}: {output:?}");
        let inside = user.run("tsim", &["exec", "--", "sh", "-c", &command]);
        assert!(!inside.status.success(), "inside, {command}: {inside:?}");
    }
    assert!(fs::exists(&netns).unwrap());
}

#[test]
fn what_users_do_is_not_on_the_machine() {
    let networks = || fs::read_to_string("/proc/net/dev").unwrap().lines().count();
    let names = || {
        let names = fs::read_dir("/run/netns").map(Iterator::flatten);
        let names = names.into_iter().flatten().map(|name| name.file_name());
        names.collect::<Vec<_>>()
    };
    let before = networks();
    let user = User::new();
    user.lab_up("mine");
    assert_eq!(networks(), before);
    assert!(
        !names()
            .iter()
            .any(|name| name.to_string_lossy().starts_with("mine."))
    );
    user.tsim(&["lab", "down", "mine"]);
    user.assert_gone();
}

#[test]
fn a_killed_keeper_takes_its_labs_along_and_the_next_command_says_so() {
    let user = User::new();
    user.lab_up("mine");
    let inside = ["exec", "--", "sh", "-c", "echo inside; exec sleep 600"];
    let mut inside = user
        .command(stage().join("tsim"))
        .args(inside)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    inside
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    let keeper = user.keeper().unwrap();
    kill(Pid::from_raw(keeper.try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert!(await_exit(keeper));
    // Who is still in its namespaces is in the way of a new one, and is named.
    let refused = user.run(
        "tsim",
        &[
            "--lock-timeout",
            "1.2",
            "lab",
            "up",
            "mine",
            "--facts",
            "none",
        ],
    );
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{said}");
    let holder = format!("process {} (sleep 600)", inside.id());
    assert!(said.contains(&format!("waiting for {holder}")), "{said}");
    assert!(said.contains(&format!("{holder} has it locked")), "{said}");
    inside.kill().unwrap();
    inside.wait().unwrap();
    let args = [
        "--lab",
        "mine",
        "-s",
        "10.3.10.50",
        "-d",
        "10.2.1.60",
        "-P",
        "22",
    ];
    let asked = user.run("tsim-quick", &args);
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(
        said.contains("lab mine is gone: the keeper that held it was ended"),
        "{said}"
    );
    assert!(!matches!(asked.status.code(), Some(0 | 1 | 3)), "{asked:?}");

    user.lab_up("mine");
    assert_ne!(user.keeper(), Some(keeper));
    user.ask("tsim-quick", "mine", "22/tcp");
    user.tsim(&["lab", "down", "mine"]);
    user.assert_gone();
}
