//! The kernel side of the registry's hosts.

use std::collections::{HashMap, hash_map::Entry};

use super::{HostError, Hosts};
use crate::{
    lab::sockets::SocketsError,
    model::{HostId, LabName},
    netns::{NetnsDir, NetnsError},
    registry::{HostKernel, HostSpec, KernelError},
};

/// Makes and removes hosts of any lab when the registry asks. It opens a lab's namespaces when a
/// host of that lab is first asked for, and keeps them open: hold it no longer than one command.
#[derive(Debug)]
pub struct LabHosts {
    dir: NetnsDir,
    labs: HashMap<LabName, Hosts>,
}

impl LabHosts {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(dir: &NetnsDir) -> Self {
        Self {
            dir: dir.clone(),
            labs: HashMap::new(),
        }
    }

    /// The hosts of `lab`.
    ///
    /// # Errors
    /// [`HostError::Sockets`] when the lab is not up.
    pub fn lab(&mut self, lab: &LabName) -> Result<&mut Hosts, HostError> {
        match self.labs.entry(lab.clone()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(free) => Ok(free.insert(Hosts::open(&self.dir, lab)?)),
        }
    }

    /// Removes a host whose lab is gone: there is no port left, only the name.
    fn remove(&mut self, host: &HostId) -> Result<(), HostError> {
        match self.lab(&host.lab) {
            Ok(hosts) => hosts.remove(host),
            Err(HostError::Sockets(SocketsError::Missing {
                source: NetnsError::NotFound { .. } | NetnsError::NotANamespace { .. },
                ..
            })) => Ok(self.dir.delete(&host.netns())?),
            Err(error) => Err(error),
        }
    }
}

impl HostKernel for LabHosts {
    fn host_exists(&mut self, host: &HostId) -> Result<bool, KernelError> {
        Ok(self.dir.exists(&host.netns())?)
    }

    fn create_host(&mut self, spec: &HostSpec) -> Result<(), KernelError> {
        self.lab(&spec.id.lab)?.add(spec)?;
        Ok(())
    }

    fn remove_host(&mut self, host: &HostId) -> Result<(), KernelError> {
        Ok(self.remove(host)?)
    }

    fn list_hosts(&mut self) -> Result<Vec<HostId>, KernelError> {
        let names = self.dir.list()?;
        Ok(names
            .iter()
            .filter_map(|n| n.as_str().parse().ok())
            .collect())
    }
}
