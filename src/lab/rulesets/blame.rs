//! Which lines of a ruleset a tool refuses, from what it says. Pure.
//!
//! Line numbers are counted from 0 here; the tools count from 1.

use std::collections::BTreeSet;

use crate::{lab::topology::RulesetKind, netns::tool::with_remedy};

/// Lines that can only be left out together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Culprit {
    /// In ascending order; the first one is named in messages.
    pub(super) lines: Vec<usize>,
    /// What the tool said about just these lines, where it did.
    pub(super) reason: Option<String>,
}

/// What has to be left out of `lines`, of which the tool for `kind` `said` that it cannot load
/// them. Empty when it does not say.
pub(super) fn lines(kind: RulesetKind, lines: &[String], said: &str) -> Vec<Culprit> {
    let found = match kind {
        RulesetKind::Ipset => ipset(lines, said),
        RulesetKind::Iptables | RulesetKind::Ip6tables => iptables(lines, said),
        RulesetKind::Nft => nft(lines, said),
    };
    // What was left out before cannot be left out again, and no line twice.
    let mut taken = BTreeSet::new();
    let full = |at: &usize| lines.get(*at).is_some_and(|l| !l.trim().is_empty());
    found
        .into_iter()
        .filter_map(|mut culprit| {
            culprit.lines.retain(|at| full(at) && taken.insert(*at));
            (!culprit.lines.is_empty()).then_some(culprit)
        })
        .collect()
}

/// The lines that are rules, which can be left out one by one.
pub(super) fn rules(kind: RulesetKind, lines: &[String]) -> Vec<usize> {
    let all = 0..lines.len();
    match kind {
        RulesetKind::Ipset => with_prefix(lines, "add "),
        RulesetKind::Iptables | RulesetKind::Ip6tables => {
            all.filter(|at| is_rule(line(lines, *at))).collect()
        }
        RulesetKind::Nft => {
            let openers = openers(lines);
            let alone = |at: &usize| {
                let text = line(lines, *at).trim();
                !text.is_empty() && text != "}" && nft_extent(lines, &openers, *at) == [*at]
            };
            all.filter(alone).collect()
        }
    }
}

/// Parts of a ruleset that load without each other: sets with their elements, tables.
pub(super) fn parts(kind: RulesetKind, lines: &[String]) -> Vec<Vec<usize>> {
    let heads = (0..lines.len()).filter(|at| {
        let text = line(lines, *at);
        match kind {
            RulesetKind::Ipset => text.starts_with("create "),
            RulesetKind::Iptables | RulesetKind::Ip6tables => text.starts_with('*'),
            RulesetKind::Nft => text.trim_start().starts_with("table "),
        }
    });
    heads
        .map(|head| match kind {
            RulesetKind::Ipset => set(lines, head),
            RulesetKind::Iptables | RulesetKind::Ip6tables => table(lines, head),
            RulesetKind::Nft => block(lines, head),
        })
        .collect()
}

/// `reason` or the first thing that `said` says, without the tool's name and version.
pub(super) fn reason(said: &str, reason: Option<&str>) -> String {
    // All that a tool said may stand for the reason; its first words say it.
    let said = reason
        .filter(|text| !text.trim().is_empty())
        .unwrap_or(said);
    let first = said.lines().find(|l| !l.trim().is_empty());
    let text = first.unwrap_or_default().trim();
    let text = match text.split_once("): ") {
        Some((tool, rest)) if tool.contains("tables-") => rest,
        _ => text,
    };
    with_remedy(text.split_once("Error: ").map_or(text, |(_, rest)| rest))
}

fn line(lines: &[String], at: usize) -> &str {
    lines.get(at).map_or("", String::as_str)
}

fn with_prefix(lines: &[String], prefix: &str) -> Vec<usize> {
    let all = lines.iter().enumerate();
    all.filter(|(_, l)| l.starts_with(prefix))
        .map(|(at, _)| at)
        .collect()
}

/// The number behind `key` in `text`, as an index.
fn number_after(text: &str, key: &str) -> Option<usize> {
    let rest = text.split_once(key)?.1.trim_start_matches([':', ' ']);
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse::<usize>().ok()?.checked_sub(1)
}

