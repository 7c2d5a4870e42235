//! Which of the packets that were seen at several routers are one and the same, and which way they
//! went; pure code.
//!
//! A packet that leaves a router by a segment and comes in at another one on that segment with the
//! same headers is the same packet: nothing on a wire rewrites it, and routers count its TTL down.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use super::{head, result::Direction, site::Task};
use crate::firewall::nft::trace::{
    ProbeExit, StoppedBy,
    flow::{FlowHead, FlowPacket, Payload},
};

/// The interfaces' segments, by router and interface number.
#[derive(Debug, Default)]
pub(super) struct Wires(pub(super) Vec<HashMap<u32, usize>>);

impl Wires {
    fn segment(&self, router: usize, interface: u32) -> Option<usize> {
        self.0.get(router)?.get(&interface).copied()
    }
}

/// A packet as one router saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) packet: FlowPacket,
    /// Which way it went; none for what a router says to the source by itself.
    pub(super) direction: Option<Direction>,
}

/// One packet's way over the routers, as places of a router and of a packet that it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Journey {
    pub(super) direction: Direction,
    pub(super) legs: Vec<(usize, usize)>,
}

/// The packets of one attempt at all routers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SeenPackets {
    /// By router.
    pub(super) at: Vec<Vec<Sighting>>,
    /// In the order in which they began.
    pub(super) journeys: Vec<Journey>,
}

/// The ends of an attempt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    /// The source's address.
    pub(super) source: IpAddr,
    /// The router where the source's packets come in.
    pub(super) entry: usize,
    /// Whether that router sends them itself.
    pub(super) itself: bool,
    /// The client's end before NAT, if it is known.
    pub(super) client: Option<SocketAddr>,
    /// The client's end as the destination saw it, if it saw it.
    pub(super) arrived: Option<SocketAddr>,
}

impl Ends {
    /// Whether a packet that began here belongs to the attempt: on a busy machine a late one of
    /// the attempt before may be among those seen.
    fn have(&self, task: &Task, direction: Option<Direction>, first: &FlowHead) -> bool {
        if first.is_icmp_error() {
            // Whose error it is does not show.
            return true;
        }
        if first.protocol() != task.service.protocol {
            return false;
        }
        if matches!(first.payload, Payload::Other(_)) {
            return true;
        }
        let (source, destination) = head::ports(first);
        // Behind NAT the request may have had another port that nobody saw.
        let back = self.is(destination) || self.arrived.is_none();
        match direction {
            Some(Direction::Request) => destination == task.dial && self.is(source),
            Some(Direction::Answer) => source == task.port && back,
            // A reset by a rule comes from the port that the rule saw.
            None => back,
        }
    }

    /// Whether this is a port of the client, if one is known.
    fn is(&self, port: u16) -> bool {
        let ends = [self.client, self.arrived].map(|end| end.map(|end| end.port()));
        ends.contains(&Some(port)) || ends == [None, None]
    }

    /// The direction of a packet that no other router was seen to send.
    fn direction(&self, at: usize, packet: &FlowPacket) -> Option<Direction> {
        let from_source = at == self.entry && packet.first.source == self.source;
        match (packet.is_own(), from_source) {
            (true, _) if head::is_refusal(&packet.first) => None,
            (own, true) if own == self.itself => Some(Direction::Request),
            _ => Some(Direction::Answer),
        }
    }
}

/// What two sightings of one packet have in common.
type Mark = (usize, IpAddr, IpAddr, Payload, u8);

fn mark(segment: usize, head: &FlowHead) -> Mark {
    let FlowHead {
        source,
        destination,
        payload,
        ttl,
        ..
    } = *head;
    (segment, source, destination, payload, ttl)
}

impl SeenPackets {
    /// Puts the packets that `routers` saw together and leaves out what is not of this attempt.
    pub(super) fn of(
        routers: Vec<Vec<FlowPacket>>,
        wires: &Wires,
        task: &Task,
        ends: &Ends,
    ) -> Self {
        let next = links(&routers, wires);
        let mut is_next = vec![Vec::new(); routers.len()];
        for (at, packets) in routers.iter().enumerate() {
            is_next[at].resize(packets.len(), false);
        }
        for &(at, number) in next.values() {
            is_next[at][number] = true;
        }
        let mut directions: HashMap<(usize, usize), Option<Direction>> = HashMap::new();
        let mut ways = Vec::new();
        for (at, packets) in routers.iter().enumerate() {
            for (number, packet) in packets.iter().enumerate() {
                if is_next[at][number] {
                    continue;
                }
                let direction = ends.direction(at, packet);
                if !ends.have(task, direction, &packet.first) {
                    continue;
                }
                let legs = follow((at, number), &next);
                directions.extend(legs.iter().map(|leg| (*leg, direction)));
                ways.extend(direction.map(|direction| Journey { direction, legs }));
            }
        }
        Self::kept(routers, &directions, ways)
    }

