//! Sending probes again while they are traced, as many at a time as the events have room for.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::{ExplainError, crowd::Tracing};
use crate::firewall::nft::trace::{StoppedBy, Trail};

/// By how much a batch shrinks when its events did not fit.
const SHRINK: usize = 8;

/// How long to wait for probes of which nothing was seen at all. They have gone their way when they
/// are sent, unless the machine is so busy that the kernel leaves packets to a thread (ksoftirqd).
const LATE: Duration = Duration::from_millis(20);

/// What the trace showed.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// The ways of probes by index.
    pub(super) trails: HashMap<u32, Trail>,
    /// Probes whose events did not fit although each was sent alone.
    pub(super) overrun: HashSet<u32>,
}

/// Sends each of the probes and follows it. Where events were lost, the same probes are sent again,
/// fewer at a time or when other jobs leave them room.
pub(super) fn follow(
    tracing: &mut Tracing<'_, '_>,
    indexes: &[u32],
) -> Result<Followed, ExplainError> {
    let mut followed = Followed::default();
    let mut rest = indexes;
    let mut most = usize::MAX;
    while !rest.is_empty() {
        let size = tracing.tracer.probes_at_once().min(most);
        let (batch, behind) = rest.split_at(size.min(rest.len()));
        let mut drained = tracing.send(batch)?;
        while drained.trails.len() < batch.len()
            && !drained.overrun
            && tracing.tracer.await_events(LATE)?
        {
            let more = tracing.tracer.drain()?;
            drained.overrun |= more.overrun;
            drained.crowded |= more.crowded;
            drained.trails.extend(more.trails);
        }
        if drained.overrun && drained.crowded && tracing.gives_way(batch.len() == 1)? {
            continue;
        }
        if drained.overrun && batch.len() > 1 {
            most = (batch.len() / SHRINK).max(1);
            continue;
        }
        if drained.overrun {
            followed.overrun.extend(batch);
        } else {
            followed.trails.extend(drained.trails);
        }
        rest = behind;
        most = most.saturating_mul(2);
    }
    Ok(followed)
}

impl Followed {
    /// Whether the probe was lost where neither a rule nor a policy was seen to stop it, and no
    /// other user of a hook either.
    pub(super) fn is_lost(&self, index: u32) -> bool {
        let trail = self.trails.get(&index).map(Trail::stopped_by);
        !self.overrun.contains(&index) && matches!(trail, None | Some(StoppedBy::After(_)))
    }
}
