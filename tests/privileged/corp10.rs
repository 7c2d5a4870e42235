//! corp10 from end to end: every verdict is what plain hosts on its end networks see.
//!
//! The routers are the lab's, without a tap. The hosts are made by ip(8), and one of them sends what
//! a client of the service would send first; a packet socket at the other shows whether it came.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, sendto,
    socket,
};
use tsim::{
    model::{Protocol, Service},
    netlink::Netlink,
    netns::NetnsFd,
    run::{
        quick::{ExplainMode, RouterChoice},
        report::Verdict,
    },
};

use crate::{
    capture::Capture,
    chains::{Fence, stay_here},
    quick::TestLab,
    support::ifname,
};

/// What corp10 lets through between its sites (pings, traceroute's ports), the ports beside these,
/// and what people ask about.
const SERVICES: &str = "ping,33433/udp,33434/udp,33435/udp,33450/udp,33480/udp,33500/udp,33520/udp,\
                        33533/udp,33534/udp,33535/udp,53/udp,69/udp,123/udp,161/udp,514/udp,21,22,25,\
                        53,80,110,143,389,443,445,3306,3389,5432,8080";
/// Of 3,300 pairs so many are not decided at most. corp10's tables send packets for many of its networks
/// where no router is, or by routes that lack an interface; each such verdict says so.
const MOST_UNKNOWN: usize = 450;
/// So many arrive at least and are a YES, or the test would tell little.
const LEAST_ARRIVED: usize = 60;
/// The type of an echo request, RFC 792.
const ECHO_REQUEST: u8 = 8;

/// A plain host of an end network.
struct Host {
    netns: NetnsFd,
    address: IpAddr,
    inbox: Capture,
}

/// Runs ip(8), which must not fail.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// A host on each segment that one router has, with that router as its gateway.
fn plain_hosts(lab: &TestLab) -> Vec<Host> {
    let segments = tsim::model::NetnsName::segments(&lab.bed.lab);
    let ends = lab.lab.segments.iter().enumerate();
    let made = ends.filter_map(|(number, segment)| {
        let net: ipnet::Ipv4Net = segment.name.parse().ok()?;
        let [(router, interface)] = segment.members.as_slice() else {
            return None;
        };
        let state = lab.lab.router(router).unwrap();
        let inside = &state.interface(interface).unwrap().addresses;
        let mut gateways = inside.iter().map(|address| address.local.addr());
        let gateway = gateways.find(|at| matches!(at, IpAddr::V4(at) if net.contains(at)))?;
        let address = (net.prefix_len() <= 24).then(|| net.hosts().nth(60))??;
        let netns = lab.bed.netns(&format!("plain{number}"));
        let host = lab.bed.name(&format!("plain{number}"));
        let length = net.prefix_len();
        ip(&format!(
            "-n {segments} link add x{number} type veth peer name eth0 netns {host}"
        ));
        ip(&format!(
            "-n {segments} link set x{number} master br{number} up"
        ));
        ip(&format!(
            "-n {host} address add {address}/{length} dev eth0"
        ));
        ip(&format!("-n {host} link set lo up"));
        ip(&format!("-n {host} link set eth0 up"));
        let mut bridges = Netlink::open(&lab.lab.segments_netns().unwrap()).unwrap();
        bridges
            .await_forwarding(&[&ifname(&format!("x{number}"))])
            .unwrap();
        Netlink::open(&netns).unwrap().await_settled().unwrap();
        ip(&format!("-n {host} route add default via {gateway}"));
        Some(Host {
            inbox: Capture::start(&netns, &ifname("eth0")),
            address: address.into(),
            netns,
        })
    });
    made.collect()
}

/// A raw socket for ICMP.
fn icmp_socket() -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(
        AddressFamily::Inet,
        SockType::Raw,
        flags,
        SockProtocol::Icmp,
    )
    .unwrap()
}

