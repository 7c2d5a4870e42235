//! What leads to the other end of a link: `ip -d link show`, `ip neigh show`, `lldpctl`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    InterfaceFacts, RouterFacts, addr, addr_forms, forwarding,
    section::Section,
    vlans, wireguard,
    words::{Words, not_read},
};
use crate::{
    lab::{
        omission::{Omission, OmissionKind, RulesetMaps},
        topology::{At, Heard, InterfaceKind, LinkFacts, MasterKind, Warning},
    },
    model::IfName,
    netlink::object::Mac,
};

const DETAILS: [&str; 4] = ["links", "link_details", "ip_link", "interface_details"];
const LLDP: &str = "lldp";
const NEIGHBOURS: [&str; 6] = [
    "neighbours",
    "neighbors",
    "ip_neigh",
    "arp_table",
    "ipv6_neighbours",
    "ipv6_neighbors",
];

/// Whether the section `name` is read here, or in [`super::proxy`].
pub(super) fn is_section(name: &str) -> bool {
    name == LLDP
        || name == vlans::SECTION
        || name == forwarding::SECTION
        || name == super::proxy::SECTION
        || DETAILS.contains(&name)
        || wireguard::SECTIONS.contains(&name)
        || NEIGHBOURS.contains(&name)
}

/// Adds what `sections` tell about the links of `facts`.
pub(super) fn complete(facts: &mut RouterFacts, sections: &[Section<'_>]) {
    for section in sections {
        if section.exit_code.unwrap_or(0) != 0 {
            continue;
        }
        if DETAILS.contains(&section.name) {
            details(facts, section);
        } else if wireguard::SECTIONS.contains(&section.name) {
            wireguard::read(facts, section);
        } else if NEIGHBOURS.contains(&section.name) {
            neighbours(facts, section);
        } else if section.name == LLDP {
            lldp(facts, section);
        } else if section.name == vlans::SECTION {
            for (line, text) in vlans::read(facts, section) {
                unread(facts, line, text);
            }
        } else if section.name == forwarding::SECTION {
            for (line, text) in forwarding::read(facts, section) {
                unread(facts, line, text);
            }
        }
    }
    wireguard::doubt_untold(facts);
    forget_usual_states(facts);
    masters(facts);
    vlans::tell_speakers(facts);
    groups(facts, sections);
}

/// Where nothing tells the interfaces' groups, or only by names, rules that ask for them match what
/// nobody knows.
fn groups(facts: &mut RouterFacts, sections: &[Section<'_>]) {
    let shows = |s: &&Section<'_>| s.name == "interfaces" || DETAILS.contains(&s.name);
    let lines = sections
        .iter()
        .filter(shows)
        .flat_map(|section| &section.body);
    let groups = lines.flat_map(|(_, line)| {
        let words = line.split(|c: char| c.is_whitespace() || "\":,".contains(c));
        let mut words = words.filter(|word| !word.is_empty());
        std::iter::from_fn(move || {
            words
                .find(|word| *word == "group")
                .and_then(|_| words.next())
        })
    });
    // A VXLAN's is an address.
    let groups = groups.filter(|group| group.parse::<IpAddr>().is_err());
    let mut groups = groups.map(addr_forms::group).peekable();
    if groups.peek().is_some() && groups.all(|group| group.is_ok()) {
        return;
    }
    let asks = |line: &str| line.contains("ifgroup") || line.contains("devgroup");
    let maps = RulesetMaps::new(&facts.rulesets);
    let mut warnings = Vec::new();
    for ruleset in &facts.rulesets {
        for (at, line) in ruleset.text.lines().enumerate().filter(|(_, l)| asks(l)) {
            let omission = Omission {
                kind: OmissionKind::Interface,
                ..maps.omission(ruleset, &[at])
            };
            let line = line.trim();
            let message = format!("the facts do not tell the interfaces' groups: {line}");
            let origin = facts.origin(ruleset.origin.line + at);
            warnings.push(Warning::omission(origin, &facts.name, message, omission));
        }
    }
    facts.warnings.extend(warnings);
}

fn link<'a>(facts: &'a mut RouterFacts, name: &str) -> Option<&'a mut LinkFacts> {
    let interfaces = facts.interfaces.iter_mut();
    let mut named = interfaces.filter(|interface| interface.name.as_str() == name);
    named.next().map(|interface| &mut interface.value.link)
}

fn details(facts: &mut RouterFacts, section: &Section<'_>) {
    let parsed = addr::parse(&section.body);
    for (line, text) in &parsed.unknown {
        unread(facts, *line, text);
    }
    for (line, reason) in &parsed.refused {
        unread(facts, *line, reason);
    }
    for (line, name) in parsed.no_carrier {
        facts.without_carrier(line, name);
    }
    for shown in parsed.interfaces {
        let interfaces = facts.interfaces.iter_mut();
        for interface in interfaces.filter(|known| known.name == shown.name) {
            let interface = &mut interface.value;
            let neighbours = std::mem::take(&mut interface.link.neighbours);
            let fixed = std::mem::take(&mut interface.link.fixed);
            let heard = std::mem::take(&mut interface.link.heard);
            let wireguard = interface.link.wireguard.take();
            let behind = std::mem::take(&mut interface.link.behind);
            let pvid = interface.link.pvid;
            if shown.kind == InterfaceKind::Tunnel {
                interface.kind = InterfaceKind::Tunnel;
            }
            // Brief and one-line forms of `ip addr` leave these out.
            if interface.group == 0 {
                interface.group = shown.group;
            }
            if interface.mtu.is_none() {
                interface.mtu = shown.mtu;
                interface.up &= shown.up;
                interface.mac = interface.mac.or(shown.mac);
            }
            interface.link = LinkFacts {
                neighbours,
                fixed,
                heard,
                wireguard,
                behind,
                pvid,
                ..shown.link.clone()
            };
        }
    }
}

