//! A network of namespaces that is made by the tools that everybody has.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tsim::{netlink::Netlink, netns::NetnsFd};

use crate::{
    capture::Capture,
    support::{Bed, ifname},
};

/// How far a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reached {
    /// The request did not come to the destination.
    No,
    /// It came there, and the client got no answer.
    Request,
    /// The client was answered.
    Answer,
}

/// The namespaces of a case, which are gone when this is dropped.
pub(crate) struct Network {
    pub(crate) bed: Bed,
}

impl Network {
    /// Builds what `script` says. A line is `segment NODE:INTERFACE…`, which joins these by a
    /// bridge, or `NODE: COMMAND` for the shell; `routers` forward. The interfaces' hardware addresses
    /// count from 02:00:5e:00:00:00 in the order of the lines.
    pub(crate) fn build(script: &str, routers: &[String]) -> Self {
        let network = Self { bed: Bed::new() };
        network.bed.netns("wires");
        // Nothing there says anything by itself.
        network.shell(
            "wires",
            "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6",
        );
        let mut ports = Vec::new();
        for line in lines(script) {
            if let Some(members) = line.strip_prefix("segment ") {
                network.segment(members, &mut ports, routers);
            } else if let Some((node, command)) = line.split_once(": ") {
                network.shell(node, command);
            } else {
                panic!("neither a segment nor a node's command: {line}");
            }
        }
        network.settle(&ports);
        network
    }

    /// The full name of a node's namespace.
    pub(crate) fn name(&self, node: &str) -> String {
        self.bed.name(node).to_string()
    }

    pub(crate) fn open(&self, node: &str) -> NetnsFd {
        self.bed.dir.open(&self.bed.name(node)).unwrap()
    }

    fn exists(&self, node: &str) -> bool {
        self.bed.left().contains(&self.bed.name(node))
    }

    fn shell(&self, node: &str, command: &str) {
        let mut sh = Command::new("sh");
        sh.args(["-ec", command]);
        let output = self.open(node).enter(|| sh.output()).unwrap().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{node}: {command}: {errors}");
    }

    fn segment(&self, members: &str, ports: &mut Vec<String>, routers: &[String]) {
        let bridge = format!("br{}", ports.len());
        self.shell("wires", &format!("ip link add {bridge} up type bridge"));
        for member in members.split_whitespace() {
            let (node, interface) = member.split_once(':').expect("NODE:INTERFACE");
            if !self.exists(node) {
                self.node(node, routers.iter().any(|router| router == node));
            }
            let port = format!("p{}", ports.len());
            let netns = self.name(node);
            let mac = mac(ports.len());
            self.shell(
                "wires",
                &format!(
                    "ip link add {port} type veth peer name {interface} address {mac} netns {netns}
                    ip link set {port} up master {bridge}"
                ),
            );
            // Who answers for others does so at once: by default within 0.8 s, by chance.
            self.shell(
                node,
                &format!(
                    "ip link set {interface} up
                    for family in ipv4 ipv6; do
                        echo 0 > /proc/sys/net/$family/neigh/{interface}/proxy_delay
                    done"
                ),
            );
            ports.push(port);
        }
    }

    fn node(&self, name: &str, forwards: bool) {
        self.bed.netns(name);
        let forwards = u8::from(forwards);
        // Addresses of IPv6 count at once; nothing but the case decides about the way back.
        self.shell(
            name,
            &format!(
                "ip link set lo up
                cd /proc/sys/net
                echo {forwards} > ipv4/ip_forward
                echo {forwards} > ipv6/conf/all/forwarding
                echo 0 > ipv6/conf/all/accept_dad
                echo 0 > ipv6/conf/default/accept_dad
                echo 0 > ipv4/conf/all/rp_filter
                echo 0 > ipv4/conf/default/rp_filter"
            ),
        );
    }

    /// Waits until the bridges forward and all addresses count.
    fn settle(&self, ports: &[String]) {
        let ports: Vec<_> = ports.iter().map(|port| ifname(port)).collect();
        let ports: Vec<_> = ports.iter().collect();
        let mut wires = Netlink::open(&self.open("wires")).unwrap();
        wires.await_forwarding(&ports).unwrap();
        for name in self.bed.left() {
            let netns = self.bed.dir.open(&name).unwrap();
            let mut netlink = Netlink::open(&netns).unwrap();
            let links = netlink.links().unwrap();
            // The kernel notes addresses of a VRF's ports in its own table.
            if !links.iter().any(|link| link.kind.as_deref() == Some("vrf")) {
                netlink.await_settled().unwrap();
            }
        }
    }

    /// Connects from a node, and captures what comes in by `eth0` of node `at`, or by the
    /// interface that is named behind a colon, to the port of `to`, or to `port`.
    pub(super) fn connect(
        &self,
        from: &str,
        to: SocketAddr,
        at: &str,
        port: Option<u16>,
    ) -> Reached {
        let (node, interface) = at.split_once(':').unwrap_or((at, "eth0"));
        let capture = Capture::start(&self.open(node), &ifname(interface));
        let attempt = || TcpStream::connect_timeout(&to, Duration::from_millis(1_200));
        let connected = self.open(from).enter(attempt).unwrap();
        let answered = match connected {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        };
        let port = port.unwrap_or(to.port());
        let frames = capture.frames();
        let request = frames.iter().any(|frame| {
            frame
                .get(14..)
                .is_some_and(|packet| is_request(packet, to.ip(), port))
        });
        match (answered, request) {
            (true, _) => Reached::Answer,
            (false, true) => Reached::Request,
            (false, false) => Reached::No,
        }
    }
}

impl Network {
    /// The same of a datagram, which `at` answers.
    pub(super) fn ask_udp(&self, from: &str, to: SocketAddr, at: &str) -> Reached {
        const PATIENCE: Duration = Duration::from_millis(1_200);
        let any = match to.is_ipv4() {
            true => "0.0.0.0",
            false => "::",
        };
        let socket = |node: &str, port: u16| {
            let bind = || UdpSocket::bind((any, port));
            let socket = self.open(node).enter(bind).unwrap().unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let (server, client) = (socket(at, to.port()), socket(from, 0));
        client.connect(to).unwrap();
        let asked = thread::spawn(move || {
            let mut bytes = [0; 9];
            let (_, whom) = server.recv_from(&mut bytes).ok()?;
            server.send_to(b"answer", whom).ok()
        });
        client.send(b"question").unwrap();
        let answered = client.recv(&mut [0; 9]).is_ok();
        match (answered, asked.join().unwrap()) {
            (true, _) => Reached::Answer,
            (false, Some(_)) => Reached::Request,
            (false, None) => Reached::No,
        }
    }
}

fn mac(number: usize) -> String {
    format!("02:00:5e:00:{:02x}:{:02x}", number / 256, number % 256)
}

/// The lines of a script; those that end with `\` go on.
fn lines(script: &str) -> Vec<String> {
    let joined = script.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// Whether a packet is the first one of a connection to `port`.
pub(crate) fn is_request(packet: &[u8], family_of: IpAddr, port: u16) -> bool {
    let segment = match (family_of, packet.first().map(|octet| octet >> 4)) {
        (IpAddr::V4(_), Some(4)) if packet.get(9) == Some(&6) => packet.get(20..),
        (IpAddr::V6(_), Some(6)) if packet.get(6) == Some(&6) => packet.get(40..),
        _ => None,
    };
    segment.is_some_and(|segment| {
        segment.get(2..4) == Some(&port.to_be_bytes())
            && segment.get(13).is_some_and(|flags| flags & 0x17 == 0x02)
    })
}
