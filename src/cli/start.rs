//! What comes before every command: whose configuration and state, and in which namespaces.

use std::{fs::File, path::Path};

use super::{Failure, Global, Needs};
use crate::{
    config::{Config, Places},
    doctor,
    keeper::{self, Joined, Keeper, KeeperError, Networks},
    lab,
};

/// Where a command works.
#[derive(Debug)]
pub(super) enum Standing {
    /// With root's rights, in the machine's own namespaces.
    Root,
    /// Without, and outside the user's namespaces, which are or would be those of these places.
    Outside(Places),
    /// In the user's namespaces. The file is locked as long as it is open: the keeper waits for it.
    Inside(Keeper, Option<File>),
}

/// Finds out who asks, reads their configuration, and goes into their namespaces if the command
/// `needs` that.
pub(super) fn start(global: &Global, needs: Needs) -> Result<(Config, Standing), Failure> {
    if let Some(keeper) = keeper::inside()? {
        let config = Config::load(global.config.as_deref(), &keeper.places)?;
        let users = keeper::stay(&keeper);
        return Ok((config, Standing::Inside(keeper, users.ok())));
    }
    let (config, places) = choose(global.config.as_deref(), global.rootless)?;
    let Some(places) = places else {
        return Ok((config, Standing::Root));
    };
    let networks = match needs {
        Needs::Nothing => return Ok((config, Standing::Outside(places))),
        Needs::Namespaces => Networks::Keepers,
        Needs::NamespacesBeside => Networks::Machines,
    };
    let joined = enter(&config, &places, networks)?;
    Ok((config, Standing::Inside(joined.keeper, Some(joined.users))))
}

/// Joins the user's namespaces, and says what became of the labs of a keeper that is no more.
pub(super) fn enter(
    config: &Config,
    places: &Places,
    networks: Networks,
) -> Result<Joined, KeeperError> {
    let joined = keeper::join(places, networks)?;
    if joined.started {
        match lab::forget_gone(config) {
            Ok(gone) => {
                for (lab, failed) in gone {
                    tracing::warn!("lab {lab} is gone: the keeper that held it was ended");
                    if let Some(error) = failed {
                        tracing::warn!("what the registry has of lab {lab} stays: {error}");
                    }
                }
            }
            Err(error) => tracing::warn!("labs of an earlier keeper stay on record: {error}"),
        }
    }
    Ok(joined)
}

/// The configuration that a command with these global options has.
pub(super) fn configuration(file: Option<&Path>, rootless: bool) -> Result<Config, Failure> {
    match keeper::inside()? {
        Some(keeper) => Ok(Config::load(file, &keeper.places)?),
        None => Ok(choose(file, rootless)?.0),
    }
}

/// The configuration, and the user's places where they are to be used.
fn choose(file: Option<&Path>, rootless: bool) -> Result<(Config, Option<Places>), Failure> {
    let load = |places: &Places| Config::load(file, places);
    if rootless {
        let places = Places::of_user()?;
        return Ok((load(&places)?, Some(places)));
    }
    let privileged = doctor::missing_rights().is_none();
    let places = match privileged {
        true => None,
        false => Some(Places::of_user()),
    };
    let first = match &places {
        Some(Ok(places)) => load(places)?,
        _ => load(&Places::system())?,
    };
    match (first.rootless.unwrap_or(!privileged), privileged) {
        (true, true) => {
            let places = Places::of_user()?;
            Ok((load(&places)?, Some(places)))
        }
        (true, false) => Ok((first, Some(places.unwrap_or_else(Places::of_user)?))),
        (false, true) => Ok((first, None)),
        (false, false) => Ok((load(&Places::system())?, None)),
    }
}
