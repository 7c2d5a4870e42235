//! The policy rules and routing tables of a namespace, looked through as the kernel does
//! (fib_rules_lookup(), fib_table_lookup(), fib6_rule_action()).
//!
//! [`Netlink::lookup`](super::Netlink::lookup) asks the kernel itself and is what counts. It does
//! not say which policy rule decided, though, and refuses a packet that the router sends from an
//! address which is not its own, as the check of the reverse path supposes one. These two are
//! worked out here. What is known only to the kernel (dead next hops, VRFs, IPv6 routes by
//! source) is not seen, so an answer is to be believed where it agrees with the kernel's.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    LookupKind, LookupQuery, Netlink, NetlinkError,
    object::{Family, PolicyRule, PortRange, Route, RouteKind, RuleAction},
};
use crate::model::IfName;

/// The bits of the TOS octet that rules and routes look at: all but ECN, `INET_DSCP_MASK`.
const DSCP_MASK: u8 = 0xfc;

/// Protocols whose ports policy rules see (`proto_ports_offset()`): TCP, UDP, DCCP, SCTP and UDP-Lite. Of
/// ESP and AH the kernel takes half the SPI for each, which only their ends know.
const PORTED: [u8; 5] = [6, 17, 33, 132, 136];

/// The rules and tables of one family.
#[derive(Debug, Clone, Default)]
pub struct Fib {
    rules: Vec<PolicyRule>,
    tables: HashMap<u32, Vec<Route>>,
}

/// What the rules and tables say of one packet. Both are absent where nothing matched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FibDecision {
    /// The policy rule that decided.
    pub rule: Option<PolicyRule>,
    /// The route that was found in its table; none where the rule itself decides.
    pub route: Option<Route>,
}

impl FibDecision {
    /// What becomes of the packet, in the kernel's terms: a policy rule's `unreachable` has the
    /// errno of a missing route.
    #[must_use]
    pub fn kind(&self) -> LookupKind {
        if let Some(route) = &self.route {
            return match route.kind {
                RouteKind::Unicast => LookupKind::Unicast,
                RouteKind::Local => LookupKind::Local,
                RouteKind::Broadcast => LookupKind::Broadcast,
                RouteKind::Blackhole => LookupKind::Blackhole,
                RouteKind::Unreachable => LookupKind::Unreachable,
                RouteKind::Prohibit => LookupKind::Prohibit,
                RouteKind::Throw => LookupKind::NoRoute,
            };
        }
        match self.rule.as_ref().map(|rule| &rule.action) {
            Some(RuleAction::Blackhole) => LookupKind::Blackhole,
            Some(RuleAction::Prohibit) => LookupKind::Prohibit,
            _ => LookupKind::NoRoute,
        }
    }

    /// The policy rule that ends the packet by itself.
    #[must_use]
    pub fn ending_rule(&self) -> Option<&PolicyRule> {
        self.rule.as_ref().filter(|rule| {
            matches!(
                rule.action,
                RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit
            )
        })
    }

    /// The policy rule that chose the table, where it is none that every namespace has.
    #[must_use]
    pub fn choosing_rule(&self) -> Option<&PolicyRule> {
        let own = |rule: &&PolicyRule| !PolicyRule::kernel_defaults(rule.family).contains(rule);
        self.rule.as_ref().filter(own)
    }

    /// The interfaces of the route's next hops.
    pub fn devs(&self) -> impl Iterator<Item = &IfName> {
        let hops = self.route.iter().flat_map(|route| &route.next_hops);
        hops.filter_map(|hop| hop.dev.as_ref())
    }
}

impl Fib {
    /// Rules in the order of their priority, and routes in the kernel's order.
    #[must_use]
    pub fn new(rules: Vec<PolicyRule>, routes: Vec<Route>) -> Self {
        let mut tables: HashMap<u32, Vec<Route>> = HashMap::new();
        for route in routes {
            tables.entry(route.table).or_default().push(route);
        }
        Self { rules, tables }
    }

    /// Reads those of one family.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses a list.
    pub fn read(netlink: &mut Netlink, family: Family) -> Result<Self, NetlinkError> {
        Ok(Self::new(
            netlink.rules(family)?,
            netlink.routes(family, None)?,
        ))
    }

    /// The policy rules in the order of their priority.
    #[must_use]
    pub fn rules(&self) -> &[PolicyRule] {
        &self.rules
    }

    /// Whether a policy rule looks at protocol or ports; the kernel looks into a packet that comes
    /// in only then (`fib4_rules_early_flow_dissect()`).
    #[must_use]
    pub fn looks_at_ports(&self) -> bool {
        let looks = |rule: &PolicyRule| {
            rule.ip_proto.is_some() || rule.sport.is_some() || rule.dport.is_some()
        };
        self.rules.iter().any(looks)
    }

