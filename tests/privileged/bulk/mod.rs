//! Questions in bulk: the sweep against the quick job, and policies, matrices, differences and changes
//! as a user types them.

mod changes;
mod policies;
mod sweep;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::quick::TestLab;

/// A lab, and a directory where somebody sits who types commands about it.
pub(crate) struct Desk {
    pub(crate) lab: TestLab,
    dir: TempDir,
}

impl Desk {
    pub(crate) fn at(facts: &str) -> Self {
        Self {
            lab: TestLab::up(facts),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// `line` as a command of `tsim`; `LAB` stands for the lab's name.
    fn command(&self, line: &str) -> Command {
        let lab = self.lab.bed.lab.to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsim"));
        command
            .arg("--config")
            .arg(self.lab.config_file())
            .args(words(line).map(|word| word.replace("LAB", &lab)))
            .current_dir(self.dir.path());
        command
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs a command that has to end with one of `codes`.
    pub(crate) fn ends_with(&self, codes: &[i32], line: &str) -> Output {
        let output = self.run(line);
        let code = output.status.code();
        assert!(
            code.is_some_and(|code| codes.contains(&code)),
            "{line}: {code:?} and not {codes:?}: {}",
            text(&output)
        );
        output
    }

    /// What a command with `--json` prints, held against the schema that is shipped.
    fn report<T: DeserializeOwned>(&self, codes: &[i32], line: &str) -> T {
        valid(&self.ends_with(codes, line).stdout)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub(crate) fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(file), text).unwrap();
    }

    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }

    /// The facts in `from`, copied into the directory `to`.
    pub(crate) fn copy_facts(&self, from: &str, to: &str) {
        fs::create_dir_all(self.path(to)).unwrap();
        for entry in fs::read_dir(Path::new("netns-fixtures").join(from)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.path(to).join(entry.file_name())).unwrap();
        }
    }

    /// Whether there are labs that a command made for its own time.
    fn has_temporary_labs(&self) -> bool {
        text(&self.run("lab list")).contains("tmp-")
    }
}

/// Words of a command line, where quotes keep a word together.
fn words(line: &str) -> impl Iterator<Item = String> {
    line.split('\'').enumerate().flat_map(|(part, text)| {
        let words: Vec<String> = match part % 2 {
            0 => text.split_whitespace().map(str::to_owned).collect(),
            _ => vec![text.to_owned()],
        };
        words
    })
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A report, which has to keep to the schema that is shipped.
fn valid<T: DeserializeOwned>(report: &[u8]) -> T {
    let schema = fs::read_to_string("docs/report.schema.json").unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let value: serde_json::Value = serde_json::from_slice(report).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let errors = schema.iter_errors(&value).map(|error| error.to_string());
    let shown: Vec<String> = errors.map(|e| e.chars().take(300).collect()).collect();
    assert!(shown.is_empty(), "{shown:?}");
    serde_json::from_value(value).unwrap()
}

/// Numbers that look random and are the same for the same seed.
struct Random(u64);

impl Random {
    /// A number below `end`, by the multiplier of Knuth's MMIX generator.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}
