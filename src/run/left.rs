//! What a run has when it stops at once, by the registry.

use crate::{config::Config, model::RunId, registry::RegistryManager};

/// What run `run_id` still has, in words.
pub(super) fn of_run(config: &Config, run_id: &RunId) -> Vec<String> {
    let held = RegistryManager::open(config).and_then(|registry| registry.held_by(run_id));
    held.unwrap_or_else(|error| vec![format!("what the registry has ({error})")])
}
