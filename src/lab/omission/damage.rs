//! Lines of rulesets that are no rules any more: cut at the edge of a screen, or two in one line.
//!
//! Only lines that a loader refused are looked at, so a rule that merely asks for what the kernel
//! lacks is told from one that was damaged by its grammar alone: a rule as the tools print it has one
//! verdict or target, and nothing but a comment behind it.

use crate::firewall::rule::{Does, Rule, pieces};

/// What is wrong with a rule's text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// Nothing.
    None,
    /// It has no end; these are its matches that surely are what they were.
    Cut(String),
    /// It is more than one rule, or parts of them.
    Several,
}

/// What is wrong with the rule `text`, which reads as `rule`.
pub(super) fn damage_of(text: &str, xtables: bool, rule: &Rule) -> Damage {
    let ends = match xtables {
        true => outside_braces(text)
            .iter()
            .any(|word| TARGETS.contains(word)),
        false => rule.does.iter().any(|does| *does != Does::Note),
    };
    match (is_several(text, xtables), ends) {
        (true, _) => Damage::Several,
        (false, true) => Damage::None,
        (false, false) => Damage::Cut(without_last_match(text, xtables)),
    }
}

/// Whether the text is more than one rule, or parts of them.
pub(super) fn is_several(text: &str, xtables: bool) -> bool {
    let words = outside_braces(text);
    match xtables {
        true => is_several_of_iptables(&words),
        false => is_several_of_nft(&words),
    }
}

/// The options of iptables(8) that name what a rule does.
const TARGETS: [&str; 4] = ["-j", "--jump", "-g", "--goto"];

/// Whether a rule has something twice that iptables(8) takes once, or goes on behind its target
/// with what is no option.
fn is_several_of_iptables(words: &[&str]) -> bool {
    const ONCE: [&[&str]; 7] = [
        &["-A", "-I", "--append"],
        &TARGETS,
        &["-p", "--protocol"],
        &["-s", "--source", "--src"],
        &["-d", "--destination", "--dst"],
        &["-i", "--in-interface"],
        &["-o", "--out-interface"],
    ];
    let count = |names: &[&str]| words.iter().filter(|w| names.contains(w)).count();
    let target = words.iter().position(|w| TARGETS.contains(w));
    let behind = target.and_then(|at| words.get(at + 2));
    ONCE.iter().any(|names| count(names) > 1)
        || behind.is_some_and(|word| !word.starts_with(['-', '!']))
}

/// Whether something stands behind a verdict that is not its own.
fn is_several_of_nft(words: &[&str]) -> bool {
    const VERDICTS: [&str; 12] = [
        "accept",
        "drop",
        "return",
        "continue",
        "jump",
        "goto",
        "reject",
        "queue",
        "snat",
        "dnat",
        "masquerade",
        "redirect",
    ];
    let is_verdict = |word: &&str| VERDICTS.contains(word);
    let Some(first) = words.iter().position(is_verdict) else {
        return false;
    };
    let own = match words.get(first).copied() {
        Some("jump" | "goto") => 2,
        Some("reject" | "queue" | "snat" | "dnat" | "masquerade" | "redirect") => {
            return words.iter().skip(first + 1).any(is_verdict);
        }
        _ => 1,
    };
    let behind = words.get(first + own);
    behind.is_some_and(|word| !matches!(*word, "comment" | "#"))
}

/// The words of a rule that stand in no braces and no quotes.
fn outside_braces(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let mut words = Vec::new();
    for word in pieces(text) {
        match word {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            _ if depth == 0 => words.push(word),
            _ => {}
        }
    }
    words
}

/// The rule without the last match that it has, which may be cut, and what stands behind it.
fn without_last_match(text: &str, xtables: bool) -> String {
    let matches = |text: &str| Rule::of_text(text, xtables).matches.len();
    let (all, mut left) = (matches(text), text.trim_end());
    while !left.is_empty() && matches(left) >= all {
        left = left
            .rsplit_once(char::is_whitespace)
            .map_or("", |(before, _)| before.trim_end());
    }
    left.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_rules_are_told_from_rules_that_the_kernel_lacks() {
        let tcp = Damage::Cut("-A FORWARD -p tcp -m tcp".to_owned());
        let all = Damage::Cut(String::new());
        for (text, want) in [
            (
                "-A FORWARD -p tcp -m geoip --source-country RU,DE -j DROP",
                Damage::None,
            ),
            (
                "-A FORWARD -j LOG --log-prefix \"a -j DROP -A\"",
                Damage::None,
            ),
            (
                "-A FORWARD -m set ! --match-set a src,dst -j SNAT --to-source 10.0.0.1",
                Damage::None,
            ),
            ("-A FORWARD -p tcp -m tcp --dport 80 >", tcp),
            (
                "-A FORWARD -j DROP-A FORWARD -p udp -j DROP",
                Damage::Several,
            ),
            (
                "-A FORWARD -p udp -j DROP -A FORWARD -j DROP",
                Damage::Several,
            ),
            ("-A FORWARD -p udp -j DROP FORWARD", Damage::Several),
            (
                "tcp dport 80 nosuch 1 counter packets 0 bytes 0 drop comment \"x accept\"",
                Damage::None,
            ),
            ("nosuch 1 ct mark set 0x1", Damage::None),
            (
                "nosuch 1 tcp dport vmap { 80 : drop, 81 : jump x }",
                Damage::None,
            ),
            (
                "meta l4proto tcp nosuch 1 reject with tcp reset",
                Damage::None,
            ),
            ("udp dport 53 accept tcp dport 80 drop", Damage::Several),
            ("udp dport 53 jump x tcp dport 80", Damage::Several),
            ("udp dport 53 reject tcp dport 80 drop", Damage::Several),
            (
                "udp dport 53 dnat to 10.0.0.1:80 tcp dport 80 drop",
                Damage::Several,
            ),
            ("udp dport 53 nosuch 1 dnat to 10.0.0.1:80", Damage::None),
            (">", all),
        ] {
            let xtables = text.starts_with("-A");
            let rule = Rule::of_text(text, xtables);
            assert_eq!(damage_of(text, xtables, &rule), want, "{text}");
        }
    }
}
