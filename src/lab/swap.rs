//! Routers that are made anew beside those that are there, and take their places all at once.
//!
//! ```text
//! lab.json says         what there is                                  after a kill
//! (no change)           the old routers
//! change, not decided   beside them LAB:ROUTER, wired to nothing       these are thrown away
//! change, decided       LAB:ROUTER takes the name LAB.ROUTER, and      that is gone on with
//!                       its wires are plugged in
//! (no change)           the new routers
//! ```
//!
//! What decides is the rename of `lab.json`. Until then the lab is as it was, and jobs may use it; from
//! then on it is the new one, and whoever opens it puts in place what is not in place yet. Every step
//! of that may be done twice.

use std::collections::BTreeSet;

use super::{
    LabError,
    down::{self, FoundNamespace},
    drift,
    rulesets::{Loaders, Trial},
    segments,
    state::{LabState, LockedLab, RemainingRouter, Swap},
    topology::{RulesetKind, Topology},
    tunnels,
};
use crate::{
    config::Config,
    fault,
    model::{IfName, NetnsName, RouterId, RouterName},
    netlink::{
        Netlink, NetlinkErrors,
        object::{Family, Mac},
    },
    netns::{NetnsDir, NetnsFd},
};

/// `NUD_PERMANENT` and `NUD_NOARP`, linux/neighbour.h: entries that nobody learned.
const NOT_LEARNED: u16 = 0x80 | 0x40;

/// What it takes to make routers of `next` aside, which are not in `kept`, in the place of those of
/// `old`.
pub(super) fn change_of(old: &LabState, next: &LabState, kept: &BTreeSet<RouterName>) -> Swap {
    let goes = old.routers.iter().filter(|r| !kept.contains(&r.name));
    let interfaces = || goes.clone().flat_map(|router| &router.interfaces);
    let aside = next.routers.iter().filter(|r| !kept.contains(&r.name));
    Swap {
        decided: false,
        aside: aside.map(|router| router.name.clone()).collect(),
        old: goes
            .clone()
            .map(|router| RemainingRouter {
                name: router.name.clone(),
                netns: router.netns,
            })
            .collect(),
        macs: interfaces().filter_map(|i| i.mac).collect(),
        segments: interfaces().filter_map(|i| i.segment).collect(),
        tunnels: tunnels::ruleset(&old.routers) != tunnels::ruleset(&next.routers),
    }
}

/// Looks whether all names that the change needs are free, before it is written down that they are
/// taken.
pub(super) fn check_names(dir: &NetnsDir, state: &LabState, change: &Swap) -> Result<(), LabError> {
    for name in &change.aside {
        let id = RouterId::new(state.lab.clone(), name.clone());
        let there = change.old.iter().any(|old| old.name == *name);
        let wanted = [Some(id.netns_aside()), (!there).then(|| id.netns())];
        for netns in wanted.into_iter().flatten() {
            if dir.exists(&netns)? {
                return Err(LabError::Taken { netns });
            }
        }
    }
    Ok(())
}

/// Looks whether the tunnels of `next` can be led to their ends, before anything is decided.
pub(super) fn check_tunnels(
    next: &LabState,
    hidden: &NetnsFd,
    config: &Config,
) -> Result<(), LabError> {
    let loaders = Loaders::find(&config.tool_dirs, [RulesetKind::Nft].into_iter(), false)?;
    tunnels::reload(next, hidden, &loaders, Trial::Check)
}

/// Brings a change of the lab that was interrupted to its end: the lab is as it was before, or as it
/// was to be.
///
/// # Errors
/// [`LabError::Unsettled`]; it can be tried again.
pub(super) fn settle(
    config: &Config,
    locked: &LockedLab,
    state: LabState,
) -> Result<LabState, LabError> {
    let Some(change) = state.change.clone() else {
        return Ok(state);
    };
    let settled = match change.decided {
        true => put_in_place(config, &state, &change)
            .and_then(|()| drift::keep(locked, &state, |name| change.aside.contains(name)))
            .and_then(|()| locked.take_next()),
        false => throw_away(&state, &change).and_then(|()| locked.drop_next()),
    };
    let state = LabState {
        change: None,
        ..state
    };
    let settled = settled.and_then(|()| locked.write_state(&state));
    match settled {
        Ok(()) => Ok(state),
        Err(cause) => Err(LabError::Unsettled {
            lab: state.lab,
            cause: Box::new(cause),
        }),
    }
}

