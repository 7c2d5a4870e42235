//! The two ends of services: sockets opened inside the namespaces of source and destination.

use std::{io::ErrorKind, sync::Arc};

use super::{Bench, link};
use crate::{
    fault,
    model::Service,
    netns::NetnsFd,
    run::detailed::{
        DetailedError, Setup,
        connect::ClientSocket,
        listen::{Bound, Listener},
        site::{Sink, StretchRound, Task},
    },
};

/// The namespace in which services listen.
pub(super) enum Listening<'a> {
    /// A host's.
    Host(Arc<NetnsFd>),
    /// A router's.
    Router(&'a NetnsFd),
}

impl<'a> Listening<'a> {
    /// Opens the namespace of whoever stands for the destination, if anybody does.
    pub(super) fn open(
        setup: &Setup<'_>,
        site: &'a StretchRound,
    ) -> Result<Option<Self>, DetailedError> {
        if let Some(host) = &site.destination {
            let netns = site.destination_netns(setup.dir, host)?;
            link::teach(&netns, site, host)?;
            return Ok(Some(Self::Host(netns)));
        }
        if site.turns_back {
            let netns = site.source_netns(setup.dir)?;
            return Ok(Some(Self::Host(netns)));
        }
        Ok(match &site.target.sink {
            Sink::Router { router, .. } => {
                let place = site.place(router).and_then(|at| site.stations.get(at));
                place.map(|station| Self::Router(&station.netns))
            }
            _ => None,
        })
    }

    /// The host's namespace, where it is one's.
    pub(super) fn host(&self) -> Option<&NetnsFd> {
        match self {
            Self::Host(netns) => Some(netns),
            Self::Router(_) => None,
        }
    }

    pub(super) fn netns(&self) -> &NetnsFd {
        match self {
            Self::Host(netns) => netns,
            Self::Router(netns) => netns,
        }
    }
}

/// The two ends of one service, bound and not yet used.
pub(super) struct ServiceEnds {
    pub(super) client: ClientSocket,
    pub(super) listener: Option<Bound>,
}

impl Bench<'_> {
    /// Opens clients and listeners inside their namespaces.
    pub(super) fn open_ends(&self, tasks: &[Task]) -> Result<Vec<ServiceEnds>, DetailedError> {
        fault::step("detailed.listen").map_err(DetailedError::system("listen"))?;
        let (source, port) = (self.site.from(), self.setup.source_port);
        let open = |task: &Task| {
            let service = Service {
                port: task.dial,
                ..task.service
            };
            ClientSocket::open_here(source, port, service)
        };
        let clients = self
            .source
            .enter(|| tasks.iter().map(open).collect::<Vec<_>>())?;
        let bind = |task: &Task| {
            let at = self.site.target.listen_at(task)?;
            let protocol = task.service.protocol;
            Some(match self.site.target.sink.proxy() {
                Some(proxy) => Bound::proxy_here(at, proxy.port, protocol),
                None => Bound::open_here(at, protocol),
            })
        };
        let listeners = match &self.listening {
            Some(at) => at
                .netns()
                .enter(|| tasks.iter().map(bind).collect::<Vec<_>>())?,
            None => tasks.iter().map(|_| None).collect(),
        };
        let pair = |(client, listener): (Result<ClientSocket, _>, Option<Result<Bound, _>>)| {
            Ok(ServiceEnds {
                client: client.map_err(DetailedError::system("open a client's socket"))?,
                listener: self.bound(listener)?,
            })
        };
        clients.into_iter().zip(listeners).map(pair).collect()
    }

    /// On the router itself a service of its own may have the port; that one answers then, as the
    /// kernel does where the address is none that programs can have, as that of a group on a link.
    fn bound(
        &self,
        listener: Option<std::io::Result<Bound>>,
    ) -> Result<Option<Bound>, DetailedError> {
        match listener {
            Some(Err(error))
                if matches!(
                    error.kind(),
                    ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable | ErrorKind::InvalidInput
                ) && matches!(self.listening, Some(Listening::Router(_))) =>
            {
                Ok(None)
            }
            Some(bound) => bound.map(Some).map_err(DetailedError::system("listen")),
            None => Ok(None),
        }
    }
}

pub(super) fn serve(bound: Option<Bound>) -> Result<Option<Listener>, DetailedError> {
    let served = bound.map(Bound::serve).transpose();
    served.map_err(DetailedError::system("serve a listener"))
}
