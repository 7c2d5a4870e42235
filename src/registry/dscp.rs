//! DSCP values that jobs hold: the records of `dscp_registry.json`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    model::{Dscp, DscpRange, RunId},
    registry::{Liveness, Owner, RegistryError, lease::IsGone, table::Table, time},
};

/// A DSCP value that a job holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DscpAllocation {
    /// The value.
    pub dscp: Dscp,
    /// The scheduler's name for the job, or the run id.
    #[serde(default)]
    pub job_id: Option<String>,
    /// Who asked for the job.
    #[serde(default)]
    pub username: Option<String>,
    /// RFC 3339, UTC.
    pub allocated_at: String,
    /// The process that holds it.
    #[serde(flatten)]
    pub owner: Owner,
    /// `allocated`.
    #[serde(default)]
    pub status: String,
    /// Fields that tsim does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A DSCP value that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DscpGrant {
    /// The value.
    pub dscp: Dscp,
    /// Jobs whose allocations were dropped because their owners are gone.
    pub dead: Vec<RunId>,
    /// The run held none before.
    pub is_new: bool,
}

/// Who asks for a value, and for which.
pub(crate) struct DscpRequest<'a> {
    pub(crate) run_id: &'a RunId,
    pub(crate) owner: &'a Owner,
    pub(crate) username: Option<&'a str>,
    pub(crate) wanted: Option<Dscp>,
}

/// Allocates the value asked for, or the lowest free one. A run that holds one keeps it, and the
/// caller becomes its owner: so a job takes over what the scheduler allocated for it.
pub(crate) fn allocate(
    table: &mut Table,
    range: DscpRange,
    request: &DscpRequest<'_>,
    liveness: IsGone<'_>,
    now: Timestamp,
) -> Result<DscpGrant, RegistryError> {
    let key = request.run_id.as_str();
    let mine: Option<DscpAllocation> = table.get(key)?;
    let (gone, others): (Vec<_>, Vec<_>) = list(table)?
        .into_iter()
        .filter(|(run, _)| run != request.run_id)
        .partition(|(_, a)| liveness(&a.owner) == Liveness::Gone);
    let dscp = match (request.wanted, &mine) {
        (None, Some(mine)) => mine.dscp,
        (Some(wanted), _) => take(range, wanted, &others)?,
        (None, None) => lowest_free(range, &others)?,
    };
    let is_new = mine.is_none();
    // Only now that nothing can go wrong any more: an error leaves everything as it was.
    gone.iter().for_each(|(run, _)| table.remove(run.as_str()));
    let mut allocation = mine.unwrap_or_else(|| DscpAllocation {
        dscp,
        job_id: Some(key.to_owned()),
        username: request.username.map(str::to_owned),
        allocated_at: time::text(now),
        owner: request.owner.clone(),
        status: "allocated".to_owned(),
        extra: Map::new(),
    });
    allocation.dscp = dscp;
    allocation.owner = request.owner.clone();
    table.put(key, &allocation)?;
    Ok(DscpGrant {
        dscp,
        dead: gone.into_iter().map(|(run, _)| run).collect(),
        is_new,
    })
}

fn take(
    range: DscpRange,
    wanted: Dscp,
    others: &[(RunId, DscpAllocation)],
) -> Result<Dscp, RegistryError> {
    if !range.contains(wanted) {
        return Err(RegistryError::DscpOutOfRange {
            dscp: wanted.get(),
            range: range.to_string(),
        });
    }
    match others.iter().find(|(_, a)| a.dscp == wanted) {
        Some((by, _)) => Err(RegistryError::DscpTaken {
            dscp: wanted.get(),
            by: by.clone(),
        }),
        None => Ok(wanted),
    }
}

fn lowest_free(
    range: DscpRange,
    others: &[(RunId, DscpAllocation)],
) -> Result<Dscp, RegistryError> {
    let is_free = |d: &Dscp| others.iter().all(|(_, a)| a.dscp != *d);
    range
        .iter()
        .find(is_free)
        .ok_or_else(|| RegistryError::DscpExhausted {
            count: range.count(),
            range: range.to_string(),
            by: others.iter().map(|(run, _)| run.clone()).collect(),
        })
}

/// Removes a run's allocation.
pub(crate) fn release(table: &mut Table, run_id: &RunId) -> Result<Dscp, RegistryError> {
    let mine: Option<DscpAllocation> = table.get(run_id.as_str())?;
    let mine =
        mine.ok_or_else(|| RegistryError::NotFound(format!("a DSCP allocation of {run_id}")))?;
    table.remove(run_id.as_str());
    Ok(mine.dscp)
}

/// All allocations, by run id.
pub(crate) fn list(table: &Table) -> Result<Vec<(RunId, DscpAllocation)>, RegistryError> {
    let parse = |entry: Result<(&str, DscpAllocation), RegistryError>| {
        let (key, record) = entry?;
        let run_id = key.parse().map_err(|e| table.damaged(key, &e))?;
        Ok((run_id, record))
    };
    table.iter().map(parse).collect()
}
