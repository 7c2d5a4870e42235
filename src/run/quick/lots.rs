//! Probes that rules of the router draw lots for.
//!
//! Chance about *where to* is no chance about *whether*. The rules say where such a probe may go
//! ([`Lots`]); copies of it, each with a tag and a source port of its own, are sent until each target
//! was seen. Where all of them are reached, the packet's way is followed to each; where one is not
//! seen or some copies are stopped, the verdict is UNKNOWN with the count.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    QuickError,
    client_port::{fresh_port, port_behind, random},
    measure::Probing,
};
use crate::{
    firewall::{
        Caveat, Taps,
        rule::walk::WalkTarget,
        taps::{Departed, ProbeWays, Runs},
    },
    model::Protocol,
    run::{
        explain::{Explained, Lots},
        packet::Probe,
        report::Verdict,
        verdict::{Finding, Findings},
    },
};

/// More targets than these are not asked for.
const MOST_TARGETS: usize = 64;
/// The fewest copies of a probe: of two targets alike, one stays unseen once in 2³¹ times.
const FEWEST_COPIES: usize = 32;
/// Copies for each target, before those that stayed unseen are tried for again.
const COPIES_PER_TARGET: usize = 16;
/// The most copies of one probe: a target that takes one packet in a hundred is still seen.
const MOST_COPIES: usize = 1024;
/// Copies that are sent in one measurement.
const AT_ONCE: usize = 8192;

/// What lots have to do with the probes of a visit.
#[derive(Debug, Default)]
pub(super) struct Drawn {
    told: BTreeMap<u32, Told>,
    /// How copies left, where they left in several ways and all of these are to be followed.
    pub(super) targets: BTreeMap<u32, Vec<Departed>>,
}

/// What is to be said of a probe.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// That it is undecided, and why.
    Unknown(String),
    /// That it goes to one of so many targets, and gets through to each.
    All(usize),
}

impl Drawn {
    /// Puts what lots decide into the verdicts.
    pub(super) fn tell(self, reasons: &mut BTreeMap<u32, (Verdict, String)>) {
        for (index, told) in self.told {
            let before = reasons.remove(&index);
            let why = before.as_ref().map(|(_, why)| format!("; {why}"));
            let why = why.unwrap_or_default();
            let told = match told {
                Told::Unknown(text) => (Verdict::Unknown, format!("{text}{why}")),
                Told::All(1) => (Verdict::Yes, format!("it has one target{why}")),
                Told::All(count) => (Verdict::Yes, format!("through to all {count} targets{why}")),
            };
            reasons.insert(index, told);
        }
    }
}

/// How copies of one probe fared.
#[derive(Debug, Default)]
struct Sample {
    sent: usize,
    through: usize,
    /// How those that got through left, each way once.
    left: Vec<Departed>,
    /// Why it is not known of one.
    unknown: Option<String>,
    /// Whether it is not known of the probe itself either: nothing behind the router is, then.
    blind: bool,
}

impl Sample {
    /// Counts one; whether it got through.
    fn count(&mut self, finding: &Finding) -> bool {
        let through = matches!(finding, Finding::Passed | Finding::Delivered);
        self.sent += 1;
        self.through += usize::from(through);
        through
    }

    fn add(&mut self, finding: &Finding, left: Option<Result<&Departed, &str>>) {
        if !self.count(finding) {
            return;
        }
        match left {
            Some(Ok(left)) if self.left.iter().any(|known| same_way(known, left)) => {}
            Some(Ok(left)) => self.left.push(*left),
            Some(Err(why)) => self.unknown = Some(why.to_owned()),
            None => self.unknown = Some("how it left is not known".to_owned()),
        }
    }

    /// How many of `targets` no copy went to.
    fn unseen(&self, targets: &BTreeSet<WalkTarget>) -> usize {
        let is_seen = |target: &WalkTarget, port: Option<u32>| {
            let mut left = self.left.iter();
            left.any(|left| is_at(left, target, port))
        };
        let unseen = |target: &WalkTarget| match target.ports {
            None => usize::from(!is_seen(target, None)),
            Some((first, last)) => (first..=last)
                .filter(|p| !is_seen(target, Some(*p)))
                .count(),
        };
        Lots::sum(targets, unseen)
    }
}

/// Whether what left so takes the same way: copies differ in their source port.
fn same_way(a: &Departed, b: &Departed) -> bool {
    let rest = |left: &Departed| Departed {
        source_port: 0,
        ..*left
    };
    rest(a) == rest(b)
}

