//! A packet's way through one router: where it comes in and where the router would send it, by
//! the kernel's own look-ups in the router.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use nix::errno::Errno;
use thiserror::Error;

use crate::{
    model::{IfName, RouterId, Service},
    netlink::{
        Lookup, LookupKind, LookupQuery, Netlink, NetlinkError,
        object::{Family, PolicyRule, PortRange},
    },
    netns::{NetnsError, NetnsFd},
};

/// A router's way could not be found out.
#[derive(Debug, Error)]
pub enum WayError {
    /// The router's namespace could not be opened.
    #[error("cannot open router {router}")]
    Open {
        /// The router.
        router: RouterId,
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// The kernel could not be asked.
    #[error("cannot look up the way through router {router}")]
    Lookup {
        /// The router.
        router: RouterId,
        /// Why.
        #[source]
        source: NetlinkError,
    },
}

/// The flow that a job asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// TOS octet or traffic class of the packets.
    pub tos: u8,
}

/// Where a router takes packets of a flow in, and where it sends them.
#[derive(Debug)]
pub struct Way {
    /// The router.
    pub router: RouterId,
    /// Its namespace.
    pub netns: Arc<NetnsFd>,
    /// The interface towards the source; none when the router has no route there.
    pub iface_in: Option<IfName>,
    /// The way on for the first service.
    pub onward: Lookup,
    /// Services whose way differs from the first one's, because policy rules look at ports:
    /// (position in the list asked for, way).
    pub by_port: Vec<(usize, Lookup)>,
}

impl Way {
    /// Finds the way of `flow` through `router`, which is `netns` and is asked by `netlink`.
    /// `iface_in` is where packets come in, if the caller knows it (from a trace); otherwise it is
    /// where the router would send an answer.
    ///
    /// # Errors
    /// [`WayError`]. That there is no route is no error.
    pub fn find(
        (router, netns): (RouterId, Arc<NetnsFd>),
        netlink: &mut Netlink,
        flow: &Flow,
        services: &[Service],
        iface_in: Option<IfName>,
    ) -> Result<Self, WayError> {
        let fail = |source| WayError::Lookup {
            router: router.clone(),
            source,
        };
        let iface_in = match iface_in {
            Some(iface) => Some(iface),
            None => towards(netlink, flow, services).map_err(fail)?,
        };
        let ask = |service: Option<&Service>| LookupQuery {
            from: iface_in.as_ref().map(|_| flow.source),
            iif: iface_in.clone(),
            tos: flow.tos,
            ip_proto: service.map(|s| s.protocol.number()),
            sport: service.map(|_| flow.source_port),
            dport: service.map(|s| s.port),
            ..LookupQuery::to(flow.destination)
        };
        let onward = netlink.lookup_one(&ask(services.first())).map_err(fail)?;
        let rules = netlink.rules(Family::of(flow.destination)).map_err(fail)?;
        let classes = classes(&rules, flow.source_port, services);
        let queries: Vec<_> = classes
            .iter()
            .filter_map(|class| class.first())
            .map(|&position| ask(services.get(position)))
            .collect();
        let lookups = match queries.len() {
            0 | 1 => Vec::new(),
            _ => netlink.lookup(&queries).map_err(fail)?,
        };
        let by_port = differing(lookups, classes, &onward).map_err(fail)?;
        Ok(Self {
            router,
            netns,
            iface_in,
            onward,
            by_port,
        })
    }

    /// Whether the destination is an address of the router itself.
    #[must_use]
    pub fn ends_here(&self) -> bool {
        self.onward.kind == LookupKind::Local
    }

    /// The interface towards the destination; `lo` for the router itself.
    #[must_use]
    pub fn iface_out(&self) -> Option<&IfName> {
        self.onward.dev.as_ref()
    }

    /// Gateway towards the destination; none for a destination on the link.
    #[must_use]
    pub fn next_hop(&self) -> Option<IpAddr> {
        self.onward.via
    }
}

