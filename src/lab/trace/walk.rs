//! From router to router.

use std::net::IpAddr;

use super::{
    End, Entry, EntryName, Hop, Onward, Trace, TraceError, TracePacket, Undelivered, WayOn, Wiring,
    entries::{entries, query},
};
use crate::{
    lab::sockets::RouterSockets,
    model::{IfName, Protocol},
    netlink::{Lookup, LookupKind, LookupQuery},
};

/// More ways than these are not followed.
const MAX_WAYS: usize = 16;

/// Finds the ways of `packet`: from the entry that `from` names or from all that there may be (see
/// [`entries()`]), by every next hop of a route that has several, and to each router that answers
/// for a next hop.
///
/// # Errors
/// [`TraceError`] when there is no such router or the kernel cannot be asked. A way that ends
/// badly is no error.
pub fn trace(
    wiring: &Wiring,
    sockets: &mut RouterSockets,
    packet: &TracePacket,
    from: Option<&EntryName>,
) -> Result<Trace, TraceError> {
    if packet.source.is_ipv4() != packet.destination.is_ipv4() {
        return Err(TraceError::Families {
            source_address: packet.source,
            destination: packet.destination,
        });
    }
    let mut trace = Trace {
        lab: sockets.lab().clone(),
        packet: packet.clone(),
        from: from.cloned(),
        hops: Vec::new(),
        end: End::NoRoute,
        other_ways: Vec::new(),
        warnings: Vec::new(),
    };
    let shared = wiring.shared_link(packet.source, packet.destination);
    if let Some(shared) = shared.filter(|_| from.is_none()) {
        trace.end = End::SameLink(shared);
        return Ok(trace);
    }
    let starts = entries(wiring, sockets, packet, from)?;
    let mut walk = Walk {
        wiring,
        sockets,
        packet,
        ways: Vec::new(),
        warnings: Vec::new(),
    };
    walk.note_entries(&starts);
    walk.all(starts)?;
    trace.warnings = walk.warnings;
    let mut ways = walk.ways.into_iter();
    if let Some(first) = ways.next() {
        (trace.hops, trace.end) = (first.hops, first.end);
    }
    trace.other_ways = ways.collect();
    Ok(trace)
}

struct Walk<'a> {
    wiring: &'a Wiring,
    sockets: &'a mut RouterSockets,
    packet: &'a TracePacket,
    ways: Vec<WayOn>,
    warnings: Vec<String>,
}

/// A way as far as it is known.
#[derive(Clone)]
struct Under {
    hops: Vec<Hop>,
    seen: Vec<Entry>,
    next: Next,
}

/// What comes behind the hops of a way.
#[derive(Clone)]
enum Next {
    At(Entry),
    End(End),
}

