//! An error and its causes on one line, as logs, reports and the command line show it.

use std::{error::Error, fmt, iter::successors};

/// Shows an error and, behind colons, each cause of the one before: `cannot open x: permission denied`.
#[derive(Debug, Clone, Copy)]
pub struct WithCauses<'a>(pub &'a dyn Error);

impl fmt::Display for WithCauses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        successors(self.0.source(), |&cause| cause.source())
            .try_for_each(|cause| write!(f, ": {cause}"))
    }
}
