//! Questions after public bug reports, asked by the command line: what is right is written in
//! `netns-fixtures/reports/questions.toml`.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde::Deserialize;
use serde_json::Value;
use tsim::model::RouterName;

use crate::quick::TestLab;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    question: Vec<Question>,
}

/// A question to the lab of some facts; the file says what the fields mean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    facts: String,
    #[expect(dead_code, reason = "for readers of the file, who must be given one")]
    why: String,
    ask: String,
    #[serde(default = "quick_alone")]
    jobs: Vec<Job>,
    answers: String,
    exit: i32,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Job {
    Quick,
    Detailed,
}

fn quick_alone() -> Vec<Job> {
    vec![Job::Quick]
}

impl Job {
    fn ask(self, lab: &TestLab, arguments: &str) -> Output {
        let program = match self {
            Self::Quick => env!("CARGO_BIN_EXE_tsim-quick"),
            Self::Detailed => env!("CARGO_BIN_EXE_tsim-detailed"),
        };
        Command::new(program)
            .arg("--config")
            .arg(lab.config_file())
            .args(["--lab", lab.bed.lab.as_str(), "--json"])
            .args(arguments.split(' '))
            .output()
            .unwrap()
    }
}

/// The answers from end to end, e.g. `22/tcp NO: dropped by rule 1`.
fn answers(output: &Output) -> Vec<String> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let one = |end: &Value| {
        let text = |key: &str| end[key].as_str().unwrap_or_default();
        let (port, protocol) = (&end["port"], text("protocol"));
        format!("{port}/{protocol} {}: {}", text("result"), text("reason"))
    };
    let ends = report["end_to_end"].as_array();
    ends.into_iter().flatten().map(one).collect()
}

/// Whether an answer begins as wanted, and has the wanted words in that order.
fn fits(answer: &str, want: &str) -> bool {
    let (verdict, words) = want.split_once(": ").unwrap_or((want, ""));
    let Some(mut rest) = answer.strip_prefix(&format!("{verdict}: ")) else {
        return false;
    };
    words.split(" … ").all(|part| match rest.split_once(part) {
        Some((_, behind)) => {
            rest = behind;
            true
        }
        None => false,
    })
}

/// What is wrong with the answers of one job; none where nothing is.
fn wrong(question: &Question, job: Job, output: &Output) -> Option<String> {
    let got = answers(output);
    let want: Vec<&str> = question.answers.trim().lines().collect();
    let same = got.len() == want.len() && got.iter().zip(&want).all(|(got, want)| fits(got, want));
    let exit = output.status.code();
    (!same || exit != Some(question.exit)).then(|| {
        let Question { facts, ask, .. } = question;
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("{facts}, {job:?} {ask}: exit {exit:?}, {got:#?} {errors}")
    })
}

#[test]
fn jobs_answer_what_is_right_after_reports() {
    let file = Path::new("netns-fixtures/reports/questions.toml");
    let table: Table = toml::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let mut all_wrong = Vec::new();
    for questions in table.question.chunk_by(|a, b| a.facts == b.facts) {
        let Some(first) = questions.first() else {
            continue;
        };
        let lab = TestLab::up(&format!("reports/{}", first.facts));
        for question in questions {
            for &job in &question.jobs {
                all_wrong.extend(wrong(question, job, &job.ask(&lab, &question.ask)));
            }
        }
    }
    assert!(all_wrong.is_empty(), "{}", all_wrong.join("\n"));
}

#[test]
fn tables_that_an_old_nft_and_iptables_both_print_are_loaded_once() {
    let lab = TestLab::up("reports/old-nft-dump-beside-save");
    let netns = lab.lab.router_netns(&RouterName::new("rh").unwrap());
    let list = || {
        let chain = ["-s", "list", "chain", "ip", "filter", "FORWARD"];
        Command::new("/usr/sbin/nft").args(chain).output().unwrap()
    };
    let printed = netns.unwrap().enter(list).unwrap();
    let text = String::from_utf8(printed.stdout).unwrap();
    for port in ["dport 22 ", "dport 80 "] {
        assert_eq!(text.matches(port).count(), 1, "{text}");
    }
}
