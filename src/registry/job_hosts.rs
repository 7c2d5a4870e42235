//! Hosts and their leases.
//!
//! Who makes or removes a host holds the host's queue for the whole of it, so that check, kernel
//! work and lease are one step to everybody else, while the files stay free for other hosts.
//!
//! A host that a job manages is *made* when it has a lease: the lease is written after the
//! namespace was made, and taken away before it is removed. Found without a lease by somebody who
//! holds its queue, the host is what a crash left, and is made anew or removed.

use serde_json::json;

use crate::{
    model::HostId,
    registry::{
        HostKernel, HostLeases as Leases, HostRecord, HostSpec, Job, KernelError, Lease, ManagedBy,
        Mode, Owner, RegistryError, Released, Unlocked, Wait, host, lease,
        lock::QueueLock,
        manager::Census,
        order::{HostLeases, Hosts},
        time,
    },
};

/// What was found when a host was asked for.
enum Found {
    /// It was made; the lease is taken.
    Leased(Lease),
    /// It is registered now and nothing of it should be there.
    Registered,
    /// It was registered and not made, or the maker died; remains may be there.
    Unfinished,
}

impl Job<Unlocked> {
    /// Makes sure that the host of `spec` exists and leases it: registers and makes it if it is
    /// not there. Until this returns, nobody else makes, leases or removes that host.
    ///
    /// # Errors
    /// [`RegistryError::Collision`] when another host has the name, address or MAC;
    /// [`RegistryError::Kernel`] when it could not be made; it is unregistered again then.
    pub fn ensure_host_and_lease(
        &mut self,
        spec: &HostSpec,
        kernel: &mut impl HostKernel,
        wait: &Wait,
    ) -> Result<Lease, RegistryError> {
        let _queue = self.host_queue(&spec.id, wait)?;
        match self.find_or_register(spec)? {
            Found::Leased(lease) if self.exists(&spec.id, kernel)? => Ok(lease),
            Found::Leased(_) => self.remake(spec, kernel),
            Found::Registered => self.make_and_lease(spec, kernel),
            Found::Unfinished => {
                kernel_call(
                    "remove the remains of",
                    &spec.id,
                    kernel.remove_host(&spec.id),
                )?;
                self.forget_host(&spec.id)?;
                self.register(spec, ManagedBy::Job)?;
                self.make_and_lease(spec, kernel)
            }
        }
    }

    /// Releases this job's lease of `host`, and removes and unregisters the host if that was the
    /// last lease and the host is not an operator's. Until this returns, nobody else can make or
    /// lease it.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when this job has no lease; [`RegistryError::Kernel`] when the
    /// host could not be removed: the lease is released then, and the host stays registered for
    /// whoever comes next to remove or make anew.
    pub fn release_and_remove(
        &mut self,
        host: &HostId,
        kernel: &mut impl HostKernel,
        wait: &Wait,
    ) -> Result<Released, RegistryError> {
        let _queue = self.host_queue(host, wait)?;
        let released = self.release_lease(host)?;
        if released.should_delete {
            kernel_call("remove", host, kernel.remove_host(host))?;
            self.forget_host(host)?;
        }
        Ok(released)
    }

    /// Registers an operator's host and makes it; it stays until [`Self::remove_host`].
    ///
    /// # Errors
    /// As [`Self::ensure_host_and_lease`]; a host that is registered already is a collision.
    pub fn add_host(
        &mut self,
        spec: &HostSpec,
        kernel: &mut impl HostKernel,
        wait: &Wait,
    ) -> Result<(), RegistryError> {
        let _queue = self.host_queue(&spec.id, wait)?;
        self.drop_remains(spec, kernel)?;
        self.register(spec, ManagedBy::Operator)?;
        let made = self
            .make(spec, kernel)
            .and_then(|()| self.update_record(&spec.id, |r| r.creating = false));
        made.map_err(|e| self.unmake(e, &spec.id, kernel))
    }

