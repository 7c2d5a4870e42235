//! Empties routers before they are taken down: no job uses them, no host is left on them.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        inotify::{AddWatchFlags, InitFlags, Inotify},
    },
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{LabError, hosts::LabHosts, state::LabDir};
use crate::{
    config::Config,
    fault,
    model::{HostId, LabName, RouterId, RunId},
    netns::NetnsDir,
    registry::{
        Job, Lease, Liveness, LockMode, Locked, RegistryError, RegistryManager, Unlocked, Wait,
    },
    wait::Woken,
};

/// Routers that no job can use until this is dropped: all of them are locked.
#[derive(Debug)]
pub struct Vacated {
    /// The hosts that were removed.
    pub hosts: Vec<HostId>,
    locked: Option<Job<Locked>>,
}

impl Drop for Vacated {
    /// The log has it that they are free, as it has it that they were locked.
    fn drop(&mut self) {
        drop(self.locked.take().map(Job::unlock));
    }
}

/// Removes all registered hosts of lab `name` and locks its routers, waiting for jobs that hold
/// them as long as `wait` allows. A lab that is not there is vacant.
///
/// # Errors
/// [`LabError::InUse`] when jobs lease hosts of it, before anything is changed; otherwise
/// [`LabError::Registry`], and what is left can be tried again.
pub fn vacate(config: &Config, name: &LabName, wait: &Wait) -> Result<Vacated, LabError> {
    let registry = RegistryManager::open(config)?;
    let leases = leases(&registry, &|host, _| host.lab == *name)?;
    if !leases.is_empty() {
        return Err(LabError::InUse {
            lab: name.clone(),
            users: users(&leases),
        });
    }
    let operator = registry.operator()?;
    let registered = registry.hosts()?.into_iter().map(|(id, _)| id);
    let hosts: Vec<HostId> = registered.filter(|id| id.lab == *name).collect();
    let state = LabDir::new(config, name).state()?;
    let routers = state.iter().flat_map(|state| &state.routers);
    let routers: Vec<RouterId> = routers
        .map(|router| RouterId::new(name.clone(), router.name.clone()))
        .collect();
    empty(config, operator, (&routers, hosts), wait)
}

fn empty(
    config: &Config,
    mut operator: Job<Unlocked>,
    (routers, hosts): (&[RouterId], Vec<HostId>),
    wait: &Wait,
) -> Result<Vacated, LabError> {
    let mut kernel = LabHosts::new(&NetnsDir::default().patient(config.lock_timeout));
    for host in &hosts {
        match operator.remove_host(host, &mut kernel, wait) {
            // Its job has removed it meanwhile.
            Ok(_) | Err(RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let locked = operator.all_router_locks(routers, LockMode::Exclusive, wait);
    Ok(Vacated {
        hosts,
        locked: Some(locked.map_err(|refused| refused.error)?),
    })
}

/// The same for some `routers` of it, where jobs that lease hosts of these are waited for, too.
///
/// # Errors
/// [`LabError::InUse`] when they still do so in the end; [`LabError::Registry`]. Hosts that were
/// removed are gone then.
pub(super) fn vacate_routers(
    config: &Config,
    lab: &LabName,
    routers: &[RouterId],
    wait: &Wait,
) -> Result<Vacated, LabError> {
    let registry = RegistryManager::open(config)?;
    loop {
        // Before looking: what changes afterwards wakes.
        let watch = Watch::new(&config.registry_dir)?;
        let leases = leases(&registry, &|_, router| routers.contains(router))?;
        if leases.is_empty() {
            let registered = registry.hosts()?.into_iter();
            let mine = registered.filter(|(_, record)| routers.contains(&record.connected_to));
            let hosts = mine.map(|(id, _)| id).collect();
            match empty(config, registry.operator()?, (routers, hosts), wait) {
                Err(LabError::Registry(RegistryError::InUse { .. })) => continue,
                done => return done,
            }
        }
        if !watch.changes(&leases, wait)? {
            return Err(LabError::InUse {
                lab: lab.clone(),
                users: users(&leases),
            });
        }
    }
}

/// Leases that living jobs have of hosts which `are_meant`, by name and router.
fn leases(
    registry: &RegistryManager,
    are_meant: &dyn Fn(&HostId, &RouterId) -> bool,
) -> Result<Vec<Lease>, LabError> {
    let leased = registry.source_host_leases()?.into_iter();
    let meant = leased.filter(|(host, of)| are_meant(host, &of.router));
    let leases = meant.flat_map(|(_, leases)| leases.leases);
    Ok(leases
        .filter(|lease| lease.owner.liveness() != Liveness::Gone)
        .collect())
}

fn users(leases: &[Lease]) -> Vec<RunId> {
    let users: BTreeSet<RunId> = leases.iter().map(|lease| lease.run_id.clone()).collect();
    users.into_iter().collect()
}

/// Wakes when leases change.
struct Watch {
    files: Inotify,
    dir: PathBuf,
}

impl Watch {
    fn new(dir: &Path) -> Result<Self, LabError> {
        let watch = || {
            let files = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            // The registry's files are replaced by renaming.
            files.add_watch(dir, AddWatchFlags::IN_MOVED_TO)?;
            Ok(files)
        };
        Ok(Self {
            files: watch().map_err(|e: Errno| not_watched(dir, e.into()))?,
            dir: dir.to_owned(),
        })
    }

    /// Sleeps until files of the registry change, or one of those who hold `leases` ends; false when
    /// `wait` is over.
    fn changes(&self, leases: &[Lease], wait: &Wait) -> Result<bool, LabError> {
        let failed = |source| not_watched(&self.dir, source);
        fault::step("lab.await").map_err(failed)?;
        let pids = leases.iter().map(|lease| lease.owner.pid.cast_signed());
        // One that has ended meanwhile has no pidfd: then it is looked again.
        let owners: Option<Vec<OwnedFd>> = pids
            .map(|pid| pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok())
            .collect();
        let Some(owners) = owners else {
            return Ok(!wait.is_over());
        };
        let all = || {
            let all = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            for fd in owners.iter().map(AsFd::as_fd).chain([self.files.as_fd()]) {
                all.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            }
            Ok(all)
        };
        let all: Epoll = all().map_err(|e: Errno| failed(e.into()))?;
        let woken = wait.readable_or_say(all.0.as_fd(), || {
            let users = users(leases);
            let users: Vec<&str> = users.iter().map(RunId::as_str).collect();
            tracing::warn!("waiting for {}", users.join(", "));
        });
        Ok(woken.map_err(failed)? == Woken::Ready)
    }
}

fn not_watched(dir: &Path, source: io::Error) -> LabError {
    LabError::File {
        call: "watch",
        path: dir.to_owned(),
        source,
    }
}
