//! Makes what is different in a lab anew from other facts, or leaves it as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{
    Lab, LabError, Up, UpOptions, UpProgress,
    part::{self, Part, differs},
    segments,
    state::{LabDir, LabState, LockedLab, RouterState},
    swap,
    topology::{Topology, Warning},
    up::{self, plan, up_from},
    vacate::{Vacated, vacate_routers},
};
use crate::{
    config::Config,
    model::{HostId, IfName, LabName, NetnsName, RouterId, RouterName},
    netns::NetnsDir,
    registry::Wait,
};

/// What became of a lab that was to be replaced.
#[derive(Debug)]
pub struct Replaced {
    /// The lab that is up now.
    pub up: Up,
    /// What is not as it was before; none where there was no lab, or it is the same.
    pub changes: Option<TopologyChanges>,
    /// The hosts that went with the lab that was there.
    pub hosts: Vec<HostId>,
}

/// How the facts of a lab differ from those that it was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChangedFacts {
    /// Routers that the lab does not have.
    pub added: Vec<RouterName>,
    /// Routers that the facts have no more.
    pub removed: Vec<RouterName>,
    /// Routers of which anything is different.
    pub changed: Vec<RouterName>,
    /// Routers that are what they were, but for who is at the other ends of their wires.
    pub rewired: Vec<RouterName>,
}

/// How the routers of two topologies differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct TopologyChanges {
    /// Routers that were not there before.
    pub added: Vec<RouterName>,
    /// Routers that are there no more.
    pub removed: Vec<RouterName>,
    /// Routers of which anything is different.
    pub changed: Vec<RouterName>,
    /// Routers that were made anew although their facts are what they were: they were named, or
    /// their wires are others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub anew: Vec<RouterName>,
}