fn is_at(left: &Departed, target: &WalkTarget, port: Option<u32>) -> bool {
    target.destination.contains(&left.destination)
        && target.source.is_none_or(|net| net.contains(&left.source))
        && port.is_none_or(|port| port == u32::from(left.destination_port))
}

/// What a job sends copies of probes with.
pub(super) struct Urn<'a> {
    pub(super) taps: &'a Taps,
    /// The probes of the visit, in ascending order of their indexes.
    pub(super) probes: &'a [Probe],
    /// Whether the question leaves the source port open.
    pub(super) any_port: bool,
}

impl Urn<'_> {
    /// Finds out what lots decide of the probes that were looked into.
    pub(super) fn draw(
        &self,
        probing: &mut Probing<'_>,
        explained: &[Explained],
        (findings, ways): (&Findings, Option<&ProbeWays>),
    ) -> Result<Drawn, QuickError> {
        let random = |(caveat, _): &(Caveat, _)| matches!(caveat, Caveat::Random(_));
        let mut drawn: Vec<&Explained> = explained.iter().collect();
        drawn.retain(|e| e.caveats.iter().any(random) && findings.get(e.index).is_some());
        drawn.sort_unstable_by_key(|e| e.index);
        let mut samples: BTreeMap<u32, Sample> = BTreeMap::new();
        for explained in &drawn {
            let index = explained.index;
            if let Some(finding) = findings.get(index) {
                let sample = samples.entry(index).or_default();
                match ways {
                    Some(ways) => {
                        sample.add(finding, ways.get(index));
                        sample.blind = sample.unknown.is_some();
                    }
                    // Nothing changes packets here, so it was not noted.
                    None => _ = sample.count(finding),
                }
            }
        }
        let mut copies = 0;
        loop {
            let open = drawn.iter().filter_map(|e| {
                let sample = samples.get(&e.index)?;
                Some((e.index, wanted(sample, lots(e))?))
            });
            let open: Vec<(u32, usize)> = open.collect();
            let Some(most) = open.iter().map(|(_, copies)| *copies).max() else {
                break;
            };
            copies = most.max(copies);
            let indexes: Vec<u32> = open.into_iter().map(|(index, _)| index).collect();
            for some in indexes.chunks((AT_ONCE / copies).max(1)) {
                self.send(probing, some, copies, &mut samples)?;
            }
        }
        let mut found = Drawn::default();
        for explained in drawn {
            if let Some(sample) = samples.remove(&explained.index) {
                found.judge(explained, sample);
            }
        }
        Ok(found)
    }

    /// Sends copies of some probes, and adds how they fared.
    fn send(
        &self,
        probing: &mut Probing<'_>,
        indexes: &[u32],
        copies: usize,
        samples: &mut BTreeMap<u32, Sample>,
    ) -> Result<(), QuickError> {
        let by_index = |index: &u32| self.probes.binary_search_by_key(index, |p| p.index).ok();
        let originals = indexes
            .iter()
            .filter_map(|index| self.probes.get(by_index(index)?));
        let mut runs: Vec<(Protocol, u32)> = Vec::new();
        let mut probes = Vec::with_capacity(indexes.len() * copies);
        let begin = fresh_port()?;
        for (original, number) in originals.flat_map(|p| (0..copies as u16).map(move |n| (p, n))) {
            let mut headers = original.headers;
            if self.any_port {
                headers.source_port = port_behind(begin, number);
            }
            match runs.last_mut() {
                Some((protocol, length)) if *protocol == headers.protocol => *length += 1,
                _ => runs.push((headers.protocol, 1)),
            }
            let index = probes.len() as u32;
            probes.push(Probe { index, headers });
        }
        let taps = Taps {
            tags: self.taps.tags.anew(random()?),
            services: probes.len() as u32,
            runs: Runs::new(&runs),
            note_ways: true,
            ..self.taps.clone()
        };
        let measured = probing.measure_others(&taps, &probes)?;
        for (number, finding) in measured.findings.iter() {
            let original = indexes.get(number as usize / copies);
            if let Some(sample) = original.and_then(|index| samples.get_mut(index)) {
                let left = measured.ways.as_ref().and_then(|ways| ways.get(number));
                sample.add(finding, left);
            }
        }
        Ok(())
    }
}

fn lots(explained: &Explained) -> Option<&Lots> {
    explained.doubt.as_ref()?.lots.as_ref()
}

