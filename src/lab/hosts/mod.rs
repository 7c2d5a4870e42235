//! Hosts: namespaces with one address, joined to a router's segment.
//!
//! ```text
//! namespace LAB..segments        namespace LAB@HOST
//! bridge of the segment
//!   └─ port h0123456789abcd ───── eth0  ADDRESS, default route via the router's own address,
//!      learns nothing, one         onlink, with a permanent neighbour entry for its MAC
//!      static entry: eth0's MAC
//! ```
//!
//! Everything that a host sends goes to its own router, also what is meant for the subnet that it
//! is in: it has no prefix route and never asks by ARP or NDP. So several hosts with one and the
//! same address can sit on one segment, one per router, and each reaches its own router only.
//!
//! This module makes and unmakes what the kernel holds. Who uses a host, and whether two jobs may
//! make the same one at once, is the registry's business. The last thing that is done to a host
//! is to note at its port what it is; a host without that note is half made or half removed.

mod error;
mod kernel;
mod make;
mod plan;

use std::net::IpAddr;

use nix::errno::Errno;

pub use self::{
    error::HostError,
    kernel::LabHosts,
    make::{Added, unnamed},
    plan::{HostRequest, HostState},
};
use super::sockets::RouterSockets;
use crate::{
    fault,
    model::{HostId, HostName, IfName, LabName, RouterId},
    netlink::{
        LinkChange, LookupKind, LookupQuery, Netlink,
        object::{Address, Mac},
    },
    netns::NetnsDir,
    registry::HostSpec,
};

/// Makes and removes hosts of one lab. It keeps sockets open in the lab's namespaces: hold it no
/// longer than one command.
#[derive(Debug)]
pub struct Hosts {
    routers: RouterSockets,
    segments: Netlink,
}

/// Where a host is plugged in.
struct Socket {
    router_mac: Mac,
    mtu: u32,
    bridge: IfName,
}

impl Hosts {
    /// Opens what is needed for the hosts of `lab`.
    ///
    /// # Errors
    /// [`HostError::Sockets`] when the lab is not up.
    pub fn open(dir: &NetnsDir, lab: &LabName) -> Result<Self, HostError> {
        let routers = RouterSockets::new(dir, lab);
        let segments = routers.segments()?;
        Ok(Self { routers, segments })
    }

    /// The sockets of the lab's routers.
    pub fn routers(&mut self) -> &mut RouterSockets {
        &mut self.routers
    }

    /// Finds out where the host goes and what it needs. Changes nothing.
    ///
    /// # Errors
    /// [`HostError`] when the router has no place for it.
    pub fn plan(&mut self, request: &HostRequest) -> Result<HostSpec, HostError> {
        self.check(&request.id, &request.router)?;
        let max = if request.address.is_ipv4() { 32 } else { 128 };
        if let Some(length) = request.prefix_len.filter(|length| *length > max) {
            return Err(HostError::PrefixLength {
                length,
                address: request.address,
                max,
            });
        }
        let facing = self.facing(&request.router, request.address)?;
        let interface = match (&request.interface, facing) {
            (Some(asked), _) => asked.clone(),
            (None, Ok(interface)) => interface,
            (None, Err(kind)) => {
                return Err(HostError::NoWay {
                    router: request.router.clone(),
                    address: request.address,
                    kind,
                });
            }
        };
        self.socket(&request.router, &interface)?;
        let addresses = self.addresses(&request.router, &interface)?;
        Ok(plan::spec(request, interface, &addresses))
    }

    /// The plan of a host that is there as `request` says, at the interface that it names.
    ///
    /// # Errors
    /// As [`Hosts::plan`].
    pub fn plan_of_made(
        &mut self,
        request: &HostRequest,
        interface: &IfName,
    ) -> Result<HostSpec, HostError> {
        self.check(&request.id, &request.router)?;
        let addresses = self.addresses(&request.router, interface)?;
        Ok(plan::spec(request, interface.clone(), &addresses))
    }

    fn addresses(
        &mut self,
        router: &RouterId,
        interface: &IfName,
    ) -> Result<Vec<Address>, HostError> {
        let netlink = self.routers.router(&router.router)?;
        Ok(netlink.addresses_of(interface)?)
    }

    fn check(&self, host: &HostId, router: &RouterId) -> Result<(), HostError> {
        if host.lab == *self.routers.lab() && router.lab == host.lab {
            return Ok(());
        }
        Err(HostError::OtherLab {
            host: host.clone(),
            router: router.clone(),
        })
    }

    /// The interface by which `router` sends to `address`, or what else it does.
    fn facing(
        &mut self,
        router: &RouterId,
        address: IpAddr,
    ) -> Result<Result<IfName, LookupKind>, HostError> {
        let netlink = self.routers.router(&router.router)?;
        let way = netlink.lookup_one(&LookupQuery::to(address))?;
        match (way.kind, way.dev) {
            (LookupKind::Local, _) => Err(HostError::RouterAddress {
                router: router.clone(),
                address,
            }),
            (LookupKind::Broadcast, _) => Err(HostError::Broadcast {
                router: router.clone(),
                address,
            }),
            (LookupKind::Unicast, Some(dev)) => Ok(Ok(dev)),
            (kind, _) => Ok(Err(kind)),
        }
    }

