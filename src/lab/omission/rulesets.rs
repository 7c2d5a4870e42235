//! From lines of a ruleset that are missing to the packets that they can concern.

use std::{cell::OnceCell, collections::BTreeSet, slice};

use super::{
    Concern, Extent, FactsPlace, Hooks, Omission, OmissionKind, RuleExtent, damage::is_several,
    place::Chains, stops::with_ipsets_of,
};
use crate::{
    firewall::rule::{
        Field, Match, OpenPorts, PortChoice, Rule, RuleVerdict, Test, Translation, may_translate,
        rewrites_headers,
    },
    lab::topology::{Ruleset, RulesetKind},
    netlink::object::Family,
};

/// A router's rulesets, read as far as it takes to say what a missing line concerns; each when it
/// is first needed.
#[derive(Debug)]
pub(crate) struct RulesetMaps<'a> {
    all: Vec<(&'a Ruleset, OnceCell<RulesetMap<'a>>)>,
}

impl<'a> RulesetMaps<'a> {
    /// Nothing is read yet.
    #[must_use]
    pub(crate) fn new(rulesets: &'a [Ruleset]) -> Self {
        let all = rulesets.iter().map(|ruleset| (ruleset, OnceCell::new()));
        Self { all: all.collect() }
    }

    /// What is missing where these lines of `ruleset`, counted from 0, are left out together.
    #[must_use]
    pub(crate) fn omission(&self, ruleset: &Ruleset, lines: &[usize]) -> Omission {
        let first = lines.first().copied().unwrap_or(0);
        if ruleset.kind == RulesetKind::Ipset {
            let line = ruleset.text.lines().nth(first).unwrap_or_default();
            return self.of_set_line(ruleset, line);
        }
        match self.all.iter().find(|(other, _)| *other == ruleset) {
            Some((own, map)) => {
                let map = map.get_or_init(|| RulesetMap::read(own.kind, &own.text));
                map.omission(ruleset, lines)
            }
            None => RulesetMap::read(ruleset.kind, &ruleset.text).omission(ruleset, lines),
        }
    }

    /// A set that is missing as a whole is missed by the rules that refer to it, and each says so
    /// itself. One that lacks an element makes rules match other packets than they should.
    fn of_set_line(&self, sets: &Ruleset, line: &str) -> Omission {
        let words: Vec<&str> = line.split_whitespace().collect();
        let concern = match words[..] {
            ["add", set, ..] => return self.of_set(sets, set),
            ["create", ..] => Concern::default(),
            _ => Concern::everything(),
        };
        Omission {
            kind: OmissionKind::Set,
            concern,
        }
    }

    /// What is missing where a set of `sets` lacks elements.
    #[must_use]
    pub(crate) fn of_set(&self, sets: &Ruleset, set: &str) -> Omission {
        Omission {
            kind: OmissionKind::Set,
            concern: self.users_of(&with_lists(&sets.text, set)),
        }
    }

    /// What the rules that refer to one of `sets` can match.
    fn users_of(&self, sets: &BTreeSet<&str>) -> Concern {
        let refers = |text: &str| {
            let words: Vec<&str> = text.split_whitespace().collect();
            let set = |pair: &[&str]| match *pair {
                [option, set] => option.ends_with("-set") && sets.contains(set),
                _ => false,
            };
            words.windows(2).any(set)
        };
        let mut concern = Concern::default();
        for (ruleset, map) in &self.all {
            if !matches!(ruleset.kind, RulesetKind::Iptables | RulesetKind::Ip6tables) {
                continue;
            }
            let map = map.get_or_init(|| RulesetMap::read(ruleset.kind, &ruleset.text));
            for at in 0..map.lines.len() {
                if map.lines.get(at).is_some_and(|line| refers(line.text)) {
                    let omission = map.omission(ruleset, &[at]);
                    concern.0.extend(omission.concern.0);
                }
            }
        }
        concern
    }
}

