//! The quick runner: which services get through which routers.

use tsim::cli::{self, quick::Quick};

fn main() {
    cli::main::<Quick>(std::env::args_os())
}
