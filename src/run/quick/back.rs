//! The answer's way: where the routers' tables lead what a service answers.
//!
//! It is looked up, not measured: whether the answer gets through is a detailed job's to say. But an
//! answer that misses a router which translated the request reaches nobody who waits for it, and
//! one that takes routers which were not asked may be stopped there. What mark rules give it is not
//! looked up: where a router's policy rules look at marks, it is said where each of these leads.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    tables::looks_at_ports,
    visited::Visited,
    walk::{VisitProbe, WayEnd},
};
use crate::{
    lab::{
        LabState,
        sockets::RouterSockets,
        trace::{self, End, EntryName, Hop, Onward, Trace, TraceError, TracePacket, Wiring},
    },
    model::{Protocol, RouterName},
    netlink::{LookupQuery, object::Family},
    run::{
        packet::Headers,
        report::{EndKind, Leg, Verdict},
    },
};

/// Holds every YES against the way of its answer.
pub(super) fn weigh(
    (lab, wiring): (&LabState, &Wiring),
    sockets: &mut RouterSockets,
    visited: &[Visited],
    ways: &mut [Vec<WayEnd>],
) {
    let mut last: Option<Known> = None;
    for way in ways.iter_mut().flatten() {
        let arrives = [EndKind::Delivered, EndKind::Itself, EndKind::Leaves].contains(&way.kind);
        if way.verdict != Verdict::Yes || !arrives {
            continue;
        }
        let same = last
            .as_mut()
            .is_some_and(|known| known.holds_for(visited, way, sockets));
        let found = match last.as_ref().filter(|_| same) {
            Some(known) => known.found.clone(),
            None => {
                let mut answer = Answer {
                    lab,
                    wiring,
                    sockets,
                    passages: passages(visited, &way.steps, &way.legs),
                    kind: way.kind,
                    passed: BTreeSet::new(),
                };
                let found = answer.find();
                last = Some(Known {
                    steps: way.steps.clone(),
                    legs: way.legs.clone(),
                    passed: answer.passed,
                    by_port: None,
                    found: found.clone(),
                });
                found
            }
        };
        if let Some(found) = found {
            found.tell(way);
        }
    }
}

/// What was found out of the answer of one way.
struct Known {
    steps: Vec<VisitProbe>,
    legs: Vec<Leg>,
    /// The routers that the answer passes.
    passed: BTreeSet<RouterName>,
    /// Whether one of them routes by ports; none while nobody has asked.
    by_port: Option<bool>,
    found: Option<Finding>,
}

impl Known {
    /// Whether the answer of another way is like this one: the two differ in ports only, which no
    /// router translated in one and not in the other, and by which none routes the answer.
    fn holds_for(
        &mut self,
        visited: &[Visited],
        way: &WayEnd,
        sockets: &mut RouterSockets,
    ) -> bool {
        let same = |(a, b): (&Leg, &Leg)| {
            Arc::ptr_eq(&a.hop, &b.hop) && (a.source, a.destination) == (b.source, b.destination)
        };
        let translated = |steps: &[VisitProbe], legs: &[Leg], at: usize| {
            let both = steps.get(at).zip(legs.get(at));
            both.is_some_and(|(step, leg)| {
                came(visited, step).is_some_and(|came| translates(came, leg))
            })
        };
        self.legs.len() == way.legs.len()
            && self.legs.iter().zip(&way.legs).all(same)
            && (0..way.legs.len()).all(|at| {
                translated(&self.steps, &self.legs, at) == translated(&way.steps, &way.legs, at)
            })
            && !self.routes_by_port(sockets)
    }

    fn routes_by_port(&mut self, sockets: &mut RouterSockets) -> bool {
        let family = self.legs.first().map(|leg| Family::of(leg.source));
        let passed = &self.passed;
        *self.by_port.get_or_insert_with(|| {
            passed.iter().any(|router| {
                let rules = sockets.router(router).map(|netlink| match family {
                    Some(family) => netlink.rules(family),
                    None => Ok(Vec::new()),
                });
                let Ok(Ok(rules)) = rules else { return true };
                rules.iter().any(looks_at_ports)
            })
        })
    }
}

