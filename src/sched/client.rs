//! A scheduler that runs, asked by the command line: its API, over its socket or by TCP.

use std::{
    cell::RefCell,
    io,
    net::ToSocketAddrs,
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    pin::pin,
    str::FromStr,
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::handshake,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    runtime::{Builder, Runtime},
    time::timeout,
};

use crate::wait::SILENT;

/// How long a connection may take, and the head of an answer; the server itself gives up earlier.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest silence within an answer; a watched job says something every 15 seconds.
const SILENCE: Duration = Duration::from_secs(40);
/// Most bytes of an answer that is taken in as a whole.
const ANSWER_MAX: usize = 64 << 20;

/// Where a scheduler is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// On this machine, by its socket.
    Socket(PathBuf),
    /// `HOST:PORT`, by HTTP.
    Tcp(String),
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tcp(host) => write!(f, "http://{host}"),
        }
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if Path::new(text).is_absolute() {
            return Ok(Self::Socket(text.into()));
        }
        let host = text
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'));
        match host {
            Some(host) if !host.is_empty() && !host.contains(['/', '@', ' ', '?', '#']) => {
                let has_port = host.rsplit_once(':').is_some_and(|(_, port)| {
                    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
                });
                Ok(Self::Tcp(if has_port {
                    host.to_owned()
                } else {
                    format!("{host}:80")
                }))
            }
            _ => Err(
                "http://HOST[:PORT] or the path of a scheduler's socket is allowed; \
                      for https have a program on this machine forward a port"
                    .to_owned(),
            ),
        }
    }
}

