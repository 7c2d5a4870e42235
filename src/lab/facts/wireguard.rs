//! `wg show`: the peers of WireGuard interfaces, and which addresses each of them may have.
//!
//! An interface drops what is for no address of its peers ("allowed IPs", wg(8)), so where these
//! cannot be read, what goes over the interface is in doubt.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{RouterFacts, section::Section, words::not_read};
use crate::{
    lab::{
        omission::{Omission, OmissionKind, PacketSet},
        topology::{InterfaceKind, Warning, WireGuard, WireGuardPeer},
    },
    model::IfName,
};

/// What the section is called.
pub(super) const SECTIONS: [&str; 3] = ["wireguard", "wg_show", "wg"];

/// What `wg show` says of an interface and its peers.
const FIELDS: [&str; 12] = [
    "interface",
    "public key",
    "private key",
    "listening port",
    "fwmark",
    "peer",
    "preshared key",
    "endpoint",
    "allowed ips",
    "latest handshake",
    "transfer",
    "persistent keepalive",
];

/// Reads `wg show`, which hides private keys.
pub(super) fn read(facts: &mut RouterFacts, section: &Section<'_>) {
    let mut shown: BTreeMap<String, WireGuard> = BTreeMap::new();
    let mut strange = Vec::new();
    let mut current = None;
    for &(at, line) in &section.body {
        let (field, value) = line.trim().split_once(':').unwrap_or((line.trim(), ""));
        let value = value.trim();
        if !field.is_empty() && !FIELDS.contains(&field) {
            strange.push((at, line));
        }
        if field == "interface" {
            current = Some(shown.entry(value.to_owned()).or_default());
            continue;
        }
        let Some(interface) = current.as_deref_mut() else {
            continue;
        };
        match (field, interface.peers.last_mut()) {
            ("public key", _) => interface.public_key = Some(value.to_owned()),
            ("peer", _) => interface.peers.push(WireGuardPeer {
                public_key: value.to_owned(),
                endpoint: None,
                allowed_ips: Vec::new(),
            }),
            ("endpoint", Some(peer)) => peer.endpoint = Some(value.to_owned()),
            ("allowed ips", Some(peer)) => match nets(value) {
                Some(nets) => peer.allowed_ips = nets,
                None => strange.push((at, line)),
            },
            _ => {}
        }
    }
    for interface in &mut facts.interfaces {
        if let Some(wireguard) = shown.remove(interface.name.as_str()) {
            interface.value.kind = InterfaceKind::Tunnel;
            // Of peers that are not known as a whole nobody can say that none has an address.
            interface.value.link.wireguard = strange.is_empty().then_some(wireguard);
        }
    }
    doubt(facts, &strange);
}

/// `10.7.0.2/32, fd00::2/128`, or `(none)`.
fn nets(text: &str) -> Option<Vec<IpNet>> {
    if text == "(none)" {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|word| word.trim().parse().ok())
        .collect()
}

/// Says of each line that is not understood that it may be about any peer.
fn doubt(facts: &mut RouterFacts, strange: &[(usize, &str)]) {
    let tunnels = facts.interfaces.iter().filter(|interface| {
        let may_be = matches!(interface.link.kind.as_deref(), None | Some("wireguard"));
        interface.kind == InterfaceKind::Tunnel && may_be
    });
    let over: Vec<PacketSet> = tunnels.map(|i| PacketSet::by(i.name.clone())).collect();
    for &(line, text) in strange {
        let message = format!("{}; the output of `wg show` is wanted", not_read(text));
        let origin = facts.origin(line);
        let warning = match over.is_empty() {
            true => Warning::notice(origin, &facts.name, message),
            false => {
                let omission = Omission::of_packets(OmissionKind::Interface, over.clone());
                Warning::omission(origin, &facts.name, message, omission)
            }
        };
        facts.warnings.push(warning);
    }
}

/// Doubts what goes over the interfaces that are WireGuard's and of which nothing tells the peers.
pub(super) fn doubt_untold(facts: &mut RouterFacts) {
    let untold = facts.interfaces.iter().filter(|interface| {
        let link = &interface.link;
        interface.up && link.kind.as_deref() == Some("wireguard") && link.wireguard.is_none()
    });
    let warning = |line, name: &IfName| {
        let message =
            format!("nothing tells the peers of {name}: the output of `wg show` is wanted");
        let over = [PacketSet::by(name.clone())];
        let omission = Omission::of_packets(OmissionKind::Interface, over);
        Warning::omission(facts.origin(line), &facts.name, message, omission)
    };
    let found: Vec<Warning> = untold.map(|i| warning(i.line, &i.name)).collect();
    facts.warnings.extend(found);
}
