//! Neighbours that a router does not find, or that do not find it.
//!
//! Hosts of a lab are told the hardware addresses of their routers, and probes need none. So what
//! keeps neighbours from finding each other changes nothing there, while on the real router no
//! packet comes in or leaves: it is an omission for what gets through.
//!
//! - Rules that surely drop neighbour discovery (RFC 4861): a router takes solicitations in INPUT
//!   and answers in OUTPUT, and the other way round for its own. Connection tracking does not track
//!   them. They come from an address of the host on its own link, and from a link-local address of
//!   a router that forwards (`ndisc_solicit()`).
//! - Rules of single devices that drop ARP. Tables of family arp are told of in [`super::link_layer`].
//! - `arp_ignore` 8, what [`super::arp`] tells of, and `arp_filter` where another interface is in the same network.
//! - Policy rules before table local that lead questions elsewhere, of IPv6 as well.
//! - Interfaces without ARP (`ip link set arp off`).

use std::{
    cell::LazyCell,
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv6Net};

use super::{InterfaceFacts, RouterFacts, arp};
use crate::{
    firewall::rule::{Field, Packet, TrackingState},
    lab::{
        omission::{
            Filters, Nets, Omission, OmissionKind, PacketSet, Stop, StopQuery, solicited_node,
        },
        topology::{At, InterfaceKind, MasterKind, Warning},
    },
    model::IfName,
    netlink::object::{Address, Family, PolicyRule, Route, RouteKind, RuleAction},
};

/// Neighbour solicitation and advertisement, RFC 4861.
const SOLICITATION: u32 = 135;
const ADVERTISEMENT: u32 = 136;

/// Tells what keeps neighbours from being found.
pub(super) fn model(facts: &mut RouterFacts) {
    let mut warnings = by_rules(facts);
    warnings.extend(by_settings(facts));
    warnings.extend(by_policy_rules(facts));
    facts.warnings.extend(warnings);
}

/// What one rule stops: on which interfaces, and packets that need it.
#[derive(Default)]
struct Stopped {
    interfaces: Vec<IfName>,
    packets: Vec<PacketSet>,
}

fn by_rules(facts: &RouterFacts) -> Vec<Warning> {
    if facts.rulesets.is_empty() {
        return Vec::new();
    }
    let filters = LazyCell::new(|| Filters::of(&facts.rulesets));
    let mut found: BTreeMap<(Stop, &str), Stopped> = BTreeMap::new();
    let mut note = |stop: Option<Stop>, what, interface: &IfName, packets: &PacketSet| {
        let Some(stop) = stop else { return };
        let stopped = found.entry((stop, what)).or_default();
        if !stopped.interfaces.contains(interface) {
            stopped.interfaces.push(interface.clone());
        }
        stopped.packets.push(packets.clone());
    };
    for interface in facts.interfaces.iter().filter(|i| asks_neighbours(i)) {
        let name = &interface.name;
        for hook in ["ingress", "egress"] {
            let packets = PacketSet {
                interface: Some(name.clone()),
                ..PacketSet::of_family(Family::V4)
            };
            note(
                filters.stop(hook, StopQuery::Arp(name)),
                "ARP",
                name,
                &packets,
            );
        }
        for exchange in exchanges(facts, interface, &filters) {
            let stop = exchange.stop(&filters, name);
            note(stop, "neighbour discovery", name, &exchange.packets);
        }
    }
    let warning = |((stop, what), stopped): ((Stop, &str), Stopped)| {
        let names: Vec<&str> = stopped.interfaces.iter().map(IfName::as_str).collect();
        let message = format!(
            "{} drops {what} on {}, which no lab needs to find neighbours",
            stop.text,
            names.join(", ")
        );
        let line = facts
            .rulesets
            .get(stop.ruleset)
            .map_or(0, |r| r.origin.line);
        let omission = Omission::of_packets(OmissionKind::Feature, stopped.packets).of_passed();
        Warning::omission(
            facts.origin(line + stop.line),
            &facts.name,
            message,
            omission,
        )
    };
    found.into_iter().map(warning).collect()
}

/// Whether neighbours are looked for on the interface.
fn asks_neighbours(interface: &At<InterfaceFacts>) -> bool {
    let master = matches!(interface.link.kind.as_deref(), Some("vrf"));
    interface.up
        && interface.kind == InterfaceKind::Ethernet
        && interface.link.spoken_for_by().is_none()
        && !master
}

/// A question and its answer, one of which comes in and the other leaves.
struct Exchange {
    /// Packets that need it.
    packets: PacketSet,
    /// Where who asks has its address, and who is asked.
    asks: IpNet,
    asked: IpNet,
    /// Whether the router is asked.
    incoming: bool,
}

