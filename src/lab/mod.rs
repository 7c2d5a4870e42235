//! The lab: facts of real routers → topology (pure) → namespaces; hosts; path trace.

mod bridged;
#[cfg(not(feature = "internals"))]
pub(crate) mod copy;
#[cfg(feature = "internals")]
pub mod copy;
mod down;
mod drift;
mod error;
pub mod facts;
mod fallback;
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
mod part;
mod plan;
mod pool;
mod progress;
mod replace;
mod router;
mod rule_sum;
mod rulesets;
mod segments;
#[cfg(not(feature = "internals"))]
pub(crate) mod sockets;
#[cfg(feature = "internals")]
pub mod sockets;
mod state;
mod swap;
pub mod topology;
pub mod trace;
mod tunnels;
pub(crate) mod unseen;
mod up;
mod vacate;

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) use self::{
    bridged::{Bridges, Crossing, Passing, WireEnd, bridged},
    tunnels::taken_as_up,
};
use self::{
    down::FoundNamespace,
    state::{LabDir, Stamp},
};
pub use self::{
    down::{Removed, down, down_by_force},
    drift::Drift,
    error::LabError,
    gone::forget_gone,
    progress::{UpProgress, UpStep},
    replace::{ChangedFacts, Replaced, TopologyChanges, changes, reload, replace},
    rulesets::strange_lines,
    state::{InterfaceState, LabPhase, LabState, RouterState, bridge_name},
    up::{Up, UpOptions, up, up_from},
    vacate::{Vacated, vacate},
};
use crate::{
    config::Config,
    firewall::ruletext::Shelf,
    model::{Known, LabName, NetnsName, RouterId, RouterName, WithCauses},
    netns::{NetnsDir, NetnsFd},
    registry::medium::Directory,
};

/// A lab that is up.
#[derive(Debug, Clone)]
pub struct Lab {
    state: LabState,
    /// Its file as it was before it was read.
    stamp: Option<Stamp>,
    /// Its directory, where it was read from there.
    dir: Option<Shelf>,
}

impl PartialEq for Lab {
    fn eq(&self, other: &Self) -> bool {
        self.state == other.state
    }
}

impl Deref for Lab {
    type Target = LabState;
    fn deref(&self) -> &LabState {
        &self.state
    }
}

impl Lab {
    fn new(state: LabState) -> Self {
        Self {
            state,
            stamp: None,
            dir: None,
        }
    }

    /// Opens lab `name` from its own file; no facts are needed.
    ///
    /// # Errors
    /// [`LabError`] when there is no such lab, or its `up` was interrupted.
    pub fn open(config: &Config, name: &LabName) -> Result<Self, LabError> {
        let of_lab = LabDir::new(config, name);
        let stamp = of_lab.stamp();
        let dir = of_lab.existing()?.map(Arc::new);
        match settled_in(config, &of_lab, dir.as_deref())? {
            None => Err(not_found(config, name)),
            Some(state) if state.phase != LabPhase::Up => {
                Err(LabError::HalfMade { lab: name.clone() })
            }
            Some(state) if state.boot_id != state::boot_id()? => {
                Err(LabError::Gone { lab: name.clone() })
            }
            Some(state) => Ok(Self { state, stamp, dir }),
        }
    }

    /// As [`shelf`], without opening the lab's directory again.
    pub(crate) fn open_shelf(&self) -> Option<Shelf> {
        self.dir.clone()
    }

