//! What a command is at, while it is at it: one line on the terminal, or log lines with `-v`.
//!
//! Jobs say their phases as events of the target [`PHASE`]. Where standard error is a terminal and
//! nobody asked for more or less, the latest is shown from the first second on, rewritten in place and
//! wiped before anything else is printed. Pipes, files and dumb terminals never get it.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

use crate::run::progress::PHASE;

/// What is over sooner needs no line.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// How often the line is written anew.
const TICK: Duration = Duration::from_millis(200);

/// Whether standard error can rewrite a line.
pub(super) fn can_rewrite() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The line; wiped when this is dropped.
#[derive(Debug)]
pub(super) struct LiveLine(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    at: At,
    /// Since when there is something to say.
    since: Option<Instant>,
    /// Since when this phase lasts.
    phase: Option<Instant>,
    /// Whether a line stands on the terminal.
    shown: bool,
    over: bool,
    writer: Option<JoinHandle<()>>,
}

/// What an event says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct At {
    text: String,
    done: Option<u64>,
    total: Option<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the line until the end.
    fn write(&self) {
        let mut state = self.lock();
        while !state.over {
            let waited = state.since.map(|since| since.elapsed()).unwrap_or_default();
            if waited >= SHOWN_AFTER {
                let phase = state.phase.map(|since| since.elapsed());
                let text = line(&state.at, waited, phase.unwrap_or_default());
                state.shown = write!(io::stderr(), "\r\x1b[K{text}").is_ok();
            }
            let woken = self.changed.wait_timeout(state, TICK);
            state = woken.map_or_else(|e| e.into_inner().0, |(state, _)| state);
        }
    }
}

impl State {
    fn wipe(&mut self) {
        if mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// The line's text: phase, how far, how fast, how long in all, how long this phase still takes.
fn line(at: &At, waited: Duration, phase: Duration) -> String {
    let mut text = at.text.clone();
    let mut left = String::new();
    if let (Some(done), Some(total)) = (at.done, at.total) {
        let _ = write!(text, ", {done} of {total}");
        #[allow(clippy::cast_precision_loss)] // for people
        let (done, total, seconds) = (done as f64, total as f64, phase.as_secs_f64());
        if done > 0.0 && seconds > 0.0 {
            let _ = write!(text, " ({:.1} per second)", done / seconds);
            let _ = write!(
                left,
                ", about {:.0} s left",
                seconds * (total - done) / done
            );
        }
    }
    let _ = write!(text, ", {} s{left}", waited.as_secs());
    text
}

impl LiveLine {
    /// A line that nothing has been said for yet, and what listens for it.
    pub(super) fn new() -> (Self, PhaseListener) {
        let shared = Arc::new(Shared::default());
        (Self(Arc::clone(&shared)), PhaseListener(shared))
    }

    /// Wipes the line; it does not come again.
    pub(super) fn end(&self) {
        let mut state = self.0.lock();
        state.over = true;
        state.wipe();
        let writer = state.writer.take();
        drop(state);
        self.0.changed.notify_all();
        if let Some(writer) = writer {
            // It has nothing that could be lost.
            let _ = writer.join();
        }
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Takes the events of phases.
pub(super) struct PhaseListener(Arc<Shared>);

impl<S: Subscriber> Layer<S> for PhaseListener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != PHASE {
            return;
        }
        let mut at = At::default();
        event.record(&mut at);
        let mut state = self.0.lock();
        if state.over {
            return;
        }
        if at.text.is_empty() {
            at.text = mem::take(&mut state.at.text);
        } else {
            state.phase = Some(Instant::now());
        }
        state.at = at;
        state.since.get_or_insert_with(Instant::now);
        // Not before there is something to show: a namespace can be joined by a single thread only.
        if state.writer.is_none() {
            let shared = Arc::clone(&self.0);
            let writer = thread::Builder::new().name("live".to_owned());
            state.writer = writer.spawn(move || shared.write()).ok();
        }
    }
}

impl Visit for At {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "done" => self.done = Some(value),
            "total" => self.total = Some(value),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.text = format!("{value:?}");
        }
    }
}

/// Standard error for log lines, which first wipes the line.
#[derive(Clone)]
pub(super) struct Above(Option<Arc<Shared>>);

impl Above {
    /// Above `listener`'s line, if there is one.
    pub(super) fn of(listener: Option<&PhaseListener>) -> Self {
        Self(listener.map(|listener| Arc::clone(&listener.0)))
    }
}

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(shared) = &self.0 {
            shared.lock().wipe();
        }
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_and_how_long_still() {
        let at = At {
            text: "measuring".to_owned(),
            done: Some(5),
            total: Some(20),
        };
        let text = line(&at, Duration::from_secs(12), Duration::from_secs(10));
        assert_eq!(
            text,
            "measuring, 5 of 20 (0.5 per second), 12 s, about 30 s left"
        );
        let at = At {
            text: "explaining 900 services at gw".to_owned(),
            ..At::default()
        };
        let text = line(&at, Duration::from_secs(2), Duration::from_secs(1));
        assert_eq!(text, "explaining 900 services at gw, 2 s");
    }
}
