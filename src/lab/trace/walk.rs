//! From router to router.

use std::net::IpAddr;

use super::{End, Hop, Packet, Plug, Trace, TraceError, Wiring};
use crate::{
    lab::sockets::RouterSockets,
    model::{IfName, Protocol, RouterName},
    netlink::{Lookup, LookupKind, LookupQuery},
};

/// A packet about to be routed: in which router, and where it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct At {
    router: RouterName,
    iface_in: Option<IfName>,
}

/// Finds the way of `packet`, beginning at the router `first`, or at the one that the source is
/// next to: the router that has the address itself; or one with an interface in its subnet, of
/// several rather one that sends the packet on to another segment, then the first by name; or one
/// that routes the source out of the lab.
///
/// # Errors
/// [`TraceError`] when there is no such router or the kernel cannot be asked. A way that ends
/// badly is no error.
pub fn trace(
    wiring: &Wiring,
    sockets: &mut RouterSockets,
    packet: &Packet,
    first: Option<&RouterName>,
) -> Result<Trace, TraceError> {
    if packet.source.is_ipv4() != packet.destination.is_ipv4() {
        return Err(TraceError::Families {
            source_address: packet.source,
            destination: packet.destination,
        });
    }
    let mut walk = Walk {
        wiring,
        sockets,
        packet,
        warnings: Vec::new(),
    };
    let start = match first {
        Some(router) => walk.start_at(router)?,
        None => walk.start()?,
    };
    let (hops, end) = walk.from(start)?;
    let warnings = walk.warnings;
    Ok(Trace {
        lab: sockets.lab().clone(),
        packet: packet.clone(),
        hops,
        end,
        warnings,
    })
}

struct Walk<'a> {
    wiring: &'a Wiring,
    sockets: &'a mut RouterSockets,
    packet: &'a Packet,
    warnings: Vec<String>,
}

/// What one router does with the packet.
enum Step {
    End(Hop, End),
    On(Hop, At),
}

