//! Policies, matrices and lists of questions.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use tsim::{
    bulk::{
        answers::{Answers, Cell},
        check::{Checked, RuleStanding},
    },
    run::report::{QuickReport, Verdict},
};

use super::{Desk, Random, text, valid};

/// How many rules are turned round in all, and how many in one policy.
const PLANTED: usize = 200;
const AT_ONCE: usize = 20;

/// The policy with the rules in `turned` saying the opposite.
fn turn(policy: &str, turned: &BTreeSet<usize>) -> String {
    let mut parts: Vec<String> = policy.split("[[rule]]").map(str::to_owned).collect();
    for &rule in turned {
        let rule = &mut parts[rule + 1];
        *rule = match rule.contains("must = \"pass\"") {
            true => rule.replace("must = \"pass\"", "must = \"not-pass\""),
            false => rule.replace("must = \"not-pass\"", "must = \"pass\""),
        };
    }
    parts.join("[[rule]]")
}

#[test]
fn a_policy_made_of_a_matrix_holds_and_every_planted_contradiction_is_found() {
    let desk = Desk::at("corp10");
    let outputs = "-o p.toml -o m.json -o m.xml -o m.html -o m.md";
    let ask = "matrix LAB --networks -P ssh,https,53/udp,33434/udp,ping";
    desk.ends_with(&[1, 3], &format!("{ask} {outputs}"));
    let matrix: Answers = valid(desk.read("m.json").as_bytes());
    assert!(matrix.counts.yes > 0 && matrix.counts.no > 0);
    // What was measured holds.
    desk.ends_with(&[0], "check LAB p.toml");

    let policy = desk.read("p.toml");
    let rules = policy.matches("[[rule]]").count();
    let mut random = Random(20);
    let mut found = 0;
    while found < PLANTED {
        let mut turned = BTreeSet::new();
        while turned.len() < AT_ONCE.min(rules) {
            turned.insert(random.below(rules));
        }
        desk.write("wrong.toml", turn(&policy, &turned));
        let checked: Checked = desk.report(&[1], "check LAB wrong.toml --json");
        for (at, rule) in checked.rules.iter().enumerate() {
            let is_contradicted = rule.result == RuleStanding::Contradicted;
            assert_eq!(is_contradicted, turned.contains(&at), "{}", rule.name);
        }
        for rule in turned.iter().map(|&at| &checked.rules[at]) {
            assert_eq!(rule.surprises.len(), rule.questions, "{}", rule.name);
            let unexplained =
                |cell: &&Cell| cell.end.result == Verdict::No && cell.end.reason.is_none();
            assert_eq!(rule.surprises.iter().filter(unexplained).count(), 0);
        }
        found += turned.len();
    }
    // And --update makes the policy say what is measured.
    desk.ends_with(&[1], "check LAB wrong.toml --update");
    desk.ends_with(&[0], "check LAB wrong.toml");
    // A policy that says nothing holds of every lab, which nobody can want to hear.
    desk.write("empty.toml", "version = 1\n");
    desk.ends_with(&[2], "check LAB empty.toml");
}

#[test]
fn a_quick_jobs_answer_is_written_as_reports_of_all_kinds() {
    let desk = Desk::at("small3");
    let ask = "quick --lab LAB -s 10.81.1.10 -d 10.81.3.10 -P 22,80";
    let printed = desk.ends_with(
        &[0],
        &format!("{ask} --json -o q.json -o q.md -o q.html -o q.xml"),
    );
    let report = |text: &[u8]| serde_json::from_slice::<QuickReport>(text).unwrap();
    assert_eq!(
        report(desk.read("q.json").as_bytes()),
        report(&printed.stdout)
    );
    for (file, said) in [
        ("q.md", "## 10.81.1.10 → 10.81.3.10 on lab"),
        ("q.html", "<h1>10.81.1.10 → 10.81.3.10 on lab"),
        ("q.xml", "failures=\"0\" errors=\"0\""),
    ] {
        let report = desk.read(file);
        assert!(report.contains(said), "{file}: {report}");
    }
}

