//! What an attempt means: from packets, counters and the client's experience to a result.

use std::net::IpAddr;

use super::{Bench, CounterReading, moved::Departure};
use crate::{
    firewall::nft::trace::{
        ProbeExit, StoppedBy,
        flow::{FlowHead, FlowPacket},
    },
    lab::trace::{End, LastHop, Onward, anycast},
    model::IfName,
    run::{
        detailed::{
            DetailedError,
            attempt::Tried,
            connect::Experience,
            head,
            journey::SeenPackets,
            judge::{Judged, Observation, PacketFate, Proxied, is_settled, judge},
            millis,
            post::Evidence,
            result::{
                CameBy, DetailedEndToEnd, Direction, Measured, RouterTest, RouterWay,
                ServiceStatus, ServiceTest, TakenLeg,
            },
            site::{Sink, Task, TransparentProxy},
        },
        report::{EndKind, Verdict},
    },
};

/// A result that waiting longer may change.
pub(super) struct UndecidedResult {
    pub(super) task: Task,
    pub(super) test: ServiceTest,
    found: Found,
}

/// What the packets of an attempt showed, all routers together.
#[derive(Debug, Clone)]
struct Found {
    request: PacketFate,
    answer: PacketFate,
    /// Whether a router sent something to the source by itself, and it went out.
    own_left: bool,
    /// Whether the packets of all routers were seen.
    traced: bool,
    /// The routers at which the request and the answer ended, or were seen last.
    ends: (usize, usize),
    /// What may end otherwise another time, by router.
    doubts: Vec<(usize, String)>,
    /// The router with a rule that hands the request to a program which the lab has not.
    proxied: Option<(usize, Proxied)>,
}

impl UndecidedResult {
    /// The rule that hands the request to a program which nobody stands for yet, with its router.
    pub(super) fn proxied(&self) -> Option<&(usize, Proxied)> {
        self.found.proxied.as_ref()
    }
}

impl Found {
    /// Whether it is known where the request goes: no program may take it, and then it goes on.
    fn goes_somewhere(&self) -> bool {
        !matches!(self.request, PacketFate::Untaken(_))
    }
}

