//! What the runners do: the quick job from its resolved question to its report.

pub mod caretaker;
pub mod detailed;
pub mod explain;
pub mod interrupt;
mod left;
pub(crate) mod markup;
pub mod omitted;
pub mod outside;
pub mod packet;
mod payload;
pub mod probe;
pub mod progress;
pub mod quick;
pub mod report;
pub mod resolve;
pub mod sentence;
mod source_port;
pub mod undo;
pub mod verdict;
pub mod way;
