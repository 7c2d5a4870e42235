//! `tsim-quick` as a new user types it: wrong arguments, missing rights, a lab that is not there.

use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Output},
};

use crate::quick::TestLab;

const ASK: [&str; 6] = ["-s", "10.81.1.10", "-d", "10.81.3.10", "-P", "80"];

fn quick(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tsim-quick"))
        .args(args)
        .output()
        .unwrap()
}

fn assert_refused(args: &[&str], code: i32, want: &str) {
    let output = quick(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    assert!(errors.contains(want), "{args:?}: {errors}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn wrong_arguments_are_named_and_change_nothing() {
    let lab = ["--lab", "x", "-s", "10.81.1.10", "-d", "10.81.3.10", "-P"];
    for (ports, want) in [
        ("0", "port 0"),
        ("70000", "70000"),
        ("9-1", "9-1"),
        ("tcp/udp", "tcp/udp"),
        ("", "empty"),
    ] {
        assert_refused(&[&lab[..], &[ports]].concat(), 2, want);
    }
    let ask = |more: &[&'static str]| [&["--lab", "x"][..], &ASK, more].concat();
    assert_refused(&ask(&["--dscp", "64"]), 2, "64");
    assert_refused(&ask(&["--dscp", "5"]), 2, "no lab x");
    assert_refused(&ask(&["--routers", "../../etc"]), 2, "../../etc");
    assert_refused(&ask(&["--run-id", "a/b"]), 2, "a/b");
    assert_refused(&ask(&["--trace", "/nonexistent"]), 2, "/nonexistent");
    assert_refused(&ask(&["--lock-timeout=-1"]), 2, "lock-timeout");
    assert_refused(&ask(&["--max-services", "0"]), 2, "max-services");
    assert_refused(
        &[
            "--lab",
            "x",
            "-s",
            "10.0.0.1",
            "-d",
            "2001:db8::1",
            "-P",
            "80",
        ],
        2,
        "family",
    );
}

#[test]
fn a_lab_or_router_that_is_not_there_is_said() {
    let lab = TestLab::up("small3");
    let file = lab.config_file();
    let config = ["--config", file.to_str().unwrap()];
    let name = lab.bed.lab.as_str();
    let here = [&config[..], &["--lab", name], &ASK].concat();
    assert_refused(
        &[&config[..], &["--lab", "nothere"], &ASK].concat(),
        2,
        "nothere",
    );
    assert_refused(&[&here[..], &["--routers", "r1,r9"]].concat(), 2, "r9");
    assert_refused(&[&here[..], &["--dscp", "5"]].concat(), 2, "32-63");
    let nowhere = [
        "--lab",
        name,
        "-s",
        "192.0.2.1",
        "-d",
        "10.81.3.10",
        "-P",
        "80",
    ];
    let output = quick(&[&config[..], &nowhere].concat());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn without_rights_it_says_so_and_leaves_nothing() {
    let lab = TestLab::up("small3");
    let file = lab.config_file();
    // The unprivileged user must reach the program and the lab's files, so only rights are lacking.
    let open = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(file.parent().unwrap());
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("rootless = false\n{text}")).unwrap();
    let program = file.with_file_name("tsim-quick");
    std::fs::copy(env!("CARGO_BIN_EXE_tsim-quick"), &program).unwrap();
    let output = Command::new(&program)
        .args([
            "--config",
            file.to_str().unwrap(),
            "--lab",
            lab.bed.lab.as_str(),
        ])
        .args(ASK)
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("ermission"), "{errors}");
    assert!(
        errors.contains(
            "hint: this process lacks cap_sys_admin, cap_net_admin, cap_net_raw: run as root, with \
            this capability, or in a user namespace, which `rootless = false` forbids"
        ),
        "{errors}"
    );
}
