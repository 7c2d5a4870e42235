//! What plain hosts get: they connect and send, plain programs answer, and it shows whether the answer
//! comes.
//!
//! Nothing is waited for. All packets of a chain are under way on one processor, and what it has queued
//! is through once some [datagrams of this thread](Fence) are; who has no answer then gets none.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    MsgFlags, SockaddrStorage, getpeername, recv, send, setsockopt, sockopt::Linger,
};

use super::super::{
    packets::Sending,
    plan::{OTHER_PORT, Plan, Protocol, Service},
    truth::{Chain, Fence, stay_here},
    world::{Node, World},
};

const REQUEST: &[u8] = b"request";
const ANSWER: &[u8] = b"answer";

/// Programs that answer on the destination, and on the routers those to which REDIRECT leads.
struct Programs {
    streams: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
}

impl Programs {
    fn start(chain: &Chain, plan: &Plan, world: &World) -> Self {
        let mut programs = Self {
            streams: Vec::new(),
            datagrams: Vec::new(),
        };
        let mut ports: Vec<u16> = plan.services.iter().map(|service| service.port).collect();
        ports.push(OTHER_PORT);
        programs.listen(chain, world.server(), &ports);
        for router in &world.routers {
            programs.listen(chain, router, &[OTHER_PORT]);
        }
        programs
    }

    /// Listens at every address of a node: from a socket of all addresses a datagram may be answered
    /// with another one than was called.
    fn listen(&mut self, chain: &Chain, node: &Node, ports: &[u16]) {
        let netns = chain.bed.dir.open(&chain.bed.name(&node.name)).unwrap();
        let addresses = node.interfaces.iter().map(|(_, address)| {
            let (address, _) = address.split_once('/').unwrap();
            address.parse::<IpAddr>().unwrap()
        });
        let ends = addresses.flat_map(|address| {
            let ports = ports.iter();
            ports.map(move |port| SocketAddr::new(address, *port))
        });
        let ends: Vec<SocketAddr> = ends.collect();
        let open = || {
            for end in ends {
                let stream = TcpListener::bind(end).unwrap();
                stream.set_nonblocking(true).unwrap();
                self.streams.push(stream);
                let datagrams = UdpSocket::bind(end).unwrap();
                datagrams.set_nonblocking(true).unwrap();
                self.datagrams.push(datagrams);
            }
        };
        netns.enter(open).unwrap();
    }

    /// Answers every request that has come; the connections that were made.
    fn answer(&self) -> Vec<TcpStream> {
        let mut buffer = [0; 64];
        let mut streams = Vec::new();
        for listener in &self.streams {
            while let Ok((mut stream, _)) = listener.accept() {
                close_at_once(&stream);
                stream.set_nonblocking(true).unwrap();
                if stream
                    .read(&mut buffer)
                    .is_ok_and(|n| buffer[..n] == *REQUEST)
                {
                    let _ = stream.write(ANSWER);
                }
                streams.push(stream);
            }
        }
        for socket in &self.datagrams {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if buffer[..length] == *REQUEST {
                    let _ = socket.send_to(ANSWER, from);
                }
            }
        }
        streams
    }
}

/// Has a connection end without a word that is waited for.
fn close_at_once(socket: &impl AsFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(socket, Linger, &linger).unwrap();
}

/// Sends a request over a connection, if it was made.
fn request(client: &OwnedFd) {
    if getpeername::<SockaddrStorage>(client.as_raw_fd()).is_ok() {
        let _ = send(client.as_raw_fd(), REQUEST, MsgFlags::MSG_NOSIGNAL);
    }
}

fn is_answered(client: &OwnedFd) -> bool {
    let mut buffer = [0; 64];
    let got = recv(client.as_raw_fd(), &mut buffer, MsgFlags::empty());
    got.is_ok_and(|length| buffer[..length] == *ANSWER)
}

impl Chain {
    /// As [`Self::converse`], with each choice of one next hop where routes have two.
    pub(super) fn converse_by_each(&self, plan: &Plan, world: &World, mark: u32) -> Vec<Vec<bool>> {
        self.by_each(plan, world, || self.converse(plan, world, mark))
    }

    /// Asks for each service of the plan from the source host, with that mark there, and says for which
    /// of them an answer came.
    pub(super) fn converse(&self, plan: &Plan, world: &World, mark: u32) -> Vec<bool> {
        let programs = Programs::start(self, plan, world);
        let sending = Sending {
            to: world.asked.1.parse().unwrap(),
            from: None,
            tos: 0,
            mark,
            size: None,
        };
        let asked = self.source.enter(|| {
            stay_here();
            let fence = Fence::new();
            let one = |service: &Service| {
                let client = sending.send(*service, 0);
                fence.pass();
                if service.protocol == Protocol::Tcp {
                    close_at_once(&client);
                    request(&client);
                    fence.pass();
                }
                let _connections = programs.answer();
                fence.pass();
                is_answered(&client)
            };
            plan.services.iter().map(one).collect()
        });
        asked.unwrap()
    }
}
