//! `tsim diff`: before and after.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{How, Output, questions::Questions};
use crate::{
    bulk::{
        answers::Answers,
        ask::ask,
        diff::{self, Diff},
        document::Outcome,
        temporary::{TemporaryError, TemporaryLab},
    },
    cli::{Context, Exit, Failure, Run},
    lab::{Lab, UpOptions},
    model::LabName,
    run::quick::Pair,
};

const EXAMPLES: &str = "Examples:
  tsim diff corp10 facts-of-tomorrow --networks -P @web,ssh,@dns
  tsim diff facts-of-yesterday facts-of-today --policy policy.toml -o comment.md
  tsim matrix corp10 --networks -P @web -o before.json
  tsim diff before.json corp10                  # the questions of before.json, asked anew
  tsim diff before.json after.json

A side is a lab that is up, a directory of facts (a lab is made of it for the time of the command) or a \
matrix saved as JSON, whose questions are asked on the other side where none are given. A name that is both \
a lab's and a file's is the lab's; write ./NAME for the file.

Exit code 0: every verdict is the same; 1: some differ; 3: none is known to differ, but something is UNKNOWN \
before or after.";

/// Say which services have another verdict after than before: where, and by which rule
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct DiffCommand {
    /// A lab, a directory of facts, or a saved matrix
    before: PathBuf,

    /// Another one
    after: PathBuf,

    #[command(flatten)]
    questions: Questions,

    #[command(flatten)]
    how: How,

    #[command(flatten)]
    output: Output,
}

/// One side of a comparison.
enum Side<'a> {
    /// A lab that is up.
    Up(LabName),
    /// A lab for the time of the command.
    Made(TemporaryLab<'a>, PathBuf),
    /// Answers that were kept.
    Saved(Box<Answers>),
}

impl Run for DiffCommand {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        self.output.check(false)?;
        let sent = self.questions.sent;
        let before = Side::open(&self.before, "before", sent, context)?;
        let after = Side::open(&self.after, "after", sent, context)?;
        let networks = before.lab(context)?.or(after.lab(context)?);
        let asked = self.questions.pairs(networks.as_deref(), context)?;
        let pairs = match (asked, &before, &after) {
            (Some(pairs), ..) => pairs,
            (None, Side::Saved(saved), _) | (None, _, Side::Saved(saved)) => saved.pairs(),
            (None, ..) => {
                return Err(Failure::usage(
                    "what is to be asked? Give -s, -d and -P, --networks and -P, or --policy",
                ));
            }
        };
        let first = before.answers(&self.how, &pairs, context)?;
        // The value that the run had is given back by now.
        let how = How {
            dscp: None,
            ..self.how
        };
        let second = after.answers(&how, &pairs, context)?;
        let found = diff::diff(&first, &second, Vec::new());
        finish(&self.output, context, &found)
    }
}

/// Writes the differences.
pub(super) fn finish(output: &Output, context: &Context, found: &Diff) -> Result<Exit, Failure> {
    output.write(context, found, &diff::document(found), None)?;
    Ok(match found.outcome() {
        Outcome::Good => Exit::Ok,
        Outcome::Bad => Exit::SomeNo,
        Outcome::Open => Exit::SomeUnknown,
    })
}

impl<'a> Side<'a> {
    /// What a name means; where a scheduler `sent` it, a lab alone: a lab that is gone is no directory.
    fn open(path: &Path, suffix: &str, sent: bool, context: &'a Context) -> Result<Self, Failure> {
        let name = path.to_str().and_then(|name| LabName::new(name).ok());
        if let Some(name) = name
            && (sent || Lab::open(&context.config, &name).is_ok())
        {
            return Ok(Self::Up(name));
        }
        if path.is_dir() {
            let options = UpOptions::default();
            let lab = TemporaryLab::up(&context.config, suffix, path, options)?;
            return Ok(Self::Made(lab, path.to_owned()));
        }
        if path.is_file() {
            return Ok(Self::Saved(Box::new(saved(path)?)));
        }
        Err(Failure::usage(format!(
            "{} is no lab that is up, no directory of facts and no file",
            path.display()
        )))
    }

    fn name(&self) -> Option<&LabName> {
        match self {
            Self::Up(name) => Some(name),
            Self::Made(lab, _) => Some(lab.name()),
            Self::Saved(_) => None,
        }
    }

    fn lab(&self, context: &Context) -> Result<Option<Lab>, Failure> {
        let lab = self.name().map(|name| Lab::open(&context.config, name));
        Ok(lab.transpose()?)
    }

    fn answers(&self, how: &How, pairs: &[Pair], context: &Context) -> Result<Answers, Failure> {
        let mut answers = match self {
            Self::Saved(saved) => return Ok((**saved).clone()),
            Self::Up(name) => measure(name, how, pairs, context)?,
            Self::Made(lab, _) => measure_made(lab, how, pairs, context)?,
        };
        if let Self::Made(_, facts) = self {
            answers.head.lab.name = facts.display().to_string();
        }
        Ok(answers)
    }
}

/// Asks a lab that goes with the command, whose name says nothing to a reader.
pub(super) fn measure_made(
    lab: &TemporaryLab<'_>,
    how: &How,
    pairs: &[Pair],
    context: &Context,
) -> Result<Answers, Failure> {
    let mut answers = measure(lab.name(), how, pairs, context)?;
    answers.rename(&format!("; see `tsim lab status {}`", lab.name()), "");
    Ok(answers)
}

/// Asks a lab.
pub(super) fn measure(
    lab: &LabName,
    how: &How,
    pairs: &[Pair],
    context: &Context,
) -> Result<Answers, Failure> {
    let total = pairs.iter().map(|pair| pair.services.len() as u64).sum();
    let terms = how.terms(lab, Some(total), context)?;
    let mut meter = how.meter(Some(total))?;
    let config = &context.config;
    let answers = ask(config, terms, pairs.to_vec(), "matrix", &mut |done| {
        meter.at(done);
    });
    meter.finish();
    Ok(answers?)
}

/// Reads answers that `tsim matrix` kept.
fn saved(path: &Path) -> Result<Answers, Failure> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("cannot read {shown}: {e}")))?;
    let answers: Answers = serde_json::from_str(&text).map_err(|e| {
        Failure::usage(format!(
            "{shown} is no matrix that `tsim matrix -o FILE.json` wrote: {e}"
        ))
    })?;
    super::known_version(answers.head.version, path)?;
    Ok(answers)
}

impl From<TemporaryError> for Failure {
    fn from(error: TemporaryError) -> Self {
        match error {
            TemporaryError::Lab(error) => error.into(),
            other => Self::cannot_run(other),
        }
    }
}