/// The rules that give packets another destination or take them out of their way, as text.
#[must_use]
pub(crate) fn redirecting(rulesets: &[Ruleset]) -> Vec<String> {
    texts(
        rulesets,
        |_| true,
        |rule| {
            let elsewhere = |field| matches!(field, Field::Destination | Field::DestinationPort);
            rule.proxied_to().is_some() || rule.sends_on() || rule.changes().any(elsewhere)
        },
    )
}

/// The rules that translate addresses or ports, as text. Where there are too many to keep, one that
/// translates everything stands for those that choose no source port.
#[must_use]
pub(crate) fn translating(rulesets: &[Ruleset]) -> Vec<String> {
    const MOST: usize = 64;
    let found = texts(rulesets, may_translate, |rule| rule.translation().is_some());
    if found.len() <= MOST {
        return found;
    }
    let chooses = |to: &Translation| to.random || to.to.iter().any(|goal| goal.ports.is_some());
    let mut some = texts(rulesets, may_translate, |rule| {
        rule.translation()
            .is_some_and(|to| to.source && chooses(to))
    });
    some.insert(0, "masquerade".to_owned());
    some
}

/// Whether rules change the options of TCP. Few rulesets name them at all, and only those are read.
#[must_use]
pub(crate) fn rewrites_tcp_options(rulesets: &[Ruleset]) -> bool {
    const NAMES: [&str; 3] = ["TCPMSS", "TCPOPTSTRIP", "tcp option"];
    let names = |r: &&Ruleset| NAMES.iter().any(|name| r.text.contains(name));
    let changes = |rule: &Rule| rule.changes().any(|field| field == Field::TcpOptions);
    let mut named = rulesets.iter().filter(names);
    named.any(|ruleset| !texts(slice::from_ref(ruleset), |_| true, changes).is_empty())
}

/// The rules that rewrite bits of headers which probes do not carry to the next router, as text. Only nft(8)
/// has such, and few rulesets do.
#[must_use]
pub(crate) fn rewriting(rulesets: &[Ruleset]) -> Vec<String> {
    let mut found = Vec::new();
    for ruleset in rulesets.iter().filter(|r| r.kind == RulesetKind::Nft) {
        let lines = ruleset.text.lines().map(str::trim);
        found.extend(
            lines
                .filter(|line| rewrites_headers(line))
                .map(str::to_owned),
        );
    }
    found
}

/// The texts of the rules that are `wanted`; only those are read whose text says that they `may` be, and what
/// says so of a line says so of each text that has the line.
fn texts(
    rulesets: &[Ruleset],
    may: impl Fn(&str) -> bool,
    wanted: impl Fn(&Rule) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for ruleset in rulesets.iter().filter(|r| r.kind != RulesetKind::Ipset) {
        // Most rulesets have no such line.
        if !may(&ruleset.text) {
            continue;
        }
        let map = RulesetMap::read(ruleset.kind, &ruleset.text);
        let rules = map.lines.iter().filter(|line| line.chain.is_some());
        let rules = rules.filter(|line| may(line.text));
        let rules = rules.filter(|line| wanted(&line.rule(map.xtables)));
        found.extend(rules.map(|line| line.text.trim().to_owned()));
    }
    found
}

/// The rules of iptables that ask a set of ipset(8) for ports and tell apart those that clients have, as text.
#[must_use]
pub(crate) fn asking_port_sets(rulesets: &[Ruleset]) -> Vec<String> {
    let sets = rulesets.iter().filter(|r| r.kind == RulesetKind::Ipset);
    let made = sets.flat_map(|sets| sets.text.lines()).filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_it = words.next() == Some("create");
        words
            .next()
            .filter(|_| is_it && words.next() == Some("bitmap:port"))
    });
    let names: Vec<String> = made.map(|set| format!("--match-set {set} ")).collect();
    let named = |text: &str| names.iter().any(|name| text.contains(name));
    let clients = PortChoice::OF_CLIENTS;
    texts(rulesets, named, |rule| {
        let known = with_ipsets_of(rulesets, rule.clone());
        // A set that changes may hold any port.
        let is_open = |test: &Match| matches!(&test.test, Test::Other { text, .. } if named(text));
        known.tells_ports_apart(OpenPorts::Clients)
            || known.tells_ports_apart(OpenPorts::Answered(clients))
            || known.matches.iter().any(is_open)
    })
}

