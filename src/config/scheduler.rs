//! The `[scheduler]` table: how many jobs run, how long, what is kept, where the viewer listens.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Limits of the scheduler and set-up of its viewer; every key is optional.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerConfig {
    /// Most quick jobs at once; each also needs a DSCP value.
    pub quick_jobs: usize,
    /// Most detailed jobs at once.
    pub detailed_jobs: usize,
    /// Most checks, matrices and diffs at once; each also needs a DSCP value.
    pub check_jobs: usize,
    /// Most jobs at once, all modes together.
    pub jobs: usize,
    /// Most later quick jobs that may overtake one waiting detailed job, and later jobs one in bulk.
    pub overtakes: u32,
    /// Longest run of a quick job, waiting for router locks included.
    pub quick_seconds: f64,
    /// Longest run of a detailed job, waiting for router locks included.
    pub detailed_seconds: f64,
    /// Longest run of a check, matrix or diff, waiting for router locks included.
    pub check_seconds: f64,
    /// Time that a runner has after SIGTERM before SIGKILL.
    pub grace_seconds: f64,
    /// Most jobs that may wait.
    pub max_queued: usize,
    /// Most bytes that a runner may write to one file, its result among them.
    pub max_output_bytes: u64,
    /// How long finished jobs and their results are kept.
    pub keep_hours: f64,
    /// Most bytes of all results; the oldest go first.
    pub max_results_bytes: u64,
    /// Most bytes of one user's results.
    pub max_user_results_bytes: u64,
    /// Where `tsim-quick`, `tsim-detailed` and `tsim` are; where `tsimd` itself is unless set.
    pub runner_dir: Option<PathBuf>,
    /// Address and port of the viewer and API.
    pub listen: SocketAddr,
    /// Where programs of this machine reach the scheduler, see [`super::Config::socket`].
    pub socket: Option<PathBuf>,
    /// The group that may use the socket; the scheduler's own unless set.
    pub socket_group: Option<String>,
    /// The group whose members may see every result and end every job, beside root.
    pub admin_group: Option<String>,
    /// Whether everybody who may ask sees everybody's results; otherwise their own.
    pub share_results: bool,
    /// Most jobs of one user that may wait.
    pub max_user_queued: usize,
    /// How long one user's jobs may have run within an hour, all together; none for any time.
    pub max_user_seconds: Option<f64>,
    /// Most connections of one user of this machine, or of one address.
    pub max_user_connections: usize,
    /// File with the token that changes state through the API, see [`super::Config::token_file`].
    pub token_file: Option<PathBuf>,
    /// Whether reading needs the token too; it always does when `listen` is not loopback. Set it
    /// when a proxy on this machine lets others in.
    pub token_to_read: bool,
    /// Names by which browsers may call the viewer, beside `localhost` and the address itself.
    pub host_names: Vec<String>,
    /// Most viewers that are sent live updates.
    pub max_viewers: usize,
    /// Most connections to the viewer at once.
    pub max_connections: usize,
    /// Requests per second of one user of this machine, or from one address, over a minute.
    pub requests_per_second: u32,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            quick_jobs: 32,
            detailed_jobs: 4,
            check_jobs: 1,
            jobs: 32,
            overtakes: 16,
            quick_seconds: 600.0,
            detailed_seconds: 3600.0,
            check_seconds: 3600.0,
            grace_seconds: 10.0,
            max_queued: 10_000,
            max_output_bytes: 256 << 20,
            keep_hours: 7.0 * 24.0,
            max_results_bytes: 8 << 30,
            max_user_results_bytes: 2 << 30,
            runner_dir: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8686)),
            socket: None,
            socket_group: None,
            admin_group: None,
            share_results: false,
            max_user_queued: 1000,
            max_user_seconds: None,
            max_user_connections: 512,
            token_file: None,
            token_to_read: false,
            host_names: Vec::new(),
            max_viewers: 1024,
            max_connections: 2048,
            requests_per_second: 100,
        }
    }
}

impl SchedulerConfig {
    /// Time limit of a quick job.
    #[must_use]
    pub fn quick_time(&self) -> Duration {
        Duration::from_secs_f64(self.quick_seconds)
    }

    /// Time limit of a detailed job.
    #[must_use]
    pub fn detailed_time(&self) -> Duration {
        Duration::from_secs_f64(self.detailed_seconds)
    }

    /// Time limit of a check, matrix or diff.
    #[must_use]
    pub fn check_time(&self) -> Duration {
        Duration::from_secs_f64(self.check_seconds)
    }

    /// How long one user's jobs may run within an hour.
    #[must_use]
    pub fn user_time(&self) -> Option<Duration> {
        self.max_user_seconds.map(Duration::from_secs_f64)
    }

    /// Time between SIGTERM and SIGKILL.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs_f64(self.grace_seconds)
    }

    /// How long finished jobs are kept.
    #[must_use]
    pub fn keep(&self) -> Duration {
        Duration::from_secs_f64(self.keep_hours * 3600.0)
    }

    /// What the types cannot say; the text names the key.
    pub(super) fn check(&self) -> Result<(), String> {
        let counts = [
            ("quick_jobs", self.quick_jobs),
            ("detailed_jobs", self.detailed_jobs),
            ("check_jobs", self.check_jobs),
            ("jobs", self.jobs),
            ("max_queued", self.max_queued),
            ("max_connections", self.max_connections),
            ("max_user_queued", self.max_user_queued),
            ("max_user_connections", self.max_user_connections),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(format!("scheduler.{key} = 0: at least 1 is needed"));
        }
        // A year is more than anybody means, and far from what a Duration cannot hold.
        const YEAR_HOURS: f64 = 366.0 * 24.0;
        let times = [
            ("quick_seconds", self.quick_seconds / 3600.0),
            ("detailed_seconds", self.detailed_seconds / 3600.0),
            ("check_seconds", self.check_seconds / 3600.0),
            ("grace_seconds", self.grace_seconds / 3600.0),
            ("keep_hours", self.keep_hours),
            (
                "max_user_seconds",
                self.max_user_seconds.unwrap_or_default() / 3600.0,
            ),
        ];
        if let Some((key, _)) = times.iter().find(|(_, h)| !(0.0..=YEAR_HOURS).contains(h)) {
            return Err(format!("scheduler.{key}: 0 to one year is allowed"));
        }
        for (key, path) in [
            ("runner_dir", &self.runner_dir),
            ("token_file", &self.token_file),
            ("socket", &self.socket),
        ] {
            if path.as_deref().is_some_and(|path| !path.is_absolute()) {
                return Err(format!("scheduler.{key} is not an absolute path"));
            }
        }
        Ok(())
    }
}
