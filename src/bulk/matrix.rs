//! A matrix: all pairs of sources and destinations by services, as a truth table.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{
    addresses::Sides,
    answers::{Answers, Cell, Folded, HeadLine, fold},
    document::{Document, DocumentSection, Grid, Item, Outcome},
};
use crate::{
    model::{Service, ServiceError},
    run::{quick::Pair, report::Verdict, sentence::folded},
};

/// What addresses stand for, where that is more than themselves.
pub type Names = BTreeMap<IpAddr, String>;

/// All pairs of sources and destinations with all `services`, each by its family: addresses of two
/// families, and one address twice, make no pair.
///
/// # Errors
/// [`ServiceError::Family`] for a service that a family of some pair does not have.
pub fn pairs(ends: &Sides, services: &[Service]) -> Result<Vec<Pair>, ServiceError> {
    let of_family = |v6: bool| -> Result<Vec<Service>, ServiceError> {
        services
            .iter()
            .map(|service| service.in_family(v6))
            .collect()
    };
    let mut pairs = Vec::new();
    for &source in &ends.sources {
        for &destination in &ends.destinations {
            if source == destination || source.is_ipv4() != destination.is_ipv4() {
                continue;
            }
            pairs.push(Pair {
                source,
                destination,
                services: of_family(source.is_ipv6())?,
            });
        }
    }
    Ok(pairs)
}

/// The matrix as a report.
#[must_use]
pub fn document(answers: &Answers, names: &Names) -> Document {
    let counts = answers.counts;
    let mut by_pair: Vec<((IpAddr, IpAddr), Vec<&Cell>)> = Vec::new();
    for cell in &answers.cells {
        let pair = (cell.source, cell.destination);
        match by_pair.last_mut() {
            Some((same, cells)) if *same == pair => cells.push(cell),
            _ => by_pair.push((pair, vec![cell])),
        }
    }
    let mut sections: Vec<DocumentSection> = by_pair
        .iter()
        .map(|((source, destination), cells)| section(*source, *destination, cells, names))
        .collect();
    sections.sort_by_key(|section| section.outcome);
    Document {
        kind: "matrix",
        title: format!("Matrix of lab {}", answers.head.lab.name),
        words: ["NO", "UNKNOWN", "YES"],
        about: about(&answers.head),
        summary: format!(
            "{} YES, {} NO, {} UNKNOWN between {} pairs of addresses",
            counts.yes,
            counts.no,
            counts.unknown,
            by_pair.len()
        ),
        sections,
        grid: Some(grid(&by_pair, names)),
        warnings: answers.warnings.clone(),
    }
}

/// Who measured what when.
pub(super) fn about(head: &HeadLine) -> Vec<(&'static str, String)> {
    vec![
        (
            "lab",
            format!("{} (identity {})", head.lab.name, head.lab.identity),
        ),
        ("facts", head.lab.facts.clone()),
        ("measured", format!("{} with {}", head.time, head.backend)),
        ("tsim", head.tsim.clone()),
    ]
}

/// An address with what it stands for.
pub(super) fn label(address: IpAddr, names: &Names) -> String {
    match names.get(&address) {
        Some(name) => format!("{name} ({address})"),
        None => address.to_string(),
    }
}

fn section(source: IpAddr, destination: IpAddr, cells: &[&Cell], names: &Names) -> DocumentSection {
    let worst = |verdict| cells.iter().any(|cell| cell.end.result == verdict);
    let outcome = match (worst(Verdict::No), worst(Verdict::Unknown)) {
        (true, _) => Outcome::Bad,
        (false, true) => Outcome::Open,
        (false, false) => Outcome::Good,
    };
    // Beside what is stopped, nobody looks for what arrives, and after how long.
    let noted = |cell: &Cell| outcome == Outcome::Good && cell.end.reason.is_some();
    let not_plain = |cell: &&&Cell| cell.end.result != Verdict::Yes || noted(cell);
    let items = fold(cells.iter().filter(not_plain).copied());
    DocumentSection {
        name: format!("{} → {}", label(source, names), label(destination, names)),
        outcome,
        about: Vec::new(),
        questions: cells.len(),
        items: items.iter().map(item).collect(),
    }
}

/// Questions with one answer as something to be looked at.
fn item(folded_cells: &Folded<'_>) -> Item {
    let cell = folded_cells.cell;
    let mut answer = vec![cell.why()];
    answer.extend(
        Some(cell.way())
            .filter(|way| !way.is_empty())
            .map(|way| format!("way {way}")),
    );
    Item {
        what: folded(&folded_cells.services),
        outcome: cell.end.result.into(),
        answer,
    }
}

fn grid(by_pair: &[((IpAddr, IpAddr), Vec<&Cell>)], names: &Names) -> Grid {
    let mut columns: Vec<Service> = Vec::new();
    let mut at: HashMap<Service, usize> = HashMap::new();
    for cell in by_pair.iter().flat_map(|(_, cells)| cells) {
        let service = cell.end.service();
        at.entry(service).or_insert_with(|| {
            columns.push(service);
            columns.len() - 1
        });
    }
    let row = |((source, destination), cells): &((IpAddr, IpAddr), Vec<&Cell>)| {
        let mut row = vec![None; columns.len()];
        for cell in cells {
            let place = at.get(&cell.end.service()).and_then(|&at| row.get_mut(at));
            if let Some(place) = place {
                *place = Some(cell.end.result);
            }
        }
        (label(*source, names), label(*destination, names), row)
    };
    Grid {
        rows: by_pair.iter().map(row).collect(),
        columns: columns.iter().map(Service::to_string).collect(),
    }
}
