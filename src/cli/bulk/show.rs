//! `tsim show`: a saved result once more, in any format.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::Value;

use super::Output;
use crate::{
    bulk::saved,
    cli::{Context, Exit, Failure, Run},
    model::WithCauses,
};

const EXAMPLES: &str = "Examples:
  tsim matrix corp10 --networks -P @web -o web.json
  tsim show web.json
  tsim show web.json -o web.html -o web.md
  tsim show check.json --format junit
  tsim result nightly-4711 --json | tsim show - -o check.html    # of a job that was submitted
  tsim detailed --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P ssh --json | tsim show -

A result is what `tsim matrix`, `tsim check`, `tsim diff`, `tsim what-if`, `tsim quick` and `tsim detailed` write \
with -o FILE.json or print with --json. Exit code 0, whatever was found.";

/// Show a saved result (matrix, check, diff, quick or detailed job), in any format
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
        let document = saved::document(&text)
            .map_err(|error| Failure::usage(format!("{shown} {}", WithCauses(&error))))?;
        // It was read as JSON just now.
        let value: Value = serde_json::from_str(&text).map_err(Failure::cannot_run)?;
        self.output.write(context, &value, &document, None)?;
        Ok(Exit::Ok)
    }
}
