//! Random chains of routers: the verdict from end to end is what plain hosts see.
//!
//! A seed gives a [plan](plan), a plan gives [what is on each router](world), and that is made twice:
//! by [plain commands](script), where a plain host sends and [packet sockets show the truth](truth),
//! and as a lab from the facts of these routers, which [both jobs are asked about](ask). A chain
//! that is answered wrongly is [made smaller](shrink) as long as it still is, and printed with its
//! seed and its script.

mod ask;
mod back;
mod forks;
mod packets;
mod plan;
mod rules;
mod script;
mod shrink;
mod trial;
mod truth;
mod verdict;
mod world;

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

pub(crate) use self::truth::{Fence, stay_here};
use self::{
    plan::{FEATURES, Plan},
    trial::{Trial, wrong},
    verdict::Compared,
};
use crate::beside;

/// How many chains a plain test run tries; each has ten services.
const CHAINS: u64 = 30;
const THREADS: usize = 2;
/// After so many chains each a line says how far it is.
const STEP: u64 = 10;
/// What a walk can be made to forget, so that this test is known to notice.
const FORGOTTEN: [&str; 3] = ["nat", "dscp", "policy"];
/// So many pairs have to be wrong then.
const NOTICED: usize = 20;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn chains_are_answered_as_plain_hosts_see_them() {
    try_chains(CHAINS, 1, |seed, tally| try_one(Plan::new(seed), tally));
}

/// What came of some chains.
trait Outcome: Default + Send {
    fn figures(&self) -> String;

    /// How many pairs there were, and how many of them are UNKNOWN.
    fn counts(&self) -> [usize; 2];

    /// Chains that were answered wrongly, in words.
    fn wrong(&self) -> &[String];

    /// Fails where there was not enough of everything for the test to say something.
    fn assert_that_it_tells(&self);
}

/// Tries one chain after the other, from the seed that the environment names: `usual` chains, or `share`
/// times as many as the environment says.
#[allow(
    clippy::print_stdout,
    reason = "shown with the test that fails, to try its seeds again, and as it goes where asked for"
)]
fn try_chains<T: Outcome>(usual: u64, share: u64, one: impl Fn(u64, &Mutex<T>) + Sync) {
    let count = number("TSIM_CHAINS").map_or(usual, |chains| chains * share);
    let first = number("TSIM_CHAINS_SEED").unwrap_or(1);
    println!("seeds {first} to {}", first + count - 1);
    let outcome = Mutex::new(T::default());
    let seeds: Vec<u64> = (first..first + count).collect();
    let tried = AtomicU64::new(0);
    beside::each(THREADS, &seeds, |seed| {
        one(*seed, &outcome);
        let tried = tried.fetch_add(1, Ordering::Relaxed) + 1;
        if tried.is_multiple_of(STEP) {
            let outcome = outcome.lock().unwrap();
            let ([pairs, unknown], wrong) = (outcome.counts(), outcome.wrong().len());
            println!(
                "{tried} of {count} chains: {pairs} pairs, {unknown} UNKNOWN, {wrong} chains wrong"
            );
        }
    });
    let outcome = outcome.into_inner().unwrap();
    println!("{}", outcome.figures());
    assert!(
        outcome.wrong().is_empty(),
        "{}",
        outcome.wrong().join("\n\n")
    );
    if count >= usual {
        outcome.assert_that_it_tells();
    }
}

/// All that was compared, or what is wrong with it.
fn if_right<T>(compared: Vec<T>, wrong: fn(&T) -> Option<String>) -> Result<Vec<T>, String> {
    let wrong: Vec<String> = compared.iter().filter_map(wrong).collect();
    match wrong.is_empty() {
        true => Ok(compared),
        false => Err(wrong.join("\n")),
    }
}