    /// Removes and unregisters a host that nobody leases.
    ///
    /// # Errors
    /// [`RegistryError::InUse`] by whom; [`RegistryError::NotFound`]; [`RegistryError::Kernel`]
    /// when it could not be removed: it stays registered then.
    pub fn remove_host(
        &mut self,
        host: &HostId,
        kernel: &mut impl HostKernel,
        wait: &Wait,
    ) -> Result<HostRecord, RegistryError> {
        let _queue = self.host_queue(host, wait)?;
        let record = self.unleased(host)?;
        kernel_call("remove", host, kernel.remove_host(host))?;
        self.forget_host(host)?;
        Ok(record)
    }

    /// Registers a host without making it; name, address and MAC are checked in the same step.
    ///
    /// # Errors
    /// [`RegistryError::Collision`] says which of them is taken and by whom.
    pub fn check_and_register_host(
        &mut self,
        spec: &HostSpec,
        managed_by: ManagedBy,
        wait: &Wait,
    ) -> Result<(), RegistryError> {
        let _queue = self.host_queue(&spec.id, wait)?;
        self.register(spec, managed_by)
    }

    /// Unregisters a host that nobody leases, without removing it.
    ///
    /// # Errors
    /// [`RegistryError::InUse`], [`RegistryError::NotFound`].
    pub fn unregister_host(
        &mut self,
        host: &HostId,
        wait: &Wait,
    ) -> Result<HostRecord, RegistryError> {
        let _queue = self.host_queue(host, wait)?;
        let record = self.unleased(host)?;
        self.forget_host(host)?;
        Ok(record)
    }

    /// Changes fields of a host's record, e.g. its `extra` ones or `creating`. Name, address, MAC
    /// and router are what collisions are checked by: a change to them is an error.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Collision`] for a change that is not allowed.
    pub fn update_host(
        &mut self,
        host: &HostId,
        change: impl FnOnce(&mut HostRecord),
        wait: &Wait,
    ) -> Result<(), RegistryError> {
        let _queue = self.host_queue(host, wait)?;
        self.update_record(host, change)
    }

    /// Leases a registered host that exists.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when it is not registered; [`RegistryError::NotReady`] when
    /// another job has registered and not yet made it.
    pub fn acquire_source_host_lease(
        &mut self,
        host: &HostId,
        wait: &Wait,
    ) -> Result<Lease, RegistryError> {
        let _queue = self.host_queue(host, wait)?;
        let new = self.lease();
        let mut hosts = self.registry.lock_file::<Hosts, _>(&mut self.token)?;
        let record: Option<HostRecord> = self.registry.one(&hosts, &host.to_string())?;
        let record = record.ok_or_else(|| host::not_found(host))?;
        let mut leases = self.registry.open_file::<HostLeases, _>(hosts.token())?;
        let mine = record.created_by == *self.registry.owner();
        if !mine && !is_made(&record, leases.table.get(&host.to_string())?.as_ref()) {
            return Err(RegistryError::NotReady(host.clone()));
        }
        let router = &record.connected_to;
        let lease = lease::acquire_host(&mut leases.table, host, router, new, &mut alive())?;
        self.registry.save(&leases)?;
        drop(leases);
        drop(hosts);
        self.note("host_lease.acquire", host);
        Ok(lease)
    }

    /// Releases this job's lease; the leases of the dead go too. Removing the host, where
    /// [`Released::should_delete`] says so, is left to the caller; somebody else may lease it in
    /// between. [`Self::release_and_remove`] does both in one step.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when this job has no lease of `host`.
    pub fn release_source_host_lease(
        &mut self,
        host: &HostId,
        wait: &Wait,
    ) -> Result<Released, RegistryError> {
        let _queue = self.host_queue(host, wait)?;
        self.release_lease(host)
    }

    fn host_queue(&self, host: &HostId, wait: &Wait) -> Result<QueueLock, RegistryError> {
        let run_id = &self.info.run_id;
        let name = host.to_string();
        self.registry
            .enter_queue(&name, Mode::Exclusive, run_id, wait)
    }

