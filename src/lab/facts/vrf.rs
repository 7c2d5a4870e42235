//! VRFs, as far as policy rules can stand in for them.
//!
//! The kernel of the machine may have VRFs and the lab has none all the same. With one, a packet passes
//! PREROUTING twice, the taps of a job would count and take it twice, and verdicts would depend on the
//! kernel that tsim runs on. `netns-fixtures/kinds/vrf*` has what real ones do.
//!
//! A rule `lookup [l3mdev-table]` looks into the table of the VRF whose port a packet comes in by
//! (Documentation/networking/vrf.rst). Where the table of each VRF is known, a rule `iif PORT lookup
//! TABLE` for each port does the same to whatever the router forwards or takes for itself. What
//! these rules cannot do is an omission:
//!
//! - A packet passes PREROUTING twice and FORWARD and INPUT as if it had come in by the VRF
//!   (`vrf_ip_rcv()`), in the lab it comes in by the port. Rules that name either may match
//!   differently, and rules of PREROUTING may see what they made of it the first time ([`hooks`]).
//! - `rp_filter` looks for the way back without the VRF's table.
//! - What the router itself sends from sockets bound to a VRF.
//! - Addresses of a VRF and its ports are in the VRF's table alone, in the lab in table local, which
//!   all packets ask.
//! - What a route sends out of a VRF's own device is looked up once more, in that VRF's table.
//!
//! Policy rules by incoming interface mean the VRF on some kernels and the port on others, and are left
//! out.

mod hooks;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{LostRule, RouterFacts};
use crate::{
    lab::{
        omission::{Omission, OmissionKind, PacketSet, TableRules},
        topology::{At, MasterKind, Warning},
    },
    model::IfName,
    netlink::object::{PolicyRule, Route, RouteKind, RuleAction, Scope},
};

/// What the reader of rules says of a rule that looks into the table of a VRF.
const UNKNOWN: &str = "policy rule left out: table `[l3mdev-table]` is not known";

/// Puts rules by incoming interface in the place of those that look into the VRFs' tables, and says
/// what these cannot do. Where a table is not known the rules stay left out.
pub(super) fn model(facts: &mut RouterFacts) {
    let ports = ports(facts);
    if ports.is_empty() {
        return;
    }
    by_incoming(facts, &ports);
    let of_vrfs = |lost: &LostRule| lost.message.starts_with(UNKNOWN) && !lost.rule.invert;
    match facts.lost_rules.iter().any(of_vrfs) {
        true => by_ports(facts, &ports),
        false => {
            let message = "ports of VRFs, and no policy rule that looks into the tables of VRFs";
            let omission = Omission::of_packets(OmissionKind::Feature, by_any(&ports));
            omit(facts, 0, message.to_owned(), omission);
        }
    }
    by_device(facts, &ports);
    own_addresses(facts, &ports);
}

/// Leaves out policy rules by an incoming interface that is a VRF or a port of one: Debian's 5.10 and 6.1
/// take packets to have come in by the port, and Documentation/networking/vrf.rst by the VRF.
fn by_incoming(facts: &mut RouterFacts, ports: &BTreeMap<IfName, IfName>) {
    // What one that is left out may match must not be less than on the real router.
    for lost in &mut facts.lost_rules {
        let of_vrf = |iif: &IfName| ports.values().any(|vrf| vrf == iif);
        if lost.rule.iif.as_ref().is_some_and(of_vrf) {
            lost.rule.iif = None;
        }
    }
    for rule in std::mem::take(&mut facts.rules) {
        let concerned = |(port, vrf): &(&IfName, &IfName)| {
            let iif = rule.iif.as_ref();
            iif == Some(port) || iif == Some(vrf)
        };
        let concerned: Vec<IfName> = ports
            .iter()
            .filter(concerned)
            .map(|(port, _)| port.clone())
            .collect();
        for port in &concerned {
            let selectors = match rule.invert {
                // What comes in by the port, whatever else is selected.
                true => PolicyRule::new(rule.family, rule.priority, rule.action.clone()),
                false => rule.value.clone(),
            };
            facts.lost_rules.push(LostRule {
                line: rule.line,
                message: format!(
                    "policy rule left out for {port}, which is a port of a VRF: kernels differ in \
                     whether a packet has come in by that or by the VRF"
                ),
                rule: PolicyRule {
                    iif: Some(port.clone()),
                    ..selectors
                },
                of_users: false,
            });
        }
        if concerned.is_empty() || rule.invert {
            facts.rules.push(rule);
        }
    }
}

