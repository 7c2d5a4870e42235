//! Counters of iptables-legacy rules, which nf_tables neither lists nor traces: by the user's own
//! tool, and only where such rules exist.

use std::{collections::HashMap, fs, net::IpAddr};

use super::result::RuleEvidence;
use crate::{
    firewall::{nft::counters::Counts, rule::Rule},
    netns::{
        NetnsError, NetnsFd,
        tool::{ToolError, Tools},
    },
};

/// The legacy rules of one router.
#[derive(Debug)]
pub(super) struct LegacyRouter<'a> {
    netns: &'a NetnsFd,
    tools: &'a Tools,
    tool: &'static str,
}

/// A legacy rule's counters could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// The router could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Where a rule is: table, chain, position from 1, or 0 for the policy.
type Place = (String, String, usize);

/// One reading of all counters.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct LegacySnapshot {
    rules: Vec<(Place, String, Counts)>,
}

impl<'a> LegacyRouter<'a> {
    /// The legacy rules of `netns` for the family of `address`; none when it has none.
    pub(super) fn find(
        netns: &'a NetnsFd,
        tools: &'a Tools,
        address: IpAddr,
    ) -> Result<Option<Self>, LegacyError> {
        let (names, tool) = match address {
            IpAddr::V4(_) => ("ip_tables_names", "iptables-legacy-save"),
            IpAddr::V6(_) => ("ip6_tables_names", "ip6tables-legacy-save"),
        };
        // The file is missing where the kernel has no legacy tables at all.
        let read = || fs::read_to_string(format!("/proc/thread-self/net/{names}"));
        let tables = netns.enter(read)?.unwrap_or_default();
        Ok((!tables.trim().is_empty()).then_some(Self { netns, tools, tool }))
    }

    pub(super) fn read(&self) -> Result<LegacySnapshot, LegacyError> {
        let printed = self
            .netns
            .enter(|| self.tools.run(self.tool, &["-c"], &[]))??;
        Ok(LegacySnapshot::parse(&String::from_utf8_lossy(
            &printed.stdout,
        )))
    }
}

/// Legacy rules whose counters rose, by what they do.
#[derive(Debug, Default)]
pub(super) struct LegacyHits {
    pub(super) allowing: Vec<RuleEvidence>,
    pub(super) blocking: Vec<RuleEvidence>,
    pub(super) touched: Vec<RuleEvidence>,
}

impl LegacySnapshot {
    fn parse(text: &str) -> Self {
        let mut rules = Vec::new();
        let mut table = "";
        let mut positions: HashMap<&str, usize> = HashMap::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
                positions.clear();
            } else if let Some((chain, policy, counts)) = policy(line) {
                let place = (table.to_owned(), chain.to_owned(), 0);
                rules.push((place, format!("policy {policy}"), counts));
            } else if let Some((chain, rule, counts)) = rule(line) {
                let position = positions.entry(chain).or_insert(0);
                *position += 1;
                let place = (table.to_owned(), chain.to_owned(), *position);
                rules.push((place, rule.to_owned(), counts));
            }
        }
        Self { rules }
    }

    /// All rules as they are printed.
    pub(super) fn rules(&self) -> impl Iterator<Item = &str> {
        let rules = self
            .rules
            .iter()
            .filter(|((.., position), ..)| *position > 0);
        rules.map(|(_, text, _)| text.as_str())
    }

    /// The rules whose counters rose since `before`.
    pub(super) fn since(&self, before: &Self) -> LegacyHits {
        let then: HashMap<&Place, Counts> = before.rules.iter().map(|(p, _, c)| (p, *c)).collect();
        let mut found = LegacyHits::default();
        for (place, text, now) in &self.rules {
            let before = then.get(place).copied().unwrap_or_default();
            let rose = now.since(before);
            if rose.packets == 0 {
                continue;
            }
            let (action, list) = match target(text) {
                Some("ACCEPT") => ("accept".to_owned(), &mut found.allowing),
                Some("DROP") => ("drop".to_owned(), &mut found.blocking),
                Some("REJECT") => {
                    let rule = Rule::of_iptables(text);
                    let with = rule.rejected_with().unwrap_or_default();
                    (format!("reject with {with}"), &mut found.blocking)
                }
                Some(other) => (other.to_owned(), &mut found.touched),
                None => ("continue".to_owned(), &mut found.touched),
            };
            // Policies of chains that filter nothing let through as a matter of course.
            if place.2 == 0 && action == "accept" && place.0 != "filter" {
                continue;
            }
            list.push(evidence(place, text, action, (before, *now, rose)));
        }
        found
    }
}

