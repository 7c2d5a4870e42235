//! Why a service was blocked, in types and in words.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use crate::{
    firewall::{
        Caveat,
        nft::trace::{ProbeExit, TraceStep},
        place::HookPoint,
        rule::{Alone, walk::WalkTarget},
        ruletext::RuleText,
    },
    model::IfName,
    run::{outside::OutsideReason, sentence::untaken},
};

/// What a rule did with a packet that it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndingAction {
    /// Discarded it.
    Dropped,
    /// Discarded it and answered with this.
    Rejected(String),
    /// Handed it to this queue, from which it did not come back.
    Queued {
        /// The queue's number.
        queue: u16,
        /// Whether a program listens there.
        listener: bool,
    },
    /// Took it away (`NF_STOLEN`), as SYNPROXY does.
    Taken,
}

impl fmt::Display for EndingAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dropped => f.write_str("dropped"),
            Self::Rejected(with) => write!(f, "rejected with {with}"),
            Self::Queued { queue, .. } => write!(f, "handed to NFQUEUE {queue}"),
            Self::Taken => f.write_str("taken away"),
        }
    }
}

/// What stopped a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A rule.
    Rule {
        /// At which hook.
        hook: HookPoint,
        /// What it did.
        action: EndingAction,
        /// The rule.
        rule: RuleText,
    },
    /// The policy of a base chain.
    Policy {
        /// At which hook.
        hook: HookPoint,
        /// The chain, e.g. `chain forward (table inet fw)`.
        chain: String,
    },
    /// Something at a hook that nf_tables does not trace.
    Within(HookPoint),
    /// Perhaps a rule that takes packets away, at a hook where nothing was seen to stop it. Before
    /// Linux 5.19 the trace read such packets when they were gone already, and showed nothing.
    PerhapsTaken {
        /// At which hook.
        hook: HookPoint,
        /// The rule.
        rule: RuleText,
    },
    /// A program of the router takes it by this rule of nft(8), if one listens, and no route leads it there
    /// then. Where none listens, it goes on.
    Untaken(RuleText),
    /// Something outside netfilter.
    Outside(OutsideReason),
    /// Nothing: it went through when it was sent again.
    WentThrough(ProbeExit),
    /// Its way caused more trace events than fit.
    TooManyEvents,
}

impl Reason {
    /// Whether it names what stopped the probe.
    #[must_use]
    pub fn is_known(&self) -> bool {
        match self {
            Self::Rule { .. } | Self::Policy { .. } => true,
            Self::Outside(reason) => reason.is_known(),
            Self::Within(_)
            | Self::PerhapsTaken { .. }
            | Self::Untaken(_)
            | Self::WentThrough(_)
            | Self::TooManyEvents => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { action, rule, .. } => {
                write!(f, "{action} by {rule}")?;
                match action {
                    EndingAction::Queued { listener: true, .. } => {
                        f.write_str(", whose listener has not given it back")
                    }
                    EndingAction::Queued { .. } => f.write_str(", without a listener"),
                    _ => Ok(()),
                }
            }
            Self::Policy { chain, .. } => write!(f, "dropped by the policy of {chain}"),
            Self::Within(hook) => write!(
                f,
                "dropped at {hook} by something that nf_tables does not trace, such as \
                 iptables-legacy or connection tracking"
            ),
            Self::PerhapsTaken { hook, rule } => write!(
                f,
                "perhaps taken away at {hook} by {rule}, which this kernel's trace does not show"
            ),
            Self::Untaken(rule) => f.write_str(&untaken(rule)),
            Self::Outside(reason) => reason.fmt(f),
            Self::WentThrough(_) => f.write_str("went through when it was sent again"),
            Self::TooManyEvents => f.write_str("its way has more trace events than can be held"),
        }
    }
}

/// What rules that depend on more than the packet have to do with a probe's end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubt {
    /// Whether it is the same whatever they say.
    pub sure: bool,
    /// Whether the probe gets through when it comes alone; none where chance decides, or where
    /// that cannot be told.
    pub alone: Option<bool>,
    /// Whether a rate stops what comes alone that would get through soon after another packet.
    pub soon: bool,
    /// The rules by which it varies.
    pub by: Vec<(Caveat, RuleText)>,
    /// Rules that read what those set.
    pub readers: Vec<RuleText>,
    /// Where chance leads the probe; none where no rule draws lots for it.
    pub lots: Option<Lots>,
}

/// Where rules that draw lots lead a probe that comes alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lots {
    /// Where to; none where that is not all known.
    pub targets: Option<BTreeSet<WalkTarget>>,
    /// Whether they decide only where it goes: whoever sees it go to all of the targets knows all
    /// that can become of it.
    pub only_where: bool,
}

impl Lots {
    /// How many targets these are, each port of a range by itself.
    pub fn count(targets: &BTreeSet<WalkTarget>) -> usize {
        let ports = |(first, last): (u32, u32)| (last.saturating_sub(first) + 1) as usize;
        Self::sum(targets, |target| target.ports.map_or(1, ports))
    }