#[test]
fn a_list_of_questions_is_answered_line_by_line_and_gone_on_with() {
    let desk = Desk::at("small3");
    let questions = "# ours\n10.81.1.10 10.81.3.10 1-700\n10.81.1.11 10.81.3.10 @web,22  # more\n";
    desk.write("q.txt", questions);
    let whole = desk.ends_with(&[0, 1], "sweep LAB q.txt -o a.jsonl");
    let verdicts = |file: &str| -> Vec<(u16, Verdict)> {
        let text = desk.read(file);
        let cells = text.lines().skip(1).map(serde_json::from_str);
        let cells = cells.map(|cell: Result<Cell, _>| cell.unwrap().end);
        cells.map(|end| (end.port, end.result)).collect()
    };
    let all = verdicts("a.jsonl");
    assert_eq!(all.len(), 706);
    // Cut in the middle of a line, as a kill would.
    let answered = desk.read("a.jsonl");
    desk.write("b.jsonl", &answered[..answered.len() / 2]);
    let same = [whole.status.code().unwrap()];
    desk.ends_with(&same, "sweep LAB q.txt -o b.jsonl --resume");
    assert_eq!(verdicts("b.jsonl"), all);
    // Answers to other questions, or to these with other options, are no beginning.
    desk.write("o.txt", questions.replace("10.81.1.11", "10.81.1.12"));
    for (line, said) in [
        (
            "sweep LAB o.txt -o b.jsonl --resume",
            "are of other questions than the first of",
        ),
        (
            "sweep LAB q.txt -o b.jsonl --resume --from r1",
            "it was asked with the options ``, and not with `--from r1`",
        ),
    ] {
        let refused = text(&desk.ends_with(&[2], line));
        assert!(refused.contains(said), "{line}: {refused}");
    }
    assert_eq!(verdicts("b.jsonl"), all);
    desk.write("n.txt", "# nothing\n");
    let nothing = text(&desk.ends_with(&[2], "sweep LAB n.txt"));
    assert!(nothing.contains("n.txt has no question"), "{nothing}");
    desk.write("l.txt", "10.81.1.10 127.0.0.1 80\n");
    let loopback = text(&desk.ends_with(&[2], "sweep LAB l.txt"));
    assert!(
        loopback.contains("l.txt:1: destination 127.0.0.1"),
        "{loopback}"
    );
    // A text that Windows wrote.
    desk.write("m.txt", "\u{feff}10.81.1.10 10.81.3.10 22\r\n");
    desk.ends_with(&[0, 1], "sweep LAB m.txt");
    // A wrong line is named, and nothing is written.
    desk.write("w.txt", "10.81.1.10 10.81.3.10 80\n10.81.1.10 x 80\n");
    let wrong = text(&desk.ends_with(&[2], "sweep LAB w.txt -o w.jsonl"));
    assert!(wrong.contains("w.txt:2: destination \"x\""), "{wrong}");
    assert!(!desk.path("w.jsonl").exists());
}

#[test]
fn the_script_goes_from_no_policy_to_a_change_found_in_a_ci_job() {
    let desk = Desk::at("small3");
    let bin = Path::new(env!("CARGO_BIN_EXE_tsim")).parent().unwrap();
    let path = format!("{}:/usr/sbin:/sbin:/usr/bin:/bin", bin.display());
    let script = fs::canonicalize("netns-fixtures/policy.sh").unwrap();
    let mut script = Command::new(script);
    let script = script.arg("--config").arg(desk.lab.config_file());
    let ran = script.env("PATH", path).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran));
    assert!(text(&ran).contains("the change is found"), "{}", text(&ran));
    let left = text(&desk.run("lab list"));
    assert!(!left.contains("policy-"), "{left}");
}
