//! What a job takes from others while it runs, and gives back: source hosts with their leases, and
//! shared router locks. In the registry, or, standalone, hosts only.

use std::time::{Duration, Instant};

use super::QuickError;
use crate::{
    lab::hosts::LabHosts,
    model::{HostId, RouterId},
    registry::{
        HostKernel, HostSpec, Job, JobInfo, Mode, RegistryError, RegistryManager, Unlocked, Wait,
    },
    run::undo::UndoError,
};

/// How a job stands to other jobs.
pub(super) enum Session {
    /// It takes leases and locks.
    Registered {
        /// The registry.
        registry: RegistryManager,
        /// The job as the registry knows it.
        info: JobInfo,
        /// How long to wait for others.
        wait: Wait,
    },
    /// It takes nothing from anybody and hopes that nobody else is there.
    Alone,
}

/// What became of a job's work, and of giving everything back.
pub(super) struct Outcome<T> {
    pub(super) result: Result<T, QuickError>,
    pub(super) left: Vec<UndoError>,
    pub(super) hosts: Duration,
    pub(super) lock: Duration,
    pub(super) undo: Duration,
}

impl Session {
    /// Makes and leases the hosts of `plans`, locks `routers`, runs `work`, and gives everything
    /// back in reverse, whatever happened.
    pub(super) fn run<T>(
        self,
        plans: &[&HostSpec],
        routers: &[RouterId],
        kernel: &mut LabHosts,
        work: impl FnOnce() -> Result<T, QuickError>,
    ) -> Outcome<T> {
        match self {
            Self::Registered {
                registry,
                info,
                wait,
            } => registered(registry.job(info), &wait, plans, routers, kernel, work),
            Self::Alone => alone(plans, kernel, work),
        }
    }
}

fn registered<T>(
    mut job: Job<Unlocked>,
    wait: &Wait,
    plans: &[&HostSpec],
    routers: &[RouterId],
    kernel: &mut LabHosts,
    work: impl FnOnce() -> Result<T, QuickError>,
) -> Outcome<T> {
    let mut clock = Clock::start();
    let hindered = job.ensure_hosts_and_lease(plans, kernel, wait).err();
    let made = clock.lap();
    let mut locked_after = Duration::ZERO;
    let leased = hindered.is_none();
    let result = match hindered {
        Some(error) => Err(error.into()),
        None => match job.all_router_locks(routers, Mode::Shared, wait) {
            Ok(locked) => {
                locked_after = clock.lap();
                let result = work();
                clock.lap();
                job = locked.unlock();
                result
            }
            Err(refused) => {
                job = refused.job;
                Err(refused.error.into())
            }
        },
    };
    let left = if leased {
        let hosts: Vec<&HostId> = plans.iter().map(|plan| &plan.id).collect();
        let failed = job.release_and_remove_all(&hosts, kernel, wait);
        failed.into_iter().map(not_given_back).collect()
    } else {
        Vec::new()
    };
    Outcome {
        result,
        left,
        hosts: made,
        lock: locked_after,
        undo: clock.lap(),
    }
}

fn not_given_back(error: RegistryError) -> UndoError {
    UndoError {
        what: "source hosts and their leases".to_owned(),
        source: error.into(),
    }
}

fn alone<T>(
    plans: &[&HostSpec],
    kernel: &mut LabHosts,
    work: impl FnOnce() -> Result<T, QuickError>,
) -> Outcome<T> {
    let mut clock = Clock::start();
    let mut made = Vec::new();
    let mut hindered = None;
    for plan in plans {
        match kernel.host_exists(&plan.id).and_then(|there| {
            if there {
                Ok(false)
            } else {
                kernel.create_host(plan).map(|()| true)
            }
        }) {
            Ok(true) => made.push(&plan.id),
            Ok(false) => {}
            Err(source) => {
                hindered = Some(QuickError::Host {
                    host: plan.id.to_string(),
                    source,
                });
                break;
            }
        }
    }
    let hosts_after = clock.lap();
    let result = match hindered {
        Some(error) => Err(error),
        None => work(),
    };
    clock.lap();
    let mut left = Vec::new();
    for host in made.into_iter().rev() {
        if let Err(source) = kernel.remove_host(host) {
            left.push(UndoError {
                what: format!("host {host}"),
                source,
            });
        }
    }
    Outcome {
        result,
        left,
        hosts: hosts_after,
        lock: Duration::ZERO,
        undo: clock.lap(),
    }
}

/// Time since the last lap.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}
