//! From what was observed at one place to what became of each probe there, and where it went.

use std::{borrow::Cow, collections::HashMap, net::IpAddr, sync::Arc};

use super::{
    branch::Branch,
    omission,
    tables::{Out, Tables, classes, looks_at_ports, routed, selects},
    visit::{ENDS_HERE, VisitMeasurement},
    visited::{Ending, Fate, ProbeOutcome, Visited, WayOut},
};
use crate::{
    fault,
    firewall::{
        rule::{Field, Packet, PortChoice},
        taps::{Departed, ProbeWays},
    },
    lab::{
        Bridges, LabState,
        trace::{End, Entry, LastHop, Onward, anycast},
    },
    model::{IfName, Protocol, RouterName},
    netlink::{
        LookupKind, LookupQuery,
        object::{Family, PolicyRule},
    },
    run::{
        chosen_port::{ChosenPorts, PortRules},
        omitted::Omitted,
        packet::{Headers, Probe, position},
        report::{EndKind, LegHop, Verdict},
        resolve::ResolveError,
        verdict::Finding,
        way,
    },
};

/// Says what became of the probes of a visit, which left by `ways`. With `trust`, what the lab lacks
/// is only said; what `walks` comes in wherever the facts have it come in, and by all routers.
pub(super) fn digest(
    (lab, bridges): (&LabState, &Bridges<'_>),
    (trust, walks): (bool, bool),
    tables: &mut Tables<'_>,
    (at, probes): (&Entry, &[Probe]),
    (measured, ways): (&VisitMeasurement, Option<&ProbeWays>),
    branch: Option<&Arc<Branch>>,
) -> Result<Visited, ResolveError> {
    let omitted = lab.router(&at.router);
    let omitted = omitted.map_or_else(|_| Omitted::default(), |r| Omitted::of(lab, r, trust));
    let rules = tables.rules(&at.router)?;
    tables.ask_ahead(at, probes)?;
    let mut digest = Digest {
        lab,
        tables,
        at,
        rules: &rules,
        branch: branch.and_then(|branch| branch.way_out()),
        choosing: None,
        exits: Vec::new(),
        known: HashMap::new(),
        last: None,
    };
    let outcomes = probes.iter().map(|probe| outcome(measured, probe));
    let mut outcomes: Vec<ProbeOutcome> = outcomes.collect();
    match ways {
        Some(ways) => digest.as_noted(probes, measured, ways, &mut outcomes)?,
        None => digest.unchanged(probes, measured, &mut outcomes)?,
    }
    digest.explain_routes(probes, measured, &mut outcomes)?;
    let exits = digest.exits;
    if !omitted.is_empty() {
        let findings = &measured.findings;
        omission::weigh(
            (&omitted, bridges, walks),
            tables,
            (at, &rules),
            probes,
            (findings, &exits),
            &mut outcomes,
        )?;
    }
    refuse_anycast(lab, at, &mut outcomes, &exits);
    let planned = match probes.first() {
        Some(first) => tables
            .lookup(at, &first.headers, 0)
            .map(|l| (l.dev, l.via))?,
        None => (None, None),
    };
    Ok(Visited {
        at: at.clone(),
        probes: probes.to_vec(),
        outcomes,
        exits,
        hop: hop(at, None, None),
        planned,
        stateful: measured.nature.stateful,
        branch: branch.cloned(),
    })
}

/// Makes NO of connections to an address that is the router's only as the one that all routers of a subnet
/// have (`tcp_v6_conn_request()`); datagrams are taken there. Exits know no protocols.
fn refuse_anycast(lab: &LabState, at: &Entry, outcomes: &mut [ProbeOutcome], exits: &[WayOut]) {
    let routers = lab.routers.iter().filter(|r| r.name == at.router);
    let interfaces = routers.flat_map(|router| &router.interfaces);
    let own = interfaces.flat_map(|interface| &interface.addresses);
    let is_own = |address: &IpAddr| own.clone().any(|own| own.local.addr() == *address);
    let anycast: Vec<IpAddr> = own
        .clone()
        .filter_map(|own| anycast(own.local))
        .filter(|address| !is_own(address))
        .collect();
    let ends_here = |fate: &Fate| matches!(fate, Fate::End(end) if end.kind == EndKind::Itself);
    for outcome in outcomes {
        let exit = outcome.exit.and_then(|exit| exits.get(exit));
        let ends_here = exit.is_some_and(|exit| exit.fates.iter().all(ends_here));
        let to = outcome.headers.destination;
        let is_it = outcome.headers.protocol == Protocol::Tcp && anycast.contains(&to);
        if outcome.verdict == Verdict::Yes && ends_here && is_it {
            let why = format!(
                "{to} is an anycast address of {} (RFC 4291 section 2.6.1), at which Linux takes no \
                 connections",
                at.router
            );
            (outcome.verdict, outcome.exit) = (Verdict::No, None);
            outcome.reason = Some(why.into());
        }
    }
}

/// What became of a probe, before it is known how it left.
fn outcome(measured: &VisitMeasurement, probe: &Probe) -> ProbeOutcome {
    let finding = measured.findings.get(probe.index);
    let reason = measured.reasons.get(&probe.index);
    let (verdict, reason) = conclude(finding, reason);
    ProbeOutcome {
        verdict,
        reason: reason.map(Arc::from),
        exit: None,
        headers: probe.headers,
    }
}

/// Nothing could be sent there.
pub(super) fn unmeasured(at: &Entry, probes: &[Probe], why: &str) -> Visited {
    let why: Arc<str> = why.into();
    let outcome = |probe: &Probe| ProbeOutcome {
        verdict: Verdict::Unknown,
        reason: Some(Arc::clone(&why)),
        exit: None,
        headers: probe.headers,
    };
    Visited {
        at: at.clone(),
        probes: probes.to_vec(),
        outcomes: probes.iter().map(outcome).collect(),
        exits: Vec::new(),
        hop: hop(at, None, None),
        planned: (None, None),
        stateful: false,
        branch: None,
    }
}

/// Marks a probe that came in and did not come out, as long as nothing better is known.
const STOPPED: &str = "it came in and did not come out: stopped by the router";

/// What a finding and what was found out about it amount to at one router.
fn conclude(
    finding: Option<&Finding>,
    found: Option<&(Verdict, String)>,
) -> (Verdict, Option<String>) {
    let otherwise = |verdict, reason: &str| match found {
        Some((verdict, reason)) => (*verdict, Some(reason.clone())),
        None => (verdict, Some(reason.to_owned())),
    };
    match finding {
        Some(Finding::Passed | Finding::Delivered) => match found {
            Some((verdict, reason)) => (*verdict, Some(reason.clone())),
            None => (Verdict::Yes, None),
        },
        Some(Finding::Stopped | Finding::Refused) => otherwise(Verdict::No, STOPPED),
        Some(Finding::NotArrived) => otherwise(
            Verdict::Unknown,
            "the probe did not reach the router's PREROUTING",
        ),
        Some(Finding::NotSent(reason) | Finding::Undecided(reason)) => {
            (Verdict::Unknown, Some(reason.clone()))
        }
        Some(Finding::Unclear) => (
            Verdict::Unknown,
            Some("probes were lost before the router".to_owned()),
        ),
        None => (Verdict::Unknown, Some("it was not measured".to_owned())),
    }
}

fn left_as(came: &Headers, left: &Departed) -> Headers {
    Headers {
        source: left.source,
        destination: left.destination,
        source_port: left.source_port,
        destination_port: left.destination_port,
        tos: left.tos,
        ttl: if left.ttl == 0 { came.ttl } else { left.ttl },
        ..*came
    }
}

fn hop(at: &Entry, out: Option<IfName>, next_hop: Option<IpAddr>) -> Arc<LegHop> {
    Arc::new(LegHop {
        router: at.router.clone(),
        iface_in: at.iface_in.clone(),
        iface_out: out,
        next_hop,
        bridged: None,
    })
}

/// What probes that take the same way out have in common: what routing looked at, the policy rules
/// by port that select them; interface, next hop, mark, and the port of what was sent to the router itself.
type Key = (Headers, Vec<bool>, (u32, Option<IpAddr>, u32, Option<u16>));

struct Digest<'a, 't> {
    lab: &'a LabState,
    tables: &'a mut Tables<'t>,
    at: &'a Entry,
    rules: &'a [PolicyRule],
    /// The only way out of a copy.
    branch: Option<Out>,
    /// Rules that choose source ports, read when they are first needed.
    choosing: Option<PortRules>,
    exits: Vec<WayOut>,
    known: HashMap<Key, usize>,
    /// The last one that was found: mostly the next one is the same.
    last: Option<(Key, usize)>,
}

impl Digest<'_, '_> {
    fn exit(&mut self, hop: Arc<LegHop>, fates: Vec<Fate>) -> usize {
        self.exits.push(WayOut { hop, fates });
        self.exits.len() - 1
    }

    fn not_known(&mut self, why: &str) -> usize {
        let ending = Ending::new(Verdict::Unknown, EndKind::NotKnown, why);
        let same = |exit: &WayOut| exit.fates == [Fate::End(ending.clone())];
        match self.exits.iter().position(same) {
            Some(known) => known,
            None => self.exit(hop(self.at, None, None), vec![Fate::End(ending)]),
        }
    }

    /// Takes the ways by which probes were seen to leave.
    fn as_noted(
        &mut self,
        probes: &[Probe],
        measured: &VisitMeasurement,
        ways: &ProbeWays,
        outcomes: &mut [ProbeOutcome],
    ) -> Result<(), ResolveError> {
        for (probe, outcome) in probes.iter().zip(outcomes) {
            let finding = measured.findings.get(probe.index);
            if !matches!(finding, Some(Finding::Delivered | Finding::Passed)) {
                continue;
            }
            outcome.exit = Some(match ways.get(probe.index) {
                Some(Ok(left)) => {
                    outcome.headers = left_as(&probe.headers, left);
                    outcome.headers.chosen = self.chosen(&probe.headers, &outcome.headers);
                    self.noted(probe, left)?
                }
                Some(Err(why)) => self.not_known(why),
                None => self.not_known("it left, and how it left is not known"),
            });
        }
        Ok(())
    }

    /// What the source port of a probe was chosen from that came and left like that.
    fn chosen(&mut self, came: &Headers, left: &Headers) -> Option<ChosenPorts> {
        let moved = came.source_port != left.source_port;
        if !moved && came.source == left.source {
            return came.chosen;
        }
        let rules = self.choosing.get_or_insert_with(|| {
            PortRules::of(self.lab.routers.iter().filter(|r| r.name == self.at.router))
        });
        if rules.is_empty() && !moved {
            return came.chosen;
        }
        let packet = Packet::of(Family::of(came.source))
            .with(Field::Protocol, came.protocol.number())
            .with_address(Field::Source, came.source)
            .with_address(Field::Destination, left.destination)
            .with(Field::DestinationPort, left.destination_port);
        let found = rules.about(&packet, left.source, left.source_port);
        let any = ChosenPorts {
            ports: PortChoice::OF_ROUTERS,
            drawn: true,
        };
        match (found, moved) {
            (Some(found), _) => Some(ChosenPorts {
                drawn: found.drawn || moved,
                ..found
            }),
            (None, true) => Some(any),
            (None, false) => came.chosen,
        }
    }

    /// The exit of a probe of which it was noted how it left.
    fn noted(&mut self, probe: &Probe, left: &Departed) -> Result<usize, ResolveError> {
        let asked = Headers {
            source: probe.headers.source,
            source_port: probe.headers.source_port,
            tos: probe.headers.tos,
            ..left_as(&probe.headers, left)
        };
        let by_port = self.rules.iter().filter(|rule| looks_at_ports(rule));
        let selected = by_port.map(|rule| selects(rule, &asked)).collect();
        let sent_here = left.oif == 0 && probe.headers.destination != left.destination;
        // What is said of it names the port.
        let port = sent_here.then_some(asked.destination_port);
        let how = (left.oif, left.next_hop, left.mark, port);
        let key = (routed(&asked), selected, how);
        if let Some((last, exit)) = &self.last
            && *last == key
        {
            return Ok(*exit);
        }
        if let Some(&known) = self.known.get(&key) {
            self.last = Some((key, known));
            return Ok(known);
        }
        // Of copies for which lots are drawn one may have ended here and another gone on: the way tells, and
        // not what became of the first.
        let exit = if left.oif == 0 {
            self.local(&asked, sent_here)?
        } else {
            self.noted_out(&asked, left)?
        };
        self.known.insert(key.clone(), exit);
        self.last = Some((key, exit));
        Ok(exit)
    }

    fn noted_out(&mut self, asked: &Headers, left: &Departed) -> Result<usize, ResolveError> {
        let router = self.lab.router(&self.at.router);
        let interfaces = router.map_or(&[][..], |router| &router.interfaces);
        let out = interfaces.iter().find(|i| i.index == left.oif);
        let Some(out) = out.map(|i| i.name.clone()) else {
            return Ok(self.not_known("it left by an interface that the lab does not know"));
        };
        if fault::forgets("policy") {
            let outs = self.outs(&destination_alone(asked), 0)?;
            return Ok(self.out(&outs, (left.source, left.destination)));
        }
        let mut outs = Vec::new();
        // Tables were asked with the mark and the TOS that the packet had then, which may not be
        // those that it left with.
        for (tos, mark) in [
            (asked.tos, left.mark),
            (left.tos, left.mark),
            (asked.tos, 0),
        ] {
            let headers = Headers { tos, ..*asked };
            outs = self.outs(&headers, mark)?;
            if outs.iter().any(|(dev, _)| *dev == out) {
                break;
            }
            outs.clear();
        }
        let next_hop = left.next_hop.filter(|hop| *hop != left.destination);
        let through =
            |(dev, via): &&Out| *dev == out && next_hop.is_none_or(|hop| Some(hop) == *via);
        if outs.len() < 2 {
            // An IPv4 packet that goes to an IPv6 gateway has its destination for next hop.
            let via = outs.iter().find(through).and_then(|(_, via)| *via);
            outs = vec![(out, next_hop.or(via))];
        }
        Ok(self.out(&outs, (left.source, left.destination)))
    }

    /// The exits of probes that nothing can have changed, by look-ups.
    fn unchanged(
        &mut self,
        probes: &[Probe],
        measured: &VisitMeasurement,
        outcomes: &mut [ProbeOutcome],
    ) -> Result<(), ResolveError> {
        for local in [false, true] {
            let wanted = if local {
                Finding::Delivered
            } else {
                Finding::Passed
            };
            let is = |probe: &&Probe| measured.findings.get(probe.index) == Some(&wanted);
            let some: Cow<'_, [Probe]> = match probes.iter().all(|probe| is(&probe)) {
                true => Cow::Borrowed(probes),
                false => probes.iter().filter(is).copied().collect(),
            };
            for class in classes(self.rules, &some) {
                let Some(first) = class.first() else { continue };
                let exit = if local {
                    self.local(&first.headers, false)?
                } else {
                    self.unchanged_out(&first.headers)?
                };
                for probe in class.iter() {
                    let at = position(probes, probe.index, |p| p.index);
                    let Some(outcome) = at.and_then(|at| outcomes.get_mut(at)) else {
                        continue;
                    };
                    outcome.exit = Some(exit);
                    outcome.headers.ttl -= u8::from(!local && outcome.headers.ttl > 0);
                }
            }
        }
        Ok(())
    }

    fn unchanged_out(&mut self, headers: &Headers) -> Result<usize, ResolveError> {
        let outs = match fault::forgets("policy") {
            true => self.outs(&destination_alone(headers), 0)?,
            false => self.outs(headers, 0)?,
        };
        if outs.is_empty() {
            return Ok(self.not_known("it left, and the router's tables do not say where to"));
        }
        Ok(self.out(&outs, (headers.source, headers.destination)))
    }

    /// All ways out for such a packet; of a copy the one that it has.
    fn outs(&mut self, headers: &Headers, mark: u32) -> Result<Vec<Out>, ResolveError> {
        let outs = self.tables.outs(self.at, headers, mark)?;
        Ok(match &self.branch {
            Some(only) if outs.contains(only) => vec![only.clone()],
            _ => outs,
        })
    }

    /// The exit by these ways, each of which a packet of these addresses may take.
    fn out(&mut self, outs: &[Out], (source, destination): (IpAddr, IpAddr)) -> usize {
        let Some((first, via)) = outs.first() else {
            return self.not_known("it left, and how it left is not known");
        };
        let leg = hop(
            self.at,
            Some(first.clone()),
            Some(via.unwrap_or(destination)),
        );
        let why = match first.as_str() {
            "lo" => Some(format!(
                "{} sends it to {destination}, which is its own: such packets go by lo and are not measured",
                self.at.router
            )),
            _ if outs.iter().any(|(dev, _)| dev != first) => {
                Some(several(&self.at.router, outs, destination))
            }
            _ => None,
        };
        if let Some(why) = why {
            let ending = Ending::new(Verdict::Unknown, EndKind::NotKnown, why);
            return self.exit(leg, vec![Fate::End(ending)]);
        }
        let mut fates = Vec::new();
        for (dev, via) in outs {
            let next_hop = via.unwrap_or(destination);
            let wiring = self.tables.wiring;
            let onward = wiring.onward(&self.at.router, dev, next_hop, destination);
            let last = LastHop {
                router: self.at.router.as_str(),
                out: Some(dev),
                next_hop,
                source,
                destination,
            };
            for fate in behind(onward, &last) {
                if !fates.contains(&fate) {
                    fates.push(fate);
                }
            }
        }
        self.exit(leg, fates)
    }

    /// The end of a probe that reached the end of INPUT.
    fn local(&mut self, headers: &Headers, sent: bool) -> Result<usize, ResolveError> {
        let router = &self.at.router;
        let to = headers.destination;
        let netlink = self.tables.sockets.router(router)?;
        let kind = netlink.lookup_one(&LookupQuery::to(to));
        let kind = kind.map(|lookup| lookup.kind).ok();
        let ending = match kind {
            Some(LookupKind::Local) if sent => Ending::new(
                Verdict::Yes,
                EndKind::Itself,
                format!(
                    "{ENDS_HERE}: {router} sends it to {to} port {}, which is its \
                     own; judged at the end of INPUT",
                    headers.destination_port
                ),
            ),
            Some(LookupKind::Local) => Ending::new(
                Verdict::Yes,
                EndKind::Itself,
                format!("{to} is {router} itself"),
            ),
            Some(LookupKind::Broadcast) => broadcast(router, to),
            _ if matches!(to, IpAddr::V4(v4) if v4.is_broadcast()) => broadcast(router, to),
            _ if to.is_multicast() => Ending::new(
                Verdict::Unknown,
                EndKind::Multicast,
                format!("{router} sends it to {to}, a multicast address: who gets it is not known"),
            ),
            _ => Ending::new(
                Verdict::Yes,
                EndKind::Itself,
                format!(
                    "{ENDS_HERE}: {router} hands it to a program of its own, \
                     though {to} is elsewhere; judged at the end of INPUT"
                ),
            ),
        };
        let lo = "lo".parse().ok();
        Ok(self.exit(hop(self.at, lo, None), vec![Fate::End(ending)]))
    }

    /// Where no reason was looked for, the routes may say why a probe was stopped.
    fn explain_routes(
        &mut self,
        probes: &[Probe],
        measured: &VisitMeasurement,
        outcomes: &mut [ProbeOutcome],
    ) -> Result<(), ResolveError> {
        let unexplained: Vec<Probe> = probes
            .iter()
            .filter(|p| measured.findings.get(p.index) == Some(&Finding::Stopped))
            .filter(|p| !measured.reasons.contains_key(&p.index))
            .copied()
            .collect();
        for class in classes(self.rules, &unexplained) {
            let Some(first) = class.first() else { continue };
            let lookup = self.tables.lookup(self.at, &first.headers, 0)?;
            let Some(words) = way::nowhere(&lookup) else {
                continue;
            };
            let words: Arc<str> = words.into();
            for probe in class.iter() {
                let at = position(probes, probe.index, |p| p.index);
                if let Some(outcome) = at.and_then(|at| outcomes.get_mut(at)) {
                    outcome.reason = Some(Arc::clone(&words));
                }
            }
        }
        Ok(())
    }
}

