//! Takes a lab down, by what was written when it was made, and says what is left of one.

use std::{fs, path::Path};

use super::{
    LabError, pool,
    state::{LabDir, LabState, Remains, boot_id},
};
use crate::{
    config::Config,
    fault,
    model::{HostId, LabName, NetnsName, RouterId, RouterName},
    netns::{NetnsDir, NetnsError, NetnsId},
    registry::RegistryManager,
};

/// What became of a lab's namespaces.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Removed.
    pub removed: Vec<String>,
    /// Not there (any more).
    pub absent: Vec<String>,
    /// There, but not the one that `up` made: left alone.
    pub foreign: Vec<String>,
    /// Namespaces of hosts that were attached to the lab's routers; left alone, and cut off.
    pub hosts: Vec<String>,
}

/// Every namespace of a lab, hidden one first, with its identity where it is known.
pub(super) fn namespaces(
    state: &LabState,
) -> impl Iterator<Item = (NetnsName, Option<NetnsId>)> + '_ {
    let routers = state.routers.iter().map(|router| {
        let id = RouterId::new(state.lab.clone(), router.name.clone());
        (id.netns(), router.netns)
    });
    let hidden = (NetnsName::segments(&state.lab), state.segments_netns);
    std::iter::once(hidden).chain(routers)
}

/// The same, and those that a change of the lab, which was interrupted, made or left.
fn removable(state: &LabState) -> Vec<(NetnsName, Option<NetnsId>)> {
    let Some(change) = &state.change else {
        return namespaces(state).collect();
    };
    let id = |router: &RouterName| RouterId::new(state.lab.clone(), router.clone());
    let aside = change.aside.iter().map(|name| id(name).netns_aside());
    let moving: Vec<NetnsName> = aside
        .chain(change.aside.iter().map(|name| id(name).netns()))
        .chain(change.old.iter().map(|old| id(&old.name).netns()))
        .collect();
    let stay = namespaces(state).filter(|(name, _)| !moving.contains(name));
    // The one or the other has the name: both are the lab's.
    let mut all: Vec<_> = stay
        .chain(moving.iter().map(|name| (name.clone(), None)))
        .collect();
    all.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    all.dedup_by(|a, b| a.0 == b.0);
    all
}

/// What there is under the name of a namespace of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundNamespace {
    Ours,
    /// The empty file that is left where making or removing it was interrupted.
    Bare,
    Absent,
    Foreign,
}

/// Looks whether `name` is there, and the one that is meant. One whose identity was not written
/// down yet is ours: `up` saw that the name was free before it wrote down that it would take it.
pub(super) fn find(
    dir: &NetnsDir,
    name: &NetnsName,
    id: Option<NetnsId>,
) -> Result<FoundNamespace, NetnsError> {
    match dir.open(name) {
        Ok(netns) if id.is_none_or(|id| id == netns.id()) => Ok(FoundNamespace::Ours),
        Ok(_) => Ok(FoundNamespace::Foreign),
        Err(NetnsError::NotFound { .. }) => Ok(FoundNamespace::Absent),
        Err(NetnsError::NotANamespace { path }) if is_empty(&path) => Ok(FoundNamespace::Bare),
        Err(NetnsError::NotANamespace { .. }) => Ok(FoundNamespace::Foreign),
        Err(error) => Err(error),
    }
}

fn is_empty(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0)
}

