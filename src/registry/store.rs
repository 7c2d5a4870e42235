//! Loads and saves the registry's files; sets damaged ones aside.
//!
//! Durability: when [`Store::save`] returns, the new content is what every process reads, and it
//! survives a crash of the machine if the medium does. If it fails, the old content stands.
//!
//! A copy is kept of what outlives the kernel. In memory nothing tears a file but whoever writes
//! into it; such a file starts anew from what the kernel and the other files show.

use std::{
    fmt::Display,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    model::{HostId, RunId},
    registry::{
        DscpAllocation, HostLeases, HostRecord, NeighbourKey, NeighbourLeases, RegistryError,
        medium::Medium,
        order::{self, Level},
        table::Table,
    },
};

/// A level of the lock order that is one file.
pub(crate) trait FileLevel: Level {
    /// The file.
    const FILE: RegistryFile;

    /// Whether a record has the shape of this file's; why not, in words.
    fn check(key: &str, record: &str) -> Result<(), String>;
}

/// Whether `key` and `record` are what they are meant to be.
fn check<K: FromStr<Err: Display>, T: DeserializeOwned>(
    key: &str,
    record: &str,
) -> Result<(), String> {
    key.parse::<K>().map_err(|e| e.to_string())?;
    let record = serde_json::from_str::<T>(record);
    record.map(drop).map_err(|e| e.to_string())
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
    ($($level:ident: $name:literal, $lock:literal, $nested:expr, $key:ty => $record:ty;)*) => {
        $(impl FileLevel for order::$level {
            const FILE: RegistryFile = RegistryFile { name: $name, lock: $lock, nested: $nested };

            fn check(key: &str, record: &str) -> Result<(), String> {
                check::<$key, $record>(key, record)
            }
        })*
    };
}

files! {
    Hosts: "hosts.json", "hosts", None, HostId => HostRecord;
    HostLeases: "host_leases.json", "host_leases", None, HostId => HostLeases;
    Neighbours: "neighbor_leases.json", "neighbor_leases", None, NeighbourKey => NeighbourLeases;
    Dscp: "dscp_registry.json", "dscp", Some("allocations"), RunId => DscpAllocation;
}

