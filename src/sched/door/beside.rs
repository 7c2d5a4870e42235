//! A process that a scheduler without root leaves outside of its user namespace.
//!
//! They talk over a pair of sockets: one JSON object each way, with a descriptor beside it where one
//! goes along (a connection to look at, the socket that was opened). It ends when the scheduler does,
//! whose end of the pair is closed then.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{self, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Caller, DoorPlan, open, who};

/// How the process calls itself. Whoever is started under this name runs [`run`] and nothing else.
pub const NAME: &str = "tsim-door";
/// Longest message: paths and names.
const MESSAGE_MAX: usize = 16 * 1024;
/// How long the list of users may take to answer, which may be a directory in the network.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Plan(DoorPlan),
    Open,
    Who,
}

#[derive(Debug, Serialize, Deserialize)]
struct Message<T> {
    /// The answer has that of its question: one that came too late is passed over.
    number: u64,
    content: T,
}

type Reply = Result<Option<Caller>, String>;

/// The scheduler's end.
#[derive(Debug)]
pub struct Beside(Mutex<Line>);

#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    number: u64,
}

impl Beside {
    /// Starts the process; call before the user namespace is entered.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(plan: DoorPlan) -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE))?;
        Command::new("/proc/self/exe")
            .arg0(NAME)
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let line = Line {
            socket: ours,
            number: 0,
        };
        let beside = Self(Mutex::new(line));
        beside.ask(Request::Plan(plan), None)?;
        Ok(beside)
    }

    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        let (_, socket) = self.ask(Request::Open, None)?;
        socket.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    pub(super) fn who(&self, connection: BorrowedFd<'_>) -> io::Result<Option<Caller>> {
        Ok(self.ask(Request::Who, Some(connection))?.0)
    }

    fn ask(
        &self,
        request: Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Option<Caller>, Option<OwnedFd>)> {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.number += 1;
        let number = line.number;
        let content = request;
        send(&line.socket, &Message { number, content }, descriptor)?;
        loop {
            let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
            let (message, descriptor) = receive::<Reply>(&line.socket)?.ok_or_else(gone)?;
            if message.number == number {
                let caller = message.content.map_err(io::Error::other)?;
                return Ok((caller, descriptor));
            }
        }
    }
}

/// Answers on standard input until the scheduler is gone.
pub fn run() -> ! {
    // Signals of the terminal are for the scheduler, which may still have jobs to wait for.
    let _ = nix::unistd::setsid();
    process::exit(i32::from(serve().is_err()))
}

fn serve() -> io::Result<()> {
    let line = io::stdin();
    let mut plan = None;
    while let Some((message, descriptor)) = receive::<Request>(&line)? {
        let answered = match (message.content, &plan) {
            (Request::Plan(given), _) => {
                plan = Some(given);
                Ok((None, None))
            }
            (Request::Open, Some(plan)) => open(plan).map(|socket| (None, Some(socket))),
            (Request::Who, Some(plan)) => descriptor
                .ok_or_else(|| io::ErrorKind::InvalidInput.into())
                .and_then(|connection| who(plan, connection.as_fd()))
                .map(|caller| (caller, None)),
            (_, None) => Err(io::ErrorKind::InvalidInput.into()),
        };
        let (content, descriptor): (Reply, _) = match answered {
            Ok((caller, descriptor)) => (Ok(caller), descriptor),
            Err(error) => (Err(error.to_string()), None),
        };
        let reply = Message {
            number: message.number,
            content,
        };
        send(&line, &reply, descriptor.as_ref().map(AsFd::as_fd))?;
    }
    Ok(())
}

fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut along = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        along.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    // Who is gone is no reason to be ended by a signal.
    sendmsg(
        socket,
        &[IoSlice::new(&text)],
        &mut along,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// A message with what came along; none when the other end is closed.
fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(Message<T>, Option<OwnedFd>)>> {
    let mut text = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut along = RecvAncillaryBuffer::new(&mut space);
    let count = loop {
        let mut parts = [IoSliceMut::new(&mut text)];
        match recvmsg(&socket, &mut parts, &mut along, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    if count == 0 {
        return Ok(None);
    }
    let descriptor = along.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let message = serde_json::from_slice(&text[..count])?;
    Ok(Some((message, descriptor)))
}
