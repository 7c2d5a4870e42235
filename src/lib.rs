//! tsim rebuilds routers from collected facts as Linux network namespaces and measures, in the
//! real kernel, which services get through their firewalls.
//!
//! The modules form layers; each may use those below it and none above:
//!
//! | layer | what it does |
//! |---|---|
//! | [`cli`] | arguments as typed, then resolved; exit codes; output |
//! | [`doctor`] | what this machine offers and lacks |
//! | [`keeper`] | an ordinary user's namespaces |
//! | [`sched`] | queue, policy, event loop, live viewer |
//! | [`bulk`] | policies, matrices, before and after, what if |
//! | [`run`] | the quick job: taps, probes, verdicts, undo, report; the detailed job; sweeps |
//! | [`lab`] | facts → topology → namespaces; hosts; path trace |
//! | [`registry`] | leases, locks, waiters, DSCP values; crash-safe |
//! | [`firewall`] | taps as data, rendered by back ends |
//! | [`netlink`] | links, addresses, routes, rules, neighbours |
//! | [`netns`] | create, open, enter and delete network namespaces |
//! | [`sys`] | the only unsafe code |
//!
//! [`model`] holds the words that every layer shares, [`config`] the paths and limits, [`fault`]
//! the hook by which tests make any step fail.

pub mod bulk;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod fault;
pub mod files;
pub mod firewall;
mod flock;
pub mod keeper;
pub mod lab;
pub mod model;
pub mod netlink;
pub mod netns;
mod processors;
pub mod registry;
pub mod run;
pub mod sched;
pub mod sys;
pub mod wait;
