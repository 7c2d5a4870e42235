//! The rtnetlink socket of one namespace: requests out, replies in, names to indexes.

use std::{collections::HashMap, io, os::fd::AsFd as _};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use super::{
    NetlinkError, buffers,
    error::ext_ack,
    reply::{KernelMessage, Reply, messages, reply},
    requests::{PerCall, Request, Requests, SEND_BYTES},
};
use crate::{
    model::IfName,
    netns::{NetnsError, NetnsFd, visit},
    sys::mmsg::{Inbox, WhenEmpty},
};

/// Send buffer; the kernel takes one call's bytes only if they fit.
const SEND_BUFFER: usize = 2 * SEND_BYTES;
/// Receive buffer.
const RECEIVE_BUFFER: usize = 8 << 20;
/// How often a list is read again because it changed meanwhile.
const DUMP_ATTEMPTS: usize = 16;

/// The rtnetlink socket of one namespace. It keeps the namespace alive as long as it is open.
#[derive(Debug)]
pub struct Netlink {
    pub(super) socket: Socket,
    /// The socket's address, which replies carry. It is asked for when other messages may come, too, which are
    /// those of a group: before that everything is a reply.
    pub(super) port: Option<u32>,
    netns: String,
    sequence: u32,
    /// What fits the buffers that the kernel grants, once larger ones were asked for.
    per_call: Option<PerCall>,
    inbox: Inbox,
    /// Something came that was no reply: news of a group that [`Netlink::await_settled`] joins.
    pub(super) news: bool,
    pub(super) indexes: HashMap<IfName, u32>,
}

impl Netlink {
    /// Opens a socket inside `netns`.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when the namespace cannot be entered or the socket is refused.
    pub fn open(netns: &NetnsFd) -> Result<Self, NetlinkError> {
        Self::open_all(&[netns])?
            .pop()
            .ok_or_else(|| NetlinkError::Socket {
                netns: netns.name().to_string(),
                call: "open",
                errno: Errno::EIO,
            })
    }

    /// Opens a socket inside each of `namespaces`, all from one thread.
    ///
    /// # Errors
    /// As [`Netlink::open`].
    pub fn open_all(namespaces: &[&NetnsFd]) -> Result<Vec<Self>, NetlinkError> {
        let open = |netns: &NetnsFd| Self::open_here(netns.name().as_str());
        visit(namespaces, open)
            .map_err(|error| NetlinkError::Socket {
                netns: match &error {
                    NetnsError::Enter { netns, .. } => netns.to_string(),
                    _ => String::new(),
                },
                call: "enter the namespace for",
                errno: errno_of(&error),
            })?
            .into_iter()
            .collect()
    }

    /// Opens a socket inside the namespace that the calling thread is in, which messages will
    /// call `netns`.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when the socket or one of its options is refused.
    pub fn open_here(netns: &str) -> Result<Self, NetlinkError> {
        let fail = |call| {
            move |error: io::Error| NetlinkError::Socket {
                netns: netns.to_owned(),
                call,
                errno: errno_from(&error),
            }
        };
        // It needs neither bind(2) nor connect(2): the first request gives it an address, whatever names no
        // address goes to the kernel, and nobody without root's rights can send it anything
        // (`netlink_sendmsg()`).
        let socket = Socket::new(NETLINK_ROUTE).map_err(fail("open"))?;
        let set = |done: io::Result<()>| done.map_err(fail("set an option of"));
        set(socket.set_ext_ack(true))?;
        set(socket.set_netlink_get_strict_chk(true))?;
        Ok(Self {
            socket,
            port: None,
            netns: netns.to_owned(),
            sequence: 1,
            per_call: None,
            inbox: Inbox::default(),
            news: false,
            indexes: HashMap::new(),
        })
    }

