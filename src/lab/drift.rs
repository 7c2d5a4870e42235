//! What the routers of a lab were like when they were made, and what of that is another now.
//!
//! ```text
//! <labs_dir>/<lab>/made.json   by the identities of namespaces, <dev>.<ino>
//! ```
//!
//! Addresses, routes and policy rules are kept as ip(8) has them. Firewall rules are kept as a sum of what
//! the kernel holds, from the first time on that somebody asks ([`rule_sum`]). What packets change
//! (counters, elements of sets) and what the kernel makes after its own time (routes of IPv6's addresses)
//! or in every namespace (tunnels' devices, with a module that is loaded) is left out, as is what tsim's
//! jobs put in.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{
    LabError, LabStatus, fallback, pool, rule_sum,
    state::{LabDir, LabState, LockedLab, RouterState},
    topology::Router,
};
use crate::{
    config::Config,
    firewall::ruletext::sum_held,
    model::{RouterId, RouterName, WithCauses},
    netlink::{
        Netlink, NetlinkErrors,
        object::{Family, Route},
    },
    netns::{NetnsDir, NetnsFd, NetnsId},
};

/// `RTPROT_KERNEL`, linux/rtnetlink.h.
const KERNEL: u8 = 2;

/// What a router has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Imprint {
    /// Interfaces, addresses, routes and policy rules.
    objects: BTreeSet<String>,
    /// Of its firewall rules; none until somebody asked. It has to be there: releases before had another
    /// sum, `rules`.
    #[serde(deserialize_with = "Option::deserialize")]
    firewall: Option<u64>,
}

/// How a router differs from what was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// Interfaces, addresses, routes and policy rules that are not there any more.
    pub gone: Vec<String>,
    /// Those that came since.
    pub added: Vec<String>,
    /// Whether its firewall rules are others.
    pub firewall: bool,
    /// Whether nobody knows what was made: an older release of tsim did, or its rulesets cannot be loaded
    /// once more.
    pub unknown: bool,
}

impl Imprint {
    fn of(netns: &NetnsFd) -> Result<Self, LabError> {
        let mut objects = BTreeSet::new();
        let mut netlink = Netlink::open(netns).map_err(NetlinkErrors::from)?;
        let links = netlink.links().map_err(NetlinkErrors::from)?;
        let made = links.iter().filter(|link| !fallback::is_unused(link));
        objects.extend(made.map(|link| {
            let (state, mtu) = (if link.up { "up" } else { "down" }, link.mtu);
            format!("interface {} {state} mtu {mtu}", link.name)
        }));
        let addresses = netlink.addresses().map_err(NetlinkErrors::from)?;
        objects.extend(addresses.iter().map(|(dev, address)| {
            let peer = address.peer.map(|peer| format!(" peer {peer}"));
            let peer = peer.unwrap_or_default();
            format!("address {}{peer} dev {dev}", address.local)
        }));
        for family in [Family::V4, Family::V6] {
            let routes = netlink.routes(family, None).map_err(NetlinkErrors::from)?;
            let made_by_kernel = |route: &&Route| {
                let of_address = route.table == Route::LOCAL || family == Family::V6;
                of_address && route.protocol == Some(KERNEL)
            };
            let routes = routes.iter().filter(|route| !made_by_kernel(route));
            objects.extend(routes.map(|route| format!("route {route}")));
            let rules = netlink.rules(family).map_err(NetlinkErrors::from)?;
            objects.extend(rules.iter().map(|rule| format!("{family} rule {rule}")));
        }
        Ok(Self {
            objects,
            firewall: None,
        })
    }
}

type Made = BTreeMap<String, Imprint>;

fn key(NetnsId { dev, ino }: NetnsId) -> String {
    format!("{dev:x}.{ino:x}")
}

