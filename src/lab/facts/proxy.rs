//! Addresses for which a router answers in the place of who has them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{InterfaceFacts, RouterFacts, section::Section};
use crate::{
    lab::topology::{Arp, ProxyAddresses},
    model::IfName,
    netlink::object::{Address, Family, Route, RouteKind},
};

/// What `ip neigh show proxy` prints.
pub(super) const SECTION: &str = "neighbour_proxies";

/// Notes where the router answers for others, or answers for less than all that it has.
///
/// With `proxy_arp` it does for what it reaches by another interface (`arp_fwd_proxy()`), with
/// `proxy_arp_pvlan` for hosts of the same link, and for single addresses where an entry says so:
/// of IPv6 if `proxy_ndp` allows it (`ndisc_recv_ns()`), of IPv4 if another interface leads there.
pub(super) fn model(facts: &mut RouterFacts, sections: &[Section<'_>]) {
    let single = single(sections);
    let mut found = Vec::new();
    for interface in &facts.interfaces {
        let name = &interface.name;
        let number = |family, key| facts.most_of(family, name, key);
        let (elsewhere, here) = reached(facts, name);
        let by_another = ProxyAddresses {
            elsewhere,
            here,
            ..ProxyAddresses::default()
        };
        let own = single.iter().filter(|(_, dev)| dev == name);
        let own = own
            .map(|(address, _)| *address)
            .filter(|address| match address {
                IpAddr::V4(_) => by_another.answers_for(*address),
                IpAddr::V6(_) => number("ipv6", "proxy_ndp") > 0,
            });
        let single = own.collect();
        let proxies = number("ipv4", "proxy_arp") > 0;
        let same_link = number("ipv4", "proxy_arp_pvlan") > 0;
        let proxy = match proxies {
            true => ProxyAddresses {
                single,
                same_link,
                ..by_another
            },
            false => ProxyAddresses {
                single,
                same_link,
                ..ProxyAddresses::default()
            },
        };
        let setting = |key| u8::try_from(number("ipv4", key)).unwrap_or(u8::MAX);
        let arp = Arp {
            ignore: setting("arp_ignore"),
            announce: setting("arp_announce"),
            accept_local: number("ipv4", "accept_local") > 0,
        };
        let strict = number("ipv4", "rp_filter") == 1;
        let hears_from = strict.then(|| hears_from(facts, interface)).flatten();
        found.push((proxy, arp, own_by_route(facts, name), hears_from));
    }
    for (interface, found) in facts.interfaces.iter_mut().zip(found) {
        let link = &mut interface.value.link;
        (link.proxy, link.arp, link.own, link.hears_from) = found;
    }
}

/// Of how many networks that routers ask from a note is kept.
const MOST_HEARD: usize = 64;

/// Where who asks on an interface with strict `rp_filter` may have its address: none where it may be anywhere,
/// as with a route for all of them, or where they are too many to keep.
fn hears_from(facts: &RouterFacts, interface: &InterfaceFacts) -> Option<Vec<IpNet>> {
    let here = reached(facts, &interface.name).1;
    let few = here.len() <= MOST_HEARD && here.iter().all(|net| net.prefix_len() > 0);
    (few || is_unnumbered(interface)).then_some(here)
}

/// Whether an interface has addresses of IPv4, and none with a subnet.
fn is_unnumbered(interface: &InterfaceFacts) -> bool {
    let v4 = || {
        interface
            .addresses
            .iter()
            .filter(|a| a.local.addr().is_ipv4())
    };
    let whole = |address: &Address| address.peer.is_none() && address.local.prefix_len() == 32;
    v4().count() > 0 && v4().all(whole)
}

/// The prefixes that a route of table local makes the router's own.
fn own_by_route(facts: &RouterFacts, name: &IfName) -> Vec<IpNet> {
    let routes = facts.routes.iter().filter(|route| {
        let mut hops = route.next_hops.iter();
        route.table == Route::LOCAL
            && route.kind == RouteKind::Local
            && hops.any(|hop| hop.dev.as_ref() == Some(name))
    });
    routes.map(|route| route.destination).collect()
}

/// What the router reaches of IPv4 by other interfaces than `name`, and what by this one or not at
/// all. Of several tables each counts: which one a question of ARP is looked up in, depends on who
/// asks.
fn reached(facts: &RouterFacts, name: &IfName) -> (Vec<IpNet>, Vec<IpNet>) {
    let (mut elsewhere, mut here) = (Vec::new(), Vec::new());
    for interface in facts.interfaces.iter().filter(|interface| interface.up) {
        for address in interface
            .addresses
            .iter()
            .filter(|a| a.local.addr().is_ipv4())
        {
            let nets = match interface.name == *name {
                true => &mut here,
                false => &mut elsewhere,
            };
            nets.push(address.peer.unwrap_or(address.local).trunc());
        }
    }
    for route in &facts.routes {
        let (destination, table) = (route.destination, route.table);
        if Family::of(destination.addr()) != Family::V4 || table == Route::LOCAL {
            continue;
        }
        let away = |dev: &Option<IfName>| dev.as_ref().is_some_and(|dev| dev != name);
        let leads = route.kind == RouteKind::Unicast;
        match leads && route.next_hops.iter().any(|hop| away(&hop.dev)) {
            true => elsewhere.push(destination),
            false => here.push(destination),
        }
    }
    (elsewhere, here)
}

/// The entries of `ip neigh show proxy`: `2001:db8::9 dev eth0 proxy`.
fn single(sections: &[Section<'_>]) -> Vec<(IpAddr, IfName)> {
    let of = sections.iter().filter(|s| s.name == SECTION);
    let lines = of.flat_map(|section| section.body.iter());
    let entry = |(_, line): &(usize, &str)| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        let mut words = words.skip_while(|word| *word != "dev");
        Some((address, IfName::new(words.nth(1)?).ok()?))
    };
    lines.filter_map(entry).collect()
}
