//! sendmmsg(2) and recvmmsg(2): many datagrams with few system calls.
#![allow(unsafe_code)]

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// `UIO_MAXIOV`, the most messages that one call takes.
const CHUNK: usize = 1024;

/// Where datagrams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To this address.
    Address(IpAddr),
    /// Out of the device with this number, as whole frames, packet(7).
    Device(u32),
}

/// Sends `packets`, which holds datagrams of `size` bytes each, one after the other, to
/// `target`, and reports those that the kernel refused as (index, error). A refused datagram
/// does not keep the next ones from being sent.
///
/// # Panics
/// When `size` is 0.
#[must_use]
pub fn send_each(
    socket: BorrowedFd<'_>,
    packets: &[u8],
    size: usize,
    target: Target,
) -> Vec<(usize, io::Error)> {
    let address = Address::of(target);
    let mut refused = Vec::new();
    // The headers of one call at a time: they stay in the processor's cache.
    for (number, chunk) in packets.chunks(size * CHUNK).enumerate() {
        let mut vectors: Vec<libc::iovec> = chunk.chunks_exact(size).map(vector).collect();
        let mut headers: Vec<libc::mmsghdr> =
            vectors.iter_mut().map(|v| header(v, &address)).collect();
        let errors = send_all(socket, &mut headers).into_iter();
        refused.extend(errors.map(|(at, error)| (number * CHUNK + at, error)));
    }
    refused
}

/// Calls sendmmsg until every message was sent or refused.
fn send_all(socket: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> Vec<(usize, io::Error)> {
    let mut refused = Vec::new();
    let mut next = 0;
    while next < headers.len() {
        let rest = &mut headers[next..];
        // SAFETY: `rest` has as many headers as are announced; each points to one vector and to
        // the address, which outlive the call and, as all of this is only read, may be shared.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                rest.as_mut_ptr(),
                rest.len() as libc::c_uint,
                0,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) => next += sent,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    refused.push((next, error));
                    next += 1;
                }
            }
        }
    }
    refused
}

fn vector(packet: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: packet.as_ptr().cast_mut().cast(),
        iov_len: packet.len(),
    }
}

/// A target as the kernel wants it.
enum Address {
    Ip(SockaddrStorage),
    Link(libc::sockaddr_ll),
}

impl Address {
    fn of(target: Target) -> Self {
        let index = match target {
            Target::Address(to) => return Self::Ip(SocketAddr::new(to, 0).into()),
            Target::Device(index) => index,
        };
        // SAFETY: all-zero is a valid value of this struct of numbers.
        let mut link: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        link.sll_family = libc::AF_PACKET as u16;
        link.sll_ifindex = index as libc::c_int;
        // What the frames hold is said by their own headers.
        link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        Self::Link(link)
    }

    fn as_ptr(&self) -> *const libc::c_void {
        match self {
            Self::Ip(address) => address.as_ptr().cast(),
            Self::Link(address) => ptr::from_ref(address).cast(),
        }
    }

    fn len(&self) -> libc::socklen_t {
        match self {
            Self::Ip(address) => address.len(),
            Self::Link(_) => size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        }
    }
}

fn header(vector: &mut libc::iovec, address: &Address) -> libc::mmsghdr {
    let mut header = bare_header(vector);
    header.msg_hdr.msg_name = address.as_ptr().cast_mut();
    header.msg_hdr.msg_namelen = address.len();
    header
}

/// One that names no address.
fn bare_header(vector: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: all-zero is a valid value of this struct of numbers and pointers.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_iov = vector;
    header.msg_hdr.msg_iovlen = 1;
    header
}

/// The most datagrams that one call reads: a list of the kernel's comes as one and its end as another,
/// and questions that are put together have one answer each.
const AT_ONCE: usize = 4;
/// How long a datagram may be at first. The kernel fills at most 32 KiB with a list at once
/// (`netlink_dump()`), and no other answer is known to be longer.
const ROOM: usize = 64 << 10;

/// What a call does when no datagram has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenEmpty {
    /// It waits for one.
    Wait,
    /// It returns.
    Return,
}

/// What one socket received: several datagrams are read with one call, and looked at one by one.
#[derive(Debug)]
pub struct Inbox {
    /// Room for [`AT_ONCE`] datagrams, one behind the other; the kernel writes into its spare capacity.
    memory: Vec<u8>,
    room: usize,
    /// Where the datagrams are that were read and not looked at yet, the next one last.
    unread: Vec<Range<usize>>,
    /// The one that is looked at.
    current: Range<usize>,
    /// The room that a datagram would have needed which was longer.
    needed: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            memory: Vec::with_capacity(AT_ONCE * ROOM),
            room: ROOM,
            unread: Vec::with_capacity(AT_ONCE),
            current: 0..0,
            needed: ROOM,
        }
    }
}

