//! Interfaces, addresses, routes, policy rules and fixed neighbours, over rtnetlink.

use nix::errno::Errno;

use super::{CopyError, Ends, Wire, outside_address, settings};
use crate::{
    lab::fallback,
    model::IfName,
    netlink::{
        KernelLink, LinkChange, Netlink, NetlinkError, NewVeth, VethEnd,
        object::{Family, Neighbour, PolicyRule, Route},
    },
    netns::NetnsFd,
};

/// The kernel's number of `lo`, which every namespace has.
const LOOPBACK: u32 = 1;
/// Far from any number of a router's interface: a veth whose ends have one number tells late of
/// its carrier (linkwatch).
const FIRST_PORT: u32 = 1 << 20;
/// So many numbers are for the ends of one copy.
const PORTS: u32 = 1 << 16;
/// `RTPROT_KERNEL`, linux/rtnetlink.h.
const KERNEL: u8 = 2;
/// No wire is what cuts a packet; the router's own interface is.
const PORT_MTU: u32 = 65_535;

/// What was made.
pub(super) struct Made {
    pub(super) wires: Vec<Wire>,
    pub(super) differences: Vec<String>,
}

/// Fills `copy` with what `router` has, and `outside` with the far ends of its wires.
pub(super) fn copy(
    router: &NetnsFd,
    copy: &NetnsFd,
    outside: (&NetnsFd, &Ends),
) -> Result<Made, CopyError> {
    let mut original = Netlink::open(router)?;
    let mut links = original.links()?;
    // What modules of tunnels put into every namespace is in the copy, too.
    let names: Vec<&IfName> = links
        .iter()
        .filter(|link| link.kind.as_deref() == Some("veth"))
        .map(|link| &link.name)
        .collect();
    let own = fallback::make_way(&mut Netlink::open(copy)?, &names)?;
    links.retain(|link| !own.iter().any(|own| own.name == link.name));
    // Before any interface: interfaces take over what `default` says.
    let mut differences = settings::copy(router, copy, settings::SettingsPart::Global)?;
    let wires = interfaces(&links, copy, outside)?;
    differences.extend(settings::copy(
        router,
        copy,
        settings::SettingsPart::Interfaces,
    )?);
    let mut made = Netlink::open(copy)?;
    for link in &links {
        made.learn(link.name.clone(), link.index);
    }
    up(&links, &mut made)?;
    addresses(&mut original, &mut made)?;
    for family in [Family::V4, Family::V6] {
        differences.extend(routes(&mut original, &mut made, family)?);
        differences.extend(rules(&mut original, &mut made, family)?);
    }
    fixed_neighbours(&mut original, &mut made)?;
    Ok(Made { wires, differences })
}

/// A veth for each interface but `lo`, with its name, number, hardware address and MTU.
fn interfaces(
    links: &[KernelLink],
    copy: &NetnsFd,
    (outside, ends): (&NetnsFd, &Ends),
) -> Result<Vec<Wire>, CopyError> {
    let mut netlink = Netlink::open(outside)?;
    // The bridges' numbers, by which ports are put into them.
    netlink.links()?;
    let mut batch = netlink.batch("a copy's outside");
    let mut wires = Vec::new();
    // Without it there is no table local, and the kernel takes no gateway.
    if let Some(lo) = links.iter().find(|link| link.index == LOOPBACK) {
        batch.set_link(&lo.name, &LinkChange::up());
    }
    for link in links.iter().filter(|link| link.index != LOOPBACK) {
        let name = match &ends.bridges {
            None => format!("c{}", link.index),
            Some(_) => format!("c{}x{}", ends.number, link.index),
        };
        let master = ends.bridges.as_ref().and_then(|all| all.get(&link.name));
        let port = IfName::new(&name).map_err(|_| CopyError::Name(name))?;
        let first = FIRST_PORT.saturating_add(ends.number.saturating_mul(PORTS));
        let number = first.saturating_add(link.index);
        batch.add_veth(&NewVeth {
            near: VethEnd {
                index: Some(number),
                mtu: Some(PORT_MTU),
                ..VethEnd::new(port.clone())
            },
            near_up: true,
            master: master.cloned(),
            far: VethEnd {
                netns: Some(copy),
                name: link.name.clone(),
                index: Some(link.index),
                mac: link.mac,
                mtu: Some(link.mtu),
            },
        });
        if let (Some(mac), Some(address)) = (link.mac, outside_address()) {
            match master {
                // No frame to a router is ever flooded, as in a lab.
                Some(_) => _ = batch.add_forwarding(&port, mac).tolerate(Errno::EEXIST),
                None if ends.bridges.is_none() => _ = batch.add_address(&port, &address),
                None => {}
            }
            wires.push(Wire {
                interface: link.name.clone(),
                mac,
                #[cfg(feature = "internals")]
                port,
                number,
            });
        }
    }
    batch.send()?;
    Ok(wires)
}

