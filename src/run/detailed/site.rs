//! What one round of a job does at one router: who stands for the destination, and which services
//! are tried.

use std::net::{IpAddr, SocketAddr};

use crate::{
    model::{IfName, Protocol, Service},
    netlink::LookupKind,
    registry::HostSpec,
    run::way::Way,
};

/// Who stands for the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sink {
    /// A host on the segment of this interface, which answers for the router's next hop.
    Host {
        /// The router's interface.
        interface: IfName,
        /// Whose neighbour entry the router uses: its gateway's, or the destination's.
        hop: IpAddr,
        /// The address to which packets come.
        address: IpAddr,
    },
    /// The router itself has the address.
    Router {
        /// The address.
        address: IpAddr,
    },
    /// Nobody: the router sends packets nowhere.
    Nowhere,
}

impl Sink {
    /// Who stands for `destination` where the router sends packets as `lookup` says.
    pub(super) fn of(lookup: &crate::netlink::Lookup, destination: IpAddr) -> Self {
        match (lookup.kind, &lookup.dev) {
            (LookupKind::Local, _) => Self::Router {
                address: destination,
            },
            (LookupKind::Unicast, Some(interface)) => Self::Host {
                interface: interface.clone(),
                hop: lookup.via.unwrap_or(destination),
                address: destination,
            },
            _ => Self::Nowhere,
        }
    }

    /// The interface by which packets leave; `lo` is none.
    pub(super) fn interface(&self) -> Option<&IfName> {
        match self {
            Self::Host { interface, .. } => Some(interface),
            Self::Router { .. } | Self::Nowhere => None,
        }
    }

    /// The address at which the service listens.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Host { address, .. } | Self::Router { address } => Some(*address),
            Self::Nowhere => None,
        }
    }
}

/// A service to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    /// Its place in the list asked for.
    pub(super) at: usize,
    /// The service.
    pub(super) service: Service,
    /// The port to which the router sends it.
    pub(super) port: u16,
    /// How often it was found to go elsewhere than expected.
    pub(super) moves: u8,
}

impl Task {
    /// What its listener takes up on the host that stands for the destination.
    pub(super) fn listens_on(&self) -> (Protocol, u16) {
        (self.service.protocol, self.port)
    }
}

/// Services for which the same one stands for the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) sink: Sink,
    pub(super) tasks: Vec<Task>,
}

impl Target {
    /// Where a service listens.
    pub(super) fn listen_at(&self, task: &Task) -> Option<SocketAddr> {
        let address = self.sink.address()?;
        Some(SocketAddr::new(address, task.port))
    }
}

/// The targets of `services` by the ways that the router's tables say.
pub(super) fn targets(way: &Way, destination: IpAddr, services: &[Service]) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for (at, &service) in services.iter().enumerate() {
        let other = way.by_port.iter().find(|(position, _)| *position == at);
        let lookup = other.map_or(&way.onward, |(_, lookup)| lookup);
        let task = Task {
            at,
            service,
            port: service.port,
            moves: 0,
        };
        add(&mut targets, Sink::of(lookup, destination), task);
    }
    targets
}

/// Adds a service to those with the same sink.
pub(super) fn add(targets: &mut Vec<Target>, sink: Sink, task: Task) {
    match targets.iter_mut().find(|target| target.sink == sink) {
        Some(target) => target.tasks.push(task),
        None => targets.push(Target {
            sink,
            tasks: vec![task],
        }),
    }
}

/// One router in one round.
#[derive(Debug)]
pub(super) struct Site<'a> {
    /// The router's place in the list of routers.
    pub(super) at: usize,
    pub(super) way: &'a Way,
    /// The host that connects.
    pub(super) source: &'a HostSpec,
    pub(super) target: Target,
    /// The host that listens; none where the router itself does, or nobody.
    pub(super) destination: Option<HostSpec>,
    /// The interface by which answers leave and whose neighbour entry the router uses for them.
    pub(super) back: Option<(IfName, IpAddr)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn task(at: usize) -> Task {
        Task {
            at,
            service: Service {
                port: 80,
                protocol: Protocol::Tcp,
            },
            port: 80,
            moves: 0,
        }
    }

    #[test]
    fn services_with_one_sink_are_tried_together() {
        let host = |hop: &str| Sink::Host {
            interface: "eth0".parse().unwrap(),
            hop: hop.parse().unwrap(),
            address: "10.0.0.9".parse().unwrap(),
        };
        let mut targets = Vec::new();
        add(&mut targets, host("10.0.0.1"), task(0));
        add(&mut targets, host("10.0.0.2"), task(1));
        add(&mut targets, host("10.0.0.1"), task(2));
        let at: Vec<Vec<usize>> = targets
            .iter()
            .map(|target| target.tasks.iter().map(|t| t.at).collect())
            .collect();
        assert_eq!(at, [vec![0, 2], vec![1]]);
    }
}
