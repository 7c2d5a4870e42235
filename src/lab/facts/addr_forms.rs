//! `ip -o addr` and `ip -br addr`: the same interfaces in other forms.

use ipnet::IpNet;

use super::{
    InterfaceFacts,
    words::{Words, address_with_len, scope},
};
use crate::{
    lab::topology::{At, InterfaceKind, LinkFacts},
    model::IfName,
    netlink::object::{Address, Scope},
};

/// What `ip addr show` told, and lines that could not be read with the reason.
#[derive(Debug, Default)]
pub(super) struct ParsedAddresses<'a> {
    pub(super) interfaces: Vec<At<InterfaceFacts>>,
    pub(super) refused: Vec<(usize, String)>,
    pub(super) notices: Vec<(usize, String)>,
    /// Lines of a kind that is not known.
    pub(super) unknown: Vec<(usize, &'a str)>,
    /// Interfaces that were up and had no carrier: what leaves by them is lost.
    pub(super) no_carrier: Vec<(usize, IfName)>,
    /// Addresses that the kernel has and does not use.
    pub(super) unused: Vec<(usize, IpNet)>,
}

/// An address as it is shown.
#[derive(Debug)]
pub(super) struct ShownAddress {
    address: Address,
    /// Whether IPv6 found another machine with it: the router neither takes packets for it nor
    /// answers neighbours (RFC 4862). One that is `tentative` alone is good a second later.
    is_unused: bool,
}

impl ShownAddress {
    /// Gives the address to `interface`, or returns it where it is not used.
    pub(super) fn add(self, interface: &mut InterfaceFacts) -> Option<IpNet> {
        if self.is_unused {
            return Some(self.address.local);
        }
        interface.addresses.push(self.address);
        None
    }
}

impl ParsedAddresses<'_> {
    /// The same of text that does not last: what was not understood of it is refused.
    pub(super) fn without_texts<'b>(self) -> ParsedAddresses<'b> {
        let mut refused = self.refused;
        let unknown = self.unknown.iter();
        refused.extend(unknown.map(|(line, text)| (*line, format!("this is not known: {text}"))));
        ParsedAddresses {
            interfaces: self.interfaces,
            refused,
            notices: self.notices,
            unknown: Vec::new(),
            no_carrier: self.no_carrier,
            unused: self.unused,
        }
    }
}

/// An interface of which only the name is known.
fn named(name: &str) -> Result<InterfaceFacts, String> {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let name = IfName::new(name).map_err(|e| e.to_string())?;
    let loopback = name.as_str() == "lo";
    Ok(InterfaceFacts {
        kind: match loopback {
            true => InterfaceKind::Loopback,
            false => InterfaceKind::Ethernet,
        },
        name,
        mac: None,
        mtu: None,
        up: true,
        group: 0,
        addresses: Vec::new(),
        segment: None,
        link: LinkFacts::default(),
    })
}

/// `2: eth0    inet 10.1.0.1/24 brd 10.1.0.255 scope global eth0\       valid_lft …`, which does
/// not say whether the interface is up.
pub(super) fn is_oneline(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().take(3).collect();
    matches!(words[..], [index, name, "inet" | "inet6"]
        if index.ends_with(':') && !name.ends_with(':'))
}

/// Adds an address in that form.
pub(super) fn oneline(
    line: usize,
    text: &str,
    parsed: &mut ParsedAddresses<'_>,
) -> Result<(), String> {
    let text = text.split('\\').next().unwrap_or(text);
    let mut words = Words::new(text);
    words.next();
    let interface = named(words.value("the index")?)?;
    words.next();
    let address = address(&mut words)?;
    let mut known = parsed.interfaces.iter();
    let known = known.position(|known| known.name == interface.name);
    let at = known.unwrap_or(parsed.interfaces.len());
    if known.is_none() {
        parsed.interfaces.push(At::new(line, interface));
    }
    let interface = parsed.interfaces.get_mut(at);
    let unused = interface.and_then(|interface| address.add(&mut interface.value));
    parsed.unused.extend(unused.map(|unused| (line, unused)));
    Ok(())
}

