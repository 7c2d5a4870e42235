//! What was asked in bulk, by page: a check, all its answers as a matrix, and how two runs differ.

use std::io::BufReader;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Shared, Site,
    api::{blocking, run_id, seen},
    ask::{Name, UrlQuery},
    error::ApiError,
    read,
    rights::Rights,
};
use crate::{
    bulk::{
        answers::Answers,
        check::{self, Checked},
        diff,
        document::{Document, DocumentSection, Item, Outcome},
        matrix::{self, Names},
    },
    model::{LabName, RunId},
    run::report::Verdict,
    sched::{
        job::{FinishedJob, Mode, PolicyAbout},
        runner::{ANSWERS, RESULT},
    },
};

/// Sections or rows of a page unless asked otherwise.
const PART: usize = 100;
/// Most of a page.
const PART_MAX: usize = 500;
/// Most items of a section that are shown; the report has all.
const ITEMS: usize = 50;
/// How many of the latest jobs are looked through for checks.
const LOOKED: usize = 2000;
/// How many results of a policy are listed.
const LATEST: usize = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DocumentPart {
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
    #[serde(default)]
    find: String,
}

/// A document, of which one part is shown.
#[derive(Serialize)]
pub(super) struct ShownDocument {
    kind: &'static str,
    title: String,
    summary: String,
    about: Vec<(&'static str, String)>,
    warnings: Vec<String>,
    /// How many sections there are that fit.
    total: usize,
    sections: Vec<ShownSection>,
    /// How many rows there are that fit.
    rows_total: usize,
    columns: Vec<String>,
    rows: Vec<ShownRow>,
}

#[derive(Serialize)]
struct ShownSection {
    name: String,
    outcome: &'static str,
    word: &'static str,
    about: Vec<(&'static str, String)>,
    questions: usize,
    items: Vec<ShownItem>,
    /// How many more items there are.
    more: usize,
}

#[derive(Serialize)]
struct ShownItem {
    what: String,
    outcome: &'static str,
    answer: Vec<String>,
}

#[derive(Serialize)]
struct ShownRow {
    source: String,
    destination: String,
    cells: Vec<Option<Verdict>>,
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Bad => "bad",
        Outcome::Open => "open",
        Outcome::Good => "good",
    }
}

impl ShownDocument {
    fn of(document: Document, part: &DocumentPart) -> Self {
        let find = part.find.to_lowercase();
        let fits = |text: &str| text.to_lowercase().contains(&find);
        let words = document.words;
        let (offset, limit) = (part.offset, part.limit.unwrap_or(PART).clamp(1, PART_MAX));
        let mut sections = document.sections;
        sections.retain(|section| {
            let of_item = |item: &Item| fits(&item.what);
            fits(&section.name) || section.items.iter().any(of_item)
        });
        let mut grid = document.grid;
        if let Some(grid) = &mut grid {
            grid.rows.retain(|(from, to, _)| fits(from) || fits(to));
        }
        let total = sections.len();
        let section = |section: DocumentSection| ShownSection {
            more: section.items.len().saturating_sub(ITEMS),
            word: words[section.outcome as usize],
            outcome: class(section.outcome),
            name: section.name,
            about: section.about,
            questions: section.questions,
            items: section
                .items
                .into_iter()
                .take(ITEMS)
                .map(ShownItem::of)
                .collect(),
        };
        let (columns, rows) = grid
            .map(|grid| (grid.columns, grid.rows))
            .unwrap_or_default();
        let row = |(source, destination, cells)| ShownRow {
            source,
            destination,
            cells,
        };
        Self {
            kind: document.kind,
            title: document.title,
            summary: document.summary,
            about: document.about,
            warnings: document.warnings,
            total,
            sections: sections
                .into_iter()
                .skip(offset)
                .take(limit)
                .map(section)
                .collect(),
            rows_total: rows.len(),
            columns,
            rows: rows.into_iter().skip(offset).take(limit).map(row).collect(),
        }
    }
}

impl ShownItem {
    fn of(item: Item) -> Self {
        Self {
            what: item.what,
            outcome: class(item.outcome),
            answer: item.answer,
        }
    }
}

/// What a check that is over wrote into this file.
fn written<T: DeserializeOwned>(
    site: &Site,
    rights: &Rights,
    id: &RunId,
    name: &str,
) -> Result<T, ApiError> {
    read::only_finished(site, rights, id)?;
    let none = |why| ApiError::new(StatusCode::NOT_FOUND, format!("job {id} {why}"));
    let file = site.spool.run_file(id, name)?;
    let file = BufReader::new(file.ok_or_else(|| none("left no answers of that kind"))?);
    serde_json::from_reader(file).map_err(|_| none("is no check of a policy"))
}

/// A part of the document that `make` makes of what checks wrote.
async fn shown(
    site: Shared,
    part: DocumentPart,
    make: impl FnOnce(&Site) -> Result<Document, ApiError> + Send + 'static,
) -> Result<Json<ShownDocument>, ApiError> {
    blocking(&site, move |site| {
        Ok(Json(ShownDocument::of(make(site)?, &part)))
    })
    .await
}

/// A check rule by rule, surprises first.
pub(super) async fn check(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
    UrlQuery(part): UrlQuery<DocumentPart>,
) -> Result<Json<ShownDocument>, ApiError> {
    let id = run_id(id)?;
    shown(site, part, move |site| {
        let checked: Checked = written(site, &rights, &id, RESULT)?;
        Ok(check::document(&checked))
    })
    .await
}

/// All answers of a check as a truth table.
pub(super) async fn table(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
    UrlQuery(part): UrlQuery<DocumentPart>,
) -> Result<Json<ShownDocument>, ApiError> {
    let id = run_id(id)?;
    shown(site, part, move |site| {
        let answers: Answers = written(site, &rights, &id, ANSWERS)?;
        Ok(matrix::document(&answers, &Names::new()))
    })
    .await
}

/// How the answers of a later check differ from those of an earlier one.
pub(super) async fn difference(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Path((after, before)): Path<(String, String)>,
    UrlQuery(part): UrlQuery<DocumentPart>,
) -> Result<Json<ShownDocument>, ApiError> {
    let (before, after) = (run_id(before)?, run_id(after)?);
    shown(site, part, move |site| {
        let [before, after] = [&before, &after].map(|id| written(site, &rights, id, ANSWERS));
        let found = diff::diff(&before?, &after?, Vec::new());
        Ok(diff::document(&found))
    })
    .await
}

/// A policy with its latest results in one lab.
#[derive(Serialize)]
pub(super) struct PolicyRuns {
    lab: LabName,
    policy: PolicyAbout,
    /// Latest first.
    runs: Vec<FinishedJob>,
}

#[derive(Serialize)]
pub(super) struct PolicyList {
    policies: Vec<PolicyRuns>,
}

/// Every policy that was checked of late, by lab; those checked last first.
pub(super) async fn policies(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
) -> Result<Json<PolicyList>, ApiError> {
    blocking(&site, move |site| {
        let mode = Mode::Check.as_str();
        let page = site.spool.search(None, LOOKED, mode)?;
        let mut policies: Vec<PolicyRuns> = Vec::new();
        for job in seen(page.jobs, &rights) {
            let Some(policy) = job.params.policy.clone() else {
                continue;
            };
            let same = |held: &&mut PolicyRuns| {
                held.lab == job.params.lab && held.policy.name == policy.name
            };
            match policies.iter_mut().find(same) {
                Some(held) if held.runs.len() == LATEST => {}
                Some(held) => held.runs.push(job),
                None => policies.push(PolicyRuns {
                    lab: job.params.lab.clone(),
                    policy,
                    runs: vec![job],
                }),
            }
        }
        Ok(Json(PolicyList { policies }))
    })
    .await
}
