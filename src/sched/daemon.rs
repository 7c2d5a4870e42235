//! `tsimd` from its start to its end: takes the lead or stands by for it, then runs jobs and
//! serves the viewer.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::{Builder, Runtime},
};

use super::{
    board::{Board, this_scheduler},
    door::Door,
    events::{Scheduler, SchedulerError, StopSignals, limits},
    job::Mode,
    leader::Leadership,
    notify::notify,
    resources::Resources,
    runner::{QuickNursery, Runners},
    spool::{Spool, SpoolError},
    web::{
        self, Site,
        auth::{AccessToken, TokenError},
    },
};
use crate::config::Config;

/// The daemon could not start, or cannot go on.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The scheduler's files cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The scheduler cannot go on.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// A runner is not where it should be.
    #[error("no runner {0}: set scheduler.runner_dir to where tsim-quick and tsim-detailed are")]
    NoRunner(PathBuf),
    /// The token file cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The viewer's port cannot be had.
    #[error("cannot listen on {address}, scheduler.listen")]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be had.
    #[error("cannot listen on {path}, scheduler.socket")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something.
    #[error("cannot {what}")]
    Io {
        /// What was refused.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the daemon works with.
#[derive(Debug)]
pub struct Daemon {
    /// Paths and limits.
    pub config: Config,
    /// The configuration file, passed on to the runners.
    pub config_file: Option<PathBuf>,
    /// DSCP values and reconcile.
    pub resources: Arc<dyn Resources>,
    /// Opens the socket and tells who comes.
    pub door: Door,
}

impl Daemon {
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// [`DaemonError`]; running jobs go on, and the next leader adopts them.
    pub fn run(self) -> Result<(), DaemonError> {
        let runners = runners(&self.config, self.config_file)?;
        let spool = Spool::open(&self.config)?;
        let token = AccessToken::read_or_make(&self.config.token_file)?;
        let door = Arc::new(self.door);
        let runtime = runtime()?;
        let _leadership = match lead(&runtime, &spool) {
            Ok(Some(leadership)) => leadership,
            other => {
                // Dropping it would wait for the thread that sleeps in flock(2).
                runtime.shutdown_background();
                return other.map(drop);
            }
        };
        let limits = limits(&self.config);
        let board = Arc::new(Board::new(this_scheduler(&limits, Timestamp::now())));
        let served = runtime.block_on(async {
            let publisher = Arc::clone(&board);
            tokio::spawn(async move { publisher.publish().await });
            let listener = listen(&self.config).await?;
            let local = listen_locally(&self.config, &door)?;
            let site = Arc::new(Site::new(
                self.config.clone(),
                &spool,
                Arc::clone(&board),
                Arc::clone(&self.resources),
                door,
                token,
            ));
            let doors = [
                tokio::spawn(web::serve(listener, Arc::clone(&site))),
                tokio::spawn(web::serve_local(local, site)),
            ];
            let config = &self.config;
            let resources = Arc::clone(&self.resources);
            let spool = spool.impatient();
            let scheduler = Scheduler::new(config, spool, runners, resources, board)?;
            notify("READY=1\nSTATUS=Leading");
            tracing::info!("leading");
            let ended = scheduler.run().await;
            // Who leads next listens there as soon as the lead is free.
            for door in doors {
                door.abort();
                let _ = door.await;
            }
            Ok::<_, DaemonError>(ended?)
        });
        notify("STOPPING=1");
        // A viewer's connection is no reason to wait.
        runtime.shutdown_background();
        served
    }
}

fn runners(config: &Config, config_file: Option<PathBuf>) -> Result<Runners, DaemonError> {
    let own_dir = || {
        let own = std::env::current_exe()?;
        own.parent()
            .map(PathBuf::from)
            .ok_or(io::ErrorKind::NotFound.into())
    };
    let dir = match &config.scheduler.runner_dir {
        Some(dir) => dir.clone(),
        None => own_dir().map_err(|source| DaemonError::Io {
            what: "find the own executable",
            source,
        })?,
    };
    let mut runners = Runners {
        dir,
        config_file,
        max_output: config.scheduler.max_output_bytes,
        nursery: None,
    };
    // Better no scheduler than one that fails every job.
    let program = runners.program(Mode::Quick);
    if !program.is_file() {
        return Err(DaemonError::NoRunner(program));
    }
    match QuickNursery::beside(&runners.dir) {
        Ok(nursery) => runners.nursery = nursery.map(Arc::new),
        Err(error) => tracing::warn!(%error, "runners of quick jobs are executed, not forked"),
    }
    Ok(runners)
}

/// Listens for viewers; the port is free at once after a leader that was killed, because tokio sets
/// SO_REUSEADDR.
async fn listen(config: &Config) -> Result<TcpListener, DaemonError> {
    let address = config.scheduler.listen;
    let cannot = |source| DaemonError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    tracing::info!(%address, "serving the viewer");
    Ok(listener)
}

/// Listens for programs of this machine, from now on instead of a scheduler before.
fn listen_locally(config: &Config, door: &Door) -> Result<UnixListener, DaemonError> {
    let path = &config.socket;
    let opened = door
        .open()
        .and_then(|socket| UnixListener::from_std(socket.into()));
    let listener = opened.map_err(|source| DaemonError::Socket {
        path: path.clone(),
        source,
    })?;
    tracing::info!(socket = %path.display(), "serving the command line");
    Ok(listener)
}

fn runtime() -> Result<Runtime, DaemonError> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Io {
            what: "start the runtime",
            source,
        })
}

/// Takes the lead, or stands by for it; none when it was told to stop before.
fn lead(runtime: &Runtime, spool: &Spool) -> Result<Option<Leadership>, DaemonError> {
    if let Some(leadership) = Leadership::try_take(spool)? {
        return Ok(Some(leadership));
    }
    let spool = spool.clone();
    runtime.block_on(async {
        // Before it is said, so that who is told to end after that does so well.
        let mut stop = StopSignals::new()?;
        tracing::info!("another scheduler leads; standing by");
        notify("READY=1\nSTATUS=Standing by");
        // The thread sleeps in flock(2); when the process ends, so does it.
        let mut wait = tokio::task::spawn_blocking(move || Leadership::wait(&spool));
        tokio::select! {
            () = stop.next() => Ok(None),
            lead = &mut wait => match lead {
                Ok(lead) => Ok(Some(lead?)),
                Err(panic) => Err(DaemonError::Io {
                    what: "wait for the lead",
                    source: io::Error::other(panic),
                }),
            },
        }
    })
}
