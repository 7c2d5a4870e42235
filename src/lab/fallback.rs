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
        let Ok(name) = IfName::new(format!("own-{}", link.name)) else {
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
