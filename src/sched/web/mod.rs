//! The viewer and the API: HTTP/1.1 over TCP, usually on loopback.
//!
//! The web side only translates. It reads the [board](super::board) and the files; what it changes
//! it changes in the files, as `tsim submit` and `tsim cancel` do, and the event loop sees that.
//!
//! What protects it, outermost first:
//!
//! | against | what |
//! |---|---|
//! | too many connections, dead peers | a limit, TCP_USER_TIMEOUT |
//! | slow heads and bodies | time limits on both; sizes limited |
//! | DNS rebinding | the `Host` must be one of ours |
//! | requests forged by another site | `Origin` and `Sec-Fetch-Site` must be ours; JSON only; the token is a header, never a cookie |
//! | strangers | the token for every change, and for reading when not on loopback |
//! | floods | requests per second and address |
//! | injected markup | pages are static files, values enter them as text; strict CSP |

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use self::{
    auth::{Guard, Token},
    rate::Limiter,
};
use super::{board::Board, resources::Resources, spool::Spool};
use crate::config::Config;

mod answers;
mod api;
mod ask;
pub mod auth;
mod error;
mod labs;
mod openapi;
mod pages;
mod rate;
mod read;
mod sse;
mod submit;

/// Most bytes of a request's body.
const BODY_MAX: usize = 128 * 1024;
/// Most bytes of a request's head.
const HEAD_MAX: usize = 16 * 1024;
/// Longest time for a request's head to come in.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest time for a request to be answered, its body included; the live stream is exempt.
const ANSWER_TIME: Duration = Duration::from_secs(15);
/// How long nothing is accepted when the system has no descriptor or memory for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long sent data may stay unacknowledged, in milliseconds, before the peer counts as dead.
const DEAD_PEER: u32 = 60_000;

/// What the handlers work with.
#[derive(Debug)]
pub struct Site {
    /// Paths and limits.
    pub config: Config,
    /// The queue and the history.
    pub spool: Spool,
    /// The live state.
    pub board: Arc<Board>,
    /// DSCP values, locks and leases.
    pub resources: Arc<dyn Resources>,
    guard: Guard,
    limiter: Limiter,
    viewers: Arc<Semaphore>,
    answers: answers::Kept,
    /// Tells the event ids of this scheduler from those of an earlier one.
    epoch: i64,
}

type Shared = Arc<Site>;

impl Site {
    /// A site that listens on `address`; the token is read when `config` names its file.
    #[must_use]
    pub fn new(
        config: Config,
        spool: Spool,
        board: Arc<Board>,
        resources: Arc<dyn Resources>,
        token: Option<Token>,
    ) -> Self {
        let scheduler = &config.scheduler;
        Self {
            guard: Guard::new(scheduler, token),
            limiter: Limiter::new(scheduler.requests_per_second),
            viewers: Arc::new(Semaphore::new(scheduler.max_viewers)),
            answers: answers::Kept::default(),
            epoch: jiff::Timestamp::now().as_millisecond(),
            config,
            spool,
            board,
            resources,
        }
    }
}

/// The address that a request came from.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

fn router(site: Shared) -> Router {
    let api = Router::new()
        .route("/state", get(api::state))
        .route("/events", get(sse::events))
        .route("/queue", get(api::queue))
        .route("/history", get(api::history))
        .route("/registry", get(api::registry))
        .route("/jobs", post(submit::submit))
        .route("/jobs/{run_id}", get(api::job))
        .route("/jobs/{run_id}/answer", get(answers::head))
        .route("/jobs/{run_id}/matrix", get(answers::matrix))
        .route("/jobs/{run_id}/evidence", get(answers::evidence))
        .route("/jobs/{run_id}/result", get(read::result))
        .route("/jobs/{run_id}/report", get(read::report))
        .route("/jobs/{run_id}/stderr", get(read::stderr))
        .route("/jobs/{run_id}/cancel", post(api::cancel))
        .route("/labs", get(labs::list))
        .route("/labs/{lab}", get(labs::one));
    Router::new()
        .nest("/api/v1", api)
        .route("/api/v1/openapi.json", get(openapi::document))
        .route("/healthz", get(api::healthz))
        .route("/metrics", get(api::metrics))
        .route("/", get(pages::queue))
        .route("/job/{run_id}", get(pages::job))
        .route("/lab", get(pages::lab))
        .route("/lab/{lab}", get(pages::lab))
        .route("/assets/{name}", get(pages::asset))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&site), admit))
        .layer(middleware::map_response(pages::protect))
        .with_state(site)
}

/// Lets a request in, or says why not.
async fn admit(State(site): State<Shared>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let allowed = peer.is_none_or(|Peer(address)| site.limiter.admit(address));
    if !allowed {
        return error::too_many();
    }
    if let Err(refused) = site.guard.check(&request) {
        return refused.into();
    }
    let answer = next.run(request);
    match tokio::time::timeout(ANSWER_TIME, answer).await {
        Ok(response) => response,
        Err(_) => error::too_slow(),
    }
}

/// Serves until the runtime ends.
pub async fn serve(listener: TcpListener, site: Arc<Site>) {
    let connections = Arc::new(Semaphore::new(site.config.scheduler.max_connections));
    let router = router(site);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                // No descriptor or memory is free. Nothing tells when there is one again.
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Beyond the limit a connection is closed at once: the client sees that, and tries again.
        if let Ok(permit) = Arc::clone(&connections).try_acquire_owned() {
            let router = router.clone();
            tokio::spawn(async move {
                talk(stream, peer, router).await;
                drop(permit);
            });
        }
    }
}

/// The connection died before it was accepted, accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

async fn talk(stream: TcpStream, peer: SocketAddr, router: Router) {
    // Without these two a dead peer holds its connection longer; that is all.
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(&stream, TcpUserTimeout, &DEAD_PEER);
    let router = router.layer(axum::Extension(Peer(peer.ip())));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection ended");
    }
}
