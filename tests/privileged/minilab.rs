//! A small lab, put together by hand as a lab from facts is: routers, and a namespace of bridges.

use std::net::IpAddr;

use tsim::{
    lab::topology::{Interface, InterfaceKind, LinkFacts, Router, Segment, Topology},
    model::{IfName, NetnsName, RouterName},
    netlink::{
        BridgeOptions, KernelLink, LinkChange, Netlink, NewVeth, VethEnd,
        object::{Address, Mac, Route, RouteKind},
        sysctl,
    },
    netns::NetnsFd,
};

use crate::support::{Bed, await_links, ifname};

pub(crate) struct MiniLab {
    pub(crate) bed: Bed,
    pub(crate) topology: Topology,
    segments: NetnsFd,
}

impl MiniLab {
    /// A lab with `count` segments, called 0, 1 and so on, and no routers.
    pub(crate) fn new(count: usize) -> Self {
        let bed = Bed::new();
        let segments = bed.dir.create(&NetnsName::segments(&bed.lab)).unwrap();
        let mut netlink = Netlink::open(&segments).unwrap();
        let mut batch = netlink.batch("segments");
        let mut topology = Topology::default();
        for number in 0..count {
            let options = BridgeOptions {
                up: true,
                ..BridgeOptions::default()
            };
            batch.add_bridge(&bridge(number), &options);
            topology.segments.push(Segment {
                name: number.to_string(),
                members: Vec::new(),
                absent: Vec::new(),
                gateways: Vec::new(),
            });
        }
        batch.send().unwrap();
        Self {
            bed,
            topology,
            segments,
        }
    }

    pub(crate) fn router_name(name: &str) -> RouterName {
        RouterName::new(name).unwrap()
    }

    /// Adds a forwarding router. `interfaces` are (segment, addresses); they are called eth0, eth1
    /// and so on.
    pub(crate) fn router(&mut self, name: &str, interfaces: &[(usize, &[&str])]) -> NetnsFd {
        let netns = self.bed.netns(name);
        sysctl::write(
            &netns,
            &[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
            ],
        )
        .unwrap();
        let number = u8::try_from(self.topology.routers.len()).unwrap();
        let mut made = Vec::new();
        for (at, (segment, addresses)) in interfaces.iter().enumerate() {
            let interface = Interface {
                name: ifname(&format!("eth{at}")),
                line: 0,
                kind: InterfaceKind::Ethernet,
                mac: Some(Mac([2, 0xff, 0, 0, number, u8::try_from(at).unwrap()])),
                mtu: Some(1500),
                group: 0,
                up: true,
                addresses: addresses
                    .iter()
                    .map(|a| Address::new(a.parse().unwrap()))
                    .collect(),
                link: LinkFacts::default(),
                segment: Some(*segment),
            };
            self.plug_in(&netns, &interface, &format!("{name}{at}"));
            let member = (Self::router_name(name), interface.name.clone());
            self.topology.segments[*segment].members.push(member);
            made.push(interface);
        }
        self.topology.routers.push(Router {
            name: Self::router_name(name),
            file: String::new(),
            interfaces: made,
            routes: Vec::new(),
            rules: Vec::new(),
            rulesets: Vec::new(),
            sysctls: Vec::new(),
        });
        netns
    }

    fn plug_in(&self, netns: &NetnsFd, interface: &Interface, port: &str) {
        let mut segments = Netlink::open(&self.segments).unwrap();
        let mut batch = segments.batch("segments");
        batch.add_veth(&NewVeth {
            near: VethEnd::new(ifname(port)),
            near_up: true,
            master: interface.segment.map(bridge),
            far: VethEnd {
                netns: Some(netns),
                mac: interface.mac,
                ..VethEnd::new(interface.name.clone())
            },
        });
        batch.send().unwrap();
        let mut netlink = Netlink::open(netns).unwrap();
        let mut batch = netlink.batch(port);
        batch
            .set_link(&ifname("lo"), &LinkChange::up())
            .set_link(&interface.name, &LinkChange::up());
        for address in &interface.addresses {
            batch.add_address(&interface.name, address);
        }
        batch.send().unwrap();
        segments.await_forwarding(&[&ifname(port)]).unwrap();
        netlink.await_settled().unwrap();
    }

    /// Waits until the namespace of the bridges has the links `want`.
    pub(crate) fn await_links(&self, want: &[KernelLink]) {
        let want: Vec<IfName> = want.iter().map(|link| link.name.clone()).collect();
        await_links(&self.segments, &want);
    }

    /// A socket in the namespace of the bridges.
    pub(crate) fn segments(&self) -> Netlink {
        Netlink::open(&self.segments).unwrap()
    }
}

fn bridge(number: usize) -> IfName {
    ifname(&format!("br{number}"))
}

/// Adds the route `to` via `gateway` on `dev` in `netns`.
pub(crate) fn route(netns: &NetnsFd, to: &str, gateway: &str, dev: &str) {
    let route = Route::via(to.parse().unwrap(), ip(gateway), ifname(dev));
    add(netns, &route);
}

/// Adds a route that leads nowhere.
pub(crate) fn dead_end(netns: &NetnsFd, to: &str, kind: RouteKind) {
    add(netns, &Route::without_hops(to.parse().unwrap(), kind));
}

fn add(netns: &NetnsFd, route: &Route) {
    let mut netlink = Netlink::open(netns).unwrap();
    let mut batch = netlink.batch("router");
    batch.add_route(route);
    batch.send().unwrap();
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
