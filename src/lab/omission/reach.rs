//! Which rules that the lab lacks a packet can have met, by where they stood.
//!
//! A rule behind the one that decided cannot have changed a verdict. So a router's rulesets are kept
//! with its lab where it lacks rules of them, and are walked through as far as a packet is known: it
//! keeps to the way that was measured until a rule that is missing may have matched it.
//!
//! Only texts as the tools print them are read. Of any other, and wherever the walk does not come to
//! what was measured, nothing is said, and a missing rule is taken to have been met.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::{Endpoints, PacketOutcome};
use crate::{
    firewall::{
        RulePlace, TableFamily,
        iptables::BUILT_IN,
        place::HookPoint,
        rule::{
            Field, Packet, Rule, TrackingState,
            walk::{
                Base, ChainRules, Program, RoutedTo, RuleNumber, SeenPacket, Suppose, WalkEnd,
                WayEnds,
            },
        },
    },
    lab::topology::{Origin, Ruleset, RulesetKind},
    netlink::object::Family,
};

/// Where a rule stands in a router's facts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FactsPlace {
    /// In which of its rulesets.
    pub kind: RulesetKind,
    /// Where.
    pub origin: Origin,
}

impl FactsPlace {
    /// That of line `at` of `ruleset`, counted from 0.
    #[must_use]
    pub fn of(ruleset: &Ruleset, at: usize) -> Self {
        let mut origin = ruleset.origin.clone();
        origin.line += at;
        Self {
            kind: ruleset.kind,
            origin,
        }
    }
}

/// The rules of a router with those that its lab lacks, for packets of one family.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
    program: Program,
    places: BTreeMap<FactsPlace, RuleNumber>,
    /// What rules may change.
    changed: BTreeSet<Field>,
    /// What those may change that the lab has.
    here: BTreeSet<Field>,
}

/// What a packet can have met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Met {
    places: BTreeSet<FactsPlace>,
    met: BTreeSet<FactsPlace>,
    /// Whether it ends the same whether these match or not.
    same: bool,
    /// Whether no rule changes what the next router sees.
    keeps: bool,
}

impl Met {
    /// Whether the packet can have met the rule that stood there; one that is not known, it can.
    #[must_use]
    pub fn can(&self, place: &FactsPlace) -> bool {
        self.met.contains(place) || !self.places.contains(place)
    }

    /// Whether it ends the same whether that rule and the others match or not.
    #[must_use]
    pub fn is_same(&self, place: &FactsPlace) -> bool {
        self.same && self.places.contains(place)
    }

    /// What it can have met in this way or in that one.
    fn or(mut self, other: Self) -> Self {
        self.met.extend(other.met);
        self.same &= other.same;
        self.keeps &= other.keeps;
        self
    }

    /// Whether a packet that gets through leaves as it came, whatever rules match.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.keeps
    }
}

