//! Undo in reverse: every step is tried, every failure is kept.

use thiserror::Error;

/// Why one step of an undo failed.
pub(crate) type UndoCause = Box<dyn std::error::Error + Send + Sync>;

/// One step that could not be undone.
#[derive(Debug, Error)]
#[error("cannot undo: {what}")]
pub(crate) struct UndoError {
    /// What is left behind.
    pub what: String,
    /// Why.
    #[source]
    pub source: UndoCause,
}