/// Keeps what the routers `made` of a lab are like, which nobody has used yet.
pub(super) fn keep(
    locked: &LockedLab,
    state: &LabState,
    made: impl Fn(&RouterName) -> bool,
) -> Result<(), LabError> {
    let dir = NetnsDir::default();
    let routers: Vec<_> = state.routers.iter().filter(|r| made(&r.name)).collect();
    let imprints = pool::each(&routers, |router| imprint(&dir, state, router));
    // One that is damaged is none.
    let mut all: Made = locked.made().ok().flatten().unwrap_or_default();
    for (router, imprint) in routers.iter().zip(imprints) {
        let imprint = imprint.ok_or(LabError::Worker)??;
        all.extend(router.netns.map(|id| (key(id), imprint)));
    }
    let ids = state.routers.iter().filter_map(|router| router.netns);
    let now: BTreeSet<String> = ids.map(key).collect();
    all.retain(|id, _| now.contains(id));
    locked.write_made(&all)
}

fn imprint(dir: &NetnsDir, state: &LabState, router: &RouterState) -> Result<Imprint, LabError> {
    let id = RouterId::new(state.lab.clone(), router.name.clone());
    Imprint::of(&dir.open(&id.netns())?)
}

/// What is not as it was when the lab was made, a sentence each, with what to do.
pub(super) fn text(status: &LabStatus) -> Vec<String> {
    let mut said: Vec<String> = status
        .drift
        .iter()
        .flat_map(|(router, drift)| drift.text(router))
        .collect();
    let lab = &status.state.lab;
    let names = |routers: &[&RouterName]| {
        let names: Vec<&str> = routers.iter().map(|name| name.as_str()).collect();
        names.join(" ")
    };
    if !status.drift.is_empty() {
        let all: Vec<&RouterName> = status.drift.keys().collect();
        said.push(format!(
            "`tsim lab reload {lab} {}` makes them anew from their facts",
            names(&all)
        ));
    }
    if let Some(facts) = &status.facts {
        for (routers, what) in [
            (&facts.changed, "facts changed since the lab was made"),
            (
                &facts.rewired,
                "who is at the other ends of its wires changed since the lab was made",
            ),
            (&facts.added, "facts of it came since the lab was made"),
            (&facts.removed, "there are no facts of it any more"),
        ] {
            said.extend(routers.iter().map(|router| format!("{router}: {what}")));
        }
        let changed: Vec<&RouterName> = facts.changed.iter().chain(&facts.rewired).collect();
        let same_routers = facts.added.is_empty() && facts.removed.is_empty();
        said.push(match same_routers {
            true => format!(
                "`tsim lab reload {lab} {}` makes them anew from them",
                names(&changed)
            ),
            false => format!(
                "`tsim lab up {lab} --facts {} --replace` makes anew what changed",
                status.state.facts.display()
            ),
        });
    }
    let problem = status.facts_problem.iter();
    said.extend(
        problem.map(|why| format!("its facts cannot be compared with what it was made of: {why}")),
    );
    said
}

impl Drift {
    /// Whether something is another, as far as that is known.
    pub(super) fn differs(&self) -> bool {
        self.firewall || !self.gone.is_empty() || !self.added.is_empty()
    }

    /// What it is, a sentence each.
    fn text(&self, router: &RouterName) -> Vec<String> {
        let gone = self.gone.iter().map(|what| format!("{what} is gone"));
        let added = self.added.iter().map(|what| format!("{what} came"));
        let firewall = "its firewall rules are others".to_owned();
        let unknown =
            "not known: an older tsim made it, or its rulesets cannot be loaded once more"
                .to_owned();
        gone.chain(added)
            .chain(self.firewall.then_some(firewall))
            .chain(self.unknown.then_some(unknown))
            .map(|what| format!("drift of {router}: {what}"))
            .collect()
    }
}

