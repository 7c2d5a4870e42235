//! What is measured together: a chain of routers with a host at either end, and which services are
//! tried there.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    fork::{Choice, SingleHop, SpreadRoute},
    result::RouterWay,
};
use crate::{
    model::{IfName, NetnsName, Protocol, RouterId, RouterName, Service},
    netlink::object::Mac,
    netns::{NetnsDir, NetnsError, NetnsFd},
    registry::{HostSpec, NeighbourKey},
};

/// Who stands for the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sink {
    /// A host on the segment of this interface, which answers for the router's next hop.
    Host {
        /// The router that sends to it.
        router: RouterName,
        /// The router's interface.
        interface: IfName,
        /// Whose neighbour entry the router uses: its gateway's, or the destination's.
        hop: IpAddr,
        /// The address to which packets come.
        address: IpAddr,
    },
    /// The router itself has the address.
    Router {
        /// The router.
        router: RouterName,
        /// The address.
        address: IpAddr,
        /// What takes packets for other addresses, too.
        proxy: Option<TransparentProxy>,
    },
    /// Nobody: a router sends packets nowhere.
    Nowhere,
}

impl Sink {
    /// The address at which the service listens.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Host { address, .. } | Self::Router { address, .. } => Some(*address),
            Self::Nowhere => None,
        }
    }

    /// The router at which packets end, or the last one before the host.
    pub(super) fn router(&self) -> Option<&RouterName> {
        match self {
            Self::Host { router, .. } | Self::Router { router, .. } => Some(router),
            Self::Nowhere => None,
        }
    }

    /// The router and the interface by which packets leave it for the host.
    pub(super) fn exit(&self) -> Option<(&RouterName, &IfName)> {
        match self {
            Self::Host {
                router, interface, ..
            } => Some((router, interface)),
            Self::Router { .. } | Self::Nowhere => None,
        }
    }

    /// What hands packets to a program of the router.
    pub(super) fn proxy(&self) -> Option<&TransparentProxy> {
        match self {
            Self::Router { proxy, .. } => proxy.as_ref(),
            Self::Host { .. } | Self::Nowhere => None,
        }
    }

    /// Whether packets come to the same place of another sink, at whatever next hop.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        (self.exit(), self.address(), self.router())
            == (other.exit(), other.address(), other.router())
    }
}

/// A rule that hands packets to a program of the router (TPROXY).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TransparentProxy {
    /// The port on which the program listens.
    pub(super) port: u16,
    /// The rule.
    pub(super) rule: String,
    /// Whether it lets packets go on where nobody listens.
    pub(super) lets_go: bool,
}

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Connector {
    /// A host on the segment of a router's interface.
    Host(HostSpec),
    /// The first router, from an address of its own.
    Router {
        /// The router.
        router: RouterId,
        /// The address.
        address: IpAddr,
    },
}

impl Connector {
    /// The address from which connections are made.
    pub(super) fn address(&self) -> IpAddr {
        match self {
            Self::Host(host) => host.address.addr(),
            Self::Router { address, .. } => *address,
        }
    }

    /// The host, if it is one.
    pub(super) fn host(&self) -> Option<&HostSpec> {
        match self {
            Self::Host(host) => Some(host),
            Self::Router { .. } => None,
        }
    }

    /// The namespace in which clients are opened.
    pub(super) fn netns(&self) -> NetnsName {
        match self {
            Self::Host(host) => host.id.netns(),
            Self::Router { router, .. } => router.netns(),
        }
    }

    /// The interface on whose segment the host is.
    pub(super) fn place(&self) -> Option<(&RouterName, &IfName)> {
        let host = self.host()?;
        Some((&host.router.router, &host.interface))
    }
}

/// A service to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    /// Its place in the list asked for.
    pub(super) at: usize,
    /// The service.
    pub(super) service: Service,
    /// The port that the client connects to: another one than the service's where a router in front
    /// has translated it.
    pub(super) dial: u16,
    /// The port to which routers send it.
    pub(super) port: u16,
    /// How often it was found to go elsewhere than expected.
    pub(super) moves: u8,
    /// How often it was found to need more routers, or other neighbour entries.
    pub(super) growths: u8,
}

impl Task {
    /// What its listener takes up on the host that stands for the destination.
    pub(super) fn listens_on(&self) -> (Protocol, u16) {
        (self.service.protocol, self.port)
    }
}

/// Services for which the same one stands for the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetServices {
    pub(super) sink: Sink,
    pub(super) tasks: Vec<Task>,
}

impl TargetServices {
    /// Where a service listens.
    pub(super) fn listen_at(&self, task: &Task) -> Option<SocketAddr> {
        let address = self.sink.address()?;
        Some(SocketAddr::new(address, task.port))
    }
}

/// Adds a service to those with the same sink.
pub(super) fn add(targets: &mut Vec<TargetServices>, sink: Sink, task: Task) {
    match targets.iter_mut().find(|target| target.sink == sink) {
        Some(target) => target.tasks.push(task),
        None => targets.push(TargetServices {
            sink,
            tasks: vec![task],
        }),
    }
}

/// A router that is held and watched.
#[derive(Debug)]
pub(super) struct Station {
    pub(super) router: RouterId,
    pub(super) netns: Arc<NetnsFd>,
    /// How packets were expected to pass it.
    pub(super) planned: RouterWay,
}

impl Station {
    pub(super) fn name(&self) -> &RouterName {
        &self.router.router
    }
}

