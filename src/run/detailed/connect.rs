//! A client in the source host: one real connection or datagram, and what came of it.
//!
//! The kernel's error queue (`IP_RECVERR`, ip(7)) says which ICMP message ended an attempt and who
//! sent it. Forwarding over veth is synchronous, so an ICMP error can arrive while connect(2)
//! still holds the socket: then the kernel only queues it and goes on trying. The queue is
//! therefore looked at before the socket's own state.

use std::{
    cell::Cell,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrStorage, bind, connect, getpeername, getsockopt,
        recv, recvmsg, send, setsockopt, sockopt,
    },
};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFdReadyGuard};

use super::{
    listen::{self, socket_address},
    message::{self, is_raw, is_stream},
};
use crate::{
    model::{Protocol, Service},
    run::packet,
    sys::readable::Readable,
};

/// Payload of a TCP client's message and of a datagram: as long as the quick job's datagram, so
/// that a rule that looks at lengths treats both alike.
pub(super) const PAYLOAD: usize = 32;
/// Headers of the packets that carry data: UDP; TCP with timestamps (RFC 7323); SCTP with that of a
/// DATA chunk (RFC 9260 section 3.3.1).
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20 + 12;
const SCTP_HEADERS: usize = 12 + 16;
/// No packet is longer.
const LARGEST: usize = 65_536;

/// An ICMP error that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpError {
    /// ICMP or ICMPv6 type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Who sent it.
    pub from: IpAddr,
}

impl std::fmt::Display for IcmpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, code, from } = self;
        match self.meaning() {
            Some(meaning) => write!(f, "{meaning} (ICMP {kind}/{code}) from {from}"),
            None => write!(f, "ICMP {kind}/{code} from {from}"),
        }
    }
}

impl IcmpError {
    /// The name of type and code, IANA "ICMP Type Numbers" and "ICMPv6 Parameters".
    #[must_use]
    pub fn meaning(&self) -> Option<&'static str> {
        Some(match (self.from.is_ipv4(), self.kind, self.code) {
            (true, 3, 0) => "network unreachable",
            (true, 3, 1) | (false, 1, 3) => "host unreachable",
            (true, 3, 2) => "protocol unreachable",
            (true, 3, 3) | (false, 1, 4) => "port unreachable",
            (true, 3, 4) => "fragmentation needed",
            (true, 3, 9) => "network prohibited",
            (true, 3, 10) => "host prohibited",
            (true, 3, 13) | (false, 1, 1) => "administratively prohibited",
            (true, 11, 0) | (false, 3, 0) => "time to live exceeded",
            (false, 1, 0) => "no route to the destination",
            (false, 1, 5) => "source address failed policy",
            (false, 1, 6) => "route rejected",
            (false, 2, _) => "packet too big",
            _ => return None,
        })
    }
}

/// What a client experienced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Experience {
    /// Its message came back. The time is that of the handshake, or of the datagram's return.
    Answered(Duration),
    /// The connection was made, and then nothing came back.
    Mute(Duration),
    /// An ICMP error ended it.
    Icmp(IcmpError),
    /// The connection was reset or refused.
    Reset,
    /// The source host's own kernel could not send.
    NotSent(Errno),
    /// The socket failed otherwise.
    Failed(Errno),
}

/// A client's socket, not yet connected.
#[derive(Debug)]
pub(super) struct ClientSocket {
    socket: OwnedFd,
    service: Service,
    /// What tells its requests from those of others, where the protocol has no ports.
    id: u16,
}

impl ClientSocket {
    /// Opens a socket in the calling thread's network namespace. Without a port of its own it gets
    /// a fresh one when it connects.
    pub(super) fn open_here(
        source: IpAddr,
        port: Option<u16>,
        service: Service,
    ) -> io::Result<Self> {
        let protocol = service.protocol;
        let socket = message::open_here(source.is_ipv6(), protocol)?;
        match source {
            IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        if is_stream(protocol) {
            // Closing resets the connection at both ends: nothing lingers in TIME-WAIT, and the
            // router's connection tracking sees the end of it.
            let reset = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&socket, sockopt::Linger, &reset)?;
        }
        let own = port.filter(|_| protocol.has_ports());
        if own.is_some() {
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        }
        // A router has other addresses, too.
        let local = SocketAddr::new(source, own.unwrap_or(0));
        bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
        let id = port.map_or_else(fresh_id, Ok)?;
        Ok(Self {
            socket,
            service,
            id,
        })
    }

