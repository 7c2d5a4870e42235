//! Ways on which a route has next hops over several interfaces: each of them is measured on copies of
//! the routers, and what they come to is one verdict where all agree.

use std::collections::BTreeMap;

use super::{MAX_WAYS, Question, Way, keep, together};
use crate::{
    registry::{Job, Unlocked},
    run::{
        detailed::{
            DetailedError,
            fork::{SingleHop, SpreadRoute},
            result::{DetailedEndToEnd, RouterTest, ServiceStatus, ServiceTest},
            rounds::Rounds,
            site::{Stretch, StretchService},
        },
        report::{EndKind, Verdict},
    },
};

/// What was measured on copies: with which next hops, and the place of the stretch.
pub(super) type OnCopies = Vec<(Vec<SingleHop>, usize)>;

/// Ways by next hops that were chosen one after the other, and are still to be measured.
type Open = Vec<Vec<SingleHop>>;

impl Question<'_> {
    /// Measures the ways on which routes have next hops over several interfaces by each of these.
    pub(super) fn measure_spread<P: Fn(&str)>(
        &mut self,
        rounds: &mut Rounds<'_, P>,
        mut job: Job<Unlocked>,
    ) -> Result<Job<Unlocked>, DetailedError> {
        for at in 0..self.ways.len() {
            let spread = self.ways.get(at).is_some_and(|way| {
                let found = way.first_spread(self.stretch_of(way));
                found.is_some()
            });
            if !spread {
                continue;
            }
            let (given, copied) = self.each(at, rounds, job)?;
            job = given;
            let planner = rounds.planner();
            planner.choices.clear();
            planner.singles.clear();
            if let Some(way) = self.ways.get_mut(at) {
                way.copied = copied;
            }
        }
        Ok(job)
    }

    fn stretch_of(&self, way: &Way) -> Option<&Stretch> {
        self.stretches.get(*way.stretch.as_ref().ok()?)
    }

    /// Measures a way by each of its next hops.
    fn each<P: Fn(&str)>(
        &mut self,
        at: usize,
        rounds: &mut Rounds<'_, P>,
        mut job: Job<Unlocked>,
    ) -> Result<(Job<Unlocked>, Result<OnCopies, String>), DetailedError> {
        let mut open: Open = vec![Vec::new()];
        let mut copied = Vec::new();
        while let Some(singles) = open.pop() {
            let number = self.stretches.len();
            let Some(mut stretch) = self.planned_by(at, &singles, rounds)? else {
                let why = "one of several routers may get it besides".to_owned();
                return Ok((job, Err(why)));
            };
            if stretch.spread().is_none() {
                let (given, measured) = rounds.on_copies(job, number, &mut stretch)?;
                job = given;
                if let Err(why) = measured {
                    return Ok((job, Err(why)));
                }
            }
            match stretch.spread() {
                None => {
                    copied.push((singles, number));
                    self.stretches.push(stretch);
                }
                Some(spread) if copied.len() + open.len() + spread.hops.len() > MAX_WAYS => {
                    let why = format!("there are more than {MAX_WAYS} ways");
                    return Ok((job, Err(why)));
                }
                Some(spread) => {
                    let longer = spread.singles().map(|one| [&singles[..], &[one]].concat());
                    let longer: Open = longer.collect();
                    open.extend(longer.into_iter().rev());
                }
            }
        }
        Ok((job, Ok(copied)))
    }

    /// The stretch of a way by these next hops, with all that is still open in its spreads; none where
    /// routers besides are to be chosen.
    fn planned_by<P: Fn(&str)>(
        &self,
        at: usize,
        singles: &[SingleHop],
        rounds: &mut Rounds<'_, P>,
    ) -> Result<Option<Stretch>, DetailedError> {
        let Some(way) = self.ways.get(at) else {
            return Ok(None);
        };
        let Some(live) = self.stretch_of(way) else {
            return Ok(None);
        };
        let planner = rounds.planner();
        planner.choices.clone_from(&way.choices);
        planner.singles = singles.to_vec();
        let to = (self.job.destination, self.job.source_port);
        let from = (&way.entry, live.source.clone());
        let (mut stretch, planned) = planner.stretch(from, to, &self.services(), true)?;
        for spread in planned.iter().flat_map(|planned| &planned.spreads) {
            stretch.discover_spread(spread);
        }
        let is_open = planned.iter().any(|planned| !planned.open.is_empty());
        Ok((!is_open).then_some(stretch))
    }
}

