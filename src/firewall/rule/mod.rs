//! What a rule asks of a packet, and what it does with one that it matches.
//!
//! A rule comes in three forms: as iptables-save(8) prints it ([`Rule::of_iptables`]), as nft(8)
//! does ([`Rule::of_nft`]), and as the expressions that the kernel holds ([`Rule::of_expressions`]).
//! All three become one [`Rule`], by one table of targets, statements and matches (`table`).
//!
//! Two questions are asked of it: may it match a packet of which this and that is known
//! ([`Rule::may_match`]), and what does it do then ([`Rule::does`], and the methods over it). What
//! is not understood may match, and may do anything.

mod caveat;
mod expression;
mod filled;
mod made_up;
mod nft;
mod packet;
mod rewritten;
mod sender;
mod source_port;
mod table;
mod test;
pub mod walk;
mod words;
mod xtables;

use std::borrow::Cow;

pub use self::rewritten::Rewritten;
pub use self::source_port::{OpenPorts, PortChoice};
pub(super) use self::words::comment;
pub(crate) use self::words::{pieces, words};
pub use self::{
    caveat::{Alone, Caveat},
    filled::{ChangedSets, SetLists},
    packet::{Field, Packet, TrackingState, Truth},
    test::{Match, Test, Varying},
};
pub(crate) use self::{nft::nets, rewritten::rewrites_headers};

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// What a packet has to be like; all of these.
    pub matches: Vec<Match>,
    /// What becomes of one that is, in order.
    pub does: Vec<Does>,
}

/// Something that a rule does with a packet that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Does {
    /// Ends the packet's way through the chain, or leads it elsewhere.
    Decide(RuleVerdict),
    /// One of these, by what the packet is like (`vmap`); which, cannot be told without a test.
    Choose(Vec<(Option<Test>, RuleVerdict)>),
    /// Makes `field` `(old & !mask) ^ value`; to what, is not known without a value.
    Set {
        /// What it changes.
        field: Field,
        /// The bits that it changes.
        mask: u32,
        /// What they become.
        value: Option<u32>,
    },
    /// Rewrites addresses or ports by connection tracking. The rest of the nat chain is not asked.
    Translate(Translation),
    /// Notes the packet in a set, or a list of `recent`, and so lets later packets fare differently.
    Remember(String),
    /// Takes the packet's entry out of a set.
    Forget(String),
    /// Sends a copy elsewhere.
    Copy,
    /// Logs, counts, and the like: nothing that a packet's way depends on.
    Note,
}

/// Where a rule leads a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleVerdict {
    /// On, past the rest of the base chain.
    Accept,
    /// Nowhere.
    Drop,
    /// Nowhere, with an answer such as `icmp-port-unreachable`.
    Reject(String),
    /// To where this chain was called from, or to the policy.
    Return,
    /// Into a chain and back. In text of iptables this is also a target that nobody here knows:
    /// only who knows the chains can tell.
    Jump(String),
    /// Into a chain, past the rest of this one.
    Goto(String),
    /// To a program that listens to this queue.
    Queue {
        /// The queue's number, the first where there are several.
        number: u16,
        /// Whether it goes on where nobody listens.
        bypass: bool,
    },
    /// To a socket of the router itself, if one listens there (TPROXY), and otherwise nowhere or on.
    Proxy {
        /// The port; none where it is the packet's own.
        port: Option<u16>,
        /// Whether it is dropped where nobody listens.
        or_drop: bool,
    },
    /// To SYNPROXY, which answers it in the server's place.
    AnswerItself,
    /// Out of another device at once, past all of IP.
    SendOn,
    /// Anywhere: the statement or target is not known.
    Unknown(String),
}

/// How addresses or ports are rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// The source's, or the destination's.
    pub source: bool,
    /// What they become, one of these; nothing where that is not known.
    pub to: Vec<Goal>,
    /// Whether the key of a map chooses among `to` by what a question fixes: always the same one.
    pub fixed: bool,
    /// Whether the packet goes to the router itself (REDIRECT).
    pub here: bool,
    /// Whether the port is drawn, even where the packet's own would do.
    pub random: bool,
}

/// What an address and a port become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    /// The address, or the net that it is moved to; none where it is not known.
    pub net: Option<ipnet::IpNet>,
    /// First and last of the ports; none where the port stays, or is not known.
    pub ports: Option<(u16, u16)>,
}

