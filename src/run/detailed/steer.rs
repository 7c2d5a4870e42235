//! Leading packets where a way forks.
//!
//! Which of several next hops the real router takes is not known, so each is measured: neighbour
//! entries lead all of those over one interface to one router at a time. Next hops over several
//! interfaces cannot be chosen so: copies of all routers are measured by each of them (`rounds/replica.rs`).
//! Where that cannot be done, what becomes of the request alone is asked of a quick job.

use std::{net::IpAddr, sync::Arc};

use super::{
    DetailedJob,
    fork::{Choice, Junction, SpreadRoute},
    plan::{Planned, Planner},
    result::{ServiceResult, ServiceStatus},
    site::Stretch,
};
use crate::{
    config::Config,
    firewall::BackendChoice,
    lab::trace::{Entry, Onward},
    model::{Dscp, IfName, RouterId, RouterName},
    netlink::object::NextHop,
    registry::NeighbourKey,
    run::{
        quick::{self, DscpChoice, ExplainMode, QuickError, QuickJob},
        report::Verdict,
    },
};

/// Who may get what a router sends out of an interface.
struct Receivers {
    /// Routers of the lab, each once.
    routers: Vec<Entry>,
    /// Whether somebody else may, too.
    others: bool,
}

impl Planner<'_> {
    /// Who gets a packet to `destination` that a router sends out of `out`, where its route has these
    /// next hops and this one was looked up; none where that is no router.
    pub(super) fn behind(
        &self,
        (router, out): (&RouterName, &IfName),
        (hops, next_hop): (&[NextHop], IpAddr),
        destination: IpAddr,
        planned: &mut Planned,
    ) -> Option<Entry> {
        let several = hops.len() > 1;
        let by_devices = hops.iter().any(|hop| hop.dev.as_ref() != Some(out));
        let vias: Vec<IpAddr> = match several && !by_devices {
            true => hops.iter().map(|h| h.via.unwrap_or(destination)).collect(),
            false => vec![next_hop],
        };
        let Receivers {
            mut routers,
            others,
        } = self.receivers((router, out), &vias, destination);
        if several && by_devices {
            planned.spreads.push(SpreadRoute {
                router: router.clone(),
                to: destination,
                hops: hops.to_vec(),
            });
        } else if others && !routers.is_empty() {
            planned
                .forks
                .push(format!("{router} has several next hops"));
        } else if several && routers.len() < 2 {
            planned.settled.push((router.clone(), out.clone()));
        }
        if others || routers.len() < 2 {
            routers.truncate(1);
            return routers.pop();
        }
        let fork = Junction {
            router: router.clone(),
            out: out.clone(),
            to: routers,
        };
        self.chosen(fork, vias, planned)
    }

    fn receivers(
        &self,
        (router, out): (&RouterName, &IfName),
        vias: &[IpAddr],
        destination: IpAddr,
    ) -> Receivers {
        let mut found = Receivers {
            routers: Vec::new(),
            others: false,
        };
        let may_pass = |entry: &Entry| {
            let scope = self.scope.as_ref();
            scope.is_none_or(|routers| routers.contains(&entry.router))
        };
        for via in vias {
            let onward = self.map.wiring.onward(router, out, *via, destination);
            let Onward::Routers(entries) = onward else {
                found.others = true;
                continue;
            };
            for entry in entries.into_iter().filter(may_pass) {
                if !found.routers.contains(&entry) {
                    found.routers.push(entry);
                }
            }
        }
        found
    }

    /// The router of a fork that was chosen, and how all next hops lead there; the first one where
    /// none was.
    fn chosen(&self, fork: Junction, vias: Vec<IpAddr>, planned: &mut Planned) -> Option<Entry> {
        let is_here = |choice: &&Choice| {
            (&choice.router, &choice.out) == (&fork.router, &fork.out)
                && fork.to.contains(&choice.to)
        };
        let Some(chosen) = self.choices.iter().find(is_here) else {
            let first = fork.to.first().cloned();
            planned.open.push(fork);
            return first;
        };
        let mac = chosen.to.iface_in.as_ref();
        let mac = mac.and_then(|interface| self.map.mac(&chosen.to.router, interface));
        planned
            .steered
            .extend(vias.into_iter().filter_map(|address| {
                let key = NeighbourKey {
                    router: RouterId::new(self.lab.clone(), fork.router.clone()),
                    interface: fork.out.clone(),
                    address,
                };
                Some((key, mac?))
            }));
        planned.settled.push((fork.router, fork.out));
        Some(chosen.to.clone())
    }
}

impl Stretch {
    /// Takes over where a planned way forks, and how it is led.
    pub(super) fn lead(&mut self, planned: &Planned) {
        for (key, mac) in &planned.steered {
            if !self.learned.iter().any(|(known, _)| known == key) {
                self.learned.push((key.clone(), *mac));
            }
        }
        self.settled.extend(planned.settled.iter().cloned());
        let open = planned.open.iter().map(Junction::text);
        self.open.extend(open);
    }

    /// Takes over what shows of a way that nobody had planned before.
    pub(super) fn discover(&mut self, planned: &Planned) {
        self.lead(planned);
        self.open.extend(planned.forks.iter().cloned());
        for spread in &planned.spreads {
            self.discover_spread(spread);
        }
    }

    pub(super) fn discover_spread(&mut self, spread: &SpreadRoute) {
        if !self.spreads.iter().any(|known| known.is_same(spread)) {
            self.spreads.push(spread.clone());
        }
    }
}

/// Asks a quick job about the services at these places, whose requests or answers may take any of
/// several interfaces. A request that is stopped on each of its ways gets no answer on any.
pub(super) fn ask_copies(
    job: &DetailedJob,
    config: &Config,
    services: &mut [ServiceResult],
    forked: &[usize],
) -> Result<(), QuickError> {
    let asked = forked.iter().filter_map(|at| job.services.get(*at));
    let asked = QuickJob {
        lab: job.lab.clone(),
        source: job.source,
        destination: job.destination,
        services: asked.copied().collect(),
        routers: job.routers.clone(),
        from: job.from.clone(),
        dscp: DscpChoice::Auto,
        run_id: quick::new_run_id()?,
        probe_dscp: Dscp::DEFAULT,
        size: job.size,
        source_port: job.source_port,
        lock_timeout: job.lock_timeout,
        explain: ExplainMode::Auto,
        backend: BackendChoice::default(),
        trust_facts: job.trust_facts,
        use_registry: true,
        progress: None,
        pass_on: None,
    };
    let report = quick::run(&asked, config)?.report;
    for found in report.end_to_end {
        let mut all = services.iter_mut();
        let Some(service) = all.find(|service| service.service == found.service()) else {
            continue;
        };
        let end = &mut service.end;
        let why = found.reason.as_ref().map(Arc::to_string);
        match found.result {
            Verdict::No => {
                end.result = Verdict::No;
                end.status = ServiceStatus::Timeout;
                end.kind = found.end;
                end.router = found.router;
                end.reason = why;
            }
            Verdict::Unknown => end.reason = why.or(end.reason.take()),
            Verdict::Yes => {
                let measured = end.reason.take().unwrap_or_default();
                let text =
                    "the request gets through by each, and which way the answer takes is open";
                end.reason = Some(format!("{measured}; {text}"));
            }
        }
    }
    Ok(())
}