/// How many more copies of a probe are wanted; none where enough is known.
fn wanted(sample: &Sample, lots: Option<&Lots>) -> Option<usize> {
    let undecided = sample.through == 0 || sample.through == sample.sent;
    if !undecided || sample.sent >= MOST_COPIES {
        return None;
    }
    let targets = lots.and_then(|lots| lots.targets.as_ref());
    let targets = targets.filter(|targets| Lots::count(targets) <= MOST_TARGETS);
    let least = (targets.map_or(0, Lots::count) * COPIES_PER_TARGET).max(FEWEST_COPIES);
    if sample.sent < least {
        return Some(least - sample.sent);
    }
    let unseen = sample.through > 0 && targets.is_some_and(|t| sample.unseen(t) > 0);
    unseen.then(|| (MOST_COPIES / 4).min(MOST_COPIES - sample.sent))
}

impl Drawn {
    fn judge(&mut self, explained: &Explained, sample: Sample) {
        let index = explained.index;
        let Sample { sent, through, .. } = sample;
        if through == 0 {
            return;
        }
        let told = if through < sent {
            Some(Told::Unknown(format!(
                "chance decides: {through} of {sent} packets got through"
            )))
        } else {
            through_to(explained, &sample)
        };
        let settled = !matches!(told, Some(Told::Unknown(_)));
        if settled && !sample.blind && sample.left.len() > 1 {
            self.targets.insert(index, sample.left);
        }
        self.told.extend(told.map(|told| (index, told)));
    }
}

/// What to say of a probe all of whose copies got through; none where what was said is right.
fn through_to(explained: &Explained, sample: &Sample) -> Option<Told> {
    let Some(doubt) = &explained.doubt else {
        let text = "a rule draws lots for it, and its way is not known well enough to say for what";
        return Some(Told::Unknown(text.to_owned()));
    };
    let lots = doubt.lots.as_ref()?;
    let unknown = |text: String| Some(Told::Unknown(text));
    if sample.blind {
        return None;
    }
    if let Some(why) = &sample.unknown {
        return unknown(format!("chance decides where it goes: {why}"));
    }
    let seen = sample.left.len();
    let Some(targets) = &lots.targets else {
        return unknown(format!(
            "chance decides where it goes, and not all targets are known; {seen} were seen"
        ));
    };
    let of = Lots::count(targets).max(seen);
    if of > MOST_TARGETS {
        return unknown(format!(
            "chance sends it to one of {of} targets, and more than {MOST_TARGETS} are not asked for"
        ));
    }
    let unseen = sample.unseen(targets);
    if unseen > 0 {
        return unknown(format!(
            "chance sends it to one of {of} targets, {unseen} of which were not seen with {} packets",
            sample.sent
        ));
    }
    // What is not proven for each target was measured for each.
    let open = !doubt.sure && doubt.alone.is_none() && explained.behind.is_none();
    (open && lots.only_where).then_some(Told::All(of))
}

/// Ways of the given probes as they left by the lot with this number; none where no probe has so
/// many.
pub(super) fn nth(targets: &BTreeMap<u32, Vec<Departed>>, number: usize) -> Option<ProbeWays> {
    let last = targets.keys().next_back()?;
    let mut ways = ProbeWays::new(last + 1);
    let mut some = false;
    for (index, left) in targets {
        if let Some(left) = left.get(number) {
            ways.insert(*index, *left);
            some = true;
        }
    }
    some.then_some(ways)
}

