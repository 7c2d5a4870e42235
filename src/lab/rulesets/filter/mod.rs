//! Lets through what a saved ruleset can contain, and nothing else. Pure.
//!
//! The tools that load rulesets are also the tools that administer a machine: ipset(8) writes files
//! (`save -file`), nft(8) reads them (`include`), iptables(8) runs programs (`--modprobe`), and some
//! lines end them early and in silence (`quit`, `--help`), so that what stands behind is missing in
//! the lab without a word. Facts come from strangers, so each line must be of a kind that `ipset
//! save`, `iptables-save` or `nft list ruleset` writes. What is not is blanked, so that the others
//! keep their numbers, and reported.
//!
//! Where the tools and this filter could cut a text differently (a line longer than the tool's
//! buffer, a quote that stays open, a control character), the line is left out.

mod address;
mod ipset;
mod nft;
mod nft_words;
mod xtables;

use crate::lab::topology::{Clock, RulesetKind};

/// Lines that are not let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// The first line, counted from 0.
    pub(super) first: usize,
    /// The last line.
    pub(super) last: usize,
    /// Why, and what is allowed.
    pub(super) reason: String,
    /// Whether the router's ruleset lacks something without them.
    pub(super) matters: bool,
}

impl LeftOut {
    fn line(at: usize, reason: impl Into<String>) -> Self {
        Self::lines(at, at, reason)
    }

    fn lines(first: usize, last: usize, reason: impl Into<String>) -> Self {
        Self {
            first,
            last,
            reason: reason.into(),
            matters: true,
        }
    }
}

/// A ruleset without what no saved ruleset contains.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sifted<'a> {
    /// All lines; those that were left out are empty.
    pub(super) lines: Vec<&'a str>,
    /// What was left out, in the order of the lines. Ranges may overlap.
    pub(super) left_out: Vec<LeftOut>,
}

/// Sifts `text`, a ruleset of `kind`, whose rules about the time go by `clock`.
pub(super) fn sift(kind: RulesetKind, text: &str, clock: Clock) -> Sifted<'_> {
    let mut lines: Vec<&str> = text.lines().collect();
    let mut left_out = match kind {
        RulesetKind::Ipset => ipset::refused(&lines),
        RulesetKind::Iptables | RulesetKind::Ip6tables => xtables::refused(&lines, clock),
        RulesetKind::Nft => nft::refused(&lines, clock),
    };
    left_out.sort_by_key(|out| (out.first, out.last));
    for out in &left_out {
        let range = lines.get_mut(out.first..=out.last);
        range.unwrap_or_default().fill("");
    }
    Sifted { lines, left_out }
}

/// Why `line` cannot be passed on whatever it says.
fn unfit(line: &str, most_bytes: usize) -> Option<String> {
    // Most lines are plain, and this is asked of each.
    let plain = line.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    let mut control = line.chars().filter(|c| c.is_control() && *c != '\t');
    if let Some(c) = (!plain).then(|| control.next()).flatten() {
        return Some(format!(
            "it has a control character ({})",
            c.escape_default()
        ));
    }
    (line.len() > most_bytes).then(|| {
        let length = line.len();
        format!("it has {length} bytes; the tool that loads it takes lines of {most_bytes}")
    })
}

/// Why a rule that goes by the kernel's time zone is left out.
const BY_KERNELS_ZONE: &str =
    "it goes by the kernel's time zone, and that is not known to be UTC on the router and here";

fn names_no_address(name: &str) -> String {
    format!("`{name}` is no address, and names are not looked up")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use RulesetKind::{Ip6tables, Ipset, Iptables, Nft};

    /// What the cases write for their addresses, in IPv4.
    const WORDS: [(&str, &str); 5] = [
        ("{ip}", "ip"),
        ("{addr}", "ipv4_addr"),
        ("{inet}", "inet"),
        ("{bits}", "32"),
        ("{alt}", "10.9.9.9"),
    ];
    const ADDRESSES: [&str; 9] = [
        "{copy}", "{dst}", "{far}", "{gw}", "{hair}", "{near}", "{other}", "{remote}", "{src}",
    ];

    fn filled(text: &str) -> String {
        let words = WORDS
            .into_iter()
            .chain(ADDRESSES.map(|word| (word, "10.9.9.1")));
        let text = text.replace("-net}", "}");
        words.fold(text, |text, (word, value)| text.replace(word, value))
    }

    /// Rulesets of the cases, and of the generators that some come from.
    #[test]
    fn the_rulesets_of_the_cases_are_let_through() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("netns-fixtures/cases");
        let keys = [
            ("ipset", Ipset),
            ("iptables", Iptables),
            ("ip6tables", Ip6tables),
            ("nft", Nft),
            ("nft6", Nft),
        ];
        let mut seen = 0;
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "toml") {
                continue;
            }
            let case: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
            for (key, kind) in keys {
                if let Some(text) = case.get(key).and_then(toml::Value::as_str) {
                    seen += 1;
                    let left_out = sift(kind, &filled(text), Clock::UTC).left_out;
                    assert_eq!(left_out, [], "{}", path.display());
                }
            }
        }
        assert!(seen > 100, "{seen}");
    }
}
