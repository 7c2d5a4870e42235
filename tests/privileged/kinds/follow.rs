//! Follows a connection through a hand-made network: every node captures.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket},
};

use super::Way;
use crate::by_hand::network::{Network, Reached, is_request};

/// `PACKET_HOST`, linux/if_packet.h: a frame that is for this node.
const HOST: u8 = 0;
/// `PACKET_OUTGOING`: a frame that this node sends.
const OUTGOING: u8 = 4;

/// What became of the connections of a way.
pub(super) struct Followed {
    pub(super) reached: Reached,
    pub(super) end: String,
    pub(super) routers: Vec<Vec<String>>,
    pub(super) bridged: Vec<String>,
}

/// Connects as often as the way says, and joins what was seen.
pub(super) fn ways(network: &Network, way: &Way) -> Followed {
    let to = destination(&way.ask);
    let mut all: Option<Followed> = None;
    for _ in 0..way.tries {
        let one = follow(network, way, to);
        all = Some(match all.take() {
            None => one,
            Some(mut all) => {
                assert_eq!(all.reached, one.reached, "{}: by chance", way.ask);
                all.routers.extend(one.routers);
                all
            }
        });
    }
    let mut all = all.expect("at least one try");
    all.routers.sort();
    all.routers.dedup();
    all
}

/// The address and port of a question.
fn destination(ask: &str) -> SocketAddr {
    let words: Vec<&str> = ask.split(' ').collect();
    let behind = |option: &str| {
        let at = words
            .iter()
            .position(|word| *word == option)
            .expect("an option");
        words[at + 1]
    };
    let address: IpAddr = behind("-d").parse().unwrap();
    SocketAddr::new(address, behind("-P").parse().unwrap())
}

fn follow(network: &Network, way: &Way, to: SocketAddr) -> Followed {
    let names = network.bed.left();
    let nodes = names.iter().map(|name| {
        let name = name.as_str();
        name.rsplit_once('.')
            .map_or(name, |(_, node)| node)
            .to_owned()
    });
    let sockets: Vec<(String, OwnedFd)> = nodes
        .filter(|node| node != "wires")
        .map(|node| {
            let socket = capture(network, &node);
            (node, socket)
        })
        .collect();
    let attempt = || TcpStream::connect_timeout(&to, Duration::from_millis(900));
    let answered = match network.open(&way.from).enter(attempt).unwrap() {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    };
    // By the hops that are left to the request where a node first had it.
    let mut taken: BTreeMap<(std::cmp::Reverse<u8>, usize), String> = BTreeMap::new();
    let mut passed = BTreeSet::new();
    for (number, (node, socket)) in sockets.iter().enumerate() {
        let seen = requests(socket, to);
        let hops = seen
            .iter()
            .filter(|(kind, _)| *kind == HOST)
            .map(|(_, hops)| *hops);
        match hops.max() {
            Some(hops) => {
                taken.insert((std::cmp::Reverse(hops), number), node.clone());
            }
            None if seen.iter().any(|(kind, _)| *kind != OUTGOING) => {
                passed.insert(node.clone());
            }
            None => {}
        }
    }
    let taken: Vec<String> = taken.into_values().collect();
    let reached = match (answered, taken.contains(&way.at)) {
        (true, true) => Reached::Answer,
        (false, true) => Reached::Request,
        (_, false) => Reached::No,
    };
    let is_router = |node: &&String| forwards(network, node);
    Followed {
        reached,
        end: taken.last().unwrap_or(&way.from).clone(),
        routers: vec![taken.iter().filter(is_router).cloned().collect()],
        bridged: passed
            .into_iter()
            .filter(|node| forwards(network, node))
            .collect(),
    }
}

fn forwards(network: &Network, node: &str) -> bool {
    let file = "/proc/sys/net/ipv4/ip_forward";
    let setting = network.open(node).enter(|| std::fs::read_to_string(file));
    setting.unwrap().unwrap().trim() == "1"
}

/// Captures packets on all interfaces of a node, tunnels without hardware addresses among them.
fn capture(network: &Network, node: &str) -> OwnedFd {
    let open = || {
        socket(
            AddressFamily::Packet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        )
    };
    network.open(node).enter(open).unwrap().unwrap()
}

/// The requests that a node saw: whom the frame was for, and the hops that were left to it.
fn requests(socket: &OwnedFd, to: SocketAddr) -> Vec<(u8, u8)> {
    let (mut seen, mut buffer) = (Vec::new(), [0; 2048]);
    loop {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) => {
                let packet = &buffer[..length];
                if is_request(packet, to.ip(), to.port()) {
                    let hops = if to.is_ipv4() { packet[8] } else { packet[7] };
                    seen.push((from.pkttype(), hops));
                }
            }
            Ok((_, None)) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return seen,
            Err(errno) => panic!("capture: {errno}"),
        }
    }
}
