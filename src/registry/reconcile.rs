//! Removes what dead jobs left.
//!
//! The one reason to take something away is that its owner is provably gone: not a name, not an
//! age. What cannot be told is kept and reported. Kernel objects go before the record that knows
//! of them, so a crash or failure half-way leaves the record to the next one who comes by.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
};

use serde::Serialize;
use serde_json::json;

use crate::{
    model::{Dscp, HostId, LabName, RouterId, RunId, WithCauses},
    registry::{
        HostKernel, HostRecord, Liveness, LockMode, ManagedBy, NeighbourKernel, NeighbourKey,
        NeighbourLeases, Owner, RegistryError, RegistryManager, TapKernel, TapNote, Wait, dscp,
        job_hosts, job_neighbours, lease, lock,
        lock::QueueLock,
        manager::OwnerCensus,
        neighbour,
        order::{Dscp as DscpLevel, HostLeases, Hosts, Neighbours, Token},
        taps,
    },
};

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReconcileScope {
    /// Everything in the registry.
    Everything,
    /// What a job is about to use: these routers with everything on them, and these hosts; and the
    /// queues of hosts that nobody registered, which are left by jobs that died before.
    /// (DSCP allocations of the dead are dropped when a value is allocated.)
    Touching {
        /// Routers.
        routers: Vec<RouterId>,
        /// Hosts beside those on the routers.
        hosts: Vec<HostId>,
    },
}

impl ReconcileScope {
    pub(crate) fn has_router(&self, router: &RouterId) -> bool {
        match self {
            Self::Everything => true,
            Self::Touching { routers, .. } => routers.contains(router),
        }
    }

    pub(crate) fn has_host(&self, host: &HostId, router: &RouterId) -> bool {
        self.has_router(router)
            || matches!(self, Self::Touching { hosts, .. } if hosts.contains(host))
    }

    fn has_queue(&self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Touching { routers, hosts } => {
                routers.iter().any(|r| r.to_string() == name)
                    || hosts.iter().any(|h| h.to_string() == name)
            }
        }
    }
}

/// One thing that was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum ReconcileAction {
    /// A tap was removed from a router.
    SweepTap {
        /// The tap.
        tap: String,
    },
    /// What a dead job's connections left in a router was removed.
    ForgetConnections {
        /// The router.
        router: RouterId,
        /// The dead job.
        run_id: RunId,
    },
    /// A lease of a neighbour entry was dropped.
    DropNeighbourLease {
        /// The entry.
        neighbor: NeighbourKey,
        /// The dead job.
        run_id: RunId,
    },
    /// A neighbour entry was put back as it was before tsim.
    RestoreNeighbour {
        /// The entry.
        neighbor: NeighbourKey,
    },
    /// A lease of a host was dropped.
    DropHostLease {
        /// The host.
        host: HostId,
        /// The dead job.
        run_id: RunId,
    },
    /// A host was removed and unregistered.
    RemoveHost {
        /// The host.
        host: HostId,
    },
    /// A dead job's place in a queue was removed.
    RemoveTicket {
        /// The queue.
        queue: String,
        /// The dead job.
        run_id: RunId,
    },
    /// A DSCP value was freed.
    FreeDscp {
        /// The value.
        dscp: Dscp,
        /// The dead job.
        run_id: RunId,
    },
    /// A change of a lab that was interrupted was brought to its end, or undone.
    SettleLab {
        /// The lab.
        lab: LabName,
    },
}

impl fmt::Display for ReconcileAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SweepTap { tap } => write!(f, "remove tap {tap}"),
            Self::ForgetConnections { router, run_id } => {
                write!(
                    f,
                    "remove entries of connection tracking of {run_id} on {router}"
                )
            }
            Self::DropNeighbourLease { neighbor, run_id } => {
                write!(f, "drop the lease of neighbour {neighbor} by {run_id}")
            }
            Self::RestoreNeighbour { neighbor } => write!(f, "put back neighbour {neighbor}"),
            Self::DropHostLease { host, run_id } => {
                write!(f, "drop the lease of host {host} by {run_id}")
            }
            Self::RemoveHost { host } => write!(f, "remove host {host}"),
            Self::RemoveTicket { queue, run_id } => {
                write!(f, "remove {run_id} from the queue of {queue}")
            }
            Self::FreeDscp { dscp, run_id } => write!(f, "free DSCP {dscp} of {run_id}"),
            Self::SettleLab { lab } => {
                write!(f, "remove what an interrupted change of lab {lab} left")
            }
        }
    }
}

