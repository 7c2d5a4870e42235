//! Probes that a rate stopped, sent once more each by itself, when the rate allows one again.

use std::{
    collections::HashMap,
    mem, thread,
    time::{Duration, Instant},
};

use super::{ExplainError, SendAgain, reason::Explained};
use crate::firewall::nft::trace::{Tracer, Trail};

/// How long all such probes of one router may take. Services behind a slower rate stay undecided.
pub(super) const AT_MOST: Duration = Duration::from_millis(1500);
/// On top of the time that the rate asks for: xt_limit counts in jiffies.
const MARGIN: Duration = Duration::from_millis(5);

/// Sends each of `services` that a rate may have stopped again, alone, and returns their ways; the tracer was
/// paused.
/// Nothing tells when a rate allows a packet, so this waits for as long as the rule says.
pub(super) fn wait_and_send(
    services: &[Explained],
    tracer: &mut Tracer,
    send: &mut SendAgain<'_>,
) -> Result<HashMap<u32, Trail>, ExplainError> {
    let begun = Instant::now();
    let mut trails = HashMap::new();
    let mut listens = false;
    for explained in services {
        let Some(interval) = explained.waits_for() else {
            continue;
        };
        let pause = interval + MARGIN;
        if begun.elapsed() + pause > AT_MOST {
            continue;
        }
        thread::sleep(pause);
        if !mem::replace(&mut listens, true) {
            tracer.listen()?;
        }
        send(&[explained.index]).map_err(ExplainError::Send)?;
        let mut drained = tracer.drain()?;
        let trail = drained.trails.remove(&explained.index);
        if let Some(trail) = trail.filter(|_| !drained.overrun) {
            trails.insert(explained.index, trail);
        }
    }
    Ok(trails)
}
