//! Random rulesets that decide by rate, chance, turn, quota and history: services asked together get
//! the verdicts that each gets when it is asked about by itself, and a plain verdict is what a capture
//! shows of one packet that comes alone to a router that is new.
//!
//! `TSIM_VARIED_RULESETS` says how many; a failure is printed with its seed, for `TSIM_VARIED_SEED`.

use std::sync::atomic::{AtomicU64, Ordering};

use tsim::{
    firewall::Backend,
    netlink::object::Family,
    run::report::{ServiceReport, Verdict},
};

use super::{
    bed::CaseBed,
    file::{CaseFile, Expected, Loader, Run, services},
    fuzz::Random,
    seeds,
};

/// How many rulesets a plain test run tries.
const RULESETS: u64 = 24;
const SERVICES: &str = "22,80,443,53/udp";

/// How often it was asked, and answered without a verdict.
#[derive(Default)]
struct Count {
    asked: AtomicU64,
    unknown: AtomicU64,
    refused: AtomicU64,
}

#[test]
fn services_asked_together_get_the_verdicts_that_each_gets_alone() {
    let counted = Count::default();
    let tried = seeds::try_all("VARIED", RULESETS, |seed| wrong(seed, &counted));
    let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
    let refused = of(&counted.refused);
    println!(
        "{} verdicts, {} of them UNKNOWN; {refused} of {} rulesets refused by the tools",
        of(&counted.asked),
        of(&counted.unknown),
        tried.count
    );
    tried.assert_right(refused);
}

/// What is wrong with the answers about the ruleset of this seed.
fn wrong(seed: u64, count: &Count) -> Option<String> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let loader = random.one(&[Loader::Nft, Loader::IptablesNft, Loader::IptablesLegacy]);
    let family = random.one(&[Family::V4, Family::V6]);
    let run = Run {
        loader,
        backend: Backend::Nft,
        family,
    };
    let rules = match loader {
        Loader::Nft => native(&mut random),
        _ => iptables(&mut random),
    };
    let case = CaseFile::of_rules(loader, rules.clone());
    let asked: Vec<Expected> = services(SERVICES)
        .map(|service| Expected {
            service,
            verdict: Verdict::Unknown,
            because: Vec::new(),
        })
        .collect();
    let Ok(bed) = CaseBed::new(&case, loader, family) else {
        count.refused.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    let together = bed.measure(&case, run, &asked);
    drop(bed);
    let mut wrong = Vec::new();
    for (one, expected) in together.routers[0].services.iter().zip(&asked) {
        // Routers that no packet has come to yet.
        let new = || CaseBed::new(&case, loader, family).unwrap();
        let report = new().measure(&case, run, std::slice::from_ref(expected));
        let alone = &report.routers[0].services[0];
        let truth = new().one_packet(&case, run, expected);
        count.asked.fetch_add(1, Ordering::Relaxed);
        let unknown = u64::from(alone.result == Verdict::Unknown);
        count.unknown.fetch_add(unknown, Ordering::Relaxed);
        wrong.extend(
            differ(one, alone).then(|| format!("together {}, alone {}", told(one), told(alone))),
        );
        for answer in [one, alone] {
            if answer.result != Verdict::Unknown && answer.result != truth {
                wrong.push(format!("{}, and a capture shows {}", told(answer), truth));
            }
        }
    }
    let wrong = (!wrong.is_empty()).then(|| wrong.join("\n"))?;
    Some(format!(
        "TSIM_VARIED_SEED={seed} ({loader:?}, {family:?}):\n{rules}\n{wrong}"
    ))
}

/// Whether two answers are at odds. What a job itself uses up for long is not to be had again: the
/// services behind it are UNKNOWN by that rate or quota, where the first has a verdict.
fn differ(one: &ServiceReport, other: &ServiceReport) -> bool {
    let used_up = |answer: &ServiceReport| {
        let reason = answer.reason.as_deref().unwrap_or_default();
        let kinds = ["rate-limited", "limited by a quota", "seen before"];
        answer.result == Verdict::Unknown && kinds.iter().any(|kind| reason.contains(kind))
    };
    one.result != other.result && !used_up(one) && !used_up(other)
}

fn told(answer: &ServiceReport) -> String {
    let reason = answer.reason.as_deref().unwrap_or_default();
    format!("{} {} ({reason})", answer.service(), answer.result)
}

