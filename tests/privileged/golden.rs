//! What commands print, to the letter: a change of words shows itself in a diff that a person reads.
//!
//! Each file in `tests/privileged/golden` begins with the command line and the exit code. What differs
//! between runs (the lab's name, run ids, times, versions) is replaced by a word in angle brackets.
//! `TSIM_GOLDEN=1 cargo test --test privileged golden::` writes the files anew.

use std::{env, fs, path::Path, sync::LazyLock};

use regex::Regex;

use crate::bulk::{Desk, text};

/// Name of the file, and the command. The lab is `small3`.
const COMMANDS: [(&str, &str); 14] = [
    ("lab-list", "lab list"),
    ("lab-status", "lab status LAB"),
    ("trace", "trace --lab LAB -s 10.81.1.10 -d 10.81.3.10"),
    (
        "quick",
        "quick --lab LAB -s 10.81.1.10 -d 10.81.3.10 -P 22,80,53/udp",
    ),
    (
        "quick-unknown-lab",
        "quick --lab LABB -s 10.81.1.10 -d 10.81.3.10 -P 22",
    ),
    (
        "quick-nowhere",
        "quick --lab LAB -s 10.81.1.10 -d 192.0.2.1 -P 22",
    ),
    (
        "detailed",
        "detailed --lab LAB -s 10.81.1.10 -d 10.81.3.10 -P 22,80",
    ),
    (
        "matrix",
        "matrix LAB -s 10.81.1.10,10.81.1.11 -d 10.81.3.10 -P 22,80",
    ),
    ("check", "check LAB policy.toml"),
    (
        "what-if",
        "what-if LAB --router r2 --route 'replace blackhole 10.81.3.0/24' \
                 -s 10.81.1.10 -d 10.81.3.10 -P 22,80",
    ),
    ("facts-check", "facts check facts"),
    ("hosts", "host list --lab LAB"),
    ("host-typo", "host remove --lab LAB clinet"),
    ("exec", "exec LAB r1 -- ip -o -4 addr show dev lo"),
];

const POLICY: &str = "version = 1
[[rule]]
name = \"clients reach the web server\"
from = \"10.81.1.10\"
to = \"10.81.3.10\"
services = \"22,80\"
must = \"pass\"
owner = \"netops\"
";

static REPLACED: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let dir = regex::escape(env::temp_dir().to_str().unwrap()) + r"/\.tmp[A-Za-z0-9]+";
    [
        (r"\b[0-9]+(\.[0-9]+)? (ms|s)\b", "<time>"),
        (
            r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+(Z| UTC)?",
            "<date>",
        ),
        (r"\b[qd][0-9a-f]{12}\b", "<run>"),
        (r"identity [0-9a-f]{16}", "identity <identity>"),
        (r"DSCP [0-9]+", "DSCP <dscp>"),
        // It depends on the lab's name.
        (r"\b02(:[0-9a-f]{2}){5}\b", "<mac>"),
        (r"tsim [0-9]+\.[0-9]+\.[0-9]+", "tsim <version>"),
        (r":[0-9]{5}\b", ":<port>"),
        (dir.as_str(), "<dir>"),
    ]
    .map(|(pattern, word)| (Regex::new(pattern).unwrap(), word))
    .into()
});

/// `printed` without what differs between runs.
fn settled(printed: &str, lab: &str) -> String {
    let here = env::current_dir().unwrap();
    let mut settled = printed.replace(lab, "LAB");
    settled = settled.replace(here.to_str().unwrap(), "<here>");
    for (pattern, word) in REPLACED.iter() {
        settled = pattern.replace_all(&settled, *word).into_owned();
    }
    // A column is as wide as its widest cell, which may be one of these.
    let lines = settled.lines().map(str::trim_end);
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn commands_print_what_their_golden_files_say() {
    let desk = Desk::at("small3");
    desk.write("policy.toml", POLICY);
    desk.copy_facts("small3", "facts");
    desk.ends_with(
        &[0],
        "host add --lab LAB --router r1 --address 10.81.1.77 --name client",
    );
    let lab = desk.lab.bed.lab.to_string();
    let mut wrong = Vec::new();
    for (name, line) in COMMANDS {
        let output = desk.run(line);
        let code = output.status.code().unwrap();
        let printed = settled(&text(&output), &lab);
        let found = format!("$ tsim {line}\n{printed}exit code {code}\n");
        let path = Path::new("tests/privileged/golden")
            .join(name)
            .with_extension("txt");
        if env::var_os("TSIM_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &found).unwrap();
        }
        let wanted = fs::read_to_string(&path).unwrap_or_default();
        if found != wanted {
            wrong.push(format!("{}:\n{found}and not\n{wanted}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));

    // The same report of a quick and of a detailed job.
    for job in ["quick", "detailed"] {
        let ask = "--lab LAB -s 10.81.1.10 -d 10.81.3.10 -P 22,23";
        desk.ends_with(&[1], &format!("{job} {ask} -o {job}.md -o {job}.xml"));
        let [markdown, junit] = ["md", "xml"].map(|ending| desk.read(&format!("{job}.{ending}")));
        let row = "| 10.81.1.10 | 10.81.3.10 | YES | NO |";
        assert!(markdown.contains(row), "{job}: {markdown}");
        assert!(
            junit.contains("dropped by the policy of chain FORWARD"),
            "{job}: {junit}"
        );
    }
}