/// The exchanges that packets over an interface need.
fn exchanges(facts: &RouterFacts, interface: &InterfaceFacts, filters: &Filters) -> Vec<Exchange> {
    let is_global =
        |net: &IpNet| matches!(net, IpNet::V6(net) if !is_link_local(net.addr().into()));
    let nets = interface.addresses.iter().map(|address| address.local);
    let nets: Vec<IpNet> = nets.filter(|net| net.addr().is_ipv6()).collect();
    let addresses = || facts.interfaces.iter().flat_map(|i| &i.addresses);
    if nets.is_empty() || !addresses().any(|address| is_global(&address.local)) {
        return Vec::new();
    }
    let global: Vec<IpNet> = nets
        .iter()
        .filter(|net| is_global(net))
        .map(IpNet::trunc)
        .collect();
    let own = |near: &IpNet| nets.iter().copied().find(|net| net.trunc() == *near);
    let host = |net: IpNet| IpNet::from(net.addr());
    let (all, local) = (IpNet::V6(Ipv6Net::default()), link_local());
    let elsewhere = || Nets {
        within: all,
        except: global.clone(),
    };
    let comes = |from| entering(&interface.name, from);
    let leaves = |to| leaving(&interface.name, to);
    let mut found = Vec::new();
    let mut add = |packets, asks, asked, incoming| {
        found.push(Exchange {
            packets,
            asks,
            asked,
            incoming,
        });
    };
    for net in &global {
        let own = own(net).map_or(*net, host);
        let mut add = |near: IpNet| {
            add(comes(near.into()), near, own, true);
            add(leaves(near.into()), local, near, false);
        };
        add(*net);
        // Rules may stop the questions of one host alone.
        filters.named_within(*net).into_iter().for_each(add);
    }
    // Or the questions for the hosts of one group.
    for group in groups_named(filters) {
        for net in &global {
            let packets = PacketSet {
                to_group: Some(group),
                ..leaves(Nets::from(*net))
            };
            add(packets, local, *net, false);
        }
    }
    // From behind another router, or to there.
    add(comes(elsewhere()), local, local, true);
    for gateway in gateways(facts, &interface.name) {
        add(leaves(elsewhere()), local, gateway.into(), false);
    }
    found
}

/// Packets of IPv6 that come in by an interface.
fn entering(interface: &IfName, from: Nets) -> PacketSet {
    PacketSet {
        from: Some(from),
        incoming: Some(interface.clone()),
        ..PacketSet::of_family(Family::V6)
    }
}

/// Packets of IPv6 that leave by an interface.
fn leaving(interface: &IfName, to: Nets) -> PacketSet {
    PacketSet {
        to: Some(to),
        outgoing: Some(interface.clone()),
        ..PacketSet::of_family(Family::V6)
    }
}

/// The gateways of IPv6 behind an interface.
fn gateways(facts: &RouterFacts, interface: &IfName) -> Vec<IpAddr> {
    let hops = facts.routes.iter().flat_map(|route| &route.next_hops);
    let here = hops.filter(|hop| hop.dev.as_ref() == Some(interface));
    let mut all: Vec<IpAddr> = here.filter_map(|hop| hop.via).collect();
    all.retain(IpAddr::is_ipv6);
    all.sort_unstable();
    all.dedup();
    all
}

impl Exchange {
    /// What stops the question or the answer.
    fn stop(&self, filters: &Filters, device: &IfName) -> Option<Stop> {
        let asked = match self.asked {
            IpNet::V6(asked) if asked.prefix_len() == 128 => {
                IpAddr::from(solicited_node(asked.addr())).into()
            }
            _ => self.packets.to_group.unwrap_or(solicited_nodes()).into(),
        };
        let mut question = message(SOLICITATION, self.asks, asked);
        let mut answer = message(ADVERTISEMENT, self.asked, self.asks);
        if !filters.may_mark() {
            for message in [&mut question, &mut answer] {
                *message = message.clone().with(Field::Mark, 0_u32);
            }
        }
        let (comes, leaves) = match self.incoming {
            true => (question, answer),
            false => (answer, question),
        };
        let comes = comes.with_device(Field::Incoming, device.as_str());
        let leaves = leaves.with_device(Field::Outgoing, device.as_str());
        filters
            .stop("ingress", StopQuery::OnDevice(&comes, device))
            .or_else(|| filters.stop("prerouting", StopQuery::Packet(&comes)))
            .or_else(|| filters.stop("input", StopQuery::Packet(&comes)))
            .or_else(|| filters.stop("output", StopQuery::Packet(&leaves)))
            .or_else(|| filters.stop("postrouting", StopQuery::Packet(&leaves)))
            .or_else(|| filters.stop("egress", StopQuery::OnDevice(&leaves, device)))
    }
}

