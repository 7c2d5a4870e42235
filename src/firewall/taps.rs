//! What a quick job wants on a router, and what it reads there, as plain values.

use std::{collections::BTreeMap, net::IpAddr, ops::Range};

use crate::{
    firewall::TagSpace,
    model::{Protocol, RunId},
    netlink::object::Family,
};

/// The taps of one job on one router.
///
/// They see a probe come in (before everything else at PREROUTING), see it go out (behind
/// everything else at POSTROUTING) or to a local socket (behind everything else at INPUT), and
/// discard it there, before connection tracking confirms it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taps {
    /// The job.
    pub run_id: RunId,
    /// Family of the probes.
    pub family: Family,
    /// Which packets are the job's probes.
    pub tags: TagSpace,
    /// How many services there are: indexes 0 to `services` − 1.
    pub services: u32,
    /// Which of them are of which protocol.
    pub runs: Runs,
    /// The router itself sends the probes: they come in at OUTPUT.
    pub from_itself: bool,
    /// Note which probes came in, not only how many.
    pub note_arrivals: bool,
    /// Recognise probes by tag alone on their way out: the router rewrites the IPv4 identification or
    /// the flow label, which mark them otherwise.
    pub by_tag: bool,
    /// Note how each probe left: its headers behind everything that the router changes, and where
    /// it was sent.
    pub note_ways: bool,
    /// Let probes go on instead of discarding them behind the last tap. A test compares what the
    /// taps say with a packet capture on the far side this way.
    pub pass_on: bool,
}

impl Taps {
    /// Taps that count what comes in and see what goes out, and do none of what the flags ask for.
    #[must_use]
    pub fn new(
        run_id: RunId,
        family: Family,
        tags: TagSpace,
        (services, runs): (u32, Runs),
    ) -> Self {
        Self {
            run_id,
            family,
            tags,
            services,
            runs,
            from_itself: false,
            note_arrivals: false,
            by_tag: false,
            note_ways: false,
            pass_on: false,
        }
    }
}

/// Which indexes are of which protocol: each protocol has a run of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs(Vec<(Protocol, Range<u32>)>);

impl Runs {
    /// Runs of these lengths, one behind the other from 0 on.
    #[must_use]
    pub fn new(lengths: &[(Protocol, u32)]) -> Self {
        let mut end = 0;
        let run = |&(protocol, length): &(Protocol, u32)| {
            let start = end;
            end += length;
            (protocol, start..end)
        };
        let runs = lengths.iter().map(run);
        Self(runs.filter(|(_, run)| !run.is_empty()).collect())
    }

    /// Each protocol with its indexes, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (Protocol, Range<u32>)> + '_ {
        self.0.iter().cloned()
    }

    /// The protocols of indexes in `part`.
    pub fn within(&self, part: Range<u32>) -> impl Iterator<Item = Protocol> + '_ {
        let meets = move |run: &Range<u32>| run.start < part.end && part.start < run.end;
        let runs = self.0.iter().filter(move |(_, run)| meets(run));
        runs.map(|(protocol, _)| *protocol)
    }

    /// The indexes of one protocol.
    #[must_use]
    pub fn of(&self, protocol: Protocol) -> Range<u32> {
        let found = self.0.iter().find(|(known, _)| *known == protocol);
        found.map_or(0..0, |(_, run)| run.clone())
    }
}

/// A set of service indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes {
    present: Vec<bool>,
    count: usize,
}

impl Indexes {
    /// An empty set of indexes below `size`.
    #[must_use]
    pub fn new(size: u32) -> Self {
        Self {
            present: vec![false; size as usize],
            count: 0,
        }
    }

    /// Adds `index`; says whether it belongs into the set and was new.
    pub fn insert(&mut self, index: u32) -> bool {
        match self.present.get_mut(index as usize) {
            Some(present) if !*present => {
                *present = true;
                self.count += 1;
                true
            }
            _ => false,
        }
    }

    /// Whether `index` is in the set.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.present.get(index as usize).copied().unwrap_or(false)
    }

    /// How many indexes are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The indexes in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0u32..)
            .zip(&self.present)
            .filter_map(|(index, &present)| present.then_some(index))
    }
}

/// What the taps on one router saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Probes that came in.
    pub packets_in: u64,
    /// Probes that went out.
    pub packets_out: u64,
    /// Probes that reached the end of INPUT.
    pub packets_local: u64,
    /// Services whose probe came in, where [`Taps::note_arrivals`] asked for it.
    pub arrived: Option<Indexes>,
    /// Services whose probe went out.
    pub out: Indexes,
    /// Services whose probe reached the end of INPUT.
    pub local: Indexes,
    /// How the probes in `out` and `local` left, where [`Taps::note_ways`] asked for it.
    pub ways: Option<ProbeWays>,
    /// Set elements that carry no tag of this job: foreign packets that looked like probes.
    pub foreign: usize,
    /// Packets that carried a tag of this job on their way out, and not its mark. If they are probes,
    /// [`Taps::by_tag`] recognises them.
    pub unmarked: u64,
    /// Services of which the taps cannot say whether their probes got through, and why not. None
    /// of them is in `out` or `local`.
    pub undecided: Vec<Undecided>,
}

/// A probe as it left: behind the router's own NAT, and everything else that changes packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Departed {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TOS octet or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Number of the outgoing interface; 0 at the end of INPUT.
    pub oif: u32,
    /// The next hop on that link, a gateway or the destination. Of an IPv4 packet that goes to an
    /// IPv6 gateway it is the destination. None at the end of INPUT.
    pub next_hop: Option<IpAddr>,
    /// The router's own firewall mark on it.
    pub mark: u32,
}

/// How the probes of one measurement left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeWays {
    known: Vec<Option<Departed>>,
    unknown: BTreeMap<u32, String>,
}

impl ProbeWays {
    /// Of no probe it is known; indexes are below `size`.
    #[must_use]
    pub fn new(size: u32) -> Self {
        Self {
            known: vec![None; size as usize],
            unknown: BTreeMap::new(),
        }
    }

    /// Notes how a probe left.
    pub fn insert(&mut self, index: u32, left: Departed) {
        if let Some(known) = self.known.get_mut(index as usize) {
            *known = Some(left);
        }
    }

    /// Notes why it is not known how a probe left.
    pub fn doubt(&mut self, index: u32, why: String) {
        self.unknown.insert(index, why);
    }

    /// Takes over what another measurement says of some of the probes.
    pub fn correct(&mut self, other: &Self, indexes: impl Iterator<Item = u32>) {
        for index in indexes {
            self.unknown.remove(&index);
            if let Some(known) = self.known.get_mut(index as usize) {
                *known = other.known.get(index as usize).copied().flatten();
            }
            if let Some(why) = other.unknown.get(&index) {
                self.unknown.insert(index, why.clone());
            }
        }
    }

    /// How a probe left, or why that is not known; none where nothing is known of the probe.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<Result<&Departed, &str>> {
        if let Some(why) = self.unknown.get(&index) {
            return Some(Err(why));
        }
        self.known.get(index as usize)?.as_ref().map(Ok)
    }
}

/// Probes that came to a place behind which the back end sees nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecided {
    /// Their services.
    pub services: Indexes,
    /// What may have happened to them there.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_indexes_counts_each_once_and_refuses_strangers() {
        let mut set = Indexes::new(3);
        assert!(set.insert(2) && !set.insert(2) && !set.insert(3));
        assert_eq!(
            (set.len(), set.contains(2), set.contains(1)),
            (1, true, false)
        );
        assert_eq!(set.iter().collect::<Vec<_>>(), [2]);
    }
}
