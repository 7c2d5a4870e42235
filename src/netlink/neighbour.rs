//! Neighbour entries (ip-neighbour(8)) and static bridge forwarding entries (bridge(8)).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
};
use nix::errno::Errno;

use super::{
    Batch, Netlink, NetlinkError,
    object::{Family, Mac, Neighbour},
};
use crate::model::IfName;

fn message(index: u32, neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = key(index, neighbour.address);
    message.header.state = NeighbourState::from(neighbour.state);
    message.attributes.extend(
        neighbour
            .mac
            .map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())),
    );
    message
}

fn key(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = Family::of(address).into();
    message.header.ifindex = index;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
}

fn forwarding(index: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    // Static and not the bridge's own address: br_fdb.c, fdb_add_entry().
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn mac_of(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(octets) => octets.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

/// A kernel with CONFIG_BRIDGE_VLAN_FILTERING enters an address once without a VLAN,
/// which is the entry that a bridge without VLANs uses, and again for each VLAN of
/// the port (1 by default).
#[cfg(feature = "internals")]
fn is_vlan_copy(message: &NeighbourMessage) -> bool {
    let is_vlan = |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::Vlan(_));
    message.attributes.iter().any(is_vlan)
}

fn from_message(message: &NeighbourMessage, dev: IfName) -> Option<Neighbour> {
    let address = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some(IpAddr::from(*address))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some(IpAddr::from(*address))
        }
        _ => None,
    })?;
    Some(Neighbour {
        dev,
        address,
        mac: mac_of(message),
        state: message.header.state.into(),
    })
}

impl Batch<'_> {
    /// Makes `neighbour` what the kernel has for its address on its interface.
    pub fn replace_neighbour(&mut self, neighbour: &Neighbour) -> &mut Self {
        self.push(
            format_args!("to set neighbour {neighbour}"),
            NLM_F_CREATE | NLM_F_REPLACE,
            |index| {
                let message = message(index(&neighbour.dev)?, neighbour);
                Ok(RouteNetlinkMessage::NewNeighbour(message))
            },
        )
    }

    /// Removes the entry for `address` on `dev`. One that is gone already is success.
    pub fn delete_neighbour(&mut self, dev: &IfName, address: IpAddr) -> &mut Self {
        let what = format!("to delete neighbour {address} dev {dev}");
        self.push(what, 0, |index| {
            let message = key(index(dev)?, address);
            Ok(RouteNetlinkMessage::DelNeighbour(message))
        })
        .tolerate(Errno::ENOENT)
    }

    /// Tells the bridge of port `port` that `mac` is behind that port, now and for ever. An
    /// address that the bridge knows already is an error.
    pub fn add_forwarding(&mut self, port: &IfName, mac: Mac) -> &mut Self {
        self.push(
            format_args!("to add forwarding entry {mac} dev {port}"),
            NLM_F_CREATE | NLM_F_EXCL,
            |index| {
                let message = forwarding(index(port)?, mac);
                Ok(RouteNetlinkMessage::NewNeighbour(message))
            },
        )
    }

    /// Removes such an entry. One that is gone already is success.
    #[cfg(feature = "internals")]
    pub fn delete_forwarding(&mut self, port: &IfName, mac: Mac) -> &mut Self {
        let what = format!("to delete forwarding entry {mac} dev {port}");
        self.push(what, 0, |index| {
            let message = forwarding(index(port)?, mac);
            Ok(RouteNetlinkMessage::DelNeighbour(message))
        })
        .tolerate(Errno::ENOENT)
    }
}

impl Netlink {
    /// The neighbour entries of one family, the kernel's own for multicast and loopback included.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses the list.
    pub fn neighbours(&mut self, family: Family) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut request = NeighbourMessage::default();
        request.header.family = family.into();
        let what = format!(
            "to list the {family} neighbours of namespace {}",
            self.netns()
        );
        let list = self.dump(&what, &RouteNetlinkMessage::GetNeighbour(request))?;
        let names = self.names()?;
        let read = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewNeighbour(message) => {
                let dev = names.get(&message.header.ifindex)?.clone();
                from_message(message, dev)
            }
            _ => None,
        };
        Ok(list.iter().filter_map(read).collect())
    }

    /// The entry for `address` on `dev`; none when there is none.
    ///
    /// # Errors
    /// [`NetlinkError`] when there is no such interface or the kernel refuses to say.
    pub fn neighbour(
        &mut self,
        dev: &IfName,
        address: IpAddr,
    ) -> Result<Option<Neighbour>, NetlinkError> {
        let what = format!(
            "to show neighbour {address} dev {dev} of namespace {}",
            self.netns()
        );
        let index = self.index(dev, &what)?;
        let request = RouteNetlinkMessage::GetNeighbour(key(index, address));
        match self.query_one(what, request) {
            Ok(RouteNetlinkMessage::NewNeighbour(message)) => {
                Ok(from_message(&message, dev.clone()))
            }
            Ok(_) => Ok(None),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The static and learned addresses behind the bridge port `port`.
    ///
    /// # Errors
    /// [`NetlinkError`] when there is no such port or the kernel refuses the list.
    #[cfg(feature = "internals")]
    pub fn forwarding(&mut self, port: &IfName) -> Result<Vec<Mac>, NetlinkError> {
        let what = format!(
            "to list the forwarding entries of port {port} of namespace {}",
            self.netns()
        );
        let index = self.index(port, &what)?;
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        request.header.ifindex = index;
        let list = self.dump(&what, &RouteNetlinkMessage::GetNeighbour(request))?;
        let read = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewNeighbour(message)
                if message.header.ifindex == index
                    && message.header.state != NeighbourState::Permanent
                    && !is_vlan_copy(message) =>
            {
                mac_of(message)
            }
            _ => None,
        };
        Ok(list.iter().filter_map(read).collect())
    }

    /// The index of a link that must exist.
    pub(super) fn index(&mut self, dev: &IfName, what: &str) -> Result<u32, NetlinkError> {
        self.find_index(dev)?
            .ok_or_else(|| NetlinkError::NoInterface {
                what: what.to_owned(),
                netns: self.netns().to_owned(),
                name: dev.clone(),
            })
    }
}
