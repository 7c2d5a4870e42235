//! tsim as ordinary users run it: the programs under users of their own, each with a keeper.
//!
//! The tests need root to become these users, and for nothing else. What cannot run fails; nothing
//! is skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod apart;
mod contained;
mod forbidden;
mod hostile;
mod kills;
mod life;
mod people;
mod user;