/// What the answer's way is like, where it is not that of the request.
#[derive(Debug, Clone)]
enum Finding {
    /// It misses a router that translated the request.
    Misses(Arc<str>),
    /// Something that a reader should know.
    Note(Arc<str>),
}

impl Finding {
    fn tell(self, way: &mut WayEnd) {
        match self {
            Self::Misses(why) => {
                way.verdict = Verdict::Unknown;
                way.reason = Some(why);
            }
            Self::Note(note) => {
                way.reason = Some(match &way.reason {
                    Some(reason) => format!("{reason}; {note}").into(),
                    None => note,
                });
            }
        }
    }
}

/// A router of the request's way, with the packet before and behind it.
struct Passage {
    leg: Leg,
    came: Headers,
}

impl Passage {
    fn router(&self) -> &RouterName {
        &self.leg.hop.router
    }

    fn translates(&self) -> bool {
        translates(&self.came, &self.leg)
    }
}

/// Whether a router gave the packet other addresses or ports.
fn translates(came: &Headers, leg: &Leg) -> bool {
    let Headers {
        source,
        destination,
        source_port,
        destination_port,
        ..
    } = *came;
    (leg.source, leg.destination, leg.sport, leg.dport)
        != (source, destination, source_port, destination_port)
}

/// The headers of the probe of a step, as it came.
fn came<'a>(visited: &'a [Visited], step: &VisitProbe) -> Option<&'a Headers> {
    let probe = visited.get(step.visit)?.probes.get(step.position)?;
    Some(&probe.headers)
}

fn passages(visited: &[Visited], steps: &[VisitProbe], legs: &[Leg]) -> Vec<Passage> {
    let both = steps.iter().map(|step| came(visited, step)).zip(legs);
    both.filter_map(|(came, leg)| {
        Some(Passage {
            leg: leg.clone(),
            came: *came?,
        })
    })
    .collect()
}

struct Answer<'a> {
    lab: &'a LabState,
    wiring: &'a Wiring,
    sockets: &'a mut RouterSockets,
    passages: Vec<Passage>,
    kind: EndKind,
    /// The routers that it passes.
    passed: BTreeSet<RouterName>,
}

