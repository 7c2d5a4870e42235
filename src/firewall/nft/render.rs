//! Renders [`Taps`] as one nf_tables transaction.

use super::{departure::Key, probe::ProbeMatch};
use crate::{
    firewall::Taps,
    model::Protocol,
    sys::nftnl::{EncodeError, Encoder, Expr, Family, Hook, Set, VerdictCode},
};

/// Services per set.
const SHARD_BITS: u32 = 12;
const SHARD: u32 = 1 << SHARD_BITS;
/// How nft(8) numbers the type of a set key that is a 32-bit number (`mark`).
const KEY_TYPE_MARK: u32 = 19;
/// Room for another way of some probes, which is an element of its own.
const SPARE: u32 = SHARD / 4;

/// How many sets it takes for this many services.
pub(super) fn shards(services: u32) -> u32 {
    services.div_ceil(SHARD)
}

/// The transaction that makes the job's table in one router. `flags` are the table's.
pub(super) fn transaction(
    batch: Encoder,
    taps: &Taps,
    family: Family,
    table: &str,
    flags: u32,
) -> Result<Encoder, EncodeError> {
    let mut render = Render {
        batch,
        taps,
        family,
        table,
        sets: 0,
    };
    render.batch.begin();
    render.batch.table(family, table, flags)?;
    render.batch.counter(family, table, UNMARKED)?;
    let arrival = if taps.from_itself { &SENT } else { &ARRIVAL };
    for point in [arrival, &OUT, &LOCAL] {
        render.point(point)?;
    }
    // What the router itself sends comes by there, and is no copy.
    if !taps.from_itself {
        render.copies()?;
    }
    render.batch.end();
    Ok(render.batch)
}

/// One place on a probe's way where the job looks.
struct Point {
    /// Name of the chain and of its counter.
    name: &'static str,
    /// First letter of the names of its sets.
    prefix: char,
    /// First letter of the names of those sets that say where probes went from here.
    way: Option<char>,
    hook: Hook,
    priority: i32,
    /// Whether the probe's way ends here.
    last: bool,
}

const ARRIVAL: Point = Point {
    name: "in",
    prefix: 'i',
    way: None,
    hook: Hook::Prerouting,
    priority: i32::MIN,
    last: false,
};
/// As [`ARRIVAL`], for probes that the router itself sends.
const SENT: Point = Point {
    hook: Hook::Output,
    ..ARRIVAL
};
const OUT: Point = Point {
    name: "out",
    prefix: 'o',
    way: Some('w'),
    hook: Hook::Postrouting,
    priority: i32::MAX,
    last: true,
};
const LOCAL: Point = Point {
    name: "local",
    prefix: 'l',
    way: None,
    hook: Hook::Input,
    priority: i32::MAX,
    last: true,
};

/// Copies that the router makes of packets (TEE, dup) begin their way at OUTPUT, where no forwarded
/// packet comes. They end there, so that no later tap takes one for its original.
const COPIES: Point = Point {
    name: "copies",
    prefix: 'c',
    way: None,
    hook: Hook::Output,
    priority: i32::MIN,
    last: true,
};
/// Counts packets with a tag and without the mark.
const UNMARKED: &str = "unmarked";

/// A set that a rule adds to.
struct Noted {
    name: String,
    /// Its id within the batch.
    id: u32,
    /// What is added; none for the tag alone.
    key: Option<Key>,
}

struct Render<'a> {
    batch: Encoder,
    taps: &'a Taps,
    family: Family,
    table: &'a str,
    /// Sets made so far; their ids within the batch count from 1.
    sets: u32,
}

