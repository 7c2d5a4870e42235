//! What jobs hold outside the scheduler's files: DSCP values, and what a killed one leaves.

use std::{collections::BTreeSet, fmt, os::fd::OwnedFd, thread};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use schemars::JsonSchema;
use serde::Serialize;

use super::job::UserName;
use crate::{
    model::{Dscp, RunId},
    registry::{Liveness, LockHolder, RegistryError, RegistryManager},
};

/// Why a resource could not be had or freed.
pub type ResourceError = Box<dyn std::error::Error + Send + Sync>;

/// Who holds what just now.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Held {
    /// DSCP values.
    pub dscp: Vec<HeldDscp>,
    /// Routers and hosts with who holds or waits for them.
    pub locks: Vec<HeldLock>,
    /// Leased source hosts.
    pub host_leases: Vec<HeldLease>,
    /// Leased neighbour entries.
    pub neighbour_leases: Vec<HeldLease>,
}

/// A router or host that somebody holds or waits for.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HeldLock {
    /// `LAB.ROUTER` or `LAB@HOST`.
    pub name: String,
    /// In the order of the queue.
    pub holders: Vec<LockHolder>,
}

/// A host or neighbour entry that somebody leases.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Lease")]
pub struct HeldLease {
    /// The host, or `ROUTER|INTERFACE|ADDRESS`.
    pub name: String,
    /// The router that a host is attached to.
    pub router: Option<String>,
    /// The runs that lease it.
    pub run_ids: Vec<RunId>,
}

/// A DSCP value that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
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

    /// Makes sure that a run which is adopted still has its value: one that its runner did not
    /// take over was held by a scheduler that is gone.
    ///
    /// # Errors
    /// When somebody else has the value now, or the registry cannot be used.
    fn keep(&self, run_id: &RunId, dscp: Dscp) -> Result<(), ResourceError>;

    /// Descriptors that become readable when a process that holds a DSCP value ends. Who dies does
    /// not release; that its value is free again is seen here.
    ///
    /// # Errors
    /// When the registry cannot be used.
    fn holders(&self) -> Result<Vec<OwnedFd>, ResourceError>;

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

    /// Who holds what now.
    ///
    /// # Errors
    /// When the registry cannot be used.
    fn held(&self) -> Result<Held, ResourceError>;
}

/// Removes what dead jobs left in the kernel and the registry, and returns how many things.
pub type Reconcile = Box<dyn Fn(&RegistryManager) -> Result<usize, ResourceError> + Send + Sync>;

/// The machine's registry, shared with every other process.
pub struct RegistryResources {
    registry: RegistryManager,
    reconcile: Reconcile,
}

impl fmt::Debug for RegistryResources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryResources").finish_non_exhaustive()
    }
}

impl RegistryResources {
    /// Works on `registry`; `reconcile` knows the kernel's side of it.
    #[must_use]
    pub fn new(registry: RegistryManager, reconcile: Reconcile) -> Self {
        Self {
            registry,
            reconcile,
        }
    }

    /// Removes what those left whose values were free because they are dead. On a thread of its
    /// own, because the kernel's side may have a runtime of its own, which does not nest.
    fn sweep(&self) {
        let swept = thread::scope(|scope| scope.spawn(|| self.reconcile()).join());
        if let Ok(Err(error)) = swept {
            tracing::error!(error, "cannot reconcile");
        }
    }
}

impl Resources for RegistryResources {
    fn allocate(&self, run_id: &RunId, username: &UserName) -> Result<Option<Dscp>, ResourceError> {
        let user = Some(username.as_str());
        match self.registry.allocate_dscp(run_id, user, None) {
            Ok(grant) => {
                if !grant.dead.is_empty() {
                    self.sweep();
                }
                Ok(Some(grant.dscp))
            }
            Err(RegistryError::DscpExhausted { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn keep(&self, run_id: &RunId, dscp: Dscp) -> Result<(), ResourceError> {
        let allocations = self.registry.dscp_allocations()?;
        let own = allocations.iter().find(|(run, _)| run == run_id);
        // The runner, or who knows whom: only an owner that is gone is replaced.
        if own.is_none_or(|(_, own)| own.owner.liveness() == Liveness::Gone) {
            self.registry.allocate_dscp(run_id, None, Some(dscp))?;
        }
        Ok(())
    }

    fn holders(&self) -> Result<Vec<OwnedFd>, ResourceError> {
        let allocations = self.registry.dscp_allocations()?;
        let alive = allocations
            .iter()
            .filter(|(_, own)| own.owner.liveness() == Liveness::Alive);
        let pids: BTreeSet<u32> = alive.map(|(_, own)| own.owner.pid).collect();
        let foreign = pids.into_iter().filter(|pid| *pid != std::process::id());
        let pids = foreign.filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        // One that died in between has no pidfd; the others tell when to look again.
        Ok(pids
            .filter_map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok())
            .collect())
    }

    fn release(&self, run_id: &RunId) -> Result<(), ResourceError> {
        match self.registry.release_dscp(run_id) {
            // The runner released it itself.
            Ok(_) | Err(RegistryError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn reconcile(&self) -> Result<usize, ResourceError> {
        (self.reconcile)(&self.registry)
    }

    fn held(&self) -> Result<Held, ResourceError> {
        let registry = &self.registry;
        let dscp = registry.dscp_allocations()?.into_iter();
        let locks = registry.locks_held()?.into_iter();
        let hosts = registry.source_host_leases()?.into_iter();
        let neighbours = registry.neighbor_leases()?.into_iter();
        Ok(Held {
            dscp: dscp
                .map(|(run_id, own)| HeldDscp {
                    dscp: own.dscp,
                    run_id: run_id.to_string(),
                    username: own.username,
                })
                .collect(),
            locks: locks
                .map(|(name, holders)| HeldLock { name, holders })
                .collect(),
            host_leases: hosts
                .map(|(host, leased)| HeldLease {
                    name: host.to_string(),
                    router: Some(leased.router.to_string()),
                    run_ids: leased
                        .leases
                        .into_iter()
                        .map(|lease| lease.run_id)
                        .collect(),
                })
                .collect(),
            neighbour_leases: neighbours
                .map(|(key, leased)| HeldLease {
                    name: key.to_string(),
                    router: None,
                    run_ids: leased
                        .leases
                        .into_iter()
                        .map(|lease| lease.run_id)
                        .collect(),
                })
                .collect(),
        })
    }
}