impl Answer<'_> {
    /// Where the answer comes in if no other router is on the link of the server; others may have its prefix
    /// on other links.
    fn only_entry(&self, last: &Leg) -> Option<EntryName> {
        let out = last.hop.iface_out.as_ref()?;
        let router = self.lab.router(&last.hop.router).ok()?;
        let link = router.interfaces.iter().find(|i| i.name == *out)?.segment?;
        let all = self
            .lab
            .routers
            .iter()
            .flat_map(|router| &router.interfaces);
        let alone = all.filter(|i| i.segment == Some(link)).count() == 1;
        alone.then(|| EntryName {
            router: last.hop.router.clone(),
            interface: Some(out.clone()),
        })
    }

    fn find(&mut self) -> Option<Finding> {
        let last = &self.passages.last()?.leg;
        let (from, to) = (last.destination, last.source);
        if self.kind == EndKind::Delivered
            && let Some(shared) = self.wiring.shared_link(to, from)
            && shared.or_on.is_empty()
        {
            let translators = self.translators();
            let bridging = shared.tracked_by.iter().map(RouterName::as_str);
            let bridging: Vec<&str> = bridging.filter(|r| translators.contains(r)).collect();
            let missed = match bridging.is_empty() {
                true => format!(
                    "misses {}, which translated the request",
                    translators.join(", ")
                ),
                false => format!(
                    "is bridged by {}, which translated the request and may translate the answer \
                     back (br_netfilter)",
                    bridging.join(", ")
                ),
            };
            let link = shared.segment;
            let why = format!(
                "{from} answers {to} directly, since both are on segment {link}, and the answer {missed}"
            );
            return (!translators.is_empty()).then(|| Finding::Misses(why.into()));
        }
        let answer = self.packet(last, (from, to));
        let start = match self.kind {
            EndKind::Leaves => Some(EntryName {
                router: last.hop.router.clone(),
                interface: last.hop.iface_out.clone(),
            }),
            EndKind::Delivered => self.only_entry(last),
            _ => None,
        };
        match trace::trace(self.wiring, self.sockets, &answer, start.as_ref()) {
            Ok(trace) => self.judge(&trace),
            Err(TraceError::NoStart { .. } | TraceError::NotFacing { .. }) => None,
            Err(error) => Some(Finding::Note(
                format!("the answer's way is not known: {error}").into(),
            )),
        }
    }

    fn packet(&self, leg: &Leg, (source, destination): (IpAddr, IpAddr)) -> TracePacket {
        let protocol = self.passages.first().map(|first| first.came.protocol);
        TracePacket {
            protocol,
            source_port: Some(leg.dport),
            destination_port: Some(leg.sport),
            ..TracePacket::new(source, destination)
        }
    }

    fn translators(&self) -> Vec<&str> {
        let all = self.passages.iter().filter(|passage| passage.translates());
        all.map(|passage| passage.router().as_str()).collect()
    }

    fn judge(&mut self, trace: &Trace) -> Option<Finding> {
        let ways: Vec<Reply> = trace
            .ways()
            .map(|(hops, end)| self.reply(trace, hops, end))
            .collect();
        let routers = ways.iter().flat_map(|way| way.routers.iter().cloned());
        self.passed.extend(routers);
        let is_open = ways.len() > 1;
        let may = if is_open { "may take" } else { "takes" };
        let marked = self.by_marks(&ways);
        if let Some(missed) = self.missed(&ways, &marked) {
            return Some(missed);
        }
        let asked: BTreeSet<&RouterName> = self.passages.iter().map(Passage::router).collect();
        let others: BTreeSet<&str> = ways
            .iter()
            .flat_map(|way| &way.routers)
            .filter(|router| !asked.contains(router))
            // Which of several it takes is of no matter where they let all answers pass.
            .filter(|router| !is_open || self.stops_answers(router))
            .map(RouterName::as_str)
            .collect();
        let mut notes = Vec::new();
        if !others.is_empty() {
            let others: Vec<&str> = others.into_iter().collect();
            let were = if others.len() > 1 { "were" } else { "was" };
            notes.push(format!(
                "the answer {may} {}, which {were} not asked",
                others.join(", ")
            ));
        }
        notes.extend(
            marked
                .iter()
                .filter_map(|way| way.note(&ways, &self.passages)),
        );
        let lost: BTreeSet<&String> = ways.iter().filter_map(|way| way.lost.as_ref()).collect();
        notes.extend(lost.into_iter().map(|lost| format!("the answer: {lost}")));
        (!notes.is_empty()).then(|| Finding::Note(notes.join("; ").into()))
    }

    /// That each way of the answer misses a router which translated the request.
    fn missed(&self, ways: &[Reply], marked: &[MarkedWay]) -> Option<Finding> {
        let translators = self.translators();
        let misses = |way: &Reply| {
            let mut all = translators.iter();
            all.find(|name| !way.routers.iter().any(|router| router.as_str() == **name))
                .map(|name| (*name).to_owned())
        };
        let missed = ways.iter().map(misses).min_by_key(Option::is_some)??;
        let passes = |way: &&MarkedWay| way.routers.iter().any(|r| r.as_str() == missed);
        let unless = marked.iter().find(passes).map_or(String::new(), |way| {
            format!(", unless rules of {} give it mark {:#x}", way.at, way.mark)
        });
        let why = format!(
            "the request gets there, but the answer does not pass {missed}, which translated the \
             request{unless}"
        );
        Some(Finding::Misses(why.into()))
    }

    /// Whether a router may stop answers whose request did not pass it.
    fn stops_answers(&self, router: &RouterName) -> bool {
        let family = self
            .passages
            .first()
            .map(|first| Family::of(first.came.source));
        let state = self.lab.router(router);
        state.map_or(true, |state| {
            let mut stops = state.unseen.iter();
            stops.any(|unseen| Some(unseen.family) == family)
        })
    }

    /// The ways that the answer takes if a router gives it a mark that its policy rules look at, where
    /// that leads to other routers than without.
    fn by_marks(&mut self, ways: &[Reply]) -> Vec<MarkedWay> {
        let mut marked: Vec<MarkedWay> = Vec::new();
        for way in ways {
            for (at, (hop, packet)) in way.looked.iter().enumerate() {
                let (Some(before), false) = (
                    way.routers.get(..=at),
                    marked.iter().any(|known| known.at == hop.router),
                ) else {
                    continue;
                };
                for (mark, behind) in self.marked_at(hop, packet) {
                    marked.push(MarkedWay {
                        at: hop.router.clone(),
                        mark,
                        routers: before.iter().chain(&behind).cloned().collect(),
                    });
                }
            }
        }
        marked
    }

    /// The routers that a packet passes behind `hop`, by each mark with which it goes on elsewhere.
    fn marked_at(&mut self, hop: &Hop, packet: &TracePacket) -> Vec<(u32, Vec<RouterName>)> {
        let Ok(netlink) = self.sockets.router(&hop.router) else {
            return Vec::new();
        };
        let rules = netlink.rules(Family::of(packet.destination));
        let rules = rules.unwrap_or_default();
        let marks = rules.iter().filter_map(|rule| rule.fwmark);
        let marks: BTreeSet<u32> = marks.map(|(mark, mask)| mark & mask).collect();
        let marks: Vec<u32> = marks.into_iter().filter(|mark| *mark != 0).collect();
        let query = |mark: &u32| LookupQuery {
            from: Some(packet.source),
            iif: hop.iface_in.clone(),
            mark: *mark,
            ip_proto: packet.protocol.map(Protocol::number),
            sport: packet.source_port,
            dport: packet.destination_port,
            ..LookupQuery::to(packet.destination)
        };
        let queries: Vec<LookupQuery> = marks.iter().map(query).collect();
        let looked = netlink.lookup(&queries).unwrap_or_default();
        let mut found = Vec::new();
        for (mark, looked) in marks.into_iter().zip(looked) {
            let Some((out, via)) = looked.ok().and_then(|way| Some((way.dev?, way.via))) else {
                continue;
            };
            let next_hop = via.unwrap_or(packet.destination);
            if (Some(&out), Some(next_hop)) == (hop.iface_out.as_ref(), hop.next_hop) {
                continue;
            }
            let wiring = self.wiring;
            let onward = wiring.onward(&hop.router, &out, next_hop, packet.destination);
            let Onward::Routers(entries) = onward else {
                continue;
            };
            let behind = entries.into_iter().map(|entry| EntryName {
                router: entry.router,
                interface: entry.iface_in,
            });
            for entry in behind {
                let trace = trace::trace(wiring, self.sockets, packet, Some(&entry));
                let hops = trace.map(|trace| trace.hops).unwrap_or_default();
                found.push((mark, hops.into_iter().map(|hop| hop.router).collect()));
            }
        }
        found
    }

    /// The routers of one way of the answer. At a router that translated the request it gets back the
    /// addresses that the request had before, and is routed by these.
    fn reply(&mut self, trace: &Trace, hops: &[Hop], end: &End) -> Reply {
        let mut reply = Reply {
            routers: Vec::new(),
            looked: Vec::new(),
            lost: None,
        };
        let mut packet = trace.packet.clone();
        let (mut hops, mut end) = (hops.to_vec(), end.clone());
        let mut lost = trace.end_of(&hops, &end);
        for _ in 0..self.passages.len() {
            let Some((at, before)) = self.undoes(&hops, &packet) else {
                break;
            };
            reply.look(&hops[..at], &packet);
            // The kernel gives it back its source behind the routing.
            let routed = TracePacket {
                source: packet.source,
                source_port: packet.source_port,
                ..before.clone()
            };
            packet = before;
            let Some(here) = self.way_from(&hops[at], &routed) else {
                // Where it goes from there is not known.
                reply.routers.push(hops[at].router.clone());
                return reply;
            };
            let (first, behind) = here.hops.split_at(here.hops.len().min(1));
            reply.look(first, &routed);
            lost = here.end_text();
            (hops, end) = match behind.first() {
                None => (Vec::new(), here.end),
                Some(next) => {
                    let Some(behind) = self.way_from(next, &packet) else {
                        reply.routers.push(next.router.clone());
                        return reply;
                    };
                    lost = behind.end_text();
                    (behind.hops, behind.end)
                }
            };
        }
        reply.look(&hops, &packet);
        reply.lost = (end.arrives() == Some(false)).then_some(lost);
        reply
    }

    /// The way of a packet from where `hop` says that it comes in; none where that is not known.
    fn way_from(&mut self, hop: &Hop, packet: &TracePacket) -> Option<Trace> {
        let entry = EntryName {
            router: hop.router.clone(),
            interface: hop.iface_in.clone(),
        };
        trace::trace(self.wiring, self.sockets, packet, Some(&entry)).ok()
    }

    /// The first of these routers that translated the request of which `packet` is the answer, by its
    /// place, and the answer as it goes on there.
    fn undoes(&self, hops: &[Hop], packet: &TracePacket) -> Option<(usize, TracePacket)> {
        let answers = |leg: &Leg| {
            (leg.source, Some(leg.sport)) == (packet.destination, packet.destination_port)
                && (leg.destination, Some(leg.dport)) == (packet.source, packet.source_port)
        };
        hops.iter().enumerate().find_map(|(at, hop)| {
            let mut here = self.passages.iter().rev();
            let passage = here.find(|passage| {
                *passage.router() == hop.router && passage.translates() && answers(&passage.leg)
            })?;
            let came = &passage.came;
            let before = Leg {
                source: came.source,
                sport: came.source_port,
                dport: came.destination_port,
                ..passage.leg.clone()
            };
            Some((at, self.packet(&before, (came.destination, came.source))))
        })
    }
}

