//! The rtnetlink socket of one namespace: requests out, replies in, names to indexes.

use std::{collections::HashMap, io};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use super::{Batch, NetlinkError, error::ext_ack};
use crate::{
    model::IfName,
    netns::{NetnsError, NetnsFd, visit},
};

/// Bytes of requests per system call. Each call copies its bytes into one kernel buffer.
const SEND_BYTES: usize = 512 << 10;
/// Requests per system call: so many replies of a good kilobyte fit the receive buffer.
const SEND_REQUESTS: usize = 4096;
/// Send buffer; the kernel takes one call's bytes only if they fit.
const SEND_BUFFER: usize = 2 * SEND_BYTES;
/// Receive buffer. An error reply takes about a kilobyte of it.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Bytes read at a time; the kernel fills at most 32 KiB of a dump at once.
const READ_BYTES: usize = 64 << 10;
/// How often a list is read again because it changed meanwhile.
const DUMP_ATTEMPTS: usize = 16;
/// Requests are padded to this (`NLMSG_ALIGNTO`).
const ALIGN: usize = 4;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// `NLM_F_ACK` as it stands in a request's flags, low byte.
const ACK: u8 = 4;

/// A parsed message of the kernel.
type Message = NetlinkMessage<RouteNetlinkMessage>;

/// The rtnetlink socket of one namespace. It keeps the namespace alive as long as it is open.
#[derive(Debug)]
pub struct Netlink {
    pub(super) socket: Socket,
    /// The socket's address; replies carry it.
    port: u32,
    netns: String,
    sequence: u32,
    /// What was received last.
    read: Vec<u8>,
    /// Something came that was no reply: news of a group that [`Netlink::await_settled`] joins.
    pub(super) news: bool,
    pub(super) indexes: HashMap<IfName, u32>,
}

/// Requests as bytes, with what is needed to judge their replies.
#[derive(Debug, Default)]
pub(super) struct Requests {
    bytes: Vec<u8>,
    list: Vec<Request>,
}

#[derive(Debug)]
struct Request {
    start: usize,
    /// The caller's number for it.
    number: usize,
    what: String,
    /// Errors that mean that the wanted state exists already.
    tolerated: Vec<Errno>,
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn push(&mut self, what: String, flags: u16, message: RouteNetlinkMessage) {
        self.push_numbered(self.list.len(), what, flags, message);
    }

    pub(super) fn push_numbered(
        &mut self,
        number: usize,
        what: String,
        flags: u16,
        message: RouteNetlinkMessage,
    ) {
        let start = self.bytes.len();
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let length = message.buffer_len();
        self.bytes.resize(start + length.next_multiple_of(ALIGN), 0);
        message.serialize(&mut self.bytes[start..start + length]);
        self.list.push(Request {
            start,
            number,
            what,
            tolerated: Vec::new(),
        });
    }

    /// Lets the latest request fail with `errno`.
    pub(super) fn tolerate(&mut self, errno: Errno) {
        if let Some(request) = self.list.last_mut() {
            request.tolerated.push(errno);
        }
    }

    fn end(&self, at: usize) -> usize {
        self.list
            .get(at + 1)
            .map_or(self.bytes.len(), |next| next.start)
    }

    /// The ranges of requests that go out in one call each.
    fn chunks(&self) -> Vec<std::ops::Range<usize>> {
        let mut chunks = Vec::new();
        let mut first = 0;
        for at in 0..self.list.len() {
            let bytes = self.end(at) - self.list[first].start;
            if at > first && (bytes > SEND_BYTES || at - first == SEND_REQUESTS) {
                chunks.push(first..at);
                first = at;
            }
        }
        if first < self.list.len() {
            chunks.push(first..self.list.len());
        }
        chunks
    }

