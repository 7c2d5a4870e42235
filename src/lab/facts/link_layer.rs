//! What rules do below IP, and no lab does.
//!
//! Hosts and routers of a lab are told their neighbours' hardware addresses, so that tables which
//! filter ARP change nothing there: they are omissions for what gets through.
//!
//! A lab has a bridge as one interface and no ports in it, so what rules do by port is not done:
//!
//! - Frames that are bridged meet rules of families bridge and netdev, and with br_netfilter those
//!   of IPv4 and IPv6 as well. [`LinkFacts::filters_bridged`] says so of the bridge.
//! - Packets that are routed, but came in by a bridge or leave by one, meet rules of family bridge
//!   at its own hooks, and those of its ports' devices, of which `device_hooks` tells; with
//!   br_netfilter, rules of IPv4 and IPv6 can ask for the port that they came in by. Each of these is an
//!   omission.
//!
//! [`LinkFacts::filters_bridged`]: crate::lab::topology::LinkFacts::filters_bridged

use std::collections::BTreeSet;

use super::{InterfaceFacts, RouterFacts, device_hooks, firewall, section::Section};
use crate::{
    lab::{
        omission::{
            self, Extent, Filters, Hooks, Omission, OmissionKind, PacketSet, RuleExtent,
            RulesetMaps,
        },
        topology::{At, FrameRules, MasterKind, Ruleset, RulesetKind, Warning},
    },
    model::IfName,
    netlink::object::Family,
};

/// Words of rules that keep a packet from passing, or lead to others that do.
const STOPS: [&str; 7] = ["DROP", "REJECT", " -j ", "drop", "reject", "jump", "queue"];

