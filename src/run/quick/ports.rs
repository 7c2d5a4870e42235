//! Policy rules that look at ports which a probe does not have, or which nobody asked for.

use std::sync::Arc;

use super::{
    QuickError,
    tables::{Tables, looks_at_ports, query},
    visited::Visited,
};
use crate::{
    firewall::{
        Caveat,
        rule::{Field, Packet},
    },
    lab::InterfaceState,
    model::Protocol,
    netlink::{LookupQuery, object::Family},
    run::{outside::OutsideReason, packet::Headers, report::Verdict, source_port},
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
/// connections, and a router may choose another one in its place. Where policy rules send some of them
/// another way, one probe says nothing of the others.
pub(super) fn doubt_open(
    tables: &mut Tables<'_>,
    visited: &mut Visited,
    any_port: bool,
) -> Result<(), QuickError> {
    if !source_port::matters(tables.rules(&visited.at.router)?.iter()) {
        return Ok(());
    }
    let fib = tables.fib(&visited.at.router)?;
    doubt(visited, |visited, nth| {
        let headers = &visited.probes.get(nth)?.headers;
        if !headers.protocol.has_ports() {
            return None;
        }
        let packet = query(&visited.at, headers, 0);
        source_port::doubt(&fib, &packet, headers.open_ports(any_port))
    });
    Ok(())
}

/// The same where rules ask sets of ipset(8) for the source port, which `by_set` are.
pub(super) fn doubt_sets(by_set: &[String], visited: &mut Visited, any_port: bool) {
    if by_set.is_empty() {
        return;
    }
    doubt(visited, |visited, nth| {
        let headers = &visited.probes.get(nth)?.headers;
        let outcome = visited.outcomes.get(nth)?;
        let open = outcome.verdict != Verdict::Unknown && headers.protocol.has_ports();
        let both = [headers, &outcome.headers].into_iter();
        let packet = Packet::of(Family::of(headers.destination))
            .with(Field::Protocol, headers.protocol.number());
        let packet = both.fold(packet, |packet, headers| {
            packet
                .with(Field::DestinationPort, headers.destination_port)
                .with_address(Field::Source, headers.source)
                .with_address(Field::Destination, headers.destination)
        });
        let rule = source_port::by_set(by_set, &packet, headers.open_ports(any_port))?;
        // What another rule stops it stops from any port.
        let told = outcome.reason.as_deref().unwrap_or_default();
        let by_another = outcome.verdict == Verdict::No && !told.contains(rule.as_str());
        (open && !by_another).then(|| Caveat::SourcePort(rule.clone()).to_string())
    });
}

/// Judges probes that left by how long they are, where no tap sees that they go no further. IPv6
/// compares a packet with its route's own MTU behind the last chain (`ip6_fragment()`). And a route's
/// MTU above that of its interface has the kernel send what the link may not take
/// (`ip_dst_mtu_maybe_forward()`).
pub(super) fn judge_lengths(
    tables: &mut Tables<'_>,
    interfaces: &[InterfaceState],
    visited: &mut Visited,
) -> Result<(), QuickError> {
    for nth in 0..visited.outcomes.len() {
        let Some((outcome, length)) = visited.outcomes.get(nth).and_then(|outcome| {
            let left = outcome.exit.is_some() && outcome.verdict == Verdict::Yes;
            Some((outcome, outcome.headers.size.filter(|_| left)?))
        }) else {
            continue;
        };
        let exit = outcome.exit.and_then(|exit| visited.exits.get(exit));
        let Some(out) = exit.and_then(|exit| exit.hop.iface_out.clone()) else {
            continue;
        };
        let asked = Headers {
            ttl: 0,
            ..outcome.headers
        };
        let length = u32::from(length);
        let v6 = asked.destination.is_ipv6();
        let way = v6.then(|| tables.lookup(&visited.at, &asked, 0));
        let way = way
            .transpose()?
            .filter(|way| way.dev.as_ref() == Some(&out));
        let of_route = way.and_then(|way| way.mtu.filter(|mtu| length > *mtu));
        let mut own = interfaces.iter().filter(|i| i.name == out);
        let own = own.find_map(|interface| interface.mtu.filter(|mtu| length > *mtu));
        let (verdict, reason) = match (of_route, own) {
            (Some(mtu), _) => {
                let too_big = OutsideReason::TooBig {
                    length,
                    dev: out,
                    mtu,
                    of_route: true,
                };
                too_long(asked.protocol, &too_big)
            }
            (None, Some(mtu)) => (
                Verdict::Unknown,
                format!(
                    "its route has a larger MTU than {out} and lets {length} bytes go out there: \
                     whether a link of MTU {mtu} takes them is not known"
                ),
            ),
            (None, None) => continue,
        };
        if let Some(outcome) = visited.outcomes.get_mut(nth) {
            outcome.verdict = verdict;
            outcome.exit = None;
            outcome.reason = Some(Arc::from(reason));
        }
    }
    Ok(())
}

/// What to say of a probe that is longer than a link takes. No client of TCP sends such a segment if
/// it knows a smaller maximum.
pub(super) fn too_long(protocol: Protocol, too_big: &OutsideReason) -> (Verdict, String) {
    match protocol {
        Protocol::Tcp => (
            Verdict::Unknown,
            format!(
                "{too_big}; whether a connection has such long segments depends on the maximum \
                 segment size that its ends agree on, and on path MTU discovery: a detailed job \
                 shows it"
            ),
        ),
        _ => (Verdict::No, too_big.to_string()),
    }
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
