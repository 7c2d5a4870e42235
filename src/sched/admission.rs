//! What a job is held against before it may wait: its own parameters, and the lab it names.
//!
//! Later the lab may be gone; its runner says so then. But a name that is wrong today is better
//! refused today than found in the history tomorrow.

use thiserror::Error;

use super::job::{Mode, Params, RefusedJob};
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

impl NotAdmitted {
    /// The field of the submission that is wrong, where it is one.
    #[must_use]
    pub fn field(&self, params: &Params) -> Option<&'static str> {
        match self {
            Self::Params(refused) => refused.field(),
            Self::Lab(LabError::NoRouter { router, .. }) => {
                let named = params.routers.iter().flatten().any(|name| name == router);
                Some(if named { "routers" } else { "from" })
            }
            Self::Lab(_) if self.is_asked_wrong() => Some("lab"),
            Self::Lab(_) => None,
        }
    }
}

/// Checks a job before it is queued.
///
/// # Errors
/// [`NotAdmitted`] for the first thing that is wrong.
pub fn check(params: &Params, mode: Mode, config: &Config) -> Result<(), NotAdmitted> {
    params.check(mode, config.services)?;
    let lab = Lab::open(config, &params.lab)?;
    let from = params.options.from.iter().map(|from| &from.router);
    for router in params.routers.iter().flatten().chain(from) {
        lab.router(router)?;
    }
    Ok(())
}
