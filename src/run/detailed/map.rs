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

    /// The networks in `subnet` for which `router` answers on its `interface` there, beside the addresses that this
    /// has, each with the router's address; none for those inside of which it does not answer.
    pub(super) fn answered(
        &self,
        router: &RouterName,
        interface: &InterfaceState,
        subnet: IpNet,
    ) -> Vec<(IpNet, Option<IpAddr>)> {
        let mut own = interface.addresses.iter().map(|a| a.local.addr());
        let Some(via) = own.find(|address| subnet.contains(address)) else {
            return Vec::new();
        };
        let link = &interface.link;
        let proxied = link.proxy.inside(subnet);
        let proxied = proxied.map(|(net, answers)| (net, answers.then_some(via)));
        // ARP is answered for whatever is the router's own, neighbour discovery only where it is.
        let answers_elsewhere = subnet.addr().is_ipv4() && !link.arp.is_strict();
        let others = self.interfaces(router).iter();
        let others = others.filter(|other| answers_elsewhere && other.name != interface.name);
        let elsewhere = others.flat_map(|other| {
            let addresses = other.addresses.iter().map(|a| a.local.addr().into());
            addresses.chain(other.link.own.iter().copied())
        });
        let by_route = link.own.iter().copied().filter(|_| answers_elsewhere);
        let own = elsewhere.chain(by_route).filter(|net| subnet.contains(net));
        let own = own.filter(|net| {
            !interface
                .addresses
                .iter()
                .any(|a| IpNet::from(a.local.addr()) == *net)
        });
        proxied.chain(own.map(|net| (net, Some(via)))).collect()
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
