//! Network interfaces as messages of rtnetlink, and back.

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

use super::{BridgeOptions, Link, NetlinkError, NewVeth, PortOptions, VethEnd, object::Mac};
use crate::model::IfName;

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
) -> Result<Option<Link>, NetlinkError> {
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
pub(super) fn from_message(message: &LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let name = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => IfName::new(name.as_str()).ok(),
        _ => None,
    })?;
    let mut link = Link {
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

fn fill(link: &mut Link, info: &LinkInfo) {
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
