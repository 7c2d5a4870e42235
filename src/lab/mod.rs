//! The lab: facts of real routers → topology (pure) → namespaces; hosts; path trace.

pub mod facts;
pub mod hosts;
pub mod sockets;
pub mod topology;
pub mod trace;
