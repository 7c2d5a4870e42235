//! What was asked in bulk, by page: a check, all its answers as a matrix, and how two runs differ.

use std::{
    fmt,
    io::{self, BufReader},
};

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
        diff,
        document::{Document, DocumentSection, Item, Outcome},
        matrix::{self, Names},
        saved,
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
/// How many of the latest checks and matrices are looked through.
const LOOKED: usize = 2000;
/// How many results of a policy or matrix are listed.
const LATEST: usize = 10;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DocumentPart {
    /// The first section, and the first row.
    #[serde(default)]
    offset: usize,
    /// Most sections, and most rows; more than 500 means 500.
    #[serde(default = "part")]
    #[schemars(range(min = 1, max = PART_MAX))]
    limit: usize,
    /// Words that a section or row must have, together.
    #[serde(default)]
    find: String,
}

fn part() -> usize {
    PART
}

/// A result as a report, one part of it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Document")]
pub(super) struct ShownDocument {
    #[schemars(extend("enum" = ["check", "matrix", "diff", "quick", "detailed"]))]
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

#[derive(Serialize, JsonSchema)]
struct ShownSection {
    name: String,
    outcome: Outcome,
    /// What the outcome is called here.
    word: &'static str,
    about: Vec<(&'static str, String)>,
    questions: usize,
    #[schemars(length(max = ITEMS))]
    items: Vec<ShownItem>,
    /// How many more items there are.
    more: usize,
}

#[derive(Serialize, JsonSchema)]
struct ShownItem {
    what: String,
    outcome: Outcome,
    answer: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
struct ShownRow {
    source: String,
    destination: String,
    cells: Vec<Option<Verdict>>,
}

impl ShownDocument {
    fn of(document: Document, part: &DocumentPart) -> Self {
        let find = part.find.to_lowercase();
        let fits = |text: &str| text.to_lowercase().contains(&find);
        let words = document.words;
        let (offset, limit) = (part.offset, part.limit.clamp(1, PART_MAX));
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
            outcome: section.outcome,
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
            outcome: item.outcome,
            answer: item.answer,
        }
    }
}

fn none(id: &RunId, why: impl fmt::Display) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("job {id} {why}"))
}

/// All answers of a job that is over: a check keeps them in a file of their own, and a matrix is nothing
/// else.
fn answers(site: &Site, rights: &Rights, id: &RunId) -> Result<Answers, ApiError> {
    read::only_finished(site, rights, id)?;
    let file = match site.spool.run_file(id, ANSWERS)? {
        Some(file) => Some(file),
        None => site.spool.run_file(id, RESULT)?,
    };
    let file = BufReader::new(file.ok_or_else(|| none(id, "left no answers"))?);
    serde_json::from_reader(file).map_err(|_| none(id, "is no check and no matrix"))
}

/// A part of the document that `make` makes of what jobs wrote.
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

/// The result of a job as a report: what is not as wanted first.
pub(super) async fn document(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
    UrlQuery(part): UrlQuery<DocumentPart>,
) -> Result<Json<ShownDocument>, ApiError> {
    let id = run_id(id)?;
    shown(site, part, move |site| {
        read::only_finished(site, &rights, &id)?;
        let file = site.spool.run_file(&id, RESULT)?;
        let file = file.ok_or_else(|| none(&id, "left no result"))?;
        let text = io::read_to_string(file).map_err(|e| ApiError::ours(&e))?;
        saved::document(&text).map_err(|error| none(&id, error))
    })
    .await
}

/// All answers of a check or matrix as a truth table.
pub(super) async fn table(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
    UrlQuery(part): UrlQuery<DocumentPart>,
) -> Result<Json<ShownDocument>, ApiError> {
    let id = run_id(id)?;
    shown(site, part, move |site| {
        let answers = answers(site, &rights, &id)?;
        Ok(matrix::document(&answers, &Names::new()))
    })
    .await
}

/// How the answers of a later check or matrix differ from those of an earlier one.
pub(super) async fn difference(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Path((after, before)): Path<(String, String)>,
    UrlQuery(part): UrlQuery<DocumentPart>,
) -> Result<Json<ShownDocument>, ApiError> {
    let (before, after) = (run_id(before)?, run_id(after)?);
    shown(site, part, move |site| {
        let [before, after] = [&before, &after].map(|id| answers(site, &rights, id));
        let found = diff::diff(&before?, &after?, Vec::new());
        Ok(diff::document(&found))
    })
    .await
}

/// A policy or matrix with its latest results in one lab.
#[derive(Serialize, JsonSchema)]
pub(super) struct PolicyRuns {
    lab: LabName,
    /// The name of a policy, or what a matrix asks.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<PolicyAbout>,
    /// Latest first.
    #[schemars(length(max = LATEST))]
    runs: Vec<FinishedJob>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Policies")]
pub(super) struct PolicyList {
    policies: Vec<PolicyRuns>,
}

/// Every policy that was checked of late and every matrix that was asked, by lab; policies first, and
/// the latest of each.
pub(super) async fn policies(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
) -> Result<Json<PolicyList>, ApiError> {
    blocking(&site, move |site| {
        let mut jobs = Vec::new();
        for mode in [Mode::Check, Mode::Matrix] {
            let found = site.spool.search(None, LOOKED, mode.as_str())?.jobs;
            // The word may stand elsewhere, too.
            jobs.extend(found.into_iter().filter(|job| job.mode == mode));
        }
        let mut policies: Vec<PolicyRuns> = Vec::new();
        for job in seen(jobs, &rights) {
            let (params, policy) = (&job.params, job.params.policy.clone());
            let name = policy
                .as_ref()
                .map_or_else(|| params.question(), |policy| policy.name.clone());
            let same = |held: &&mut PolicyRuns| {
                held.lab == params.lab
                    && held.name == name
                    && held.policy.is_some() == policy.is_some()
            };
            match policies.iter_mut().find(same) {
                Some(held) if held.runs.len() == LATEST => {}
                Some(held) => held.runs.push(job),
                None => policies.push(PolicyRuns {
                    lab: params.lab.clone(),
                    name,
                    policy,
                    runs: vec![job],
                }),
            }
        }
        Ok(Json(PolicyList { policies }))
    })
    .await
}
