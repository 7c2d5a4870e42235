//! What becomes of packets at routers that they pass at layer 2.

use std::{net::IpAddr, ops::RangeInclusive};

use super::report::Verdict;
use crate::{
    firewall::rule::{Field, Packet, TrackingState},
    lab::{Crossing, Passing},
    model::Protocol,
    netlink::object::Family,
};

/// First of the ports that are not well known, from which clients connect.
pub(crate) const FIRST_CLIENT_PORT: u16 = 1024;

/// The ports that clients have: the one that was asked for, or any that they take by themselves.
pub(crate) fn client_ports(asked: Option<u16>) -> RangeInclusive<u16> {
    asked.map_or(FIRST_CLIENT_PORT..=u16::MAX, |port| port..=port)
}

/// A request between two routers, to a port where that is known, from one of the client's or the one that a
/// router gave it.
pub(crate) fn request(
    protocol: Protocol,
    (source, destination): (IpAddr, IpAddr),
    (sport, dport): (Option<u16>, Option<u16>),
    clients: RangeInclusive<u16>,
) -> Packet {
    let given = sport.filter(|port| !clients.contains(port));
    let (first, last) = clients.into_inner();
    let packet = between(protocol, (source, destination))
        .with_state(TrackingState::New)
        .with_state(TrackingState::Untracked)
        .within(Field::SourcePort, first.into(), last.into());
    let packet = match given {
        Some(port) => packet.with(Field::SourcePort, port),
        None => packet,
    };
    match dport {
        Some(port) => packet.with(Field::DestinationPort, port),
        None => packet,
    }
}

/// An answer between two routers, from a port where that is known, to one of the client's.
pub(crate) fn answer(
    protocol: Protocol,
    (source, destination): (IpAddr, IpAddr),
    port: Option<u16>,
    clients: RangeInclusive<u16>,
) -> Packet {
    let (first, last) = clients.into_inner();
    let packet = between(protocol, (source, destination)).within(
        Field::DestinationPort,
        first.into(),
        last.into(),
    );
    match port {
        Some(port) => packet.with(Field::SourcePort, port),
        None => packet,
    }
}

fn between(protocol: Protocol, (source, destination): (IpAddr, IpAddr)) -> Packet {
    Packet::of(Family::of(destination))
        .with(Field::Protocol, protocol.number())
        .with_address(Field::Source, source)
        .with_address(Field::Destination, destination)
}

/// Whether a packet passes there, and why where that is not plain. Who trusts the facts is only told of
/// rules that may stop it.
pub(crate) fn verdict(crossing: &Crossing<'_>, packet: &Packet, trust: bool) -> (Verdict, String) {
    let Crossing { comes, leaves, .. } = crossing;
    let place = format!("as a bridge hands it on from {comes} to {leaves}");
    match crossing.passing(packet) {
        Passing::Free => (Verdict::Yes, String::new()),
        Passing::Stopped(by) => (Verdict::No, format!("{by} stops it {place}")),
        Passing::Doubted(by) if trust => {
            let why = format!("trusting the facts without {by}, which may stop it {place}");
            (Verdict::Yes, why)
        }
        Passing::Doubted(by) => {
            let why = format!("{by} may stop it {place}, which no lab does");
            (Verdict::Unknown, why)
        }
    }
}
