//! The clock, which pure code gets as an argument.

use jiff::{Timestamp, Unit};

/// Wall-clock time, as recorded in the files.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// RFC 3339 in UTC, to the millisecond.
pub(crate) fn text(time: Timestamp) -> String {
    time.round(Unit::Millisecond).unwrap_or(time).to_string()
}

/// Seconds since the epoch, as Python's time.time().
pub(crate) fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}