/// How the routers of a lab that are there differ from what was made; those alone that do.
pub(super) fn drift(config: &Config, dir: &LabDir, state: &LabState) -> Vec<(RouterName, Drift)> {
    let topology = dir.topology().ok().flatten();
    let look = Look {
        tool_dirs: &config.tool_dirs,
        netns: NetnsDir::default(),
        state,
        routers: topology
            .map(|topology| topology.routers)
            .unwrap_or_default(),
        made: dir.made().ok().flatten().unwrap_or_default(),
    };
    let drifts = pool::each(&state.routers, |router| look.at(router));
    let (mut found, mut learnt) = (Vec::new(), BTreeMap::new());
    for (router, drift) in state.routers.iter().zip(drifts) {
        let Some((drift, sum)) = drift.flatten() else {
            continue;
        };
        learnt.extend(router.netns.map(key).zip(sum));
        found.extend((drift != Drift::default()).then(|| (router.name.clone(), drift)));
    }
    if !learnt.is_empty()
        && let Err(error) = remember(dir, &learnt)
    {
        tracing::debug!("sums of firewall rules are made once more next time: {error}");
    }
    found
}

/// Keeps `sums` of firewall rules, by namespace, if nobody is at the lab.
fn remember(dir: &LabDir, sums: &BTreeMap<String, u64>) -> Result<(), LabError> {
    // Whoever takes it down removes its directory, which the lock would make again.
    if dir.existing()?.is_none() {
        return Ok(());
    }
    let Some(locked) = dir.lock_now()? else {
        return Ok(());
    };
    if locked.state()?.is_none() {
        return locked.remove();
    }
    let mut all: Made = locked.made()?.unwrap_or_default();
    for (id, sum) in sums {
        if let Some(imprint) = all.get_mut(id) {
            imprint.firewall = Some(*sum);
        }
    }
    locked.write_made(&all)
}

/// Looks at the routers of a lab.
struct Look<'a> {
    tool_dirs: &'a [PathBuf],
    netns: NetnsDir,
    state: &'a LabState,
    /// What they were made of.
    routers: Vec<Router>,
    made: Made,
}

impl Look<'_> {
    /// How a router differs, and the sum of its firewall rules as they were made where that was not known before;
    /// none if the router is not there.
    fn at(&self, router: &RouterState) -> Option<(Drift, Option<u64>)> {
        let id = RouterId::new(self.state.lab.clone(), router.name.clone());
        let netns = self.netns.open(&id.netns()).ok()?;
        let now = Imprint::of(&netns).ok()?;
        let unknown = true;
        let Some(then) = self.made.get(&key(router.netns?)) else {
            let nothing = Drift::default();
            return Some((Drift { unknown, ..nothing }, None));
        };
        let only = |one: &Imprint, other: &Imprint| {
            let only = one.objects.difference(&other.objects);
            only.cloned().collect()
        };
        let objects = Drift {
            gone: only(then, &now),
            added: only(&now, then),
            ..Drift::default()
        };
        let learnt = match then.firewall {
            Some(_) => None,
            None => match self.sum_as_made(router) {
                Some(sum) => sum,
                None => return Some((Drift { unknown, ..objects }, None)),
            },
        };
        let firewall = then.firewall.or(learnt) != sum_held(&netns);
        Some((
            Drift {
                firewall,
                ..objects
            },
            learnt,
        ))
    }

    /// As [`rule_sum::sum_as_made`]; none where the rulesets cannot be loaded once more.
    fn sum_as_made(&self, made: &RouterState) -> Option<Option<u64>> {
        let router = self.routers.iter().find(|one| one.name == made.name)?;
        match rule_sum::sum_as_made(self.tool_dirs, self.state, (router, made)) {
            Ok(sum) => Some(sum),
            Err(error) => {
                tracing::debug!("rules of router {}: {}", made.name, WithCauses(&error));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_release_kept_is_none() {
        let read = serde_json::from_str::<Made>;
        assert!(read(r#"{"4.5": {"objects": [], "rules": 7}}"#).is_err());
        assert!(read(r#"{"4.5": {"objects": [], "firewall": null}}"#).is_ok());
    }
}
