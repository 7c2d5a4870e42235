//! Devices that modules of tunnels put into every namespace (`gre0`, `tunl0`, `sit0` …), with the first
//! numbers that there are, down and without an address. They cannot be removed (`ip_tunnel_dellink()`),
//! and facts of a router have them, too: as what they are there, or as tunnels that are used.

use crate::{
    model::IfName,
    netlink::{KernelLink, LinkChange, Netlink, NetlinkErrors},
};

/// Of ip_gre, ipip, sit, ip_vti, ip6_tunnel, ip6_gre and ip6_vti.
const NAMES: [&str; 9] = [
    "gre0", "gretap0", "erspan0", "tunl0", "sit0", "ip_vti0", "ip6tnl0", "ip6gre0", "ip6_vti0",
];

/// What those are, in the same order.
const KINDS: [&str; 9] = [
    "gre", "gretap", "erspan", "ipip", "sit", "vti", "ip6tnl", "ip6gre", "vti6",
];

/// What such a device is called in a namespace where facts have its name.
const OTHER_NAME: &str = "own-";

/// Whether a link is such a device, and nobody uses it. Those of facts are called so, too, and are no
/// tunnels in a lab.
pub(super) fn is_unused(link: &KernelLink) -> bool {
    let name = link.name.as_str();
    let own = NAMES.contains(&name.strip_prefix(OTHER_NAME).unwrap_or(name));
    let kind = link.kind.as_deref().unwrap_or_default();
    own && !link.up && KINDS.contains(&kind)
}

/// Whether a module may have taken the name.
pub(super) fn is_taken_by_some(name: &IfName) -> bool {
    NAMES.contains(&name.as_str())
}

/// Gives the devices of a namespace that are called as one of `wanted` other names. Returns all that it
/// has but `lo`.
pub(super) fn make_way(
    netlink: &mut Netlink,
    wanted: &[&IfName],
) -> Result<Vec<KernelLink>, NetlinkErrors> {
    let mut links = netlink.links()?;
    links.retain(|link| link.name.as_str() != "lo");
    let mut batch = netlink.batch("what modules of tunnels made");
    for link in links.iter_mut().filter(|link| wanted.contains(&&link.name)) {
        // At most 15 bytes, as none of the names is longer than nine.
        let Ok(name) = IfName::new(format!("{OTHER_NAME}{}", link.name)) else {
            continue;
        };
        let change = LinkChange {
            name: Some(name.clone()),
            ..LinkChange::default()
        };
        batch.set_link(&link.name, &change);
        link.name = name;
    }
    batch.send()?;
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_puts_into_every_namespace_is_known_by_name_and_kind() {
        let link = |name: &str, kind: &str, up| KernelLink {
            index: 2,
            name: name.parse().unwrap(),
            kind: Some(kind.to_owned()),
            mac: None,
            mtu: 1476,
            up,
            carrier: false,
            running: false,
            master: None,
            peer: None,
            peer_netns: None,
            port: None,
            forwarding: None,
            alias: None,
        };
        for (name, kind) in NAMES.into_iter().zip(KINDS) {
            assert!(is_unused(&link(name, kind, false)), "{name}");
        }
        assert!(is_unused(&link("own-gre0", "gre", false)));
        // Somebody uses it; the facts have it; somebody made it.
        for (name, kind, up) in [
            ("gre0", "gre", true),
            ("gre0", "veth", false),
            ("gre0", "dummy", false),
            ("gre1", "gre", false),
        ] {
            assert!(!is_unused(&link(name, kind, up)), "{name} {kind} {up}");
        }
    }
}
