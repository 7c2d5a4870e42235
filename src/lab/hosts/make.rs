//! Making hosts: namespace, veth, addresses, and last the note that says what it is.

use std::{io, net::IpAddr};

use super::{HostError, HostState, Hosts, Socket, plan, step};
use crate::{
    lab::pool,
    model::{HostId, IfName},
    netlink::{
        LinkChange, Netlink, NewVeth, PortOptions, VethEnd,
        object::{Address, Family, Mac, Neighbour, NextHop, Route, RouteKind},
        sysctl::{self, SysctlError},
    },
    netns::{NetnsDir, NetnsError, NetnsFd},
    registry::HostSpec,
};

/// The interface in a host.
const ETH0: &str = "eth0";

/// What [`Hosts::add`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// The host was made.
    Made,
    /// The very same host was there already.
    AlreadyThere,
}

/// Where a host goes.
struct Place {
    gateway: IpAddr,
    port: IfName,
    socket: Socket,
}

/// A host on its way: its namespace, and a socket in it.
struct Draft<'a> {
    plan: &'a HostSpec,
    place: Place,
    netns: NetnsFd,
    netlink: Netlink,
}

impl Hosts {
    /// Makes the host `plan`. The same host made before is success; a different one of its name,
    /// or a part of one, is an error.
    ///
    /// # Errors
    /// [`HostError`]; nothing of the host is left then, unless the error says so.
    #[cfg(feature = "internals")]
    pub fn add(&mut self, plan: &HostSpec) -> Result<Added, HostError> {
        let added = self.add_all(&[plan])?;
        Ok(added.first().copied().unwrap_or(Added::AlreadyThere))
    }

