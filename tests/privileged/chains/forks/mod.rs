//! Chains whose way forks, begins or ends inside a router, of all protocols and sizes.
//!
//! [Plans](plan) have routes with several next hops, lots that decide where a packet goes, and routers
//! that send and are called. What is true is what plain hosts and routers see of packets of many
//! clients, with each choice of the next hops.

pub(super) mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use self::plan::FEATURES;
use super::{
    Outcome,
    ask::{Answer, Rebuilt},
    assert_that_features_are_many, if_right,
    plan::{Plan, Protocol, Service},
    shrink,
    truth::{Chain, Fate},
    try_chains,
    world::World,
};

/// How many chains a plain test run tries; each has six services.
const CHAINS: u64 = 35;
/// Packets of each service where lots decide: of three targets, one stays unseen once in ten million
/// times.
const DRAWN: u16 = 48;
/// So many pairs have to have another fate without a feature.
const BITE: usize = 5;
/// So many pairs of each protocol have to get through, and as many not to.
const OF_A_PROTOCOL: usize = 3;

#[test]
fn forks_and_ends_inside_routers_are_answered_as_plain_hosts_see_them() {
    try_chains(CHAINS, 2, |seed, tally| {
        try_one(Plan::with_forks(seed), tally);
    });
}

/// What became of the packets of each service.
type Fates = Vec<BTreeSet<Fate>>;

/// Makes a chain, and sends by each choice of the next hops that there are.
fn send(plan: &Plan, world: &World, chain: &Chain) -> Fates {
    let count = if plan.draws() { DRAWN } else { 1 };
    let by_each = chain.by_each(plan, world, || chain.send_some(plan, world, 0, count));
    let mut all = vec![BTreeSet::new(); plan.services.len()];
    for fates in by_each {
        for (all, fates) in all.iter_mut().zip(fates) {
            all.extend(fates);
        }
    }
    all
}

/// One service of a chain.
#[derive(Debug)]
struct Compared {
    service: Service,
    quick: Answer,
    detailed: Option<Answer>,
    fates: BTreeSet<Fate>,
}

impl Compared {
    fn is_lost(&self) -> bool {
        self.fates.iter().all(|fate| *fate == Fate::Lost)
    }

    /// Whether some packets get through and others do not.
    fn disagrees(&self) -> bool {
        self.fates.contains(&Fate::Lost) && !self.is_lost()
    }

    /// Whether nothing is said although there is something to say.
    fn is_needlessly_unknown(&self) -> bool {
        self.quick.result == "UNKNOWN" && !self.disagrees()
    }

    fn quick_is_right(&self) -> bool {
        let Answer {
            result,
            end,
            router,
            reason,
            ..
        } = &self.quick;
        let arrives = |fate: &Fate| match fate {
            Fate::Lost => false,
            // Each is named with where it leads.
            _ if self.fates.len() > 1 => reason.contains(" YES"),
            Fate::Arrived => end == "delivered" || end == "leaves",
            Fate::Router(name) => end == "itself" && name == router,
        };
        match result.as_str() {
            "UNKNOWN" => !reason.is_empty(),
            "NO" => self.is_lost(),
            "YES" => self.fates.iter().all(arrives),
            _ => false,
        }
    }

    /// A detailed job sees answers, too.
    fn detailed_is_right(&self) -> bool {
        let Some(Answer {
            result,
            status,
            reason,
            ..
        }) = &self.detailed
        else {
            return true;
        };
        match result.as_str() {
            "UNKNOWN" => !reason.is_empty(),
            "NO" => self.is_lost() || status == "PARTIAL",
            _ => !self.fates.contains(&Fate::Lost),
        }
    }

    fn wrong(&self) -> Option<String> {
        let right = self.quick_is_right() && self.detailed_is_right();
        let Self {
            service,
            quick,
            detailed,
            fates,
        } = self;
        (!right).then(|| {
            format!(
                "{service}: quick {quick:?}, detailed {detailed:?}, but plain hosts see {fates:?}"
            )
        })
    }
}

/// What came of the chains with a feature.
#[derive(Debug, Default)]
struct Figures {
    pairs: usize,
    /// Pairs of which some packets get through and others do not.
    open: usize,
    unknown: usize,
    /// Pairs that have another fate without the feature.
    bite: usize,
}

