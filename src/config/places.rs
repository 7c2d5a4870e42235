//! Where configuration and state are kept: root's places, and those of an ordinary user.
//!
//! A user's are those of the XDG base directory specification. Where the environment does not say,
//! as under sudo(8) or cron(8), the places are found that systemd makes for a session or for a
//! service with a user of its own.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User, getuid};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Root's configuration; a user who has none of their own gets it too.
const SYSTEM_FILE: &str = "/etc/tsim/tsim.toml";
/// Root's state. Of a service, whose user owns it, too: `RuntimeDirectory=tsim` in systemd.exec(5).
const SYSTEM_DIR: &str = "/run/tsim";
/// Results of root's queued jobs, which outlive a boot: `StateDirectory=tsim`.
const SYSTEM_RESULTS: &str = "/var/lib/tsim";

/// Where everybody of the machine finds root's scheduler, or a service's: the directory lets them
/// through, which that of the registry does not.
const SYSTEM_SOCKET: &str = "/run/tsimd/tsimd.sock";
/// The scheduler's socket, beside other state.
pub(super) const SOCKET: &str = "tsimd.sock";

/// No place for state was found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "there is no place for the state of uid {uid}: neither XDG_RUNTIME_DIR names a directory of \
     that user, nor have they a home directory"
)]
pub struct NoPlace {
    uid: u32,
}

/// Where things are unless the configuration says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// The configuration file.
    pub config_file: PathBuf,
    /// What lasts as long as this boot or session: the registry and labs, and the keeper's files.
    pub runtime_dir: PathBuf,
    /// Results of queued jobs.
    pub results_dir: PathBuf,
}

impl Places {
    /// Root's.
    #[must_use]
    pub fn system() -> Self {
        Self {
            config_file: SYSTEM_FILE.into(),
            runtime_dir: SYSTEM_DIR.into(),
            results_dir: SYSTEM_RESULTS.into(),
        }
    }

    /// Where the scheduler with these places is reached.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        if self.runtime_dir == Path::new(SYSTEM_DIR) {
            SYSTEM_SOCKET.into()
        } else {
            self.runtime_dir.join(SOCKET)
        }
    }

    /// Those of the calling user.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub fn of_user() -> Result<Self, NoPlace> {
        let uid = getuid();
        let passwd = || Some(User::from_uid(uid).ok()??.dir.into_os_string());
        let hints = Hints {
            uid,
            runtime: env::var_os("XDG_RUNTIME_DIR"),
            state: env::var_os("XDG_STATE_HOME"),
            config: env::var_os("XDG_CONFIG_HOME"),
            home: env::var_os("HOME").or_else(passwd),
        };
        hints.places(|dir| fs::metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == uid.as_raw()))
    }
}

/// What the environment and the list of users say.
struct Hints {
    uid: Uid,
    runtime: Option<OsString>,
    state: Option<OsString>,
    config: Option<OsString>,
    home: Option<OsString>,
}

impl Hints {
    /// `is_own` says whether a path is a directory of the user.
    fn places(self, is_own: impl Fn(&Path) -> bool) -> Result<Places, NoPlace> {
        let uid = self.uid.as_raw();
        let home = absolute(self.home).filter(|home| is_own(home));
        let below_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let state = absolute(self.state).or_else(|| below_home(".local/state"));
        let config = absolute(self.config).or_else(|| below_home(".config"));
        let session = absolute(self.runtime).unwrap_or_else(|| format!("/run/user/{uid}").into());
        let own = |dir: PathBuf| is_own(&dir).then_some(dir);
        let runtime = own(session)
            .map(|dir| dir.join("tsim"))
            .or_else(|| own(SYSTEM_DIR.into()))
            .or_else(|| Some(state.as_ref()?.join("tsim/run")));
        let runtime_dir = runtime.ok_or(NoPlace { uid })?;
        let results = state.map(|dir| dir.join("tsim/runs"));
        let own_config = config.map(|dir| dir.join("tsim/tsim.toml"));
        Ok(Places {
            config_file: own_config
                .filter(|file| file.exists())
                .unwrap_or_else(|| SYSTEM_FILE.into()),
            results_dir: results.unwrap_or_else(|| runtime_dir.join("runs")),
            runtime_dir,
        })
    }
}

/// The specification has relative paths ignored.
fn absolute(path: Option<OsString>) -> Option<PathBuf> {
    path.map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(runtime: Option<&str>, home: Option<&str>) -> Hints {
        Hints {
            uid: Uid::from_raw(1000),
            runtime: runtime.map(OsString::from),
            state: None,
            config: None,
            home: home.map(OsString::from),
        }
    }

    #[test]
    fn the_environment_goes_first() {
        let all = Hints {
            state: Some("/state".into()),
            ..hints(Some("/runtime"), Some("/home/anna"))
        };
        let places = all.places(|_| true).unwrap();
        assert_eq!(places.runtime_dir, Path::new("/runtime/tsim"));
        assert_eq!(places.results_dir, Path::new("/state/tsim/runs"));
    }

    #[test]
    fn directories_of_others_and_relative_ones_do_not_count() {
        let owned = |own: &'static [&'static str]| {
            move |dir: &Path| own.iter().any(|path| dir == Path::new(path))
        };
        let runtime = |runtime, own| {
            let places = hints(Some(runtime), Some("/home/anna")).places(owned(own));
            places.map(|places| places.runtime_dir)
        };
        let home: &[&str] = &["/home/anna"];
        let of_home = Ok("/home/anna/.local/state/tsim/run".into());
        assert_eq!(runtime("/run/user/0", home), of_home);
        assert_eq!(runtime("relative", home), of_home);
        let service: &[&str] = &["/run/tsim", "/home/anna"];
        assert_eq!(runtime("/run/user/0", service), Ok("/run/tsim".into()));
        let session: &[&str] = &["/run/user/1000", "/run/tsim"];
        assert_eq!(runtime("", session), Ok("/run/user/1000/tsim".into()));
        assert_eq!(runtime("/run/user/0", &[]), Err(NoPlace { uid: 1000 }));
    }
}
