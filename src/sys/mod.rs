//! The only unsafe code, one fenced file per kernel or library interface.

pub mod bare_thread;
pub mod fork;
pub mod heap;
pub mod in_flight;
pub mod leave;
pub mod limits;
pub mod mmsg;
pub mod nftnl;
pub mod readable;
pub mod seccomp;
pub mod socket_filter;
pub mod socket_option;
pub mod time_zone;
pub mod xtables;