impl Reach {
    /// Of these rulesets the lab lacks the rules `missing`, by place with their texts. None where
    /// the rulesets cannot be walked through.
    #[must_use]
    pub(crate) fn of(
        rulesets: &[Ruleset],
        missing: &BTreeMap<FactsPlace, String>,
        family: Family,
    ) -> Option<Self> {
        let mut tables = Tables {
            family,
            missing,
            bases: Vec::new(),
            chains: Vec::new(),
            numbers: HashMap::new(),
            places: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        for ruleset in rulesets {
            match ruleset.kind {
                RulesetKind::Ipset => {}
                RulesetKind::Iptables if family == Family::V6 => {}
                RulesetKind::Ip6tables if family == Family::V4 => {}
                RulesetKind::Iptables | RulesetKind::Ip6tables => tables.xtables(ruleset)?,
                RulesetKind::Nft => tables.nft(ruleset)?,
            }
        }
        Some(tables.finish())
    }

    /// Whether a rule that the lab has may change what routes are looked up by.
    #[must_use]
    pub(crate) fn may_lead_elsewhere(&self) -> bool {
        [Field::Destination, Field::Mark, Field::Tos, Field::Other]
            .iter()
            .any(|field| self.here.contains(field))
    }

    /// What `packet`, as it came in, can have met on one of these courses; none where its way by the rules
    /// is not the one that was measured.
    #[must_use]
    pub(crate) fn met(
        &self,
        packet: &Packet,
        courses: &[Endpoints],
        outcome: PacketOutcome,
    ) -> Option<Met> {
        let mut all: Option<Met> = None;
        for &course in courses {
            let end = end_of(course, outcome)?;
            let ways = self.walk(packet, course);
            if ways.kept.contains(&WalkEnd::Open) {
                return None;
            }
            // On another course it would not have ended so.
            if !ways.kept.contains(&end) {
                continue;
            }
            let met = self.met_on(&ways, &end);
            all = Some(match all {
                Some(other) => other.or(met),
                None => met,
            });
        }
        all
    }

    fn walk(&self, packet: &Packet, course: Endpoints) -> WayEnds {
        let state = match self.changed.contains(&Field::Tracking) {
            true => packet
                .clone()
                .with_state(TrackingState::New)
                .with_state(TrackingState::Untracked),
            false => packet.clone().with_state(TrackingState::New),
        };
        let seen = SeenPacket {
            by_router: false,
            packet: state,
            local: course == Endpoints::Delivered,
            sent: false,
            ended_by: None,
            changed: self.changed.clone(),
        };
        let mut route = |_: &Packet| RoutedTo::Open;
        (self.program).walk(&seen, Suppose::Anything, &mut route)
    }

    fn met_on(&self, ways: &WayEnds, end: &WalkEnd) -> Met {
        let met = self
            .places
            .iter()
            .filter(|(_, rule)| ways.met.contains(rule));
        Met {
            places: self.places.keys().cloned().collect(),
            met: met.map(|(place, _)| place.clone()).collect(),
            keeps: !self.changed.iter().any(|field| field.is_sent()),
            same: ways
                .fates
                .iter()
                .all(|fate| *fate == WalkEnd::Same || fate == end),
        }
    }
}

/// How a walk ends that is like what was measured; none where that is not known.
fn end_of(course: Endpoints, outcome: PacketOutcome) -> Option<WalkEnd> {
    match (course, outcome) {
        (Endpoints::Sent, _) => None,
        (_, PacketOutcome::Stopped(_)) => Some(WalkEnd::Stopped),
        (Endpoints::Forwarded, PacketOutcome::Passed) => Some(WalkEnd::Out),
        (Endpoints::Delivered, PacketOutcome::Passed) => Some(WalkEnd::Local),
    }
}

/// Tables while they are read.
struct Tables<'a> {
    family: Family,
    missing: &'a BTreeMap<FactsPlace, String>,
    bases: Vec<Base>,
    chains: Vec<(RulePlace, Vec<Rule>)>,
    /// Indexes into these.
    numbers: HashMap<RulePlace, usize>,
    /// Missing rules by chain and rule.
    places: BTreeMap<FactsPlace, RuleNumber>,
    /// Which kind of ruleset has a table of this family and name.
    names: BTreeMap<(u8, String), RulesetKind>,
}

