//! Where the rules of rulesets stand, as far as it matters to the ports of VRFs.
//!
//! What comes in by a port meets PREROUTING once with the port and once with the VRF as the interface
//! that it came in by, FORWARD and INPUT with the VRF alone (`l3mdev_ip_rcv()`), and leaves by a port.

use crate::{
    firewall::rule::{Caveat, Does, Field, Rule, RuleVerdict, Test, pieces},
    lab::{
        omission::{Hooks, PlacedRule, placed_rules},
        topology::Ruleset,
    },
};

/// Whether rules tell by which interface a packet came in, or by which one the router's own leave, and
/// `named` says that they mean it.
pub(super) fn tell_incoming(rulesets: &[Ruleset], named: impl Fn(&str) -> bool) -> bool {
    let (rules, others) = placed_rules(rulesets);
    // A line that names a set or a limit is no more than that, though it has such a word.
    let held = |line: &&String| !line.ends_with('{');
    others.iter().filter(held).any(|line| named(line))
        || rules.iter().any(|rule| tells(rule, &named))
}

fn tells(placed: &PlacedRule, named: impl Fn(&str) -> bool) -> bool {
    let same_way_out = leaves_by_port(placed);
    let asks = |test: &Test| match test.itself() {
        Test::Device { of, .. } if *of == Field::Outgoing && same_way_out => false,
        Test::Device { names, .. } => names.iter().any(|name| named(name)),
        Test::Other { text, .. } => named(text),
        _ => false,
    };
    let mut matches = placed.rule.matches.iter();
    matches.any(|one| asks(&one.test)) || mapped(&placed.text).is_some_and(|held| named(&held))
}

/// Whether all that comes to a rule goes out by a port, with a VRF of the kernel as well as without.
fn leaves_by_port(placed: &PlacedRule) -> bool {
    let forwarded = Hooks::of_forwarded(placed.of_nat);
    !placed.hooks.is_empty() && placed.hooks.is_within(forwarded)
}

/// What stands in the maps of a rule, whose elements it does not keep.
fn mapped(text: &str) -> Option<String> {
    let pieces = pieces(text);
    let at = pieces
        .iter()
        .position(|word| ["map", "vmap"].contains(word))?;
    Some(pieces.get(at..)?.join(" "))
}

/// Whether a packet that passed PREROUTING may fare otherwise there the second time.
pub(super) fn differ_the_second_time(rulesets: &[Ruleset]) -> bool {
    let (rules, others) = placed_rules(rulesets);
    if others.iter().any(|line| counts(line)) {
        return true;
    }
    let met = rules.iter().filter(|placed| placed.hooks.prerouting);
    let (of_nat, repeated): (Vec<&PlacedRule>, Vec<&PlacedRule>) =
        met.partition(|placed| placed.of_nat);
    let leaves = |effect| move |placed: &&&PlacedRule| left_by(placed) == effect;
    let changes = leaves(LeftByRule::Changes);
    if repeated.iter().any(|placed| changes(&placed)) {
        return true;
    }
    // What translates an address does so before the others are asked again.
    if of_nat.iter().any(|placed| changes(&placed)) && !repeated.is_empty() {
        return true;
    }
    let mut all = repeated.iter().chain(&of_nat);
    all.any(|placed| leaves(LeftByRule::Marks)(&placed))
        && repeated.iter().any(|placed| asks_for_marks(&placed.rule))
}

/// What a rule leaves behind that another, or itself the next time, can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeftByRule {
    Nothing,
    /// A mark, the same one however often it is set.
    Marks,
    Changes,
}

fn left_by(placed: &PlacedRule) -> LeftByRule {
    let rule = &placed.rule;
    let counts = |caveat: &Caveat| match caveat {
        Caveat::RateLimited(_)
        | Caveat::Quota(_)
        | Caveat::Random(_)
        | Caveat::History(_)
        | Caveat::Contents(_) => true,
        // A program that reads what packets carry may keep something.
        Caveat::Content(text) => text.contains("bpf"),
        _ => false,
    };
    if rule.varying().any(|varying| counts(&varying.caveat)) || !placed.to_chains {
        return LeftByRule::Changes;
    }
    let effects = rule.does.iter().map(|does| match does {
        Does::Decide(verdict) => left_by_verdict(verdict),
        // Of a map that is declared elsewhere the verdicts are not known, but all of them are plain ones.
        Does::Choose(_) | Does::Note => LeftByRule::Nothing,
        // Bits beside the mask are turned over each time.
        Does::Set {
            field: Field::Mark,
            mask,
            value: Some(value),
        } if value & !mask == 0 => LeftByRule::Marks,
        Does::Set { .. }
        | Does::Translate(_)
        | Does::Remember(_)
        | Does::Forget(_)
        | Does::Copy => LeftByRule::Changes,
    });
    effects.fold(LeftByRule::Nothing, |left, effect| match (left, effect) {
        (LeftByRule::Nothing, effect) => effect,
        (left, LeftByRule::Nothing) => left,
        // Two marks of one rule may be in each other's way.
        _ => LeftByRule::Changes,
    })
}

fn left_by_verdict(verdict: &RuleVerdict) -> LeftByRule {
    match verdict {
        RuleVerdict::Accept
        | RuleVerdict::Drop
        | RuleVerdict::Reject(_)
        | RuleVerdict::Return
        | RuleVerdict::Jump(_)
        | RuleVerdict::Goto(_) => LeftByRule::Nothing,
        RuleVerdict::Queue { .. }
        | RuleVerdict::Proxy { .. }
        | RuleVerdict::AnswerItself
        | RuleVerdict::SendOn
        | RuleVerdict::Unknown(_) => LeftByRule::Changes,
    }
}

