//! A packet capture on one interface of a namespace: what verdicts are compared with.

use std::{
    collections::BTreeSet,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
        sockopt,
    },
};
use tsim::{firewall::TagSpace, model::IfName, netlink::Netlink, netns::NetnsFd};

/// `PACKET_OUTGOING`, linux/if_packet.h: a frame that this side sends.
const OUTGOING: u8 = 4;

/// For the frames of every port of both protocols.
const ROOM: usize = 256 << 20;

/// Frames that come in on some interfaces, packet(7).
pub(crate) struct Capture {
    socket: OwnedFd,
    indexes: Vec<usize>,
}

/// One captured probe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Captured {
    /// Index of its service.
    pub(crate) index: u32,
    /// TOS octet or traffic class.
    pub(crate) tos: u8,
    /// Destination port as it left the router.
    pub(crate) port: u16,
}

impl Capture {
    /// Starts to capture what comes in on `interface` of `netns`.
    pub(crate) fn start(netns: &NetnsFd, interface: &IfName) -> Self {
        Self::start_on(netns, std::slice::from_ref(interface))
    }

    /// Starts to capture what comes in on any of `interfaces` of `netns`: one socket, because
    /// closing one takes 16 ms.
    pub(crate) fn start_on(netns: &NetnsFd, interfaces: &[IfName]) -> Self {
        let mut netlink = Netlink::open(netns).unwrap();
        let mut index = |name: &IfName| {
            let link = netlink.link(name).unwrap();
            link.expect("the interface exists").index as usize
        };
        let indexes = interfaces.iter().map(&mut index).collect();
        let open = || {
            socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
        };
        let socket = netns.enter(open).unwrap().unwrap();
        // Without rights in the first user namespace the buffer is what net.core.rmem_max allows.
        if setsockopt(&socket, sockopt::RcvBufForce, &ROOM).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &ROOM).unwrap();
        }
        Self { socket, indexes }
    }

    /// Whole frames seen since the last call. What was sent before this call is in: a frame
    /// crosses a veth pair within the system call that sends it.
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) => {
                    if self.indexes.contains(&from.ifindex()) && from.pkttype() != OUTGOING {
                        frames.push(buffer[..length].to_vec());
                    }
                }
                Ok((_, None)) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return frames,
                Err(errno) => panic!("capture: {errno}"),
            }
        }
    }

    /// The job's probes among the frames seen since the last call.
    pub(crate) fn probes(&self, tags: TagSpace) -> BTreeSet<Captured> {
        let frames = self.frames();
        frames
            .iter()
            .filter_map(|frame| probe(&frame[14..], tags))
            .collect()
    }
}

/// The probe in an IP packet, if it is one of this job's.
pub(crate) fn probe(packet: &[u8], tags: TagSpace) -> Option<Captured> {
    let (protocol, tos, payload) = match packet.first()? >> 4 {
        4 => (
            packet[9],
            packet[1],
            packet.get(usize::from(packet[0] & 15) * 4..)?,
        ),
        6 => (
            packet[6],
            packet[0] << 4 | packet[1] >> 4,
            packet.get(40..)?,
        ),
        _ => return None,
    };
    // Where a probe has its tag, which stays the same on its way.
    let at = match protocol {
        17 | 1 | 58 | 50 => 8,
        132 => 16,
        _ => 4,
    };
    // SYN alone: a reset that answers a SYN-ACK carries the number behind the probe's.
    if protocol == 6 && payload.get(13)? & 0x17 != 0x02 {
        return None;
    }
    let tag = u32::from_be_bytes(payload.get(at..at + 4)?.try_into().ok()?);
    let port = u16::from_be_bytes(payload.get(2..4)?.try_into().ok()?);
    Some(Captured {
        index: tags.index(tag)?,
        tos,
        port,
    })
}
