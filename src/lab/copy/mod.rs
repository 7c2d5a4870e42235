//! A copy of a router: the same interfaces, addresses, routes, policy rules, settings and
//! rulesets in a namespace without a name, which nobody else knows of.
//!
//! What is tried in a copy (a route with one next hop only, a rule less) touches no lab. The
//! namespace is held by a descriptor alone, so it goes with the process that made it, however that
//! ends; there is nothing to reconcile. The far ends of its wires are in a second such namespace,
//! from where packets are sent in:
//!
//! ```text
//!   outside                          copy
//!   c2 ──────────────────────────── eth0    names, numbers and addresses of the router's own
//!   c3 ──────────────────────────── eth1
//! ```
//!
//! Neighbours that the router has learned are not copied: a packet that leaves the copy ends at
//! the last tap, or in `outside`, which does not answer.

mod joined;
mod objects;
mod rulesets;
mod settings;

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use thiserror::Error;

pub use self::joined::JoinedCopies;

use crate::{
    model::{IfName, NetnsName},
    netlink::{
        Netlink, NetlinkErrors,
        object::{Address, Mac, Neighbour, NextHop, Route, Scope},
    },
    netns::{
        NetnsError, NetnsFd,
        tool::{ToolError, Tools},
    },
};

/// Whom the sender outside believes to be its gateway: nobody, but the neighbour entry says that
/// it has the interface's hardware address.
#[cfg(feature = "internals")]
const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 255, 254)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];
/// The sender's own address, without which the kernel sends no IPv6.
const OUTSIDE: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2));

/// A router could not be copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// A namespace could not be made or entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The router could not be read, or the copy not be filled.
    #[error(transparent)]
    Netlink(#[from] NetlinkErrors),
    /// A tool that saves or loads rulesets could not be run, or refused.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A name that the copy needs is none.
    #[error("no name for {0} of a copy of a router")]
    Name(String),
}

impl From<crate::netlink::NetlinkError> for CopyError {
    fn from(error: crate::netlink::NetlinkError) -> Self {
        Self::Netlink(error.into())
    }
}

/// A router's copy. It goes when this is dropped, with all that was done to it.
#[derive(Debug)]
pub struct RouterCopy {
    netns: Arc<NetnsFd>,
    outside: Arc<NetnsFd>,
    wires: Vec<Wire>,
    differences: Vec<String>,
}

/// One interface of the copy and its far end.
#[derive(Debug, Clone)]
struct Wire {
    interface: IfName,
    mac: Mac,
    #[cfg(feature = "internals")]
    port: IfName,
    /// The number of `port`.
    number: u32,
}

/// How the far ends of a copy's wires are told from those of others, and where they are plugged in.
#[derive(Debug, Clone, Default)]
struct Ends {
    /// Which copy this is among those with one outside.
    number: u32,
    /// The bridges behind the interfaces; none for ends that packets are sent from.
    bridges: Option<HashMap<IfName, IfName>>,
}

impl RouterCopy {
    /// Copies the router in `router` as it is now. Taps of jobs are no part of it.
    ///
    /// # Errors
    /// [`CopyError`]; nothing is left.
    pub fn of(router: &NetnsFd, tools: &Tools) -> Result<Self, CopyError> {
        let outside = Arc::new(NetnsFd::unnamed(beside(router, "-outside")?)?);
        settings::prepare_outside(&outside)?;
        Self::with(router, tools, outside, &Ends::default())
    }

