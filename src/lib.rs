//! tsim rebuilds routers from collected facts as Linux network namespaces and measures, in the
//! real kernel, which services get through their firewalls.
//!
//! For programs: [`model`] has the words (names, services, DSCP values), [`config`] the settings,
//! [`lab`] makes, shows and removes labs, [`run`] measures in them ([`run::quick`], [`run::detailed`]),
//! [`bulk`] asks many questions at once. `examples/` has one program for each of these.
//!
//! ```no_run
//! use tsim::{config::{Config, Places}, run::quick::Quick};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let services = tsim::model::parse_services(
//!     "22,443/tcp,53/udp",
//!     tsim::model::Protocol::Tcp,
//!     Default::default(),
//! )?;
//! let report = Quick::new("corp10".parse()?, "10.1.1.100".parse()?, "10.2.1.200".parse()?, services)
//!     .source_port(40_000)
//!     .run(&Config::load(None, &Places::of_user()?)?)?;
//! for service in &report.end_to_end {
//!     println!("{} {:?}", service.service(), service.result);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Everything else is sealed: its modules are private, so that the compiler tells what nobody uses. The
//! tests and benches of this package open them with the feature `internals`, which is no interface:
//! what is behind it changes with every commit. `docs/ARCHITECTURE.md` says what lies where.

// Where everything is open, what is `pub` and cannot be reached is still told.
#![cfg_attr(feature = "internals", warn(unreachable_pub))]
// Code that only tests use is left out without the feature, its imports are not.
#![cfg_attr(not(feature = "internals"), allow(unused_imports))]

// Each of these stands here twice because rustfmt finds files by `mod` items outside of macros alone.
pub mod bulk;
#[cfg(not(feature = "internals"))]
mod cli;
#[cfg(feature = "internals")]
pub mod cli;
pub mod config;
#[cfg(not(feature = "internals"))]
mod doctor;
#[cfg(feature = "internals")]
pub mod doctor;
#[cfg(not(feature = "internals"))]
mod fault;
#[cfg(feature = "internals")]
pub mod fault;
mod files;
#[cfg(not(feature = "internals"))]
mod firewall;
#[cfg(feature = "internals")]
pub mod firewall;
mod flock;
mod keeper;
pub mod lab;
pub mod model;
#[cfg(not(feature = "internals"))]
mod netlink;
#[cfg(feature = "internals")]
pub mod netlink;
#[cfg(not(feature = "internals"))]
mod netns;
#[cfg(feature = "internals")]
pub mod netns;
mod processors;
#[cfg(not(feature = "internals"))]
mod registry;
#[cfg(feature = "internals")]
pub mod registry;
pub mod run;
#[cfg(not(feature = "internals"))]
mod sched;
#[cfg(feature = "internals")]
pub mod sched;
#[cfg(not(feature = "internals"))]
mod sys;
#[cfg(feature = "internals")]
pub mod sys;
mod wait;

/// The programs of this package: each `main` in `src/bin` is one call.
#[doc(hidden)]
pub mod programs {
    use crate::cli;

    /// The operator's command.
    pub fn tsim() -> ! {
        cli::main::<cli::tsim::Tsim>(std::env::args_os())
    }

    /// The quick runner: which services get through which routers.
    pub fn quick() -> ! {
        cli::main::<cli::quick::TsimQuick>(std::env::args_os())
    }

    /// The detailed job.
    pub fn detailed() -> ! {
        cli::main::<cli::detailed::TsimDetailed>(std::env::args_os())
    }

    /// The scheduler.
    pub fn tsimd() -> ! {
        cli::tsimd::main(std::env::args_os())
    }
}
