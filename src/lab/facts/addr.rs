//! `ip addr show`: interfaces with their addresses.

use ipnet::IpNet;

use super::{
    InterfaceFacts, addr_forms, links,
    words::{Words, address_with_len, scope},
};
use crate::{
    lab::topology::{At, InterfaceKind, LinkFacts},
    model::IfName,
    netlink::object::{Address, Mac, Scope},
};

/// What `ip addr show` told, and lines that could not be read with the reason.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) interfaces: Vec<At<InterfaceFacts>>,
    pub(super) refused: Vec<(usize, String)>,
    pub(super) notices: Vec<(usize, String)>,
    /// Interfaces that were up and had no carrier: what leaves by them is lost.
    pub(super) no_carrier: Vec<(usize, IfName)>,
}

/// Reads the whole output; an interface without a readable head takes its addresses with it.
pub(super) fn parse(lines: &[(usize, &str)]) -> Parsed {
    let mut parsed = Parsed::default();
    let mut current = false;
    if let Some((line, _)) = lines.first().filter(|(_, text)| text.starts_with('[')) {
        let whole: Vec<&str> = lines.iter().map(|(_, text)| *text).collect();
        if let Err(reason) = addr_forms::json(*line, &whole.join("\n"), &mut parsed) {
            parsed.refused.push((*line, reason));
        }
        return parsed;
    }
    for &(line, text) in lines {
        let words = &mut Words::new(text);
        let result = if addr_forms::is_oneline(text) {
            current = false;
            addr_forms::oneline(line, text, &mut parsed)
        } else if let Some(brief) = addr_forms::brief(text).filter(|_| !text.starts_with(' ')) {
            current = false;
            brief.map(|interface| parsed.interfaces.push(At::new(line, interface)))
        } else if text.starts_with(|c: char| c.is_ascii_digit()) {
            let head = head(words, line, &mut parsed.notices);
            current = head.is_ok();
            if let Ok(interface) = &head
                && text.contains("NO-CARRIER")
                && interface.up
            {
                parsed.no_carrier.push((line, interface.name.clone()));
            }
            head.map(|interface| parsed.interfaces.push(At::new(line, interface)))
        } else {
            match parsed.interfaces.last_mut().filter(|_| current) {
                Some(interface) => detail(words, &mut interface.value),
                None => Ok(()),
            }
        };
        if let Err(reason) = result {
            parsed.refused.push((line, reason));
        }
    }
    parsed
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
    let name = shown.split_once('@').map_or(shown, |(name, _)| name);
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
            kind: links::by_flags(&flags).map(ToOwned::to_owned),
            ..LinkFacts::default()
        },
    };
    let name = interface.name.clone();
    while let Some(word) = words.next() {
        match word {
            "mtu" => interface.mtu = Some(words.parse(word)?),
            "group" => match addr_forms::group(words.value(word)?) {
                Ok(group) => interface.group = group,
                Err(reason) => notices.push((line, format!("{}: {reason}", interface.name))),
            },
            "master" => {
                let master = words.value(word)?;
                interface.link.master = links::port_of(master, &flags);
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

pub(super) fn kind_of(name: &IfName, flags: &[&str]) -> InterfaceKind {
    if flags.contains(&"LOOPBACK") && name.as_str() == "lo" {
        InterfaceKind::Loopback
    } else if flags.contains(&"POINTOPOINT") {
        InterfaceKind::Tunnel
    } else {
        InterfaceKind::Ethernet
    }
}

fn detail(words: &mut Words<'_>, interface: &mut InterfaceFacts) -> Result<(), String> {
    match words.next() {
        Some("inet" | "inet6") => interface.addresses.push(address(words)?),
        Some("link/ether") => interface.mac = Some(words.parse::<Mac>("link/ether")?),
        Some("link/gre" | "link/ipip" | "link/sit" | "link/tunnel6" | "link/gre6") => {
            interface.kind = InterfaceKind::Tunnel;
            links::outer_addresses(words, &mut interface.link);
        }
        // A loopback-like device with another name is a link of no kind known to us.
        Some(word)
            if word.starts_with("link/")
                && word != "link/loopback"
                && interface.kind == InterfaceKind::Ethernet =>
        {
            interface.kind = InterfaceKind::Tunnel;
        }
        // The link's details, if it was asked for them; valid_lft, altname and the like.
        Some(word) => links::detail(word, words, &mut interface.link),
        None => {}
    }
    Ok(())
}

pub(super) fn address(words: &mut Words<'_>) -> Result<Address, String> {
    let net = |word: &str| {
        address_with_len(word).ok_or_else(|| format!("`{word}` is not an address with prefix"))
    };
    let mut address = Address {
        local: net(words.value("inet")?)?,
        peer: None,
        scope: Scope::Global,
        prefix_route: true,
    };
    while let Some(word) = words.next() {
        match word {
            "peer" => {
                let peer = net(words.value(word)?)?;
                // The kernel keeps one prefix length for both ends.
                address.local = IpNet::new(address.local.addr(), peer.prefix_len())
                    .map_err(|e| e.to_string())?;
                address.peer = Some(peer);
            }
            "scope" => {
                let value = words.value(word)?;
                address.scope =
                    scope(value).ok_or_else(|| format!("scope `{value}` is not known"))?;
            }
            "noprefixroute" => address.prefix_route = false,
            // Flags (secondary, dynamic, …), broadcast address and label.
            _ => {}
        }
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn parsed() -> Parsed {
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
}
