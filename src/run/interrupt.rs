//! SIGINT and SIGTERM: the first one stops the job and lets the undo finish, a second one says
//! what is left and ends the process.

use std::{
    fmt,
    io::{self, Write},
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};

use nix::sys::signal::{SigSet, Signal};

use crate::{registry::Cancel, sys::bare_thread};

/// The one that watches: a signal is for the whole process.
static WATCHING: Mutex<Option<Interrupt>> = Mutex::new(None);

/// The exit code of a process that a signal made end, as a shell has it: 128 and the signal's
/// number; none where no signal came.
#[must_use]
pub(crate) fn exit_code() -> Option<i32> {
    let watching = WATCHING.lock().unwrap_or_else(PoisonError::into_inner);
    match watching.as_ref()?.signal.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(128 + signal),
    }
}

/// What is left when a process stops at once, in words.
type Left = Box<dyn Fn() -> Vec<String> + Send>;

/// Watches for signals while a job runs.
#[derive(Clone)]
pub(crate) struct Interrupt {
    cancel: Cancel,
    left: Arc<Mutex<Vec<Left>>>,
    /// The last signal that came; 0 for none.
    signal: Arc<AtomicI32>,
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt").finish_non_exhaustive()
    }
}

impl Interrupt {
    /// Starts to watch, or joins those who do: a signal is for the whole process, and so one thread
    /// waits for it whatever number of jobs run here. Call it before any other thread is started:
    /// threads inherit the blocked signals, and a thread that does not block them would die of them.
    ///
    /// # Errors
    /// When signals cannot be blocked or no thread can be started.
    pub(crate) fn watch() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let mut watching = WATCHING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = &*watching {
            return Ok(interrupt.clone());
        }
        let interrupt = Self::unset()?;
        let watcher = interrupt.clone();
        // It watches for as long as the process lives.
        bare_thread::start(Box::leak(Box::new(move || watcher.wait(signals))))?;
        *watching = Some(interrupt.clone());
        Ok(interrupt)
    }

    /// The one that watches, where the program asked for that; otherwise one that no signal sets.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(crate) fn current() -> io::Result<Self> {
        let watching = WATCHING.lock().unwrap_or_else(PoisonError::into_inner);
        watching.as_ref().cloned().map_or_else(Self::unset, Ok)
    }

    fn unset() -> io::Result<Self> {
        Ok(Self {
            cancel: Cancel::new()?,
            left: Arc::default(),
            signal: Arc::default(),
        })
    }

    /// Wakes those who wait for a lock when a signal comes.
    #[must_use]
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Whether a signal came.
    #[must_use]
    pub(crate) fn is_set(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Asks `left` what is there still, for the message that a second signal prints.
    pub(crate) fn at_stop(&self, left: impl Fn() -> Vec<String> + Send + 'static) {
        let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Box::new(left));
    }

    /// Sleeps until a signal comes, and notes it; false for an invalid set only, sigwait(3).
    fn next(&self, signals: &SigSet) -> bool {
        let signal = signals.wait();
        if let Ok(signal) = signal {
            self.signal.store(signal as i32, Ordering::Relaxed);
        }
        signal.is_ok()
    }

    fn wait(&self, signals: SigSet) {
        if !self.next(&signals) {
            return;
        }
        self.cancel.cancel();
        let _ = writeln!(
            io::stderr(),
            "interrupted: undoing; once more to stop at once"
        );
        if !self.next(&signals) {
            return;
        }
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let left: Vec<String> = left.iter().flat_map(|left| left()).collect();
        let _ = writeln!(
            io::stderr(),
            "stopped; left for the next job or `tsim reconcile`: {}",
            if left.is_empty() {
                "nothing".to_owned()
            } else {
                left.join(", ")
            }
        );
        process::exit(128 + self.signal.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use super::*;

    #[test]
    fn however_many_jobs_run_in_a_process_one_thread_waits_for_signals() {
        let event = || {
            let interrupt = Interrupt::watch().unwrap();
            interrupt.cancel().as_fd().as_raw_fd()
        };
        let first = event();
        assert_eq!([event(), event()], [first, first]);
    }
}
