//! The ways of packets in words.

use std::collections::HashMap;

use super::{
    evidence::{Clerk, EvidenceError},
    journey::Sighting,
    result::{Direction, Headers, Nat, PacketWay, Step},
};
use crate::{
    firewall::nft::{
        NftSocket,
        trace::{
            Decision, Exit, StoppedBy,
            flow::{FlowHead, FlowPacket, Payload},
        },
    },
    model::icmp,
};

/// TCP flags as they are written, RFC 9293 section 3.1.
const FLAGS: [(u8, &str); 6] = [
    (0x02, "SYN"),
    (0x01, "FIN"),
    (0x04, "RST"),
    (0x08, "PSH"),
    (0x10, "ACK"),
    (0x20, "URG"),
];
const RST: u8 = 0x04;
/// SCTP's chunk that refuses or ends an association, RFC 9260 section 3.3.7.
const ABORT: u8 = 6;

/// The ways of `packets`, in words; packets that went the same way are one entry.
pub(super) fn ways(
    clerk: &mut Clerk<'_>,
    socket: &mut NftSocket,
    seen: &[Sighting],
) -> Result<Vec<PacketWay>, EvidenceError> {
    let mut ways: Vec<PacketWay> = Vec::new();
    let mut known: HashMap<(Direction, Vec<Step>, String), usize> = HashMap::new();
    for Sighting { packet, direction } in seen {
        let direction = direction.unwrap_or(Direction::Answer);
        let mut steps = Vec::with_capacity(packet.steps.len());
        for step in &packet.steps {
            let (position, rule, verdict) = clerk.worded(socket, step)?;
            steps.push(Step {
                hook: step.hook.to_string(),
                family: step.place.family.to_string(),
                table: step.place.table.clone(),
                chain: step.place.chain.clone(),
                position,
                rule,
                verdict,
            });
        }
        let (end, passed) = end(clerk, packet);
        let key = (direction, steps.clone(), end.clone());
        if let Some(way) = known.get(&key).and_then(|&at| ways.get_mut(at)) {
            way.count += 1;
            continue;
        }
        known.insert(key, ways.len());
        ways.push(PacketWay {
            direction,
            packet: describe(packet),
            headers: headers(&packet.first),
            count: 1,
            steps,
            end,
            passed,
        });
    }
    Ok(ways)
}

/// Where a packet's way ended, and whether it went on from there.
fn end(clerk: &Clerk<'_>, packet: &FlowPacket) -> (String, bool) {
    let name = |index| match clerk.observer.name(index) {
        Some(name) => name.to_string(),
        None => "an unknown interface".to_owned(),
    };
    match packet.stopped_by() {
        StoppedBy::Nothing(Exit::Out) => (format!("left by {}", name(packet.last.oif)), true),
        StoppedBy::Nothing(Exit::Local) => ("delivered to the router itself".to_owned(), true),
        StoppedBy::Rule(step) => {
            let chain = &step.place.chain;
            (format!("{} in chain {chain}", ended(&step.decision)), false)
        }
        StoppedBy::Policy(step) => {
            let chain = &step.place.chain;
            (format!("dropped by the policy of chain {chain}"), false)
        }
        StoppedBy::Within(hook) => (format!("not seen any more at {hook}"), false),
        StoppedBy::After(hook) => (format!("not seen any more behind {hook}"), false),
    }
}

fn ended(decision: &Decision) -> &'static str {
    match decision {
        Decision::Stolen => "taken away",
        Decision::Queue(_) => "handed to a queue",
        _ => "dropped",
    }
}

/// How packets of each direction were rewritten; each rewriting once.
pub(super) fn nat(seen: &[Sighting]) -> Vec<Nat> {
    let mut found = Vec::new();
    for Sighting { packet, direction } in seen {
        let (before, after) = (headers(&packet.first), headers(&packet.last));
        if let Some(direction) = direction
            && before != after
        {
            let nat = Nat {
                direction: *direction,
                before,
                after,
            };
            if !found.contains(&nat) {
                found.push(nat);
            }
        }
    }
    found
}

/// Whether this says no: an ICMP error, a TCP reset or an abort of SCTP.
pub(super) fn is_refusal(head: &FlowHead) -> bool {
    match head.payload {
        Payload::Tcp { flags, .. } => flags & RST != 0,
        Payload::Sctp { chunk, .. } => chunk == ABORT,
        Payload::Icmp { .. } => head.is_icmp_error(),
        Payload::Udp { .. } | Payload::Other(_) => false,
    }
}

/// Source and destination port, or what services and their clients have in place of them: of ICMP
/// the identifier and the type that opened the exchange, on the client's and on the server's side.
pub(super) fn ports(head: &FlowHead) -> (u16, u16) {
    match head.payload {
        Payload::Icmp { kind, id, .. } => match icmp::opened_by(head.protocol(), kind.into()) {
            Some(opening) => (opening, id),
            None => (id, kind.into()),
        },
        payload => payload.ports().unwrap_or((0, 0)),
    }
}

fn describe(packet: &FlowPacket) -> String {
    let what = match packet.first.payload {
        Payload::Tcp { flags, .. } => {
            let set = FLAGS.iter().filter(|(bit, _)| flags & bit != 0);
            let names: Vec<&str> = set.map(|(_, name)| *name).collect();
            format!("tcp {}", names.join(","))
        }
        Payload::Udp { .. } => "udp".to_owned(),
        Payload::Sctp { chunk, .. } => format!("sctp chunk {chunk}"),
        Payload::Icmp { kind, code, .. } => format!("icmp {kind}/{code}"),
        Payload::Other(number) => format!("protocol {number}"),
    };
    if packet.is_own() {
        format!("{what} from the router itself")
    } else {
        what
    }
}

pub(super) fn headers(head: &FlowHead) -> Headers {
    let ports = head.payload.ports();
    Headers {
        source: head.source,
        source_port: ports.map(|(source, _)| source),
        destination: head.destination,
        destination_port: ports.map(|(_, destination)| destination),
    }
}

/// A decision in words.
pub(super) fn decision(decision: &Decision) -> String {
    match decision {
        Decision::Continue => "continue".to_owned(),
        Decision::Accept => "accept".to_owned(),
        Decision::Drop => "drop".to_owned(),
        Decision::Stolen => "stolen".to_owned(),
        Decision::Queue(number) => format!("queue {number}"),
        Decision::Jump(chain) => format!("jump {chain}"),
        Decision::Goto(chain) => format!("goto {chain}"),
        Decision::Return => "return".to_owned(),
        Decision::Other(code) => format!("verdict {code}"),
    }
}
