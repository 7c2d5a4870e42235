//! What `links.toml` says about segments, and ends of links that nothing joins although the lab
//! has what is behind them.

use std::net::IpAddr;

use super::{Interface, InterfaceKind, Origin, Router, Topology, Warning};
use crate::{
    lab::links::{Links, split},
    model::RouterName,
};

/// Notes absent ends and gateways in the segments, and names the ends that stand alone.
pub(super) fn name_ends(topology: &mut Topology, links: &Links) {
    note_absent(topology, links);
    note_gateways(topology, links);
    let found = alone(topology);
    let ends: Vec<String> = found.iter().map(|end| end.label.clone()).collect();
    for end in found {
        let mut others = ends.iter().filter(|other| **other != end.label);
        let other = others.next().map_or("ROUTER:INTERFACE", String::as_str);
        let line = end.line(other);
        let message = end.message(&line);
        topology.warnings.push(Warning {
            suggestion: Some(line),
            ..Warning::notice(end.origin.clone(), &end.router, message)
        });
    }
}

fn note_absent(topology: &mut Topology, links: &Links) {
    for link in &links.link {
        let ends = || link.ends.iter().filter_map(|end| Some((end, split(end)?)));
        let has = |router: &str| topology.routers.iter().any(|r| r.name.as_str() == router);
        let absent: Vec<String> = ends()
            .filter(|(_, (router, _))| !has(router))
            .map(|(end, _)| end.clone())
            .collect();
        let mut segments = ends().filter_map(|(_, (router, interface))| {
            topology.segments.iter().position(|segment| {
                let mut members = segment.members.iter();
                members.any(|(r, i)| r.as_str() == router && i.as_str() == interface)
            })
        });
        if let Some(segment) = segments.next()
            && let Some(segment) = topology.segments.get_mut(segment)
        {
            segment.absent.extend(absent);
        }
    }
}

fn note_gateways(topology: &mut Topology, links: &Links) {
    for gateway in &links.gateway {
        let router = topology.routers.iter().find(|r| r.name == gateway.router);
        let interfaces = router.into_iter().flat_map(|router| &router.interfaces);
        let inside = interfaces.filter(|interface| {
            let mut nets = interface.addresses.iter().map(|a| a.local.trunc());
            nets.any(|net| net == gateway.segment.trunc())
        });
        let segments: Vec<usize> = inside.filter_map(|interface| interface.segment).collect();
        for segment in segments {
            if let Some(segment) = topology.segments.get_mut(segment)
                && !segment.gateways.contains(&gateway.router)
            {
                segment.gateways.push(gateway.router.clone());
            }
        }
    }
}

/// An interface whose link nothing joins to another router's.
struct Alone {
    router: RouterName,
    origin: Origin,
    /// `router:interface`.
    label: String,
    /// Where a route out of it leads that another router of the lab has on a link of its own.
    leads_to: String,
}

impl Alone {
    /// What `links.toml` would say if `other` were its other end.
    fn line(&self, other: &str) -> String {
        format!("[[link]] ends = [\"{}\", \"{other}\"]", self.label)
    }

    /// What to say; `line` may be right.
    fn message(&self, line: &str) -> String {
        format!(
            "{} stands alone, but {}; if nothing is missing from the facts, say in links.toml what is at \
             its other end: {line}",
            self.label, self.leads_to
        )
    }
}

fn alone(topology: &Topology) -> Vec<Alone> {
    let mut found = Vec::new();
    for router in &topology.routers {
        for interface in &router.interfaces {
            if stands_alone(topology, interface)
                && let Some(leads_to) = leads_into_the_lab(topology, router, interface)
            {
                found.push(Alone {
                    router: router.name.clone(),
                    origin: router.origin(interface.line),
                    label: format!("{}:{}", router.name, interface.name),
                    leads_to,
                });
            }
        }
    }
    found
}

fn stands_alone(topology: &Topology, interface: &Interface) -> bool {
    let segment = interface.segment.and_then(|at| topology.segments.get(at));
    let lone = segment.is_some_and(|s| s.members.len() == 1 && s.absent.is_empty());
    interface.up && lone && interface.link.spoken_for_by().is_none()
}

/// A subnet of another router that a route of `router` leads to out of `interface`, other than by
/// default: by a tunnel, or by a next hop that is nobody's on the link.
fn leads_into_the_lab(
    topology: &Topology,
    router: &Router,
    interface: &Interface,
) -> Option<String> {
    let out = router.routes.iter().filter(|route| {
        let mut hops = route.next_hops.iter();
        let leaves = hops.any(|hop| {
            hop.dev.as_ref() == Some(&interface.name)
                && (hop.via.is_some() || interface.kind == InterfaceKind::Tunnel)
        });
        leaves && route.destination.prefix_len() > 0
    });
    let nets: Vec<_> = out.map(|route| route.destination).collect();
    let own = |address: IpAddr| {
        let mut own = router.interfaces.iter().flat_map(|i| &i.addresses);
        own.any(|own| own.local.contains(&address))
    };
    let others = topology
        .routers
        .iter()
        .filter(|other| other.name != router.name);
    for other in others {
        for there in other.interfaces.iter().filter(|i| i.segment.is_some()) {
            let addresses = there.addresses.iter().map(|a| a.local);
            let mut reached = addresses.filter(|net| {
                !own(net.addr()) && nets.iter().any(|route| route.contains(&net.addr()))
            });
            if let Some(net) = reached.next() {
                return Some(format!(
                    "{} is reached by it, which {}:{} has",
                    net.trunc(),
                    other.name,
                    there.name
                ));
            }
        }
    }
    None
}
