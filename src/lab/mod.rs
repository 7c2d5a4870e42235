//! The lab: facts of real routers → topology (pure) → namespaces; hosts; path trace.

pub mod facts;
pub mod topology;
