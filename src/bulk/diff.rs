//! Before and after: which services have another verdict, on which way, at which router, by which rule.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    answers::{Answers, Cell, HeadLine, VERSION, fold},
    document::{Document, DocumentSection, Item, Outcome},
};
use crate::run::{report::Verdict, sentence::folded};

/// How two sets of answers to the same questions differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// The version of this form.
    pub version: u32,
    /// `diff`.
    pub kind: String,
    /// Who measured what when, before.
    pub before: HeadLine,
    /// And after.
    pub after: HeadLine,
    /// What was changed, where it is a question of what if.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub what_if: Vec<String>,
    /// How many questions stand how.
    pub counts: DiffCounts,
    /// Services that got there and do not, or the other way round.
    pub changes: Vec<Change>,
    /// Services of which it is not known before, or after.
    pub unknown: Vec<Change>,
    /// Services that get there before and after, by other routers.
    pub rerouted: Vec<Change>,
    /// What a reader should know beside.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How many questions stand how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffCounts {
    /// The verdict is the same.
    pub same: usize,
    /// It got there, and does not.
    pub lost: usize,
    /// It did not, and gets there.
    pub gained: usize,
    /// It is not known before, or after.
    pub unknown: usize,
}

/// One question before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The answer before.
    pub before: Cell,
    /// The answer after.
    pub after: Cell,
}

/// How `after` differs from `before`. A question that one side was not asked is not known there.
#[must_use]
pub fn diff(before: &Answers, after: &Answers, what_if: Vec<String>) -> Diff {
    let mut found = Diff {
        version: VERSION,
        kind: "diff".to_owned(),
        before: before.head.clone(),
        after: after.head.clone(),
        what_if,
        counts: DiffCounts::default(),
        changes: Vec::new(),
        unknown: Vec::new(),
        rerouted: Vec::new(),
        warnings: warnings(before, after),
    };
    let answers = after.by_key();
    let mut asked = 0;
    for cell in &before.cells {
        let Some(after) = answers.get(&cell.key()) else {
            found.counts.unknown += 1;
            continue;
        };
        asked += 1;
        found.compare(cell, after);
    }
    let more = after.cells.len().saturating_sub(asked);
    found.counts.unknown += more;
    let missing = before.cells.len() - asked + more;
    if missing > 0 {
        found.warnings.push(format!(
            "{missing} questions were asked on one side only, and count as UNKNOWN"
        ));
    }
    found
}

fn warnings(before: &Answers, after: &Answers) -> Vec<String> {
    let both = |warning: &&String| after.warnings.contains(warning);
    let sides = [("before: ", before), ("after: ", after)];
    let common = before.warnings.iter().filter(both).cloned();
    let own = sides.iter().flat_map(|(side, answers)| {
        let other = if side.starts_with('b') { after } else { before };
        let own = answers
            .warnings
            .iter()
            .filter(|w| !other.warnings.contains(w));
        own.map(move |warning| format!("{side}{warning}"))
    });
    common.chain(own).collect()
}

impl Diff {
    fn compare(&mut self, before: &Cell, after: &Cell) {
        let change = || Change {
            before: before.clone(),
            after: after.clone(),
        };
        match (before.end.result, after.end.result) {
            (Verdict::Unknown, _) | (_, Verdict::Unknown) => {
                self.counts.unknown += 1;
                self.unknown.push(change());
            }
            (Verdict::Yes, Verdict::No) => {
                self.counts.lost += 1;
                self.changes.push(change());
            }
            (Verdict::No, Verdict::Yes) => {
                self.counts.gained += 1;
                self.changes.push(change());
            }
            (Verdict::Yes, Verdict::Yes) if routers(before) != routers(after) => {
                self.counts.same += 1;
                self.rerouted.push(change());
            }
            (Verdict::Yes, Verdict::Yes) | (Verdict::No, Verdict::No) => self.counts.same += 1,
        }
    }

    /// Whether nothing is known to differ, and everything is known.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let counts = self.counts;
        if counts.lost + counts.gained > 0 {
            Outcome::Bad
        } else if counts.unknown > 0 || counts.same == 0 {
            Outcome::Open
        } else {
            Outcome::Good
        }
    }
}

fn routers(cell: &Cell) -> Vec<&str> {
    let legs = cell.end.way.iter();
    legs.map(|leg| leg.hop.router.as_str()).collect()
}

/// The differences as a report.
#[must_use]
pub fn document(diff: &Diff) -> Document {
    let DiffCounts {
        same,
        lost,
        gained,
        unknown,
    } = diff.counts;
    let side = |head: &HeadLine| {
        let lab = &head.lab;
        format!(
            "lab {} from {} (identity {}), {} with {}",
            lab.name, lab.facts, lab.identity, head.time, head.backend
        )
    };
    let mut about = vec![("before", side(&diff.before)), ("after", side(&diff.after))];
    about.extend(diff.what_if.iter().map(|change| ("if", change.clone())));
    let mut sections = sections(&diff.changes, Outcome::Bad);
    sections.extend(self::sections(&diff.unknown, Outcome::Open));
    sections.extend(self::sections(&diff.rerouted, Outcome::Good));
    if sections.is_empty() && same > 0 {
        sections.push(DocumentSection {
            name: "nothing differs".to_owned(),
            outcome: Outcome::Good,
            about: Vec::new(),
            questions: same,
            items: Vec::new(),
        });
    }
    Document {
        kind: "diff",
        title: format!("{} against {}", diff.before.lab.name, diff.after.lab.name),
        words: ["CHANGED", "UNKNOWN", "SAME"],
        about,
        summary: format!(
            "{lost} services no longer get there, {gained} newly do, {unknown} UNKNOWN, {same} the same"
        ),
        sections,
        grid: None,
        warnings: diff.warnings.clone(),
    }
}

/// One section for each pair of addresses.
fn sections(changes: &[Change], outcome: Outcome) -> Vec<DocumentSection> {
    let mut sections: Vec<DocumentSection> = Vec::new();
    let after: HashMap<_, _> = changes
        .iter()
        .map(|change| (change.before.key(), &change.after))
        .collect();
    // Services are together only where both answers are.
    for alike in fold(changes.iter().map(|change| &change.before)) {
        let cell = alike.cell;
        let key = |service| (cell.source, cell.destination, service);
        let afters = alike
            .services
            .iter()
            .filter_map(|s| after.get(&key(*s)).copied());
        for alike_after in fold(afters) {
            let name = format!("{} → {}", cell.source, cell.destination);
            let item = item(
                cell,
                alike_after.cell,
                folded(&alike_after.services),
                outcome,
            );
            let questions = alike_after.services.len();
            match sections.iter_mut().find(|section| section.name == name) {
                Some(section) => {
                    section.questions += questions;
                    section.items.push(item);
                }
                None => sections.push(DocumentSection {
                    name,
                    outcome,
                    about: Vec::new(),
                    questions,
                    items: vec![item],
                }),
            }
        }
    }
    sections
}

fn item(before: &Cell, after: &Cell, what: String, outcome: Outcome) -> Item {
    let side = |name: &str, cell: &Cell| {
        let way = cell.way();
        let way = match way.is_empty() {
            true => String::new(),
            false => format!(" (way {way})"),
        };
        format!("{name} {}: {}{way}", cell.end.result, cell.why())
    };
    Item {
        what,
        outcome,
        answer: vec![
            format!("{} before, {} after", before.end.result, after.end.result),
            side("before", before),
            side("after", after),
        ],
    }
}
