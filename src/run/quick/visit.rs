//! One visit of a router: what is asked of it at one incoming interface, and what was measured there.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{QuickClosing, measure::Spent};
use crate::{
    firewall::{
        nft::nature::Nature,
        taps::{Departed, ProbeWays},
    },
    lab::trace::Entry,
    model::NetnsName,
    netns::NetnsFd,
    run::{packet::Probe, probe::ProbeSocket, report::Verdict, verdict::Findings},
};

/// How the reason begins where a router takes what was not sent to it.
pub(super) const ENDS_HERE: &str = "it ends on the router itself";

/// Probes to be sent to one place.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) at: Entry,
    pub(super) netns: Arc<NetnsFd>,
    /// Whether that is a copy of the router, and not the lab's own.
    pub(super) copied: bool,
    /// In ascending order of their indexes.
    pub(super) probes: Vec<Probe>,
    /// From where, or why nothing can be sent there.
    pub(super) from: Result<Sender, String>,
}

/// What sends probes.
#[derive(Debug)]
pub(super) enum Sender {
    /// The source host of this name.
    Host(NetnsName),
    /// The hidden sender.
    Wire(ProbeSocket),
    /// The router itself, from this address of its own.
    Itself(IpAddr),
}

/// What became of one visit.
#[derive(Debug)]
pub(super) enum VisitResult {
    /// It was measured.
    Measured(Box<VisitMeasurement>),
    /// No probe can be sent to it; why.
    Unmeasured(String),
}

/// What is known about one visit when everything was measured and explained.
#[derive(Debug)]
pub(super) struct VisitMeasurement {
    pub(super) findings: Findings,
    /// By service index, where the reason was looked into.
    pub(super) reasons: BTreeMap<u32, (Verdict, String)>,
    /// How probes left, where anything could have changed them.
    pub(super) ways: Option<ProbeWays>,
    /// How copies of probes left that chance sends by several ways, by service index.
    pub(super) targets: BTreeMap<u32, Vec<Departed>>,
    pub(super) nature: Nature,
    pub(super) doubts: Vec<String>,
    pub(super) owned: bool,
    pub(super) spent: Spent,
    /// Closing these waits for the kernel to settle; the caller does that last.
    pub(super) closing: Vec<QuickClosing>,
}
