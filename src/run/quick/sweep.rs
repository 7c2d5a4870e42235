//! The sweep: any number of questions through the engine of the quick job, burst after burst.
//!
//! A burst asks as many questions as take about [`AIM`]: taps are put into each router once for all of
//! them, and their ways are walked together. Locks and leases are taken and given back per burst, so a
//! detailed job that waits for a router is let in between two of them. Questions come from an iterator
//! and answers go to a sink as they are known, in the order of the questions, so there may be more of
//! them than fit into memory.
//!
//! What changes between two bursts is said: rules of nf_tables of any router that was asked, by the
//! kernel's own word ([`RulesetWatch`]); and a lab that was taken down or made anew ends the sweep.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::mpsc::{self, Sender},
    thread,
    time::Duration,
};

use super::{
    Pair, QuickClosing, QuickError, Terms,
    desk::{Burst, Desk, Lone},
    log, report,
};
use crate::{
    config::Config,
    firewall::nft::watch::{RulesetChanges, RulesetWatch},
    lab::Lab,
    model::{Dscp, RouterId, RouterName, Service, WithCauses},
    netns::{NetnsDir, NetnsFd, visit},
    run::{report::EndToEnd, undo::UndoError},
};

/// How long the routers of a burst are to be held.
pub const AIM: Duration = Duration::from_millis(600);
/// Questions of the first burst, of which it is not known how long they take.
const FIRST: usize = 1024;
/// The fewest of any: below, taps cost more than probes.
const FEWEST: usize = 128;
/// The most: what is known of a burst's probes on all routers stays below 100 MB.
const MOST: usize = 16_384;
/// More things to know are counted only.
const MOST_WARNINGS: usize = 200;

/// A question and its answer.
#[derive(Debug)]
pub struct AnsweredQuestion<'a> {
    /// The addresses; its services are those of a burst.
    pub pair: &'a Pair,
    /// The service as asked for.
    pub service: Service,
    /// The answer.
    pub end: EndToEnd,
}

/// What is to be known beside the answers when the last was given.
#[derive(Debug)]
pub struct Swept {
    /// DSCP value that the job held.
    pub dscp: Dscp,
    /// What measured.
    pub backend: String,
    /// How many questions were answered.
    pub questions: u64,
    /// In how many bursts.
    pub bursts: u64,
    /// What a reader should know beside the verdicts.
    pub warnings: Vec<String>,
}

/// A sweep at work.
pub struct Sweep<'a> {
    desk: Desk<'a>,
    config: &'a Config,
    /// The lab as it was when the first question was put.
    lab: Lab,
    size: usize,
    watches: Watches,
    closer: Sender<Vec<QuickClosing>>,
    told: BTreeSet<String>,
    swept: Swept,
}

/// Called with the number of answers that were given.
pub type OnAnswers<'a> = &'a mut dyn FnMut(u64);

impl<'a> Sweep<'a> {
    /// Gets ready to ask; nothing is taken yet.
    ///
    /// # Errors
    /// [`QuickError`] without a lab.
    pub fn open(terms: Terms, config: &'a Config) -> Result<Self, QuickError> {
        let lab = Lab::open(config, &terms.lab)?;
        let desk = Desk::open(terms, config)?;
        let (closer, closed) = mpsc::channel::<Vec<QuickClosing>>();
        // The kernel takes its time to close these, which nobody has to wait for.
        thread::spawn(move || closed.into_iter().for_each(drop));
        let swept = Swept {
            dscp: Dscp::DEFAULT,
            backend: String::new(),
            questions: 0,
            bursts: 0,
            warnings: Vec::new(),
        };
        Ok(Self {
            desk,
            config,
            lab,
            size: FIRST,
            watches: Watches::default(),
            closer,
            told: BTreeSet::new(),
            swept,
        })
    }