impl TopologyChanges {
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
pub fn changes(
    config: &Config,
    name: &LabName,
    facts_dir: &Path,
) -> Result<TopologyChanges, LabError> {
    let before = super::topology_of(config, name)?;
    let (after, _) = plan(facts_dir, UpOptions::default(), &())?;
    Ok(TopologyChanges::between(&before, &after))
}

/// How the facts that lab `state` was made of differ from what they were then; none where they do not.
/// Files that nobody touched since are not read.
///
/// # Errors
/// [`LabError`] when the facts cannot be read any more.
pub(super) fn facts_since(
    dir: &LabDir,
    state: &LabState,
) -> Result<Option<ChangedFacts>, LabError> {
    if !touched(state) {
        return Ok(None);
    }
    let Some(before) = dir.topology()? else {
        return Ok(None);
    };
    let (after, _) = plan(&state.facts, UpOptions::default(), &())?;
    let changes = TopologyChanges::between(&before, &after);
    let told = [&changes.added, &changes.changed];
    let is_told = |name: &RouterName| told.iter().any(|of| of.contains(name));
    let (old, new) = (wires(&before), wires(&after));
    let names = after.routers.iter().map(|router| &router.name);
    let rewired = names.filter(|name| !is_told(name) && old.get(*name) != new.get(*name));
    let changed = ChangedFacts {
        rewired: rewired.cloned().collect(),
        added: changes.added,
        removed: changes.removed,
        changed: changes.changed,
    };
    Ok((changed != ChangedFacts::default()).then_some(changed))
}

/// Whether a file of a lab's facts, or their directory, may be another than when the lab was made. A
/// file that is put in the place of another has another time of change, whatever its contents' time.
fn touched(state: &LabState) -> bool {
    /// Between reading the facts and noting when the lab was made, in seconds.
    const MAKING: i64 = 600;
    let made = state.changed_at.as_ref().unwrap_or(&state.created_at);
    let Ok(made) = made.parse::<jiff::Timestamp>() else {
        return true;
    };
    let changed = |path: &Path| path.metadata().map(|found| found.ctime());
    let Ok(entries) = std::fs::read_dir(&state.facts) else {
        return true;
    };
    let mut times = entries.map(|entry| changed(&entry?.path()));
    let since =
        |time: std::io::Result<i64>| time.is_ok_and(|time| time > made.as_second() - MAKING);
    since(changed(&state.facts)) || times.any(since)
}

/// Whom each router shares the segments of its interfaces with, and who are their gateways.
fn wires(topology: &Topology) -> BTreeMap<RouterName, BTreeSet<String>> {
    let mut wires: BTreeMap<RouterName, BTreeSet<String>> = BTreeMap::new();
    for segment in &topology.segments {
        let mut ends: Vec<String> = segment
            .members
            .iter()
            .map(|(router, interface)| format!("{router}:{interface}"))
            .chain(segment.absent.iter().cloned())
            .collect();
        ends.sort();
        let gateways: BTreeSet<&str> = segment.gateways.iter().map(RouterName::as_str).collect();
        for (router, interface) in &segment.members {
            let wire = format!("{interface} {ends:?} {gateways:?}");
            wires.entry(router.clone()).or_default().insert(wire);
        }
    }
    wires
}

/// Makes lab `name` from the facts in `facts_dir`, in the place of one that is up from other facts
/// or with other options. Routers whose facts and wires are the same stay as they are. The facts are
/// read and checked before anything is changed; jobs that hold other routers are waited for as long
/// as `wait` allows. Where these cannot be made, the lab is as it was.
///
/// # Errors
/// As [`super::up_from`] and [`super::vacate`]; [`LabError::NotReplaced`] when routers could not be
/// made; [`LabError::Unsettled`] when they could not be put in place.
pub fn replace(
    config: &Config,
    name: &LabName,
    facts_dir: &Path,
    options: UpOptions,
    progress: &dyn UpProgress,
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
    let another = old.state.legacy != options.legacy;
    let wanted = Wanted {
        topology: &topology,
        facts,
        options,
        anew: &|_| another,
    };
    old.change(config, &wanted, progress, wait)
}

/// Makes `routers` of lab `name` anew from what their facts are now, also where these are what they
/// were, and leaves all others as they are.
///
/// # Errors
/// As [`replace`]; [`LabError::NoRouter`] when the lab has no such router;
/// [`LabError::OthersChanged`] when facts of other routers are not what they were.
pub fn reload(
    config: &Config,
    name: &LabName,
    routers: &[RouterName],
    progress: &dyn UpProgress,
    wait: &Wait,
) -> Result<Replaced, LabError> {
    let lab = Lab::open(config, name)?;
    for router in routers {
        lab.router(router)?;
    }
    let old = Old::read(config, name)?;
    let options = UpOptions {
        strict: false,
        legacy: old.state.legacy,
    };
    let facts = old.state.facts.clone();
    let (topology, facts) = plan(&facts, options, progress)?;
    let changes = TopologyChanges::between(&old.topology, &topology);
    let all = [&changes.added, &changes.removed, &changes.changed].into_iter();
    let others: Vec<RouterName> = all
        .flatten()
        .filter(|name| !routers.contains(name))
        .cloned()
        .collect();
    if !others.is_empty() {
        return Err(LabError::OthersChanged {
            lab: name.clone(),
            routers: others,
            facts,
        });
    }
    let wanted = Wanted {
        topology: &topology,
        facts,
        options,
        anew: &|name| routers.contains(name),
    };
    old.change(config, &wanted, progress, wait)
}

/// What a lab is to be.
struct Wanted<'a> {
    topology: &'a Topology,
    /// Where the facts lie.
    facts: PathBuf,
    options: UpOptions,
    /// Routers that are made anew whatever their facts.
    anew: &'a dyn Fn(&RouterName) -> bool,
}

/// The lab that is to be changed.
struct Old {
    state: LabState,
    topology: Topology,
}

impl Old {
    fn read(config: &Config, name: &LabName) -> Result<Self, LabError> {
        let locked = LabDir::new(config, name).lock()?;
        let state = locked.state()?;
        let state = state.ok_or_else(|| super::not_found(config, name))?;
        let state = swap::settle(config, &locked, state)?;
        Ok(Self {
            state,
            topology: locked.topology()?.unwrap_or_default(),
        })
    }

    fn change(
        self,
        config: &Config,
        wanted: &Wanted<'_>,
        progress: &dyn UpProgress,
        wait: &Wait,
    ) -> Result<Replaced, LabError> {
        let begin = Instant::now();
        up::check_strict(wanted.options, &wanted.topology.warnings)?;
        let name = &self.state.lab;
        let part = self.part(wanted, 0)?;
        let goes = |router: &RouterState| !part.kept.contains(&router.name);
        let going = self.state.routers.iter().filter(|router| goes(router));
        let going: Vec<RouterId> = going
            .map(|router| RouterId::new(name.clone(), router.name.clone()))
            .collect();
        // Their locks are held until the new routers are in place.
        let Vacated { hosts, .. } = &vacate_routers(config, name, &going, wait)?;
        let locked = LabDir::new(config, name).lock()?;
        if locked.state()?.is_none_or(|now| now != self.state) {
            return Err(LabError::Changed { lab: name.clone() });
        }
        let next = self.make(config, &locked, wanted, progress);
        let next = next.map_err(|cause| LabError::NotReplaced {
            lab: name.clone(),
            cause: Box::new(cause),
        })?;
        let state = swap::settle(config, &locked, next)?;
        let mut changes = TopologyChanges::between(&self.topology, wanted.topology);
        let is_anew = |router: &&RouterState| {
            let told = [&changes.added, &changes.changed];
            !part.kept.contains(&router.name) && !told.iter().any(|of| of.contains(&router.name))
        };
        let anew = state.routers.iter().filter(is_anew);
        changes.anew = anew.map(|router| router.name.clone()).collect();
        Ok(Replaced {
            up: Up {
                lab: Lab::new(state),
                changed: true,
                timing: vec![("routers", begin.elapsed())],
            },
            changes: Some(changes),
            hosts: hosts.clone(),
        })
    }

