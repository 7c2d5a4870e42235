//! `ip rule show`: one policy rule per line.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::words::{TableNames, Words, ip_protocol, number, prefix, tos};
use crate::netlink::object::{Family, PolicyRule, PortRange, RuleAction};

/// A policy rule that cannot be read or represented.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RefusedRule {
    /// What in the line cannot.
    pub(super) reason: String,
    /// The selectors that could be read; the rule matches no more than these do.
    pub(super) known: Box<PolicyRule>,
    /// Whether it selects by a user other than root, so that it matches nothing that is forwarded.
    pub(super) of_users: bool,
}

/// Reads one rule: `PRIORITY: SELECTORS ACTION`.
///
/// # Errors
/// What in the line cannot be read or represented; a rule is read whole or not at all, because
/// one that lacks a selector would match more than on the real router.
pub(super) fn parse(
    line: &str,
    family: Family,
    tables: &TableNames,
) -> Result<PolicyRule, RefusedRule> {
    let mut parser = Parser {
        tables,
        rule: PolicyRule::new(family, 0, RuleAction::Nop),
        action: None,
        of_users: false,
    };
    let refuse = |reason, known: PolicyRule, of_users| RefusedRule {
        reason,
        of_users: of_users && !known.invert,
        known: Box::new(known),
    };
    let rest = match priority(line) {
        Ok((priority, rest)) => {
            parser.rule.priority = priority;
            rest
        }
        Err(reason) => return Err(refuse(reason, parser.rule, false)),
    };
    if is_merged(rest) {
        let reason = "two rules in one line".to_owned();
        return Err(refuse(reason, parser.rule, false));
    }
    let mut failed = None;
    let mut words = Words::new(rest);
    while let Some(word) = words.next() {
        let read = parser.word(word, &mut words);
        failed = failed.or(read.err());
    }
    let (known, of_users) = (parser.rule.clone(), parser.of_users);
    match (failed, parser.finish()) {
        (None, Ok(rule)) => Ok(rule),
        (Some(reason), _) | (None, Err(reason)) => Err(refuse(reason, known, of_users)),
    }
}

/// Whether a line break was lost in what stands behind a priority: then another one follows, or something
/// for the second time.
fn is_merged(rest: &str) -> bool {
    const ONCE: [&str; 10] = [
        "from", "to", "fwmark", "tos", "iif", "oif", "ipproto", "sport", "dport", "lookup",
    ];
    let mut seen = BTreeSet::new();
    rest.split_ascii_whitespace().any(|word| {
        let next = word
            .strip_suffix(':')
            .is_some_and(|w| w.ends_with(|c: char| c.is_ascii_digit()));
        next || word.ends_with(":from") || ONCE.contains(&word) && !seen.insert(word)
    })
}

/// Whether the line is one of the rules that every namespace has.
pub(super) fn is_of_kernel(line: &str) -> bool {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    matches!(
        words[..],
        ["0:", "from", "all", "lookup", "local" | "255"]
            | ["32766:", "from", "all", "lookup", "main" | "254"]
            | ["32767:", "from", "all", "lookup", "default" | "253"]
    )
}

/// The number before the first colon, and what stands behind it.
fn priority(line: &str) -> Result<(u32, &str), String> {
    let (priority, rest) = line
        .split_once(':')
        .ok_or("no `priority:` at the beginning")?;
    let priority = priority
        .trim()
        .parse()
        .map_err(|_| format!("`{priority}` is not a priority"))?;
    Ok((priority, rest))
}

struct Parser<'a> {
    tables: &'a TableNames,
    rule: PolicyRule,
    action: Option<RuleAction>,
    of_users: bool,
}

impl Parser<'_> {
    fn word(&mut self, word: &str, words: &mut Words<'_>) -> Result<(), String> {
        let rule = &mut self.rule;
        match word {
            "not" => rule.invert = true,
            "from" => rule.from = selector(words.value(word)?, rule.family)?,
            "to" => rule.to = selector(words.value(word)?, rule.family)?,
            "fwmark" => rule.fwmark = Some(mark(words.value(word)?)?),
            "tos" | "dsfield" => rule.tos = Some(known(word, words, tos)?),
            "iif" | "dev" => rule.iif = Some(words.interface(word)?),
            "oif" => rule.oif = Some(words.interface(word)?),
            "ipproto" => rule.ip_proto = Some(known(word, words, ip_protocol)?),
            "sport" => rule.sport = Some(known(word, words, ports)?),
            "dport" => rule.dport = Some(known(word, words, ports)?),
            "suppress_prefixlength" => rule.suppress_prefix_len = Some(words.parse(word)?),
            "proto" | "protocol" => {
                words.value(word)?;
            }
            // What is forwarded counts as root's (`ip_route_input_slow()`).
            "uidrange" => {
                let range = words.value(word)?;
                let first = range.split('-').next().and_then(number);
                self.of_users |= first.is_some_and(|first| first > 0);
                return Err(format!("`{word}` is not supported"));
            }
            // Whether the interface or the goto's target existed when the rule was shown.
            "[detached]" | "[unresolved]" => {}
            other => self.action(other, words)?,
        }
        Ok(())
    }

    fn action(&mut self, word: &str, words: &mut Words<'_>) -> Result<(), String> {
        self.action = Some(match word {
            "lookup" | "table" => {
                let table = words.value(word)?;
                let id = self.tables.id(table);
                RuleAction::Table(id.ok_or_else(|| format!("table `{table}` is not known"))?)
            }
            "goto" => RuleAction::Goto(words.parse(word)?),
            "nop" => RuleAction::Nop,
            // `ip -N` prints the numbers (`FR_ACT_*`, linux/fib_rules.h).
            "blackhole" | "6" => RuleAction::Blackhole,
            "unreachable" | "7" => RuleAction::Unreachable,
            "prohibit" | "8" => RuleAction::Prohibit,
            other => return Err(format!("`{other}` is not supported")),
        });
        Ok(())
    }

    fn finish(mut self) -> Result<PolicyRule, String> {
        self.rule.action = self.action.ok_or("it has no action")?;
        Ok(self.rule)
    }
}