    /// Connects, sends `payload` and waits for its return. Ends with the first thing that happens;
    /// the caller ends it when nothing does. A [`Attempt`] remembers how far it came.
    pub(super) fn start(
        self,
        to: SocketAddr,
        payload: [u8; PAYLOAD],
        size: Option<u16>,
    ) -> Result<Attempt, Experience> {
        let began = Instant::now();
        let protocol = self.service.protocol;
        // The kernel takes no port of whom raw packets are sent to.
        let port = if is_raw(protocol) { 0 } else { to.port() };
        let address = SockaddrStorage::from(SocketAddr::new(to.ip(), port));
        match connect(self.socket.as_fd().as_raw_fd(), &address) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(self.failed(errno)),
        }
        if size.is_some() {
            self.forbid_fragments(to.is_ipv4());
        }
        let message = self.message(payload, size, to.ip());
        if !is_stream(protocol)
            && let Err(errno) = send(
                self.socket.as_fd().as_raw_fd(),
                &message,
                MsgFlags::MSG_NOSIGNAL,
            )
        {
            return Err(self.failed(errno));
        }
        // Registered only now: epoll reports an unconnected TCP socket as hung up.
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::ERROR;
        let socket = Readable::with_interest(self.socket, interest)
            .map_err(|e| Experience::Failed(errno_of(&e)))?;
        Ok(Attempt {
            socket,
            protocol,
            id: self.id,
            message,
            to: to.ip(),
            began,
            connected: Cell::new(None),
        })
    }

    /// What is sent with `payload`, in IP packets of `size` bytes if that is given.
    fn message(&self, payload: [u8; PAYLOAD], size: Option<u16>, to: IpAddr) -> Vec<u8> {
        let protocol = self.service.protocol;
        let room = size.map(|size| usize::from(size).saturating_sub(packet::ip_length(to)));
        if !is_raw(protocol) {
            let header = match protocol {
                Protocol::Udp => UDP_HEADER,
                Protocol::Sctp => SCTP_HEADERS,
                _ => TCP_HEADER,
            };
            let length = room.map_or(PAYLOAD, |room| room.saturating_sub(header).max(PAYLOAD));
            return payload.iter().copied().cycle().take(length).collect();
        }
        let [a, b, c, d, ..] = payload;
        message::request(self.service, self.id, [a, b, c, d], room)
    }

    /// Has what is too long for a link dropped there, also if a route is known to have one.
    fn forbid_fragments(&self, v4: bool) {
        // A kernel that knows no such option sends as it likes; the trace shows what became of it.
        let _ = match v4 {
            true => set_ip_mtu_discover(&self.socket, Ipv4PathMtuDiscovery::DO),
            false => set_ipv6_mtu_discover(&self.socket, Ipv6PathMtuDiscovery::DO),
        };
    }

    fn failed(&self, errno: Errno) -> Experience {
        if let Some(icmp) = queued_error(self.socket.as_fd()) {
            return Experience::Icmp(icmp);
        }
        match errno {
            Errno::ECONNREFUSED | Errno::ECONNRESET => Experience::Reset,
            Errno::EPERM
            | Errno::EACCES
            | Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::ENETDOWN => Experience::NotSent(errno),
            errno => Experience::Failed(errno),
        }
    }
}

/// A connection or datagram on its way.
#[derive(Debug)]
pub(super) struct Attempt {
    socket: Readable,
    protocol: Protocol,
    id: u16,
    message: Vec<u8>,
    /// To whom it was sent.
    to: IpAddr,
    began: Instant,
    connected: Cell<Option<Duration>>,
}