/// Whether rules ask sets for hardware addresses.
#[must_use]
pub(crate) fn asks_hardware_addresses(rulesets: &[Ruleset]) -> bool {
    const KINDS: [&str; 3] = ["hash:mac", "hash:ip,mac", "bitmap:ip,mac"];
    let mut named = BTreeSet::new();
    for sets in rulesets.iter().filter(|r| r.kind == RulesetKind::Ipset) {
        for line in sets.text.lines() {
            let mut words = line.split_whitespace();
            if words.next() == Some("create")
                && let (Some(set), Some(kind)) = (words.next(), words.next())
                && KINDS.contains(&kind)
            {
                named.extend(with_lists(&sets.text, set));
            }
        }
    }
    let asks = |line: &str| {
        let mut words = line.split_whitespace();
        std::iter::from_fn(|| {
            words
                .find(|word| *word == "--match-set")
                .and_then(|_| words.next())
        })
        .any(|set| named.contains(set))
    };
    let mut rules = rulesets.iter().filter(|r| r.kind != RulesetKind::Ipset);
    !named.is_empty() && rules.any(|rules| rules.text.lines().any(asks))
}

/// The rules and policies that may stop a frame that a bridge hands on, or change it: those of families
/// bridge and netdev, and with `ip_rules` those of IPv4 and IPv6. What accepts it before does not count.
#[must_use]
pub(crate) fn stopping_frames(rulesets: &[Ruleset], ip_rules: bool) -> Vec<RuleExtent> {
    let mut found = Vec::new();
    for ruleset in rulesets.iter().filter(|r| r.kind != RulesetKind::Ipset) {
        let map = RulesetMap::read(ruleset.kind, &ruleset.text);
        let lines = map.lines.iter();
        let chains = lines.filter_map(|line| Some((line.table?, line.chain?)));
        let chains: BTreeSet<_> = chains.collect();
        let lines = 0..map.lines.len();
        found.extend(lines.filter_map(|at| map.on_frames(at, &chains, ip_rules)));
    }
    found
}

/// Each rule of the rulesets.
pub(crate) fn rules(rulesets: &[Ruleset]) -> impl Iterator<Item = (String, Rule)> {
    let packets = rulesets.iter().filter(|r| r.kind != RulesetKind::Ipset);
    packets.flat_map(|ruleset| {
        let map = RulesetMap::read(ruleset.kind, &ruleset.text);
        let xtables = map.xtables;
        let rules = map.lines.into_iter().filter(|line| line.chain.is_some());
        rules.map(move |line| {
            let rule = line.rule(xtables);
            (line.text.to_owned(), rule)
        })
    })
}

/// A rule and where packets of IP meet it.
#[derive(Debug)]
pub(crate) struct PlacedRule {
    /// As the ruleset has it.
    pub(crate) text: String,
    /// The rule.
    pub(crate) rule: Rule,
    /// The hooks that it can be reached from; none where it sees frames alone.
    pub(crate) hooks: Hooks,
    /// Whether only the first packet of a connection asks it, and that once.
    pub(crate) of_nat: bool,
    /// Whether all chains that it leads to are chains: in text of iptables a target may look like one.
    pub(crate) to_chains: bool,
}