    /// Makes all hosts of `plans` or none, each as [`Hosts::add`] does.
    ///
    /// # Errors
    /// As [`Hosts::add`].
    pub fn add_all(&mut self, plans: &[&HostSpec]) -> Result<Vec<Added>, HostError> {
        let mut found = Vec::with_capacity(plans.len());
        for plan in plans {
            found.push(self.find(plan)?);
        }
        let new = plans.iter().zip(&found);
        let new: Vec<&HostSpec> = new
            .filter(|(_, added)| **added == Added::Made)
            .map(|(&plan, _)| plan)
            .collect();
        let mut begun = Vec::new();
        self.make(&new, &mut begun).map_err(|source| {
            let undo = self.remove_all(&begun.iter().collect::<Vec<_>>());
            let undo = undo.err().into_iter().collect();
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
        let mut drafts = self.drafts(plans, begun)?;
        step("host.link")?;
        self.plug_in(&drafts)?;
        for draft in &mut drafts {
            step("host.configure")?;
            draft.configure()?;
        }
        let ports: Vec<&IfName> = drafts.iter().map(|draft| &draft.place.port).collect();
        self.segments.await_forwarding(&ports)?;
        step("host.note")?;
        self.note(&drafts)
    }

    /// Makes the namespaces, as many at once as there are processors.
    fn drafts<'p>(
        &mut self,
        plans: &[&'p HostSpec],
        begun: &mut Vec<HostId>,
    ) -> Result<Vec<Draft<'p>>, HostError> {
        let mut places = Vec::with_capacity(plans.len());
        for plan in plans {
            places.push(self.place(plan)?);
        }
        let dir = self.routers.dir();
        let mut drafts = Vec::with_capacity(plans.len());
        let mut errors = Vec::new();
        let made = pool::each(plans, |plan| namespace(dir, plan));
        for ((&plan, place), made) in plans.iter().zip(places).zip(made) {
            let (netns, inside) = match made {
                Some(Ok(made)) => made,
                Some(Err(error)) => {
                    errors.push(error);
                    continue;
                }
                None => {
                    let message = format!("making host {}", plan.id);
                    errors.push(NetnsError::Panicked { message }.into());
                    continue;
                }
            };
            begun.push(plan.id.clone());
            match inside {
                Ok(netlink) => drafts.push(Draft {
                    plan,
                    place,
                    netns,
                    netlink,
                }),
                Err(error) => errors.push(error),
            }
        }
        HostError::all(errors)?;
        Ok(drafts)
    }

    /// Finds out where the host is plugged in, and where it sends to.
    fn place(&mut self, plan: &HostSpec) -> Result<Place, HostError> {
        let socket = self.socket(&plan.router, &plan.interface)?;
        let gateway = match plan.gateway {
            Some(gateway) => gateway,
            None => plan::gateway(
                &self.addresses(&plan.router, &plan.interface)?,
                plan.address.addr(),
            ),
        };
        Ok(Place {
            gateway,
            port: plan::port_name(&plan.id)?,
            socket,
        })
    }

    /// Joins each host to its bridge by a veth.
    fn plug_in(&mut self, drafts: &[Draft<'_>]) -> Result<(), HostError> {
        let what = format!("lab {}", self.routers.lab());
        plug_in(&mut self.segments, what, drafts)
    }

    /// Leads to each host what is for it, and notes at its port what it is: from now on it counts as made.
    fn note(&mut self, drafts: &[Draft<'_>]) -> Result<(), HostError> {
        let mut batch = self.segments.batch(format!("lab {}", self.routers.lab()));
        for draft in drafts {
            batch.add_forwarding(&draft.place.port, draft.plan.mac);
        }
        for draft in drafts {
            let alias = HostState::of(draft.plan).to_alias();
            let change = LinkChange {
                alias: Some(alias),
                ..LinkChange::default()
            };
            batch.set_link(&draft.place.port, &change);
        }
        Ok(batch.send()?)
    }
}

/// Makes a host's namespace and opens a socket in it. What it must know before its interface
/// appears is set first.
fn namespace(
    dir: &NetnsDir,
    plan: &HostSpec,
) -> Result<(NetnsFd, Result<Netlink, HostError>), HostError> {
    step("host.namespace")?;
    let name = plan.id.netns();
    let family = Family::of(plan.address.addr());
    let made = dir.create_with(&name, || {
        quiet(name.as_str(), family)?;
        Ok(Netlink::open_here(name.as_str())?)
    });
    Ok(made?)
}

/// Joins each host to its bridge of `segments` by a veth. Nothing is led there yet: that needs the port's
/// number, which whoever waits for the port to forward learns by the way.
fn plug_in(segments: &mut Netlink, what: String, drafts: &[Draft<'_>]) -> Result<(), HostError> {
    let eth0 = IfName::new(ETH0)?;
    let mut batch = segments.batch(what);
    for draft in drafts {
        batch.add_veth(&NewVeth {
            near: VethEnd {
                mtu: Some(draft.place.socket.mtu),
                ..VethEnd::new(draft.place.port.clone())
            },
            near_up: true,
            master: Some(draft.place.socket.bridge.clone()),
            far: VethEnd {
                netns: Some(&draft.netns),
                mac: Some(draft.plan.mac),
                mtu: Some(draft.place.socket.mtu),
                ..VethEnd::new(eth0.clone())
            },
        });
    }
    let quiet = PortOptions {
        learning: false,
        flood: false,
    };
    for draft in drafts {
        batch.set_port(&draft.place.port, quiet);
    }
    Ok(batch.send()?)
}

/// A host like those of a lab, in a namespace without a name, on a bridge of `wires`: it goes with its
/// descriptor. `gateway` is the hardware address of its router there, and the MTU of that link.
///
/// # Errors
/// [`HostError`] when the kernel refuses; nothing is left.
pub fn unnamed(
    plan: &HostSpec,
    (wires, bridge): (&NetnsFd, IfName),
    (router_mac, mtu): (Mac, u32),
) -> Result<NetnsFd, HostError> {
    let netns = NetnsFd::unnamed(plan.id.netns())?;
    let name = netns.name().as_str().to_owned();
    let family = Family::of(plan.address.addr());
    let netlink = netns.enter(|| {
        quiet(&name, family)?;
        Ok::<_, HostError>(Netlink::open_here(&name)?)
    })??;
    let address = plan.address.addr();
    let place = Place {
        gateway: plan.gateway.unwrap_or_else(|| plan::gateway(&[], address)),
        port: plan::port_name(&plan.id)?,
        socket: Socket {
            router_mac,
            mtu,
            bridge,
        },
    };
    let mut segments = Netlink::open(wires)?;
    // The bridges' numbers, by which ports are put into them.
    segments.links()?;
    let mut drafts = [Draft {
        plan,
        place,
        netns,
        netlink,
    }];
    let what = format!("host {}", plan.id);
    plug_in(&mut segments, what.clone(), &drafts)?;
    let [draft] = &mut drafts;
    draft.configure()?;
    segments.await_forwarding(&[&draft.place.port])?;
    let mut batch = segments.batch(what);
    batch.add_forwarding(&draft.place.port, draft.plan.mac);
    batch.send()?;
    let [draft] = drafts;
    Ok(draft.netns)
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
        let gateway = Neighbour::permanent(
            eth0.clone(),
            self.place.gateway,
            self.place.socket.router_mac,
        );
        // Its number is learned; the first ones may be those of devices that modules of tunnels made.
        self.netlink.link(&eth0)?;
        let mut batch = self.netlink.batch(format!("host {}", plan.id));
        batch
            .set_link(&IfName::new("lo")?, &LinkChange::up())
            .set_link(&eth0, &LinkChange::up())
            .add_address(&eth0, &address)
            .replace_neighbour(&gateway)
            .add_route(&default_route(self.place.gateway, eth0));
        batch.send()?;
        if plan.address.addr().is_ipv6() {
            self.netlink.await_settled()?;
        }
        Ok(())
    }
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
    // It sets `default`, too (`addrconf_disable_ipv6()`).
    const NO_V6: &[(&str, &str)] = &[("net/ipv6/conf/all/disable_ipv6", "1")];
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
