//! Chains whose answers are looked at: what the detailed job says is what plain hosts get.
//!
//! YES is that a host connects and an answer comes, or that a datagram is answered. [Plans](plan) have
//! answers go their own way; what is [true](truth) is asked of plain hosts with plain programs on the
//! same plain routers whose facts the lab is made of.

pub(super) mod plan;
mod truth;

use std::{collections::BTreeMap, sync::Mutex};

use self::plan::FEATURES;
use super::{
    Outcome,
    ask::{Answer, Rebuilt},
    assert_that_features_are_many, if_right,
    plan::{Asked, Plan, Service},
    shrink,
    truth::Chain,
    try_chains,
    world::World,
};

/// How many chains a plain test run tries; each has five services.
const CHAINS: u64 = 30;
/// Of so many pairs the request has to arrive and no answer to come, that whoever does not follow answers
/// is noticed.
const NOTICED: usize = 20;

#[test]
fn answers_come_as_plain_hosts_get_them() {
    try_chains(CHAINS, 2, |seed, tally| {
        try_one(Plan::with_answers(seed), tally);
    });
}

/// One service of a chain, by each entry that is asked about and each next hop that there is.
#[derive(Debug)]
struct Compared {
    service: Service,
    quick: Answer,
    detailed: Answer,
    answered: Vec<bool>,
}

impl Compared {
    /// Whether it is the same by all of them.
    fn agree(&self) -> bool {
        self.answered.windows(2).all(|two| two[0] == two[1])
    }

    fn wrong(&self) -> Option<String> {
        let yes = self.answered[0];
        let Answer { result, reason, .. } = &self.detailed;
        let right = match (result.as_str(), self.agree()) {
            ("YES", true) => yes,
            ("NO", true) => !yes,
            ("UNKNOWN", _) => !reason.is_empty(),
            _ => false,
        };
        // A quick job sees the request alone.
        let quick = match (self.quick.result.as_str(), self.detailed.result.as_str()) {
            ("NO", _) => !self.answered.contains(&true),
            ("YES", "NO") => self.detailed.status == "PARTIAL",
            _ => true,
        };
        (!right || !quick).then(|| {
            format!(
                "{}: detailed {:?}, quick {:?}, but plain hosts get {:?}",
                self.service, self.detailed, self.quick, self.answered
            )
        })
    }
}

/// What came of some chains.
#[derive(Debug, Default)]
struct Tally {
    pairs: usize,
    lost: usize,
    /// Those of them whose request arrives, or whose connection is made.
    half_way: usize,
    /// Pairs that are not known, with their causes.
    unknown: Vec<String>,
    features: BTreeMap<&'static str, usize>,
    wrong: Vec<String>,
}

impl Outcome for Tally {
    fn figures(&self) -> String {
        let Self {
            pairs,
            lost,
            half_way,
            unknown,
            features,
            ..
        } = self;
        let causes = unknown.join("\n  ");
        format!(
            "{pairs} pairs: {lost} get no answer, {half_way} although the request arrives, {} \
             UNKNOWN; chains with {features:?}\n  {causes}",
            unknown.len()
        )
    }

    fn counts(&self) -> [usize; 2] {
        [self.pairs, self.unknown.len()]
    }

    fn wrong(&self) -> &[String] {
        &self.wrong
    }

    fn assert_that_it_tells(&self) {
        assert!(self.lost * 10 >= self.pairs * 3, "{} NO", self.lost);
        assert!(self.half_way >= NOTICED, "{} half way", self.half_way);
        let unknown = self.unknown.len();
        assert!(unknown * 20 <= self.pairs, "{unknown} UNKNOWN");
        assert_that_features_are_many(&self.features, &FEATURES);
    }
}

impl Tally {
    fn add(&mut self, plan: &Plan, compared: &[Compared]) {
        for feature in plan.features() {
            *self.features.entry(feature).or_default() += 1;
        }
        self.pairs += compared.len();
        let lost = compared.iter().filter(|one| !one.answered.contains(&true));
        self.lost += lost.clone().count();
        let half_way = lost.filter(|one| one.detailed.status == "PARTIAL");
        self.half_way += half_way.count();
        let unknown = compared
            .iter()
            .filter(|one| one.detailed.result == "UNKNOWN");
        // That entries or next hops differ is what was asked to be told.
        let unknown = unknown.filter(|one| one.agree());
        let named =
            |one: &Compared| format!("{} {}: {}", plan.seed, one.service, one.detailed.reason);
        self.unknown.extend(unknown.map(named));
    }
}

fn try_one(plan: Plan, tally: &Mutex<Tally>) {
    match compare(&plan) {
        Ok(compared) => tally.lock().unwrap().add(&plan, &compared),
        Err(why) => {
            let text = shrink::smallest(plan, why, |plan| compare(plan).err());
            tally.lock().unwrap().wrong.push(text);
        }
    }
}

/// Makes a chain and the lab of it, and asks both; what is wrong, if anything is.
fn compare(plan: &Plan) -> Result<Vec<Compared>, String> {
    let world = World::of(plan);
    let chain = Chain::make(plan, &world)?;
    let rebuilt = Rebuilt::of(plan, &chain, &world);
    let by = |mark| chain.converse_by_each(plan, &world, mark);
    let (from, answered) = match plan.asked() {
        None => (None, by(0)),
        Some(Asked::First) => (Some("r0"), by(0)),
        Some(Asked::Second) => (Some("second"), by(2)),
        Some(Asked::Any) => (None, [by(0), by(2)].concat()),
    };
    let quick = rebuilt.ask(plan, &world, from, None)?;
    let detailed = rebuilt.ask_detailed(plan, &world, from)?;
    let answers = quick.into_iter().zip(detailed);
    let services = plan.services.iter().zip(answers).enumerate();
    let compared = services.map(|(number, (service, (quick, detailed)))| Compared {
        service: *service,
        quick,
        detailed,
        answered: answered.iter().map(|by| by[number]).collect(),
    });
    let compared = if_right(compared.collect(), Compared::wrong);
    compared.inspect_err(|why| rebuilt.show(plan, &chain, &world, why))
}
