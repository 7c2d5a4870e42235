//! Routers that packets pass at layer 2: legs of their own, and where a way may end.
//!
//! A lab has no ports of bridges, so that the real connection passes none of their rules: these are
//! read.

use std::{collections::BTreeSet, mem, ops::RangeInclusive};

use super::{
    DetailedJob,
    result::{
        CameBy, DetailedEndToEnd, Direction, RouterTest, RouterWay, ServiceResult, ServiceStatus,
        TakenLeg,
    },
};
use crate::{
    firewall::rule::Packet,
    lab::{Bridges, Crossing, WireEnd, omission::AskedBridge},
    model::{IfName, Protocol, RouterName},
    run::{
        bridged,
        report::{EndKind, Verdict},
    },
};

/// The bridges that a service's packets passed and that their ways are held against, of those on the links
/// of `router`: only where all that passed an interface passed them.
pub(super) fn asked_apart(
    bridges: &Bridges<'_>,
    end: &DetailedEndToEnd,
    router: &RouterName,
) -> Vec<AskedBridge> {
    if bridges.is_empty() {
        return Vec::new();
    }
    let mut wires: Vec<(&IfName, Option<WireEnd<'_>>)> = Vec::new();
    for legs in [&end.way, &end.answer] {
        for (at, leg) in legs
            .iter()
            .enumerate()
            .filter(|(_, leg)| leg.router == *router)
        {
            let before = at.checked_sub(1).and_then(|at| legs.get(at));
            let before = before.and_then(|leg| Some((&leg.router, leg.iface_out.as_ref()?)));
            let next = legs.get(at + 1);
            let next = next.and_then(|leg| Some((&leg.router, leg.iface_in.as_ref()?)));
            wires.extend(leg.iface_in.as_ref().map(|name| (name, before)));
            wires.extend(leg.iface_out.as_ref().map(|name| (name, next)));
        }
    }
    let names: BTreeSet<&IfName> = wires.iter().map(|(name, _)| *name).collect();
    let apart = names.into_iter().flat_map(|name| {
        let others = wires.iter().filter(|(own, _)| *own == name);
        let others: Option<Vec<WireEnd<'_>>> = others.map(|(_, other)| *other).collect();
        bridges.asked((router, name), &others.unwrap_or_default())
    });
    apart.collect()
}

/// Puts the routers into a service's ways that its packets pass at layer 2, each with a test that says
/// whether its rules let them.
pub(super) fn cross(bridges: &Bridges<'_>, job: &DetailedJob, result: &mut ServiceResult) {
    if bridges.is_empty() {
        return;
    }
    let asked = Asked {
        bridges,
        trust: job.trust_facts,
        clients: bridged::client_ports(job.source_port),
        protocol: result.service.protocol,
    };
    for direction in [Direction::Request, Direction::Answer] {
        let way = match direction {
            Direction::Request => &mut result.end.way,
            Direction::Answer => &mut result.end.answer,
        };
        let (tests, ended) = asked.put_in(way, direction);
        for test in tests {
            keep(&mut result.tests, test);
        }
        if let Some(ended) = ended {
            ended.conclude(result, direction);
        }
    }
}

/// The wires that requests took from one router to the next that they were sent to.
pub(super) fn wires(results: &[ServiceResult]) -> impl Iterator<Item = (WireEnd<'_>, WireEnd<'_>)> {
    let wires = results.iter().flat_map(|of| {
        let routed = || of.end.way.iter().filter(|leg| leg.bridged.is_none());
        routed().zip(routed().skip(1))
    });
    wires.filter_map(|(from, to)| {
        let out = (&from.router, from.iface_out.as_ref()?);
        Some((out, (&to.router, to.iface_in.as_ref()?)))
    })
}

struct Asked<'a> {
    bridges: &'a Bridges<'a>,
    trust: bool,
    /// The ports that answers go to.
    clients: RangeInclusive<u16>,
    protocol: Protocol,
}

/// A router at layer 2 that stops a packet, or may.
struct Ended {
    router: RouterName,
    verdict: Verdict,
    why: String,
}

impl Asked<'_> {
    /// Adds the routers to a way, which ends at the first that surely stops the packet.
    fn put_in(
        &self,
        way: &mut Vec<TakenLeg>,
        direction: Direction,
    ) -> (Vec<RouterTest>, Option<Ended>) {
        let before = mem::take(way);
        let (mut tests, mut ended) = (Vec::new(), None);
        let mut nexts = before.iter().skip(1);
        for leg in &before {
            way.push(leg.clone());
            let next = nexts.next();
            let to = next.and_then(|leg| Some((&leg.router, leg.iface_in.as_ref()?)));
            let from = leg.iface_out.as_ref().map(|out| (&leg.router, out));
            let (Some(from), Some(to)) = (from, to) else {
                continue;
            };
            let packet = self.packet(leg, direction);
            for crossing in self.bridges.between(from, to) {
                let (verdict, why) = bridged::verdict(&crossing, &packet, self.trust);
                way.push(crossed(&crossing, verdict, leg));
                tests.push(test(&crossing, verdict, &why, direction));
                if verdict != Verdict::Yes && ended.is_none() {
                    ended = Some(Ended {
                        router: crossing.router.clone(),
                        verdict,
                        why,
                    });
                }
                if verdict == Verdict::No {
                    return (tests, ended);
                }
            }
        }
        (tests, ended)
    }

    fn packet(&self, leg: &TakenLeg, direction: Direction) -> Packet {
        let ends = (leg.headers.source, leg.headers.destination);
        match direction {
            Direction::Request => {
                let ports = (leg.headers.source_port, leg.headers.destination_port);
                bridged::request(self.protocol, ends, ports, self.clients.clone())
            }
            Direction::Answer => {
                let from = leg.headers.source_port;
                bridged::answer(self.protocol, ends, from, self.clients.clone())
            }
        }
    }
}

