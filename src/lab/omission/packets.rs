//! Packets by what they look like.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{Endpoints, PacketOutcome, Passage};
use crate::{
    firewall::rule::Field,
    model::IfName,
    netlink::object::{Family, PortRange},
};

/// Packets that have all of what is given here; what is absent may be anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketSet {
    /// Their family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Where they are from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Nets>,
    /// Where they go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Nets>,
    /// Only where neighbour discovery asks one of these groups for where they go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_group: Option<Ipv6Net>,
    /// IP protocol number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// Source ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<PortRange>,
    /// Destination ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<PortRange>,
    /// The interface that they come in by, or leave by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<IfName>,
    /// The interface that they come in by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incoming: Option<IfName>,
    /// The interface that they leave by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outgoing: Option<IfName>,
    /// Only what the router itself sends.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sent_only: bool,
    /// Only those that went through.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub passed_only: bool,
}

/// Addresses within a prefix but not within others that are more specific.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nets {
    /// The prefix.
    pub within: IpNet,
    /// What is not meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
}

impl From<IpNet> for Nets {
    fn from(within: IpNet) -> Self {
        Self {
            within,
            except: Vec::new(),
        }
    }
}

impl Nets {
    /// Whether `address` is meant.
    #[must_use]
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.within.contains(&address) && !self.except.iter().any(|net| net.contains(&address))
    }

    /// Whether one of `addresses` is meant; they may be anything where they are not known.
    fn may_hold(&self, addresses: Option<&[IpNet]>) -> bool {
        addresses.is_none_or(|all| all.iter().any(|net| self.meets(net)))
    }

    /// Whether some address of `net` is meant.
    fn meets(&self, net: &IpNet) -> bool {
        let overlap = self.within.contains(net) || net.contains(&self.within);
        overlap && !self.except.iter().any(|other| other.contains(net))
    }
}

/// The group that is asked for a neighbour's address, RFC 4291 section 2.7.1.
#[must_use]
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low)
}

/// Whether one of `addresses` may be asked for in one of the groups.
fn may_be_asked_in(groups: &Ipv6Net, addresses: Option<&[IpNet]>) -> bool {
    let may = |net: &IpNet| match net {
        IpNet::V6(one) if one.prefix_len() == 128 => groups.contains(&solicited_node(one.addr())),
        IpNet::V6(_) => true,
        IpNet::V4(_) => false,
    };
    addresses.is_none_or(|all| all.iter().any(may))
}

impl PacketSet {
    /// All packets of one family.
    #[must_use]
    pub fn of_family(family: Family) -> Self {
        Self {
            family: Some(family),
            ..Self::default()
        }
    }

    /// All packets to addresses in `net`.
    #[must_use]
    pub fn to(net: IpNet) -> Self {
        Self {
            to: Some(net.into()),
            ..Self::of_family(Family::of(net.addr()))
        }
    }

    /// All packets from addresses in `net`.
    #[must_use]
    pub fn from(net: IpNet) -> Self {
        Self {
            from: Some(net.into()),
            ..Self::of_family(Family::of(net.addr()))
        }
    }

    /// All packets that come in or leave by `interface`.
    #[must_use]
    pub fn by(interface: IfName) -> Self {
        Self {
            interface: Some(interface),
            ..Self::default()
        }
    }

    /// Whether the packet is one of these, as far as it is known.
    pub(super) fn may_be(&self, passage: &Passage<'_>) -> bool {
        let packet = passage.packet;
        let number = |field, first: u32, last: u32| {
            let meets = |range: &(u32, u32)| range.0 <= last && first <= range.1;
            packet
                .numbers(field)
                .is_none_or(|all| all.iter().any(meets))
        };
        let port = |field, range: Option<PortRange>| {
            range.is_none_or(|r| number(field, r.first.into(), r.last.into()))
        };
        let net = |field, nets: Option<&Nets>| {
            nets.is_none_or(|nets| nets.may_hold(packet.addresses(field)))
        };
        let by = |field, name: &IfName| {
            let devices = packet.devices(field);
            devices.is_none_or(|all| all.iter().any(|own| own == name.as_str()))
        };
        let over = |name: &IfName| by(Field::Incoming, name) || by(Field::Outgoing, name);
        let comes = |name| passage.course != Some(Endpoints::Sent) && by(Field::Incoming, name);
        let leaves =
            |name| passage.course != Some(Endpoints::Delivered) && by(Field::Outgoing, name);
        let family = |family| packet.family.is_none_or(|own| own == family);
        self.family.is_none_or(family)
            && (self.protocol).is_none_or(|p| number(Field::Protocol, p.into(), p.into()))
            && port(Field::SourcePort, self.sport)
            && port(Field::DestinationPort, self.dport)
            && net(Field::Source, self.from.as_ref())
            && net(Field::Destination, self.to.as_ref())
            && (self.to_group.as_ref())
                .is_none_or(|groups| may_be_asked_in(groups, packet.addresses(Field::Destination)))
            && self.interface.as_ref().is_none_or(over)
            && self.incoming.as_ref().is_none_or(comes)
            && self.outgoing.as_ref().is_none_or(leaves)
            && (!self.passed_only || passage.outcome == PacketOutcome::Passed)
            && (!self.sent_only || passage.course.is_none_or(|c| c == Endpoints::Sent))
    }
}