/// `Error in line 3: Kernel error received: set type not supported`
fn ipset(lines: &[String], said: &str) -> Vec<Culprit> {
    let Some(at) = number_after(said, "in line ") else {
        return Vec::new();
    };
    let all = set(lines, at);
    let reason = said.split_once(": Error in line ").map(|(_, rest)| rest);
    let reason = reason.and_then(|rest| Some(rest.split_once(": ")?.1.to_owned()));
    vec![Culprit { lines: all, reason }]
}

/// Line `at`, and if it creates a set, the set's elements.
fn set(lines: &[String], at: usize) -> Vec<usize> {
    let mut all = vec![at];
    if let Some(rest) = line(lines, at).strip_prefix("create ")
        && let Some(set) = rest.split_whitespace().next()
    {
        all.extend(with_prefix(lines, &format!("add {set} ")));
    }
    all
}

fn is_rule(line: &str) -> bool {
    line.starts_with("-A") || line.starts_with("-I") || line.starts_with('[')
}

/// `Error occurred at line: 5`, `line 4: RULE_APPEND failed (…): rule in chain FORWARD`, or a
/// thing that does not exist.
fn iptables(lines: &[String], said: &str) -> Vec<Culprit> {
    let mut found = Vec::new();
    for text in said.lines() {
        let at = number_after(text, "line ").or_else(|| number_after(text, "line: "));
        let Some(at) = at else { continue };
        let own = text
            .trim()
            .strip_prefix("line ")
            .and_then(|t| t.split_once(": "));
        let reason = own.map(|(_, reason)| reason.to_owned());
        if is_rule(line(lines, at)) || line(lines, at).starts_with(':') {
            found.push(Culprit {
                lines: vec![at],
                reason,
            });
        } else if line(lines, at).starts_with('*') {
            found.push(Culprit {
                lines: table(lines, at),
                reason,
            });
        }
    }
    found.extend(missing(said).into_iter().flat_map(|words| {
        let uses = move |l: &String| is_rule(l) && words.iter().any(|w| has_words(l, w));
        let all = lines.iter().enumerate().filter(move |(_, l)| uses(l));
        all.map(|(at, _)| Culprit {
            lines: vec![at],
            reason: None,
        })
    }));
    found
}

/// The lines of the table whose head is at `at`.
fn table(lines: &[String], at: usize) -> Vec<usize> {
    let rest = lines.iter().skip(at).position(|l| l.starts_with("COMMIT"));
    (at..=rest.map_or(lines.len().saturating_sub(1), |length| at + length)).collect()
}

/// What every rule that uses it fails for: the words that show the use.
fn missing(said: &str) -> Option<Vec<String>> {
    let quoted = |before: &str, after: char| {
        let rest = said.split_once(before)?.1;
        Some(rest.split_once(after)?.0.to_owned())
    };
    if let Some(name) = quoted("Couldn't load match `", '\'') {
        return Some(vec![format!("-m {name}")]);
    }
    let target = quoted("Couldn't load target `", '\'');
    if let Some(name) = target.or_else(|| quoted("Chain '", '\'')) {
        return Some(vec![format!("-j {name}"), format!("-g {name}")]);
    }
    let set = said.split_once(" doesn't exist").map(|(before, _)| before);
    let set = set.and_then(|before| before.rsplit_once("Set "));
    set.map(|(_, name)| {
        ["--match-set", "--add-set", "--del-set", "--map-set"]
            .map(|option| format!("{option} {name}"))
            .to_vec()
    })
}

/// Whether `words` stand in `line` as whole words.
fn has_words(line: &str, words: &str) -> bool {
    let mut rest = line;
    while let Some((before, after)) = rest.split_once(words) {
        if before.ends_with(' ') && (after.is_empty() || after.starts_with(' ')) {
            return true;
        }
        rest = after;
    }
    false
}

/// `/dev/stdin:9:23-28: Error: syntax error, …`
fn nft(lines: &[String], said: &str) -> Vec<Culprit> {
    let openers = openers(lines);
    let one = |text: &str| {
        let (place, reason) = text.split_once(": Error: ")?;
        let mut parts = place.rsplitn(3, ':');
        let (_column, number) = (parts.next()?, parts.next()?);
        let at = number.parse::<usize>().ok()?.checked_sub(1)?;
        Some(Culprit {
            lines: nft_extent(lines, &openers, at),
            reason: Some(reason.to_owned()),
        })
    };
    said.lines().filter_map(one).collect()
}