/// What reconciling came to.
#[derive(Debug, Default, Serialize)]
pub struct ReconcileReport {
    /// Nothing was changed; the actions are what would have been done.
    pub dry_run: bool,
    /// What was done, in order.
    pub actions: Vec<ReconcileAction>,
    /// What was kept because it cannot be told whether its owner lives, and what in the kernel
    /// does not agree with the registry.
    pub notices: Vec<String>,
    /// What could not be done; it is left to the next one.
    pub failures: Vec<String>,
}

/// One pass.
struct Pass<'a, K> {
    registry: &'a RegistryManager,
    run_id: &'a RunId,
    scope: &'a ReconcileScope,
    kernel: &'a mut K,
    census: OwnerCensus,
    report: ReconcileReport,
}

impl RegistryManager {
    /// Removes what provably dead owners left, as far as `scope` goes; with `dry_run` only says
    /// what that is. It is done in the name of `run_id`.
    ///
    /// A part that fails is reported in [`ReconcileReport::failures`] and does not stop the rest.
    ///
    /// # Errors
    /// When the registry's files cannot be read or written.
    pub fn reconcile<K: HostKernel + NeighbourKernel + TapKernel>(
        &self,
        run_id: &RunId,
        scope: &ReconcileScope,
        kernel: &mut K,
        dry_run: bool,
    ) -> Result<ReconcileReport, RegistryError> {
        let mut pass = Pass {
            registry: self,
            run_id,
            scope,
            kernel,
            census: OwnerCensus::default(),
            report: ReconcileReport {
                dry_run,
                ..ReconcileReport::default()
            },
        };
        pass.doubts()?;
        pass.taps();
        pass.noted_taps()?;
        pass.neighbours()?;
        let freed = pass.host_leases()?;
        pass.hosts(&freed)?;
        pass.tickets()?;
        if *scope == ReconcileScope::Everything {
            pass.dscp()?;
            pass.compare_with_kernel()?;
        }
        Ok(pass.report)
    }
}

impl RegistryManager {
    /// Removes what dead jobs left beside leases and hosts: places in the queues of hosts (whoever
    /// enters a queue does that there), and taps that they noted. Returns what could not be removed.
    pub(crate) fn sweep_locks<K: HostKernel + NeighbourKernel + TapKernel>(
        &self,
        run_id: &RunId,
        scope: &ReconcileScope,
        kernel: &mut K,
    ) -> Result<Vec<String>, RegistryError> {
        let names = lock::directories(self.locks())?;
        let queues = names.iter().any(|name| name.contains('@'));
        let taps = names.iter().any(|name| name == taps::DIRECTORY);
        if !queues && !taps {
            return Ok(Vec::new());
        }
        let mut pass = Pass {
            registry: self,
            run_id,
            scope,
            kernel,
            census: OwnerCensus::default(),
            report: ReconcileReport::default(),
        };
        if taps {
            pass.noted_taps()?;
        }
        if queues {
            pass.tickets()?;
        }
        Ok(pass.report.failures)
    }
}

impl RegistryManager {
    /// Removes what connections of dead jobs left in routers that the caller has locked. Returns what
    /// could not be removed.
    ///
    /// # Errors
    /// When the notes cannot be read.
    pub fn forget_connections<K: HostKernel + NeighbourKernel + TapKernel>(
        &self,
        run_id: &RunId,
        held: &[RouterId],
        kernel: &mut K,
    ) -> Result<Vec<String>, RegistryError> {
        let mut notes = self.tap_notes()?;
        notes.retain(|note| note.connections().is_some() && held.contains(&note.router));
        if notes.is_empty() {
            return Ok(Vec::new());
        }
        let mut pass = Pass {
            registry: self,
            run_id,
            scope: &ReconcileScope::Everything,
            kernel,
            census: OwnerCensus::default(),
            report: ReconcileReport::default(),
        };
        pass.noted_connections(notes, held)?;
        Ok(pass.report.failures)
    }
}

