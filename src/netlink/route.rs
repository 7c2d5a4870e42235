//! Routes: ip-route(8).

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
        RouteNextHop, RouteNextHopFlags, RouteProtocol, RouteScope, RouteType, RouteVia,
    },
};
use nix::errno::Errno;

use super::{
    Batch, Netlink, NetlinkError,
    batch::Resolve,
    object::{Family, NextHop, Route, RouteKind, Scope},
};
use crate::model::IfName;

/// `RTPROT_STATIC`, linux/rtnetlink.h.
const STATIC: u8 = 4;

impl RouteKind {
    fn to_type(self) -> RouteType {
        match self {
            Self::Unicast => RouteType::Unicast,
            Self::Local => RouteType::Local,
            Self::Broadcast => RouteType::Broadcast,
            Self::Blackhole => RouteType::BlackHole,
            Self::Unreachable => RouteType::Unreachable,
            Self::Prohibit => RouteType::Prohibit,
            Self::Throw => RouteType::Throw,
        }
    }

    fn from_type(kind: RouteType) -> Option<Self> {
        Some(match kind {
            RouteType::Unicast => Self::Unicast,
            RouteType::Local => Self::Local,
            RouteType::Broadcast => Self::Broadcast,
            RouteType::BlackHole => Self::Blackhole,
            RouteType::Unreachable => Self::Unreachable,
            RouteType::Prohibit => Self::Prohibit,
            RouteType::Throw => Self::Throw,
            _ => return None,
        })
    }

    /// Whether packets leave by a next hop.
    fn has_next_hops(self) -> bool {
        matches!(self, Self::Unicast | Self::Local | Self::Broadcast)
    }
}

/// The scope that ip(8) derives (`iproute.c`, `iproute_modify()`).
fn scope(route: &Route) -> Scope {
    let gateway = route.next_hops.len() > 1 || route.next_hops.iter().any(|hop| hop.via.is_some());
    match route.kind {
        _ if route.destination.addr().is_ipv6() => Scope::Global,
        RouteKind::Local => Scope::Host,
        RouteKind::Broadcast => Scope::Link,
        RouteKind::Unicast if !gateway => Scope::Link,
        _ => Scope::Global,
    }
}

/// The key and the next hops of `route`, for adding and deleting.
fn message(route: &Route, index: &mut Resolve<'_>) -> Result<RouteMessage, String> {
    let destination = route.destination;
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: Family::of(destination.addr()).into(),
        destination_prefix_length: destination.prefix_len(),
        source_prefix_length: route.from.map_or(0, |from| from.prefix_len()),
        tos: route.tos,
        kind: route.kind.to_type(),
        protocol: RouteProtocol::from(route.protocol.unwrap_or(STATIC)),
        scope: RouteScope::from(route.scope.unwrap_or_else(|| scope(route)).number()),
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    // 0.0.0.0/0 and ::/0 are told by their length alone.
    if destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(destination.network().into()));
    }
    let from = route.from.filter(|from| from.prefix_len() > 0);
    attributes.extend(from.map(|from| RouteAttribute::Source(from.network().into())));
    match u8::try_from(route.table) {
        Ok(table) => message.header.table = table,
        Err(_) => attributes.push(RouteAttribute::Table(route.table)),
    }
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    attributes.extend(
        route
            .source
            .map(|source| RouteAttribute::PrefSource(source.into())),
    );
    let mtu = route.mtu.map(|mtu| vec![RouteMetric::Mtu(mtu)]);
    attributes.extend(mtu.map(RouteAttribute::Metrics));
    match route.next_hops.as_slice() {
        [] => {}
        [hop] => {
            if hop.onlink {
                message.header.flags |= RouteFlags::Onlink;
            }
            attributes.extend(gateway(hop, destination));
            if let Some(dev) = &hop.dev {
                attributes.push(RouteAttribute::Oif(index(dev)?));
            }
        }
        hops => {
            let hops: Result<_, String> = hops
                .iter()
                .map(|hop| next_hop(hop, destination, index))
                .collect();
            attributes.push(RouteAttribute::MultiPath(hops?));
        }
    }
    Ok(message)
}

