//! sendmmsg(2): many datagrams of one size to one destination with few system calls.
#![allow(unsafe_code)]

use std::{
    io,
    net::{IpAddr, SocketAddr},
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
    // SAFETY: all-zero is a valid value of this struct of numbers and pointers.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_name = address.as_ptr().cast_mut();
    header.msg_hdr.msg_namelen = address.len();
    header.msg_hdr.msg_iov = vector;
    header.msg_hdr.msg_iovlen = 1;
    header
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
}
