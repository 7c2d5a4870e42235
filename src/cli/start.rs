//! What comes before every command: whose configuration and state, and in which namespaces.

use std::{fs::File, path::Path};

use super::{Failure, Global, KernelNeeds, ask::ServerArgs};
use crate::{
    config::{Config, NoPlace, Places},
    doctor,
    keeper::{self, Joined, Keeper, KeeperError, Networks},
    lab,
    sched::{
        client::Client,
        door::{Beside, Door, DoorPlan},
    },
    wait::{Wait, for_a_moment},
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

/// What a command begins with.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) config: Config,
    pub(super) standing: Standing,
    /// The scheduler that the command asks.
    pub(super) client: Option<Client>,
    /// What a scheduler leaves outside of its user namespace.
    pub(super) door: Option<Door>,
}

impl Started {
    fn new(config: Config, standing: Standing) -> Self {
        Self {
            config,
            standing,
            client: None,
            door: None,
        }
    }
}

/// Finds out who asks, reads their configuration, and goes into their namespaces if the command
/// `needs` that. A command that `asks` a scheduler needs nothing where one is found.
pub(super) fn start(
    global: &Global,
    needs: KernelNeeds,
    asks: Option<&ServerArgs>,
) -> Result<Started, Failure> {
    if let Some(keeper) = keeper::inside()? {
        let config = Config::load(global.config.as_deref(), &keeper.places)?;
        let config = global.patient(config);
        let client = asks.map_or(Ok(None), |at| at.find(&config, None))?;
        let users = keeper::stay(&keeper);
        let standing = Standing::Inside(keeper, users.ok());
        return Ok(Started {
            client,
            ..Started::new(config, standing)
        });
    }
    let (config, places) = choose(global.config.as_deref(), global.rootless)?;
    let config = global.patient(config);
    if let Some(at) = asks {
        let own = places.as_ref().and_then(|places| places.as_ref().ok());
        let shared = shared(global, own)?;
        if let Some(client) = at.find(&config, shared.as_ref())? {
            // A user without any place for state may ask as well.
            let own = places.and_then(Result::ok);
            let standing = own.map_or(Standing::Root, Standing::Outside);
            return Ok(Started {
                client: Some(client),
                ..Started::new(config, standing)
            });
        }
    }
    let Some(places) = places.transpose()? else {
        return Ok(Started::new(config, Standing::Root));
    };
    let networks = match needs {
        KernelNeeds::Nothing => return Ok(Started::new(config, Standing::Outside(places))),
        KernelNeeds::Namespaces => Networks::Keepers,
        KernelNeeds::NamespacesBeside => Networks::Machines,
    };
    let door = match networks {
        Networks::Keepers => None,
        Networks::Machines => Some(Door::Beside(Beside::start(DoorPlan::of(&config))?)),
    };
    let joined = enter(&config, &places, networks)?;
    Ok(Started {
        door,
        ..Started::new(config, Standing::Inside(joined.keeper, Some(joined.users)))
    })
}

impl Global {
    /// The configuration with the time to wait that was typed.
    fn patient(&self, config: Config) -> Config {
        let lock_timeout = self.lock_timeout.unwrap_or(config.lock_timeout);
        Config {
            lock_timeout,
            ..config
        }
    }
}

/// The configuration of the machine's scheduler, which an ordinary user may ask who has no labs of
/// their own: who has some means those.
fn shared(global: &Global, places: Option<&Places>) -> Result<Option<Config>, Failure> {
    match places {
        Some(places) if global.config.is_none() && keeper::find(places)?.is_none() => {
            Ok(Some(Config::load(None, &Places::system())?))
        }
        _ => Ok(None),
    }
}

/// Joins the user's namespaces, and says what became of the labs of a keeper that is no more.
pub(super) fn enter(
    config: &Config,
    places: &Places,
    networks: Networks,
) -> Result<Joined, KeeperError> {
    let wait = Wait::at_most(for_a_moment(config.lock_timeout));
    let joined = keeper::join(places, networks, &wait)?;
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

/// Where a user's state is, if there is a place for it.
type OwnPlaces = Result<Places, NoPlace>;

/// The configuration, and the user's places where they are to be used.
fn choose(file: Option<&Path>, rootless: bool) -> Result<(Config, Option<OwnPlaces>), Failure> {
    let load = |places: &Places| Config::load(file, places);
    if rootless {
        let places = Places::of_user()?;
        return Ok((load(&places)?, Some(Ok(places))));
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
            Ok((load(&places)?, Some(Ok(places))))
        }
        (true, false) => Ok((first, Some(places.unwrap_or_else(Places::of_user)))),
        (false, true) => Ok((first, None)),
        (false, false) => Ok((load(&Places::system())?, None)),
    }
}
