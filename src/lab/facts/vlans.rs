//! Bridges that heed VLANs (`vlan_filtering 1`): their ports are on one link only where frames without
//! a tag belong to one VLAN.
//!
//! Who speaks for such a port on that link is the bridge itself, if it is in that VLAN without a tag; a
//! VLAN interface over the bridge (`br0.10`); or else the first of the ports that are in it. Frames
//! with a tag are those of VLAN interfaces, which have links of their own.

use super::{InterfaceFacts, RouterFacts, ip_json, section::Section};
use crate::{
    lab::topology::{At, Behind, MasterKind, Warning},
    model::IfName,
};

pub(super) const SECTION: &str = "bridge_vlan";

/// `bridge vlan show`: the first line of a port has its name, and those below it, indented, more of
/// its VLANs. Returns the lines that are not understood.
pub(super) fn read<'s>(facts: &mut RouterFacts, section: &Section<'s>) -> Vec<(usize, &'s str)> {
    let body = &section.body;
    if ip_json::is_json(body) {
        let lines = ip_json::read(body, ip_json::vlans).unwrap_or_default();
        let known = lines.iter().all(|(_, line)| {
            let port = line.split(' ').next().unwrap_or_default();
            note(facts, port, line.split(' ').skip(1))
        });
        let whole = body.first().filter(|_| !known || lines.is_empty());
        return whole.copied().into_iter().collect();
    }
    let (mut port, mut strange) = (None, Vec::new());
    for (at, line) in body {
        let mut words = line.split_ascii_whitespace();
        if !line.starts_with(char::is_whitespace) {
            port = words.next();
        }
        let Some(name) = port else { continue };
        // Not the head of the listing.
        if name != "port" && !note(facts, name, words) {
            strange.push((*at, *line));
        }
    }
    strange
}

/// Notes what the words behind a port's name say of one of its VLANs; whether they are understood.
fn note<'w>(facts: &mut RouterFacts, port: &str, mut words: impl Iterator<Item = &'w str>) -> bool {
    // A port may be in none.
    let Some(first) = words.next().filter(|first| *first != "None") else {
        return true;
    };
    let number = first.split_once('-').map_or(first, |(from, _)| from);
    let Ok(number) = number.parse::<u16>() else {
        return false;
    };
    let mut interfaces = facts.interfaces.iter_mut();
    if words.any(|word| word == "PVID")
        && let Some(port) = interfaces.find(|of| of.name.as_str() == port)
    {
        port.value.link.pvid = Some(number);
    }
    true
}

/// Tells of each port of such a bridge who speaks for it.
pub(super) fn tell_speakers(facts: &mut RouterFacts) {
    let speakers: Vec<Option<IfName>> = facts
        .interfaces
        .iter()
        .map(|port| Some(speaker(facts, bridge_of(facts, port)?, port)))
        .collect();
    let unknown = |interface: &&At<InterfaceFacts>| {
        let bridge = bridge_of(facts, interface);
        interface.link.pvid.is_none() && bridge.is_some()
    };
    let notices: Vec<Warning> = facts
        .interfaces
        .iter()
        .filter(unknown)
        .map(|port| {
            let message = format!(
                "{}: its bridge heeds VLANs, and section `{}` tells none of its frames without a tag; \
                 nothing joins it to other ports",
                port.name,
                SECTION
            );
            Warning::notice(facts.origin(port.line), &facts.name, message)
        })
        .collect();
    facts.warnings.extend(notices);
    let behind: Vec<Vec<Behind>> = facts
        .interfaces
        .iter()
        .map(|port| spoken_for(facts, port))
        .collect();
    for ((interface, speaker), behind) in facts.interfaces.iter_mut().zip(speakers).zip(behind) {
        let link = &mut interface.value.link;
        link.in_vlan = speaker;
        link.behind = behind;
        // Behind the `@` of other interfaces stands who is at the other end.
        let kind = link.kind.as_deref();
        link.over
            .take_if(|_| !matches!(kind, Some("vlan" | "macvlan" | "macvtap" | "ipvlan")));
    }
}

/// The bridge that heeds VLANs and has this port.
fn bridge_of<'f>(facts: &'f RouterFacts, port: &InterfaceFacts) -> Option<&'f InterfaceFacts> {
    let master = port.link.master.as_ref()?;
    let mut bridges = facts.interfaces.iter().map(|interface| &interface.value);
    let heeds = |bridge: &&InterfaceFacts| bridge.name == master.name && bridge.link.heeds_vlans;
    bridges
        .find(heeds)
        .filter(|_| master.kind == MasterKind::Bridge)
}

/// Whom its bridge has learned to be behind a port, with who speaks for the port there.
fn spoken_for(facts: &RouterFacts, port: &InterfaceFacts) -> Vec<Behind> {
    let bridge = bridge_of(facts, port);
    let of = |behind: &Behind| {
        let (vlan, speaker) = match bridge {
            Some(bridge) => {
                let vlan = behind.vlan.or(port.link.pvid);
                (vlan, vlan.and_then(|vlan| speaker_in(facts, bridge, vlan)))
            }
            None => {
                let speaker = port.link.spoken_for_by().unwrap_or(&port.name);
                (None, Some(speaker.clone()))
            }
        };
        Behind {
            mac: behind.mac,
            vlan,
            speaker,
        }
    };
    port.link.behind.iter().map(of).collect()
}

fn speaker(facts: &RouterFacts, bridge: &InterfaceFacts, port: &InterfaceFacts) -> IfName {
    let pvid = port.link.pvid;
    let found = pvid.and_then(|pvid| speaker_in(facts, bridge, pvid));
    found.unwrap_or_else(|| port.name.clone())
}

/// Who speaks for the ports of a bridge whose frames without a tag are of VLAN `pvid`.
fn speaker_in(facts: &RouterFacts, bridge: &InterfaceFacts, pvid: u16) -> Option<IfName> {
    if bridge.link.pvid == Some(pvid) {
        return Some(bridge.name.clone());
    }
    let mut interfaces = facts.interfaces.iter();
    let over = interfaces.find(|interface| {
        let link = &interface.link;
        link.kind.as_deref() == Some("vlan")
            && link.over.as_ref() == Some(&bridge.name)
            && link.key == Some(pvid.into())
    });
    let mut interfaces = facts.interfaces.iter();
    let first = interfaces.find(|other| {
        let master = other.link.master.as_ref();
        let same = master.is_some_and(|master| master.name == bridge.name);
        same && other.link.pvid == Some(pvid)
    });
    over.or(first).map(|found| found.name.clone())
}
