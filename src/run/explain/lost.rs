//! Probes that were lost between hooks, or not seen at all.

use std::collections::{BTreeMap, HashMap};

use super::{ExplainError, ExplainQuestion, crowd::Tracing, follow::Followed};
use crate::{
    firewall::{
        nft::trace::{PacketHead, StoppedBy, Trail},
        place::HookPoint,
    },
    model::IfName,
    netlink::{Lookup, LookupKind},
    run::{
        outside::{Observer, OutsideReason, judge},
        packet::{self, Headers, Probe},
    },
};

/// Finds out why.
pub(super) struct Lost<'a> {
    question: &'a ExplainQuestion<'a>,
    observer: Observer<'a>,
    /// The number of the interface by which probes come in; 0 where it is not known.
    iif: u32,
}

/// What probes that were lost for the same reason have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    after: Option<HookPoint>,
    /// Without ports.
    head: PacketHead,
    way: Option<(LookupKind, Option<IfName>)>,
}

/// One lost probe.
struct Case {
    index: u32,
    after: Option<HookPoint>,
    head: PacketHead,
    way: Option<Lookup>,
}

impl Case {
    fn kind(&self) -> Kind {
        Kind {
            after: self.after,
            head: PacketHead {
                source_port: 0,
                destination_port: 0,
                ..self.head
            },
            way: self.way.as_ref().map(|way| (way.kind, way.dev.clone())),
        }
    }
}

impl<'a> Lost<'a> {
    pub(super) fn new(question: &'a ExplainQuestion<'a>) -> Result<Self, ExplainError> {
        let observer = Observer::new(question.netns)?;
        let iif = question.ingress.and_then(|name| observer.index(name));
        Ok(Self {
            question,
            observer,
            iif: iif.unwrap_or(0),
        })
    }

    /// What looks things up in the router.
    pub(super) fn observer(&mut self) -> &mut Observer<'a> {
        &mut self.observer
    }

    /// The number of an interface.
    pub(super) fn index(&self, name: &str) -> Option<u32> {
        self.observer.index(&name.parse().ok()?)
    }

    /// Explains the lost probes, by index. Of each kind one is sent again, alone. If it is not lost
    /// this time, its trail is replaced instead.
    pub(super) fn explain(
        &mut self,
        tracing: &mut Tracing<'_, '_>,
        followed: &mut Followed,
    ) -> Result<BTreeMap<u32, OutsideReason>, ExplainError> {
        let mut known: HashMap<Kind, OutsideReason> = HashMap::new();
        let mut reasons = BTreeMap::new();
        for case in self.cases(followed)? {
            let kind = case.kind();
            let reason = match known.get(&kind) {
                Some(reason) => Some(reason.clone()),
                None => self.alone(&case, tracing, followed)?,
            };
            if let Some(reason) = reason {
                known.insert(kind, reason.clone());
                reasons.insert(case.index, reason);
            }
        }
        Ok(reasons)
    }

    fn cases(&mut self, followed: &Followed) -> Result<Vec<Case>, ExplainError> {
        let blocked = self.question.probes.iter();
        let mut cases: Vec<Case> = blocked
            .filter(|probe| followed.is_lost(probe.index))
            .map(|probe| self.case(probe, followed.trails.get(&probe.index)))
            .collect();
        let heads: Vec<PacketHead> = cases.iter().map(|case| case.head).collect();
        let ways = self.observer.ways(&heads)?;
        for (case, way) in cases.iter_mut().zip(ways) {
            case.way = way;
        }
        Ok(cases)
    }

    fn case(&self, probe: &Probe, trail: Option<&Trail>) -> Case {
        let after = trail.and_then(|trail| match trail.stopped_by() {
            StoppedBy::After(hook) => Some(hook),
            _ => None,
        });
        Case {
            index: probe.index,
            after,
            head: trail.map_or_else(|| self.sent(&probe.headers), |trail| trail.head),
            way: None,
        }
    }

    /// The headers as they were sent, for a probe that was never seen.
    fn sent(&self, headers: &Headers) -> PacketHead {
        PacketHead {
            source: headers.source,
            destination: headers.destination,
            protocol: headers.protocol,
            source_port: headers.source_port,
            destination_port: headers.destination_port,
            tos: headers.tos,
            ttl: headers.ttl,
            length: packet::length(headers) as u32,
            mark: 0,
            iif: self.iif,
            oif: 0,
        }
    }

    /// Sends a probe again, alone, and judges what happened; none when it was not lost this time, or when its
    /// events did not fit.
    fn alone(
        &mut self,
        case: &Case,
        tracing: &mut Tracing<'_, '_>,
        followed: &mut Followed,
    ) -> Result<Option<OutsideReason>, ExplainError> {
        let (rose, mut drained) = loop {
            let before = self.observer.counters().map_err(ExplainError::Counters)?;
            let drained = tracing.send(&[case.index])?;
            let after = self.observer.counters().map_err(ExplainError::Counters)?;
            if !(drained.overrun && drained.crowded && tracing.gives_way(true)?) {
                break (after.since(&before), drained);
            }
        };
        if drained.overrun {
            followed.overrun.insert(case.index);
            return Ok(None);
        }
        if let Some(trail) = drained.trails.remove(&case.index) {
            followed.trails.insert(case.index, trail);
        }
        if !followed.is_lost(case.index) {
            return Ok(None);
        }
        let way = case.way.as_ref();
        let observed = self.observer.observe(case.after, case.head, way, rose)?;
        Ok(Some(judge(&observed)))
    }
}
