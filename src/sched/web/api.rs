//! `/api/v1`: the queue as JSON, and cancelling; submitting is beside.

use std::{io, sync::Arc};

use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Shared, Site,
    ask::{Body, Name, UrlQuery},
    error::ApiError,
    rights::Rights,
};
use crate::{
    model::RunId,
    sched::{
        board::Snapshot,
        job::{FinishedJob, Mode, Params, QueuedJob, Status, UserName},
        metrics::{Gauges, MODES},
        queue::{Cancelled, QueueListing},
        resources::Held,
        spool::SpoolError,
    },
};

/// Most entries of one answer.
const PAGE_MAX: usize = 500;
/// Most waiting jobs of a listing; how many there are is always said.
const LISTED_MAX: usize = 1000;
/// Entries of an answer unless asked otherwise.
const PAGE: usize = 50;

impl From<SpoolError> for ApiError {
    /// Who holds the files is no secret, and whoever asks can wait for that.
    fn from(error: SpoolError) -> Self {
        match &error {
            SpoolError::Io {
                what: "lock",
                source,
                ..
            } if source.kind() == io::ErrorKind::TimedOut => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{error}: {source}"),
            ),
            _ => Self::ours(&error),
        }
    }
}

/// Does what blocks for a moment (files, locks) where it holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(
    site: &Shared,
    work: impl FnOnce(&Site) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let site = Arc::clone(site);
    let done = tokio::task::spawn_blocking(move || work(&site)).await;
    done.unwrap_or_else(|panic| Err(ApiError::ours(&panic)))
}

/// A run id from an address; anything else is nothing.
pub(super) fn run_id(text: String) -> Result<RunId, ApiError> {
    RunId::new(text).map_err(|e| ApiError::new(StatusCode::NOT_FOUND, e.to_string()))
}

fn no_such_job(run_id: &RunId) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no job {run_id}"))
}

