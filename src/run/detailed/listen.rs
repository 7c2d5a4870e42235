//! The services of a destination host: listeners and sockets that give back what they get.
//!
//! Sockets are opened inside the host's namespace and served from the job's own thread. A service
//! listens only while it is measured, and only on the ports asked for, so that a job with
//! thousands of ports needs no thousands of descriptors.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        Backlog, MsgFlags, Shutdown, SockaddrStorage, bind, listen, recvfrom, sendto, setsockopt,
        shutdown, sockopt,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use super::message::{self, is_raw, is_stream};
use crate::{
    model::{Protocol, Service},
    sys::readable::Readable,
};

/// Connections that may wait to be accepted; one is made at a time.
const BACKLOG: i32 = 16;
/// Most bytes that are given back at once: no packet is longer.
const ECHO_BYTES: usize = 65_536;

/// A socket that is bound to one service's port.
#[derive(Debug)]
pub(super) enum Bound {
    /// TCP or SCTP.
    Stream(std::net::TcpListener),
    Udp(std::net::UdpSocket),
    /// Where datagrams come to a transparent proxy, and from where it answers.
    UdpProxy(std::net::UdpSocket, std::net::UdpSocket),
    /// Of a protocol without ports.
    Raw(Raw),
}

impl Bound {
    /// Binds `address` in the calling thread's network namespace; the port is the service's.
    pub(super) fn open_here(address: SocketAddr, protocol: Protocol) -> io::Result<Self> {
        let socket = message::open_here(address.is_ipv6(), protocol)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        let port = if is_raw(protocol) { 0 } else { address.port() };
        if address.is_ipv6() && !is_raw(protocol) {
            // Of an address that a route of table local or a subnet makes the router's own, IPv6 says
            // that nobody has it (`ipv6_chk_addr()`).
            setsockopt(&socket, sockopt::IpFreebind, &true)?;
        }
        let local = SocketAddr::new(address.ip(), port);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
        Ok(match protocol {
            protocol if is_stream(protocol) => {
                listen(&socket, Backlog::new(BACKLOG)?)?;
                Self::Stream(socket.into())
            }
            Protocol::Udp => Self::Udp(socket.into()),
            protocol => Self::Raw(Raw {
                socket,
                ip_header: address.is_ipv4(),
                service: Service {
                    port: address.port(),
                    protocol,
                },
            }),
        })
    }

