//! What sets hold that rules ask for, as far as the facts tell: addresses, prefixes or ports, in sets that
//! no rule changes and whose elements do not end.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::{
    firewall::rule::{Field, Rule, Test, nets},
    lab::topology::{Ruleset, RulesetKind},
};

/// What a set holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    Addresses(Vec<IpNet>),
    Ports(Vec<(u32, u32)>),
}

/// Sets by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KnownSets(BTreeMap<String, Held>);

impl KnownSets {
    /// The sets of ipset(8) among `rulesets`.
    pub(super) fn of_ipset(rulesets: &[Ruleset]) -> Self {
        let mut sets = BTreeMap::new();
        for ruleset in rulesets.iter().filter(|r| r.kind == RulesetKind::Ipset) {
            for line in ruleset.text.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                match words[..] {
                    ["create", name, kind, ref options @ ..] => {
                        sets.insert(name.to_owned(), empty(kind, options));
                    }
                    ["add", name, element, ref options @ ..] => {
                        let set = sets.get_mut(name);
                        set.into_iter().for_each(|set| add(set, element, options));
                    }
                    _ => {}
                }
            }
        }
        let changed = |name: &str| {
            let by = [format!("--add-set {name} "), format!("--del-set {name} ")];
            let mut texts = rulesets.iter().map(|ruleset| &ruleset.text);
            texts.any(|text| by.iter().any(|option| text.contains(option)))
        };
        let known = sets
            .into_iter()
            .filter_map(|(name, held)| Some((name, held?)));
        Self(known.filter(|(name, _)| !changed(name)).collect())
    }

    /// The networks in all of them.
    pub(super) fn nets(&self) -> impl Iterator<Item = IpNet> {
        let nets = self.0.values().filter_map(|held| match held {
            Held::Addresses(nets) => Some(nets),
            Held::Ports(_) => None,
        });
        nets.flatten().copied()
    }

    /// The set of nft(8) that `lines` describe, the first of them `set NAME {`; `all` is the ruleset.
    pub(super) fn add_nft(&mut self, lines: &[&str], all: &str) {
        let words = lines.first().map(|head| head.split_whitespace());
        let Some(name) = words.and_then(|mut words| words.nth(1)) else {
            return;
        };
        let changed = |word| all.contains(&format!("{word} @{name} "));
        if ["add", "update", "delete"].into_iter().any(changed) {
            return;
        }
        let text = lines.get(1..).unwrap_or_default().join(" ");
        if let Some(held) = held_by_nft(&text) {
            self.0.insert(name.to_owned(), held);
        }
    }

    /// The sets of a table as nft(8) lists it.
    fn of_table(table: &str) -> Self {
        let mut sets = Self::default();
        let lines: Vec<&str> = table.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            if line.starts_with("set ") && line.ends_with('{') {
                let behind = lines.get(at..).unwrap_or_default();
                let ends = behind.iter().position(|line| *line == "}");
                sets.add_nft(behind.get(..ends.unwrap_or(0)).unwrap_or_default(), table);
            }
        }
        sets
    }

    /// The rule with its tests of known sets made into tests of what these hold.
    pub(super) fn resolve(&self, mut rule: Rule, xtables: bool) -> Rule {
        if self.0.is_empty() {
            return rule;
        }
        for test in &mut rule.matches {
            let Test::Other { text, reads } = &test.test else {
                continue;
            };
            let asked = match xtables {
                true => asked_by_xtables(text),
                false => asked_by_nft(text, reads),
            };
            let held = asked.and_then(|(set, fields)| Some((self.0.get(set)?, fields)));
            if let Some(resolved) = held.and_then(|(held, fields)| held.test(fields)) {
                test.test = resolved;
            }
        }
        rule
    }
}

/// A rule of nft(8) with its tests of sets made into tests of what these hold, as far as its table tells,
/// which nft(8) lists so.
pub(crate) fn with_sets_of(table: &str, rule: Rule) -> Rule {
    KnownSets::of_table(table).resolve(rule, false)
}

/// A rule of iptables with its tests of sets made into tests of what these hold, as far as `rulesets` tell.
pub(crate) fn with_ipsets_of(rulesets: &[Ruleset], rule: Rule) -> Rule {
    KnownSets::of_ipset(rulesets).resolve(rule, true)
}

impl Held {
    /// The test whether an address or a port is one of these.
    fn test(&self, (address, port): (Field, Field)) -> Option<Test> {
        match self {
            Self::Addresses(nets) if is_address(address) => Some(Test::Address {
                of: address,
                nets: nets.clone(),
            }),
            Self::Ports(ranges) if is_port(port) => Some(Test::Number {
                of: port,
                mask: u32::MAX,
                ranges: ranges.clone(),
            }),
            _ => None,
        }
    }
}

