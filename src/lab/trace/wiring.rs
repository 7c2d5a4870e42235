//! Which router interface is plugged into which segment: what a trace must know beside the
//! routers' own tables.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    lab::{
        LabState,
        topology::{Segment, Topology},
    },
    model::{IfName, RouterName},
    netlink::object::Address,
};

/// A router interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    /// The router.
    pub router: RouterName,
    /// The interface.
    pub interface: IfName,
    /// Administratively up.
    pub up: bool,
    /// The segment, an index into [`Wiring::segments`]; none for loopback.
    pub segment: Option<usize>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// The far ends of its point-to-point addresses, with their prefix lengths.
    pub peers: Vec<IpNet>,
}

impl Plug {
    fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.addr() == address)
    }

    /// The length of the longest prefix on this interface that holds `address`.
    fn prefix(&self, address: IpAddr) -> Option<u8> {
        let nets = self.addresses.iter().chain(&self.peers);
        nets.filter(|net| net.contains(&address))
            .map(IpNet::prefix_len)
            .max()
    }
}

/// All router interfaces of a lab.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wiring {
    /// The interfaces, those of one router together, routers by name.
    pub plugs: Vec<Plug>,
    /// The segments' names.
    pub segments: Vec<String>,
}

impl From<&Topology> for Wiring {
    fn from(topology: &Topology) -> Self {
        let plugs = topology.routers.iter().flat_map(|router| {
            let interfaces = router.interfaces.iter();
            interfaces.map(|i| plug(&router.name, &i.name, i.up, i.segment, &i.addresses))
        });
        Self {
            plugs: plugs.collect(),
            segments: names(&topology.segments),
        }
    }
}

impl From<&LabState> for Wiring {
    fn from(lab: &LabState) -> Self {
        let plugs = lab.routers.iter().flat_map(|router| {
            let interfaces = router.interfaces.iter();
            interfaces.map(|i| plug(&router.name, &i.name, i.up, i.segment, &i.addresses))
        });
        Self {
            plugs: plugs.collect(),
            segments: names(&lab.segments),
        }
    }
}

fn plug(
    router: &RouterName,
    interface: &IfName,
    up: bool,
    segment: Option<usize>,
    addresses: &[Address],
) -> Plug {
    Plug {
        router: router.clone(),
        interface: interface.clone(),
        up,
        segment,
        addresses: addresses.iter().map(|a| a.local).collect(),
        peers: addresses.iter().filter_map(|a| a.peer).collect(),
    }
}

fn names(segments: &[Segment]) -> Vec<String> {
    segments.iter().map(|s| s.name.clone()).collect()
}

impl Wiring {
    /// The routers, each once.
    #[must_use]
    pub fn routers(&self) -> Vec<&RouterName> {
        let mut routers: Vec<&RouterName> = self.plugs.iter().map(|plug| &plug.router).collect();
        routers.dedup();
        routers
    }

    /// The interface `interface` of `router`.
    pub(super) fn plug(&self, router: &RouterName, interface: &IfName) -> Option<&Plug> {
        let is_it = |plug: &&Plug| plug.router == *router && plug.interface == *interface;
        self.plugs.iter().find(is_it)
    }

    /// The routers that have `address` themselves.
    pub(super) fn owners(&self, address: IpAddr) -> Vec<&RouterName> {
        let own = self.plugs.iter().filter(|plug| plug.has(address));
        let mut routers: Vec<&RouterName> = own.map(|plug| &plug.router).collect();
        routers.dedup();
        routers
    }

    /// The interfaces that are up and in a subnet with `address`, as narrow a one as there is.
    pub(super) fn neighbours(&self, address: IpAddr) -> Vec<&Plug> {
        let near = |plug: &&Plug| plug.up && plug.segment.is_some();
        let plugs: Vec<(&Plug, u8)> = self
            .plugs
            .iter()
            .filter(near)
            .filter_map(|plug| Some((plug, plug.prefix(address)?)))
            .collect();
        let longest = plugs.iter().map(|(_, length)| *length).max();
        plugs
            .into_iter()
            .filter(|(_, length)| Some(*length) == longest)
            .map(|(plug, _)| plug)
            .collect()
    }

    /// The interfaces on the segment of `from` by which `address` is reached, other than `from`:
    /// those that have it, or else those of routers that have it elsewhere, since a router answers
    /// on any interface for any address that it has.
    pub(super) fn reached(&self, from: &Plug, address: IpAddr) -> Vec<&Plug> {
        let on_segment = |plug: &&Plug| plug.segment == from.segment && plug.router != from.router;
        let others = || self.plugs.iter().filter(on_segment);
        let direct: Vec<&Plug> = others().filter(|plug| plug.has(address)).collect();
        if !direct.is_empty() {
            return direct;
        }
        let owners = self.owners(address);
        others()
            .filter(|plug| owners.contains(&&plug.router))
            .collect()
    }

    /// The name of the segment of `plug`.
    pub(super) fn segment(&self, plug: &Plug) -> Option<&str> {
        Some(self.segments.get(plug.segment?)?.as_str())
    }
}