fn omit(facts: &mut RouterFacts, line: usize, message: String, omission: Omission) {
    let warning = Warning::omission(facts.origin(line), &facts.name, message, omission);
    facts.warnings.push(warning);
}

/// All packets that come or go by a port.
fn by_any(ports: &BTreeMap<IfName, IfName>) -> impl Iterator<Item = PacketSet> {
    ports.keys().map(|port| PacketSet {
        interface: Some(port.clone()),
        ..PacketSet::default()
    })
}

/// Routes out of a VRF's own device.
fn by_device(facts: &mut RouterFacts, ports: &BTreeMap<IfName, IfName>) {
    let all: Vec<&Route> = facts.routes.iter().map(|at| &at.value).collect();
    let tables = TableRules::of(&facts.rules, &facts.rulesets, &facts.sysctls);
    let unicast = facts
        .routes
        .iter()
        .filter(|route| route.kind == RouteKind::Unicast);
    let told = unicast.filter_map(|route| {
        let mut devs = route.next_hops.iter().filter_map(|hop| hop.dev.as_ref());
        let vrf = devs.find(|dev| ports.values().any(|vrf| vrf == *dev))?;
        let message = format!(
            "route to {} in table {}: it goes on in the table of VRF {vrf}, and in the lab out of \
             {vrf}",
            route.destination, route.table
        );
        Some((route.line, message, tables.of_route(route, &all, &all)))
    });
    let told: Vec<_> = told.collect();
    for (line, message, omission) in told {
        omit(facts, line, message, omission);
    }
}

/// Addresses of VRFs, for packets that come in elsewhere.
fn own_addresses(facts: &mut RouterFacts, ports: &BTreeMap<IfName, IfName>) {
    /// More sets than these are not written down one by one.
    const MOST: usize = 1000;
    let vrf_of = |name: &IfName| {
        let is_vrf = ports.values().any(|vrf| vrf == name);
        ports.get(name).or(is_vrf.then_some(name)).cloned()
    };
    let names = facts
        .interfaces
        .iter()
        .map(|interface| interface.name.clone());
    let others: Vec<(IfName, Option<IfName>)> =
        names.map(|name| (name.clone(), vrf_of(&name))).collect();
    let inside = facts
        .interfaces
        .iter()
        .filter_map(|i| Some((vrf_of(&i.name)?, i)));
    let addresses: Vec<(IfName, IpNet)> = inside
        .flat_map(|(vrf, interface)| {
            let own = interface
                .addresses
                .iter()
                .filter(|a| a.scope != Scope::Link);
            own.map(move |address| (vrf.clone(), IpNet::from(address.local.addr())))
        })
        .collect();
    let many = addresses.len() * others.len() > MOST;
    let packets = addresses.iter().flat_map(|(vrf, own)| {
        let elsewhere = others
            .iter()
            .filter(move |(_, of)| of.as_ref() != Some(vrf));
        let incoming = elsewhere.map(|(name, _)| Some(name.clone()));
        let incoming: Vec<_> = if many { vec![None] } else { incoming.collect() };
        incoming.into_iter().map(|incoming| PacketSet {
            incoming,
            ..PacketSet::to(*own)
        })
    });
    let packets: Vec<PacketSet> = packets.collect();
    if !packets.is_empty() {
        let message = "addresses of VRFs are the router's own only within their VRF, in the lab for \
                       all packets";
        let omission = Omission::of_packets(OmissionKind::Feature, packets);
        omit(facts, 0, message.to_owned(), omission);
    }
}

/// Puts rules by port in the place of those that look into the VRFs' tables.
fn by_ports(facts: &mut RouterFacts, ports: &BTreeMap<IfName, IfName>) {
    let tables: Option<Vec<(IfName, u32)>> = ports
        .iter()
        .map(|(port, vrf)| Some((port.clone(), table(facts, vrf, ports)?)))
        .collect();
    let Some(tables) = tables else {
        return;
    };
    let lost = std::mem::take(&mut facts.lost_rules);
    let (of_vrfs, others) = lost
        .into_iter()
        .partition(|rule| rule.message.starts_with(UNKNOWN) && !rule.rule.invert);
    facts.lost_rules = others;
    for lost in of_vrfs {
        for (port, table) in &tables {
            let rule = PolicyRule {
                iif: Some(port.clone()),
                action: RuleAction::Table(*table),
                ..lost.rule.clone()
            };
            facts.rules.push(At::new(lost.line, rule));
        }
        say(facts, lost.line, ports);
    }
    // Rules of one priority keep their order; the new ones stand behind those of the facts.
    facts.rules.sort_by_key(|rule| rule.priority);
}

