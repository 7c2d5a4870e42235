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
mod plan;

use std::{io, net::IpAddr};

use nix::errno::Errno;

pub use self::{
    error::HostError,
    kernel::LabHosts,
    plan::{HostRequest, HostState},
};
use super::sockets::RouterSockets;
use crate::{
    fault,
    model::{HostId, HostName, IfName, LabName, RouterId},
    netlink::{
        LinkChange, LookupKind, LookupQuery, Netlink, NewVeth, PortOptions, VethEnd,
        object::{Address, Family, Mac, Neighbour, NextHop, Route, RouteKind},
        sysctl::{self, SysctlError},
    },
    netns::{NetnsDir, NetnsFd},
    registry::HostSpec,
};

/// The interface in a host.
const ETH0: &str = "eth0";
/// Its index: a new namespace has 1, the loopback, only.
const ETH0_INDEX: u32 = 2;

/// Makes and removes hosts of one lab. It keeps sockets open in the lab's namespaces: hold it no
/// longer than one command.
#[derive(Debug)]
pub struct Hosts {
    routers: RouterSockets,
    segments: Netlink,
}

/// What [`Hosts::add`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// The host was made.
    Made,
    /// The very same host was there already.
    AlreadyThere,
}

/// Where a host is plugged in.
struct Socket {
    router_mac: Mac,
    mtu: u32,
    bridge: IfName,
}

