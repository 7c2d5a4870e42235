//! How long a caller is willing to wait, and how it is woken early.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

/// How long somebody waits before it is said for whom.
pub(crate) const SILENT: Duration = Duration::from_secs(1);

/// How long to wait for somebody who holds what is held for a moment, well below a millisecond, by
/// whoever may wait `timeout` for others. Who does not want to wait for jobs gets that moment all
/// the same; who holds it for longer is stopped or hung.
pub(crate) fn for_a_moment(timeout: Duration) -> Duration {
    timeout.max(SILENT)
}

/// Wakes waiters for good, e.g. after SIGINT. Clones share one state.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<State>);

#[derive(Debug)]
struct State {
    cancelled: AtomicBool,
    wakes: EventFd,
}

impl Cancel {
    /// A token that is not cancelled.
    ///
    /// # Errors
    /// When the kernel has no eventfd(2) to give.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(State {
            cancelled: AtomicBool::new(false),
            wakes: EventFd::from_value_and_flags(0, flags)?,
        })))
    }

    /// Wakes everybody who waits with this token, now and later. A flag and one write(2): may be
    /// called from a signal handler.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
        // Fails only when the counter is full, and then everybody is awake already.
        let _ = self.0.wakes.write(1);
    }

    /// Whether [`Self::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Relaxed)
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wakes.as_fd()
    }
}

/// Until when to wait, and what ends the wait early.
#[derive(Debug, Clone)]
pub struct Wait {
    started: Instant,
    deadline: Option<Instant>,
    cancel: Option<Cancel>,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Ready,
    TimedOut,
    Cancelled,
}

impl Wait {
    /// Waits at most `timeout` from now.
    #[must_use]
    pub fn at_most(timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            // A time-out beyond what the clock can hold is no time-out.
            deadline: now.checked_add(timeout),
            cancel: None,
        }
    }

    /// Does not wait: fails at once when something is taken.
    #[must_use]
    pub fn not() -> Self {
        Self::at_most(Duration::ZERO)
    }

    /// Waits as long as it takes.
    #[must_use]
    pub fn forever() -> Self {
        Self {
            started: Instant::now(),
            deadline: None,
            cancel: None,
        }
    }

    /// Ends the wait when `cancel` is cancelled.
    #[must_use]
    pub fn or_until(mut self, cancel: Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Time since the wait was set up.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.started.elapsed()
    }

    /// The same as [`Self::readable`]; calls `say` when that takes longer than a second.
    pub(crate) fn readable_or_say(
        &self,
        fd: BorrowedFd<'_>,
        say: impl FnOnce(),
    ) -> io::Result<Woken> {
        let soon = Instant::now() + SILENT;
        let first = Self {
            deadline: Some(self.deadline.map_or(soon, |deadline| deadline.min(soon))),
            ..self.clone()
        };
        match first.readable(fd)? {
            Woken::TimedOut if !self.is_over() => {
                say();
                self.readable(fd)
            }
            woken => Ok(woken),
        }
    }

    /// Sleeps until `fd` is readable or hung up.
    pub(crate) fn readable(&self, fd: BorrowedFd<'_>) -> io::Result<Woken> {
        let mut fds = vec![PollFd::new(fd, PollFlags::POLLIN)];
        if let Some(cancel) = &self.cancel {
            fds.push(PollFd::new(cancel.as_fd(), PollFlags::POLLIN));
        }
        loop {
            match poll(&mut fds, self.timeout()) {
                Ok(0) if self.is_over() => return Ok(Woken::TimedOut),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) if fds[0].any() == Some(true) => return Ok(Woken::Ready),
                Ok(_) => return Ok(Woken::Cancelled),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Whether its deadline has come.
    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|d| d <= Instant::now())
    }

    fn timeout(&self) -> PollTimeout {
        let Some(deadline) = self.deadline else {
            return PollTimeout::NONE;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a wait that ends a fraction early would spin until the deadline.
        let millis = left.as_micros().div_ceil(1000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    }
}
