//! Labs whose namespaces went with the keeper or the boot of the machine that they belonged to.

use std::time::Duration;

use super::{LabError, down, list, state::boot_id, vacate};
use crate::{config::Config, model::LabName, registry::Wait};

/// Forgets every lab whose namespaces are gone, with its hosts, and returns what could not be done
/// beside their names. Nothing waits: a job of such a lab that still lives keeps what it holds in the
/// registry, and loses it when it ends.
///
/// # Errors
/// [`LabError`] when the labs cannot be listed.
pub fn forget_gone(config: &Config) -> Result<Vec<(LabName, Option<LabError>)>, LabError> {
    let here = boot_id()?;
    let gone = list(config)?.into_iter().filter(|lab| lab.boot_id != here);
    let forget = |name: LabName| {
        let vacated = vacate(config, &name, &Wait::at_most(Duration::ZERO));
        let result = vacated.and_then(|_vacated| down(config, &name));
        (name, result.err())
    };
    Ok(gone.map(|lab| forget(lab.lab)).collect())
}