/// A damaged file, or damaged records of one, that were set aside.
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

    /// Reads a file without its lock; none when it is damaged.
    pub(crate) fn glance(&self, file: RegistryFile) -> Result<Option<Table>, RegistryError> {
        match self.read(file, file.name)? {
            None => Ok(Some(Table::empty(file.name, file.nested))),
            Some(read) => Ok(read.ok()),
        }
    }

    /// Reads one record; the file's lock is held.
    pub(crate) fn load_one<T: DeserializeOwned>(
        &self,
        file: RegistryFile,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<T>, RegistryError> {
        match self.medium.read(file.name)? {
            None => Ok(None),
            Some(text) if file.nested.is_none() => match Table::peek(&text, key) {
                Some(found) => Ok(found),
                None => self.load(file, now)?.get(key),
            },
            Some(_) => self.load(file, now)?.get(key),
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
        // One that lies in memory is an earlier release's, of some time ago.
        let copy = match self.medium.outlives_kernel() {
            true => self.read(file, &backup(file))?,
            false => None,
        };
        let copy = copy.and_then(Result::ok);
        let from_copy = copy.is_some();
        let table = copy.unwrap_or_else(|| Table::empty(file.name, file.nested));
        let set_aside = aside(file, now);
        self.medium.rename(file.name, &set_aside)?;
        self.save(file, &table)?;
        let repair = Repair {
            file: file.name.to_owned(),
            reason: reason.to_string(),
            set_aside,
            from_copy,
        };
        tracing::warn!(?repair, "a damaged registry file was set aside");
        self.repaired(repair);
        Ok(table)
    }

    fn repaired(&self, repair: Repair) {
        let mut repairs = self.repairs.lock().unwrap_or_else(PoisonError::into_inner);
        repairs.push(repair);
    }

    /// Sets aside those records of a loaded file that have another shape, so that they stop nobody;
    /// its lock is held.
    pub(crate) fn set_aside<L: FileLevel>(
        &self,
        table: &mut Table,
        now: Timestamp,
    ) -> Result<(), RegistryError> {
        let file = L::FILE;
        let damaged = table.texts().filter_map(|(key, record)| {
            let reason = L::check(key, record).err()?;
            Some((key.to_owned(), record.to_owned(), reason))
        });
        let damaged: Vec<_> = damaged.collect();
        let Some((key, _, reason)) = damaged.first() else {
            return Ok(());
        };
        let reason = format!("{} records, the first {key:?}: {reason}", damaged.len());
        let set_aside = aside(file, now);
        let mut text = Vec::new();
        for (key, record, _) in &damaged {
            text.extend_from_slice(format!("{key}\t{record}\n").as_bytes());
        }
        self.medium.write(&set_aside, &text)?;
        damaged.iter().for_each(|(key, ..)| table.remove(key));
        self.save(file, table)?;
        let repair = Repair {
            file: file.name.to_owned(),
            reason,
            set_aside,
            from_copy: false,
        };
        tracing::warn!(?repair, "damaged records of a registry file were set aside");
        self.repaired(repair);
        Ok(())
    }

    /// Replaces a file; its lock is held.
    pub(crate) fn save(&self, file: RegistryFile, table: &Table) -> Result<(), RegistryError> {
        let content = table.to_bytes();
        let temporary = format!("{}.tmp", file.name);
        self.medium.write(&temporary, &content)?;
        self.medium.rename(&temporary, file.name)?;
        // From here on every process reads the new content: the change is made, and an error would
        // say that it was not. What may be missing is safety against a power failure.
        let mut safe = self.medium.sync_names();
        // The copy is for files that somebody damages. It is written after the original was
        // replaced, so at any moment at least one of the two is whole.
        if self.medium.outlives_kernel() {
            safe = safe.and_then(|()| self.medium.overwrite(&backup(file), &content));
        }
        if let Err(e) = safe {
            let file = file.name;
            tracing::warn!(error = %e, file, "the change is made, its safety copy is not");
        }
        Ok(())
    }
}

/// What a damaged file, or what of it is damaged, is called from now on.
fn aside(file: RegistryFile, now: Timestamp) -> String {
    let now = now.strftime("%Y%m%dT%H%M%S%.6fZ");
    format!("{}.corrupt-{now}", file.name)
}

fn backup(file: RegistryFile) -> String {
    format!("{}.bak", file.name)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io, sync::Arc};

    use super::*;

    const FILE: RegistryFile = <order::Hosts as FileLevel>::FILE;

    /// A disk that loses power: what was not synced may be there, half there, or not there.
    #[derive(Debug, Default, Clone)]
    struct Disk {
        /// What processes see.
        files: BTreeMap<String, Vec<u8>>,
        /// Names and content that survive for certain.
        durable: BTreeMap<String, Vec<u8>>,
        /// Renames and new files since the last sync of names, in order.
        pending: Vec<(String, Option<String>)>,
        synced: Vec<String>,
        /// Operations until the power fails.
        left: usize,
    }

    #[derive(Debug, Clone)]
    struct Shared(Arc<Mutex<Disk>>);

    impl Shared {
        fn step<T>(&self, work: impl FnOnce(&mut Disk) -> T) -> Result<T, RegistryError> {
            let mut disk = self.0.lock().unwrap();
            if disk.left == 0 {
                return Err(RegistryError::Io {
                    op: "use",
                    path: "a disk without power".into(),
                    source: io::ErrorKind::Other.into(),
                });
            }
            disk.left -= 1;
            Ok(work(&mut disk))
        }
    }

    impl Medium for Shared {
        fn read(&self, name: &str) -> Result<Option<Vec<u8>>, RegistryError> {
            Ok(self.0.lock().unwrap().files.get(name).cloned())
        }
        fn write(&self, name: &str, content: &[u8]) -> Result<(), RegistryError> {
            // Two operations: the content may be half there before it is synced.
            self.step(|d| {
                let half = content[..content.len() / 2].to_vec();
                d.files.insert(name.to_owned(), half);
            })?;
            self.step(|d| {
                d.files.insert(name.to_owned(), content.to_vec());
                d.synced.push(name.to_owned());
            })
        }
        fn overwrite(&self, name: &str, content: &[u8]) -> Result<(), RegistryError> {
            let half = content[..content.len() / 2].to_vec();
            self.step(|d| d.files.insert(name.to_owned(), half))?;
            self.step(|d| d.files.insert(name.to_owned(), content.to_vec()))?;
            Ok(())
        }
        fn rename(&self, from: &str, to: &str) -> Result<(), RegistryError> {
            self.step(|d| {
                let content = d.files.remove(from).unwrap();
                d.files.insert(to.to_owned(), content);
                d.pending.push((from.to_owned(), Some(to.to_owned())));
            })
        }
        fn sync_names(&self) -> Result<(), RegistryError> {
            self.step(|d| {
                d.durable = d.files.clone();
                d.pending.clear();
            })
        }
        fn append(&self, _: &str, _: &[u8]) -> Result<u64, RegistryError> {
            Ok(0)
        }
    }

    /// What may be found after the power came back: the pending rename made or not.
    fn after_power_failure(disk: &Disk) -> Vec<BTreeMap<String, Vec<u8>>> {
        let mut without = disk.durable.clone();
        // The copy is never synced: it may hold anything.
        without.insert(backup(FILE), b"{\"a\":".to_vec());
        let mut with = without.clone();
        for (from, to) in &disk.pending {
            assert!(disk.synced.contains(from), "renamed before it was synced");
            if let Some(to) = to {
                with.insert(to.clone(), disk.files[to].clone());
            }
        }
        vec![without, with]
    }

    fn table(value: u8) -> Table {
        let mut table = Table::empty(FILE.name, None);
        table.put("a", &value).unwrap();
        table
    }

    fn value(store: &Store) -> Option<u8> {
        let table = store.load(FILE, Timestamp::UNIX_EPOCH).unwrap();
        table.get("a").unwrap()
    }

    #[test]
    fn whenever_the_power_fails_the_file_is_the_old_or_the_new_one() {
        let mut failed = 0;
        for left in 0..20 {
            let disk = Shared(Arc::default());
            disk.0.lock().unwrap().left = 1000;
            let store = Store::new(Box::new(disk.clone()));
            store.save(FILE, &table(1)).unwrap();
            disk.0.lock().unwrap().left = left;
            let saved = store.save(FILE, &table(2)).is_ok();
            failed += usize::from(!saved);
            let now = disk.0.lock().unwrap().clone();
            for files in after_power_failure(&now) {
                let found = Disk {
                    files,
                    left: 1000,
                    ..Disk::default()
                };
                let store = Store::new(Box::new(Shared(Arc::new(Mutex::new(found)))));
                let value = value(&store);
                assert!(
                    matches!(value, Some(1 | 2)),
                    "{value:?} after {left} operations"
                );
                assert_eq!(store.take_repairs(), [], "the original is whole");
            }
        }
        assert!(failed >= 3, "{failed}: the power failed too late");
    }

    #[test]
    fn a_process_that_dies_leaves_the_original_or_the_copy_whole() {
        for left in 0..20 {
            let disk = Shared(Arc::default());
            disk.0.lock().unwrap().left = 1000;
            let store = Store::new(Box::new(disk.clone()));
            store.save(FILE, &table(1)).unwrap();
            disk.0.lock().unwrap().left = left;
            let _ = store.save(FILE, &table(2));
            let mut now = disk.0.lock().unwrap().clone();
            now.left = 1000;
            let store = Store::new(Box::new(Shared(Arc::new(Mutex::new(now)))));
            assert!(
                matches!(value(&store), Some(1 | 2)),
                "after {left} operations"
            );
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_set_aside_and_taken_from_the_copy() {
        let whole = table(1).to_bytes();
        for length in 0..whole.len() - 1 {
            let disk = Shared(Arc::default());
            disk.0.lock().unwrap().left = 1000;
            let store = Store::new(Box::new(disk.clone()));
            store.save(FILE, &table(1)).unwrap();
            let cut = whole[..length].to_vec();
            disk.0
                .lock()
                .unwrap()
                .files
                .insert(FILE.name.to_owned(), cut.clone());
            assert_eq!(value(&store), Some(1), "cut at {length}");
            let repairs = store.take_repairs();
            assert!(repairs[0].from_copy, "{repairs:?}");
            let files = &disk.0.lock().unwrap().files;
            assert_eq!(files[&repairs[0].set_aside], cut, "nothing is thrown away");
        }
    }
}
