//! Tests of sets that rules fill or empty: what is in such a set may be the doing of this job's packets,
//! or of an earlier job's, and not what the facts had.

use std::collections::{BTreeMap, BTreeSet};

use super::{Caveat, Does, Match, Rule, Test, caveat::Alone};

/// Sets that rules change, by the names that rules have for them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ChangedSets {
    filled: BTreeSet<String>,
    emptied: BTreeSet<String>,
}

/// The sets of ipset(8) that consist of other sets (list:set), each with these; none where they cannot be
/// read, and then each set may be one of each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetLists(Option<BTreeMap<String, BTreeSet<String>>>);

impl SetLists {
    /// The lists among what `ipset save` prints.
    #[must_use]
    pub fn of_saved(text: &str) -> Self {
        let mut lists = BTreeMap::<String, BTreeSet<String>>::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match [words.next(), words.next(), words.next()] {
                [Some("create"), Some(list), Some("list:set")] => {
                    lists.entry(list.to_owned()).or_default();
                }
                [Some("add"), Some(list), Some(member)] => {
                    let members = lists.get_mut(list);
                    _ = members.map(|members| members.insert(member.to_owned()));
                }
                _ => {}
            }
        }
        Self(Some(lists))
    }

    /// That nobody knows which there are.
    #[must_use]
    pub fn unknown() -> Self {
        Self(None)
    }

    /// The names of the lists.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(BTreeMap::keys).map(String::as_str)
    }

    /// Adds the lists of which a member is among `changed`, and what such a list consists of: what rules put
    /// into a list goes into its first member that has room.
    fn spread(&self, changed: &mut BTreeSet<String>) {
        let Some(lists) = &self.0 else {
            let any = (!changed.is_empty()).then(|| ANY.to_owned());
            return changed.extend(any);
        };
        for (list, members) in lists {
            let name = |set: &String| format!("set {set}");
            if changed.contains(&name(list)) {
                changed.extend(members.iter().map(name));
            }
        }
        for (list, members) in lists {
            if members.iter().any(|set| has(changed, set)) {
                changed.insert(format!("set {list}"));
            }
        }
    }
}

impl ChangedSets {
    /// Adds what changes together with a set that rules change, as the lists have it.
    pub fn spread(&mut self, lists: &SetLists) {
        lists.spread(&mut self.filled);
        lists.spread(&mut self.emptied);
    }

    /// Adds those that a rule changes.
    pub fn add(&mut self, rule: &Rule) {
        for does in &rule.does {
            match does {
                Does::Remember(set) => _ = self.filled.insert(set.clone()),
                Does::Forget(set) => _ = self.emptied.insert(set.clone()),
                _ => {}
            }
        }
    }

    /// The rule with its tests of such sets made to depend on more than the packet, where what it `said`
    /// may come of that: that a packet is in a set that rules fill, or is not in one that they empty.
    /// None where that changes nothing.
    #[must_use]
    pub fn open(&self, rule: &Rule, said: Option<bool>) -> Option<Rule> {
        if self.filled.is_empty() && self.emptied.is_empty() {
            return None;
        }
        let said = said?;
        let mut opened = rule.clone();
        let mut any = false;
        for test in &mut opened.matches {
            let is_in = said != test.negated;
            let changed = if is_in { &self.filled } else { &self.emptied };
            if let Some(set) = set(test).filter(|set| has(changed, set)) {
                let caveat = Caveat::Contents(format!("set {set}, which rules change"));
                test.test = Test::Varies(caveat.alone(Alone::Either));
                any = true;
            }
        }
        if let Some(set) = rule.needs_room().filter(|_| !said) {
            let caveat = Caveat::Contents(format!("set {set}, which may have been full"));
            opened.ask(Test::Varies(caveat.alone(Alone::Either)), false);
            any = true;
        }
        any.then_some(opened)
    }

    /// Whether a rule asks for one of them.
    #[must_use]
    pub fn are_asked_for_by(&self, rule: &Rule) -> bool {
        if rule.adds_first().is_some() {
            return true;
        }
        let mut asked = rule.matches.iter().filter_map(set);
        asked.any(|set| has(&self.filled, &set) || has(&self.emptied, &set))
    }
}

