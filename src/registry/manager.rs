//! The entry point: opens the registry, answers questions, hands out jobs and DSCP values.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    config::Config,
    model::{Dscp, DscpRange, HostId, RouterId, RunId},
    registry::{
        DscpAllocation, DscpGrant, HostLeases, HostRecord, Job, JobInfo, Lease, Liveness,
        LockHolder, LockMode, NeighbourKey, NeighbourLeases, Owner, RegistryError, Repair,
        Unlocked, Wait, dscp, host, lease, lock, log,
        medium::{Directory, Medium},
        mutex::{self, RegistryGuard},
        neighbour,
        order::{Before, Dscp as DscpLevel, HostLeases as LeasesLevel, Hosts, Neighbours, Token},
        store::{FileLevel, Store},
        table::Table,
        time,
    },
    wait,
};

/// The registry, opened. Cheap to open and to clone, safe to use from many threads and processes.
#[derive(Debug, Clone)]
pub struct RegistryManager(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    locks: Arc<Directory>,
    opened: mutex::Opened,
    dscp: DscpRange,
    owner: Owner,
    /// How long a change waits for others that change the same file.
    patience: Duration,
    /// Whether one has given up: what is undone then waits for a moment only.
    gave_up: AtomicBool,
}

/// A file that is locked and loaded.
pub(crate) struct Open<'t, L: FileLevel> {
    pub(crate) table: Table,
    /// Held until the change is saved.
    guard: RegistryGuard<'t, L>,
}

impl<'t, L: FileLevel> Open<'t, L> {
    /// What may be locked while this is open, and its records.
    pub(crate) fn parts(&mut self) -> (&mut Token<'t, L>, &mut Table) {
        (self.guard.token(), &mut self.table)
    }
}

/// Looks at each owner once.
#[derive(Default)]
pub(crate) struct OwnerCensus(HashMap<Owner, Liveness>);

impl OwnerCensus {
    pub(crate) fn ask(&mut self, owner: &Owner) -> Liveness {
        if let Some(known) = self.0.get(owner) {
            return *known;
        }
        let found = owner.liveness();
        self.0.insert(owner.clone(), found);
        found
    }
}

impl RegistryManager {
    /// Opens the registry in `config.registry_dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`RegistryError::Unsafe`] when the directory is not to be trusted, otherwise
    /// [`RegistryError::Io`].
    pub fn open(config: &Config) -> Result<Self, RegistryError> {
        let directory = Directory::open(&config.registry_dir)?;
        let locks = directory.sub("locks")?;
        Self::assemble(config, locks, Box::new(directory))
    }

    /// The same with files on another medium; locks stay in the configured directory. For tests.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[cfg(feature = "internals")]
    pub fn open_on(config: &Config, medium: Box<dyn Medium>) -> Result<Self, RegistryError> {
        let locks = Directory::open(&config.registry_dir)?.sub("locks")?;
        Self::assemble(config, locks, medium)
    }

    fn assemble(
        config: &Config,
        locks: Directory,
        medium: Box<dyn Medium>,
    ) -> Result<Self, RegistryError> {
        let owner = Owner::current().map_err(|source| RegistryError::Io {
            op: "read",
            path: "/proc/self/stat".into(),
            source,
        })?;
        Ok(Self(Arc::new(Inner {
            store: Store::new(medium),
            locks: Arc::new(locks),
            opened: mutex::Opened::default(),
            dscp: config.dscp,
            owner,
            patience: config.lock_timeout,
            gave_up: AtomicBool::new(false),
        })))
    }

    /// Starts a job: the way to everything that is held.
    #[must_use]
    pub fn job(&self, info: JobInfo) -> Job<Unlocked> {
        Job::new(self.clone(), info)
    }

