//! The detailed job.

fn main() {
    tsim::programs::detailed()
}
