//! Routes and policy rules that are missing: which packets are looked up where.

use std::{cell::OnceCell, collections::BTreeSet, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Nets, Omission, OmissionKind, PacketSet};
use crate::{
    firewall::rule::{Does, Field, Rule},
    lab::topology::{At, Ruleset},
    model::IfName,
    netlink::object::{Address, Family, PolicyRule, Route, RouteKind, RuleAction},
};

/// What decides which routing table a packet is looked up in.
#[derive(Debug)]
pub(crate) struct TableRules<'a> {
    rules: &'a [At<PolicyRule>],
    rulesets: &'a [Ruleset],
    /// Read in the rulesets when a policy rule asks for a mark.
    marks: OnceCell<Marks>,
    /// Whether the way back to a packet's source can decide about it.
    looks_back: bool,
}

impl<'a> TableRules<'a> {
    /// The router has these policy rules, these rulesets set marks, and these settings of paths
    /// below `/proc/sys` say whether sources are looked up.
    #[must_use]
    pub(crate) fn of(
        rules: &'a [At<PolicyRule>],
        rulesets: &'a [Ruleset],
        sysctls: &[(String, String)],
    ) -> Self {
        let filters =
            |(key, value): &(String, String)| key.ends_with("/rp_filter") && value.trim() != "0";
        // `-m rpfilter` of iptables(8), `fib saddr` of nft(8).
        let asks =
            |ruleset: &Ruleset| ruleset.text.contains("rpfilter") || ruleset.text.contains("fib ");
        Self {
            rules,
            rulesets,
            marks: OnceCell::new(),
            looks_back: sysctls.iter().any(filters) || rulesets.iter().any(asks),
        }
    }

    /// A route that is missing: packets to its prefix, or from it where sources are looked up. Not
    /// where another of the `named` routes is more specific or preferred in its table (each packet
    /// misses the longest prefix that covers it, whether the lab has that or not), nor what is
    /// never looked up in its table, because earlier rules find one of the `made` routes.
    #[must_use]
    pub(crate) fn of_route(&self, route: &Route, named: &[&Route], made: &[&Route]) -> Omission {
        let family = Family::of(route.destination.addr());
        let preferred = named.iter().filter(|other| other.table == route.table);
        let preferred = preferred.filter(|other| is_preferred(other, route));
        let preferred: Vec<IpNet> = preferred.map(|other| other.destination).collect();
        let leads = |rule: &&At<PolicyRule>| {
            rule.family == family && rule.action == RuleAction::Table(route.table)
        };
        let looks_back = self.looks_back || self.is_martian_to(route, named);
        let mut packets = Vec::new();
        for rule in self.rules.iter().filter(leads) {
            let within = (route.destination, looks_back);
            packets.extend(self.looked_up(rule, within, &preferred, made));
            if selects_all(rule) {
                break;
            }
        }
        packets.dedup();
        Omission::of_packets(OmissionKind::Route, packets)
    }

    /// All routes of the table that `rule` leads to are missing: what it selects, but not where
    /// an earlier rule finds a route for every packet.
    #[must_use]
    pub(crate) fn of_table(&self, rule: &PolicyRule, made: &[&Route]) -> Omission {
        let within = (everywhere(rule.family), self.looks_back);
        let packets = self.looked_up(rule, within, &[], made);
        Omission::of_packets(OmissionKind::Route, packets)
    }

    /// Whether packets from where the route leads are dropped as martian, without `rp_filter`, too: where
    /// people have rules or routes of table local of their own, each source is looked up, and has to be
    /// one that packets are forwarded to (`fib_validate_source()`).
    fn is_martian_to(&self, route: &Route, named: &[&Route]) -> bool {
        let is_own = |rule: &At<PolicyRule>| {
            rule.family == Family::V4
                && !PolicyRule::kernel_defaults(Family::V4).contains(&rule.value)
        };
        let of_local = |route: &&Route| route.table == Route::LOCAL;
        route.destination.addr().is_ipv4()
            && matches!(route.kind, RouteKind::Broadcast | RouteKind::Local)
            && (self.rules.iter().any(is_own) || named.iter().any(of_local) || of_local(&route))
    }

    /// Packets to `within`, and from there where that is looked up, without `except` that `rule` leads to
    /// its table.
    fn looked_up(
        &self,
        rule: &PolicyRule,
        (within, looks_back): (IpNet, bool),
        except: &[IpNet],
        made: &[&Route],
    ) -> Vec<PacketSet> {
        if !self.may_be_marked(rule) {
            return Vec::new();
        }
        let mut except = except.to_vec();
        except.extend(self.found_before(rule, made));
        let nets = |within| Nets {
            within,
            except: except.clone(),
        };
        // Both are prefixes: they are one within the other, or have nothing in common.
        let asked = rule.to.filter(|_| !rule.invert);
        let to = match asked {
            Some(to) if within.contains(&to) => to,
            Some(to) if !to.contains(&within) => return Vec::new(),
            _ => within,
        };
        let there = PacketSet {
            to: Some(nets(to)),
            ..selectors(rule)
        };
        let back = reversed(rule).into_iter().filter(|_| looks_back);
        let back = back.map(|back| PacketSet {
            from: Some(nets(to)),
            ..back
        });
        std::iter::once(there).chain(back).collect()
    }