    /// Leaves out the packets without a place in `directions`, and numbers the others anew.
    fn kept(
        routers: Vec<Vec<FlowPacket>>,
        directions: &HashMap<(usize, usize), Option<Direction>>,
        mut journeys: Vec<Journey>,
    ) -> Self {
        let mut numbers = HashMap::new();
        let mut seen = Vec::with_capacity(routers.len());
        for (at, packets) in routers.into_iter().enumerate() {
            let mut kept = Vec::with_capacity(packets.len());
            for (number, packet) in packets.into_iter().enumerate() {
                if let Some(&direction) = directions.get(&(at, number)) {
                    numbers.insert((at, number), kept.len());
                    kept.push(Sighting { packet, direction });
                }
            }
            seen.push(kept);
        }
        for leg in journeys.iter_mut().flat_map(|journey| &mut journey.legs) {
            leg.1 = numbers.get(leg).copied().unwrap_or(leg.1);
        }
        Self { at: seen, journeys }
    }

    /// The packet of a leg.
    pub(super) fn packet(&self, (at, number): (usize, usize)) -> Option<&FlowPacket> {
        let sighting = self.at.get(at)?.get(number)?;
        Some(&sighting.packet)
    }

    /// The packets of the first journey in a direction, in its order, with their routers; of
    /// requests that came in at the entry.
    pub(super) fn first(&self, direction: Direction) -> Vec<(usize, &FlowPacket)> {
        let mut journeys = self.journeys.iter().filter(|j| j.direction == direction);
        let legs = journeys.next().map(|j| j.legs.as_slice());
        let legs = legs.unwrap_or_default().iter();
        legs.filter_map(|&leg| Some((leg.0, self.packet(leg)?)))
            .collect()
    }

    /// The routers that packets of a direction passed, each once, in the order of the ways.
    pub(super) fn routers(&self, direction: Direction) -> Vec<usize> {
        let mut routers = Vec::new();
        let journeys = self.journeys.iter().filter(|j| j.direction == direction);
        for (at, _) in journeys.flat_map(|j| &j.legs) {
            if !routers.contains(at) {
                routers.push(*at);
            }
        }
        routers
    }
}

/// What each sighting that went out was seen as next.
fn links(routers: &[Vec<FlowPacket>], wires: &Wires) -> HashMap<(usize, usize), (usize, usize)> {
    let mut waiting: HashMap<Mark, Vec<(usize, usize)>> = HashMap::new();
    for (at, packets) in routers.iter().enumerate() {
        for (number, packet) in packets.iter().enumerate().rev() {
            if let Some(segment) = wires.segment(at, packet.first.iif) {
                let mark = mark(segment, &packet.first);
                waiting.entry(mark).or_default().push((at, number));
            }
        }
    }
    let mut next = HashMap::new();
    for (at, packets) in routers.iter().enumerate() {
        for (number, packet) in packets.iter().enumerate() {
            if packet.stopped_by() != StoppedBy::Nothing(ProbeExit::Out) {
                continue;
            }
            let Some(segment) = wires.segment(at, packet.last.oif) else {
                continue;
            };
            let there = waiting.get_mut(&mark(segment, &packet.last));
            let elsewhere = |list: &mut Vec<(usize, usize)>| {
                let found = list.iter().rposition(|there| *there != (at, number))?;
                Some(list.remove(found))
            };
            if let Some(there) = there.and_then(elsewhere) {
                next.insert((at, number), there);
            }
        }
    }
    next
}

