//! The scheduler.

use tsim::cli::{self, tsimd::Tsimd};

fn main() {
    cli::main::<Tsimd>(std::env::args_os())
}
