//! Asking the kernel which way a packet would take: `RTM_GETROUTE`, rtnetlink(7).

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteType},
};
use nix::errno::Errno;

use super::{
    Netlink, NetlinkError,
    object::{Family, NextHop},
    requests::Requests,
    route::{destination, ip, mtu, next_hops, oif, table, via},
};
use crate::model::IfName;

/// A packet whose way is asked for.
///
/// With [`LookupQuery::iif`] it is a packet that comes in there, and the kernel decides as for one
/// that is forwarded: policy rules, forwarding switched off, and for IPv4 the check of the source
/// address (`rp_filter`, martians) count. Without, it is one that the router sends itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LookupQuery {
    /// Destination.
    pub to: IpAddr,
    /// Source. Without an incoming interface the kernel accepts only its own addresses.
    pub from: Option<IpAddr>,
    /// Incoming interface.
    pub iif: Option<IfName>,
    /// Interface that the packet must leave by.
    pub oif: Option<IfName>,
    /// Firewall mark.
    pub mark: u32,
    /// TOS / DS field octet.
    pub tos: u8,
    /// IP protocol. The kernel takes TCP, UDP and ICMP (`rtm_getroute_parse_ip_proto()`); of others it
    /// is not told, and what its policy rules say of them is worked out.
    pub ip_proto: Option<u8>,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// Asks for the route that matches (`RTM_F_FIB_MATCH`) rather than for one packet's way: the
    /// answer has [`Lookup::matched`], and a multipath route no single next hop.
    pub fib_match: bool,
}

impl LookupQuery {
    /// A packet to `to` that the router sends itself.
    #[must_use]
    pub fn to(to: IpAddr) -> Self {
        Self {
            to,
            from: None,
            iif: None,
            oif: None,
            mark: 0,
            tos: 0,
            ip_proto: None,
            sport: None,
            dport: None,
            fib_match: false,
        }
    }

    /// A packet from `from` to `to` that comes in on `iif`.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn forwarded(from: IpAddr, to: IpAddr, iif: IfName) -> Self {
        Self {
            from: Some(from),
            iif: Some(iif),
            ..Self::to(to)
        }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LookupKind {
    /// Sent out on [`Lookup::dev`].
    Unicast,
    /// Delivered to the router itself.
    Local,
    /// A broadcast address of the router's.
    Broadcast,
    /// A multicast address.
    Multicast,
    /// A blackhole route or rule.
    Blackhole,
    /// An unreachable route or rule; or, for a packet that comes in, forwarding is off.
    Unreachable,
    /// A prohibit route or rule.
    Prohibit,
    /// No route.
    NoRoute,
    /// IPv4, a packet that comes in: either a blackhole, or its source address is not accepted
    /// there (`rp_filter`, a martian). Kernels from 6.13 on do not tell these apart.
    Refused,
}

impl LookupKind {
    /// The errno that stands for it, where a packet goes nowhere; that of [`LookupKind::Refused`] is
    /// another on other kernels.
    pub(super) fn errno(self) -> Option<Errno> {
        match self {
            Self::NoRoute => Some(Errno::ENETUNREACH),
            Self::Unreachable => Some(Errno::EHOSTUNREACH),
            Self::Prohibit => Some(Errno::EACCES),
            Self::Blackhole | Self::Refused => Some(Errno::EINVAL),
            _ => None,
        }
    }
}

/// The kernel's answer to a [`LookupQuery`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// What becomes of the packet.
    pub kind: LookupKind,
    /// The errno that stands for it, where it goes nowhere.
    pub errno: Option<Errno>,
    /// Outgoing interface.
    pub dev: Option<IfName>,
    /// Gateway; none when the destination is on the link.
    pub via: Option<IpAddr>,
    /// Source address that the router itself would take.
    pub prefsrc: Option<IpAddr>,
    /// Table in which the route was found.
    pub table: u32,
    /// The prefix of the route, where [`LookupQuery::fib_match`] asked for it.
    pub matched: Option<IpNet>,
    /// The MTU that the route has of its own, in bytes.
    pub mtu: Option<u32>,
}

impl Lookup {
    pub(super) fn nowhere(kind: LookupKind, errno: Errno) -> Self {
        Self {
            kind,
            errno: Some(errno),
            dev: None,
            via: None,
            prefsrc: None,
            table: 0,
            matched: None,
            mtu: None,
        }
    }
}

/// TCP, UDP and ICMP of both families.
const ASKABLE: [u8; 4] = [6, 17, 1, 58];
/// Those of them that have ports.
const PORTED: [u8; 2] = [6, 17];

/// Whether the kernel takes a protocol in a question.
pub(super) fn is_askable(number: u8) -> bool {
    ASKABLE.contains(&number)
}

