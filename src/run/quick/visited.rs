//! What is known about one visit of a router: what became of each probe, and where it went.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::branch::Branch;
use crate::{
    firewall::taps::Departed,
    lab::trace::Entry,
    model::IfName,
    run::{
        packet::{Headers, Probe},
        report::{EndKind, LegHop, Verdict},
    },
};

/// What became of one probe at one place.
#[derive(Debug, Clone)]
pub(super) struct ProbeOutcome {
    pub(super) verdict: Verdict,
    /// Why, where the verdict is not a plain YES.
    pub(super) reason: Option<Arc<str>>,
    /// How it left: an index into [`Visited::exits`]. None where it did not.
    pub(super) exit: Option<usize>,
    /// Its headers as it left, or as it came, where it did not leave.
    pub(super) headers: Headers,
}

/// One way out of a place, and what comes of it: several, where the router or the facts leave it
/// open.
#[derive(Debug)]
pub(super) struct WayOut {
    pub(super) hop: Arc<LegHop>,
    pub(super) fates: Vec<Fate>,
}

/// What comes of a packet that is sent out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// It comes in there.
    On(Entry),
    /// The way ends.
    End(Ending),
}

/// How a way ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) verdict: Verdict,
    pub(super) kind: EndKind,
    pub(super) reason: Option<Arc<str>>,
}

impl Ending {
    pub(super) fn new(verdict: Verdict, kind: EndKind, reason: impl Into<Arc<str>>) -> Self {
        Self {
            verdict,
            kind,
            reason: Some(reason.into()),
        }
    }
}

/// What is known about one visit.
#[derive(Debug)]
pub(super) struct Visited {
    pub(super) at: Entry,
    /// In ascending order of their indexes.
    pub(super) probes: Vec<Probe>,
    /// One for each probe.
    pub(super) outcomes: Vec<ProbeOutcome>,
    pub(super) exits: Vec<WayOut>,
    /// The place itself, for a way that ends here.
    pub(super) hop: Arc<LegHop>,
    /// Where the router's tables send the first probe: interface and gateway.
    pub(super) planned: (Option<IfName>, Option<IpAddr>),
    /// Whether the router's rules may go by connections.
    pub(super) stateful: bool,
    /// The next hop that was measured, where the router has several to choose from.
    pub(super) branch: Option<Arc<Branch>>,
}

impl Visited {
    /// Leaves out the probes with these indexes, which are measured otherwise.
    pub(super) fn leave_out(&mut self, indexes: &HashSet<u32>) {
        if indexes.is_empty() {
            return;
        }
        let probes = std::mem::take(&mut self.probes);
        let outcomes = std::mem::take(&mut self.outcomes);
        let both = probes.into_iter().zip(outcomes);
        let kept = both.filter(|(probe, _)| !indexes.contains(&probe.index));
        (self.probes, self.outcomes) = kept.unzip();
    }

    /// Leaves open what becomes of probes that chance sends to several targets.
    pub(super) fn doubt_lots(&mut self, targets: &BTreeMap<u32, Vec<Departed>>) {
        for (probe, outcome) in self.probes.iter().zip(&mut self.outcomes) {
            if let Some(targets) = targets.get(&probe.index) {
                outcome.verdict = Verdict::Unknown;
                outcome.exit = None;
                outcome.reason = Some(Arc::from(format!(
                    "chance sends it to one of {} targets, behind one of several next hops",
                    targets.len()
                )));
            }
        }
    }
}
