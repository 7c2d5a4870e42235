//! What a run has when it stops at once, by the registry.

use crate::{
    config::Config,
    model::RunId,
    registry::{RegistryError, RegistryManager},
};

/// What run `run_id` still has, in words; `taps` says that its taps do not go with the process.
pub(super) fn of_run(config: &Config, run_id: &RunId, taps: bool) -> Vec<String> {
    let held = registered(config, run_id);
    let mut left = held.unwrap_or_else(|error| vec![format!("what the registry has ({error})")]);
    if taps {
        left.push("taps, where a back end of iptables measures".to_owned());
    }
    left
}

fn registered(config: &Config, run_id: &RunId) -> Result<Vec<String>, RegistryError> {
    let registry = RegistryManager::open(config)?;
    let mut left = Vec::new();
    for (host, leases) in registry.source_host_leases()? {
        if leases.leases.iter().any(|lease| lease.run_id == *run_id) {
            left.push(format!("host {host} and its lease"));
        }
    }
    for (neighbour, leases) in registry.neighbor_leases()? {
        if leases.leases.iter().any(|lease| lease.run_id == *run_id) {
            left.push(format!("neighbour entry {neighbour}"));
        }
    }
    let dscp = registry.dscp_allocations()?.into_iter();
    let own = dscp.filter(|(run, _)| run == run_id);
    left.extend(own.map(|(_, allocation)| format!("DSCP value {}", allocation.dscp)));
    Ok(left)
}
