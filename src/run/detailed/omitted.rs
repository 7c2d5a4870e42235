//! What the lab lacks, weighed against a test's status: both the request and the answer pass the
//! router, and an omission may concern either.

use super::{
    DetailedJob,
    result::{Direction, Headers, RouterTest, Status},
};
use crate::{
    firewall::{
        place::HookPoint,
        rule::{Field, Packet, State},
    },
    lab::omission::{Course, Outcome},
    model::Service,
    netlink::object::Family,
    run::{omitted::Seen, report::Verdict, resolve::Part},
};

/// Makes a status unknown that an omission can change; its message says which.
pub(super) fn weigh(job: &DetailedJob, part: &Part, service: Service, test: &mut RouterTest) {
    if part.omitted.is_empty() {
        return;
    }
    let directions: &[Direction] = match test.status {
        Status::Unknown => &[],
        Status::Timeout | Status::Rejected | Status::Unreachable => &[Direction::Request],
        Status::Ok | Status::Refused | Status::Partial => &[Direction::Request, Direction::Answer],
    };
    for &direction in directions {
        let seen = seen(job, part, service, test, direction);
        let verdict = match seen.outcome {
            Outcome::Passed => Verdict::Yes,
            Outcome::Stopped(_) => Verdict::No,
        };
        let found = Some(std::mem::take(&mut test.message));
        let (weighed, message) = part.omitted.weigh(verdict, found, &seen);
        test.message = message.unwrap_or_default();
        if weighed == Verdict::Unknown {
            test.status = Status::Unknown;
            return;
        }
    }
}

/// A packet of the test as far as it is known.
fn seen(
    job: &DetailedJob,
    part: &Part,
    service: Service,
    test: &RouterTest,
    direction: Direction,
) -> Seen {
    let mut packet = match direction {
        Direction::Request => Packet::of(Family::of(job.destination))
            .with_address(Field::Source, job.source)
            .with_address(Field::Destination, job.destination)
            .with(Field::DestinationPort, service.port)
            .with_state(State::New)
            .with_state(State::Untracked),
        Direction::Answer => Packet::of(Family::of(job.destination))
            .with_address(Field::Source, job.destination)
            .with_address(Field::Destination, job.source),
    };
    packet = packet.with(Field::Protocol, service.protocol.number());
    for nat in test.nat.iter().filter(|nat| nat.direction == direction) {
        packet = add(packet, &nat.after, direction);
    }
    let toward = part.way.iface_out().filter(|_| part.way.by_port.is_empty());
    let from = part.way.iface_in.as_ref();
    let (iif, oif) = match direction {
        Direction::Request => (from, toward),
        Direction::Answer => (toward, from),
    };
    for (field, name) in [(Field::Incoming, iif), (Field::Outgoing, oif)] {
        if let Some(name) = name {
            packet = packet.with_device(field, name.as_str());
        }
    }
    Seen {
        packet,
        course: course(part, test, direction),
        outcome: outcome(test, direction),
        // The trace shows what was rewritten; without one, nothing is known of that.
        behind_nat: !test.trace.is_empty(),
    }
}

fn add(packet: Packet, headers: &Headers, direction: Direction) -> Packet {
    let packet = packet
        .with_address(Field::Source, headers.source)
        .with_address(Field::Destination, headers.destination);
    match (direction, headers.destination_port) {
        (Direction::Request, Some(port)) => packet.with(Field::DestinationPort, port),
        _ => packet,
    }
}

fn course(part: &Part, test: &RouterTest, direction: Direction) -> Option<Course> {
    let to_router = part.way.ends_here();
    match (direction, to_router) {
        _ if test.trace.is_empty() => None,
        (_, false) => Some(Course::Forwarded),
        (Direction::Request, true) => Some(Course::Delivered),
        (Direction::Answer, true) => Some(Course::Sent),
    }
}

/// What became of the packets of one direction. The request passed where an answer came.
fn outcome(test: &RouterTest, direction: Direction) -> Outcome {
    let stopped = match test.status {
        Status::Ok | Status::Refused => false,
        Status::Partial => direction == Direction::Answer,
        _ => true,
    };
    if !stopped {
        return Outcome::Passed;
    }
    let mut ways = test.trace.iter().filter(|way| way.direction == direction);
    let last = ways
        .find(|way| !way.passed)
        .and_then(|way| way.steps.last());
    Outcome::Stopped(last.and_then(|step| hook(&step.hook)))
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
