//! Who asks for a router by ARP and is not answered.
//!
//! A question of ARP is looked up as a packet from who asks to the address that is asked for, without a
//! mark, protocol or ports (`arp_process()`). With `rp_filter` the way back to who asks is sought, too, and
//! from that address (`fib_validate_source()`): policy rules may lead it elsewhere, or nowhere, although
//! packets of others come in well by that interface. `arp_filter` seeks the same way (`arp_filter()`). With
//! `arp_ignore` 2 only who is in the subnet of the address is answered, and with 3 nobody for an address of
//! scope host (`inet_confirm_addr()`).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{InterfaceFacts, RouterFacts};
use crate::{
    lab::{
        omission::{Nets, Omission, OmissionKind, PacketSet},
        topology::{At, MasterKind, Warning},
    },
    model::IfName,
    netlink::object::{Address, Family, PolicyRule, Route, RouteKind, RuleAction, Scope},
};

/// Tells on which interfaces the router may not answer.
pub(super) fn warnings(facts: &RouterFacts, interface: &At<InterfaceFacts>) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut warn = |message: String, packets: Vec<PacketSet>| {
        let omission = Omission::of_packets(OmissionKind::Feature, packets).of_passed();
        let origin = facts.origin(interface.line);
        found.push(Warning::omission(origin, &facts.name, message, omission));
    };
    if let Some(message) = unfound(facts, interface) {
        warn(message, vec![comes_in(&interface.name)]);
    }
    let name = &interface.name;
    let ignore = facts.most_of("ipv4", name, "arp_ignore");
    let of_host = |own: &&Address| own.local.addr().is_ipv4() && own.scope == Scope::Host;
    if let Some(own) = interface
        .addresses
        .iter()
        .find(of_host)
        .filter(|_| ignore == 3)
    {
        let address = own.local.addr();
        let message = format!(
            "arp_ignore is 3, and {address} of {name} has scope host: nobody finds the router by it"
        );
        warn(message, vec![comes_in(name)]);
    }
    let strangers = strangers(facts, interface);
    if ignore == 2 && !strangers.is_empty() {
        let nets = strangers.iter();
        let nets: Vec<String> = nets.map(|net| net.within.to_string()).collect();
        let message = format!(
            "arp_ignore is 2, and {name} has no address whose subnet has {}: hosts there do not find the \
             router",
            nets.join(", ")
        );
        let of = |net: Nets| PacketSet {
            from: Some(net),
            ..comes_in(name)
        };
        warn(message, strangers.into_iter().map(of).collect());
    }
    found
}

fn comes_in(name: &IfName) -> PacketSet {
    PacketSet {
        incoming: Some(name.clone()),
        ..PacketSet::of_family(Family::V4)
    }
}

/// Why who asks on this interface may not be answered; none where the way back leads there.
fn unfound(facts: &RouterFacts, interface: &InterfaceFacts) -> Option<String> {
    let name = &interface.name;
    let filter = facts.most_of("ipv4", name, "rp_filter");
    let master = interface.link.master.as_ref();
    // That way back is looked up in the table of the VRF.
    let of_vrf = master.is_some_and(|master| master.kind == MasterKind::Vrf);
    let asked = facts.most_of("ipv4", name, "arp_filter") > 0;
    let asked = asked.then(|| ("arp_filter is set".to_owned(), true));
    let filtered = (filter > 0 && !of_vrf).then(|| (format!("rp_filter is {filter}"), filter == 1));
    asked.into_iter().chain(filtered).find_map(|(setting, strict)| {
        let back = WayBack {
            facts,
            name,
            strict,
        };
        let own = interface.addresses.iter();
        let mut own = own.map(|own| (own, own.local.addr()));
        own.find_map(|(own, address)| {
            let lost = address.is_ipv4().then(|| back.lost(own))??;
            Some(format!(
                "{setting}, and {lost} the way back to who asks for {address} on {name}: nobody who comes in \
                 there may find the router"
            ))
        })
    })
}

/// Where who asks for an address is looked for.
struct WayBack<'f> {
    facts: &'f RouterFacts,
    name: &'f IfName,
    /// Whether the way back has to leave by the interface, as with `rp_filter` 1 and `arp_filter`.
    strict: bool,
}

/// Where a table leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// Where packets may be from that come in by the interface.
    Well,
    /// Elsewhere, or to an error.
    Astray,
    /// It has no route.
    Nowhere,
}

