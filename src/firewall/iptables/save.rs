//! What `iptables-save -c` prints, read back.

use std::{collections::BTreeMap, sync::Arc};

use crate::firewall::{
    nft::nature::Nature,
    rule::{self, OpenPorts, Rewritten},
};

/// The tables of one namespace, or those of them that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct IptablesSave {
    pub(super) tables: BTreeMap<String, TableSave>,
}

/// One table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TableSave {
    pub(super) chains: Vec<ChainSave>,
    pub(super) rules: Vec<RuleSave>,
}

/// A chain that a table declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainSave {
    pub(super) name: String,
    /// None for a chain of the user's.
    pub(super) policy: Option<String>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RuleSave {
    pub(super) chain: String,
    pub(super) packets: u64,
    /// Everything behind the chain's name, as printed.
    pub(super) spec: String,
    /// Whether the source port of the packets that it is asked about is open.
    pub(super) open_ports: OpenPorts,
    /// What other routers may have rewritten of them.
    pub(super) rewritten: Option<Arc<Rewritten>>,
}

impl IptablesSave {
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
    pub(super) fn rules(&self, table: &str) -> &[RuleSave] {
        self.tables.get(table).map_or(&[], |t| &t.rules)
    }

    /// Whether `table` has this chain, with no other rules in it than `allowed` ones.
    pub(super) fn has_chain(
        &self,
        table: &str,
        chain: &str,
        allowed: impl Fn(&RuleSave) -> bool,
    ) -> bool {
        self.tables.get(table).is_some_and(|table| {
            table.chains.iter().any(|c| c.name == chain) && table.chain(chain).all(allowed)
        })
    }
}

impl TableSave {
    /// The policy of a built-in chain; the kernel's default where it is not listed.
    pub(super) fn policy(&self, chain: &str) -> &str {
        let found = self.chains.iter().find(|c| c.name == chain);
        found.and_then(|c| c.policy.as_deref()).unwrap_or("ACCEPT")
    }

    /// What one of the table's rules may do with packets. What its comment says may count, too.
    pub(super) fn nature(&self, rule: &RuleSave) -> Nature {
        let words: Vec<&str> = rule.spec.split_whitespace().collect();
        let behind = |options: &'static [&str]| {
            let pairs = words.iter().zip(words.iter().skip(1));
            pairs.filter_map(move |(option, name)| options.contains(option).then_some(*name))
        };
        let plain = |name: &&str| ["ACCEPT", "DROP", "RETURN", "QUEUE"].contains(name);
        let chain = |name: &&str| self.chains.iter().any(|chain| chain.name == *name);
        let mut nature = Nature::of_xtables(behind(&["-m"]), None);
        for target in behind(&["-j", "-g"]).filter(|name| !plain(name) && !chain(name)) {
            nature |= Nature::of_xtables([], Some(target));
        }
        nature
    }

    /// The rules of one chain.
    pub(super) fn chain<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a RuleSave> {
        self.rules.iter().filter(move |rule| rule.chain == name)
    }
}

impl RuleSave {
    /// The rule's comment, without the quotes.
    pub(super) fn comment(&self) -> Option<String> {
        rule::comment(&self.spec)
    }

    /// What the rule asks and does.
    pub(super) fn parsed(&self) -> rule::Rule {
        let mut rule = rule::Rule::of_iptables(&self.spec);
        rule.leave_source_port_open(self.open_ports);
        if let Some(rewritten) = &self.rewritten {
            rule.leave_rewritten_open(rewritten);
        }
        rule
    }
}

/// `:INPUT ACCEPT [0:0]` or `:mine - [0:0]`.
fn chain(line: &str) -> Option<ChainSave> {
    let mut fields = line.strip_prefix(':')?.split(' ');
    let name = fields.next()?.to_owned();
    let policy = fields.next().filter(|&p| p != "-").map(str::to_owned);
    Some(ChainSave { name, policy })
}

/// `[12:720] -A INPUT -p tcp -j ACCEPT`, the counters only with `-c`.
fn rule(line: &str) -> Option<RuleSave> {
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
    Some(RuleSave {
        chain,
        packets,
        spec,
        open_ports: OpenPorts::None,
        rewritten: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::rule::RuleVerdict;

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
        let save = IptablesSave::parse(SAVED);
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
    fn what_rules_may_do_shows_by_their_matches_and_targets() {
        let text = "*filter\n:FORWARD ACCEPT [0:0]\n:mine - [0:0]\n\
                    -A FORWARD -p tcp -m tcp --dport 80 -j mine\n\
                    -A FORWARD -m mac --mac-source 02:00:00:00:00:01 -j DROP\n\
                    -A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
                    -A FORWARD -j DSCP --set-dscp 0x0a\n\
                    -A mine -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n";
        let save = IptablesSave::parse(text);
        let table = &save.tables["filter"];
        let natures: Vec<Nature> = table.rules.iter().map(|rule| table.nature(rule)).collect();
        let nature = |changes, stateful, link| Nature {
            changes,
            stateful,
            link,
            proxies: false,
        };
        let plain = Nature::default();
        let (link, state) = (nature(false, false, true), nature(false, true, false));
        assert_eq!(
            natures,
            [plain, link, state, nature(true, false, false), plain]
        );
    }

    #[test]
    fn a_comment_is_never_taken_for_a_target() {
        let save = IptablesSave::parse(SAVED);
        let rules = save.rules("mangle");
        let does = |at: usize| rules[at].parsed().verdicts().next().cloned();
        assert_eq!(rules[0].comment().unwrap(), "say \"-j DROP\" -j x");
        assert_eq!(does(0), Some(RuleVerdict::Jump("mine".to_owned())));
        assert_eq!(does(1), None);
        assert_eq!(does(2), Some(RuleVerdict::Goto("mine".to_owned())));
        assert_eq!(rules[2].comment(), None);
        assert_eq!(does(3), Some(RuleVerdict::Accept));
    }
}
