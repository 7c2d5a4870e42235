//! Services whose packets go elsewhere than was expected: NAT, routing by mark, routers and
//! neighbours that no table told beforehand.

use super::Bench;
use crate::{
    firewall::{
        nft::trace::{ProbeExit, StoppedBy, flow::FlowPacket},
        place::HookPoint,
    },
    lab::trace::{End, Entry, Onward},
    model::{IfName, RouterName},
    netlink::object::Mac,
    registry::NeighbourKey,
    run::detailed::{
        attempt::Tried,
        connect::Experience,
        head,
        journey::SeenPackets,
        judge::Proxied,
        result::{Direction, KnownHeaders},
        site::{Sink, Task, TransparentProxy},
    },
};

/// How often a service may be found to go elsewhere before that is its result.
const MAX_MOVES: u8 = 4;
/// How often it may need more routers or neighbours: more than a way can have.
const MAX_GROWTHS: u8 = 32;

/// What must be held or known for a service's packets to get further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::run::detailed) enum Growth {
    /// A router that packets like this one are sent to.
    Router(Entry, KnownHeaders),
    /// A neighbour entry that leads there.
    Neighbour(NeighbourKey, Mac),
}

/// How a packet left a router.
pub(super) struct Departure {
    pub(super) router: RouterName,
    pub(super) interface: IfName,
    pub(super) hop: std::net::IpAddr,
    pub(super) onward: Onward,
}

