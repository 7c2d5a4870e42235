//! `ip addr show`: interfaces with their addresses.

use ipnet::IpNet;

use super::{
    InterfaceFacts,
    addr_forms::{self, ParsedAddresses, ShownAddress, address},
    ip_json, link_types,
    words::Words,
};
use crate::{
    lab::topology::{At, InterfaceKind, LinkFacts},
    model::IfName,
    netlink::object::Mac,
};

/// Reads the whole output; an interface without a readable head takes its addresses with it.
pub(super) fn parse<'a>(lines: &[(usize, &'a str)]) -> ParsedAddresses<'a> {
    let mut parsed = ParsedAddresses::default();
    let mut below = Below::Nothing;
    if ip_json::is_json(lines) {
        return of_json(lines);
    }
    for &(line, text) in lines {
        let words = &mut Words::new(text);
        let result = if addr_forms::is_oneline(text) {
            below = Below::Nothing;
            addr_forms::oneline(line, text, &mut parsed)
        } else if let Some(brief) = addr_forms::brief(text).filter(|_| !text.starts_with(' ')) {
            below = Below::Nothing;
            brief.map(|interface| parsed.interfaces.push(At::new(line, interface)))
        } else if text.starts_with(|c: char| c.is_ascii_digit()) {
            let head = head(words, line, &mut parsed.notices);
            below = match head {
                Ok(_) => Below::Interface,
                Err(_) => Below::Refused,
            };
            if let Ok(interface) = &head
                && text.contains("NO-CARRIER")
                && interface.up
            {
                parsed.no_carrier.push((line, interface.name.clone()));
            }
            head.map(|interface| parsed.interfaces.push(At::new(line, interface)))
        } else if text.starts_with('#') {
            // Somebody's note; what is indented below belongs to nothing.
            below = Below::Nothing;
            parsed.unknown.push((line, text));
            Ok(())
        } else if !text.starts_with([' ', '\t']) && !text.is_empty() {
            below = Below::Refused;
            Err(format!("no interface begins so: {text}"))
        } else {
            match (below, parsed.interfaces.last_mut()) {
                _ if is_strange(text) && !tells(text) => {
                    parsed.unknown.push((line, text));
                    Ok(())
                }
                (Below::Refused, _) => Ok(()),
                _ if is_strange(text) => Err(format!("this is not known: {}", text.trim())),
                (Below::Interface, Some(interface)) => {
                    let shown = detail(words, &mut interface.value);
                    shown.map(|shown| {
                        let shown = shown.and_then(|shown| shown.add(&mut interface.value));
                        parsed.unused.extend(shown.map(|unused| (line, unused)));
                    })
                }
                _ => Err(format!("it stands below no interface: {}", text.trim())),
            }
        };
        if let Err(reason) = result {
            parsed.refused.push((line, reason));
        }
    }
    parsed
}

/// Reads `ip -j addr show`, written out as it shows interfaces without `-j`.
fn of_json<'a>(lines: &[(usize, &str)]) -> ParsedAddresses<'a> {
    match ip_json::read(lines, ip_json::interface) {
        Ok(shown) => {
            let shown: Vec<(usize, &str)> = shown
                .iter()
                .map(|(line, text)| (*line, text.as_str()))
                .collect();
            parse(&shown).without_texts()
        }
        Err(refused) => ParsedAddresses {
            refused: vec![refused],
            ..ParsedAddresses::default()
        },
    }
}

/// What the lines behind belong to.
#[derive(Debug, Clone, Copy)]
enum Below {
    Nothing,
    Interface,
    /// An interface that could not be read, which is said already.
    Refused,
}

/// What lines below an interface begin with that says nothing about where packets go; counters
/// are numbers alone.
const SAYS_NOTHING: [&str; 12] = [
    "valid_lft",
    "altname",
    "alias",
    "vf",
    "RX:",
    "TX:",
    "RX",
    "TX",
    "permaddr",
    "parentbus",
    "prog/xdp",
    "link-netnsid",
];

/// Whether a line below an interface is of a kind that is not known.
fn is_strange(text: &str) -> bool {
    let first = text.split_ascii_whitespace().next().unwrap_or_default();
    let known = first.is_empty()
        || matches!(first, "inet" | "inet6")
        || first.starts_with("link/")
        || text.split_ascii_whitespace().all(is_count)
        || SAYS_NOTHING.contains(&first)
        || link_types::is_kind(first);
    !known
}

