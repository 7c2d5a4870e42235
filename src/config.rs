//! Configuration: paths and limits, from one TOML file.
//!
//! Paths come from here and nowhere else; job values (run id, DSCP) come on the command line.
//! A missing file at the default place means the defaults; a missing file that was named is an
//! error. Unknown keys are refused, so that a typo cannot silently mean the default.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use thiserror::Error;

use crate::model::{Dscp, DscpRange, Groups, ServiceGroup, ServiceLimits};

pub mod check;
mod origin;
mod places;
mod scheduler;

pub use origin::{Lines, Setting};
pub use places::{NoPlace, Places};
pub use scheduler::SchedulerConfig;

/// A configuration file with every key, its default and what it means.
pub const EXAMPLE: &str = include_str!("sched/dist/tsim.toml");

/// The configuration could not be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or a key or value is wrong.
    #[error("configuration {path}{}: {message}", .line.map_or(String::new(), |n| format!(", line {n}")))]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where in it, if the message does not say.
        line: Option<usize>,
        /// Key and what is allowed.
        message: String,
    },
}

/// Paths and limits of one installation.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file that all this was read from; none where there was none.
    pub file: Option<PathBuf>,
    /// Whether quick jobs use the registry; without it, nothing else may use a lab meanwhile.
    pub use_registry: bool,
    /// Whether to work in a user namespace; where this says nothing, a process does that lacks
    /// root's rights.
    pub rootless: Option<bool>,
    /// Registry directory, see [`crate::registry`].
    pub registry_dir: PathBuf,
    /// Directory with one sub-directory per lab.
    pub labs_dir: PathBuf,
    /// Directory with one sub-directory per queued job.
    pub results_dir: PathBuf,
    /// DSCP values that jobs may hold.
    pub dscp: DscpRange,
    /// Most services per job.
    pub services: ServiceLimits,
    /// How long a job waits for router locks unless `--lock-timeout` says otherwise.
    pub lock_timeout: Duration,
    /// Directory with `iptables-restore`, `nft`, `ipset` and the like; searched in order.
    pub tool_dirs: Vec<PathBuf>,
    /// Names for lists of services.
    pub groups: Groups,
    /// The scheduler and its viewer.
    pub scheduler: SchedulerConfig,
    /// The unix socket by which programs of this machine reach the scheduler.
    pub socket: PathBuf,
    /// File with the token that changes state through the API; the first scheduler makes it.
    pub token_file: PathBuf,
}

/// The token beside the results: no run id begins with a dot.
const TOKEN: &str = ".token";

impl Default for Config {
    fn default() -> Self {
        Self::in_places(&Places::system())
    }
}

impl Config {
    /// The defaults, with state in `places`.
    #[must_use]
    pub fn in_places(places: &Places) -> Self {
        Self {
            file: None,
            use_registry: true,
            rootless: None,
            registry_dir: places.runtime_dir.clone(),
            labs_dir: places.runtime_dir.join("labs"),
            results_dir: places.results_dir.clone(),
            dscp: DscpRange::default(),
            services: ServiceLimits::default(),
            lock_timeout: Duration::from_secs(60),
            tool_dirs: ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
                .map(PathBuf::from)
                .to_vec(),
            groups: Groups::default(),
            scheduler: SchedulerConfig::default(),
            socket: places.socket(),
            token_file: places.results_dir.join(TOKEN),
        }
    }
}

/// The file as written; every key is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    use_registry: Option<bool>,
    rootless: Option<bool>,
    registry_dir: Option<PathBuf>,
    labs_dir: Option<PathBuf>,
    results_dir: Option<PathBuf>,
    dscp_first: Option<Dscp>,
    dscp_last: Option<Dscp>,
    max_services: Option<usize>,
    lock_timeout_seconds: Option<f64>,
    tool_dirs: Option<Vec<PathBuf>>,
    #[serde(default)]
    service_groups: BTreeMap<String, ServiceGroup>,
    #[serde(default)]
    scheduler: SchedulerConfig,
}