    /// Copies the router, with the far ends of its wires in `outside`.
    fn with(
        router: &NetnsFd,
        tools: &Tools,
        outside: Arc<NetnsFd>,
        ends: &Ends,
    ) -> Result<Self, CopyError> {
        let netns = NetnsFd::unnamed(beside(router, "-copy")?)?;
        let saved = std::thread::scope(|scope| {
            // Tools take longest; what netlink knows is copied meanwhile.
            let saving = scope.spawn(|| rulesets::Rulesets::read(router, tools));
            let made = objects::copy(router, &netns, (&outside, ends));
            let saved = saving
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, CopyError>((made?, saved?))
        });
        let (made, saved) = saved?;
        let mut differences = made.differences;
        differences.extend(saved.load(router, &netns, tools)?);
        // Those of connection tracking come into being with the rules.
        differences.extend(settings::copy(
            router,
            &netns,
            settings::SettingsPart::Netfilter,
        )?);
        // What is sent from outside comes in only when those ends, too, have their queues.
        for part in [&netns, &*outside] {
            Netlink::open(part)?.await_settled()?;
        }
        Ok(Self {
            netns: Arc::new(netns),
            outside,
            wires: made.wires,
            differences,
        })
    }

    /// The copy's namespace.
    #[must_use]
    pub fn netns(&self) -> &Arc<NetnsFd> {
        &self.netns
    }

    /// What the router has and its copy lacks, in words.
    #[must_use]
    pub fn differences(&self) -> &[String] {
        &self.differences
    }

    /// Makes what is sent from the namespace that is returned come in by `interface`; none where
    /// the router has no such interface with a wire.
    ///
    /// # Errors
    /// [`CopyError`] when the kernel refuses.
    #[cfg(feature = "internals")]
    pub fn facing(&self, interface: &IfName) -> Result<Option<&NetnsFd>, CopyError> {
        let Some(wire) = self.wires.iter().find(|w| w.interface == *interface) else {
            return Ok(None);
        };
        let mut netlink = Netlink::open(&self.outside)?;
        let mut batch = netlink.batch("a copy's outside");
        for gateway in GATEWAYS {
            let default = match gateway {
                IpAddr::V4(_) => "0.0.0.0/0",
                IpAddr::V6(_) => "::/0",
            };
            let Ok(destination) = default.parse() else {
                continue;
            };
            let hop = NextHop {
                via: Some(gateway),
                dev: Some(wire.port.clone()),
                weight: 1,
                onlink: true,
            };
            let entry = Neighbour::permanent(wire.port.clone(), gateway, wire.mac);
            batch.replace_neighbour(&entry).replace_route(&Route {
                next_hops: vec![hop],
                ..Route::via(destination, gateway, wire.port.clone())
            });
        }
        batch.send()?;
        Ok(Some(&self.outside))
    }

    /// The far end of the wire of `interface`: its namespace, its number there, and the hardware
    /// address of the interface. None where the router has no such interface with a wire.
    #[must_use]
    pub fn wire(&self, interface: &IfName) -> Option<(&NetnsFd, u32, Mac)> {
        let wire = self.wires.iter().find(|w| w.interface == *interface)?;
        Some((&self.outside, wire.number, wire.mac))
    }

    /// Leaves only `hop` of a route with several next hops.
    ///
    /// # Errors
    /// [`CopyError`] when the kernel refuses.
    pub fn cut(&self, route: &Route, hop: &NextHop) -> Result<(), CopyError> {
        let mut netlink = Netlink::open(&self.netns)?;
        let mut batch = netlink.batch(self.netns.name().as_str());
        batch.replace_route(&Route {
            next_hops: vec![NextHop {
                weight: 1,
                ..hop.clone()
            }],
            ..route.clone()
        });
        Ok(batch.send()?)
    }
}

/// A name for what is made of a router; nobody else sees it.
fn beside(router: &NetnsFd, suffix: &str) -> Result<NetnsName, CopyError> {
    let name = format!("{}{suffix}", router.name());
    NetnsName::new(&name).map_err(|_| CopyError::Name(name))
}

/// The address of a far end.
fn outside_address() -> Option<Address> {
    Some(Address {
        local: ipnet::IpNet::new(OUTSIDE, 64).ok()?,
        peer: None,
        scope: Scope::Link,
        prefix_route: true,
    })
}
