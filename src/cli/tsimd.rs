//! `tsimd`, the scheduler and viewer.

use std::{
    ffi::OsString,
    io::{self, Write},
    iter,
    sync::Arc,
    time::Duration,
};

use clap::{Parser, ValueEnum};

use super::{
    CommandLine, Context, EXIT_CODES, Exit, Failure, Global, KernelNeeds, LogOptions, Run,
    quick::TsimQuick,
};
use crate::{
    config::{self, Config},
    model::RunId,
    netns::NetnsDir,
    registry::RegistryManager,
    run::caretaker::Caretaker,
    sched::{
        daemon::Daemon,
        door::{Door, DoorPlan},
        nursery,
        resources::{Reconcile, RegistryResources},
    },
};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

const EXAMPLES: &str = "Examples:
  tsimd
  tsimd --config trial.toml -v
  tsimd --print-config > /etc/tsim/tsim.toml
  tsimd --print-unit > /etc/systemd/system/tsimd.service";

/// Runs queued jobs, as many at a time as is safe, and shows what is going on.
///
/// One scheduler leads; further ones stand by and take over when it dies. SIGTERM or SIGINT lets
/// running jobs end and starts no new ones; a second one cancels them. If the scheduler is killed,
/// running jobs go on and the next leader adopts them.
#[derive(Debug, Parser)]
#[command(name = "tsimd", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct Tsimd {
    #[command(flatten)]
    global: Global,
    /// How log lines look; they go to standard error
    #[arg(long, value_enum, default_value = "text")]
    log: LogFormat,
    /// Print a systemd unit for this scheduler and end
    #[arg(long)]
    print_unit: bool,
    /// Print what to add to the unit so that it runs as root, and end
    #[arg(long)]
    print_root_drop_in: bool,
    /// Print a configuration file with every key, its default and its meaning, and end
    #[arg(long)]
    print_config: bool,
}

/// The systemd unit that [`Tsimd`] prints.
const UNIT: &str = include_str!("../sched/dist/tsimd.service");
/// What makes it root's.
const ROOT: &str = include_str!("../sched/dist/root.conf");

/// The scheduler; under the name of its nursery, the process that forks its runners of quick jobs.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ! {
    let mut args = args.into_iter().peekable();
    if args.peek().is_some_and(|name| *name == nursery::NAME) {
        nursery::run(|arguments| {
            let name = iter::once("tsim-quick".to_owned());
            let args = name.chain(arguments).map(OsString::from);
            super::main::<TsimQuick>(args)
        });
    }
    super::main::<Tsimd>(args)
}

impl CommandLine for Tsimd {
    fn global(&self) -> &Global {
        &self.global
    }

    /// The viewer listens in the machine's own network.
    fn needs(&self) -> KernelNeeds {
        if self.print_unit || self.print_root_drop_in || self.print_config {
            KernelNeeds::Nothing
        } else {
            KernelNeeds::NamespacesBeside
        }
    }

    fn log(&self) -> LogOptions {
        LogOptions {
            json: self.log == LogFormat::Json,
            // A daemon says what it does.
            ..LogOptions::quiet(self.global.verbose.saturating_add(1))
        }
    }
}

impl Run for Tsimd {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        for (wanted, text) in [
            (self.print_unit, UNIT),
            (self.print_root_drop_in, ROOT),
            (self.print_config, config::EXAMPLE),
        ] {
            if wanted {
                io::stdout().write_all(text.as_bytes())?;
                return Ok(Exit::Ok);
            }
        }
        // It waits for nobody who has stopped: what it cannot do now it tries again.
        let hasty = Config {
            lock_timeout: Duration::ZERO,
            ..context.config.clone()
        };
        let registry = RegistryManager::open(&hasty).map_err(Failure::cannot_run)?;
        // The runners work in another directory.
        let config_file = self.global.config.map(std::path::absolute).transpose()?;
        let daemon = Daemon {
            config: context.config.clone(),
            config_file,
            door: context
                .door
                .take()
                .unwrap_or_else(|| Door::Here(DoorPlan::of(&context.config))),
            resources: Arc::new(RegistryResources::new(registry, reconcile(hasty))),
        };
        daemon.run().map_err(Failure::cannot_run)?;
        Ok(Exit::Ok)
    }
}

/// What `tsim reconcile` does.
fn reconcile(config: Config) -> Reconcile {
    Box::new(move |registry| {
        let run_id = RunId::new(format!("tsimd-{}", std::process::id()))?;
        let mut kernel = Caretaker::new(&NetnsDir::default().patient(config.lock_timeout), &config);
        let report = kernel.reconcile(registry, &run_id, false)?;
        if report.failures.is_empty() {
            Ok(report.actions.len())
        } else {
            Err(report.failures.join("; ").into())
        }
    })
}