/// A counter of `ip -s`, in full or as `ip -h` rounds it: `1234`, `1.23M`.
fn is_count(word: &str) -> bool {
    let number = word.trim_end_matches(['i', 'k', 'K', 'M', 'G', 'T']);
    number.parse::<f64>().is_ok()
}

/// Whether a line has an address or the kind of an interface somewhere.
fn tells(text: &str) -> bool {
    let mut words = text.split_ascii_whitespace();
    words.any(|word| {
        let is_address = word.parse::<IpNet>().is_ok();
        is_address || matches!(word, "inet" | "inet6") || word.starts_with("link/")
    })
}

/// `2: eth0@if5: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 … master br0 …`
fn head(
    words: &mut Words<'_>,
    line: usize,
    notices: &mut Vec<(usize, String)>,
) -> Result<InterfaceFacts, String> {
    words.next();
    let shown = words.value("the index")?.trim_end_matches(':');
    // Behind the `@` stands the link below, or the index of the peer.
    let (name, below) = shown.split_once('@').unwrap_or((shown, ""));
    let name = IfName::new(name).map_err(|e| e.to_string())?;
    let flags = words.value("the name")?;
    let flags: Vec<&str> = flags.trim_matches(['<', '>']).split(',').collect();
    let mut interface = InterfaceFacts {
        kind: kind_of(&name, &flags),
        name,
        mac: None,
        mtu: None,
        up: flags.contains(&"UP"),
        group: 0,
        addresses: Vec::new(),
        segment: None,
        link: LinkFacts {
            kind: link_types::by_flags(&flags).map(ToOwned::to_owned),
            no_arp: is_without_arp(&flags),
            over: IfName::new(below).ok(),
            ..LinkFacts::default()
        },
    };
    let name = interface.name.clone();
    while let Some(word) = words.next() {
        match word {
            // `xdp/id:15`, `xdpgeneric/id:15`; older ones without the program's number.
            word if word.starts_with("xdp") => interface.link.xdp = true,
            "mtu" => interface.mtu = Some(words.parse(word)?),
            "group" => match addr_forms::group(words.value(word)?) {
                Ok(group) => interface.group = group,
                Err(reason) => notices.push((line, format!("{}: {reason}", interface.name))),
            },
            "master" => {
                let master = words.value(word)?;
                interface.link.master = link_types::port_of(master, &flags);
                notices.push((
                    line,
                    format!("{name} is a port of {master}; in the lab it is a link of its own"),
                ));
            }
            _ => {}
        }
    }
    Ok(interface)
}

/// Whether a link asks for no neighbours. A VRF has none to ask for.
pub(super) fn is_without_arp(flags: &[&str]) -> bool {
    flags.contains(&"NOARP") && !flags.contains(&"MASTER")
}

pub(super) fn kind_of(name: &IfName, flags: &[&str]) -> InterfaceKind {
    if flags.contains(&"LOOPBACK") && name.as_str() == "lo" {
        InterfaceKind::Loopback
    } else if flags.contains(&"POINTOPOINT") {
        InterfaceKind::Tunnel
    } else {
        InterfaceKind::Ethernet
    }
}

/// A type of links by its name, where `ip -N` prints its number (`ARPHRD_*`, linux/if_arp.h).
fn with_named_link(word: &str) -> &str {
    match word {
        "link/[1]" => "link/ether",
        "link/[768]" => "link/ipip",
        "link/[769]" => "link/tunnel6",
        "link/[772]" => "link/loopback",
        "link/[776]" => "link/sit",
        "link/[778]" => "link/gre",
        "link/[823]" => "link/gre6",
        other => other,
    }
}

