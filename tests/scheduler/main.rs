//! The scheduler as a process, with fake runners: what it starts, ends, adopts and records.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub
)]

mod checks;
mod crash;
mod http;
mod jobs;
mod lab;
mod nursery;
mod people;
mod real;
mod soak;
mod support;
mod trouble;
mod web;
