//! From what the taps saw to what may be said, as pure code.

use std::collections::BTreeMap;

use crate::{firewall::Reading, run::packet::position};

/// What one measurement on one router showed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed<'a> {
    /// Indexes of the services that were probed, in ascending order.
    pub probed: &'a [u32],
    /// Probes that the source host's kernel refused to send, with its reason.
    pub refused: &'a BTreeMap<u32, String>,
    /// What the taps saw.
    pub reading: &'a Reading,
}

/// What is known about one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It left the router.
    Passed,
    /// It reached the end of INPUT.
    Delivered,
    /// It came in and did not come out.
    Stopped,
    /// It never came in.
    NotArrived,
    /// The router itself could not send it.
    Refused,
    /// The source host could not send it.
    NotSent(String),
    /// It came to a place behind which the back end sees nothing; why that does not decide.
    Undecided(String),
    /// Not every probe came in, and it is not known which ones.
    Unclear,
}

impl Finding {
    /// Whether another measurement, one that notes arrivals, would say more.
    #[must_use]
    pub(crate) fn is_unclear(&self) -> bool {
        *self == Self::Unclear
    }
}

/// What is known about probes, by their indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Findings(Vec<(u32, Finding)>);

impl Findings {
    /// What is known about the probe with this index.
    #[must_use]
    pub(crate) fn get(&self, index: u32) -> Option<&Finding> {
        let at = position(&self.0, index, |(index, _)| *index)?;
        self.0.get(at).map(|(_, finding)| finding)
    }

    /// Says something else of a probe of which something is known.
    pub(crate) fn correct(&mut self, index: u32, finding: Finding) {
        let at = position(&self.0, index, |(index, _)| *index);
        if let Some((_, known)) = at.and_then(|at| self.0.get_mut(at)) {
            *known = finding;
        }
    }

    /// All, in ascending order of their indexes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Finding)> {
        self.0.iter().map(|(index, finding)| (*index, finding))
    }

    /// The indexes of probes with such findings.
    pub(crate) fn with(&self, is: impl Fn(&Finding) -> bool) -> Vec<u32> {
        let such = self.iter().filter(|(_, finding)| is(finding));
        such.map(|(index, _)| index).collect()
    }

    /// Takes over what another measurement of some of the probes found.
    pub(crate) fn take_over(&mut self, other: Self) {
        let mut clear = other.0.into_iter().peekable();
        for (index, finding) in &mut self.0 {
            if let Some((_, found)) = clear.next_if(|(again, _)| again == index) {
                *finding = found;
            }
        }
    }
}

/// Judges every probed service.
#[must_use]
pub(crate) fn judge(observed: &Observed<'_>) -> Findings {
    let Observed {
        probed,
        refused,
        reading,
        ..
    } = *observed;
    let sent = (probed.len() - refused.len()) as u64;
    let all_arrived = reading.packets_in >= sent;
    let undecided = |index| {
        let mut all = reading.undecided.iter();
        all.find(|undecided| undecided.services.contains(index))
    };
    let one = |&index: &u32| {
        let finding = if let Some(reason) = refused.get(&index) {
            Finding::NotSent(reason.clone())
        } else if reading.out.contains(index) {
            Finding::Passed
        } else if reading.local.contains(index) {
            Finding::Delivered
        } else if let Some(undecided) = undecided(index) {
            Finding::Undecided(undecided.reason.clone())
        } else {
            match &reading.arrived {
                Some(arrived) if arrived.contains(index) => Finding::Stopped,
                Some(_) => Finding::NotArrived,
                None if all_arrived => Finding::Stopped,
                None => Finding::Unclear,
            }
        };
        (index, finding)
    };
    Findings(probed.iter().map(one).collect())
}

