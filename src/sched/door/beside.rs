//! A process that a scheduler without root leaves outside of its user namespace.
//!
//! It is asked over a [line](crate::sched::line), with a connection to look at or the socket that was
//! opened beside the words, and ends when the scheduler does.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Caller, DoorPlan, open, who};
use crate::sched::line::{self, Line};

/// How the process calls itself. Whoever is started under this name runs [`run`] and nothing else.
pub const NAME: &str = "tsim-door";
/// How long the list of users may take to answer, which may be a directory in the network.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Plan(DoorPlan),
    Open,
    Who,
}

type Reply = Result<Option<Caller>, String>;

/// The scheduler's end.
#[derive(Debug)]
pub struct Beside(Mutex<Line>);

impl Beside {
    /// Starts the process; call before the user namespace is entered.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(plan: DoorPlan) -> io::Result<Self> {
        let (line, _) = Line::start(&mut line::this_program(NAME), PATIENCE)?;
        let beside = Self(Mutex::new(line));
        beside.ask(&Request::Plan(plan), None)?;
        Ok(beside)
    }

    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        let (_, socket) = self.ask(&Request::Open, None)?;
        socket.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    pub(super) fn who(&self, connection: BorrowedFd<'_>) -> io::Result<Option<Caller>> {
        Ok(self.ask(&Request::Who, Some(connection))?.0)
    }

    fn ask(
        &self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Option<Caller>, Option<OwnedFd>)> {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (reply, descriptors) = line.ask::<_, Reply>(request, descriptor.as_slice())?;
        let caller = reply.map_err(io::Error::other)?;
        Ok((caller, descriptors.into_iter().next()))
    }
}

/// Answers on standard input until the scheduler is gone.
pub fn run() -> ! {
    // Signals of the terminal are for the scheduler, which may still have jobs to wait for.
    let _ = nix::unistd::setsid();
    process::exit(i32::from(serve().is_err()))
}

fn serve() -> io::Result<()> {
    let mut plan = None;
    line::serve(|request, descriptors| {
        let answered = match (request, &plan) {
            (Request::Plan(given), _) => {
                plan = Some(given);
                Ok((None, None))
            }
            (Request::Open, Some(plan)) => open(plan).map(|socket| (None, Some(socket))),
            (Request::Who, Some(plan)) => descriptors
                .first()
                .ok_or_else(|| io::ErrorKind::InvalidInput.into())
                .and_then(|connection| who(plan, connection.as_fd()))
                .map(|caller| (caller, None)),
            (_, None) => Err(io::ErrorKind::InvalidInput.into()),
        };
        match answered {
            Ok((caller, descriptor)) => (Ok(caller), descriptor),
            Err(error) => (Reply::Err(error.to_string()), None),
        }
    })
}
