//! SIGINT and SIGTERM: the first one stops the job and lets the undo finish, a second one says
//! what is left and ends the process.

use std::{
    io::{self, Write},
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use nix::sys::signal::{SigSet, Signal};

use crate::registry::Cancel;

/// Exit code of a process that a second signal ended: it could not run, see the README.
const INTERRUPTED: i32 = 4;

/// Watches for signals while a job runs.
#[derive(Debug, Clone)]
pub struct Interrupt {
    cancel: Cancel,
    held: Arc<Mutex<Vec<String>>>,
}

impl Interrupt {
    /// Starts to watch, or joins those who do: a signal is for the whole process, and so one thread
    /// waits for it whatever number of jobs run here. Call it before any other thread is started:
    /// threads inherit the blocked signals, and a thread that does not block them would die of them.
    ///
    /// # Errors
    /// When signals cannot be blocked or no thread can be started.
    pub fn watch() -> io::Result<Self> {
        static WATCHING: Mutex<Option<Interrupt>> = Mutex::new(None);
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let mut watching = WATCHING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = &*watching {
            return Ok(interrupt.clone());
        }
        let interrupt = Self {
            cancel: Cancel::new()?,
            held: Arc::default(),
        };
        let watcher = interrupt.clone();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || watcher.wait(signals))?;
        *watching = Some(interrupt.clone());
        Ok(interrupt)
    }

    /// Wakes those who wait for a lock when a signal comes.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Whether a signal came.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Notes that `what` is there until the returned value is dropped, for the message that a
    /// second signal prints.
    #[must_use]
    pub fn holding(&self, what: impl Into<String>) -> Holding {
        let what = what.into();
        self.list(|held| held.push(what.clone()));
        Holding {
            interrupt: self.clone(),
            what,
        }
    }

    fn list<T>(&self, change: impl FnOnce(&mut Vec<String>) -> T) -> T {
        change(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wait(&self, signals: SigSet) {
        // sigwait(3) fails only for an invalid set.
        if signals.wait().is_err() {
            return;
        }
        self.cancel.cancel();
        let _ = writeln!(
            io::stderr(),
            "interrupted: undoing; once more to stop at once"
        );
        if signals.wait().is_err() {
            return;
        }
        let held = self.list(std::mem::take);
        let _ = writeln!(
            io::stderr(),
            "stopped; left for the next job or `tsim reconcile`: {}",
            if held.is_empty() {
                "nothing".to_owned()
            } else {
                held.join(", ")
            }
        );
        process::exit(INTERRUPTED);
    }
}

/// Something that is there until this is dropped.
#[derive(Debug)]
pub struct Holding {
    interrupt: Interrupt,
    what: String,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let what = &self.what;
        self.interrupt.list(|held| {
            if let Some(at) = held.iter().rposition(|h| h == what) {
                held.remove(at);
            }
        });
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