    /// Whether a packet can have the mark that the rule wants.
    fn may_be_marked(&self, rule: &PolicyRule) -> bool {
        let marks = || self.marks.get_or_init(|| Marks::of(self.rulesets));
        rule.fwmark.is_none() || marks().may_be(rule)
    }

    /// The prefixes for which a rule before `rule` finds a route for every packet.
    fn found_before(&self, rule: &PolicyRule, routes: &[&Route]) -> Vec<IpNet> {
        let before = |other: &&At<PolicyRule>| {
            other.family == rule.family
                && other.priority < rule.priority
                && other.suppress_prefix_len.is_none()
                && selects_all(other)
        };
        let before: Vec<_> = self.rules.iter().filter(before).collect();
        let asked = |table| {
            let leads = |other: &&At<PolicyRule>| other.action == RuleAction::Table(table);
            before.iter().any(leads)
        };
        let found = routes.iter().filter(|route| {
            Family::of(route.destination.addr()) == rule.family
                && is_plain(route)
                && asked(route.table)
        });
        found.map(|route| route.destination).collect()
    }

    /// A policy rule that is missing and selects by a user other than root: what is forwarded, and
    /// reverse look-ups, count as root's.
    #[must_use]
    pub(crate) fn of_users_rule(&self, rule: &PolicyRule) -> Omission {
        let there = PacketSet {
            sent_only: true,
            ..selectors(rule)
        };
        let packets = self.may_be_marked(rule).then_some(there);
        Omission::of_packets(OmissionKind::PolicyRule, packets)
    }

    /// A policy rule that is missing; selectors that could not be read are not in `rule`.
    #[must_use]
    pub(crate) fn of_policy_rule(&self, rule: &PolicyRule) -> Omission {
        let there = selectors(rule);
        let mut packets = Vec::new();
        if self.may_be_marked(rule) {
            // Reverse look-ups of IPv6 are the filter's of iptables only.
            let own_only = rule.family == Family::V6 && there.sent_only;
            packets.extend(reversed(rule).into_iter().filter(|_| !own_only));
            packets.insert(0, there);
        }
        Omission::of_packets(OmissionKind::PolicyRule, packets)
    }
}

/// Whether no kernel can have used `route`, given the addresses of the router's interfaces and its
/// routes: a gateway of it is the router itself, is on the link of another interface than the route
/// says, or is reached through another gateway (`fib_check_nh()` in the kernel).
///
/// A gateway that nothing but a default route reaches proves less: facts may lack its address.
#[must_use]
pub(crate) fn no_kernel_uses<'i>(
    route: &Route,
    addresses: impl Iterator<Item = (&'i IfName, &'i Address)>,
    routes: &[&Route],
) -> bool {
    let addresses: Vec<_> = addresses.collect();
    let on_link = |name: &IfName, via: IpAddr| {
        let mut own = addresses.iter().filter(|(own, _)| *own == name);
        own.any(|(_, address)| address.local.trunc().contains(&via))
    };
    let reached_otherwise = |via: IpAddr| {
        let covers = |other: &&&Route| {
            other.table == Route::MAIN
                && other.destination.prefix_len() > 0
                && other.destination.contains(&via)
        };
        let covering = routes.iter().filter(covers);
        let best = covering.max_by_key(|other| other.destination.prefix_len());
        best.is_some_and(|best| best.next_hops.iter().all(|hop| hop.via.is_some()))
    };
    route.next_hops.iter().any(|hop| {
        let Some(via) = hop.via.filter(|_| !hop.onlink) else {
            return false;
        };
        let itself = addresses.iter().any(|(_, own)| own.local.addr() == via);
        let here = hop.dev.as_ref().is_some_and(|dev| on_link(dev, via));
        let elsewhere = hop.dev.is_some() && addresses.iter().any(|(name, _)| on_link(name, via));
        itself || (!here && (elsewhere || reached_otherwise(via)))
    })
}

/// Whether `other` is taken wherever both routes match.
fn is_preferred(other: &Route, route: &Route) -> bool {
    let narrower = route.destination.contains(&other.destination)
        && other.destination.prefix_len() > route.destination.prefix_len();
    let better = other.destination == route.destination
        && other.metric.unwrap_or(0) < route.metric.unwrap_or(0);
    is_plain(other) && (narrower || better)
}