impl<K: HostKernel + NeighbourKernel + TapKernel> Pass<'_, K> {
    /// Says what is kept because it cannot be told whether its owner lives. What is damaged is set
    /// aside by the look at it.
    fn doubts(&mut self) -> Result<(), RegistryError> {
        self.registry.hosts()?;
        let leases = self.registry.source_host_leases()?.into_iter();
        let neighbours = self.registry.neighbor_leases()?.into_iter();
        let leases = leases
            .flat_map(|(_, record)| record.leases)
            .chain(neighbours.flat_map(|(_, record)| record.leases))
            .map(|lease| (lease.run_id, lease.owner));
        let allocations = self.registry.dscp_allocations()?.into_iter();
        let doubts: BTreeSet<String> = leases
            .chain(allocations.map(|(run, allocation)| (run, allocation.owner)))
            .filter(|(_, owner)| self.census.ask(owner) == Liveness::Unknown)
            .map(|(run, owner)| {
                let pid = owner.pid;
                format!("kept what {run} holds: cannot tell whether process {pid} is still it")
            })
            .collect();
        self.report.notices.extend(doubts);
        Ok(())
    }

    fn taps(&mut self) {
        let routers: Vec<Option<&RouterId>> = match self.scope {
            ReconcileScope::Everything => vec![None],
            ReconcileScope::Touching { routers, .. } => routers.iter().map(Some).collect(),
        };
        let is_gone = |owner: &Owner| owner.liveness() == Liveness::Gone;
        for router in routers {
            match self
                .kernel
                .sweep_taps(router, &is_gone, self.report.dry_run)
            {
                Ok(taps) => taps
                    .into_iter()
                    .for_each(|tap| self.did(ReconcileAction::SweepTap { tap }, None)),
                Err(e) => self.failed("sweep taps", &*e),
            }
        }
    }

    /// Removes what dead jobs have noted, wherever it is: it may be in the way of any verdict.
    fn noted_taps(&mut self) -> Result<(), RegistryError> {
        let notes = self.registry.tap_notes()?;
        if notes.is_empty() && !self.report.dry_run {
            // Whoever made it died before its note.
            self.registry.discard_tap_notes();
        }
        let (connections, notes): (Vec<TapNote>, Vec<TapNote>) = notes
            .into_iter()
            .partition(|note| note.connections().is_some());
        self.noted_connections(connections, &[])?;
        for note in &notes {
            match self.census.ask(&note.owner) {
                Liveness::Alive => continue,
                Liveness::Unknown => {
                    let TapNote { run_id, router, .. } = note;
                    let notice = format!(
                        "kept taps of {run_id} on {router}: cannot tell whether process {} is \
                         still it",
                        note.owner.pid
                    );
                    self.report.notices.push(notice);
                    continue;
                }
                Liveness::Gone => {}
            }
            if !self.report.dry_run {
                match self.kernel.remove_noted(note) {
                    // Who else has taps there takes it away with them, or leaves it to the next.
                    Ok(false) if notes.iter().any(|other| other.is_beside(note)) => continue,
                    Ok(_) => self.registry.strike_tap(note)?,
                    Err(e) => {
                        self.failed("remove taps that were noted", &*e);
                        continue;
                    }
                }
            }
            let tap = format!("of {} ({}) on {}", note.run_id, note.tool, note.router);
            self.did(ReconcileAction::SweepTap { tap }, Some(&note.run_id));
        }
        Ok(())
    }

    /// Removes what connections of dead jobs left in routers: of those that are `held`, and of others
    /// that nobody measures now. Who holds one of those has looked, or the next one does.
    fn noted_connections(
        &mut self,
        mut notes: Vec<TapNote>,
        held: &[RouterId],
    ) -> Result<(), RegistryError> {
        while let Some(first) = notes.first() {
            let owner = first.owner.clone();
            let of_one = |note: &TapNote| note.owner == owner;
            let (mine, others): (Vec<TapNote>, Vec<TapNote>) = notes.into_iter().partition(of_one);
            notes = others;
            if self.census.ask(&owner) == Liveness::Gone {
                self.forget_connections(mine, held)?;
            }
        }
        Ok(())
    }

    /// As [`Self::noted_connections`], of one dead job.
    fn forget_connections(
        &mut self,
        mut notes: Vec<TapNote>,
        held: &[RouterId],
    ) -> Result<(), RegistryError> {
        let mut locks = Vec::new();
        if !self.report.dry_run {
            let mut free = Vec::with_capacity(notes.len());
            for note in notes {
                let lock = match held.contains(&note.router) {
                    true => Ok(None),
                    false => self.try_lock(&note.router).map(Some),
                };
                match lock {
                    Ok(lock) => {
                        locks.extend(lock);
                        free.push(note);
                    }
                    Err(RegistryError::LockTimeout { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            notes = free;
            if let Err(e) = self.kernel.forget_connections(&notes) {
                self.failed("remove entries of connection tracking", &*e);
                return Ok(());
            }
        }
        for note in notes {
            if !self.report.dry_run {
                self.registry.strike_tap(&note)?;
            }
            let (router, run_id) = (note.router.clone(), note.run_id.clone());
            self.did(
                ReconcileAction::ForgetConnections { router, run_id },
                Some(&note.run_id),
            );
        }
        Ok(())
    }

    fn try_lock(&self, router: &RouterId) -> Result<QueueLock, RegistryError> {
        let (name, mode) = (router.to_string(), LockMode::Exclusive);
        self.registry
            .enter_queue(&name, mode, self.run_id, &Wait::not())
    }

    fn neighbours(&mut self) -> Result<(), RegistryError> {
        let mut token = Token::new();
        let mut open = self.registry.open_file::<Neighbours, _>(&mut token)?;
        let mut changed = false;
        for (key, mut record) in neighbour::list(&open.table)? {
            if !self.scope.has_router(&key.router) {
                continue;
            }
            let gone = lease::drop_gone(&mut record.leases, &mut |o| self.census.ask(o));
            if gone.is_empty() || !self.put_back(&key, &record) {
                continue;
            }
            changed = true;
            if record.leases.is_empty() {
                open.table.remove(&key.to_string());
            } else {
                open.table.put(&key.to_string(), &record)?;
            }
            for lease in gone {
                let run = lease.run_id.clone();
                let neighbor = key.clone();
                self.did(
                    ReconcileAction::DropNeighbourLease {
                        neighbor,
                        run_id: lease.run_id,
                    },
                    Some(&run),
                );
            }
        }
        if changed && !self.report.dry_run {
            self.registry.save(&open)?;
        }
        Ok(())
    }

    /// Restores the entry when nobody leases it any more; false when that failed.
    fn put_back(&mut self, key: &NeighbourKey, record: &NeighbourLeases) -> bool {
        if !record.leases.is_empty() {
            return true;
        }
        if !self.report.dry_run {
            let restored = self.kernel.restore_neighbour(key, record.before.as_ref());
            if let Err(e) = job_neighbours::kernel_call("put back", key, restored) {
                self.failed("put back a neighbour", &e);
                return false;
            }
        }
        self.did(
            ReconcileAction::RestoreNeighbour {
                neighbor: key.clone(),
            },
            None,
        );
        true
    }

    /// Drops leases of the dead; returns the hosts that have none left because of it.
    fn host_leases(&mut self) -> Result<Vec<HostId>, RegistryError> {
        let mut token = Token::new();
        let mut open = self.registry.open_file::<HostLeases, _>(&mut token)?;
        let mut freed = Vec::new();
        let mut changed = false;
        for (host, mut record) in lease::list(&open.table)? {
            if !self.scope.has_host(&host, &record.router) {
                continue;
            }
            let gone = lease::drop_gone(&mut record.leases, &mut |o| self.census.ask(o));
            if gone.is_empty() {
                continue;
            }
            changed = true;
            lease::put_or_remove(&mut open.table, &host.to_string(), &record)?;
            for lease in gone {
                let run = lease.run_id.clone();
                let host = host.clone();
                self.did(
                    ReconcileAction::DropHostLease {
                        host,
                        run_id: lease.run_id,
                    },
                    Some(&run),
                );
            }
            if record.leases.is_empty() {
                freed.push(host);
            }
        }
        if changed && !self.report.dry_run {
            self.registry.save(&open)?;
        }
        Ok(freed)
    }

    fn hosts(&mut self, freed: &[HostId]) -> Result<(), RegistryError> {
        for (host, record) in self.registry.hosts()? {
            if !self.scope.has_host(&host, &record.connected_to) {
                continue;
            }
            if self.is_left_over(&host, &record, freed)? {
                self.remove_host(&host, freed);
            }
        }
        Ok(())
    }

    /// A host that no job uses and nobody is about to use: the last lease was just dropped, or
    /// who registered it died before making or leasing it.
    fn is_left_over(
        &mut self,
        host: &HostId,
        record: &HostRecord,
        freed: &[HostId],
    ) -> Result<bool, RegistryError> {
        let by_job = record.managed_by == ManagedBy::Job;
        if !by_job && !record.creating {
            return Ok(false);
        }
        let just_freed = freed.contains(host);
        if !just_freed && !self.registry.leases_of(host)?.is_empty() {
            return Ok(false);
        }
        let mut creator_gone = || self.census.ask(&record.created_by) == Liveness::Gone;
        Ok(just_freed || creator_gone())
    }

    /// Removes a host, unless somebody is making, leasing or removing it right now.
    fn remove_host(&mut self, host: &HostId, freed: &[HostId]) {
        if !self.report.dry_run {
            match self.try_remove_host(host, freed) {
                Ok(true) => {}
                Ok(false) | Err(RegistryError::LockTimeout { .. }) => return,
                Err(e) => return self.failed("remove a host", &e),
            }
        }
        self.did(ReconcileAction::RemoveHost { host: host.clone() }, None);
    }

    fn try_remove_host(&mut self, host: &HostId, freed: &[HostId]) -> Result<bool, RegistryError> {
        let name = host.to_string();
        let _queue =
            self.registry
                .enter_queue(&name, LockMode::Exclusive, self.run_id, &Wait::not())?;
        let record = match self.registry.host(host) {
            Ok(record) => record,
            Err(RegistryError::NotFound(_)) => return Ok(false),
            Err(e) => return Err(e),
        };
        // Somebody may have leased it before the queue was entered.
        let leased = !self.registry.leases_of(host)?.is_empty();
        if leased || !self.is_left_over(host, &record, freed)? {
            return Ok(false);
        }
        job_hosts::kernel_call("remove", host, self.kernel.remove_host(host))?;
        let mut token = Token::new();
        let mut hosts = self.registry.open_file::<Hosts, _>(&mut token)?;
        hosts.table.remove(&name);
        self.registry.save(&hosts)?;
        Ok(true)
    }

    fn tickets(&mut self) -> Result<(), RegistryError> {
        let queues = lock::names(self.registry.locks())?.into_iter();
        let (mut swept, others): (Vec<_>, Vec<_>) =
            queues.partition(|queue| self.scope.has_queue(queue));
        swept.extend(self.nobodys(others)?);
        for queue in swept {
            for run_id in lock::sweep(self.registry.locks(), &queue, self.report.dry_run)? {
                let run = run_id.clone();
                let queue = queue.clone();
                self.did(ReconcileAction::RemoveTicket { queue, run_id }, Some(&run));
            }
        }
        Ok(())
    }

    /// Of these queues the ones of hosts that are not registered: no scope names them any more.
    fn nobodys(&self, mut queues: Vec<String>) -> Result<Vec<String>, RegistryError> {
        queues.retain(|queue| queue.contains('@'));
        if queues.is_empty() {
            return Ok(queues);
        }
        let hosts = self.registry.hosts()?;
        let registered: HashSet<String> = hosts.iter().map(|(id, _)| id.to_string()).collect();
        queues.retain(|queue| !registered.contains(queue));
        Ok(queues)
    }

    fn dscp(&mut self) -> Result<(), RegistryError> {
        let mut token = Token::new();
        let mut open = self.registry.open_file::<DscpLevel, _>(&mut token)?;
        let mut changed = false;
        for (run_id, allocation) in dscp::list(&open.table)? {
            if self.census.ask(&allocation.owner) == Liveness::Gone {
                changed = true;
                open.table.remove(run_id.as_str());
                let run = run_id.clone();
                self.did(
                    ReconcileAction::FreeDscp {
                        dscp: allocation.dscp,
                        run_id,
                    },
                    Some(&run),
                );
            }
        }
        if changed && !self.report.dry_run {
            self.registry.save(&open)?;
        }
        Ok(())
    }

    /// Says what the kernel has and the registry does not, and the other way round.
    fn compare_with_kernel(&mut self) -> Result<(), RegistryError> {
        let there = match self.kernel.list_hosts() {
            Ok(there) => there,
            Err(e) => {
                self.failed("list host namespaces", &*e);
                return Ok(());
            }
        };
        let hosts = self.registry.hosts()?;
        for host in &there {
            if !hosts.iter().any(|(h, _)| h == host) {
                let notice = format!("namespace {host} is a host that is not registered; kept");
                self.report.notices.push(notice);
            }
        }
        for (host, _) in hosts
            .iter()
            .filter(|(h, r)| !r.creating && !there.contains(h))
        {
            let notice = format!("host {host} is registered and has no namespace");
            self.report.notices.push(notice);
        }
        Ok(())
    }

    fn did(&mut self, action: ReconcileAction, run_id: Option<&RunId>) {
        if !self.report.dry_run {
            let details = json!(action);
            self.registry.record("reconcile", run_id, details);
        }
        self.report.actions.push(action);
    }

    fn failed(&mut self, what: &str, error: &dyn std::error::Error) {
        let failure = format!("cannot {what}: {}", WithCauses(error));
        self.report.failures.push(failure);
    }
}
