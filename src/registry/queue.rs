//! Who may hold a router, and who goes next: the rules, as pure code.
//!
//! # On disk
//!
//! A router's queue is a directory, `locks/LAB.ROUTER/`. Who holds the router or waits for it has
//! a **ticket** there: a FIFO that it has open, whose name says who it is.
//!
//! ```text
//! 0000000000000041,shared,run-7,4711,81234,1735689600000
//! number ──┘       │      │     │    │     └─ since, ms since the epoch
//! mode ────────────┘      │     │    └─ start time of the process, see owner
//! run id ─────────────────┘     └─ pid
//! ```
//!
//! # Rules
//!
//! 1. A ticket is *live* while it is linked and somebody has its FIFO open for writing. Only its
//!    owner ever does. The kernel closes it when the owner dies, whatever it dies of.
//! 2. To enter, a job locks the directory with flock(2), takes a number higher than all others,
//!    makes the FIFO under the name `.new`, opens it, renames it to its ticket, and unlocks.
//!    So a ticket is live before it is seen, and numbers only grow while anybody is in the queue.
//! 3. A job holds the router when no live ticket with a lower number is in its [way](blocks): a
//!    shared ticket waits for exclusive ones, an exclusive ticket for all.
//! 4. To leave, a job unlinks its ticket and closes it.
//! 5. A dead ticket is removed by a job that waits behind it, whose own ticket keeps its number
//!    from being given again, or by somebody who has locked the directory.
//!
//! The queue is first come, first served: a waiting exclusive job holds back shared ones that
//! come later and is itself held back only by those that came before. Nobody starves. Each job
//! waits for the nearest ticket in its way only, so a release wakes those who may go on and
//! nobody else. It waits in poll(2) on that ticket's FIFO: POLLHUP comes when the last writer is
//! gone. (inotify(7) was considered: it allows 128 instances per user by default, fewer than there
//! may be waiters, and reports IN_CLOSE_WRITE before the kernel drops the flock(2) of the closed
//! file, see `__fput()` in fs/file_table.c.)

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::RunId;

/// How a router is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Together with others who hold it shared: quick jobs.
    Shared,
    /// Alone: detailed jobs.
    Exclusive,
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
        })
    }
}

/// A place in a queue; its text is the FIFO's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Place in the queue; lower goes first.
    pub number: u64,
    /// How the router is wanted.
    pub mode: LockMode,
    /// The job.
    pub run_id: RunId,
    /// Its process.
    pub pid: u32,
    /// When that process started, see [`Owner`](crate::registry::Owner).
    pub start_time: u64,
    /// When the job entered the queue.
    pub since: Timestamp,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            mode,
            run_id,
            pid,
            start_time,
            since,
        } = self;
        let since = since.as_millisecond();
        write!(f, "{number:016},{mode},{run_id},{pid},{start_time},{since}")
    }
}

/// A name that is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotATicket;

impl FromStr for Ticket {
    type Err = NotATicket;
    fn from_str(name: &str) -> Result<Self, NotATicket> {
        fn number<T: FromStr>(text: Option<&str>) -> Result<T, NotATicket> {
            text.and_then(|t| t.parse().ok()).ok_or(NotATicket)
        }
        let mut fields = name.split(',');
        let ticket = Self {
            number: number(fields.next())?,
            mode: match fields.next() {
                Some("shared") => LockMode::Shared,
                Some("exclusive") => LockMode::Exclusive,
                _ => return Err(NotATicket),
            },
            run_id: number(fields.next())?,
            pid: number(fields.next())?,
            start_time: number(fields.next())?,
            since: number::<i64>(fields.next())
                .and_then(|ms| Timestamp::from_millisecond(ms).map_err(|_| NotATicket))?,
        };
        // The text must be the ticket's own: it is used as a file name again.
        if fields.next().is_none() && ticket.to_string() == name {
            Ok(ticket)
        } else {
            Err(NotATicket)
        }
    }
}

/// Whether a live ticket (`number`, `mode`) is in the way of a later one.
#[must_use]
pub fn blocks(ahead: (u64, LockMode), behind: (u64, LockMode)) -> bool {
    ahead.0 < behind.0 && (ahead.1 == LockMode::Exclusive || behind.1 == LockMode::Exclusive)
}

/// The number of the next ticket.
#[must_use]
pub fn next_number(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.max().map_or(1, |n| n + 1)
}

/// What has a number and a mode.
pub trait Numbered {
    /// Both.
    fn place(&self) -> (u64, LockMode);
}

impl Numbered for Ticket {
    fn place(&self) -> (u64, LockMode) {
        (self.number, self.mode)
    }
}

/// Of those in the way of `mine` the nearest; it is the one to wait for.
pub fn nearest<P: Numbered>(places: &[P], mine: (u64, LockMode)) -> Option<&P> {
    places
        .iter()
        .filter(|p| blocks(p.place(), mine))
        .max_by_key(|p| p.place().0)
}

#[cfg(test)]
#[path = "queue_model.rs"]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(number: u64, mode: LockMode) -> Ticket {
        Ticket {
            number,
            mode,
            run_id: RunId::new("run-7").unwrap(),
            pid: 4711,
            start_time: 81234,
            since: Timestamp::from_millisecond(1_735_689_600_000).unwrap(),
        }
    }

    #[test]
    fn a_ticket_is_its_file_name() {
        let name = "0000000000000041,shared,run-7,4711,81234,1735689600000";
        assert_eq!(ticket(41, LockMode::Shared).to_string(), name);
        assert_eq!(name.parse(), Ok(ticket(41, LockMode::Shared)));
        for bad in [
            ".new",
            "41,shared,run-7,4711,81234,1735689600000",
            "0000000000000041,mine,run-7,4711,81234,1735689600000",
            "0000000000000041,shared,../x,4711,81234,1735689600000",
            "0000000000000041,shared,run-7,4711,81234,1735689600000,x",
        ] {
            assert_eq!(bad.parse::<Ticket>(), Err(NotATicket), "{bad}");
        }
    }

    #[test]
    fn the_longest_ticket_is_a_file_name() {
        let longest = Ticket {
            number: u64::MAX,
            mode: LockMode::Exclusive,
            run_id: RunId::new("r".repeat(64)).unwrap(),
            pid: u32::MAX,
            start_time: u64::MAX,
            since: Timestamp::MAX,
        };
        assert!(longest.to_string().len() <= 255);
    }

    #[test]
    fn one_waits_for_the_nearest_in_the_way() {
        use LockMode::{Exclusive as X, Shared as S};
        let queue: Vec<Ticket> = [(1, S), (2, X), (3, S), (4, S)]
            .map(|(n, m)| ticket(n, m))
            .into();
        let waits_for = |n, m| nearest(&queue, (n, m)).map(|t| t.number);
        assert_eq!(waits_for(1, S), None);
        assert_eq!(waits_for(2, X), Some(1));
        assert_eq!(waits_for(3, S), Some(2));
        assert_eq!(waits_for(5, S), Some(2));
        assert_eq!(waits_for(5, X), Some(4));
    }
}