/// Whether all namespaces of the lab are there.
pub(super) fn intact(dir: &NetnsDir, state: &LabState) -> Result<bool, LabError> {
    for (name, id) in namespaces(state) {
        if id.is_none() || find(dir, &name, id)? != FoundNamespace::Ours {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes the namespaces of a lab, noting what became of each in `removed`; returns what failed.
pub(super) fn remove_namespaces(
    dir: &NetnsDir,
    state: &LabState,
    removed: &mut Removed,
) -> Vec<LabError> {
    let same_boot = boot_id().is_ok_and(|boot| boot == state.boot_id);
    remove_all(dir, removable(state), same_boot, removed)
}

fn remove_all(
    dir: &NetnsDir,
    all: Vec<(NetnsName, Option<NetnsId>)>,
    same_boot: bool,
    removed: &mut Removed,
) -> Vec<LabError> {
    let results = pool::each(&all, |(name, id)| {
        let found = if same_boot {
            find(dir, name, *id)?
        } else {
            FoundNamespace::Absent
        };
        if matches!(found, FoundNamespace::Ours | FoundNamespace::Bare) {
            fault::step("lab.delete").map_err(|source| LabError::File {
                call: "remove the namespace",
                path: dir.path(name),
                source,
            })?;
            dir.delete(name)?;
        }
        Ok(found)
    });
    let mut failures = Vec::new();
    for ((name, _), result) in all.into_iter().zip(results) {
        let list = match result.unwrap_or(Err(LabError::Worker)) {
            Ok(FoundNamespace::Ours | FoundNamespace::Bare) => &mut removed.removed,
            Ok(FoundNamespace::Absent) => &mut removed.absent,
            Ok(FoundNamespace::Foreign) => &mut removed.foreign,
            Err(error) => {
                failures.push(error);
                continue;
            }
        };
        list.push(name.to_string());
    }
    failures
}

/// Takes lab `name` down: removes what `up` made, and nothing else. Works from the lab's own file,
/// also when `up` was interrupted; a lab that is not there is success.
///
/// # Errors
/// [`LabError::NotRemoved`] with everything that failed; what is left can be tried again.
pub fn down(config: &Config, name: &LabName) -> Result<Removed, LabError> {
    take_down(config, name, false)
}

/// The same for a lab whose file is damaged or another release's, too: then by what is left of it.
///
/// # Errors
/// As [`down`].
pub fn down_by_force(config: &Config, name: &LabName) -> Result<Removed, LabError> {
    take_down(config, name, true)
}

fn take_down(config: &Config, name: &LabName, force: bool) -> Result<Removed, LabError> {
    let mut removed = Removed::default();
    forget_queues(config);
    let dir = LabDir::new(config, name);
    if !dir.exists()? {
        return Ok(removed);
    }
    let locked = dir.lock()?;
    let netns = NetnsDir::default();
    let mut failures = Vec::new();
    match locked.state() {
        Ok(None) => {}
        Ok(Some(state)) => {
            removed.hosts = hosts(&netns, name)?;
            failures = remove_namespaces(&netns, &state, &mut removed);
        }
        Err(error) if force => {
            tracing::warn!(%error, "going by what is left of the lab's file");
            removed.hosts = hosts(&netns, name)?;
            let remains = locked.remains();
            let here = boot_id()?;
            let same_boot = remains.boot_id.as_ref().is_none_or(|boot| *boot == here);
            let all = remaining(name, remains);
            failures = remove_all(&netns, all, same_boot, &mut removed);
        }
        Err(error) => return Err(error),
    }
    if failures.is_empty() {
        failures.extend(locked.remove().err());
    }
    if failures.is_empty() {
        return Ok(removed);
    }
    Err(LabError::NotRemoved {
        lab: name.clone(),
        failures,
    })
}

/// Removes places of the dead in queues: to a router whose lab has gone no job comes that would.
fn forget_queues(config: &Config) {
    // Opening a registry makes what it lacks, and one without queues is left as it is.
    if !config.registry_dir.join("locks").is_dir() {
        return;
    }
    let swept = RegistryManager::open(config).and_then(|registry| registry.sweep_queues());
    if let Err(error) = swept {
        tracing::warn!(%error, "queues of the dead stay");
    }
}

/// The namespaces of a lab of which only that is known.
fn remaining(lab: &LabName, remains: Remains) -> Vec<(NetnsName, Option<NetnsId>)> {
    let routers = remains.routers.into_iter().map(|router| {
        let id = RouterId::new(lab.clone(), router.name);
        (id.netns(), router.netns)
    });
    let aside = remains.change.aside.into_iter();
    let aside = aside.map(|name| (RouterId::new(lab.clone(), name).netns_aside(), None));
    let hidden = (NetnsName::segments(lab), remains.segments_netns);
    std::iter::once(hidden)
        .chain(routers)
        .chain(aside)
        .collect()
}

fn hosts(dir: &NetnsDir, lab: &LabName) -> Result<Vec<String>, LabError> {
    let is_host = |name: &NetnsName| {
        let host = name.as_str().parse::<HostId>();
        host.is_ok_and(|host| host.lab == *lab)
    };
    let all = dir.list()?.into_iter();
    Ok(all.filter(is_host).map(|name| name.to_string()).collect())
}
