//! One table of exit codes: the same mistake has the same code in every command.

use std::process::Output;

use clap::Arg;

use crate::support::{Leaf, Site, leaves};

/// What there is nothing of.
const NONE: &str = "nothere";
/// Removing what is not there is success.
const REMOVES: [&str; 2] = ["tsim lab down", "tsim host remove"];

/// A value that is right for `arg`, in a lab of `site`.
fn right(site: &Site, arg: &Arg) -> String {
    let text = match arg.get_id().as_str() {
        "questions" => return site.file("questions.txt"),
        "route" => "add blackhole 10.99.0.0/16",
        "policy" => return site.file("policy.toml"),
        "lab" | "name" | "before" | "after" => &site.lab,
        "source" => "10.81.1.10",
        "destination" => "10.81.3.10",
        "services" | "ports" => "443/tcp",
        "mode" => "quick",
        "router" | "routers" => "r1",
        "address" => "10.81.1.77",
        "run_id" => NONE,
        "command" => "true",
        "what" => "man",
        "facts" | "file" | "dir" => "/nonexistent",
        other => panic!("tests/commands/exit.rs needs a right value for the argument `{other}`"),
    };
    text.to_owned()
}

fn assert_refused(leaf: &Leaf, line: &[String], output: &Output, named: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    let line = line.join(" ");
    assert_eq!(
        output.status.code(),
        Some(2),
        "{}: {line}: {said}",
        leaf.name()
    );
    assert!(said.contains(named), "{line}: {said}");
}

#[test]
fn a_lab_that_is_not_there_is_a_wrong_argument_to_every_command() {
    let site = Site::new();
    let mut tried = 0;
    for leaf in leaves() {
        let id = ["lab", "name"]
            .into_iter()
            .find(|id| leaf.argument(id).is_some());
        let Some(id) = id.filter(|_| leaf.name() != "tsim lab up") else {
            continue;
        };
        if id == "name" && !leaf.name().starts_with("tsim lab ") {
            continue;
        }
        let mut line = leaf.line(|arg| match arg.get_id() == id {
            true => NONE.to_owned(),
            false => right(&site, arg),
        });
        if !leaf.needs(leaf.argument(id).unwrap()) {
            line.extend([format!("--{id}"), NONE.to_owned()]);
        }
        let output = site.run(&line);
        if REMOVES.contains(&leaf.name().as_str()) {
            assert_eq!(output.status.code(), Some(0), "{}", leaf.name());
        } else {
            assert_refused(&leaf, &line, &output, NONE);
        }
        tried += 1;
    }
    assert!(tried >= 11, "{tried} commands name a lab");
}

#[test]
fn a_router_that_is_not_there_is_a_wrong_argument_to_every_command() {
    let site = Site::new();
    let mut tried = 0;
    for leaf in leaves() {
        for id in ["router", "routers", "from"] {
            let Some(arg) = leaf.argument(id) else {
                continue;
            };
            let mut line = leaf.line(|arg| match arg.get_id() == id {
                true => NONE.to_owned(),
                false => right(&site, arg),
            });
            if !leaf.needs(arg) {
                line.extend([format!("--{id}"), NONE.to_owned()]);
            }
            assert_refused(&leaf, &line, &site.run(&line), NONE);
            tried += 1;
        }
    }
    assert!(tried >= 9, "{tried} arguments name a router");
}

#[test]
fn a_job_that_is_not_there_is_a_wrong_argument_to_every_command() {
    let site = Site::new();
    let mut tried = 0;
    for leaf in leaves() {
        if !leaf.argument("run_id").is_some_and(Arg::is_positional) {
            continue;
        }
        let line = leaf.line(|arg| right(&site, arg));
        assert_refused(&leaf, &line, &site.run(&line), NONE);
        tried += 1;
    }
    assert!(tried >= 3, "{tried} commands name a job");
}

#[test]
fn what_cannot_be_read_as_a_command_line_or_configuration_is_a_wrong_argument() {
    let site = Site::new();
    for leaf in leaves() {
        let mut line = leaf.words.clone();
        line.push("--no-such-option".to_owned());
        assert_refused(&leaf, &line, &site.run(&line), "no-such-option");
        let mut line = leaf.words.clone();
        line.extend(["--config".to_owned(), "/nonexistent.toml".to_owned()]);
        line.extend(leaf.line(|arg| right(&site, arg)).drain(leaf.words.len()..));
        let output = std::process::Command::new(crate::support::program(&line[0]))
            .args(&line[1..])
            .output()
            .unwrap();
        assert_refused(&leaf, &line, &output, "nonexistent");
    }
}
