//! Routes and policy rules that are missing: which packets are looked up where.

use std::collections::BTreeSet;

use super::{Concern, Nets, Omission, OmissionKind, Packets};
use crate::{
    firewall::rule::{Does, Field, Rule},
    lab::topology::{At, Ruleset},
    netlink::object::{Family, PolicyRule, Route, RouteKind, RuleAction},
};

/// What decides which routing table a packet is looked up in.
#[derive(Debug)]
pub struct Tables<'a> {
    rules: &'a [At<PolicyRule>],
    marks: Marks,
}

impl<'a> Tables<'a> {
    /// The router has these policy rules, and these rulesets set marks.
    #[must_use]
    pub fn of(rules: &'a [At<PolicyRule>], rulesets: &[Ruleset]) -> Self {
        Self {
            rules,
            marks: Marks::of(rulesets),
        }
    }

    /// A route that is missing: packets to its prefix or from it (the way back decides where
    /// packets come in), but not where another route of its table is more specific or preferred,
    /// nor what is never looked up in its table.
    #[must_use]
    pub fn of_route<'r>(&self, route: &Route, others: impl Iterator<Item = &'r Route>) -> Omission {
        let family = Family::of(route.destination.addr());
        let preferred = others.filter(|other| other.table == route.table);
        let preferred = preferred.filter(|other| is_preferred(other, route));
        let nets = Nets {
            within: route.destination,
            except: preferred.map(|other| other.destination).collect(),
        };
        let leads = |rule: &&At<PolicyRule>| {
            rule.family == family
                && rule.action == RuleAction::Table(route.table)
                && self.marks.may_be(rule)
        };
        let mut packets = Vec::new();
        for rule in self.rules.iter().filter(leads) {
            packets.push(Packets {
                to: Some(nets.clone()),
                ..selectors(rule)
            });
            packets.push(Packets {
                from: Some(nets.clone()),
                ..reversed(rule)
            });
            if selects_all(rule) {
                break;
            }
        }
        packets.dedup();
        Omission {
            kind: OmissionKind::Route,
            concern: Concern::packets(packets),
        }
    }

    /// A policy rule that is missing; selectors that could not be read are not in `rule`.
    #[must_use]
    pub fn of_policy_rule(&self, rule: &PolicyRule) -> Omission {
        let there = selectors(rule);
        let mut packets = Vec::new();
        if self.marks.may_be(rule) {
            // Reverse look-ups of IPv6 are the filter's of iptables only.
            let own_only = rule.family == Family::V6 && there.sent_only;
            packets.extend((!own_only).then(|| reversed(rule)));
            packets.insert(0, there);
        }
        Omission::of_packets(OmissionKind::PolicyRule, packets)
    }
}

/// Whether no kernel can use `route`, given that its gateway or interface is not there.
///
/// A kernel takes no such route, and drops those over an interface that goes. One whose gateway
/// was reachable once may outlive that; in table main, which every packet may come to, that is not
/// ruled out.
#[must_use]
pub fn no_kernel_uses(route: &Route) -> bool {
    route.table != Route::MAIN
}

/// Whether `other` is taken wherever both routes match.
fn is_preferred(other: &Route, route: &Route) -> bool {
    let narrower = route.destination.contains(&other.destination)
        && other.destination.prefix_len() > route.destination.prefix_len();
    let better = other.destination == route.destination
        && other.metric.unwrap_or(0) < route.metric.unwrap_or(0);
    let plain = other.kind != RouteKind::Throw && other.tos == 0 && other.from.is_none();
    plain && (narrower || better)
}

fn selects_all(rule: &PolicyRule) -> bool {
    let all = PolicyRule {
        suppress_prefix_len: rule.suppress_prefix_len,
        ..PolicyRule::new(rule.family, rule.priority, rule.action.clone())
    };
    *rule == all
}

/// What the rule selects, as far as packets show it; everything where it selects the others.
fn selectors(rule: &PolicyRule) -> Packets {
    let family = Packets::of_family(rule.family);
    if rule.invert {
        return family;
    }
    let own = |iif: &crate::model::IfName| iif.as_str() == "lo";
    Packets {
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

/// Packets whose reverse look-up (fib_validate_source() in the kernel) the rule may select: it
/// swaps the addresses, knows ports only of some protocols, and counts as the router's own.
fn reversed(rule: &PolicyRule) -> Packets {
    let there = selectors(rule);
    Packets {
        from: there.to,
        to: there.from,
        protocol: there.protocol,
        ..Packets::of_family(rule.family)
    }
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