    fn find_or_register(&mut self, spec: &HostSpec) -> Result<Found, RegistryError> {
        let new = self.lease();
        let by = self.registrant(ManagedBy::Job);
        let mut hosts = self.registry.lock_file::<Hosts, _>(&mut self.token)?;
        let record: Option<HostRecord> = self.registry.one(&hosts, &spec.id.to_string())?;
        let Some(record) = record else {
            let mut hosts = self.registry.load(hosts)?;
            host::register(&mut hosts.table, spec, &by, time::now())?;
            self.registry.save(&hosts)?;
            drop(hosts);
            self.note("host.register", &spec.id);
            return Ok(Found::Registered);
        };
        let mut leases = self.registry.open_file::<HostLeases, _>(hosts.token())?;
        if !is_made(&record, leases.table.get(&spec.id.to_string())?.as_ref()) {
            return Ok(Found::Unfinished);
        }
        host::check_same(&record, spec)?;
        let table = &mut leases.table;
        let lease = lease::acquire_host(table, &spec.id, &spec.router, new, &mut alive())?;
        self.registry.save(&leases)?;
        drop(leases);
        drop(hosts);
        self.note("host_lease.acquire", &spec.id);
        Ok(Found::Leased(lease))
    }

    fn make(&self, spec: &HostSpec, kernel: &mut impl HostKernel) -> Result<(), RegistryError> {
        kernel_call("make", &spec.id, kernel.create_host(spec))?;
        self.note("host.create", &spec.id);
        Ok(())
    }

    fn make_and_lease(
        &mut self,
        spec: &HostSpec,
        kernel: &mut impl HostKernel,
    ) -> Result<Lease, RegistryError> {
        let leased = self.make(spec, kernel).and_then(|()| self.add_lease(spec));
        leased.map_err(|e| self.unmake(e, &spec.id, kernel))
    }

    /// A leased host whose namespace somebody removed is made again, under the lease just taken.
    fn remake(
        &mut self,
        spec: &HostSpec,
        kernel: &mut impl HostKernel,
    ) -> Result<Lease, RegistryError> {
        match self.make(spec, kernel) {
            Ok(()) => Ok(self.lease()),
            Err(e) => {
                let undo = self.release_lease(&spec.id).err().into_iter().collect();
                Err(e.with_undo(undo))
            }
        }
    }

    /// Undoes the making of a host; what cannot be undone is added to the error. A host that
    /// could not be removed stays registered, so that reconcile knows it.
    fn unmake(
        &mut self,
        first: RegistryError,
        host: &HostId,
        kernel: &mut impl HostKernel,
    ) -> RegistryError {
        let undone = kernel_call("remove", host, kernel.remove_host(host))
            .and_then(|()| self.forget_host(host));
        first.with_undo(undone.err().into_iter().collect())
    }

    /// Writes the lease of a host that was just made. Its queue is held: it stays registered.
    fn add_lease(&mut self, spec: &HostSpec) -> Result<Lease, RegistryError> {
        let new = self.lease();
        let mut leases = self.registry.open_file::<HostLeases, _>(&mut self.token)?;
        let table = &mut leases.table;
        let lease = lease::acquire_host(table, &spec.id, &spec.router, new, &mut alive())?;
        self.registry.save(&leases)?;
        drop(leases);
        self.note("host_lease.acquire", &spec.id);
        Ok(lease)
    }

    fn release_lease(&mut self, host: &HostId) -> Result<Released, RegistryError> {
        let run_id = self.info.run_id.clone();
        let mut hosts = self.registry.lock_file::<Hosts, _>(&mut self.token)?;
        let record: Option<HostRecord> = self.registry.one(&hosts, &host.to_string())?;
        let mut leases = self.registry.open_file::<HostLeases, _>(hosts.token())?;
        let left = lease::release_host(&mut leases.table, host, &run_id, &mut alive())?;
        self.registry.save(&leases)?;
        drop(leases);
        drop(hosts);
        self.note("host_lease.release", host);
        let by_job = record.is_some_and(|r| r.managed_by == ManagedBy::Job);
        Ok(Released {
            left,
            should_delete: left == 0 && by_job,
        })
    }

    fn register(&mut self, spec: &HostSpec, managed_by: ManagedBy) -> Result<(), RegistryError> {
        let by = self.registrant(managed_by);
        let mut hosts = self.registry.open_file::<Hosts, _>(&mut self.token)?;
        host::register(&mut hosts.table, spec, &by, time::now())?;
        self.registry.save(&hosts)?;
        drop(hosts);
        self.note("host.register", &spec.id);
        Ok(())
    }

