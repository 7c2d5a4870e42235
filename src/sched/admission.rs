//! What a job is held against before it may wait: its own parameters, and the lab it names.
//!
//! Later the lab may be gone; its runner says so then. But a name that is wrong today is better
//! refused today than found in the history tomorrow.

use thiserror::Error;

use super::job::{Params, RefusedJob};
use crate::{
    config::Config,
    lab::{Lab, LabError},
};

/// A job may not wait.
#[derive(Debug, Error)]
pub enum NotAdmitted {
    /// Its parameters are wrong.
    #[error(transparent)]
    Params(#[from] RefusedJob),
    /// There is no such lab or router, or the lab cannot be looked at.
    #[error(transparent)]
    Lab(#[from] LabError),
}

impl NotAdmitted {
    /// Whether it is the asker's fault.
    #[must_use]
    pub fn is_asked_wrong(&self) -> bool {
        match self {
            Self::Params(_) => true,
            Self::Lab(error) => matches!(
                error,
                LabError::NotFound { .. }
                    | LabError::NoRouter { .. }
                    | LabError::HalfMade { .. }
                    | LabError::Gone { .. }
            ),
        }
    }
}

/// Checks a job before it is queued.
///
/// # Errors
/// [`NotAdmitted`] for the first thing that is wrong.
pub fn check(params: &Params, config: &Config) -> Result<(), NotAdmitted> {
    params.check(config.services)?;
    let lab = Lab::open(config, &params.lab)?;
    for router in params.routers.iter().flatten() {
        lab.router(router)?;
    }
    Ok(())
}