/// `RTA_GATEWAY`, or `RTA_VIA` where an IPv4 destination lies behind an IPv6 gateway (RFC 5549).
fn gateway(hop: &NextHop, destination: IpNet) -> Option<RouteAttribute> {
    let via = hop.via?;
    Some(if via.is_ipv4() == destination.addr().is_ipv4() {
        RouteAttribute::Gateway(via.into())
    } else {
        RouteAttribute::Via(RouteVia::from(via))
    })
}

fn next_hop(
    hop: &NextHop,
    destination: IpNet,
    index: &mut Resolve<'_>,
) -> Result<RouteNextHop, String> {
    let mut message = RouteNextHop::default();
    let weight = hop.weight.saturating_sub(1);
    message.hops = u8::try_from(weight).map_err(|_| {
        format!(
            "weight {} is out of range: 1 to 256 are allowed",
            hop.weight
        )
    })?;
    if hop.onlink {
        message.flags |= RouteNextHopFlags::Onlink;
    }
    if let Some(dev) = &hop.dev {
        message.interface_index = index(dev)?;
    }
    message.attributes.extend(gateway(hop, destination));
    Ok(message)
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The gateway among `attributes`.
pub(super) fn via(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

/// The outgoing interface's index among `attributes`.
pub(super) fn oif(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// The table of `message`: the attribute holds what does not fit the header.
pub(super) fn table(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| message.header.table.into())
}

/// The destination prefix of `message`.
pub(super) fn destination(message: &RouteMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let any = match message.header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let length = message.header.destination_prefix_length;
    IpNet::new(address.unwrap_or(any), length).ok()
}

/// The source prefix of `message`, if it has one.
fn source(message: &RouteMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Source(address) => ip(address),
        _ => None,
    })?;
    IpNet::new(address, message.header.source_prefix_length).ok()
}

/// The route in `message`; none when it is of a kind that tsim does not know (multicast …).
fn from_message(message: &RouteMessage, names: &HashMap<u32, IfName>) -> Option<Route> {
    let kind = RouteKind::from_type(message.header.kind)?;
    let mut route = Route {
        destination: destination(message)?,
        from: source(message),
        kind,
        table: table(message),
        next_hops: Vec::new(),
        metric: None,
        source: None,
        scope: Some(Scope::from_number(message.header.scope.into())),
        protocol: Some(message.header.protocol.into()),
        tos: message.header.tos,
        mtu: mtu(&message.attributes),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            _ => {}
        }
    }
    // An IPv6 blackhole and its like are listed with the loopback interface.
    if kind.has_next_hops() {
        route.next_hops = next_hops(message, names);
    }
    Some(route)
}

/// The MTU that a route has of its own.
pub(super) fn mtu(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
            RouteMetric::Mtu(mtu) => Some(*mtu),
            _ => None,
        }),
        _ => None,
    })
}

/// The ways out of the route in `message`.
pub(super) fn next_hops(message: &RouteMessage, names: &HashMap<u32, IfName>) -> Vec<NextHop> {
    let dev = |index: u32| names.get(&index).cloned();
    let several = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let Some(hops) = several.filter(|hops| !hops.is_empty()) else {
        return vec![NextHop {
            via: via(&message.attributes),
            dev: oif(&message.attributes).and_then(dev),
            weight: 1,
            onlink: message.header.flags.contains(RouteFlags::Onlink),
        }];
    };
    let hop = |hop: &RouteNextHop| NextHop {
        via: via(&hop.attributes),
        dev: dev(hop.interface_index),
        weight: u16::from(hop.hops) + 1,
        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
    };
    hops.iter().map(hop).collect()
}

/// Whether a message is about an exception of a route (`ip route show cache`), and not about a route.
pub(super) fn is_exception(message: &RouteMessage) -> bool {
    message.header.flags.contains(RouteFlags::Cloned)
}