/// A scheduler did not do what it was asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// It said no.
    #[error("{message}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// The server's words.
        message: String,
    },
    /// It cannot be reached.
    #[error("cannot reach the scheduler at {server}")]
    Reach {
        /// Where.
        server: Server,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or the answer is none.
    #[error("the scheduler at {server} did not answer")]
    Answer {
        /// Where.
        server: Server,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

/// A scheduler, and how to show who asks.
#[derive(Debug)]
pub struct Client {
    server: Server,
    token: Option<String>,
    runtime: Runtime,
    /// The connection by which it was found, for what is asked first: a user has so many.
    first: RefCell<Option<StdUnixStream>>,
}

impl Client {
    /// A client of the scheduler that listens at `socket`.
    ///
    /// # Errors
    /// Of connect(2): nobody listens there, or this user may not.
    pub fn at(socket: &Path) -> io::Result<Self> {
        let first = StdUnixStream::connect(socket)?;
        first.set_nonblocking(true)?;
        let client = Self::new(Server::Socket(socket.to_owned()), None)?;
        client.first.replace(Some(first));
        Ok(client)
    }

    /// A client of `server`; connections are made one by one as it is asked something.
    ///
    /// # Errors
    /// When the kernel has no descriptors for that.
    pub fn new(server: Server, token: Option<String>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            server,
            token,
            runtime,
            first: RefCell::new(None),
        })
    }

    /// Reads `path` of the API.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let text = self.whole(Method::GET, path, Bytes::new())?;
        serde_json::from_slice(&text).map_err(|e| self.no_answer(e.into()))
    }

    /// Sends `body` to `path` of the API.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.no_answer(e.into()))?;
        let text = self.whole(Method::POST, path, body.into())?;
        serde_json::from_slice(&text).map_err(|e| self.no_answer(e.into()))
    }

    /// Reads `path` part by part as it comes in; `take` may end it by an error.
    ///
    /// # Errors
    /// [`ClientError`], the error of `take` as its source.
    pub fn read(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let answer = self.ask(Method::GET, path, Bytes::new()).await?;
            self.parts(answer, &mut take).await
        })
    }

    /// Reads `path` line by line as it comes in.
    ///
    /// # Errors
    /// [`ClientError`], the error of `take` as its source.
    pub fn lines(
        &self,
        path: &str,
        mut take: impl FnMut(&str) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let mut rest = Vec::new();
        self.read(path, |part| {
            rest.extend_from_slice(part);
            while let Some(end) = memchr::memchr(b'\n', &rest) {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line = str::from_utf8(&line).map_err(io::Error::other)?;
                if !line.trim().is_empty() {
                    take(line.trim())?;
                }
            }
            Ok(())
        })
    }

    fn whole(&self, method: Method, path: &str, body: Bytes) -> Result<Vec<u8>, ClientError> {
        self.runtime.block_on(async {
            let answer = self.ask(method, path, body).await?;
            self.text(answer).await
        })
    }

    async fn text(&self, answer: Incoming) -> Result<Vec<u8>, ClientError> {
        let mut text = Vec::new();
        let mut take = |part: &[u8]| {
            text.extend_from_slice(part);
            match text.len() <= ANSWER_MAX {
                true => Ok(()),
                false => Err(io::Error::other("the answer is too long")),
            }
        };
        self.parts(answer, &mut take).await?;
        Ok(text)
    }

    async fn parts(
        &self,
        mut answer: Incoming,
        take: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        loop {
            let part = timeout(SILENCE, answer.frame()).await;
            let part = part.map_err(|_| self.no_answer(io::ErrorKind::TimedOut.into()))?;
            let Some(part) = part else { return Ok(()) };
            let part = part.map_err(|e| self.no_answer(io::Error::other(e)))?;
            if let Some(part) = part.data_ref() {
                take(part).map_err(|e| self.no_answer(e))?;
            }
        }
    }

    /// Sends a request and returns the body of its answer, unless that says no.
    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, ClientError> {
        let exchange = async {
            match &self.server {
                Server::Socket(socket) => {
                    let stream = match self.first.take() {
                        Some(first) => UnixStream::from_std(first),
                        None => UnixStream::connect(socket).await,
                    };
                    let stream = stream.map_err(|e| self.unreachable(e))?;
                    self.exchange(stream, "localhost", method, path, body).await
                }
                Server::Tcp(host) => {
                    let stream = connect(host).await.map_err(|e| self.unreachable(e))?;
                    self.exchange(stream, host, method, path, body).await
                }
            }
        };
        let late = |_| self.no_answer(io::ErrorKind::TimedOut.into());
        let mut exchange = pin!(exchange);
        let soon = timeout(SILENT, &mut exchange).await;
        let answer = match soon {
            Ok(answer) => answer?,
            Err(_) => {
                let server = &self.server;
                tracing::warn!("waiting for the scheduler at {server}, which has not answered yet");
                timeout(PATIENCE, exchange).await.map_err(late)??
            }
        };
        let (head, answer) = answer.into_parts();
        if head.status.is_success() {
            return Ok(answer);
        }
        let text = self.text(answer).await?;
        let said: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
        let said = said.as_ref().and_then(|said| said.get("error")?.as_str());
        let message = said.map_or_else(|| head.status.to_string(), str::to_owned);
        Err(ClientError::Refused {
            status: head.status,
            message,
        })
    }

    async fn exchange<S>(
        &self,
        stream: S,
        host: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<hyper::Response<Incoming>, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let fail = |e: hyper::Error| self.no_answer(io::Error::other(e));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|e| self.no_answer(io::Error::other(e)))?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(fail)?;
        // It carries the rest of the answer, and ends with it.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(fail)
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Reach {
            server: self.server.clone(),
            source,
        }
    }

    fn no_answer(&self, source: io::Error) -> ClientError {
        ClientError::Answer {
            server: self.server.clone(),
            source,
        }
    }
}

async fn connect(host: &str) -> io::Result<TcpStream> {
    let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in host.to_socket_addrs()? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_or_a_socket() {
        let tcp = |text: &str| Ok(Server::Tcp(text.to_owned()));
        assert_eq!("http://tsim:8686/".parse(), tcp("tsim:8686"));
        assert_eq!("http://[::1]".parse(), tcp("[::1]:80"));
        assert_eq!("/run/s".parse(), Ok(Server::Socket("/run/s".into())));
        for wrong in [
            "tsim:8686",
            "https://tsim",
            "http://",
            "http://a@b",
            "http://a/b",
            "s",
        ] {
            assert!(wrong.parse::<Server>().is_err(), "{wrong}");
        }
    }
}