/// Rules of nft: marks by more than the packet, and verdicts by these and by more than the packet.
fn native(random: &mut Random) -> String {
    const VARYING: &[&str] = &[
        "limit rate 200/second burst 1 packets",
        "limit rate 1/minute burst 3 packets",
        "limit rate over 1/minute burst 2 packets",
        "numgen random mod 2 0",
        "numgen inc mod 2 0",
        "ct count over 2",
        "quota over 300 bytes",
        "quota until 300 bytes",
        "update @s { {ip} saddr limit rate over 1/minute burst 2 packets }",
    ];
    let policy = random.one(&["accept", "drop"]);
    let mut text =
        "table {ip} varied {\n  set s { type {addr}; flags dynamic; size 64; }\n".to_owned();
    text += "  chain pre {\n    type filter hook prerouting priority -150;\n";
    for _ in 0..random.below(3) {
        let port = native_port(random);
        text += &format!(
            "    {port} {} meta mark set {}\n",
            random.one(VARYING),
            7 + random.below(2)
        );
    }
    text += "  }\n  chain nat {\n    type nat hook prerouting priority -100;\n";
    if random.chance(25) {
        let lot = random.one(&[
            "numgen random mod 2",
            "numgen inc mod 2",
            "jhash {ip} saddr mod 2 seed 1",
        ]);
        text += &format!("    tcp dport 80 dnat to {lot} map {{ 0 : {{dst}}, 1 : {{other}} }}\n");
    }
    text += &format!(
        "  }}\n  chain forward {{\n    type filter hook forward priority 0; policy {policy};\n"
    );
    for _ in 0..1 + random.below(5) {
        let port = native_port(random);
        let does = random.one(&["accept", "drop", "return", "jump sub", "goto sub"]);
        text += &match random.below(4) {
            0 => format!("    {port} {does}\n"),
            1 => format!("    meta mark {} {does}\n", 7 + random.below(2)),
            2 if random.chance(30) => format!("    {{ip}} daddr {{other}} {does}\n"),
            _ => format!("    {port} {} {does}\n", random.one(VARYING)),
        };
    }
    text += "  }\n  chain sub {\n";
    for _ in 0..random.below(3) {
        let (port, does) = (
            native_port(random),
            random.one(&["accept", "drop", "return"]),
        );
        let varying = random.chance(50).then(|| random.one(VARYING));
        text += &format!("    {port} {} {does}\n", varying.unwrap_or_default());
    }
    text + "  }\n}\n"
}

fn native_port(random: &mut Random) -> &'static str {
    random.one(&[
        "tcp dport 22",
        "tcp dport 80",
        "meta l4proto tcp",
        "meta l4proto { tcp, udp }",
        "udp dport 53",
    ])
}

/// The same of iptables.
fn iptables(random: &mut Random) -> String {
    const VARYING: &[&str] = &[
        "-m limit --limit 200/second --limit-burst 1",
        "-m limit --limit 1/minute --limit-burst 3",
        "-m hashlimit --hashlimit-above 1/minute --hashlimit-burst 2 --hashlimit-mode srcip --hashlimit-name a",
        "-m statistic --mode random --probability 0.5",
        "-m statistic --mode nth --every 2 --packet 0",
        "-m quota --quota 300",
        "-m connlimit --connlimit-above 2",
        "-m recent --name r --rcheck --hitcount 3",
        "-m recent --name r --update --seconds 60",
    ];
    let policy = random.one(&["ACCEPT", "DROP"]);
    let mut text = "*mangle\n".to_owned();
    if random.chance(50) {
        text += "-A PREROUTING -m recent --name r --set\n";
    }
    for _ in 0..random.below(3) {
        let (port, varying) = (xtables_port(random), random.one(VARYING));
        text += &format!(
            "-A PREROUTING {port} {varying} -j MARK --set-mark {}\n",
            7 + random.below(2)
        );
    }
    text += "COMMIT\n*nat\n:LOT - [0:0]\n";
    if random.chance(25) {
        let lot = random.one(&[
            "--mode random --probability 0.5",
            "--mode nth --every 2 --packet 0",
        ]);
        text += &format!("-A PREROUTING -p tcp --dport 80 -m statistic {lot} -j LOT\n");
        text += "-A LOT -p tcp -j DNAT --to-destination {other}\n";
    }
    text += &format!("COMMIT\n*filter\n:FORWARD {policy} [0:0]\n:sub - [0:0]\n");
    for _ in 0..1 + random.below(5) {
        let port = xtables_port(random);
        let does = random.one(&["-j ACCEPT", "-j DROP", "-j RETURN", "-j sub", "-g sub"]);
        text += &match random.below(4) {
            0 => format!("-A FORWARD {port} {does}\n"),
            1 => format!("-A FORWARD -m mark --mark {} {does}\n", 7 + random.below(2)),
            2 if random.chance(30) => format!("-A FORWARD -d {{other}}/{{bits}} {does}\n"),
            _ => format!("-A FORWARD {port} {} {does}\n", random.one(VARYING)),
        };
    }
    for _ in 0..random.below(3) {
        let does = random.one(&["ACCEPT", "DROP", "RETURN"]);
        text += &match random.below(2) {
            0 => format!("-A sub {} -j {does}\n", xtables_port(random)),
            _ => format!(
                "-A sub {} {} -j {does}\n",
                xtables_port(random),
                random.one(VARYING)
            ),
        };
    }
    text + "COMMIT\n"
}

fn xtables_port(random: &mut Random) -> &'static str {
    random.one(&[
        "-p tcp --dport 22",
        "-p tcp --dport 80",
        "-p tcp",
        "-p udp --dport 53",
    ])
}
