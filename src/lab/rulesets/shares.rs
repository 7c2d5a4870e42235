//! A ruleset in shares, each small enough for one message to the kernel. Pure.
//!
//! nft and the nft variants of iptables send a ruleset as one message, for which they ask a buffer of
//! any size. To an ordinary user the kernel grants no more than the default, some hundreds of rules.
//! In a namespace where nobody sends packets yet, share after share comes to the same.
//!
//! Each share has as many lines as the whole, empty where they belong to another: what a tool says of
//! line 7 is about line 7.

use std::ops::Range;

use crate::lab::topology::RulesetKind;

/// Whether a tool said that its message does not fit (EMSGSIZE).
pub(super) fn is_too_long(said: &str) -> bool {
    said.contains("Message too long")
}

/// `text` in about `count` shares, to be loaded in this order; none where it cannot be shared out
/// so far.
pub(super) fn split(kind: RulesetKind, text: &str, count: usize) -> Option<Vec<String>> {
    let lines: Vec<&str> = text.lines().collect();
    let (pieces, render): (Vec<Piece>, Render) = match kind {
        // Its messages are small whatever the number of elements.
        RulesetKind::Ipset => return None,
        RulesetKind::Iptables | RulesetKind::Ip6tables => (xtables_pieces(&lines), xtables_share),
        RulesetKind::Nft => (nft_pieces(&lines), nft_share),
    };
    if count > pieces.len() {
        return None;
    }
    let weight = |piece: &Piece| piece.text.len() + 1;
    let each = pieces.iter().map(weight).sum::<usize>().div_ceil(count);
    let mut shares = Vec::new();
    let (mut first, mut filled) = (0, 0);
    for (at, piece) in pieces.iter().enumerate() {
        if filled > 0 && filled + weight(piece) > each {
            shares.push(render(&lines, &pieces, first..at));
            (first, filled) = (at, 0);
        }
        filled += weight(piece);
    }
    shares.push(render(&lines, &pieces, first..pieces.len()));
    Some(shares)
}

/// What removes the tables of an nft ruleset of which only some shares were loaded.
pub(super) fn removal(text: &str) -> String {
    let tables = text.lines().filter_map(|line| {
        let table = line.strip_prefix("table ")?.split('{').next()?.trim();
        // One that is not there is no error when it is made first.
        Some(format!("table {table}\ndelete table {table}\n"))
    });
    tables.collect()
}

/// Makes a share of the lines of a ruleset, all of its pieces, and those that are to be in it.
type Render = fn(&[&str], &[Piece], Range<usize>) -> String;

/// What belongs to one share only.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// Where it begins.
    line: usize,
    /// A rule with all its lines, or an element of a set without the comma. Nothing, where a line of
    /// a list holds none of its elements: the braces come with those.
    text: String,
    /// For an element, the line on which its list begins.
    list: Option<usize>,
}

fn xtables_pieces(lines: &[&str]) -> Vec<Piece> {
    let rules = lines.iter().enumerate().filter(|(_, line)| is_rule(line));
    let piece = |(line, text): (usize, &&str)| Piece {
        line,
        text: (*text).to_owned(),
        list: None,
    };
    rules.map(piece).collect()
}

fn is_rule(line: &str) -> bool {
    // With counters in front, as `iptables-save -c` prints them.
    line.starts_with(['-', '['])
}

/// The first share declares all chains and empties the tables; the others only add to them.
fn xtables_share(lines: &[&str], pieces: &[Piece], range: Range<usize>) -> String {
    let first = range.start == 0;
    let from = pieces.get(range.start).map_or(0, |piece| piece.line);
    let to = pieces
        .get(range.end)
        .map_or(lines.len(), |piece| piece.line);
    let mut share = String::new();
    // Where the current table begins and ends.
    let mut table = 0..0;
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with('*') {
            let rest = lines.iter().skip(at);
            let length = rest.take_while(|line| line.trim() != "COMMIT").count();
            table = at..at + length;
        }
        let has_rules = table.start < to && from < table.end;
        let belongs = match line.as_bytes().first() {
            Some(b'-' | b'[') => (from..to).contains(&at),
            Some(b':') => first,
            _ => first || has_rules,
        };
        if belongs {
            share += line;
        }
        share.push('\n');
    }
    share
}

/// The options that have iptables-restore add a share to those before.
pub(super) const ADD: &str = "--noflush";

