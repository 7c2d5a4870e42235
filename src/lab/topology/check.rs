//! What one router's facts say and no lab can have, found without knowing the other routers.

use std::collections::BTreeSet;

use super::{At, InterfaceKind, Severity, Warning};
use crate::{
    lab::{
        facts::{InterfaceFacts, LostRoute, RouterFacts},
        omission::{self, Omission, OmissionKind},
    },
    model::IfName,
    netlink::object::{Address, Family, PolicyRule, Route, RuleAction, Scope},
};

/// veth devices take an MTU from ETH_MIN_MTU to ETH_MAX_MTU, linux/if_ether.h.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// Facts that can be built, with a warning for each thing that was changed or left out.
pub(super) fn router(mut facts: RouterFacts) -> RouterFacts {
    interfaces(&mut facts);
    unseen_interfaces(&mut facts);
    routes(&mut facts);
    rules(&mut facts);
    lost(&mut facts);
    facts
}

fn warning(facts: &RouterFacts, line: usize, message: String) -> Warning {
    Warning::new(facts.origin(line), &facts.name, message)
}

fn interfaces(facts: &mut RouterFacts) {
    let mut seen: BTreeSet<IfName> = BTreeSet::new();
    let mut kept: Vec<At<InterfaceFacts>> = Vec::new();
    for mut interface in std::mem::take(&mut facts.interfaces) {
        let first = kept.iter().position(|first| first.name == interface.name);
        let first = first.and_then(|at| kept.get_mut(at));
        if seen.insert(interface.name.clone()) {
            interface_values(facts, &mut interface);
            kept.push(interface);
        } else if let Some(first) = first.filter(|first| is_other_family_of(first, &interface)) {
            interface_values(facts, &mut interface);
            first.value.mac = first.value.mac.or(interface.value.mac);
            first.value.addresses.append(&mut interface.value.addresses);
        } else {
            let message = format!("a second interface {}; left out", interface.name);
            let omission = Omission::of_everything(OmissionKind::Interface);
            let origin = facts.origin(interface.line);
            let warning = Warning::omission(origin, &facts.name, message, omission);
            facts.warnings.push(warning);
        }
    }
    facts.interfaces = kept;
}

/// Whether one is what `ip -4 addr` and the other what `ip -6 addr` shows of the same interface.
fn is_other_family_of(one: &InterfaceFacts, other: &InterfaceFacts) -> bool {
    let families = |interface: &InterfaceFacts| -> BTreeSet<Family> {
        let addresses = interface.addresses.iter();
        addresses.map(|a| Family::of(a.local.addr())).collect()
    };
    let (first, second) = (families(one), families(other));
    first.len() <= 1
        && second.len() == 1
        && first != second
        && (one.kind, one.mtu, one.up) == (other.kind, other.mtu, other.up)
}

/// Says that a router whose interfaces are all lost, though its routes name some, may be anywhere, as
/// one without facts.
fn unseen_interfaces(facts: &mut RouterFacts) {
    let loopback = |i: &At<InterfaceFacts>| i.kind == InterfaceKind::Loopback;
    let mut interfaces = facts.interfaces.iter();
    if interfaces.any(|interface| !loopback(interface) && !interface.addresses.is_empty()) {
        return;
    }
    let is_there = |dev: &IfName| facts.interfaces.iter().any(|i| i.name == *dev);
    let main = facts
        .routes
        .iter()
        .filter(|route| route.table == Route::MAIN);
    let mut devices =
        main.flat_map(|route| route.next_hops.iter().filter_map(|hop| hop.dev.as_ref()));
    if let Some(dev) = devices.find(|dev| !is_there(dev)) {
        let message = format!("no interface with an address is shown, and routes name {dev}");
        let omission = Omission::of_everything(OmissionKind::Router);
        let warning = Warning::omission(facts.origin(0), &facts.name, message, omission);
        facts.warnings.push(warning);
    }
}

fn interface_values(facts: &mut RouterFacts, interface: &mut At<InterfaceFacts>) {
    let (line, interface) = (interface.line, &mut interface.value);
    let name = interface.name.clone();
    let mut say = |message: String| facts.warnings.push(warning(facts, line, message));
    if interface.kind == InterfaceKind::Loopback {
        interface.mac = None;
        interface.mtu = None;
    }
    if let Some(mtu) = interface.mtu.filter(|mtu| !MTU.contains(mtu)) {
        interface.mtu = None;
        say(format!(
            "{name}: MTU {mtu} is not from 68 to 65535; 1500 is taken"
        ));
    }
    if let Some(mac) = interface.mac.filter(|mac| !mac.is_usable()) {
        interface.mac = None;
        say(format!(
            "{name}: {mac} cannot be an interface's address; another one is taken"
        ));
    }
    let mut own = BTreeSet::new();
    interface.addresses.retain(|address| {
        let first = own.insert(address.local);
        if !first {
            say(format!(
                "{name}: {} is there twice; once is enough",
                address.local
            ));
        }
        first
    });
    if lacks_link_local(interface) {
        let message = format!(
            "{name} has IPv6 addresses and none of scope link: it cannot find neighbours to forward to"
        );
        let notice = Warning::notice(facts.origin(line), &facts.name, message);
        facts.warnings.push(notice);
    }
    if interface.kind == InterfaceKind::Tunnel {
        let message = format!("{name} is a tunnel; in the lab it is a link");
        let notice = Warning::notice(facts.origin(line), &facts.name, message);
        facts.warnings.push(notice);
    }
}

