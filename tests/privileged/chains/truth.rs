//! What really happens: a plain host of a chain of plain routers sends, and packet sockets show where
//! its packets come out.
//!
//! The chain is made by plain commands. Of the code under test nothing takes part but what opens a
//! namespace, and what waits until the kernel has brought links up.

use std::{
    env,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::symlink,
    },
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, recv, send,
        setsockopt, socket, sockopt,
    },
    unistd::Pid,
};
use tsim::{netlink::Netlink, netns::NetnsFd};

use super::{
    plan::{Loader, Plan, Service},
    script::{self, WIRES},
    world::World,
};
use crate::{
    capture::Capture,
    support::{Bed, ifname},
};

/// More times than a packet is queued on its way through a chain.
const TURNS: usize = 80;

/// Where a packet came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// At the destination's interface.
    Arrived,
    /// It was given to a program of this router.
    Router(String),
    Lost,
}

/// A chain that was made.
pub(super) struct Chain {
    /// Removes its namespaces in the end.
    pub(super) bed: Bed,
    pub(super) source: NetnsFd,
    destination: Capture,
    /// Raw sockets of the routers, which get what the routers' own programs would get.
    routers: Vec<(String, [OwnedFd; 2])>,
}

impl Chain {
    /// Makes the chain of a plan; how the shell refused it, if it did.
    pub(super) fn make(plan: &Plan, world: &World) -> Result<Self, String> {
        let bed = Bed::new();
        let text = script::of(world, plan.loader, bed.lab.as_str());
        shell(&text).map_err(|errors| format!("{errors}\n{text}"))?;
        let open = |name: &str| bed.dir.open(&bed.name(name)).unwrap();
        let ports: Vec<_> = script::ports(world).iter().map(|p| ifname(p)).collect();
        let mut wires = Netlink::open(&open(WIRES)).unwrap();
        wires
            .await_forwarding(&ports.iter().collect::<Vec<_>>())
            .unwrap();
        let names = world.routers.iter().map(|node| node.name.as_str());
        for name in names.chain(["source", "destination"]) {
            let mut netlink = Netlink::open(&open(name)).unwrap();
            netlink.await_settled().unwrap();
        }
        let server = world.server();
        let inside = ifname(&format!("s{}", server.interfaces[0].0));
        let destination = Capture::start(&open(&server.name), &inside);
        let sockets = |node: &super::world::Node| {
            let sockets = open(&node.name).enter(|| [raw(plan.v6, false), raw(plan.v6, true)]);
            (node.name.clone(), sockets.unwrap())
        };
        Ok(Self {
            source: open("source"),
            destination,
            routers: world.routers.iter().map(sockets).collect(),
            bed,
        })
    }

    /// What the script for collecting facts prints on a router.
    pub(super) fn facts(&self, plan: &Plan, router: &str) -> Vec<u8> {
        let netns = format!("{}.{router}", self.bed.lab);
        // Where iptables is its legacy variant, the plain names are that.
        let names = tempfile::tempdir().unwrap();
        if plan.loader == Loader::IptablesLegacy {
            for six in ["", "6"] {
                let real = format!("/usr/sbin/ip{six}tables-legacy-save");
                symlink(real, names.path().join(format!("ip{six}tables-save"))).unwrap();
            }
        }
        let path = format!("{}:{}", names.path().display(), env::var("PATH").unwrap());
        let output = Command::new("ip")
            .args(["netns", "exec", &netns, "sh", "src/lab/facts/collect.sh"])
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    /// Sends a packet of each service from the source host, with that mark there, and says what
    /// became of each.
    pub(super) fn send(&self, plan: &Plan, to: &str, mark: u32) -> Vec<Fate> {
        let sent = self.source.enter(|| {
            stay_here();
            let fence = Fence::new();
            let one = |service: &Service| {
                let to = SocketAddr::new(to.parse().unwrap(), service.port);
                let _socket = send_one(*service, to, plan.dscp << 2, mark);
                fence.pass();
                self.fate(*service)
            };
            plan.services.iter().map(one).collect()
        });
        sent.unwrap()
    }

    fn fate(&self, service: Service) -> Fate {
        let frames = self.destination.frames();
        if frames.iter().any(|frame| is_request(&frame[14..], service)) {
            return Fate::Arrived;
        }
        let number = usize::from(service.udp);
        let mut fate = Fate::Lost;
        for (name, sockets) in &self.routers {
            if taken(&sockets[number], service) {
                fate = Fate::Router(name.clone());
            }
        }
        fate
    }
}

/// Keeps this thread on its processor.
pub(crate) fn stay_here() {
    let mut here = CpuSet::new();
    here.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
}

/// A socket that sends to itself over loopback. What a processor has queued before is through when
/// its own datagram is, so that after some of these no packet of before is under way.
pub(crate) struct Fence(UdpSocket);

impl Fence {
    pub(crate) fn new() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(socket.local_addr().unwrap()).unwrap();
        Self(socket)
    }

    pub(crate) fn pass(&self) {
        for _ in 0..TURNS {
            self.0.send(&[0]).unwrap();
            self.0.recv(&mut [0]).unwrap();
        }
    }
}

/// What a client of the service sends first. The kernel may refuse it: it knows of no way.
pub(super) fn send_one(service: Service, to: SocketAddr, tos: u8, mark: u32) -> OwnedFd {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let kind = match service.udp {
        true => SockType::Datagram,
        false => SockType::Stream,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, kind, flags, None).unwrap();
    setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    match to {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4Tos, &tos.into()).unwrap(),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6TClass, &tos.into()).unwrap(),
    }
    let to = SockaddrStorage::from(to);
    let connected = connect(socket.as_raw_fd(), &to);
    if service.udp && connected.is_ok() {
        let _ = send(socket.as_raw_fd(), b"request", MsgFlags::empty());
    }
    socket
}

/// A raw socket for TCP or UDP.
fn raw(v6: bool, udp: bool) -> OwnedFd {
    use nix::sys::socket::SockProtocol;
    let family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let protocol = if udp {
        SockProtocol::Udp
    } else {
        SockProtocol::Tcp
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(family, SockType::Raw, flags, protocol).unwrap()
}

/// Whether a raw socket got a request of the service since it was asked last.
fn taken(socket: &OwnedFd, service: Service) -> bool {
    let mut buffer = [0; 2048];
    let mut found = false;
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            // IPv6 raw sockets leave the IP header out.
            Ok(length) => {
                let packet = &buffer[..length];
                found |= is_request(packet, service) || begins_request(packet, service);
            }
            Err(Errno::EINTR) => {}
            Err(_) => return found,
        }
    }
}

/// Whether an IP packet is a request of the service's protocol.
fn is_request(packet: &[u8], service: Service) -> bool {
    let (protocol, payload) = match packet.first().map(|first| first >> 4) {
        Some(4) => (packet[9], packet.get(usize::from(packet[0] & 15) * 4..)),
        Some(6) => (packet[6], packet.get(40..)),
        _ => return false,
    };
    let wanted = if service.udp { 17 } else { 6 };
    protocol == wanted && payload.is_some_and(|payload| begins_request(payload, service))
}

/// Whether TCP's or UDP's part is a request: all but what a TCP answers.
fn begins_request(payload: &[u8], service: Service) -> bool {
    match service.udp {
        true => payload.get(8..) == Some(b"request"),
        false => payload.get(13).is_some_and(|flags| flags & 0x17 == 0x02),
    }
}

/// Runs a script; what it printed as errors, if it failed.
fn shell(text: &str) -> Result<(), String> {
    let mut command = Command::new("sh");
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
