//! From findings and reasons to the answer.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Answered, QuickJob,
    plan::{Answer, Measurement, Plan},
};
use crate::{
    firewall::rule::{Field, Packet, State},
    lab::omission::{Course, Outcome},
    model::{Dscp, Service},
    netlink::object::Family,
    run::{
        omitted::Seen,
        probe::Catalogue,
        report::{QuickReport, RouterReport, ServiceReport, Timing, Verdict},
        resolve::Part,
        verdict::Finding,
        way,
    },
};

/// Puts the answer together.
pub(super) fn assemble(
    job: &QuickJob,
    dscp: Dscp,
    parts: &[Part],
    plan: &Plan,
    answers: Vec<Answer>,
    mut timing: Timing,
) -> Answered {
    let mut routers = Vec::new();
    let mut warnings = Vec::new();
    let mut closing = Vec::new();
    for (part, answer) in parts.iter().zip(answers) {
        warnings.extend(about(job, part));
        match answer {
            Answer::Unmeasured(why) => routers.push(unmeasured(job, part, &why)),
            Answer::Measured(measurement) => {
                timing.add(&measurement.spent);
                let name = &part.way.router.router;
                warnings.extend(measurement.doubts.iter().map(|d| format!("{name}: {d}")));
                if !measurement.owned {
                    warnings.push(format!(
                        "{name}: taps of this back end stay in the router if the job is killed, \
                         until the next job or `tsim reconcile` sweeps them"
                    ));
                }
                routers.push(measured(job, part, &plan.catalogue, &measurement));
                closing.extend(measurement.closing);
            }
        }
    }
    if !job.use_registry {
        warnings.push(ALONE.to_owned());
    }
    let report = QuickReport {
        source: job.source,
        destination: job.destination,
        dscp,
        run_id: job.run_id.clone(),
        backend: plan.backend.to_string(),
        routers,
        warnings,
        timing_ms: timing,
    };
    Answered { report, closing }
}

const ALONE: &str = "--no-registry: no leases and locks were taken; a job that ran at the same \
                     time may have removed a source host or measured these probes";

/// What a reader should know about a router before any probe.
fn about(job: &QuickJob, part: &Part) -> Vec<String> {
    let name = &part.way.router.router;
    let mut warnings = Vec::new();
    if !part.omitted.is_empty() {
        warnings.push(format!(
            "{name} lacks something of its facts; see `tsim lab status {}`",
            job.lab
        ));
    }
    if !part.way.by_port.is_empty() {
        let others: BTreeSet<String> = part
            .way
            .by_port
            .iter()
            .map(|(_, lookup)| {
                lookup
                    .dev
                    .as_ref()
                    .map_or("nowhere".to_owned(), ToString::to_string)
            })
            .collect();
        let count = part.way.by_port.len();
        let others: Vec<String> = others.into_iter().collect();
        warnings.push(format!(
            "{name}: policy rules send {count} of the services another way than the first: {}",
            others.join(", ")
        ));
    }
    warnings
}

/// Says why no probe could be sent at all.
fn unmeasured(job: &QuickJob, part: &Part, why: &str) -> RouterReport {
    let service = |service: &Service| ServiceReport {
        port: service.port,
        protocol: service.protocol,
        result: Verdict::Unknown,
        reason: Some(why.to_owned()),
    };
    frame(part, job.services.iter().map(service).collect())
}

/// One router's answers in the order asked for.
fn measured(
    job: &QuickJob,
    part: &Part,
    catalogue: &Catalogue,
    answer: &Measurement,
) -> RouterReport {
    let one = |(service, index): (&Service, &u32)| {
        let (result, reason) = conclude(part, *index, answer);
        let seen = seen(job, part, service, answer.findings.get(index));
        let (result, reason) = part.omitted.weigh(result, reason, &seen);
        ServiceReport {
            port: service.port,
            protocol: service.protocol,
            result,
            reason,
        }
    };
    frame(
        part,
        job.services
            .iter()
            .zip(catalogue.in_order_asked())
            .map(one)
            .collect(),
    )
}

