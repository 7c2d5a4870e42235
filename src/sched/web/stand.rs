//! `GET /api/v1/jobs/{run_id}/watch`: where a job stands, a JSON line whenever that changes, until it
//! is over.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::timeout,
};

use super::{
    Shared, Site,
    api::{blocking, owner_of, run_id},
    ask::Name,
    error::ApiError,
    read,
    rights::Rights,
};
use crate::{
    model::RunId,
    sched::{
        queue::Jobs,
        stand::{Stand, look},
    },
};

/// Longest silence; an empty line goes out then.
const HEARTBEAT: Duration = Duration::from_secs(15);

struct Watcher {
    site: Shared,
    run_id: RunId,
    head: watch::Receiver<u64>,
    shown: Option<Stand>,
    over: bool,
    _place: OwnedSemaphorePermit,
}

pub(super) async fn watch(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Name(id): Name,
) -> Result<Response, ApiError> {
    let id = run_id(id)?;
    let known = id.clone();
    let owner = blocking(&site, move |site| owner_of(site, &known)).await?;
    read::only_seen(&rights, &id, &owner)?;
    let place = Arc::clone(&site.viewers).try_acquire_owned().map_err(|_| {
        let text = "as many viewers as may watch do so already";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text)
    })?;
    let watcher = Watcher {
        head: site.board.watch(),
        site,
        run_id: id,
        shown: None,
        over: false,
        _place: place,
    };
    let headers = [
        (header::CONTENT_TYPE, "application/jsonl"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let body = Body::from_stream(stream::unfold(watcher, |mut watcher| async {
        let line = watcher.next().await?;
        Some((
            Ok::<_, std::convert::Infallible>(Bytes::from(line)),
            watcher,
        ))
    }));
    Ok((headers, body).into_response())
}

impl Watcher {
    /// What is new, or a heartbeat; none when the job is over or the scheduler ends.
    async fn next(&mut self) -> Option<String> {
        while !self.over {
            // Seen before looked: what comes in between wakes the next wait.
            self.head.borrow_and_update();
            let id = self.run_id.clone();
            let looked = blocking(&self.site, move |site| stand(site, &id)).await;
            let (stand, over) = looked.ok()??;
            self.over = over;
            if self.shown.as_ref() != Some(&stand) {
                let line = stand.line().ok()? + "\n";
                self.shown = Some(stand);
                return Some(line);
            }
            match timeout(HEARTBEAT, self.head.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some("\n".to_owned()),
            }
        }
        None
    }
}

/// Where the job stands, and whether it is over; none when it is gone.
fn stand(site: &Site, id: &RunId) -> Result<Option<(Stand, bool)>, ApiError> {
    let stand = |jobs: &Jobs| {
        let view = || {
            Ok(site
                .board
                .running(id)
                .map(|view| (view.percent, view.phase)))
        };
        let stand = Stand::of_open(id, jobs, view).map_err(|e| ApiError::ours(&e))?;
        Ok::<_, ApiError>(stand.map(|stand| Stand {
            reason: site.board.unrecorded(id),
            ..stand
        }))
    };
    // The board is cheap to look at, and a moment behind the files.
    match look(&site.spool, id, || Ok((*site.board.jobs()).clone()))? {
        Ok(job) => return Ok(Some((Stand::of_finished(&site.spool, &job), true))),
        Err(jobs) => {
            if let Some(stand) = stand(&jobs)? {
                return Ok(Some((stand, false)));
            }
        }
    }
    match look(&site.spool, id, || site.spool.jobs())? {
        Ok(job) => Ok(Some((Stand::of_finished(&site.spool, &job), true))),
        Err(jobs) => Ok(stand(&jobs)?.map(|stand| (stand, false))),
    }
}
