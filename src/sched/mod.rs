//! The scheduler: a queue of files, a pure policy, an event loop that runs the runners, and the
//! viewer.
//!
//! | file | what it does |
//! |---|---|
//! | [`job`] | jobs as submitted, queued, running, finished; checked at the door |
//! | [`options`] | what a job may be told beside its question |
//! | [`admission`] | what a job is held against before it may wait |
//! | [`policy`] | what to do next, as pure code |
//! | [`spool`] | the files: layout, locking, atomic change |
//! | `list` | the two lists of jobs as files, and as they were seen last |
//! | [`queue`] | submit, take, requeue, cancel |
//! | [`history`] | finished jobs and their index |
//! | [`leader`] | one scheduler at a time |
//! | [`runner`] | runner processes: start, find again, signal, reap |
//! | [`nursery`] | a process that forks runners of quick jobs |
//! | `line` | messages to such a process, and to the one at the [`door`] |
//! | [`progress`] | what a running job says of itself |
//! | [`outcome`] | how a job ended |
//! | [`answer`] | a result as people are shown it: from end to end, then by page |
//! | [`resources`] | DSCP values and reconcile, as the scheduler needs them |
//! | [`events`] | the loop: everything seen becomes an event, every action is carried out |
//! | `crew`, `watch` | the loop's hands and eyes: runners, inotify |
//! | [`daemon`], [`notify`] | the process around the loop |
//! | [`door`] | the unix socket, and who comes by it |
//! | [`client`] | the command line as a client of a scheduler that runs |
//! | [`stand`] | where a job stands, told until it is over |
//! | [`board`] | what viewers see, and the stream of changes |
//! | [`metrics`] | counters for Prometheus |

pub mod admission;
pub mod answer;
pub mod board;
pub mod client;
mod crew;
pub mod daemon;
pub mod door;
pub mod events;
pub mod history;
pub mod job;
pub mod leader;
mod line;
mod list;
pub mod metrics;
pub mod notify;
pub mod nursery;
pub mod options;
pub mod outcome;
pub mod policy;
pub mod progress;
pub mod queue;
mod refused;
pub mod resources;
pub mod runner;
pub mod spool;
pub mod stand;
mod watch;
pub mod web;