/// Reads a line below an interface; returns the address that it shows.
fn detail(
    words: &mut Words<'_>,
    interface: &mut InterfaceFacts,
) -> Result<Option<ShownAddress>, String> {
    match words.next().map(with_named_link) {
        Some("inet" | "inet6") => return address(words).map(Some),
        Some("link/ether") => interface.mac = Some(words.parse::<Mac>("link/ether")?),
        Some("link/gre" | "link/ipip" | "link/sit" | "link/tunnel6" | "link/gre6") => {
            interface.kind = InterfaceKind::Tunnel;
            link_types::outer_addresses(words, &mut interface.link);
        }
        // A loopback-like device with another name is a link of no kind known to us.
        Some(word)
            if word.starts_with("link/")
                && word != "link/loopback"
                && interface.kind == InterfaceKind::Ethernet =>
        {
            interface.kind = InterfaceKind::Tunnel;
        }
        Some("prog/xdp") => interface.link.xdp = true,
        // The link's details, if it was asked for them; valid_lft, altname and the like.
        Some(word) => link_types::detail(word, words, &mut interface.link),
        None => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::object::Scope;

    const OUTPUT: &str = "\
1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default qlen 1000
    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00
    inet 127.0.0.1/8 scope host lo
       valid_lft forever preferred_lft forever
2: eth0.10@eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc noqueue state UP
    link/ether 52:54:00:12:34:01 brd ff:ff:ff:ff:ff:ff link-netnsid 0
    inet 203.0.113.10/24 brd 203.0.113.255 scope global noprefixroute eth0.10
    inet6 fe80::1/64 scope link
3: eth1: <NO-CARRIER,BROADCAST,MULTICAST> mtu 9000 qdisc noop master br0 state DOWN
    link/ether 52:54:00:12:34:02 brd ff:ff:ff:ff:ff:ff
    altname enp3s0
4: wg0: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1420 qdisc noqueue state UNKNOWN
    link/none
    inet 10.0.0.1 peer 10.0.0.2/32 scope global wg0
5: dummy: <BROADCAST,NOARP,UP> mtu 1500
    link/ether 52:54:00:12:34:zz brd ff:ff:ff:ff:ff:ff
    inet 10.0.0.1/99 scope global dummy
6: a/b: <UP> mtu 1500
    inet 10.9.0.1/24 scope global x
";

    fn parsed() -> ParsedAddresses<'static> {
        let lines: Vec<_> = (11..).zip(OUTPUT.lines()).collect();
        parse(&lines)
    }

    #[test]
    fn interfaces_are_read_with_names_kinds_and_states() {
        let found: Vec<_> = parsed()
            .interfaces
            .iter()
            .map(|i| (i.line, i.name.as_str().to_owned(), i.kind, i.up, i.mtu))
            .collect();
        let want = [
            (11, "lo", InterfaceKind::Loopback, true, Some(65536)),
            (15, "eth0.10", InterfaceKind::Ethernet, true, Some(1500)),
            (19, "eth1", InterfaceKind::Ethernet, false, Some(9000)),
            (22, "wg0", InterfaceKind::Tunnel, true, Some(1420)),
            (25, "dummy", InterfaceKind::Ethernet, true, Some(1500)),
        ]
        .map(|(line, name, kind, up, mtu)| (line, name.to_owned(), kind, up, mtu));
        assert_eq!(found, want);
    }

    #[test]
    fn addresses_keep_scope_peer_and_noprefixroute() {
        let interfaces = parsed().interfaces;
        let eth = &interfaces[1].addresses;
        assert_eq!(eth[0].local.to_string(), "203.0.113.10/24");
        assert!(!eth[0].prefix_route);
        assert_eq!((eth[1].scope, eth[1].prefix_route), (Scope::Link, true));
        let wg = &interfaces[3].addresses[0];
        assert_eq!(wg.local.to_string(), "10.0.0.1/32");
        assert_eq!(wg.peer.unwrap().to_string(), "10.0.0.2/32");
        assert_eq!(interfaces[1].mac.unwrap().to_string(), "52:54:00:12:34:01");
    }

    #[test]
    fn what_cannot_be_read_is_named_by_line() {
        let lines: Vec<_> = parsed().refused.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [26, 27, 28]);
        let text = &parsed().refused[2].1;
        assert!(text.contains("a/b"), "{text}");
        let notices: Vec<_> = parsed().notices.iter().map(|(line, _)| *line).collect();
        assert_eq!(notices, [19]);
    }

    #[test]
    fn a_line_of_no_known_kind_is_said_and_takes_no_address_to_another_interface() {
        let text = "2: eth0: <UP> mtu 1500\n    inet 10.0.0.1/24 scope global\n    x inet 10.0.1.1/24\n    \
            colour green\nx 3: eth1: <UP> mtu 1500\n    inet 10.0.2.1/24 scope global\n";
        let lines: Vec<_> = (1..).zip(text.lines()).collect();
        let parsed = parse(&lines);
        let refused: Vec<_> = parsed.refused.iter().map(|(line, _)| *line).collect();
        assert_eq!(refused, [3, 5]);
        assert_eq!(parsed.unknown, [(4, "    colour green")]);
        assert_eq!(parsed.interfaces[0].addresses.len(), 1);
    }
}