fn lacks_link_local(interface: &InterfaceFacts) -> bool {
    let is_v6 = |a: &&Address| a.local.addr().is_ipv6();
    let v6 = || interface.addresses.iter().filter(is_v6);
    interface.kind != InterfaceKind::Loopback
        && v6().next().is_some()
        && !v6().any(|a| a.scope == Scope::Link)
}

fn routes(facts: &mut RouterFacts) {
    let mut kept = Vec::new();
    for route in std::mem::take(&mut facts.routes) {
        match unusable(facts, &route) {
            Some(reason) => {
                let message = format!(
                    "route to {} in table {} left out: {reason}",
                    route.destination, route.table
                );
                facts.lost_routes.push(LostRoute {
                    line: route.line,
                    message,
                    route: Some(route.value),
                });
            }
            None => kept.push(route),
        }
    }
    facts.routes = kept;
}

/// Says of each route and policy rule that is left out which packets it concerns, now that the others are known.
fn lost(facts: &mut RouterFacts) {
    let tables = omission::TableRules::of(&facts.rules, &facts.rulesets, &facts.sysctls);
    let made: Vec<&Route> = facts.routes.iter().map(|route| &route.value).collect();
    let left_out = facts
        .lost_routes
        .iter()
        .filter_map(|lost| lost.route.as_ref());
    let named: Vec<&Route> = made.iter().copied().chain(left_out).collect();
    let of_interface = |w: &Warning| {
        let omission = w.omission.as_ref();
        omission.is_some_and(|omission| omission.kind == OmissionKind::Interface)
    };
    let unread = facts.warnings.iter().any(of_interface);
    // That main has one over it shows that the interface did not go: the list of interfaces was cut.
    let is_of_main = |route: &&Route| route.table == Route::MAIN;
    let left_out = facts.lost_routes.iter();
    let of_main = left_out.filter_map(|lost| lost.route.as_ref().filter(is_of_main));
    let still: BTreeSet<&IfName> = of_main.flat_map(devices).collect();
    let mut lost = Vec::new();
    for LostRoute {
        line,
        message,
        route,
    } in &facts.lost_routes
    {
        // A kernel drops the routes over an interface that goes.
        let gone = |route: &&Route| {
            let dev = |dev: &IfName| facts.interfaces.iter().any(|i| i.name == *dev);
            let mut gone = devices(route).filter(|name| !dev(name));
            route.table != Route::MAIN && !unread && gone.any(|name| !still.contains(name))
        };
        let omission = match route {
            Some(route) if gone(&route) => tables.of_route(route, &named, &made).of_passed(),
            Some(route) => tables.of_route(route, &named, &made),
            None => Omission::of_everything(OmissionKind::Route),
        };
        let (origin, message) = (facts.origin(*line), message.clone());
        lost.push(Warning::omission(origin, &facts.name, message, omission));
    }
    for rule in &facts.lost_rules {
        let omission = match rule.of_users {
            true => tables.of_users_rule(&rule.rule),
            false => tables.of_policy_rule(&rule.rule),
        };
        let (origin, message) = (facts.origin(rule.line), rule.message.clone());
        lost.push(Warning::omission(origin, &facts.name, message, omission));
    }
    facts.warnings.append(&mut lost);
    facts.lost_routes.clear();
    facts.lost_rules.clear();
}

/// The interfaces that a route names.
fn devices(route: &Route) -> impl Iterator<Item = &IfName> {
    route.next_hops.iter().filter_map(|hop| hop.dev.as_ref())
}

fn unusable(facts: &RouterFacts, route: &Route) -> Option<String> {
    for dev in devices(route) {
        match facts.interfaces.iter().find(|i| i.name == *dev) {
            None => return Some(format!("the router has no interface {dev}")),
            Some(interface) if !interface.up => return Some(format!("interface {dev} is down")),
            Some(_) => {}
        }
    }
    None
}

fn rules(facts: &mut RouterFacts) {
    let mut notices = Vec::new();
    let tables = omission::TableRules::of(&facts.rules, &facts.rulesets, &facts.sysctls);
    let made: Vec<&Route> = facts.routes.iter().map(|route| &route.value).collect();
    for rule in &facts.rules {
        let origin = facts.origin(rule.line);
        if let RuleAction::Table(table) = rule.action
            && !has_table(facts, rule, table)
        {
            let message = format!("no routes of table {table} are in the facts; taken as empty");
            let omission = tables.of_table(rule, &made);
            let mut warning = Warning::omission(origin.clone(), &facts.name, message, omission);
            if !warning.matters() {
                warning.severity = Severity::Notice;
            }
            notices.push(warning);
        }
        let mut note = |message| {
            notices.push(Warning::notice(origin.clone(), &facts.name, message));
        };
        for dev in [&rule.iif, &rule.oif].into_iter().flatten() {
            if !facts.interfaces.iter().any(|i| i.name == *dev) {
                note(format!(
                    "the router has no interface {dev}: the rule never matches"
                ));
            }
        }
    }
    facts.warnings.append(&mut notices);
}

fn has_table(facts: &RouterFacts, rule: &PolicyRule, table: u32) -> bool {
    const DEFAULT: u32 = 253;
    let own = [Route::LOCAL, Route::MAIN, DEFAULT].contains(&table);
    // Facts without IPv6 routes say nothing about IPv6 tables.
    let v6_unknown =
        rule.family == Family::V6 && !facts.tables.iter().any(|(f, _)| *f == Family::V6);
    own || v6_unknown || facts.tables.contains(&(rule.family, table))
}