/// Throws away what was made aside. Its wires go with it.
fn throw_away(state: &LabState, change: &Swap) -> Result<(), LabError> {
    let dir = NetnsDir::default();
    for name in &change.aside {
        let netns = RouterId::new(state.lab.clone(), name.clone()).netns_aside();
        step("remove the namespace", &dir, &netns)?;
        dir.delete(&netns)?;
    }
    Ok(())
}

fn put_in_place(config: &Config, state: &LabState, change: &Swap) -> Result<(), LabError> {
    let dir = NetnsDir::default().patient(config.lock_timeout);
    let hidden = dir.open(&NetnsName::segments(&state.lab))?;
    let is_new = |name: &RouterName| change.aside.contains(name);
    segments::replug(state, &hidden, is_new)?;
    for old in &change.old {
        let netns = RouterId::new(state.lab.clone(), old.name.clone()).netns();
        if down::find(&dir, &netns, old.netns)? == FoundNamespace::Ours {
            step("remove the namespace", &dir, &netns)?;
            dir.delete(&netns)?;
        }
    }
    for router in state.routers.iter().filter(|router| is_new(&router.name)) {
        let id = RouterId::new(state.lab.clone(), router.name.clone());
        let (aside, netns) = (id.netns_aside(), id.netns());
        step("name the namespace", &dir, &netns)?;
        match down::find(&dir, &netns, router.netns)? {
            FoundNamespace::Ours => dir.delete(&aside)?,
            FoundNamespace::Foreign => return Err(LabError::Taken { netns }),
            FoundNamespace::Bare | FoundNamespace::Absent => dir.rename(&aside, &netns)?,
        }
    }
    if change.tunnels {
        let loaders = Loaders::find(&config.tool_dirs, [RulesetKind::Nft].into_iter(), false)?;
        tunnels::reload(state, &hidden, &loaders, Trial::Load)?;
    }
    segments::settle(state, &hidden)?;
    forget_neighbours(&dir, state, change)
}

/// Has routers that stay forget what they learned of the interfaces of those that are gone: one that
/// has their addresses now may have another hardware address.
fn forget_neighbours(dir: &NetnsDir, state: &LabState, change: &Swap) -> Result<(), LabError> {
    for router in &state.routers {
        let meets = |segment: Option<usize>| segment.is_some_and(|s| change.segments.contains(&s));
        let met: Vec<&IfName> = router
            .interfaces
            .iter()
            .filter(|interface| meets(interface.segment))
            .map(|interface| &interface.name)
            .collect();
        if met.is_empty() || change.aside.contains(&router.name) {
            continue;
        }
        let id = RouterId::new(state.lab.clone(), router.name.clone());
        let netns = id.netns();
        step("forget neighbours of", dir, &netns)?;
        forget_learned(&dir.open(&netns)?, &met, &change.macs)?;
    }
    Ok(())
}

fn forget_learned(router: &NetnsFd, interfaces: &[&IfName], macs: &[Mac]) -> Result<(), LabError> {
    let mut netlink = Netlink::open(router).map_err(NetlinkErrors::from)?;
    let mut stale = Vec::new();
    for family in [Family::V4, Family::V6] {
        let known = netlink.neighbours(family).map_err(NetlinkErrors::from)?;
        stale.extend(known.into_iter().filter(|neighbour| {
            let learned = neighbour.state & NOT_LEARNED == 0;
            let gone = neighbour.mac.is_none_or(|mac| macs.contains(&mac));
            learned && gone && interfaces.contains(&&neighbour.dev)
        }));
    }
    let mut batch = netlink.batch(router.name().to_string());
    for neighbour in &stale {
        batch.delete_neighbour(&neighbour.dev, neighbour.address);
    }
    Ok(batch.send()?)
}

fn step(call: &'static str, dir: &NetnsDir, netns: &NetnsName) -> Result<(), LabError> {
    fault::step("lab.swap").map_err(|source| LabError::File {
        call,
        path: dir.path(netns),
        source,
    })
}

/// The part of `topology` that is made anew, and the part of `state` that describes it.
pub(super) fn part_of(
    topology: &Topology,
    state: &LabState,
    kept: &BTreeSet<RouterName>,
) -> (Topology, LabState) {
    let made = topology.routers.iter().filter(|r| !kept.contains(&r.name));
    let planned = state.routers.iter().filter(|r| !kept.contains(&r.name));
    let topology = Topology {
        routers: made.cloned().collect(),
        ..Topology::default()
    };
    let state = LabState {
        routers: planned.cloned().collect(),
        warnings: Vec::new(),
        ..state.clone()
    };
    (topology, state)
}
