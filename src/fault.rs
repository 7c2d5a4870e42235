//! Faults on purpose: dies or fails at the N-th step, for tests that try every step.
//!
//! Code that changes something outside the process (a file, a kernel object) calls [`step`]
//! right before each change, and before it waits for another job. Unarmed, that is one relaxed load. A plan is armed once, before any
//! thread is started, from a hidden command-line option or by a test:
//!
//! ```text
//! count        only count the steps; `taken()` tells
//! kill@17      SIGKILL to the own process at step 17
//! ENOSPC@17    step 17 fails with ENOSPC, once
//! ENOSPC@17+   step 17 and all later ones fail
//! stop@NAME    the process stops (SIGSTOP) at its first step of that name
//! forget@NAME  what asks [`forgets`] that name leaves something out; in debug builds only
//! ```
//!
//! A harness runs once with `count`, then once with each `kill@N`, and asserts that the next job
//! finds nothing left over. A process that stops is a barrier: whoever started it sees that it
//! has stopped (waitpid(2)), and has it go on with SIGCONT. What is forgotten makes verdicts wrong: a
//! test that compares them with the truth shows with it that it would notice.

use std::{
    fmt, io,
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, raise},
    unistd::getpid,
};
use thiserror::Error;

static ARMED: AtomicBool = AtomicBool::new(false);
static STATE: Mutex<State> = Mutex::new(State {
    plan: FaultPlan::Count,
    taken: 0,
    last: "",
});

struct State {
    plan: FaultPlan,
    taken: u64,
    last: &'static str,
}

/// What is to happen, and when. Steps are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultPlan {
    /// Nothing happens; the steps are counted.
    Count,
    /// SIGKILL to the own process instead of this step.
    Kill(u64),
    /// This step fails.
    Fail {
        /// The step.
        at: u64,
        /// With what.
        errno: Errno,
        /// Whether all later ones fail too, as on a disk that stays full.
        onwards: bool,
    },
    /// The process stops at its first step of this name, and goes on when it is told to.
    Stop(&'static str),
    /// Something is left out.
    Forget(&'static str),
}

/// Text that is no [`FaultPlan`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "fault plan {0:?} is not allowed: count, kill@N, ERRNO@N[+], stop@NAME or forget@NAME is, with N ≥ 1"
)]
pub struct PlanError(String);

impl FromStr for FaultPlan {
    type Err = PlanError;
    fn from_str(text: &str) -> Result<Self, PlanError> {
        let refuse = || PlanError(text.to_owned());
        if text == "count" {
            return Ok(Self::Count);
        }
        let (what, at) = text.split_once('@').ok_or_else(refuse)?;
        if what == "stop" && !at.is_empty() {
            // Leaked once per process: a plan is armed once.
            return Ok(Self::Stop(at.to_owned().leak()));
        }
        if what == "forget" && !at.is_empty() {
            return Ok(Self::Forget(at.to_owned().leak()));
        }
        let onwards = at.ends_with('+');
        let at = at.trim_end_matches('+').parse().map_err(|_| refuse())?;
        if at == 0 {
            return Err(refuse());
        }
        if what == "kill" {
            return if onwards {
                Err(refuse())
            } else {
                Ok(Self::Kill(at))
            };
        }
        let errno = errno_by_name(what).ok_or_else(refuse)?;
        Ok(Self::Fail { at, errno, onwards })
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count => f.write_str("count"),
            Self::Kill(at) => write!(f, "kill@{at}"),
            Self::Stop(name) => write!(f, "stop@{name}"),
            Self::Forget(name) => write!(f, "forget@{name}"),
            Self::Fail { at, errno, onwards } => {
                write!(f, "{errno:?}@{at}{}", if *onwards { "+" } else { "" })
            }
        }
    }
}

fn errno_by_name(name: &str) -> Option<Errno> {
    // The ones that the steps of this program can really meet.
    [
        Errno::EACCES,
        Errno::EAGAIN,
        Errno::EBUSY,
        Errno::EDQUOT,
        Errno::EEXIST,
        Errno::EINTR,
        Errno::EINVAL,
        Errno::EIO,
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::ENOBUFS,
        Errno::ENODEV,
        Errno::ENOENT,
        Errno::ENOMEM,
        Errno::ENOSPC,
        Errno::EPERM,
        Errno::EROFS,
        Errno::ETIMEDOUT,
    ]
    .into_iter()
    .find(|errno| format!("{errno:?}") == name)
}

/// Arms `plan` and sets the count of steps to zero.
pub fn arm(plan: FaultPlan) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    *state = State {
        plan,
        taken: 0,
        last: "",
    };
    ARMED.store(true, Ordering::Relaxed);
}

/// How many steps were taken since [`arm`], and the name of the last one.
#[must_use]
pub fn taken() -> (u64, &'static str) {
    let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    (state.taken, state.last)
}

/// Passes one step, named `area.what`; call it right before the change.
///
/// # Errors
/// The errno of the armed plan when this is its step; never when nothing is armed.
#[inline]
pub fn step(name: &'static str) -> io::Result<()> {
    if ARMED.load(Ordering::Relaxed) {
        armed_step(name)
    } else {
        Ok(())
    }
}

/// Whether `what` is to be left out on purpose; never in a release build.
#[inline]
#[must_use]
pub fn forgets(what: &str) -> bool {
    cfg!(debug_assertions) && ARMED.load(Ordering::Relaxed) && {
        let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(state.plan, FaultPlan::Forget(forgotten) if forgotten == what)
    }
}

#[cold]
fn armed_step(name: &'static str) -> io::Result<()> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.taken += 1;
    state.last = name;
    match state.plan {
        FaultPlan::Kill(at) if at == state.taken => die(),
        FaultPlan::Stop(at) if at == name => {
            state.plan = FaultPlan::Count;
            // To this thread: it takes the signal before raise(3) returns.
            Ok(raise(Signal::SIGSTOP)?)
        }
        FaultPlan::Fail { at, errno, onwards }
            if at == state.taken || onwards && at < state.taken =>
        {
            Err(errno.into())
        }
        _ => Ok(()),
    }
}

fn die() -> ! {
    // The signal is delivered before kill(2) returns to this thread; the loop is for the type.
    loop {
        let _ = kill(getpid(), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_read_back_and_junk_is_refused() {
        for text in [
            "count",
            "kill@17",
            "ENOSPC@1",
            "EINTR@3+",
            "stop@quick.read",
            "forget@nat",
        ] {
            assert_eq!(text.parse::<FaultPlan>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "kill",
            "stop@",
            "forget@",
            "kill@0",
            "kill@2+",
            "ENOTHING@1",
            "EIO@x",
            "@1",
        ] {
            assert!(bad.parse::<FaultPlan>().is_err(), "{bad}");
        }
    }
}