impl Walk<'_> {
    fn note_entries(&mut self, starts: &[Entry]) {
        if let [first, _, ..] = starts {
            let names: Vec<String> = starts.iter().map(ToString::to_string).collect();
            self.warnings.push(format!(
                "{} may enter at {}; the first way begins at {first}, another can be named",
                self.packet.source,
                names.join(", "),
            ));
        }
    }

    /// Follows all ways that begin at `starts`, the first of each fork first.
    fn all(&mut self, starts: Vec<Entry>) -> Result<(), TraceError> {
        let begin = |entry| Under {
            hops: Vec::new(),
            seen: Vec::new(),
            next: Next::At(entry),
        };
        let mut open: Vec<Under> = starts.into_iter().rev().map(begin).collect();
        while let Some(mut way) = open.pop() {
            if self.ways.len() == MAX_WAYS {
                let text = format!("there are more than {MAX_WAYS} ways; these are the first");
                self.warnings.push(text);
                break;
            }
            match way.next.clone() {
                Next::End(end) => self.ways.push(WayOn {
                    hops: way.hops,
                    end,
                }),
                Next::At(at) if way.seen.contains(&at) => self.ways.push(WayOn {
                    hops: way.hops,
                    end: End::Loop { to: at.router },
                }),
                Next::At(at) => {
                    way.seen.push(at.clone());
                    let steps = self.step(&at)?.into_iter().rev();
                    open.extend(steps.map(|(hop, next)| way.longer(hop, next)));
                }
            }
        }
        Ok(())
    }

    /// What the router does with the packet, by each next hop that it may take.
    fn step(&mut self, at: &Entry) -> Result<Vec<(Hop, Next)>, TraceError> {
        let query = query(self.packet, at);
        let way = self.sockets.router(&at.router)?.lookup_one(&query)?;
        let end = match way.kind {
            LookupKind::Unicast => return self.onward(at, &query, &way),
            LookupKind::Local => End::Local,
            LookupKind::Broadcast | LookupKind::Multicast => End::NotUnicast,
            LookupKind::Blackhole => End::Blackhole,
            LookupKind::Prohibit => End::Prohibit,
            LookupKind::NoRoute => End::NoRoute,
            LookupKind::Unreachable | LookupKind::Refused => self.tell_apart(at, way.kind)?,
        };
        Ok(vec![(hop(at, None, None), Next::End(end))])
    }

    /// Two answers for a packet that comes in mean either of two things. How the router would
    /// route a packet of its own to the same destination tells which, unless policy rules look at
    /// source or incoming interface.
    fn tell_apart(&mut self, at: &Entry, kind: LookupKind) -> Result<End, TraceError> {
        let own = LookupQuery {
            mark: self.packet.mark,
            tos: self.packet.tos,
            ip_proto: self.packet.protocol.map(Protocol::number),
            sport: self.packet.source_port,
            dport: self.packet.destination_port,
            ..LookupQuery::to(self.packet.destination)
        };
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

    /// Who gets what the router sends out, for each of the route's next hops.
    fn onward(
        &mut self,
        at: &Entry,
        query: &LookupQuery,
        way: &Lookup,
    ) -> Result<Vec<(Hop, Next)>, TraceError> {
        let destination = self.packet.destination;
        let hops = self.sockets.router(&at.router)?.next_hops(query)?;
        let mut outs: Vec<(Option<IfName>, IpAddr)> = hops
            .into_iter()
            .map(|hop| (hop.dev, hop.via.unwrap_or(destination)))
            .collect();
        if outs.len() < 2 {
            outs = vec![(way.dev.clone(), way.via.unwrap_or(destination))];
        }
        let mut steps = Vec::new();
        for (dev, next_hop) in outs {
            let hop = hop(at, dev.clone(), Some(next_hop));
            let end = match &dev {
                Some(dev) => self.wiring.onward(&at.router, dev, next_hop, destination),
                None => Onward::End(End::NextHopUnknown { segment: None }),
            };
            for next in behind(end) {
                let next = self.taken(&hop, next);
                steps.push((hop.clone(), next));
            }
        }
        Ok(steps)
    }

    /// `next`, unless the other end of the link does not take the packet.
    fn taken(&self, hop: &Hop, next: Next) -> Next {
        let (Next::At(to), Some(out)) = (&next, &hop.iface_out) else {
            return next;
        };
        let from = (&hop.router, out);
        let kept = self
            .wiring
            .kept_from(from, hop.next_hop, to, self.packet.source);
        match kept {
            Some(Undelivered::NotAllowed) => Next::End(End::NotAllowed { at: to.clone() }),
            Some(Undelivered::Unheard) => Next::End(End::NextHopUnknown { segment: None }),
            None => next,
        }
    }
}

impl Under {
    fn longer(&self, hop: Hop, next: Next) -> Self {
        let mut longer = self.clone();
        longer.hops.push(hop);
        longer.next = next;
        longer
    }
}

/// What comes of a packet that is sent out: a router each, or an end.
fn behind(onward: Onward) -> Vec<Next> {
    match onward {
        Onward::Routers(entries) => entries.into_iter().map(Next::At).collect(),
        Onward::End(end) => vec![Next::End(end)],
    }
}

fn hop(at: &Entry, iface_out: Option<IfName>, next_hop: Option<IpAddr>) -> Hop {
    Hop {
        router: at.router.clone(),
        iface_in: at.iface_in.clone(),
        iface_out,
        next_hop,
    }
}
