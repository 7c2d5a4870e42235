//! Requests to rtnetlink as bytes.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

/// Most bytes of requests per system call. Each call copies its bytes into one kernel buffer.
pub(super) const SEND_BYTES: usize = 512 << 10;
/// Most requests per system call.
const SEND_REQUESTS: usize = 4096;
/// What a reply takes of the receive buffer at most: an error a good kilobyte, a link four.
const REPLY_BYTES: usize = 4 << 10;
/// So many requests and their replies fit the buffers that every socket has: 208 KiB each, unless somebody set
/// `net.core.wmem_default` or `rmem_default` to a few pages.
const FEW: usize = 8;
/// What these are long at most, together.
const FEW_BYTES: usize = 8 << 10;
/// Requests are padded to this (`NLMSG_ALIGNTO`).
pub(super) const ALIGN: usize = 4;

/// What one system call may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PerCall {
    bytes: usize,
    requests: usize,
}

impl PerCall {
    /// What any socket takes.
    pub(super) fn few() -> Self {
        Self {
            bytes: FEW_BYTES,
            requests: FEW,
        }
    }

    /// What a socket takes whose calls send at most `send` bytes, and whose replies have room in
    /// `receive` bytes: a reply that finds none is lost.
    pub(super) fn fitting(send: usize, receive: usize) -> Self {
        Self {
            bytes: send.min(SEND_BYTES),
            requests: (receive / REPLY_BYTES).clamp(1, SEND_REQUESTS),
        }
    }
}

/// Requests as bytes, with what is needed to judge their replies.
#[derive(Debug, Default)]
pub(super) struct Requests {
    bytes: Vec<u8>,
    pub(super) list: Vec<Request>,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) start: usize,
    /// The caller's number for it.
    pub(super) number: usize,
    pub(super) what: String,
    /// Errors that mean that the wanted state exists already.
    pub(super) tolerated: Vec<Errno>,
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether they need no larger buffers. One always fits.
    pub(super) fn are_few(&self) -> bool {
        self.list.len() < 2 || (self.list.len() <= FEW && self.bytes.len() <= FEW_BYTES)
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
    pub(super) fn chunks(&self, most: PerCall) -> Vec<std::ops::Range<usize>> {
        let mut chunks = Vec::new();
        let mut first = 0;
        for at in 0..self.list.len() {
            let bytes = self.end(at) - self.list[first].start;
            if at > first && (bytes > most.bytes || at - first == most.requests) {
                chunks.push(first..at);
                first = at;
            }
        }
        if first < self.list.len() {
            chunks.push(first..self.list.len());
        }
        chunks
    }

    /// Numbers the requests of `chunk` from `sequence` on and returns its bytes. With `acked` the last
    /// one asks for an acknowledgement.
    pub(super) fn number(
        &mut self,
        chunk: &std::ops::Range<usize>,
        sequence: u32,
        acked: bool,
    ) -> &mut [u8] {
        for (at, sequence) in chunk.clone().zip(sequence..) {
            let mut header = NetlinkBuffer::new(&mut self.bytes[self.list[at].start..]);
            header.set_sequence_number(sequence);
            if acked && at + 1 == chunk.end {
                header.set_flags(header.flags() | NLM_F_ACK);
            }
        }
        let range = self.list[chunk.start].start..self.end(chunk.end - 1);
        &mut self.bytes[range]
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteMessage;

    use super::{super::reply::messages, *};

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
        let chunks = list.chunks(PerCall::fitting(usize::MAX, usize::MAX));
        assert_eq!(chunks, [0..SEND_REQUESTS, SEND_REQUESTS..SEND_REQUESTS + 1]);
        let bytes = list.number(&chunks[0], 7, false).to_vec();
        let numbers: Vec<u32> = messages(&bytes, None)
            .map(|m| m.unwrap().unwrap().header.sequence_number)
            .collect();
        let want: Vec<u32> = (7..7 + u32::try_from(SEND_REQUESTS).unwrap()).collect();
        assert_eq!(numbers, want);
        assert!(requests(0).chunks(PerCall::fitting(1, 1)).is_empty());
    }

    #[test]
    fn a_small_socket_gets_fewer_requests_at_a_time_and_all_of_them() {
        // Linux's default of 212,992 bytes, doubled.
        let default = PerCall::fitting(425_952, 425_984);
        assert_eq!(default.requests, 104);
        let list = requests(1000);
        let each = list.bytes.len() / 1000;
        for most in [default, PerCall::fitting(10 * each + 1, usize::MAX)] {
            let chunks = list.chunks(most);
            assert!(chunks.iter().all(|chunk| chunk.len() <= most.requests));
            assert!(chunks.iter().all(|chunk| chunk.len() * each <= most.bytes));
            let numbers: Vec<usize> = chunks.into_iter().flatten().collect();
            assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
        }
        // A request that is larger than the buffer is for the kernel to refuse.
        assert_eq!(list.chunks(PerCall::fitting(1, 1)).len(), 1000);
    }

    #[test]
    fn a_datagram_that_is_cut_is_an_error_not_a_panic() {
        let bytes = requests(2).bytes;
        for cut in 0..bytes.len() {
            let _ = messages(&bytes[..cut], None).collect::<Vec<_>>();
        }
        let mut lies = bytes.clone();
        lies[0] = 3;
        assert!(messages(&lies, None).next().unwrap().is_err());
    }
}
