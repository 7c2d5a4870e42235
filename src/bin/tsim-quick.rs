//! The quick runner: which services get through which routers.

fn main() {
    tsim::programs::quick()
}