    /// The calling process as the registry knows it.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.0.owner
    }

    /// All registered hosts, by name.
    ///
    /// # Errors
    /// When `hosts.json` cannot be read.
    pub fn hosts(&self) -> Result<Vec<(HostId, HostRecord)>, RegistryError> {
        host::list(&self.look::<Hosts>()?)
    }

    /// One registered host.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], or when `hosts.json` cannot be read.
    pub fn host(&self, host: &HostId) -> Result<HostRecord, RegistryError> {
        let mut token = Token::new();
        let guard = self.lock_file::<Hosts, _>(&mut token)?;
        self.one(&guard, &host.to_string())?
            .ok_or_else(|| host::not_found(host))
    }

    /// All leased hosts with their leases, by name.
    ///
    /// # Errors
    /// When `host_leases.json` cannot be read.
    pub fn source_host_leases(&self) -> Result<Vec<(HostId, HostLeases)>, RegistryError> {
        lease::list(&self.look::<LeasesLevel>()?)
    }

    /// The leases of one host.
    ///
    /// # Errors
    /// When `host_leases.json` cannot be read.
    pub fn leases_of(&self, host: &HostId) -> Result<Vec<Lease>, RegistryError> {
        let mut token = Token::new();
        let guard = self.lock_file::<LeasesLevel, _>(&mut token)?;
        let record: Option<HostLeases> = self.one(&guard, &host.to_string())?;
        Ok(record.map(|r| r.leases).unwrap_or_default())
    }

    /// All leased neighbour entries.
    ///
    /// # Errors
    /// When `neighbor_leases.json` cannot be read.
    pub fn neighbor_leases(&self) -> Result<Vec<(NeighbourKey, NeighbourLeases)>, RegistryError> {
        neighbour::list(&self.look::<Neighbours>()?)
    }

    /// All DSCP allocations, by run id.
    ///
    /// # Errors
    /// When `dscp_registry.json` cannot be read.
    pub fn dscp_allocations(&self) -> Result<Vec<(RunId, DscpAllocation)>, RegistryError> {
        dscp::list(&self.look::<DscpLevel>()?)
    }

    /// What a run has, in words, as the files say: they are not locked for that, since whoever asks
    /// may be the one that has them locked. A damaged file says nothing.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn held_by(&self, run_id: &RunId) -> Result<Vec<String>, RegistryError> {
        let of = |leases: &[Lease]| leases.iter().any(|lease| lease.run_id == *run_id);
        let mut held = Vec::new();
        let hosts = self.glance::<LeasesLevel>()?.unwrap_or_default();
        let hosts = lease::list(&hosts)?.into_iter();
        let own = hosts.filter(|(_, record)| of(&record.leases));
        held.extend(own.map(|(host, _)| format!("host {host} and its lease")));
        let neighbours = self.glance::<Neighbours>()?.unwrap_or_default();
        let neighbours = neighbour::list(&neighbours)?.into_iter();
        let own = neighbours.filter(|(_, record)| of(&record.leases));
        held.extend(own.map(|(neighbour, _)| format!("neighbour entry {neighbour}")));
        let taps = self.tap_notes()?.into_iter();
        let own = taps.filter(|note| note.run_id == *run_id);
        held.extend(own.map(|note| format!("{} on {}", note.described(), note.router)));
        let values = self.glance::<DscpLevel>()?.unwrap_or_default();
        let own = dscp::list(&values)?
            .into_iter()
            .find(|(run, _)| run == run_id);
        held.extend(own.map(|(_, allocation)| format!("DSCP value {}", allocation.dscp)));
        Ok(held)
    }

    /// The DSCP values that jobs may hold.
    #[must_use]
    pub fn dscp_range(&self) -> DscpRange {
        self.0.dscp
    }

    /// Allocates `wanted`, or the lowest free DSCP value, to `run_id`. Asking again gives the same
    /// value and makes the caller its owner: so a job takes over what a scheduler allocated.
    /// Allocations whose owners are provably gone are dropped first.
    ///
    /// # Errors
    /// [`RegistryError::DscpExhausted`], [`RegistryError::DscpTaken`],
    /// [`RegistryError::DscpOutOfRange`], or when the file cannot be read or written.
    pub fn allocate_dscp(
        &self,
        run_id: &RunId,
        username: Option<&str>,
        wanted: Option<Dscp>,
    ) -> Result<DscpGrant, RegistryError> {
        match self.try_allocate_dscp(run_id, username, wanted) {
            Err(RegistryError::Corruption { .. }) => {
                // It sets aside what is damaged.
                self.dscp_allocations()?;
                self.try_allocate_dscp(run_id, username, wanted)
            }
            done => done,
        }
    }

    fn try_allocate_dscp(
        &self,
        run_id: &RunId,
        username: Option<&str>,
        wanted: Option<Dscp>,
    ) -> Result<DscpGrant, RegistryError> {
        let mut token = Token::new();
        let mut open = self.open_file::<DscpLevel, _>(&mut token)?;
        let request = dscp::DscpRequest {
            run_id,
            owner: self.owner(),
            username,
            wanted,
        };
        let mut census = OwnerCensus::default();
        let range = self.0.dscp;
        let liveness = &mut |o: &Owner| census.ask(o);
        let grant = dscp::allocate(&mut open.table, range, &request, liveness, time::now())?;
        self.save(&open)?;
        for dead in &grant.dead {
            self.record("dscp.drop", Some(dead), json!({}));
        }
        // Who takes over what a scheduler allocated takes nothing more.
        if grant.is_new {
            self.record("dscp.allocate", Some(run_id), json!({"dscp": grant.dscp}));
        }
        Ok(grant)
    }

    /// Gives back the DSCP value of `run_id`.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when it holds none, or when the file cannot be written.
    pub fn release_dscp(&self, run_id: &RunId) -> Result<Dscp, RegistryError> {
        let mut token = Token::new();
        let mut open = self.open_file::<DscpLevel, _>(&mut token)?;
        let dscp = dscp::release(&mut open.table, run_id)?;
        self.save(&open)?;
        self.record("dscp.release", Some(run_id), json!({"dscp": dscp}));
        Ok(dscp)
    }

    /// Who holds `router` or waits for it, in order; empty when it is free.
    ///
    /// # Errors
    /// When the queue cannot be read.
    #[cfg(feature = "internals")]
    pub fn is_router_locked(&self, router: &RouterId) -> Result<Vec<LockHolder>, RegistryError> {
        lock::holders(self.locks(), &router.to_string())
    }

    /// All queues that somebody is in, of routers (`LAB.ROUTER`) and of hosts that are being made
    /// or removed (`LAB@HOST`).
    ///
    /// # Errors
    /// When the queues cannot be read.
    pub fn locks_held(&self) -> Result<Vec<(String, Vec<LockHolder>)>, RegistryError> {
        let mut held = Vec::new();
        for name in lock::names(self.locks())? {
            let holders = lock::holders(self.locks(), &name)?;
            if !holders.is_empty() {
                held.push((name, holders));
            }
        }
        Ok(held)
    }

    /// Removes the places of the dead in all queues, and queues in which nobody is.
    ///
    /// # Errors
    /// When the queues cannot be read or changed.
    pub fn sweep_queues(&self) -> Result<(), RegistryError> {
        for name in lock::names(self.locks())? {
            lock::sweep(self.locks(), &name, false)?;
        }
        Ok(())
    }

    /// The last `count` lines of the transaction log, oldest first.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log_tail(&self, count: usize) -> Result<Vec<log::LogEntry>, RegistryError> {
        log::tail(self.0.store.medium(), count)
    }

    /// Damaged files that this process has set aside since this was last asked.
    #[must_use]
    pub fn take_repairs(&self) -> Vec<Repair> {
        self.0.store.take_repairs()
    }

    pub(crate) fn locks(&self) -> &Arc<Directory> {
        &self.0.locks
    }

    /// Locks a file.
    pub(crate) fn lock_file<'t, L: FileLevel, P: Before<L>>(
        &'t self,
        token: &'t mut Token<'_, P>,
    ) -> Result<RegistryGuard<'t, L>, RegistryError> {
        let patience = match self.0.gave_up.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => self.0.patience,
        };
        let wait = Wait::at_most(wait::for_a_moment(patience));
        let locks = (&*self.0.locks, &self.0.opened);
        let locked = mutex::lock(token, locks, L::FILE.lock, &wait);
        if matches!(locked, Err(RegistryError::LockTimeout { .. })) {
            self.0.gave_up.store(true, Ordering::Relaxed);
        }
        locked
    }

    /// Reads one record of a locked file.
    pub(crate) fn one<L: FileLevel, T: DeserializeOwned>(
        &self,
        _held: &RegistryGuard<'_, L>,
        key: &str,
    ) -> Result<Option<T>, RegistryError> {
        self.0.store.load_one(L::FILE, key, time::now())
    }

    /// Loads a locked file.
    pub(crate) fn load<'t, L: FileLevel>(
        &self,
        guard: RegistryGuard<'t, L>,
    ) -> Result<Open<'t, L>, RegistryError> {
        let table = self.0.store.load(L::FILE, time::now())?;
        Ok(Open { table, guard })
    }

    /// Locks a file and loads it.
    pub(crate) fn open_file<'t, L: FileLevel, P: Before<L>>(
        &'t self,
        token: &'t mut Token<'_, P>,
    ) -> Result<Open<'t, L>, RegistryError> {
        let guard = self.lock_file(token)?;
        self.load(guard)
    }

    pub(crate) fn save<L: FileLevel>(&self, open: &Open<'_, L>) -> Result<(), RegistryError> {
        self.save_table::<L>(&open.table)
    }

    /// Saves the records of a file that is locked.
    pub(crate) fn save_table<L: FileLevel>(&self, table: &Table) -> Result<(), RegistryError> {
        self.0.store.save(L::FILE, table)
    }

    /// Reads a file that nobody has locked: it is replaced as a whole. None when it is damaged;
    /// whoever locks it repairs it.
    pub(crate) fn glance<L: FileLevel>(&self) -> Result<Option<Table>, RegistryError> {
        self.0.store.glance(L::FILE)
    }

    /// Loads a file to look at all of it. It is locked for that only because a damaged one is
    /// repaired, and damaged records are set aside.
    fn look<L: FileLevel>(&self) -> Result<Table, RegistryError>
    where
        crate::registry::order::Nothing: Before<L>,
    {
        let mut token = Token::new();
        let mut open = self.open_file::<L, _>(&mut token)?;
        self.0.store.set_aside::<L>(&mut open.table, time::now())?;
        Ok(open.table)
    }

    pub(crate) fn record(&self, operation: &str, run_id: Option<&RunId>, details: Value) {
        self.record_all(&[log::LogEntry::new(operation, run_id, details)]);
    }

    /// Writes several lines of the log at once.
    pub(crate) fn record_all(&self, entries: &[log::LogEntry]) {
        log::record_all(self.0.store.medium(), &self.0.locks, entries);
    }

    /// Enters the queue `name` on behalf of a job and waits for its turn.
    pub(crate) fn enter_queue(
        &self,
        name: &str,
        mode: LockMode,
        run_id: &RunId,
        wait: &Wait,
    ) -> Result<lock::QueueLock, RegistryError> {
        lock::acquire(&self.0.locks, name, mode, run_id, &self.0.owner, wait)
    }
}
