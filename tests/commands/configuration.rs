//! Which configuration a command has, and what is said of a wrong one.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::support::program;

fn config(file: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program("tsim"))
        .env("TSIM_CONFIG", file)
        .arg("config")
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn every_value_comes_with_its_line_and_a_named_file_goes_before_the_environment() {
    let dir = TempDir::new().unwrap();
    let (one, two) = (dir.path().join("one.toml"), dir.path().join("two.toml"));
    fs::write(&one, "# mine\nmax_services = 77\n\n[scheduler]\njobs = 3\n").unwrap();
    fs::write(&two, "max_services = 99\n").unwrap();
    let (code, text) = config(&one, &["show", "--origin"]);
    assert_eq!(code, Some(0), "{text}");
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
    assert!(line("max_services = 77").ends_with("one.toml:2"), "{text}");
    assert!(line("jobs = 3").ends_with("one.toml:5"), "{text}");
    assert!(line("dscp_first = 32").ends_with("# default"), "{text}");
    let (_, text) = config(&one, &["show", "--config", two.to_str().unwrap()]);
    assert!(text.contains("max_services = 99"), "{text}");
    // What is shown can be used as it is.
    let three = dir.path().join("three.toml");
    fs::write(&three, &text).unwrap();
    let shown = |file: &Path| {
        config(file, &["show"])
            .1
            .split_once('\n')
            .unwrap()
            .1
            .to_owned()
    };
    assert_eq!(shown(&two), shown(&three));
}

#[test]
fn what_would_not_work_is_said_with_its_line() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("tsim.toml");
    for (text, code, wanted) in [
        ("\nmax_services = 0\n", 2, "line 2: max_services = 0"),
        ("tool_dirs = []\n", 2, "line 1: tool_dirs"),
        (
            "tool_dirs = [\"/nonexistent\"]\n",
            0,
            "tsim.toml:1: tool_dirs: nft is in none",
        ),
        (
            "dscp_first = 60\n[scheduler]\nquick_jobs = 9\n",
            0,
            "tsim.toml:3: scheduler.quick_jobs",
        ),
        (
            "registry_dir = \"/dev/null/x\"\n",
            2,
            "tsim.toml:1: registry_dir",
        ),
        ("registry_dir = \"/run/tsim\"\n", 0, "nothing is wrong"),
    ] {
        fs::write(&file, text).unwrap();
        let (found, said) = config(&file, &["check"]);
        assert_eq!(found, Some(code), "{text}: {said}");
        assert!(said.contains(wanted), "{text}: {said}");
    }
}
