//! Policy rules that look at ports which a probe does not have, or which nobody asked for.

use std::sync::Arc;

use super::{
    QuickError,
    digest::Visited,
    tables::{Tables, looks_at_ports, query},
};
use crate::{
    netlink::{
        LookupQuery,
        object::{PolicyRule, PortRange},
    },
    run::report::Verdict,
};

/// The ports that a Linux host gives to its connections unless told otherwise,
/// `net.ipv4.ip_local_port_range`, ip(7).
const CLIENT_PORTS: PortRange = PortRange {
    first: 32_768,
    last: 60_999,
};

/// A raw packet of the router's own is routed without its ports. Where a policy rule looks at them
/// and a program's packet would go another way, nothing is known of it.
pub(super) fn doubt_own(tables: &mut Tables<'_>, visited: &mut Visited) -> Result<(), QuickError> {
    let rules = tables.rules(&visited.at.router)?;
    if !rules.iter().any(looks_at_ports) {
        return Ok(());
    }
    let fib = tables.fib(&visited.at.router)?;
    doubt(visited, |visited, nth| {
        let whole = query(&visited.at, &visited.probes.get(nth)?.headers, 0);
        let raw = LookupQuery {
            ip_proto: None,
            sport: None,
            dport: None,
            ..whole.clone()
        };
        let (with, without) = (fib.decide(&whole), fib.decide(&raw));
        (with != without).then(|| {
            let rules = [with.rule, without.rule];
            let rule = rules.into_iter().flatten().find(looks_at_ports);
            format!(
                "{} looks at protocol or ports, by which a probe that the router sends itself is \
                 not routed",
                named(rule.as_ref())
            )
        })
    });
    Ok(())
}

/// Where a question leaves the source port open, a host may use any that it gives to its
/// connections. Where policy rules send some of them another way, one probe says nothing of the
/// others.
pub(super) fn doubt_open(tables: &mut Tables<'_>, visited: &mut Visited) -> Result<(), QuickError> {
    let rules = tables.rules(&visited.at.router)?;
    let ports = edges(&rules);
    if ports.is_empty() {
        return Ok(());
    }
    let fib = tables.fib(&visited.at.router)?;
    doubt(visited, |visited, nth| {
        let headers = &visited.probes.get(nth)?.headers;
        if !headers.protocol.has_ports() {
            return None;
        }
        let asked = query(&visited.at, headers, 0);
        let this = fib.decide(&asked);
        let other = ports.iter().find_map(|port| {
            let query = LookupQuery {
                sport: Some(*port),
                ..asked.clone()
            };
            let other = fib.decide(&query);
            (other != this).then_some((*port, other))
        });
        let (port, other) = other?;
        let rules = [this.rule, other.rule];
        let rule = rules
            .into_iter()
            .flatten()
            .find(|rule| rule.sport.is_some());
        Some(format!(
            "{} looks at the source port, and sends a packet from port {port} another way; \
             --sport asks about one port",
            named(rule.as_ref())
        ))
    });
    Ok(())
}

/// The client's ports next to the ends of what rules select: all between two of them fare alike.
fn edges(rules: &[PolicyRule]) -> Vec<u16> {
    let ends = rules
        .iter()
        .filter_map(|rule| rule.sport)
        .flat_map(|range| {
            [
                range.first.saturating_sub(1),
                range.first,
                range.last,
                range.last.saturating_add(1),
            ]
        });
    let (first, last) = (CLIENT_PORTS.first, CLIENT_PORTS.last);
    let mut ports: Vec<u16> = ends.filter(|port| (first..=last).contains(port)).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Makes those verdicts UNKNOWN for which `why` has a reason.
fn doubt(visited: &mut Visited, why: impl Fn(&Visited, usize) -> Option<String>) {
    for nth in 0..visited.outcomes.len() {
        let Some(reason) = why(visited, nth) else {
            continue;
        };
        if let Some(outcome) = visited.outcomes.get_mut(nth) {
            outcome.verdict = Verdict::Unknown;
            outcome.exit = None;
            outcome.reason = Some(Arc::from(reason));
        }
    }
}

fn named(rule: Option<&PolicyRule>) -> String {
    rule.map_or_else(
        || "a policy rule".to_owned(),
        |r| format!("policy rule {r}"),
    )
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
        assert_eq!(edges(&[rule(1, 1023), rule(1024, 65_535)]), [0; 0]);
        assert_eq!(edges(&[rule(45_000, 65_534)]), [44_999, 45_000]);
        assert_eq!(edges(&[rule(50_000, 50_000)]), [49_999, 50_000, 50_001]);
    }
}
