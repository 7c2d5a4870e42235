//! The operator's view of the registry: who uses what, and clearing up after the dead.

mod dscp;
mod hosts;
mod leases;
mod locks;
mod log;
mod reconcile;

use serde::Serialize;

pub(super) use self::{
    dscp::DscpArgs, hosts::HostsArgs, leases::Leases, locks::Locks, log::LogArgs,
    reconcile::ReconcileArgs,
};
use super::{Context, Failure};
use crate::registry::{Liveness, Owner, RegistryManager};

/// A process that holds something, as it is shown.
#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
    state: Liveness,
}

impl Process {
    fn of(owner: &Owner) -> Self {
        Self {
            pid: owner.pid,
            state: owner.liveness(),
        }
    }

    /// The pid, and what is wrong with it.
    fn text(&self) -> String {
        match self.state {
            Liveness::Alive => self.pid.to_string(),
            Liveness::Gone => format!("{} (gone)", self.pid),
            Liveness::Unknown => format!("{} (?)", self.pid),
        }
    }
}

/// Opens the registry; what it had to repair is said on standard error.
fn open(context: &Context) -> Result<RegistryManager, Failure> {
    Ok(RegistryManager::open(&context.config)?)
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
