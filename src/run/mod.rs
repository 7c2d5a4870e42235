//! What the runners do: the quick job from its resolved question to its report.

mod bridged;
mod builder;
#[cfg(not(feature = "internals"))]
pub(crate) mod caretaker;
#[cfg(feature = "internals")]
pub mod caretaker;
mod chosen_port;
pub mod detailed;
#[cfg(not(feature = "internals"))]
pub(crate) mod explain;
#[cfg(feature = "internals")]
pub mod explain;
pub(crate) mod interrupt;
mod left;
pub(crate) mod markup;
pub(crate) mod omitted;
pub(crate) mod outside;
#[cfg(not(feature = "internals"))]
pub(crate) mod packet;
#[cfg(feature = "internals")]
pub mod packet;
mod payload;
#[cfg(not(feature = "internals"))]
pub(crate) mod probe;
#[cfg(feature = "internals")]
pub mod probe;
pub(crate) mod progress;
pub mod quick;
pub mod report;
pub(crate) mod resolve;
pub(crate) mod sentence;
mod source_port;
pub(crate) mod undo;
mod unjoined;
mod unseen_entries;
pub(crate) mod verdict;
pub(crate) mod way;