/// The lines that go with line `at`: a rule goes alone; a set, a chain and the like go whole, and
/// so does a rule on several lines.
fn nft_extent(lines: &[String], openers: &[Option<usize>], at: usize) -> Vec<usize> {
    let text = line(lines, at).trim();
    if balance(text) > 0 && !text.starts_with("elements") {
        return block(lines, at);
    }
    let keyword = |head: usize| line(lines, head).split_whitespace().next();
    let opener = |at: usize| openers.get(at).copied().flatten();
    let inner = opener(at);
    // `elements = {` is no object of its own.
    let in_elements = inner.filter(|head| keyword(*head) == Some("elements"));
    match in_elements.map_or(inner, opener) {
        Some(head) => {
            let keyword = keyword(head);
            let keeps_rules = matches!(keyword, Some("chain" | "table"));
            // A chain without its hook would be another chain.
            let is_hook = text.starts_with("type ");
            if keeps_rules && !is_hook && balance(text) == 0 {
                vec![at]
            } else {
                block(lines, head)
            }
        }
        None => vec![at],
    }
}

/// Braces that `text` opens less those that it closes; quoted ones and comments do not count.
fn balance(text: &str) -> i64 {
    let mut quoted = false;
    let mut sum = 0;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => break,
            '{' if !quoted => sum += 1,
            '}' if !quoted => sum -= 1,
            _ => {}
        }
    }
    sum
}

/// For each line, the line whose brace encloses it.
fn openers(lines: &[String]) -> Vec<Option<usize>> {
    let mut open = Vec::new();
    let mut openers = Vec::with_capacity(lines.len());
    for (at, line) in lines.iter().enumerate() {
        openers.push(open.last().copied());
        match balance(line) {
            more @ 1.. => open.extend((0..more).map(|_| at)),
            less => open.truncate(open.len().saturating_sub(less.unsigned_abs() as usize)),
        }
    }
    openers
}

