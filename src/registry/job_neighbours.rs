//! Leases of neighbour entries, for jobs that hold the routers.
//!
//! The file stays locked while the kernel's entry is changed: that takes microseconds, and so the
//! two never differ for anybody else. A crash in between leaves a lease of a dead owner, and what
//! was there before is in the record: putting it back twice does no harm.

use serde_json::json;

use crate::{
    netlink::object::Mac,
    registry::{
        Job, KernelError, Lease, Locked, NeighbourKernel, NeighbourKey, NeighbourLeases,
        RegistryError, RegistryManager,
        manager::{Open, OwnerCensus},
        neighbour::not_leased,
        order::{Neighbours, Routers, Token},
    },
};

impl Job<Locked> {
    /// Leases a neighbour entry that points at `mac`. The first lease writes down what was there
    /// and sets the entry.
    ///
    /// # Errors
    /// [`RegistryError::Collision`] when other jobs have it point elsewhere;
    /// [`RegistryError::Kernel`] when it could not be set: there is no lease then.
    pub fn acquire_neighbor_lease(
        &mut self,
        key: &NeighbourKey,
        mac: Mac,
        kernel: &mut impl NeighbourKernel,
    ) -> Result<Lease, RegistryError> {
        let new = self.lease();
        let mut routers: Token<'_, Routers> = self.token.then();
        let mut open = self.registry.open_file::<Neighbours, _>(&mut routers)?;
        let text = key.to_string();
        let old: Option<NeighbourLeases> = open.table.get(&text)?;
        let mut record = match old.clone() {
            Some(record) => record,
            None => {
                let before = kernel_call("read", key, kernel.neighbour(key))?;
                NeighbourLeases::new(key, mac, before)
            }
        };
        let mut census = OwnerCensus::default();
        let lease = record.acquire(key, mac, new, &mut |o| census.ask(o))?;
        open.table.put(&text, &record)?;
        self.registry.save(&open)?;
        if let Err(e) = kernel_call("set", key, kernel.set_neighbour(key, mac)) {
            return Err(take_back(
                &self.registry,
                e,
                open,
                (key, old.as_ref(), &record),
                kernel,
            ));
        }
        drop(open);
        self.note("neighbor_lease.acquire", key);
        Ok(lease)
    }

    /// Releases a lease; with the last one what was there before is put back.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when this job has no such lease; [`RegistryError::Kernel`] when
    /// the entry could not be put back: the lease stays then, and whoever comes next tries again.
    pub fn release_neighbor_lease(
        &mut self,
        key: &NeighbourKey,
        kernel: &mut impl NeighbourKernel,
    ) -> Result<usize, RegistryError> {
        let mut routers: Token<'_, Routers> = self.token.then();
        let mut open = self.registry.open_file::<Neighbours, _>(&mut routers)?;
        let text = key.to_string();
        let run_id = &self.info.run_id;
        let record: Option<NeighbourLeases> = open.table.get(&text)?;
        let mut record = record.ok_or_else(|| not_leased(key, run_id))?;
        let mut census = OwnerCensus::default();
        let left = record.release(key, run_id, &mut |o| census.ask(o))?;
        if left == 0 {
            let restored = kernel.restore_neighbour(key, record.before.as_ref());
            kernel_call("put back", key, restored)?;
            open.table.remove(&text);
        } else {
            open.table.put(&text, &record)?;
        }
        self.registry.save(&open)?;
        drop(open);
        self.note("neighbor_lease.release", key);
        Ok(left)
    }

    fn note(&self, operation: &str, key: &NeighbourKey) {
        let run_id = Some(&self.info.run_id);
        self.registry
            .record(operation, run_id, json!({"neighbor": key}));
    }
}

/// The entry was not set: puts back what was there before this lease, in kernel and file. If
/// the kernel refuses that too, the lease stays, so that whoever comes next tries again.
fn take_back(
    registry: &RegistryManager,
    first: RegistryError,
    mut open: Open<'_, Neighbours>,
    (key, old, new): (&NeighbourKey, Option<&NeighbourLeases>, &NeighbourLeases),
    kernel: &mut impl NeighbourKernel,
) -> RegistryError {
    let text = key.to_string();
    let undone = match old {
        Some(old) => open.table.put(&text, old),
        None => {
            let restored = kernel.restore_neighbour(key, new.before.as_ref());
            kernel_call("put back", key, restored).map(|()| open.table.remove(&text))
        }
    };
    let undone = undone.and_then(|()| registry.save(&open));
    first.with_undo(undone.err().into_iter().collect())
}

pub(crate) fn kernel_call<T>(
    op: &'static str,
    key: &NeighbourKey,
    result: Result<T, KernelError>,
) -> Result<T, RegistryError> {
    result.map_err(|source| RegistryError::Kernel {
        op,
        what: format!("neighbour {key}"),
        source,
    })
}