/// Says that a line tells nothing that is understood. What is read here tells which links are
/// joined; one that is not joined is said elsewhere.
fn unread(facts: &mut RouterFacts, line: usize, text: &str) {
    let origin = facts.origin(line);
    let warning = Warning::notice(origin, &facts.name, not_read(text));
    facts.warnings.push(warning);
}

/// `fe80::2 dev swp1 lladdr 52:54:00:02:00:02 router REACHABLE`
fn neighbours(facts: &mut RouterFacts, section: &Section<'_>) {
    for (at, line) in &section.body {
        let mut words = Words::new(line);
        let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        if address.is_none() && !line.trim().is_empty() {
            unread(facts, *at, line);
        }
        let (mut dev, mut mac, mut is_fixed) = (None, None, false);
        while let Some(word) = words.next() {
            match word {
                "dev" => dev = words.next(),
                "lladdr" => mac = words.next().and_then(|word| word.parse::<Mac>().ok()),
                "PERMANENT" => is_fixed = true,
                _ => {}
            }
        }
        if let (Some(address), Some(dev), Some(mac)) = (address, dev, mac)
            && let Some(link) = link(facts, dev)
        {
            link.neighbours.push((address, mac));
            link.fixed.extend(is_fixed.then_some((address, mac)));
        }
    }
}

/// `lldpctl -f keyvalue`: `lldp.swp1.chassis.name=leaf2`, and `lldp.swp1.port.ifname=swp2`, or
/// `lldp.swp1.port.mac=…` and `lldp.swp1.port.descr=swp2`. The name may be a full domain name, of which
/// the router's is the first label. Descriptions may have several lines.
fn lldp(facts: &mut RouterFacts, section: &Section<'_>) {
    let mut heard: Vec<(&str, Heard)> = Vec::new();
    let mut described = false;
    for (at, line) in &section.body {
        let entry = line.split_once('=');
        let entry = entry.and_then(|(key, value)| Some((key.strip_prefix("lldp.")?, value)));
        let Some((key, value)) = entry else {
            if !line.trim().is_empty() && !described {
                unread(facts, *at, line);
            }
            continue;
        };
        described = key.ends_with(".descr");
        if let Some(interface) = key.strip_suffix(".chassis.name") {
            let label = value.split('.').next().unwrap_or(value);
            let router = label.to_owned();
            heard.push((
                interface,
                Heard {
                    router,
                    ..Heard::default()
                },
            ));
            continue;
        }
        let Some((interface, last)) = heard.last_mut() else {
            continue;
        };
        let key = key.strip_prefix(*interface);
        match key.and_then(|key| key.strip_prefix(".port.")) {
            Some("ifname") => last.interface = Some(value.to_owned()),
            Some("descr") if last.interface.is_none() => last.interface = Some(value.to_owned()),
            Some("mac") => last.mac = value.parse().ok(),
            _ => {}
        }
    }
    for (interface, heard) in heard {
        let says = heard.interface.is_some() || heard.mac.is_some();
        if let Some(link) = link(facts, interface).filter(|_| says) {
            link.heard.push(heard);
        }
    }
}

/// Forgets states of ports that bridges set by themselves: of those without a carrier, which is said
/// apart, and those that spanning tree blocks, where hosts are reached by others.
fn forget_usual_states(facts: &mut RouterFacts) {
    let spanning = facts.interfaces.iter().filter(|i| i.link.spans);
    let spanning: BTreeSet<IfName> = spanning.map(|bridge| bridge.name.clone()).collect();
    let usual = |port: &At<InterfaceFacts>| {
        let state = port.link.holds_back.as_ref();
        let master = port.link.master.as_ref();
        state.is_some_and(|how| how.starts_with("state"))
            && (facts.had_no_carrier(&port.name)
                || master.is_some_and(|master| spanning.contains(&master.name)))
    };
    let usual: Vec<bool> = facts.interfaces.iter().map(usual).collect();
    for (port, usual) in facts.interfaces.iter_mut().zip(usual) {
        if usual {
            port.value.link.holds_back = None;
        }
    }
}

/// Tells what the masters are, and gives the ports of a VRF its table.
fn masters(facts: &mut RouterFacts) {
    let links: BTreeMap<IfName, LinkFacts> = facts
        .interfaces
        .iter()
        .map(|interface| (interface.name.clone(), interface.link.clone()))
        .collect();
    for interface in &mut facts.interfaces {
        let ours = |port: &&LinkFacts| {
            let master = port.master.as_ref();
            master.is_some_and(|master| master.name == interface.name)
        };
        let ports: Vec<&LinkFacts> = links.values().filter(ours).collect();
        let isolated = ports.iter().filter(|port| port.isolated).count();
        let held_back = ports.iter().any(|port| port.holds_back.is_some());
        let link = &mut interface.value.link;
        link.isolates = isolated > 1 || held_back && ports.len() > 1;
        let Some(master) = &mut link.master else {
            continue;
        };
        let Some(of) = links.get(&master.name) else {
            continue;
        };
        master.kind = match of.kind.as_deref() {
            Some("vrf") => MasterKind::Vrf,
            Some("bond" | "team") => MasterKind::Bond,
            Some("bridge") => MasterKind::Bridge,
            _ => master.kind,
        };
        if master.kind == MasterKind::Vrf {
            link.vrf_table = link.vrf_table.or(of.vrf_table);
        }
    }
}
