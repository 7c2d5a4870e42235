//! The lab: facts of real routers → topology (pure) → namespaces; hosts; path trace.

#[cfg(not(feature = "internals"))]
pub(crate) mod copy;
#[cfg(feature = "internals")]
pub mod copy;
mod down;
mod error;
pub mod facts;
mod gone;
#[cfg(not(feature = "internals"))]
pub(crate) mod hosts;
#[cfg(feature = "internals")]
pub mod hosts;
mod kernel_settings;
pub(crate) mod links;
#[cfg(not(feature = "internals"))]
pub(crate) mod neighbours;
#[cfg(feature = "internals")]
pub mod neighbours;
pub(crate) mod omission;
mod plan;
mod pool;
mod progress;
mod replace;
mod router;
mod rulesets;
mod segments;
#[cfg(not(feature = "internals"))]
pub(crate) mod sockets;
#[cfg(feature = "internals")]
pub mod sockets;
mod state;
pub mod topology;
pub mod trace;
mod tunnels;
mod unseen;
mod up;
mod vacate;

use std::{ops::Deref, sync::Arc};

use serde::{Deserialize, Serialize};

use self::{down::Found, state::LabDir};
pub use self::{
    down::{Removed, down, down_by_force},
    error::LabError,
    gone::forget_gone,
    progress::{Progress, Step},
    replace::{Changes, Replaced, changes, replace},
    rulesets::strange_lines,
    state::{InterfaceState, LabState, Phase, RouterState, bridge_name},
    up::{Options, Up, up, up_from},
    vacate::{Vacated, vacate},
};
use crate::{
    config::Config,
    firewall::ruletext::Shelf,
    model::{Known, LabName, NetnsName, RouterId, RouterName},
    netns::{NetnsDir, NetnsFd},
};

/// A lab that is up.
#[derive(Debug, Clone, PartialEq)]
pub struct Lab {
    state: LabState,
}

impl Deref for Lab {
    type Target = LabState;
    fn deref(&self) -> &LabState {
        &self.state
    }
}

impl Lab {
    fn new(state: LabState) -> Self {
        Self { state }
    }

    /// Opens lab `name` from its own file; no facts are needed.
    ///
    /// # Errors
    /// [`LabError`] when there is no such lab, or its `up` was interrupted.
    pub fn open(config: &Config, name: &LabName) -> Result<Self, LabError> {
        match LabDir::new(config, name).state()? {
            None => Err(not_found(config, name)),
            Some(state) if state.phase != Phase::Up => {
                Err(LabError::HalfMade { lab: name.clone() })
            }
            Some(state) if state.boot_id != state::boot_id()? => {
                Err(LabError::Gone { lab: name.clone() })
            }
            Some(state) => Ok(Self::new(state)),
        }
    }

    /// The namespace of router `name`.
    ///
    /// # Errors
    /// [`LabError`] when the lab has no such router or its namespace cannot be opened.
    pub fn router_netns(&self, name: &RouterName) -> Result<NetnsFd, LabError> {
        self.state.router(name)?;
        let id = RouterId::new(self.state.lab.clone(), name.clone());
        Ok(NetnsDir::default().open(&id.netns())?)
    }

    /// The namespace with the lab's bridges.
    ///
    /// # Errors
    /// [`LabError`] when it cannot be opened.
    pub fn segments_netns(&self) -> Result<NetnsFd, LabError> {
        let name = NetnsName::segments(&self.state.lab);
        Ok(NetnsDir::default().open(&name)?)
    }
}

/// That there is no lab `name`, with the names that there are.
fn not_found(config: &Config, name: &LabName) -> LabError {
    let labs = LabDir::list(config).unwrap_or_default();
    LabError::NotFound {
        lab: name.clone(),
        dir: config.labs_dir.clone(),
        known: Known::instead_of(name.as_str(), labs.iter().map(LabName::as_str)),
    }
}

/// Where jobs keep what tools print of the rules of a lab's routers: beside what is kept of the lab
/// itself, and removed with it. None where the directory cannot be used.
#[must_use]
pub fn shelf(config: &Config, name: &LabName) -> Option<Shelf> {
    LabDir::new(config, name).existing().ok()?.map(Arc::new)
}

/// What lab `name` was made from.
///
/// # Errors
/// [`LabError`] when there is no such lab or its file cannot be read.
pub fn topology_of(config: &Config, name: &LabName) -> Result<topology::Topology, LabError> {
    let topology = LabDir::new(config, name).topology()?;
    topology.ok_or_else(|| not_found(config, name))
}

/// How a lab is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The lab as its file has it.
    pub state: LabState,
    /// Its namespaces that are gone or were replaced by others; empty for a sound lab.
    pub missing: Vec<NetnsName>,
}

/// Looks how lab `name` is, half made ones included.
///
/// # Errors
/// [`LabError`] when there is no such lab or it cannot be looked at.
pub fn status(config: &Config, name: &LabName) -> Result<Status, LabError> {
    let state = LabDir::new(config, name).state()?;
    let state = state.ok_or_else(|| not_found(config, name))?;
    let dir = NetnsDir::default();
    let mut missing = Vec::new();
    for (name, id) in down::namespaces(&state) {
        if down::find(&dir, &name, id)? != Found::Ours {
            missing.push(name);
        }
    }
    Ok(Status { state, missing })
}

/// All labs, half made ones included, by name.
///
/// # Errors
/// [`LabError`] when the directory of labs or a lab's file cannot be read.
pub fn list(config: &Config) -> Result<Vec<LabState>, LabError> {
    let mut labs = Vec::new();
    for name in LabDir::list(config)? {
        match LabDir::new(config, &name).state() {
            // One that was taken down meanwhile is none.
            Ok(state) => labs.extend(state),
            // One that cannot be read is no reason not to list the others.
            Err(error) => tracing::warn!(
                "lab {name} cannot be read: {error}; `tsim lab down {name} --force` removes it"
            ),
        }
    }
    Ok(labs)
}
