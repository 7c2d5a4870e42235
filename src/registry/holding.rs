//! All that a job takes from the registry, in one beginning, and gives back, in one end.
//!
//! The single steps ([`Job`]) lock, read and write their files each. Most jobs find their hosts
//! made and nothing of dead jobs in their way: all that they take is then in two files, leases and
//! DSCP values, and one hold of both locks takes it. What is more than that, a host to make or to
//! remove, or what a dead job left, goes by the single steps beside.
//!
//! `hosts.json` is read without its lock. While the lock of the leases is held, a host that has a
//! lease stays what it is; an operator's host without one does so, too, because whoever removes it
//! notes that in its record first, under the same lock.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    model::{Dscp, HostId, RouterId, RunId},
    registry::{
        HostKernel, HostLeases, HostRecord, HostSpec, Job, JobInfo, JobType, Lease, Liveness,
        LockMode, Locked, ManagedBy, NeighbourKernel, Owner, ReconcileScope, RefusedLocks,
        RegistryError, RegistryManager, TapKernel, Unlocked, Wait, dscp, host,
        job_hosts::is_made,
        lease, log,
        manager::{Open, OwnerCensus},
        neighbour,
        order::{Dscp as DscpLevel, HostLeases as LeasesLevel, Hosts, Neighbours, Token},
        table::Table,
        time,
    },
};

/// What one job holds.
#[derive(Debug)]
pub struct Holding {
    registry: RegistryManager,
    run_id: RunId,
    job_type: JobType,
    wanted: Option<Dscp>,
    dscp: Option<Dscp>,
    /// Hosts that this job leased and did not make.
    found: Vec<Found>,
    /// Hosts that it made, or tried to.
    made: Vec<HostId>,
    locking: Duration,
    /// What the log is to say, once for a beginning and once for an end.
    log: Vec<log::LogEntry>,
}

#[derive(Debug)]
struct Found {
    host: HostId,
    managed_by: ManagedBy,
}

/// What one look at the registry's files came to.
enum Look<'s> {
    /// All that there is to take was taken, but for these hosts, which are not made.
    Taken(Vec<&'s HostSpec>),
    /// A dead job left something here, or a file is damaged.
    Remains,
}

/// What became of hosts whose leases were released.
#[derive(Default)]
struct GivenBack<'h> {
    /// Of those that this job made: nobody leases them any more.
    unused: Vec<&'h HostId>,
    /// Of the others: this job is the last to use them. Their leases are kept, and go with them.
    last: Vec<HostId>,
}