/// A target in words.
pub(super) fn name(destination: IpAddr, port: u16) -> String {
    format!("{destination} port {port}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::explain::{Doubt, Reason};

    fn target(to: &str) -> WalkTarget {
        WalkTarget {
            source: None,
            destination: to.parse().unwrap(),
            ports: Some((80, 80)),
            chosen: None,
        }
    }

    fn left(to: &str, source_port: u16) -> Departed {
        Departed {
            source: "10.0.0.1".parse().unwrap(),
            destination: to.parse().unwrap(),
            source_port,
            destination_port: 80,
            tos: 0,
            ttl: 63,
            oif: 2,
            next_hop: None,
            mark: 0,
        }
    }

    fn explained(lots: Lots, sure: bool) -> Explained {
        Explained {
            index: 0,
            reason: Reason::TooManyEvents,
            caveats: Vec::new(),
            behind: None,
            alone: false,
            doubt: Some(Doubt {
                sure,
                lots: Some(lots),
                ..Doubt::default()
            }),
            copied: None,
            led: None,
            steps: Vec::new(),
        }
    }

    fn lots(only_where: bool) -> Lots {
        Lots {
            targets: Some([target("10.1.0.1/32"), target("10.1.0.2/32")].into()),
            only_where,
        }
    }

    fn sample(ends: &[Option<&str>]) -> Sample {
        let mut sample = Sample::default();
        for (port, end) in (40_000..).zip(ends) {
            match end {
                Some(to) => sample.add(&Finding::Passed, Some(Ok(&left(to, port)))),
                None => sample.add(&Finding::Stopped, None),
            }
        }
        sample
    }

    fn judged(explained: &Explained, ends: &[Option<&str>]) -> (Option<String>, usize) {
        let mut drawn = Drawn::default();
        drawn.judge(explained, sample(ends));
        let targets = drawn.targets.get(&0).map_or(0, Vec::len);
        let mut reasons = BTreeMap::new();
        drawn.tell(&mut reasons);
        let told = reasons.remove(&0);
        (
            told.map(|(verdict, why)| format!("{verdict}: {why}")),
            targets,
        )
    }

    const A: Option<&str> = Some("10.1.0.1");
    const B: Option<&str> = Some("10.1.0.2");

    #[test]
    fn only_who_saw_all_targets_says_yes() {
        let proven = explained(lots(true), true);
        assert_eq!(judged(&proven, &[A, B, A]), (None, 2));
        let (told, targets) = judged(&proven, &[A, A, A]);
        assert!(
            told.unwrap()
                .contains("one of 2 targets, 1 of which were not seen with 3")
        );
        assert_eq!(targets, 0);
        let open = explained(lots(true), false);
        let told = judged(&open, &[A, B]).0.unwrap();
        assert_eq!(told, "YES: through to all 2 targets");
        // Chance has a part in whether, too: what was said before stays.
        assert_eq!(judged(&explained(lots(false), false), &[A, B]).0, None);
    }

    #[test]
    fn of_targets_that_a_question_fixes_one_is_enough() {
        let chosen = |to| WalkTarget {
            chosen: Some((0, 0)),
            ..target(to)
        };
        let lots = |drawn: Option<&str>| Lots {
            targets: Some(
                [chosen("10.1.0.1/32"), chosen("10.1.0.2/32")]
                    .into_iter()
                    .chain(drawn.map(target))
                    .collect(),
            ),
            only_where: true,
        };
        assert_eq!(judged(&explained(lots(None), true), &[A; 32]), (None, 0));
        assert_eq!(wanted(&sample(&[A; 32]), Some(&lots(None))), None);
        let (told, _) = judged(&explained(lots(Some("10.1.0.3/32")), true), &[A; 32]);
        assert!(told.unwrap().contains("one of 2 targets, 1 of which"));
    }

    #[test]
    fn one_copy_that_fares_differently_leaves_it_undecided() {
        let told = judged(&explained(lots(true), true), &[A, None, B]).0;
        assert_eq!(
            told.unwrap(),
            "UNKNOWN: chance decides: 2 of 3 packets got through"
        );
        assert_eq!(
            judged(&explained(lots(true), true), &[None, None]),
            (None, 0)
        );
    }

    #[test]
    fn targets_that_are_not_all_known_or_too_many_leave_it_undecided() {
        let unknown = Lots {
            targets: None,
            only_where: true,
        };
        let told = judged(&explained(unknown, true), &[A, B]).0.unwrap();
        assert!(told.starts_with("UNKNOWN: chance decides where it goes, and not all"));
        let many = Lots {
            targets: Some(
                [WalkTarget {
                    ports: Some((1, 100)),
                    ..target("10.1.0.1/32")
                }]
                .into(),
            ),
            only_where: true,
        };
        let told = judged(&explained(many, true), &[A]).0.unwrap();
        assert!(
            told.contains("one of 100 targets, and more than 64"),
            "{told}"
        );
    }

    #[test]
    fn copies_are_sent_until_each_target_was_seen() {
        let lots = lots(true);
        assert_eq!(wanted(&sample(&[A]), Some(&lots)), Some(31));
        assert_eq!(wanted(&sample(&[A; 32]), Some(&lots)), Some(256));
        assert_eq!(wanted(&sample(&[A; 1024]), Some(&lots)), None);
        let mut both = [A; 32];
        both[7] = B;
        assert_eq!(wanted(&sample(&both), Some(&lots)), None);
        assert_eq!(wanted(&sample(&[A, None]), Some(&lots)), None);
    }
}