    fn part(&self, wanted: &Wanted<'_>, next_port: u32) -> Result<Part, LabError> {
        let old = (&self.state, &self.topology);
        Part::between(old, wanted.topology, wanted.anew, next_port)
    }

    /// Makes what is new aside, and decides that it takes its place; or undoes what was made.
    fn make(
        &self,
        config: &Config,
        locked: &LockedLab,
        wanted: &Wanted<'_>,
        progress: &dyn UpProgress,
    ) -> Result<LabState, LabError> {
        let dir = NetnsDir::default();
        let hidden = dir.open(&NetnsName::segments(&self.state.lab))?;
        let (kept, mut next) = self.next(wanted, &segments::router_ports(&hidden)?)?;
        let mut change = swap::change_of(&self.state, &next, &kept);
        swap::check_names(&dir, &next, &change)?;
        if change.tunnels {
            swap::check_tunnels(&next, &hidden, config)?;
        }
        let intent = LabState {
            change: Some(change.clone()),
            ..self.state.clone()
        };
        locked.write_next(wanted.topology)?;
        locked.write_state(&intent)?;
        let (topology, mut made) = swap::part_of(wanted.topology, &next, &kept);
        let built = up::make_aside(
            config,
            (&topology, &mut made),
            &hidden,
            wanted.options,
            progress,
        );
        let decided = built.and_then(|()| {
            next.take(made);
            let read = up::read_rules(wanted.topology);
            up::note_lacks(&mut next, wanted.topology, read);
            up::check_strict(wanted.options, &next.warnings)?;
            change.decided = true;
            next.change = Some(change);
            locked.write_state(&next)
        });
        let Err(cause) = decided else {
            return Ok(next);
        };
        // It may be on disk although writing failed, at the last step of it.
        match locked.state()?.filter(|now| *now == next) {
            Some(next) => Ok(next),
            None => swap::settle(config, locked, intent).and(Err(cause)),
        }
    }

    /// The lab as it is to be, and the routers that stay; `there` are ports that are taken.
    fn next(
        &self,
        wanted: &Wanted<'_>,
        there: &[IfName],
    ) -> Result<(BTreeSet<RouterName>, LabState), LabError> {
        let interfaces = self.state.routers.iter().flat_map(|r| &r.interfaces);
        let noted = interfaces.filter_map(|interface| interface.port.as_ref());
        let part = self.part(wanted, part::next_port(there.iter().chain(noted)))?;
        let next = LabState {
            facts: wanted.facts.clone(),
            legacy: wanted.options.legacy,
            changed_at: Some(jiff::Timestamp::now().to_string()),
            warnings: self.warnings(&part, wanted.topology),
            routers: part.routers,
            segments: part.segments,
            ..self.state.clone()
        };
        Ok((part.kept, next))
    }

    /// What the lab lacks by its facts, and what routers that stay were found to lack when they were
    /// made.
    fn warnings(&self, part: &Part, after: &Topology) -> Vec<Warning> {
        let mut warnings = after.warnings.clone();
        for router in after.routers.iter().filter(|r| part.kept.contains(&r.name)) {
            let found = self.state.warnings.iter().filter(|warning| {
                warning.router.as_ref() == Some(&router.name)
                    && !self.topology.warnings.contains(warning)
            });
            warnings.extend(found.cloned().map(|mut warning| {
                warning.origin.file.clone_from(&router.file);
                warning
            }));
        }
        warnings
    }
}

impl LabState {
    /// Takes over what was made of some of its routers.
    fn take(&mut self, made: Self) {
        for router in made.routers {
            if let Some(slot) = self.routers.iter_mut().find(|r| r.name == router.name) {
                *slot = router;
            }
        }
        self.warnings.extend(made.warnings);
    }
}