    /// The name of the namespace, for messages.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Sends `requests` and returns everything that failed, by the requests' numbers. A failure of
    /// the socket counts for the last one.
    pub(super) fn change(&mut self, requests: Requests) -> Vec<(usize, NetlinkError)> {
        let mut errors = Vec::new();
        let last = requests.list.last().map_or(0, |request| request.number);
        let result = self.exchange(requests, true, |request, reply| match reply {
            Some(Reply::Refused(errno, ext_ack)) if !request.tolerated.contains(&errno) => {
                let error = NetlinkError::Refused {
                    what: request.what.clone(),
                    errno,
                    ext_ack,
                };
                errors.push((request.number, error));
            }
            _ => {}
        });
        errors.extend(result.err().map(|error| (last, error)));
        if !errors.is_empty() {
            // Whatever was believed to exist by now may not.
            self.indexes.clear();
        }
        errors
    }

    /// Sends `requests`, each of which has one object or one error as its reply.
    pub(super) fn query(
        &mut self,
        requests: Requests,
    ) -> Result<Vec<Result<RouteNetlinkMessage, NetlinkError>>, NetlinkError> {
        let mut replies = Vec::with_capacity(requests.list.len());
        self.exchange(requests, false, |request, reply| {
            let what = request.what.clone();
            replies.push(match reply {
                Some(Reply::Object(object)) => Ok(*object),
                Some(Reply::Refused(errno, ext_ack)) => Err(NetlinkError::Refused {
                    what,
                    errno,
                    ext_ack,
                }),
                Some(Reply::Done) | None => Err(NetlinkError::NoReply { what }),
            });
        })?;
        Ok(replies)
    }

    /// Sends one request that has one object as its reply.
    pub(super) fn query_one(
        &mut self,
        what: String,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        let mut requests = Requests::default();
        requests.push(what.clone(), 0, message);
        self.query(requests)?
            .pop()
            .unwrap_or(Err(NetlinkError::NoReply { what }))
    }

    /// How much is sent at a time. A few requests and their replies fit any buffer; larger ones are asked for
    /// when there are more.
    fn per_call(&mut self, requests: &Requests) -> Result<PerCall, NetlinkError> {
        let size = |done: io::Result<usize>| {
            done.map_err(|error| self.socket_error("set a buffer of", errno_from(&error)))
        };
        match self.per_call {
            Some(known) => Ok(known),
            None if requests.are_few() => Ok(PerCall::few()),
            None => {
                // Many errors have room without the requests that they are about.
                size(self.socket.set_cap_ack(true).map(|()| 0))?;
                let send = size(buffers::send(&self.socket, SEND_BUFFER))?;
                let receive = size(buffers::receive(&self.socket, RECEIVE_BUFFER))?;
                Ok(*self.per_call.insert(PerCall::fitting(send, receive)))
            }
        }
    }

    /// Sends requests chunk by chunk and hands each, in order, with its reply to `judge`.
    ///
    /// With `acked` the last request of a chunk asks for an acknowledgement: the kernel works
    /// through a chunk in order and reports failures without being asked, so that one reply shows
    /// that every other has arrived.
    fn exchange(
        &mut self,
        mut requests: Requests,
        acked: bool,
        mut judge: impl FnMut(&Request, Option<Reply>),
    ) -> Result<(), NetlinkError> {
        for chunk in requests.chunks(self.per_call(&requests)?) {
            let first = self.sequence;
            self.sequence = first.wrapping_add(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
            let bytes = requests.number(&chunk, first, acked);
            send(&self.socket, bytes).map_err(|errno| self.socket_error("write to", errno))?;
            let requests = &requests.list[chunk];
            let mut replies = self.replies(first, requests)?;
            if acked && replies.last().is_none_or(Option::is_none) {
                let what = format!("{} and before", requests[requests.len() - 1].what);
                return Err(NetlinkError::NoReply { what });
            }
            for (request, reply) in requests.iter().zip(replies.iter_mut()) {
                judge(request, reply.take());
            }
        }
        Ok(())
    }

    /// Reads until the last request has its reply, before which the kernel sends all others, or
    /// until nothing is left to read; sorted by request.
    fn replies(
        &mut self,
        first: u32,
        requests: &[Request],
    ) -> Result<Vec<Option<Reply>>, NetlinkError> {
        let mut replies: Vec<Option<Reply>> = requests.iter().map(|_| None).collect();
        let netns = self.netns.clone();
        while replies.last().is_some_and(Option::is_none) && self.receive()? {
            for message in messages(self.inbox.datagram(), self.port) {
                let message = message
                    .map_err(|reason| malformed(&format!("a request in {netns}"), reason))?;
                let Some((header, payload)) = message.map(KernelMessage::into_parts) else {
                    self.news = true;
                    continue;
                };
                let at = header.sequence_number.wrapping_sub(first) as usize;
                // Anything else is the late reply to an exchange that was given up.
                if let Some(slot) = replies.get_mut(at) {
                    *slot = reply(header.flags, payload).or(slot.take());
                }
            }
        }
        Ok(replies)
    }

    /// Reads a whole list.
    pub(super) fn dump(
        &mut self,
        what: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(list) = self.dump_once(what, message.clone())? {
                return Ok(list);
            }
        }
        Err(malformed(
            what,
            "the list changed each time that it was read".to_owned(),
        ))
    }

