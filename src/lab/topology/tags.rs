//! Tags of VLANs: frames of one VLAN do not come out of another, whatever address is there.
//!
//! Who is in one subnet is on one link, where nothing says otherwise. Two VLAN interfaces with other
//! tags say otherwise, unless a switch between them translates: then somebody was heard, or LLDP or
//! `links.toml` tells. An end without a tag may be behind an access port of any VLAN.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Warning, end::LinkEnd};
use crate::{lab::facts::InterfaceFacts, model::IfName};

/// Tags on each other; the kernel nests no more devices (`MAX_NEST_DEV`).
const MOST: usize = 8;

/// Members of a subnet: ends by index, each with its address.
pub(super) type Members = Vec<(usize, IpNet)>;

/// Splits the members of a subnet by the tags that their frames have, and says so; none where they have
/// the same. Those without a tag are by themselves then: nobody knows in which VLAN they are.
pub(super) fn split(
    ends: &[LinkEnd],
    (subnet, members): (IpNet, &[(usize, IpNet)]),
    warnings: &mut Vec<Warning>,
) -> Option<Vec<Members>> {
    let mut by_tags: BTreeMap<Vec<u32>, Members> = BTreeMap::new();
    for member in members {
        let tags = ends.get(member.0).map(|end| tags(ends, end));
        by_tags
            .entry(tags.unwrap_or_default())
            .or_default()
            .push(*member);
    }
    let tagged: Vec<String> = by_tags
        .keys()
        .filter(|tags| !tags.is_empty())
        .map(|tags| written(tags))
        .collect();
    if tagged.len() < 2 {
        return None;
    }
    for end in members.iter().filter_map(|(end, _)| ends.get(*end)) {
        warnings.push(end.warning(format!(
            "{subnet} is in VLANs {}, and frames of one do not come out of another: {} is joined to ends \
             with its own tag alone; where a switch translates, links.toml can say so",
            tagged.join(" and "),
            end.label()
        )));
    }
    Some(by_tags.into_values().collect())
}

/// Whether frames of one end surely do not come out of the other.
pub(super) fn differ(ends: &[LinkEnd], a: usize, b: usize) -> bool {
    let tags = |end: usize| ends.get(end).map_or(Vec::new(), |end| tags(ends, end));
    let (a, b) = (tags(a), tags(b));
    !a.is_empty() && !b.is_empty() && a != b
}

/// The tags of an end's frames, from the inner to the outer one.
pub(super) fn tags(ends: &[LinkEnd], end: &LinkEnd) -> Vec<u32> {
    let mut tags = Vec::new();
    let mut at = Some(end);
    while let Some((tag, below)) = at
        .and_then(|end| tag(&end.facts))
        .filter(|_| tags.len() < MOST)
    {
        tags.push(tag);
        let mut siblings = ends.iter().filter(|other| other.at.0 == end.at.0);
        at = siblings.find(|other| other.facts.name.as_str() == below);
    }
    tags
}

/// The tag of a VLAN interface, and what is below it: as `ip -d link` has them, or by a name like
/// `eth0.10` where only names are known.
fn tag(facts: &InterfaceFacts) -> Option<(u32, &str)> {
    let link = &facts.link;
    let by_name = facts.name.as_str().rsplit_once('.');
    match link.kind.as_deref() {
        Some("vlan") => {
            let over = link.over.as_ref().map(IfName::as_str);
            Some((
                link.key?,
                over.or(by_name.map(|(over, _)| over)).unwrap_or_default(),
            ))
        }
        None => {
            let (over, tag) = by_name?;
            let tag = tag.parse().ok().filter(|tag| (1..=4094).contains(tag))?;
            Some((tag, over))
        }
        Some(_) => None,
    }
}

/// Tags as people write them, the outer one first.
fn written(tags: &[u32]) -> String {
    let tags: Vec<String> = tags.iter().rev().map(u32::to_string).collect();
    tags.join(".")
}
