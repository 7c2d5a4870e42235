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

    /// Removes hosts of one lab. Where the lab is gone, there are no ports left, only the names.
    fn remove(&mut self, lab: &LabName, hosts: &[&HostId]) -> Result<(), HostError> {
        match self.lab(lab) {
            Ok(known) => known.remove_all(hosts),
            Err(HostError::Sockets(SocketsError::Missing {
                source: NetnsError::NotFound { .. } | NetnsError::NotANamespace { .. },
                ..
            })) => {
                let deleted = hosts.iter().map(|host| self.dir.delete(&host.netns()));
                HostError::all(
                    deleted
                        .filter_map(Result::err)
                        .map(HostError::from)
                        .collect(),
                )
            }
            Err(error) => Err(error),
        }
    }
}

impl HostKernel for LabHosts {
    fn host_exists(&mut self, host: &HostId) -> Result<bool, KernelError> {
        Ok(self.dir.exists(&host.netns())?)
    }

    fn create_host(&mut self, spec: &HostSpec) -> Result<(), KernelError> {
        self.create_hosts(&[spec])
    }

    fn remove_host(&mut self, host: &HostId) -> Result<(), KernelError> {
        self.remove_hosts(&[host])
    }

    fn create_hosts(&mut self, specs: &[&HostSpec]) -> Result<(), KernelError> {
        for specs in specs.chunk_by(|a, b| a.id.lab == b.id.lab) {
            if let Some(first) = specs.first() {
                self.lab(&first.id.lab)?.add_all(specs)?;
            }
        }
        Ok(())
    }

    fn remove_hosts(&mut self, hosts: &[&HostId]) -> Result<(), KernelError> {
        let parts = hosts.chunk_by(|a, b| a.lab == b.lab);
        let removed = parts.filter_map(|part| Some(self.remove(&part.first()?.lab, part)));
        Ok(HostError::all(removed.filter_map(Result::err).collect())?)
    }

    fn list_hosts(&mut self) -> Result<Vec<HostId>, KernelError> {
        let names = self.dir.list()?;
        Ok(names
            .iter()
            .filter_map(|n| n.as_str().parse().ok())
            .collect())
    }
}
