//! Addresses of interfaces: ip-address(8).

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
};

use super::{
    Batch, Netlink, NetlinkError,
    object::{Address, Family, Scope},
};
use crate::model::IfName;

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Inet,
            Family::V6 => Self::Inet6,
        }
    }
}

impl Scope {
    /// `RT_SCOPE_*`, linux/rtnetlink.h.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Global => 0,
            Self::Site => 200,
            Self::Link => 253,
            Self::Host => 254,
            Self::Nowhere => 255,
        }
    }

    pub(super) fn from_number(number: u8) -> Self {
        match number {
            200 => Self::Site,
            253 => Self::Link,
            254 => Self::Host,
            255 => Self::Nowhere,
            _ => Self::Global,
        }
    }
}

fn message(index: u32, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    // With a peer the prefix length is the peer's.
    let far = address.peer.unwrap_or(address.local);
    message.header.family = Family::of(far.addr()).into();
    message.header.prefix_len = far.prefix_len();
    message.header.scope = AddressScope::from(address.scope.number());
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.local.addr()),
        AddressAttribute::Address(far.addr()),
    ];
    let mut flags = AddressFlags::empty();
    if !address.prefix_route {
        flags |= AddressFlags::Noprefixroute;
    }
    if far.addr().is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

/// The node's own address in `message`.
pub(super) fn local(message: &AddressMessage) -> Option<IpAddr> {
    Some(from_message(message)?.local.addr())
}

fn from_message(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut far, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => far = Some(*address),
            AddressAttribute::Flags(value) => flags = *value,
            _ => {}
        }
    }
    let local = local.or(far)?;
    let prefix = message.header.prefix_len;
    let peer = far.filter(|far| *far != local);
    Some(Address {
        local: match peer {
            Some(_) => IpNet::from(local),
            None => IpNet::new(local, prefix).ok()?,
        },
        peer: peer.and_then(|peer| IpNet::new(peer, prefix).ok()),
        scope: Scope::from_number(message.header.scope.into()),
        prefix_route: !flags.contains(AddressFlags::Noprefixroute),
    })
}

impl Batch<'_> {
    /// Adds `address` to the interface `dev`, IPv6 ones without duplicate address detection, since
    /// a lab may hold one address in two places on purpose. The kernel takes packets to an IPv6
    /// address a little later, see [`Netlink::await_settled`].
    pub fn add_address(&mut self, dev: &IfName, address: &Address) -> &mut Self {
        self.push(
            format_args!("to add address {address} dev {dev}"),
            NLM_F_CREATE | NLM_F_EXCL,
            |index| {
                let message = message(index(dev)?, address);
                Ok(RouteNetlinkMessage::NewAddress(message))
            },
        )
    }

    /// Takes `address` from the interface `dev`.
    #[cfg(feature = "internals")]
    pub fn delete_address(&mut self, dev: &IfName, address: &Address) -> &mut Self {
        let what = format!("to delete address {address} dev {dev}");
        self.push(what, 0, |index| {
            let message = message(index(dev)?, address);
            Ok(RouteNetlinkMessage::DelAddress(message))
        })
    }
}

impl Netlink {
    /// The addresses of every interface, both families. The local side of a point-to-point
    /// address has a host prefix.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses the list.
    pub fn addresses(&mut self) -> Result<Vec<(IfName, Address)>, NetlinkError> {
        let what = format!("to list the addresses of namespace {}", self.netns());
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let list = self.dump(&what, &request)?;
        let names = self.names()?;
        let read = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewAddress(message) => {
                let dev = names.get(&message.header.index)?.clone();
                Some((dev, from_message(message)?))
            }
            _ => None,
        };
        Ok(list.iter().filter_map(read).collect())
    }

    /// The addresses of the interface `dev`, both families.
    ///
    /// # Errors
    /// [`NetlinkError`] when there is no such interface or the kernel refuses the list.
    pub fn addresses_of(&mut self, dev: &IfName) -> Result<Vec<Address>, NetlinkError> {
        let what = format!(
            "to list the addresses of {dev} of namespace {}",
            self.netns()
        );
        let index = self.index(dev, &what)?;
        let mut request = AddressMessage::default();
        request.header.index = index;
        let list = self.dump(&what, &RouteNetlinkMessage::GetAddress(request))?;
        let read = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => {
                from_message(message)
            }
            _ => None,
        };
        Ok(list.iter().filter_map(read).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_through_a_message() {
        for (local, peer, scope, prefix_route) in [
            ("10.0.0.1/24", None, Scope::Global, true),
            ("169.254.1.1/16", None, Scope::Link, false),
            ("10.0.0.1/32", Some("10.0.0.2/32"), Scope::Global, true),
            ("2001:db8::1/64", None, Scope::Global, true),
            (
                "2001:db8::1/128",
                Some("2001:db8::2/64"),
                Scope::Global,
                false,
            ),
            ("127.0.0.1/8", None, Scope::Host, true),
        ] {
            let address = Address {
                local: local.parse().unwrap(),
                peer: peer.map(|peer| peer.parse().unwrap()),
                scope,
                prefix_route,
            };
            assert_eq!(from_message(&message(3, &address)).unwrap(), address);
        }
    }
}