    /// The sum of `count` over the targets. Where a rule always chooses the same one of several, only one
    /// counts, and since which one is not known, it is the one with the lowest count.
    pub fn sum(targets: &BTreeSet<WalkTarget>, count: impl Fn(&WalkTarget) -> usize) -> usize {
        let mut drawn = 0;
        let mut chosen: BTreeMap<_, BTreeMap<_, usize>> = BTreeMap::new();
        for target in targets {
            match target.chosen {
                None => drawn += count(target),
                Some(rule) => {
                    let ends = chosen.entry(rule).or_default();
                    *ends.entry((target.destination, target.ports)).or_default() += count(target);
                }
            }
        }
        let lowest = chosen.values().filter_map(|ends| ends.values().min());
        drawn + lowest.sum::<usize>()
    }
}

/// The longest wait for nothing but the name of a rule.
const SHORT: Duration = Duration::from_millis(50);

/// A blocked service with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The service's index.
    pub index: u32,
    /// What stopped its probe.
    pub reason: Reason,
    /// Rules on its way that decide by more than the packet, whether they matched this time or
    /// not. Where there is one, another probe at another time may fare differently.
    pub caveats: Vec<(Caveat, RuleText)>,
    /// What may stop the probe, or one like it, where no tap sees that, in words.
    pub behind: Option<String>,
    /// Whether it was sent again by itself after as long as a rate on its way asks for, so that
    /// the rate has no part in the reason.
    pub alone: bool,
    /// What rules that depend on more than the packet have to do with its end; none where no such
    /// rule concerns it, or where its way is not known well enough.
    pub doubt: Option<Doubt>,
    /// The rule that sent a copy of it elsewhere before it was stopped.
    pub copied: Option<RuleText>,
    /// By which interface it was to leave when it was stopped, and its mark, where that mark led it
    /// another way than it would go without.
    pub led: Option<(IfName, u32)>,
    /// What the chains did with the probe, in order.
    pub steps: Vec<TraceStep>,
}

impl Explained {
    /// Rules on the way by which the outcome may differ: those that may let the probe through
    /// another time, and the one that stopped it.
    pub fn doubtful(&self) -> impl Iterator<Item = &(Caveat, RuleText)> {
        self.caveats.iter().filter(|(_, rule)| {
            let stopped = match &self.reason {
                Reason::Rule { rule: by, .. } => {
                    by.place == rule.place && by.position == rule.position
                }
                Reason::Policy { .. } => false,
                // It may be any of them.
                _ => true,
            };
            stopped || rule.parsed().may_pass()
        })
    }

    /// Rules that hold as they were measured, and may say something else at another time: those
    /// that ask for the clock, and for what a connection has moved.
    pub fn measured(&self) -> impl Iterator<Item = &(Caveat, RuleText)> {
        let measured = |rule: &RuleText| {
            let mut varying = rule.parsed().varying().map(|v| v.alone).collect::<Vec<_>>();
            varying.retain(|alone| *alone == Alone::AsMeasured);
            !varying.is_empty()
        };
        self.caveats.iter().filter(move |(_, rule)| measured(rule))
    }

    /// How long to wait to see which rule stops a probe that comes by itself, where it is stopped
    /// in any case and a rate decides by what: not for long.
    fn shows_which(&self) -> Option<Duration> {
        let Reason::Rule { rule, .. } = &self.reason else {
            return None;
        };
        let parsed = rule.parsed();
        let mut varying = parsed.varying().filter(|v| v.alone == Alone::Fails);
        let interval = varying.next()?.caveat.interval()?;
        (interval <= SHORT).then_some(interval)
    }

    /// Rules that stop the probe or leave it to another one to do so, by more than the packet.
    pub fn decide_which(&self) -> impl Iterator<Item = &(Caveat, RuleText)> {
        self.caveats.iter().filter(|(caveat, rule)| {
            let varies = matches!(
                caveat,
                Caveat::RateLimited(_) | Caveat::Quota(_) | Caveat::Random(_)
            );
            varies && rule.parsed().may_stop()
        })
    }

    /// How long to wait until the rates on the way allow one packet more, if a rate may have
    /// brought the end about that was seen, and only a probe sent by itself can show.
    #[must_use]
    pub fn waits_for(&self) -> Option<Duration> {
        let stopped = matches!(
            self.reason,
            Reason::Rule { .. } | Reason::Policy { .. } | Reason::Within(_)
        );
        let (asks, by) = match &self.doubt {
            Some(doubt) if doubt.sure => return self.shows_which(),
            Some(doubt) => {
                let known = doubt.alone == Some(!stopped);
                (!known, doubt.by.iter().collect())
            }
            None => (stopped, self.doubtful().collect::<Vec<_>>()),
        };
        let waits = by.into_iter().map(|(caveat, _)| caveat.interval());
        let known: Option<Vec<Duration>> = waits.collect();
        known?.into_iter().max().filter(|_| asks)
    }
}

/// Each caveat with its rule, once.
pub(in crate::run) fn notes<'a>(
    caveats: impl IntoIterator<Item = &'a (Caveat, RuleText)>,
) -> String {
    let mut texts: Vec<String> = Vec::new();
    for (caveat, rule) in caveats {
        let text = format!("{caveat} on {rule}");
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts.join("; ")
}

impl fmt::Display for Doubt {
    /// The rules by which a probe's end varies, and those that read what they set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&notes(&self.by))?;
        for reader in &self.readers {
            write!(f, "; what that sets is read by {reader}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Explained {
    /// The reason, and behind it each [`Caveat`] with its rule.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)?;
        for (caveat, rule) in &self.caveats {
            write!(f, "; {caveat} on {rule}")?;
        }
        Ok(())
    }
}
