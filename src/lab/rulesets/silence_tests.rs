//! No silence: an unknown word in front of any line of any facts file in the repository is said with
//! file and line, or the line is of a kind that decides nothing.
//!
//! Lines within chains and sets of nft are the tool's to refuse, which takes root: see `doors::silence`
//! among the privileged tests.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::lab::{facts, strange_lines, topology};

const WORD: &str = "xyzzy";

/// Every how many lines one gets the word, all of them at once.
const STRIDE: usize = 40;

/// Kinds of lines that may be damaged in silence, and why.
const DECIDES_NOTHING: [(&str, &str); 6] = [
    (
        "between sections",
        "nothing there is read but the host's name, which is compared with the file's name",
    ),
    (
        "TITLE, COMMAND, TIMESTAMP",
        "for people; a table that only they number is left out and said",
    ),
    (
        "a section that is not needed",
        "what it says stands in another section in a form that can be loaded",
    ),
    (
        "a section that is left out as a whole",
        "it is said once, at its beginning, and counts as whatever it may hold",
    ),
    (
        "a table of nft that iptables keeps",
        "it is read from the section that iptables-save wrote",
    ),
    (
        "behind EXIT_CODE",
        "the command had ended; no tool wrote it",
    ),
];

fn facts_files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("netns-fixtures");
    let mut dirs = vec![root];
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_facts = name.ends_with("_facts.txt")
                || name.ends_with(".json") && !name.ends_with(".schema.json");
            // Those of the kinds are the collector's own, too many, and full of what nobody needs: what the
            // kernel makes by itself is passed over in silence.
            if path.is_dir() && name != "kinds" {
                dirs.push(path);
            } else if is_facts {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Lines that are said of `text`, read as the file `name`; an error is said of the lines that it
/// names.
fn said(dir: &Path, name: &str, text: &str) -> BTreeSet<usize> {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    let facts = match facts::load_file(&path) {
        Ok(facts) => facts,
        Err(error) => {
            let error = error.to_string();
            let (_, rest) = error.split_once(&format!("{name}:")).unwrap_or_default();
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            assert!(!digits.is_empty(), "{error}");
            return digits.parse().into_iter().collect();
        }
    };
    let topology = topology::build(vec![facts]);
    let strange = topology.routers.iter().flat_map(strange_lines);
    let warnings = topology.warnings.iter().cloned().chain(strange);
    warnings.map(|warning| warning.origin.line).collect()
}

/// What a line is, for [`DECIDES_NOTHING`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `===` and `---`: each is tried alone.
    Mark,
    Body,
    /// Below a head of nft, which sees to what is within.
    Nft,
    Nothing(&'static str),
}

/// The kind of each line of a sectioned file, and where its section begins.
fn kinds(text: &str) -> Vec<(Kind, usize)> {
    let mut section: Option<(&str, usize)> = None;
    let mut head = false;
    let (mut saved, mut ended) = (false, false);
    let mut kinds = Vec::new();
    let has_save = text.contains("TSIM_SECTION_START:iptables_save");
    for (at, line) in (1..).zip(text.lines()) {
        let begins = line.strip_prefix("=== TSIM_SECTION_START:");
        let kind = if let Some(name) = begins {
            section = Some((name.trim_end_matches(" ==="), at));
            (head, saved, ended) = (true, false, false);
            Kind::Mark
        } else if line.starts_with("=== TSIM_SECTION_END:") {
            Kind::Mark
        } else {
            match section {
                None => Kind::Nothing(DECIDES_NOTHING[0].0),
                Some((name, _))
                    if facts::NOT_NEEDED.contains(&name)
                        || name.starts_with("iptables_")
                            && name != "iptables_save"
                            && !name.contains("legacy") =>
                {
                    Kind::Nothing(DECIDES_NOTHING[2].0)
                }
                Some(_) if head && line == "---" => {
                    head = false;
                    Kind::Mark
                }
                Some(_) if head => Kind::Nothing(DECIDES_NOTHING[1].0),
                Some(("nft_ruleset", _)) => {
                    if line.starts_with("table ip") && has_save && !line.starts_with("table inet") {
                        saved = true;
                    }
                    match saved {
                        true => Kind::Nothing(DECIDES_NOTHING[4].0),
                        false => Kind::Nft,
                    }
                }
                Some(_) if ended => Kind::Nothing(DECIDES_NOTHING[5].0),
                Some(_) => Kind::Body,
            }
        };
        ended |= line.starts_with("EXIT_CODE:");
        kinds.push((kind, section.map_or(0, |(_, begin)| begin)));
        if line.starts_with("=== TSIM_SECTION_END:") {
            section = None;
        }
    }
    kinds
}

fn with_word(text: &str, at: &BTreeSet<usize>) -> String {
    let line = |(number, line): (usize, &str)| match at.contains(&number) {
        true => format!("{WORD} {line}\n"),
        false => format!("{line}\n"),
    };
    (1..).zip(text.lines()).map(line).collect()
}

#[test]
fn a_strange_word_in_front_of_any_line_is_said_with_its_line() {
    let mut silent = Vec::new();
    for path in facts_files()
        .iter()
        .filter(|path| path.extension().unwrap() == "txt")
    {
        let dir = tempfile::tempdir().unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(path).unwrap();
        let kinds = kinds(&text);
        let before = said(dir.path(), &name, &text);
        let lines = || (1..).zip(&kinds);
        // Marks make a whole file, or a section, unusable: each by itself. Those of corp10 are alike.
        let few = path.to_string_lossy().contains("corp10") && name != "hq-gw_facts.txt";
        let marks: Vec<_> = lines()
            .filter(|(_, (kind, _))| *kind == Kind::Mark)
            .map(|(at, (_, begin))| (at, *begin))
            .take(if few { 6 } else { usize::MAX })
            .collect();
        for (at, begin) in marks {
            let said = said(dir.path(), &name, &with_word(&text, &[at].into()));
            // The end that has no beginning is named, or the beginning that has no end.
            let named = said.contains(&begin) || said.range(at..).next().is_some();
            let not_needed =
                lines().any(|(line, (kind, _))| line == at + 1 && matches!(kind, Kind::Nothing(_)));
            if !named && !not_needed {
                silent.push(format!("{}:{at}", path.display()));
            }
        }
        for first in 0..STRIDE {
            let chosen: BTreeSet<usize> = lines()
                .filter(|(at, (kind, _))| at % STRIDE == first && *kind == Kind::Body)
                .map(|(at, _)| at)
                .collect();
            let said = said(dir.path(), &name, &with_word(&text, &chosen));
            for at in chosen {
                let (_, begin) = kinds[at - 1];
                let as_a_whole = before.contains(&begin) && said.contains(&begin);
                if !said.contains(&at) && !as_a_whole {
                    let line = text.lines().nth(at - 1).unwrap_or_default();
                    silent.push(format!("{}:{at}: {line}", path.display()));
                }
            }
        }
    }
    assert!(
        silent.is_empty(),
        "{} lines:\n{}",
        silent.len(),
        silent.join("\n")
    );
}

#[test]
fn a_strange_word_in_front_of_any_line_of_json_facts_is_an_error_with_its_line() {
    for path in facts_files()
        .iter()
        .filter(|path| path.extension().unwrap() == "json")
    {
        let dir = tempfile::tempdir().unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(path).unwrap();
        for at in 1..=text.lines().count() {
            let said = said(dir.path(), &name, &with_word(&text, &[at].into()));
            // A list that is not closed is noticed where the next thing stands.
            assert!(
                said.contains(&at) || said.contains(&(at + 1)),
                "{}:{at}: {said:?}",
                path.display()
            );
        }
    }
}
