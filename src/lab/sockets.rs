//! The rtnetlink sockets of a lab's routers, opened when they are first needed.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use thiserror::Error;

use super::state::LabState;
use crate::{
    model::{IfName, LabName, NetnsName, RouterId, RouterName},
    netlink::{Netlink, NetlinkError},
    netns::{NetnsDir, NetnsError, NetnsFd},
};

/// A router of the lab, or its segments, cannot be reached.
#[derive(Debug, Error)]
pub enum SocketsError {
    /// The lab is not up, or has no such router.
    #[error("lab {lab} is not up, or has no {what}")]
    Missing {
        /// The lab.
        lab: LabName,
        /// What was looked for, e.g. `router hq-gw`.
        what: String,
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// The namespace exists, but no socket can be opened in it.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Sockets in the routers of one lab. Each keeps its namespace alive: hold this value no longer
/// than one command.
#[derive(Debug)]
pub struct RouterSockets {
    dir: NetnsDir,
    lab: LabName,
    open: HashMap<RouterName, Netlink>,
    namespaces: HashMap<RouterName, Arc<NetnsFd>>,
    /// The interfaces of routers, as far as somebody knew them.
    interfaces: HashMap<RouterName, Vec<(IfName, u32)>>,
}

impl RouterSockets {
    /// No socket is opened yet.
    #[must_use]
    pub fn new(dir: &NetnsDir, lab: &LabName) -> Self {
        Self {
            dir: dir.clone(),
            lab: lab.clone(),
            open: HashMap::new(),
            namespaces: HashMap::new(),
            interfaces: HashMap::new(),
        }
    }

    /// Takes the names and indexes of the routers' interfaces from the lab's state, which spares asking each
    /// router for them. For whoever works with the lab as it is by that state, and fails where it is changed.
    pub(crate) fn know(&mut self, lab: &LabState) {
        let known = lab.routers.iter().map(|router| {
            let interfaces = router.interfaces.iter();
            let interfaces = interfaces.map(|i| (i.name.clone(), i.index));
            (router.name.clone(), interfaces.collect())
        });
        self.interfaces = known.collect();
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &LabName {
        &self.lab
    }

    /// Where the namespaces are.
    #[must_use]
    pub fn dir(&self) -> &NetnsDir {
        &self.dir
    }

    /// The socket of `router`.
    ///
    /// # Errors
    /// [`SocketsError`] when there is no such router or no socket can be opened.
    pub fn router(&mut self, router: &RouterName) -> Result<&mut Netlink, SocketsError> {
        match self.open.entry(router.clone()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(free) => {
                let places = (&self.dir, &self.lab);
                let netns = netns_of(&mut self.namespaces, places, router)?;
                let mut socket = Netlink::open(&netns)?;
                learn(&mut socket, self.interfaces.get(router));
                Ok(free.insert(socket))
            }
        }
    }

    /// The namespace of `router`, opened once: what is asked there and later, too, is asked of one
    /// and the same.
    ///
    /// # Errors
    /// [`SocketsError::Missing`] when there is no such router.
    pub fn netns(&mut self, router: &RouterName) -> Result<Arc<NetnsFd>, SocketsError> {
        netns_of(&mut self.namespaces, (&self.dir, &self.lab), router)
    }

    /// Opens the sockets of all `routers` at once, which is quicker than one after the other.
    ///
    /// # Errors
    /// As [`RouterSockets::router`].
    pub fn open_all(&mut self, routers: &[&RouterName]) -> Result<(), SocketsError> {
        let mut missing: Vec<&RouterName> = routers.to_vec();
        missing.retain(|router| !self.open.contains_key(*router));
        missing.sort();
        missing.dedup();
        let namespaces = missing.iter().map(|router| self.netns(router));
        let namespaces: Vec<Arc<NetnsFd>> = namespaces.collect::<Result<_, _>>()?;
        let namespaces = namespaces.iter().map(|netns| &**netns);
        let missing: Vec<(&RouterName, &NetnsFd)> = missing.into_iter().zip(namespaces).collect();
        Ok(self.open_in(&missing)?)
    }

    /// Opens the sockets of routers in the namespaces given, all from one thread; those that are
    /// open already stay as they are.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when no socket can be opened.
    pub fn open_in(&mut self, routers: &[(&RouterName, &NetnsFd)]) -> Result<(), NetlinkError> {
        let mut missing = routers.to_vec();
        missing.retain(|(router, _)| !self.open.contains_key(*router));
        let namespaces: Vec<&NetnsFd> = missing.iter().map(|(_, netns)| *netns).collect();
        if namespaces.is_empty() {
            return Ok(());
        }
        let sockets = Netlink::open_all(&namespaces)?;
        for ((router, _), mut socket) in missing.into_iter().zip(sockets) {
            learn(&mut socket, self.interfaces.get(router));
            self.open.insert(router.clone(), socket);
        }
        Ok(())
    }

    /// A socket in the namespace of the lab's bridges.
    ///
    /// # Errors
    /// As [`RouterSockets::router`].
    pub fn segments(&self) -> Result<Netlink, SocketsError> {
        let name = NetnsName::segments(&self.lab);
        let netns = open(&self.dir, &self.lab, &name, "segments")?;
        Ok(Netlink::open(&netns)?)
    }
}

fn learn(socket: &mut Netlink, interfaces: Option<&Vec<(IfName, u32)>>) {
    for (name, index) in interfaces.into_iter().flatten() {
        socket.learn(name.clone(), *index);
    }
}

fn netns_of(
    known: &mut HashMap<RouterName, Arc<NetnsFd>>,
    (dir, lab): (&NetnsDir, &LabName),
    router: &RouterName,
) -> Result<Arc<NetnsFd>, SocketsError> {
    match known.entry(router.clone()) {
        Entry::Occupied(known) => Ok(Arc::clone(known.get())),
        Entry::Vacant(free) => {
            let name = RouterId::new(lab.clone(), router.clone()).netns();
            let netns = open(dir, lab, &name, &format!("router {router}"))?;
            Ok(Arc::clone(free.insert(Arc::new(netns))))
        }
    }
}

fn open(
    dir: &NetnsDir,
    lab: &LabName,
    name: &NetnsName,
    what: &str,
) -> Result<NetnsFd, SocketsError> {
    dir.open(name).map_err(|source| SocketsError::Missing {
        lab: lab.clone(),
        what: what.to_owned(),
        source,
    })
}