/// Each rule of the rulesets with its place, and the lines that say what sets and the like are and hold.
pub(crate) fn placed_rules(rulesets: &[Ruleset]) -> (Vec<PlacedRule>, Vec<String>) {
    let (mut rules, mut others) = (Vec::new(), Vec::new());
    for ruleset in rulesets.iter().filter(|r| r.kind != RulesetKind::Ipset) {
        let map = RulesetMap::read(ruleset.kind, &ruleset.text);
        if map.is_crowded() {
            let statements = map.lines.iter().flat_map(|line| crowded(line.text));
            for statement in statements {
                others.push(statement.text.clone());
                rules.push(statement);
            }
            continue;
        }
        for line in &map.lines {
            match (&line.chain, map.xtables) {
                (Some(chain), _) => rules.extend(map.placed(line, chain)),
                (None, false) => others.push(line.text.trim().to_owned()),
                (None, true) => {}
            }
        }
    }
    (rules, others)
}

/// The statements on a line, written by hand, on which several things stand: each may be a rule of any
/// chain, or say what a set holds.
fn crowded(line: &str) -> impl Iterator<Item = PlacedRule> {
    let statements = line.split(';').map(|statement| {
        let mut rest = statement.trim();
        while let Some((head, behind)) = rest.split_once('{') {
            if !head.starts_with("table ") && !head.starts_with("chain ") {
                break;
            }
            rest = behind.trim();
        }
        rest.trim_start_matches(['}', ' '])
    });
    let rules = statements.filter(|text| is_rule(text, false));
    rules.map(|text| PlacedRule {
        text: text.to_owned(),
        rule: Rule::of_nft(text),
        hooks: Hooks::ALL,
        of_nat: false,
        to_chains: true,
    })
}

/// Whether what stands in a chain is a rule, and not a part of what says which chain it is.
fn is_rule(text: &str, xtables: bool) -> bool {
    let first = text.split_whitespace().next().unwrap_or_default();
    match xtables {
        true => first.starts_with('-'),
        false => !matches!(
            first,
            "" | "chain" | "type" | "policy" | "comment" | "devices" | "}" | "#"
        ),
    }
}

/// `set` and the lists of sets that hold it.
fn with_lists<'a>(text: &'a str, set: &'a str) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::from([set]);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["add", list, member, ..] = words[..]
            && member == set
        {
            names.insert(list);
        }
    }
    names
}

/// One line and where it stands.
#[derive(Debug, Default)]
pub(super) struct RulesetLine<'a> {
    pub(super) text: &'a str,
    /// Index of the table.
    pub(super) table: Option<usize>,
    pub(super) chain: Option<&'a str>,
}

impl RulesetLine<'_> {
    fn rule(&self, xtables: bool) -> Rule {
        Rule::of_text(self.text.trim(), xtables)
    }
}

#[derive(Debug)]
pub(super) struct RulesetTable {
    pub(super) name: String,
    pub(super) family: Option<Family>,
    pub(super) layer: Layer,
    pub(super) chains: Chains,
}

/// What a table's chains see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// Packets of IP.
    Ip,
    /// Frames of bridges.
    Bridge,
    /// Frames of single devices, before IP does.
    Device,
    /// ARP.
    Arp,
}

/// The tables of a ruleset and where each line stands.
#[derive(Debug)]
pub(super) struct RulesetMap<'a> {
    pub(super) xtables: bool,
    pub(super) lines: Vec<RulesetLine<'a>>,
    pub(super) tables: Vec<RulesetTable>,
}

impl<'a> RulesetMap<'a> {
    pub(super) fn read(kind: RulesetKind, text: &'a str) -> Self {
        match kind {
            RulesetKind::Nft => nft(text),
            RulesetKind::Ip6tables => xtables(text, Family::V6),
            RulesetKind::Iptables | RulesetKind::Ipset => xtables(text, Family::V4),
        }
    }

    /// Whether it is one of nft(8) written by hand, with several things on one line.
    fn is_crowded(&self) -> bool {
        let crowded = |line: &str| line.contains("chain ") && line.contains("hook ");
        !self.xtables && self.lines.iter().any(|line| crowded(line.text))
    }

