//! Copies of several routers, on wires between them as their originals are.
//!
//! ```text
//!   wires: a bridge for each segment, and a port for each interface and host on it
//!     b3 ─── eth0 of the copy of one router
//!      ├──── eth1 of the copy of another
//!      └──── eth0 of a host
//! ```
//!
//! None of these namespaces has a name; all go with their descriptors.

use std::{collections::BTreeSet, sync::Arc};

use super::{CopyError, Ends, RouterCopy, settings};
use crate::{
    lab::{
        InterfaceState,
        hosts::{self, HostError},
    },
    model::{IfName, NetnsName},
    netlink::{BridgeOptions, Netlink, object::Mac},
    netns::{NetnsFd, tool::Tools},
    registry::HostSpec,
};

/// Copies of routers that reach each other.
#[derive(Debug)]
pub struct JoinedCopies {
    wires: Arc<NetnsFd>,
    copies: Vec<RouterCopy>,
}

impl JoinedCopies {
    /// Copies routers, of whose interfaces it is known on which segments they are.
    ///
    /// # Errors
    /// [`CopyError`]; nothing is left.
    pub fn of(routers: &[(&NetnsFd, &[InterfaceState])], tools: &Tools) -> Result<Self, CopyError> {
        let name = "copies-wires".to_owned();
        let name = NetnsName::new(&name).map_err(|_| CopyError::Name(name))?;
        let wires = Arc::new(NetnsFd::unnamed(name)?);
        settings::prepare_wires(&wires)?;
        bridges(routers, &wires)?;
        let mut copies = Vec::with_capacity(routers.len());
        for (number, (router, interfaces)) in (1..).zip(routers) {
            let segments = interfaces.iter();
            let segments =
                segments.filter_map(|i| Some((i.name.clone(), bridge(i.segment?).ok()?)));
            let ends = Ends {
                number,
                bridges: Some(segments.collect()),
            };
            copies.push(RouterCopy::with(router, tools, Arc::clone(&wires), &ends)?);
        }
        let joined = Self { wires, copies };
        joined.await_forwarding()?;
        Ok(joined)
    }

    /// The copies, in the order of the routers.
    #[must_use]
    pub fn copies(&self) -> &[RouterCopy] {
        &self.copies
    }

    /// Puts a host on a segment, whose gateway has that hardware address there and takes frames of
    /// `mtu` bytes.
    ///
    /// # Errors
    /// [`HostError`] when the kernel refuses.
    pub fn host(
        &self,
        spec: &HostSpec,
        segment: usize,
        gateway: (Mac, u32),
    ) -> Result<NetnsFd, HostError> {
        hosts::unnamed(spec, (&self.wires, bridge(segment)?), gateway)
    }

    /// Waits until frames get through: the kernel brings ports up by itself.
    fn await_forwarding(&self) -> Result<(), CopyError> {
        let mut netlink = Netlink::open(&self.wires)?;
        let links = netlink.links()?;
        let ports = links.iter().filter(|link| link.master.is_some());
        let ports: Vec<&IfName> = ports.map(|link| &link.name).collect();
        Ok(netlink.await_forwarding(&ports)?)
    }
}

fn bridge(segment: usize) -> Result<IfName, crate::model::NameError> {
    IfName::new(format!("b{segment}"))
}

/// A bridge for each segment that one of the routers is on.
fn bridges(routers: &[(&NetnsFd, &[InterfaceState])], wires: &NetnsFd) -> Result<(), CopyError> {
    let interfaces = routers.iter().flat_map(|(_, interfaces)| *interfaces);
    let segments: BTreeSet<usize> = interfaces.filter_map(|i| i.segment).collect();
    let mut netlink = Netlink::open(wires)?;
    let mut batch = netlink.batch("the wires of copies");
    for segment in segments {
        let Ok(name) = bridge(segment) else { continue };
        let options = BridgeOptions {
            up: true,
            ..BridgeOptions::default()
        };
        batch.add_bridge(&name, &options);
    }
    Ok(batch.send()?)
}
