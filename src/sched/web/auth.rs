//! Who may do what: the token, and where a request comes from.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header},
};
use nix::{libc, unistd::geteuid};
use subtle::ConstantTimeEq;
use thiserror::Error;

use super::{
    error::ApiError,
    rights::{Peer, Rights},
};
use crate::config::SchedulerConfig;

/// Shortest token in bytes: 128 random bits as hexadecimal digits.
const TOKEN_MIN: usize = 32;
/// Longest token in bytes.
const TOKEN_MAX: usize = 256;

/// The token file cannot be used.
#[derive(Debug, Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the token file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is missing and cannot be made.
    #[error("cannot make the token file {path}")]
    Make {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others could read or replace it.
    #[error("token file {path}: {reason}; make it 0600 and owned by the scheduler's user or root")]
    Open {
        /// The file.
        path: PathBuf,
        /// Who could do what.
        reason: String,
    },
    /// It holds no token.
    #[error(
        "token file {0} must hold one line of 32 to 256 visible ASCII characters, for example from \
         `openssl rand -hex 32`"
    )]
    Content(PathBuf),
}

/// What a request must carry to change anything.
#[derive(Clone)]
pub struct AccessToken(Vec<u8>);

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl AccessToken {
    /// Reads the token's file, which is made with a fresh token if it is missing.
    ///
    /// # Errors
    /// [`TokenError`] when the file cannot be made, is not safe or holds no token.
    pub fn read_or_make(path: &Path) -> Result<Self, TokenError> {
        match Self::read(path) {
            Err(TokenError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make(path).map_err(|source| TokenError::Make {
                    path: path.to_owned(),
                    source,
                })?;
                tracing::info!(file = %path.display(), "made a token; `tsim token` shows it");
                Self::read(path)
            }
            other => other,
        }
    }

    /// The token as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// Reads the token's file, which nobody else may read.
    ///
    /// # Errors
    /// [`TokenError`] when the file is not there, not safe or holds no token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let cannot = |source| TokenError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        let unsafe_ = |reason: String| TokenError::Open {
            path: path.to_owned(),
            reason,
        };
        if metadata.mode() & 0o077 != 0 {
            let mode = metadata.mode() & 0o7777;
            return Err(unsafe_(format!("its mode {mode:04o} lets others use it")));
        }
        if ![0, geteuid().as_raw()].contains(&metadata.uid()) {
            return Err(unsafe_(format!("it belongs to uid {}", metadata.uid())));
        }
        let mut text = Vec::new();
        file.take(TOKEN_MAX as u64 + 2)
            .read_to_end(&mut text)
            .map_err(cannot)?;
        let text = text.trim_ascii();
        let fits = (TOKEN_MIN..=TOKEN_MAX).contains(&text.len());
        if !fits || !text.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::Content(path.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// Compares in a time that does not depend on where the difference is.
    fn is(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
    }
}

/// Writes a fresh token where there is none. Of several schedulers that start at once, one does, and
/// nobody ever sees half of it.
fn make(path: &Path) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut random = [0u8; TOKEN_MIN / 2];
    getrandom::fill(&mut random).map_err(|e| io::Error::other(e.to_string()))?;
    let mut text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    // Made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(e) if e.error.kind() != io::ErrorKind::AlreadyExists => Err(e.error),
        _ => Ok(()),
    }
}

/// Checks each request before anything else looks at it.
#[derive(Debug)]
pub(super) struct RequestGuard {
    token: AccessToken,
    token_to_read: bool,
    share_results: bool,
    /// Names and addresses by which we may be called, lower case, without port.
    hosts: Vec<String>,
}

impl RequestGuard {
    pub(super) fn new(config: &SchedulerConfig, token: AccessToken) -> Self {
        let ip = config.listen.ip();
        let mut hosts: Vec<String> = config
            .host_names
            .iter()
            .map(|h| h.to_ascii_lowercase())
            .collect();
        if ip.is_loopback() {
            hosts.extend(["localhost", "127.0.0.1", "[::1]"].map(str::to_owned));
        }
        if !ip.is_unspecified() {
            hosts.push(match ip {
                IpAddr::V4(v4) => v4.to_string(),
                IpAddr::V6(v6) => format!("[{v6}]"),
            });
        }
        Self {
            token,
            token_to_read: config.token_to_read || !ip.is_loopback(),
            share_results: config.share_results,
            hosts,
        }
    }

    /// What the request may do. Users who came by the socket have no need of a token, and no browser
    /// comes that way; all others may do everything with it, and little without.
    pub(super) fn check(&self, request: &Request, peer: &Peer) -> Result<Rights, ApiError> {
        if let Peer::Local(caller) = peer {
            return Ok(Rights::of(caller, self.share_results));
        }
        let headers = request.headers();
        let host = self.check_host(headers, request.uri().host())?;
        let path = request.uri().path();
        let reads = [Method::GET, Method::HEAD].contains(request.method());
        let data = path.starts_with("/api/") || path == "/metrics";
        if !reads || data {
            check_origin(headers, &host)?;
        }
        let given = data && self.has_token(headers)?;
        let needed = !reads || data && self.token_to_read && path != "/api/v1/openapi.json";
        if needed && !given {
            return Err(unauthorized(
                "a token is needed: Authorization: Bearer …; `tsim token` shows it to administrators",
            ));
        }
        Ok(Rights::by_token(given, self.share_results))
    }

    /// The token, where it is asked for by who may have it.
    pub(super) fn token(&self) -> &AccessToken {
        &self.token
    }

    /// A browser that was told by a hostile name server that we are `evil.example` says so here.
    fn check_host(&self, headers: &HeaderMap, target: Option<&str>) -> Result<String, ApiError> {
        let mut named = headers.get_all(header::HOST).iter();
        let (first, second) = (named.next(), named.next());
        let host = match (first, second, target) {
            (Some(host), None, None) => host.to_str().ok(),
            _ => None,
        };
        let host = host.map(str::to_ascii_lowercase).unwrap_or_default();
        if self.hosts.iter().any(|ours| ours == without_port(&host)) {
            return Ok(host);
        }
        Err(ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this server is not called by that name; scheduler.host_names lists its names",
        ))
    }

    /// A wrong token is said at once, also where none is needed.
    fn has_token(&self, headers: &HeaderMap) -> Result<bool, ApiError> {
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            return Ok(false);
        };
        match given.as_bytes().strip_prefix(b"Bearer ") {
            Some(given) if self.token.is(given) => Ok(true),
            _ => Err(unauthorized("the token is wrong")),
        }
    }
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, message)
}

/// The host of `host:port`, `[v6]:port` or either without a port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// A request that another site's page makes in somebody's browser is refused, token or not.
fn check_origin(headers: &HeaderMap, host: &str) -> Result<(), ApiError> {
    let foreign = || {
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "requests from other sites' pages are refused",
        ))
    };
    if let Some(site) = headers.get("sec-fetch-site")
        && site != "same-origin"
        && site != "none"
    {
        return foreign();
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
    let authority = ["http://", "https://"]
        .iter()
        .find_map(|scheme| origin.strip_prefix(scheme));
    if authority == Some(host) {
        Ok(())
    } else {
        foreign()
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
