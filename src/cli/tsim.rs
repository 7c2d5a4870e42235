//! `tsim`, the operator's command: labs, hosts, traces, registry.

use clap::{Parser, Subcommand};

use super::{CommandLine, Context, EXIT_CODES, Exit, Failure, Global, Run};

/// Rebuilds routers from collected facts as network namespaces and looks after them.
#[derive(Debug, Parser)]
#[command(name = "tsim", version, after_help = EXIT_CODES)]
pub struct Tsim {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {}

impl CommandLine for Tsim {
    fn global(&self) -> &Global {
        &self.global
    }
}

impl Run for Tsim {
    fn run(self, _context: &Context) -> Result<Exit, Failure> {
        match self.command {}
    }
}