impl Holding {
    /// Nothing is held yet. With `wanted` the job is to have that DSCP value, or else a free one.
    #[must_use]
    pub fn new(
        registry: RegistryManager,
        run_id: RunId,
        job_type: JobType,
        wanted: Option<Dscp>,
    ) -> Self {
        Self {
            registry,
            run_id,
            job_type,
            wanted,
            dscp: None,
            found: Vec::new(),
            made: Vec::new(),
            locking: Duration::ZERO,
            log: Vec::new(),
        }
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &RegistryManager {
        &self.registry
    }

    /// The DSCP value that the job holds.
    #[must_use]
    pub fn dscp(&self) -> Option<Dscp> {
        self.dscp
    }

    /// Takes a DSCP value, unless one is held already, and leases of the hosts of `specs`, makes
    /// those that are missing, and locks `routers`, shared. What dead jobs left there is removed
    /// first; what could not be removed is added to `notes`.
    ///
    /// # Errors
    /// As [`RegistryManager::allocate_dscp`], [`Job::ensure_hosts_and_lease`] and
    /// [`Job::all_router_locks`]. Everything is given back then but the DSCP value.
    pub fn begin<C: HostKernel + NeighbourKernel + TapKernel>(
        &mut self,
        what: (&[&HostSpec], &[RouterId]),
        kernel: &mut impl HostKernel,
        remains: (&mut C, &mut Vec<String>),
        wait: &Wait,
    ) -> Result<(Job<Locked>, Dscp), RegistryError> {
        let begun = self.begin_unrecorded(what, kernel, remains, wait);
        self.write_log();
        begun
    }

    fn begin_unrecorded<C: HostKernel + NeighbourKernel + TapKernel>(
        &mut self,
        (specs, routers): (&[&HostSpec], &[RouterId]),
        kernel: &mut impl HostKernel,
        (caretaker, notes): (&mut C, &mut Vec<String>),
        wait: &Wait,
    ) -> Result<(Job<Locked>, Dscp), RegistryError> {
        let mut specs = specs.to_vec();
        specs.sort_by(|a, b| a.id.cmp(&b.id));
        specs.dedup_by(|a, b| a.id == b.id);
        let scope = ReconcileScope::Touching {
            routers: routers.to_vec(),
            hosts: Vec::new(),
        };
        let looked = match caretaker.sweeps_taps() {
            true => Look::Remains,
            false => match self.take(&specs, Some(&scope)) {
                // Reconciling sets it aside.
                Err(RegistryError::Corruption { .. }) => Look::Remains,
                looked => looked?,
            },
        };
        let missing = match looked {
            Look::Taken(missing) => missing,
            Look::Remains => {
                let registry = self.registry.clone();
                let report = registry.reconcile(&self.run_id, &scope, caretaker, false)?;
                for action in &report.actions {
                    tracing::info!("reconcile: {action}");
                }
                notes.extend(report.failures);
                match self.take(&specs, None)? {
                    Look::Taken(missing) => missing,
                    Look::Remains => specs.clone(),
                }
            }
        };
        let dscp = self.take_dscp()?;
        let mut job = self.job();
        let begun = self
            .make(&mut job, &specs, missing, kernel, wait)
            .and_then(|()| self.registry.sweep_locks(&self.run_id, &scope, caretaker))
            .map(|failed| notes.extend(failed));
        let before = wait.waited();
        let result = match begun {
            Ok(()) => job.lock_unrecorded(routers, LockMode::Shared, wait),
            Err(error) => Err(Box::new(RefusedLocks { job, error })),
        };
        self.locking = wait.waited().saturating_sub(before);
        if let Ok(locked) = &result {
            self.log.extend(locked.locked());
        }
        let locked = result.map_err(|refused| {
            let mut job = refused.job;
            let undone = self.release(&mut job, kernel, wait, false);
            refused.error.with_undo(undone)
        })?;
        Ok((locked, dscp))
    }

    /// How long it took to lock the routers.
    #[must_use]
    pub fn locking(&self) -> Duration {
        self.locking
    }

    /// Frees the routers, releases the leases, removes hosts that nobody leases any more, and with
    /// `dscp` gives the DSCP value back. Returns everything that failed.
    #[must_use]
    pub fn end(
        &mut self,
        job: Job<Locked>,
        kernel: &mut impl HostKernel,
        wait: &Wait,
        dscp: bool,
    ) -> Vec<RegistryError> {
        let (mut job, unlocked) = job.unlock_unrecorded();
        self.log.extend(unlocked);
        let failed = self.release(&mut job, kernel, wait, dscp);
        self.write_log();
        failed
    }

    /// Takes a DSCP value and nothing else, unless one is held already.
    ///
    /// # Errors
    /// As [`RegistryManager::allocate_dscp`].
    pub fn take_dscp(&mut self) -> Result<Dscp, RegistryError> {
        if let Some(held) = self.dscp {
            return Ok(held);
        }
        let granted = self
            .registry
            .allocate_dscp(&self.run_id, None, self.wanted)?;
        Ok(*self.dscp.insert(granted.dscp))
    }

    /// Gives the DSCP value back, if one is held.
    ///
    /// # Errors
    /// As [`RegistryManager::release_dscp`].
    pub fn release_dscp(&mut self) -> Result<(), RegistryError> {
        match self.dscp.take() {
            Some(_) => self.registry.release_dscp(&self.run_id).map(drop),
            None => Ok(()),
        }
    }

    fn job(&self) -> Job<Unlocked> {
        self.registry.job(JobInfo {
            run_id: self.run_id.clone(),
            job_type: self.job_type,
            dscp: self.dscp,
        })
    }

    /// The one hold of a beginning. With `scope` nothing is taken where a dead job left something.
    fn take<'s>(
        &mut self,
        specs: &[&'s HostSpec],
        scope: Option<&ReconcileScope>,
    ) -> Result<Look<'s>, RegistryError> {
        let registry = self.registry.clone();
        let mut census = OwnerCensus::default();
        let mut token = Token::new();
        let mut leases = registry.open_file::<LeasesLevel, _>(&mut token)?;
        let Some(hosts) = registry.glance::<Hosts>()? else {
            return Ok(Look::Remains);
        };
        if let Some(scope) = scope
            && self.has_remains(scope, (&hosts, &leases.table), &mut census)?
        {
            return Ok(Look::Remains);
        }
        let mut usable = Vec::new();
        let mut missing = Vec::new();
        for spec in specs {
            let key = spec.id.to_string();
            let record: Option<HostRecord> = hosts.get(&key)?;
            let leased: Option<HostLeases> = leases.table.get(&key)?;
            match record.filter(|record| is_made(record, leased.as_ref())) {
                Some(record) => {
                    host::check_same(&record, spec)?;
                    usable.push((*spec, record.managed_by));
                }
                None => missing.push(*spec),
            }
        }
        self.take_usable(&mut leases, &usable, &mut census)?;
        Ok(Look::Taken(missing))
    }

