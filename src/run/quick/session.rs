//! What a job takes from others while it runs, and gives back: source hosts with their leases, and
//! shared router locks. In the registry, or, standalone, hosts only.

use std::time::{Duration, Instant};

use super::{QuickError, grant::Grant};
use crate::{
    lab::hosts::LabHosts,
    model::{Dscp, RouterId},
    registry::{Holding, HostKernel, HostSpec, RegistryError, Wait},
    run::{caretaker::Caretaker, undo::UndoError},
};

/// What a job needs while it works.
pub(super) struct JobNeeds<'a> {
    pub(super) hosts: &'a [&'a HostSpec],
    pub(super) routers: &'a [RouterId],
    /// How long to wait for others.
    pub(super) wait: Wait,
}

/// What makes and removes hosts, and what removes what dead jobs left.
pub(super) struct Hands<'a> {
    pub(super) hosts: &'a mut LabHosts,
    pub(super) caretaker: &'a mut Caretaker,
}

/// What became of a job's work, and of giving everything back.
pub(super) struct WorkOutcome<T> {
    pub(super) result: Result<T, QuickError>,
    pub(super) left: Vec<UndoError>,
    /// What of dead jobs could not be removed, in words.
    pub(super) kept: Vec<String>,
    pub(super) hosts: Duration,
    pub(super) lock: Duration,
    pub(super) undo: Duration,
}

impl Grant {
    /// Makes and leases the hosts and locks the routers that are needed, runs `work` with the job's
    /// DSCP value and the lab's hosts, and gives everything back in reverse, whatever happened; the value only if
    /// the job does not `go_on` after such a result.
    pub(super) fn run<T>(
        &mut self,
        needs: &JobNeeds<'_>,
        hands: Hands<'_>,
        work: impl FnOnce(Dscp, &mut LabHosts) -> Result<T, QuickError>,
        go_on: impl FnOnce(&Result<T, QuickError>) -> bool,
    ) -> WorkOutcome<T> {
        match self {
            Self::Registered(holding) => registered(holding, needs, hands, work, go_on),
            Self::Alone(dscp) => {
                let dscp = *dscp;
                alone(needs.hosts, hands.hosts, |hosts| work(dscp, hosts))
            }
        }
    }
}

fn registered<T>(
    holding: &mut Holding,
    needs: &JobNeeds<'_>,
    hands: Hands<'_>,
    work: impl FnOnce(Dscp, &mut LabHosts) -> Result<T, QuickError>,
    go_on: impl FnOnce(&Result<T, QuickError>) -> bool,
) -> WorkOutcome<T> {
    let mut clock = Clock::start();
    let Hands { hosts, caretaker } = hands;
    let mut kept = Vec::new();
    let what = (needs.hosts, needs.routers);
    let begun = holding.begin(what, hosts, (caretaker, &mut kept), &needs.wait);
    let taken = clock.lap();
    let locking = holding.locking();
    let (result, left) = match begun {
        Ok((locked, dscp)) => {
            let result = work(dscp, hosts);
            clock.lap();
            let last = !go_on(&result);
            let failed = holding.end(locked, hosts, &needs.wait, last);
            (result, failed.into_iter().map(not_given_back).collect())
        }
        Err(error) => (Err(error.into()), Vec::new()),
    };
    WorkOutcome {
        result,
        left,
        kept,
        hosts: taken.saturating_sub(locking),
        lock: locking,
        undo: clock.lap(),
    }
}

fn not_given_back(error: RegistryError) -> UndoError {
    UndoError {
        what: "source hosts, their leases and the DSCP value".to_owned(),
        source: error.into(),
    }
}

fn alone<T>(
    plans: &[&HostSpec],
    kernel: &mut LabHosts,
    work: impl FnOnce(&mut LabHosts) -> Result<T, QuickError>,
) -> WorkOutcome<T> {
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
        None => work(kernel),
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
    WorkOutcome {
        result,
        left,
        kept: Vec::new(),
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
