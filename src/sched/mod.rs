//! The scheduler: a queue of files, a pure policy, an event loop that runs the runners, and the
//! viewer.
//!
//! | file | what it does |
//! |---|---|
//! | [`job`] | jobs as submitted, queued, running, finished; checked at the door |
//! | [`policy`] | what to do next, as pure code |
//! | [`spool`] | the files: layout, locking, atomic change |
//! | [`queue`] | submit, take, requeue, cancel |
//! | [`history`] | finished jobs and their index |

pub mod history;
pub mod job;
pub mod policy;
pub mod queue;
pub mod spool;
