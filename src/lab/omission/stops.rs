//! Whether rules surely stop a packet at a hook, read in the rulesets' text: for packets that no
//! job sends, and that the router needs all the same.
//!
//! What cannot be told counts against neither side: a rule that may drop the packet is passed over,
//! and so is one that may accept it; but for what stops neighbour discovery by a test that says nothing of
//! who asks. What may stop any packet is asked in `ends`.

mod ends;
mod frames;
mod groups;
mod sets;

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use self::sets::KnownSets;
pub(crate) use self::sets::{with_ipsets_of, with_sets_of};
pub(crate) use self::{ends::PossibleStop, frames::BridgedFrame};
use super::rulesets::{Layer, RulesetMap};
use crate::{
    firewall::rule::{Alone, Does, Field, Match, Packet, Rule, RuleVerdict, Test, Truth},
    lab::topology::{Ruleset, RulesetKind},
    model::IfName,
    netlink::object::Family,
};

/// Of how many neighbours that rules name the rules are asked one by one.
const MOST_NAMED: usize = 1024;

/// Jumps deeper than the kernel allows are not followed.
const DEEPEST: usize = 16;

/// The chains of a router's rulesets, as far as they filter.
#[derive(Debug)]
pub(crate) struct Filters(Vec<Table>);

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StopQuery<'a> {
    /// A packet at one of IP's hooks, by the name that nft(8) has for it.
    Packet(&'a Packet),
    /// A packet as the rules of one device see it.
    OnDevice(&'a Packet, &'a IfName),
    /// A question or answer of ARP, as the rules of one device see it.
    Arp(&'a IfName),
    /// ARP as the tables of its family see it.
    ArpTable,
    /// A packet as rules of family bridge see it.
    Bridged(&'a Packet),
    /// A packet as rules of IP see it that are asked for what a bridge hands on, with the port that it came
    /// in by, and the one that it leaves by where that is known yet.
    OnPorts(&'a Packet, &'a IfName, Option<&'a IfName>),
}

impl<'a> StopQuery<'a> {
    /// The packet of IP that is asked about.
    fn packet(self) -> Option<&'a Packet> {
        match self {
            Self::Packet(packet)
            | Self::OnDevice(packet, _)
            | Self::Bridged(packet)
            | Self::OnPorts(packet, ..) => Some(packet),
            Self::Arp(_) | Self::ArpTable => None,
        }
    }

    /// The same question about another packet of IP.
    fn of(self, packet: &'a Packet) -> Self {
        match self {
            Self::Packet(_) => Self::Packet(packet),
            Self::OnDevice(_, device) => Self::OnDevice(packet, device),
            Self::Bridged(_) => Self::Bridged(packet),
            Self::OnPorts(_, comes, leaves) => Self::OnPorts(packet, comes, leaves),
            Self::Arp(_) | Self::ArpTable => self,
        }
    }
}

/// A rule or a policy that stops a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stop {
    /// Which of the rulesets.
    pub ruleset: usize,
    /// Its line, counted from 0.
    pub line: usize,
    /// The rule or policy.
    pub text: String,
}

#[derive(Debug)]
struct Table {
    ruleset: usize,
    family: Option<Family>,
    layer: Layer,
    chains: BTreeMap<String, Chain>,
    /// What sets hold that its rules ask for.
    sets: KnownSets,
}

#[derive(Debug, Default)]
struct Chain {
    base: Option<Base>,
    rules: Vec<Written>,
}

/// A rule, read when a packet first comes to it: most rules of a large ruleset are in chains that nobody
/// asks about here.
#[derive(Debug)]
struct Written {
    line: usize,
    text: String,
    xtables: bool,
    read: OnceCell<Rule>,
}

impl Written {
    fn rule(&self, sets: &KnownSets) -> &Rule {
        self.read.get_or_init(|| {
            let rule = Rule::of_text(&self.text, self.xtables);
            sets.resolve(rule, self.xtables)
        })
    }
}

/// How a chain is hooked in.
#[derive(Debug)]
struct Base {
    hook: String,
    /// Whatever stands between `device` or `devices` and the priority.
    devices: String,
    /// Where its policy drops what no rule decides on.
    drops: Option<usize>,
    /// Whether it translates: it sees the first packet of a connection alone.
    nat: bool,
}

/// How a packet leaves a chain.
enum Flow {
    On,
    Accepted,
    Stopped(usize, String),
}

impl Filters {
    /// Reads the rulesets.
    #[must_use]
    pub(crate) fn of(rulesets: &[Ruleset]) -> Self {
        let numbered = rulesets.iter().enumerate();
        let filters = numbered.filter(|(_, ruleset)| ruleset.kind != RulesetKind::Ipset);
        let sets = KnownSets::of_ipset(rulesets);
        Self(
            filters
                .flat_map(|(at, ruleset)| tables(at, ruleset, &sets))
                .collect(),
        )
    }

    /// Whether a rule may set the packet's mark.
    #[must_use]
    pub(crate) fn may_mark(&self) -> bool {
        const WAYS: [&str; 4] = ["mark set", "--set-mark", "--set-xmark", "--restore-mark"];
        let chains = self.0.iter().flat_map(|table| table.chains.values());
        let mut rules = chains.flat_map(|chain| &chain.rules);
        rules.any(|rule| WAYS.iter().any(|way| rule.text.contains(way)))
    }

    /// The single hosts and networks within `net` that rules or sets name. Of more than the first
    /// [`MOST_NAMED`] nothing is told.
    #[must_use]
    pub(crate) fn named_within(&self, net: IpNet) -> BTreeSet<IpNet> {
        let chains = self.0.iter().flat_map(|table| table.chains.values());
        let texts = chains.flat_map(|chain| &chain.rules);
        let words = texts.flat_map(|rule| rule.text.split([' ', ',', '{', '}']));
        let named = words.filter(|word| word.contains(':')).filter_map(|word| {
            let one = || word.parse().map(|address: IpAddr| IpNet::from(address));
            word.parse::<IpNet>().or_else(|_| one()).ok()
        });
        let sets = self.0.iter().flat_map(|table| table.sets.nets());
        let within = |other: &IpNet| *other != net && net.contains(other);
        named.chain(sets).filter(within).take(MOST_NAMED).collect()
    }

    /// What surely stops the packet at `hook`; none where nothing does.
    #[must_use]
    pub(crate) fn stop(&self, hook: &str, asked: StopQuery<'_>) -> Option<Stop> {
        self.0.iter().find_map(|table| {
            let (line, text) = table.sees(asked).then(|| table.stop(hook, asked))??;
            Some(Stop {
                ruleset: table.ruleset,
                line,
                text,
            })
        })
    }
}

impl Table {
    fn stop(&self, hook: &str, asked: StopQuery<'_>) -> Option<(usize, String)> {
        self.chains.values().find_map(|chain| {
            let base = chain.base.as_ref()?;
            if base.hook != hook || base.nat {
                return None;
            }
            let here = match asked {
                StopQuery::Packet(_)
                | StopQuery::Bridged(_)
                | StopQuery::OnPorts(..)
                | StopQuery::ArpTable => true,
                StopQuery::OnDevice(_, device) | StopQuery::Arp(device) => {
                    names(&base.devices, device)
                }
            };
            if !here {
                return None;
            }
            match self.follow(chain, asked, &mut None, 0) {
                Flow::Stopped(line, text) => Some((line, text)),
                Flow::Accepted => None,
                Flow::On => base
                    .drops
                    .map(|line| (line, format!("the policy of {hook}"))),
            }
        })
    }

    /// `marked` is the packet with the mark that rules before gave it, where they did.
    fn follow(
        &self,
        chain: &Chain,
        first: StopQuery<'_>,
        marked: &mut Option<Packet>,
        depth: usize,
    ) -> Flow {
        for written in &chain.rules {
            let (rule, text) = (written.rule(&self.sets), &written.text);
            let before = marked.clone();
            let asked = before.as_ref().map_or(first, |packet| first.of(packet));
            match answer(rule, text, asked) {
                Truth::Yes => {}
                Truth::CannotTell if groups::may_stop(rule, asked) => {
                    let text = format!("`{}`, where it matches,", text.trim());
                    return Flow::Stopped(written.line, text);
                }
                Truth::No => continue,
                Truth::CannotTell => {
                    let either = marked_by(rule, asked).map(|mut packet| {
                        packet.forget(Field::Mark);
                        packet
                    });
                    *marked = either.or(before.clone());
                    continue;
                }
            }
            if spoils(rule, asked) {
                let text = format!("`{}`, which changes its hop limit,", text.trim());
                return Flow::Stopped(written.line, text);
            }
            *marked = marked_by(rule, asked).or(before.clone());
            let Some(verdict) = verdict(rule, asked) else {
                continue;
            };
            match verdict {
                RuleVerdict::Drop | RuleVerdict::Reject(_) => {
                    return Flow::Stopped(written.line, format!("`{}`", text.trim()));
                }
                RuleVerdict::Return => return Flow::On,
                RuleVerdict::Jump(name) | RuleVerdict::Goto(name) => {
                    let called = self.chains.get(name).filter(|_| depth < DEEPEST);
                    let flow =
                        called.map_or(Flow::On, |c| self.follow(c, first, marked, depth + 1));
                    match (flow, verdict) {
                        (Flow::On, RuleVerdict::Jump(_)) => {}
                        (flow, _) => return flow,
                    }
                }
                // What becomes of it elsewhere is not known.
                _ => return Flow::Accepted,
            }
        }
        Flow::On
    }
}

/// Whether a rule takes from a message of neighbour discovery the hop limit of 255 without which nobody
/// heeds it (RFC 4861 section 7.1).
fn spoils(rule: &Rule, asked: StopQuery<'_>) -> bool {
    let Some(packet) = asked.packet() else {
        return false;
    };
    let kinds = packet.numbers(Field::Icmpv6Type).unwrap_or_default();
    let discovers = |kinds: &(u32, u32)| 133 <= kinds.0 && kinds.1 <= 137;
    packet.family == Some(Family::V6)
        && kinds.iter().any(discovers)
        && rule.does.iter().any(|does| {
            matches!(does, Does::Set { field: Field::Ttl, value, .. } if *value != Some(255))
        })
}

/// The packet with the mark that a rule gives it; none where it gives none.
fn marked_by(rule: &Rule, asked: StopQuery<'_>) -> Option<Packet> {
    let mut marked = None;
    for does in &rule.does {
        if let Does::Set {
            field: Field::Mark,
            mask,
            value,
        } = does
        {
            let packet = marked.get_or_insert(asked.packet()?.clone());
            packet.rewrite(Field::Mark, *mask, *value);
        }
    }
    marked
}

/// Whether a rule surely matches.
fn answer(rule: &Rule, text: &str, asked: StopQuery<'_>) -> Truth {
    if let StopQuery::ArpTable = asked {
        return all(rule.matches.iter().map(|_| Truth::CannotTell));
    }
    let Some(packet) = asked.packet() else {
        return of_arp(rule, text, asked);
    };
    if matches!(asked, StopQuery::Bridged(_)) && frames::is_for_arp(text) {
        return Truth::No;
    }
    if let StopQuery::OnPorts(packet, comes, leaves) = asked
        && text.contains("physdev")
    {
        return match frames::of_other_tests(text, comes, leaves) {
            Some(rest) => {
                let rule = Rule::of_text(&rest, true);
                answer(&rule, &rest, StopQuery::Packet(packet))
            }
            None => Truth::No,
        };
    }
    all(rule
        .matches
        .iter()
        .map(|test| match (&test.test, test.answer(packet)) {
            (Test::Varies(_), Truth::CannotTell) => alone(test),
            (Test::Other { .. }, Truth::CannotTell) => groups::answer(test, asked),
            (_, answer) => answer,
        }))
}

fn all(answers: impl Iterator<Item = Truth>) -> Truth {
    answers.min().unwrap_or(Truth::Yes)
}

/// What a test that depends on more than the packet says of one that comes alone.
fn alone(test: &Match) -> Truth {
    let Test::Varies(varying) = &test.test else {
        return Truth::CannotTell;
    };
    match (varying.alone, test.negated) {
        (Alone::Matches, false) | (Alone::Fails, true) => Truth::Yes,
        (Alone::Fails, false) | (Alone::Matches, true) => Truth::No,
        _ => Truth::CannotTell,
    }
}

/// Whether a rule surely matches ARP, which is no packet of IP and has none of its fields.
fn of_arp(rule: &Rule, text: &str, asked: StopQuery<'_>) -> Truth {
    let is_arp = |word: &str| word.trim_matches([',', '{', '}']) == "arp";
    let mut words = text.split_ascii_whitespace();
    if let Some(at) = words.position(is_arp) {
        let mut before = text.split_ascii_whitespace().take(at);
        // Questions of the device itself have no tag.
        if before.clone().any(|word| word == "vlan") {
            return Truth::No;
        }
        return match before.any(|word| word == "!=") {
            true => Truth::No,
            false => Truth::Yes,
        };
    }
    all(rule
        .matches
        .iter()
        .map(|test| match (test.test.itself(), test.negated) {
            (Test::Varies(_), _) => alone(test),
            (Test::Family(_), true) => Truth::Yes,
            (Test::Family(_) | Test::Address { .. } | Test::Number { .. }, _) => Truth::No,
            (Test::Device { .. }, _) => Truth::CannotTell,
            (Test::Other { .. }, _) => groups::answer(test, asked),
        }))
}

/// Where a rule that matches surely leads; none where it only counts and the like, or that depends
/// on what is not known.
fn verdict<'r>(rule: &'r Rule, asked: StopQuery<'_>) -> Option<&'r RuleVerdict> {
    for does in &rule.does {
        match does {
            Does::Decide(verdict) => return Some(verdict),
            Does::Choose(choices) => {
                let packet = asked.packet()?;
                let fits = |test: &Test| test.answer(packet) == Truth::Yes;
                let chosen = choices
                    .iter()
                    .find(|(test, _)| test.as_ref().is_some_and(fits));
                return chosen.map(|(_, verdict)| verdict);
            }
            _ => {}
        }
    }
    None
}

/// The tables without their chains.
fn empty_tables(
    ruleset: usize,
    map: &RulesetMap<'_>,
    ipsets: &KnownSets,
    text: &str,
) -> Vec<Table> {
    let mut tables: Vec<Table> = map
        .tables
        .iter()
        .map(|table| Table {
            ruleset,
            family: table.family,
            layer: table.layer,
            chains: BTreeMap::new(),
            sets: match map.xtables {
                true => ipsets.clone(),
                false => KnownSets::default(),
            },
        })
        .collect();
    if !map.xtables {
        add_sets(&mut tables, map, text);
    }
    tables
}

/// The tables of a ruleset.
fn tables(ruleset: usize, of: &Ruleset, ipsets: &KnownSets) -> Vec<Table> {
    let map = RulesetMap::read(of.kind, &of.text);
    let mut tables = empty_tables(ruleset, &map, ipsets, &of.text);
    // A rule with braces may go on in the next line.
    let mut open: Option<(usize, String)> = None;
    for (at, line) in map.lines.iter().enumerate() {
        let (Some(number), Some(name)) = (line.table, line.chain) else {
            continue;
        };
        let translates = map.xtables && map.tables.get(number).is_some_and(|t| t.name == "nat");
        let Some(table) = tables.get_mut(number) else {
            continue;
        };
        if !table.chains.contains_key(name) {
            table.chains.insert(name.to_owned(), Chain::default());
        }
        let Some(chain) = table.chains.get_mut(name) else {
            continue;
        };
        let text = line.text.trim();
        let written = |line, text: String| Written {
            line,
            text,
            xtables: map.xtables,
            read: OnceCell::new(),
        };
        if map.xtables {
            match text.strip_prefix(':') {
                Some(head) => chain.base = xtables_base(at, head, translates),
                None => chain.rules.push(written(at, text.to_owned())),
            }
            continue;
        }
        if text.starts_with("type ") && text.contains(" hook ") {
            chain.base = nft_base(at, text);
            continue;
        }
        if text.starts_with("chain ") || text == "}" && open.is_none() {
            continue;
        }
        let (first, whole) = match open.take() {
            Some((first, begun)) => (first, format!("{begun} {text}")),
            None => (at, text.to_owned()),
        };
        if whole.matches('{').count() > whole.matches('}').count() {
            open = Some((first, whole));
        } else {
            chain.rules.push(written(first, whole));
        }
    }
    tables
}

/// Adds the sets of nft(8) to their tables.
fn add_sets(tables: &mut [Table], map: &RulesetMap<'_>, all: &str) {
    let mut open: Vec<&str> = Vec::new();
    for line in &map.lines {
        let text = line.text.trim();
        if open.is_empty() && !text.starts_with("set ") || line.chain.is_some() {
            continue;
        }
        open.push(text);
        let count = |brace| {
            open.iter()
                .map(|text| text.matches(brace).count())
                .sum::<usize>()
        };
        if count('{') == count('}') {
            let table = line.table.and_then(|number| tables.get_mut(number));
            table
                .into_iter()
                .for_each(|table| table.sets.add_nft(&open, all));
            open.clear();
        }
    }
}

/// `INPUT DROP [0:0]`; a chain of the user's own has `-` for a policy.
fn xtables_base(line: usize, head: &str, nat: bool) -> Option<Base> {
    let mut words = head.split_whitespace();
    let (chain, policy) = (words.next()?, words.next()?);
    (policy != "-").then(|| Base {
        hook: chain.to_ascii_lowercase(),
        devices: String::new(),
        drops: (policy == "DROP").then_some(line),
        nat,
    })
}

/// `type filter hook ingress device "eth0" priority 0; policy drop;`
fn nft_base(line: usize, text: &str) -> Option<Base> {
    let (_, rest) = text.split_once(" hook ")?;
    let (hook, rest) = rest.split_once(' ')?;
    let (devices, _) = rest.split_once("priority").unwrap_or((rest, ""));
    Some(Base {
        hook: hook.to_owned(),
        devices: devices.to_owned(),
        drops: text.contains("policy drop").then_some(line),
        nat: text.starts_with("type nat "),
    })
}

/// Whether `device` is among those that a chain is hooked in at.
fn names(devices: &str, device: &IfName) -> bool {
    let mut words = devices.split([' ', ',', '"', '{', '}']);
    words.any(|word| word == device.as_str())
}
