//! The server's own gateway, of which the facts of routers say nothing.

use std::net::IpAddr;

use super::result::{DetailedEndToEnd, KnownHeaders, ServiceStatus, TakenLeg};
use crate::{
    config::Config,
    lab::{
        self, LabState,
        sockets::RouterSockets,
        trace::{self, Entry, EntryName, Hop, TracePacket, Wiring},
        unseen::{AnswerRules, AnswerStop, PassingAnswer},
    },
    model::{IfName, LabName, Protocol, RouterName},
    run::report::{EndKind, Verdict},
};

/// The rules of a lab, read when an answer is first followed past routers that were not measured.
pub(super) struct KnownRules {
    config: Config,
    lab: LabName,
    read: Option<Result<AnswerRules, String>>,
}

impl KnownRules {
    pub(super) fn new(config: &Config, lab: &LabName) -> Self {
        Self {
            config: config.clone(),
            lab: lab.clone(),
            read: None,
        }
    }

    /// What stops the answer at `router`, or may stop it.
    fn stop(&mut self, router: &RouterName, answer: PassingAnswer<'_>) -> Option<AnswerStop> {
        let (config, lab) = (&self.config, &self.lab);
        let read = self.read.get_or_insert_with(|| {
            let topology = lab::topology_of(config, lab);
            topology
                .map(AnswerRules::of)
                .map_err(|error| error.to_string())
        });
        match read {
            Ok(rules) => rules.stop(router, answer),
            Err(error) => Some(AnswerStop {
                sure: false,
                wholesale: false,
                text: format!("rules that could not be read ({error}) may stop the answer"),
            }),
        }
    }
}

/// Why an answer that was measured may not come after all: by another gateway of the server whose rules
/// stop it or may, from which no way leads back, or from which those lead past a router that translated
/// the request; or why one that was lost may come: by another gateway, from which a way does. None where
/// there is no such. Whoever stands outside the lab and was sent the request by a gateway there may have
/// its answer sent to other routers, too.
pub(super) fn doubt(
    lab: &LabState,
    sockets: &mut RouterSockets,
    end: &DetailedEndToEnd,
    protocol: Protocol,
    (trust, rules): (bool, &mut KnownRules),
) -> Option<String> {
    let wiring = Wiring::from(lab);
    let last = end.way.last()?;
    let mut asked = Asked {
        rules,
        wiring: &wiring,
        sockets,
        end,
        protocol,
        answer: last.headers.reversed(),
        server: last.headers.destination,
        sender: last.next_hop.unwrap_or(last.headers.destination),
    };
    match (end.result, end.status, end.kind) {
        (Verdict::Yes, _, EndKind::Delivered | EndKind::Leaves) => asked.stopped(trust),
        (Verdict::No, ServiceStatus::Partial, _) => asked.carried(),
        _ => None,
    }
}

/// A service whose request arrived, and what is known of its answer.
struct Asked<'a> {
    rules: &'a mut KnownRules,
    wiring: &'a Wiring,
    sockets: &'a mut RouterSockets,
    end: &'a DetailedEndToEnd,
    protocol: Protocol,
    /// The answer, as the server sends it.
    answer: KnownHeaders,
    server: IpAddr,
    /// Who sends the answer to a router of the lab: the server, or the gateway outside that has it.
    sender: IpAddr,
}

/// Which routers are asked whether they stop what belongs to no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heeded {
    /// The first alone, whose hosts are known to be among those that it has rules for.
    First,
    All,
}

/// What routers make of an answer.
enum Course {
    /// It goes on behind the last of them as it was.
    On,
    /// One of them gave it back addresses that the request had before, and from there it gets back.
    Back,
    /// It is stopped at one of them, or lost from one on: why.
    Lost(String),
}

