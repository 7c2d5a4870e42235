//! The viewer and the API: HTTP/1.1 over TCP, usually on loopback, and over a unix socket, by which
//! the command line asks. Both are the same; they differ in how it is known who asks.
//!
//! The web side only translates. It reads the [board](super::board) and the files; what it changes
//! it changes in the files, as `tsim submit` and `tsim cancel` do, and the event loop sees that.
//!
//! What protects it, outermost first:
//!
//! | against | what |
//! |---|---|
//! | too many connections, dead peers | a limit in all, and of each user or address; TCP_USER_TIMEOUT |
//! | slow heads and bodies | time limits on both; sizes limited |
//! | DNS rebinding | the `Host` must be one of ours |
//! | requests forged by another site | `Origin` and `Sec-Fetch-Site` must be ours; JSON only; the token is a header, never a cookie |
//! | strangers | by TCP the token for every change, and for reading when not on loopback |
//! | users | by the socket their own jobs and results; [`rights`] |
//! | floods | requests per second and user or address |
//! | injected markup | pages are static files, values enter them as text; strict CSP |

use std::{io, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};

use self::{
    auth::{AccessToken, RequestGuard},
    rate::Limiter,
    rights::{Crowd, Peer},
};
use super::{board::Board, door::Door, resources::Resources, spool::Spool};
use crate::{bulk::policy::text::MOST_TEXT, config::Config};

mod answers;
mod api;
mod ask;
pub mod auth;
mod documents;
mod error;
mod labs;
mod openapi;
mod operations;
mod pages;
mod rate;
mod read;
mod rights;
mod sse;
mod stand;
mod submit;
mod typed;
mod who;

/// Most bytes of a request's body.
const BODY_MAX: usize = 128 * 1024;
/// The same of a job that is submitted: a policy comes as text, and JSON writes some characters as six.
const JOB_MAX: usize = 2 * MOST_TEXT;
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
    /// Tells who is at the other end of a connection.
    pub door: Arc<Door>,
    guard: RequestGuard,
    limiter: Limiter,
    crowd: Arc<Crowd>,
    viewers: Arc<Semaphore>,
    answers: answers::KeptAnswers,
    /// Tells the event ids of this scheduler from those of an earlier one.
    epoch: i64,
}

type Shared = Arc<Site>;

impl Site {
    /// A site with what the handlers need.
    #[must_use]
    pub fn new(
        config: Config,
        spool: &Spool,
        board: Arc<Board>,
        resources: Arc<dyn Resources>,
        door: Arc<Door>,
        token: AccessToken,
    ) -> Self {
        let scheduler = &config.scheduler;
        Self {
            guard: RequestGuard::new(scheduler, token),
            limiter: Limiter::new(scheduler.requests_per_second),
            crowd: Arc::new(Crowd::new(scheduler.max_user_connections)),
            door,
            viewers: Arc::new(Semaphore::new(scheduler.max_viewers)),
            answers: answers::KeptAnswers::default(),
            epoch: jiff::Timestamp::now().as_millisecond(),
            config,
            // What was answered with a time-out must not be done after all.
            spool: spool.waiting_at_most(ANSWER_TIME / 2),
            board,
            resources,
        }
    }
}

fn router(site: Shared) -> Router {
    let api = operations::all().into_iter();
    let api = api.fold(Router::new(), |router, operation| {
        router.route(operation.path, operation.serve)
    });
    api.route("/", get(pages::queue))
        .route("/job/{run_id}", get(pages::job))
        .route("/policies", get(pages::policies))
        .route("/job/{run_id}/table", get(pages::document))
        .route("/job/{run_id}/since/{before}", get(pages::document))
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
async fn admit(State(site): State<Shared>, mut request: Request, next: Next) -> Response {
    let Some(peer) = request.extensions().get::<Peer>().cloned() else {
        return error::nobody();
    };
    if !site.limiter.admit(peer.account()) {
        return error::too_many();
    }
    match site.guard.check(&request, &peer) {
        Ok(rights) => request.extensions_mut().insert(rights),
        Err(refused) => return refused.into(),
    };
    let answer = next.run(request);
    match tokio::time::timeout(ANSWER_TIME, answer).await {
        Ok(response) => response,
        Err(_) => error::too_slow(),
    }
}

/// Serves TCP until the runtime ends.
pub async fn serve(listener: TcpListener, site: Arc<Site>) {
    let connections = Arc::new(Semaphore::new(site.config.scheduler.max_connections));
    let router = router(Arc::clone(&site));
    loop {
        let Some((stream, address)) = accepted(listener.accept().await).await else {
            continue;
        };
        // Beyond the limit a connection is closed at once: the client sees that, and tries again.
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            continue;
        };
        // Without these two a dead peer holds its connection longer; that is all.
        let _ = stream.set_nodelay(true);
        let _ = setsockopt(&stream, TcpUserTimeout, &DEAD_PEER);
        let (router, site) = (router.clone(), Arc::clone(&site));
        tokio::spawn(async move {
            if let Some((stream, peer)) = met(&site, stream, Some(address)).await {
                talk(stream, peer, router, &site).await;
            }
            drop(permit);
        });
    }
}

/// Serves the unix socket until the runtime ends; its connections are counted apart from TCP's.
pub async fn serve_local(listener: UnixListener, site: Arc<Site>) {
    let connections = Arc::new(Semaphore::new(site.config.scheduler.max_connections));
    let router = router(Arc::clone(&site));
    loop {
        let Some((stream, _)) = accepted(listener.accept().await).await else {
            continue;
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            continue;
        };
        let (router, site) = (router.clone(), Arc::clone(&site));
        tokio::spawn(async move {
            if let Some((stream, peer)) = met(&site, stream, None).await {
                talk(stream, peer, router, &site).await;
            }
            drop(permit);
        });
    }
}

/// A connection, unless it died before it was taken in, or the system lacks what one needs.
async fn accepted<T>(connection: io::Result<T>) -> Option<T> {
    match connection {
        Ok(connection) => Some(connection),
        Err(error) if is_of_one_connection(&error) => None,
        Err(error) => {
            // No descriptor or memory is free. Nothing tells when there is one again.
            tracing::error!(%error, "cannot accept connections");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Finds out who is at the other end of a connection; none when it must be known and is not.
async fn met<S: AsFd + Send + 'static>(
    site: &Shared,
    stream: S,
    address: Option<SocketAddr>,
) -> Option<(S, Peer)> {
    let remote = |user| {
        let address = address?.ip();
        Some(Peer::Remote { address, user })
    };
    // Nobody far away is in our list of users.
    if address.is_some_and(|address| !address.ip().is_loopback()) {
        return Some((stream, remote(None)?));
    }
    let door = Arc::clone(&site.door);
    // The list of users may be in the network.
    let asked = tokio::task::spawn_blocking(move || (door.who(stream.as_fd()), stream));
    let (caller, stream) = asked.await.ok()?;
    let caller = caller.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot tell who connected");
        None
    });
    match address {
        Some(_) => Some((stream, remote(caller.map(|caller| caller.uid))?)),
        None => Some((stream, Peer::Local(caller?))),
    }
}

/// The connection died before it was accepted, accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

async fn talk<S>(mut stream: S, peer: Peer, router: Router, site: &Site)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(_place) = site.crowd.enter(peer.account()) else {
        // Said without reading what is asked: it costs next to nothing.
        let answer = error::no_place();
        let told = stream.write_all(answer.as_bytes());
        let _ = tokio::time::timeout(HEAD_TIME, told).await;
        return;
    };
    let router = router.layer(axum::Extension(peer.clone()));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(?peer, %error, "connection ended");
    }
}