fn frame(part: &Part, services: Vec<ServiceReport>) -> RouterReport {
    RouterReport {
        name: part.way.router.router.clone(),
        iface_in: part.way.iface_in.clone(),
        iface_out: part.way.iface_out().cloned(),
        next_hop: part.way.next_hop(),
        services,
    }
}

fn conclude(part: &Part, index: u32, answer: &Measurement) -> (Verdict, Option<String>) {
    let Some(finding) = answer.findings.get(&index) else {
        return (Verdict::Unknown, Some("it was not measured".to_owned()));
    };
    let (verdict, reason) = match (finding, answer.reasons.get(&index)) {
        (Finding::Stopped, Some((verdict, reason))) => (*verdict, Some(reason.clone())),
        (Finding::Stopped, None) => (Verdict::No, Some(stopped(part))),
        (Finding::Passed, reason) => match reason {
            Some((verdict, reason)) => (*verdict, Some(reason.clone())),
            None => (Verdict::Yes, None),
        },
        (Finding::Delivered, found) => {
            let reason = "the destination is the router itself; judged at the end of INPUT";
            match found {
                Some((verdict, why)) => (*verdict, Some(format!("{reason}; {why}"))),
                None => (Verdict::Yes, Some(reason.to_owned())),
            }
        }
        (Finding::Diverted, _) => {
            let reason = "it ends on the router itself (redirected by NAT or TPROXY)";
            (Verdict::No, Some(reason.to_owned()))
        }
        (Finding::NotArrived, Some((verdict, reason))) => (*verdict, Some(reason.clone())),
        (Finding::NotArrived, None) => (
            Verdict::Unknown,
            Some("the probe did not reach the router's PREROUTING".to_owned()),
        ),
        (Finding::NotSent(reason), _) => (Verdict::Unknown, Some(reason.clone())),
        (Finding::Undecided(reason), _) => (Verdict::Unknown, Some(reason.clone())),
        (Finding::Unclear, _) => (
            Verdict::Unknown,
            Some("probes were lost before the router".to_owned()),
        ),
    };
    (verdict, reason)
}

/// What is known of a service's packet at the router.
fn seen(job: &QuickJob, part: &Part, service: &Service, finding: Option<&Finding>) -> Seen {
    let (course, outcome) = match finding {
        Some(Finding::Passed) => (Some(Course::Forwarded), Outcome::Passed),
        Some(Finding::Delivered | Finding::Diverted) => (Some(Course::Delivered), Outcome::Passed),
        _ => (None, Outcome::Stopped(None)),
    };
    let mut packet = Packet::of(Family::of(job.destination))
        .with(Field::Protocol, service.protocol.number())
        .with(Field::DestinationPort, service.port)
        .with_address(Field::Source, job.source)
        .with_address(Field::Destination, job.destination)
        .with_state(State::New)
        .with_state(State::Untracked);
    if let Some(iif) = &part.way.iface_in {
        packet = packet.with_device(Field::Incoming, iif.as_str());
    }
    // Policy rules may send it another way than the first service.
    let oif = part.way.iface_out();
    if let Some(oif) = oif.filter(|_| part.way.by_port.is_empty()) {
        packet = packet.with_device(Field::Outgoing, oif.as_str());
    }
    Seen {
        packet,
        course,
        outcome,
        behind_nat: false,
    }
}

/// What the router's routes say about a probe that came in and did not come out.
fn stopped(part: &Part) -> String {
    way::nowhere(&part.way.onward)
        .unwrap_or_else(|| "it came in and did not come out: stopped by the router".to_owned())
}

impl Timing {
    /// Adds what one router took. Routers are measured side by side, so the sum may exceed the
    /// total.
    fn add(&mut self, spent: &super::measure::Spent) {
        for (sum, part) in [
            (&mut self.install, spent.install),
            (&mut self.probe, spent.probe),
            (&mut self.read, spent.read),
            (&mut self.explain, spent.explain),
            (&mut self.undo, spent.undo),
        ] {
            *sum = super::millis(Duration::from_secs_f64(*sum / 1e3) + part);
        }
    }
}