/// Of a message: the header of IPv6, that of ICMPv6, the address that is asked for, and the hardware address.
const LENGTH: u32 = 40 + 8 + 16 + 8;

fn message(kind: u32, source: IpNet, destination: IpNet) -> Packet {
    const ICMPV6: u32 = 58;
    Packet::of(Family::V6)
        .with(Field::Protocol, ICMPV6)
        .with(Field::Icmpv6Type, kind)
        .with(Field::Ttl, 255_u32)
        .with(Field::Tos, 0_u32)
        .with(Field::Length, LENGTH)
        .with_state(TrackingState::Untracked)
        .with_address(Field::Source, source)
        .with_address(Field::Destination, destination)
}

/// `fe80::/10`, RFC 4291 section 2.5.6, of which interfaces use this.
fn link_local() -> IpNet {
    let prefix = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
    Ipv6Net::new_assert(prefix, 64).into()
}

/// The multicast addresses that solicitations go to, RFC 4291 section 2.7.1.
fn solicited_nodes() -> Ipv6Net {
    let prefix = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0);
    Ipv6Net::new_assert(prefix, 104)
}

/// Those of them that rules or sets name.
fn groups_named(filters: &Filters) -> impl Iterator<Item = Ipv6Net> {
    let named = filters.named_within(solicited_nodes().into()).into_iter();
    named.filter_map(|net| match net {
        IpNet::V6(net) => Some(net),
        IpNet::V4(_) => None,
    })
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Settings of ARP with which the router does not answer.
fn by_settings(facts: &RouterFacts) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for interface in facts.interfaces.iter().filter(|i| asks_neighbours(i)) {
        let name = &interface.name;
        let most = |key| facts.most_of("ipv4", name, key);
        let comes = PacketSet {
            incoming: Some(name.clone()),
            ..PacketSet::of_family(Family::V4)
        };
        let mut warn = |message: String, packets: Vec<PacketSet>| {
            let omission = Omission::of_packets(OmissionKind::Feature, packets).of_passed();
            let origin = facts.origin(interface.line);
            warnings.push(Warning::omission(origin, &facts.name, message, omission));
        };
        if interface.link.no_arp {
            let message = format!("{name} is without ARP, which no lab needs");
            warn(message, without_neighbours(interface));
            continue;
        }
        if most("arp_ignore") == 8 {
            let message =
                format!("arp_ignore is 8: nobody who comes in by {name} finds the router");
            warn(message, vec![comes.clone()]);
        }
        if let Some(other) = twin(facts, interface).filter(|_| most("arp_filter") > 0) {
            let message = format!(
                "arp_filter is set, and {other} is in the network of {name}, too: which of them \
                 answers ARP depends on the way back"
            );
            warn(message, vec![comes]);
        }
        warnings.extend(arp::warnings(facts, interface));
    }
    warnings
}

/// What an interface without ARP concerns.
fn without_neighbours(interface: &InterfaceFacts) -> Vec<PacketSet> {
    let name = Some(interface.name.clone());
    let comes = PacketSet {
        incoming: name.clone(),
        ..PacketSet::default()
    };
    let leaves = PacketSet {
        outgoing: name,
        ..PacketSet::default()
    };
    // Nobody is on the link of a dummy, and its addresses are asked for elsewhere.
    let is_dummy = interface.link.kind.as_deref() == Some("dummy");
    let comes = Some(comes).filter(|_| !is_dummy);
    comes.into_iter().chain([leaves]).collect()
}

/// Policy rules that come before table local. A question is looked up like any other packet that comes
/// in, and only what is local then is answered (`arp_process()`, `ip6_mc_input()`).
fn by_policy_rules(facts: &RouterFacts) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for interface in facts.interfaces.iter().filter(|i| asks_neighbours(i)) {
        // The table of a VRF has local routes of its own, which a listing may leave out.
        let master = interface.link.master.as_ref();
        if master.is_some_and(|master| master.kind == MasterKind::Vrf) {
            continue;
        }
        for family in [Family::V4, Family::V6] {
            let mut own = interface.addresses.iter();
            let found = own.find_map(|own| Some((own, led_away(facts, interface, family, own)?)));
            let Some((own, rule)) = found else { continue };
            let (name, address) = (&interface.name, own.local.addr());
            let message = format!(
                "policy rule {rule} comes before table local and leads elsewhere what asks for \
                 {address} on {name}: nobody who comes in there finds the router"
            );
            let packets = PacketSet {
                incoming: Some(name.clone()),
                ..PacketSet::of_family(family)
            };
            let omission = Omission::of_packets(OmissionKind::Feature, [packets]).of_passed();
            let origin = facts.origin(interface.line);
            warnings.push(Warning::omission(origin, &facts.name, message, omission));
        }
    }
    warnings
}

