//! Makes a lab anew from other facts, or leaves it as it was.

use std::path::Path;

use super::{
    LabError, Options, Progress, Up,
    down::down,
    state::{LabDir, LabState},
    topology::{Router, Topology},
    up::{plan, up, up_from},
    vacate::{Vacated, vacate},
};
use crate::{
    config::Config,
    model::{HostId, LabName, RouterName},
    registry::Wait,
};

/// What became of a lab that was to be replaced.
#[derive(Debug)]
pub struct Replaced {
    /// The lab that is up now.
    pub up: Up,
    /// What is not as it was before; none where there was no lab, or it is the same.
    pub changes: Option<Changes>,
    /// The hosts that went with the lab that was there.
    pub hosts: Vec<HostId>,
}

/// How the routers of two topologies differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Changes {
    /// Routers that were not there before.
    pub added: Vec<RouterName>,
    /// Routers that are there no more.
    pub removed: Vec<RouterName>,
    /// Routers of which anything is different.
    pub changed: Vec<RouterName>,
}

impl Changes {
    fn between(before: &Topology, after: &Topology) -> Self {
        let mut changes = Self::default();
        for router in &after.routers {
            match before.routers.iter().find(|r| r.name == router.name) {
                None => changes.added.push(router.name.clone()),
                Some(old) if differs(old, router) => changes.changed.push(router.name.clone()),
                Some(_) => {}
            }
        }
        let still_there = |name| after.routers.iter().any(|router| router.name == name);
        let names = before.routers.iter().map(|router| router.name.clone());
        changes.removed = names.filter(|name| !still_there(name.clone())).collect();
        changes
    }
}

/// How the facts in `facts_dir` differ from what lab `name` was made of.
///
/// # Errors
/// [`LabError`] when there is no such lab, or the facts cannot be read.
pub fn changes(config: &Config, name: &LabName, facts_dir: &Path) -> Result<Changes, LabError> {
    let before = super::topology_of(config, name)?;
    let (after, _) = plan(facts_dir, Options::default(), &())?;
    Ok(Changes::between(&before, &after))
}

/// Whether anything but the place of its facts is another.
fn differs(before: &Router, after: &Router) -> bool {
    let placeless = |router: &Router| {
        let mut router = router.clone();
        router.file.clear();
        for ruleset in &mut router.rulesets {
            ruleset.origin.file.clear();
        }
        router
    };
    placeless(before) != placeless(after)
}

/// Makes lab `name` from the facts in `facts_dir`, in the place of one that is up from other facts
/// or with other options. The facts are read and checked before anything is changed; jobs that
/// hold routers of the lab are waited for as long as `wait` allows. Where the new lab cannot be
/// made, the old one is made again.
///
/// # Errors
/// As [`super::up_from`] and [`super::vacate`]; [`LabError::NotReplaced`] when the new lab could not be
/// made, which says what became of the old one.
pub fn replace(
    config: &Config,
    name: &LabName,
    facts_dir: &Path,
    options: Options,
    progress: &dyn Progress,
    wait: &Wait,
) -> Result<Replaced, LabError> {
    match up_from(config, name, facts_dir, options, progress) {
        Err(LabError::Exists { .. }) => {}
        made => {
            return made.map(|up| Replaced {
                up,
                changes: None,
                hosts: Vec::new(),
            });
        }
    }
    let old = Old::read(config, name)?;
    let (topology, facts) = plan(facts_dir, options, progress)?;
    // Its locks are held until the new lab is up.
    let Vacated { hosts, .. } = &vacate(config, name, wait)?;
    let made =
        down(config, name).and_then(|_| up(config, name, &topology, facts, options, progress));
    match made {
        Ok(up) => Ok(Replaced {
            up,
            changes: old.map(|old| Changes::between(&old.topology, &topology)),
            hosts: hosts.clone(),
        }),
        Err(cause) => Err(LabError::NotReplaced {
            lab: name.clone(),
            cause: Box::new(cause),
            old: restore(old, config, name).err().map(Box::new),
        }),
    }
}

/// The lab that is to be replaced.
struct Old {
    state: LabState,
    topology: Topology,
}

impl Old {
    fn read(config: &Config, name: &LabName) -> Result<Option<Self>, LabError> {
        let locked = LabDir::new(config, name).lock()?;
        let both = locked.state()?.zip(locked.topology()?);
        Ok(both.map(|(state, topology)| Self { state, topology }))
    }
}

fn restore(old: Option<Old>, config: &Config, name: &LabName) -> Result<(), LabError> {
    let Some(Old { state, topology }) = old else {
        return Err(LabError::HalfMade { lab: name.clone() });
    };
    let options = Options {
        strict: false,
        legacy: state.legacy,
    };
    up(config, name, &topology, state.facts, options, &())?;
    Ok(())
}