    /// The rule on `line` of `chain`, if there is one.
    fn placed(&self, line: &RulesetLine, chain: &str) -> Option<PlacedRule> {
        let text = line.text.trim();
        let table = line.table.and_then(|at| self.tables.get(at))?;
        if !is_rule(text, self.xtables) {
            return None;
        }
        let rule = line.rule(self.xtables);
        let chains = &table.chains;
        let hooks = chains.of(chain);
        let to_chains = !self.xtables || rule.called().all(|to| chains.has(to));
        Some(PlacedRule {
            text: text.to_owned(),
            rule,
            hooks: match table.layer {
                Layer::Ip if self.xtables && hooks.is_empty() && !chains.has(chain) => {
                    undeclared(chain, &table.name)
                }
                Layer::Ip => hooks,
                Layer::Bridge | Layer::Device | Layer::Arp => Hooks::default(),
            },
            of_nat: match self.xtables {
                true => table.name == "nat",
                false => chains.translates(chain),
            },
            to_chains,
        })
    }

    /// What is missing where these lines of `ruleset`, of which this is the map, are left out.
    fn omission(&self, ruleset: &Ruleset, lines: &[usize]) -> Omission {
        let first = lines.first().and_then(|at| self.lines.get(*at));
        let Some(line) = first else {
            return Omission::of_everything(OmissionKind::Rule);
        };
        let table = line.table.and_then(|at| self.tables.get(at));
        let Some(table) = table else {
            return Omission::of_everything(OmissionKind::Rule);
        };
        let keyword = line.text.split_whitespace().next().unwrap_or_default();
        let (kind, extent) = match (keyword, line.chain) {
            ("table", _) => (OmissionKind::Table, whole(table, Hooks::ALL)),
            (word, _) if word.starts_with('*') => (
                OmissionKind::Table,
                whole(table, hooks_of_table(&table.name)),
            ),
            (word, Some(chain)) if word == "chain" || word.starts_with(':') => {
                (OmissionKind::Chain, whole(table, table.chains.of(chain)))
            }
            (_, Some(chain)) => {
                let first = lines.first().copied().unwrap_or(0);
                let at = FactsPlace::of(ruleset, first);
                let rule = self.rule(table, chain, lines);
                // What may be several rules may stand in other chains, too.
                let rule = match is_several(&self.text_of(lines), self.xtables) {
                    true => rule,
                    false => rule.standing_at(at),
                };
                (OmissionKind::Rule, rule)
            }
            // What refers to it says so itself.
            (
                "set" | "map" | "flowtable" | "counter" | "quota" | "limit" | "ct" | "secmark"
                | "synproxy" | "tunnel",
                None,
            ) => return nothing(OmissionKind::Set),
            (_, None) => (OmissionKind::Rule, whole(table, Hooks::ALL)),
        };
        let extents = extent.has_effect().then_some(Extent::Rule(extent));
        Omission {
            kind,
            concern: Concern(extents.into_iter().collect()),
        }
    }

    /// What line `at` can do to a frame that a bridge hands on; none where it stops none.
    fn on_frames(
        &self,
        at: usize,
        chains: &BTreeSet<(usize, &str)>,
        ip_rules: bool,
    ) -> Option<RuleExtent> {
        let line = self.lines.get(at)?;
        let (number, chain) = (line.table?, line.chain?);
        let table = self.tables.get(number)?;
        let sees = match table.layer {
            Layer::Ip => ip_rules,
            Layer::Bridge | Layer::Device => true,
            Layer::Arp => false,
        };
        let hooks = table.chains.of(chain);
        if !sees || !(hooks.ingress || hooks.prerouting || hooks.forward || hooks.postrouting) {
            return None;
        }
        let text = line.text.trim();
        let drops = ["policy drop", "policy queue"];
        match text.split_whitespace().next()? {
            "type" => drops.iter().any(|policy| text.contains(policy)),
            word if word.starts_with(':') => text.split_whitespace().nth(1) == Some("DROP"),
            "chain" | "}" | "policy" | "comment" | "devices" => false,
            _ => {
                let rule = line.rule(self.xtables);
                let leads = |verdict: &RuleVerdict| match verdict {
                    RuleVerdict::Accept | RuleVerdict::Return => false,
                    RuleVerdict::Jump(to) | RuleVerdict::Goto(to) => {
                        !chains.contains(&(number, to.as_str()))
                    }
                    _ => true,
                };
                let stops = rule.verdicts().any(leads) || rule.changes().any(Field::is_sent);
                let unread = !self.xtables && super::rule::ends_unread(&rule);
                return (stops || unread).then(|| self.rule(table, chain, &[at]));
            }
        }
        .then(|| whole(table, hooks))
    }

