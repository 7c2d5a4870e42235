//! What the lab lacks, weighed against a test's status: both the request and the answer pass the
//! router, and an omission may concern either.

use super::{
    DetailedJob,
    result::{Direction, KnownHeaders, RouterTest, ServiceStatus},
};
use crate::{
    firewall::{
        place::HookPoint,
        rule::{Field, Packet, PortChoice, TrackingState},
    },
    lab::omission::{AskedBridge, Endpoints, PacketOutcome},
    model::{IfName, Protocol, Service},
    netlink::object::Family,
    run::{
        bridged::FIRST_CLIENT_PORT,
        omitted::{KnownPacket, Omitted},
        packet::TCP_SYN,
        report::Verdict,
    },
};

/// Makes a status unknown that an omission can change, and returns whether it did; the message says
/// which. Bridges that are asked `apart` do not count.
pub(super) fn weigh(
    job: &DetailedJob,
    omitted: &Omitted,
    service: Service,
    (test, apart): (&mut RouterTest, &[AskedBridge]),
) -> bool {
    let directions: &[Direction] = match test.status {
        ServiceStatus::Unknown => &[],
        ServiceStatus::Timeout | ServiceStatus::Rejected | ServiceStatus::Unreachable => {
            &[Direction::Request]
        }
        ServiceStatus::Ok | ServiceStatus::Refused | ServiceStatus::Partial => {
            &[Direction::Request, Direction::Answer]
        }
    };
    for &direction in directions {
        if !passes(test, direction) {
            continue;
        }
        let seen = KnownPacket {
            apart: apart.to_vec(),
            ..seen(job, service, test, direction)
        };
        let verdict = match seen.outcome {
            PacketOutcome::Passed => Verdict::Yes,
            PacketOutcome::Stopped(_) => Verdict::No,
        };
        let found = Some(std::mem::take(&mut test.message));
        let (weighed, message) = omitted.weigh(verdict, found, &seen);
        test.message = message.unwrap_or_default();
        if weighed == Verdict::Unknown {
            test.status = ServiceStatus::Unknown;
            return true;
        }
    }
    false
}

/// Whether packets of a direction have to do with the router: a trace shows which do.
fn passes(test: &RouterTest, direction: Direction) -> bool {
    test.trace.is_empty() || test.trace.iter().any(|way| way.direction == direction)
}

/// A packet of the test as far as it is known.
fn seen(
    job: &DetailedJob,
    service: Service,
    test: &RouterTest,
    direction: Direction,
) -> KnownPacket {
    let mut packet = Packet::of(Family::of(job.destination));
    let came = test.trace.iter().find(|way| way.direction == direction);
    packet = match (came, direction) {
        // Routers in front may have translated it.
        (Some(way), _) => add(packet, &way.headers, direction),
        (None, Direction::Request) => packet
            .with_address(Field::Source, job.source)
            .with_address(Field::Destination, job.destination)
            .with(Field::DestinationPort, service.port),
        (None, Direction::Answer) => packet
            .with_address(Field::Source, job.destination)
            .with_address(Field::Destination, job.source)
            .with(Field::SourcePort, service.port),
    };
    packet = with_clients_port(packet, job, came.map(|way| &way.headers), direction);
    if direction == Direction::Request {
        packet = packet
            .with_state(TrackingState::New)
            .with_state(TrackingState::Untracked);
    }
    packet = packet.with(Field::Protocol, service.protocol.number());
    for nat in test.nat.iter().filter(|nat| nat.direction == direction) {
        packet = add(packet, &nat.after, direction);
    }
    let (toward, from) = (test.iface_out.as_ref(), test.iface_in.as_ref());
    let (iif, oif) = match direction {
        Direction::Request => (from, toward),
        Direction::Answer => (toward, from),
    };
    let course = course(test, direction);
    for (field, name) in [(Field::Incoming, iif), (Field::Outgoing, oif)] {
        let contradicts =
            |name: &&IfName| name.as_str() == "lo" && course == Some(Endpoints::Forwarded);
        if let Some(name) = name.filter(|name| !contradicts(name)) {
            packet = packet.with_device(field, name.as_str());
        }
    }
    KnownPacket {
        packet,
        course,
        outcome: outcome(test, direction),
        // The trace shows what was rewritten; without one, nothing is known of that.
        behind_nat: !test.trace.is_empty(),
        came: request(job, service, test, direction),
        planned: test.iface_out.clone().filter(|out| out.as_str() != "lo"),
        apart: Vec::new(),
    }
}