/// A host on its way: its namespace, and a socket in it.
struct Draft<'a> {
    plan: &'a HostSpec,
    gateway: IpAddr,
    port: IfName,
    socket: Socket,
    netns: NetnsFd,
    netlink: Netlink,
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
            (LookupKind::Local | LookupKind::Broadcast, _) => Err(HostError::RouterAddress {
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

    /// Makes the host `plan`. The same host made before is success; a different one of its name,
    /// or a part of one, is an error.
    ///
    /// # Errors
    /// [`HostError`]; nothing of the host is left then, unless the error says so.
    pub fn add(&mut self, plan: &HostSpec) -> Result<Added, HostError> {
        let added = self.add_all(std::slice::from_ref(plan))?;
        Ok(added.first().copied().unwrap_or(Added::AlreadyThere))
    }

    /// Makes all hosts of `plans` or none, each as [`Hosts::add`] does.
    ///
    /// # Errors
    /// As [`Hosts::add`].
    pub fn add_all(&mut self, plans: &[HostSpec]) -> Result<Vec<Added>, HostError> {
        let mut found = Vec::with_capacity(plans.len());
        for plan in plans {
            found.push(self.find(plan)?);
        }
        let new = plans.iter().zip(&found);
        let new: Vec<&HostSpec> = new
            .filter(|(_, added)| **added == Added::Made)
            .map(|(plan, _)| plan)
            .collect();
        let mut begun = Vec::new();
        self.make(&new, &mut begun).map_err(|source| {
            let undo = self.remove_all(&begun).err().into_iter().collect();
            HostError::Make {
                hosts: new.iter().map(|plan| plan.id.clone()).collect(),
                source: Box::new(source),
                undo,
            }
        })?;
        Ok(found)
    }

    /// Whether the host exists; an error when another one or a part of one does.
    fn find(&mut self, plan: &HostSpec) -> Result<Added, HostError> {
        self.check(&plan.id, &plan.router)?;
        let port = self.segments.link(&plan::port_name(&plan.id)?)?;
        let state = port
            .as_ref()
            .and_then(|port| HostState::from_alias(port.alias.as_deref()?));
        let netns = self.routers.dir().exists(&plan.id.netns())?;
        match (netns, state) {
            (true, Some(state)) if state == HostState::of(plan) => Ok(Added::AlreadyThere),
            (_, Some(found)) => Err(HostError::Exists {
                host: plan.id.clone(),
                found: Box::new(found),
            }),
            (false, None) if port.is_none() => Ok(Added::Made),
            _ => Err(HostError::InPart {
                host: plan.id.clone(),
            }),
        }
    }

    /// Makes `plans`; `begun` tells of which there may be something to undo. Whoever has the
    /// namespace has the host: one that somebody else made meanwhile is not among them.
    fn make(&mut self, plans: &[&HostSpec], begun: &mut Vec<HostId>) -> Result<(), HostError> {
        let mut drafts = Vec::with_capacity(plans.len());
        for plan in plans {
            drafts.push(self.draft(plan, begun)?);
        }
        step("host.link")?;
        self.plug_in(&drafts)?;
        for draft in &mut drafts {
            step("host.configure")?;
            draft.configure()?;
        }
        let ports: Vec<&IfName> = drafts.iter().map(|draft| &draft.port).collect();
        self.segments.await_forwarding(&ports)?;
        step("host.note")?;
        self.note(&drafts)
    }

    /// Makes the namespace. What it must know before its interface appears is set first.
    fn draft<'p>(
        &mut self,
        plan: &'p HostSpec,
        begun: &mut Vec<HostId>,
    ) -> Result<Draft<'p>, HostError> {
        let socket = self.socket(&plan.router, &plan.interface)?;
        let gateway = match plan.gateway {
            Some(gateway) => gateway,
            None => plan::gateway(
                &self.addresses(&plan.router, &plan.interface)?,
                plan.address.addr(),
            ),
        };
        step("host.namespace")?;
        let name = plan.id.netns();
        let family = Family::of(plan.address.addr());
        let (netns, inside) = self.routers.dir().create_with(&name, || {
            quiet(name.as_str(), family)?;
            Ok::<_, HostError>(Netlink::open_here(name.as_str())?)
        })?;
        begun.push(plan.id.clone());
        Ok(Draft {
            port: plan::port_name(&plan.id)?,
            plan,
            gateway,
            socket,
            netns,
            netlink: inside?,
        })
    }

    /// Joins each host to its bridge by a veth.
    fn plug_in(&mut self, drafts: &[Draft<'_>]) -> Result<(), HostError> {
        let eth0 = IfName::new(ETH0)?;
        let mut batch = self.segments.batch(format!("lab {}", self.routers.lab()));
        for draft in drafts {
            batch.add_veth(&NewVeth {
                near: VethEnd {
                    mtu: Some(draft.socket.mtu),
                    ..VethEnd::new(draft.port.clone())
                },
                near_up: true,
                master: Some(draft.socket.bridge.clone()),
                far: VethEnd {
                    netns: Some(&draft.netns),
                    index: Some(ETH0_INDEX),
                    mac: Some(draft.plan.mac),
                    mtu: Some(draft.socket.mtu),
                    ..VethEnd::new(eth0.clone())
                },
            });
        }
        let quiet = PortOptions {
            learning: false,
            flood: false,
        };
        for draft in drafts {
            batch.set_port(&draft.port, quiet);
            batch.add_forwarding(&draft.port, draft.plan.mac);
        }
        Ok(batch.send()?)
    }

    /// Notes at each port what its host is: from now on it counts as made.
    fn note(&mut self, drafts: &[Draft<'_>]) -> Result<(), HostError> {
        let mut batch = self.segments.batch(format!("lab {}", self.routers.lab()));
        for draft in drafts {
            let alias = HostState::of(draft.plan).to_alias();
            let change = LinkChange {
                alias: Some(alias),
                ..LinkChange::default()
            };
            batch.set_link(&draft.port, &change);
        }
        Ok(batch.send()?)
    }

    /// Removes `host`, whole or in part. One that is not there is success. The kernel frees what
    /// the host had some milliseconds later, by itself; nothing of it is in the way meanwhile.
    ///
    /// # Errors
    /// [`HostError`] with everything that could not be removed.
    pub fn remove(&mut self, host: &HostId) -> Result<(), HostError> {
        self.remove_all(std::slice::from_ref(host))
    }

    /// Removes all of `hosts`, each as [`Hosts::remove`] does; one that fails stops no other.
    ///
    /// # Errors
    /// As [`Hosts::remove`].
    pub fn remove_all(&mut self, hosts: &[HostId]) -> Result<(), HostError> {
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
    fn unplug(&mut self, hosts: &[HostId]) -> Result<(), HostError> {
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

impl Draft<'_> {
    /// Gives the host its address and its way out. Afterwards it can send and receive at once.
    fn configure(&mut self) -> Result<(), HostError> {
        let eth0 = IfName::new(ETH0)?;
        let plan = self.plan;
        let address = Address {
            prefix_route: false,
            ..Address::new(plan.address)
        };
        let gateway = Neighbour::permanent(eth0.clone(), self.gateway, self.socket.router_mac);
        self.netlink.learn(eth0.clone(), ETH0_INDEX);
        let mut batch = self.netlink.batch(format!("host {}", plan.id));
        batch
            .set_link(&IfName::new("lo")?, &LinkChange::up())
            .set_link(&eth0, &LinkChange::up())
            .add_address(&eth0, &address)
            .replace_neighbour(&gateway)
            .add_route(&default_route(self.gateway, eth0));
        batch.send()?;
        if plan.address.addr().is_ipv6() {
            self.netlink.await_settled()?;
        }
        Ok(())
    }
}

fn step(name: &'static str) -> Result<(), HostError> {
    fault::step(name).map_err(|source| HostError::Fault { step: name, source })
}

fn default_route(gateway: IpAddr, dev: IfName) -> Route {
    let any: IpAddr = match gateway {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    let hop = NextHop {
        via: Some(gateway),
        dev: Some(dev),
        weight: 1,
        onlink: true,
    };
    let destination = ipnet::IpNet::new_assert(any, 0);
    Route {
        next_hops: vec![hop],
        ..Route::without_hops(destination, RouteKind::Unicast)
    }
}

/// Makes the namespace that the thread is in that of a host that takes no advice about routes
/// (redirects, router advertisements), forwards nothing, and sends nothing by itself.
///
/// A new namespace has its IPv4 settings from the machine's own (`devconf_inherit_init_net`), so
/// nothing may be taken for granted.
fn quiet(netns: &str, family: Family) -> Result<(), HostError> {
    // Forwarding first: changing it sets `accept_redirects`.
    const V4: &[(&str, &str)] = &[
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/default/accept_redirects", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ];
    const V6: &[(&str, &str)] = &[
        ("net/ipv6/conf/all/accept_redirects", "0"),
        ("net/ipv6/conf/default/accept_redirects", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        // No link-local address: nobody would need it.
        ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ];
    const NO_V6: &[(&str, &str)] = &[
        ("net/ipv6/conf/all/disable_ipv6", "1"),
        ("net/ipv6/conf/default/disable_ipv6", "1"),
    ];
    let mut errors = sysctl::write_here(netns, V4).err().unwrap_or_default();
    match family {
        Family::V6 => errors.extend(sysctl::write_here(netns, V6).err().unwrap_or_default()),
        Family::V4 => {
            let failed = sysctl::write_here(netns, NO_V6).err().unwrap_or_default();
            errors.extend(failed.into_iter().filter(|error| !missing(error)));
        }
    }
    HostError::all(errors.into_iter().map(HostError::from).collect())
}

/// A kernel without IPv6 has nothing to switch off.
fn missing(error: &SysctlError) -> bool {
    matches!(error, SysctlError::Write { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