impl Attempt {
    /// The client's end, as it is before the router's NAT.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        let name =
            nix::sys::socket::getsockname::<SockaddrStorage>(self.socket.as_fd().as_raw_fd());
        let mut local = socket_address(&name.ok()?)?;
        if is_raw(self.protocol) {
            local.set_port(if self.protocol.has_types() {
                self.id
            } else {
                0
            });
        }
        Some(local)
    }

    /// What there is to say when the caller stops waiting; none when nothing happened at all.
    pub(super) fn so_far(&self) -> Option<Experience> {
        self.connected.get().map(Experience::Mute)
    }

    /// Waits for what happens.
    pub(super) async fn experience(&self) -> Experience {
        match self.run().await {
            Ok(time) => Experience::Answered(time),
            Err(experience) => experience,
        }
    }

    async fn run(&self) -> Result<Duration, Experience> {
        if is_stream(self.protocol) && self.connected.get().is_none() {
            self.handshake().await?;
            self.connected.set(Some(self.began.elapsed()));
            let sent = send(
                self.socket.as_fd().as_raw_fd(),
                &self.message,
                MsgFlags::MSG_NOSIGNAL,
            );
            sent.map_err(|errno| self.broken(errno))?;
        }
        self.answer().await?;
        Ok(self.connected.get().unwrap_or_else(|| self.began.elapsed()))
    }

    /// Waits until the connection is made.
    async fn handshake(&self) -> Result<(), Experience> {
        loop {
            let mut guard = self.ready(Interest::WRITABLE | Interest::ERROR).await?;
            if let Some(icmp) = queued_error(self.socket.as_fd()) {
                return Err(Experience::Icmp(icmp));
            }
            let error = getsockopt(&self.socket.as_fd(), sockopt::SocketError);
            match error.map(Errno::from_raw) {
                // No error.
                Ok(Errno::UnknownErrno) => {}
                Ok(errno) | Err(errno) => return Err(self.broken(errno)),
            }
            if getpeername::<SockaddrStorage>(self.socket.as_fd().as_raw_fd()).is_ok() {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Waits until all that was sent came back, or what answers it.
    async fn answer(&self) -> Result<(), Experience> {
        let mut got = Vec::with_capacity(self.message.len());
        let mut bytes = vec![0; LARGEST];
        loop {
            let mut guard = self.ready(Interest::READABLE | Interest::ERROR).await?;
            if let Some(icmp) = queued_error(self.socket.as_fd())
                && !self.is_moot(icmp)
            {
                return Err(Experience::Icmp(icmp));
            }
            match recv(
                self.socket.as_fd().as_raw_fd(),
                &mut bytes,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(length) if is_raw(self.protocol) => {
                    let packet = listen::behind_ip(self.to.is_ipv4(), &bytes[..length]);
                    if packet.is_some_and(|p| message::is_answer(self.protocol, &self.message, p)) {
                        return Ok(());
                    }
                }
                Ok(0) => return Err(Experience::Reset),
                Ok(length) => {
                    got.extend_from_slice(&bytes[..length]);
                    if got.len() >= self.message.len() {
                        return Ok(());
                    }
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                // What a raw socket was told of an error that was just read from its queue.
                Err(Errno::ECONNREFUSED | Errno::ENOPROTOOPT) if is_raw(self.protocol) => {}
                Err(errno) => return Err(self.broken(errno)),
            }
        }
    }

    /// Whether an error says only that the destination's kernel itself has no use for the protocol:
    /// the listener answers there.
    fn is_moot(&self, icmp: IcmpError) -> bool {
        let useless = match self.to.is_ipv4() {
            true => icmp.kind == 3 && matches!(icmp.code, 2 | 3),
            false => (icmp.kind, icmp.code) == (1, 4) || icmp.kind == 4,
        };
        is_raw(self.protocol) && icmp.from == self.to && useless
    }

    async fn ready(
        &self,
        interest: Interest,
    ) -> Result<AsyncFdReadyGuard<'_, OwnedFd>, Experience> {
        let ready = self.socket.ready(interest).await;
        ready.map_err(|e| Experience::Failed(errno_of(&e)))
    }

    fn broken(&self, errno: Errno) -> Experience {
        if let Some(icmp) = queued_error(self.socket.as_fd()) {
            return Experience::Icmp(icmp);
        }
        match errno {
            Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EPIPE => Experience::Reset,
            errno => Experience::Failed(errno),
        }
    }
}

/// A number that no other client has, as far as chance allows.
fn fresh_id() -> io::Result<u16> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(u16::from_be_bytes(id))
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The first ICMP error in the socket's error queue.
fn queued_error(socket: BorrowedFd<'_>) -> Option<IcmpError> {
    let mut bytes = [0; PAYLOAD];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let message = match message {
            Ok(message) => message,
            Err(Errno::EINTR) => continue,
            Err(_) => return None,
        };
        if let Some(error) = message.cmsgs().ok()?.find_map(|c| icmp_of(&c)) {
            return Some(error);
        }
    }
}

fn icmp_of(message: &ControlMessageOwned) -> Option<IcmpError> {
    let (error, from) = match message {
        ControlMessageOwned::Ipv4RecvErr(error, from) => {
            let from = from.map(|a| IpAddr::from(u32::from_be(a.sin_addr.s_addr).to_be_bytes()));
            (error, from)
        }
        ControlMessageOwned::Ipv6RecvErr(error, from) => {
            (error, from.map(|a| IpAddr::from(a.sin6_addr.s6_addr)))
        }
        _ => return None,
    };
    let by_icmp = [libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6];
    by_icmp.contains(&error.ee_origin).then_some(IcmpError {
        kind: error.ee_type,
        code: error.ee_code,
        from: from?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::detailed::listen::Bound;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// A port on which nothing listens: it was free, and is bound no more.
    fn free(protocol: Protocol) -> SocketAddr {
        let any = SocketAddr::new(LOOPBACK, 0);
        match Bound::open_here(any, protocol).unwrap() {
            Bound::Stream(socket) => socket.local_addr().unwrap(),
            Bound::Udp(socket) => socket.local_addr().unwrap(),
            Bound::Raw(_) | Bound::UdpProxy(..) => {
                unreachable!("a protocol with ports was asked for")
            }
        }
    }

    fn service(to: SocketAddr, protocol: Protocol) -> Service {
        let port = to.port();
        Service { port, protocol }
    }

    async fn try_it(to: SocketAddr, protocol: Protocol) -> (Experience, Option<SocketAddr>) {
        let service = service(to, protocol);
        let client = ClientSocket::open_here(LOOPBACK, None, service).unwrap();
        match client.start(to, [7; PAYLOAD], None) {
            Ok(attempt) => {
                let local = attempt.local();
                (attempt.experience().await, local)
            }
            Err(experience) => (experience, None),
        }
    }

    #[tokio::test]
    async fn a_listener_answers_and_knows_its_client() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = free(protocol);
            let listener = Bound::open_here(to, protocol).unwrap().serve().unwrap();
            let (experience, local) = tokio::select! {
                done = try_it(to, protocol) => done,
                never = listener.answer() => match never {},
            };
            assert!(
                matches!(experience, Experience::Answered(_)),
                "{experience:?}"
            );
            assert_eq!(listener.take_peer(), local);
        }
    }

    #[tokio::test]
    async fn a_closed_port_refuses_each_in_its_way() {
        let (experience, _) = try_it(free(Protocol::Tcp), Protocol::Tcp).await;
        assert_eq!(experience, Experience::Reset);
        let (experience, _) = try_it(free(Protocol::Udp), Protocol::Udp).await;
        let icmp = IcmpError {
            kind: 3,
            code: 3,
            from: LOOPBACK,
        };
        assert_eq!(experience, Experience::Icmp(icmp));
        assert_eq!(
            icmp.to_string(),
            "port unreachable (ICMP 3/3) from 127.0.0.1"
        );
    }

    #[tokio::test]
    async fn a_connection_that_nobody_answers_is_mute() {
        let to = free(Protocol::Tcp);
        // The kernel accepts for the listener, which never does.
        let _deaf = Bound::open_here(to, Protocol::Tcp).unwrap();
        let client = ClientSocket::open_here(LOOPBACK, None, service(to, Protocol::Tcp)).unwrap();
        let attempt = client.start(to, [7; PAYLOAD], None).unwrap();
        let patience = Duration::from_millis(50);
        assert!(
            tokio::time::timeout(patience, attempt.experience())
                .await
                .is_err()
        );
        assert!(matches!(attempt.so_far(), Some(Experience::Mute(_))));
    }
}