fn known<T>(key: &str, words: &mut Words<'_>, read: fn(&str) -> Option<T>) -> Result<T, String> {
    let value = words.value(key)?;
    read(value).ok_or_else(|| format!("`{key} {value}` cannot be read"))
}

/// A source or destination prefix; everything is no selector at all.
fn selector(word: &str, family: Family) -> Result<Option<IpNet>, String> {
    let net = prefix(word, Some(family))?;
    Ok((net.prefix_len() != 0).then_some(net))
}

fn mark(word: &str) -> Result<(u32, u32), String> {
    let (value, mask) = word.split_once('/').unwrap_or((word, "0xffffffff"));
    number(value)
        .zip(number(mask))
        .ok_or_else(|| format!("`fwmark {word}` cannot be read"))
}

fn ports(word: &str) -> Option<PortRange> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let range = PortRange {
        first: first.parse().ok()?,
        last: last.parse().ok()?,
    };
    (range.first <= range.last).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(line: &str) -> Result<PolicyRule, String> {
        let mut tables = TableNames::default();
        tables.insert("isp2", 100);
        parse(line, Family::V4, &tables).map_err(|refused| refused.reason)
    }

    #[test]
    fn every_selector_is_read() {
        let r = rule(
            "100:\tnot from 10.0.0.0/8 to 10.1.2.3 fwmark 0x1/0xff tos 0x10 iif eth0 [detached] \
             oif wg0 ipproto tcp sport 1024-2048 dport 80 lookup isp2 suppress_prefixlength 0 \
             proto static",
        )
        .unwrap();
        assert!(r.invert);
        assert_eq!(r.priority, 100);
        assert_eq!(r.from.unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(r.to.unwrap().to_string(), "10.1.2.3/32");
        assert_eq!((r.fwmark, r.tos), (Some((1, 0xff)), Some(0x10)));
        assert_eq!(r.iif.unwrap().as_str(), "eth0");
        assert_eq!(r.oif.unwrap().as_str(), "wg0");
        assert_eq!(r.ip_proto, Some(6));
        // As `ip -N rule` has it.
        let numbered = rule("100: from all ipproto ipproto-17 lookup 100").unwrap();
        assert_eq!(numbered.ip_proto, Some(17));
        assert_eq!(
            r.sport,
            Some(PortRange {
                first: 1024,
                last: 2048
            })
        );
        assert_eq!(
            r.dport,
            Some(PortRange {
                first: 80,
                last: 80
            })
        );
        assert_eq!(r.action, RuleAction::Table(100));
        assert_eq!(r.suppress_prefix_len, Some(0));
    }

    #[test]
    fn actions_tables_by_number_and_the_old_files_without_from() {
        assert_eq!(
            rule("1: lookup 300").unwrap().action,
            RuleAction::Table(300)
        );
        assert_eq!(
            rule("1: from all goto 9").unwrap().action,
            RuleAction::Goto(9)
        );
        for (word, action) in [
            ("nop", RuleAction::Nop),
            ("blackhole", RuleAction::Blackhole),
            ("unreachable", RuleAction::Unreachable),
            ("prohibit", RuleAction::Prohibit),
        ] {
            assert_eq!(rule(&format!("1: from all {word}")).unwrap().action, action);
        }
        let r = rule("57:\tdport 3306 lookup isp2").unwrap();
        assert_eq!((r.from, r.to, r.fwmark), (None, None, None));
    }

    #[test]
    fn the_kernels_own_rules_are_recognised() {
        let lines = ["0:\tfrom all lookup local", "32766:\tfrom all lookup main"];
        for (line, own) in lines.iter().zip(PolicyRule::kernel_defaults(Family::V4)) {
            assert_eq!(rule(line).unwrap(), own);
        }
    }

    #[test]
    fn of_two_rules_in_one_line_nothing_is_known() {
        for line in [
            "1: from 10.0.0.1 ipproto udp blackhole2: from 10.1.0.0/16 unreachable",
            "1: to 10.9.0.1 blackhole 2: lookup main",
            "1: to 10.9.0.1 lookup main2:from all lookup main",
            "1: from all to 10.9.0.1 lookup 7 from 10.1.0.0/16 lookup 8",
        ] {
            let refused = parse(line, Family::V4, &TableNames::default()).unwrap_err();
            let known = *refused.known;
            assert_eq!(
                (known.from, known.to, known.ip_proto),
                (None, None, None),
                "{line}"
            );
        }
    }

    #[test]
    fn a_rule_with_something_unknown_is_refused_whole() {
        for (line, word) in [
            ("1: from all uidrange 0-99 lookup main", "uidrange"),
            ("1: from all lookup nosuch", "nosuch"),
            ("1: from all lookup [l3mdev-table]", "l3mdev"),
            ("1: from all sport 0x50/0xff lookup main", "sport"),
            ("1: from all dport 9-1 lookup main", "9-1"),
            ("1: from all", "no action"),
            ("x: from all lookup main", "priority"),
            ("from all lookup main", "priority"),
            ("1: from 2001:db8::/32 lookup main", "family"),
        ] {
            let error = rule(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