    /// What the rules and tables say of a packet.
    #[must_use]
    pub fn decide(&self, packet: &LookupQuery) -> FibDecision {
        let mut from = 0;
        while let Some((at, rule)) = self.next_match(from, packet) {
            from = at + 1;
            match rule.action {
                RuleAction::Nop => {}
                // A target lies behind the jump, so this ends; without one the jump does nothing.
                RuleAction::Goto(target) => {
                    let found = self.rules.iter().position(|r| r.priority == target);
                    from = from.max(found.unwrap_or(0));
                }
                RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => {
                    return FibDecision {
                        rule: Some(rule.clone()),
                        route: None,
                    };
                }
                RuleAction::Table(table) => {
                    if let Some(route) = self.route(table, packet).filter(|r| !suppresses(rule, r))
                    {
                        return FibDecision {
                            rule: Some(rule.clone()),
                            route: Some(route.clone()),
                        };
                    }
                }
            }
        }
        FibDecision::default()
    }

    fn next_match(&self, from: usize, packet: &LookupQuery) -> Option<(usize, &PolicyRule)> {
        let rules = self.rules.iter().enumerate().skip(from);
        rules.into_iter().find(|(_, rule)| matches(rule, packet))
    }

    /// The most specific route of a table, a `throw` excepted: it is none.
    fn route(&self, table: u32, packet: &LookupQuery) -> Option<&Route> {
        let fits = |route: &&Route| {
            let tos = route.tos == 0 || route.tos == packet.tos & DSCP_MASK;
            let leaves = packet.oif.as_ref().is_none_or(|oif| {
                route
                    .next_hops
                    .iter()
                    .any(|hop| hop.dev.as_ref() == Some(oif))
            });
            tos && leaves && route.destination.contains(&packet.to)
        };
        let routes = self.tables.get(&table)?.iter().filter(fits);
        // Of equal ones the first counts: the kernel lists them by TOS and metric.
        let best = routes.reduce(|best, route| {
            let longer = route.destination.prefix_len() > best.destination.prefix_len();
            if longer { route } else { best }
        });
        best.filter(|route| route.kind != RouteKind::Throw)
    }
}

fn suppresses(rule: &PolicyRule, route: &Route) -> bool {
    let length = u32::from(route.destination.prefix_len());
    rule.suppress_prefix_len.is_some_and(|most| length <= most)
}

