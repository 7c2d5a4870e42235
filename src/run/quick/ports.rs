//! Policy rules that look at ports which a probe does not have, or which nobody asked for.

use std::sync::Arc;

use super::{
    QuickError,
    tables::{Tables, looks_at_ports, query},
    visited::Visited,
};
use crate::{
    netlink::LookupQuery,
    run::{
        report::Verdict,
        source_port::{self, Side},
    },
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
            let rule = rule.map_or_else(
                || "a policy rule".to_owned(),
                |rule| format!("policy rule {rule}"),
            );
            format!(
                "{rule} looks at protocol or ports, by which a probe that the router sends itself \
                 is not routed"
            )
        })
    });
    Ok(())
}

/// Where a question leaves the source port open, a host may use any that it gives to its
/// connections. Where policy rules send some of them another way, one probe says nothing of the
/// others.
pub(super) fn doubt_open(tables: &mut Tables<'_>, visited: &mut Visited) -> Result<(), QuickError> {
    if !source_port::matters(tables.rules(&visited.at.router)?.iter(), Side::Source) {
        return Ok(());
    }
    let fib = tables.fib(&visited.at.router)?;
    doubt(visited, |visited, nth| {
        let headers = &visited.probes.get(nth)?.headers;
        if !headers.protocol.has_ports() {
            return None;
        }
        source_port::doubt(&fib, &query(&visited.at, headers, 0), Side::Source)
    });
    Ok(())
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
