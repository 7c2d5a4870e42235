//! No silence, where only the tool can tell: an unknown word in front of any line of a ruleset of nft
//! is said with its line.

use std::{collections::BTreeSet, fs, path::Path};

use tsim::lab::topology::Warning;

use crate::lab::{Place, fixture};

/// Facts of one router whose nft ruleset is damaged: the file, and the ruleset's lines.
struct Facts {
    dir: String,
    file: &'static str,
    lines: BTreeSet<usize>,
}

fn with_nft() -> Vec<Facts> {
    let mut all = vec![Facts {
        dir: "small3".to_owned(),
        file: "r2.nft",
        lines: (1..=text(&fixture("small3").join("r2.nft")).lines().count()).collect(),
    }];
    for (report, file) in [
        ("nft-dump-alone", "srv_facts.txt"),
        ("rules-that-nft-cannot-print", "r_facts.txt"),
    ] {
        let dir = format!("reports/{report}");
        let text = text(&fixture(&dir).join(file));
        let mut lines = (1..).zip(text.lines());
        let begin = lines.find(|(_, line)| line.ends_with("START:nft_ruleset ==="));
        let (begin, _) = begin.unwrap();
        let (end, _) = lines
            .find(|(_, line)| line.starts_with("EXIT_CODE"))
            .unwrap();
        // Behind the mark stand title, command, time and `---`.
        let lines = (begin + 5..end).collect();
        all.push(Facts { dir, file, lines });
    }
    all
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// Whether one of `warnings` is of line `at` of `file`, or of lines around it.
fn says(warnings: &[Warning], file: &str, at: usize) -> bool {
    let mut of_file = warnings.iter().filter(|w| w.origin.file.ends_with(file));
    of_file.any(|warning| {
        // Lines within that are said by themselves are not counted again.
        let between = warning.origin.line..at;
        let others = warnings.iter().filter(|w| between.contains(&w.origin.line));
        covers(warning, at, others.count())
    })
}

fn covers(warning: &Warning, at: usize, others: usize) -> bool {
    let more = || {
        let (_, more) = warning.message.rsplit_once(" and ")?;
        more.strip_suffix(" more lines")?.parse().ok()
    };
    let first = warning.origin.line;
    let last = more().map_or(first, |more: usize| first + more + others);
    (first..=last).contains(&at)
}

#[test]
fn a_strange_word_in_front_of_any_line_of_nft_is_said_with_its_line() {
    let mut silent = Vec::new();
    for facts in with_nft() {
        let place = Place::new();
        let dir = place.dir.path().join("facts");
        fs::create_dir(&dir).unwrap();
        for entry in fs::read_dir(fixture(&facts.dir)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
        let whole = text(&dir.join(facts.file));
        for at in facts.lines {
            let damaged: String = (1..)
                .zip(whole.lines())
                .map(|(number, line)| match number == at {
                    true => format!("xyzzy {line}\n"),
                    false => format!("{line}\n"),
                })
                .collect();
            fs::write(dir.join(facts.file), damaged).unwrap();
            let up = place.up(&dir);
            if !says(&up.lab.warnings, facts.file, at) {
                silent.push(format!("{}:{at}: {:?}", facts.file, up.lab.warnings));
            }
            place.down();
        }
    }
    assert!(
        silent.is_empty(),
        "{} lines:\n{}",
        silent.len(),
        silent.join("\n")
    );
}
