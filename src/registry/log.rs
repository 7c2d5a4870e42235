//! The transaction log: what was changed, when, by which job.
//!
//! ```text
//! transactions.jsonl     {"time": "…Z", "operation": "host_lease.acquire", "run_id": "…", "details": {…}}
//! transactions.jsonl.1   the lines before those
//! ```
//!
//! The lines of a change are appended with one write(2) after it was made; a crash in between loses
//! the lines, not the change. Nothing is read back from it but by people.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    model::RunId,
    registry::{
        RegistryError, Wait,
        medium::{Directory, Medium},
        mutex, time,
    },
};

const FILE: &str = "transactions.jsonl";
const OLDER: &str = "transactions.jsonl.1";
const LOCK: &str = "transactions";
/// Above this size in bytes the file is rotated.
const ROTATE: u64 = 4 << 20;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// RFC 3339, UTC.
    pub time: String,
    /// `object.verb`.
    pub operation: String,
    /// The job.
    pub run_id: Option<RunId>,
    /// On what.
    pub details: Value,
}

impl LogEntry {
    /// What is done now.
    pub(crate) fn new(operation: &str, run_id: Option<&RunId>, details: Value) -> Self {
        Self {
            time: time::text(time::now()),
            operation: operation.to_owned(),
            run_id: run_id.cloned(),
            details,
        }
    }
}

/// Appends lines. A log that cannot be written does not undo a change that was made: it is only
/// reported.
pub(crate) fn record_all(medium: &dyn Medium, locks: &Directory, entries: &[LogEntry]) {
    let Some(first) = entries.first() else { return };
    let written = append(medium, entries).and_then(|size| {
        if size > ROTATE {
            rotate(medium, locks)
        } else {
            Ok(())
        }
    });
    if let Err(e) = written {
        let operation = first.operation.as_str();
        tracing::warn!(error = %e, operation, "cannot write the transaction log");
    }
}

fn append(medium: &dyn Medium, entries: &[LogEntry]) -> Result<u64, RegistryError> {
    let mut lines = Vec::new();
    for entry in entries {
        // Writing text to a Vec cannot fail.
        let _ = serde_json::to_writer(&mut lines, entry);
        lines.push(b'\n');
    }
    medium.append(FILE, &lines)
}

fn rotate(medium: &dyn Medium, locks: &Directory) -> Result<(), RegistryError> {
    let open = || locks.lock_file(LOCK);
    // Somebody else who has the lock is rotating.
    let Ok(_held) = mutex::lock_linked(locks, LOCK, &Wait::not(), open) else {
        return Ok(());
    };
    // Who held it a moment ago may have rotated already.
    if medium.append(FILE, b"")? > ROTATE {
        medium.rename(FILE, OLDER)?;
    }
    Ok(())
}

/// The last `count` lines, oldest first. A line that is no entry is left out.
pub(crate) fn tail(medium: &dyn Medium, count: usize) -> Result<Vec<LogEntry>, RegistryError> {
    let mut text = medium.read(OLDER)?.unwrap_or_default();
    text.extend(medium.read(FILE)?.unwrap_or_default());
    let lines = text.split(|&b| b == b'\n').rev();
    let mut entries: Vec<LogEntry> = lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .take(count)
        .collect();
    entries.reverse();
    Ok(entries)
}
