//! What the registry asks of the kernel, at the right moment and under the right lock.
//!
//! The layers above implement these traits; the registry itself touches no namespace. An
//! operation that finds its work already done (nothing to remove, the same entry already set) is
//! a success: after a crash the registry asks again.

use std::error::Error;

use crate::{
    model::{HostId, RouterId},
    netlink::object::{Mac, Neighbour},
    registry::{HostSpec, NeighbourKey, Owner, TapNote},
};

/// Why the kernel did not do it, as the layer above words it.
pub type KernelError = Box<dyn Error + Send + Sync>;

/// Makes and removes host namespaces.
pub trait HostKernel {
    /// Whether the host's namespace is there.
    ///
    /// # Errors
    /// When that cannot be told.
    fn host_exists(&mut self, host: &HostId) -> Result<bool, KernelError>;

    /// Makes the namespace, joins it to its segment and gives it its addresses. Nothing of it is
    /// there before: the registry removes the remains of a crash first.
    ///
    /// # Errors
    /// Whatever went wrong; what was made is undone, or left to [`Self::remove_host`].
    fn create_host(&mut self, spec: &HostSpec) -> Result<(), KernelError>;

    /// Removes the namespace and its links, complete or half made. Nothing there is a success.
    ///
    /// # Errors
    /// When something of it is still there afterwards.
    fn remove_host(&mut self, host: &HostId) -> Result<(), KernelError>;

    /// Makes all of `specs`, each as [`Self::create_host`] does.
    ///
    /// # Errors
    /// As [`Self::create_host`]; some of them may be there then.
    fn create_hosts(&mut self, specs: &[&HostSpec]) -> Result<(), KernelError> {
        specs.iter().try_for_each(|spec| self.create_host(spec))
    }

    /// Removes all of `hosts`, each as [`Self::remove_host`] does.
    ///
    /// # Errors
    /// As [`Self::remove_host`]; some of them may be gone then.
    fn remove_hosts(&mut self, hosts: &[&HostId]) -> Result<(), KernelError> {
        hosts.iter().try_for_each(|host| self.remove_host(host))
    }

    /// The host namespaces that exist, of all labs.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn list_hosts(&mut self) -> Result<Vec<HostId>, KernelError>;
}

/// Sets and puts back neighbour entries of routers.
pub trait NeighbourKernel {
    /// The entry as it is now, if there is one.
    ///
    /// # Errors
    /// When that cannot be told.
    fn neighbour(&mut self, key: &NeighbourKey) -> Result<Option<Neighbour>, KernelError>;

    /// Sets a permanent entry, replacing what is there.
    ///
    /// # Errors
    /// When it is not set.
    fn set_neighbour(&mut self, key: &NeighbourKey, mac: Mac) -> Result<(), KernelError>;

    /// Puts back what was there before: that entry, or none. A router or interface that is gone
    /// is a success.
    ///
    /// # Errors
    /// When the entry is not as it was.
    fn restore_neighbour(
        &mut self,
        key: &NeighbourKey,
        before: Option<&Neighbour>,
    ) -> Result<(), KernelError>;
}

/// Removes taps that survive their job: those of the iptables back end, which carry their owner.
pub trait TapKernel {
    /// Whether taps of dead jobs are looked for at all.
    fn sweeps_taps(&self) -> bool {
        true
    }

    /// Removes the taps of owners of whom `is_gone` says that they are provably gone, from
    /// `router`, or from every router when none is given. With `dry_run` they are only reported.
    ///
    /// Returns one readable line per job and router.
    ///
    /// # Errors
    /// When such a tap is still there afterwards.
    fn sweep_taps(
        &mut self,
        router: Option<&RouterId>,
        is_gone: &dyn Fn(&Owner) -> bool,
        dry_run: bool,
    ) -> Result<Vec<String>, KernelError>;

    /// Removes what a note says that a dead job may have left, and what others have put there since
    /// stays. Returns whether all of it is gone: false where somebody uses it. That there is nothing
    /// of it, or that the router has gone, is a success.
    ///
    /// # Errors
    /// When it could not be removed.
    fn remove_noted(&mut self, note: &TapNote) -> Result<bool, KernelError>;

    /// Removes the entries of connection tracking that the connections of a dead job left in routers,
    /// which nobody measures meanwhile. `notes` are all about one job.
    ///
    /// # Errors
    /// When some could not be removed.
    fn forget_connections(&mut self, notes: &[TapNote]) -> Result<(), KernelError>;
}