    /// Listens as a transparent proxy does that a rule of TPROXY hands packets to: on `port` of
    /// any address, and answers as `destination`.
    pub(super) fn proxy_here(
        destination: SocketAddr,
        port: u16,
        protocol: Protocol,
    ) -> io::Result<Self> {
        let any = match destination {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let open = |local: SocketAddr| {
            let socket = message::open_here(local.is_ipv6(), protocol)?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            // A socket of IPv6 takes the option of IPv4, too (ipv6_setsockopt()).
            setsockopt(&socket, sockopt::IpTransparent, &true)?;
            if local.is_ipv6() {
                setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            }
            bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
            Ok::<_, io::Error>(socket)
        };
        let socket = open(SocketAddr::new(any, port))?;
        match protocol {
            Protocol::Tcp => {
                listen(&socket, Backlog::new(BACKLOG)?)?;
                Ok(Self::Stream(socket.into()))
            }
            Protocol::Udp => Ok(Self::UdpProxy(socket.into(), open(destination)?.into())),
            // The kernel has TPROXY for these two only.
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Hands the socket over to the calling thread's runtime.
    pub(super) fn serve(self) -> io::Result<Listener> {
        let socket = match self {
            Self::Stream(socket) => Socket::Stream(TcpListener::from_std(socket)?),
            Self::Udp(socket) => Socket::Udp(UdpSocket::from_std(socket)?, None),
            Self::UdpProxy(socket, mouth) => Socket::Udp(
                UdpSocket::from_std(socket)?,
                Some(UdpSocket::from_std(mouth)?),
            ),
            Self::Raw(raw) => {
                let ready = Readable::new(raw.socket.try_clone()?)?;
                Socket::Raw(raw, ready)
            }
        };
        Ok(Listener {
            socket,
            last_peer: Cell::new(None),
        })
    }
}

/// A socket of a protocol without ports.
#[derive(Debug)]
pub(super) struct Raw {
    socket: OwnedFd,
    /// As with [`Witness::ip_header`].
    ip_header: bool,
    service: Service,
}

impl Raw {
    /// Takes in what has come, and returns from whom requests came; the port is the identifier.
    /// Answers them where nobody else does.
    fn take(&self, answers: bool) -> Vec<SocketAddr> {
        let mut peers = Vec::new();
        let mut bytes = vec![0; ECHO_BYTES];
        while let Ok((length, from)) = receive(&self.socket, &mut bytes) {
            let came = bytes.get(..length.min(ECHO_BYTES)).unwrap_or_default();
            let Some(came) = behind_ip(self.ip_header, came) else {
                continue;
            };
            let Some(id) = message::identifier(self.service, came) else {
                continue;
            };
            peers.push(SocketAddr::new(from, id));
            if let Some(reply) = message::reply(self.service, came).filter(|_| answers) {
                let to = SockaddrStorage::from(SocketAddr::new(from, 0));
                // What cannot be sent does not come back, and the trace shows that it did not.
                let _ = sendto(self.socket.as_raw_fd(), &reply, &to, MsgFlags::empty());
            }
        }
        peers
    }
}

/// What follows the IP header, where there is one.
pub(super) fn behind_ip(ip_header: bool, packet: &[u8]) -> Option<&[u8]> {
    let header = match packet.first() {
        Some(first) if ip_header => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    packet.get(header..)
}

/// One service that answers.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    last_peer: Cell<Option<SocketAddr>>,
}

#[derive(Debug)]
enum Socket {
    Stream(TcpListener),
    /// Where datagrams come, and from where they are answered if that is elsewhere.
    Udp(UdpSocket, Option<UdpSocket>),
    Raw(Raw, Readable),
}

impl Listener {
    /// Answers until it is dropped.
    pub(super) async fn answer(&self) -> std::convert::Infallible {
        loop {
            // An error is that of one peer (reset while it waited, ICMP); the next one may come.
            let _ = match &self.socket {
                Socket::Stream(listener) => self.accept(listener).await,
                Socket::Udp(socket, mouth) => {
                    let mouth = mouth.as_ref().unwrap_or(socket);
                    self.give_back(socket, mouth).await
                }
                Socket::Raw(raw, ready) => match ready.wait_anew().await {
                    Ok(()) => {
                        self.note(&raw.take(true));
                        Ok(())
                    }
                    failed => failed,
                },
            };
        }
    }

    fn note(&self, peers: &[SocketAddr]) {
        if let Some(peer) = peers.last() {
            self.last_peer.set(Some(*peer));
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
            Socket::Stream(listener) => listener.local_addr(),
            Socket::Udp(socket, _) => socket.local_addr(),
            Socket::Raw(raw, _) => return Some(raw.service.port),
        };
        address.ok().map(|address| address.port())
    }

    /// Takes in what has come already, for a datagram that nobody was there to wait for.
    pub(super) fn look(&self) {
        match &self.socket {
            Socket::Stream(_) => {}
            Socket::Raw(raw, _) => self.note(&raw.take(false)),
            Socket::Udp(socket, _) => {
                let mut bytes = vec![0; ECHO_BYTES];
                // Not `try_recv_from()`: that asks the kernel only if the runtime had done so before.
                while let Ok((_, Some(peer))) =
                    recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut bytes)
                {
                    self.last_peer.set(socket_address(&peer));
                }
            }
        }
    }

    async fn accept(&self, listener: &TcpListener) -> io::Result<()> {
        let (stream, peer) = listener.accept().await?;
        self.last_peer.set(Some(peer));
        echo(stream).await
    }

    async fn give_back(&self, socket: &UdpSocket, mouth: &UdpSocket) -> io::Result<()> {
        let mut bytes = vec![0; ECHO_BYTES];
        let (length, peer) = socket.recv_from(&mut bytes).await?;
        self.last_peer.set(Some(peer));
        mouth.send_to(&bytes[..length], peer).await.map(drop)
    }
}

impl Drop for Listener {
    /// Ends listening even if a child of another thread, between fork and exec, has the descriptor
    /// still: the next one on this port could not listen (`EADDRINUSE`).
    fn drop(&mut self) {
        if let Socket::Stream(listener) = &self.socket {
            // It fails only where nobody listens.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// Gives back what the client sends until it closes.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = vec![0; ECHO_BYTES];
    loop {
        match stream.read(&mut bytes).await? {
            0 => return Ok(()),
            length => stream.write_all(&bytes[..length]).await?,
        }
    }
}

/// Sees the segments of connections that reach a host, those that its listeners never hear of
/// included: a connection whose answer is lost on the way back is never accepted.
#[derive(Debug)]
pub(super) struct Witness {
    socket: OwnedFd,
    /// IPv4 raw sockets give the IP header too, raw(7); IPv6 ones do not, ipv6(7).
    ip_header: bool,
    protocol: Protocol,
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
    pub(super) fn open_here(address: IpAddr, protocol: Protocol) -> io::Result<Self> {
        Ok(Self {
            socket: message::witness_here(address.is_ipv6(), protocol)?,
            ip_header: address.is_ipv4(),
            protocol,
        })
    }

    /// Whose connections it sees.
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
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
        /// SCTP's first chunk, RFC 9260 section 3.3.2.
        const INIT: u8 = 1;
        let segment = behind_ip(self.ip_header, packet)?;
        let port = |at: usize| {
            let bytes = segment.get(at..at + 2)?;
            Some(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let begins = match self.protocol {
            Protocol::Sctp => *segment.get(12)? == INIT,
            _ => *segment.get(13)? & SYN_AND_ACK == SYN,
        };
        let syn = Syn {
            from: SocketAddr::new(from, port(0)?),
            port: port(2)?,
        };
        begins.then_some(syn)
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
        let Bound::Stream(listener) = &bound else {
            unreachable!("TCP was asked for")
        };
        // As a child has it that was forked and has not called exec yet.
        let copy = listener.try_clone().unwrap();
        drop(bound.serve().unwrap());
        Bound::open_here(address, Protocol::Tcp).unwrap();
        drop(copy);
    }
}
