//! The result as a directory of files.
//!
//! ```text
//! DIR/report.html    for people, self-contained
//! DIR/report.txt     the same as text
//! DIR/report.json    everything
//! DIR/overview.json  report.json without evidence, for who shows it by page
//! DIR/443_tcp.json   one per service, in the shape of the Python system
//! DIR/measured.jsonl a line per service as soon as it was measured; gone once the others are there
//! ```
//!
//! They are for their owner only: they say what a firewall lets through. The directory of an earlier
//! run is used again, and what that run had and this one has not is removed; one with files of
//! anybody else is refused.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufWriter, IntoInnerError, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::libc;

use serde::Serialize;
use thiserror::Error;

use crate::model::{PrintableJson, Service};

use super::{
    html, json,
    result::{DetailedReport, ServiceTest, file_stem},
    text,
};

/// Columns of the text file.
const WIDTH: usize = 120;

/// Everything but the evidence.
pub const OVERVIEW: &str = "overview.json";
/// What was measured so far.
pub const MEASURED: &str = "measured.jsonl";

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
        make(dir)?;
        let mut strange = fs::read_dir(dir)?.filter_map(Result::ok);
        if let Some(strange) = strange.find(|entry| !is_ours(&entry.file_name())) {
            let name = strange.file_name();
            let text = format!(
                "{} is no file of an earlier run: an empty directory is wanted, or that of a run",
                name.display()
            );
            return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, text));
        }
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
    let clear = || {
        make(dir)?;
        let earlier = fs::read_dir(dir)?.filter_map(Result::ok);
        let stays = |name: &OsStr| name == MEASURED;
        let mut earlier =
            earlier.filter(|entry| is_ours(&entry.file_name()) && !stays(&entry.file_name()));
        earlier.try_for_each(|entry| fs::remove_file(entry.path()))
    };
    clear().map_err(|source| WriteError {
        path: dir.to_owned(),
        source,
    })?;
    put(dir, "report.html", |file| {
        file.write_all(html::page(report).as_bytes())
    })?;
    let layout = text::DetailedLayout {
        width: WIDTH,
        colour: false,
        evidence: true,
        answer_only: false,
    };
    put(dir, "report.txt", |file| text::print(file, report, layout))?;
    put_json(dir, "report.json", &json::document(report))?;
    put(dir, OVERVIEW, |file| {
        let mut json = PrintableJson::new(file);
        serde_json::to_writer(&mut json, &json::overview(report))?;
        json.finish().map(drop)
    })?;
    for service in &report.services {
        let name = format!("{}.json", file_stem(service.service));
        put_json(dir, &name, &json::service_document(report, service))?;
    }
    match fs::remove_file(dir.join(MEASURED)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(WriteError {
            path: dir.join(MEASURED),
            source,
        }),
        _ => Ok(()),
    }
}

/// What a job has found out so far, a JSON line per service: of a job that is ended before it comes to
/// its result, or whose result has no room, that stays.
#[derive(Debug)]
pub(super) struct MeasuredFile {
    path: PathBuf,
    /// None once a line could not be written.
    file: Mutex<Option<File>>,
}

impl MeasuredFile {
    /// Begins anew in `dir`.
    pub(super) fn begin(dir: &Path) -> Result<Self, WriteError> {
        let path = dir.join(MEASURED);
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        match options.custom_flags(libc::O_NOFOLLOW).open(&path) {
            Ok(file) => Ok(Self {
                path,
                file: Mutex::new(Some(file)),
            }),
            Err(source) => Err(WriteError { path, source }),
        }
    }

    /// Adds a service.
    pub(super) fn add(&self, service: Service, test: &ServiceTest) {
        let line = || -> io::Result<Vec<u8>> {
            let mut line = PrintableJson::new(Vec::new());
            serde_json::to_writer(&mut line, &json::measured(service, test))?;
            let mut line = line.finish()?;
            line.push(b'\n');
            Ok(line)
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = file.as_mut() else { return };
        if let Err(error) = line().and_then(|line| open.write_all(&line)) {
            tracing::warn!(%error, path = %self.path.display(), "what is measured is not kept");
            *file = None;
        }
    }
}

/// Makes the directory, for its owner only, unless it is there.
fn make(dir: &Path) -> io::Result<()> {
    let mut private = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
    private.recursive(true).create(dir)
}

/// Whether a run writes a file of this name: `report.html`, `443_tcp.json`.
fn is_ours(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let service = || {
        let (port, protocol) = name.strip_suffix(".json")?.split_once('_')?;
        let letters = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        (port.parse::<u16>().is_ok() && letters(protocol)).then_some(())
    };
    let fixed = [
        "report.html",
        "report.txt",
        "report.json",
        OVERVIEW,
        MEASURED,
    ];
    fixed.contains(&name) || service().is_some()
}

fn put_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<(), WriteError> {
    put(dir, name, |file| {
        let mut json = PrintableJson::new(file);
        serde_json::to_writer_pretty(&mut json, value)?;
        json.finish().map(drop)
    })
}

/// Writes a file as a whole, by parts: none of it is held in memory.
fn put(
    dir: &Path,
    name: &str,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let path = dir.join(name);
    let write = || {
        let file = tempfile::NamedTempFile::new_in(dir)?;
        let mut buffered = BufWriter::new(file);
        content(&mut buffered)?;
        let file = buffered.into_inner().map_err(IntoInnerError::into_error)?;
        // Temporary files are for their owner only, and so the report stays.
        file.persist(&path).map(drop).map_err(|e| e.error)
    };
    write().map_err(|source| WriteError {
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_of_a_run_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        prepare(&run).unwrap();
        for name in ["report.json", "443_tcp.json", "0_ip_89.json"] {
            fs::write(run.join(name), "x").unwrap();
        }
        prepare(&run).unwrap();
        fs::write(run.join("thesis.txt"), "x").unwrap();
        let error = prepare(&run).unwrap_err();
        assert!(error.source.to_string().contains("thesis.txt"), "{error:?}");
        assert!(run.join("report.json").exists());
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&run).unwrap());
        assert_eq!(mode & 0o777, 0o700);
    }
}
