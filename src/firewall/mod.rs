//! Taps as plain data, and the back ends that put them into the kernel and read them.
//!
//! A quick job says what it wants as [`Taps`]: which probes are its own and how many there are. A
//! back end renders that value for one router, reads back a [`Reading`], and removes exactly what
//! it put there.

pub mod backend;
pub mod conntrack;
pub mod ipset;
pub mod iptables;
pub mod layout;
pub(crate) mod netfilter_socket;
pub mod nft;
pub mod place;
pub mod rule;
pub mod ruletext;
mod support;
pub mod tag;
pub mod taps;

pub use backend::{
    Backend, BackendChoice, InstalledTaps, Notebook, NotebookError, TapSite, TapsError, choose,
};
pub use place::{RulePlace, TableFamily};
pub use rule::Caveat;
pub use support::Support;
pub use tag::TagSpace;
pub use taps::{Reading, Runs, Taps, Undecided};
