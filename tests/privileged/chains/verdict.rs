//! A verdict from end to end beside the truth.

use super::{ask::Answer, plan::Service, truth::Fate};

/// One service of a chain: what was answered, and what became of its packet by each entry that was
/// asked about.
#[derive(Debug, Clone)]
pub(super) struct Compared {
    pub(super) service: Service,
    pub(super) answer: Answer,
    pub(super) fates: Vec<Fate>,
}

impl Compared {
    /// Whether no packet got through.
    pub(super) fn is_lost(&self) -> bool {
        self.fates.iter().all(|fate| *fate == Fate::Lost)
    }

    pub(super) fn is_unknown(&self) -> bool {
        self.answer.result == "UNKNOWN"
    }

    /// What is wrong with the answer, in words.
    pub(super) fn wrong(&self) -> Option<String> {
        let Answer {
            result,
            end,
            router,
            reason,
        } = &self.answer;
        let agree = self.fates.windows(2).all(|two| {
            let lost = |fate: &Fate| *fate == Fate::Lost;
            lost(&two[0]) == lost(&two[1])
        });
        let right = match result.as_str() {
            "UNKNOWN" if end == "disagree" => !agree,
            "UNKNOWN" => reason.contains("which translated the request"),
            "NO" => self.is_lost(),
            "YES" => self.fates.iter().all(|fate| match fate {
                Fate::Arrived => end == "delivered" || end == "leaves",
                Fate::Router(name) => end == "itself" && name == router,
                Fate::Lost => false,
            }),
            _ => false,
        };
        let Self { service, fates, .. } = self;
        let answer = format!("{result} ({end} at {router}: {reason})");
        (!right).then(|| format!("{service}: {answer}, but plain hosts see {fates:?}"))
    }
}
