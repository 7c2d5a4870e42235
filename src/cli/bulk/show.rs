//! `tsim show`: a saved result once more, in any format.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::de::DeserializeOwned;

use super::Output;
use crate::{
    bulk::{
        answers::Answers,
        check::{self, Checked},
        diff::{self, Diff},
        matrix::{self, Names},
    },
    cli::{Context, Exit, Failure, Run},
};

const EXAMPLES: &str = "Examples:
  tsim matrix corp10 --networks -P @web -o web.json
  tsim show web.json
  tsim show web.json -o web.html -o web.md
  tsim show check.json --format junit
  tsim result nightly-4711 --json | tsim show - -o check.html    # of a check that was submitted

A result is what `tsim matrix`, `tsim check`, `tsim diff` and `tsim what-if` write with -o FILE.json or
print with --json: with lab, identity of its facts, time and version. Exit code 0, whatever was found.";

/// Show a saved matrix, check or diff, in any format
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct ShowSaved {
    /// The result, as JSON; `-` for standard input
    file: PathBuf,

    #[command(flatten)]
    output: Output,
}

impl Run for ShowSaved {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        self.output.check(false)?;
        let shown = self.file.display();
        let text = if self.file == Path::new("-") {
            io::read_to_string(io::stdin())
        } else {
            fs::read_to_string(&self.file)
        };
        let text = text.map_err(|e| Failure::usage(format!("cannot read {shown}: {e}")))?;
        let value: serde_json::Value = self.parse(&text)?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        let version = version.and_then(|version| u32::try_from(version).ok());
        super::known_version(version.unwrap_or(0), &self.file)?;
        match value.get("kind").and_then(serde_json::Value::as_str) {
            Some("matrix") => {
                let answers: Answers = self.parse(&text)?;
                let document = matrix::document(&answers, &Names::new());
                self.output.write(context, &answers, &document, None)?;
            }
            Some("check") => {
                let checked: Checked = self.parse(&text)?;
                self.output
                    .write(context, &checked, &check::document(&checked), None)?;
            }
            Some("diff") => {
                let found: Diff = self.parse(&text)?;
                self.output
                    .write(context, &found, &diff::document(&found), None)?;
            }
            other => {
                let other = other.unwrap_or("nothing");
                return Err(Failure::usage(format!(
                    "{shown}: kind is {other:?}; `matrix`, `check` and `diff` can be shown"
                )));
            }
        }
        Ok(Exit::Ok)
    }
}

impl ShowSaved {
    fn parse<T: DeserializeOwned>(&self, text: &str) -> Result<T, Failure> {
        serde_json::from_str(text).map_err(|e| {
            Failure::usage(format!("{} is no result of tsim: {e}", self.file.display()))
        })
    }
}