/// Tells what rules do below IP, above all to what passes the router's bridges.
pub(super) fn model(facts: &mut RouterFacts, sections: &[Section<'_>]) {
    let first = arp(facts).into_iter().chain(device_hooks::doubts(facts));
    let first: Vec<Warning> = first.collect();
    facts.warnings.extend(first);
    let masters = masters(facts);
    let with_ip_rules = meets_ip_rules(facts, sections);
    let rules = rules_of_frames(facts, sections, with_ip_rules);
    mark_filtering(facts, &masters, &rules);
    let flows = by_flows(facts);
    facts.warnings.extend(flows);
    if masters.is_empty() {
        return;
    }
    let mut warnings = by_frames(facts, &masters);
    warnings.extend(held_back(facts, &masters));
    if with_ip_rules {
        warnings.extend(by_port(facts));
    }
    facts.warnings.extend(warnings);
}

/// Bridges that have ports.
fn masters(facts: &RouterFacts) -> BTreeSet<IfName> {
    let masters = facts.interfaces.iter();
    let masters = masters.filter_map(|interface| interface.link.master.as_ref());
    let bridges = masters.filter(|master| master.kind == MasterKind::Bridge);
    bridges.map(|master| master.name.clone()).collect()
}

/// Whether what passes a bridge meets rules of IPv4 and IPv6 as a bridged frame.
fn meets_ip_rules(facts: &RouterFacts, sections: &[Section<'_>]) -> bool {
    let of = |name: &str| sections.iter().find(|section| section.name == name);
    match of("sysctl") {
        Some(settings) => settings.body.iter().any(|(_, line)| {
            let key = line.strip_prefix("net.bridge.bridge-nf-call-ip");
            key.is_some_and(|rest| rest.trim_end().ends_with("= 1"))
        }),
        None => {
            let module = |name| of(name).is_some_and(|s| s.text().contains("br_netfilter"));
            let mut rules = facts.rulesets.iter();
            module("loaded_modules")
                || module("netfilter_modules")
                || rules.any(|rules| rules.text.contains("physdev"))
        }
    }
}

/// The families of whose rules the settings say that bridged frames meet them.
fn surely_called(sections: &[Section<'_>]) -> Vec<Family> {
    let settings = sections.iter().filter(|section| section.name == "sysctl");
    let lines = settings.flat_map(|section| &section.body);
    let is_set = |key: &str| {
        let mut of_key = lines.clone().filter_map(|(_, line)| {
            let (name, value) = line.split_once('=')?;
            (name.trim_end() == key).then(|| value.trim() == "1")
        });
        of_key.next_back() == Some(true)
    };
    let settings = [
        (Family::V4, "net.bridge.bridge-nf-call-iptables"),
        (Family::V6, "net.bridge.bridge-nf-call-ip6tables"),
    ];
    let set = settings.into_iter().filter(|(_, key)| is_set(key));
    set.map(|(family, _)| family).collect()
}

/// What may stop a frame that a bridge hands on; one rule that may match anything, in the place of more than
/// are kept.
fn rules_of_frames(
    facts: &RouterFacts,
    sections: &[Section<'_>],
    with_ip_rules: bool,
) -> FrameRules {
    const MOST: usize = 64;
    let anything = |family| RuleExtent::unknown(family, Hooks::ALL);
    let mut extents = omission::stopping_frames(&facts.rulesets, with_ip_rules);
    // What was left out of the rulesets, and rules that are in none.
    let lost = facts
        .warnings
        .iter()
        .filter_map(|warning| warning.omission.as_ref());
    let lost = lost.filter(|omission| omission.kind.is_of_ruleset());
    let lost = lost.flat_map(|lost| &lost.concern.0);
    let lost = lost.map(|extent| match extent {
        Extent::Rule(rule) => rule.clone(),
        Extent::Packets(packets) => anything(packets.family),
    });
    let lost: Vec<RuleExtent> = lost.collect();
    let below = |s: &&Section<'_>| {
        ["ebtables", "tc", "bpftool"]
            .iter()
            .any(|part| s.name.contains(part))
    };
    let mut below = sections.iter().filter(below);
    let unread = below.any(|section| firewall::unread(section).is_some());
    let whole = lost.is_empty() && !unread && extents.len() <= MOST;
    extents.extend(lost);
    if extents.len() > MOST || unread {
        extents = vec![anything(None)];
    }
    FrameRules {
        extents,
        whole,
        of_ip: with_ip_rules,
        surely_of_ip: surely_called(sections),
    }
}

/// Tells of each bridge whether what it bridges meets rules, and which.
fn mark_filtering(facts: &mut RouterFacts, masters: &BTreeSet<IfName>, rules: &FrameRules) {
    let filters = !rules.is_empty();
    for interface in &mut facts.interfaces {
        let is_bridge = interface.link.kind.as_deref() == Some("bridge");
        let has_ports = masters.contains(&interface.name);
        let link = &mut interface.value.link;
        link.filters_bridged = filters && (is_bridge || has_ports);
        link.tracks_bridged = rules.of_ip && (is_bridge || has_ports);
        if filters && has_ports {
            link.frame_rules = rules.clone();
        }
    }
}

/// Whether a port of a bridge is by its name that of a container or a virtual machine.
pub(in crate::lab) fn is_of_guest(port: &IfName) -> bool {
    const GUESTS: [&str; 7] = ["veth", "vnet", "tap", "fwpr", "fwln", "vif", "cali"];
    GUESTS.iter().any(|start| port.as_str().starts_with(start))
}

fn stops(text: &str) -> bool {
    STOPS.iter().any(|word| text.contains(word))
}

/// Tables of nftables that can keep a neighbour from being found by IPv4.
fn arp(facts: &RouterFacts) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for ruleset in facts.rulesets.iter().filter(|r| r.kind == RulesetKind::Nft) {
        let mut tables = tables(&ruleset.text);
        tables.retain(|table| table.family == "arp" && stops(table.text));
        let may_stop = || Filters::of(std::slice::from_ref(ruleset)).possible_stop_of_arp();
        if tables.is_empty() || may_stop().is_none() {
            continue;
        }
        for table in tables {
            let omission = Omission::of_family(OmissionKind::Feature, Family::V4).of_passed();
            let head = table.head;
            let message = format!("`{head}` filters ARP, which no lab needs to find neighbours");
            warnings.push(warning(facts, ruleset, table.line, message, omission));
        }
    }
    warnings
}

/// Bridges with ports that keep back frames for hosts of whom they were not told, or all. Behind which
/// of several ports a host is, the facts do not say.
fn held_back(facts: &RouterFacts, masters: &BTreeSet<IfName>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for bridge in masters {
        let mut ports = facts.interfaces.iter().filter(|port| {
            let master = port.link.master.as_ref();
            port.up && master.is_some_and(|master| master.name == *bridge)
        });
        let Some((port, how)) = ports.find_map(|port| Some((port, port.link.holds_back.as_ref()?)))
        else {
            continue;
        };
        // What hangs on the bridge passes its ports, too.
        let over = facts.interfaces.iter();
        let over = over.filter(|other| other.link.over.as_ref() == Some(bridge));
        let names = over.map(|other| &other.name).chain([bridge]);
        let packets = names.map(|name| PacketSet::by(name.clone()));
        let omission = Omission::of_packets(OmissionKind::Feature, packets).of_passed();
        let message = format!(
            "{}, a port of {bridge}, keeps frames back ({how}), which no lab does; behind which port \
             hosts are is not known",
            port.name
        );
        let origin = facts.origin(port.line);
        warnings.push(Warning::omission(origin, &facts.name, message, omission));
    }
    warnings
}

/// Devices of Open vSwitch, which decides by its flow table what passes them (ovs-vswitchd(8)).
fn by_flows(facts: &RouterFacts) -> Vec<Warning> {
    let interfaces = facts.interfaces.iter();
    let switches = interfaces.filter(|i| i.link.kind.as_deref() == Some("openvswitch"));
    let doubt = |interface: &At<InterfaceFacts>| {
        let message = format!(
            "{} is a device of Open vSwitch, whose flows are not among the facts",
            interface.name
        );
        let packets = [PacketSet::by(interface.name.clone())];
        let omission = Omission::of_packets(OmissionKind::Feature, packets).of_passed();
        Warning::omission(facts.origin(interface.line), &facts.name, message, omission)
    };
    switches.map(doubt).collect()
}

/// Tables of nftables that see the frames of packets that are routed.
fn by_frames(facts: &RouterFacts, masters: &BTreeSet<IfName>) -> Vec<Warning> {
    let rulesets = facts.rulesets.iter();
    let mut warnings = Vec::new();
    for ruleset in rulesets.filter(|ruleset| ruleset.kind == RulesetKind::Nft) {
        for table in tables(&ruleset.text) {
            if table.family != "bridge" || !table.has_hook_of_routed() || !stops(table.text) {
                continue;
            }
            let by = |bridge: &IfName| PacketSet::by(bridge.clone());
            let omission = Omission::of_packets(OmissionKind::Feature, masters.iter().map(by));
            let message = format!(
                "`{}` sees what comes in or leaves by the ports of a bridge, which no lab has",
                table.head
            );
            warnings.push(warning(facts, ruleset, table.line, message, omission));
        }
    }
    warnings
}

/// Rules that ask for the port of a bridge that a packet came in by. By which it leaves is known of
/// bridged frames alone, xt_physdev(8).
fn by_port(facts: &RouterFacts) -> Vec<Warning> {
    let maps = RulesetMaps::new(&facts.rulesets);
    let mut warnings = Vec::new();
    for ruleset in &facts.rulesets {
        if !matches!(ruleset.kind, RulesetKind::Iptables | RulesetKind::Ip6tables) {
            continue;
        }
        for (at, line) in ruleset.text.lines().enumerate() {
            let asks = line.contains("--physdev-in") || line.contains("--physdev-is-in");
            let bridged =
                line.contains("--physdev-is-bridged") && !line.contains("! --physdev-is-bridged");
            if !asks || bridged {
                continue;
            }
            let omission = Omission {
                kind: OmissionKind::Feature,
                ..maps.omission(ruleset, &[at])
            };
            let message = format!("the ports of bridges, which no lab has, decide: {line}");
            warnings.push(warning(facts, ruleset, at, message, omission));
        }
    }
    warnings
}

/// `at` counts the ruleset's lines from 0.
fn warning(
    facts: &RouterFacts,
    ruleset: &Ruleset,
    at: usize,
    message: String,
    omission: Omission,
) -> Warning {
    let origin = facts.origin(ruleset.origin.line + at);
    Warning::omission(origin, &facts.name, message, omission)
}

/// A table of nft(8).
struct Table<'a> {
    family: &'a str,
    head: &'a str,
    /// Where it begins, counted from 0.
    line: usize,
    text: &'a str,
}

impl Table<'_> {
    /// Whether a chain of family bridge sees more than what is bridged.
    fn has_hook_of_routed(&self) -> bool {
        let hooks = ["prerouting", "input", "output", "postrouting"];
        let mut words = self.text.split_ascii_whitespace();
        std::iter::from_fn(|| {
            words
                .find(|word| *word == "hook")
                .and_then(|_| words.next())
        })
        .any(|hook| hooks.contains(&hook))
    }
}

/// The tables of `nft list ruleset`, each of which begins and ends at the start of a line.
fn tables(text: &str) -> Vec<Table<'_>> {
    let mut found: Vec<Table<'_>> = Vec::new();
    let mut start = 0;
    for (line, content) in text.split_inclusive('\n').enumerate() {
        let end = start + content.len();
        let head = content.trim_end().trim_end_matches('{').trim_end();
        if let Some(rest) = head.strip_prefix("table ") {
            found.push(Table {
                // Without a family it is one of IPv4, nft(8).
                family: rest.split_once(' ').map_or("ip", |(family, _)| family),
                head,
                line,
                text: content,
            });
        } else if let Some(table) = found.last_mut() {
            let from = start - table.text.len();
            table.text = text.get(from..end).unwrap_or_default();
        }
        start = end;
    }
    found
}
