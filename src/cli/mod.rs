//! The command lines: arguments as typed, then resolved; exit codes; output as text and JSON.
//!
//! A binary's `main` is one call: [`main`] with the type of its arguments. Each subcommand lives
//! in a file of its own and implements [`Run`].

use std::{
    cell::{Cell, RefCell},
    ffi::OsString,
    io::{self, Write},
    mem,
    path::PathBuf,
    process,
    time::Duration,
};

use clap::{Args, Parser};
use serde::Serialize;
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

pub use self::exit::{EXIT_CODES, Exit, Failure};
use self::{
    ask::ServerArgs,
    live::{Above, LiveLine},
    start::{Standing, start},
};
use crate::{
    config::Config,
    fault::{self, FaultPlan},
    keeper::KeeperError,
    model::{PrintableJson, PrintableLog, printable_lines},
    netlink::buffers,
    run::{interrupt, progress::PHASE},
    sched::{
        client::{Client, ClientError},
        door::{self, Door},
    },
    sys::{leave, limits},
};

mod ask;
mod bulk;
mod complete;
mod configuration;
pub mod detailed;
mod doctor;
pub mod exit;
mod facts;
mod generate;
mod host;
mod jobs;
mod keeper;
mod lab;
mod live;
pub mod matrix;
mod question;
pub mod quick;
mod registry;
mod result;
mod services;
mod start;
mod status;
mod submit;
mod table;
mod token;
mod trace;
pub mod tsim;
pub mod tsimd;
mod watch;

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Configuration file [default: ~/.config/tsim/tsim.toml for an ordinary user, or else
    /// /etc/tsim/tsim.toml; if there is one]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TSIM_CONFIG",
        hide_env_values = true,
        value_hint = clap::ValueHint::FilePath
    )]
    pub config: Option<PathBuf>,

    /// Work in a user namespace, which needs no root [default: where rights are missing]
    #[arg(long, global = true)]
    pub rootless: bool,

    /// Seconds to wait for whoever has something locked [default: from the configuration, 60]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = question::seconds)]
    pub lock_timeout: Option<Duration>,

    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,

    /// Die or fail at a step on purpose, see the module `fault`; for tests
    #[arg(long, global = true, hide = true, value_name = "PLAN")]
    pub fault: Option<FaultPlan>,

    /// Give no socket more than this, as if the system allowed no more; for tests
    #[arg(long, global = true, hide = true, value_name = "BYTES")]
    pub socket_buffers: Option<usize>,

    /// Say on standard error what is done; twice for every step
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Print the answer and nothing else: no matrix, notes and warnings
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Colours: auto is on terminals, unless NO_COLOR is set or TERM is dumb
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Colour,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Colour {
    /// On terminals that have colours.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What a command needs beside its own arguments.
#[derive(Debug)]
pub struct Context {
    /// Paths and limits.
    pub config: Config,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether to print the answer only.
    pub quiet: bool,
    /// When to colour.
    pub colour: Colour,
    /// What was typed for how long to wait; it is in the configuration already.
    lock_timeout: Option<Duration>,
    live: Option<LiveLine>,
    standing: Standing,
    /// The scheduler to ask, where the command asks one and one was found.
    client: Option<Client>,
    /// Who comes by the scheduler's socket, where this is the scheduler.
    door: RefCell<Option<Door>>,
    slow_to_close: Cell<bool>,
}

impl Context {
    /// What a command gets that has root's rights.
    #[must_use]
    pub fn new(config: Config, json: bool) -> Self {
        Self {
            config,
            json,
            quiet: false,
            colour: Colour::Auto,
            lock_timeout: None,
            live: None,
            standing: Standing::Root,
            client: None,
            door: RefCell::new(None),
            slow_to_close: Cell::new(false),
        }
    }

    /// Leaves what `value` has open to be closed after the process has ended, see
    /// [`crate::sys::leave`]. For the end of a command only: everything else must be undone.
    fn close_last<T>(&self, value: T) {
        mem::forget(value);
        self.slow_to_close.set(true);
    }

    /// Prints `value` as JSON, or what `text` writes, as the user asked.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let json =
            |out: &mut dyn Write| serde_json::to_writer_pretty(out, value).map_err(io::Error::from);
        self.print_either(json, text)
    }

    /// Prints what `json` writes, or what `text` does, as the user asked.
    fn print_either(
        &self,
        json: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.wipe();
        match self.write(json, text) {
            // The reader has seen enough (`tsim … | head`).
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// Wipes the line that says what is being done.
    fn wipe(&self) {
        if let Some(live) = &self.live {
            live.end();
        }
    }

    fn write(
        &self,
        json: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        if self.json {
            let mut printable = PrintableJson::new(&mut out);
            json(&mut printable)?;
            printable.finish()?;
            writeln!(out)?;
        } else {
            text(&mut out)?;
        }
        out.flush()
    }
}

/// A command with its arguments as typed.
pub trait Run {
    /// Resolves the arguments and does the work.
    ///
    /// # Errors
    /// [`Failure`] with the exit code that says whose fault it is.
    fn run(self, context: &Context) -> Result<Exit, Failure>;
}

/// The command lines of all programs, with their subcommands, for what is made from them.
#[must_use]
pub fn programs() -> [clap::Command; 4] {
    use clap::CommandFactory;
    [
        tsim::Tsim::command(),
        quick::TsimQuick::command(),
        detailed::TsimDetailed::command(),
        tsimd::Tsimd::command(),
    ]
}

/// What a command needs of the kernel where it runs without root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelNeeds {
    /// Only files.
    Nothing,
    /// The user's namespaces, in which labs live.
    Namespaces,
    /// The same, and to be reached from the machine's own network and by its users.
    NamespacesBeside,
}

/// A whole command line: global options and what to run.
pub trait CommandLine: Parser + Run {
    /// The options that every command takes.
    fn global(&self) -> &Global;

    /// What it needs to be in before it runs.
    fn needs(&self) -> KernelNeeds {
        KernelNeeds::Namespaces
    }

    /// Which scheduler it asks, if it asks one; one that is found does all that it needs.
    fn asks(&self) -> Option<&ServerArgs> {
        None
    }

    /// How log lines look, and from which level on they are written.
    fn log(&self) -> LogOptions {
        match self.global().quiet {
            true => LogOptions {
                level: tracing::Level::ERROR,
                json: false,
            },
            false => LogOptions::quiet(self.global().verbose),
        }
    }
}

/// How log lines look, and which are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// The least severe level that is written.
    pub level: tracing::Level,
    /// JSON lines instead of text.
    pub json: bool,
}