impl Tables<'_> {
    fn finish(self) -> Reach {
        let mut program = Program::default();
        let (mut changed, mut here) = (BTreeSet::new(), BTreeSet::new());
        let missing: BTreeSet<RuleNumber> = self.places.values().copied().collect();
        for (number, (place, rules)) in self.chains.into_iter().enumerate() {
            for (at, rule) in rules.iter().enumerate() {
                changed.extend(rule.changes());
                let is_here = !missing.contains(&(number, at));
                here.extend(rule.changes().filter(|_| is_here));
            }
            program.add(ChainRules {
                visited: true,
                ..ChainRules::new(place, rules.into())
            });
        }
        program.left_out = Some(missing);
        program.bases = self.bases;
        Reach {
            program,
            places: self.places,
            changed,
            here,
        }
    }

    /// Begins a table; none where another kind of ruleset has one of the same name, too: in the
    /// kernel they are one.
    fn table(&mut self, family: TableFamily, name: &str, kind: RulesetKind) -> Option<()> {
        let key = (family.0, name.to_owned());
        (*self.names.entry(key).or_insert(kind) == kind).then_some(())
    }

    /// Makes a chain if it is not there.
    fn chain(&mut self, place: &RulePlace) {
        if !self.numbers.contains_key(place) {
            self.numbers.insert(place.clone(), self.chains.len());
            self.chains.push((place.clone(), Vec::new()));
        }
    }

    /// Adds a rule; none where nothing has said what chain it is in.
    fn rule(
        &mut self,
        chain: &RulePlace,
        at: FactsPlace,
        read: impl Fn(&str) -> Rule,
        text: &str,
    ) -> Option<()> {
        let number = *self.numbers.get(chain)?;
        let (_, rules) = self.chains.get_mut(number)?;
        let missing = self.missing.get(&at);
        let mut rule = read(missing.map_or(text, String::as_str));
        if missing.is_some() {
            // What could not be read may be what it does.
            if rule.verdicts().next().is_none() {
                rule.does.extend(Rule::unknown().does);
            }
            self.places.insert(at, (number, rules.len()));
        }
        rules.push(rule);
        Some(())
    }

    fn xtables(&mut self, ruleset: &Ruleset) -> Option<()> {
        let family = match self.family {
            Family::V4 => TableFamily::IP,
            Family::V6 => TableFamily::IP6,
        };
        let mut table = String::new();
        for (line, text) in ruleset.text.lines().enumerate() {
            let at = FactsPlace::of(ruleset, line);
            // Without the counters of `iptables-save -c`.
            let rule = text.split_once("] ").filter(|_| text.starts_with('['));
            let text = rule.map_or(text, |(_, rule)| rule);
            let place = |chain: &str| RulePlace {
                family,
                table: table.clone(),
                chain: chain.to_owned(),
                handle: 0,
            };
            let words: Vec<&str> = text.split_whitespace().collect();
            match words[..] {
                [] | ["COMMIT"] => {}
                ["-A", chain, ..] => self.rule(&place(chain), at, Rule::of_iptables, text)?,
                [word, ..] if word.starts_with('#') => {}
                [head] if head.starts_with('*') => {
                    table = head.trim_start_matches('*').to_owned();
                    self.table(family, &table, ruleset.kind)?;
                }
                [head, policy @ ("ACCEPT" | "DROP" | "-"), ..] if head.starts_with(':') => {
                    let place = place(head.trim_start_matches(':'));
                    self.chain(&place);
                    let own = |built_in: &&(&str, &str, HookPoint, i32)| {
                        built_in.0 == table && built_in.1 == place.chain
                    };
                    self.bases.extend(BUILT_IN.iter().find(own).map(|own| Base {
                        hook: own.2,
                        priority: own.3,
                        policy_drops: policy == "DROP",
                        place,
                    }));
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn nft(&mut self, ruleset: &Ruleset) -> Option<()> {
        let mut lines = ruleset.text.lines().enumerate();
        while let Some((_, text)) = lines.next() {
            let words: Vec<&str> = text.split_whitespace().collect();
            let (family, name) = match words[..] {
                [] => continue,
                [word, ..] if word.starts_with('#') => continue,
                ["table", "ip", name, "{"] | ["table", name, "{"] => (TableFamily::IP, name),
                ["table", "ip6", name, "{"] => (TableFamily::IP6, name),
                ["table", "inet", name, "{"] => (TableFamily::INET, name),
                // Of devices and bridges, or no line of `nft list ruleset`.
                _ => return None,
            };
            let own = match self.family {
                Family::V4 => TableFamily::IP,
                Family::V6 => TableFamily::IP6,
            };
            let sees = family == own || family == TableFamily::INET;
            if sees {
                self.table(family, name, ruleset.kind)?;
            }
            let table = RulePlace {
                family,
                table: name.to_owned(),
                chain: String::new(),
                handle: 0,
            };
            self.nft_table(&table, sees, ruleset, &mut lines)?;
        }
        Some(())
    }

    /// Reads the lines of a table up to its closing brace.
    fn nft_table<'t>(
        &mut self,
        table: &RulePlace,
        sees: bool,
        ruleset: &Ruleset,
        lines: &mut impl Iterator<Item = (usize, &'t str)>,
    ) -> Option<()> {
        loop {
            let (_, text) = lines.next()?;
            let words: Vec<&str> = text.split_whitespace().collect();
            match words[..] {
                [] => {}
                ["}"] => return Some(()),
                [word, ..] if word.starts_with('#') => {}
                ["comment", ..] => {}
                ["chain", name, "{"] => {
                    let place = RulePlace {
                        chain: name.trim_matches('"').to_owned(),
                        ..table.clone()
                    };
                    self.nft_chain(&place, sees, ruleset, lines)?;
                }
                // A set, a map, an object: their content is not read.
                [_, .., "{"] => skip_block(lines)?,
                // `flags dormant` among them.
                _ => return None,
            }
        }
    }

    fn nft_chain<'t>(
        &mut self,
        place: &RulePlace,
        sees: bool,
        ruleset: &Ruleset,
        lines: &mut impl Iterator<Item = (usize, &'t str)>,
    ) -> Option<()> {
        if sees {
            self.chain(place);
        }
        loop {
            let (line, text) = lines.next()?;
            let mut text = text.trim().to_owned();
            let at = FactsPlace::of(ruleset, line);
            if text == "}" {
                return Some(());
            }
            if let Some(head) = text.strip_prefix("type ") {
                let base = nft_base(place, head)?;
                self.bases.extend(sees.then_some(base));
                continue;
            }
            let comment = text.starts_with('#') || text.starts_with("comment ");
            let is_missing = self.missing.contains_key(&at);
            if comment || text.is_empty() && !is_missing {
                continue;
            }
            while depth(&text)? > 0 {
                text = format!("{text} {}", lines.next()?.1.trim());
            }
            if has_several(&text) {
                return None;
            }
            if sees {
                self.rule(place, at, Rule::of_nft, &text)?;
            }
        }
    }
}

/// Passes over the lines up to the brace that closes a block which was opened.
fn skip_block<'t>(lines: &mut impl Iterator<Item = (usize, &'t str)>) -> Option<()> {
    let mut open = 1;
    while open > 0 {
        let (_, text) = lines.next()?;
        let outside: String = text.split('"').step_by(2).collect();
        open += outside.matches('{').count();
        open = open.checked_sub(outside.matches('}').count())?;
    }
    Some(())
}

/// Braces that are open at the end of a rule; none where it closes more than it opens.
fn depth(rule: &str) -> Option<usize> {
    let outside: String = rule.split('"').step_by(2).collect();
    (outside.matches('{').count()).checked_sub(outside.matches('}').count())
}

/// Whether it is more than one rule, which nft(8) never prints on a line.
fn has_several(rule: &str) -> bool {
    rule.split('"').step_by(2).any(|text| text.contains(';'))
}

/// `filter hook forward priority filter + 10; policy drop;` behind `type`.
fn nft_base(place: &RulePlace, head: &str) -> Option<Base> {
    let mut statements = head.split(';').map(str::trim).filter(|s| !s.is_empty());
    let words: Vec<&str> = statements.next()?.split_whitespace().collect();
    let [_, "hook", hook, "priority", ref priority @ ..] = words[..] else {
        return None;
    };
    let hook = match hook {
        "prerouting" => HookPoint::Prerouting,
        "input" => HookPoint::Input,
        "forward" => HookPoint::Forward,
        "output" => HookPoint::Output,
        "postrouting" => HookPoint::Postrouting,
        // Of devices.
        _ => return None,
    };
    let policy_drops = match statements.next() {
        None | Some("policy accept") => false,
        Some("policy drop") => true,
        Some(_) => return None,
    };
    statements.next().is_none().then_some(Base {
        place: place.clone(),
        hook,
        priority: nft_priority(priority)?,
        policy_drops,
    })
}

/// `-150`, `filter`, `srcnat + 10`; nft(8), "Standard priority names".
fn nft_priority(words: &[&str]) -> Option<i32> {
    let number = |word: &str| {
        Some(match word {
            "raw" => -300,
            "mangle" => -150,
            "dstnat" => -100,
            "filter" => 0,
            "security" => 50,
            "srcnat" => 100,
            other => return other.parse::<i32>().ok(),
        })
    };
    match *words {
        [base] => number(base),
        [base, "+", more] => number(base)?.checked_add(more.parse().ok()?),
        [base, "-", less] => number(base)?.checked_sub(less.parse().ok()?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(kind: RulesetKind, text: &str) -> Ruleset {
        Ruleset {
            origin: Origin {
                file: "r_facts.txt".to_owned(),
                line: 100,
            },
            ..Ruleset::for_test(kind, text)
        }
    }

    /// The rulesets, of which the lab lacks every line that says `nosuch`.
    fn reach(rulesets: &[Ruleset]) -> Option<Reach> {
        let of = |ruleset: &Ruleset| {
            let lines = ruleset.text.lines().enumerate();
            let missing = lines.filter(|(_, text)| text.contains("nosuch"));
            let missing =
                missing.map(|(at, text)| (FactsPlace::of(ruleset, at), text.trim().to_owned()));
            missing.collect::<Vec<_>>()
        };
        let missing = rulesets.iter().flat_map(of).collect();
        Reach::of(rulesets, &missing, Family::V4)
    }

    fn packet(port: u16) -> Packet {
        let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        Packet::of(Family::V4)
            .with(Field::Protocol, 6_u8)
            .with(Field::DestinationPort, port)
            .with(Field::Mark, 0_u32)
            .with_address(Field::Source, address("10.1.0.9"))
            .with_address(Field::Destination, address("10.2.0.9"))
            .with_device(Field::Incoming, "in")
            .with_device(Field::Outgoing, "out")
    }

    const STOPPED: PacketOutcome = PacketOutcome::Stopped(None);

    fn met(reach: &Reach, port: u16, outcome: PacketOutcome) -> Option<Met> {
        reach.met(&packet(port), &[Endpoints::Forwarded], outcome)
    }

    #[test]
    fn a_rule_behind_the_one_that_decides_is_not_met() {
        for (kind, text) in [
            (
                RulesetKind::Iptables,
                "*filter\n:FORWARD ACCEPT [0:0]\n:sub - [0:0]\n-A FORWARD -j sub\n\
                 -A sub -p tcp --dport 23 -j DROP\n-A sub -p tcp --dport 24 -j RETURN\n\
                 -A sub -m nosuch -j ACCEPT\n[1:2] -A FORWARD -p tcp --dport 24:25 -j DROP\nCOMMIT\n",
            ),
            (
                RulesetKind::Nft,
                "table inet x {\n\tchain sub {\n\t\ttcp dport 23 drop\n\t\ttcp dport 24 return\n\n\
                 \t\t# a note\n\t\tnosuch 1 accept\n\t}\n\tset s {\n\t\ttype ipv4_addr\n\t}\n\
                 \tchain f {\n\t\ttype filter hook forward priority filter - 5; policy accept;\n\
                 \t\tjump sub\n\t\ttcp dport {\n\t\t\t24, 25 } drop\n\t}\n}\n",
            ),
        ] {
            let ruleset = ruleset(kind, text);
            let reach = reach(std::slice::from_ref(&ruleset)).unwrap();
            let place = FactsPlace::of(&ruleset, 6);
            let can = |port, outcome| met(&reach, port, outcome).map(|met| met.can(&place));
            assert_eq!(can(23, STOPPED), Some(false), "{text}");
            assert_eq!(can(24, STOPPED), Some(false), "{text}");
            assert_eq!(can(25, STOPPED), Some(true), "{text}");
            assert_eq!(can(80, PacketOutcome::Passed), Some(true), "{text}");
            assert_eq!(can(80, STOPPED), None, "not what the rules say: {text}");
            assert!(!met(&reach, 25, STOPPED).unwrap().is_same(&place));
            assert!(
                met(&reach, 80, PacketOutcome::Passed)
                    .unwrap()
                    .is_same(&place)
            );
            let elsewhere = met(&reach, 23, STOPPED)
                .unwrap()
                .can(&FactsPlace::of(&ruleset, 99));
            assert!(elsewhere, "nothing is known of a rule that is not there");
        }
    }

    #[test]
    fn two_missing_rules_are_weighed_together() {
        // Each alone changes nothing: only a packet that returns comes to the drop.
        let text = "*filter\n:FORWARD ACCEPT [0:0]\n:sub - [0:0]\n-A FORWARD -j sub\n\
                    -A FORWARD -m nosuch -j DROP\n-A sub -m nosuch -j RETURN\n-A sub -j ACCEPT\nCOMMIT\n";
        let ruleset = ruleset(RulesetKind::Iptables, text);
        let reach = reach(std::slice::from_ref(&ruleset)).unwrap();
        let met = met(&reach, 80, PacketOutcome::Passed).unwrap();
        let place = FactsPlace::of(&ruleset, 4);
        assert!(met.can(&place) && !met.is_same(&place));
    }

    #[test]
    fn what_cannot_be_walked_through_is_not() {
        let filter = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m nosuch -j DROP\nCOMMIT\n";
        let save = ruleset(RulesetKind::Iptables, filter);
        assert!(reach(std::slice::from_ref(&save)).is_some());
        for text in [
            "table ip filter {\n}\n",
            "table netdev x {\n}\n",
            "table inet x {\n\tflags dormant\n}\n",
            "table inet x {\n\tchain f {\n\t\ttcp dport 1 drop; tcp dport 2 drop\n\t}\n}\n",
            "table inet x {\n\tchain f {\n",
            "add table inet x\n",
        ] {
            let both = [save.clone(), ruleset(RulesetKind::Nft, text)];
            assert!(reach(&both).is_none(), "{text}");
        }
        let undeclared = "*filter\n-A FORWARD -j DROP\nCOMMIT\n";
        assert!(reach(&[ruleset(RulesetKind::Iptables, undeclared)]).is_none());
    }

    #[test]
    fn a_packet_that_a_rule_sends_to_an_unknown_chain_may_have_met_anything() {
        let text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j GONE\n\
                    -A FORWARD -m nosuch -j DROP\nCOMMIT\n";
        let reach = reach(&[ruleset(RulesetKind::Iptables, text)]).unwrap();
        assert_eq!(met(&reach, 80, PacketOutcome::Passed), None);
    }
}
