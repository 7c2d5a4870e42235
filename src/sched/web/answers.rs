//! A job's result for people: what is said first, the matrix by page, and a service's evidence.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Extension, Json, extract::State, http::StatusCode, response::Response};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Shared, Site,
    api::{blocking, run_id},
    ask::{Name, UrlQuery},
    error::ApiError,
    read,
    rights::Rights,
};
use crate::{
    model::{Protocol, RunId, ServiceLimits, parse_services},
    run::{detailed::result::file_stem, report::Verdict},
    sched::answer::{Answer, AnswerHead, MatrixSlice, Wanted},
};

/// Lines of a page unless asked otherwise.
const LINES: usize = 100;
/// Most lines of a page.
const LINES_MAX: usize = 500;
/// How many answers are kept, so that turning a page does not read the result again.
const KEPT: usize = 8;

/// The answers that were looked at last. A result never changes once its job is over.
#[derive(Debug, Default)]
pub(super) struct KeptAnswers(Mutex<VecDeque<(RunId, Arc<Answer>)>>);

impl KeptAnswers {
    fn get(&self, id: &RunId) -> Option<Arc<Answer>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|(kept, _)| kept == id);
        found.map(|(_, answer)| Arc::clone(answer))
    }

    fn put(&self, id: RunId, answer: Arc<Answer>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(KEPT - 1);
        kept.push_front((id, answer));
    }
}

fn find(site: &Site, rights: &Rights, id: RunId) -> Result<Arc<Answer>, ApiError> {
    read::only_finished(site, rights, &id)?;
    if let Some(answer) = site.answers.get(&id) {
        return Ok(answer);
    }
    let answer = Answer::read(&site.spool, &id).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "left none",
            _ => "left a result of another shape",
        };
        ApiError::new(StatusCode::NOT_FOUND, format!("job {id} {why}"))
    })?;
    let answer = Arc::new(answer);
    site.answers.put(id, Arc::clone(&answer));
    Ok(answer)
}

fn lines() -> usize {
    LINES
}

pub(super) async fn head(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
) -> Result<Json<AnswerHead>, ApiError> {
    let id = run_id(id)?;
    let head = move |site: &Site| Ok(Json(find(site, &rights, id)?.head.clone()));
    blocking(&site, head).await
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MatrixPage {
    /// The first line.
    #[serde(default)]
    offset: usize,
    /// Most lines; more than 500 means 500.
    #[serde(default = "lines")]
    #[schemars(range(min = 1, max = LINES_MAX))]
    limit: usize,
    /// Words that a line must have: a port, a protocol, a router that stops it, part of a reason.
    #[serde(default)]
    find: String,
    /// A verdict that a line must have, from end to end or at a router that was reached.
    result: Option<Verdict>,
}

pub(super) async fn matrix(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
    UrlQuery(page): UrlQuery<MatrixPage>,
) -> Result<Json<MatrixSlice>, ApiError> {
    let id = run_id(id)?;
    let wanted = Wanted {
        find: page.find,
        result: page.result,
        offset: page.offset,
        limit: page.limit.clamp(1, LINES_MAX),
    };
    let lines = move |site: &Site| Ok(Json(find(site, &rights, id)?.page(&wanted)));
    blocking(&site, lines).await
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EvidenceOf {
    /// Such as 443/tcp.
    service: String,
}

/// What a detailed job found out about one service, at every router.
pub(super) async fn evidence(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
    UrlQuery(EvidenceOf { service }): UrlQuery<EvidenceOf>,
) -> Result<Response, ApiError> {
    let services = parse_services(&service, Protocol::Tcp, ServiceLimits { max_services: 1 });
    let services = services.map_err(|e| ApiError::bad(e.to_string()))?;
    let one = services.first();
    let one = one.ok_or_else(|| ApiError::bad("service names none"))?;
    let name = format!("report/{}.json", file_stem(*one));
    read::file(site, rights, id, name, "application/json").await
}