/// What came of some chains.
#[derive(Debug, Default)]
struct Tally {
    pairs: usize,
    lost: usize,
    /// Pairs that are not known and could be, with their causes.
    unknown: Vec<String>,
    chains: BTreeMap<&'static str, usize>,
    features: BTreeMap<&'static str, Figures>,
    /// How many pairs of a protocol get through, and how many do not.
    protocols: BTreeMap<String, [usize; 2]>,
    /// Answers of the detailed job by their results.
    detailed: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Outcome for Tally {
    fn figures(&self) -> String {
        let Self {
            pairs,
            lost,
            unknown,
            chains,
            features,
            protocols,
            detailed,
            ..
        } = self;
        let each = features.iter().map(|(feature, figures)| {
            let Figures {
                pairs,
                open,
                unknown,
                bite,
            } = figures;
            format!("  {feature}: {pairs} pairs, {open} open, {unknown} UNKNOWN, bite {bite}\n")
        });
        let each: String = each.collect();
        let causes = unknown.join("\n  ");
        format!(
            "{pairs} pairs: {lost} do not get through, {} UNKNOWN without need; in detail \
             {detailed:?}; through and not: {protocols:?}; chains with {chains:?}\n{each}  {causes}",
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
        assert!(self.lost * 10 >= self.pairs * 2, "{} NO", self.lost);
        let unknown = self.unknown.len();
        assert!(unknown * 20 <= self.pairs, "{unknown} UNKNOWN");
        assert_that_features_are_many(&self.chains, &FEATURES);
        for feature in FEATURES {
            let bite = self.features.get(feature).map_or(0, |figures| figures.bite);
            assert!(bite >= BITE, "{feature} decides about {bite} pairs");
        }
        for (protocol, counts) in &self.protocols {
            let [through, not] = counts;
            let enough = *through.min(not) >= OF_A_PROTOCOL;
            assert!(enough, "{protocol}: {through} get through, {not} do not");
        }
    }
}

impl Tally {
    fn add(&mut self, plan: &Plan, compared: &[Compared]) {
        for feature in plan.features() {
            *self.chains.entry(feature).or_default() += 1;
        }
        let count = |is: fn(&Compared) -> bool| compared.iter().filter(|one| is(one)).count();
        for feature in plan
            .motifs
            .iter()
            .filter_map(super::plan::Motif::fork_feature)
        {
            let figures = self.features.entry(feature).or_default();
            figures.pairs += compared.len();
            figures.open += count(Compared::disagrees);
            figures.unknown += count(Compared::is_needlessly_unknown);
        }
        self.pairs += compared.len();
        self.lost += count(Compared::is_lost);
        let unknown = compared.iter().filter(|one| one.is_needlessly_unknown());
        let named = |one: &Compared| {
            let Answer { end, reason, .. } = &one.quick;
            format!("{} {}: {end} {reason}", plan.seed, one.service)
        };
        self.unknown.extend(unknown.map(named));
        for one in compared {
            let protocol = match one.service.protocol {
                Protocol::Ping | Protocol::Timestamp => "ICMP".to_owned(),
                other => format!("{other:?}"),
            };
            let counts = self.protocols.entry(protocol).or_default();
            counts[usize::from(one.is_lost())] += 1;
            let detailed = one.detailed.as_ref().map(|answer| &answer.result);
            if let Some(result) = detailed {
                *self.detailed.entry(result.clone()).or_default() += 1;
            }
        }
    }

    /// Which motifs of a plan have features that have not decided about enough pairs so far.
    fn to_bite(&self, plan: &Plan) -> Vec<(usize, &'static str)> {
        let motifs = plan.motifs.iter().enumerate();
        let features = motifs.filter_map(|(at, motif)| Some((at, motif.fork_feature()?)));
        let enough = |feature: &str| self.features.get(feature).map_or(0, |f| f.bite) >= BITE;
        features.filter(|(_, feature)| !enough(feature)).collect()
    }
}

fn try_one(plan: Plan, tally: &Mutex<Tally>) {
    let compared = match compare(&plan) {
        Ok(compared) => compared,
        Err(why) => {
            let text = shrink::smallest(plan, why, |plan| compare(plan).err());
            tally.lock().unwrap().wrong.push(text);
            return;
        }
    };
    tally.lock().unwrap().add(&plan, &compared);
    let to_bite = tally.lock().unwrap().to_bite(&plan);
    for (motif, feature) in to_bite {
        let mut without = plan.clone();
        without.motifs.remove(motif);
        let world = World::of(&without);
        let chain = Chain::make(&without, &world).unwrap();
        let fates = send(&without, &world, &chain);
        let others = fates.iter().zip(&compared);
        let others = others.filter(|(fates, one)| **fates != one.fates).count();
        let mut tally = tally.lock().unwrap();
        tally.features.entry(feature).or_default().bite += others;
    }
}

/// Makes a chain and the lab of it, and asks both; what is wrong, if anything is.
fn compare(plan: &Plan) -> Result<Vec<Compared>, String> {
    let world = World::of(plan);
    let chain = Chain::make(plan, &world)?;
    let rebuilt = Rebuilt::of(plan, &chain, &world);
    let fates = send(plan, &world, &chain);
    let quick = rebuilt.ask(plan, &world, None, None)?;
    // A detailed job sends with the DSCP value 0, and takes its time.
    let detailed = match plan.dscp == 0 && plan.seed.is_multiple_of(2) {
        true => rebuilt.ask_detailed(plan, &world, None)?,
        false => Vec::new(),
    };
    let mut detailed = detailed.into_iter();
    let services = plan.services.iter().zip(quick).zip(fates);
    let compared = services.map(|((service, quick), fates)| Compared {
        service: *service,
        quick,
        detailed: detailed.next(),
        fates,
    });
    let compared = if_right(compared.collect(), Compared::wrong);
    compared.inspect_err(|why| rebuilt.show(plan, &chain, &world, why))
}
