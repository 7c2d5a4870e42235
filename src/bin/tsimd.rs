//! The scheduler.

fn main() {
    tsim::programs::tsimd()
}
