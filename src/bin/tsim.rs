//! The operator's command.

fn main() {
    tsim::programs::tsim()
}
