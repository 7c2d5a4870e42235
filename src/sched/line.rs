//! Messages between a scheduler and a process of its own: one JSON object each way over a pair of
//! sockets, with descriptors beside it where some go along.
//!
//! The process has its end as standard input, and ends when the scheduler's is closed.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest message.
pub(super) const MESSAGE_MAX: usize = 64 * 1024;
/// Most descriptors beside one.
const DESCRIPTORS_MAX: usize = 4;

/// A message with its number: an answer has that of its question, and one that came too late is passed
/// over.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Message<T> {
    number: u64,
    content: T,
}

/// The scheduler's end.
#[derive(Debug)]
pub(super) struct Line {
    socket: OwnedFd,
    number: u64,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The question did not get there.
    NotAsked(io::Error),
    /// It did.
    NoAnswer(io::Error),
}

impl From<Unanswered> for io::Error {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::NotAsked(error) | Unanswered::NoAnswer(error) => error,
        }
    }
}

impl Line {
    /// Starts `command` at the other end; it has as long as `patience` for each answer.
    pub(super) fn start(command: &mut Command, patience: Duration) -> io::Result<(Self, Child)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_socket_timeout(&ours, Timeout::Recv, Some(patience))?;
        let child = command
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let line = Self {
            socket: ours,
            number: 0,
        };
        Ok((line, child))
    }

    /// Asks and waits for the answer.
    pub(super) fn ask<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        content: &Q,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(A, Vec<OwnedFd>), Unanswered> {
        self.number += 1;
        let number = self.number;
        send(&self.socket, &Message { number, content }, descriptors)
            .map_err(Unanswered::NotAsked)?;
        loop {
            let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
            let received = receive::<A>(&self.socket).and_then(|got| got.ok_or_else(gone));
            let (message, descriptors) = received.map_err(Unanswered::NoAnswer)?;
            if message.number == number {
                return Ok((message.content, descriptors));
            }
        }
    }
}

/// This program under another name.
pub(super) fn this_program(name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name);
    command
}

/// Answers what comes by standard input until the scheduler is gone.
///
/// # Errors
/// When the socket cannot be used.
pub(super) fn serve<Q: DeserializeOwned, A: Serialize>(
    mut answer: impl FnMut(Q, Vec<OwnedFd>) -> (A, Option<OwnedFd>),
) -> io::Result<()> {
    let line = io::stdin();
    while let Some((message, descriptors)) = receive::<Q>(&line)? {
        let (content, descriptor) = answer(message.content, descriptors);
        let reply = Message {
            number: message.number,
            content,
        };
        let along: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
        send(&line, &reply, &along)?;
    }
    Ok(())
}

fn send<T: Serialize>(
    socket: impl AsFd,
    message: &Message<T>,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut along = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !along.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
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
) -> io::Result<Option<(Message<T>, Vec<OwnedFd>)>> {
    let mut text = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
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
    let came = along.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = came.flatten().collect();
    let message = serde_json::from_slice(&text[..count])?;
    Ok(Some((message, descriptors)))
}