impl Walk<'_> {
    /// Where the packet enters `router`, which the user named.
    fn start_at(&mut self, router: &RouterName) -> Result<At, TraceError> {
        if !self.wiring.routers().contains(&router) {
            return Err(TraceError::NoRouter {
                lab: self.sockets.lab().clone(),
                router: router.clone(),
            });
        }
        let source = self.packet.source;
        let own = self.wiring.owners(source).contains(&router);
        let near = self.wiring.neighbours(source);
        let near = near.iter().find(|plug| plug.router == *router);
        let iface_in = match near {
            _ if own => None,
            Some(plug) => Some(plug.interface.clone()),
            None => {
                let way = self.facing(router)?;
                let not_facing = || TraceError::NotFacing {
                    router: router.clone(),
                    source_address: source,
                };
                Some(way.dev.ok_or_else(not_facing)?)
            }
        };
        Ok(At {
            router: router.clone(),
            iface_in,
        })
    }

    fn start(&mut self) -> Result<At, TraceError> {
        let source = self.packet.source;
        let at = |plug: &&Plug| At {
            router: plug.router.clone(),
            iface_in: Some(plug.interface.clone()),
        };
        let itself = |router: &&RouterName| At {
            router: (*router).clone(),
            iface_in: None,
        };
        let mut candidates: Vec<At> = self.wiring.owners(source).iter().map(itself).collect();
        if candidates.is_empty() {
            candidates = self.wiring.neighbours(source).iter().map(at).collect();
            self.prefer_onward(&mut candidates)?;
        }
        if candidates.is_empty() {
            candidates = self.edges()?;
        }
        let names: Vec<&str> = candidates.iter().map(|at| at.router.as_str()).collect();
        if let [chosen, others @ ..] = names.as_slice()
            && !others.is_empty()
        {
            let text = format!(
                "{source} may enter at {}; {chosen} was taken, another can be named",
                names.join(", ")
            );
            self.warnings.push(text);
        }
        let none = TraceError::NoStart {
            lab: self.sockets.lab().clone(),
            source_address: source,
        };
        candidates.into_iter().next().ok_or(none)
    }

    /// Moves those to the front that do not send the packet back to the segment it comes from.
    fn prefer_onward(&mut self, candidates: &mut [At]) -> Result<(), TraceError> {
        if candidates.len() < 2 {
            return Ok(());
        }
        let mut back = Vec::new();
        for at in candidates.iter() {
            let way = self.route(at)?;
            back.push(way.kind != LookupKind::Local && way.dev == at.iface_in);
        }
        let mut order: Vec<(bool, At)> = back.into_iter().zip(candidates.to_vec()).collect();
        order.sort_by(|a, b| (a.0, &a.1.router).cmp(&(b.0, &b.1.router)));
        candidates.clone_from_slice(&order.into_iter().map(|(_, at)| at).collect::<Vec<_>>());
        Ok(())
    }

    /// The routers that send to the source by a gateway that is no router of the lab.
    fn edges(&mut self) -> Result<Vec<At>, TraceError> {
        let mut edges = Vec::new();
        let routers = self.wiring.routers();
        self.sockets.open_all(&routers)?;
        for router in routers {
            let way = self.facing(router)?;
            let (LookupKind::Unicast, Some(dev), Some(via)) = (way.kind, way.dev, way.via) else {
                continue;
            };
            let outside = self.wiring.plug(router, &dev).is_some_and(|plug| {
                plug.segment.is_some() && self.wiring.reached(plug, via).is_empty()
            });
            if outside {
                edges.push(At {
                    router: router.clone(),
                    iface_in: Some(dev),
                });
            }
        }
        Ok(edges)
    }

    /// How `router` sends to the source.
    fn facing(&mut self, router: &RouterName) -> Result<Lookup, TraceError> {
        let query = LookupQuery::to(self.packet.source);
        Ok(self.sockets.router(router)?.lookup_one(&query)?)
    }

    /// How the router routes the packet.
    fn route(&mut self, at: &At) -> Result<Lookup, TraceError> {
        let query = LookupQuery {
            from: Some(self.packet.source),
            iif: at.iface_in.clone(),
            ..self.question()
        };
        Ok(self.sockets.router(&at.router)?.lookup_one(&query)?)
    }

    fn question(&self) -> LookupQuery {
        LookupQuery {
            mark: self.packet.mark,
            tos: self.packet.tos,
            ip_proto: self.packet.protocol.map(Protocol::number),
            sport: self.packet.source_port,
            dport: self.packet.destination_port,
            ..LookupQuery::to(self.packet.destination)
        }
    }

    fn from(&mut self, start: At) -> Result<(Vec<Hop>, End), TraceError> {
        let mut hops = Vec::new();
        let mut seen: Vec<At> = Vec::new();
        let mut at = start;
        loop {
            if seen.contains(&at) {
                return Ok((hops, End::Loop { to: at.router }));
            }
            seen.push(at.clone());
            match self.step(&at)? {
                Step::End(hop, end) => {
                    hops.push(hop);
                    return Ok((hops, end));
                }
                Step::On(hop, next) => {
                    hops.push(hop);
                    at = next;
                }
            }
        }
    }

    fn step(&mut self, at: &At) -> Result<Step, TraceError> {
        let way = self.route(at)?;
        let end = match way.kind {
            LookupKind::Unicast => return Ok(self.onward(at, &way)),
            LookupKind::Local => End::Local,
            LookupKind::Broadcast | LookupKind::Multicast => End::NotUnicast,
            LookupKind::Blackhole => End::Blackhole,
            LookupKind::Prohibit => End::Prohibit,
            LookupKind::NoRoute => End::NoRoute,
            LookupKind::Unreachable | LookupKind::Refused => self.tell_apart(at, way.kind)?,
        };
        Ok(Step::End(hop(at, None, None), end))
    }

    /// Two answers for a packet that comes in mean either of two things. How the router would
    /// route a packet of its own to the same destination tells which, unless policy rules look at
    /// source or incoming interface.
    fn tell_apart(&mut self, at: &At, kind: LookupKind) -> Result<End, TraceError> {
        let own = self.question();
        let own = self.sockets.router(&at.router)?.lookup_one(&own)?.kind;
        Ok(match (kind, own) {
            (LookupKind::Unreachable, LookupKind::Unicast) if at.iface_in.is_some() => {
                End::NotForwarding
            }
            (LookupKind::Unreachable, _) => End::Unreachable,
            (_, LookupKind::Blackhole) => End::Blackhole,
            _ => End::Refused,
        })
    }

    /// Who gets what the router sends out.
    fn onward(&mut self, at: &At, way: &Lookup) -> Step {
        let next_hop = way.via.unwrap_or(self.packet.destination);
        let hop = hop(at, way.dev.clone(), Some(next_hop));
        let wiring = self.wiring;
        let plug = way
            .dev
            .as_ref()
            .and_then(|dev| wiring.plug(&at.router, dev));
        let Some((plug, segment)) = plug.and_then(|plug| Some((plug, wiring.segment(plug)?)))
        else {
            return Step::End(hop, End::NextHopUnknown { segment: None });
        };
        let segment = segment.to_owned();
        let reached = wiring.reached(plug, next_hop);
        let mut up = reached.iter().filter(|plug| plug.up);
        match (up.next(), way.via) {
            (Some(next), _) => {
                if let Some(other) = up.next() {
                    let text = format!(
                        "{next_hop} is both {} and {} on segment {segment}; {} was taken",
                        next.router, other.router, next.router
                    );
                    self.warnings.push(text);
                }
                let next = At {
                    router: next.router.clone(),
                    iface_in: Some(next.interface.clone()),
                };
                Step::On(hop, next)
            }
            (None, None) if reached.is_empty() => Step::End(hop, End::Delivered { segment }),
            (None, _) => {
                let segment = Some(segment);
                Step::End(hop, End::NextHopUnknown { segment })
            }
        }
    }
}

fn hop(at: &At, iface_out: Option<IfName>, next_hop: Option<IpAddr>) -> Hop {
    Hop {
        router: at.router.clone(),
        iface_in: at.iface_in.clone(),
        iface_out,
        next_hop,
    }
}
