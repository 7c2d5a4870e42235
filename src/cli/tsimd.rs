//! `tsimd`, the scheduler and viewer.

use std::sync::Arc;

use clap::{Parser, ValueEnum};

use super::{CommandLine, Context, Exit, Failure, Global, Log, Run};
use crate::{
    registry::RegistryManager,
    sched::{daemon::Daemon, resources::RegistryResources},
};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Runs queued jobs, as many at a time as is safe, and shows what is going on.
///
/// One scheduler leads; further ones stand by and take over when it dies. SIGTERM or SIGINT lets
/// running jobs end and starts no new ones; a second one cancels them. If the scheduler is killed,
/// running jobs go on and the next leader adopts them.
#[derive(Debug, Parser)]
#[command(name = "tsimd", version)]
pub struct Tsimd {
    #[command(flatten)]
    global: Global,
    /// How log lines look; they go to standard error
    #[arg(long, value_enum, default_value = "text")]
    log: LogFormat,
}

impl CommandLine for Tsimd {
    fn global(&self) -> &Global {
        &self.global
    }

    fn log(&self) -> Log {
        Log {
            json: self.log == LogFormat::Json,
            // A daemon says what it does.
            ..Log::quiet(self.global.verbose.saturating_add(1))
        }
    }
}

impl Run for Tsimd {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let registry = RegistryManager::open(&context.config).map_err(Failure::cannot_run)?;
        let daemon = Daemon {
            config: context.config.clone(),
            config_file: self.global.config,
            resources: Arc::new(RegistryResources::new(registry, Box::new(|_| Ok(0)))),
        };
        daemon.run().map_err(Failure::cannot_run)?;
        Ok(Exit::Ok)
    }
}
