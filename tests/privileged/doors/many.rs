//! Rulesets with many lines that the kernel refuses: found by their forms, not one by one.

use std::time::{Duration, Instant};

use tsim::lab::UpOptions;

use crate::lab::{Place, tool};

/// 5,000 rules, 1,640 of which are of forms that the filter table does not have.
fn rules() -> String {
    let rule = |n: usize| {
        let from = format!(
            "-A FORWARD -s 10.{}.{}.0/24 -p tcp -m tcp",
            n / 250,
            n % 250
        );
        match n {
            n if n >= 4_920 || n % 3 > 0 => format!("{from} --dport {} -j ACCEPT\n", n + 1),
            n if n % 2 == 0 => format!("{from} -m rpfilter -j DROP\n"),
            _ => format!("{from} -j TPROXY --on-port {} --on-ip 0.0.0.0\n", n + 1),
        }
    };
    let rules: String = (0..5_000).map(rule).collect();
    format!("*filter\n:FORWARD DROP [0:0]\n{rules}COMMIT\n")
}

fn assert_found(legacy: bool, save: &str) {
    let place = Place::new();
    let facts = place.facts(&[("r", "\"iptables\": {\"file\": \"ruleset\"}")]);
    std::fs::write(facts.join("ruleset"), rules()).unwrap();
    let begin = Instant::now();
    let up = place
        .up_with(
            &facts,
            UpOptions {
                legacy,
                ..UpOptions::default()
            },
        )
        .unwrap();
    let took = begin.elapsed();
    assert_eq!(
        up.lab.warnings.len(),
        1_640,
        "{:?}",
        up.lab.warnings.first()
    );
    let saved = tool(&place.router("r"), save, &[]);
    assert_eq!(saved.matches("-j ACCEPT").count(), 3_360);
    assert_eq!(saved.matches("-A FORWARD").count(), 3_360);
    // 207 s before; a few seconds now, also on a machine that does much else.
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn many_refused_rules_are_found_at_once() {
    assert_found(false, "iptables-nft-save");
}

#[test]
fn iptables_legacy_says_nothing_and_they_are_found_at_once() {
    assert_found(true, "iptables-legacy-save");
}