    /// These lines as one.
    fn text_of(&self, lines: &[usize]) -> String {
        let texts = lines.iter().filter_map(|at| self.lines.get(*at));
        let text: Vec<&str> = texts.map(|line| line.text.trim()).collect();
        text.join(" ")
    }

    fn rule(&self, table: &RulesetTable, chain: &str, lines: &[usize]) -> RuleExtent {
        let text = self.text_of(lines);
        // Behind a `#` stands what nft(8) could not print, which may be anything.
        let unprinted = text.split_once(" # ").filter(|_| !self.xtables);
        if let Some((before, _)) = unprinted.filter(|(_, c)| !c.starts_with("handle ")) {
            let hooks = table.chains.of(chain);
            return RuleExtent {
                text: before.to_owned(),
                ..RuleExtent::unknown(table.family, hooks)
            };
        }
        let mut hooks = table.chains.of(chain);
        if self.xtables && hooks.is_empty() && !table.chains.has(chain) {
            // What is called otherwise in the tool's own words may be any chain of the table.
            hooks = hooks_of_table(&table.name);
        }
        RuleExtent::new(
            &text,
            self.xtables,
            table.chains.filter(),
            table.family,
            hooks,
        )
    }
}

fn nothing(kind: OmissionKind) -> Omission {
    Omission {
        kind,
        concern: Concern::default(),
    }
}

fn whole(table: &RulesetTable, hooks: Hooks) -> RuleExtent {
    RuleExtent::unknown(table.family, hooks)
}

/// The hooks of a table of iptables(8).
fn hooks_of_table(name: &str) -> Hooks {
    let none = Hooks::default();
    match name {
        "filter" | "security" => Hooks {
            input: true,
            forward: true,
            output: true,
            ..none
        },
        "nat" => Hooks {
            forward: false,
            ingress: false,
            ..Hooks::ALL
        },
        "raw" => Hooks {
            prerouting: true,
            output: true,
            ..none
        },
        _ => Hooks::ALL,
    }
}

/// The hooks of a chain of iptables(8) that a ruleset does not declare.
fn undeclared(chain: &str, table: &str) -> Hooks {
    match Hooks::named(chain) {
        Hooks::ALL => hooks_of_table(table),
        hooks => hooks,
    }
}

fn xtables(text: &str, family: Family) -> RulesetMap<'_> {
    let mut map = RulesetMap {
        xtables: true,
        lines: Vec::new(),
        tables: Vec::new(),
    };
    for line in text.lines() {
        // Without the counters of `iptables-save -c`.
        let rule = line.split_once("] ").filter(|_| line.starts_with('['));
        let rule = rule.map_or(line, |(_, rule)| rule);
        if let Some(name) = rule.strip_prefix('*') {
            map.tables.push(RulesetTable {
                name: name.trim().to_owned(),
                family: Some(family),
                layer: Layer::Ip,
                chains: Chains::default(),
            });
        }
        let chain = map.tables.last_mut().and_then(|t| xtables_line(rule, t));
        map.lines.push(RulesetLine {
            text: rule,
            table: map.tables.len().checked_sub(1),
            chain,
        });
    }
    map
}