/// Headers of which policy routing sees the addresses alone, for tests.
fn destination_alone(headers: &Headers) -> Headers {
    Headers {
        tos: 0,
        source_port: 0,
        destination_port: 0,
        ..*headers
    }
}

fn broadcast(router: &RouterName, to: IpAddr) -> Ending {
    let reason = format!("{to} is a broadcast address at {router}");
    Ending::new(Verdict::No, EndKind::Broadcast, reason)
}

fn several(router: &RouterName, outs: &[Out], destination: IpAddr) -> String {
    let one = |(dev, via): &Out| format!("{} by {dev}", via.unwrap_or(destination));
    let all: Vec<String> = outs.iter().map(one).collect();
    format!(
        "{router} has several next hops for it on several interfaces, and sends it to one of them: {}",
        all.join(", ")
    )
}

/// What comes of a packet that a router sends on.
fn behind(onward: Onward, last: &LastHop<'_>) -> Vec<Fate> {
    match onward {
        Onward::Routers(entries) => entries.into_iter().map(Fate::On).collect(),
        Onward::End(end) => vec![Fate::End(Ending {
            verdict: match end.arrives() {
                Some(true) => Verdict::Yes,
                Some(false) => Verdict::No,
                None => Verdict::Unknown,
            },
            kind: EndKind::from(&end),
            reason: (!matches!(end, End::Delivered { .. })).then(|| end.text(last).into()),
        })],
    }
}