/// The lines from `head`, which opens a brace, to the one that closes it.
fn block(lines: &[String], head: usize) -> Vec<usize> {
    let mut depth = 0;
    let mut all = Vec::new();
    for at in head..lines.len() {
        all.push(at);
        depth += balance(line(lines, at));
        if depth <= 0 {
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use RulesetKind::{Ipset, Iptables, Nft};

    const RULES: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n\
        -A FORWARD -m geoip --source-country DE -j DROP\n\
        [3:4] -A FORWARD -m geoip --source-country FR -j DROP\n\
        -A FORWARD -m set --match-set gone src -j ACCEPT\n\
        -A FORWARD -m set --match-set goner src -j ACCEPT\n\
        -A FORWARD -p tcp -j NOSUCH\n\
        COMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j DNAT --to-destination 1.2.3.4\n\
        COMMIT\n";

    fn text(text: &str) -> Vec<String> {
        text.lines().map(ToOwned::to_owned).collect()
    }

    fn blamed(kind: RulesetKind, ruleset: &str, said: &str) -> Vec<Vec<usize>> {
        let found = lines(kind, &text(ruleset), said);
        found.into_iter().map(|culprit| culprit.lines).collect()
    }

    #[test]
    fn iptables_names_a_line_and_all_others_that_fail_for_the_same_are_found_with_it() {
        let said = "iptables-nft-restore v1.8.9 (nf_tables): Couldn't load match `geoip':No such \
            file or directory\n\nError occurred at line: 4\nTry `iptables-nft-restore -h'";
        assert_eq!(blamed(Iptables, RULES, said), [[3], [4]]);
        assert!(reason(said, None).starts_with("Couldn't load match `geoip'"));
        let said = "iptables-restore v1.8.9 (legacy): Set gone doesn't exist.\n\nError occurred \
            at line: 6\n";
        assert_eq!(blamed(Iptables, RULES, said), [[5]]);
    }

    #[test]
    fn a_table_whose_module_is_not_loaded_is_named_with_the_remedy() {
        let said = "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'filter'\n\n\
            Error occurred at line: 1\nTry `iptables-restore -h' or 'iptables-restore --help'";
        let reason = reason(said, None);
        assert!(reason.contains("table 'filter'; this kernel"), "{reason}");
        assert!(reason.contains("modprobe -a iptable_raw"), "{reason}");
    }

    #[test]
    fn iptables_nft_names_rules_and_chains_when_it_commits() {
        let said = "iptables-nft-restore v1.8.9 (nf_tables): \nline 4: RULE_APPEND failed (No \
            such file or directory): rule in chain FORWARD\nline 6: RULE_APPEND failed (Invalid \
            argument): rule in chain FORWARD";
        let found = lines(Iptables, &text(RULES), said);
        assert_eq!(found[0].lines, [3]);
        assert_eq!(found[1].lines, [5]);
        let why = found[1].reason.as_deref().unwrap();
        assert!(why.contains("Invalid argument"), "{why}");
        let said = "iptables-nft-restore v1.8.9 (nf_tables): Chain 'NOSUCH' does not exist\n\
            Error occurred at line: 9";
        assert_eq!(blamed(Iptables, RULES, said), [[7]]);
    }

    #[test]
    fn iptables_legacy_names_only_the_commit_which_is_nobody() {
        let said = "iptables-restore: line 9 failed";
        assert_eq!(blamed(Iptables, RULES, said), [[0; 0]; 0]);
        assert_eq!(rules(Iptables, &text(RULES)), [3, 4, 5, 6, 7, 11]);
    }

    #[test]
    fn a_table_that_is_not_there_goes_whole() {
        let said = "iptables-restore: line 10 failed";
        assert_eq!(blamed(Iptables, RULES, said), [[9, 10, 11, 12]]);
    }

    #[test]
    fn what_is_left_out_already_is_not_blamed_again() {
        let ruleset = RULES.replace("-A FORWARD -p tcp -j NOSUCH", "");
        let said = "Chain 'NOSUCH' does not exist\nError occurred at line: 8";
        assert_eq!(blamed(Iptables, &ruleset, said), [[0; 0]; 0]);
    }

    #[test]
    fn a_set_goes_with_its_elements() {
        let sets = "create a hash:mac\nadd a 02:00:00:00:00:01\ncreate ab hash:ip\n\
            add ab 1.2.3.4\nadd a 02:00:00:00:00:02";
        let said = "ipset v7.17: Error in line 1: Kernel error received: set type not supported";
        assert_eq!(blamed(Ipset, sets, said), [[0, 1, 4]]);
        let found = lines(Ipset, &text(sets), said);
        let why = found[0].reason.as_deref();
        assert_eq!(why, Some("Kernel error received: set type not supported"));
        let said = "ipset v7.17: Error in line 4: Syntax error";
        assert_eq!(blamed(Ipset, sets, said), [[3]]);
    }

    const NFT: &str = "table inet x {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 1.2.3.4,\n\
        \t\t\t     1.2.3.500 }\n\t}\n\tchain c {\n\t\ttype filter hook forward priority 0;\n\
        \t\ttcp dport 80 nosuch accept\n\t\tip saddr { 1.2.3.4,\n\t\t\t5.6.7.8 } drop\n\
        \t\tlog prefix \"{\" accept\n\t}\n}";

    #[test]
    fn nft_rules_go_alone_and_blocks_go_whole() {
        let at = |line: usize| {
            let said = format!("/dev/stdin:{line}:3-9: Error: nonsense\n\t\tx\n\t\t^\n");
            blamed(Nft, NFT, &said)
        };
        assert_eq!(at(9), [[8]]);
        assert_eq!(at(12), [[11]], "a quoted brace is none");
        assert_eq!(at(11), [[9, 10]], "a rule on two lines");
        assert_eq!(at(5), [[1, 2, 3, 4, 5]], "a set");
        assert_eq!(at(2), [[1, 2, 3, 4, 5]]);
        assert_eq!(
            at(8),
            [[6, 7, 8, 9, 10, 11, 12]],
            "a chain without its hook is another"
        );
        assert_eq!(rules(Nft, &text(NFT)), [8, 11]);
    }

    #[test]
    fn several_nft_errors_are_all_taken_and_explained() {
        let said = "/dev/stdin:9:23-28: Error: syntax error\n\t\tx\n/dev/stdin:12:1-2: Error: b";
        let found = lines(Nft, &text(NFT), said);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].reason.as_deref(), Some("syntax error"));
    }
}