/// Where a line of an nft ruleset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    Chain,
    /// A set or map, or nothing yet.
    Other,
    /// The elements of a set or map.
    List,
}

/// Rules of chains and elements of sets, as `nft list ruleset` prints them; everything else belongs
/// to all shares.
fn nft_pieces(lines: &[&str]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut depth, mut within, mut begun) = (0_usize, Within::Other, 0);
    for (line, text) in lines.iter().enumerate() {
        let words = text.trim();
        let before = depth;
        depth = (depth + braces(words, '{')).saturating_sub(braces(words, '}'));
        let piece = |text: String, list| Piece { line, text, list };
        match within {
            _ if before == 1 => {
                within = match words.starts_with("chain ") {
                    true => Within::Chain,
                    false => Within::Other,
                };
            }
            Within::Chain if before == 2 && depth >= 2 && is_rule_of_chain(words) => {
                pieces.push(piece((*text).to_owned(), None));
            }
            // A rule with an anonymous set goes on.
            Within::Chain if before > 2 => {
                if let Some(rule) = pieces.last_mut() {
                    rule.text = format!("{}\n{text}", rule.text);
                }
            }
            Within::Other if before == 2 && words.starts_with(LIST) && depth >= 2 => {
                begun = line;
                pieces.extend(elements_or_none(words).map(|text| piece(text, Some(begun))));
                within = if depth > 2 {
                    Within::List
                } else {
                    Within::Other
                };
            }
            Within::List => {
                pieces.extend(elements_or_none(words).map(|text| piece(text, Some(begun))));
                within = if depth > 2 {
                    Within::List
                } else {
                    Within::Other
                };
            }
            _ => {}
        }
    }
    pieces
}

/// How a list of elements begins.
const LIST: &str = "elements = {";

/// A line of a chain that is a rule or its beginning.
fn is_rule_of_chain(words: &str) -> bool {
    let property = ["type ", "policy ", "comment ", "}"];
    !words.is_empty() && !property.iter().any(|word| words.starts_with(word))
}

/// How often `brace` stands in `line` outside quotes.
fn braces(line: &str, brace: char) -> usize {
    unquoted(line).filter(|(_, c)| *c == brace).count()
}

/// The characters outside quotes, with where they are.
fn unquoted(line: &str) -> impl Iterator<Item = (usize, char)> + '_ {
    let mut quoted = false;
    line.char_indices().filter(move |(_, c)| {
        quoted ^= *c == '"';
        !quoted
    })
}

/// The elements on a line of a list.
fn elements(line: &str) -> impl Iterator<Item = String> + '_ {
    let list = line.strip_prefix(LIST).unwrap_or(line);
    let list = list.trim_end().trim_end_matches('}');
    let commas = unquoted(list).filter(|(_, c)| *c == ',').map(|(at, _)| at);
    let mut from = 0;
    commas.chain([list.len()]).filter_map(move |comma| {
        let element = list.get(from..comma).unwrap_or_default().trim();
        from = comma + 1;
        (!element.is_empty()).then(|| element.to_owned())
    })
}

/// The elements on a line of a list, or one that is empty.
fn elements_or_none(line: &str) -> impl Iterator<Item = String> + '_ {
    let none = elements(line).next().is_none().then(String::new);
    elements(line).chain(none)
}