fn message(query: &LookupQuery, iif: Option<u32>, oif: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let family = Family::of(query.to);
    let bits = if family == Family::V4 { 32 } else { 128 };
    message.header.address_family = family.into();
    message.header.destination_prefix_length = bits;
    message.header.tos = query.tos;
    // IPv6 says the table anyway and refuses to be asked (inet6_rtm_valid_getroute_req()).
    if family == Family::V4 {
        message.header.flags |= RouteFlags::LookupTable;
    }
    if query.fib_match {
        message.header.flags |= RouteFlags::FibMatch;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(query.to.into()));
    if let Some(from) = query.from {
        message.header.source_prefix_length = bits;
        attributes.push(RouteAttribute::Source(from.into()));
    }
    attributes.extend(iif.map(RouteAttribute::Iif));
    attributes.extend(oif.map(RouteAttribute::Oif));
    if query.mark != 0 {
        attributes.push(RouteAttribute::Mark(query.mark));
    }
    attributes.extend(
        query
            .ip_proto
            .filter(|number| is_askable(*number))
            .map(RouteAttribute::IpProto),
    );
    if query.ip_proto.is_none_or(|number| PORTED.contains(&number)) {
        attributes.extend(query.sport.map(RouteAttribute::Sport));
        attributes.extend(query.dport.map(RouteAttribute::Dport));
    }
    message
}

fn from_message(message: &RouteMessage, names: &HashMap<u32, IfName>, fib_match: bool) -> Lookup {
    let attributes = &message.attributes;
    Lookup {
        kind: match message.header.kind {
            // An anycast address of IPv6 is the router's own, too.
            RouteType::Local | RouteType::Anycast => LookupKind::Local,
            RouteType::Broadcast => LookupKind::Broadcast,
            RouteType::Multicast => LookupKind::Multicast,
            RouteType::BlackHole => LookupKind::Blackhole,
            RouteType::Unreachable => LookupKind::Unreachable,
            RouteType::Prohibit => LookupKind::Prohibit,
            _ => LookupKind::Unicast,
        },
        errno: None,
        dev: oif(attributes).and_then(|index| names.get(&index).cloned()),
        via: via(attributes),
        prefsrc: attributes.iter().find_map(|a| match a {
            RouteAttribute::PrefSource(source) => ip(source),
            _ => None,
        }),
        table: table(message),
        matched: fib_match.then(|| destination(message)).flatten(),
        mtu: mtu(attributes),
    }
}

/// What an errno means as an answer; none when it says that the question was wrong.
///
/// The numbers are those of `fib_props` (net/ipv4/fib_semantics.c) and of
/// `ip6_rt_type_to_error()`.
fn meaning(query: &LookupQuery, error: &NetlinkError) -> Option<LookupKind> {
    let NetlinkError::Refused { errno, ext_ack, .. } = error else {
        return None;
    };
    let checked = query.iif.is_some() && query.to.is_ipv4();
    match errno {
        Errno::ENETUNREACH => Some(LookupKind::NoRoute),
        Errno::EHOSTUNREACH => Some(LookupKind::Unreachable),
        Errno::EACCES => Some(LookupKind::Prohibit),
        // Before 6.13 the kernel had this number for rp_filter.
        Errno::EXDEV if checked => Some(LookupKind::Refused),
        // A wrong question has the same number, but an explanation with it.
        Errno::EINVAL if ext_ack.is_some() => None,
        Errno::EINVAL if checked => Some(LookupKind::Refused),
        Errno::EINVAL => Some(LookupKind::Blackhole),
        // Of a packet that comes in for a group of IPv6 and that nobody forwards, the kernel has no answer
        // (`rt6_fill_node()`).
        Errno::EMSGSIZE if query.to.is_ipv6() && query.to.is_multicast() => {
            Some(LookupKind::Multicast)
        }
        _ => None,
    }
}

impl Netlink {
    /// Asks the kernel for the ways of many packets at once.
    pub(super) fn ask(
        &mut self,
        queries: &[LookupQuery],
    ) -> Result<Vec<Result<Lookup, NetlinkError>>, NetlinkError> {
        let mut requests = Requests::default();
        let mut unasked = Vec::new();
        for query in queries {
            match self.question(query) {
                Ok((what, message)) => {
                    requests.push(what, 0, RouteNetlinkMessage::GetRoute(message));
                    unasked.push(None);
                }
                Err(error) => unasked.push(Some(error)),
            }
        }
        let mut replies = self.query(requests)?.into_iter();
        let mut names = self.known_names();
        let mut answers = Vec::with_capacity(queries.len());
        for (query, unasked) in queries.iter().zip(unasked) {
            answers.push(match unasked {
                Some(error) => Err(error),
                None => match replies.next() {
                    Some(reply) => self.answer(query, reply, &mut names)?,
                    None => continue,
                },
            });
        }
        Ok(answers)
    }

