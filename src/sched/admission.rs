//! What a job is held against before it may wait: its own parameters, and the lab it names.
//!
//! Later the lab may be gone; its runner says so then. But a name that is wrong today is better
//! refused today than found in the history tomorrow.

use thiserror::Error;

use super::job::{Mode, Params, PolicyAbout, RefusedJob};
use crate::{
    bulk::policy::PolicyText,
    config::Config,
    lab::{Lab, LabError},
};

/// Bytes of a quick job's result per service: the verdict from end to end with a reason, which may
/// quote a rule. Measured on corp10: 150 to 450.
const QUICK_SERVICE: u64 = 512;
/// Bytes of it per service and router: the verdict there, and a leg of the way. Measured on corp10:
/// 190 to 290; addresses of IPv6 are longer.
const QUICK_CELL: u64 = 384;
/// Bytes of a check per question: an answer as in a quick job, with a way of some routers, in the file of
/// all answers and in reports.
const CHECK_QUESTION: u64 = 1024;
/// The same of a detailed job's: counters of the rules that were met, and the packets' ways. Measured on
/// corp10: 6,500 to 14,700, of which all but 300 to 600 are evidence; 1,900 where routers have few rules.
const DETAILED_CELL: u64 = 16 << 10;
/// Most routers of a way that nobody named, for a guess at a result's size; longer ways are rare.
const WAY: usize = 16;

/// A job may not wait.
#[derive(Debug, Error)]
pub enum NotAdmitted {
    /// Its parameters are wrong.
    #[error(transparent)]
    Params(#[from] RefusedJob),
    /// Its result may be larger than a runner may write.
    #[error(
        "{asked} may take {} MB, more than scheduler.max_output_bytes ({} MB) allows: ask less at a \
         time, or raise it", .bytes / 1_000_000, .most / 1_000_000
    )]
    TooLarge {
        /// What is asked about.
        asked: String,
        /// What the result may take.
        bytes: u64,
        /// What it may.
        most: u64,
    },
    /// There is no such lab or router, or the lab cannot be looked at.
    #[error(transparent)]
    Lab(#[from] LabError),
}

impl NotAdmitted {
    /// Whether it is the asker's fault.
    #[must_use]
    pub fn is_asked_wrong(&self) -> bool {
        match self {
            Self::Params(_) | Self::TooLarge { .. } => true,
            Self::Lab(error) => matches!(
                error,
                LabError::NotFound { .. }
                    | LabError::NoRouter { .. }
                    | LabError::HalfMade { .. }
                    | LabError::Gone { .. }
            ),
        }
    }
}

impl NotAdmitted {
    /// The field of the submission that is wrong, where it is one.
    #[must_use]
    pub fn field(&self, params: &Params) -> Option<&'static str> {
        match self {
            Self::Params(refused) => refused.field(),
            Self::TooLarge { .. } if params.policy.is_some() => Some("policy"),
            Self::TooLarge { .. } => Some("ports"),
            Self::Lab(LabError::NoRouter { router, .. }) => {
                let named = params.routers.iter().flatten().any(|name| name == router);
                Some(if named { "routers" } else { "from" })
            }
            Self::Lab(_) if self.is_asked_wrong() => Some("lab"),
            Self::Lab(_) => None,
        }
    }
}

/// Resolves the policy that comes with a job, and notes in its parameters what is known of it.
///
/// # Errors
/// [`NotAdmitted::Params`] where it cannot be used.
pub fn with_policy(
    params: &mut Params,
    policy: Option<&PolicyText>,
    config: &Config,
) -> Result<(), NotAdmitted> {
    let about = policy.map(|text| PolicyAbout::of(text, &config.groups));
    params.policy = about.transpose()?;
    Ok(())
}

/// Checks a job before it is queued.
///
/// # Errors
/// [`NotAdmitted`] for the first thing that is wrong.
pub fn check(params: &Params, mode: Mode, config: &Config) -> Result<(), NotAdmitted> {
    let services = params.check(mode, config.services)?.len();
    let most = config.scheduler.max_output_bytes;
    let lab = Lab::open(config, &params.lab)?;
    let from = params.options.from.iter().map(|from| &from.router);
    for router in params.routers.iter().flatten().chain(from) {
        lab.router(router)?;
    }
    if let Some(policy) = &params.policy {
        let questions = policy.questions;
        let bytes = (questions as u64).saturating_mul(CHECK_QUESTION);
        return fits(bytes, most, || {
            format!("the policy's {questions} questions")
        });
    }
    let routers = match (&params.routers, &params.options.trace) {
        (Some(routers), _) => routers.len(),
        (None, Some(trace)) => trace.ways().map(|(hops, _)| hops.len()).sum(),
        (None, None) => lab.routers.len().min(WAY),
    };
    check_size(services, routers, mode, most)
}

fn check_size(services: usize, routers: usize, mode: Mode, most: u64) -> Result<(), NotAdmitted> {
    let (service, cell) = match mode {
        Mode::Quick | Mode::Check => (QUICK_SERVICE, QUICK_CELL),
        Mode::Detailed => (0, DETAILED_CELL),
    };
    let each = cell.saturating_mul(routers as u64).saturating_add(service);
    let bytes = each.saturating_mul(services as u64);
    fits(bytes, most, || {
        format!("{services} services at up to {routers} routers")
    })
}

fn fits(bytes: u64, most: u64, asked: impl FnOnce() -> String) -> Result<(), NotAdmitted> {
    match bytes > most {
        true => Err(NotAdmitted::TooLarge {
            asked: asked(),
            bytes,
            most,
        }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_written_is_refused_with_the_option_named() {
        let most = 256 << 20;
        check_size(65_535, 9, Mode::Quick, most).unwrap();
        check_size(500, 30, Mode::Detailed, most).unwrap();
        let refused = check_size(1_000, 30, Mode::Detailed, most).unwrap_err();
        let text = refused.to_string();
        for want in ["1000 services", "30 routers", "scheduler.max_output_bytes"] {
            assert!(text.contains(want), "{text}");
        }
        assert!(check_size(131_070, 1_000, Mode::Quick, most).is_err());
    }
}