impl Rule {
    /// Reads a rule in either form of text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self::of_text(text, words::is_xtables(text))
    }

    /// Reads a rule of iptables-save(8), or of nft(8).
    #[must_use]
    pub fn of_text(text: &str, xtables: bool) -> Self {
        match xtables {
            true => Self::of_iptables(text),
            false => Self::of_nft(text),
        }
    }

    /// Whether it may match `packet`. A rule that depends on more than the packet never surely
    /// matches.
    #[must_use]
    pub fn may_match(&self, packet: &Packet) -> Truth {
        Truth::all(self.matches.iter().map(|test| test.answer(packet)))
    }

    /// The same, if everything that it depends on beyond the packet would let it match.
    #[must_use]
    pub fn may_match_at_best(&self, packet: &Packet) -> Truth {
        let at_best = |test: &Match| match (test.varying(), test.answer(packet)) {
            (Some(_), Truth::CannotTell) => Truth::Yes,
            (_, answer) => answer,
        };
        Truth::all(self.matches.iter().map(at_best))
    }

    /// Whether it can have to do with `packet` at all.
    #[must_use]
    pub fn concerns(&self, packet: &Packet) -> bool {
        self.may_match(packet) != Truth::No
    }

    /// What it depends on beyond the packet.
    pub fn varying(&self) -> impl Iterator<Item = &Varying> {
        self.matches.iter().filter_map(Match::varying)
    }

    /// The first thing beyond the packet that its outcome depends on. A rule that does nothing to
    /// a packet, such as one that logs a few per minute, has no outcome.
    #[must_use]
    pub fn caveat(&self) -> Option<&Caveat> {
        let acts = self.does.iter().any(|does| !matches!(does, Does::Note));
        self.varying().next().map(|v| &v.caveat).filter(|_| acts)
    }

    /// Where it may lead a packet.
    pub fn verdicts(&self) -> impl Iterator<Item = &RuleVerdict> {
        self.does.iter().flat_map(|does| match does {
            Does::Decide(verdict) => std::slice::from_ref(verdict).iter().collect::<Vec<_>>(),
            Does::Choose(list) => list.iter().map(|(_, verdict)| verdict).collect(),
            _ => Vec::new(),
        })
    }

    /// Whether it can end a packet's way or lead it elsewhere, or translates addresses; one that
    /// only logs, counts or marks does not.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.verdicts().next().is_some() || self.translation().is_some()
    }

    /// Whether it can stop a packet that it matches.
    #[must_use]
    pub fn may_stop(&self) -> bool {
        let passes =
            |verdict: &RuleVerdict| matches!(verdict, RuleVerdict::Accept | RuleVerdict::Return);
        self.verdicts().any(|verdict| !passes(verdict))
    }

    /// Whether it can let a packet through that it matches: end the walk, or lead it elsewhere.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        let stops =
            |verdict: &RuleVerdict| matches!(verdict, RuleVerdict::Drop | RuleVerdict::Reject(_));
        self.verdicts().any(|verdict| !stops(verdict)) || self.translation().is_some()
    }

    /// What of a packet it may change, in what leaves the router or in what other rules see.
    pub fn changes(&self) -> impl Iterator<Item = Field> {
        self.does.iter().flat_map(|does| match does {
            Does::Set { field, .. } => vec![*field],
            Does::Translate(Translation { source: true, .. }) => {
                vec![Field::Source, Field::SourcePort]
            }
            Does::Translate(_) => vec![Field::Destination, Field::DestinationPort],
            Does::Decide(RuleVerdict::Unknown(_)) => vec![Field::Other],
            _ => Vec::new(),
        })
    }

    /// How it rewrites addresses or ports, if it does.
    #[must_use]
    pub fn translation(&self) -> Option<&Translation> {
        self.does.iter().find_map(|does| match does {
            Does::Translate(translation) => Some(translation),
            _ => None,
        })
    }

    /// Whether all that it does is to rewrite addresses or ports.
    #[must_use]
    pub fn only_rewrites(&self) -> bool {
        self.translation().is_some() && !self.may_stop()
    }

    /// What it answers with when it rejects; none when it does not reject.
    #[must_use]
    pub fn rejected_with(&self) -> Option<&str> {
        self.verdicts().find_map(|verdict| match verdict {
            RuleVerdict::Reject(with) => Some(with.as_str()),
            _ => None,
        })
    }

    /// The queue that it hands packets to.
    #[must_use]
    pub fn queue(&self) -> Option<u16> {
        self.verdicts().find_map(|verdict| match verdict {
            RuleVerdict::Queue { number, .. } => Some(*number),
            _ => None,
        })
    }

    /// Whether it hands packets to a socket of the router, and to which port, as TPROXY does.
    #[must_use]
    pub fn proxied_to(&self) -> Option<Option<u16>> {
        self.verdicts().find_map(|verdict| match verdict {
            RuleVerdict::Proxy { port, .. } => Some(*port),
            _ => None,
        })
    }

    /// Whether it answers packets itself instead of letting them go on: SYNPROXY opens a connection
    /// to the server only when the client has shown that it exists.
    #[must_use]
    pub fn answers_itself(&self) -> bool {
        self.verdicts().any(|v| *v == RuleVerdict::AnswerItself)
    }

    /// Whether it sends packets out of another device at once, past all of IP.
    #[must_use]
    pub fn sends_on(&self) -> bool {
        self.verdicts()
            .any(|verdict| *verdict == RuleVerdict::SendOn)
    }

    /// Whether it takes packets away (`NF_STOLEN`), which not every kernel's trace shows.
    #[must_use]
    pub fn takes(&self) -> bool {
        self.answers_itself() || self.sends_on()
    }

    /// Whether what becomes of a packet is a question of the programs that listen on the router, as with nft's
    /// tproxy, or of a rule that takes it away.
    #[must_use]
    pub fn leaves_to_others(&self) -> bool {
        let passes = |v: &RuleVerdict| matches!(v, RuleVerdict::Proxy { or_drop: false, .. });
        self.takes() || self.verdicts().any(passes)
    }

    /// Where it remembers a packet: sets, or lists of `recent`.
    pub fn remembers(&self) -> impl Iterator<Item = &str> {
        self.does.iter().filter_map(|does| match does {
            Does::Remember(place) => Some(place.as_str()),
            _ => None,
        })
    }

    /// The set out of which it takes a packet's entry.
    #[must_use]
    pub fn forgets(&self) -> Option<&str> {
        self.does.iter().find_map(|does| match does {
            Does::Forget(place) => Some(place.as_str()),
            _ => None,
        })
    }

    /// Whether it sends a copy elsewhere.
    #[must_use]
    pub fn copies(&self) -> bool {
        self.does.contains(&Does::Copy)
    }

    /// Whether a plain measurement may say less than all: it remembers or copies packets, or does
    /// something to them that depends on more than the packet.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        let by_port = || {
            let any = OpenPorts::Translated(PortChoice::OF_ROUTERS);
            self.tells_ports_apart(any) && (self.decides() || self.changes_any())
        };
        self.remembers().next().is_some()
            || self.forgets().is_some()
            || self.copies()
            || self.caveat().is_some()
            || by_port()
    }

    fn changes_any(&self) -> bool {
        self.changes().next().is_some()
    }

    /// Takes over what is known of named limits and quotas: whether one matches what exceeds it.
    pub fn know_objects(&mut self, is_over: impl Fn(&str) -> Option<bool>) {
        for test in &mut self.matches {
            let Test::Varies(varying) = &mut test.test else {
                continue;
            };
            let (Caveat::RateLimited(text) | Caveat::Quota(text)) = &varying.caveat else {
                continue;
            };
            let name = text
                .split_once(" name ")
                .map(|(_, name)| words::unquoted(name));
            if let Some(over) = name.and_then(|name| is_over(&name)) {
                varying.alone = Alone::if_matches(!over);
            }
        }
    }

    /// The chains that it leads to. In text of iptables there may be targets among them.
    pub fn called(&self) -> impl Iterator<Item = &str> {
        self.verdicts().filter_map(|verdict| match verdict {
            RuleVerdict::Jump(name) | RuleVerdict::Goto(name) => Some(name.as_str()),
            _ => None,
        })
    }

    fn decide(&mut self, verdict: RuleVerdict) {
        self.does.push(Does::Decide(verdict));
    }

    fn ask(&mut self, test: Test, negated: bool) {
        self.matches.push(Match { test, negated });
    }
}