/// The request as it came in: what its trace shows of it.
fn request(
    job: &DetailedJob,
    service: Service,
    test: &RouterTest,
    direction: Direction,
) -> Option<Packet> {
    let way = test.trace.iter().find(|way| way.direction == direction)?;
    if direction != Direction::Request {
        return None;
    }
    let mut packet = add(
        Packet::of(Family::of(job.destination)),
        &way.headers,
        direction,
    )
    .with(Field::Protocol, service.protocol.number())
    .with(Field::Mark, 0_u32)
    .with(Field::ConnectionMark, 0_u32)
    .with_device(Field::Incoming, test.iface_in.as_ref()?.as_str());
    if service.protocol == Protocol::Tcp {
        packet = packet.with(Field::TcpFlags, TCP_SYN);
    }
    Some(packet)
}

fn add(packet: Packet, headers: &KnownHeaders, direction: Direction) -> Packet {
    let packet = packet
        .with_address(Field::Source, headers.source)
        .with_address(Field::Destination, headers.destination);
    match direction {
        Direction::Request => with_port(packet, Field::DestinationPort, headers.destination_port),
        Direction::Answer => with_port(packet, Field::SourcePort, headers.source_port),
    }
}

fn with_port(packet: Packet, field: Field, port: Option<u16>) -> Packet {
    match port {
        Some(port) => packet.with(field, port),
        None => packet,
    }
}

/// Adds the port of the client's side: any that a client takes, where it has its own address, and else what
/// a router may give it.
fn with_clients_port(
    packet: Packet,
    job: &DetailedJob,
    came: Option<&KnownHeaders>,
    direction: Direction,
) -> Packet {
    let of_clients = |packet: Packet, field, port| {
        let PortChoice { first, last } = PortChoice::OF_CLIENTS;
        with_port(packet, field, port).within(field, first.into(), last.into())
    };
    match (direction, came) {
        (Direction::Request, Some(headers)) if headers.source == job.source => {
            of_clients(packet, Field::SourcePort, headers.source_port)
        }
        (Direction::Answer, Some(headers))
            if headers.destination == job.source && job.source_port.is_none() =>
        {
            of_clients(packet, Field::DestinationPort, headers.destination_port)
        }
        (Direction::Answer, _) => to_client(packet, job.source_port),
        (Direction::Request, _) => packet,
    }
}

/// An answer's destination port: the one that the job was told to connect from, or else any that
/// a client or a router's NAT takes by itself.
fn to_client(packet: Packet, port: Option<u16>) -> Packet {
    match port {
        Some(port) => packet.with(Field::DestinationPort, port),
        None => packet.within(
            Field::DestinationPort,
            FIRST_CLIENT_PORT.into(),
            u16::MAX.into(),
        ),
    }
}

fn course(test: &RouterTest, direction: Direction) -> Option<Endpoints> {
    let to_router = test
        .iface_out
        .as_ref()
        .is_some_and(|out| out.as_str() == "lo");
    let stopped = match outcome(test, direction) {
        PacketOutcome::Stopped(at) => at,
        PacketOutcome::Passed => None,
    };
    // What came in by no interface is the router's own.
    let from_router = test.iface_in.is_none();
    match (direction, to_router) {
        _ if test.trace.is_empty() => None,
        // Where it was stopped goes before the look-up, which was for where it was on its way to before a
        // rule gave it another destination.
        _ if stopped == Some(HookPoint::Forward) => Some(Endpoints::Forwarded),
        _ if stopped == Some(HookPoint::Input) => Some(Endpoints::Delivered),
        (Direction::Request, false) if from_router => Some(Endpoints::Sent),
        (Direction::Answer, false) if from_router => Some(Endpoints::Delivered),
        (_, false) => Some(Endpoints::Forwarded),
        (Direction::Request, true) => Some(Endpoints::Delivered),
        (Direction::Answer, true) => Some(Endpoints::Sent),
    }
}

/// What became of the packets of one direction. The request passed where an answer came.
fn outcome(test: &RouterTest, direction: Direction) -> PacketOutcome {
    let stopped = match test.status {
        ServiceStatus::Ok | ServiceStatus::Refused => false,
        ServiceStatus::Partial => direction == Direction::Answer,
        _ => true,
    };
    if !stopped {
        return PacketOutcome::Passed;
    }
    let mut ways = test.trace.iter().filter(|way| way.direction == direction);
    let last = ways
        .find(|way| !way.passed)
        .and_then(|way| way.steps.last());
    PacketOutcome::Stopped(last.and_then(|step| hook(&step.hook)))
}

fn hook(name: &str) -> Option<HookPoint> {
    [
        HookPoint::Ingress,
        HookPoint::Prerouting,
        HookPoint::Input,
        HookPoint::Forward,
        HookPoint::Output,
        HookPoint::Postrouting,
    ]
    .into_iter()
    .find(|hook| hook.to_string() == name)
}
