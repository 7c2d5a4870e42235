//! The documents: their commands run, their tables are complete, their links lead somewhere.
//!
//! What stands in a block marked `sh` is run, document by document and in the order of its blocks, in
//! an empty directory beside a link to `netns-fixtures`. Blocks marked `shell` are for reading: they
//! install packages, or need another machine. What stands in a block marked `output` is what these
//! commands print, but for what differs with each run; `…` is for what is left out.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use regex::Regex;
use tempfile::TempDir;

use crate::support::program;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and everything in `docs`.
fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = docs
        .filter(|p| p.extension().is_some_and(|e| e == "md"))
        .collect();
    all.push(root().join("README.md"));
    all.sort();
    all
}

/// The lines in a text's blocks that are marked so.
fn blocks(text: &str, mark: &str) -> String {
    let (mut inside, mut found) = (false, String::new());
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(language) => inside = language == mark,
            None if inside => found += &format!("{line}\n"),
            None => {}
        }
    }
    found
}

/// What a command printed, without what differs with each run: times, names of runs, ports that the
/// kernel gave, and how often a rule was met before.
fn lasting(printed: &str) -> String {
    let differs = r"\b[0-9.]+ ms\b|\b[qd][0-9a-f]{12}\b|:[0-9]{5}\b|[0-9]+ → [0-9]+ packets| +";
    let differs = Regex::new(differs).unwrap();
    differs.replace_all(printed, " ").into_owned()
}

/// Asserts that the lines that a document shows were printed, in their order.
fn assert_printed(document: &Path, shown: &str, printed: &str) {
    let (shown, printed) = (lasting(shown), lasting(printed));
    let mut rest = printed.as_str();
    for part in shown.split(['…', '\n']).map(str::trim) {
        let Some(at) = rest.find(part) else {
            panic!(
                "{}: {part:?} is not printed in:\n{rest}",
                document.display()
            );
        };
        rest = &rest[at + part.len()..];
    }
}

/// A job's NO and UNKNOWN are answers; anything else that fails is a failure of the document.
const TRAP: &str = r#"
trap 'code=$?; case $code in 1 | 3) ;; *) echo "exit code $code: $BASH_COMMAND" >&2; exit 99 ;; esac' ERR
trap 'jobs -p | xargs -r kill 2>/dev/null; wait' EXIT
"#;

/// Runs the commands of a document; what they printed.
fn run(document: &Path, script: &str) -> String {
    let dir = TempDir::new().unwrap();
    let work = dir.path().join("work");
    fs::create_dir(&work).unwrap();
    symlink(root().join("netns-fixtures"), work.join("netns-fixtures")).unwrap();
    let config = dir.path().join("tsim.toml");
    let text = format!(
        "registry_dir = \"{}/registry\"\n[scheduler]\nlisten = \"127.0.0.1:0\"\n",
        dir.path().display()
    );
    fs::write(&config, text).unwrap();
    let path = format!(
        "{}:{}",
        program("tsim").parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new("bash")
        .args(["-c", &format!("{TRAP}{script}")])
        .current_dir(&work)
        .env("PATH", path)
        .env("TSIM_CONFIG", &config)
        .output()
        .unwrap();
    assert!(
        output
            .status
            .code()
            .is_some_and(|code| [0, 1, 3].contains(&code)),
        "{}: {}\n{}",
        document.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let up = Command::new(program("tsim"))
        .args(["lab", "list"])
        .env("TSIM_CONFIG", &config)
        .output()
        .unwrap();
    assert!(
        up.stdout.is_empty(),
        "{} leaves a lab up: {up:?}",
        document.display()
    );
    String::from_utf8(output.stdout).unwrap()
}

/// One after the other: they use one name for the lab, as a reader does.
#[test]
fn the_commands_in_the_documents_run_in_their_order_and_print_what_is_shown() {
    let (mut commands, mut lines) = (0, 0);
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let (script, shown) = (blocks(&text, "sh"), blocks(&text, "output"));
        if !script.is_empty() {
            let printed = run(&document, &script);
            assert_printed(&document, &shown, &printed);
        }
        commands += script.lines().count();
        lines += shown.lines().count();
    }
    assert!(commands >= 40, "{commands} lines were found");
    assert!(lines >= 30, "{lines} lines of output were found");
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().unwrap();
            let there = document.parent().unwrap().join(file).exists();
            assert!(there, "{} links to {target}", document.display());
        }
    }
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for document in documents() {
        let name = document.file_name().unwrap().to_str().unwrap();
        let linked = name == "README.md" || readme.contains(&format!("(docs/{name})"));
        assert!(linked, "the README does not name docs/{name}");
    }
}

/// The names of the variants of an enum of the source, which stand by themselves at its first level.
fn variants(file: &str, name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let head = format!("pub enum {name} {{\n");
    let body = text
        .split_once(&head)
        .unwrap_or_else(|| panic!("{file} has no {name}"))
        .1;
    let body = body.split("\n}\n").next().unwrap();
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let names = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    let ends = |c: char| !c.is_ascii_alphanumeric();
    names
        .map(|line| line.split(ends).next().unwrap().to_owned())
        .collect()
}

/// As serde's `snake_case` has it.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[test]
fn every_end_reason_and_status_is_explained() {
    let text = fs::read_to_string(root().join("docs/using.md")).unwrap();
    let mut missing = Vec::new();
    for name in variants("src/run/report.rs", "EndKind") {
        let row = format!("| `{}` | ", snake_case(&name));
        missing.extend((!text.contains(&row)).then_some(name));
    }
    for name in variants("src/run/detailed/result.rs", "ServiceStatus") {
        let row = format!("| {} | ", name.to_uppercase());
        missing.extend((!text.contains(&row)).then_some(name));
    }
    for (file, name) in [
        ("src/run/explain/reason.rs", "Reason"),
        ("src/run/outside/mod.rs", "OutsideReason"),
        ("src/firewall/rule/caveat.rs", "Caveat"),
        ("src/lab/omission/mod.rs", "OmissionKind"),
    ] {
        for variant in variants(file, name) {
            let mark = format!("{name}::{variant}");
            let ends = |text: &str| !text.starts_with(|c: char| c.is_ascii_alphanumeric());
            let named = text.split(&mark).skip(1).any(ends);
            missing.extend((!named).then_some(mark));
        }
    }
    assert!(
        missing.is_empty(),
        "docs/using.md does not explain {missing:?}"
    );
}