    /// The record of a host that nobody who may live leases; leases of the dead are dropped.
    fn unleased(&mut self, host: &HostId) -> Result<HostRecord, RegistryError> {
        let key = host.to_string();
        let mut hosts = self.registry.lock_file::<Hosts, _>(&mut self.token)?;
        let record: Option<HostRecord> = self.registry.one(&hosts, &key)?;
        let record = record.ok_or_else(|| host::not_found(host))?;
        let leases = self.registry.lock_file::<HostLeases, _>(hosts.token())?;
        let found: Option<Leases> = self.registry.one(&leases, &key)?;
        let Some(mut found) = found else {
            return Ok(record);
        };
        lease::drop_gone(&mut found.leases, &mut alive());
        if !found.leases.is_empty() {
            return Err(RegistryError::InUse {
                host: host.clone(),
                by: found.leases.into_iter().map(|l| l.run_id).collect(),
            });
        }
        let mut leases = self.registry.load(leases)?;
        leases.table.remove(&key);
        self.registry.save(&leases)?;
        Ok(record)
    }

    /// Removes the record of a host that has no lease.
    fn forget_host(&mut self, host: &HostId) -> Result<(), RegistryError> {
        let mut hosts = self.registry.open_file::<Hosts, _>(&mut self.token)?;
        hosts.table.remove(&host.to_string());
        self.registry.save(&hosts)?;
        drop(hosts);
        self.note("host.unregister", host);
        Ok(())
    }

    /// Removes an operator's host whose making was cut short, or whose namespace somebody has
    /// removed, so that it can be added again.
    fn drop_remains(
        &mut self,
        spec: &HostSpec,
        kernel: &mut impl HostKernel,
    ) -> Result<(), RegistryError> {
        let host = &spec.id;
        let record = match self.registry.host(host) {
            Ok(record) => record,
            Err(RegistryError::NotFound(_)) => return Ok(()),
            Err(e) => return Err(e),
        };
        let is_same = host::check_same(&record, spec).is_ok();
        let is_lost = is_same && !self.exists(host, kernel)?;
        if !record.creating && !is_lost {
            return Ok(());
        }
        self.unleased(host)?;
        kernel_call("remove the remains of", host, kernel.remove_host(host))?;
        self.forget_host(host)
    }

    fn update_record(
        &mut self,
        host: &HostId,
        change: impl FnOnce(&mut HostRecord),
    ) -> Result<(), RegistryError> {
        let mut hosts = self.registry.open_file::<Hosts, _>(&mut self.token)?;
        let record: Option<HostRecord> = hosts.table.get(&host.to_string())?;
        let mut record = record.ok_or_else(|| host::not_found(host))?;
        let before = record.spec(host);
        change(&mut record);
        host::check_same(&record, &before)?;
        hosts.table.put(&host.to_string(), &record)?;
        self.registry.save(&hosts)?;
        drop(hosts);
        self.note("host.update", host);
        Ok(())
    }

    fn exists(&self, host: &HostId, kernel: &mut impl HostKernel) -> Result<bool, RegistryError> {
        kernel_call("look for", host, kernel.host_exists(host))
    }

    fn note(&self, operation: &str, host: &HostId) {
        let run_id = Some(&self.info.run_id);
        self.registry
            .record(operation, run_id, json!({"host": host}));
    }
}

fn is_made(record: &HostRecord, leases: Option<&Leases>) -> bool {
    let leased = leases.is_some_and(|l| !l.leases.is_empty());
    !record.creating && (record.managed_by == ManagedBy::Operator || leased)
}

fn alive() -> impl FnMut(&Owner) -> crate::registry::Liveness {
    let mut census = Census::default();
    move |owner| census.ask(owner)
}

pub(crate) fn kernel_call<T>(
    op: &'static str,
    what: &HostId,
    result: Result<T, KernelError>,
) -> Result<T, RegistryError> {
    result.map_err(|source| RegistryError::Kernel {
        op,
        what: format!("host {what}"),
        source,
    })
}
