//! Ways of one service that reach its destination on segments which are not joined.
//!
//! Networks that are numbered alike stand behind several routers: those of libvirt and Docker, sites that
//! were never joined. An address is then on the link of each of these routers, and its host is behind one
//! of them at most.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    lab::LabState,
    model::{IfName, RouterName},
};

/// Where a router delivers a packet on a link of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReachedLink<'a> {
    /// The router.
    pub router: &'a RouterName,
    /// The interface of the link.
    pub interface: &'a IfName,
    /// To whom.
    pub destination: IpAddr,
}

/// What to say where `links` to one address are on several segments; none where there is one segment
/// for each address.
pub(crate) fn unjoined(lab: &LabState, links: &[ReachedLink<'_>]) -> Option<String> {
    let (first, others) = links.split_first()?;
    if others.iter().all(|other| other == first) {
        return None;
    }
    let mut found: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
    for reached in links {
        let Some(segment) = segment(lab, reached) else {
            continue;
        };
        found
            .entry(reached.destination)
            .or_default()
            .insert(segment);
    }
    let (destination, segments) = found.into_iter().find(|(_, names)| names.len() > 1)?;
    let segments: Vec<&str> = segments.into_iter().collect();
    Some(format!(
        "{destination} may be on the segment {}, which are not joined; say with --from by which router its \
         packets go, or in links.toml what is joined",
        segments.join(" or on ")
    ))
}

/// The name of the segment behind an interface; none where there is no segment, as behind loopback.
fn segment<'a>(lab: &'a LabState, reached: &ReachedLink<'_>) -> Option<&'a str> {
    let router = lab.routers.iter().find(|r| r.name == *reached.router)?;
    let mut interfaces = router.interfaces.iter();
    let interface = interfaces.find(|i| i.name == *reached.interface)?;
    Some(&lab.segments.get(interface.segment?)?.name)
}
