//! The ways of packets in words.

use std::collections::HashMap;

use super::{
    evidence::{Clerk, EvidenceError},
    head::headers,
    journey::Sighting,
    result::{Direction, Nat, PacketWay, Step},
};
use crate::firewall::nft::{
    NftSocket,
    trace::{
        ProbeExit, StoppedBy, TraceDecision,
        flow::{FlowPacket, Payload},
    },
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
        StoppedBy::Nothing(ProbeExit::Out) => (format!("left by {}", name(packet.last.oif)), true),
        StoppedBy::Nothing(ProbeExit::Local) => ("delivered to the router itself".to_owned(), true),
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

fn ended(decision: &TraceDecision) -> &'static str {
    match decision {
        TraceDecision::Stolen => "taken away",
        TraceDecision::Queue(_) => "handed to a queue",
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
