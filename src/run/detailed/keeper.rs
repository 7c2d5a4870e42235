//! What a detailed job lets the registry do in the kernel.

use crate::{
    lab::{hosts::LabHosts, neighbours::LabNeighbours},
    model::{HostId, RouterId},
    netlink::object::{Mac, Neighbour},
    netns::NetnsDir,
    registry::{
        HostKernel, HostSpec, KernelError, NeighbourKernel, NeighbourKey, Owner, TapKernel,
    },
};

/// Hosts and neighbour entries of the job's lab.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) hosts: LabHosts,
    neighbours: LabNeighbours,
}

impl Keeper {
    pub(super) fn new(dir: &NetnsDir) -> Self {
        Self {
            hosts: LabHosts::new(dir),
            neighbours: LabNeighbours::new(dir),
        }
    }
}

impl HostKernel for Keeper {
    fn host_exists(&mut self, host: &HostId) -> Result<bool, KernelError> {
        self.hosts.host_exists(host)
    }

    fn create_host(&mut self, spec: &HostSpec) -> Result<(), KernelError> {
        self.hosts.create_host(spec)
    }

    fn remove_host(&mut self, host: &HostId) -> Result<(), KernelError> {
        self.hosts.remove_host(host)
    }

    fn list_hosts(&mut self) -> Result<Vec<HostId>, KernelError> {
        self.hosts.list_hosts()
    }
}

impl NeighbourKernel for Keeper {
    fn neighbour(&mut self, key: &NeighbourKey) -> Result<Option<Neighbour>, KernelError> {
        self.neighbours.neighbour(key)
    }

    fn set_neighbour(&mut self, key: &NeighbourKey, mac: Mac) -> Result<(), KernelError> {
        self.neighbours.set_neighbour(key, mac)
    }

    fn restore_neighbour(
        &mut self,
        key: &NeighbourKey,
        before: Option<&Neighbour>,
    ) -> Result<(), KernelError> {
        self.neighbours.restore_neighbour(key, before)
    }
}

impl TapKernel for Keeper {
    /// Leaves them: taps that a dead quick job left recognise its own probes and nothing else, and
    /// looking for them costs several tools per router. `tsim reconcile` sweeps them.
    fn sweep_taps(
        &mut self,
        _router: Option<&RouterId>,
        _is_gone: &dyn Fn(&Owner) -> bool,
        _dry_run: bool,
    ) -> Result<Vec<String>, KernelError> {
        Ok(Vec::new())
    }
}
