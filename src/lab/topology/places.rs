//! VLANs of bridges that others' ends are in: frames of one VLAN do not come out of another, and two of
//! them may be numbered alike.
//!
//! In which VLAN an end is the bridge itself has learned (`bridge fdb`), or what joins the end to a port
//! of the bridge, to a VLAN interface over it, or to the bridge tells. Where nothing does, ends of one
//! subnet are taken to be on one link as ever; but if the bridge has several VLANs without addresses of
//! its own, what passes between two such ends is doubted.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{Warning, end::LinkEnd, tags::Members};
use crate::{
    lab::{
        facts::is_of_guest,
        omission::{Omission, OmissionKind, PacketSet},
    },
    model::IfName,
};

/// A bridge: its router, by index, and its name.
type Bridge = (usize, IfName);

/// In which VLAN of which bridges each end is.
pub(super) struct VlanPlaces(Vec<BTreeMap<Bridge, u16>>);

impl VlanPlaces {
    /// By pairs of ends that are on one link, and what bridges have `learned`: the port, the VLAN, and
    /// the end behind the port.
    pub(super) fn of(
        ends: &[LinkEnd],
        pairs: &[(usize, usize)],
        learned: &[(usize, u16, usize)],
    ) -> Self {
        let own: Vec<Option<(Bridge, u16)>> = ends.iter().map(|end| own(ends, end)).collect();
        let mut places: Vec<BTreeMap<Bridge, u16>> =
            own.iter().cloned().map(BTreeMap::from_iter).collect();
        let mut note = |end: usize, place: Option<(Bridge, u16)>| {
            if let (Some(places), Some((bridge, vlan))) = (places.get_mut(end), place) {
                places.entry(bridge).or_insert(vlan);
            }
        };
        for (port, vlan, end) in learned {
            let bridge = ends.get(*port).and_then(bridge_of);
            note(*end, bridge.map(|bridge| (bridge, *vlan)));
        }
        for (one, other) in pairs {
            note(*other, own.get(*one).cloned().flatten());
            note(*one, own.get(*other).cloned().flatten());
        }
        Self(places)
    }

    fn at(&self, end: usize, bridge: &Bridge) -> Option<u16> {
        self.0.get(end)?.get(bridge).copied()
    }

    /// Whether a bridge has the two in different VLANs.
    pub(super) fn differ(&self, one: usize, other: usize) -> bool {
        let of = self.0.get(one).into_iter().flatten();
        let mut both = of.filter_map(|(bridge, vlan)| Some((*vlan, self.at(other, bridge)?)));
        both.any(|(one, other)| one != other)
    }

    /// Splits the members of a subnet by the VLANs that a bridge has them in, and says so; none where
    /// none has them in several. Those of whom it does not know are by themselves then.
    pub(super) fn split(
        &self,
        ends: &[LinkEnd],
        (subnet, members): (IpNet, &Members),
        warnings: &mut Vec<Warning>,
    ) -> Option<Vec<Members>> {
        let bridges = members.iter().filter_map(|(end, _)| self.0.get(*end));
        let bridges: BTreeSet<&Bridge> = bridges.flat_map(BTreeMap::keys).collect();
        bridges.into_iter().find_map(|bridge| {
            let mut parts: BTreeMap<Option<u16>, Members> = BTreeMap::new();
            for member in members {
                let vlan = self.at(member.0, bridge);
                parts.entry(vlan).or_default().push(*member);
            }
            let vlans: BTreeSet<u16> = parts.keys().flatten().copied().collect();
            if vlans.len() < 2 {
                return None;
            }
            let switch = label(ends, bridge);
            for end in members.iter().filter_map(|(end, _)| ends.get(*end)) {
                warnings.push(end.warning(format!(
                    "{subnet} is in VLANs {} of {switch}, and frames of one do not come out of another: \
                     {} is joined to ends in its own alone",
                    written(&vlans),
                    end.label()
                )));
            }
            Some(parts.into_values().collect())
        })
    }

    /// What to say of the ends of each link that are on it by their subnet alone, while a bridge may have
    /// them in different VLANs. `told` has one that stands for all that an end is joined with otherwise.
    pub(super) fn doubts(
        &self,
        ends: &[LinkEnd],
        told: &[usize],
        groups: &[Vec<usize>],
    ) -> Vec<Warning> {
        let bridges = without_addresses(ends);
        let each = |bridge| groups.iter().map(move |group| (bridge, group));
        let all = bridges.iter().flat_map(each);
        all.flat_map(|(bridge, group)| self.doubts_of(ends, bridge, told, group))
            .collect()
    }