fn up(links: &[KernelLink], made: &mut Netlink) -> Result<(), CopyError> {
    let mut batch = made.batch("a router's copy");
    for link in links.iter().filter(|link| link.up) {
        batch.set_link(&link.name, &LinkChange::up());
    }
    Ok(batch.send()?)
}

/// The addresses, those excepted that the kernel gave to `lo`.
fn addresses(original: &mut Netlink, made: &mut Netlink) -> Result<(), CopyError> {
    let all = original.addresses()?;
    let mut batch = made.batch("a router's copy");
    for (dev, address) in &all {
        batch.add_address(dev, address).tolerate(Errno::EEXIST);
    }
    Ok(batch.send()?)
}

/// Takes away what the kernel made by itself and the router has not, and adds what is missing:
/// first what is on the link, then what is behind it, as often as that helps.
fn routes(
    original: &mut Netlink,
    made: &mut Netlink,
    family: Family,
) -> Result<Vec<String>, NetlinkError> {
    let wanted = original.routes(family, None)?;
    let have = made.routes(family, None)?;
    let mut batch = made.batch("a router's copy");
    for route in have.iter().filter(|route| !wanted.contains(route)) {
        batch.delete_route(route);
    }
    let _ = batch.send_each();
    // The kernel enters the local routes of IPv6 by itself, a little after the addresses.
    let comes = |route: &Route| {
        family == Family::V6 && route.table == Route::LOCAL && route.protocol == Some(KERNEL)
    };
    let lacks = |route: &Route| !have.contains(route) && !comes(route);
    let missing = wanted.into_iter().filter(lacks);
    let (mut pending, behind): (Vec<Route>, Vec<Route>) =
        missing.partition(|route| route.next_hops.iter().all(|hop| hop.via.is_none()));
    pending.extend(behind);
    loop {
        let mut batch = made.batch("a router's copy");
        for route in &pending {
            batch.append_route(route).tolerate(Errno::EEXIST);
        }
        let errors = batch.send_each();
        if errors.is_empty() || errors.len() == pending.len() {
            return Ok(errors.into_iter().map(|(_, e)| e.to_string()).collect());
        }
        let failed = errors
            .iter()
            .filter_map(|(at, _)| pending.get(*at).cloned());
        pending = failed.collect();
    }
}

/// As with routes. Rules of one priority stay in their order, as they are added in it.
fn rules(
    original: &mut Netlink,
    made: &mut Netlink,
    family: Family,
) -> Result<Vec<String>, NetlinkError> {
    let wanted = original.rules(family)?;
    let have = made.rules(family)?;
    let missing: Vec<&PolicyRule> = wanted.iter().filter(|rule| !have.contains(rule)).collect();
    let mut batch = made.batch("a router's copy");
    for rule in missing {
        batch.add_rule(rule);
    }
    for rule in have.iter().filter(|rule| !wanted.contains(rule)) {
        batch.delete_rule(rule);
    }
    let errors = batch.send_each();
    Ok(errors.into_iter().map(|(_, e)| e.to_string()).collect())
}

/// Entries that somebody has set for good; learned ones are not the router's own.
fn fixed_neighbours(original: &mut Netlink, made: &mut Netlink) -> Result<(), CopyError> {
    let mut fixed = Vec::new();
    for family in [Family::V4, Family::V6] {
        let entries = original.neighbours(family)?;
        fixed.extend(entries.into_iter().filter(is_fixed));
    }
    let mut batch = made.batch("a router's copy");
    for entry in &fixed {
        batch.replace_neighbour(entry);
    }
    Ok(batch.send()?)
}

fn is_fixed(entry: &Neighbour) -> bool {
    entry.state & Neighbour::PERMANENT != 0 && entry.mac.is_some()
}