/// All declarations, with the rules and elements of `range`. To declare the same again changes
/// nothing, and rules are added behind those that are there.
fn nft_share(lines: &[&str], pieces: &[Piece], range: Range<usize>) -> String {
    let mut share: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    for piece in pieces {
        let end = piece.line + piece.text.lines().count().max(1);
        share
            .get_mut(piece.line..end)
            .unwrap_or_default()
            .fill(String::new());
    }
    let mine = pieces.get(range).unwrap_or_default().iter();
    let mine: Vec<&Piece> = mine.filter(|piece| !piece.text.is_empty()).collect();
    for (at, piece) in mine.iter().enumerate() {
        let end = piece.line + piece.text.lines().count();
        let places = share.get_mut(piece.line..end).unwrap_or_default();
        let Some(list) = piece.list else {
            for (place, text) in places.iter_mut().zip(piece.text.lines()) {
                text.clone_into(place);
            }
            continue;
        };
        let same = |other: &&Piece| other.list == Some(list);
        let before = at.checked_sub(1).and_then(|before| mine.get(before));
        let begins = if before.is_some_and(same) { "" } else { LIST };
        let ends = if mine.get(at + 1).is_some_and(same) {
            ","
        } else {
            " }"
        };
        if let Some(place) = places.first_mut() {
            *place += &format!("{begins} {}{ends}", piece.text);
        }
    }
    share.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -j REDIRECT
COMMIT
*filter
:FORWARD DROP [0:0]
:own - [0:0]
-A FORWARD -j own
[1:2] -A own -s 10.0.0.1/32 -j ACCEPT
-A own -s 10.0.0.2/32 -j ACCEPT
COMMIT
";

    #[test]
    fn shares_of_a_saved_ruleset_add_up_and_keep_their_lines() {
        let shares = split(RulesetKind::Iptables, SAVED, 3).unwrap();
        assert!(shares.len() > 1);
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        for (at, line) in SAVED.lines().enumerate() {
            let having = shares
                .iter()
                .filter(|share| lines(share)[at] == line)
                .count();
            if is_rule(line) || line.starts_with(':') {
                assert_eq!(having, 1, "{line}: {shares:#?}");
            }
            assert!(
                shares
                    .iter()
                    .all(|s| lines(s)[at].is_empty() || lines(s)[at] == line)
            );
        }
        // A table without rules in a share is not opened there.
        assert!(!shares[shares.len() - 1].contains("*nat"));
        assert!(
            shares
                .iter()
                .all(|s| s.matches('*').count() == s.matches("COMMIT").count())
        );
    }

    const LISTED: &str = "\
table ip fw {
\tset some {
\t\ttype ipv4_addr
\t\telements = { 10.0.0.1, 10.0.0.2 comment \"a, b }\",
\t\t\t     10.0.0.3 }
\t}
\tchain forward {
\t\ttype filter hook forward priority filter; policy drop;
\t\tip saddr @some accept
\t\ttcp dport {
\t\t\t22,
\t\t\t80 } accept
\t\tudp dport 53 accept
\t}
}
";

    #[test]
    fn shares_of_a_listed_ruleset_declare_everything() {
        let pieces = nft_pieces(&LISTED.lines().collect::<Vec<_>>());
        assert_eq!(pieces.iter().filter(|p| p.list.is_some()).count(), 3);
        assert_eq!(pieces.len(), 6);
        let shares = split(RulesetKind::Nft, LISTED, 6).unwrap();
        for share in &shares {
            assert_eq!(share.lines().count(), LISTED.lines().count(), "{share}");
            assert!(
                share.contains("policy drop;") && share.contains("type ipv4_addr"),
                "{share}"
            );
            assert_eq!(braces(share, '{'), braces(share, '}'), "{share}");
        }
        for once in [
            "10.0.0.1",
            "a, b }",
            "10.0.0.3",
            "@some accept",
            "80 } accept",
            "dport 53",
        ] {
            assert_eq!(
                shares.iter().filter(|s| s.contains(once)).count(),
                1,
                "{once}: {shares:#?}"
            );
        }
        let whole = split(RulesetKind::Nft, LISTED, 1).unwrap();
        assert!(
            whole[0].contains("elements = { 10.0.0.1, 10.0.0.2 comment \"a, b }\","),
            "{whole:#?}"
        );
        assert_eq!(removal(LISTED), "table ip fw\ndelete table ip fw\n");
    }

    #[test]
    fn braces_on_lines_of_their_own_go_with_the_elements() {
        let written = "table ip a {\nset s {\ntype ipv4_addr\nelements = {\n10.0.0.1,\n\n10.0.0.2,\n}\n}\n\
                       chain c {\nip saddr @s accept\n}\n}\n";
        let shares = split(RulesetKind::Nft, written, 3).unwrap();
        let lists: Vec<usize> = shares.iter().map(|s| s.matches(LIST).count()).collect();
        assert!(
            lists.contains(&0) && lists.iter().sum::<usize>() >= 2,
            "{shares:#?}"
        );
        for share in &shares {
            assert_eq!(share.lines().count(), written.lines().count(), "{share}");
            assert_eq!(braces(share, '{'), braces(share, '}'), "{share}");
        }
    }

    #[test]
    fn what_cannot_be_shared_out_so_far_is_not() {
        assert_eq!(split(RulesetKind::Iptables, SAVED, 5), None);
        assert_eq!(split(RulesetKind::Ipset, "add a 1\nadd a 2\n", 2), None);
    }
}
