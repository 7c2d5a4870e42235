//! Forgetting connections: entries of a namespace's connection tracking, by ctnetlink
//! (linux/netfilter/nfnetlink_conntrack.h).

use std::{io, net::SocketAddr};

use netlink_sys::Socket;

use crate::{firewall::netfilter_socket, model::Protocol};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
const HEADER: usize = 16;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
const TUPLE_ORIG: u16 = 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

/// A socket to the connection tracking of the namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open_here() -> io::Result<Self> {
        Ok(Self {
            socket: netfilter_socket::connect_here()?,
            buffer: Vec::with_capacity(4096),
        })
    }

    /// Forgets the connection that began with a packet with these ends. One that is not known is
    /// success.
    ///
    /// # Errors
    /// When the kernel refuses, for want of ctnetlink (nf_conntrack_netlink) for example.
    pub fn forget(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> io::Result<()> {
        let request = request(protocol, source, destination);
        self.socket.send(&request, 0)?;
        self.buffer.clear();
        // The kernel answered while the request was sent.
        self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT)?;
        let errno = self.buffer.get(HEADER..HEADER + 4);
        let errno = errno.and_then(|bytes| bytes.try_into().ok());
        match errno.map(|bytes| -i32::from_ne_bytes(bytes)) {
            Some(0 | libc::ENOENT) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn request(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (family, ip) = match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            let source = attribute(IP_V4_SRC, &source.ip().octets());
            let destination = attribute(IP_V4_DST, &destination.ip().octets());
            (libc::AF_INET, [source, destination].concat())
        }
        (source, destination) => {
            let octets = |end: SocketAddr| match end.ip() {
                std::net::IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                std::net::IpAddr::V6(a) => a.octets(),
            };
            let source = attribute(IP_V6_SRC, &octets(source));
            let destination = attribute(IP_V6_DST, &octets(destination));
            (libc::AF_INET6, [source, destination].concat())
        }
    };
    let ports = [
        attribute(PROTO_NUM, &[protocol.number()]),
        attribute(PROTO_SRC_PORT, &source.port().to_be_bytes()),
        attribute(PROTO_DST_PORT, &destination.port().to_be_bytes()),
    ];
    let tuple = [
        attribute(NESTED | TUPLE_IP, &ip),
        attribute(NESTED | TUPLE_PROTO, &ports.concat()),
    ];
    let tuple = attribute(NESTED | TUPLE_ORIG, &tuple.concat());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut bytes = ((HEADER + 4 + tuple.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(DELETE.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port; `struct nfgenmsg` with the family.
    bytes.extend([0; 8]);
    bytes.extend([family as u8, 0, 0, 0]);
    bytes.extend(tuple);
    bytes
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = (4 + payload.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let bytes = request(
            Protocol::Tcp,
            "10.0.0.1:40000".parse().unwrap(),
            "10.0.0.2:443".parse().unwrap(),
        );
        #[rustfmt::skip]
        let golden = [
            72, 0, 0, 0,  2, 1,  5, 0,  0, 0, 0, 0,  0, 0, 0, 0, // nlmsghdr
            2, 0, 0, 0, // nfgenmsg
            52, 0, 1, 0x80,
            20, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 1, 8, 0, 2, 0, 10, 0, 0, 2,
            28, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0,
            6, 0, 2, 0, 0x9c, 0x40, 0, 0, 6, 0, 3, 0, 0x01, 0xbb, 0, 0,
        ];
        assert_eq!(bytes, golden);
    }
}