    /// Leases hosts that are made, and takes a DSCP value if none is held.
    fn take_usable(
        &mut self,
        leases: &mut Open<'_, LeasesLevel>,
        usable: &[(&HostSpec, ManagedBy)],
        census: &mut OwnerCensus,
    ) -> Result<(), RegistryError> {
        let registry = self.registry.clone();
        let liveness = &mut |owner: &Owner| census.ask(owner);
        let before = leases.table.clone();
        let (token, table) = leases.parts();
        let mut log: Vec<log::LogEntry> = Vec::new();
        let mut values = None;
        let dscp = match self.dscp {
            Some(held) => held,
            None => {
                let open = values.insert(registry.open_file::<DscpLevel, _>(token)?);
                let request = dscp::DscpRequest {
                    run_id: &self.run_id,
                    owner: registry.owner(),
                    username: None,
                    wanted: self.wanted,
                };
                let range = registry.dscp_range();
                let grant =
                    dscp::allocate(&mut open.table, range, &request, liveness, time::now())?;
                log.extend(grant.dead.iter().map(dropped));
                if grant.is_new {
                    log.push(self.entry("dscp.allocate", json!({"dscp": grant.dscp})));
                }
                grant.dscp
            }
        };
        let (owner, kind) = (registry.owner(), self.job_type);
        let new = Lease::new(&self.run_id, owner, kind, Some(dscp), time::now());
        for (spec, _) in usable {
            lease::acquire_host(table, &spec.id, &spec.router, new.clone(), liveness)?;
            log.push(self.entry("host_lease.acquire", json!({"host": spec.id})));
        }
        if !usable.is_empty() {
            registry.save_table::<LeasesLevel>(table)?;
        }
        if let Some(values) = &values {
            registry.save(values).map_err(|error| {
                let undone = match usable.is_empty() {
                    true => Ok(()),
                    false => registry.save_table::<LeasesLevel>(&before),
                };
                error.with_undo(undone.err().into_iter().collect())
            })?;
        }
        drop(values);
        self.dscp = Some(dscp);
        let found = usable.iter().map(|(spec, managed_by)| Found {
            host: spec.id.clone(),
            managed_by: *managed_by,
        });
        self.found.extend(found);
        self.log.append(&mut log);
        Ok(())
    }

    fn write_log(&mut self) {
        self.registry.record_all(&std::mem::take(&mut self.log));
    }

    /// A line of the log about this job.
    fn entry(&self, operation: &str, details: Value) -> log::LogEntry {
        log::LogEntry::new(operation, Some(&self.run_id), details)
    }