    /// Numbers the requests of `chunk` from `sequence` on and returns its bytes.
    fn number(&mut self, chunk: &std::ops::Range<usize>, sequence: u32) -> &mut [u8] {
        for (at, sequence) in chunk.clone().zip(sequence..) {
            let field = self.list[at].start + 8;
            self.bytes[field..field + 4].copy_from_slice(&sequence.to_ne_bytes());
        }
        let range = self.list[chunk.start].start..self.end(chunk.end - 1);
        &mut self.bytes[range]
    }
}

/// What came back for one request.
#[derive(Debug)]
pub(super) enum Reply {
    /// `NLMSG_ERROR` with 0: done.
    Done,
    /// `NLMSG_ERROR`: refused.
    Refused(Errno, Option<String>),
    /// An object.
    Object(Box<RouteNetlinkMessage>),
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
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(fail("open"))?;
        let port = socket.bind_auto().map_err(fail("bind"))?.port_number();
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(fail("connect"))?;
        let set = |done: io::Result<()>| done.map_err(fail("set an option of"));
        set(socket.set_ext_ack(true))?;
        set(socket.set_cap_ack(true))?;
        set(socket.set_netlink_get_strict_chk(true))?;
        set(setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).map_err(io::Error::from))?;
        set(setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(io::Error::from))?;
        Ok(Self {
            socket,
            port,
            netns: netns.to_owned(),
            sequence: 1,
            read: Vec::with_capacity(READ_BYTES),
            news: false,
            indexes: HashMap::new(),
        })
    }

    /// The name of the namespace, for messages.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Starts a batch of changes to objects of `owner`, e.g. `router corp10.hq-gw`; the owner is
    /// named in every error.
    pub fn batch(&mut self, owner: impl Into<String>) -> Batch<'_> {
        Batch::new(self, owner.into())
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
        for chunk in requests.chunks() {
            let first = self.sequence;
            self.sequence = first.wrapping_add(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
            let last = requests.list[chunk.end - 1].start - requests.list[chunk.start].start;
            let bytes = requests.number(&chunk, first);
            if acked {
                bytes[last + 6] |= ACK;
            }
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

    /// Reads everything that has arrived, sorted by request.
    fn replies(
        &mut self,
        first: u32,
        requests: &[Request],
    ) -> Result<Vec<Option<Reply>>, NetlinkError> {
        let mut replies: Vec<Option<Reply>> = requests.iter().map(|_| None).collect();
        let netns = self.netns.clone();
        while self.receive()? {
            for message in messages(&self.read, self.port) {
                let message = message
                    .map_err(|reason| malformed(&format!("a request in {netns}"), reason))?;
                let Some((header, payload)) = message.map(Message::into_parts) else {
                    self.news = true;
                    continue;
                };
                let at = header.sequence_number.wrapping_sub(first) as usize;
                // Anything else is the late reply to an exchange that was given up.
                if let Some(slot) = replies.get_mut(at) {
                    *slot = reply(payload).or(slot.take());
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
        let bytes = requests.number(&(0..1), sequence);
        send(&self.socket, bytes).map_err(|errno| self.socket_error("write to", errno))?;
        let mut list = Vec::new();
        let mut torn = false;
        while self.receive()? {
            for message in messages(&self.read, self.port) {
                let message = message.map_err(|e| malformed(what, e))?;
                let Some((header, payload)) = message.map(Message::into_parts) else {
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
                    other => match reply(other) {
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

    /// Reads one datagram into `self.read`; false when there is none.
    ///
    /// Never waits: the kernel queues the replies before the request's system call returns, and
    /// the rest of a list as soon as what is queued of it has been read.
    pub(super) fn receive(&mut self) -> Result<bool, NetlinkError> {
        loop {
            self.read.clear();
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            match self.socket.recv(&mut self.read, flags) {
                Ok(length) if length > self.read.len() => {
                    self.read.reserve(length.next_multiple_of(READ_BYTES));
                    return Err(self.socket_error("read from", Errno::EMSGSIZE));
                }
                Ok(_) => return Ok(true),
                Err(e) => match errno_from(&e) {
                    Errno::EAGAIN => return Ok(false),
                    // The receive buffer overflowed. What it still holds can be read; who misses
                    // a reply will say so.
                    Errno::ENOBUFS => self.news = true,
                    Errno::EINTR => {}
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

/// The messages in one datagram; none in place of one that is no reply to `port`.
fn messages(bytes: &[u8], port: u32) -> impl Iterator<Item = Result<Option<Message>, String>> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = rest.first_chunk().map(|field| u32::from_ne_bytes(*field))? as usize;
        if length < HEADER_BYTES || length > rest.len() {
            let have = std::mem::take(&mut rest).len();
            return Some(Err(format!("message of {length} bytes in {have} bytes")));
        }
        let (message, _) = rest.split_at(length);
        rest = rest
            .get(length.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        let to = message.get(12..16).and_then(|field| field.try_into().ok());
        if to.map(u32::from_ne_bytes) != Some(port) {
            return Some(Ok(None));
        }
        Some(
            Message::deserialize(message)
                .map(Some)
                .map_err(|e| e.to_string()),
        )
    })
}

fn reply(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Reply> {
    match payload {
        NetlinkPayload::InnerMessage(object) => Some(Reply::Object(Box::new(object))),
        NetlinkPayload::Error(error) => Some(match error.code {
            None => Reply::Done,
            // The request's header comes first; its body is left out (`NETLINK_CAP_ACK`).
            Some(code) => Reply::Refused(
                Errno::from_raw(-code.get()),
                error.header.get(HEADER_BYTES..).and_then(ext_ack),
            ),
        }),
        _ => None,
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

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteMessage;

    use super::*;

    fn requests(count: usize) -> Requests {
        let mut requests = Requests::default();
        for at in 0..count {
            let message = RouteNetlinkMessage::GetRoute(RouteMessage::default());
            requests.push(format!("request {at}"), 0, message);
        }
        requests
    }

    #[test]
    fn requests_are_split_at_the_limit_and_numbered() {
        let mut list = requests(SEND_REQUESTS + 1);
        let chunks = list.chunks();
        assert_eq!(chunks, [0..SEND_REQUESTS, SEND_REQUESTS..SEND_REQUESTS + 1]);
        let bytes = list.number(&chunks[0], 7).to_vec();
        let numbers: Vec<u32> = messages(&bytes, 0)
            .map(|m| m.unwrap().unwrap().header.sequence_number)
            .collect();
        let want: Vec<u32> = (7..7 + u32::try_from(SEND_REQUESTS).unwrap()).collect();
        assert_eq!(numbers, want);
        assert!(requests(0).chunks().is_empty());
    }

    #[test]
    fn a_datagram_that_is_cut_is_an_error_not_a_panic() {
        let bytes = requests(2).bytes;
        for cut in 0..bytes.len() {
            let _ = messages(&bytes[..cut], 0).collect::<Vec<_>>();
        }
        let mut lies = bytes.clone();
        lies[0] = 3;
        assert!(messages(&lies, 0).next().unwrap().is_err());
    }

    #[test]
    fn a_refusal_keeps_errno_and_explanation() {
        // NLMSG_ERROR as Linux 6.18 sent it for a route with a gateway that is not on a link.
        let mut error = vec![0; 16];
        error[4..8].copy_from_slice(&[2, 0, 0, 3]);
        error.extend((-(Errno::ENETUNREACH as i32)).to_ne_bytes());
        error.extend([0; HEADER_BYTES]);
        error.extend([11, 0, 1, 0]);
        error.extend(b"no way\0\0");
        let length = u32::try_from(error.len()).unwrap();
        error[..4].copy_from_slice(&length.to_ne_bytes());
        let message = messages(&error, 0).next().unwrap().unwrap().unwrap();
        match reply(message.into_parts().1) {
            Some(Reply::Refused(Errno::ENETUNREACH, Some(text))) => assert_eq!(text, "no way"),
            other => panic!("{other:?}"),
        }
    }
}
