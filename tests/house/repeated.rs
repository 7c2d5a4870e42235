//! Runs of lines that stand in two places.

use std::collections::HashMap;

use crate::source::{Source, is_code};

/// So many lines that are the same make a run.
const LEAST: usize = 8;

struct Line<'a> {
    file: usize,
    number: usize,
    text: &'a str,
}

/// Every run with both places, `a.rs:10-24 ~ b.rs:40-54`. Imports, attributes and lines of punctuation only are passed over.
pub(crate) fn runs(source: &Source) -> Vec<String> {
    let lines: Vec<Line> = source
        .files
        .iter()
        .enumerate()
        .flat_map(|(file, source)| {
            source.lines.iter().enumerate().map(move |(at, text)| Line {
                file,
                number: at + 1,
                text,
            })
        })
        .filter(|line| counts(line.text))
        .collect();
    let mut first: HashMap<Vec<&str>, usize> = HashMap::new();
    let mut found = Vec::new();
    let mut at = 0;
    while at + LEAST <= lines.len() {
        let window: Vec<&str> = lines[at..at + LEAST].iter().map(|line| line.text).collect();
        if lines[at].file != lines[at + LEAST - 1].file {
            at += 1;
        } else if let Some(&before) = first.get(&window) {
            let length = common(&lines, before, at);
            found.push(describe(source, &lines, before, at, length));
            at += length;
        } else {
            first.insert(window, at);
            at += 1;
        }
    }
    found
}

fn counts(line: &str) -> bool {
    is_code(line)
        && !line.starts_with("use ")
        && !line.starts_with("#[")
        && line.chars().any(char::is_alphanumeric)
}

/// How many lines are the same from here on, within one file each.
fn common(lines: &[Line], one: usize, other: usize) -> usize {
    (0..other - one)
        .take_while(|&n| {
            lines.get(other + n).is_some_and(|line| {
                line.text == lines[one + n].text
                    && line.file == lines[other].file
                    && lines[one + n].file == lines[one].file
            })
        })
        .count()
}

fn describe(source: &Source, lines: &[Line], one: usize, other: usize, length: usize) -> String {
    let place = |from: usize| {
        let last = &lines[from + length - 1];
        format!(
            "{}:{}-{}",
            source.files[last.file].path, lines[from].number, last.number
        )
    };
    format!("{} ~ {}", place(one), place(other))
}
