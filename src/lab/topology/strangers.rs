//! Machines that have a router's address and are not that router.
//!
//! Networks are numbered alike at several sites, and then it is only their subnet that puts two interfaces
//! on one segment. That a router has learned another hardware address for the other's address, which no
//! interface of the lab has, shows that another machine stands there: what it is sent does not come to the
//! router of the lab. Where several routers have one address, and not all of them on that segment, it is not
//! known whose it is there, unless the hardware address was learned.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Router, Warning, end::LinkEnd};
use crate::{
    lab::omission::{Omission, OmissionKind, PacketSet},
    model::RouterName,
    netlink::object::{Mac, NextHop},
};

/// The first octets of hardware addresses that routers share or take over: VRRP and CARP (RFC 9568 section 7.3),
/// HSRP and GLBP.
const VIRTUAL: [&[u8]; 4] = [
    &[0x00, 0x00, 0x5e, 0x00],
    &[0x00, 0x00, 0x0c, 0x07, 0xac],
    &[0x00, 0x00, 0x0c, 0x9f],
    &[0x00, 0x07, 0xb4],
];

/// Doubts what goes over an interface by which somebody else was heard with the address of a router that the
/// lab has on its segment (`groups`), where nothing else told that they are joined (`told`).
pub(super) fn doubts(ends: &[LinkEnd], groups: &[Vec<usize>], told: &[usize]) -> Vec<Warning> {
    let mut known: BTreeSet<Mac> = BTreeSet::new();
    let mut silent: BTreeSet<&RouterName> = BTreeSet::new();
    for end in ends {
        match end.facts.mac {
            Some(mac) => _ = known.insert(mac),
            None => _ = silent.insert(&end.router),
        }
    }
    let mut warnings = Vec::new();
    for group in groups.iter().filter(|group| group.len() > 1) {
        let owners = owners(ends, group);
        for (at, end) in group.iter().filter_map(|at| Some((*at, ends.get(*at)?))) {
            // What was said by hand is heeded as the neighbour entry that it is.
            let link = &end.facts.link;
            let learned = link
                .neighbours
                .iter()
                .filter(|heard| !link.fixed.contains(heard));
            let stranger = learned.into_iter().find_map(|(address, mac)| {
                let [owner] = owners.get(address)?.as_slice() else {
                    return None;
                };
                let other = ends.get(*owner)?;
                let apart = told.get(at) != told.get(*owner) && other.router != end.router;
                let is_virtual = VIRTUAL.iter().any(|start| mac.0.starts_with(start));
                let seen = !known.contains(mac) && !is_virtual && !silent.contains(&other.router);
                (apart && seen).then_some((other, *address, *mac))
            });
            warnings.extend(stranger.map(|found| warning(end, found)));
        }
    }
    warnings
}

/// Doubts what a router sends by next hops that a router on its segment has and another one elsewhere: twins of
/// which one waits, or two sites that are numbered alike.
pub(super) fn twins(
    (ends, routers): (&[LinkEnd], &[Router]),
    groups: &[Vec<usize>],
    told: &[usize],
) -> Vec<Warning> {
    let everywhere: Vec<usize> = (0..ends.len()).collect();
    let everywhere = owners(ends, &everywhere);
    let mut warnings = Vec::new();
    for group in groups.iter().filter(|group| group.len() > 1) {
        let here = owners(ends, group);
        let ends_here = group.iter().filter_map(|at| Some((*at, ends.get(*at)?)));
        for (at, end) in ends_here {
            let doubt = |(address, owners): (&IpAddr, &Vec<usize>)| {
                let [owner] = owners.as_slice() else {
                    return None;
                };
                let one = ends.get(*owner).filter(|one| one.router != end.router)?;
                let mut all = everywhere
                    .get(address)?
                    .iter()
                    .filter_map(|at| ends.get(*at));
                let other =
                    all.find(|other| other.router != one.router && other.router != end.router)?;
                let heard =
                    |(of, mac): &(IpAddr, Mac)| of == address && Some(*mac) == one.facts.mac;
                let known =
                    told.get(at) == told.get(*owner) || end.facts.link.neighbours.iter().any(heard);
                let packets = sent_to(*address, end, routers.get(end.at.0)?);
                (!known && !packets.is_empty())
                    .then(|| twin_warning((one, other), end, *address, packets))
            };
            warnings.extend(here.iter().filter_map(doubt));
        }
    }
    warnings
}

/// What a router's routes send to `address` by the interface of `end`.
fn sent_to(address: IpAddr, end: &LinkEnd, router: &Router) -> Vec<PacketSet> {
    let by = |hop: &NextHop| {
        hop.via == Some(address) && hop.dev.as_ref().is_none_or(|dev| *dev == end.facts.name)
    };
    let routes = router
        .routes
        .iter()
        .filter(|route| route.next_hops.iter().any(by));
    routes
        .map(|route| PacketSet::to(route.destination))
        .collect()
}

fn twin_warning(
    (one, other): (&LinkEnd, &LinkEnd),
    end: &LinkEnd,
    address: IpAddr,
    packets: Vec<PacketSet>,
) -> Warning {
    let message = format!(
        "next hop {address} of {} is on {} and on {}: which of them is on its link is not known (say it in \
         links.toml)",
        end.label(),
        one.label(),
        other.label()
    );
    let omission = Omission::of_packets(OmissionKind::Interface, packets);
    end.omission(message, omission)
}

/// The ends of a segment that have each address.
fn owners(ends: &[LinkEnd], group: &[usize]) -> BTreeMap<IpAddr, Vec<usize>> {
    let mut owners: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
    for at in group {
        for address in ends.get(*at).into_iter().flat_map(LinkEnd::addresses) {
            owners.entry(address.local.addr()).or_default().push(*at);
        }
    }
    owners
}

fn warning(end: &LinkEnd, (other, address, mac): (&LinkEnd, IpAddr, Mac)) -> Warning {
    let message = format!(
        "{} has heard {address} from {mac}, and {} has another hardware address: they are perhaps not on one \
         link (say in links.toml which are)",
        end.label(),
        other.label()
    );
    let packets = [PacketSet::by(end.facts.name.clone())];
    let omission = Omission::of_packets(OmissionKind::Interface, packets);
    end.omission(message, omission)
}