/// `eth0@if5         UP             10.1.0.1/24 fe80::1/64`
pub(super) fn brief(text: &str) -> Option<Result<InterfaceFacts, String>> {
    const STATES: [&str; 7] = [
        "UP",
        "DOWN",
        "UNKNOWN",
        "LOWERLAYERDOWN",
        "DORMANT",
        "TESTING",
        "NOTPRESENT",
    ];
    let words: Vec<&str> = text.split_whitespace().collect();
    let [name, state, rest @ ..] = words.as_slice() else {
        return None;
    };
    STATES.contains(state).then(|| {
        let mut interface = named(name)?;
        interface.up = matches!(*state, "UP" | "UNKNOWN" | "DORMANT");
        let mut rest = rest.iter().peekable();
        while let Some(word) = rest.next() {
            let net = |word: &str| {
                address_with_len(word).ok_or_else(|| format!("`{word}` is not an address"))
            };
            let mut address = Address::new(net(word)?);
            if rest.next_if(|word| **word == "peer").is_some() {
                let peer = net(rest.next().copied().unwrap_or_default())?;
                address.local = IpNet::new(address.local.addr(), peer.prefix_len())
                    .map_err(|e| e.to_string())?;
                address.peer = Some(peer);
            }
            if matches!(address.local, IpNet::V6(net) if net.addr().is_unicast_link_local()) {
                address.scope = Scope::Link;
            }
            interface.addresses.push(address);
            while rest.next_if(|word| **word == "metric").is_some() {
                rest.next();
            }
        }
        Ok(interface)
    })
}

/// An address with what stands behind it, as `ip addr` shows it behind `inet` or `inet6`.
pub(super) fn address(words: &mut Words<'_>) -> Result<ShownAddress, String> {
    let net = |word: &str| {
        address_with_len(word).ok_or_else(|| format!("`{word}` is not an address with prefix"))
    };
    let mut address = Address {
        local: net(words.value("inet")?)?,
        peer: None,
        scope: Scope::Global,
        prefix_route: true,
    };
    let mut is_unused = false;
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
            "dadfailed" => is_unused = true,
            // Other flags (secondary, dynamic, …), broadcast address and label.
            _ => {}
        }
    }
    Ok(ShownAddress { address, is_unused })
}

/// An interface's group by name or number; /etc/iproute2/group has no other name by default.
pub(super) fn group(word: &str) -> Result<u32, String> {
    match word {
        "default" => Ok(0),
        number => number
            .parse()
            .map_err(|_| format!("group `{number}` has no number that the facts tell")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::addr::parse;

    fn shown(text: &str) -> Vec<(String, bool, u32, Vec<String>)> {
        let lines: Vec<_> = (1..).zip(text.lines()).collect();
        let parsed = parse(&lines);
        assert_eq!(parsed.refused, []);
        let one = |i: &super::InterfaceFacts| {
            let addresses = i.addresses.iter().map(|a| a.local.to_string());
            (i.name.to_string(), i.up, i.group, addresses.collect())
        };
        parsed.interfaces.iter().map(|at| one(&at.value)).collect()
    }

    #[test]
    fn every_form_tells_the_same() {
        let want = |group| {
            let text = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
            vec![
                ("lo".to_owned(), true, 0, text(&["127.0.0.1/8"])),
                (
                    "eth0".to_owned(),
                    true,
                    group,
                    text(&["10.1.0.1/24", "fe80::1/64"]),
                ),
            ]
        };
        let full = "1: lo: <LOOPBACK,UP> mtu 65536 group default\n    inet 127.0.0.1/8 scope host lo\n\
            2: eth0@if3: <UP,LOWER_UP> mtu 1500 group 2 qlen 1000\n    inet 10.1.0.1/24 scope global \
            eth0\n    inet6 fe80::1/64 scope link\n";
        let oneline = "1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever\n\
            2: eth0    inet 10.1.0.1/24 brd 10.1.0.255 scope global eth0\\       valid_lft forever\n\
            2: eth0    inet6 fe80::1/64 scope link \\       valid_lft forever\n";
        let brief = "lo               UNKNOWN        127.0.0.1/8\n\
            eth0@if3         UP             10.1.0.1/24 fe80::1/64\n";
        let json = r#"[{"ifname":"lo","flags":["LOOPBACK","UP"],"mtu":65536,"group":"default",
            "link_type":"loopback","address":"00:00:00:00:00:00","addr_info":[{"family":"inet",
            "local":"127.0.0.1","prefixlen":8,"scope":"host"}]},{"ifname":"eth0","flags":["UP"],
            "mtu":1500,"group":"2","link_type":"ether","address":"02:00:00:00:00:01","addr_info":[
            {"local":"10.1.0.1","prefixlen":24,"scope":"global"},
            {"local":"fe80::1","prefixlen":64,"scope":"link"}]}]"#;
        assert_eq!(shown(full), want(2));
        assert_eq!(shown(oneline), want(0));
        assert_eq!(shown(brief), want(0));
        assert_eq!(shown(json), want(2));
    }
}