impl Bench<'_> {
    /// Where the request went and what is to be tried there, if nobody listens there now.
    pub(super) fn moved(
        &mut self,
        task: Task,
        tried: &Tried,
        seen: &SeenPackets,
    ) -> Option<(Sink, Task)> {
        if tried.arrived.is_some() || task.moves >= MAX_MOVES {
            return None;
        }
        let (at, request) = *seen.first(Direction::Request).last()?;
        let post = self.posts.get_mut(at)?;
        let out = post.clerk.observer.name(request.last.oif);
        let by_lo = out.is_some_and(|out| out.as_str() == "lo");
        let sink = match request.stopped_by() {
            StoppedBy::Nothing(exit) if by_lo || exit == ProbeExit::Local => Sink::Router {
                router: self.posts.get(at)?.station.name().clone(),
                address: request.last.destination,
                proxy: None,
            },
            StoppedBy::Nothing(ProbeExit::Out) => self.host_for(at, request)?,
            _ => return None,
        };
        let there = Task {
            port: request.last.payload.ports().map_or(task.port, |p| p.1),
            moves: task.moves + 1,
            ..task
        };
        let same = sink.is_at(&self.site.target.sink) && there.port == task.port;
        (!same).then_some((sink, there))
    }

    /// The program of a router that a rule hands the request to, and what is to be tried there.
    pub(super) fn proxied(&self, task: Task, found: Option<&(usize, Proxied)>) -> Option<Sink> {
        let (at, proxied) = found?;
        let port = proxied.port.filter(|port| *port > 0);
        Some(Sink::Router {
            router: self.posts.get(*at)?.station.name().clone(),
            address: self.site.target.sink.address().unwrap_or(self.site.to),
            proxy: Some(TransparentProxy {
                port: port.unwrap_or(task.port),
                rule: proxied.rule.clone(),
                lets_go: proxied.lets_go,
            }),
        })
    }

    /// The host that stands for whoever gets what left; none where a router gets it, or nobody.
    fn host_for(&mut self, at: usize, request: &FlowPacket) -> Option<Sink> {
        let left = self.departure(at, request)?;
        let goes_on = match &left.onward {
            Onward::End(End::NextHopUnknown { .. } | End::NoPeer | End::NotAllowed { .. }) => true,
            Onward::Routers(routers) => self.site.whole || self.held(routers).is_some(),
            _ => false,
        };
        (!goes_on).then_some(Sink::Host {
            router: left.router,
            interface: left.interface,
            hop: left.hop,
            address: request.last.destination,
        })
    }

    /// How a packet left a router, and who gets it.
    pub(super) fn departure(&mut self, at: usize, packet: &FlowPacket) -> Option<Departure> {
        let map = self.setup.map;
        let post = self.posts.get_mut(at)?;
        let interface = post.clerk.observer.name(packet.last.oif)?.clone();
        let hop = post.next_hop(packet).unwrap_or(packet.last.destination);
        let router = post.station.name().clone();
        let onward = map
            .wiring
            .onward(&router, &interface, hop, packet.last.destination);
        let refuses = |next: &Entry| {
            let source = packet.last.source;
            !map.wiring.takes(&router, &interface, next, source)
        };
        let onward = match onward {
            Onward::Routers(routers) => match &routers[..] {
                [next] if refuses(next) => Onward::End(End::NotAllowed { at: next.clone() }),
                _ => Onward::Routers(routers),
            },
            end => end,
        };
        Some(Departure {
            router,
            interface,
            hop,
            onward,
        })
    }

    /// The first of these that is held.
    fn held<'e>(&self, routers: &'e [Entry]) -> Option<&'e Entry> {
        routers
            .iter()
            .find(|entry| self.site.place(&entry.router).is_some())
    }

    /// What packets need that went where nobody followed them.
    pub(super) fn growth(
        &mut self,
        task: Task,
        tried: &Tried,
        seen: &SeenPackets,
    ) -> Option<Growth> {
        let answered = matches!(tried.experience, Some(Experience::Answered(_)));
        if answered || task.growths >= MAX_GROWTHS {
            return None;
        }
        [Direction::Request, Direction::Answer]
            .into_iter()
            .find_map(|direction| {
                // A frame for a router that is not held is flooded to others of its link, too, and
                // comes in there no further.
                let flooded = StoppedBy::After(HookPoint::Ingress);
                let all = seen.first(direction);
                let mut last = all.iter().rev();
                let (at, packet) = *last.find(|(_, packet)| packet.stopped_by() != flooded)?;
                if packet.stopped_by() != StoppedBy::Nothing(ProbeExit::Out) {
                    return None;
                }
                let left = self.departure(at, packet)?;
                self.needs(&left, packet, direction)
            })
    }

    fn needs(&self, left: &Departure, packet: &FlowPacket, direction: Direction) -> Option<Growth> {
        let map = self.setup.map;
        let key = NeighbourKey {
            router: self.site.stations[self.site.place(&left.router)?]
                .router
                .clone(),
            interface: left.interface.clone(),
            address: left.hop,
        };
        let known = |key: &NeighbourKey| {
            self.site.homes.contains(key) || self.site.others.iter().any(|(k, _)| k == key)
        };
        let leads = |mac: Option<Mac>| Some(Growth::Neighbour(key.clone(), mac?));
        if let Onward::Routers(routers) = &left.onward {
            // What is held back at the other end of a tunnel is not to be led around that.
            let led = known(&key) || map.leads_itself(&left.router, &left.interface);
            return match self.held(routers) {
                // Who has the address answers for it by himself.
                Some(next) if led || map.owns(&next.router, left.hop) => None,
                Some(next) => leads(map.mac(&next.router, next.iface_in.as_ref()?)),
                None if self.site.whole => {
                    let headers = head::headers(&packet.last);
                    Some(Growth::Router(routers.first()?.clone(), headers))
                }
                None => None,
            };
        }
        if known(&key) {
            return None;
        }
        match (direction, &self.site.target.sink) {
            (Direction::Request, sink @ Sink::Host { hop, .. }) => {
                let here = sink.exit() == Some((&left.router, &left.interface));
                let host = self.site.destination.as_ref()?;
                leads((here && *hop != left.hop).then_some(host.mac))
            }
            (Direction::Answer, _) => {
                let source = self.site.source.host()?;
                let home = map.segment(&source.router.router, &source.interface);
                let here = map.segment(&left.router, &left.interface);
                leads((home.is_some() && home == here).then_some(source.mac))
            }
            _ => None,
        }
    }
}
