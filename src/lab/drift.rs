//! What the routers of a lab were like when they were made, and what of that is another now.
//!
//! ```text
//! <labs_dir>/<lab>/made.json   by the identities of namespaces, <dev>.<ino>
//! ```
//!
//! Addresses, routes and policy rules are kept as ip(8) has them, firewall rules as a sum of what
//! the kernel holds. What packets change (counters, elements of sets) and what the kernel makes
//! after its own time (routes of IPv6's addresses) or in every namespace (tunnels' devices, with a
//! module that is loaded) is left out, as is what tsim's jobs put in.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    LabError, LabStatus, fallback, pool,
    state::{LabDir, LabState, LockedLab, RouterState},
};
use crate::{
    firewall::ruletext::sum_held,
    model::{RouterId, RouterName},
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
    /// Of its firewall rules; none where they change all the time. It has to be there: releases before had
    /// another sum, `rules`.
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
    /// Whether nobody knows what was made, since an older release of tsim did.
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
            firewall: sum_held(netns),
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
    /// What it is, a sentence each.
    fn text(&self, router: &RouterName) -> Vec<String> {
        let gone = self.gone.iter().map(|what| format!("{what} is gone"));
        let added = self.added.iter().map(|what| format!("{what} came"));
        let firewall = "its firewall rules are others".to_owned();
        let unknown = "not known, an older tsim made it".to_owned();
        gone.chain(added)
            .chain(self.firewall.then_some(firewall))
            .chain(self.unknown.then_some(unknown))
            .map(|what| format!("drift of {router}: {what}"))
            .collect()
    }
}

/// How the routers of a lab that are there differ from what was made; those alone that do.
pub(super) fn drift(dir: &LabDir, state: &LabState) -> Vec<(RouterName, Drift)> {
    let netns = NetnsDir::default();
    let made: Made = dir.made().ok().flatten().unwrap_or_default();
    let drifts = pool::each(&state.routers, |router| {
        let now = imprint(&netns, state, router).ok()?;
        let Some(then) = made.get(&key(router.netns?)) else {
            return Some(Drift {
                unknown: true,
                ..Drift::default()
            });
        };
        let only = |one: &Imprint, other: &Imprint| {
            let only = one.objects.difference(&other.objects);
            only.cloned().collect()
        };
        Some(Drift {
            gone: only(then, &now),
            added: only(&now, then),
            firewall: then.firewall != now.firewall,
            unknown: false,
        })
    });
    let named = state.routers.iter().map(|router| router.name.clone());
    let drifted = named.zip(drifts.into_iter().map(Option::flatten));
    drifted
        .filter_map(|(name, drift)| Some((name, drift.filter(|d| *d != Drift::default())?)))
        .collect()
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