/// The rules of a chain by which a packet of a job, all of which are like `packet`, left an entry
/// somewhere, by index, and where. `asked` of them were asked about this one, and it `matched` some.
///
/// A rule that counts per element adds it before it decides. Behind a rule whose outcome varies,
/// another packet may have come to a rule where this one did not.
pub fn entries<'a>(
    rules: &'a [Rule],
    asked: usize,
    matched: impl Fn(usize) -> bool,
    packet: &Packet,
) -> Vec<(usize, &'a str)> {
    let mut uncertain = false;
    let mut found = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let concerned = rule.concerns(packet) && (at < asked || uncertain);
        let varies = concerned && rule.varying().next().is_some();
        if matched(at) || varies || (concerned && uncertain) {
            found.extend(rule.remembers().map(|place| (at, place)));
        }
        uncertain |= varies && rule.decides();
    }
    found
}

/// The rule of a text that may be missing: one that nobody has printed may do anything.
#[must_use]
pub fn rule_of(text: Option<&str>) -> Rule {
    text.map_or_else(Rule::unknown, Rule::of)
}

/// Whether a rule of this text may rewrite addresses or ports, told without reading it: few rules of a
/// large ruleset name a target or statement that does, and to read them all takes longer than to load
/// them.
#[must_use]
pub(crate) fn may_translate(text: &str) -> bool {
    let named = |name: &str| {
        let mut words = text.split_ascii_whitespace();
        text.contains(name) && words.any(|word| word.trim_matches(['"', ';', '}']) == name)
    };
    table::translating().any(named)
}

impl Rule {
    /// A rule of which nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        let text: Cow<'_, str> = "a rule that could not be read".into();
        Self {
            matches: vec![Match {
                test: Test::Other {
                    text: text.clone().into_owned(),
                    reads: vec![Field::Other],
                },
                negated: false,
            }],
            does: vec![Does::Decide(RuleVerdict::Unknown(text.into_owned()))],
        }
    }
}

#[cfg(test)]
mod tests;
