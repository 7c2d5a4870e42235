//! The hidden namespace of a lab: one bridge per segment, and a wire to each router interface.

use nix::errno::Errno;

use super::{
    LabError, fallback, kernel_settings, plan,
    state::{LabState, RouterState, bridge_name},
};
use crate::{
    fault,
    model::{IfName, RouterName},
    netlink::{
        BridgeOptions, LinkChange, Netlink, NetlinkErrors, NewVeth, SysctlError, VethEnd,
        object::Mac, sysctl,
    },
    netns::NetnsFd,
};

/// The most that a frame may hold: a segment never is what cuts a packet, a router's own
/// interface is.
const PORT_MTU: u32 = 65_535;

/// Sets up the namespace of the calling thread, called `netns`, before it has any interface.
pub(super) fn settle_here(netns: &str) -> Result<(), LabError> {
    write_known(netns, &kernel_settings::SEGMENTS)?;
    write_known(netns, &kernel_settings::BRIDGE_NETFILTER)
}

/// Writes `values` as far as this kernel has them.
pub(super) fn write_known(netns: &str, values: &[(&str, &str)]) -> Result<(), LabError> {
    let errors = sysctl::write_here(netns, values).err().unwrap_or_default();
    match errors.into_iter().find(|error| !is_missing(error)) {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

fn is_missing(error: &SysctlError) -> bool {
    matches!(error, SysctlError::Write { source, .. }
        if source.kind() == std::io::ErrorKind::NotFound)
}

/// Makes the bridges of `lab` in `segments`, and a veth from each to every interface of its
/// routers, whose namespaces are `routers` in the same order; `aside`, the wires are plugged into none
/// of them. The routers' ends are down.
pub(super) fn make(
    lab: &LabState,
    segments: &NetnsFd,
    routers: &[NetnsFd],
    aside: bool,
) -> Result<(), LabError> {
    let mut netlink = opened(segments, "lab.segments")?;
    for (router, netns) in lab.routers.iter().zip(routers) {
        make_way(router, netns)?;
    }
    bridges(lab, &mut netlink, aside)?;
    let mut batch = netlink.batch(format!("lab {}", lab.lab));
    for (router, netns) in lab.routers.iter().zip(routers) {
        for (mut veth, mac) in wires(router, netns)? {
            if aside {
                veth.master = None;
            }
            batch.add_veth(&veth);
            if !aside {
                // The bridge knows where each router is: no frame to one of them is ever flooded.
                batch.add_forwarding(&veth.near.name, mac);
            }
        }
    }
    Ok(batch.send()?)
}

/// Plugs the wires of the routers that `are_new` into the bridges of `lab`, and pulls out those of
/// routers that it has no more. Once more it changes nothing.
pub(super) fn replug(
    lab: &LabState,
    segments: &NetnsFd,
    are_new: impl Fn(&RouterName) -> bool,
) -> Result<(), LabError> {
    let mut netlink = opened(segments, "lab.replug")?;
    let links = netlink.links().map_err(NetlinkErrors::from)?;
    let interfaces = || lab.routers.iter().flat_map(|router| &router.interfaces);
    let used = |port: &IfName| interfaces().any(|interface| interface.port.as_ref() == Some(port));
    let mut batch = netlink.batch(format!("lab {}", lab.lab));
    // First: two ports of a bridge cannot have one hardware address behind them.
    for link in &links {
        if plan::port_number(&link.name).is_some() && !used(&link.name) {
            let out = LinkChange {
                up: Some(false),
                master: Some(None),
                ..LinkChange::default()
            };
            // It goes with its router's namespace, maybe in this very moment.
            batch.set_link(&link.name, &out).tolerate(Errno::ENODEV);
        }
    }
    for router in lab.routers.iter().filter(|router| are_new(&router.name)) {
        for interface in &router.interfaces {
            let (Some(port), Some(segment), Some(mac)) =
                (&interface.port, interface.segment, interface.mac)
            else {
                continue;
            };
            let into = LinkChange {
                master: Some(Some(bridge(segment)?)),
                ..LinkChange::default()
            };
            batch.set_link(port, &into);
            batch.add_forwarding(port, mac).tolerate(Errno::EEXIST);
        }
    }
    Ok(batch.send()?)
}

/// The ports of routers that there are in `segments`, those included that nobody has any more.
pub(super) fn router_ports(segments: &NetnsFd) -> Result<Vec<IfName>, LabError> {
    let mut netlink = Netlink::open(segments).map_err(NetlinkErrors::from)?;
    let links = netlink.links().map_err(NetlinkErrors::from)?.into_iter();
    let names = links.map(|link| link.name);
    Ok(names
        .filter(|name| plan::port_number(name).is_some())
        .collect())
}

/// Makes the bridges, which take the first numbers that are free: a port has another one than the end in
/// its host, and so tells of its carrier at once. `aside`, those of the lab that there is are there.
fn bridges(lab: &LabState, netlink: &mut Netlink, aside: bool) -> Result<(), LabError> {
    let mut batch = netlink.batch(format!("lab {}", lab.lab));
    for number in 0..lab.segments.len() {
        let options = BridgeOptions {
            up: true,
            ..BridgeOptions::default()
        };
        batch.add_bridge(&bridge(number)?, &options);
        if aside {
            batch.tolerate(Errno::EEXIST);
        }
    }
    batch.send()?;
    // Their numbers, by which ports are put into them.
    netlink.links().map_err(NetlinkErrors::from)?;
    Ok(())
}

/// Frees the names of a router's interfaces in its namespace.
fn make_way(router: &RouterState, netns: &NetnsFd) -> Result<(), LabError> {
    let names = router.interfaces.iter().map(|interface| &interface.name);
    let names: Vec<&IfName> = names
        .filter(|name| fallback::is_taken_by_some(name))
        .collect();
    if !names.is_empty() {
        let mut netlink = Netlink::open(netns).map_err(NetlinkErrors::from)?;
        fallback::make_way(&mut netlink, &names)?;
    }
    Ok(())
}

fn opened(segments: &NetnsFd, step: &'static str) -> Result<Netlink, LabError> {
    fault::step(step).map_err(|source| LabError::File {
        call: "make the segments in",
        path: segments.name().as_str().into(),
        source,
    })?;
    Ok(Netlink::open(segments).map_err(NetlinkErrors::from)?)
}

/// Has every port forward, now that the interfaces at the other ends are up: the first packet
/// after `up` must not be lost.
pub(super) fn settle(lab: &LabState, segments: &NetnsFd) -> Result<(), LabError> {
    let mut netlink = Netlink::open(segments).map_err(NetlinkErrors::from)?;
    let interfaces = lab.routers.iter().flat_map(|router| &router.interfaces);
    let ports: Vec<_> = interfaces
        .filter_map(|interface| interface.port.as_ref())
        .collect();
    Ok(netlink
        .await_forwarding(&ports)
        .map_err(NetlinkErrors::from)?)
}

fn bridge(number: usize) -> Result<IfName, LabError> {
    bridge_name(number).map_err(|e| LabError::Format {
        path: "the topology".into(),
        message: e.to_string(),
    })
}

fn wires<'a>(
    router: &RouterState,
    netns: &'a NetnsFd,
) -> Result<Vec<(NewVeth<'a>, Mac)>, LabError> {
    let mut wires = Vec::new();
    for interface in &router.interfaces {
        let (Some(port), Some(segment), Some(mac)) =
            (&interface.port, interface.segment, interface.mac)
        else {
            continue;
        };
        let near = VethEnd {
            index: plan::port_index(port),
            mtu: Some(PORT_MTU),
            ..VethEnd::new(port.clone())
        };
        let far = VethEnd {
            netns: Some(netns),
            name: interface.name.clone(),
            index: Some(interface.index),
            mac: Some(mac),
            mtu: interface.mtu,
        };
        let veth = NewVeth {
            near,
            near_up: true,
            master: Some(bridge(segment)?),
            far,
        };
        wires.push((veth, mac));
    }
    Ok(wires)
}