    /// Reads a list; none when it changed while it was read.
    fn dump_once(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let mut requests = Requests::default();
        requests.push(what.to_owned(), NLM_F_DUMP, message);
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let bytes = requests.number(&(0..1), sequence, false);
        send(&self.socket, bytes).map_err(|errno| self.socket_error("write to", errno))?;
        let mut list = Vec::new();
        let mut torn = false;
        while self.receive()? {
            for message in messages(self.inbox.datagram(), self.port) {
                let message = message.map_err(|e| malformed(what, e))?;
                let Some((header, payload)) = message.map(KernelMessage::into_parts) else {
                    self.news = true;
                    continue;
                };
                if header.sequence_number != sequence {
                    continue;
                }
                torn |= header.flags & NLM_F_DUMP_INTR != 0;
                match payload {
                    NetlinkPayload::Done(done) if done.code == 0 => {
                        return Ok((!torn).then_some(list));
                    }
                    NetlinkPayload::Done(done) => {
                        return Err(NetlinkError::Refused {
                            what: what.to_owned(),
                            errno: Errno::from_raw(-done.code),
                            ext_ack: ext_ack(&done.extended_ack),
                        });
                    }
                    other => match reply(header.flags, other) {
                        Some(Reply::Object(object)) => list.push(*object),
                        Some(Reply::Refused(errno, ext_ack)) => {
                            return Err(NetlinkError::Refused {
                                what: what.to_owned(),
                                errno,
                                ext_ack,
                            });
                        }
                        _ => {}
                    },
                }
            }
        }
        Err(NetlinkError::NoReply {
            what: what.to_owned(),
        })
    }

    /// Goes on to the next datagram; false when there is none.
    ///
    /// Never waits: the kernel queues the replies before the request's system call returns, and
    /// the rest of a list as soon as what is queued of it has been read.
    pub(super) fn receive(&mut self) -> Result<bool, NetlinkError> {
        loop {
            match self.inbox.advance(self.socket.as_fd(), WhenEmpty::Return) {
                Ok(there) => return Ok(there),
                Err(e) => match errno_from(&e) {
                    // The receive buffer overflowed. What it still holds can be read; who misses
                    // a reply will say so.
                    Errno::ENOBUFS => self.news = true,
                    errno => return Err(self.socket_error("read from", errno)),
                },
            }
        }
    }

    pub(super) fn socket_error(&self, call: &'static str, errno: Errno) -> NetlinkError {
        NetlinkError::Socket {
            netns: self.netns.clone(),
            call,
            errno,
        }
    }
}

fn send(socket: &Socket, bytes: &[u8]) -> Result<(), Errno> {
    loop {
        match socket.send(bytes, 0).map_err(|e| errno_from(&e)) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

fn malformed(what: &str, reason: String) -> NetlinkError {
    NetlinkError::Malformed {
        what: what.to_owned(),
        reason,
    }
}

fn errno_from(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// The errno at the end of the chain of causes.
fn errno_of(error: &NetnsError) -> Errno {
    let source = std::error::Error::source(error);
    let io = source.and_then(|cause| cause.downcast_ref::<io::Error>());
    io.map_or(Errno::UnknownErrno, errno_from)
}