/// Sends what a client of the service sends first; what it sent from stays open with what is returned.
fn send(service: Service, to: IpAddr) -> OwnedFd {
    let to = SocketAddr::new(to, service.port);
    match service.protocol {
        Protocol::Tcp => {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let client = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
            // It is under way, or the kernel knows of no way.
            let _ = connect(client.as_raw_fd(), &SockaddrStorage::from(to));
            client
        }
        Protocol::Udp => {
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            let _ = client.send_to(b"request", to);
            client.into()
        }
        _ => {
            let client = icmp_socket();
            // Type and code, the checksum of a message that is otherwise 0, identifier and number.
            let request = [ECHO_REQUEST, 0, !ECHO_REQUEST, 0xff, 0, 0, 0, 0];
            let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
            let _ = sendto(client.as_raw_fd(), &request, &to, MsgFlags::empty());
            client
        }
    }
}

/// Whether a frame is the first packet of the service. A router may have given it another source.
fn is_request(frame: &[u8], service: Service) -> bool {
    let packet = &frame[14..];
    if packet[0] >> 4 != 4 {
        return false;
    }
    let payload = &packet[usize::from(packet[0] & 15) * 4..];
    let port = u16::from_be_bytes([payload[2], payload[3]]);
    match service.protocol {
        Protocol::Tcp => packet[9] == 6 && port == service.port && payload[13] & 0x17 == 0x02,
        Protocol::Udp => packet[9] == 17 && port == service.port && &payload[8..15] == b"request",
        _ => packet[9] == 1 && payload[0] == ECHO_REQUEST,
    }
}

/// Which of the services come from one host to another.
fn arrived(from: &Host, to: &Host, services: &[Service]) -> Vec<bool> {
    // What this host sent itself, over its loopback too, may have filled an ordinary user's buffer.
    to.inbox.frames();
    let sent = from.netns.enter(|| {
        stay_here();
        let fence = Fence::new();
        let one = |service: &Service| {
            let _client = send(*service, to.address);
            fence.pass();
            let frames = to.inbox.frames();
            let mut frames = frames.iter();
            frames.any(|frame| is_request(frame, *service))
        };
        services.iter().map(one).collect()
    });
    sent.unwrap()
}

#[test]
fn every_pair_of_corp10s_end_networks_is_answered_as_plain_hosts_see_it() {
    let lab = TestLab::up("corp10");
    let hosts = plain_hosts(&lab);
    assert!(hosts.len() > 8, "{}", hosts.len());
    let (mut pairs, mut unknown, mut through) = (0, 0, 0);
    let mut wrong = Vec::new();
    for from in &hosts {
        for to in hosts.iter().filter(|to| to.address != from.address) {
            let (source, destination) = (from.address.to_string(), to.address.to_string());
            let mut job = lab.job("hq-gw", &source, &destination, SERVICES);
            job.routers = RouterChoice::Trace;
            job.explain = ExplainMode::Never;
            let services = job.services.clone();
            assert_eq!(services.len(), 30);
            // The truth first: no tap has been on these routers for this pair.
            let truth = arrived(from, to, &services);
            let report = lab.run(&job);
            for ((end, service), came) in report.end_to_end.iter().zip(&services).zip(truth) {
                assert_eq!(end.service(), *service);
                pairs += 1;
                unknown += usize::from(end.result == Verdict::Unknown);
                through += usize::from(came && end.result == Verdict::Yes);
                let right = match end.result {
                    Verdict::Unknown => true,
                    result => (result == Verdict::Yes) == came,
                };
                if !right {
                    wrong.push(format!(
                        "{source} -> {destination} {service}: {end:?}, came: {came}"
                    ));
                }
            }
        }
    }
    println!("{pairs} pairs, {through} arrive as was said, {unknown} UNKNOWN");
    assert!(
        wrong.is_empty(),
        "{} of {pairs}: {}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(pairs, hosts.len() * (hosts.len() - 1) * 30);
    assert!(unknown <= MOST_UNKNOWN, "{unknown} of {pairs}");
    assert!(through >= LEAST_ARRIVED, "{through} of {pairs}");
}