impl Bench<'_> {
    /// What an attempt means, and whether that is the last word.
    pub(super) fn examine(
        &mut self,
        task: Task,
        (tried, seen): (&Tried, &SeenPackets),
        before: &[CounterReading],
        attempts: u32,
    ) -> Result<(UndecidedResult, bool), DetailedError> {
        let answered = matches!(tried.experience, Some(Experience::Answered(_)));
        let mut evidence = Vec::with_capacity(self.posts.len());
        for ((post, seen), before) in self.posts.iter_mut().zip(&seen.at).zip(before) {
            evidence.push(post.examine(seen, before, answered)?);
        }
        let found = self.found(tried, seen, &evidence);
        let facts = self.facts(tried, &found);
        let judged = judge(&facts);
        let settled = self.setup.patient || is_settled(&facts) || !found.doubts.is_empty();
        let mut tests = self.tests(task, seen, evidence);
        for (_, test) in &mut tests {
            test.attempts = attempts;
            if tried.overrun {
                let lost = "trace events were lost: what the trace shows may be incomplete";
                test.warnings.push(lost.to_owned());
            }
        }
        let way = self.legs(seen, Direction::Request);
        let back = self.legs(seen, Direction::Answer);
        let mut test = ServiceTest {
            tests: tests.into_iter().map(|(_, test)| test).collect(),
            end: DetailedEndToEnd::unknown(String::new()),
        };
        test.end.way = way;
        test.end.answer = back;
        self.say(&mut test, task, tried, (&judged, &found));
        self.qualify(&mut test, tried, seen);
        self.doubt(&mut test, &found);
        Ok((UndecidedResult { task, test, found }, settled))
    }

    /// What became of request and answer, over all routers.
    fn found(&mut self, tried: &Tried, seen: &SeenPackets, evidence: &[Evidence]) -> Found {
        let left = |p: &FlowPacket| p.stopped_by() == StoppedBy::Nothing(ProbeExit::Out);
        let mut sightings = seen.at.iter().flatten();
        let own_left = sightings.any(|s| s.packet.is_own() && left(&s.packet));
        let (mut request, at) = overall(seen, evidence, Direction::Request);
        let mut proxied = None;
        match self.site.target.sink.proxy() {
            None => {
                let mut all = evidence.iter().enumerate();
                proxied = all.find_map(|(at, evidence)| Some((at, evidence.proxied.clone()?)));
            }
            Some(proxy) => request = with_listener(proxy, request),
        }
        if request == PacketFate::Passed
            && (tried.arrived.is_none() && tried.experience.is_none())
            && let Some(why) = self.unanswered(seen)
        {
            request = PacketFate::Unanswered(why);
        }
        let (mut answer, mut back) = overall(seen, evidence, Direction::Answer);
        if answer == PacketFate::NotSeen {
            back = at;
            if let (Some(link), Some(peer)) = (&self.site.link, tried.arrived)
                && link.loses(peer.ip())
            {
                answer = if link.has_source && peer.ip() == self.site.from() {
                    PacketFate::Direct {
                        tracked_by: link.tracked_by.clone(),
                    }
                } else {
                    PacketFate::Unowned(peer.ip())
                };
            }
        } else if answer == PacketFate::Passed
            && let Some(fate) = self.astray(seen)
        {
            answer = fate;
        }
        Found {
            request,
            answer,
            own_left,
            traced: self.posts.iter().all(|post| post.watch.is_some()) && !tried.overrun,
            ends: (at, back),
            doubts: evidence
                .iter()
                .enumerate()
                .filter_map(|(at, evidence)| Some((at, evidence.doubt.clone()?)))
                .collect(),
            proxied,
        }
    }

    /// Whom the last router of the request asks in vain for a hardware address, in words; none where it does
    /// not, or nobody knows.
    fn unanswered(&mut self, seen: &SeenPackets) -> Option<String> {
        let (at, packet) = *seen.first(Direction::Request).last()?;
        let left = self.departure(at, packet)?;
        let asks = self
            .posts
            .get_mut(at)?
            .asks_in_vain(&left.interface, left.hop);
        let protocol = match left.hop {
            IpAddr::V4(_) => "ARP",
            IpAddr::V6(_) => "neighbour discovery",
        };
        asks.then(|| {
            format!(
                "no answer: {} asks for {} by {protocol} on {}, and nobody answers",
                left.router, left.hop, left.interface
            )
        })
    }

    /// The answer's end, if it left the last router for somewhere where the source host is not.
    fn astray(&mut self, seen: &SeenPackets) -> Option<PacketFate> {
        let (at, packet) = *seen.first(Direction::Answer).last()?;
        if packet.stopped_by() != StoppedBy::Nothing(ProbeExit::Out) {
            return None;
        }
        let left = self.departure(at, packet)?;
        let home = self.site.homes.iter().any(|key| {
            key.router.router == left.router
                && key.interface == left.interface
                && key.address == left.hop
        });
        // What goes to the server's neighbour entry comes to the server's host.
        let to_server = self.site.destination.is_some()
            && matches!(&self.site.target.sink, Sink::Host { router, interface, hop, .. }
                if *router == left.router && *interface == left.interface && *hop == left.hop);
        if home && to_server {
            return Some(PacketFate::Ambiguous(left.hop));
        }
        let held = match &left.onward {
            Onward::Routers(routers) => {
                routers.iter().any(|r| self.site.place(&r.router).is_some())
            }
            _ => false,
        };
        if home || held {
            return None;
        }
        // A gateway that the lab has not may bring it back.
        let by_gateway = left.hop != packet.last.destination;
        let leaves = match &left.onward {
            Onward::End(End::Leaves { .. }) => {
                by_gateway || !self.setup.map.is_inside(self.site.from())
            }
            Onward::End(End::Elsewhere { .. } | End::SomeEnd { .. } | End::Absent { .. }) => {
                by_gateway
            }
            _ => false,
        };
        if leaves && self.site.whole {
            return Some(PacketFate::Outside(left.interface, left.hop));
        }
        Some(PacketFate::Astray(left.interface))
    }

    fn facts<'f>(&'f self, tried: &'f Tried, found: &Found) -> Observation<'f> {
        Observation {
            experience: tried.experience.as_ref(),
            traced: found.traced,
            request: found.request.clone(),
            answer: found.answer.clone(),
            own_left: found.own_left,
            arrived: tried.arrived.is_some(),
            destination: self.site.target.sink.address().unwrap_or(self.site.to),
            called: self.site.to,
            routers: self.posts.iter().flat_map(|p| &p.addresses).collect(),
            turns_back: self.site.turns_back,
            itself: self.site.source.host().is_none(),
            anycast: self.is_anycast(),
        }
    }

    /// Whether packets end on a router at an address that is not its own but as the one of a subnet.
    fn is_anycast(&self) -> bool {
        let Sink::Router {
            router,
            address,
            proxy: None,
        } = &self.site.target.sink
        else {
            return false;
        };
        let own = self.setup.map.interfaces(router).iter();
        let mut own = own.flat_map(|interface| &interface.addresses);
        own.any(|own| anycast(own.local) == Some(*address))
    }

    /// A test for each router that packets came to, with its evidence, and no result yet; the first
    /// router has one in any case.
    fn tests(
        &self,
        task: Task,
        seen: &SeenPackets,
        evidence: Vec<Evidence>,
    ) -> Vec<(usize, RouterTest)> {
        let request = seen.routers(Direction::Request);
        let mut tests = Vec::new();
        for (at, (post, evidence)) in self.posts.iter().zip(evidence).enumerate() {
            let sightings = seen.at.get(at).map_or(&[][..], Vec::as_slice);
            if at > 0 && sightings.is_empty() {
                continue;
            }
            let way = self.way(at, seen);
            let mut test = RouterTest::not_made(&way, ServiceStatus::Unknown, String::new());
            let source = self.site.source.host();
            test.source_host = source.map(|host| host.id.host.clone());
            test.measured = Measured::Singly;
            test.reach = if at == 0 || request.contains(&at) {
                CameBy::Reached
            } else {
                CameBy::ByAnswer
            };
            test.trace = evidence.trace;
            test.nat = evidence.nat;
            test.allowing = evidence.rules.allowing;
            test.blocking = evidence.rules.blocking;
            test.touched = evidence.rules.touched;
            test.other_traffic = evidence.rules.other_traffic;
            self.warn_of_other_traffic(&mut test);
            debug_assert!(test.router == *post.station.name(), "{task:?}");
            tests.push((at, test));
        }
        tests
    }

    /// The interfaces by which packets came and went, else those that were expected.
    fn way(&self, at: usize, seen: &SeenPackets) -> RouterWay {
        let post = &self.posts[at];
        let mut way = post.station.planned.clone();
        let name = |index| post.clerk.observer.name(index).cloned();
        let sink = &self.site.target.sink;
        if let Some((router, interface)) = sink.exit()
            && *router == way.name
        {
            way.iface_out = Some(interface.clone());
        }
        let passed = seen.first(Direction::Request).into_iter();
        let passed = passed.chain(seen.first(Direction::Answer));
        if let Some((_, packet)) = passed.into_iter().find(|(there, _)| *there == at) {
            way.iface_in = name(packet.first.iif).or(way.iface_in);
            match packet.stopped_by() {
                StoppedBy::Nothing(ProbeExit::Out) => way.iface_out = name(packet.last.oif),
                StoppedBy::Nothing(ProbeExit::Local) => way.iface_out = IfName::new("lo").ok(),
                _ => {}
            }
        }
        way
    }

    /// The legs of a direction with the addresses that packets have behind each router.
    fn legs(&mut self, seen: &SeenPackets, direction: Direction) -> Vec<TakenLeg> {
        let legs = seen.first(direction);
        let mut described = Vec::with_capacity(legs.len());
        for (at, packet) in legs {
            let left = packet.stopped_by() == StoppedBy::Nothing(ProbeExit::Out);
            let next_hop = self.posts[at].next_hop(packet).filter(|_| left);
            let observer = &self.posts[at].clerk.observer;
            let name = |index| observer.name(index).cloned();
            described.push(TakenLeg {
                router: self.posts[at].station.name().clone(),
                iface_in: name(packet.first.iif),
                iface_out: name(packet.last.oif).filter(|_| left),
                next_hop,
                came: head::headers(&packet.first),
                headers: head::headers(&packet.last),
                bridged: None,
            });
        }
        described
    }

    /// Gives every test its status, and the service its end.
    fn say(
        &self,
        test: &mut ServiceTest,
        task: Task,
        tried: &Tried,
        (judged, found): (&Judged, &Found),
    ) {
        let latency = match tried.experience {
            Some(Experience::Answered(time) | Experience::Mute(time)) => Some(millis(time)),
            _ => None,
        };
        let icmp = match tried.experience {
            Some(Experience::Icmp(icmp)) => Some(icmp),
            _ => None,
        };
        let mut message = judged.message.clone();
        if let (ServiceStatus::Ok, Some(latency)) = (judged.status, latency) {
            message = format!("answered in {latency} ms");
        }
        let known = found.goes_somewhere();
        let taken = self.taken(&task, &test.tests).filter(|_| known);
        if let Some(taken) = &taken {
            message = format!("{message}; {taken}");
        } else if known
            && task.moves > 0
            && let Some(at) = self.site.target.listen_at(&task)
        {
            message = format!("{message}; the router sends it to {at}");
        }
        let culprit = culprit(judged, found).map(|at| self.posts[at].station.name().clone());
        for router in &mut test.tests {
            let decides = culprit.as_ref().is_none_or(|name| *name == router.router);
            if decides {
                router.status = judged.status;
                router.message.clone_from(&message);
                router.latency_ms = latency;
                router.icmp = icmp;
                router.refused_by = judged.refused_by;
            } else {
                router.status = ServiceStatus::Ok;
                router.latency_ms = None;
                router.message = match router.reach {
                    CameBy::ByAnswer => "the answer went on".to_owned(),
                    _ => "the request went on".to_owned(),
                };
            }
        }
        let end = &mut test.end;
        end.note = taken;
        end.status = judged.status;
        end.result = judged.status.verdict();
        end.reason = Some(message);
        end.router = culprit;
        end.kind = match (end.result, &self.site.target.sink) {
            (Verdict::No, _) => EndKind::Stopped,
            (Verdict::Unknown, _) => EndKind::NotKnown,
            (Verdict::Yes, Sink::Router { .. }) => EndKind::Itself,
            (Verdict::Yes, _) => EndKind::Delivered,
        };
    }

    /// What the way's end makes of a result that is good so far.
    fn qualify(&mut self, test: &mut ServiceTest, tried: &Tried, seen: &SeenPackets) {
        let Some((at, packet)) = seen.first(Direction::Request).last().copied() else {
            return;
        };
        if packet.stopped_by() != StoppedBy::Nothing(ProbeExit::Out) {
            return;
        }
        let Some(left) = self.departure(at, packet) else {
            return;
        };
        let Some((arrives, kind, words)) = left.end(&packet.last) else {
            return;
        };
        let end = &mut test.end;
        match arrives {
            Some(false) if tried.arrived.is_none() => {
                end.status = ServiceStatus::Unreachable;
                end.result = Verdict::No;
            }
            None if self.site.whole && end.result == Verdict::Yes => {
                end.result = Verdict::Unknown;
            }
            _ => {
                if end.result == Verdict::Yes {
                    end.kind = kind;
                }
                end.note = Some(words);
                return;
            }
        }
        end.kind = kind;
        end.reason = Some(words.clone());
        end.note = Some(words);
        end.router = Some(left.router);
    }

    /// Makes unknown what rules may decide otherwise another time.
    fn doubt(&self, test: &mut ServiceTest, found: &Found) {
        for (at, why) in &found.doubts {
            let name = self.posts[*at].station.name();
            for router in test.tests.iter_mut().filter(|test| test.router == *name) {
                router.message = format!("{why}; this time {}", router.message);
                router.status = ServiceStatus::Unknown;
            }
            let end = &mut test.end;
            end.reason = Some(match end.reason.take() {
                Some(reason) => format!("{why}; this time {reason}"),
                None => why.clone(),
            });
            end.result = Verdict::Unknown;
            end.status = ServiceStatus::Unknown;
            end.kind = EndKind::NotKnown;
            end.router = Some(name.clone());
        }
    }

    /// Warns of other traffic in tables that the service's packets pass, too.
    fn warn_of_other_traffic(&self, test: &mut RouterTest) {
        let elsewhere = match self.site.from() {
            IpAddr::V4(_) => "ip6",
            IpAddr::V6(_) => "ip",
        };
        let others = test.other_traffic.iter().filter(|r| r.family != elsewhere);
        let (rules, packets) = others.fold((0, 0), |(n, sum), r| (n + 1, sum + r.unexplained));
        if rules > 0 {
            test.warnings.push(format!(
                "other traffic passed the router meanwhile: {} that saw none of this service's \
                 packets counted {}",
                plural(rules, "rule"),
                plural(packets, "packet")
            ));
        }
    }

    /// The last word about a service that was tried twice.
    pub(super) fn decide(&self, undecided: UndecidedResult, tried: &Tried) -> ServiceTest {
        let UndecidedResult {
            mut test,
            found,
            task,
        } = undecided;
        let again = tried.experience.is_some() || tried.arrived.is_some();
        if again {
            let judged = judge(&self.facts(tried, &found));
            let note = test.end.note.clone();
            self.say(&mut test, task, tried, (&judged, &found));
            for router in &mut test.tests {
                if router.status == judged.status {
                    router.message = format!("{}, at the second attempt", router.message);
                }
            }
            test.end.note = note;
            self.doubt(&mut test, &found);
        }
        for router in &mut test.tests {
            router.attempts += 1;
            router.measured = Measured::Together;
        }
        test
    }
}

