//! Rulesets by seed: which are tried, several at a time, and what is said of those that fail.

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::beside;

const THREADS: usize = 3;

/// After how many rulesets a line says how far the loop is.
const REPORT: u64 = 100;

/// Rulesets that were tried.
pub(super) struct Tried {
    pub(super) count: u64,
    failures: Vec<String>,
}

/// Tries `usual` rulesets of new seeds, or as many as `TSIM_<name>_RULESETS` says; only the one of
/// `TSIM_<name>_SEED` where that is set. `fails` says what is wrong with the ruleset of a seed.
#[allow(
    clippy::print_stdout,
    reason = "shown with the test that fails, to try its seed again"
)]
pub(super) fn try_all(
    name: &str,
    usual: u64,
    fails: impl Fn(u64) -> Option<String> + Sync,
) -> Tried {
    let number = |what: &str| {
        let text = env::var(format!("TSIM_{name}_{what}")).ok();
        text.map(|text| text.parse().unwrap())
    };
    let (first, count) = match number("SEED") {
        Some(seed) => (seed, 1),
        None => {
            let any = getrandom::u64().unwrap() >> 16;
            (any, number("RULESETS").unwrap_or(usual))
        }
    };
    println!("seeds {first} to {}", first + count - 1);
    let seeds: Vec<u64> = (first..first + count).collect();
    let (done, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
    let found = beside::each(THREADS, &seeds, |seed| {
        let found = fails(*seed);
        let wrong = wrong.fetch_add(found.is_some().into(), Ordering::Relaxed);
        let wrong = wrong + u64::from(found.is_some());
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(REPORT) || done == count {
            println!("{name}: {done} of {count} rulesets tried, {wrong} of them failed");
        }
        found
    });
    Tried {
        count,
        failures: found.into_iter().flatten().collect(),
    }
}

impl Tried {
    /// Asserts that no ruleset failed, and that the tools refused no more than a tenth.
    pub(super) fn assert_right(&self, refused: u64) {
        let Self { count, failures } = self;
        assert!(refused <= count / 10, "the generator makes nonsense");
        assert!(
            failures.is_empty(),
            "{} of {count} rulesets:\n{}",
            failures.len(),
            failures.join("\n\n")
        );
    }
}