fn matches(rule: &PolicyRule, packet: &LookupQuery) -> bool {
    let inside = |net: &Option<IpNet>, address: Option<IpAddr>| match (net, address) {
        (None, _) => true,
        (Some(net), Some(address)) => net.contains(&address),
        (Some(net), None) => net.prefix_len() == 0,
    };
    // What other protocols have in their place, such as ICMP's type, is no port.
    let has_ports = packet
        .ip_proto
        .is_none_or(|number| PORTED.contains(&number));
    let port = |range: Option<PortRange>, port: Option<u16>| {
        let port = port.filter(|_| has_ports);
        range.is_none_or(|r| port.is_some_and(|port| (r.first..=r.last).contains(&port)))
    };
    // What a router sends itself has the loopback interface as the incoming one.
    let came_in = |iif: &IfName| match &packet.iif {
        Some(by) => by == iif,
        None => iif.as_str() == "lo",
    };
    let all = inside(&rule.from, packet.from)
        && inside(&rule.to, Some(packet.to))
        && rule.iif.as_ref().is_none_or(came_in)
        && rule
            .oif
            .as_ref()
            .is_none_or(|oif| packet.oif.as_ref() == Some(oif))
        && rule
            .fwmark
            .is_none_or(|(mark, mask)| (mark ^ packet.mark) & mask == 0)
        && rule.tos.is_none_or(|tos| tos == packet.tos & DSCP_MASK)
        && rule
            .ip_proto
            .is_none_or(|number| packet.ip_proto == Some(number))
        && port(rule.sport, packet.sport)
        && port(rule.dport, packet.dport);
    all != rule.invert
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(priority: u32, action: RuleAction) -> PolicyRule {
        PolicyRule::new(Family::V4, priority, action)
    }

    fn route(destination: &str, table: u32, dev: &str) -> Route {
        Route {
            table,
            ..Route::via(
                destination.parse().unwrap(),
                "192.0.2.1".parse().unwrap(),
                dev.parse().unwrap(),
            )
        }
    }

    fn fib(own: impl IntoIterator<Item = PolicyRule>, routes: Vec<Route>) -> Fib {
        let mut rules = PolicyRule::kernel_defaults(Family::V4);
        rules.splice(1..1, own);
        Fib::new(rules, routes)
    }

    fn packet() -> LookupQuery {
        LookupQuery::forwarded(
            "10.0.0.9".parse().unwrap(),
            "198.51.100.7".parse().unwrap(),
            "eth0".parse().unwrap(),
        )
    }

    fn dev(decision: &FibDecision) -> Option<&str> {
        decision.devs().next().map(IfName::as_str)
    }

    #[test]
    fn the_most_specific_route_of_the_first_table_with_one_decides() {
        let fib = fib(
            [
                rule(10, RuleAction::Table(7)),
                rule(20, RuleAction::Table(8)),
            ],
            vec![
                route("203.0.113.0/24", 7, "a"),
                route("0.0.0.0/0", 8, "b"),
                route("198.51.100.0/24", 8, "c"),
                route("198.51.100.7/32", Route::MAIN, "d"),
            ],
        );
        let decision = fib.decide(&packet());
        assert_eq!(dev(&decision), Some("c"));
        assert_eq!(decision.choosing_rule().unwrap().priority, 20);
        let local = LookupQuery::to("192.0.2.99".parse().unwrap());
        assert_eq!(dev(&fib.decide(&local)), Some("b"));
    }

    #[test]
    fn each_selector_must_match_and_not_turns_all_of_them_round() {
        let packet = LookupQuery {
            mark: 0x3d01,
            tos: 0x12,
            ip_proto: Some(6),
            sport: Some(40_000),
            dport: Some(80),
            ..packet()
        };
        let ended = |rule: &PolicyRule| {
            let decision = fib([rule.clone()], Vec::new()).decide(&packet);
            decision.ending_rule().is_some()
        };
        let selects = |change: fn(&mut PolicyRule)| {
            let mut one = rule(10, RuleAction::Blackhole);
            change(&mut one);
            let selects = ended(&one);
            one.invert = true;
            assert_ne!(ended(&one), selects);
            selects
        };
        assert!(selects(|r| r.fwmark = Some((0x3d00, 0x3f00))));
        assert!(!selects(|r| r.fwmark = Some((0x3d00, u32::MAX))));
        assert!(selects(|r| r.from = Some("10.0.0.0/8".parse().unwrap())));
        assert!(!selects(|r| r.to = Some("10.0.0.0/8".parse().unwrap())));
        assert!(selects(|r| r.iif = Some("eth0".parse().unwrap())));
        assert!(!selects(|r| r.iif = Some("lo".parse().unwrap())));
        assert!(!selects(|r| r.oif = Some("eth0".parse().unwrap())));
        assert!(selects(|r| r.tos = Some(0x10)));
        assert!(!selects(|r| r.ip_proto = Some(17)));
        assert!(selects(|r| r.dport = Some(PortRange {
            first: 80,
            last: 90
        })));
        assert!(!selects(|r| r.sport = Some(PortRange { first: 1, last: 9 })));
    }

    #[test]
    fn only_protocols_that_have_ports_fit_rules_by_port() {
        let ports = Some(PortRange { first: 8, last: 8 });
        for (number, fits) in [(6, true), (17, true), (132, true), (1, false), (50, false)] {
            let packet = LookupQuery {
                ip_proto: Some(number),
                // Of ICMP that is the type.
                sport: Some(8),
                dport: Some(8),
                ..packet()
            };
            for side in [(ports, None), (None, ports)] {
                let mut by_port = rule(10, RuleAction::Blackhole);
                (by_port.sport, by_port.dport) = side;
                let decision = fib([by_port], Vec::new()).decide(&packet);
                assert_eq!(decision.ending_rule().is_some(), fits, "{number}");
            }
        }
    }

    #[test]
    fn a_jump_goes_to_its_target_and_a_throw_or_a_suppressed_route_on() {
        let mut suppressing = rule(30, RuleAction::Table(Route::MAIN));
        suppressing.suppress_prefix_len = Some(0);
        let fib = fib(
            [
                rule(10, RuleAction::Goto(25)),
                rule(20, RuleAction::Prohibit),
                rule(25, RuleAction::Table(5)),
                suppressing,
                rule(40, RuleAction::Unreachable),
            ],
            vec![
                Route {
                    table: 5,
                    ..Route::without_hops("198.51.100.0/24".parse().unwrap(), RouteKind::Throw)
                },
                route("0.0.0.0/0", Route::MAIN, "a"),
            ],
        );
        let decision = fib.decide(&packet());
        assert_eq!(decision.ending_rule().unwrap().priority, 40);
        assert_eq!(decision.kind(), LookupKind::NoRoute, "its errno");
    }

    #[test]
    fn a_rule_that_every_namespace_has_chose_nothing() {
        let fib = fib([], vec![route("0.0.0.0/0", Route::MAIN, "a")]);
        let decision = fib.decide(&packet());
        assert_eq!(dev(&decision), Some("a"));
        assert_eq!(decision.choosing_rule(), None);
        assert_eq!(
            fib.decide(&LookupQuery::to("::1".parse().unwrap())).kind(),
            LookupKind::NoRoute
        );
    }
}
