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
        HostKernel, HostLeases as Leases, HostRecord, HostSpec, Job, KernelError, Lease, LockMode,
        ManagedBy, Owner, RegistryError, Released, Unlocked, Wait, host, lease,
        lock::QueueLock,
        log,
        manager::OwnerCensus,
        order::{HostLeases, Hosts},
        time,
    },
};

/// What was found when hosts were asked for.
#[derive(Default)]
struct Found<'s> {
    /// Not registered; nothing of them should be there.
    new: Vec<&'s HostSpec>,
    /// Registered and not made, or the maker died; remains may be there.
    unfinished: Vec<&'s HostSpec>,
    /// Made.
    made: Vec<&'s HostSpec>,
}

impl Job<Unlocked> {
    /// Makes sure that the host of `spec` exists and leases it, see
    /// [`Self::ensure_hosts_and_lease`].
    ///
    /// # Errors
    /// As [`Self::ensure_hosts_and_lease`].
    #[cfg(feature = "internals")]
    pub fn ensure_host_and_lease(
        &mut self,
        spec: &HostSpec,
        kernel: &mut impl HostKernel,
        wait: &Wait,
    ) -> Result<(), RegistryError> {
        self.ensure_hosts_and_lease(&[spec], kernel, wait)
    }

    /// Makes sure that the hosts of `specs` exist and leases them: registers and makes those that
    /// are not there. Until this returns, nobody else makes, leases or removes one of them.
    ///
    /// # Errors
    /// [`RegistryError::Collision`] when another host has a name, address or MAC;
    /// [`RegistryError::Kernel`] when one could not be made. None of them is leased then, and
    /// those that were registered for this are unregistered again.
    pub fn ensure_hosts_and_lease(
        &mut self,
        specs: &[&HostSpec],
        kernel: &mut impl HostKernel,
        wait: &Wait,
    ) -> Result<(), RegistryError> {
        let mut specs = specs.to_vec();
        specs.sort_by(|a, b| a.id.cmp(&b.id));
        specs.dedup_by(|a, b| a.id == b.id);
        let queues = specs.iter().map(|spec| self.host_queue(&spec.id, wait));
        let _queues: Vec<QueueLock> = queues.collect::<Result<_, _>>()?;
        let found = self.find_or_register(&specs)?;
        let mut log = self.entries("host.register", &ids(&found.new));
        let done = self.make_missing(&found, kernel).and_then(|made| {
            self.add_leases(&specs)?;
            Ok(made)
        });
        if let Ok(made) = &done {
            log.extend(self.entries("host.create", &ids(made)));
            log.extend(self.entries("host_lease.acquire", &ids(&specs)));
        }
        self.registry.record_all(&log);
        done.map(drop)
            .map_err(|e| self.unmake(e, &ids(&found.not_made()), kernel))
    }

