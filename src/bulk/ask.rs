//! Asks a lab many questions and keeps all answers.

use super::answers::{Answers, Cell, HeadLine, LabIdentity, QuestionKey, VerdictCounts, pairs};
use crate::{
    config::Config,
    lab,
    run::{
        quick::{
            Pair, QuickError, Terms,
            sweep::{OnAnswers, Sweep},
        },
        report::{EndKind, Verdict},
    },
};

/// Asks all services of all `pairs`; `progress` is told how many were answered.
///
/// # Errors
/// [`QuickError`] when it could not be run to its end.
pub fn ask(
    config: &Config,
    terms: Terms,
    pairs: Vec<Pair>,
    kind: &str,
    progress: OnAnswers<'_>,
) -> Result<Answers, QuickError> {
    let topology = lab::topology_of(config, &terms.lab)?;
    let mut sweep = Sweep::open(terms, config)?;
    let identity = LabIdentity::of(sweep.lab(), &topology);
    let mut cells = Vec::new();
    let mut counts = VerdictCounts::default();
    let asked = sweep.ask(
        pairs,
        &mut |answer| {
            counts.add(answer.end.result);
            cells.push(Cell::from(answer));
            Ok(())
        },
        progress,
    );
    // What was held is given back whatever came of it.
    let swept = sweep.close();
    asked?;
    Ok(Answers {
        head: HeadLine::now(kind, identity, swept.backend),
        counts,
        cells,
        warnings: swept.warnings,
    })
}

/// More questions than these are not asked once more.
const MOST_AGAIN: usize = 4096;

/// Asks some of the questions once more, on `terms` that find reasons out, and takes the new answers in the
/// place of the old. Where the two verdicts differ, neither is believed.
///
/// # Errors
/// As [`ask`].
pub fn ask_again(
    config: &Config,
    terms: Terms,
    answers: &mut Answers,
    questions: &[QuestionKey],
) -> Result<(), QuickError> {
    let some = questions.iter().take(MOST_AGAIN).copied();
    let pairs = pairs(some);
    if pairs.is_empty() {
        return Ok(());
    }
    let again = ask(config, terms, pairs, &answers.head.kind, &mut |_| {})?;
    let by_key = again.by_key();
    let mut counts = VerdictCounts::default();
    for cell in &mut answers.cells {
        if let Some(again) = by_key.get(&cell.key()) {
            let (first, second) = (cell.end.result, again.end.result);
            cell.end = again.end.clone();
            if first != second {
                cell.end.result = Verdict::Unknown;
                cell.end.end = EndKind::NotKnown;
                let why = cell.end.reason.as_deref().map(|why| format!(": {why}"));
                let why = why.unwrap_or_default();
                let text = format!("{first} at first, and {second} when asked again{why}");
                cell.end.reason = Some(text.into());
            }
        }
        counts.add(cell.end.result);
    }
    answers.counts = counts;
    for warning in &again.warnings {
        if !answers.warnings.contains(warning) {
            answers.warnings.push(warning.clone());
        }
    }
    Ok(())
}