impl Rule {
    /// Whether it asks for a set, if only for room in it.
    #[must_use]
    pub fn asks_for_sets(&self) -> bool {
        self.adds_first().is_some() || self.matches.iter().any(|test| set(test).is_some())
    }

    /// Whether it asks that the packet is in a set, in these words: a rule that then adds it to the same set
    /// adds nothing.
    pub(super) fn asks_to_be_in(&self, words: &str) -> bool {
        let is_it = |test: &Test| matches!(test, Test::Other { text, .. } if text == words);
        self.matches.iter().any(|m| !m.negated && is_it(&m.test))
    }

    /// Whether it asks for a set of ipset(8).
    #[must_use]
    pub fn asks_for_ipsets(&self) -> bool {
        let mut tests = self.matches.iter().map(|test| &test.test);
        tests.any(|test| matches!(test, Test::Other { text, .. } if is_ipset(text)))
    }

    /// Whether it changes a set.
    #[must_use]
    pub fn changes_sets(&self) -> bool {
        let changes = |does: &Does| matches!(does, Does::Remember(_) | Does::Forget(_));
        self.does.iter().any(changes)
    }

    /// The set that has to take the packet's element before the rule does anything else: where it is full,
    /// nft(8) does not go on with the rule. One that counts or has a rate varies anyway, and where a test is
    /// not understood, that may be why the rule did not match.
    fn needs_room(&self) -> Option<&str> {
        let known = |test: &Match| !matches!(test.test, Test::Varies(_) | Test::Other { .. });
        self.adds_first().filter(|_| self.matches.iter().all(known))
    }

    /// The same, whatever else the rule asks: the kernel's form has tests that are not understood.
    fn adds_first(&self) -> Option<&str> {
        let set = self.remembers().next()?.strip_prefix("set ")?;
        let acts = |does: &Does| !matches!(does, Does::Remember(_) | Does::Note);
        self.does.iter().any(acts).then_some(set)
    }
}

/// What stands for a set whose name is not known.
const ANY: &str = "a set";

/// Whether these have a set; all may be it where its name is not known, and so may one of those.
fn has(sets: &BTreeSet<String>, name: &str) -> bool {
    let any = name.is_empty() && !sets.is_empty();
    any || sets.contains(ANY) || sets.contains(&format!("set {name}"))
}

/// The set that a test asks for: `@SET` of nft, `--match-set SET` of iptables. The kernel's own form of
/// the latter has a number in the place of a name, which is empty here.
fn set(test: &Match) -> Option<String> {
    let Test::Other { text, .. } = &test.test else {
        return None;
    };
    let mut words = text.split_whitespace();
    let name = match is_ipset(text) {
        true => match words.nth(1) {
            Some("--match-set") => words.next(),
            // Another option of the same match, as `--return-nomatch`.
            Some(_) => None,
            None => Some(""),
        },
        false => words.find_map(|word| word.strip_prefix('@')),
    };
    name.map(str::to_owned)
}