/// The ports of all VRFs with these.
fn ports(facts: &RouterFacts) -> BTreeMap<IfName, IfName> {
    let interfaces = facts.interfaces.iter();
    let of_vrf = interfaces.filter_map(|interface| {
        let master = interface.link.master.as_ref()?;
        let port = (interface.name.clone(), master.name.clone());
        (master.kind == MasterKind::Vrf).then_some(port)
    });
    of_vrf.collect()
}

/// The table of `vrf`: as `ip -d link` has it, or else the only one, beside main, whose routes on
/// the link are all out of its ports.
fn table(facts: &RouterFacts, vrf: &IfName, ports: &BTreeMap<IfName, IfName>) -> Option<u32> {
    let mut named = facts.interfaces.iter().filter(|i| i.name == *vrf);
    if let Some(table) = named.next().and_then(|i| i.link.vrf_table) {
        return Some(table);
    }
    let own = |dev: &IfName| ports.get(dev) == Some(vrf);
    let mut inside = BTreeSet::new();
    let mut outside = BTreeSet::from([Route::MAIN, Route::LOCAL, Route::DEFAULT]);
    for route in &facts.routes {
        let on_link = route.next_hops.iter().filter(|hop| hop.via.is_none());
        for dev in on_link.filter_map(|hop| hop.dev.as_ref()) {
            let tables = if own(dev) { &mut inside } else { &mut outside };
            tables.insert(route.table);
        }
    }
    let mut only = inside.difference(&outside);
    only.next().copied().filter(|_| only.next().is_none())
}

/// Says what the rules cannot do.
fn say(facts: &mut RouterFacts, line: usize, ports: &BTreeMap<IfName, IfName>) {
    let named = |text: &str| {
        ports
            .iter()
            .any(|(port, vrf)| names(text, port) || names(text, vrf))
    };
    // What tells a VRF's device from its port without a name, or asks its table for the way back.
    let otherwise = [
        "iifkind", "oifkind", "iifgroup", "oifgroup", "devgroup", "sdif", "rpfilter", "fib ",
        "addrtype",
    ];
    let tells = |text: &str| named(text) || otherwise.iter().any(|word| text.contains(word));
    let by_rules = hooks::tell_incoming(&facts.rulesets, tells);
    let twice = hooks::differ_the_second_time(&facts.rulesets);
    let filtered = facts.sysctls.iter().any(|(key, value)| {
        key.starts_with("net/ipv4/conf/") && key.ends_with("/rp_filter") && value != "0"
    });
    let doubt = match (by_rules, twice, filtered) {
        (true, ..) => {
            "rules of its firewall name a VRF or a port of one, or ask for more of them, which are \
             told apart differently"
        }
        (false, true, _) => {
            "what comes in meets PREROUTING twice, where its rules see the second time what they did \
             the first time"
        }
        (false, false, true) => "rp_filter looks for the way back without the tables of VRFs",
        (false, false, false) => {
            let message = "VRFs are made of rules by incoming interface";
            let notice = Warning::notice(facts.origin(line), &facts.name, message);
            facts.warnings.push(notice);
            return;
        }
    };
    let omission = Omission::of_packets(OmissionKind::Feature, by_any(ports));
    let message = format!("VRFs are made of rules by incoming interface, and {doubt}");
    omit(facts, line, message, omission);
}

/// Whether a ruleset may name the interface: by its name, or by a pattern.
pub(super) fn names(text: &str, interface: &IfName) -> bool {
    let mut words = text.split(|c: char| c.is_ascii_whitespace() || "\",{}!".contains(c));
    words.any(|word| {
        let stem = word.strip_suffix(['+', '*']);
        word == interface.as_str()
            || stem.is_some_and(|stem| interface.as_str().starts_with(stem) && is_name(stem))
    })
}

fn is_name(stem: &str) -> bool {
    stem.chars()
        .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}