/// The way that begins at `first`. A packet that comes back to a router is another sighting there.
fn follow(
    first: (usize, usize),
    next: &HashMap<(usize, usize), (usize, usize)>,
) -> Vec<(usize, usize)> {
    let mut legs = vec![first];
    while let Some(leg) = legs.last().and_then(|leg| next.get(leg)) {
        if legs.contains(leg) {
            break;
        }
        legs.push(*leg);
    }
    legs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, Service};

    const TASK: Task = Task {
        at: 0,
        service: Service {
            port: 110,
            protocol: Protocol::Tcp,
        },
        dial: 110,
        port: 2110,
        moves: 1,
        growths: 0,
    };

    fn tcp(source: u16, destination: u16) -> Payload {
        Payload::Tcp {
            ports: (source, destination),
            flags: 0,
        }
    }

    fn ends(client: u16, arrived: Option<u16>) -> Ends {
        let end = |port| SocketAddr::new([10, 0, 0, 9].into(), port);
        Ends {
            source: [10, 0, 0, 9].into(),
            entry: 0,
            itself: false,
            client: Some(end(client)),
            arrived: arrived.map(end),
        }
    }

    #[test]
    fn a_late_packet_of_another_service_is_left_out() {
        use Direction::{Answer, Request};
        // 110/tcp, which the router sends to port 2110, was dropped; 80/tcp was before it.
        let asked = ends(40_001, None);
        let udp = Payload::Udp {
            ports: (40_001, 110),
        };
        let icmp = Payload::Icmp {
            kind: 3,
            code: 1,
            id: 0,
        };
        for (direction, payload, own) in [
            (Some(Request), tcp(40_001, 110), true),
            (Some(Request), tcp(40_000, 80), false),
            (Some(Request), tcp(40_001, 80), false),
            (Some(Request), udp, false),
            (Some(Answer), tcp(2110, 40_001), true),
            (Some(Answer), tcp(2110, 55_555), true),
            (Some(Answer), tcp(80, 40_000), false),
            (None, tcp(110, 40_001), true),
            (None, icmp, true),
        ] {
            let first = head([10, 0, 0, 9], [10, 2, 0, 9], payload, 64, (1, 0));
            let have = asked.have(&TASK, direction, &first);
            assert_eq!(have, own, "{direction:?} {payload:?}");
        }
        let arrived = ends(40_001, Some(40_001));
        let other = head([10, 2, 0, 9], [10, 0, 0, 9], tcp(2110, 55_555), 64, (1, 0));
        assert!(!arrived.have(&TASK, Some(Answer), &other));
    }

    fn head(from: [u8; 4], to: [u8; 4], payload: Payload, ttl: u8, at: (u32, u32)) -> FlowHead {
        FlowHead {
            source: from.into(),
            destination: to.into(),
            payload,
            tos: 0,
            ttl,
            length: 60,
            mark: 0,
            iif: at.0,
            oif: at.1,
        }
    }

    /// The first router translates the source and the port, the second is passed with those; the
    /// answer comes back. A packet of another job with the same addresses on another segment, and
    /// an earlier one with another TTL, are others.
    #[test]
    fn one_packet_is_known_again_behind_translation() {
        const CLIENT: [u8; 4] = [10, 0, 0, 9];
        const NAT: [u8; 4] = [10, 1, 0, 1];
        const SERVER: [u8; 4] = [10, 2, 0, 9];
        let request = FlowPacket::that_left(
            head(CLIENT, SERVER, tcp(40_001, 110), 64, (1, 0)),
            head(NAT, SERVER, tcp(1024, 2110), 63, (1, 2)),
        );
        let onward = FlowPacket::that_left(
            head(NAT, SERVER, tcp(1024, 2110), 63, (1, 0)),
            head(NAT, SERVER, tcp(1024, 2110), 62, (1, 2)),
        );
        let answer = FlowPacket::that_left(
            head(SERVER, NAT, tcp(2110, 1024), 64, (2, 0)),
            head(SERVER, NAT, tcp(2110, 1024), 63, (2, 1)),
        );
        let home = FlowPacket::that_left(
            head(SERVER, NAT, tcp(2110, 1024), 63, (2, 0)),
            head(SERVER, CLIENT, tcp(110, 40_001), 62, (2, 1)),
        );
        let routers = vec![vec![request, home], vec![onward, answer]];
        let wires = |between: (usize, usize)| {
            Wires(vec![
                HashMap::from([(1, 0), (2, between.0)]),
                HashMap::from([(1, between.1), (2, 2)]),
            ])
        };
        let seen = SeenPackets::of(
            routers.clone(),
            &wires((1, 1)),
            &TASK,
            &ends(40_001, Some(1024)),
        );
        let way = |direction| {
            let legs = seen.first(direction).into_iter();
            legs.map(|(at, packet)| (at, packet.first.ttl))
                .collect::<Vec<_>>()
        };
        assert_eq!(way(Direction::Request), [(0, 64), (1, 63)]);
        assert_eq!(way(Direction::Answer), [(1, 64), (0, 63)]);
        assert_eq!(seen.routers(Direction::Answer), [1, 0]);
        let apart = SeenPackets::of(routers, &wires((1, 7)), &TASK, &ends(40_001, None));
        assert_eq!(apart.first(Direction::Request).len(), 1);
    }
}
