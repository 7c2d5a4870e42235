//! The result as a directory of files.
//!
//! ```text
//! DIR/report.html    for people, self-contained
//! DIR/report.txt     the same as text
//! DIR/report.json    everything
//! DIR/443_tcp.json   one per service, in the shape of the Python system
//! ```

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use thiserror::Error;

use crate::model::PrintableJson;

use super::{
    html, json,
    result::{DetailedReport, file_stem},
    text,
};

/// Columns of the text file.
const WIDTH: usize = 120;

/// A result could not be written.
#[derive(Debug, Error)]
#[error("cannot write {path}")]
pub struct WriteError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Makes the directory if it is missing, and sees that files can be made in it: better before a
/// measurement than after it.
///
/// # Errors
/// [`WriteError`].
pub fn prepare(dir: &Path) -> Result<(), WriteError> {
    let try_it = || {
        fs::create_dir_all(dir)?;
        tempfile::tempfile_in(dir).map(drop)
    };
    try_it().map_err(|source| WriteError {
        path: dir.to_owned(),
        source,
    })
}

/// Writes all files, and the directory if it is missing. A file that is there is replaced as a
/// whole.
///
/// # Errors
/// [`WriteError`]; files written before stay.
pub fn write(dir: &Path, report: &DetailedReport) -> Result<(), WriteError> {
    fs::create_dir_all(dir).map_err(|source| WriteError {
        path: dir.to_owned(),
        source,
    })?;
    put(dir, "report.html", html::page(report).as_bytes())?;
    put(dir, "report.txt", &as_text(report))?;
    put_json(dir, "report.json", &json::document(report))?;
    for service in &report.services {
        let name = format!("{}.json", file_stem(service.service));
        put_json(dir, &name, &json::service_document(report, service))?;
    }
    Ok(())
}

fn as_text(report: &DetailedReport) -> Vec<u8> {
    let mut bytes = Vec::new();
    let layout = text::Layout {
        width: WIDTH,
        colour: false,
    };
    // Writing to memory does not fail.
    let _ = text::print(&mut bytes, report, layout);
    bytes
}

fn put_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<(), WriteError> {
    let mut json = PrintableJson::new(Vec::new());
    let written = serde_json::to_writer_pretty(&mut json, value);
    let bytes = written
        .map_err(io::Error::from)
        .and_then(|()| json.finish());
    let bytes = bytes.map_err(|source| WriteError {
        path: dir.join(name),
        source,
    })?;
    put(dir, name, &bytes)
}

fn put(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
    let path = dir.join(name);
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(bytes)?;
        file.persist(&path).map_err(|e| e.error)?;
        // Temporary files are for their owner only; a report is to be shown around.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, readable)
    };
    write().map_err(|source| WriteError {
        path: path.clone(),
        source,
    })
}
