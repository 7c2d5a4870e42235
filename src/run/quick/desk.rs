//! The desk: what a job holds from its first question to its last, and a burst of questions asked with
//! it.
//!
//! A quick job asks one burst, of one pair of addresses; a [sweep](super::sweep) asks burst after burst
//! of many. Locks and leases are taken and given back per burst.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    Pair, QuickError, Terms,
    grant::Grant,
    inquiry::{Inquiry, Prepared},
    log, millis,
    plan::Plan,
    rounds::{InquiryOutcome, Through},
    session::{Hands, JobNeeds, WorkOutcome},
    visited::Ending,
};
use crate::{
    config::Config,
    firewall::backend::Backend,
    lab::{
        Bridges, Lab,
        hosts::{HostState, LabHosts},
        trace::{Entry, Wiring},
    },
    model::{Dscp, RouterId, RouterName},
    netns::NetnsDir,
    registry::{RegistryError, Wait},
    run::{
        caretaker::Caretaker, interrupt::Interrupt, left, report::Timing, resolve::ResolveError,
        undo::UndoError,
    },
};

/// What a job holds from its first question to its last.
pub(super) struct Desk<'a> {
    pub(super) terms: Terms,
    config: &'a Config,
    pub(super) grant: Grant,
    pub(super) interrupt: Interrupt,
}

/// How a burst stands to its questions.
pub(super) enum Lone<'w> {
    /// It is one pair: its source hosts are made where there are none, and a source that enters
    /// nowhere is an error.
    Quick,
    /// It is one of many: the hidden sender sends where there is no host, and a source that enters
    /// nowhere is the answer to its own questions only. The routers to be asked are told before.
    Sweep(Watching<'w>),
}

/// Told which routers are to be asked, when they are locked.
pub(super) type Watching<'w> =
    &'w mut dyn FnMut(&BTreeSet<RouterName>, &Lab, &NetnsDir) -> Result<(), QuickError>;

/// Who is told of the routers to be asked, and of the phase.
type Tell<'t, 'w> = (&'t mut Lone<'w>, &'t mut dyn FnMut(&str));

/// What came of a burst.
pub(super) struct Burst {
    /// The DSCP value that the job holds.
    pub(super) dscp: Dscp,
    pub(super) plan: Plan,
    /// For each pair, how all its services end where no router had to be asked.
    pub(super) settled: Vec<Option<Ending>>,
    /// What was measured; none where nothing had to be.
    pub(super) through: Option<Through>,
    /// What dead jobs left and could not be removed.
    pub(super) kept: Vec<String>,
    /// What could not be undone.
    pub(super) left: Vec<UndoError>,
    pub(super) timing: Timing,
    /// How long routers were held to be asked.
    pub(super) held: Duration,
    /// The sockets in the lab, which are only to be closed.
    pub(super) sockets: Option<LabHosts>,
}

impl<'a> Desk<'a> {
    /// Opens the registry. Nothing is taken yet, and for a lab that is not there this is not called.
    pub(super) fn open(terms: Terms, config: &'a Config) -> Result<Self, QuickError> {
        let interrupt = Interrupt::current().map_err(|source| QuickError::System {
            what: "learn of signals",
            source,
        })?;
        let (of, run_id) = (config.clone(), terms.run_id.clone());
        interrupt.at_stop(move || left::of_run(&of, &run_id));
        let grant = Grant::open(&terms, config)?;
        Ok(Self {
            terms,
            config,
            grant,
            interrupt,
        })
    }

    /// Gives the DSCP value back. What it was held by is returned, and only to be closed.
    pub(super) fn close(mut self) -> (Option<UndoError>, Grant) {
        let failed = self.grant.give_back();
        (failed, self.grant)
    }

    /// Asks all services of all `pairs`, which are of one family.
    pub(super) fn burst(
        &mut self,
        lab: &Lab,
        pairs: &[Pair],
        lone: Lone<'_>,
        enter: &mut dyn FnMut(&str),
    ) -> Result<Burst, QuickError> {
        let started = Instant::now();
        let terms = &self.terms;
        let dir = NetnsDir::default().patient(terms.lock_timeout);
        let wiring = Wiring::from(&**lab);
        let bridges = Bridges::of(lab);
        let inquiry = Inquiry {
            terms,
            pairs,
            lab,
            dir: &dir,
            wiring: &wiring,
            bridges: &bridges,
            many: matches!(lone, Lone::Sweep(_)),
        };
        let mut kernel = LabHosts::new(&dir);
        let plan = Plan::new(terms, pairs, lab, (self.config, &self.grant))?.of_many(inquiry.many);
        let mut burst = Burst::new(plan);
        let hosts = kernel.lab(&terms.lab).map_err(ResolveError::from)?;
        hosts.routers().know(lab);
        let there = hosts.list().map_err(ResolveError::from)?;
        let begun = inquiry.begin_all(hosts.routers(), &there, &burst.plan)?;
        let (starts, settled): (Vec<_>, Vec<_>) = begun.into_iter().unzip();
        burst.settled = settled;
        if burst.settled.iter().all(Option::is_some) {
            burst.timing.resolve = millis(started.elapsed());
            burst.dscp = self.grant.dscp()?;
            return Ok(burst);
        }
        let round = Round {
            inquiry: &inquiry,
            starts: &starts,
            config: self.config,
            interrupt: &self.interrupt,
            started,
        };
        let hands = (&mut self.grant, &mut kernel);
        let mut burst = round.until_through(hands, &there, burst, (lone, enter))?;
        burst.sockets = Some(kernel);
        Ok(burst)
    }
}

impl Burst {
    /// Nothing was asked yet.
    fn new(plan: Plan) -> Self {
        Self {
            dscp: Dscp::DEFAULT,
            plan,
            settled: Vec::new(),
            through: None,
            kept: Vec::new(),
            left: Vec::new(),
            timing: Timing::default(),
            held: Duration::ZERO,
            sockets: None,
        }
    }
}

/// What the questions of a burst are asked with, again where a way leaves the locked routers.
struct Round<'r> {
    inquiry: &'r Inquiry<'r>,
    starts: &'r [Vec<Entry>],
    config: &'r Config,
    interrupt: &'r Interrupt,
    /// When the burst began.
    started: Instant,
}

