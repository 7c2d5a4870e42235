//! What the lab lacks, weighed against what became of the probes at one place.

use super::{
    tables::{Tables, classes, routed},
    visited::{Fate, ProbeOutcome, WayOut},
};
use crate::{
    firewall::rule::{Field, Packet, PortChoice, TrackingState},
    lab::{
        Bridges,
        omission::{self, AskedBridge, Endpoints},
        trace::{Entry, Wiring},
    },
    model::{IfName, Protocol},
    netlink::object::{Family, PolicyRule},
    run::{
        omitted::{KnownPacket, Omitted},
        packet::{Headers, Probe, TCP_SYN, position},
        report::Verdict,
        resolve::ResolveError,
        verdict::{Finding, Findings},
    },
};

/// Makes unknown what something can change that the router lacks; but not what bridges may stop that the way
/// is held against as it `walks` from one router to the next.
pub(super) fn weigh(
    (omitted, bridges, walks): (&Omitted, &Bridges<'_>, bool),
    tables: &mut Tables<'_>,
    (at, rules): (&Entry, &[PolicyRule]),
    probes: &[Probe],
    (findings, exits): (&Findings, &[WayOut]),
    outcomes: &mut [ProbeOutcome],
) -> Result<(), ResolveError> {
    let planned = planned_outs(tables, at, rules, (probes, outcomes))?;
    let by_ports = [false, true].map(|behind_nat| omitted.looks_at_ports(behind_nat));
    let behind = exits.iter().map(|exit| asked_apart(bridges, at, exit));
    let behind: Vec<Vec<AskedBridge>> = behind.collect();
    let apart = |exit: Option<usize>, before: Vec<AskedBridge>| {
        let behind = exit.and_then(|exit| behind.get(exit)).into_iter();
        behind.flatten().cloned().chain(before).collect()
    };
    let wiring = tables.wiring;
    let mut last: Option<(Alike, Option<String>)> = None;
    for ((probe, outcome), planned) in probes.iter().zip(outcomes).zip(planned) {
        if outcome.verdict == Verdict::Unknown {
            continue;
        }
        let hop = outcome.exit.and_then(|exit| exits.get(exit));
        let out = hop.and_then(|exit| exit.hop.iface_out.as_ref());
        let finding = findings.get(probe.index);
        let note = || {
            omitted.note(&KnownPacket {
                planned,
                came: came(at, out, &probe.headers),
                apart: apart(
                    outcome.exit,
                    asked_before((bridges, wiring, walks), at, out, probe),
                ),
                ..seen(at, out, probe, outcome, finding)
            })
        };
        let (came, left) = (&probe.headers, &outcome.headers);
        let [forwarded, delivered] =
            [Finding::Passed, Finding::Delivered].map(|f| finding == Some(&f));
        let alike = Alike {
            protocol: came.protocol,
            headers: [routed(came), routed(left)],
            exit: outcome.exit,
            became: [forwarded, delivered],
        };
        let note = match &last {
            Some((same, note)) if !by_ports[usize::from(out.is_some())] && *same == alike => {
                note.clone()
            }
            _ => note(),
        };
        if let Some(note) = &note {
            let reason = outcome.reason.as_deref().map(str::to_owned);
            let (verdict, reason) = omitted.told(outcome.verdict, reason, note);
            (outcome.verdict, outcome.reason) = (verdict, reason.map(Into::into));
        }
        last = Some((alike, note));
    }
    Ok(())
}

/// The bridges that whatever leaves so passes, and that the way itself is held against.
fn asked_apart(bridges: &Bridges<'_>, at: &Entry, exit: &WayOut) -> Vec<AskedBridge> {
    let Some(out) = exit.hop.iface_out.as_ref() else {
        return Vec::new();
    };
    let next = exit.fates.iter().map(|fate| match fate {
        Fate::On(next) => Some((&next.router, next.iface_in.as_ref()?)),
        Fate::End(_) => None,
    });
    // What comes in by the same interface may pass a bridge there, too.
    let Some(next) = next
        .collect::<Option<Vec<_>>>()
        .filter(|_| at.iface_in.as_ref() != Some(out))
    else {
        return Vec::new();
    };
    bridges.asked((&at.router, out), &next)
}

/// The bridges that whatever comes in there passes.
fn asked_before(
    (bridges, wiring, walks): (&Bridges<'_>, &Wiring, bool),
    at: &Entry,
    out: Option<&IfName>,
    probe: &Probe,
) -> Vec<AskedBridge> {
    if bridges.is_empty() || !walks || at.iface_in.as_ref() == out {
        return Vec::new();
    }
    let senders = wiring.senders(at, probe.headers.source);
    match (&at.iface_in, senders) {
        (Some(iif), Some(senders)) => bridges.asked_before((&at.router, iif), &senders),
        _ => Vec::new(),
    }
}

/// All by which omissions tell probes apart that do not look at ports.
#[derive(PartialEq)]
struct Alike {
    protocol: Protocol,
    /// As it came, and as it left.
    headers: [Headers; 2],
    exit: Option<usize>,
    /// Whether it was forwarded, or delivered.
    became: [bool; 2],
}

/// What is known of a packet at a router, for what the lab lacks to be weighed against it.
fn seen(
    at: &Entry,
    out: Option<&IfName>,
    probe: &Probe,
    outcome: &ProbeOutcome,
    finding: Option<&Finding>,
) -> KnownPacket {
    let (course, became) = match finding {
        // Without an incoming interface it is the router's own.
        Some(Finding::Passed) => {
            let course = match at.iface_in {
                Some(_) => Endpoints::Forwarded,
                None => Endpoints::Sent,
            };
            (Some(course), omission::PacketOutcome::Passed)
        }
        Some(Finding::Delivered) => (Some(Endpoints::Delivered), omission::PacketOutcome::Passed),
        _ => (None, omission::PacketOutcome::Stopped(None)),
    };
    let came = &probe.headers;
    let mut packet = Packet::of(Family::of(came.destination))
        .with(Field::Protocol, came.protocol.number())
        .with_state(TrackingState::New)
        .with_state(TrackingState::Untracked);
    // As it came, and as it left.
    for headers in [came, &outcome.headers] {
        packet = packet
            .with(Field::DestinationPort, headers.destination_port)
            .with(Field::SourcePort, headers.source_port)
            .with_address(Field::Source, headers.source)
            .with_address(Field::Destination, headers.destination);
        // Whichever a client has, or a router gives it.
        let chosen = headers.chosen.map(|chosen| chosen.ports);
        let open = [Some(PortChoice::OF_CLIENTS), chosen];
        packet = open.into_iter().flatten().fold(packet, |packet, ports| {
            packet.within(Field::SourcePort, ports.first.into(), ports.last.into())
        });
    }
    if let Some(iif) = &at.iface_in {
        packet = packet.with_device(Field::Incoming, iif.as_str());
    }
    if let Some(oif) = out.filter(|oif| oif.as_str() != "lo") {
        packet = packet.with_device(Field::Outgoing, oif.as_str());
    }
    KnownPacket {
        packet,
        course,
        outcome: became,
        behind_nat: out.is_some(),
        came: None,
        planned: None,
        apart: Vec::new(),
    }
}

/// A probe as it came in; none where the router itself sent it. Clients may choose other source
/// ports.
fn came(at: &Entry, out: Option<&IfName>, headers: &Headers) -> Option<Packet> {
    let mut packet = Packet::of(Family::of(headers.destination))
        .with(Field::Protocol, headers.protocol.number())
        .with(Field::DestinationPort, headers.destination_port)
        .with_address(Field::Source, headers.source)
        .with_address(Field::Destination, headers.destination)
        .with(Field::Tos, headers.tos)
        // Nothing carries marks from one namespace to the next.
        .with(Field::Mark, 0_u32)
        .with(Field::ConnectionMark, 0_u32)
        .with_device(Field::Incoming, at.iface_in.as_ref()?.as_str());
    if headers.protocol == Protocol::Tcp {
        packet = packet.with(Field::TcpFlags, TCP_SYN);
    }
    Some(match out.filter(|oif| oif.as_str() != "lo") {
        Some(oif) => packet.with_device(Field::Outgoing, oif.as_str()),
        None => packet,
    })
}

/// By which interface each probe would leave that did not, if its headers alone decided.
fn planned_outs(
    tables: &mut Tables<'_>,
    at: &Entry,
    rules: &[PolicyRule],
    (probes, outcomes): (&[Probe], &[ProbeOutcome]),
) -> Result<Vec<Option<IfName>>, ResolveError> {
    let stopped = probes.iter().zip(outcomes);
    let stopped = stopped.filter(|(_, outcome)| outcome.exit.is_none());
    let stopped: Vec<Probe> = stopped.map(|(probe, _)| *probe).collect();
    let mut planned = vec![None; probes.len()];
    for class in classes(rules, &stopped) {
        let Some(first) = class.first() else { continue };
        let out = tables.lookup(at, &first.headers, 0)?.dev;
        for probe in class.iter() {
            let at = position(probes, probe.index, |p| p.index);
            if let Some(slot) = at.and_then(|at| planned.get_mut(at)) {
                slot.clone_from(&out);
            }
        }
    }
    Ok(planned)
}
