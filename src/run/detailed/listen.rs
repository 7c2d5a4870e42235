//! The services of a destination host: TCP listeners and UDP sockets that give back what they get.
//!
//! Sockets are opened inside the host's namespace and served from the job's own thread. A service
//! listens only while it is measured, and only on the ports asked for, so that a job with
//! thousands of ports needs no thousands of descriptors.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, Shutdown, SockFlag, SockProtocol, SockType, SockaddrStorage, bind,
        listen, recvfrom, setsockopt, shutdown, socket, sockopt,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::model::Protocol;

/// Connections that may wait to be accepted; one is made at a time.
const BACKLOG: i32 = 16;
/// Most bytes that are given back at once.
const ECHO_BYTES: usize = 2048;

/// A socket that is bound to one service's port.
#[derive(Debug)]
pub(super) enum Bound {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
}

impl Bound {
    /// Binds `address` in the calling thread's network namespace.
    pub(super) fn open_here(address: SocketAddr, protocol: Protocol) -> io::Result<Self> {
        let kind = match protocol {
            Protocol::Tcp => SockType::Stream,
            Protocol::Udp => SockType::Datagram,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family(address.ip()), kind, flags, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(match protocol {
            Protocol::Tcp => {
                listen(&socket, Backlog::new(BACKLOG)?)?;
                Self::Tcp(socket.into())
            }
            _ => Self::Udp(socket.into()),
        })
    }

    /// Hands the socket over to the calling thread's runtime.
    pub(super) fn serve(self) -> io::Result<Listener> {
        let socket = match self {
            Self::Tcp(socket) => Socket::Tcp(TcpListener::from_std(socket)?),
            Self::Udp(socket) => Socket::Udp(UdpSocket::from_std(socket)?),
        };
        Ok(Listener {
            socket,
            last_peer: Cell::new(None),
        })
    }
}

/// One service that answers.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    last_peer: Cell<Option<SocketAddr>>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listener {
    /// Answers until it is dropped.
    pub(super) async fn answer(&self) -> std::convert::Infallible {
        loop {
            // An error is that of one peer (reset while it waited, ICMP); the next one may come.
            let _ = match &self.socket {
                Socket::Tcp(listener) => self.accept(listener).await,
                Socket::Udp(socket) => self.give_back(socket).await,
            };
        }
    }

    /// From whom the last connection or datagram came, as seen behind the router's NAT.
    /// Asking forgets it.
    pub(super) fn take_peer(&self) -> Option<SocketAddr> {
        self.last_peer.take()
    }

    /// The port that it listens on.
    pub(super) fn port(&self) -> Option<u16> {
        let address = match &self.socket {
            Socket::Tcp(listener) => listener.local_addr(),
            Socket::Udp(socket) => socket.local_addr(),
        };
        address.ok().map(|address| address.port())
    }

    /// Takes in what has come already, for a datagram that nobody was there to wait for.
    pub(super) fn look(&self) {
        if let Socket::Udp(socket) = &self.socket {
            let mut bytes = [0; ECHO_BYTES];
            // Not `try_recv_from()`: that asks the kernel only if the runtime had done so before.
            while let Ok((_, Some(peer))) =
                recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut bytes)
            {
                self.last_peer.set(socket_address(&peer));
            }
        }
    }

    async fn accept(&self, listener: &TcpListener) -> io::Result<()> {
        let (stream, peer) = listener.accept().await?;
        self.last_peer.set(Some(peer));
        echo(stream).await
    }

    async fn give_back(&self, socket: &UdpSocket) -> io::Result<()> {
        let mut bytes = [0; ECHO_BYTES];
        let (length, peer) = socket.recv_from(&mut bytes).await?;
        self.last_peer.set(Some(peer));
        socket.send_to(&bytes[..length], peer).await.map(drop)
    }
}

impl Drop for Listener {
    /// Ends listening even if a child of another thread, between fork and exec, has the descriptor
    /// still: the next one on this port could not listen (`EADDRINUSE`).
    fn drop(&mut self) {
        if let Socket::Tcp(listener) = &self.socket {
            // It fails only where nobody listens.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// Gives back what the client sends until it closes.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = [0; ECHO_BYTES];
    loop {
        match stream.read(&mut bytes).await? {
            0 => return Ok(()),
            length => stream.write_all(&bytes[..length]).await?,
        }
    }
}

/// Sees the TCP segments that reach a host, those that its listeners never hear of included: a
/// connection whose answer is lost on the way back is never accepted.
#[derive(Debug)]
pub(super) struct Witness {
    socket: OwnedFd,
    /// IPv4 raw sockets give the IP header too, raw(7); IPv6 ones do not, ipv6(7).
    ip_header: bool,
}

/// A connection request as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Syn {
    /// From where, behind the router's NAT.
    pub(super) from: SocketAddr,
    /// Port that it was for.
    pub(super) port: u16,
}

impl Witness {
    /// Watches the calling thread's network namespace.
    pub(super) fn open_here(address: IpAddr) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kind = SockType::Raw;
        let socket = socket(family(address), kind, flags, SockProtocol::Tcp)?;
        Ok(Self {
            socket,
            ip_header: address.is_ipv4(),
        })
    }

    /// The connection requests that arrived since this was last asked.
    pub(super) fn take(&self) -> io::Result<Vec<Syn>> {
        let mut seen = Vec::new();
        // The longest IPv4 header and the fixed part of the TCP header.
        let mut bytes = [0; 60 + 20];
        loop {
            match receive(&self.socket, &mut bytes) {
                Ok((length, from)) => {
                    seen.extend(self.parse(&bytes[..length.min(bytes.len())], from));
                }
                Err(Errno::EAGAIN) => return Ok(seen),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn parse(&self, packet: &[u8], from: IpAddr) -> Option<Syn> {
        const SYN_AND_ACK: u8 = 0x12;
        const SYN: u8 = 0x02;
        let header = match packet.first() {
            Some(first) if self.ip_header => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        let segment = packet.get(header..)?;
        let port = |at: usize| {
            let bytes = segment.get(at..at + 2)?;
            Some(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let flags = segment.get(13)?;
        let syn = Syn {
            from: SocketAddr::new(from, port(0)?),
            port: port(2)?,
        };
        (flags & SYN_AND_ACK == SYN).then_some(syn)
    }
}

fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> nix::Result<(usize, IpAddr)> {
    let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), bytes)?;
    let from = from.as_ref().and_then(socket_address);
    Ok((length, from.ok_or(Errno::EAFNOSUPPORT)?.ip()))
}

/// Address and port of a socket address.
pub(super) fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in();
    let v4 = v4.map(|a| SocketAddr::new(a.ip().into(), a.port()));
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6()?;
        Some(SocketAddr::new(v6.ip().into(), v6.port()))
    })
}

/// The address family of sockets for `address`.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener as Plain};

    use super::*;

    #[tokio::test]
    async fn a_copy_of_its_descriptor_does_not_keep_a_port() {
        let free = Plain::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let bound = Bound::open_here(address, Protocol::Tcp).unwrap();
        let Bound::Tcp(listener) = &bound else {
            unreachable!("TCP was asked for")
        };
        // As a child has it that was forked and has not called exec yet.
        let copy = listener.try_clone().unwrap();
        drop(bound.serve().unwrap());
        Bound::open_here(address, Protocol::Tcp).unwrap();
        drop(copy);
    }
}