/// A way that the answer takes where rules of a router give it a mark.
struct MarkedWay {
    at: RouterName,
    mark: u32,
    routers: Vec<RouterName>,
}

impl MarkedWay {
    /// What is to be said of it beside the ways without marks: which routers it passes that neither
    /// they nor the request do.
    fn note(&self, ways: &[Reply], passages: &[Passage]) -> Option<String> {
        let known = |router: &&RouterName| {
            let passed = || passages.iter().any(|passage| passage.router() == *router);
            ways.iter().any(|way| way.routers.contains(router)) || passed()
        };
        let others: BTreeSet<&str> = self
            .routers
            .iter()
            .filter(|router| !known(router))
            .map(RouterName::as_str)
            .collect();
        let others: Vec<&str> = others.into_iter().collect();
        let were = if others.len() > 1 { "were" } else { "was" };
        (!others.is_empty()).then(|| {
            format!(
                "where rules of {} give it mark {:#x}, the answer takes {}, which {were} not asked",
                self.at,
                self.mark,
                others.join(", ")
            )
        })
    }
}

/// One way of the answer.
struct Reply {
    routers: Vec<RouterName>,
    /// What was looked up at each of them.
    looked: Vec<(Hop, TracePacket)>,
    /// How it ends, where it does not get back.
    lost: Option<String>,
}

impl Reply {
    /// Adds routers at which this packet is looked up.
    fn look(&mut self, hops: &[Hop], packet: &TracePacket) {
        self.routers
            .extend(hops.iter().map(|hop| hop.router.clone()));
        let looked = hops.iter().map(|hop| (hop.clone(), packet.clone()));
        self.looked.extend(looked);
    }
}
