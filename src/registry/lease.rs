//! Leases of source hosts: the records of `host_leases.json` and the rules for them.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    model::{Dscp, HostId, RouterId, RunId},
    registry::{Collided, Liveness, Owner, RegistryError, table::Table, time},
};

/// The kind of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobType {
    /// Probes and taps.
    Quick,
    /// Real connections.
    Detailed,
}

impl fmt::Display for JobType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quick => "quick",
            Self::Detailed => "detailed",
        })
    }
}

/// One job's use of a host or neighbour entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// The job.
    pub run_id: RunId,
    /// Its process.
    #[serde(flatten)]
    pub owner: Owner,
    /// Its kind.
    pub job_type: JobType,
    /// Its DSCP value; null for detailed jobs.
    #[serde(default)]
    pub dscp: Option<Dscp>,
    /// RFC 3339, UTC.
    pub allocated_at: String,
    /// Fields that tsim does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Lease {
    pub(crate) fn new(
        run_id: &RunId,
        owner: &Owner,
        job_type: JobType,
        dscp: Option<Dscp>,
        now: Timestamp,
    ) -> Self {
        Self {
            run_id: run_id.clone(),
            owner: owner.clone(),
            job_type,
            dscp,
            allocated_at: time::text(now),
            extra: Map::new(),
        }
    }
}

/// The leases of one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostLeases {
    /// The router that the host is joined to.
    pub router: RouterId,
    /// Who uses it; at most one lease per job.
    pub leases: Vec<Lease>,
    /// Fields that tsim does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a release came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// Leases that are left.
    pub left: usize,
    /// No lease is left and the host is one that goes with its last lease.
    pub should_delete: bool,
}

/// Tells which owners are provably gone.
pub(crate) type IsGone<'a> = &'a mut dyn FnMut(&Owner) -> Liveness;

/// Adds a lease; a job that has one already keeps it. A lease of the same job whose process is
/// gone passes to the new process.
pub(crate) fn acquire(list: &mut Vec<Lease>, lease: Lease, liveness: IsGone<'_>) -> Lease {
    if let Some(mine) = list.iter_mut().find(|l| l.run_id == lease.run_id) {
        if liveness(&mine.owner) == Liveness::Gone {
            mine.owner = lease.owner;
        }
        return mine.clone();
    }
    list.push(lease.clone());
    lease
}

/// Removes the leases whose owners are provably gone and returns them.
pub(crate) fn drop_gone(list: &mut Vec<Lease>, liveness: IsGone<'_>) -> Vec<Lease> {
    list.extract_if(.., |l| liveness(&l.owner) == Liveness::Gone)
        .collect()
}

/// Leases `host`, which is registered on `router`.
///
/// # Errors
/// [`RegistryError::Collision`] when another process that lives has a lease under this run id: the
/// first of them to end would take the host away from the other.
pub(crate) fn acquire_host(
    leases: &mut Table,
    host: &HostId,
    router: &RouterId,
    lease: Lease,
    liveness: IsGone<'_>,
) -> Result<Lease, RegistryError> {
    let key = host.to_string();
    let mut record = leases.get(&key)?.unwrap_or_else(|| HostLeases {
        router: router.clone(),
        leases: Vec::new(),
        extra: Map::new(),
    });
    let twin = |l: &&Lease| l.run_id == lease.run_id && l.owner != lease.owner;
    if let Some(twin) = record.leases.iter().find(twin)
        && liveness(&twin.owner) == Liveness::Alive
    {
        return Err(RegistryError::Collision {
            subject: format!("a lease of host {host}"),
            what: Collided::Run(twin.run_id.clone()),
            owner: format!("process {}", twin.owner.pid),
        });
    }
    let lease = acquire(&mut record.leases, lease, liveness);
    leases.put(&key, &record)?;
    Ok(lease)
}

/// Removes this job's lease and those whose owners are gone; returns how many are left.
pub(crate) fn release_host(
    leases: &mut Table,
    host: &HostId,
    run_id: &RunId,
    liveness: IsGone<'_>,
) -> Result<usize, RegistryError> {
    let key = host.to_string();
    let missing = || RegistryError::NotFound(format!("a lease of host {host} by {run_id}"));
    let mut record: HostLeases = leases.get(&key)?.ok_or_else(missing)?;
    let before = record.leases.len();
    record.leases.retain(|l| l.run_id != *run_id);
    if record.leases.len() == before {
        return Err(missing());
    }
    drop_gone(&mut record.leases, liveness);
    put_or_remove(leases, &key, &record)?;
    Ok(record.leases.len())
}

/// Stores a record; one without leases goes.
pub(crate) fn put_or_remove(
    leases: &mut Table,
    key: &str,
    record: &HostLeases,
) -> Result<(), RegistryError> {
    if record.leases.is_empty() {
        leases.remove(key);
        Ok(())
    } else {
        leases.put(key, record)
    }
}

/// All leased hosts, by name.
pub(crate) fn list(leases: &Table) -> Result<Vec<(HostId, HostLeases)>, RegistryError> {
    let parse = |entry: Result<(&str, HostLeases), RegistryError>| {
        let (key, record) = entry?;
        let id = key.parse().map_err(|e| leases.damaged(key, &e))?;
        Ok((id, record))
    };
    leases.iter().map(parse).collect()
}