/// Whether a test is iptables' match set.
fn is_ipset(test: &str) -> bool {
    test.split_whitespace().next() == Some("set")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_to_be_in_a_set_is_not_added_to_it() {
        for (rule, fills) in [
            (
                "ip saddr @ban update @ban { ip saddr timeout 1h } drop",
                false,
            ),
            (
                "ip saddr . tcp dport @ban add @ban { ip saddr . tcp dport counter } drop",
                false,
            ),
            (
                "ip saddr @ban update @ban { ip daddr timeout 1h } drop",
                true,
            ),
            ("ip saddr @ban update @other { ip saddr } drop", true),
            ("ip saddr != @ban update @ban { ip saddr } drop", true),
            ("update @ban { ip saddr ct count over 3 } drop", true),
            (
                "-m set --match-set ban src -j SET --add-set ban src --exist --timeout 60",
                false,
            ),
            (
                "-m set ! --match-set ban src -j SET --add-set ban src --exist",
                true,
            ),
            (
                "-m set --match-set ban src -j SET --add-set ban dst --exist",
                true,
            ),
        ] {
            assert_eq!(Rule::of(rule).changes_sets(), fills, "{rule}");
        }
    }

    #[test]
    fn a_list_changes_with_its_members_and_they_with_it() {
        let saved = "create em hash:ip family inet\ncreate other hash:ip\nadd other 10.0.0.1\n\
                     create ls list:set size 8\nadd ls em\ncreate none list:set size 8\nadd none other\n";
        let lists = SetLists::of_saved(saved);
        assert_eq!(lists.names().collect::<Vec<_>>(), ["ls", "none"]);
        for (changed, asked, opens) in [
            ("em", "em", true),
            ("em", "ls", true),
            ("ls", "em", true),
            ("ls", "ls", true),
            ("em", "none", false),
            ("em", "other", false),
        ] {
            let mut sets = ChangedSets::default();
            sets.add(&Rule::of(&format!("-A f -j SET --add-set {changed} src")));
            sets.spread(&lists);
            let rule = Rule::of(&format!("-A f -m set --match-set {asked} src -j ACCEPT"));
            assert_eq!(
                sets.open(&rule, Some(true)).is_some(),
                opens,
                "{changed} {asked}"
            );
            sets.spread(&SetLists::unknown());
            assert!(sets.open(&rule, Some(true)).is_some(), "{changed} {asked}");
        }
    }

    #[test]
    fn what_rules_put_into_a_set_or_take_out_is_not_what_was_there() {
        let mut sets = ChangedSets::default();
        for rule in [
            "tcp dport 82 add @m { ip saddr } drop",
            "tcp dport 83 delete @e { ip saddr } drop",
            "-A f -p tcp --dport 85 -j SET --add-set b src",
            "-A f -p tcp --dport 86 -j SET --del-set d src",
        ] {
            sets.add(&Rule::of(rule));
        }
        for (rule, said, opens) in [
            ("ip saddr @m drop", Some(true), true),
            ("ip saddr @m drop", Some(false), false),
            ("ip saddr @m drop", None, false),
            ("ip saddr != @m drop", Some(false), true),
            ("ip saddr != @m drop", Some(true), false),
            ("ip saddr . tcp dport @m accept", Some(true), true),
            ("tcp dport 82 add @m { ip saddr } drop", Some(false), true),
            ("tcp dport 82 add @m { ip saddr } drop", Some(true), false),
            ("tcp dport 82 add @m { ip saddr }", Some(false), false),
            ("ip saddr @z add @m { ip saddr } drop", Some(false), false),
            (
                "tcp dport 82 add @m { ip saddr limit rate over 3/minute } drop",
                Some(false),
                false,
            ),
            (
                "-A f -p tcp --dport 85 -j SET --add-set b src",
                Some(false),
                false,
            ),
            ("meta mark set ip saddr map @m", Some(true), true),
            ("meta mark set ip saddr map @m", Some(false), false),
            ("dnat to ip saddr map @m", Some(true), true),
            ("ct mark set ip saddr . tcp dport map @e", Some(false), true),
            ("meta mark set ip saddr map @other", Some(true), false),
            ("ip saddr vmap @m", Some(true), true),
            ("ip saddr @e accept", Some(false), true),
            ("ip saddr @e accept", Some(true), false),
            ("ip saddr @other accept", Some(true), false),
            ("-A f -m set --match-set b src -j DROP", Some(true), true),
            ("-A f -m set --match-set b src -j DROP", Some(false), false),
            ("-A f -m set ! --match-set b src -j DROP", Some(false), true),
            ("-A f -m set ! --match-set d src -j DROP", Some(true), true),
            (
                "-A f -m set --match-set other src -j DROP",
                Some(true),
                false,
            ),
            (
                "-A f -m set --match-set other src --return-nomatch -j DROP",
                Some(true),
                false,
            ),
        ] {
            let opened = sets.open(&Rule::of(rule), said);
            assert_eq!(opened.is_some(), opens, "{rule} {said:?}");
            let varies = opened.is_none_or(|rule| rule.varying().next().is_some());
            assert!(varies, "{rule} {said:?}");
        }
    }
}
