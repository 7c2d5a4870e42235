//! Loads and saves the registry's files; sets damaged ones aside.
//!
//! Durability: when [`Store::save`] returns, the new content is what every process reads, and it
//! survives a crash of the machine if the medium does. If it fails, the old content stands.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::registry::{
    RegistryError,
    medium::Medium,
    order::{self, Level},
    table::Table,
};

/// A level of the lock order that is one file.
pub(crate) trait FileLevel: Level {
    /// The file.
    const FILE: RegistryFile;
}

/// One of the registry's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegistryFile {
    /// File name.
    pub(crate) name: &'static str,
    /// Name of its lock below `locks/`; without `.` or `@`, so it is no router's or host's queue.
    pub(crate) lock: &'static str,
    /// The member that holds the records, where it is not the whole object.
    pub(crate) nested: Option<&'static str>,
}

macro_rules! files {
    ($($level:ident: $name:literal, $lock:literal, $nested:expr;)*) => {
        $(impl FileLevel for order::$level {
            const FILE: RegistryFile = RegistryFile { name: $name, lock: $lock, nested: $nested };
        })*
    };
}

files! {
    Hosts: "hosts.json", "hosts", None;
    HostLeases: "host_leases.json", "host_leases", None;
    Neighbours: "neighbor_leases.json", "neighbor_leases", None;
    Dscp: "dscp_registry.json", "dscp", Some("allocations");
}

/// A damaged file that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// The file.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
    /// Its name now.
    pub set_aside: String,
    /// Whether the good copy took its place; otherwise it starts anew, empty.
    pub from_copy: bool,
}

/// The registry's files on a medium.
pub(crate) struct Store {
    medium: Box<dyn Medium>,
    repairs: Mutex<Vec<Repair>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    pub(crate) fn new(medium: Box<dyn Medium>) -> Self {
        Self {
            medium,
            repairs: Mutex::default(),
        }
    }

    pub(crate) fn medium(&self) -> &dyn Medium {
        &*self.medium
    }

    /// What was repaired since this was last asked.
    pub(crate) fn take_repairs(&self) -> Vec<Repair> {
        std::mem::take(&mut self.repairs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads a file; its lock is held. A damaged one is set aside and its good copy put in place.
    pub(crate) fn load(&self, file: RegistryFile, now: Timestamp) -> Result<Table, RegistryError> {
        match self.read(file, file.name)? {
            Some(Ok(table)) => Ok(table),
            None => Ok(Table::empty(file.name, file.nested)),
            Some(Err(e)) => self.repair(file, &e, now),
        }
    }

    fn read(
        &self,
        file: RegistryFile,
        name: &str,
    ) -> Result<Option<Result<Table, serde_json::Error>>, RegistryError> {
        let content = self.medium.read(name)?;
        Ok(content.map(|c| Table::parse(file.name, file.nested, &c)))
    }

    fn repair(
        &self,
        file: RegistryFile,
        reason: &serde_json::Error,
        now: Timestamp,
    ) -> Result<Table, RegistryError> {
        let copy = match self.read(file, &backup(file))? {
            Some(Ok(table)) => Some(table),
            _ => None,
        };
        let from_copy = copy.is_some();
        let table = copy.unwrap_or_else(|| Table::empty(file.name, file.nested));
        let set_aside = format!(
            "{}.corrupt-{}",
            file.name,
            now.strftime("%Y%m%dT%H%M%S%.6fZ")
        );
        self.medium.rename(file.name, &set_aside)?;
        self.save(file, &table)?;
        let repair = Repair {
            file: file.name.to_owned(),
            reason: reason.to_string(),
            set_aside,
            from_copy,
        };
        tracing::warn!(?repair, "a damaged registry file was set aside");
        let mut repairs = self.repairs.lock().unwrap_or_else(PoisonError::into_inner);
        repairs.push(repair);
        Ok(table)
    }

    /// Replaces a file; its lock is held.
    pub(crate) fn save(&self, file: RegistryFile, table: &Table) -> Result<(), RegistryError> {
        let content = table.to_bytes();
        let temporary = format!("{}.tmp", file.name);
        self.medium.write(&temporary, &content, true)?;
        self.medium.rename(&temporary, file.name)?;
        // From here on every process reads the new content: the change is made, and an error would
        // say that it was not. What may be missing is safety against a power failure.
        if let Err(e) = self
            .medium
            .sync_names()
            .and_then(|()| self.copy(file, &content))
        {
            tracing::warn!(error = %e, file = file.name, "the change is made, its safety copy is not");
        }
        Ok(())
    }

    /// The copy is for files that somebody damages, not for power failures: no fsync.
    fn copy(&self, file: RegistryFile, content: &[u8]) -> Result<(), RegistryError> {
        let temporary = format!("{}.tmp", file.name);
        self.medium.write(&temporary, content, false)?;
        self.medium.rename(&temporary, &backup(file))
    }
}

fn backup(file: RegistryFile) -> String {
    format!("{}.bak", file.name)
}
