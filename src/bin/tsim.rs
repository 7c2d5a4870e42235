//! The operator's command.

use tsim::cli::{self, tsim::Tsim};

fn main() {
    cli::main::<Tsim>(std::env::args_os())
}
