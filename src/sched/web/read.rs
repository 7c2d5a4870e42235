//! What a job's runner wrote, streamed from its file.

use std::{
    fs::File,
    io::{self, Read},
};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;

use super::{
    Shared, Site,
    api::{blocking, run_id},
    ask::Name,
    error::ApiError,
    rights::Rights,
};
use crate::{
    model::RunId,
    sched::{
        job::UserName,
        runner::{MEASURED, REPORT_HTML, REPORT_TEXT, RESULT, STDERR},
    },
};

/// How much is read at a time.
const BLOCK: usize = 64 * 1024;

pub(super) async fn result(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
) -> Result<Response, ApiError> {
    file(site, rights, id, RESULT, "application/json").await
}

/// A detailed job's report as text.
pub(super) async fn text(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
) -> Result<Response, ApiError> {
    file(site, rights, id, REPORT_TEXT, "text/plain; charset=utf-8").await
}

/// What a detailed job had measured when it was ended before its result.
pub(super) async fn measured(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
) -> Result<Response, ApiError> {
    file(site, rights, id, MEASURED, "application/jsonl").await
}

pub(super) async fn stderr(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
) -> Result<Response, ApiError> {
    file(site, rights, id, STDERR, "text/plain; charset=utf-8").await
}

/// To be kept as a file: shown here, its inline style would be against our own policy.
pub(super) async fn report(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
) -> Result<Response, ApiError> {
    let mut response = file(
        site,
        rights,
        id.clone(),
        REPORT_HTML,
        "text/html; charset=utf-8",
    )
    .await?;
    let disposition = HeaderValue::try_from(format!("attachment; filename=\"{id}.html\""));
    let disposition = disposition.map_err(|e| ApiError::ours(&e))?;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_DISPOSITION, disposition);
    Ok(response)
}

/// Only of a job that is over: a running one's result is not one yet.
pub(super) async fn file(
    site: Shared,
    rights: Rights,
    id: String,
    name: impl Into<String>,
    kind: &'static str,
) -> Result<Response, ApiError> {
    let (id, name) = (run_id(id)?, name.into());
    let (file, length) = blocking(&site, move |site| {
        only_finished(site, &rights, &id)?;
        let none = |text: String| ApiError::new(StatusCode::NOT_FOUND, text);
        let file = site.spool.run_file(&id, &name)?;
        let file = file.ok_or_else(|| none(format!("job {id} left none")))?;
        let length = file.metadata().map_err(|e| ApiError::ours(&e))?.len();
        Ok((file, length))
    })
    .await?;
    // The length as of now: a file that grows meanwhile is cut there, one that shrinks is an error.
    let blocks = stream::try_unfold(file.take(length), next_block);
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(blocks)).into_response())
}

/// Only of a job that is over, to those who may see its result.
pub(super) fn only_finished(site: &Site, rights: &Rights, id: &RunId) -> Result<(), ApiError> {
    let job = site.spool.finished(id)?;
    let none = || {
        let text = format!("there is no job {id} that is over");
        ApiError::new(StatusCode::NOT_FOUND, text)
    };
    only_seen(rights, id, &job.ok_or_else(none)?.username)
}

/// Refuses those who may not see what job `id` of `owner` found out.
pub(super) fn only_seen(rights: &Rights, id: &RunId, owner: &UserName) -> Result<(), ApiError> {
    if rights.sees_result_of(owner) {
        return Ok(());
    }
    let text = match rights.user {
        Some(_) => format!("job {id} is {owner}'s: its result is for them and administrators"),
        None => {
            "results are for who has the token: `tsim token` shows it to administrators".to_owned()
        }
    };
    let status = match rights.user {
        Some(_) => StatusCode::FORBIDDEN,
        None => StatusCode::UNAUTHORIZED,
    };
    Err(ApiError::new(status, text))
}

async fn next_block(mut file: io::Take<File>) -> io::Result<Option<(Bytes, io::Take<File>)>> {
    let read = tokio::task::spawn_blocking(move || {
        let mut block = vec![0; BLOCK];
        let count = file.read(&mut block)?;
        block.truncate(count);
        Ok((count > 0).then(|| (Bytes::from(block), file)))
    });
    read.await
        .unwrap_or_else(|panic| Err(io::Error::other(panic)))
}
