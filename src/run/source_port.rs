//! Policy rules that look at the source port, where a question leaves that open.

use crate::{
    firewall::rule::{Match, OpenPorts, Packet, PortChoice, Rule, Test},
    netlink::{
        Fib, LookupQuery,
        object::{PolicyRule, PortRange},
    },
};

/// Which port of a packet is its client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The source port, of a request.
    Source,
    /// The destination port, of an answer.
    Destination,
}

/// Whether policy rules look at ports at all.
pub(crate) fn matters<'a>(rules: impl IntoIterator<Item = &'a PolicyRule>) -> bool {
    let mut rules = rules.into_iter();
    rules.any(|rule| rule.sport.is_some() || rule.dport.is_some())
}

/// Says which rule sends such a packet another way if it has another of the `open` ports; none where all
/// of them fare alike.
pub(crate) fn doubt(fib: &Fib, packet: &LookupQuery, open: OpenPorts) -> Option<String> {
    let (side, ports) = match open {
        OpenPorts::None => return None,
        OpenPorts::Clients => (Side::Source, PortChoice::OF_CLIENTS),
        OpenPorts::Translated(ports) => (Side::Source, ports),
        OpenPorts::Answered(ports) => (Side::Destination, ports),
    };
    let ports_apart = edges(fib.rules(), side, ports);
    if ports_apart.is_empty() {
        return None;
    }
    let this = fib.decide(packet);
    let other = ports_apart.into_iter().find_map(|port| {
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
    let why = match ports == PortChoice::OF_CLIENTS {
        true => "--sport asks about one port",
        false => "a router may choose that port",
    };
    Some(format!("{rule} looks at {what} another way; {why}"))
}

/// The rule of those that ask sets for ports by which a packet may fare otherwise with another of its `open`
/// ports, as text.
pub(crate) fn by_set<'r>(
    rules: &'r [String],
    packet: &Packet,
    open: OpenPorts,
) -> Option<&'r String> {
    let direction = match open {
        OpenPorts::None => return None,
        OpenPorts::Clients | OpenPorts::Translated(_) => "src",
        OpenPorts::Answered(_) => "dst",
    };
    let asks = |text: &String| {
        let rule = Rule::of(text);
        let set = |test: &Match| {
            let Test::Other { text, .. } = &test.test else {
                return false;
            };
            text.starts_with("set ") && text.ends_with(&format!(" {direction}"))
        };
        rule.matches.iter().any(set) && rule.decides() && rule.concerns(packet)
    };
    rules.iter().find(|text| asks(text))
}

impl Side {
    fn of(self, rule: &PolicyRule) -> Option<PortRange> {
        match self {
            Self::Source => rule.sport,
            Self::Destination => rule.dport,
        }
    }
}

/// The `ports` next to the ends of what rules select: all between two of them fare alike.
fn edges<'a>(
    rules: impl IntoIterator<Item = &'a PolicyRule>,
    side: Side,
    ports: PortChoice,
) -> Vec<u16> {
    let ranges = rules.into_iter().filter_map(|rule| side.of(rule));
    let ends = ranges.flat_map(|range| {
        [
            range.first.saturating_sub(1),
            range.first,
            range.last,
            range.last.saturating_add(1),
        ]
    });
    let mut found: Vec<u16> = ends.filter(|port| ports.has(*port)).collect();
    found.sort_unstable();
    found.dedup();
    found
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
    fn only_ports_that_are_open_count() {
        let of_clients = |rules: &[PolicyRule]| edges(rules, Side::Source, PortChoice::OF_CLIENTS);
        assert_eq!(of_clients(&[rule(1, 1023), rule(1024, 65_535)]), [0; 0]);
        assert_eq!(of_clients(&[rule(45_000, 65_534)]), [44_999, 45_000]);
        assert_eq!(
            of_clients(&[rule(50_000, 50_000)]),
            [49_999, 50_000, 50_001]
        );
        let chosen = PortChoice {
            first: 2000,
            last: 2003,
        };
        let ends = edges(&[rule(2002, 50_000)], Side::Source, chosen);
        assert_eq!(ends, [2001, 2002]);
    }
}