impl Config {
    /// Reads `path`, or the file of `places` when none was named.
    ///
    /// # Errors
    /// [`ConfigError`] when a named file is missing, or any file is unreadable or wrong.
    pub fn load(path: Option<&Path>, places: &Places) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(&places.config_file);
        match fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, file, places),
            Err(e) if path.is_none() && e.kind() == io::ErrorKind::NotFound => {
                Ok(Self::in_places(places))
            }
            Err(source) => Err(ConfigError::Read {
                path: file.to_owned(),
                source,
            }),
        }
    }

    fn parse(text: &str, path: &Path, places: &Places) -> Result<Self, ConfigError> {
        let lines = Lines::of(text);
        // Messages begin with the key; those of the TOML reader show the line itself.
        let refuse = |message: String| ConfigError::Parse {
            path: path.to_owned(),
            line: lines.named_first(&message),
            message,
        };
        let file: File = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            line: None,
            message: e.to_string(),
        })?;
        let config = Self::in_places(places).with(file, path).map_err(refuse)?;
        config.scheduler.check().map_err(refuse)?;
        config.check_values().map_err(refuse)?;
        Ok(config)
    }

    /// These settings with those of the file at `path` in their places; an error begins with the key.
    fn with(self, file: File, path: &Path) -> Result<Self, String> {
        let dscp = |set: Option<Dscp>, default| match set {
            Some(dscp) => Ok(dscp),
            None => Dscp::new(default).map_err(|e| e.to_string()),
        };
        let (first, last) = (dscp(file.dscp_first, 32)?, dscp(file.dscp_last, 63)?);
        let seconds = file
            .lock_timeout_seconds
            .unwrap_or(self.lock_timeout.as_secs_f64());
        // Where a registry is named, what has no place of its own lies below it.
        let below = |set: Option<PathBuf>, name, default| match (set, &file.registry_dir) {
            (Some(path), _) => path,
            (None, Some(registry)) => registry.join(name),
            (None, None) => default,
        };
        let results_dir = below(file.results_dir, "runs", self.results_dir);
        let socket = below(file.scheduler.socket.clone(), places::SOCKET, self.socket);
        let token_file = file.scheduler.token_file.clone();
        let registry_dir = file.registry_dir.unwrap_or(self.registry_dir);
        Ok(Self {
            file: Some(path.to_owned()),
            use_registry: file.use_registry.unwrap_or(self.use_registry),
            rootless: file.rootless,
            labs_dir: file.labs_dir.unwrap_or_else(|| registry_dir.join("labs")),
            token_file: token_file.unwrap_or_else(|| results_dir.join(TOKEN)),
            results_dir,
            registry_dir,
            dscp: DscpRange::new(first, last).map_err(|e| format!("dscp_first, dscp_last: {e}"))?,
            services: ServiceLimits {
                max_services: file.max_services.unwrap_or(self.services.max_services),
            },
            lock_timeout: Duration::try_from_secs_f64(seconds).map_err(|_| {
                format!("lock_timeout_seconds = {seconds}: a number ≥ 0 is allowed")
            })?,
            tool_dirs: file.tool_dirs.unwrap_or(self.tool_dirs),
            groups: Groups::with(file.service_groups).map_err(|e| e.to_string())?,
            scheduler: file.scheduler,
            socket,
        })
    }

    /// What the types cannot say; the text begins with the key.
    fn check_values(&self) -> Result<(), String> {
        for (key, dir) in [
            ("registry_dir", &self.registry_dir),
            ("labs_dir", &self.labs_dir),
            ("results_dir", &self.results_dir),
        ] {
            if !dir.is_absolute() {
                return Err(format!("{key}: {} is not an absolute path", dir.display()));
            }
        }
        let most = self.services.max_services;
        if !(1..=ServiceLimits::ALL).contains(&most) {
            let all = ServiceLimits::ALL;
            return Err(format!("max_services = {most}: 1 to {all} are allowed"));
        }
        if self.tool_dirs.is_empty() {
            return Err("tool_dirs = []: without nft and iptables no lab can be made".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("t.toml"), &Places::system()).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let named = Config {
            file: None,
            ..parse("").unwrap()
        };
        assert_eq!(named, Config::default());
    }

    #[test]
    fn the_example_names_every_key_with_its_default() {
        // These have no default; what stands there is an example.
        let example = EXAMPLE.split("#runner_dir").next().unwrap();
        let example = example.replace("#rootless", "#");
        let example = example
            .replace("#socket_group", "#")
            .replace("#admin_group", "#")
            .replace("#max_user_seconds", "#");
        let keys = example.lines().map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        });
        let text = keys.collect::<Vec<_>>().join("\n");
        let mut default = parse("").unwrap();
        default.scheduler.socket = Some(default.socket.clone());
        assert_eq!(parse(&text).unwrap(), default);
        let keys = |table: &toml::Table| table.keys().cloned().collect::<Vec<_>>();
        let table: toml::Table = text.parse().unwrap();
        let scheduler = table["scheduler"].as_table().unwrap();
        assert_eq!((keys(&table).len(), keys(scheduler).len()), (10, 24));
        assert_eq!(parse(EXAMPLE).unwrap(), parse("").unwrap());
    }

    #[test]
    fn labs_and_results_move_with_the_registry() {
        let config = parse("registry_dir = \"/var/lib/tsim\"").unwrap();
        assert_eq!(config.labs_dir, Path::new("/var/lib/tsim/labs"));
        assert_eq!(config.results_dir, Path::new("/var/lib/tsim/runs"));
        assert_eq!(config.socket, Path::new("/var/lib/tsim/tsimd.sock"));
        assert_eq!(config.token_file, Path::new("/var/lib/tsim/runs/.token"));
        let apart = parse("registry_dir = \"/a\"\nresults_dir = \"/b\"").unwrap();
        assert_eq!(apart.results_dir, Path::new("/b"));
    }

    #[test]
    fn a_user_has_places_of_their_own() {
        let places = Places {
            config_file: "/home/anna/.config/tsim/tsim.toml".into(),
            runtime_dir: "/run/user/1000/tsim".into(),
            results_dir: "/home/anna/.local/state/tsim/runs".into(),
        };
        let config = Config::load(None, &places).unwrap();
        assert_eq!(config.registry_dir, places.runtime_dir);
        assert_eq!(config.labs_dir, places.runtime_dir.join("labs"));
        assert_eq!(config.results_dir, places.results_dir);
        assert_eq!(config.socket, Path::new("/run/user/1000/tsim/tsimd.sock"));
        let system = Config::default();
        assert_eq!(system.socket, Path::new("/run/tsimd/tsimd.sock"));
    }

    #[test]
    fn wrong_values_are_named() {
        for (text, want) in [
            ("dscp_first = 64", "64"),
            ("dscp_first = 40\ndscp_last = 39", "line 1: dscp_first"),
            ("dscp_last = 39\ndscp_first = 40", "40-39"),
            ("\nmax_services = 0", "line 2: max_services = 0"),
            ("max_services = 131071", "131070"),
            ("tool_dirs = []", "tool_dirs"),
            ("registry_dir = \"tmp\"", "absolute"),
            ("lock_timeout_seconds = -1.0", "lock_timeout_seconds"),
            ("registrydir = \"/x\"", "registrydir"),
            (
                "[scheduler]\nquick_jobs = 0",
                "line 2: scheduler.quick_jobs = 0",
            ),
            ("[scheduler]\nquickjobs = 1", "quickjobs"),
            ("[scheduler]\nlisten = \"localhost\"", "listen"),
            ("[scheduler]\nsocket = \"s\"", "absolute"),
            ("[scheduler]\ntoken_file = \"t\"", "absolute"),
            ("[scheduler]\nkeep_hours = -1.0", "keep_hours"),
            (
                "[service_groups.erp]\nservices = \"0\"",
                "group erp: port 0",
            ),
            ("[service_groups.erp]\nports = \"1\"", "ports"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn a_named_file_must_exist() {
        assert!(
            Config::load(Some(Path::new("/nonexistent/tsim.toml")), &Places::system()).is_err()
        );
    }
}