impl Inbox {
    /// The datagram that [`Inbox::advance`] came to.
    #[must_use]
    pub fn datagram(&self) -> &[u8] {
        // SAFETY: the kernel wrote these bytes: `read` made the range of what it said to have written, which is
        // within the capacity, and nothing has been written there since.
        unsafe {
            std::slice::from_raw_parts(
                self.memory.as_ptr().add(self.current.start),
                self.current.len(),
            )
        }
    }

    /// Goes on to the next datagram; false when none has come.
    ///
    /// # Errors
    /// `EMSGSIZE` for one that was longer than there was room: it is lost, and there is more room for what is
    /// read from now on. Otherwise what recvmmsg(2) says, but for `EINTR`.
    pub fn advance(&mut self, socket: BorrowedFd<'_>, empty: WhenEmpty) -> io::Result<bool> {
        self.current = 0..0;
        if self.unread.is_empty() {
            match self.read(socket, empty) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                other => other?,
            }
        }
        let Some(next) = self.unread.pop() else {
            return Ok(false);
        };
        if next.len() > self.room {
            self.needed = self.needed.max(next.len().next_multiple_of(ROOM));
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        self.current = next;
        Ok(true)
    }

    fn read(&mut self, socket: BorrowedFd<'_>, empty: WhenEmpty) -> io::Result<()> {
        self.room = self.room.max(self.needed);
        self.memory.reserve(AT_ONCE * self.room);
        let spare = self.memory.spare_capacity_mut();
        let mut vectors: Vec<libc::iovec> = spare
            .chunks_exact_mut(self.room)
            .take(AT_ONCE)
            .map(|room| libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: room.len(),
            })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = vectors.iter_mut().map(bare_header).collect();
        // The whole length is told of a datagram that was cut.
        let flags = libc::MSG_TRUNC
            | match empty {
                WhenEmpty::Wait => libc::MSG_WAITFORONE,
                WhenEmpty::Return => libc::MSG_DONTWAIT,
            };
        let read = loop {
            // SAFETY: there are as many headers as are announced; each points to one vector, and that to a part
            // of the spare capacity of its own, all of which is borrowed for longer than the call.
            let read = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    headers.len() as libc::c_uint,
                    flags,
                    ptr::null_mut(),
                )
            };
            match usize::try_from(read) {
                Ok(read) => break read,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        };
        let datagrams = headers.iter().take(read).enumerate();
        let ranges = datagrams.map(|(at, header)| {
            let start = at * self.room;
            start..start + header.msg_len as usize
        });
        self.unread.extend(ranges.rev());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use super::*;

    #[test]
    fn every_refused_datagram_is_named_and_the_rest_is_tried() {
        // Port 0 is refused by UDP for each datagram on its own.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Target::Address("127.0.0.1".parse().unwrap());
        let refused = send_each(socket.as_fd(), &[0; 12], 4, to);
        let indexes: Vec<_> = refused
            .iter()
            .map(|(i, e)| (*i, e.raw_os_error()))
            .collect();
        assert_eq!(indexes, [0, 1, 2].map(|i| (i, Some(libc::EINVAL))));
    }

    #[test]
    fn datagrams_come_in_order_and_one_that_is_too_long_is_told_of_and_fits_the_next_time() {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut inbox = Inbox::default();
        let next = |inbox: &mut Inbox| inbox.advance(far.as_fd(), WhenEmpty::Return);
        assert!(!next(&mut inbox).unwrap());
        let long = vec![7; ROOM + 1];
        for datagram in [&b"one"[..], b"", &long, b"four", b"five"] {
            near.send(datagram).unwrap();
        }
        assert!(next(&mut inbox).unwrap());
        assert_eq!(inbox.datagram(), b"one");
        assert!(next(&mut inbox).unwrap());
        assert_eq!(inbox.datagram(), b"");
        let error = next(&mut inbox).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        for rest in [b"four", b"five"] {
            assert!(next(&mut inbox).unwrap());
            assert_eq!(inbox.datagram(), rest);
        }
        near.send(&long).unwrap();
        assert!(inbox.advance(far.as_fd(), WhenEmpty::Wait).unwrap());
        assert_eq!(inbox.datagram(), long);
        assert!(!next(&mut inbox).unwrap());
        assert_eq!(inbox.datagram(), b"");
    }
}
