//! Where a system forbids what a keeper needs, that is said by name, with the remedy.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Output, Stdio},
};

use crate::user::{User, stage};

/// Runs `set_up` as root of a user namespace in which every user of the machine is the same user,
/// and `tsim lab up` as `user` behind it. The settings of that namespace are its own. What needs
/// rights is a program of its own, which gets them from execve(2): the shell itself was started
/// before it was root there.
fn lab_up_after(user: &User, set_up: &str) -> Output {
    let facts = stage().join("corp10");
    let (tsim, home) = (stage().join("tsim"), user.home().display());
    let script = format!(
        "echo ready; read -r go\n{set_up}\n\
         export HOME={home} XDG_RUNTIME_DIR={home}/run XDG_STATE_HOME={home}/state \
         XDG_CONFIG_HOME={home}/config\n\
         exec setpriv --reuid {uid} --regid {uid} --clear-groups {tsim} lab up mine --facts {facts}",
        uid = user.uid,
        tsim = tsim.display(),
        facts = facts.display(),
    );
    let mut child = Command::new("unshare")
        .args([
            "--user",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-euc",
            &script,
        ])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    for map in ["uid_map", "gid_map"] {
        let file = format!("/proc/{}/{map}", child.id());
        // user_namespaces(7): one line, all but the last id, which is invalid.
        fs::write(file, "0 0 4294967295").unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_anything_forbidden_it_works() {
    let user = User::new();
    let output = lab_up_after(&user, "true");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_limit_of_namespaces_is_said_by_name() {
    for (limit, remedy) in [
        (
            "max_user_namespaces",
            "sysctl user.max_user_namespaces=15000",
        ),
        ("max_net_namespaces", "sysctl user.max_net_namespaces=15000"),
        ("max_mnt_namespaces", "sysctl user.max_mnt_namespaces=15000"),
    ] {
        let user = User::new();
        let said = said(&lab_up_after(
            &user,
            &format!("sh -c 'echo 0 > /proc/sys/user/{limit}'"),
        ));
        assert!(said.contains(remedy), "{limit}: {said}");
        user.await_end();
    }
}

#[test]
fn settings_that_a_container_makes_read_only_are_said() {
    let user = User::new();
    let set_up = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys";
    let said = said(&lab_up_after(&user, set_up));
    assert!(said.contains("systempaths=unconfined"), "{said}");
    user.await_end();
}
