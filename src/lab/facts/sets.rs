//! Whether the section with the sets of ipset(8) was cut.
//!
//! The kernel keeps a set for as long as a rule names it (`ipset destroy` answers EBUSY), so that a set
//! which rules name and `ipset save` does not show was lost in collecting. `ipset list` tells of each set
//! how many elements it has, and needs no such sign.

use std::collections::BTreeSet;

use super::{RouterFacts, section::Section};
use crate::lab::{
    omission::RulesetMaps,
    topology::{RulesetKind, Warning},
};

/// Doubts the last set that is shown where the sets behind it are missing: it may have lost elements.
pub(super) fn doubt_cut(facts: &mut RouterFacts, sections: &[Section<'_>]) {
    let Some(section) = sections.iter().find(|s| s.name == "ipset_save") else {
        return;
    };
    let Some(sets) = facts
        .rulesets
        .iter()
        .find(|ruleset| ruleset.kind == RulesetKind::Ipset)
    else {
        return;
    };
    if section.body.iter().any(|(_, l)| l.starts_with("Name: ")) {
        return;
    }
    let shown: BTreeSet<&str> = sets.text.lines().filter_map(set_of).collect();
    let rules = facts
        .rulesets
        .iter()
        .filter(|rules| matches!(rules.kind, RulesetKind::Iptables | RulesetKind::Ip6tables));
    let mut named = rules.flat_map(|rules| sets_named(&rules.text));
    let missing = named.find(|set| !shown.contains(set));
    let last = sets.text.lines().rev().find_map(set_of);
    let (Some(missing), Some(last)) = (missing, last) else {
        return;
    };
    let message = format!(
        "rules name set {missing}, and section `ipset_save` lacks it: if the section was cut, set {last}, the \
         last that it shows, has elements that are lost"
    );
    let omission = RulesetMaps::new(&facts.rulesets).of_set(sets, last);
    let origin = facts.origin(section.line);
    let warning = Warning::omission(origin, &facts.name, message, omission);
    facts.warnings.push(warning);
}

/// The set that a line of `ipset save` makes or adds to.
fn set_of(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    matches!(words.next(), Some("create" | "add" | "-N" | "-A"))
        .then(|| words.next())
        .flatten()
}

/// The sets that rules of iptables name: `--match-set`, and the targets' `--add-set`, `--del-set`, `--map-set`.
fn sets_named(rules: &str) -> impl Iterator<Item = &str> {
    rules.lines().flat_map(|line| {
        let mut words = line.split_whitespace();
        std::iter::from_fn(move || {
            words.find(|word| word.starts_with("--") && word.ends_with("-set"))?;
            words.next()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_where_rules_name_them() {
        let rules = "*filter\n-A FORWARD -m set --match-set a src -m set ! --match-set b dst -j DROP\n\
                     -A FORWARD -j SET --add-set c src --exist\n-A FORWARD -m conntrack --ctstate NEW\nCOMMIT";
        assert_eq!(sets_named(rules).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(set_of("add a 10.0.0.0/8 nomatch"), Some("a"));
        assert_eq!(set_of("create a hash:net"), Some("a"));
        assert_eq!(set_of("# add a 1"), None);
    }
}
