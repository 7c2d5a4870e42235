//! How many threads are worth starting.

use std::{num::NonZero, sync::OnceLock, thread};

/// How many processors this process may use, as it was when that was first asked: the standard
/// library looks through the files of the control group each time.
pub(crate) fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}