fn is_address(field: Field) -> bool {
    matches!(field, Field::Source | Field::Destination)
}

fn is_port(field: Field) -> bool {
    matches!(field, Field::SourcePort | Field::DestinationPort)
}

/// `set --match-set NAME src`: the set, and the address or the port that is looked up in it.
fn asked_by_xtables(text: &str) -> Option<(&str, (Field, Field))> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["set", "--match-set", name, "src"] => Some((name, (Field::Source, Field::SourcePort))),
        ["set", "--match-set", name, "dst"] => {
            Some((name, (Field::Destination, Field::DestinationPort)))
        }
        _ => None,
    }
}

/// `ip saddr @NAME`, with the one field that it reads.
fn asked_by_nft<'t>(text: &'t str, reads: &[Field]) -> Option<(&'t str, (Field, Field))> {
    let name = text.rsplit_once('@').map(|(_, name)| name)?;
    let [field, Field::Sets] = *reads else {
        return None;
    };
    let plain = text.split(' ').filter(|word| word.starts_with('@')).count() == 1;
    (plain && !text.contains("map")).then_some((name, (field, field)))
}

/// A set without elements; none where what it holds cannot be told by addresses or ports alone, or ends.
fn empty(kind: &str, options: &[&str]) -> Option<Held> {
    let unclear = ["timeout", "netmask", "bitmask", "markmask"];
    if options.iter().any(|option| unclear.contains(option)) {
        return None;
    }
    match kind {
        "hash:ip" | "hash:net" | "bitmap:ip" => Some(Held::Addresses(Vec::new())),
        "bitmap:port" => Some(Held::Ports(Vec::new())),
        _ => None,
    }
}

fn add(set: &mut Option<Held>, element: &str, options: &[&str]) {
    let unclear = options.contains(&"nomatch") || options.contains(&"timeout");
    let added = match set {
        Some(Held::Addresses(all)) => nets(element).map(|more| all.extend(more)),
        Some(Held::Ports(all)) => ports(element).map(|range| all.push(range)),
        None => None,
    };
    if unclear || added.is_none() {
        *set = None;
    }
}

/// `80` or `8000-8010`.
fn ports(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok().map(u32::from);
    port(first).zip(port(last))
}

/// What a set of nft(8) holds, by what stands within its braces.
fn held_by_nft(text: &str) -> Option<Held> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let unclear = ["timeout", "dynamic", "expires", "gc-interval", "limit"];
    if unclear.iter().any(|word| text.contains(word)) {
        return None;
    }
    let at = words
        .iter()
        .position(|word| *word == "type" || *word == "typeof")?;
    let behind: Vec<&str> = words.iter().skip(at + 1).take(2).copied().collect();
    let mut held = match (words[at], behind.as_slice()) {
        ("type", ["ipv4_addr" | "ipv6_addr", next]) if *next != "." => Held::Addresses(Vec::new()),
        ("type", ["inet_service", next]) if *next != "." => Held::Ports(Vec::new()),
        _ => return None,
    };
    let elements = match text.split_once("elements = {") {
        // A brace within a comment ends no list.
        Some((_, rest)) => rest
            .split_once('}')
            .filter(|(_, behind)| behind.chars().all(|c| c == '}' || c.is_whitespace()))
            .map(|(inner, _)| inner)?,
        None => "",
    };
    for element in elements.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let (value, rest) = element.split_once(' ').unwrap_or((element, ""));
        if !(rest.is_empty() || rest.starts_with("comment ") || rest.starts_with("counter")) {
            return None;
        }
        match &mut held {
            Held::Addresses(all) => all.extend(nets(value)?),
            Held::Ports(all) => all.push(ports(value)?),
        }
    }
    Some(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_known_where_all_of_its_elements_are() {
        let ports = |ranges: &[(u32, u32)]| Some(Held::Ports(ranges.to_vec()));
        for (text, held) in [
            (
                "type inet_service elements = { 80, 90-91 } }",
                ports(&[(80, 80), (90, 91)]),
            ),
            ("type inet_service }", ports(&[])),
            (
                "type inet_service elements = { 80 comment \"web\", 81 } }",
                ports(&[(80, 80), (81, 81)]),
            ),
            (
                "type inet_service elements = { 80 comment \"a}\", 81 } }",
                None,
            ),
            (
                "type inet_service elements = { 80 comment \"a,b\", 81 } }",
                None,
            ),
            ("type inet_service flags timeout elements = { 80 } }", None),
            (
                "type inet_service . inet_proto elements = { 80 . 6 } }",
                None,
            ),
        ] {
            assert_eq!(held_by_nft(text), held, "{text}");
        }
    }
}
