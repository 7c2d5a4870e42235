//! Undo in reverse: every step is tried, every failure is kept.

use thiserror::Error;

/// Why one step of an undo failed.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// One step that could not be undone.
#[derive(Debug, Error)]
#[error("cannot undo: {what}")]
pub struct UndoError {
    /// What is left behind.
    pub what: String,
    /// Why.
    #[source]
    pub source: Cause,
}

type Step<'a> = Box<dyn FnOnce() -> Result<(), Cause> + Send + 'a>;

/// What was done so far and how to undo it.
///
/// Dropping it undoes too, for a caller that returns early; failures can then only be logged.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<(String, Step<'a>)>,
}

impl<'a> Undo<'a> {
    /// Nothing done yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `what` was done and how to undo it.
    pub fn push<E: Into<Cause>>(
        &mut self,
        what: impl Into<String>,
        undo: impl FnOnce() -> Result<(), E> + Send + 'a,
    ) {
        self.steps
            .push((what.into(), Box::new(|| undo().map_err(Into::into))));
    }

    /// What would be left if the process died now, latest first.
    pub fn pending(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().rev().map(|(what, _)| what.as_str())
    }

    /// Undoes everything, latest first, whatever fails.
    #[must_use]
    pub fn run(mut self) -> Vec<UndoError> {
        self.unwind()
    }

    fn unwind(&mut self) -> Vec<UndoError> {
        let mut failures = Vec::new();
        while let Some((what, undo)) = self.steps.pop() {
            if let Err(source) = undo() {
                failures.push(UndoError { what, source });
            }
        }
        failures
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for failure in self.unwind() {
            tracing::error!("{failure}: {}", failure.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use super::*;

    #[test]
    fn every_step_is_undone_in_reverse_and_every_failure_is_kept() {
        let order = Mutex::new(Vec::new());
        let mut undo = Undo::new();
        for (index, works) in [true, false, true, false].into_iter().enumerate() {
            let order = &order;
            undo.push(format!("step {index}"), move || {
                order.lock().unwrap().push(index);
                if works {
                    Ok(())
                } else {
                    Err(io::Error::other("no"))
                }
            });
        }
        assert_eq!(undo.pending().next(), Some("step 3"));
        let failures: Vec<_> = undo.run().into_iter().map(|f| f.what).collect();
        assert_eq!(failures, ["step 3", "step 1"]);
        assert_eq!(order.into_inner().unwrap(), [3, 2, 1, 0]);
    }

    #[test]
    fn an_early_return_undoes_too() {
        let undone = Mutex::new(0);
        {
            let mut undo = Undo::new();
            undo.push("x", || {
                *undone.lock().unwrap() += 1;
                Ok::<(), io::Error>(())
            });
        }
        assert_eq!(undone.into_inner().unwrap(), 1);
    }
}