/// Whether it is taken for whatever packet to its prefix.
fn is_plain(route: &Route) -> bool {
    route.kind != RouteKind::Throw && route.tos == 0 && route.from.is_none()
}

/// All addresses of a family.
fn everywhere(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::default().into(),
        Family::V6 => Ipv6Net::default().into(),
    }
}

fn selects_all(rule: &PolicyRule) -> bool {
    let all = PolicyRule {
        suppress_prefix_len: rule.suppress_prefix_len,
        ..PolicyRule::new(rule.family, rule.priority, rule.action.clone())
    };
    *rule == all
}

/// What the rule selects, as far as packets show it; everything where it selects the others.
fn selectors(rule: &PolicyRule) -> PacketSet {
    let family = PacketSet::of_family(rule.family);
    if rule.invert {
        return family;
    }
    let own = |iif: &IfName| iif.as_str() == "lo";
    PacketSet {
        from: rule.from.map(Nets::from),
        to: rule.to.map(Nets::from),
        protocol: rule.ip_proto,
        sport: rule.sport,
        dport: rule.dport,
        interface: rule.iif.clone().filter(|iif| !own(iif)),
        // `oif` is that of a bound socket of the router's own.
        sent_only: rule.oif.is_some() || rule.iif.as_ref().is_some_and(own),
        ..family
    }
}

/// Packets whose reverse look-up (fib_validate_source() in the kernel) the rule may select: it swaps the
/// addresses and counts as the router's own. Kernels since 4.19 swap the ports, too; a protocol whose
/// ports they do not know has none, which no rule with ports selects.
fn reversed(rule: &PolicyRule) -> Vec<PacketSet> {
    let there = selectors(rule);
    let back = |sport, dport| PacketSet {
        from: there.to.clone(),
        to: there.from.clone(),
        protocol: there.protocol,
        sport,
        dport,
        ..PacketSet::of_family(rule.family)
    };
    let mut all = vec![back(there.dport, there.sport)];
    if there.sport != there.dport {
        all.push(back(there.sport, there.dport));
    }
    all
}

/// Firewall marks that packets of a router can have.
#[derive(Debug)]
struct Marks {
    /// Those that rules set, and 0.
    values: BTreeSet<u32>,
    /// Whether rules compute marks, so that any is possible.
    any: bool,
}

impl Marks {
    fn of(rulesets: &[Ruleset]) -> Self {
        let mut marks = Self {
            values: BTreeSet::from([0]),
            any: false,
        };
        for (text, rule) in super::rulesets::rules(rulesets) {
            marks.note(&text, &rule);
        }
        marks
    }

    fn note(&mut self, text: &str, rule: &Rule) {
        // These take a mark from a set, from the packet's hash, or set one beside what they do.
        self.any |= ["--map-mark", "HMARK", "--tproxy-mark"]
            .iter()
            .any(|word| text.contains(word));
        for does in &rule.does {
            match does {
                Does::Set {
                    field: Field::Mark,
                    mask: u32::MAX,
                    value: Some(value),
                } => {
                    self.values.insert(*value);
                }
                Does::Set {
                    field: Field::Mark, ..
                } => self.any = true,
                _ => {}
            }
        }
    }

    /// Whether a packet can have the mark that the rule wants.
    fn may_be(&self, rule: &PolicyRule) -> bool {
        let wanted = |(value, mask): (u32, u32)| {
            let has = self.values.iter().any(|mark| mark & mask == value & mask);
            self.any || rule.invert || has
        };
        rule.fwmark.is_none_or(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, via: &str) -> Route {
        let dev = IfName::new("up").unwrap();
        Route::via(destination.parse().unwrap(), via.parse().unwrap(), dev)
    }

    #[test]
    fn a_gateway_that_is_known_to_be_elsewhere_contradicts_the_facts() {
        let name = |name| IfName::new(name).unwrap();
        let (lan, up) = (name("lan"), name("up"));
        let address = |net: &str| Address::new(net.parse().unwrap());
        let (on_lan, on_up) = (address("10.1.0.1/24"), address("10.0.0.1/24"));
        let own = || [(&lan, &on_lan), (&up, &on_up)].into_iter();
        let default = route("0.0.0.0/0", "10.0.0.2");
        let behind = route("10.5.0.0/16", "10.0.0.2");
        for (via, contradicts) in [
            ("10.1.0.1", true),
            ("10.1.0.9", true),
            ("10.5.0.9", true),
            ("10.0.0.9", false),
            ("203.0.113.1", false),
        ] {
            let lost = route("10.2.0.0/16", via);
            let found = no_kernel_uses(&lost, own(), &[&default, &behind]);
            assert_eq!(found, contradicts, "{via}");
        }
    }
}