/// What came of some chains.
#[derive(Debug, Default)]
struct Tally {
    pairs: usize,
    lost: usize,
    unknown: usize,
    /// Pairs of which the detailed job said YES or NO.
    proven: usize,
    /// Chains with each feature.
    features: BTreeMap<&'static str, usize>,
    /// Pairs that were wrong when something was forgotten.
    noticed: [usize; FORGOTTEN.len()],
    /// Chains that were answered wrongly, in words.
    wrong: Vec<String>,
}

impl Outcome for Tally {
    fn figures(&self) -> String {
        let Self {
            pairs,
            lost,
            unknown,
            proven,
            features,
            noticed,
            ..
        } = self;
        format!(
            "{pairs} pairs: {lost} do not get through, {unknown} UNKNOWN, {proven} in detail; wrong without \
             {FORGOTTEN:?}: {noticed:?}; chains with {features:?}"
        )
    }

    fn counts(&self) -> [usize; 2] {
        [self.pairs, self.unknown]
    }

    fn wrong(&self) -> &[String] {
        &self.wrong
    }

    fn assert_that_it_tells(&self) {
        assert!(self.lost * 10 >= self.pairs * 3, "{} NO", self.lost);
        assert!(self.unknown * 20 <= self.pairs, "{} UNKNOWN", self.unknown);
        assert!(self.proven * 4 >= self.pairs, "{} in detail", self.proven);
        assert_that_features_are_many(&self.features, &FEATURES);
        for (forgotten, wrong) in FORGOTTEN.iter().zip(self.noticed) {
            assert!(wrong >= NOTICED, "{wrong} wrong without {forgotten}");
        }
    }
}

impl Tally {
    /// What is still to be forgotten.
    fn to_forget(&self) -> Vec<&'static str> {
        let all = FORGOTTEN.into_iter().zip(self.noticed);
        all.filter(|(_, noticed)| *noticed < NOTICED)
            .map(|(what, _)| what)
            .collect()
    }

    fn add(&mut self, plan: &Plan, compared: &[Compared]) {
        for feature in plan.features() {
            *self.features.entry(feature).or_default() += 1;
        }
        let count = |is: fn(&Compared) -> bool| compared.iter().filter(|one| is(one)).count();
        self.pairs += compared.len();
        self.lost += count(Compared::is_lost);
        self.unknown += count(Compared::is_unknown);
        self.proven += count(Compared::is_proven);
    }

    fn add_forgotten(&mut self, what: &str, compared: &[Compared]) {
        let wrong = compared.iter().filter(|one| one.wrong().is_some()).count();
        for (forgotten, noticed) in FORGOTTEN.iter().zip(&mut self.noticed) {
            *noticed += if *forgotten == what { wrong } else { 0 };
        }
    }
}

/// Fails where fewer than five chains have one of `features`, or are of one of both families.
fn assert_that_features_are_many(
    chains: &BTreeMap<&'static str, usize>,
    features: &[&'static str],
) {
    for feature in features.iter().chain(&["IPv4", "IPv6"]) {
        let count = chains.get(feature).copied().unwrap_or_default();
        assert!(count >= 5, "{feature} in {count} chains");
    }
}

fn try_one(plan: Plan, tally: &Mutex<Tally>) {
    let trial = Trial::begin(&plan);
    let compared = trial.as_ref().map_err(String::clone);
    let compared = compared.and_then(|trial| trial.compare(&plan, None));
    if let Some(why) = wrong(&compared) {
        let still = |plan: &Plan| {
            let compared = Trial::begin(plan).and_then(|trial| trial.compare(plan, None));
            wrong(&compared)
        };
        let text = shrink::smallest(plan, why, still);
        tally.lock().unwrap().wrong.push(text);
        return;
    }
    tally.lock().unwrap().add(&plan, &compared.unwrap());
    let to_forget = tally.lock().unwrap().to_forget();
    for what in to_forget {
        let compared = trial.as_ref().unwrap().compare(&plan, Some(what)).unwrap();
        tally.lock().unwrap().add_forgotten(what, &compared);
    }
}