    /// Asks the kernel, for many packets at once, for all next hops of the route that each matches.
    pub(super) fn ask_next_hops(
        &mut self,
        queries: &[LookupQuery],
    ) -> Result<Vec<Vec<NextHop>>, NetlinkError> {
        let mut requests = Requests::default();
        for query in queries {
            let query = LookupQuery {
                fib_match: true,
                ..query.clone()
            };
            let (what, message) = self.question(&query)?;
            requests.push(what, 0, RouteNetlinkMessage::GetRoute(message));
        }
        let mut routes = Vec::with_capacity(queries.len());
        for (query, reply) in queries.iter().zip(self.query(requests)?) {
            routes.push(match reply {
                Ok(RouteNetlinkMessage::NewRoute(message)) => {
                    Some(message).filter(|route| route.header.kind == RouteType::Unicast)
                }
                Err(error) if meaning(query, &error).is_none() => return Err(error),
                _ => None,
            });
        }
        let read = |names: &HashMap<u32, IfName>| -> Vec<Vec<NextHop>> {
            let hops = |route: &Option<RouteMessage>| {
                let route = route.as_ref();
                route.map_or_else(Vec::new, |route| next_hops(route, names))
            };
            routes.iter().map(hops).collect()
        };
        let hops = read(&self.known_names());
        if hops.iter().flatten().all(|hop| hop.dev.is_some()) {
            return Ok(hops);
        }
        Ok(read(&self.names()?))
    }

    fn question(&mut self, query: &LookupQuery) -> Result<(String, RouteMessage), NetlinkError> {
        let what = format!(
            "for the way to {} from namespace {}",
            query.to,
            self.netns()
        );
        let iif = query.iif.as_ref().map(|dev| self.index(dev, &what));
        let iif = iif.transpose()?;
        let oif = query.oif.as_ref().map(|dev| self.index(dev, &what));
        let oif = oif.transpose()?;
        Ok((what, message(query, iif, oif)))
    }

    /// Judges one reply. The outer error is the socket's.
    fn answer(
        &mut self,
        query: &LookupQuery,
        reply: Result<RouteNetlinkMessage, NetlinkError>,
        names: &mut HashMap<u32, IfName>,
    ) -> Result<Result<Lookup, NetlinkError>, NetlinkError> {
        let message = match reply {
            Ok(RouteNetlinkMessage::NewRoute(message)) => message,
            Ok(_) => {
                let what = format!("for the way to {}", query.to);
                return Ok(Err(NetlinkError::NoReply { what }));
            }
            Err(error) => {
                return Ok(match (meaning(query, &error), error.errno()) {
                    (Some(kind), Some(errno)) => Ok(Lookup::nowhere(kind, errno)),
                    _ => Err(error),
                });
            }
        };
        if let Some(index) = oif(&message.attributes)
            && !names.contains_key(&index)
        {
            names.extend(self.link_by_index(index)?.map(|link| (index, link.name)));
        }
        Ok(Ok(from_message(&message, names, query.fib_match)))
    }

    /// The names of the interfaces that were asked about so far or [learned](Netlink::learn), by index.
    pub(super) fn known_names(&self) -> HashMap<u32, IfName> {
        let turn = |(name, index): (&IfName, &u32)| (*index, name.clone());
        self.indexes.iter().map(turn).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno, ext_ack: Option<&str>) -> NetlinkError {
        NetlinkError::Refused {
            what: String::new(),
            errno,
            ext_ack: ext_ack.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn an_errno_is_an_answer_unless_the_question_was_wrong() {
        let sent = LookupQuery::to("192.0.2.1".parse().unwrap());
        let coming = LookupQuery {
            iif: Some("eth0".parse().unwrap()),
            ..sent.clone()
        };
        let to_group = LookupQuery {
            to: "ff0e::1".parse().unwrap(),
            ..coming.clone()
        };
        for (query, errno, want) in [
            (&to_group, Errno::EMSGSIZE, Some(LookupKind::Multicast)),
            (&coming, Errno::EMSGSIZE, None),
            (&sent, Errno::ENETUNREACH, Some(LookupKind::NoRoute)),
            (&sent, Errno::EINVAL, Some(LookupKind::Blackhole)),
            (&coming, Errno::EINVAL, Some(LookupKind::Refused)),
            (&coming, Errno::EXDEV, Some(LookupKind::Refused)),
            (&sent, Errno::EACCES, Some(LookupKind::Prohibit)),
            (&sent, Errno::EOPNOTSUPP, None),
        ] {
            assert_eq!(meaning(query, &refused(errno, None)), want, "{errno}");
        }
        let wrong = refused(Errno::EINVAL, Some("Invalid values in header"));
        assert_eq!(meaning(&sent, &wrong), None);
    }
}
