//! The detailed job.

use tsim::cli::{self, detailed::Detailed};

fn main() {
    cli::main::<Detailed>(std::env::args_os())
}