    /// Releases this job's lease of `host`, and removes and unregisters the host if that was the
    /// last lease and the host is not an operator's. Until this returns, nobody else can make or
    /// lease it.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when this job has no lease; [`RegistryError::Kernel`] when the
    /// host could not be removed: the lease is released then, and the host stays registered for
    /// whoever comes next to remove or make anew.
    #[cfg(feature = "internals")]
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
            self.forget_hosts(&[host])?;
        }
        Ok(released)
    }

    /// Releases this job's leases of `hosts`, and removes and unregisters those of them that
    /// [`Self::release_and_remove`] would. Until this returns, nobody else can make or lease them.
    ///
    /// Returns everything that failed; what fails for one host stops no other, except that none is
    /// unregistered when one could not be removed.
    #[must_use]
    pub fn release_and_remove_all(
        &mut self,
        hosts: &[&HostId],
        kernel: &mut impl HostKernel,
        wait: &Wait,
    ) -> Vec<RegistryError> {
        let mut hosts = hosts.to_vec();
        hosts.sort();
        hosts.dedup();
        let mut failed = Vec::new();
        let _queues = self.enter_queues(&mut hosts, wait, &mut failed);
        let unused = self.release_leases(&hosts, &mut failed);
        failed.extend(self.remove_and_forget(&unused, kernel).err());
        failed
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
        self.register(&[spec], ManagedBy::Operator)?;
        let made = self.make(&[spec], kernel).and_then(|()| {
            self.note("host.create", &spec.id);
            self.update_record(&spec.id, |r| r.creating = false)
        });
        made.map_err(|e| self.unmake(e, &[&spec.id], kernel))
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
        kernel_call("remove", host, kernel.remove_host(host)).map_err(|error| {
            let undone = match record.creating {
                true => Ok(()),
                false => self.update_record(host, |record| record.creating = false),
            };
            error.with_undo(undone.err().into_iter().collect())
        })?;
        self.forget_hosts(&[host])?;
        Ok(record)
    }

    /// Registers a host without making it; name, address and MAC are checked in the same step.
    ///
    /// # Errors
    /// [`RegistryError::Collision`] says which of them is taken and by whom.
    #[cfg(feature = "internals")]
    pub fn check_and_register_host(
        &mut self,
        spec: &HostSpec,
        managed_by: ManagedBy,
        wait: &Wait,
    ) -> Result<(), RegistryError> {
        let _queue = self.host_queue(&spec.id, wait)?;
        self.register(&[spec], managed_by)
    }

    /// Unregisters a host that nobody leases, without removing it.
    ///
    /// # Errors
    /// [`RegistryError::InUse`], [`RegistryError::NotFound`].
    #[cfg(feature = "internals")]
    pub fn unregister_host(
        &mut self,
        host: &HostId,
        wait: &Wait,
    ) -> Result<HostRecord, RegistryError> {
        let _queue = self.host_queue(host, wait)?;
        let record = self.unleased(host)?;
        self.forget_hosts(&[host])?;
        Ok(record)
    }

    /// Changes fields of a host's record, e.g. its `extra` ones or `creating`. Name, address, MAC
    /// and router are what collisions are checked by: a change to them is an error.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Collision`] for a change that is not allowed.
    #[cfg(feature = "internals")]
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
    #[cfg(feature = "internals")]
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
    #[cfg(feature = "internals")]
    pub fn release_source_host_lease(
        &mut self,
        host: &HostId,
        wait: &Wait,
    ) -> Result<Released, RegistryError> {
        let _queue = self.host_queue(host, wait)?;
        self.release_lease(host)
    }

    /// Enters the queues of `hosts`, which are sorted, and leaves those of them out whose queue
    /// cannot be entered.
    pub(crate) fn enter_queues(
        &self,
        hosts: &mut Vec<&HostId>,
        wait: &Wait,
        failed: &mut Vec<RegistryError>,
    ) -> Vec<QueueLock> {
        let mut queues = Vec::with_capacity(hosts.len());
        hosts.retain(|host| match self.host_queue(host, wait) {
            Ok(queue) => {
                queues.push(queue);
                true
            }
            Err(error) => {
                failed.push(error);
                false
            }
        });
        queues
    }

    /// Removes and unregisters hosts that have no lease, and whose queues are held.
    pub(crate) fn remove_and_forget(
        &mut self,
        unused: &[&HostId],
        kernel: &mut impl HostKernel,
    ) -> Result<(), RegistryError> {
        let log = self.remove_and_forget_unrecorded(unused, kernel)?;
        self.registry.record_all(&log);
        Ok(())
    }

    /// The same; what the log is to say of it is returned.
    pub(crate) fn remove_and_forget_unrecorded(
        &mut self,
        unused: &[&HostId],
        kernel: &mut impl HostKernel,
    ) -> Result<Vec<log::LogEntry>, RegistryError> {
        remove_all(unused, kernel).and_then(|()| self.forget_unrecorded(unused))
    }

    fn host_queue(&self, host: &HostId, wait: &Wait) -> Result<QueueLock, RegistryError> {
        let run_id = &self.info.run_id;
        let name = host.to_string();
        self.registry
            .enter_queue(&name, LockMode::Exclusive, run_id, wait)
    }

    /// Finds out what is to be done for `specs`, whose queues are held: nobody else changes that.
    /// Registers those that are new.
    fn find_or_register<'s>(&mut self, specs: &[&'s HostSpec]) -> Result<Found<'s>, RegistryError> {
        let by = self.registrant(ManagedBy::Job);
        let mut hosts = self.registry.open_file::<Hosts, _>(&mut self.token)?;
        let (token, table) = hosts.parts();
        let mut found = Found::default();
        let mut known: Vec<(&HostSpec, HostRecord)> = Vec::new();
        for &spec in specs {
            match table.get(&spec.id.to_string())? {
                Some(record) => known.push((spec, record)),
                None => found.new.push(spec),
            }
        }
        if !known.is_empty() {
            let leases = self.registry.lock_file::<HostLeases, _>(token)?;
            for (spec, record) in known {
                let leased: Option<Leases> = self.registry.one(&leases, &spec.id.to_string())?;
                if is_made(&record, leased.as_ref()) {
                    host::check_same(&record, spec)?;
                    found.made.push(spec);
                } else {
                    found.unfinished.push(spec);
                }
            }
        }
        if !found.new.is_empty() {
            for spec in &found.new {
                host::register(table, spec, &by, time::now())?;
            }
            self.registry.save(&hosts)?;
        }
        Ok(found)
    }

    /// Makes what was not found made, and what is registered as made and is not there; returns that.
    fn make_missing<'s>(
        &mut self,
        found: &Found<'s>,
        kernel: &mut impl HostKernel,
    ) -> Result<Vec<&'s HostSpec>, RegistryError> {
        if !found.unfinished.is_empty() {
            let unfinished = ids(&found.unfinished);
            let removed = kernel.remove_hosts(&unfinished);
            kernel_calls("remove the remains of", &unfinished, removed)?;
            self.forget_hosts(&unfinished)?;
            self.register(&found.unfinished, ManagedBy::Job)?;
        }
        let mut missing = found.not_made();
        for spec in &found.made {
            if !self.exists(&spec.id, kernel)? {
                missing.push(spec);
            }
        }
        self.make(&missing, kernel)?;
        Ok(missing)
    }

    fn make(&self, specs: &[&HostSpec], kernel: &mut impl HostKernel) -> Result<(), RegistryError> {
        if specs.is_empty() {
            return Ok(());
        }
        kernel_calls("make", &ids(specs), kernel.create_hosts(specs))
    }

    /// Undoes the making of hosts; what cannot be undone is added to the error. Hosts that could
    /// not be removed stay registered, so that reconcile knows them.
    fn unmake(
        &mut self,
        first: RegistryError,
        hosts: &[&HostId],
        kernel: &mut impl HostKernel,
    ) -> RegistryError {
        let undone = self.remove_and_forget(hosts, kernel);
        first.with_undo(undone.err().into_iter().collect())
    }

    /// Writes the leases of hosts that are made. Their queues are held: they stay registered.
    fn add_leases(&mut self, specs: &[&HostSpec]) -> Result<(), RegistryError> {
        let new = self.lease();
        let alive = &mut alive();
        let mut leases = self.registry.open_file::<HostLeases, _>(&mut self.token)?;
        for spec in specs {
            let table = &mut leases.table;
            lease::acquire_host(table, &spec.id, &spec.router, new.clone(), alive)?;
        }
        self.registry.save(&leases)
    }

    /// Releases leases; returns the hosts that are to go now, and adds what fails to `failed`.
    fn release_leases<'h>(
        &mut self,
        hosts: &[&'h HostId],
        failed: &mut Vec<RegistryError>,
    ) -> Vec<&'h HostId> {
        let mut unused = Vec::new();
        match self.try_release_leases(hosts) {
            Ok(released) => {
                for (&host, released) in hosts.iter().zip(released) {
                    match released {
                        Ok(released) if released.should_delete => unused.push(host),
                        Ok(_) => {}
                        Err(error) => failed.push(error),
                    }
                }
            }
            Err(error) => failed.push(error),
        }
        unused
    }

    /// Releases leases in one step: what became of each, or why none is released.
    fn try_release_leases(
        &mut self,
        hosts: &[&HostId],
    ) -> Result<Vec<Result<Released, RegistryError>>, RegistryError> {
        let run_id = self.info.run_id.clone();
        let alive = &mut alive();
        let mut locked = self.registry.lock_file::<Hosts, _>(&mut self.token)?;
        let record = |host: &&HostId| self.registry.one(&locked, &host.to_string());
        let records: Vec<Option<HostRecord>> =
            hosts.iter().map(record).collect::<Result<_, _>>()?;
        let mut leases = self.registry.open_file::<HostLeases, _>(locked.token())?;
        let mut released = Vec::with_capacity(hosts.len());
        for (host, record) in hosts.iter().zip(records) {
            let by_job = record.is_some_and(|r| r.managed_by == ManagedBy::Job);
            let left = lease::release_host(&mut leases.table, host, &run_id, alive);
            released.push(left.map(|left| Released {
                left,
                should_delete: left == 0 && by_job,
            }));
        }
        if released.iter().any(Result::is_ok) {
            self.registry.save(&leases)?;
        }
        drop(leases);
        drop(locked);
        let gone = hosts.iter().zip(&released).filter(|(_, r)| r.is_ok());
        let gone: Vec<&HostId> = gone.map(|(host, _)| *host).collect();
        self.notes("host_lease.release", &gone);
        Ok(released)
    }

    #[cfg(feature = "internals")]
    fn release_lease(&mut self, host: &HostId) -> Result<Released, RegistryError> {
        let released = self.try_release_leases(&[host])?.pop();
        released.unwrap_or_else(|| Err(host::not_found(host)))
    }

    fn register(
        &mut self,
        specs: &[&HostSpec],
        managed_by: ManagedBy,
    ) -> Result<(), RegistryError> {
        if specs.is_empty() {
            return Ok(());
        }
        let by = self.registrant(managed_by);
        let mut hosts = self.registry.open_file::<Hosts, _>(&mut self.token)?;
        for spec in specs {
            host::register(&mut hosts.table, spec, &by, time::now())?;
        }
        self.registry.save(&hosts)?;
        drop(hosts);
        self.notes("host.register", &ids(specs));
        Ok(())
    }

    /// The record of a host that nobody who may live leases; leases of the dead are dropped. An
    /// operator's host is on record as one that is not made from then on, so that nobody leases it
    /// any more.
    fn unleased(&mut self, host: &HostId) -> Result<HostRecord, RegistryError> {
        let key = host.to_string();
        let mut hosts = self.registry.open_file::<Hosts, _>(&mut self.token)?;
        let (token, table) = hosts.parts();
        let record: Option<HostRecord> = table.get(&key)?;
        let record = record.ok_or_else(|| host::not_found(host))?;
        let leases = self.registry.lock_file::<HostLeases, _>(token)?;
        let found: Option<Leases> = self.registry.one(&leases, &key)?;
        let mut going = record.clone();
        going.creating |= record.managed_by == ManagedBy::Operator;
        table.put(&key, &going)?;
        let condemn = || match going.creating == record.creating {
            true => Ok(()),
            false => self.registry.save_table::<Hosts>(table),
        };
        let Some(mut found) = found else {
            condemn()?;
            return Ok(record);
        };
        lease::drop_gone(&mut found.leases, &mut alive());
        if !found.leases.is_empty() {
            return Err(RegistryError::InUse {
                host: host.clone(),
                by: found.leases.into_iter().map(|l| l.run_id).collect(),
            });
        }
        condemn()?;
        let mut leases = self.registry.load(leases)?;
        leases.table.remove(&key);
        self.registry.save(&leases)?;
        Ok(record)
    }

    /// Removes the records of hosts that have no lease.
    fn forget_hosts(&mut self, gone: &[&HostId]) -> Result<(), RegistryError> {
        let log = self.forget_unrecorded(gone)?;
        self.registry.record_all(&log);
        Ok(())
    }

    fn forget_unrecorded(&mut self, gone: &[&HostId]) -> Result<Vec<log::LogEntry>, RegistryError> {
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let mut hosts = self.registry.open_file::<Hosts, _>(&mut self.token)?;
        for host in gone {
            hosts.table.remove(&host.to_string());
        }
        self.registry.save(&hosts)?;
        drop(hosts);
        Ok(self.entries("host.unregister", gone))
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
        self.forget_hosts(&[host])
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

    pub(crate) fn exists(
        &self,
        host: &HostId,
        kernel: &mut impl HostKernel,
    ) -> Result<bool, RegistryError> {
        kernel_call("look for", host, kernel.host_exists(host))
    }

    fn note(&self, operation: &str, host: &HostId) {
        self.notes(operation, &[host]);
    }

    fn notes(&self, operation: &str, hosts: &[&HostId]) {
        self.registry.record_all(&self.entries(operation, hosts));
    }

    fn entries(&self, operation: &str, hosts: &[&HostId]) -> Vec<log::LogEntry> {
        let run_id = Some(&self.info.run_id);
        let entry = |host: &&HostId| log::LogEntry::new(operation, run_id, json!({"host": host}));
        hosts.iter().map(entry).collect()
    }
}