/// Notes what the line says about chains; returns the chain that it is about.
fn xtables_line<'a>(rule: &'a str, table: &mut RulesetTable) -> Option<&'a str> {
    if let Some(head) = rule.strip_prefix(':') {
        let mut words = head.split_whitespace();
        let (chain, policy) = (words.next()?, words.next()?);
        table.chains.add(chain);
        if policy != "-" {
            let filters = matches!(table.name.as_str(), "filter" | "security");
            table.chains.add_base(chain, Hooks::named(chain), filters);
        }
        return Some(chain);
    }
    let rest = rule
        .strip_prefix("-A ")
        .or_else(|| rule.strip_prefix("-I "))?;
    let chain = rest.split_whitespace().next()?;
    // A target leads to no chain. To read all of a rule for this takes longer than to load it.
    let mut words = rule
        .split('"')
        .step_by(2)
        .flat_map(str::split_whitespace)
        .peekable();
    while let Some(word) = words.next() {
        if let ("-j" | "-g" | "--jump" | "--goto", Some(to)) = (word, words.peek()) {
            table.chains.add_jump(Some(chain), to);
        }
    }
    Some(chain)
}

fn nft(text: &str) -> RulesetMap<'_> {
    let mut map = RulesetMap {
        xtables: false,
        lines: Vec::new(),
        tables: Vec::new(),
    };
    // Braces that are open, each with the chain that it began, if it was one.
    let mut open: Vec<Option<&str>> = Vec::new();
    for text in text.lines() {
        let words: Vec<&str> = without_strings(text);
        if open.is_empty() && words.first() == Some(&"table") {
            map.tables.push(nft_table(&words));
        }
        let mut chain = open.iter().rev().find_map(|chain| *chain);
        let begun = match words[..] {
            ["chain", name, "{", ..] if open.len() == 1 => Some(name),
            _ => None,
        };
        if begun.is_some() {
            chain = begun;
        }
        if let Some(table) = map.tables.last_mut() {
            nft_line(&words, chain, table);
        }
        map.lines.push(RulesetLine {
            text,
            table: map.tables.len().checked_sub(1),
            chain,
        });
        for word in &words {
            match *word {
                word if word.ends_with('{') => open.push(begun),
                word if word.starts_with('}') => {
                    open.pop();
                }
                _ => {}
            }
        }
    }
    map
}

/// `table inet filter {`, or `table filter {` which is of family ip.
fn nft_table(words: &[&str]) -> RulesetTable {
    let (family, name) = match *words {
        [_, "ip", name, ..] => (Some(Family::V4), name),
        [_, "ip6", name, ..] => (Some(Family::V6), name),
        [_, _, name, "{", ..] => (None, name),
        [_, name, ..] => (Some(Family::V4), name),
        _ => (None, ""),
    };
    RulesetTable {
        name: name.to_owned(),
        family,
        layer: match words.get(1) {
            Some(&"netdev") => Layer::Device,
            Some(&"bridge") => Layer::Bridge,
            Some(&"arp") => Layer::Arp,
            _ => Layer::Ip,
        },
        chains: Chains::default(),
    }
}

/// The words of a line, up to its comment; quoted strings do not count.
fn without_strings(text: &str) -> Vec<&str> {
    let outside = text.split('"').step_by(2);
    let words = outside.flat_map(str::split_whitespace);
    words.take_while(|word| !word.starts_with('#')).collect()
}

