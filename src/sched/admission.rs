//! What a job is held against before it may wait: its own parameters, and the lab it names.
//!
//! Later the lab may be gone; its runner says so then. But a name that is wrong today is better
//! refused today than found in the history tomorrow.

use thiserror::Error;

use super::job::{Mode, Params, PolicyAbout, RefusedJob};
use crate::{
    bulk::{matrix, policy::PolicyText},
    config::Config,
    lab::{Lab, LabError},
    model::Service,
};

/// Bytes of a quick job's result per service: the verdict from end to end with a reason, which may
/// quote a rule. Measured on corp10: 150 to 450.
const QUICK_SERVICE: u64 = 512;
/// Bytes of it per service and router: the verdict there, and a leg of the way. Measured on corp10:
/// 190 to 290; addresses of IPv6 are longer.
const QUICK_CELL: u64 = 384;
/// Bytes of what is asked in bulk per question and lab: an answer as in a quick job, with a way of some
/// routers, in the file of all answers and in reports.
const BULK_QUESTION: u64 = 1024;
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
    /// The same of the lab that it is compared with.
    #[error(transparent)]
    Before(LabError),
}

impl NotAdmitted {
    /// Whether it is the asker's fault.
    #[must_use]
    pub fn is_asked_wrong(&self) -> bool {
        match self {
            Self::Params(_) | Self::TooLarge { .. } => true,
            Self::Lab(error) | Self::Before(error) => matches!(
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
            Self::Before(_) if self.is_asked_wrong() => Some("before"),
            Self::Lab(_) | Self::Before(_) => None,
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
    let services = params.check(mode, config.services)?;
    let most = config.scheduler.max_output_bytes;
    let lab = Lab::open(config, &params.lab)?;
    let from = params.options.from.iter().map(|from| &from.router);
    for router in params.routers.iter().flatten().chain(from) {
        lab.router(router)?;
    }
    if mode.lane() == Mode::Check {
        let before = params.before.as_ref().map(|lab| Lab::open(config, lab));
        let before = before.transpose().map_err(NotAdmitted::Before)?;
        return check_bulk(params, &services, before.as_ref().unwrap_or(&lab), most);
    }
    let routers = match (&params.routers, &params.options.trace) {
        (Some(routers), _) => routers.len(),
        (None, Some(trace)) => trace.ways().map(|(hops, _)| hops.len()).sum(),
        (None, None) => lab.routers.len().min(WAY),
    };
    check_size(services.len(), routers, mode, most)
}

/// Checks what is asked in bulk; `lab` has the end networks. The questions are counted before they are
/// made.
fn check_bulk(
    params: &Params,
    services: &[Service],
    lab: &Lab,
    most: u64,
) -> Result<(), NotAdmitted> {
    let labs = if params.before.is_some() { 2 } else { 1 };
    let fit = |questions: u64| {
        let bytes = questions.saturating_mul(BULK_QUESTION * labs);
        fits(bytes, most, || format!("{questions} questions"))
    };
    if let Some(policy) = &params.policy {
        return fit(policy.questions as u64);
    }
    let ends = params.asked(lab);
    let sides = [ends.sources.len(), ends.destinations.len(), services.len()];
    fit(sides
        .iter()
        .fold(1, |all, side| all.saturating_mul(*side as u64)))?;
    match matrix::pairs(&ends, services).map_err(RefusedJob::from)?[..] {
        [] => Err(RefusedJob::NoPair.into()),
        _ => Ok(()),
    }
}

fn check_size(services: usize, routers: usize, mode: Mode, most: u64) -> Result<(), NotAdmitted> {
    let (service, cell) = match mode {
        Mode::Detailed => (0, DETAILED_CELL),
        _ => (QUICK_SERVICE, QUICK_CELL),
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