/// The rule before that of table local which finds another route for a question about `own` that comes in
/// by `interface`.
fn led_away<'f>(
    facts: &'f RouterFacts,
    interface: &InterfaceFacts,
    family: Family,
    own: &Address,
) -> Option<&'f PolicyRule> {
    let asked = match own.local.addr() {
        address if Family::of(address) != family => return None,
        IpAddr::V6(address) => solicited_node(address).into(),
        address => address,
    };
    let rules = || facts.rules.iter().map(|rule| &rule.value);
    let local = rules().filter(|rule| **rule == PolicyRule::new(family, rule.priority, LOCAL));
    let local = local.map(|rule| rule.priority).min().unwrap_or(u32::MAX);
    let near = own.local.trunc();
    let overlaps = |net: &IpNet| net.contains(&near) || near.contains(net);
    let selects = |rule: &PolicyRule| {
        let plain = rule.fwmark.is_none_or(|(mark, _)| mark == 0)
            && (rule.sport, rule.dport, rule.ip_proto, &rule.oif) == (None, None, None, &None)
            && rule.tos.is_none_or(|tos| tos == 0);
        plain
            && rule.from.as_ref().is_none_or(overlaps)
            && rule.to.is_none_or(|to| to.contains(&asked))
            && rule.iif.as_ref().is_none_or(|iif| *iif == interface.name)
    };
    let mut before = rules().filter(|rule| rule.family == family && rule.priority < local);
    before.find(|rule| {
        (rule.invert || selects(rule))
            && match rule.action {
                RuleAction::Table(table) => {
                    let found = found(facts, interface, table, (own, asked));
                    found.is_some_and(|length| rule.suppress_prefix_len < Some(length))
                }
                RuleAction::Goto(_) | RuleAction::Nop => false,
                RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => true,
            }
    })
}

/// What `PolicyRule::action` is of the kernel's own first rule.
const LOCAL: RuleAction = RuleAction::Table(Route::LOCAL);

/// The length of the prefix by which a table leads elsewhere what asks for `own` with packets to `asked`;
/// none where it does not.
fn found(
    facts: &RouterFacts,
    interface: &InterfaceFacts,
    table: u32,
    (own, asked): (&Address, IpAddr),
) -> Option<u32> {
    let routes = facts.routes.iter().map(|route| &route.value);
    let covers = |route: &&Route| {
        // To an address that is of a link, only a route over that link leads (`rt6_need_strict()`).
        let mut hops = route.next_hops.iter();
        let strict = asked.is_ipv6() && !hops.any(|hop| hop.dev.as_ref() == Some(&interface.name));
        route.table == table && route.tos == 0 && route.destination.contains(&asked) && !strict
    };
    let best = routes
        .filter(covers)
        .max_by_key(|route| route.destination.prefix_len());
    let listed = best.map(|route| (route.destination.prefix_len(), route.kind));
    let subnet = own.local.trunc();
    let made = own.prefix_route && table == Route::MAIN && subnet.contains(&asked);
    let made = made.then_some((subnet.prefix_len(), RouteKind::Unicast));
    let (length, kind) = listed
        .into_iter()
        .chain(made)
        .max_by_key(|(length, _)| *length)?;
    (!matches!(kind, RouteKind::Local | RouteKind::Throw)).then_some(length.into())
}

/// Another interface in a network of IPv4 that this one is in.
fn twin<'f>(facts: &'f RouterFacts, interface: &InterfaceFacts) -> Option<&'f IfName> {
    let nets = |of: &InterfaceFacts| -> Vec<IpNet> {
        let nets = of.addresses.iter().map(|address| address.local.trunc());
        nets.filter(|net| net.addr().is_ipv4()).collect()
    };
    let own = nets(interface);
    let others = facts.interfaces.iter().filter(|i| i.name != interface.name);
    let meets = |other: &&At<InterfaceFacts>| {
        let near = nets(other);
        near.iter()
            .any(|net| own.iter().any(|o| o.contains(net) || net.contains(o)))
    };
    others
        .filter(|i| asks_neighbours(i))
        .find(meets)
        .map(|other| &other.value.name)
}