impl WayBack<'_> {
    /// What leads the way back astray.
    fn lost(&self, own: &Address) -> Option<String> {
        let near = own.peer.unwrap_or(own.local).trunc();
        let mut rules: Vec<&PolicyRule> = self.facts.rules.iter().map(|rule| &rule.value).collect();
        rules.retain(|rule| rule.family == Family::V4);
        rules.sort_by_key(|rule| rule.priority);
        let mut from = 0;
        for rule in rules {
            let Some(surely) =
                selects(rule, own.local.addr(), near).filter(|_| rule.priority >= from)
            else {
                continue;
            };
            let leads = match rule.action {
                RuleAction::Table(table) => self.leads(table, own, near, rule.suppress_prefix_len),
                RuleAction::Goto(target) => {
                    from = if surely { target } else { from };
                    Leads::Nowhere
                }
                RuleAction::Nop => Leads::Nowhere,
                RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => {
                    Leads::Astray
                }
            };
            match leads {
                Leads::Astray => return Some(format!("policy rule {rule} leads astray")),
                Leads::Well if surely => return None,
                Leads::Well | Leads::Nowhere => {}
            }
        }
        Some("no policy rule knows".to_owned())
    }

    /// Where `table` leads for who asks from `near`, the subnet of the address `own`.
    fn leads(&self, table: u32, own: &Address, near: IpNet, suppressed: Option<u32>) -> Leads {
        if table == Route::LOCAL {
            return Leads::Nowhere;
        }
        let routes = self.facts.routes.iter().map(|route| &route.value);
        let of_table = routes.filter(|route| route.table == table && route.tos == 0);
        let is_v4 = |route: &&Route| route.destination.addr().is_ipv4();
        let of_table: Vec<&Route> = of_table.filter(is_v4).collect();
        // An address that somebody behind the link may ask from, and that leads to an error.
        let within =
            |route: &&&Route| near.contains(&route.destination) && route.destination != near;
        if of_table.iter().filter(within).any(|route| is_error(route)) {
            return Leads::Astray;
        }
        let covers = of_table
            .iter()
            .filter(|route| route.destination.contains(&near));
        let best = covers.max_by_key(|route| route.destination.prefix_len());
        let made = (table == Route::MAIN && own.prefix_route).then_some(near.prefix_len());
        let length = best.map(|route| route.destination.prefix_len());
        let Some(longest) = length.max(made) else {
            return Leads::Nowhere;
        };
        if suppressed.is_some_and(|most| u32::from(longest) <= most) {
            return Leads::Nowhere;
        }
        match best.filter(|_| made < length) {
            Some(route) if is_error(route) => Leads::Astray,
            Some(route) if route.kind == RouteKind::Throw => Leads::Nowhere,
            // Packets are led by table main as questions are, and the lab shows whether they come in.
            Some(route) if self.strict && table != Route::MAIN => {
                let mut hops = route.next_hops.iter();
                match hops.any(|hop| hop.dev.as_ref().is_none_or(|dev| dev == self.name)) {
                    true => Leads::Well,
                    false => Leads::Astray,
                }
            }
            _ => Leads::Well,
        }
    }
}

fn is_error(route: &Route) -> bool {
    let errors = [
        RouteKind::Blackhole,
        RouteKind::Unreachable,
        RouteKind::Prohibit,
    ];
    errors.contains(&route.kind)
}

/// Whether a policy rule selects the way back from `own` to who asks from `near`: surely, or for some of
/// them. None where it does not.
fn selects(rule: &PolicyRule, own: IpAddr, near: IpNet) -> Option<bool> {
    let plain = rule.fwmark.is_none_or(|(mark, _)| mark == 0)
        && (rule.sport, rule.dport, rule.ip_proto, &rule.oif) == (None, None, None, &None)
        && rule.tos.is_none_or(|tos| tos == 0)
        // The way back begins at the router itself.
        && rule.iif.as_ref().is_none_or(|iif| iif.as_str() == "lo")
        && rule.from.is_none_or(|from| from.contains(&own));
    let (all, some) = match rule.to {
        Some(to) => (to.contains(&near), near.contains(&to) || to.contains(&near)),
        None => (true, true),
    };
    let (surely, may) = match rule.invert {
        false => (plain && all, plain && some),
        true => (!(plain && some), !(plain && all)),
    };
    may.then_some(surely)
}

/// Networks that are on the link by a route, and in no subnet of an address there.
fn strangers(facts: &RouterFacts, interface: &InterfaceFacts) -> Vec<Nets> {
    let heard = interface.addresses.iter().filter_map(|own| {
        let net = own.peer.unwrap_or(own.local).trunc();
        let whole = net.prefix_len() == net.max_prefix_len();
        (!whole && net.contains(&own.local.addr())).then_some(net)
    });
    let heard: Vec<IpNet> = heard.filter(|net| net.addr().is_ipv4()).collect();
    let on_link = facts.routes.iter().filter(|route| {
        let mut hops = route.next_hops.iter();
        route.kind == RouteKind::Unicast
            && route.table != Route::LOCAL
            && hops.any(|hop| hop.via.is_none() && hop.dev.as_ref() == Some(&interface.name))
    });
    let peers = interface.addresses.iter().filter_map(|own| own.peer);
    let nets = on_link.map(|route| route.destination).chain(peers);
    let strange = nets.filter(|net| net.addr().is_ipv4() && !heard.iter().any(|h| h.contains(net)));
    let nets = |within: IpNet| {
        let inside = heard.iter().filter(|net| within.contains(*net));
        Nets {
            within,
            except: inside.copied().collect(),
        }
    };
    strange.map(nets).collect()
}
