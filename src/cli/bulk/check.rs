//! `tsim check`: a policy against a lab.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use super::{How, Output};
use crate::{
    bulk::{
        answers::{Answers, Cell, HeadLine, VerdictCounts, pairs},
        ask::{ask, ask_again},
        check::{self, Checked, RuleStanding, surprises},
        policy::{Policy, SCHEMA, write},
    },
    cli::{Context, Exit, Failure, Run},
    model::LabName,
    run::quick::{DscpChoice, Pair, Terms},
};

const EXAMPLES: &str = "Examples:
  tsim check corp10 policy.toml
  tsim check corp10 policy.yaml -o report.xml -o comment.md
  tsim check corp10 policy.toml --json | jq '.rules[] | select(.result != \"as_stated\") | .name'
  tsim check corp10 policy.toml --update
  tsim matrix corp10 --networks -P @web,ssh -o policy.toml      # a policy from nothing
  tsim check --print-schema > policy.schema.json

A policy names addresses and services and says what must pass and what must not:

  version = 1
  include = [\"base.toml\"]
  [addresses]
  office = [\"10.1.1.100\", \"10.1.1.110-10.1.1.119\"]
  web = \"10.2.1.60\"
  [[rule]]
  name = \"the office reaches the web servers\"
  from = \"office\"
  to = \"web\"
  services = \"@web,8443\"
  must = \"pass\"                  # or \"not-pass\"
  except = [{ from = \"10.1.1.100\", services = \"8443\" }]
  owner = \"netops\"               # ticket and note, too

What counts is the verdict from end to end. Surprises come first, each with way, router and rule. \
--update rewrites the policy so that it says what is measured; comments within rules are not kept.

Exit code 0: everything is as the policy says; 1: something is not; 3: nothing is known not to be, but \
something is UNKNOWN; 2: the policy cannot be used.";

/// Hold a policy (what must pass, what must not) against a lab
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct CheckCommand {
    /// Lab to measure in
    #[arg(required_unless_present = "print_schema")]
    lab: Option<LabName>,

    /// The policy: .toml, .yaml or .json
    #[arg(required_unless_present = "print_schema")]
    policy: Option<PathBuf>,

    /// Write what is measured as the policy, into its own file
    #[arg(long)]
    update: bool,

    /// The policy is a file that `tsim submit check` sends, with everything that it names
    #[arg(long, hide = true, conflicts_with = "update")]
    sent: bool,

    /// Write every answer to this file, as `tsim matrix --json` does
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,

    /// Print the JSON schema of policies
    #[arg(long)]
    print_schema: bool,

    #[command(flatten)]
    how: How,

    #[command(flatten)]
    output: Output,
}

impl Run for CheckCommand {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let (Some(lab), Some(path)) = (&self.lab, &self.policy) else {
            let schema: serde_json::Value =
                serde_json::from_str(SCHEMA).map_err(Failure::cannot_run)?;
            context.print(&schema, |out| write!(out, "{SCHEMA}"))?;
            return Ok(Exit::Ok);
        };
        self.output.check(false)?;
        if self.update && path.extension().is_none_or(|ending| ending != "toml") {
            let path = path.display();
            return Err(Failure::usage(format!(
                "{path}: --update writes TOML; a file that ends with .toml is allowed"
            )));
        }
        let policy = super::policy(path, self.sent, context)?;
        if policy.rules.is_empty() {
            let path = path.display();
            return Err(Failure::usage(format!(
                "{path}: no rule says what must pass or must not: [[rule]] is wanted"
            )));
        }
        let answers = self.ask(context, lab, &policy)?;
        let checked = check::check(&policy, &answers);
        if let Some(file) = &self.answers {
            write_answers(file, &answers)?;
        }
        if self.update {
            update(&policy, &answers)?;
        }
        self.output
            .write(context, &checked, &check::document(&checked), None)?;
        Ok(exit(&checked))
    }
}

fn exit(checked: &Checked) -> Exit {
    match checked.result {
        RuleStanding::AsStated => Exit::Ok,
        RuleStanding::Contradicted => Exit::SomeNo,
        RuleStanding::Unknown => Exit::SomeUnknown,
    }
}

/// As a matrix, which can be shown and compared as any other.
fn write_answers(file: &Path, answers: &Answers) -> Result<(), Failure> {
    let head = HeadLine {
        kind: "matrix".to_owned(),
        ..answers.head.clone()
    };
    let answers = AnswersOf {
        head: &head,
        counts: answers.counts,
        cells: &answers.cells,
        warnings: &answers.warnings,
    };
    super::replace_file(file, |out| super::write_json(out, &answers))
        .map_err(|e| Failure::cannot_run(format!("cannot write {}: {e}", file.display())))
}

/// [`Answers`] that belong to somebody else.
#[derive(Serialize)]
struct AnswersOf<'a> {
    #[serde(flatten)]
    head: &'a HeadLine,
    counts: VerdictCounts,
    cells: &'a [Cell],
    warnings: &'a [String],
}

impl CheckCommand {
    /// Asks everything, and what surprises once more with its reasons.
    fn ask(&self, context: &Context, lab: &LabName, policy: &Policy) -> Result<Answers, Failure> {
        let pairs: Vec<Pair> = pairs(policy.questions());
        let total = pairs.iter().map(|pair| pair.services.len() as u64).sum();
        let terms = self.how.terms(lab, Some(total), context)?;
        let mut meter = self.how.meter(Some(total))?;
        let answers = ask(&context.config, terms, pairs, "check", &mut |done| {
            meter.at(done);
        });
        meter.finish();
        let mut answers = answers?;
        if !self.how.explains_all(total) {
            let checked = check::check(policy, &answers);
            let rules = checked.rules.iter().zip(&policy.rules);
            let surprising = rules.flat_map(|(checked, rule)| {
                let must = rule.written.must;
                let cells = checked.surprises.iter();
                cells
                    .filter(move |cell| surprises(must, cell.end.result))
                    .map(Cell::key)
            });
            let surprising: Vec<_> = surprising.collect();
            // The value that the run had is given back by now.
            let terms = Terms {
                dscp: DscpChoice::Auto,
                ..self.how.terms(lab, Some(0), context)?
            };
            ask_again(&context.config, terms, &mut answers, &surprising)?;
        }
        Ok(answers)
    }
}

/// Rewrites the policy's own file.
fn update(policy: &Policy, answers: &Answers) -> Result<(), Failure> {
    let file = &policy.file;
    let shown = file.display();
    let own = fs::read_to_string(file)
        .map_err(|e| Failure::cannot_run(format!("cannot read {shown}: {e}")))?;
    let text = write::updated(policy, &own, &answers.by_key());
    super::replace_file(file, |out| out.write_all(text.as_bytes()))
        .map_err(|e| Failure::cannot_run(format!("cannot write {shown}: {e}")))
}