fn crossed(crossing: &Crossing<'_>, verdict: Verdict, before: &TakenLeg) -> TakenLeg {
    TakenLeg {
        router: crossing.router.clone(),
        iface_in: Some(crossing.comes.clone()),
        iface_out: Some(crossing.leaves.clone()),
        next_hop: None,
        came: before.headers,
        headers: before.headers,
        bridged: Some(verdict),
    }
}

fn test(crossing: &Crossing<'_>, verdict: Verdict, why: &str, direction: Direction) -> RouterTest {
    let status = match (verdict, direction) {
        (Verdict::Yes, _) => ServiceStatus::Ok,
        (Verdict::No, Direction::Request) => ServiceStatus::Timeout,
        (Verdict::No, Direction::Answer) => ServiceStatus::Partial,
        (Verdict::Unknown, _) => ServiceStatus::Unknown,
    };
    let (comes, leaves) = match direction {
        Direction::Request => (crossing.comes, crossing.leaves),
        Direction::Answer => (crossing.leaves, crossing.comes),
    };
    let message = match (why, direction) {
        ("", _) => "a bridge hands it on, and no rule there can stop it".to_owned(),
        (why, Direction::Request) => why.to_owned(),
        (why, Direction::Answer) => format!("the answer: {why}"),
    };
    let way = RouterWay {
        name: crossing.router.clone(),
        iface_in: Some(comes.clone()),
        iface_out: Some(leaves.clone()),
        next_hop: None,
    };
    RouterTest {
        reach: match direction {
            Direction::Request => CameBy::Reached,
            Direction::Answer => CameBy::ByAnswer,
        },
        ..RouterTest::not_made(&way, status, message)
    }
}

/// Adds a test of a bridge to those of a service, unless one of its router says as much.
fn keep(tests: &mut Vec<RouterTest>, test: RouterTest) {
    let known = tests.iter_mut().find(|known| known.router == test.router);
    match known {
        Some(known) if known.status.verdict() == Verdict::Yes => {
            if test.status.verdict() != Verdict::Yes {
                *known = test;
            }
        }
        Some(_) => {}
        None => tests.push(test),
    }
}

impl Ended {
    /// Makes the service end there, where it is not known already that it ends elsewhere.
    fn conclude(self, result: &mut ServiceResult, direction: Direction) {
        let end = &mut result.end;
        let open = end.result == Verdict::Unknown;
        let is_request = direction == Direction::Request;
        let settled = match (self.verdict, direction) {
            // It comes there whatever happens behind.
            (Verdict::No, Direction::Request) => open && end.kind == EndKind::Disagree,
            (_, Direction::Request) => open,
            (_, Direction::Answer) => end.result != Verdict::Yes,
        };
        let before = end.router.as_ref().filter(|_| open && is_request);
        if settled || before.is_some_and(|at| is_on(&end.way, at)) {
            return;
        }
        end.result = self.verdict;
        (end.status, end.kind) = match (self.verdict, direction) {
            (Verdict::No, Direction::Request) => (ServiceStatus::Timeout, EndKind::Stopped),
            (Verdict::No, Direction::Answer) => (ServiceStatus::Partial, EndKind::Stopped),
            _ => (ServiceStatus::Unknown, EndKind::NotKnown),
        };
        let of = if is_request { "" } else { "the answer: " };
        end.reason = Some(format!("{of}{}", self.why));
        end.router = Some(self.router);
        if (self.verdict, is_request) != (Verdict::No, true) {
            return;
        }
        end.answer.clear();
        for test in &mut result.tests {
            if test.counts() && !is_on(&result.end.way, &test.router) {
                test.reach = CameBy::NotReached;
            }
        }
    }
}

fn is_on(way: &[TakenLeg], router: &RouterName) -> bool {
    way.iter().any(|leg| leg.router == *router)
}

/// Puts each router that is only passed at layer 2 behind the one that packets pass before it.
pub(super) fn place(routers: &mut Vec<RouterWay>, results: &[ServiceResult]) {
    let request = |leg: &TakenLeg| (leg.iface_in.clone(), leg.iface_out.clone());
    let answer = |leg: &TakenLeg| (leg.iface_out.clone(), leg.iface_in.clone());
    for end in results.iter().map(|result| &result.end) {
        let forth = end.way.iter().map(|leg| (leg, request(leg)));
        put_in(routers, forth);
        put_in(
            routers,
            end.answer.iter().rev().map(|leg| (leg, answer(leg))),
        );
    }
}

type Interfaces = (Option<IfName>, Option<IfName>);

fn put_in<'a>(
    routers: &mut Vec<RouterWay>,
    legs: impl Iterator<Item = (&'a TakenLeg, Interfaces)>,
) {
    let mut next = 0;
    for (leg, (iface_in, iface_out)) in legs {
        let known = routers.iter().position(|way| way.name == leg.router);
        if let Some(known) = known {
            next = known + 1;
        } else if leg.bridged.is_some() {
            let way = RouterWay {
                name: leg.router.clone(),
                iface_in,
                iface_out,
                next_hop: None,
            };
            routers.insert(next, way);
            next += 1;
        }
    }
}