pub(crate) fn is_made(record: &HostRecord, leases: Option<&Leases>) -> bool {
    let leased = leases.is_some_and(|l| !l.leases.is_empty());
    !record.creating && (record.managed_by == ManagedBy::Operator || leased)
}

fn alive() -> impl FnMut(&Owner) -> crate::registry::Liveness {
    let mut census = OwnerCensus::default();
    move |owner| census.ask(owner)
}

impl<'s> Found<'s> {
    /// The hosts that are this job's to make.
    fn not_made(&self) -> Vec<&'s HostSpec> {
        [&self.new[..], &self.unfinished].concat()
    }
}

fn ids<'s>(specs: &[&'s HostSpec]) -> Vec<&'s HostId> {
    specs.iter().map(|spec| &spec.id).collect()
}

fn remove_all(hosts: &[&HostId], kernel: &mut impl HostKernel) -> Result<(), RegistryError> {
    if hosts.is_empty() {
        return Ok(());
    }
    kernel_calls("remove", hosts, kernel.remove_hosts(hosts))
}

pub(crate) fn kernel_call<T>(
    op: &'static str,
    what: &HostId,
    result: Result<T, KernelError>,
) -> Result<T, RegistryError> {
    kernel_calls(op, &[what], result)
}

fn kernel_calls<T>(
    op: &'static str,
    hosts: &[&HostId],
    result: Result<T, KernelError>,
) -> Result<T, RegistryError> {
    result.map_err(|source| {
        let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let what = if hosts.len() == 1 { "host" } else { "hosts" };
        RegistryError::Kernel {
            op,
            what: format!("{what} {}", names.join(", ")),
            source,
        }
    })
}