/// The interface towards the source, as for something that the router itself sends there: by the
/// protocol of the first service, or by the other one, of those asked about. A look-up without a
/// protocol would not do: for policy rules the kernel takes that for UDP (inet_rtm_getroute()).
fn towards(
    netlink: &mut Netlink,
    flow: &Flow,
    services: &[Service],
) -> Result<Option<IfName>, NetlinkError> {
    let first = services.first().map(|service| service.protocol);
    let mut all = services.iter().map(|service| service.protocol);
    let other = all.find(|protocol| Some(*protocol) != first);
    for protocol in [first, other].into_iter().flatten() {
        let query = LookupQuery {
            ip_proto: Some(protocol.number()),
            ..LookupQuery::to(flow.source)
        };
        let lookup = netlink.lookup_one(&query)?;
        if lookup.kind == LookupKind::Unicast {
            return Ok(lookup.dev);
        }
    }
    Ok(None)
}

/// Positions of services in groups that policy rules cannot tell apart, so that one look-up
/// answers for all of a group.
fn classes(rules: &[PolicyRule], source_port: u16, services: &[Service]) -> Vec<Vec<usize>> {
    let by_port: Vec<&PolicyRule> = rules
        .iter()
        .filter(|r| r.sport.is_some() || r.dport.is_some() || r.ip_proto.is_some())
        .collect();
    let mut classes: BTreeMap<Vec<bool>, Vec<usize>> = BTreeMap::new();
    for (position, service) in services.iter().enumerate() {
        let matches = by_port
            .iter()
            .map(|rule| selects(rule, source_port, service))
            .collect();
        classes.entry(matches).or_default().push(position);
    }
    classes.into_values().collect()
}

fn selects(rule: &PolicyRule, source_port: u16, service: &Service) -> bool {
    let within = |range: Option<PortRange>, port: u16| {
        range.is_none_or(|r| (r.first..=r.last).contains(&port))
    };
    rule.ip_proto.is_none_or(|p| p == service.protocol.number())
        && within(rule.sport, source_port)
        && within(rule.dport, service.port)
}

/// The positions whose way is not `first`'s, in ascending order.
fn differing(
    lookups: Vec<Result<Lookup, NetlinkError>>,
    classes: Vec<Vec<usize>>,
    first: &Lookup,
) -> Result<Vec<(usize, Lookup)>, NetlinkError> {
    let mut differing = Vec::new();
    for (lookup, class) in lookups.into_iter().zip(classes) {
        let lookup = lookup?;
        if (&lookup.dev, lookup.via, lookup.kind) != (&first.dev, first.via, first.kind) {
            differing.extend(class.into_iter().map(|position| (position, lookup.clone())));
        }
    }
    differing.sort_by_key(|(position, _)| *position);
    Ok(differing)
}

/// Why a way leads nowhere, in words; none when it leads somewhere.
#[must_use]
pub fn nowhere(lookup: &Lookup) -> Option<String> {
    let words = match lookup.kind {
        LookupKind::Unicast | LookupKind::Local => return None,
        LookupKind::Broadcast => "the destination is a broadcast address of the router",
        LookupKind::Multicast => "the destination is a multicast address",
        LookupKind::Blackhole => "a blackhole route or rule discards it",
        LookupKind::Unreachable => "an unreachable route or rule rejects it, or forwarding is off",
        LookupKind::Prohibit => "a prohibit route or rule rejects it",
        LookupKind::NoRoute => "no route to the destination",
        LookupKind::Refused => {
            "the source address is not accepted on the incoming interface (rp_filter, martian), \
             or a blackhole route discards it"
        }
    };
    Some(match lookup.errno {
        Some(errno) if errno != Errno::UnknownErrno => format!("{words} ({errno:?})"),
        _ => words.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Protocol, ServiceLimits, parse_services},
        netlink::object::RuleAction,
    };

    #[test]
    fn services_are_grouped_by_the_rules_that_select_them() {
        let rule = |priority| PolicyRule::new(Family::V4, priority, RuleAction::Table(100));
        let port = |first, last| Some(PortRange { first, last });
        let mut web = rule(1);
        web.dport = port(80, 80);
        let mut udp = rule(2);
        udp.ip_proto = Some(17);
        let services = parse_services("79-81,53/udp", Protocol::Tcp, ServiceLimits::default());
        let services = services.unwrap();
        let mut groups = classes(&[web, udp, rule(3)], 40_000, &services);
        groups.sort();
        assert_eq!(groups, [vec![0, 2], vec![1], vec![3]]);
        assert_eq!(classes(&[rule(3)], 40_000, &services), [vec![0, 1, 2, 3]]);
    }
}