    /// The lab that is asked.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Asks all services of all `pairs`, gives the answers to `sink` in their order, and tells
    /// `progress` after each burst.
    ///
    /// # Errors
    /// [`QuickError`]; what was given to the sink by then holds.
    pub fn ask(
        &mut self,
        pairs: impl IntoIterator<Item = Pair>,
        sink: &mut dyn FnMut(AnsweredQuestion<'_>) -> io::Result<()>,
        progress: OnAnswers<'_>,
    ) -> Result<(), QuickError> {
        let mut pairs = pairs.into_iter();
        let mut rest: Option<Pair> = None;
        loop {
            let burst = next_burst(&mut pairs, &mut rest, self.size);
            if burst.is_empty() {
                return Ok(());
            }
            self.burst(&burst, sink)?;
            progress(self.swept.questions);
        }
    }

    fn burst(
        &mut self,
        pairs: &[Pair],
        sink: &mut dyn FnMut(AnsweredQuestion<'_>) -> io::Result<()>,
    ) -> Result<(), QuickError> {
        self.lab.check_unchanged(self.config)?;
        let asked: usize = pairs.iter().map(|pair| pair.services.len()).sum();
        let before = self.swept.questions;
        let watches = &mut self.watches;
        let mut watch = |routers: &BTreeSet<RouterName>, lab: &Lab, dir: &NetnsDir| {
            watches.see(routers, lab, dir)
        };
        let burst = self
            .desk
            .burst(&self.lab, pairs, Lone::Sweep(&mut watch), &mut |_| {})?;
        for (router, changes) in self.watches.changes() {
            self.tell(format!(
                "{router}: {changes} changed during the sweep; answers up to the {before}th are of \
                 the rules before"
            ));
        }
        self.size = resized(self.size, asked, burst.held);
        self.swept.bursts += 1;
        self.swept.dscp = burst.dscp;
        self.swept.backend = burst.plan.backend.to_string();
        self.give(pairs, burst, sink)
    }

    /// Gives the answers of a burst to the sink.
    fn give(
        &mut self,
        pairs: &[Pair],
        burst: Burst,
        sink: &mut dyn FnMut(AnsweredQuestion<'_>) -> io::Result<()>,
    ) -> Result<(), QuickError> {
        let Burst {
            plan,
            settled,
            through,
            kept,
            left,
            ..
        } = burst;
        kept.into_iter()
            .chain(left.iter().map(|e| WithCauses(e).to_string()))
            .for_each(|warning| self.tell(warning));
        let mut ways = Vec::new();
        if let Some(through) = through {
            let terms = &self.desk.terms;
            let told = report::told(&self.lab, terms, through.measured);
            told.warnings.into_iter().for_each(|text| self.tell(text));
            let wires = through.wire.into_iter().chain(through.wires);
            let closing = told
                .closing
                .into_iter()
                .chain(wires.map(QuickClosing::Wire));
            // Without the thread they are closed here.
            let _ = self.closer.send(closing.collect());
            ways = through.ways;
        }
        let mut order = plan.catalogue.in_order_asked().iter();
        for (pair, settled) in pairs.iter().zip(&settled) {
            for (&service, &index) in pair.services.iter().zip(&mut order) {
                let end = match settled {
                    Some(ending) => report::settled_one(service, ending),
                    None => {
                        let ways = ways.get_mut(index as usize).map(std::mem::take);
                        report::conclude(service, ways.unwrap_or_default())
                    }
                };
                let answer = AnsweredQuestion { pair, service, end };
                sink(answer).map_err(|source| QuickError::System {
                    what: "pass an answer on",
                    source,
                })?;
                self.swept.questions += 1;
            }
        }
        Ok(())
    }

    fn tell(&mut self, warning: String) {
        if self.told.len() < MOST_WARNINGS && self.told.insert(warning.clone()) {
            self.swept.warnings.push(warning);
        }
    }

    /// Gives back what was held.
    pub fn close(mut self) -> Swept {
        if self.told.len() == MOST_WARNINGS {
            self.swept
                .warnings
                .push("there was more to say than is listed here".to_owned());
        }
        let left: Vec<UndoError> = self.desk.close().0.into_iter().collect();
        log(&left);
        self.swept
            .warnings
            .extend(left.iter().map(|e| WithCauses(e).to_string()));
        self.swept
    }
}

/// The pairs of the next burst, of one family; of a pair with more services than fit in, what does
/// not is the `rest`.
fn next_burst(
    pairs: &mut dyn Iterator<Item = Pair>,
    rest: &mut Option<Pair>,
    size: usize,
) -> Vec<Pair> {
    let mut burst: Vec<Pair> = Vec::new();
    let mut room = size;
    while room > 0 {
        let Some(mut pair) = rest.take().or_else(|| pairs.next()) else {
            break;
        };
        let family = |pair: &Pair| pair.destination.is_ipv4();
        if burst
            .first()
            .is_some_and(|first| family(first) != family(&pair))
        {
            *rest = Some(pair);
            break;
        }
        if pair.services.len() > room {
            let services = pair.services.split_off(room);
            *rest = Some(Pair { services, ..pair });
        }
        room -= pair.services.len();
        if !pair.services.is_empty() {
            burst.push(pair);
        }
    }
    burst
}

/// How many questions the next burst has, where `asked` held routers for so long.
fn resized(size: usize, asked: usize, held: Duration) -> usize {
    let per_question = held.as_secs_f64() / asked.max(1) as f64;
    let fits = AIM.as_secs_f64() / per_question.max(1e-9);
    // The last burst of all may have been a small one.
    let fits = (fits as usize).min(size.saturating_mul(4));
    fits.clamp(FEWEST, MOST)
}

/// Watches over the rulesets of all routers that were asked.
#[derive(Default)]
struct Watches(BTreeMap<RouterName, RulesetWatch>);

impl Watches {
    /// Watches over these routers from now on.
    fn see(
        &mut self,
        routers: &BTreeSet<RouterName>,
        lab: &Lab,
        dir: &NetnsDir,
    ) -> Result<(), QuickError> {
        let new = routers
            .iter()
            .filter(|router| !self.0.contains_key(*router));
        let new: Vec<(&RouterName, NetnsFd)> = new
            .map(|router| {
                let id = RouterId::new(lab.lab.clone(), router.clone());
                Ok((router, dir.open(&id.netns())?))
            })
            .collect::<Result<_, QuickError>>()?;
        let places: Vec<&NetnsFd> = new.iter().map(|(_, netns)| netns).collect();
        let mut opened = Vec::new();
        visit(&places, |_| opened.push(RulesetWatch::open_here()))?;
        for ((router, _), watch) in new.iter().zip(opened) {
            // A kernel without nf_tables has nothing to watch.
            if let Ok(watch) = watch {
                self.0.insert((*router).clone(), watch);
            }
        }
        Ok(())
    }

    /// What was changed since the last look.
    fn changes(&mut self) -> Vec<(RouterName, RulesetChanges)> {
        let all = self.0.iter_mut().filter_map(|(router, watch)| {
            let changes = watch.changes().unwrap_or(RulesetChanges::Many);
            (changes != RulesetChanges::None).then(|| (router.clone(), changes))
        });
        all.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn pair(destination: &str, ports: std::ops::Range<u16>) -> Pair {
        let service = |port| Service {
            port,
            protocol: Protocol::Tcp,
        };
        let destination: std::net::IpAddr = destination.parse().unwrap();
        let source = match destination.is_ipv4() {
            true => "10.0.0.1",
            false => "2001:db8::1",
        };
        Pair {
            source: source.parse().unwrap(),
            destination,
            services: ports.map(service).collect(),
        }
    }

    #[test]
    fn bursts_have_one_family_and_all_questions_in_order() {
        let all = [
            pair("10.9.0.1", 1..6),
            pair("10.9.0.2", 1..1),
            pair("10.9.0.3", 1..4),
            pair("2001:db8::9", 1..3),
            pair("10.9.0.4", 1..2),
        ];
        let mut pairs = all.clone().into_iter();
        let (mut rest, mut bursts) = (None, Vec::new());
        loop {
            let burst = next_burst(&mut pairs, &mut rest, 4);
            if burst.is_empty() {
                break;
            }
            bursts.push(burst);
        }
        let sizes = |burst: &Vec<Pair>| -> usize { burst.iter().map(|p| p.services.len()).sum() };
        let sizes: Vec<usize> = bursts.iter().map(sizes).collect();
        assert_eq!(sizes, [4, 4, 2, 1]);
        let flat = |pairs: &mut dyn Iterator<Item = &Pair>| -> Vec<_> {
            let each = |p: &Pair| {
                let to = p.destination;
                p.services.clone().into_iter().map(move |s| (to, s))
            };
            pairs.flat_map(each).collect()
        };
        assert_eq!(flat(&mut bursts.iter().flatten()), flat(&mut all.iter()));
    }

    #[test]
    fn bursts_grow_and_shrink_towards_the_time_they_may_take() {
        assert_eq!(resized(1024, 1024, Duration::from_millis(60)), 4096);
        assert_eq!(resized(8192, 8192, Duration::from_millis(1200)), 4096);
        assert_eq!(resized(128, 128, Duration::from_secs(60)), FEWEST);
        assert_eq!(resized(16_384, 16_384, Duration::from_millis(1)), MOST);
    }
}
