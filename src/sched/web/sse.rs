//! The live stream: server-sent events, as the WHATWG HTML standard defines them.
//!
//! An event's id is `EPOCH.NUMBER`: the scheduler that sent it, and the event's number. A viewer
//! that comes back with `Last-Event-ID` gets what it missed, or a snapshot when that is no longer
//! known. A comment goes out as a heartbeat when nothing else does.

use std::{fmt::Write, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::timeout,
};

use super::{Shared, error::ApiError, rights::Rights};
use crate::sched::board::Resumed;

/// Longest silence on a stream.
const HEARTBEAT: Duration = Duration::from_secs(15);

struct Viewer {
    site: Shared,
    head: watch::Receiver<u64>,
    last: Option<u64>,
    /// Whether everybody's results may be seen.
    all_results: bool,
    _place: OwnedSemaphorePermit,
}

pub(super) async fn events(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let place = Arc::clone(&site.viewers).try_acquire_owned().map_err(|_| {
        let text = "as many viewers as may watch do so already";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text)
    })?;
    let last = headers.get("last-event-id").and_then(|id| {
        let (epoch, number) = id.to_str().ok()?.split_once('.')?;
        let ours = epoch.parse() == Ok(site.epoch);
        ours.then(|| number.parse().ok()).flatten()
    });
    let viewer = Viewer {
        head: site.board.watch(),
        last,
        all_results: rights.all_results,
        site,
        _place: place,
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let body = Body::from_stream(stream::unfold(viewer, |mut viewer| async {
        let text = viewer.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), viewer))
    }));
    Ok((headers, body).into_response())
}

impl Viewer {
    /// What the viewer does not know yet, or a heartbeat; none when the scheduler ends.
    async fn next(&mut self) -> Option<String> {
        loop {
            // Seen before looked: what comes in between wakes the next wait.
            self.head.borrow_and_update();
            let text = self.news();
            if !text.is_empty() {
                return Some(text);
            }
            match timeout(HEARTBEAT, self.head.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(": still here\n\n".to_owned()),
            }
        }
    }

    fn news(&mut self) -> String {
        let mut text = String::new();
        let epoch = self.site.epoch;
        match self.site.board.since(self.last) {
            Resumed::Events(events) => {
                for event in events {
                    let data = match self.all_results {
                        true => &event.data,
                        false => &event.without_results,
                    };
                    frame(&mut text, "update", epoch, event.number, data);
                    self.last = Some(event.number);
                }
            }
            Resumed::Snapshot(number, snapshot) => {
                let data = serde_json::to_string(&*snapshot).unwrap_or_default();
                frame(&mut text, "snapshot", epoch, number, &data);
                self.last = Some(number);
            }
        }
        text
    }
}

/// JSON has no line breaks of its own, so one `data` line is enough.
fn frame(text: &mut String, name: &str, epoch: i64, number: u64, data: &str) {
    let _ = write!(
        text,
        "id: {epoch}.{number}\nevent: {name}\ndata: {data}\n\n"
    );
}
