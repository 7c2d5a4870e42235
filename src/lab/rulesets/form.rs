//! The form of a rule: what it asks the kernel for, whatever its values. Rules of one form are
//! mostly taken or refused together. Pure.

use std::collections::BTreeMap;

use crate::lab::topology::RulesetKind;

/// Chains that the kernel calls itself; some matches and targets are for some of them only.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// `rules`, which are indexes into `lines`, by their form; in the order of their first lines.
pub(super) fn groups(kind: RulesetKind, lines: &[String], rules: &[usize]) -> Vec<Vec<usize>> {
    let mut by_form: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut heads = lines
        .iter()
        .enumerate()
        .filter(|(_, l)| is_head(l))
        .peekable();
    let mut table = "";
    for &rule in rules {
        while let Some((_, head)) = heads.next_if(|(at, _)| *at < rule) {
            table = head.as_str();
        }
        let line = lines.get(rule).map_or("", String::as_str);
        let form = match kind {
            RulesetKind::Ipset => words(line, 2),
            RulesetKind::Iptables | RulesetKind::Ip6tables => format!("{table} {}", xtables(line)),
            RulesetKind::Nft => format!("{table} {}", nft(line)),
        };
        by_form.entry(form).or_default().push(rule);
    }
    let mut groups: Vec<_> = by_form.into_values().collect();
    groups.sort();
    groups
}

/// `*filter`, `table inet x {`
fn is_head(line: &str) -> bool {
    line.starts_with('*') || line.trim_start().starts_with("table ")
}

fn words(line: &str, count: usize) -> String {
    let all: Vec<_> = line.split_whitespace().take(count).collect();
    all.join(" ")
}

/// Options without their values, but with the names of matches, targets and protocols.
fn xtables(line: &str) -> String {
    let mut form = String::new();
    let mut before = "";
    for word in line.split_whitespace() {
        let named = matches!(before, "-m" | "-j" | "-g" | "-p");
        let built_in = before == "-A" && BUILT_IN.contains(&word);
        if word.starts_with('-') || word == "!" || named || built_in {
            form += word;
            form.push(' ');
        }
        before = word;
    }
    form
}

/// Words without numbers and quotes.
fn nft(line: &str) -> String {
    let is_word = |word: &&str| !word.contains(|c: char| c.is_ascii_digit() || c == '"');
    let all: Vec<_> = line.split_whitespace().filter(is_word).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_differ_in_values_are_of_one_form() {
        let text = "*filter\n-A FORWARD -s 10.0.0.1/32 -p tcp -m tcp --dport 1 -j ACCEPT\n\
            -A FORWARD -s 10.0.0.2/32 -p tcp -m tcp --dport 2 -j ACCEPT\n\
            -A FORWARD -s 10.0.0.2/32 -p udp -m udp --dport 2 -j ACCEPT\nCOMMIT\n*mangle\n\
            -A FORWARD -s 10.0.0.1/32 -p tcp -m tcp --dport 1 -j ACCEPT\nCOMMIT";
        let lines: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
        let groups = groups(RulesetKind::Iptables, &lines, &[1, 2, 3, 6]);
        assert_eq!(groups, [vec![1, 2], vec![3], vec![6]]);
    }
}