impl Way {
    /// A route on the way of some service that has next hops over several interfaces.
    fn first_spread<'s>(&'s self, stretch: Option<&'s Stretch>) -> Option<&'s SpreadRoute> {
        let whole = stretch.filter(|stretch| stretch.whole)?;
        let planned = self.planned.iter().flat_map(|planned| &planned.spreads);
        planned.chain(whole.spread()).next()
    }

    /// Whether the way of a service has such a route.
    pub(super) fn is_spread(&self, at: usize, stretches: &[Stretch]) -> bool {
        let stretch = self.stretch.as_ref().ok().and_then(|at| stretches.get(*at));
        let planned = self.planned.get(at);
        planned.is_some_and(|planned| !planned.spreads.is_empty())
            || stretch.is_some_and(|stretch| {
                let mut taken = stretch.taken.iter();
                !stretch.spreads.is_empty() || taken.any(|(service, _)| *service == at)
            })
    }

    /// What became of a service by each of the next hops, where that was measured: one verdict where all
    /// of them agree, and the lab's own router with them.
    pub(super) fn by_each(
        &self,
        at: usize,
        (end, list): (&DetailedEndToEnd, &mut Vec<RouterTest>),
        tests: &BTreeMap<StretchService, ServiceTest>,
    ) -> Option<DetailedEndToEnd> {
        let copied = self
            .copied
            .as_ref()
            .ok()
            .filter(|copied| !copied.is_empty())?;
        let forks = forks(copied);
        let mut ends = Vec::with_capacity(copied.len());
        let mut routers = Vec::new();
        for (singles, stretch) in copied {
            let test = tests.get(&(*stretch, at))?;
            let names = singles.iter().map(|one| match forks.len() {
                1 => one.dev().to_owned(),
                _ => one.to_string(),
            });
            let names: Vec<String> = names.collect();
            ends.push((names.join(", "), test.end.clone()));
            for test in &test.tests {
                keep(&mut routers, test.clone());
            }
        }
        // Of the lab's own routers it is known beforehand that nobody knows which hop they take.
        let live = std::mem::replace(list, routers);
        for test in live {
            if !list.iter().any(|known| known.router == test.router) {
                list.push(test);
            }
        }
        let agreed = together(ends);
        Some(match agreed.kind == EndKind::Disagree {
            true => in_words(agreed, &forks),
            false if end.result == Verdict::Unknown => noted(agreed, &forks),
            false if end.result == agreed.result => noted(agreed, &forks),
            false => differing(agreed.result, end),
        })
    }
}

/// That the lab's own routers have another verdict than each of their next hops on copies.
fn differing(each: Verdict, live: &DetailedEndToEnd) -> DetailedEndToEnd {
    let mut end = live.clone();
    end.reason = Some(format!(
        "copies of the routers say {each} by each next hop, and the routers themselves {}",
        live.result
    ));
    end.result = Verdict::Unknown;
    end.status = ServiceStatus::Unknown;
    end.kind = EndKind::Disagree;
    end
}

/// The routes of which different next hops were measured, each once.
fn forks(copied: &OnCopies) -> Vec<&SpreadRoute> {
    let mut forks: Vec<&SpreadRoute> = Vec::new();
    for single in copied.iter().flat_map(|(singles, _)| singles) {
        if !forks.iter().any(|fork| fork.is_same(&single.spread)) {
            forks.push(&single.spread);
        }
    }
    forks
}

/// That ways differ, with what chooses among them.
fn in_words(mut end: DetailedEndToEnd, forks: &[&SpreadRoute]) -> DetailedEndToEnd {
    let choices: Vec<String> = forks.iter().map(|fork| fork.choice()).collect();
    let each = end.reason.take().unwrap_or_default();
    end.reason = Some(format!("{}; {each}", choices.join(", ")));
    if let [fork] = forks {
        end.router = Some(fork.router.clone());
    }
    end
}

/// That all ways agree.
fn noted(mut end: DetailedEndToEnd, forks: &[&SpreadRoute]) -> DetailedEndToEnd {
    let choices: Vec<String> = forks.iter().map(|fork| fork.choice()).collect();
    let all = format!("{}, and each was measured", choices.join(", "));
    end.note = Some(match end.note.take() {
        Some(note) => format!("{note}; {all}"),
        None => all,
    });
    end
}
