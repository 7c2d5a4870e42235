//! The registry as other processes see it: races, crashes, full disks, hostile directories.
//!
//! Needs no root: what the registry asks of the kernel is done to a directory, see [`fake`]. Other
//! processes are this binary again, driven over pipes, see [`child`]; no test sleeps.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod child;
mod crash;
mod crowd;
mod fake;
mod hostile;
mod hosts;
mod locks;
mod reconcile;
