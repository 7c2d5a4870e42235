//! Tunnels have no hardware addresses: what a router sends into one comes out at the other end,
//! whatever its next hop. In the lab a tunnel's ends are ports of a bridge like all others.
//!
//! So the interfaces of a tunnel do not ask for neighbours (NOARP): the kernel then puts the
//! interface's own hardware address on each frame (arp_constructor(), ndisc_constructor()), and a
//! rule of family bridge in the namespace of segments puts the other end's in its place. Frames
//! that carry another address, those from and to hosts of the lab, are left alone. Of WireGuard's
//! ends the allowed addresses choose the other end and drop the rest.
//!
//! A tunnel of three ends and more whose keys are not known keeps asking for neighbours: its routes
//! name gateways.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::{
    LabError,
    rulesets::{Loaders, Trial},
    state::{InterfaceState, LabState, RouterState},
    topology::{InterfaceKind, RulesetKind, WireGuard},
};
use crate::{
    model::{IfName, RouterName},
    netlink::object::Mac,
    netns::NetnsFd,
};

/// The ends of one tunnel: its interfaces that are up and can be joined.
type Ends<'a> = Vec<&'a InterfaceState>;

/// Notes in `routers` which interfaces are ends of a tunnel that asks for no neighbours.
pub(super) fn plan(routers: &mut [RouterState]) {
    let planned: Vec<Option<usize>> = tunnels(routers)
        .iter()
        .map(|ends| ends.first().and_then(|end| end.segment))
        .collect();
    let interfaces = routers.iter_mut().flat_map(|router| &mut router.interfaces);
    for interface in interfaces {
        let joined = interface.segment.is_some() && planned.contains(&interface.segment);
        interface.noarp = joined && is_end(interface);
    }
}

/// Makes the frames of the tunnels of `lab` come out at their other ends. Where that cannot be, says
/// why, and the tunnels ask for neighbours.
pub(super) fn join(
    lab: &mut LabState,
    segments: &NetnsFd,
    loaders: Option<&Loaders>,
) -> Result<Option<String>, LabError> {
    let Some(text) = ruleset(&lab.routers) else {
        return Ok(None);
    };
    let refused = match loaders {
        None => Some("nft is missing".to_owned()),
        Some(loaders) => {
            let loaded = segments.enter(|| loaders.run(RulesetKind::Nft, &text, Trial::Load))?;
            loaded.map_or_else(|error| Some(error.to_string()), Result::err)
        }
    };
    if refused.is_some() {
        let interfaces = lab.routers.iter_mut().flat_map(|r| &mut r.interfaces);
        interfaces.for_each(|interface| interface.noarp = false);
    }
    Ok(refused)
}

/// The same for a lab that has changed: rules for the tunnels of before go, in the same step.
pub(super) fn reload(
    lab: &LabState,
    segments: &NetnsFd,
    loaders: &Loaders,
    trial: Trial,
) -> Result<(), LabError> {
    // There may be none to delete.
    let rules = ruleset(&lab.routers).unwrap_or_default();
    let text = format!("table bridge tunnels\ndelete table bridge tunnels\n{rules}");
    let loaded = segments.enter(|| loaders.run(RulesetKind::Nft, &text, trial))?;
    let failed = |message| LabError::Tunnels {
        lab: lab.lab.clone(),
        message,
    };
    match loaded {
        Ok(Ok(())) => Ok(()),
        Ok(Err(refused)) => Err(failed(refused.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn is_end(interface: &InterfaceState) -> bool {
    interface.kind == InterfaceKind::Tunnel && interface.up && interface.port.is_some()
}

/// What ways take for granted that leave routers by these interfaces for these destinations: that
/// tunnels are up; with the question that asks whether a tunnel's own packets get through, where the
/// facts tell it.
pub(crate) fn taken_as_up<'a>(
    lab: &LabState,
    left_by: impl Iterator<Item = (&'a RouterName, &'a IfName, IpAddr)>,
) -> Vec<String> {
    let told = |(name, out, to): (&RouterName, &IfName, IpAddr)| {
        let router = lab.router(name).ok()?;
        let is_tunnel = |i: &&InterfaceState| {
            let carries = i.name == *out || i.link.spoken_for_by() == Some(out);
            carries && (i.kind == InterfaceKind::Tunnel || i.link.remote.is_some())
        };
        let tunnel = router.interfaces.iter().find(is_tunnel)?;
        let asked = outer(router, tunnel, to).map(|(from, to, service)| {
            format!(
                "; whether its own packets get through is another question: tsim quick --lab {} -s \
                 {from} -d {to} -P {service}",
                lab.lab
            )
        });
        let asked = asked.unwrap_or_default();
        Some(format!("{name}: {} is taken as up{asked}", tunnel.name))
    };
    let left_by: BTreeSet<_> = left_by.collect();
    let told: BTreeSet<String> = left_by.into_iter().filter_map(told).collect();
    told.into_iter().collect()
}

/// Between which addresses a tunnel's own packets go that carry one to `destination`, and as which
/// service.
fn outer(
    router: &RouterState,
    tunnel: &InterfaceState,
    destination: IpAddr,
) -> Option<(IpAddr, IpAddr, String)> {
    let link = &tunnel.link;
    let peer = link
        .wireguard
        .as_ref()
        .and_then(|of| of.peer_of(destination));
    let endpoint = peer.and_then(|peer| peer.endpoint.as_ref()?.parse().ok());
    let endpoint: Option<SocketAddr> = endpoint;
    let to = link.remote.or(endpoint.map(|to| to.ip()))?;
    let service = match (link.kind.as_deref().unwrap_or_default(), endpoint) {
        ("gre" | "gretap" | "ip6gre" | "ip6gretap", _) => "gre".to_owned(),
        ("ipip", _) => "ip/4".to_owned(),
        ("sit" | "ip6tnl", _) => "ip/41".to_owned(),
        ("vti" | "vti6" | "xfrm", _) => "esp".to_owned(),
        ("vxlan", _) => "4789/udp".to_owned(),
        ("geneve", _) => "6081/udp".to_owned(),
        (_, Some(to)) => format!("{}/udp", to.port()),
        _ => return None,
    };
    let others = router
        .interfaces
        .iter()
        .filter(|i| i.kind == InterfaceKind::Ethernet);
    let own = others.flat_map(|i| i.addresses.iter().map(|address| address.local));
    let mut own = own.filter(|own| own.addr().is_ipv4() == to.is_ipv4());
    let from = link.local.or_else(|| own.next().map(|own| own.addr()))?;
    Some((from, to, service))
}

/// The tunnels whose other ends are known without asking.
fn tunnels(routers: &[RouterState]) -> Vec<Ends<'_>> {
    let ends = || {
        let interfaces = routers.iter().flat_map(|router| &router.interfaces);
        interfaces.filter(|interface| is_end(interface))
    };
    let mut segments: Vec<usize> = ends().filter_map(|end| end.segment).collect();
    segments.sort_unstable();
    segments.dedup();
    let on = |segment: usize| -> Ends<'_> {
        ends().filter(|end| end.segment == Some(segment)).collect()
    };
    let joined = |ends: &Ends<'_>| {
        let keys = ends.iter().all(|end| key(end).is_some());
        ends.len() == 2 || ends.len() > 2 && keys
    };
    segments.into_iter().map(on).filter(joined).collect()
}

