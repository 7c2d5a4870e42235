//! Holds a policy against what was measured.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    answers::{Answers, Cell, HeadLine, QuestionKey, fold},
    document::{Document, DocumentSection, Item, Outcome},
    matrix::about,
    policy::{CheckRule, Policy, file::Must},
};
use crate::run::{report::Verdict, sentence::folded};

/// How a rule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleStanding {
    /// Something is otherwise than it says.
    Contradicted,
    /// Nothing is known to be otherwise, but something is not known.
    Unknown,
    /// Everything is as it says.
    AsStated,
}

/// What became of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Who measured what when.
    #[serde(flatten)]
    pub head: HeadLine,
    /// The policy's file.
    pub policy: String,
    /// How it stands as a whole.
    pub result: RuleStanding,
    /// How many rules stand how.
    pub rule_counts: RuleCounts,
    /// How many questions were asked.
    pub questions: usize,
    /// What became of each rule, in the policy's order.
    pub rules: Vec<CheckedRule>,
    /// What a reader should know beside.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How many rules stand how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCounts {
    /// Everything is as they say.
    pub as_stated: usize,
    /// Something is otherwise.
    pub contradicted: usize,
    /// Something is not known.
    pub unknown: usize,
}

/// What became of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedRule {
    /// Its name.
    pub name: String,
    /// Where it stands, `FILE:LINE`.
    pub place: String,
    /// What it says: `pass` or `not-pass`.
    pub must: String,
    /// How it stands.
    pub result: RuleStanding,
    /// How many questions it has.
    pub questions: usize,
    /// Who is to be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Where it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// Anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What is otherwise than it says, and what is not known.
    pub surprises: Vec<Cell>,
}

/// Whether an answer is not what a rule says.
#[must_use]
pub fn surprises(must: Must, verdict: Verdict) -> bool {
    match must {
        Must::Pass => verdict != Verdict::Yes,
        Must::NotPass => verdict != Verdict::No,
    }
}

/// Holds `policy` against `answers`.
#[must_use]
pub fn check(policy: &Policy, answers: &Answers) -> Checked {
    let by_key = answers.by_key();
    let rules: Vec<CheckedRule> = policy
        .rules
        .iter()
        .map(|rule| check_rule(rule, &by_key))
        .collect();
    let count = |standing| rules.iter().filter(|rule| rule.result == standing).count();
    let rule_counts = RuleCounts {
        as_stated: count(RuleStanding::AsStated),
        contradicted: count(RuleStanding::Contradicted),
        unknown: count(RuleStanding::Unknown),
    };
    // A policy without a rule says nothing that could be so.
    let worst = rules.iter().map(|rule| rule.result).min();
    Checked {
        head: answers.head.clone(),
        policy: policy.file.display().to_string(),
        result: worst.unwrap_or(RuleStanding::Unknown),
        rule_counts,
        questions: answers.cells.len(),
        rules,
        warnings: answers.warnings.clone(),
    }
}

fn check_rule(rule: &CheckRule, answers: &HashMap<QuestionKey, &Cell>) -> CheckedRule {
    let must = rule.written.must;
    let mut result = RuleStanding::AsStated;
    let mut surprising = Vec::new();
    for key in &rule.questions {
        let Some(cell) = answers.get(key) else {
            // Every question is asked; one that was not answered is at least not said to hold.
            result = result.min(RuleStanding::Unknown);
            continue;
        };
        if !surprises(must, cell.end.result) {
            continue;
        }
        result = result.min(match cell.end.result {
            Verdict::Unknown => RuleStanding::Unknown,
            Verdict::Yes | Verdict::No => RuleStanding::Contradicted,
        });
        surprising.push((*cell).clone());
    }
    surprising.sort_by_key(|cell| cell.end.result == Verdict::Unknown);
    CheckedRule {
        name: rule.written.name.clone(),
        place: rule.place(),
        must: match must {
            Must::Pass => "pass".to_owned(),
            Must::NotPass => "not-pass".to_owned(),
        },
        result,
        questions: rule.questions.len(),
        owner: rule.written.owner.clone(),
        ticket: rule.written.ticket.clone(),
        note: rule.written.note.clone(),
        surprises: surprising,
    }
}

impl From<RuleStanding> for Outcome {
    fn from(standing: RuleStanding) -> Self {
        match standing {
            RuleStanding::Contradicted => Self::Bad,
            RuleStanding::Unknown => Self::Open,
            RuleStanding::AsStated => Self::Good,
        }
    }
}

/// The check as a report, surprises first.
#[must_use]
pub fn document(checked: &Checked) -> Document {
    let mut sections: Vec<DocumentSection> = checked.rules.iter().map(section).collect();
    sections.sort_by_key(|section| section.outcome);
    let RuleCounts {
        as_stated,
        contradicted,
        unknown,
    } = checked.rule_counts;
    Document {
        kind: "check",
        title: format!("Policy {} on lab {}", checked.policy, checked.head.lab.name),
        words: ["CONTRADICTED", "UNKNOWN", "AS STATED"],
        about: about(&checked.head),
        summary: format!(
            "rules: {as_stated} as stated, {contradicted} contradicted, {unknown} UNKNOWN; questions: {}",
            checked.questions
        ),
        sections,
        grid: None,
        warnings: checked.warnings.clone(),
    }
}

fn section(rule: &CheckedRule) -> DocumentSection {
    let must = match rule.must.as_str() {
        "pass" => "must pass",
        _ => "must not pass",
    };
    let item = |cells: super::answers::Folded<'_>| {
        let cell = cells.cell;
        let mut answer = vec![format!("{must}, and {}", cell.why())];
        let way = cell.way();
        answer.extend(
            Some(way)
                .filter(|way| !way.is_empty())
                .map(|way| format!("way {way}")),
        );
        Item {
            what: format!(
                "{} → {} {}",
                cell.source,
                cell.destination,
                folded(&cells.services)
            ),
            outcome: match cell.end.result {
                Verdict::Unknown => Outcome::Open,
                Verdict::Yes | Verdict::No => Outcome::Bad,
            },
            answer,
        }
    };
    let mut about = vec![("at", rule.place.clone())];
    for (name, value) in [
        ("owner", &rule.owner),
        ("ticket", &rule.ticket),
        ("note", &rule.note),
    ] {
        about.extend(value.clone().map(|value| (name, value)));
    }
    DocumentSection {
        name: rule.name.clone(),
        outcome: rule.result.into(),
        about,
        questions: rule.questions,
        items: fold(&rule.surprises).into_iter().map(item).collect(),
    }
}
