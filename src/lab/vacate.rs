//! Empties a lab before it is taken down: no job uses it, no host is left on it.

use super::{LabError, hosts::LabHosts, state::LabDir};
use crate::{
    config::Config,
    model::{HostId, LabName, RouterId, RunId},
    netns::NetnsDir,
    registry::{Job, Liveness, Locked, Mode, RegistryManager, Wait},
};

/// A lab that no job can use until this is dropped: all its routers are locked.
#[derive(Debug)]
pub struct Vacated {
    /// The hosts that were removed.
    pub hosts: Vec<HostId>,
    _locked: Job<Locked>,
}

/// Removes all registered hosts of lab `name` and locks its routers, waiting for jobs that hold
/// them as long as `wait` allows. A lab that is not there is vacant.
///
/// # Errors
/// [`LabError::InUse`] when jobs lease hosts of it, before anything is changed; otherwise
/// [`LabError::Registry`], and what is left can be tried again.
pub fn vacate(config: &Config, name: &LabName, wait: &Wait) -> Result<Vacated, LabError> {
    let registry = RegistryManager::open(config)?;
    let users = users(&registry, name)?;
    if !users.is_empty() {
        return Err(LabError::InUse {
            lab: name.clone(),
            users,
        });
    }
    let mut operator = registry.operator()?;
    let mut kernel = LabHosts::new(&NetnsDir::default().patient(config.lock_timeout));
    let registered = registry.hosts()?.into_iter().map(|(id, _)| id);
    let hosts: Vec<HostId> = registered.filter(|id| id.lab == *name).collect();
    for host in &hosts {
        operator.remove_host(host, &mut kernel, wait)?;
    }
    let state = LabDir::new(config, name).state()?;
    let routers = state.iter().flat_map(|state| &state.routers);
    let routers: Vec<RouterId> = routers
        .map(|router| RouterId::new(name.clone(), router.name.clone()))
        .collect();
    let locked = operator.all_router_locks(&routers, Mode::Exclusive, wait);
    Ok(Vacated {
        hosts,
        _locked: locked.map_err(|refused| refused.error)?,
    })
}

/// The jobs that lease hosts of the lab; those that are dead do not count.
fn users(registry: &RegistryManager, lab: &LabName) -> Result<Vec<RunId>, LabError> {
    let leased = registry.source_host_leases()?.into_iter();
    let mut users: Vec<RunId> = leased
        .filter(|(host, _)| host.lab == *lab)
        .flat_map(|(_, leases)| leases.leases)
        .filter(|lease| lease.owner.liveness() != Liveness::Gone)
        .map(|lease| lease.run_id)
        .collect();
    users.sort();
    users.dedup();
    Ok(users)
}
