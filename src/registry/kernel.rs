//! What the registry asks of the kernel, at the right moment and under the right lock.
//!
//! The layers above implement these traits; the registry itself touches no namespace. An
//! operation that finds its work already done (nothing to remove, the same entry already set) is
//! a success: after a crash the registry asks again.

use std::error::Error;

use crate::{
    model::{Dscp, HostId, RouterId, RunId},
    netlink::object::{Mac, Neighbour},
    registry::{HostSpec, NeighbourKey},
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

/// A job that provably ended, and what it may have left on which routers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadJob {
    /// The job.
    pub run_id: RunId,
    /// The DSCP value that it held, where that is known.
    pub dscp: Option<Dscp>,
}

/// Removes taps that survive their job: those of the iptables back end.
pub trait TapKernel {
    /// Removes the taps that carry the identity of one of `dead` from `router`, or from every
    /// router when there is none given. With `dry_run` they are only reported.
    ///
    /// Returns one readable line per tap.
    ///
    /// # Errors
    /// When a tap is still there afterwards.
    fn sweep_taps(
        &mut self,
        router: Option<&RouterId>,
        dead: &[DeadJob],
        dry_run: bool,
    ) -> Result<Vec<String>, KernelError>;
}