fn key(end: &InterfaceState) -> Option<(&WireGuard, &str)> {
    let wireguard = end.link.wireguard.as_ref()?;
    Some((wireguard, wireguard.public_key.as_deref()?))
}

/// The rules for all tunnels; none where there is no tunnel.
pub(super) fn ruleset(routers: &[RouterState]) -> Option<String> {
    let tunnels = tunnels(routers);
    if tunnels.is_empty() {
        return None;
    }
    let mut text = "table bridge tunnels {\n\tchain ends {\n\
                    \t\ttype filter hook prerouting priority -300; policy accept;\n"
        .to_owned();
    for ends in &tunnels {
        for from in ends {
            let others = ends.iter().filter(|other| other.port != from.port);
            let rules = others.flat_map(|to| to_end(from, to));
            let mut rules: Vec<(u8, String)> = rules.collect();
            // The longest prefix first, as WireGuard looks it up.
            rules.sort_by_key(|(length, _)| u8::MAX - length);
            for (_, rule) in rules {
                let _ = writeln!(text, "\t\t{rule}");
            }
        }
    }
    text.push_str("\t}\n}\n");
    Some(text)
}

/// The rules for what goes from one end of a tunnel to another, with the length of the prefix that
/// each is for.
fn to_end(from: &InterfaceState, to: &InterfaceState) -> Vec<(u8, String)> {
    let (Some(port), Some(own), Some(other)) = (&from.port, from.mac, to.mac) else {
        return Vec::new();
    };
    let sent = |mac: Mac| format!("iifname \"{port}\" ether daddr {mac}");
    let turned = format!("ether daddr set {other} accept");
    let (Some((sender, sender_key)), Some((receiver, receiver_key))) = (key(from), key(to)) else {
        return vec![(0, format!("{} {turned}", sent(own)))];
    };
    let destinations = allowed(sender, receiver_key);
    let sources = allowed(receiver, sender_key);
    let mut rules = Vec::new();
    for destination in &destinations {
        let v4 = destination.addr().is_ipv4();
        let family = if v4 { "ip" } else { "ip6" };
        let same = sources.iter().filter(|net| net.addr().is_ipv4() == v4);
        for source in same {
            let rule = format!(
                "{} {}{}{turned}",
                sent(own),
                within(family, "daddr", *destination),
                within(family, "saddr", *source),
            );
            rules.push((destination.prefix_len(), rule));
        }
        // Nobody else gets what this peer does not take.
        let rule = format!(
            "{} {}drop",
            sent(own),
            within(family, "daddr", *destination)
        );
        rules.push((destination.prefix_len(), rule));
    }
    rules
}

/// What a WireGuard interface allows the peer `key`.
fn allowed(wireguard: &WireGuard, key: &str) -> Vec<IpNet> {
    let peers = wireguard.peers.iter().filter(|peer| peer.public_key == key);
    peers.flat_map(|peer| peer.allowed_ips.clone()).collect()
}

/// A match on an address; the family alone for all of its addresses.
fn within(family: &str, field: &str, net: IpNet) -> String {
    match net.prefix_len() {
        0 => format!("meta protocol {family} "),
        _ => format!("{family} {field} {} ", net.trunc()),
    }
}
