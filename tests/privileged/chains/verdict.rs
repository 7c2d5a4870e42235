//! A verdict from end to end beside the truth.

use super::{ask::Answer, plan::Service, truth::Fate};

/// One service of a chain: what was answered, and what became of its packet by each entry that was
/// asked about.
#[derive(Debug, Clone)]
pub(super) struct Compared {
    pub(super) service: Service,
    pub(super) answer: Answer,
    /// What the detailed job said, where it was asked. The destination of a chain may not answer: that
    /// a request gets through is no proof of YES, and that it does not is one of its opposite.
    pub(super) proven: Option<Answer>,
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
            ..
        } = &self.answer;
        let agree = self.fates.windows(2).all(|two| {
            let lost = |fate: &Fate| *fate == Fate::Lost;
            lost(&two[0]) == lost(&two[1])
        });
        let right = match result.as_str() {
            "UNKNOWN" if end == "disagree" => !agree,
            "UNKNOWN" => reason.contains("which translated the request"),
            "NO" => self.is_lost(),
            "YES" => {
                let apart = self.fates.windows(2).any(|two| two[0] != two[1]);
                self.fates.iter().all(|fate| match fate {
                    Fate::Lost => false,
                    // Each entry is named with where it leads.
                    _ if apart => reason.contains(" YES; by ") || reason.contains(" YES: "),
                    Fate::Arrived => end == "delivered" || end == "leaves",
                    Fate::Router(name) => end == "itself" && name == router,
                })
            }
            _ => false,
        };
        let Self { service, fates, .. } = self;
        let answer = format!("{result} ({end} at {router}: {reason})");
        let wrong = format!("{service}: {answer}, but plain hosts see {fates:?}");
        if !right {
            return Some(wrong);
        }
        let proven = self.proven.as_ref()?;
        let lost = fates.contains(&Fate::Lost);
        (proven.result == "YES" && lost).then(|| {
            let reason = &proven.reason;
            format!("{service}: detailed YES ({reason}), but plain hosts see {fates:?}")
        })
    }

    /// Whether the detailed job gave a verdict.
    pub(super) fn is_proven(&self) -> bool {
        let proven = self.proven.as_ref();
        proven.is_some_and(|answer| answer.result != "UNKNOWN")
    }
}
