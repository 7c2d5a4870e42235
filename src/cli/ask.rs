//! Which scheduler a command asks, and what it says to one that says no.

use std::{fs, io, path::PathBuf, time::Duration};

use clap::Args;

use super::{Context, Failure};
use crate::{
    config::Config,
    sched::{
        client::{Client, ClientError, Server},
        leader,
        spool::Spool,
    },
};

/// Which scheduler to ask.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// http://HOST:PORT or socket of a scheduler [default: the one that runs here]
    #[arg(long, value_name = "URL")]
    server: Option<Server>,
    /// File with the token, as `tsim token` prints it there
    #[arg(long, value_name = "FILE", requires = "server")]
    token_file: Option<PathBuf>,
}

impl ServerArgs {
    /// The scheduler that was named, or else that of `config`, or else that of `shared`, if one
    /// listens there.
    pub(super) fn find(
        &self,
        config: &Config,
        shared: Option<&Config>,
    ) -> Result<Option<Client>, Failure> {
        if let Some(server) = &self.server {
            let token = self.token_file.as_ref().map(|file| {
                let text = fs::read_to_string(file);
                let cannot = |e| Failure::usage(format!("--token-file {}: {e}", file.display()));
                text.map(|text| text.trim().to_owned()).map_err(cannot)
            });
            let client = Client::new(server.clone(), token.transpose()?)?;
            return Ok(Some(client));
        }
        let mut sockets = vec![&config.socket];
        sockets.extend(
            shared
                .map(|shared| &shared.socket)
                .filter(|s| **s != config.socket),
        );
        for socket in sockets {
            match Client::at(socket) {
                Ok(client) => return Ok(Some(client)),
                Err(e) if is_nobody(&e) => {}
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    let socket = socket.display();
                    tracing::warn!(
                        "a scheduler may run here, but its group alone may use {socket}"
                    );
                }
                Err(source) => {
                    let server = Server::Socket(socket.clone());
                    return Err(ClientError::Reach { server, source }.into());
                }
            }
        }
        Ok(None)
    }
}

/// How often, and how far apart, a scheduler that leads is looked for at its socket.
const STARTING: usize = 40;
const STARTING_PAUSE: Duration = Duration::from_millis(25);

/// Nobody listens there.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
    // A path that no socket can have has none.
    matches!(
        error.kind(),
        ConnectionRefused | NotFound | NotADirectory | io::ErrorKind::InvalidInput
    )
}

/// Where a change of the queue goes.
pub(super) enum ChangesGo {
    /// Into its files: no scheduler runs, which alone changes them then.
    Files(Spool),
    /// To the scheduler, which took the lead after this command had looked for one.
    Scheduler(Client),
}

/// Where a change of the queue goes, of a command that found no scheduler at first.
pub(super) fn where_changes_go(context: &Context) -> Result<ChangesGo, Failure> {
    let spool = Spool::open(&context.config)?;
    let socket = &context.config.socket;
    for _ in 0..STARTING {
        if !leader::is_led(&spool)? {
            return Ok(ChangesGo::Files(spool));
        }
        if let Ok(client) = Client::at(socket) {
            return Ok(ChangesGo::Scheduler(client));
        }
        std::thread::sleep(STARTING_PAUSE);
    }
    Err(Failure::cannot_run(format!(
        "a scheduler runs, but does not listen at {}, which is where it is to be asked: start it \
         anew with this configuration",
        socket.display()
    )))
}