impl Asked<'_> {
    /// Why an answer that came may not come.
    fn stopped(&mut self, trust: bool) -> Option<String> {
        let server = self.server;
        if let Some(missing) = self.wiring.unheard(server).first().filter(|_| !trust) {
            return Some(format!(
                "the lab has no facts of {missing}, which may be the gateway by which {server} \
                 answers"
            ));
        }
        let legs = self.end.way.iter().chain(&self.end.answer);
        let passed: Vec<&RouterName> = legs.map(|leg| &leg.router).collect();
        let mut others = self.gateways();
        others.retain(|entry| !passed.contains(&&entry.router));
        others.into_iter().find_map(|entry| {
            let why = self.lost(&entry, Heeded::All)?;
            Some(self.said(&entry.router, &why))
        })
    }

    /// Why an answer that was lost may come.
    fn carried(&mut self) -> Option<String> {
        let first = &self.end.answer.first()?.router;
        let mut others = self.gateways();
        others.retain(|entry| entry.router != *first);
        let mut others = others.into_iter();
        let other = others.find(|entry| self.lost(entry, Heeded::First).is_none())?;
        let why = format!("by {first} the answer is lost, and from there a way leads back");
        Some(self.said(&other.router, &why))
    }

    /// Where the answer may come in.
    fn gateways(&self) -> Vec<Entry> {
        let client = self.answer.destination;
        let mut all = self.wiring.gateways_of(self.sender, client);
        // Other links may be numbered alike.
        let last = self.end.way.last();
        let link = last.and_then(|leg| self.link(&leg.router, leg.iface_out.as_ref()));
        all.retain(|entry| {
            let other = self.link(&entry.router, entry.iface_in.as_ref());
            link.is_none() || other.is_none() || other == link
        });
        all
    }

    /// The segment behind an interface.
    fn link(&self, router: &RouterName, interface: Option<&IfName>) -> Option<usize> {
        let mut plugs = self.wiring.plugs.iter();
        let plug = plugs.find(|p| p.router == *router && Some(&p.interface) == interface);
        plug?.segment
    }

    /// What becomes of the answer that enters there, where no way of it is known to get back by the
    /// routers that translated its request. The client knows an answer that does not pass them for
    /// none: it comes from whom it has not called.
    fn lost(&mut self, entry: &Entry, heeded: Heeded) -> Option<String> {
        let answer = self.answer;
        self.lost_from(entry, &answer, (heeded, 0))
    }

    /// The same, from where so many routers have given the answer back the addresses that the request
    /// had before them.
    fn lost_from(
        &mut self,
        entry: &Entry,
        answer: &KnownHeaders,
        (heeded, undone): (Heeded, usize),
    ) -> Option<String> {
        let at = EntryName {
            router: entry.router.clone(),
            interface: entry.iface_in.clone(),
        };
        let packet = TracePacket {
            protocol: Some(self.protocol),
            source_port: answer.source_port,
            destination_port: answer.destination_port,
            ..TracePacket::new(answer.source, answer.destination)
        };
        let trace = match trace::trace(self.wiring, self.sockets, &packet, Some(&at)) {
            Ok(trace) => trace,
            Err(error) => return Some(format!("what becomes of it there is not known: {error}")),
        };
        let mut why = None;
        for (hops, end) in trace.ways() {
            let lost = match self.course(hops, answer, (heeded, undone)) {
                Course::Back => return None,
                Course::Lost(why) => why,
                Course::On if end.arrives() != Some(true) => {
                    format!("from there {}", trace.end_of(hops, end))
                }
                Course::On => self.translator(answer).map(|router| {
                    format!("from there it goes past {router}, which translated the request")
                })?,
            };
            why.get_or_insert(lost);
        }
        why
    }

    /// What these routers make of the answer.
    fn course(
        &mut self,
        hops: &[Hop],
        answer: &KnownHeaders,
        (heeded, undone): (Heeded, usize),
    ) -> Course {
        for (number, hop) in hops.iter().enumerate() {
            let mut legs = self.end.way.iter().rev();
            let leg =
                legs.find(|leg| leg.router == hop.router && leg.headers.reversed() == *answer);
            match leg {
                Some(leg) if leg.came != leg.headers && undone < self.end.way.len() => {
                    let entry = Entry {
                        router: hop.router.clone(),
                        iface_in: hop.iface_in.clone(),
                    };
                    let before = leg.came.reversed();
                    return match self.lost_from(&entry, &before, (heeded, undone + 1)) {
                        Some(why) => Course::Lost(why),
                        None => Course::Back,
                    };
                }
                // The first one has just given it back its addresses.
                None if number == 0 && undone > 0 => {}
                leg => {
                    let seen = leg.is_some();
                    let first = number + undone == 0;
                    let place = (first, heeded, seen);
                    if let Some(stop) = self.stop_at(hop, answer, place) {
                        let at = match first {
                            true => "there".to_owned(),
                            false => format!("at {}", hop.router),
                        };
                        return Course::Lost(format!("{at} {stop}"));
                    }
                }
            }
        }
        Course::On
    }

    /// What stops the answer at the router of `hop`, or may stop it and is to be heeded. Whether that is
    /// the first router, and whether the request passed it, is told.
    fn stop_at(
        &mut self,
        hop: &Hop,
        answer: &KnownHeaders,
        (first, heeded, seen): (bool, Heeded, bool),
    ) -> Option<String> {
        if !first && heeded == Heeded::First {
            return None;
        }
        let measured = |leg: &TakenLeg| {
            let same = leg.router == hop.router && leg.headers == *answer && leg.came == *answer;
            let left = leg.iface_out.is_some() && leg.iface_out == hop.iface_out;
            same && left && leg.iface_in == hop.iface_in
        };
        if self.end.answer.iter().any(measured) {
            return None;
        }
        let passing = PassingAnswer {
            protocol: self.protocol,
            source: (answer.source, answer.source_port),
            destination: (answer.destination, answer.destination_port),
            interfaces: (hop.iface_in.as_ref()?, hop.iface_out.as_ref()),
            seen,
        };
        let stop = self.rules.stop(&hop.router, passing)?;
        let counts = match heeded {
            // Who stops the answers of all connections is nobody's gateway.
            Heeded::All => !(first && stop.wholesale),
            // An answer may come where nothing surely stops it.
            Heeded::First => stop.sure && !stop.wholesale,
        };
        counts.then_some(stop.text)
    }

    /// The router that should have given this answer back the addresses which the request had before.
    fn translator(&self, answer: &KnownHeaders) -> Option<&RouterName> {
        let mut legs = self.end.way.iter().rev();
        let leg = legs.find(|leg| leg.came != leg.headers && leg.headers.reversed() == *answer);
        leg.map(|leg| &leg.router)
    }

    fn said(&self, router: &RouterName, why: &str) -> String {
        let (server, sender) = (self.server, self.sender);
        let who = match sender == server {
            true => format!("by which {server} answers"),
            false => format!("to which {sender} sends answers"),
        };
        let client = self.answer.destination;
        if self.wiring.gateway_said(sender, client).is_some() {
            return format!("{router} is the gateway {who}, as links.toml says, and {why}");
        }
        format!(
            "{router} may be the gateway {who}, and {why}; a [[gateway]] in links.toml says which \
             one it is"
        )
    }
}
