//! The registry: who uses what, safe across threads, processes and crashes.
//!
//! [`RegistryManager`] is the entry point; a job takes what it needs through a [`Job`]:
//!
//! ```text
//! let registry = RegistryManager::open(&config)?;
//! let mut job = registry.job(JobInfo { run_id, job_type: JobType::Quick, dscp });
//! job.ensure_host_and_lease(&spec, &mut kernel, &wait)?;                 // Job<Unlocked>
//! let mut job = job.all_router_locks(&routers, Mode::Shared, &wait)?;    // Job<Locked>
//! job.acquire_neighbor_lease(&key, mac, &mut kernel)?;
//! // … measure …
//! job.release_neighbor_lease(&key, &mut kernel)?;
//! let mut job = job.unlock();                                            // Job<Unlocked>
//! job.release_and_remove(&host, &mut kernel, &wait)?;
//! ```
//!
//! A quick job takes all that at once, and gives it back at once: [`Holding`].
//!
//! # On disk
//!
//! ```text
//! /run/tsim/                  0700, of who runs jobs; never world-writable, never a symlink
//! ├── hosts.json              {"LAB@HOST": {...}}
//! ├── host_leases.json        {"LAB@HOST": {"router": "LAB.ROUTER", "leases": [...]}}
//! ├── neighbor_leases.json    {"LAB.ROUTER|IFACE|IP": {..., "leases": [...]}}
//! ├── dscp_registry.json      {"allocations": {"RUN-ID": {...}}}
//! ├── *.json.bak              the same, written right after its original was replaced; not on a tmpfs
//! ├── *.json.tmp              left by a crash; never read, replaced by the next write
//! ├── *.json.corrupt-TIME     set aside because it could not be read as JSON
//! ├── transactions.jsonl      one line per change; .1 is the older one, see [`log`]
//! └── locks/
//!     ├── hosts host_leases neighbor_leases dscp transactions     flock(2), held for one change
//!     ├── LAB.ROUTER/         queue of jobs for a router, see [`queue`]
//!     ├── LAB@HOST/           queue of jobs that make or remove a host
//!     └── taps/               notes of taps that outlive a killed job, see [`taps`]
//! ```
//!
//! A file is replaced as a whole: written beside, fsync, rename, fsync of the directory. A reader
//! sees the old or the new content, whenever the writer dies. On a tmpfs, where nothing outlives the
//! kernel, nothing is synced and no copies are kept. What is assumed of the medium:
//! rename(2) replaces atomically, fsync(2) keeps its word, flock(2) and FIFOs work (tmpfs, ext4,
//! xfs, btrfs; not NFS). After a reboot every owner is gone, because its boot id differs; on a
//! tmpfs the files are gone too.
//!
//! # Order of locks
//!
//! host queue → hosts → host leases → router locks → neighbour leases. Another order does not
//! compile, see [`order`].

pub mod dscp;
pub mod error;
mod holding;
pub mod host;
mod job;
mod job_hosts;
mod job_neighbours;
pub mod kernel;
pub mod lease;
mod lock;
pub mod log;
mod manager;
pub mod medium;
mod mutex;
pub mod neighbour;
pub mod order;
pub mod queue;
pub mod reconcile;
#[cfg(test)]
mod state_model;
mod store;
mod table;
pub mod taps;
mod time;

pub use crate::wait::{Cancel, Wait};
pub use dscp::{DscpAllocation, DscpGrant};
pub use error::{Collided, RegistryError};
pub use holding::Holding;
pub use host::{HostRecord, HostSpec, ManagedBy};
pub use job::{Job, JobInfo, Locked, RefusedLocks, Unlocked};
pub use kernel::{HostKernel, KernelError, NeighbourKernel, TapKernel};
pub use lease::{HostLeases, JobType, Lease, Released};
pub use lock::{LockHolder, RouterLock};
pub use manager::RegistryManager;
pub use neighbour::{NeighbourKey, NeighbourLeases};
pub use queue::LockMode;
pub use reconcile::{ReconcileAction, ReconcileReport, ReconcileScope};
pub use store::Repair;
pub use taps::{NotedTraffic, TapNote};

pub use crate::model::owner::{self, Liveness, Owner};