impl Departure {
    /// Whether a packet that left so gets where it is to go, none where the facts do not tell, and
    /// what is to be said of that; nothing of one that is where it was to go.
    fn end(&self, packet: &FlowHead) -> Option<(Option<bool>, EndKind, String)> {
        let router = &self.router;
        Some(match &self.onward {
            Onward::End(End::Delivered { .. }) => return None,
            Onward::Routers(routers) => {
                let names: Vec<String> = routers.iter().map(ToString::to_string).collect();
                let words = format!("{router} hands over to {}", names.join(", "));
                (Some(true), EndKind::HandedOver, words)
            }
            Onward::End(end) => {
                let words = end.text(&LastHop {
                    router: router.as_str(),
                    out: Some(&self.interface),
                    next_hop: self.hop,
                    source: packet.source,
                    destination: packet.destination,
                });
                (end.arrives(), EndKind::from(end), words)
            }
        })
    }
}

/// Where packets of a direction ended first, and what became of them; where nothing ended them,
/// the router that saw them last.
fn overall(seen: &SeenPackets, evidence: &[Evidence], direction: Direction) -> (PacketFate, usize) {
    let routers = seen.routers(direction);
    let fate = |at: usize| {
        let evidence = evidence.get(at)?;
        match direction {
            Direction::Request => evidence.request.clone(),
            Direction::Answer => evidence.answer.clone(),
        }
    };
    for &at in &routers {
        match fate(at) {
            Some(PacketFate::Passed | PacketFate::NotSeen) | None => {}
            Some(ended) => return (ended, at),
        }
    }
    // What no trace shows may show in counters: of the request at the first router.
    let unseen = match direction {
        Direction::Request => fate(0).unwrap_or(PacketFate::NotSeen),
        Direction::Answer => PacketFate::NotSeen,
    };
    let legs = seen.first(direction);
    match legs.last() {
        Some((at, _)) => (PacketFate::Passed, *at),
        None => (unseen, 0),
    }
}

/// The router that a result is about; none for one that is about all of them.
fn culprit(judged: &Judged, found: &Found) -> Option<usize> {
    let (request, answer) = found.ends;
    match judged.status {
        ServiceStatus::Ok | ServiceStatus::Refused => None,
        ServiceStatus::Partial => match found.request {
            PacketFate::Passed | PacketFate::NotSeen => Some(answer),
            _ => Some(request),
        },
        _ => Some(request),
    }
}

/// `1 rule`, `2 rules`.
fn plural(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

/// The fate of a request where somebody listens by now for what a rule of TPROXY takes.
fn with_listener(proxy: &TransparentProxy, request: PacketFate) -> PacketFate {
    match request {
        PacketFate::Proxied(Proxied { rule, .. }) => PacketFate::Stopped {
            by: rule,
            rejects_with: None,
        },
        PacketFate::Lost(reason) if proxy.lets_go && !reason.is_known() => {
            PacketFate::Untaken(proxy.rule.clone())
        }
        other => other,
    }
}