impl LogOptions {
    /// For commands that speak for themselves: warnings, with `-v` information, with `-vv` every
    /// step.
    #[must_use]
    pub fn quiet(verbose: u8) -> Self {
        let level = match verbose {
            0 => tracing::Level::WARN,
            1 => tracing::Level::INFO,
            _ => tracing::Level::DEBUG,
        };
        Self { level, json: false }
    }
}

/// Parses `args`, runs the command, prints what went wrong, and ends the process.
///
/// Under the name of the keeper, this is the keeper; likewise the process at a scheduler's door.
pub fn main<C: CommandLine>(args: impl IntoIterator<Item = OsString>) -> ! {
    let mut args = args.into_iter().peekable();
    if args.peek().is_some_and(|name| *name == crate::keeper::NAME) {
        crate::keeper::run();
    }
    if let Some(exit) = complete::answer::<C>() {
        process::exit(exit as i32);
    }
    if args.peek().is_some_and(|name| *name == door::NAME) {
        door::run();
    }
    let exit = match C::try_parse_from(args) {
        Ok(command) => run(command),
        Err(error) => {
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
            // Nothing is left to tell anybody when even this cannot be printed.
            let _ = error.print();
            exit as i32
        }
    };
    process::exit(exit)
}

/// Ends the process here where a command left descriptors that take long to close.
fn run<C: CommandLine>(command: C) -> i32 {
    let global = command.global().clone();
    let plain = global.verbose == 0 && !global.quiet && !global.json;
    let live = start_log(command.log(), plain);
    // Jobs on hundreds of routers, and a thousand viewers, need more than a login gives. Where a
    // sandbox refuses, the limit stays and few notice.
    let _ = limits::open_files();
    if let Some(most) = global.socket_buffers {
        buffers::limit(most);
    }
    if let Some(plan) = global.fault {
        fault::arm(plan);
    }
    let started = start(&global, command.needs(), command.asks());
    let result = started.and_then(|started| {
        let context = Context {
            quiet: global.quiet,
            colour: global.color,
            lock_timeout: global.lock_timeout,
            live,
            standing: started.standing,
            client: started.client,
            door: RefCell::new(started.door),
            ..Context::new(started.config, global.json)
        };
        let exit = command.run(&context)?;
        Ok((exit, context.slow_to_close.get()))
    });
    if global.fault == Some(FaultPlan::Count) {
        let _ = writeln!(io::stderr(), "fault: {} steps", fault::taken().0);
    }
    match result {
        Ok((exit, true)) => leave::exit_leaving_descriptors(exit as i32),
        Ok((exit, false)) => exit as i32,
        Err(failure) => {
            let text = failure.to_string();
            let _ = writeln!(io::stderr(), "error: {}", printable_lines(&text));
            // What keeps a user's namespaces from being made is said already, and a scheduler that
            // is asked needs no rights of this process.
            if failure.exit == Exit::CannotRun
                && !failure.error.is::<KeeperError>()
                && !failure.error.is::<ClientError>()
                && let Some(hint) = crate::doctor::missing_rights()
            {
                let _ = writeln!(
                    io::stderr(),
                    "hint: {hint}; `tsim doctor` looks at everything"
                );
            }
            // What a signal made end says so, as every program does.
            interrupt::exit_code().unwrap_or(failure.exit as i32)
        }
    }
}

/// Sends log lines to standard error, and shows what is being done if that is `plain` output.
fn start_log(log: LogOptions, plain: bool) -> Option<LiveLine> {
    let (live, listener) = match plain && live::can_rewrite() {
        true => {
            let (live, listener) = LiveLine::new();
            (Some(live), Some(listener))
        }
        false => (None, None),
    };
    let above = Above::of(listener.as_ref());
    let lines = tracing_subscriber::fmt::layer();
    let level = LevelFilter::from_level(log.level);
    let phases = Targets::new().with_target(PHASE, tracing::Level::TRACE);
    let registry = tracing_subscriber::registry().with(listener.map(|l| l.with_filter(phases)));
    match log.json {
        true => {
            let lines = lines.with_writer(move || PrintableLog::of_json(above.clone()));
            registry.with(lines.json().with_filter(level)).init();
        }
        false => {
            let colour = io::IsTerminal::is_terminal(&io::stderr());
            let lines = lines.with_writer(move || PrintableLog::of_text(above.clone()));
            registry
                .with(lines.with_ansi(colour).with_filter(level))
                .init();
        }
    }
    live
}
