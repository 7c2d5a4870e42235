//! A job's way through the registry: first hosts and their leases, then router locks, then
//! neighbour leases; back in reverse.

use std::process;

use serde_json::json;

use crate::{
    model::{Dscp, NameError, RouterId, RunId},
    registry::{
        JobType, Lease, LockMode, RegistryError, RegistryManager, RouterLock, Wait,
        host::{ManagedBy, Registrant},
        log,
        order::{Nothing, Token},
        time,
    },
};

/// What the registry writes down about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInfo {
    /// Its name.
    pub run_id: RunId,
    /// Its kind.
    pub job_type: JobType,
    /// Its DSCP value; none for detailed jobs and operators.
    pub dscp: Option<Dscp>,
}

/// A job in one of two stages, [`Unlocked`] or [`Locked`].
///
/// Dropping a job frees its router locks. Leases stay until they are released, because that
/// concerns the kernel too; those of a process that ended are dropped by whoever comes next.
#[derive(Debug)]
pub struct Job<Stage> {
    pub(crate) registry: RegistryManager,
    pub(crate) info: JobInfo,
    pub(crate) token: Token<'static, Nothing>,
    stage: Stage,
}

/// The job holds no router: it may register, lease, release and remove hosts.
#[derive(Debug)]
pub struct Unlocked(());

/// The job holds routers: it may lease their neighbour entries.
#[derive(Debug)]
pub struct Locked {
    locks: Vec<RouterLock>,
}

/// Router locks were not had; the job is as it was before.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct RefusedLocks {
    /// The job, holding no router.
    pub job: Job<Unlocked>,
    /// Why.
    pub error: RegistryError,
}

impl From<RefusedLocks> for RegistryError {
    fn from(refused: RefusedLocks) -> Self {
        refused.error
    }
}

impl<Stage> Job<Stage> {
    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &RegistryManager {
        &self.registry
    }

    /// What the registry knows about the job.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn info(&self) -> &JobInfo {
        &self.info
    }

    pub(crate) fn lease(&self) -> Lease {
        let JobInfo {
            run_id,
            job_type,
            dscp,
        } = &self.info;
        Lease::new(run_id, self.registry.owner(), *job_type, *dscp, time::now())
    }

    pub(crate) fn registrant(&self, managed_by: ManagedBy) -> Registrant {
        Registrant {
            managed_by,
            run_id: self.info.run_id.clone(),
            owner: self.registry.owner().clone(),
        }
    }
}

impl Job<Unlocked> {
    pub(crate) fn new(registry: RegistryManager, info: JobInfo) -> Self {
        Self {
            registry,
            info,
            token: Token::new(),
            stage: Unlocked(()),
        }
    }

    /// Locks one router, see [`Self::all_router_locks`].
    ///
    /// # Errors
    /// As [`Self::all_router_locks`].
    #[cfg(feature = "internals")]
    pub fn router_lock(
        self,
        router: &RouterId,
        mode: LockMode,
        wait: &Wait,
    ) -> Result<Job<Locked>, Box<RefusedLocks>> {
        self.all_router_locks(std::slice::from_ref(router), mode, wait)
    }

    /// Locks all `routers` or none: in the order of their names, whatever order they are given
    /// in, waiting for all of them together as long as `wait` allows. Who waits holds back those
    /// who come later, see [`queue`](crate::registry::queue).
    ///
    /// Take the locks before opening sockets whose closing removes something from a router: when
    /// a process dies, the kernel closes what was opened later first.
    ///
    /// # Errors
    /// [`RefusedLocks`] gives the job back, with [`RegistryError::LockTimeout`],
    /// [`RegistryError::Cancelled`], or what was wrong with the lock's files.
    pub fn all_router_locks(
        self,
        routers: &[RouterId],
        mode: LockMode,
        wait: &Wait,
    ) -> Result<Job<Locked>, Box<RefusedLocks>> {
        let locked = self.lock_unrecorded(routers, mode, wait)?;
        locked.registry.record_all(locked.locked().as_slice());
        Ok(locked)
    }

    /// The same without a line in the log, for a caller who has more to write there.
    pub(crate) fn lock_unrecorded(
        self,
        routers: &[RouterId],
        mode: LockMode,
        wait: &Wait,
    ) -> Result<Job<Locked>, Box<RefusedLocks>> {
        match lock_all(&self.registry, &self.info.run_id, routers, mode, wait) {
            Ok(locks) => Ok(Job {
                registry: self.registry,
                info: self.info,
                token: self.token,
                stage: Locked { locks },
            }),
            Err(error) => Err(Box::new(RefusedLocks { job: self, error })),
        }
    }
}

impl Job<Locked> {
    /// The routers that are held, by name.
    #[must_use]
    pub fn locks(&self) -> &[RouterLock] {
        &self.stage.locks
    }

    /// Frees one router early; returns whether it was held.
    pub fn release_router(&mut self, router: &RouterId) -> bool {
        let held = self.stage.locks.iter().position(|l| l.router() == router);
        let Some(held) = held else { return false };
        drop(self.stage.locks.remove(held));
        let details = json!({"routers": [router]});
        let run_id = Some(&self.info.run_id);
        self.registry.record("router.unlock", run_id, details);
        true
    }

    /// What the log says of the locks that are held; none where none is.
    pub(crate) fn locked(&self) -> Option<log::LogEntry> {
        let mode = self.locks().first()?.mode();
        let details = json!({"mode": mode, "routers": self.names()});
        let run_id = Some(&self.info.run_id);
        Some(log::LogEntry::new("router.lock", run_id, details))
    }

    fn names(&self) -> Vec<&RouterId> {
        self.locks().iter().map(RouterLock::router).collect()
    }

    /// Frees all routers.
    #[must_use]
    pub fn unlock(self) -> Job<Unlocked> {
        let (job, entry) = self.unlock_unrecorded();
        job.registry.record_all(entry.as_slice());
        job
    }

    /// The same, and what the log is to say of it.
    pub(crate) fn unlock_unrecorded(self) -> (Job<Unlocked>, Option<log::LogEntry>) {
        let entry = (!self.locks().is_empty()).then(|| {
            let details = json!({"routers": self.names()});
            log::LogEntry::new("router.unlock", Some(&self.info.run_id), details)
        });
        // The last one taken is freed first.
        self.stage.locks.into_iter().rev().for_each(drop);
        let job = Job {
            registry: self.registry,
            info: self.info,
            token: self.token,
            stage: Unlocked(()),
        };
        (job, entry)
    }
}

fn lock_all(
    registry: &RegistryManager,
    run_id: &RunId,
    routers: &[RouterId],
    mode: LockMode,
    wait: &Wait,
) -> Result<Vec<RouterLock>, RegistryError> {
    let mut sorted: Vec<(String, &RouterId)> = routers.iter().map(|r| (r.to_string(), r)).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let lock = |(name, router): &(String, &RouterId)| {
        let lock = registry.enter_queue(name, mode, run_id, wait)?;
        Ok(RouterLock::new((*router).clone(), lock))
    };
    sorted.iter().map(lock).collect()
}

impl RegistryManager {
    /// The operator as the registry sees one: a job that lasts as long as the calling command.
    ///
    /// # Errors
    /// [`NameError`] never in practice: the job is named after process and time.
    pub fn operator(&self) -> Result<Job<Unlocked>, NameError> {
        let now = time::now().as_millisecond();
        Ok(self.job(JobInfo {
            run_id: RunId::new(format!("operator-{}-{now}", process::id()))?,
            job_type: JobType::Detailed,
            dscp: None,
        }))
    }
}