impl Round<'_> {
    /// Asks until no way leads to a router that is not locked.
    fn until_through(
        &self,
        (grant, kernel): (&mut Grant, &mut LabHosts),
        there: &[HostState],
        mut burst: Burst,
        (mut lone, enter): (Lone<'_>, &mut dyn FnMut(&str)),
    ) -> Result<Burst, QuickError> {
        let mut larger = BTreeSet::new();
        let mut with_hosts = true;
        loop {
            let there = with_hosts.then_some(there);
            let (grant, kernel) = (&mut *grant, &mut *kernel);
            let tell: Tell<'_, '_> = (&mut lone, &mut *enter);
            let outcome = self.ask((grant, kernel), (there, &larger), &mut burst, tell)?;
            match outcome.result {
                Ok(InquiryOutcome::Through(through)) => {
                    burst.dscp = burst.plan.dscp();
                    burst.through = Some(through);
                    burst.kept = outcome.kept;
                    burst.left = outcome.left;
                    return Ok(burst);
                }
                Ok(InquiryOutcome::Larger(more)) => {
                    log(&outcome.left);
                    larger.extend(more);
                }
                // Another job has a host with this address at another interface of the router.
                Err(QuickError::Registry(RegistryError::Collision { .. })) if with_hosts => {
                    log(&outcome.left);
                    with_hosts = false;
                }
                Err(error) => {
                    log(&outcome.left);
                    return Err(error);
                }
            }
        }
    }

    /// Takes what is needed, asks, and gives it back. Without the hosts that are `there` the hidden
    /// sender sends in their place.
    fn ask(
        &self,
        (grant, kernel): (&mut Grant, &mut LabHosts),
        (there, larger): (Option<&[HostState]>, &BTreeSet<RouterName>),
        burst: &mut Burst,
        (lone, enter): Tell<'_, '_>,
    ) -> Result<WorkOutcome<InquiryOutcome>, QuickError> {
        let Inquiry {
            terms,
            dir,
            lab,
            many,
            ..
        } = *self.inquiry;
        let hosts = kernel.lab(&terms.lab).map_err(ResolveError::from)?;
        let mut prepared = self
            .inquiry
            .prepare(hosts, there, self.starts, &burst.plan)?;
        prepared.routers.extend(larger.iter().cloned());
        let first = prepared.visits.first().map(|visit| &visit.netns);
        burst.plan.choose(terms.backend, first)?;
        let resolve = millis(self.started.elapsed());
        enter("waiting");
        let mut caretaker = caretaker(dir, self.config, burst.plan.backend);
        let specs = prepared.hosts.clone();
        let needs = JobNeeds {
            hosts: &specs.iter().collect::<Vec<_>>(),
            routers: &ids(terms, &prepared),
            wait: Wait::at_most(terms.lock_timeout).or_until(self.interrupt.cancel().clone()),
        };
        let hands = Hands {
            hosts: kernel,
            caretaker: &mut caretaker,
        };
        let (plan, held) = (&mut burst.plan, &mut burst.held);
        let work = |dscp, hosts: &mut LabHosts| {
            // Routers that were waited for may have been made anew.
            lab.check_unchanged(self.config)?;
            enter("probing");
            plan.mark_with(dscp);
            let begin = Instant::now();
            if let Lone::Sweep(watch) = lone {
                watch(&prepared.routers, lab, dir)?;
            }
            let go_on = || stop_if(self.interrupt);
            let hosts = hosts.lab(&terms.lab).map_err(ResolveError::from)?;
            let asked = self.inquiry.ask(plan, prepared, hosts.routers(), &go_on)?;
            go_on()?;
            *held += begin.elapsed();
            Ok(asked)
        };
        // A sweep keeps its DSCP value from burst to burst.
        let outcome = grant.run(&needs, hands, work, |result| {
            many || matches!(result, Ok(InquiryOutcome::Larger(_)))
        });
        enter("undoing");
        burst.timing = undone(resolve, &outcome);
        Ok(outcome)
    }
}

fn caretaker(dir: &NetnsDir, config: &Config, backend: Backend) -> Caretaker {
    let caretaker = Caretaker::new(dir, config);
    match backend {
        Backend::Nft => caretaker.leaving_taps(),
        _ => caretaker,
    }
}

/// The routers to be locked.
fn ids(terms: &Terms, prepared: &Prepared) -> Vec<RouterId> {
    let id = |router: &RouterName| RouterId::new(terms.lab.clone(), router.clone());
    prepared.routers.iter().map(id).collect()
}

fn undone<T>(resolve: f64, outcome: &WorkOutcome<T>) -> Timing {
    Timing {
        resolve,
        hosts: millis(outcome.hosts),
        lock: millis(outcome.lock),
        undo: millis(outcome.undo),
        ..Timing::default()
    }
}

fn stop_if(interrupt: &Interrupt) -> Result<(), QuickError> {
    if interrupt.is_set() {
        Err(QuickError::Interrupted)
    } else {
        Ok(())
    }
}