    fn doubts_of(
        &self,
        ends: &[LinkEnd],
        (bridge, vlans): (&Bridge, &BTreeSet<u16>),
        told: &[usize],
        group: &[usize],
    ) -> Vec<Warning> {
        let addressed = |end: &usize| {
            let mut of = ends.get(*end).into_iter().flat_map(LinkEnd::addresses);
            of.next().is_some()
        };
        let members: Vec<usize> = group.iter().copied().filter(addressed).collect();
        let own = |end: &usize| ends.get(*end).is_some_and(|end| end.at.0 == bridge.0);
        if members.iter().any(own) {
            return Vec::new();
        }
        let untold = |one: usize, other: usize| {
            let known = (self.at(one, bridge), self.at(other, bridge));
            told.get(one) != told.get(other) && !matches!(known, (Some(_), Some(_)))
        };
        let doubt = |one: &usize| {
            let mut others = members.iter().filter(|other| untold(*one, **other));
            let (one, other) = (ends.get(*one)?, ends.get(*others.next()?)?);
            let message = format!(
                "{} has ports in VLANs {}, and nothing tells whether {} and {} are behind them: what is \
                 on one link by its subnet may be in two (bridge fdb, LLDP, neighbours or links.toml can \
                 tell)",
                label(ends, bridge),
                written(vlans),
                one.label(),
                other.label()
            );
            let packets = PacketSet::by(one.facts.name.clone());
            let omission = Omission::of_packets(OmissionKind::Feature, [packets]).of_passed();
            Some(Warning {
                omission: Some(omission),
                ..one.warning(message)
            })
        };
        members.iter().filter_map(doubt).collect()
    }
}

/// The VLANs of each bridge that ports are in and no address is, where there are several: nothing tells
/// whose subnets they are.
fn without_addresses(ends: &[LinkEnd]) -> BTreeMap<Bridge, BTreeSet<u16>> {
    let mut vlans: BTreeMap<Bridge, BTreeSet<u16>> = BTreeMap::new();
    let mut numbered: BTreeSet<(Bridge, u16)> = BTreeSet::new();
    for end in ends {
        let Some((bridge, vlan)) = own(ends, end) else {
            continue;
        };
        if end.addresses().next().is_some() {
            numbered.insert((bridge.clone(), vlan));
        }
        if bridge_of(end).is_some() && end.facts.up && !is_of_guest(&end.facts.name) {
            vlans.entry(bridge).or_default().insert(vlan);
        }
    }
    vlans.retain(|bridge, vlans| {
        vlans.retain(|vlan| !numbered.contains(&(bridge.clone(), *vlan)));
        vlans.len() > 1
    });
    vlans
}

/// The bridge that an end is a port of.
fn bridge_of(end: &LinkEnd) -> Option<Bridge> {
    let master = end.facts.link.master.as_ref()?;
    Some((end.at.0, master.name.clone()))
}

/// The VLAN of a bridge that heeds VLANs which an end of its own router is in: the bridge, a VLAN
/// interface over it, a port.
fn own(ends: &[LinkEnd], end: &LinkEnd) -> Option<(Bridge, u16)> {
    let link = &end.facts.link;
    let heeds = |bridge: &IfName| {
        let mut siblings = ends.iter().filter(|other| other.at.0 == end.at.0);
        siblings.any(|other| other.facts.name == *bridge && other.facts.link.heeds_vlans)
    };
    let over = link.over.as_ref().filter(|below| heeds(below));
    let (bridge, vlan) = match (over, bridge_of(end)) {
        _ if link.heeds_vlans => (end.facts.name.clone(), link.pvid?),
        (Some(below), _) if link.kind.as_deref() == Some("vlan") => {
            (below.clone(), u16::try_from(link.key?).ok()?)
        }
        (_, Some((_, bridge))) if heeds(&bridge) => (bridge, link.pvid?),
        _ => return None,
    };
    Some(((end.at.0, bridge), vlan))
}

fn label(ends: &[LinkEnd], bridge: &Bridge) -> String {
    let router = ends.iter().find(|end| end.at.0 == bridge.0);
    let router = router.map_or("", |end| end.router.as_str());
    format!("{router}:{}", bridge.1)
}

fn written(vlans: &BTreeSet<u16>) -> String {
    let vlans: Vec<String> = vlans.iter().map(u16::to_string).collect();
    vlans.join(" and ")
}
