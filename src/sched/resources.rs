//! What jobs hold outside the scheduler's files: DSCP values, and what a killed one leaves.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use super::job::UserName;
use crate::model::{Dscp, DscpRange, RunId};

/// Why a resource could not be had or freed.
pub type ResourceError = Box<dyn std::error::Error + Send + Sync>;

/// A DSCP value that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldDscp {
    /// The value.
    pub dscp: Dscp,
    /// By which job.
    pub run_id: String,
    /// Of whom.
    pub username: Option<String>,
}

/// The registry as the scheduler needs it; all calls may block for a short time.
pub trait Resources: Send + Sync + fmt::Debug {
    /// Allocates a DSCP value to a run, held by this process for now; none when all are held.
    ///
    /// # Errors
    /// When the registry cannot be used.
    fn allocate(&self, run_id: &RunId, username: &UserName) -> Result<Option<Dscp>, ResourceError>;

    /// Makes the runner's process the holder of what its run was allocated.
    ///
    /// # Errors
    /// When the registry cannot be used.
    fn hand_over(&self, run_id: &RunId, pid: i32) -> Result<(), ResourceError>;

    /// Frees the DSCP value of a run, if it has one.
    ///
    /// # Errors
    /// When the registry cannot be used.
    fn release(&self, run_id: &RunId) -> Result<(), ResourceError>;

    /// Removes what dead jobs left, and returns how many things that were.
    ///
    /// # Errors
    /// When the registry cannot be used, or something could not be removed.
    fn reconcile(&self) -> Result<usize, ResourceError>;

    /// The DSCP values that are held now.
    ///
    /// # Errors
    /// When the registry cannot be used.
    fn held(&self) -> Result<Vec<HeldDscp>, ResourceError>;
}

/// DSCP values of this process alone, for a machine where nobody else runs jobs, and for tests.
#[derive(Debug)]
pub struct LocalResources {
    range: DscpRange,
    held: Mutex<BTreeMap<Dscp, (RunId, UserName)>>,
}

impl LocalResources {
    /// All values of `range` are free.
    #[must_use]
    pub fn new(range: DscpRange) -> Self {
        Self {
            range,
            held: Mutex::new(BTreeMap::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Dscp, (RunId, UserName)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resources for LocalResources {
    fn allocate(&self, run_id: &RunId, username: &UserName) -> Result<Option<Dscp>, ResourceError> {
        let mut held = self.lock();
        let free = self.range.iter().find(|dscp| !held.contains_key(dscp));
        if let Some(dscp) = free {
            held.insert(dscp, (run_id.clone(), username.clone()));
        }
        Ok(free)
    }

    fn hand_over(&self, _run_id: &RunId, _pid: i32) -> Result<(), ResourceError> {
        Ok(())
    }

    fn release(&self, run_id: &RunId) -> Result<(), ResourceError> {
        self.lock().retain(|_, (holder, _)| holder != run_id);
        Ok(())
    }

    fn reconcile(&self) -> Result<usize, ResourceError> {
        Ok(0)
    }

    fn held(&self) -> Result<Vec<HeldDscp>, ResourceError> {
        let held = self.lock();
        let list = held.iter().map(|(dscp, (run_id, username))| HeldDscp {
            dscp: *dscp,
            run_id: run_id.to_string(),
            username: Some(username.to_string()),
        });
        Ok(list.collect())
    }
}
