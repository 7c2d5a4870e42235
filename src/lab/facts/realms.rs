//! Realms of routes, ip-route(8): the kernel notes them beside a packet, and rules can ask for them. The
//! lab's routes have none.

use super::RouterFacts;
use crate::lab::{
    omission::{Omission, OmissionKind},
    topology::{RulesetKind, Warning},
};

/// How rules ask for the realm of a packet's route: `-m realm` of iptables-extensions(8), `rt classid` and
/// `meta rtclassid` of nft(8).
const ASKED_BY: [&str; 2] = ["-m realm", "classid"];

/// Warns of routes with a realm where a rule asks for one.
pub(super) fn model(facts: &mut RouterFacts) {
    let asks = facts.rulesets.iter().any(|ruleset| {
        ruleset.kind != RulesetKind::Ipset
            && ASKED_BY.iter().any(|word| ruleset.text.contains(word))
    });
    let lines = std::mem::take(&mut facts.realms);
    if !asks {
        return;
    }
    for line in lines {
        let message =
            "the route has a realm, which no route of a lab has, and rules ask for realms";
        let omission = Omission::of_everything(OmissionKind::Route);
        let warning = Warning::omission(facts.origin(line), &facts.name, message, omission);
        facts.warnings.push(warning);
    }
}

#[cfg(test)]
mod tests {
    use crate::lab::facts::load_file;

    #[test]
    fn a_realm_that_a_rule_asks_for_is_told_of_and_another_is_not() {
        for (rule, told) in [("rt classid 7 drop", true), ("tcp dport 22 drop", false)] {
            let section = |name: &str, body: &str| {
                format!(
                    "=== TSIM_SECTION_START:{name} ===\nTITLE: t\nCOMMAND: c\n---\n{body}\nEXIT_CODE: 0\n\
                     === TSIM_SECTION_END:{name} ===\n"
                )
            };
            let text = [
                section(
                    "interfaces",
                    "1: eth0: <UP> mtu 1500\n    inet 10.1.0.1/24 scope global eth0",
                ),
                section("routing_table", "10.9.0.0/24 via 10.1.0.2 dev eth0 realm 7"),
                section(
                    "nft_ruleset",
                    &format!("table ip f {{\n\tchain c {{\n\t\t{rule}\n\t}}\n}}"),
                ),
            ];
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("r_facts.txt");
            std::fs::write(&file, text.concat()).unwrap();
            let facts = load_file(&file).unwrap();
            let found = facts
                .warnings
                .iter()
                .any(|w| w.matters() && w.message.contains("realm"));
            assert_eq!(found, told, "{:?}", facts.warnings);
        }
    }
}
