//! What the routers of a lab were like when they were made, and what of that is another now.
//!
//! ```text
//! <labs_dir>/<lab>/made.json   by the identities of namespaces, <dev>.<ino>
//! ```
//!
//! Addresses, routes and policy rules are kept as ip(8) has them, firewall rules as a sum of what
//! the kernel holds. What packets change (counters, elements of sets) and what the kernel makes
//! after its own time (routes of IPv6's addresses) is left out, as is what tsim's jobs put in.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    LabError, pool,
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
    /// Of its firewall rules; none where they change all the time.
    rules: Option<u64>,
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
        objects.extend(links.iter().map(|link| {
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
            rules: sum_held(netns),
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
            firewall: then.rules != now.rules,
            unknown: false,
        })
    });
    let named = state.routers.iter().map(|router| router.name.clone());
    let drifted = named.zip(drifts.into_iter().map(Option::flatten));
    drifted
        .filter_map(|(name, drift)| Some((name, drift.filter(|d| *d != Drift::default())?)))
        .collect()
}
