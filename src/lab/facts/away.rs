//! Addresses within a link's subnet of which the router itself says that they are elsewhere.
//!
//! A router on 10.1.0.0/16 may have a route for 10.1.5.0/24 by a tunnel, or by a gateway on the same link: hosts
//! with these addresses are not on the link, though its subnet has them (a VPN's clients with addresses of
//! the LAN, a site that was moved). They come in by that route's way, and who looks for them on the link
//! finds them only where a router answers in their place.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{InterfaceFacts, RouterFacts};
use crate::{
    lab::omission::Nets,
    model::IfName,
    netlink::object::{Family, NextHop, PolicyRule, Route, RouteKind, RuleAction},
};

/// Notes for each interface what of its subnets the router's routes lead elsewhere.
pub(super) fn model(facts: &mut RouterFacts) {
    let of_all = [Family::V4, Family::V6].map(|family| (family, tables_of_all(facts, family)));
    let of_all = BTreeMap::from(of_all);
    let interfaces = facts.interfaces.iter();
    let found = interfaces.map(|interface| routed_away(facts, interface, &of_all));
    let found: Vec<Vec<Nets>> = found.collect();
    for (interface, nets) in facts.interfaces.iter_mut().zip(found) {
        interface.value.link.routed_away = nets;
    }
}

/// The tables that packets of `family` are led by whatever they are.
pub(super) fn tables_of_all(facts: &RouterFacts, family: Family) -> BTreeSet<u32> {
    let selects_all =
        |rule: &PolicyRule| *rule == PolicyRule::new(family, rule.priority, rule.action.clone());
    let rules = facts.rules.iter().filter(|rule| selects_all(&rule.value));
    let tables = rules.filter_map(|rule| match rule.action {
        RuleAction::Table(table) => Some(table),
        _ => None,
    });
    tables.chain([Route::MAIN]).collect()
}

fn routed_away(
    facts: &RouterFacts,
    interface: &InterfaceFacts,
    of_all: &BTreeMap<Family, BTreeSet<u32>>,
) -> Vec<Nets> {
    let subnets = subnets(interface);
    let asked = |route: &Route| match interface.link.vrf_table {
        Some(table) => route.table == table,
        None => {
            let tables = of_all.get(&Family::of(route.destination.addr()));
            tables.is_some_and(|tables| tables.contains(&route.table))
        }
    };
    let narrower = |route: &&Route| {
        let (net, mut subnets) = (route.destination, subnets.iter());
        subnets.any(|subnet| subnet.contains(&net) && *subnet != net)
    };
    // Of two interfaces with one subnet either may have the link, whichever of them a route names.
    let has_link = |dev: &IfName, to: &IpNet| {
        let mut others = facts.interfaces.iter().filter(|other| other.name == *dev);
        let both = |net: &IpNet| net.contains(to) && subnets.contains(net);
        *dev == interface.name || others.any(|other| self::subnets(other).iter().any(both))
    };
    // A gateway that is the destination itself is only another way to say that it is on the link.
    let on_link = |route: &Route, hop: &NextHop| {
        let to = &route.destination;
        let itself = |via| to.prefix_len() == to.max_prefix_len() && via == to.addr();
        let there = hop.dev.as_ref().is_some_and(|dev| has_link(dev, to));
        there && hop.via.is_none_or(itself)
    };
    let routes = facts.routes.iter().map(|route| &route.value);
    let routes = routes.filter(|route| route.kind == RouteKind::Unicast && asked(route));
    let (here, away): (Vec<&Route>, Vec<&Route>) = routes
        .filter(|route| route.from.is_none() && route.tos == 0)
        .filter(narrower)
        .partition(|route| route.next_hops.iter().any(|hop| on_link(route, hop)));
    let away: BTreeSet<IpNet> = away.iter().map(|route| route.destination).collect();
    let nets = away.into_iter().map(|within| Nets {
        within,
        except: here
            .iter()
            .map(|route| route.destination)
            .filter(|net| within.contains(net))
            .collect(),
    });
    nets.collect()
}

/// The networks that are on the link of an interface by its addresses.
fn subnets(interface: &InterfaceFacts) -> Vec<IpNet> {
    let addresses = interface.addresses.iter();
    let nets = addresses.map(|address| address.peer.unwrap_or(address.local).trunc());
    nets.collect()
}
