//! The rules of iptables-legacy as a program that a packet's other ways are thought out in.

use super::{
    save::{IptablesSave, RuleSave as Saved},
    step::LegacyStep,
};
use crate::firewall::{
    RulePlace, TableFamily,
    nft::trace::StepKind,
    place::HookPoint,
    rule::{
        Rule, RuleVerdict,
        walk::{Base, ChainRules, Program},
    },
};

/// Built-in chains with their hooks and priorities, linux/netfilter_ipv4.h.
pub(crate) const BUILT_IN: [(&str, &str, HookPoint, i32); 13] = [
    ("raw", "PREROUTING", HookPoint::Prerouting, -300),
    ("mangle", "PREROUTING", HookPoint::Prerouting, -150),
    ("nat", "PREROUTING", HookPoint::Prerouting, -100),
    ("mangle", "INPUT", HookPoint::Input, -150),
    ("filter", "INPUT", HookPoint::Input, 0),
    ("security", "INPUT", HookPoint::Input, 50),
    ("nat", "INPUT", HookPoint::Input, 100),
    ("mangle", "FORWARD", HookPoint::Forward, -150),
    ("filter", "FORWARD", HookPoint::Forward, 0),
    ("security", "FORWARD", HookPoint::Forward, 50),
    ("mangle", "POSTROUTING", HookPoint::Postrouting, -150),
    ("nat", "POSTROUTING", HookPoint::Postrouting, 100),
    ("mangle", "OUTPUT", HookPoint::Output, -150),
];

/// Before the name of a table: nf_tables may have one of the same name.
const LEGACY: &str = "legacy ";

/// Adds the tables of `save`.
pub(super) fn add(save: &IptablesSave, family: TableFamily, program: &mut Program) {
    for (name, table) in &save.tables {
        let place = |chain: &str| RulePlace {
            family,
            table: format!("{LEGACY}{name}"),
            chain: chain.to_owned(),
            handle: 0,
        };
        for chain in &table.chains {
            let rules: Vec<Rule> = table.chain(&chain.name).map(Saved::parsed).collect();
            program.add(ChainRules::new(place(&chain.name), rules.into()));
        }
        for (_, chain, hook, priority) in BUILT_IN.iter().filter(|(table, ..)| table == name) {
            program.bases.push(Base {
                place: place(chain),
                hook: *hook,
                priority: *priority,
                policy_drops: table.policy(chain) != "ACCEPT",
            });
        }
    }
}

/// Notes what rules said of a packet whose way was reported as `steps`.
pub(super) fn note(family: TableFamily, steps: &[LegacyStep], program: &mut Program) {
    for (at, step) in steps.iter().enumerate() {
        let Some(number) = number(program, family, &step.table, &step.chain) else {
            continue;
        };
        let same = |s: &&LegacyStep| (&s.table, &s.chain) == (&step.table, &step.chain);
        // Once for each chain, at its last step.
        if steps[at + 1..].iter().any(|s| same(&s)) {
            continue;
        }
        let calls = calls(program, family, steps, step);
        let chain = &mut program.chains[number];
        chain.visited = true;
        if calls > 1 {
            continue;
        }
        let asked = asked(&chain.rules, steps, at);
        for said in chain.said.iter_mut().take(asked) {
            *said = Some(false);
        }
        for matched in steps.iter().filter(same) {
            if let Some(said) = chain.said.get_mut(matched.position.wrapping_sub(1)) {
                *said = Some(true);
            }
        }
    }
}

/// Up to which of the `rules` of its chain step number `at` says that a packet was asked. RETURN in a built-in
/// chain, and the end of a chain that was gone to from there, lead to the policy past the rules behind.
pub(super) fn asked(rules: &[Rule], steps: &[LegacyStep], at: usize) -> usize {
    let Some(step) = steps.get(at) else { return 0 };
    let same = |s: &&LegacyStep| {
        s.kind == StepKind::Rule && (&s.table, &s.chain) == (&step.table, &step.chain)
    };
    let before = steps.get(..at).unwrap_or_default().iter().rev().find(same);
    let left = before.filter(|before| {
        let rule = before.position.checked_sub(1).and_then(|at| rules.get(at));
        let leaves =
            |verdict: &RuleVerdict| matches!(verdict, RuleVerdict::Return | RuleVerdict::Goto(_));
        rule.is_some_and(|rule| rule.verdicts().any(leaves))
    });
    match (step.kind, left) {
        (StepKind::Policy, Some(before)) => before.position,
        _ => step.position,
    }
}

/// How often a packet was sent into the chain of `step` by rules.
fn calls(program: &Program, family: TableFamily, steps: &[LegacyStep], step: &LegacyStep) -> usize {
    let leads = |from: &&LegacyStep| {
        let chain =
            number(program, family, &from.table, &from.chain).filter(|_| from.table == step.table);
        let rule = chain.and_then(|chain| {
            let at = from.position.checked_sub(1)?;
            program.chains[chain].rules.get(at)
        });
        let here = |verdict: &RuleVerdict| match verdict {
            RuleVerdict::Jump(name) | RuleVerdict::Goto(name) => *name == step.chain,
            _ => false,
        };
        rule.is_some_and(|rule| rule.verdicts().any(here))
    };
    steps.iter().filter(leads).count()
}

/// The number of a chain.
pub(super) fn number(
    program: &Program,
    family: TableFamily,
    table: &str,
    chain: &str,
) -> Option<usize> {
    program.number(&RulePlace {
        family,
        table: format!("{LEGACY}{table}"),
        chain: chain.to_owned(),
        handle: 0,
    })
}

/// The table that a place of the program stands for; none where it is not one of iptables-legacy.
pub(super) fn table(place: &RulePlace) -> Option<&str> {
    place.table.strip_prefix(LEGACY)
}
