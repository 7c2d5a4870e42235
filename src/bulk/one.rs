//! A quick job's answer as a report like those of many questions: it is a matrix of one pair.

use super::{
    answers::{Answers, Cell, HeadLine, LabIdentity, VerdictCounts},
    document::Document,
    matrix::{self, Names},
};
use crate::run::report::{EndToEnd, QuickReport, VerdictScope};

/// What a quick job on `lab` found, from end to end.
#[must_use]
pub fn document(report: &QuickReport, lab: LabIdentity) -> Document {
    let mut counts = VerdictCounts::default();
    let cell = |end: &EndToEnd| {
        counts.add(end.result);
        Cell {
            source: report.source,
            destination: report.destination,
            end: end.clone(),
        }
    };
    let cells = report.end_to_end.iter().map(cell).collect();
    let answers = Answers {
        head: HeadLine::now("quick", lab, report.backend.clone()),
        counts,
        cells,
        warnings: report.warnings.clone(),
    };
    let mut document = matrix::document(&answers, &Names::new());
    document.kind = "quick";
    document.title = format!(
        "{} → {} on lab {}",
        report.source, report.destination, answers.head.lab.name
    );
    if report.scope == VerdictScope::Named {
        let asked = "the way through the routers that were named";
        document.about.push(("asked about", asked.to_owned()));
    }
    document
}
