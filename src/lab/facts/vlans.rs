//! Bridges that heed VLANs (`vlan_filtering 1`): their ports are on one link only where frames without
//! a tag belong to one VLAN.
//!
//! Who speaks for such a port on that link is the bridge itself, if it is in that VLAN without a tag; a
//! VLAN interface over the bridge (`br0.10`); or else the first of the ports that are in it. Frames
//! with a tag are those of VLAN interfaces, which have links of their own.

use super::{InterfaceFacts, RouterFacts, section::Section};
use crate::{
    lab::topology::{At, MasterKind, Warning},
    model::IfName,
};

pub(super) const SECTION: &str = "bridge_vlan";

/// `bridge vlan show`: the first line of a port has its name, and those below it, indented, more of
/// its VLANs. Returns the lines that are not understood.
pub(super) fn read<'s>(facts: &mut RouterFacts, section: &Section<'s>) -> Vec<(usize, &'s str)> {
    let (mut port, mut strange) = (None, Vec::new());
    for (at, line) in &section.body {
        let mut words = line.split_ascii_whitespace().peekable();
        if !line.starts_with(char::is_whitespace) {
            port = words.next();
        }
        let (Some(name), Some(first)) = (port, words.next()) else {
            continue;
        };
        // The head of the listing, and a port without VLANs.
        if name == "port" || first == "None" {
            continue;
        }
        let number = first.split_once('-').map_or(first, |(from, _)| from);
        match number.parse::<u16>() {
            Ok(number) if words.any(|word| word == "PVID") => {
                let mut interfaces = facts.interfaces.iter_mut();
                if let Some(port) = interfaces.find(|port| port.name.as_str() == name) {
                    port.value.link.pvid = Some(number);
                }
            }
            Ok(_) => {}
            Err(_) => strange.push((*at, *line)),
        }
    }
    strange
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
    for (interface, speaker) in facts.interfaces.iter_mut().zip(speakers) {
        let link = &mut interface.value.link;
        link.in_vlan = speaker;
        // Behind the `@` of other interfaces stands who is at the other end.
        link.over.take_if(|_| link.kind.as_deref() != Some("vlan"));
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

fn speaker(facts: &RouterFacts, bridge: &InterfaceFacts, port: &InterfaceFacts) -> IfName {
    let Some(pvid) = port.link.pvid else {
        return port.name.clone();
    };
    if bridge.link.pvid == Some(pvid) {
        return bridge.name.clone();
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
    over.or(first)
        .map_or(&port.name, |found| &found.name)
        .clone()
}