/// What in a measurement does not add up, in words for the reader; empty when all does.
#[must_use]
pub(crate) fn doubts(observed: &Observed<'_>) -> Vec<String> {
    let Observed {
        probed,
        refused,
        reading,
        ..
    } = *observed;
    let sent = (probed.len() - refused.len()) as u64;
    let mut doubts = Vec::new();
    if reading.foreign > 0 {
        let count = reading.foreign;
        doubts.push(format!("{count} foreign packets carried this job's mark"));
    }
    if reading.packets_in > sent {
        let extra = reading.packets_in - sent;
        doubts.push(format!(
            "{extra} probes more came in than were sent: duplicated on the way"
        ));
    }
    // Undecided ones may have been counted on their way out.
    let undecided: usize = reading.undecided.iter().map(|u| u.services.len()).sum();
    let noted = (reading.out.len() + reading.foreign + undecided) as u64;
    if reading.packets_out > noted {
        let extra = reading.packets_out - noted;
        doubts.push(format!(
            "{extra} probes more went out than services: the router duplicates packets (TEE, dup)"
        ));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{Undecided, taps::Indexes};

    fn set(indexes: &[u32]) -> Indexes {
        let mut set = Indexes::new(8);
        for &index in indexes {
            set.insert(index);
        }
        set
    }

    fn findings(reading: &Reading) -> Vec<Finding> {
        let refused = BTreeMap::new();
        let probed = [0, 1, 2];
        let observed = Observed {
            probed: &probed,
            refused: &refused,
            reading,
        };
        let findings = judge(&observed);
        findings
            .iter()
            .map(|(_, finding)| finding.clone())
            .collect()
    }

    #[test]
    fn what_the_back_end_cannot_see_is_no_verdict() {
        let undecided = Undecided {
            services: set(&[2]),
            reason: "rules behind the tap".to_owned(),
        };
        let reading = Reading {
            packets_in: 3,
            packets_out: 1,
            out: set(&[1]),
            undecided: vec![undecided],
            ..Reading::default()
        };
        let refused = BTreeMap::new();
        let observed = Observed {
            probed: &[0, 1, 2],
            refused: &refused,
            reading: &Reading {
                packets_out: 2,
                ..reading.clone()
            },
        };
        assert!(doubts(&observed).is_empty(), "counted, and not told apart");
        let reason = "rules behind the tap".to_owned();
        assert_eq!(
            findings(&reading),
            [
                Finding::Stopped,
                Finding::Passed,
                Finding::Undecided(reason)
            ]
        );
    }

    #[test]
    fn what_came_in_and_not_out_was_stopped() {
        let reading = Reading {
            packets_in: 3,
            packets_out: 1,
            out: set(&[1]),
            ..Reading::default()
        };
        assert_eq!(
            findings(&reading),
            [Finding::Stopped, Finding::Passed, Finding::Stopped]
        );
    }

    #[test]
    fn nothing_is_said_of_probes_that_may_not_have_come_in() {
        let reading = Reading {
            packets_in: 2,
            packets_out: 1,
            out: set(&[1]),
            ..Reading::default()
        };
        assert_eq!(
            findings(&reading),
            [Finding::Unclear, Finding::Passed, Finding::Unclear]
        );
        let arrived = Some(set(&[0, 1]));
        let reading = Reading { arrived, ..reading };
        assert_eq!(
            findings(&reading),
            [Finding::Stopped, Finding::Passed, Finding::NotArrived]
        );
    }

    #[test]
    fn what_reached_the_end_of_input_was_delivered() {
        let reading = Reading {
            packets_in: 3,
            local: set(&[0, 1, 2]),
            ..Reading::default()
        };
        let found = findings(&reading);
        assert!(found.iter().all(|f| *f == Finding::Delivered));
    }

    #[test]
    fn a_refused_probe_is_not_judged_and_does_not_blur_the_others() {
        let reading = Reading {
            packets_in: 2,
            out: set(&[1]),
            ..Reading::default()
        };
        let refused = BTreeMap::from([(0, "EPERM".to_owned())]);
        let observed = Observed {
            probed: &[0, 1, 2],
            refused: &refused,
            reading: &reading,
        };
        let findings: Vec<_> = judge(&observed).0.into_iter().map(|(_, f)| f).collect();
        let not_sent = Finding::NotSent("EPERM".to_owned());
        assert_eq!(findings, [not_sent, Finding::Passed, Finding::Stopped]);
        assert!(doubts(&observed).is_empty());
    }

    #[test]
    fn sums_that_do_not_add_up_are_told() {
        let reading = Reading {
            packets_in: 4,
            packets_out: 3,
            out: set(&[1]),
            foreign: 1,
            ..Reading::default()
        };
        let refused = BTreeMap::new();
        let observed = Observed {
            probed: &[0, 1, 2],
            refused: &refused,
            reading: &reading,
        };
        assert_eq!(doubts(&observed).len(), 3);
    }
}
