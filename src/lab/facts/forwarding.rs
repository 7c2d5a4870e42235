//! What bridges and VXLANs have learned: `bridge fdb show`.
//!
//! `02:00:00:00:00:03 dev eth0 vlan 10 master br0` is who was heard behind a port, and `dst` stands behind
//! whom a VXLAN sends elsewhere. What is `permanent` is an address of the port itself, unless it has a
//! `dst`, where people write it; groups, and what network cards filter by (`self`), are nobody.

use super::{RouterFacts, ip_json, section::Section, words::Words};
use crate::{lab::topology::Behind, netlink::object::Mac};

pub(super) const SECTION: &str = "bridge_fdb";

/// Notes who is behind which port. Returns the lines that are not understood.
pub(super) fn read<'s>(facts: &mut RouterFacts, section: &Section<'s>) -> Vec<(usize, &'s str)> {
    let body = &section.body;
    if ip_json::is_json(body) {
        let lines = ip_json::read(body, ip_json::forwarding).unwrap_or_default();
        let known = lines.iter().all(|(_, line)| note(facts, line));
        let whole = body.first().filter(|_| !known || lines.is_empty());
        return whole.copied().into_iter().collect();
    }
    let strange = body.iter().filter(|(_, line)| !note(facts, line));
    strange.copied().collect()
}

/// Notes what a line says; whether it is understood.
fn note(facts: &mut RouterFacts, line: &str) -> bool {
    let mut words = Words::new(line);
    let Some(first) = words.next() else {
        return true;
    };
    let (mut dev, mut vlan) = (None, None);
    let (mut in_bridge, mut far, mut own) = (false, false, false);
    while let Some(word) = words.next() {
        match word {
            "dev" => dev = words.next(),
            "vlan" => vlan = words.next().and_then(|word| word.parse::<u16>().ok()),
            "master" => in_bridge = words.next().is_some(),
            "dst" => far = words.next().is_some(),
            "permanent" => own = true,
            _ => {}
        }
    }
    let (Ok(mac), Some(dev)) = (first.parse::<Mac>(), dev) else {
        return false;
    };
    let learned = mac.is_usable() && (far || in_bridge && !own);
    let mut interfaces = facts.interfaces.iter_mut();
    if let Some(port) = interfaces.find(|of| of.name.as_str() == dev)
        && learned
    {
        port.value.link.behind.push(Behind {
            mac,
            vlan,
            speaker: None,
        });
    }
    true
}
