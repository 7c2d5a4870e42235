//! What is known of a keeper.

use std::{fs, io, path::PathBuf};

use nix::unistd::{User, getgid, getuid};
use serde::{Deserialize, Serialize};

use crate::{
    config::Places,
    model::owner::{KEEPER_FILE, Owner},
};

/// A keeper, and for whom it keeps what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keeper {
    /// The process.
    #[serde(flatten)]
    pub owner: Owner,
    /// The user, as the first user namespace counts.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// Their login name.
    pub user: String,
    /// When it was started, RFC 3339.
    pub since: String,
    /// Where the user's configuration and state are. Whoever is inside goes by this: their
    /// environment may be another, or empty.
    pub places: Places,
}

impl Keeper {
    /// One that is still to be started for the calling user.
    pub(super) fn planned(places: &Places) -> Self {
        let uid = getuid();
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
        Self {
            owner: Owner::default(),
            uid: uid.as_raw(),
            gid: getgid().as_raw(),
            user: name.unwrap_or_else(|| format!("uid {uid}")),
            since: jiff::Timestamp::now().to_string(),
            places: places.clone(),
        }
    }

    /// Where its state is.
    pub(super) fn state_file(&self) -> PathBuf {
        self.places.runtime_dir.join(super::STATE)
    }
}

/// The keeper in whose namespaces the calling process is, if it is in any.
///
/// # Errors
/// When its file cannot be read.
pub(crate) fn inside() -> io::Result<Option<Keeper>> {
    match fs::read(KEEPER_FILE) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