    /// Finds the bridge behind `interface`: the far end of the router's veth is a port of it.
    fn socket(&mut self, router: &RouterId, interface: &IfName) -> Result<Socket, HostError> {
        let no_segment = || HostError::NoSegment {
            router: router.clone(),
            interface: interface.clone(),
        };
        let netlink = self.routers.router(&router.router)?;
        let link = netlink
            .link(interface)?
            .ok_or_else(|| HostError::NoInterface {
                router: router.clone(),
                interface: interface.clone(),
            })?;
        let (Some(router_mac), Some(peer)) = (link.mac, link.peer) else {
            return Err(no_segment());
        };
        let port = self.segments.link_by_index(peer)?;
        let bridge = port.and_then(|port| port.master).ok_or_else(no_segment)?;
        let bridge = self.segments.link_by_index(bridge)?;
        Ok(Socket {
            router_mac,
            mtu: link.mtu,
            bridge: bridge.ok_or_else(no_segment)?.name,
        })
    }

    /// Removes `host`, whole or in part. One that is not there is success. The kernel frees what
    /// the host had some milliseconds later, by itself; nothing of it is in the way meanwhile.
    ///
    /// # Errors
    /// [`HostError`] with everything that could not be removed.
    #[cfg(feature = "internals")]
    pub fn remove(&mut self, host: &HostId) -> Result<(), HostError> {
        self.remove_all(&[host])
    }

    /// Removes all of `hosts`, each as [`Hosts::remove`] does; one that fails stops no other.
    ///
    /// # Errors
    /// As [`Hosts::remove`].
    pub fn remove_all(&mut self, hosts: &[&HostId]) -> Result<(), HostError> {
        step("host.remove")?;
        let mut errors = Vec::new();
        errors.extend(self.unplug(hosts).err());
        step("host.delete")?;
        for host in hosts {
            let deleted = self.routers.dir().delete(&host.netns());
            errors.extend(deleted.err().map(HostError::from));
        }
        HostError::all(errors)
    }

    /// Takes the ports of `hosts` down, out of their bridges, and their names from them.
    ///
    /// From then on a host neither sends nor receives, its address may be used again, and its
    /// name is free. Deleting the port would make the caller wait for 25 ms; the kernel does it
    /// with the namespace, a little later.
    fn unplug(&mut self, hosts: &[&HostId]) -> Result<(), HostError> {
        let mut ports = Vec::new();
        for host in hosts {
            ports.extend(self.segments.link(&plan::port_name(host)?)?);
        }
        let mut batch = self.segments.batch(format!("lab {}", self.routers.lab()));
        for port in &ports {
            let down = LinkChange {
                up: Some(false),
                master: Some(None),
                alias: Some(String::new()),
                ..LinkChange::default()
            };
            let rename = LinkChange {
                name: Some(IfName::new(format!("gone{}", port.index))?),
                ..LinkChange::default()
            };
            // The namespace, and the port with it, may go in this very moment.
            batch.set_link(&port.name, &down).tolerate(Errno::ENODEV);
            batch.set_link(&port.name, &rename).tolerate(Errno::ENODEV);
        }
        Ok(batch.send()?)
    }

    /// The hosts of the lab that are made completely, by name.
    ///
    /// # Errors
    /// [`HostError::Netlink`] when the kernel refuses the list.
    pub fn list(&mut self) -> Result<Vec<HostState>, HostError> {
        let mut ports = Vec::new();
        for host in self.names()? {
            ports.push(plan::port_name(&HostId::new(
                self.routers.lab().clone(),
                host,
            ))?);
        }
        // Asked for by name: a lab has many more ports than hosts.
        let ports = self
            .segments
            .links_named(&ports.iter().collect::<Vec<_>>())?;
        let mut hosts: Vec<HostState> = ports
            .iter()
            .flatten()
            .filter_map(|port| HostState::from_alias(port.alias.as_deref()?))
            .collect();
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        Ok(hosts)
    }

    /// The namespaces of hosts of the lab, those made in part included.
    ///
    /// # Errors
    /// [`HostError::Netns`] when they cannot be listed.
    pub fn names(&self) -> Result<Vec<HostName>, HostError> {
        let names = self.routers.dir().list()?;
        let mine = names.iter().filter_map(|name| {
            let id: HostId = name.as_str().parse().ok()?;
            (id.lab == *self.routers.lab()).then_some(id.host)
        });
        Ok(mine.collect())
    }
}

fn step(name: &'static str) -> Result<(), HostError> {
    fault::step(name).map_err(|source| HostError::Fault { step: name, source })
}