impl Batch<'_> {
    /// Adds `route`; one with the same destination, TOS and metric in the table is an error.
    pub fn add_route(&mut self, route: &Route) -> &mut Self {
        self.route(route, "add", NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds `route` behind those with the same destination, TOS and metric, as a collected table
    /// may hold several. IPv6 makes one multipath route of them.
    pub fn append_route(&mut self, route: &Route) -> &mut Self {
        self.route(route, "append", NLM_F_CREATE | NLM_F_APPEND)
    }

    /// Adds `route` in place of one with the same destination, TOS and metric.
    pub fn replace_route(&mut self, route: &Route) -> &mut Self {
        self.route(route, "replace", NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn route(&mut self, route: &Route, verb: &str, flags: u16) -> &mut Self {
        self.push(format_args!("to {verb} route {route}"), flags, |index| {
            message(route, index).map(RouteNetlinkMessage::NewRoute)
        })
    }

    /// Deletes the first route that is like `route` in all that `route` says.
    pub fn delete_route(&mut self, route: &Route) -> &mut Self {
        self.push(format_args!("to delete route {route}"), 0, |index| {
            let mut message = message(route, index)?;
            // What is not said shall match anything.
            if route.scope.is_none() {
                message.header.scope = RouteScope::NoWhere;
            }
            if route.protocol.is_none() {
                message.header.protocol = RouteProtocol::Unspec;
            }
            Ok(RouteNetlinkMessage::DelRoute(message))
        })
    }
}

impl Netlink {
    /// The routes of one family, of every table (the kernel's own in table local included) or of
    /// one, in the kernel's order.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses the list.
    pub fn routes(
        &mut self,
        family: Family,
        table: Option<u32>,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family.into();
        request.attributes.extend(table.map(RouteAttribute::Table));
        let what = format!("to list the {family} routes of namespace {}", self.netns());
        let list = match self.dump(&what, &RouteNetlinkMessage::GetRoute(request)) {
            // A table exists once it has a route.
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let read = |names: &HashMap<u32, IfName>| -> Vec<Route> {
            let routes = list.iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(message) if !is_exception(message) => {
                    from_message(message, names)
                }
                _ => None,
            });
            routes.collect()
        };
        let routes = read(&self.known_names());
        let mut hops = routes.iter().flat_map(|route| &route.next_hops);
        if hops.all(|hop| hop.dev.is_some()) {
            return Ok(routes);
        }
        Ok(read(&self.names()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> HashMap<u32, IfName> {
        [(2, "eth0"), (3, "eth1")]
            .map(|(index, name)| (index, IfName::new(name).unwrap()))
            .into()
    }

    fn resolve(name: &IfName) -> Result<u32, String> {
        let found = names().into_iter().find(|(_, known)| known == name);
        found.map(|(index, _)| index).ok_or("none".to_owned())
    }

    fn hop(via: &str, dev: &str, weight: u16) -> NextHop {
        NextHop {
            via: Some(via.parse().unwrap()),
            dev: Some(dev.parse().unwrap()),
            weight,
            onlink: true,
        }
    }

    fn plain(destination: &str) -> Route {
        Route::via(
            destination.parse().unwrap(),
            "10.1.1.1".parse().unwrap(),
            "eth0".parse().unwrap(),
        )
    }

    #[test]
    fn routes_survive_the_way_through_a_message() {
        let list = [
            plain("0.0.0.0/0"),
            Route {
                table: 70_000,
                metric: Some(10),
                source: Some("10.1.1.2".parse().unwrap()),
                tos: 0x10,
                mtu: Some(1400),
                protocol: Some(2),
                scope: Some(Scope::Site),
                ..plain("10.2.0.0/16")
            },
            Route {
                next_hops: vec![hop("10.1.1.1", "eth0", 1), hop("10.1.2.1", "eth1", 256)],
                ..plain("10.3.0.0/16")
            },
            Route {
                next_hops: vec![hop("fe80::1", "eth0", 1)],
                ..plain("10.4.0.0/16")
            },
            Route {
                next_hops: vec![hop("fe80::1", "eth0", 1)],
                ..plain("2001:db8::/32")
            },
            Route::without_hops("10.5.0.0/16".parse().unwrap(), RouteKind::Prohibit),
        ];
        for route in list {
            let message = message(&route, &mut resolve).unwrap();
            let want = Route {
                scope: Some(route.scope.unwrap_or_else(|| scope(&route))),
                protocol: Some(route.protocol.unwrap_or(STATIC)),
                ..route
            };
            assert_eq!(from_message(&message, &names()).unwrap(), want);
        }
    }

    #[test]
    fn a_weight_that_does_not_fit_is_refused() {
        let route = Route {
            next_hops: vec![hop("10.1.1.1", "eth0", 1), hop("10.1.1.2", "eth0", 257)],
            ..plain("10.3.0.0/16")
        };
        let error = message(&route, &mut resolve).unwrap_err();
        assert!(error.contains("257") && error.contains("256"), "{error}");
    }
}