fn asks_for_marks(rule: &Rule) -> bool {
    let reads = |test: &Test| test.reads().contains(&Field::Mark);
    let chosen = rule.does.iter().flat_map(|does| match does {
        Does::Choose(list) => list.iter().filter_map(|(test, _)| test.as_ref()).collect(),
        _ => Vec::new(),
    });
    let mut asked = rule.matches.iter().map(|one| &one.test).chain(chosen);
    asked.any(reads)
}

/// Whether a line that says what a set is or holds makes its elements count packets.
fn counts(line: &str) -> bool {
    let counting = |word: &&str| ["limit", "quota", "count"].contains(word);
    !line.ends_with('{') && pieces(line).iter().any(counting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::RulesetKind;

    fn iptables(text: &str) -> [Ruleset; 1] {
        [Ruleset::for_test(RulesetKind::Iptables, text)]
    }

    fn nft(text: &str) -> [Ruleset; 1] {
        [Ruleset::for_test(RulesetKind::Nft, text)]
    }

    #[test]
    fn what_rules_leave_behind_counts_the_second_time() {
        let dnat = "*nat\n-A PREROUTING -p tcp -j DNAT --to-destination 10.2.0.9\nCOMMIT\n";
        let mangle = |rules: &str| format!("{dnat}*mangle\n{rules}\nCOMMIT\n");
        let plain = "*mangle\n-A PREROUTING -s 10.9.0.0/16 -j DROP\n-A PREROUTING -j LOG\nCOMMIT\n";
        let mark = "-A PREROUTING -p tcp -j MARK --set-xmark 0x1/0xff";
        for (text, differs) in [
            (dnat.to_owned(), false),
            (plain.to_owned(), false),
            (mangle("-A PREROUTING -d 10.2.0.9 -j DROP"), true),
            (mangle("-A FORWARD -d 10.2.0.9 -j DROP"), false),
            (mangle("-A mine -d 10.2.0.9 -j DROP"), true),
            (format!("*mangle\n{mark}\nCOMMIT"), false),
            (
                format!("*mangle\n{mark}\n-A PREROUTING -m mark --mark 0x1 -j DROP"),
                true,
            ),
            (
                "*mangle\n-A PREROUTING -j MARK --set-xmark 0x1/0x0".to_owned(),
                true,
            ),
            (
                "*mangle\n-A PREROUTING -m recent --set --name a --rsource".to_owned(),
                true,
            ),
            (
                "*mangle\n[1:60] -A PREROUTING -j TTL --ttl-dec 3".to_owned(),
                true,
            ),
            (
                "*filter\n-A FORWARD -m limit --limit 3/sec -j ACCEPT".to_owned(),
                false,
            ),
        ] {
            assert_eq!(differ_the_second_time(&iptables(&text)), differs, "{text}");
        }
        let chain = |hook: &str, rules: &str| {
            format!(
                "table inet t {{\n\tchain c {{\n\t\ttype filter hook {hook} priority 0; policy accept;\n{rules}\n\t}}\n}}\n"
            )
        };
        for (text, differs) in [
            (chain("prerouting", "meta mark set 0x00000001"), false),
            (
                chain(
                    "prerouting",
                    "meta mark 0x00000001 drop\nmeta mark set 0x00000001",
                ),
                true,
            ),
            (chain("prerouting", "ip saddr 10.0.0.0/8 drop"), false),
            (
                "table inet t {\n\tset bad {\n\t\ttype ipv4_addr\n\t}\n}\n".to_owned()
                    + &chain("prerouting", "ip saddr @bad drop"),
                false,
            ),
            (chain("prerouting", "limit rate 3/second accept"), true),
            (chain("forward", "limit rate 3/second accept"), false),
            (chain("prerouting", "update @seen { ip saddr }"), true),
            (
                chain("forward", "").replace("c {", "c { type filter hook prerouting priority 0;")
                    + "limit rate 1/second",
                true,
            ),
            (
                chain("prerouting", "limit rate 3/second").replace("inet", "bridge"),
                false,
            ),
        ] {
            assert_eq!(differ_the_second_time(&nft(&text)), differs, "{text}");
        }
    }

    #[test]
    fn names_of_interfaces_that_forwarded_packets_leave_by_are_the_same() {
        let named = |text: &str| text.contains("eth0");
        for (text, tells) in [
            ("*filter\n-A FORWARD -o eth0 -j DROP", false),
            ("*filter\n-A FORWARD ! -o eth0 -j DROP", false),
            ("*filter\n-A FORWARD -i eth0 -j DROP", true),
            ("*filter\n-A OUTPUT -o eth0 -j DROP", true),
            ("*filter\n-A mine -o eth0 -j DROP", true),
            ("*nat\n-A POSTROUTING -o eth0 -j MASQUERADE", false),
            ("*mangle\n-A POSTROUTING -o eth0 -j DROP", true),
        ] {
            assert_eq!(tell_incoming(&iptables(text), named), tells, "{text}");
        }
        let forward = "table ip t {\nchain c {\ntype filter hook forward priority 0;\n";
        for (rule, tells) in [
            ("oifname \"eth0\" drop", false),
            ("oifname != { \"eth0\", \"eth1\" } drop", false),
            ("oifname { \"eth1\" } iifname \"eth0\" drop", true),
            ("iifname . oifname { \"eth1\" . \"eth0\" } drop", true),
            ("oifname vmap { \"eth0\" : drop }", true),
        ] {
            let text = format!("{forward}{rule}\n}}\n}}\n");
            assert_eq!(tell_incoming(&nft(&text), named), tells, "{rule}");
        }
    }
}