fn nft_line(words: &[&str], chain: Option<&str>, table: &mut RulesetTable) {
    let filters = words.get(1) == Some(&"filter");
    for pair in words.windows(2) {
        match (pair, chain) {
            (["hook", name], Some(chain)) => {
                table.chains.add_base(chain, Hooks::named(name), filters);
            }
            (["jump" | "goto", to], chain) => {
                let name = to.trim_end_matches([',', ';', '}']);
                table.chains.add_jump(chain, name);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind and extents of line `at` that is left out.
    fn left_out(ruleset: &Ruleset, at: usize) -> (OmissionKind, Vec<RuleExtent>) {
        let all = slice::from_ref(ruleset);
        let omission = RulesetMaps::new(all).omission(ruleset, &[at]);
        let rules = omission.concern.0.into_iter().map(|extent| match extent {
            Extent::Rule(rule) => rule,
            Extent::Packets(packets) => panic!("{packets:?}"),
        });
        (omission.kind, rules.collect())
    }

    const IPTABLES: &str = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:mine - [0:0]\n\
        :orphan - [0:0]\n-A FORWARD -j mine\n-A mine -m geoip -j DROP\n-A orphan -m geoip -j DROP\n\
        [3:4] -A INPUT -m geoip -j DROP\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n";

    #[test]
    fn a_rule_is_reached_from_the_hooks_that_lead_to_its_chain() {
        let rules = Ruleset::for_test(RulesetKind::Iptables, IPTABLES);
        let (kind, extents) = left_out(&rules, 6);
        assert_eq!(kind, OmissionKind::Rule);
        assert_eq!(extents[0].hooks, Hooks::named("FORWARD"));
        assert_eq!(extents[0].family, Some(Family::V4));
        assert_eq!(left_out(&rules, 7).1, [], "no chain leads there");
        assert_eq!(left_out(&rules, 8).1[0].hooks, Hooks::named("INPUT"));
        let (kind, extents) = left_out(&rules, 10);
        assert_eq!(kind, OmissionKind::Table);
        assert!(extents[0].hooks.prerouting && !extents[0].hooks.forward);
    }

    const NFT: &str = "table inet x {\n\tmap m {\n\t\telements = { 1 : jump mapped }\n\t}\n\
        \tset s {\n\t}\n\
        \tchain f {\n\t\ttype filter hook forward priority filter; policy drop;\n\
        \t\ttcp dport vmap { 80 : jump web, 443 : goto web }\n\t\tnosuch 1 drop\n\t}\n\
        \tchain web {\n\t\tnosuch 2 drop comment \"}\"\n\t}\n\tchain mapped {\n\t\tnosuch 3\n\t}\n}\n\
        table ip6 y {\n\tchain i {\n\t\ttype filter hook input priority 0\n\t\tnosuch 4 drop\n\t}\n}\n";

    #[test]
    fn nft_chains_are_reached_by_jumps_in_rules_and_maps() {
        let rules = Ruleset::for_test(RulesetKind::Nft, NFT);
        let hooks = |at: usize| left_out(&rules, at).1[0].hooks;
        assert_eq!(hooks(9), Hooks::named("forward"));
        assert_eq!(hooks(12), Hooks::named("forward"));
        assert_eq!(hooks(15), Hooks::ALL, "a map may be used anywhere");
        let (_, extents) = left_out(&rules, 21);
        assert_eq!(extents[0].hooks, Hooks::named("input"));
        assert_eq!(extents[0].family, Some(Family::V6));
        assert_eq!(left_out(&rules, 4), (OmissionKind::Set, vec![]));
        assert_eq!(left_out(&rules, 11).0, OmissionKind::Chain);
    }

    #[test]
    fn an_element_concerns_what_the_rules_that_use_its_set_can_match() {
        let sets = Ruleset::for_test(
            RulesetKind::Ipset,
            "create bad hash:ip\nadd bad 1.2.3.4\ncreate all list:set\nadd all bad\n",
        );
        let rules = Ruleset::for_test(
            RulesetKind::Iptables,
            "*filter\n:FORWARD ACCEPT [0:0]\n\
             -A FORWARD -p tcp --dport 80 -m set --match-set all src -j DROP\n\
             -A FORWARD -p tcp --dport 81 -m set --match-set other src -j DROP\nCOMMIT\n",
        );
        let all = [sets, rules];
        let maps = RulesetMaps::new(&all);
        let element = maps.omission(&all[0], &[1]);
        assert_eq!(element.concern.0.len(), 1, "{element:?}");
        assert!(maps.omission(&all[0], &[0]).concern.is_nothing());
    }
}