    /// Makes sure that the lab is still the one that was opened: none of its routers was made anew.
    /// To be asked when routers are locked, since they may have been waited for.
    ///
    /// # Errors
    /// [`LabError::Changed`], or why its file cannot be read.
    pub(crate) fn check_unchanged(&self, config: &Config) -> Result<(), LabError> {
        let dir = LabDir::new(config, &self.lab);
        if self.stamp.is_some() && dir.stamp() == self.stamp {
            return Ok(());
        }
        let now = dir.state()?;
        match now.is_some_and(|now| now.edition() == self.edition()) {
            true => Ok(()),
            false => Err(LabError::Changed {
                lab: self.lab.clone(),
            }),
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

/// The lab's file, after what an interrupted change of it has left to do was done.
fn settled(config: &Config, name: &LabName) -> Result<Option<LabState>, LabError> {
    let dir = LabDir::new(config, name);
    settled_in(config, &dir, dir.existing()?.as_ref())
}

/// The same in the lab's directory, which is open if there is one.
fn settled_in(
    config: &Config,
    dir: &LabDir,
    open: Option<&Directory>,
) -> Result<Option<LabState>, LabError> {
    let state = open.map_or(Ok(None), state::read_state)?;
    let Some(decided) = state.as_ref().and_then(interrupted) else {
        return Ok(state);
    };
    // Until it is decided the lab is as it was, and whoever is at it has it locked.
    let locked = match decided {
        true => Some(dir.lock()?),
        false => dir.lock_now()?,
    };
    let Some(locked) = locked else {
        return Ok(state);
    };
    match locked.state()? {
        Some(state) if interrupted(&state).is_some() => {
            swap::settle(config, &locked, state).map(Some)
        }
        state => Ok(state),
    }
}

/// Whether a change of the lab that is on its way, or was, is decided; none where there is none.
fn interrupted(state: &LabState) -> Option<bool> {
    let change = state.change.as_ref()?;
    let here = state::boot_id().is_ok_and(|boot| boot == state.boot_id);
    here.then_some(change.decided)
}

/// Brings changes of labs to their ends that nobody is at any more: the labs, and what could not be
/// done. With `dry_run` only says which labs.
///
/// # Errors
/// [`LabError`] when the labs cannot be listed.
pub(crate) fn settle_all(
    config: &Config,
    dry_run: bool,
) -> Result<(Vec<LabName>, Vec<LabError>), LabError> {
    let (mut labs, mut failures) = (Vec::new(), Vec::new());
    for name in LabDir::list(config)? {
        let dir = LabDir::new(config, &name);
        // One that cannot be read is said by whoever uses it.
        let Ok(Some(state)) = dir.state() else {
            continue;
        };
        if interrupted(&state).is_none() || dir.lock_now()?.is_none() {
            continue;
        }
        let settled = match dry_run {
            true => Ok(Some(state)),
            false => settled(config, &name),
        };
        match settled {
            Ok(_) => labs.push(name),
            Err(error) => failures.push(error),
        }
    }
    Ok((labs, failures))
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LabStatus {
    /// The lab as its file has it.
    pub state: LabState,
    /// Its namespaces that are gone or were replaced by others; empty for a sound lab.
    pub missing: Vec<NetnsName>,
    /// By router, what is not as it was made.
    #[serde(default)]
    #[schemars(with = "BTreeMap<RouterName, Map<String, Value>>")]
    pub drift: BTreeMap<RouterName, Drift>,
    /// Routers whose facts are not what the lab was made of: added, removed, changed, rewired; none where
    /// all are.
    #[serde(default)]
    #[schemars(with = "Option<Map<String, Value>>")]
    pub facts: Option<ChangedFacts>,
    /// Why its facts cannot be compared, where they cannot.
    #[serde(default)]
    pub facts_problem: Option<String>,
}

impl LabStatus {
    /// Whether its routers or its facts are not what the lab was made of.
    #[must_use]
    pub fn has_drifted(&self) -> bool {
        self.facts.is_some() || self.drift.values().any(Drift::differs)
    }

    /// What is not as it was when the lab was made, a sentence each, with what to do.
    #[must_use]
    pub fn drift_text(&self) -> Vec<String> {
        drift::text(self)
    }
}

/// Looks how lab `name` is, half made ones included.
///
/// # Errors
/// [`LabError`] when there is no such lab or it cannot be looked at.
pub fn status(config: &Config, name: &LabName) -> Result<LabStatus, LabError> {
    let state = settled(config, name)?;
    let state = state.ok_or_else(|| not_found(config, name))?;
    let dir = NetnsDir::default();
    let mut missing = Vec::new();
    for (name, id) in down::namespaces(&state) {
        if down::find(&dir, &name, id)? != FoundNamespace::Ours {
            missing.push(name);
        }
    }
    let here = state.phase == LabPhase::Up && state.boot_id == state::boot_id()?;
    let dir = LabDir::new(config, name);
    let drift = match here {
        true => drift::drift(config, &dir, &state),
        false => Vec::new(),
    };
    let facts = match state.phase {
        LabPhase::Up => replace::facts_since(&dir, &state),
        LabPhase::Building => Ok(None),
    };
    Ok(LabStatus {
        state,
        missing,
        drift: drift.into_iter().collect(),
        facts_problem: facts
            .as_ref()
            .err()
            .map(|error| WithCauses(error).to_string()),
        facts: facts.ok().flatten(),
    })
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