/// What is measured as a whole: packets from one source host, through one router or several, to
/// wherever they end.
#[derive(Debug)]
pub(super) struct Stretch {
    /// The routers; packets come in at the first.
    pub(super) stations: Vec<Arc<Station>>,
    /// Who connects.
    pub(super) source: Connector,
    /// Where it connects to.
    pub(super) destination: IpAddr,
    /// Whether packets are followed to whatever router they go; otherwise they end where they
    /// leave these.
    pub(super) whole: bool,
    /// What is still to be tried, by where it is expected to end.
    pub(super) pending: Vec<TargetServices>,
    /// Neighbour entries that turned out to be needed, beside those that are known beforehand.
    pub(super) learned: Vec<(NeighbourKey, Mac)>,
    /// Which routers get packets where several may.
    pub(super) choices: Vec<Choice>,
    /// Which next hops routes have, on copies of the routers.
    pub(super) singles: Vec<SingleHop>,
    /// Interfaces behind which it makes no difference which of several next hops is taken.
    pub(super) settled: Vec<(RouterName, IfName)>,
    /// Where it does, and none was chosen, in words.
    pub(super) open: Vec<String>,
    /// Routes with next hops over several interfaces that showed while it was measured.
    pub(super) spreads: Vec<SpreadRoute>,
    /// Such routes that packets of a service took, with its place.
    pub(super) taken: Vec<(usize, SpreadRoute)>,
}

impl Stretch {
    /// A route with next hops over several interfaces that showed.
    pub(super) fn spread(&self) -> Option<&SpreadRoute> {
        let taken = self.taken.iter().map(|(_, spread)| spread);
        self.spreads.iter().chain(taken).next()
    }

    pub(super) fn has(&self, router: &RouterName) -> bool {
        self.stations.iter().any(|s| s.name() == router)
    }
}

/// The place of a stretch and of a service in their lists.
pub(super) type StretchService = (usize, usize);

/// What a host knows of its own link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostLink {
    /// Its subnet: what is for it goes to no gateway.
    pub(super) subnet: IpNet,
    /// The routers in it that it reaches.
    pub(super) routers: Vec<(IpAddr, Mac)>,
    /// Networks in it for which a router answers in the place of who has the address, with that router's address;
    /// none for what nobody answers for. The longer prefix counts.
    pub(super) answered: Vec<(IpNet, Option<IpAddr>)>,
    /// Whether the source host is in it, on the same segment.
    pub(super) has_source: bool,
    /// The router whose bridge it is, where that tracks the connections over it (br_netfilter).
    pub(super) tracked_by: Option<RouterName>,
}

/// Who stands in for the hosts of a stretch on copies of its routers.
#[derive(Debug)]
pub(super) struct Standins {
    /// None where a router connects.
    pub(super) source: Option<Arc<NetnsFd>>,
    /// None where a router listens, or the source, or nobody.
    pub(super) destination: Option<Arc<NetnsFd>>,
}

/// One stretch in one round.
#[derive(Debug, Clone)]
pub(super) struct StretchRound {
    /// The place of the stretch in the list.
    pub(super) at: usize,
    pub(super) stations: Vec<Arc<Station>>,
    pub(super) source: Connector,
    /// Where the client connects to.
    pub(super) to: IpAddr,
    pub(super) whole: bool,
    pub(super) target: TargetServices,
    /// The host that listens; none where a router or the source itself does, or nobody.
    pub(super) destination: Option<HostSpec>,
    /// Whether packets end at the source host, which called itself by another address.
    pub(super) turns_back: bool,
    /// What the host that listens knows of its link.
    pub(super) link: Option<HostLink>,
    /// Neighbour entries by which routers reach the source host.
    pub(super) homes: Vec<NeighbourKey>,
    /// Other entries: ends of tunnels, and those that keep packets from routers that are not held.
    pub(super) others: Vec<(NeighbourKey, Mac)>,
    /// As in [`Stretch`].
    pub(super) settled: Vec<(RouterName, IfName)>,
    /// The hosts, where the stations are copies of routers.
    pub(super) standins: Option<Arc<Standins>>,
}

impl StretchRound {
    /// Where connections are made.
    pub(super) fn source_netns(&self, dir: &NetnsDir) -> Result<Arc<NetnsFd>, NetnsError> {
        let standin = self.standins.as_ref().and_then(|s| s.source.clone());
        let station = || match &self.source {
            Connector::Router { router, .. } => self.place(&router.router),
            Connector::Host(_) => None,
        };
        let station = station().and_then(|at| self.stations.get(at));
        match standin.or_else(|| station.map(|station| Arc::clone(&station.netns))) {
            Some(netns) => Ok(netns),
            None => Ok(Arc::new(dir.open(&self.source.netns())?)),
        }
    }

    /// Where the destination's host listens.
    pub(super) fn destination_netns(
        &self,
        dir: &NetnsDir,
        host: &HostSpec,
    ) -> Result<Arc<NetnsFd>, NetnsError> {
        match self.standins.as_ref().and_then(|s| s.destination.clone()) {
            Some(netns) => Ok(netns),
            None => Ok(Arc::new(dir.open(&host.id.netns())?)),
        }
    }

    /// The source's address.
    pub(super) fn from(&self) -> IpAddr {
        self.source.address()
    }

    /// The interfaces of a router behind which it makes no difference which next hop is taken.
    pub(super) fn settled_at(&self, router: &RouterName) -> Vec<IfName> {
        let here = self.settled.iter().filter(|(at, _)| at == router);
        here.map(|(_, out)| out.clone()).collect()
    }

    /// The place of a router among the stations.
    pub(super) fn place(&self, router: &RouterName) -> Option<usize> {
        self.stations.iter().position(|s| s.name() == router)
    }
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
            dial: 80,
            port: 80,
            moves: 0,
            growths: 0,
        }
    }

    #[test]
    fn services_with_one_sink_are_tried_together() {
        let host = |hop: &str| Sink::Host {
            router: "r".parse().unwrap(),
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
        assert!(targets[0].sink.is_at(&targets[1].sink));
    }
}
