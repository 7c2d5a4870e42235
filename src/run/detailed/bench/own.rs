//! Which of the packets that were followed belong to an attempt: on a busy machine a late one of
//! the attempt before may be among them.

use crate::{
    firewall::nft::trace::flow::{FlowPacket, Payload},
    run::detailed::{attempt::Tried, result::Direction, site::Task, way},
};

/// Keeps the attempt's own packets.
pub(super) fn keep(
    tried: &mut Tried,
    task: &Task,
    direction: impl Fn(&FlowPacket) -> Option<Direction>,
) {
    let ends = Ends {
        client: tried.client.map(|end| end.port()),
        arrived: tried.arrived.map(|end| end.port()),
    };
    let own = |p: &FlowPacket| ends.have(task, direction(p), p.first.payload);
    tried.packets.retain(own);
}

/// The client's port, before NAT and as the destination host saw it.
#[derive(Debug, Clone, Copy)]
struct Ends {
    client: Option<u16>,
    arrived: Option<u16>,
}

impl Ends {
    fn have(self, task: &Task, direction: Option<Direction>, first: Payload) -> bool {
        let Some((source, destination)) = first.ports() else {
            // Whose ICMP message it is does not show.
            return true;
        };
        // Behind NAT the request may have had another port that nobody saw.
        let back = self.is(destination) || self.arrived.is_none();
        way::protocol(first) == Some(task.service.protocol)
            && match direction {
                Some(Direction::Request) => destination == task.service.port && self.is(source),
                Some(Direction::Answer) => source == task.port && back,
                // A reset by a rule comes from the port that the rule saw.
                None => back,
            }
    }

    /// Whether this is a port of the client, if one is known.
    fn is(self, port: u16) -> bool {
        let ends = [self.client, self.arrived];
        ends.contains(&Some(port)) || ends == [None, None]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, Service};

    fn tcp(source: u16, destination: u16) -> Payload {
        Payload::Tcp {
            ports: (source, destination),
            flags: 0,
        }
    }

    #[test]
    fn a_late_packet_of_another_service_is_left_out() {
        use Direction::{Answer, Request};
        // 110/tcp, which the router sends to port 2110, was dropped; 80/tcp was before it.
        let task = Task {
            at: 0,
            service: Service {
                port: 110,
                protocol: Protocol::Tcp,
            },
            port: 2110,
            moves: 1,
        };
        let ends = Ends {
            client: Some(40_001),
            arrived: None,
        };
        let udp = Payload::Udp {
            ports: (40_001, 110),
        };
        let icmp = Payload::Icmp { kind: 3, code: 1 };
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
            let have = ends.have(&task, direction, payload);
            assert_eq!(have, own, "{direction:?} {payload:?}");
        }
        let arrived = Ends {
            arrived: Some(40_001),
            ..ends
        };
        assert!(!arrived.have(&task, Some(Answer), tcp(2110, 55_555)));
    }
}
