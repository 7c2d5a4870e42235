//! Where everything is in the lab, for those who place hosts and follow packets.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    lab::{InterfaceState, LabState, trace::Wiring},
    model::{IfName, RouterName},
    netlink::object::Mac,
    run::chosen_port::PortRules,
};

/// The lab's wires and addresses.
#[derive(Debug)]
pub(super) struct LabMap<'a> {
    state: &'a LabState,
    pub(super) wiring: Wiring,
}

impl<'a> LabMap<'a> {
    pub(super) fn new(state: &'a LabState) -> Self {
        Self {
            state,
            wiring: Wiring::from(state),
        }
    }

    /// The rules of all routers that choose source ports.
    pub(super) fn choosing_ports(&self) -> PortRules {
        PortRules::of(&self.state.routers)
    }

    /// The rules of a router that ask sets for ports.
    pub(super) fn asking_port_sets(&self, router: &RouterName) -> &'a [String] {
        let found = self.state.routers.iter().find(|r| r.name == *router);
        found.map_or(&[], |router| &router.asking_port_sets)
    }

    /// The interfaces of a router.
    pub(super) fn interfaces(&self, router: &RouterName) -> &'a [InterfaceState] {
        let found = self.state.routers.iter().find(|r| r.name == *router);
        found.map_or(&[], |router| &router.interfaces)
    }

    fn interface(&self, router: &RouterName, name: &IfName) -> Option<&'a InterfaceState> {
        self.interfaces(router).iter().find(|i| i.name == *name)
    }

    /// The segment behind an interface.
    pub(super) fn segment(&self, router: &RouterName, interface: &IfName) -> Option<usize> {
        self.interface(router, interface)?.segment
    }

    /// Whether a router has `address` itself, and so answers for it on any interface.
    pub(super) fn owns(&self, router: &RouterName, address: IpAddr) -> bool {
        let addresses = self.interfaces(router).iter().flat_map(|i| &i.addresses);
        addresses.into_iter().any(|a| a.local.addr() == address)
    }

    /// An interface's hardware address.
    pub(super) fn mac(&self, router: &RouterName, interface: &IfName) -> Option<Mac> {
        self.interface(router, interface)?.mac
    }

    /// Whether the lab itself leads what an interface sends to the other end of a tunnel, as far as
    /// that end's allowed addresses let it; a neighbour entry would lead past those.
    pub(super) fn leads_itself(&self, router: &RouterName, interface: &IfName) -> bool {
        self.interface(router, interface).is_some_and(|i| i.noarp)
    }

    /// The narrowest subnet of an interface that has `address`.
    pub(super) fn subnet(
        &self,
        router: &RouterName,
        interface: &IfName,
        address: IpAddr,
    ) -> Option<IpNet> {
        let addresses = self.interface(router, interface)?.addresses.iter();
        let own = addresses.filter(|a| a.peer.is_none()).map(|a| a.local);
        own.filter(|net| net.contains(&address))
            .max_by_key(IpNet::prefix_len)
    }

    /// The interfaces that are plugged into a segment, with their routers.
    pub(super) fn plugged(
        &self,
        segment: usize,
    ) -> impl Iterator<Item = (&'a RouterName, &'a InterfaceState)> {
        let all = self.state.routers.iter();
        let all = all.flat_map(|router| router.interfaces.iter().map(move |i| (&router.name, i)));
        all.filter(move |(_, interface)| interface.segment == Some(segment))
    }

    /// Whether a subnet of the lab has `address`.
    pub(super) fn is_inside(&self, address: IpAddr) -> bool {
        let interfaces = self.state.routers.iter().flat_map(|r| &r.interfaces);
        let up = interfaces.filter(|i| i.up && i.segment.is_some());
        up.flat_map(|i| &i.addresses)
            .flat_map(|a| std::iter::once(a.local).chain(a.peer))
            .any(|net| net.contains(&address))
    }
}
