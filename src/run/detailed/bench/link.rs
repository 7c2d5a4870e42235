//! What the host that stands for the destination knows of its own link.
//!
//! A host sends everything to its router (`lab::hosts`), also what is for its own subnet. A real
//! one does not ask a gateway for that: what is for a neighbour goes there directly, past the
//! router that it came from. So answers to other routers of the subnet go to them, those to whom one
//! of these answers for in ARP or neighbour discovery go to that one, and those to anybody else in it go
//! nowhere: to the client itself they would come from an address that it did
//! not call (the request was translated, or it would not have passed a router), and of others
//! nobody in the lab has the address.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::{
    model::IfName,
    netlink::{
        Netlink,
        object::{Neighbour, NextHop, Route, RouteKind},
    },
    netns::NetnsFd,
    registry::HostSpec,
    run::detailed::{
        DetailedError, MeasureError,
        site::{HostLink, StretchRound},
    },
};

/// The interface in a host.
const ETH0: &str = "eth0";

/// Tells the host of `site`'s destination, in `netns`, who is on its link.
pub(super) fn teach(
    netns: &NetnsFd,
    site: &StretchRound,
    host: &HostSpec,
) -> Result<(), DetailedError> {
    let Some(link) = &site.link else {
        return Ok(());
    };
    let fail = |source: MeasureError| DetailedError::Router {
        router: host.router.router.clone(),
        source,
    };
    let eth0 = IfName::new(ETH0)?;
    let mut netlink = Netlink::open(netns).map_err(|e| fail(e.into()))?;
    let mut batch = netlink.batch(format!("host {}", host.id));
    // A second measurement, after somebody changed a ruleset, finds the host taught already.
    let nothing = Route::without_hops(link.subnet.trunc(), RouteKind::Blackhole);
    batch.add_route(&nothing).tolerate(Errno::EEXIST);
    for (address, mac) in &link.routers {
        let neighbour = Neighbour::permanent(eth0.clone(), *address, *mac);
        batch.replace_neighbour(&neighbour);
        let route = route_by(IpNet::from(*address), None, eth0.clone());
        batch.add_route(&route).tolerate(Errno::EEXIST);
    }
    for (net, via) in &link.answered {
        let route = match via {
            Some(router) => route_by(*net, Some(*router), eth0.clone()),
            None => Route::without_hops(*net, RouteKind::Blackhole),
        };
        batch.add_route(&route).tolerate(Errno::EEXIST);
    }
    let sent = batch.send();
    sent.map_err(|error| fail(MeasureError::Undo(error)))
}

fn route_by(destination: IpNet, via: Option<IpAddr>, dev: IfName) -> Route {
    let hop = NextHop {
        via,
        dev: Some(dev),
        weight: 1,
        onlink: false,
    };
    Route {
        next_hops: vec![hop],
        ..Route::without_hops(destination, RouteKind::Unicast)
    }
}

impl HostLink {
    /// Whether an answer to `peer` stays on the link and finds nobody there but the source.
    pub(in crate::run::detailed) fn loses(&self, peer: IpAddr) -> bool {
        let answered = self.answered.iter().filter(|(net, _)| net.contains(&peer));
        let narrowest = answered.max_by_key(|(net, _)| net.prefix_len());
        self.subnet.contains(&peer)
            && !self.routers.iter().any(|(address, _)| *address == peer)
            && narrowest.is_none_or(|(_, router)| router.is_none())
    }
}