impl Render<'_> {
    fn point(&mut self, point: &Point) -> Result<(), EncodeError> {
        let Self { family, table, .. } = *self;
        self.batch.counter(family, table, point.name)?;
        self.batch
            .base_chain(family, table, point.name, point.hook, point.priority)?;
        if !point.last && !self.taps.note_arrivals {
            return self.every(|render, probe| render.note(point, &probe, &[]));
        }
        (0..shards(self.taps.services)).try_for_each(|shard| self.shard(point, shard))?;
        if !point.last || self.taps.by_tag {
            return Ok(());
        }
        self.every(|render, probe| {
            let probe = probe.without_mark();
            let mut exprs = probe.exprs();
            exprs.push(Expr::Count(UNMARKED));
            render.add(point, &exprs)
        })
    }

    /// What is done with copies.
    fn copies(&mut self) -> Result<(), EncodeError> {
        let Point {
            name,
            hook,
            priority,
            ..
        } = COPIES;
        self.batch
            .base_chain(self.family, self.table, name, hook, priority)?;
        self.every(|render, probe| {
            let mut exprs = probe.exprs();
            exprs.push(Expr::Verdict(VerdictCode::Drop));
            render.add(&COPIES, &exprs)
        })
    }

    /// Does something for the probes of each protocol.
    fn every(
        &mut self,
        mut each: impl FnMut(&mut Self, ProbeMatch) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        let Taps { family, tags, .. } = *self.taps;
        self.protocols(0, self.taps.services)
            .into_iter()
            .try_for_each(|protocol| each(self, ProbeMatch::all(family, tags, protocol)))
    }

    /// The set of one shard at one point, and the rules that fill it.
    fn shard(&mut self, point: &Point, shard: u32) -> Result<(), EncodeError> {
        let mut notes = vec![self.set(point.prefix, shard, self.key(point))?];
        if let Some(way) = point.way.filter(|_| self.taps.note_ways) {
            notes.push(self.set(way, shard, Some(Key::way(self.family)))?);
        }
        let first = shard * SHARD;
        let prefix = self.taps.tags.tag(first);
        self.protocols(first, first + SHARD)
            .into_iter()
            .try_for_each(|protocol| {
                let tag = (prefix, !(SHARD - 1));
                let probe = ProbeMatch::new(self.taps.family, self.taps.tags, protocol, tag);
                let by_tag = point.last && self.taps.by_tag;
                let probe = if by_tag { probe.without_mark() } else { probe };
                self.note(point, &probe, &notes)
            })
    }

    /// What is noted of probes at one point; none for the tag alone.
    fn key(&self, point: &Point) -> Option<Key> {
        (point.last && self.taps.note_ways).then(|| Key::packet(self.family))
    }

    /// A set of one shard.
    fn set(&mut self, prefix: char, shard: u32, key: Option<Key>) -> Result<Noted, EncodeError> {
        self.sets += 1;
        let name = format!("{prefix}{shard}");
        let set = Set {
            name: &name,
            id: self.sets,
            key_type: key.as_ref().map_or(KEY_TYPE_MARK, |key| key.kind),
            key_len: key.as_ref().map_or(4, |key| key.len),
            size: key.as_ref().map_or(SHARD, |_| SHARD + SPARE),
        };
        self.batch.set(self.family, self.table, set)?;
        let id = self.sets;
        Ok(Noted { name, id, key })
    }

    /// The protocols that services with indexes from `first` to below `end` have.
    fn protocols(&self, first: u32, end: u32) -> Vec<Protocol> {
        self.taps.runs.within(first..end).collect()
    }

    /// A rule that notes and counts probes.
    fn note(
        &mut self,
        point: &Point,
        probe: &ProbeMatch,
        sets: &[Noted],
    ) -> Result<(), EncodeError> {
        let mut exprs = probe.exprs();
        let of = |noted: &Noted| noted.key.as_ref().map(|key| key.of(probe.protocol()));
        let keys: Vec<Option<Key>> = sets.iter().map(of).collect();
        for (Noted { name, id, .. }, key) in sets.iter().zip(&keys) {
            match key {
                Some(key) => exprs.extend(key.load(probe.load_tag())),
                None => exprs.push(probe.load_tag()),
            }
            exprs.push(Expr::AddToSet { name, id: *id });
        }
        exprs.push(Expr::Count(point.name));
        if point.last {
            let pass_on = self.taps.pass_on;
            let verdict = if pass_on {
                VerdictCode::Accept
            } else {
                VerdictCode::Drop
            };
            exprs.push(Expr::Verdict(verdict));
        }
        self.add(point, &exprs)
    }

    fn add(&mut self, point: &Point, exprs: &[Expr<'_>]) -> Result<(), EncodeError> {
        self.batch.rule(self.family, self.table, point.name, exprs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        firewall::{Runs, TagSpace, nft::wire::Messages},
        model::{Dscp, RunId},
        netlink::object,
    };

    fn taps(services: u32, tcp: u32) -> Taps {
        let tags = TagSpace::new(Dscp::new(33).unwrap(), 0x1234_5678_90ab_cdef);
        let runs = Runs::new(&[(Protocol::Tcp, tcp), (Protocol::Udp, services - tcp)]);
        let run_id = RunId::new("r1").unwrap();
        Taps::new(run_id, object::Family::V4, tags, (services, runs))
    }

    fn kinds(taps: &Taps) -> Vec<u16> {
        let batch = transaction(Encoder::new(1), taps, Family::Ip, "tsim_r1", 2).unwrap();
        Messages(batch.bytes()).map(|m| m.kind & 0xff).collect()
    }

    fn rules(taps: &Taps) -> usize {
        kinds(taps).iter().filter(|&&kind| kind == 6).count()
    }

    #[test]
    fn each_shard_gets_one_rule_per_protocol_that_it_holds() {
        // Per protocol one rule that counts arrivals, one for unmarked ones at both ends, one for
        // copies; then at both ends one per shard.
        assert_eq!(rules(&taps(1, 1)), 4 + 2);
        assert_eq!(rules(&taps(4096, 4096)), 4 + 2);
        assert_eq!(rules(&taps(4097, 4097)), 4 + 2 * 2);
        assert_eq!(rules(&taps(10, 5)), 2 * 4 + 2 * 2);
        assert_eq!(rules(&taps(8192, 4096)), 2 * 4 + 2 * 2);
        assert_eq!(rules(&taps(1, 0)), 4 + 2);
        let by_tag = Taps {
            by_tag: true,
            ..taps(1, 1)
        };
        assert_eq!(rules(&by_tag), 2 + 2);
    }

    #[test]
    fn probes_of_the_router_itself_are_counted_at_output_and_not_taken_for_copies() {
        let from_itself = Taps {
            from_itself: true,
            ..taps(1, 1)
        };
        // One rule that counts, unmarked ones at both ends, and one at each end.
        assert_eq!(rules(&from_itself), rules(&taps(1, 1)) - 1);
    }

    #[test]
    fn the_batch_is_framed_and_its_last_change_asks_for_the_acknowledgement() {
        let batch = transaction(Encoder::new(1), &taps(1, 1), Family::Ip, "t", 2).unwrap();
        let messages: Vec<_> = Messages(batch.bytes()).collect();
        assert_eq!(i32::from(messages[0].kind), libc::NFNL_MSG_BATCH_BEGIN);
        let (end, rest) = messages.split_last().unwrap();
        assert_eq!(i32::from(end.kind), libc::NFNL_MSG_BATCH_END);
        let ack = libc::NLM_F_ACK as u16;
        assert!(rest.last().unwrap().flags & ack != 0);
        assert_eq!(messages.iter().filter(|m| m.flags & ack != 0).count(), 1);
        let numbers: Vec<_> = messages.iter().map(|m| m.sequence).collect();
        assert_eq!(numbers, (1..=messages.len() as u32).collect::<Vec<_>>());
    }
}
