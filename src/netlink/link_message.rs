//! Network interfaces as values, as messages of rtnetlink, and back.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
        LinkMessage,
    },
};
use nix::errno::Errno;

use super::{NetlinkError, object::Mac};
use crate::{model::IfName, netns::NetnsFd};

/// An interface as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelLink {
    /// Number, unique in the namespace.
    pub index: u32,
    /// Name.
    pub name: IfName,
    /// What it is (`veth`, `bridge` …); none for hardware and loopback.
    pub kind: Option<String>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and so is the other end.
    pub carrier: bool,
    /// The kernel has taken notice of the carrier: it sends. Later than [`KernelLink::carrier`].
    pub running: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Index of the far end of a veth, in the far end's namespace.
    pub peer: Option<u32>,
    /// This namespace's number for the far end's, where that is another one.
    pub peer_netns: Option<i32>,
    /// Options of a bridge port.
    pub port: Option<PortOptions>,
    /// Whether the bridge forwards by this port; none for what is no bridge port.
    pub forwarding: Option<bool>,
    /// Free text that somebody gave the link.
    pub alias: Option<String>,
}

/// One end of a veth to be made.
#[derive(Debug, Clone)]
pub struct VethEnd<'a> {
    /// Namespace; none for the socket's own.
    pub netns: Option<&'a NetnsFd>,
    /// Name.
    pub name: IfName,
    /// Index that it shall get. With one, later requests of the same batch can name the link
    /// without a round trip. It must be free, as any but 1 is in a new namespace.
    pub index: Option<u32>,
    /// Hardware address; the kernel makes one up where there is none.
    pub mac: Option<Mac>,
    /// MTU in bytes; the kernel takes 1500 where there is none.
    pub mtu: Option<u32>,
}

impl VethEnd<'_> {
    /// An end in the socket's own namespace, with what the kernel makes up.
    #[must_use]
    pub fn new(name: IfName) -> Self {
        Self {
            netns: None,
            name,
            index: None,
            mac: None,
            mtu: None,
        }
    }
}

/// A pair of interfaces, joined by a wire, veth(4).
#[derive(Debug, Clone)]
pub struct NewVeth<'a> {
    /// One end.
    pub near: VethEnd<'a>,
    /// The near end is up from the start. The far end cannot be: the kernel sets it up before it
    /// has a peer, and `veth_open()` wants one.
    pub near_up: bool,
    /// Bridge in the near end's namespace that the near end becomes a port of. Only where that is
    /// the socket's own.
    pub master: Option<IfName>,
    /// The other end.
    pub far: VethEnd<'a>,
}

/// A bridge to be made.
#[derive(Debug, Clone, Default)]
pub struct BridgeOptions {
    /// Index that it shall get, see [`VethEnd::index`].
    pub index: Option<u32>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Up from the start.
    pub up: bool,
    /// Spanning tree protocol; without it a port forwards at once.
    pub stp: bool,
    /// IGMP and MLD snooping; without it multicast reaches every port.
    pub multicast_snooping: bool,
}

/// Options of a bridge port, bridge(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortOptions {
    /// Learns source addresses from frames that come in.
    pub learning: bool,
    /// Sends out frames to addresses that the bridge does not know.
    pub flood: bool,
}

/// Marks the link of `message` as up or down.
pub(super) fn set_up(message: &mut LinkMessage, up: bool) {
    message.header.change_mask = LinkFlags::Up;
    if up {
        message.header.flags = LinkFlags::Up;
    }
}

/// A request about the link `name`; the kernel finds it by that.
pub(super) fn named(name: &IfName) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_string()));
    message
}

/// Asks for links without their counters, which are most of an answer.
pub(super) fn without_statistics(mut message: LinkMessage) -> LinkMessage {
    let skip = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    message.attributes.push(skip);
    message
}

pub(super) fn link_or_none(
    reply: Result<RouteNetlinkMessage, NetlinkError>,
) -> Result<Option<KernelLink>, NetlinkError> {
    match reply {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(from_message(&message)),
        Ok(_) => Ok(None),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn end_message(end: &VethEnd<'_>) -> LinkMessage {
    let mut message = named(&end.name);
    message.header.index = end.index.unwrap_or(0);
    let attributes = &mut message.attributes;
    attributes.extend(end.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(end.mtu.map(LinkAttribute::Mtu));
    attributes.extend(
        end.netns
            .map(|netns| LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())),
    );
    // One queue is what a veth uses unless told otherwise, but it is made with one per processor
    // and the others are taken away under the RTNL, which waits for all processors each time
    // (`veth_init_queues()`).
    attributes.push(LinkAttribute::NumTxQueues(1));
    attributes.push(LinkAttribute::NumRxQueues(1));
    message
}

pub(super) fn veth_message(veth: &NewVeth<'_>, master: Option<u32>) -> LinkMessage {
    let mut message = end_message(&veth.near);
    if veth.near_up {
        set_up(&mut message, true);
    }
    let peer = InfoVeth::Peer(end_message(&veth.far));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(peer)),
    ]));
    message
        .attributes
        .extend(master.map(LinkAttribute::Controller));
    message
}

pub(super) fn bridge_message(name: &IfName, options: &BridgeOptions) -> LinkMessage {
    let mut message = named(name);
    message.header.index = options.index.unwrap_or(0);
    if options.up {
        set_up(&mut message, true);
    }
    message
        .attributes
        .extend(options.mtu.map(LinkAttribute::Mtu));
    let stp = if options.stp {
        BridgeStpState::KernelStp
    } else {
        BridgeStpState::Disabled
    };
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![
            InfoBridge::StpState(stp),
            InfoBridge::MulticastSnooping(options.multicast_snooping),
        ])),
    ]));
    message
}

pub(super) fn port_message(name: &IfName, options: PortOptions) -> LinkMessage {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::Learning(options.learning),
            InfoBridgePort::UnicastFlood(options.flood),
        ])),
    ]));
    message
}

/// The link in `message`; none when its name is one that tsim never gives.
pub(super) fn from_message(message: &LinkMessage) -> Option<KernelLink> {
    let flags = message.header.flags;
    let name = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => IfName::new(name.as_str()).ok(),
        _ => None,
    })?;
    let mut link = KernelLink {
        index: message.header.index,
        name,
        kind: None,
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        running: flags.contains(LinkFlags::Running),
        master: None,
        peer: None,
        peer_netns: None,
        port: None,
        forwarding: None,
        alias: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(octets) => {
                link.mac = octets.as_slice().try_into().ok().map(Mac);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(text) => link.alias = Some(text.clone()),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(*id),
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| fill(&mut link, info)),
            _ => {}
        }
    }
    Some(link)
}

fn fill(link: &mut KernelLink, info: &LinkInfo) {
    match info {
        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
        LinkInfo::PortData(InfoPortData::BridgePort(options)) => {
            let mut port = PortOptions {
                learning: true,
                flood: true,
            };
            for option in options {
                match option {
                    InfoBridgePort::Learning(on) => port.learning = *on,
                    InfoBridgePort::UnicastFlood(on) => port.flood = *on,
                    InfoBridgePort::State(state) => {
                        link.forwarding = Some(*state == BridgePortState::Forwarding);
                    }
                    _ => {}
                }
            }
            link.port = Some(port);
        }
        _ => {}
    }
}
