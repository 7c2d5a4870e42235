//! What `iptables-save -c` prints, read back.

use std::{borrow::Cow, collections::BTreeMap};

/// The tables of one namespace, or those of them that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Save {
    pub(super) tables: BTreeMap<String, Table>,
}

/// One table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) chains: Vec<Chain>,
    pub(super) rules: Vec<Rule>,
}

/// A chain that a table declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// None for a chain of the user's.
    pub(super) policy: Option<String>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: String,
    pub(super) packets: u64,
    /// Everything behind the chain's name, as printed.
    pub(super) spec: String,
}

/// What a rule does with the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// Nothing: it only counts.
    None,
    /// `-j`: a target or a chain.
    Jump(Cow<'a, str>),
    /// `-g`: a chain that does not come back here.
    Goto(Cow<'a, str>),
}

impl Save {
    /// Reads the output. Lines that say nothing about chains and rules are passed over.
    pub(super) fn parse(text: &str) -> Self {
        let mut save = Self::default();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut current);
                save.tables.entry(current.clone()).or_default();
            } else if let Some(table) = save.tables.get_mut(&current) {
                table.chains.extend(chain(line));
                table.rules.extend(rule(line));
            }
        }
        save
    }

    /// The rules of `table`, none where there is no such table.
    pub(super) fn rules(&self, table: &str) -> &[Rule] {
        self.tables.get(table).map_or(&[], |t| &t.rules)
    }

    /// Whether `table` has this chain, with no other rules in it than `allowed` ones.
    pub(super) fn has_chain(
        &self,
        table: &str,
        chain: &str,
        allowed: impl Fn(&Rule) -> bool,
    ) -> bool {
        self.tables.get(table).is_some_and(|table| {
            table.chains.iter().any(|c| c.name == chain) && table.chain(chain).all(allowed)
        })
    }
}

impl Table {
    /// The policy of a built-in chain; the kernel's default where it is not listed.
    pub(super) fn policy(&self, chain: &str) -> &str {
        let found = self.chains.iter().find(|c| c.name == chain);
        found.and_then(|c| c.policy.as_deref()).unwrap_or("ACCEPT")
    }

    /// The rules of one chain.
    pub(super) fn chain<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |rule| rule.chain == name)
    }
}

impl Rule {
    /// The rule's comment, without the quotes.
    pub(super) fn comment(&self) -> Option<Cow<'_, str>> {
        self.option(&["--comment"])
    }

    /// Where the rule sends the packet.
    pub(super) fn target(&self) -> Target<'_> {
        if let Some(chain) = self.option(&["-g", "--goto"]) {
            return Target::Goto(chain);
        }
        self.option(&["-j", "--jump"])
            .map_or(Target::None, Target::Jump)
    }

    fn option(&self, names: &[&str]) -> Option<Cow<'_, str>> {
        let mut words = words(&self.spec);
        while let Some((quoted, word)) = words.next() {
            if !quoted && names.contains(&word.as_ref()) {
                return words.next().map(|(_, value)| value);
            }
            // Its value is free text and may look like an option.
            if !quoted && word == "--comment" {
                words.next();
            }
        }
        None
    }
}

/// `:INPUT ACCEPT [0:0]` or `:mine - [0:0]`.
fn chain(line: &str) -> Option<Chain> {
    let mut fields = line.strip_prefix(':')?.split(' ');
    let name = fields.next()?.to_owned();
    let policy = fields.next().filter(|&p| p != "-").map(str::to_owned);
    Some(Chain { name, policy })
}

/// `[12:720] -A INPUT -p tcp -j ACCEPT`, the counters only with `-c`.
fn rule(line: &str) -> Option<Rule> {
    let (packets, rest) = match line.strip_prefix('[') {
        Some(counted) => {
            let (counters, rest) = counted.split_once("] ")?;
            let (packets, _) = counters.split_once(':')?;
            (packets.parse().ok()?, rest)
        }
        None => (0, line),
    };
    let rest = rest.strip_prefix("-A ")?;
    let (chain, spec) = rest.split_once(' ').unwrap_or((rest, ""));
    let (chain, spec) = (chain.to_owned(), spec.to_owned());
    Some(Rule {
        chain,
        packets,
        spec,
    })
}

/// The words of a rule and whether they were quoted, as xtables_save_string() quotes them.
fn words(spec: &str) -> impl Iterator<Item = (bool, Cow<'_, str>)> {
    let mut rest = spec;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(' ');
        if rest.is_empty() {
            return None;
        }
        let Some(quoted) = rest.strip_prefix('"') else {
            let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = tail;
            return Some((false, word.into()));
        };
        let (word, tail) = unquote(quoted);
        rest = tail;
        Some((true, word))
    })
}

/// A quoted word from behind its opening quote, and what follows it.
fn unquote(text: &str) -> (Cow<'_, str>, &str) {
    let mut word = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (word.into(), &text[at + 1..]),
            '\\' => word.extend(letters.next().map(|(_, escaped)| escaped)),
            other => word.push(other),
        }
    }
    (word.into(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save v1.8.9 on Sat Nov 21 05:57:47 2026
*mangle
:PREROUTING ACCEPT [7:420]
:POSTROUTING DROP [0:0]
:mine - [0:0]
[3:180] -A POSTROUTING -p tcp -m comment --comment "say \"-j DROP\" -j x" -j mine
[0:0] -A mine
-A mine -g mine
-A mine -m comment --comment -j -j ACCEPT
COMMIT
# Completed
*raw
:PREROUTING ACCEPT [0:0]
COMMIT
"#;

    #[test]
    fn chains_rules_and_counters_are_read() {
        let save = Save::parse(SAVED);
        assert_eq!(save.tables.keys().collect::<Vec<_>>(), ["mangle", "raw"]);
        let mangle = &save.tables["mangle"];
        assert_eq!(mangle.policy("POSTROUTING"), "DROP");
        assert_eq!(mangle.policy("FORWARD"), "ACCEPT");
        assert_eq!(mangle.chains[2].policy, None);
        assert_eq!(mangle.rules.len(), 4);
        assert_eq!(mangle.rules[0].packets, 3);
        assert_eq!(mangle.chain("mine").count(), 3);
        assert!(save.rules("nat").is_empty());
    }

    #[test]
    fn a_comment_is_never_taken_for_a_target() {
        let save = Save::parse(SAVED);
        let rules = save.rules("mangle");
        assert_eq!(rules[0].comment().unwrap(), "say \"-j DROP\" -j x");
        assert_eq!(rules[0].target(), Target::Jump("mine".into()));
        assert_eq!(rules[1].target(), Target::None);
        assert_eq!(rules[2].target(), Target::Goto("mine".into()));
        assert_eq!(rules[2].comment(), None);
        assert_eq!(rules[3].target(), Target::Jump("ACCEPT".into()));
    }
}