fn page() -> usize {
    PAGE
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Health {
    #[schemars(extend("const" = "ok"))]
    status: &'static str,
}

pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

pub(super) async fn state(State(site): State<Shared>) -> Json<Snapshot> {
    Json(site.board.snapshot())
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct QueuePage {
    /// How many waiting jobs are passed over.
    #[serde(default)]
    offset: usize,
    /// Most entries; more than 500 means 500.
    #[serde(default = "page")]
    #[schemars(range(min = 1, max = PAGE_MAX))]
    limit: usize,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct QueueAnswer {
    total: usize,
    jobs: Vec<Arc<QueuedJob>>,
}

pub(super) async fn queue(
    State(site): State<Shared>,
    UrlQuery(page): UrlQuery<QueuePage>,
) -> Json<QueueAnswer> {
    let jobs = site.board.jobs();
    let limit = page.limit.min(PAGE_MAX);
    let part = jobs.queued.iter().skip(page.offset).take(limit);
    Json(QueueAnswer {
        total: jobs.queued.len(),
        jobs: part.cloned().collect(),
    })
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryPage {
    /// `next` of the page before.
    before: Option<u64>,
    /// Most entries; more than 500 means 500.
    #[serde(default = "page")]
    #[schemars(range(min = 1, max = PAGE_MAX))]
    limit: usize,
    /// Words that a job must have in its name, user, status, mode, lab, question or reason.
    #[serde(default)]
    find: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct HistoryAnswer {
    jobs: Vec<FinishedJob>,
    /// Pass it as `before` to go on.
    #[schemars(range(min = 1))]
    next: Option<u64>,
}

pub(super) async fn history(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    UrlQuery(page): UrlQuery<HistoryPage>,
) -> Result<Json<HistoryAnswer>, ApiError> {
    let limit = page.limit.clamp(1, PAGE_MAX);
    blocking(&site, move |site| {
        let page = site.spool.search(page.before, limit, &page.find)?;
        Ok(Json(HistoryAnswer {
            jobs: seen(page.jobs, &rights),
            next: page.next,
        }))
    })
    .await
}

/// Jobs that are over, those alone with what came of them that may be seen.
pub(super) fn seen(jobs: Vec<FinishedJob>, rights: &Rights) -> Vec<FinishedJob> {
    let seen = |job: FinishedJob| match rights.sees_result_of(&job.username) {
        true => job,
        false => job.without_result(),
    };
    jobs.into_iter().map(seen).collect()
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListingPage {
    /// How many jobs that are over, at most 500.
    #[serde(default)]
    history: usize,
}

/// What `tsim queue` lists, read from the files: also what was submitted a moment ago.
pub(super) async fn listing(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    UrlQuery(page): UrlQuery<ListingPage>,
) -> Result<Json<QueueListing>, ApiError> {
    blocking(&site, move |site| {
        let mut jobs = site.spool.jobs()?;
        let history = match page.history.min(PAGE_MAX) {
            0 => Vec::new(),
            count => site.spool.history(None, count)?.jobs,
        };
        let waiting = jobs.queued.len();
        jobs.queued.truncate(LISTED_MAX);
        Ok(Json(QueueListing {
            scheduler: true,
            running: jobs.running,
            waiting,
            queued: jobs.queued,
            history: seen(history, &rights),
        }))
    })
    .await
}

pub(super) async fn registry(State(site): State<Shared>) -> Result<Json<Held>, ApiError> {
    blocking(&site, |site| {
        let held = site.resources.held();
        held.map(Json).map_err(|e| ApiError::ours(&*e))
    })
    .await
}

/// A job wherever it stands; fields that do not apply are null.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Job")]
pub(super) struct JobAnswer {
    run_id: RunId,
    username: UserName,
    status: Status,
    #[serde(rename = "type")]
    mode: Mode,
    params: Params,
    created_at: Timestamp,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    dscp: Option<crate::model::Dscp>,
    #[schemars(range(min = 1))]
    position: Option<usize>,
    #[schemars(range(max = 100))]
    percent: Option<u8>,
    phase: Option<String>,
    verdicts: Option<crate::sched::job::Verdicts>,
    exit_code: Option<i32>,
    reason: Option<String>,
}

impl JobAnswer {
    fn queued(job: &QueuedJob, position: Option<usize>) -> Self {
        Self {
            run_id: job.run_id.clone(),
            username: job.username.clone(),
            status: Status::Queued,
            mode: job.analysis_mode,
            params: job.params.clone(),
            created_at: job.created_at,
            started_at: None,
            finished_at: None,
            dscp: None,
            position,
            percent: None,
            phase: None,
            verdicts: None,
            exit_code: None,
            reason: None,
        }
    }

    fn finished(job: FinishedJob) -> Self {
        Self {
            run_id: job.run_id,
            username: job.username,
            status: job.status,
            mode: job.mode,
            params: job.params,
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: Some(job.finished_at),
            dscp: job.dscp,
            position: None,
            percent: None,
            phase: None,
            verdicts: job.verdicts,
            exit_code: job.exit_code,
            reason: job.reason,
        }
    }
}

/// Whose job this is, wherever it stands.
pub(super) fn owner_of(site: &Site, id: &RunId) -> Result<UserName, ApiError> {
    // In the order in which a job moves, so that one that moves meanwhile is not missed.
    let jobs = site.spool.jobs()?;
    if let Some(job) = jobs.queued.iter().find(|job| job.run_id == *id) {
        return Ok(job.username.clone());
    }
    if let Some(job) = jobs.running.into_iter().find(|job| job.run_id == *id) {
        return Ok(job.username);
    }
    let job = site.spool.finished(id)?.ok_or_else(|| no_such_job(id))?;
    Ok(job.username)
}

fn find(site: &Site, rights: &Rights, id: &RunId) -> Result<JobAnswer, ApiError> {
    // In the order in which a job moves, so that one that moves meanwhile is not missed.
    let jobs = site.spool.jobs()?;
    let position = jobs.position(id);
    if let Some(job) = jobs.queued.iter().find(|job| job.run_id == *id) {
        return Ok(JobAnswer::queued(job, position));
    }
    let running = jobs.running.into_iter().find(|job| job.run_id == *id);
    if let Some(job) = site.spool.finished(id)? {
        return Ok(match rights.sees_result_of(&job.username) {
            true => JobAnswer::finished(job),
            false => JobAnswer::finished(job.without_result()),
        });
    }
    let job = running.ok_or_else(|| no_such_job(id))?;
    let view = site.board.running(id);
    let (started_at, dscp) = (job.started_at, job.dscp);
    Ok(JobAnswer {
        status: Status::Running,
        started_at: Some(started_at),
        dscp,
        percent: view.as_ref().map(|view| view.percent),
        phase: view.map(|view| view.phase),
        ..JobAnswer::queued(&job.into_queued(), None)
    })
}

pub(super) async fn job(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
) -> Result<Json<JobAnswer>, ApiError> {
    let id = run_id(id)?;
    blocking(&site, move |site| find(site, &rights, &id).map(Json)).await
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cancellation {
    /// On whose behalf; by the socket the caller, unless an administrator says another.
    username: Option<UserName>,
}

/// What became of the wish to end a job.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Cancelled")]
pub(super) struct CancelAnswer {
    run_id: RunId,
    #[schemars(extend("enum" = ["RUNNING", "CANCELLED"]))]
    status: Status,
}

pub(super) async fn cancel(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
    Body(cancellation): Body<Cancellation>,
) -> Result<(StatusCode, Json<CancelAnswer>), ApiError> {
    let id = run_id(id)?;
    blocking(&site, move |site| {
        let by = rights.name(cancellation.username)?;
        let lock = site.spool.lock()?;
        let owner = lock.owner(&id)?.ok_or_else(|| no_such_job(&id))?;
        if !rights.may_end(&owner) {
            let text = format!("job {id} is {owner}'s: they and administrators may cancel it");
            return Err(ApiError::new(StatusCode::FORBIDDEN, text));
        }
        let cancelled = lock.cancel(&id, &by, Timestamp::now())?;
        let (code, status) = match cancelled {
            Cancelled::Queued(_) => (StatusCode::OK, Status::Cancelled),
            Cancelled::Running => (StatusCode::ACCEPTED, Status::Running),
            Cancelled::Over(status) => {
                let text = format!("job {id} is over already ({status})");
                return Err(ApiError::new(StatusCode::CONFLICT, text));
            }
            Cancelled::Unknown => return Err(no_such_job(&id)),
        };
        Ok((code, Json(CancelAnswer { run_id: id, status })))
    })
    .await
}

pub(super) async fn metrics(State(site): State<Shared>) -> Result<Response, ApiError> {
    let text = blocking(&site, |site| {
        let held = site.resources.held().map_err(|e| ApiError::ours(&*e))?;
        let jobs = site.board.jobs();
        let running = site.board.snapshot().running;
        let count = |mode| {
            [
                jobs.queued
                    .iter()
                    .filter(|job| job.analysis_mode == mode)
                    .count(),
                running.iter().filter(|view| view.job.mode == mode).count(),
            ]
        };
        let counts = MODES.map(count);
        let viewers = &site.config.scheduler.max_viewers;
        Ok(site.board.metrics.render(&Gauges {
            queued: counts.map(|[queued, _]| queued),
            running: counts.map(|[_, running]| running),
            dscp_held: held.dscp.len(),
            dscp_all: site.config.dscp.count(),
            viewers: viewers - site.viewers.available_permits(),
        }))
    })
    .await?;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