    /// Whether somebody who is dead has left a lease, a host or a neighbour entry here.
    fn has_remains(
        &self,
        scope: &ReconcileScope,
        (hosts, leases): (&Table, &Table),
        census: &mut OwnerCensus,
    ) -> Result<bool, RegistryError> {
        let mut is_gone = |owner: &Owner| census.ask(owner) == Liveness::Gone;
        for (host, record) in lease::list(leases)? {
            if scope.has_host(&host, &record.router)
                && record.leases.iter().any(|lease| is_gone(&lease.owner))
            {
                return Ok(true);
            }
        }
        for (host, record) in host::list(hosts)? {
            let may_be_left = record.managed_by == ManagedBy::Job || record.creating;
            if may_be_left
                && scope.has_host(&host, &record.connected_to)
                && !leases.contains(&host.to_string())
                && is_gone(&record.created_by)
            {
                return Ok(true);
            }
        }
        let Some(neighbours) = self.registry.glance::<Neighbours>()? else {
            return Ok(true);
        };
        for (key, record) in neighbour::list(&neighbours)? {
            if scope.has_router(&key.router)
                && record.leases.iter().any(|lease| is_gone(&lease.owner))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes what is `missing`, and what is registered as made and is not there.
    fn make<'s>(
        &mut self,
        job: &mut Job<Unlocked>,
        specs: &[&'s HostSpec],
        mut missing: Vec<&'s HostSpec>,
        kernel: &mut impl HostKernel,
        wait: &Wait,
    ) -> Result<(), RegistryError> {
        self.made.extend(missing.iter().map(|spec| spec.id.clone()));
        for spec in specs {
            if self.found.iter().any(|found| found.host == spec.id)
                && !job.exists(&spec.id, kernel)?
            {
                missing.push(spec);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        job.ensure_hosts_and_lease(&missing, kernel, wait)
            .inspect_err(|_| self.made.clear())
    }

    /// Releases the leases, removes hosts that nobody leases any more, and gives the DSCP value back.
    fn release(
        &mut self,
        job: &mut Job<Unlocked>,
        kernel: &mut impl HostKernel,
        wait: &Wait,
        dscp: bool,
    ) -> Vec<RegistryError> {
        let mut failed = Vec::new();
        let made = std::mem::take(&mut self.made);
        let mut mine: Vec<&HostId> = made.iter().collect();
        let queues = job.enter_queues(&mut mine, wait, &mut failed);
        let last = match self.give_back(&mine, dscp, &mut failed) {
            Ok(GivenBack { unused, last }) => {
                match job.remove_and_forget_unrecorded(&unused, kernel) {
                    Ok(log) => self.log.extend(log),
                    Err(error) => failed.push(error),
                }
                last
            }
            Err(error) => {
                failed.push(error);
                let found = std::mem::take(&mut self.found).into_iter();
                let found = found.map(|found| found.host);
                found.chain(made.iter().cloned()).collect()
            }
        };
        drop(queues);
        if !last.is_empty() {
            let last: Vec<&HostId> = last.iter().collect();
            failed.extend(job.release_and_remove_all(&last, kernel, wait));
        }
        failed
    }

    /// The one hold of an end: the queues of `made`, hosts that this job has made, are held. What
    /// could not be given back is added to `failed`.
    fn give_back<'h>(
        &mut self,
        made: &[&'h HostId],
        dscp: bool,
        failed: &mut Vec<RegistryError>,
    ) -> Result<GivenBack<'h>, RegistryError> {
        let dscp = dscp && self.dscp.is_some();
        let mut given = GivenBack::default();
        let leased = !(self.found.is_empty() && made.is_empty());
        if !leased {
            failed.extend(dscp.then(|| self.release_dscp()).and_then(Result::err));
            return Ok(given);
        }
        let registry = self.registry.clone();
        let mut log = Vec::new();
        let mut token = Token::new();
        let mut leases = registry.open_file::<LeasesLevel, _>(&mut token)?;
        let (token, table) = leases.parts();
        let mut census = OwnerCensus::default();
        for host in made {
            let liveness = &mut until_one_lives(&mut census);
            match lease::release_host(table, host, &self.run_id, liveness) {
                Ok(left) => {
                    given.unused.extend((left == 0).then_some(*host));
                    log.push(self.entry("host_lease.release", json!({"host": host})));
                }
                Err(error) => failed.push(error),
            }
        }
        for Found { host, managed_by } in std::mem::take(&mut self.found) {
            let before = table.clone();
            let liveness = &mut until_one_lives(&mut census);
            match lease::release_host(table, &host, &self.run_id, liveness) {
                Ok(0) if managed_by == ManagedBy::Job => {
                    *table = before;
                    given.last.push(host);
                }
                Ok(_) => log.push(self.entry("host_lease.release", json!({"host": host}))),
                Err(error) => failed.push(error),
            }
        }
        if !log.is_empty()
            && let Err(error) = registry.save_table::<LeasesLevel>(table)
        {
            log.clear();
            // They are leased still.
            given.unused.clear();
            failed.push(error);
        }
        if dscp {
            match self.free_dscp(token) {
                Ok(entry) => log.push(entry),
                Err(error) => failed.push(error),
            }
        }
        drop(leases);
        self.log.append(&mut log);
        Ok(given)
    }

    /// Frees the DSCP value, which is held.
    fn free_dscp(
        &mut self,
        token: &mut Token<'_, LeasesLevel>,
    ) -> Result<log::LogEntry, RegistryError> {
        self.dscp = None;
        let registry = &self.registry;
        let mut values = registry.open_file::<DscpLevel, _>(token)?;
        let dscp = dscp::release(&mut values.table, &self.run_id)?;
        registry.save(&values)?;
        Ok(self.entry("dscp.release", json!({"dscp": dscp})))
    }
}

/// Looks whether owners live until one does: then the host stays. Whoever comes next looks at them all.
fn until_one_lives(census: &mut OwnerCensus) -> impl FnMut(&Owner) -> Liveness {
    let mut lives = false;
    move |owner| {
        if lives {
            return Liveness::Unknown;
        }
        let found = census.ask(owner);
        lives = found != Liveness::Gone;
        found
    }
}

/// What the log says of a value that a dead job held.
fn dropped(dead: &RunId) -> log::LogEntry {
    log::LogEntry::new("dscp.drop", Some(dead), json!({}))
}
