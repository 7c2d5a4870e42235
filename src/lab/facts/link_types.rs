//! What the lines of `ip -d link show` say of one link: its type, its ends, its master.

use std::net::IpAddr;

use super::words::{Words, number};
use crate::{
    lab::topology::{LinkFacts, Master, MasterKind},
    model::IfName,
};

/// Types of links, ip-link(8).
const KINDS: [&str; 26] = [
    "wireguard",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "ipip",
    "sit",
    "ip6tnl",
    "vti",
    "vti6",
    "xfrm",
    "vxlan",
    "geneve",
    "vlan",
    "bridge",
    "vrf",
    "bond",
    "team",
    "tun",
    "ppp",
    "macvlan",
    "macvtap",
    "ipvlan",
    "dummy",
    "veth",
    "l2tp",
];

/// What else lines of `ip -d` begin with.
const OTHER_KINDS: [&str; 12] = [
    "vrf_slave",
    "bridge_slave",
    "bond_slave",
    "team_slave",
    "macsec",
    "ifb",
    "nlmon",
    "openvswitch",
    "ipoib",
    "can",
    "vcan",
    "hsr",
];

/// Whether a line of `ip -d` that begins with `word` tells the type of a link.
pub(super) fn is_kind(word: &str) -> bool {
    KINDS.contains(&word) || OTHER_KINDS.contains(&word)
}

/// A line of `ip -d` that tells the type of a link and what belongs to it, e.g.
/// `gre remote 198.51.100.1 local 203.0.113.1 ttl 255`. `kind` is its first word.
pub(super) fn detail(kind: &str, words: &mut Words<'_>, link: &mut LinkFacts) {
    match kind {
        "vrf_slave" => {}
        "bridge_slave" => {
            let rest: Vec<&str> = std::iter::from_fn(|| words.next()).collect();
            port(&rest, link);
            return;
        }
        kind if KINDS.contains(&kind) => link.kind = Some(kind.to_owned()),
        _ => return,
    }
    while let Some(word) = words.next() {
        let value = match word {
            "remote" | "local" | "table" | "id" | "key" | "ikey" | "okey" | "dstport"
            | "vlan_filtering" | "stp_state" => words.next(),
            _ => continue,
        };
        let Some(value) = value else { return };
        match word {
            "remote" => link.remote = value.parse().ok(),
            "local" => link.local = value.parse().ok(),
            "table" => link.vrf_table = number(value),
            "dstport" => link.outer_port = value.parse().ok(),
            "okey" => link.sent_key = key(value),
            "vlan_filtering" => link.heeds_vlans = value == "1",
            "stp_state" => link.spans = value == "1",
            _ => link.key = key(value),
        }
    }
}

/// What a bridge's port hands on and takes in, bridge(8).
fn port(words: &[&str], link: &mut LinkFacts) {
    let is = |key: &str, values: &[&str]| {
        let mut pairs = words.windows(2);
        pairs.any(|pair| matches!(pair, [k, value] if *k == key && values.contains(value)))
    };
    let (on, off) = (["on", "true"], ["off", "false"]);
    link.isolated = is("isolated", &on);
    // States through which a port comes to forward are over some seconds later.
    let states = ["disabled", "blocking"];
    let state = states.into_iter().find(|state| is("state", &[state]));
    link.holds_back = if let Some(state) = state {
        Some(format!("state {state}"))
    } else if is("locked", &on) {
        Some("locked on".to_owned())
    } else if is("learning", &off) && is("flood", &off) {
        Some("learning off flood off".to_owned())
    } else {
        None
    };
}

/// A key is a number or, of GRE, an IPv4 address.
fn key(text: &str) -> Option<u32> {
    let address = || text.parse::<std::net::Ipv4Addr>().ok().map(u32::from);
    number(text).or_else(address)
}

/// What `link/gre 203.0.113.1 peer 198.51.100.1` says of a tunnel; hardware addresses stand there
/// for other links.
pub(super) fn outer_addresses(words: &mut Words<'_>, link: &mut LinkFacts) {
    link.local = words.next().and_then(|word| word.parse().ok());
    if words.take("peer") || words.take("brd") {
        link.remote = words.next().and_then(|word| word.parse().ok());
    }
    let known = |address: &IpAddr| !address.is_unspecified();
    link.local = link.local.filter(known);
    link.remote = link.remote.filter(known);
}

/// What `flags` of an interface say about its type, where nothing says it better: a VRF is a
/// master without ARP (`vrf_setup()`), a bond a master with it.
pub(super) fn by_flags(flags: &[&str]) -> Option<&'static str> {
    let has = |flag| flags.contains(&flag);
    match (has("MASTER"), has("NOARP")) {
        (true, true) => Some("vrf"),
        (true, false) => Some("bond"),
        (false, _) => None,
    }
}

/// A port of `master`, taken for a bridge's until the master's own line says what it is.
pub(super) fn port_of(master: &str, flags: &[&str]) -> Option<Master> {
    let kind = if flags.contains(&"SLAVE") {
        MasterKind::Bond
    } else {
        MasterKind::Bridge
    };
    let name = IfName::new(master).ok()?;
    Some(Master { name, kind })
}
