//! What the objects of a lab are called and numbered: decided once, before anything is made.

use std::collections::BTreeSet;

use super::{
    LabError,
    state::{InterfaceState, RouterState},
    topology::{Interface, InterfaceKind, Router, Topology},
    tunnels,
};
use crate::{
    model::{IfName, RouterName},
    netlink::object::Mac,
};

/// Index of `lo` in every namespace.
pub(super) const LOOPBACK: u32 = 1;
/// Index of a router's first interface: above those that [`fallback`](super::fallback) devices take.
const FIRST: u32 = 1 << 10;
/// Index of the first port of a bridge. Far from the routers' own, because the kernel tells the
/// news of a veth's carrier late (up to a second, link_watch.c) when both ends have one index.
const FIRST_PORT: u32 = 1 << 20;
/// What Ethernet has.
const MTU: u32 = 1500;

/// The routers of `topology` as they are to be.
pub(super) fn routers(topology: &Topology) -> Result<Vec<RouterState>, LabError> {
    let mut planner = Planner {
        next_port: 0,
        macs: vec![BTreeSet::new(); topology.segments.len()],
    };
    let interfaces = topology.routers.iter().flat_map(|r| &r.interfaces);
    for interface in interfaces {
        planner.reserve(interface);
    }
    let routers = topology.routers.iter();
    let planned = routers.map(|router| planner.router(router));
    let mut routers = planned.collect::<Result<Vec<_>, _>>()?;
    tunnels::plan(&mut routers);
    Ok(routers)
}

/// The `number`-th port.
pub(super) fn port(number: u32) -> Result<IfName, LabError> {
    IfName::new(format!("p{number}")).map_err(|e| LabError::Format {
        path: "the topology".into(),
        message: e.to_string(),
    })
}

/// Which port `name` is; none for what is no port of a router.
pub(super) fn port_number(name: &IfName) -> Option<u32> {
    name.as_str().strip_prefix('p')?.parse().ok()
}

/// Index of the port `name`, as this module numbered it.
pub(super) fn port_index(name: &IfName) -> Option<u32> {
    FIRST_PORT.checked_add(port_number(name)?)
}

struct Planner {
    next_port: u32,
    /// Hardware addresses of each segment.
    macs: Vec<BTreeSet<Mac>>,
}

impl Planner {
    fn reserve(&mut self, interface: &Interface) {
        if let (Some(mac), Some(segment)) = (interface.mac, interface.segment)
            && let Some(macs) = self.macs.get_mut(segment)
        {
            macs.insert(mac);
        }
    }

    fn router(&mut self, router: &Router) -> Result<RouterState, LabError> {
        let mut index = FIRST;
        let mut interfaces = Vec::with_capacity(router.interfaces.len());
        for interface in &router.interfaces {
            let mut planned = InterfaceState {
                name: interface.name.clone(),
                kind: interface.kind,
                index: LOOPBACK,
                mac: None,
                mtu: None,
                up: interface.up,
                addresses: interface.addresses.clone(),
                noarp: false,
                link: interface.link.clone(),
                segment: interface.segment,
                port: None,
            };
            if interface.kind != InterfaceKind::Loopback {
                planned.index = index;
                planned.mac = Some(self.mac(&router.name, interface));
                planned.mtu = Some(interface.mtu.unwrap_or(MTU));
                planned.port = Some(port(self.next_port)?);
                self.next_port += 1;
                index += 1;
            }
            interfaces.push(planned);
        }
        Ok(RouterState {
            name: router.name.clone(),
            netns: None,
            ruleset_incomplete: false,
            redirecting: Vec::new(),
            translating: Vec::new(),
            rulesets: Vec::new(),
            asks_hardware_addresses: false,
            rewrites_tcp_options: false,
            rewriting: Vec::new(),
            asking_port_sets: Vec::new(),
            unseen: Vec::new(),
            interfaces,
        })
    }

    fn mac(&mut self, router: &RouterName, interface: &Interface) -> Mac {
        if let Some(mac) = interface.mac {
            return mac;
        }
        let taken = interface.segment.and_then(|s| self.macs.get_mut(s));
        let made = |salt| Mac::made_up(&format!("{router}:{}:{salt}", interface.name));
        let Some(taken) = taken else { return made(0) };
        let free = (0..=u8::MAX).map(made).find(|mac| taken.insert(*mac));
        free.unwrap_or_else(|| made(0))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lab::{facts, topology};

    fn planned(lab: &str) -> Vec<RouterState> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("netns-fixtures")
            .join(lab);
        routers(&topology::build(facts::load_dir(&dir).unwrap())).unwrap()
    }

    #[test]
    fn what_the_facts_have_stays_and_the_rest_is_the_same_every_time() {
        let routers = planned("corp10");
        let gw = routers.iter().find(|r| r.name.as_str() == "hq-gw").unwrap();
        let by_name = |name: &str| {
            gw.interfaces
                .iter()
                .find(|i| i.name.as_str() == name)
                .unwrap()
        };
        let (lo, eth0, wg0) = (by_name("lo"), by_name("eth0"), by_name("wg0"));
        assert_eq!((lo.index, lo.mac, lo.port.as_ref()), (1, None, None));
        assert_eq!(eth0.mac.unwrap().to_string(), "52:54:00:12:34:01");
        assert_eq!((wg0.index, wg0.mtu), (FIRST + 2, Some(1420)));
        assert!(wg0.mac.unwrap().is_usable());
        assert_eq!(planned("corp10"), routers);
    }

    #[test]
    fn no_port_and_no_address_of_a_segment_is_given_twice() {
        let routers = planned("corp10");
        let interfaces = || routers.iter().flat_map(|r| &r.interfaces);
        let ports: BTreeSet<_> = interfaces().filter_map(|i| i.port.clone()).collect();
        let wired = interfaces().filter(|i| i.segment.is_some()).count();
        assert_eq!(ports.len(), wired);
        let macs: BTreeSet<_> = interfaces()
            .filter_map(|i| Some((i.segment?, i.mac?)))
            .collect();
        assert_eq!(macs.len(), wired);
        let name = ports.iter().next().unwrap();
        assert!(port_index(name).unwrap() >= FIRST_PORT);
    }
}