/// `:FORWARD DROP [5:300]`; chains of the user's own have no policy.
fn policy(line: &str) -> Option<(&str, &str, Counts)> {
    let mut words = line.strip_prefix(':')?.split(' ');
    let (chain, policy, counts) = (words.next()?, words.next()?, words.next()?);
    (policy != "-").then_some((chain, policy, counts_of(counts)?))
}

/// `[5:300] -A FORWARD -j DROP`.
fn rule(line: &str) -> Option<(&str, &str, Counts)> {
    let (counts, rule) = line.split_once(' ')?;
    let chain = rule.strip_prefix("-A ")?.split(' ').next()?;
    Some((chain, rule, counts_of(counts)?))
}

fn counts_of(text: &str) -> Option<Counts> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let (packets, bytes) = inner.split_once(':')?;
    Some(Counts {
        packets: packets.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

fn target(text: &str) -> Option<&str> {
    if let Some(policy) = text.strip_prefix("policy ") {
        return Some(policy);
    }
    let mut words = text.split(' ').skip_while(|word| *word != "-j");
    words.nth(1)
}

fn evidence(
    (table, chain, position): &Place,
    text: &str,
    action: String,
    (before, after, rose): (Counts, Counts, Counts),
) -> RuleEvidence {
    RuleEvidence {
        chain: chain.clone(),
        rule: text.to_owned(),
        table: table.clone(),
        family: "iptables-legacy".to_owned(),
        position: (*position > 0).then_some(*position),
        handle: None,
        action,
        packets_before: Some(before.packets),
        packets_after: Some(after.packets),
        packet_increase: Some(rose.packets),
        byte_increase: Some(rose.bytes),
        packets_traced: 0,
        unexplained: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVE: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [1:60]
:web - [0:0]
[4:240] -A FORWARD -j web
[3:180] -A web -p tcp -m tcp --dport 80 -j ACCEPT
[0:0] -A web -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
COMMIT
*mangle
:POSTROUTING ACCEPT [9:540]
COMMIT
";

    #[test]
    fn rules_whose_counters_rose_are_told_by_what_they_do() {
        let before = LegacySnapshot::parse(SAVE);
        let after = SAVE
            .replace("[1:60]", "[2:120]")
            .replace("[4:240]", "[7:420]")
            .replace("[3:180]", "[4:240]")
            .replace("[0:0] -A web", "[1:60] -A web")
            .replace("[9:540]", "[10:600]");
        let rose = LegacySnapshot::parse(&after).since(&before);
        let brief = |rules: &[RuleEvidence]| -> Vec<String> {
            let one = |r: &RuleEvidence| {
                let position = r.position.unwrap_or(0);
                format!(
                    "{}/{position} {} +{}",
                    r.chain,
                    r.action,
                    r.packet_increase.unwrap()
                )
            };
            rules.iter().map(one).collect()
        };
        assert_eq!(brief(&rose.allowing), ["web/1 accept +1"]);
        assert_eq!(
            brief(&rose.blocking),
            ["FORWARD/0 drop +1", "web/2 reject with tcp-reset +1"]
        );
        assert_eq!(brief(&rose.touched), ["FORWARD/1 web +3"]);
    }
}
