//! A lab for the time of one command: what would be, beside what is.
//!
//! Its name says which process made it, so that what a killed one left is found and taken down by the
//! next command that makes one. Nothing of it is shared with the lab that is asked about.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::{
    config::Config,
    lab::{self, LabError, UpOptions},
    model::{LabName, Liveness, NameError, Owner},
};

/// How names of such labs, and of directories with their facts, begin.
const PREFIX: &str = "tmp-";

/// A lab for a time could not be made.
#[derive(Debug, Error)]
pub enum TemporaryError {
    /// The lab itself.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A name for it.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Files for its facts.
    #[error("cannot {what} {path}")]
    File {
        /// What failed.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A lab that is taken down when this is dropped.
#[derive(Debug)]
pub struct TemporaryLab<'a> {
    config: &'a Config,
    name: LabName,
}

/// A directory for facts that goes when this is dropped.
#[derive(Debug)]
pub struct TemporaryFacts(PathBuf);

/// A name that tells which process it belongs to.
fn own_name(suffix: &str) -> io::Result<String> {
    let owner = Owner::current()?;
    let start = owner.start_time.unwrap_or_default();
    Ok(format!("{PREFIX}{}-{start}-{suffix}", owner.pid))
}

/// Whether the process that a name tells of is gone.
fn is_left(name: &str) -> bool {
    let mut parts = name.strip_prefix(PREFIX).unwrap_or_default().split('-');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (Some(pid), Some(start_time)) = (number(), number()) else {
        return false;
    };
    let Ok(current) = Owner::current() else {
        return false;
    };
    let (Ok(pid), owner) = (u32::try_from(pid), current.clone()) else {
        return false;
    };
    let owner = Owner {
        pid,
        start_time: Some(start_time),
        ..owner
    };
    // One of another boot has the same form, and its namespaces are gone with that boot.
    owner.liveness() == Liveness::Gone
}

/// Takes down what killed commands left.
///
/// # Errors
/// [`LabError`] when the labs cannot be listed; what cannot be taken down is logged.
pub fn sweep(config: &Config) -> Result<(), LabError> {
    for lab in lab::list(config)? {
        if is_left(lab.lab.as_str())
            && let Err(error) = lab::down(config, &lab.lab)
        {
            tracing::warn!("lab {} of a killed command stays: {error}", lab.lab);
        }
    }
    let there = fs::read_dir(&config.labs_dir)
        .into_iter()
        .flatten()
        .flatten();
    for entry in there {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.strip_prefix('.').is_some_and(is_left)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            let path = entry.path();
            tracing::warn!("{} of a killed command stays: {error}", path.display());
        }
    }
    Ok(())
}

impl<'a> TemporaryLab<'a> {
    /// Makes a lab from the facts in `facts`; several of one process have other suffixes.
    ///
    /// # Errors
    /// [`TemporaryError`]; nothing is left then.
    pub fn up(
        config: &'a Config,
        suffix: &str,
        facts: &Path,
        options: UpOptions,
    ) -> Result<Self, TemporaryError> {
        sweep(config)?;
        let name = own_name(suffix).map_err(|source| TemporaryError::File {
            what: "tell who this process is in",
            path: PathBuf::from("/proc"),
            source,
        })?;
        let name = LabName::new(name)?;
        // Taken down also where a signal comes while it is made.
        let made = Self { config, name };
        lab::up_from(config, &made.name, facts, options, &())?;
        Ok(made)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &LabName {
        &self.name
    }
}

impl Drop for TemporaryLab<'_> {
    fn drop(&mut self) {
        if let Err(error) = lab::down(self.config, &self.name) {
            tracing::error!(
                "lab {} stays until the next such command: {error}",
                self.name
            );
        }
    }
}

impl TemporaryFacts {
    /// An empty directory beside the labs, for this process and user only.
    ///
    /// # Errors
    /// [`TemporaryError::File`].
    pub fn new(config: &Config) -> Result<Self, TemporaryError> {
        let name = own_name("facts");
        let path = config
            .labs_dir
            .join(format!(".{}", name.as_deref().unwrap_or(PREFIX)));
        let failed = |source| TemporaryError::File {
            what: "make the directory",
            path: path.clone(),
            source,
        };
        name.as_ref()
            .map_err(|e| failed(io::Error::new(e.kind(), e.to_string())))?;
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).map_err(failed)?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFacts {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("{} stays: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_told_from_what_is_in_use() {
        let own = own_name("a").unwrap();
        assert!(!is_left(&own));
        assert!(LabName::new(own.clone()).is_ok());
        // The same process number, started at another time.
        let owner = Owner::current().unwrap();
        let other = format!("{PREFIX}{}-{}-a", owner.pid, owner.start_time.unwrap() + 1);
        assert!(is_left(&other));
        assert!(!is_left("corp10") && !is_left("tmp-mine") && !is_left("tmp-1-x"));
    }
}
