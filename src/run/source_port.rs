//! Policy rules that look at the source port, where a question leaves that open.

use crate::{
    firewall::rule::CLIENT_PORTS,
    netlink::{
        Fib, LookupQuery,
        object::{PolicyRule, PortRange},
    },
};

/// Which port of a packet is its client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The source port, of a request.
    Source,
    /// The destination port, of an answer.
    Destination,
}

/// Whether policy rules tell the ports of clients apart at all.
pub(crate) fn matters<'a>(rules: impl IntoIterator<Item = &'a PolicyRule>, side: Side) -> bool {
    !edges(rules, side).is_empty()
}

/// Says which rule sends such a packet another way if a client gives it another port; none where all
/// of a client's ports fare alike.
pub(crate) fn doubt(fib: &Fib, packet: &LookupQuery, side: Side) -> Option<String> {
    let this = fib.decide(packet);
    let other = edges(fib.rules(), side).into_iter().find_map(|port| {
        let mut changed = packet.clone();
        match side {
            Side::Source => changed.sport = Some(port),
            Side::Destination => changed.dport = Some(port),
        }
        let other = fib.decide(&changed);
        (other != this).then_some((port, other))
    });
    let (port, other) = other?;
    let rules = [this.rule, other.rule];
    let mut rules = rules.into_iter().flatten();
    let rule = rules.find(|rule| side.of(rule).is_some());
    let rule = rule.map_or_else(
        || "a policy rule".to_owned(),
        |rule| format!("policy rule {rule}"),
    );
    let what = match side {
        Side::Source => format!("the source port, and sends a packet from port {port}"),
        Side::Destination => format!("the client's port, and sends an answer to port {port}"),
    };
    Some(format!(
        "{rule} looks at {what} another way; --sport asks about one port"
    ))
}

impl Side {
    fn of(self, rule: &PolicyRule) -> Option<PortRange> {
        match self {
            Self::Source => rule.sport,
            Self::Destination => rule.dport,
        }
    }
}

/// The client's ports next to the ends of what rules select: all between two of them fare alike.
fn edges<'a>(rules: impl IntoIterator<Item = &'a PolicyRule>, side: Side) -> Vec<u16> {
    let ranges = rules.into_iter().filter_map(|rule| side.of(rule));
    let ends = ranges.flat_map(|range| {
        [
            range.first.saturating_sub(1),
            range.first,
            range.last,
            range.last.saturating_add(1),
        ]
    });
    let (first, last) = CLIENT_PORTS;
    let mut ports: Vec<u16> = ends.filter(|port| (first..=last).contains(port)).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::object::{Family, RuleAction};

    fn rule(first: u16, last: u16) -> PolicyRule {
        let sport = Some(PortRange { first, last });
        PolicyRule {
            sport,
            ..PolicyRule::new(Family::V4, 100, RuleAction::Nop)
        }
    }

    #[test]
    fn only_ports_of_clients_count() {
        assert_eq!(
            edges(&[rule(1, 1023), rule(1024, 65_535)], Side::Source),
            [0; 0]
        );
        assert_eq!(
            edges(&[rule(45_000, 65_534)], Side::Source),
            [44_999, 45_000]
        );
        assert_eq!(
            edges(&[rule(50_000, 50_000)], Side::Source),
            [49_999, 50_000, 50_001]
        );
    }
}
