//! All command lines as they are typed: what holds for every one of them, those that are added
//! later included.
//!
//! Needs root's rights: labs are made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod configuration;
mod documents;
mod examples;
mod exit;
mod generate;
mod help;
mod support;
mod terminal;
mod units;
