//! Services that the router sends elsewhere than its tables said: NAT, or routing by mark.

use super::Bench;
use crate::{
    firewall::nft::trace::{Exit, StoppedBy, flow::FlowPacket},
    run::detailed::{
        attempt::Tried,
        result::Direction,
        site::{Sink, Task},
    },
};

/// How often a service may be found to go elsewhere before that is its result.
const MAX_MOVES: u8 = 2;

impl Bench<'_> {
    /// Where the request went and what is to be tried there, if nobody listens there now.
    pub(super) fn moved(&mut self, task: Task, tried: &Tried) -> Option<(Sink, Task)> {
        if tried.arrived.is_some() || task.moves >= MAX_MOVES {
            return None;
        }
        let (request, exit) = self.request_that_left(tried)?;
        let address = request.last.destination;
        let sink = match exit {
            Exit::Local => Sink::Router { address },
            Exit::Out => Sink::Host {
                interface: self.clerk.observer.name(request.last.oif)?.clone(),
                hop: self.clerk.next_hop(request).unwrap_or(address),
                address,
            },
        };
        let there = Task {
            port: request.last.payload.ports().map_or(task.port, |p| p.1),
            moves: task.moves + 1,
            ..task
        };
        let here = &self.site.target.sink;
        let same = sink.interface() == here.interface()
            && sink.address() == here.address()
            && there.port == task.port;
        (!same).then_some((sink, there))
    }

    /// The first request that nothing stopped, and how it left.
    fn request_that_left<'t>(&self, tried: &'t Tried) -> Option<(&'t FlowPacket, Exit)> {
        let requests = tried.packets.iter();
        let mut requests = requests.filter(|p| self.clerk.direction(p) == Some(Direction::Request));
        requests.find_map(|p| match p.stopped_by() {
            StoppedBy::Nothing(exit) => Some((p, exit)),
            _ => None,
        })
    }
}
