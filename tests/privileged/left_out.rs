//! A verdict is UNKNOWN if and only if a rule that the lab lacks could have changed it.
//!
//! Random rulesets, each with one rule that no tool here knows: by a match, or by a target. What it
//! could have done is tried: the same ruleset with that rule accepting, and dropping, whatever its
//! other matches let to it. Several rulesets are one lab, each a router of its own.
//!
//! `TSIM_LEFT_OUT=1000` sets how many rulesets are tried, `TSIM_LEFT_OUT_SEED=N` which one first; the
//! stage `left-out` of tests/run.sh tries a thousand.

use std::{collections::BTreeMap, env, fs, path::Path};

use tsim::{
    firewall::backend::BackendChoice,
    run::{
        quick::{ExplainMode, RouterChoice},
        report::Verdict,
    },
};

use crate::{cases::fuzz::Random, lab::router_name, quick::TestLab};

/// Rulesets where nothing else is said.
const RULESETS: u64 = 60;

/// How many of them are in one lab.
const AT_ONCE: u64 = 20;

const SERVICES: &str = "22,80,443,8080,53/udp,123/udp";

/// What the rule that is left out does where it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Accept,
    Drop,
    /// Nobody here knows.
    Unknown,
}

/// Which packets a ruleset is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Forward,
    Input,
}

impl Hook {
    fn name(self, nft: bool) -> &'static str {
        match (self, nft) {
            (Self::Forward, true) => "forward",
            (Self::Forward, false) => "FORWARD",
            (Self::Input, true) => "input",
            (Self::Input, false) => "INPUT",
        }
    }
}

/// A ruleset in which one rule is to be replaced.
struct Ruleset {
    nft: bool,
    hook: Hook,
    /// With `{}` where the rule stands.
    text: String,
    /// What it asks that is known.
    asks: String,
    target: Target,
}

impl Ruleset {
    fn random(random: &mut Random) -> Self {
        let nft = random.chance(50);
        let hook = random.one(&[Hook::Forward, Hook::Forward, Hook::Input]);
        let target = random.one(&[Target::Accept, Target::Drop, Target::Drop, Target::Unknown]);
        // What an unknown target does may be more than to accept or to drop, and what another table
        // drops it might lead elsewhere before.
        let several = target != Target::Unknown && random.chance(50);
        let mut chains = vec![("sub", false), ("main", true)];
        if several {
            chains.push(("early", true));
        }
        let place = random.below(chains.len());
        let mut text = String::new();
        let mut asks = String::new();
        let mut bodies = Vec::new();
        for (at, (name, is_base)) in chains.iter().enumerate() {
            let mut rules: Vec<String> = Vec::new();
            for _ in 0..1 + random.below(5) {
                rules.push(rule(random, (nft, hook), *is_base && *name == "main"));
            }
            if at == place {
                asks = matches(random, (nft, hook));
                rules.insert(random.below(rules.len() + 1), "{}".to_owned());
            }
            bodies.push((*name, *is_base && random.chance(40), rules));
        }
        match nft {
            true => nft_text(hook, &bodies, &mut text),
            false => iptables_text(hook, &bodies, &mut text),
        }
        Self {
            nft,
            hook,
            text,
            asks,
            target,
        }
    }

    /// The ruleset with the rule as it is in the facts.
    fn left_out(&self) -> String {
        let verdict = match self.target {
            Target::Accept => "accept",
            Target::Drop => "drop",
            Target::Unknown => "nosuch",
        };
        self.with(&match (self.nft, self.target) {
            (true, Target::Unknown) => "nosuch 1".to_owned(),
            (true, _) => format!("nosuch 1 {verdict}"),
            (false, Target::Unknown) => "-j NOSUCH".to_owned(),
            (false, _) => format!("-m nosuch -j {}", verdict.to_uppercase()),
        })
    }

    /// The ruleset with a rule that does what the one that is left out may do.
    fn loaded(&self, verdict: &str) -> String {
        self.with(&match self.nft {
            true => verdict.to_owned(),
            false => format!("-j {}", verdict.to_uppercase()),
        })
    }

    fn with(&self, end: &str) -> String {
        self.text.replace("{}", &format!("{} {end}", self.asks))
    }

    fn variants(&self) -> &'static [&'static str] {
        match self.target {
            Target::Accept => &["accept"],
            Target::Drop => &["drop"],
            Target::Unknown => &["accept", "drop"],
        }
    }
}

fn matches(random: &mut Random, (nft, hook): (bool, Hook)) -> String {
    let everywhere: &[(&str, &str)] = &[
        ("", ""),
        ("-p tcp", "meta l4proto tcp"),
        ("-p udp", "meta l4proto udp"),
        ("! -p udp", "meta l4proto != udp"),
        ("-p tcp --dport 80", "tcp dport 80"),
        ("-p tcp --dport 22:443", "tcp dport 22-443"),
        ("-p tcp ! --dport 443", "tcp dport != 443"),
        ("-p udp --dport 53", "udp dport 53"),
        (
            "-p tcp -m multiport --dports 22,8080",
            "tcp dport { 22, 8080 }",
        ),
        ("-s 10.0.0.0/8", "ip saddr 10.0.0.0/8"),
        ("! -s 10.0.0.0/8", "ip saddr != 10.0.0.0/8"),
        ("-s 192.0.2.0/24", "ip saddr 192.0.2.0/24"),
        ("-i in", "iifname \"in\""),
        ("-i other", "iifname \"other\""),
        ("-m conntrack --ctstate NEW", "ct state new"),
        (
            "-m conntrack --ctstate RELATED,ESTABLISHED",
            "ct state established,related",
        ),
        ("-m conntrack --ctstate INVALID", "ct state invalid"),
        ("-p tcp --syn", "tcp flags & (fin | syn | rst | ack) == syn"),
    ];
    // iptables refuses to ask for the outgoing interface in INPUT.
    let forwarded = [
        ("-o out", "oifname \"out\""),
        ("! -o out", "oifname != \"out\""),
    ];
    let all = match hook {
        Hook::Forward => [everywhere, &forwarded].concat(),
        Hook::Input => everywhere.to_vec(),
    };
    let (iptables, of_nft) = random.one(&all);
    if nft { of_nft } else { iptables }.to_owned()
}

/// A rule that everybody knows, without its chain.
fn rule(random: &mut Random, (nft, hook): (bool, Hook), may_jump: bool) -> String {
    let verdicts: &[(&str, &str)] = match may_jump {
        true => &[
            ("-j sub", "jump sub"),
            ("-g sub", "goto sub"),
            ("-j sub", "jump sub"),
            ("-j ACCEPT", "accept"),
            ("-j DROP", "drop"),
            ("-j REJECT", "reject"),
        ],
        false => &[
            ("-j ACCEPT", "accept"),
            ("-j DROP", "drop"),
            ("-j RETURN", "return"),
            ("-j LOG", "log"),
            ("", "counter"),
        ],
    };
    let (iptables, of_nft) = random.one(verdicts);
    let verdict = if nft { of_nft } else { iptables };
    format!("{} {verdict}", matches(random, (nft, hook)))
}

type Bodies<'a> = [(&'a str, bool, Vec<String>)];

fn nft_text(hook: Hook, chains: &Bodies<'_>, text: &mut String) {
    text.push_str("table inet t {\n");
    for (name, drops, rules) in chains {
        text.push_str(&format!("\tchain {name} {{\n"));
        let priority = match *name {
            "main" => Some("filter"),
            "early" => Some("mangle"),
            _ => None,
        };
        if let Some(priority) = priority {
            let policy = if *drops { "drop" } else { "accept" };
            text.push_str(&format!(
                "\t\ttype filter hook {} priority {priority}; policy {policy};\n",
                hook.name(true)
            ));
        }
        for rule in rules {
            text.push_str(&format!("\t\t{rule}\n"));
        }
        text.push_str("\t}\n\n");
    }
    text.push_str("}\n");
}

fn iptables_text(hook: Hook, chains: &Bodies<'_>, text: &mut String) {
    let policy = |drops| if drops { "DROP" } else { "ACCEPT" };
    let chain = |name: &str| match name {
        "sub" => "sub",
        _ => hook.name(false),
    };
    for table in ["filter", "mangle"] {
        let own = |name: &str| (name == "early") == (table == "mangle");
        let own: Vec<_> = chains.iter().filter(|(name, ..)| own(name)).collect();
        if own.is_empty() {
            continue;
        }
        text.push_str(&format!("*{table}\n"));
        for (name, drops, _) in &own {
            let policy = if *name == "sub" { "-" } else { policy(*drops) };
            text.push_str(&format!(":{} {policy} [0:0]\n", chain(name)));
        }
        for (name, _, rules) in &own {
            for rule in rules {
                // REJECT is for table filter only.
                text.push_str(&format!("-A {} {rule}\n", chain(name)));
            }
        }
        text.push_str("COMMIT\n");
    }
}

/// Facts of a router between 10.N.1.0/24 and 10.N.2.0/24.
fn write_router(dir: &Path, name: &str, number: usize, nft: bool, rules: &str) {
    fs::write(dir.join(format!("{name}.rules")), rules).unwrap();
    let kind = if nft { "nft" } else { "iptables" };
    let text = format!(
        "{{\"version\": 1, \"name\": \"{name}\", \"interfaces\": [\n\
         {{\"name\": \"in\", \"addresses\": [\"10.{number}.1.1/24\"]}},\n\
         {{\"name\": \"out\", \"addresses\": [\"10.{number}.2.1/24\"]}}],\n\
         \"{kind}\": {{\"file\": \"{name}.rules\"}}}}"
    );
    fs::write(dir.join(format!("{name}.json")), text).unwrap();
}

/// The verdicts of a router's services.
fn verdicts(lab: &TestLab, (name, number): (&str, usize), hook: Hook, trust: bool) -> Vec<Verdict> {
    let source = format!("10.{number}.1.10");
    let to = match hook {
        Hook::Forward => format!("10.{number}.2.10"),
        Hook::Input => format!("10.{number}.1.1"),
    };
    let mut job = lab.job(name, &source, &to, SERVICES);
    job.trust_facts = trust;
    job.explain = ExplainMode::Never;
    job.backend = BackendChoice::Auto;
    job.use_registry = false;
    job.routers = RouterChoice::Named(vec![router_name(name)]);
    let report = lab.run(&job);
    report.routers[0]
        .services
        .iter()
        .map(|s| s.result)
        .collect()
}

/// How many verdicts were, and had to be, UNKNOWN; and what is wrong.
#[derive(Default)]
struct Count {
    verdicts: usize,
    unknown: usize,
    wrong: Vec<String>,
}

fn try_some(seeds: std::ops::Range<u64>, count: &mut Count) {
    let dir = tempfile::tempdir().unwrap();
    let rulesets: BTreeMap<u64, Ruleset> = seeds
        .map(|seed| {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            (seed, Ruleset::random(&mut random))
        })
        .collect();
    let mut number = 0;
    let mut routers = BTreeMap::new();
    for (seed, ruleset) in &rulesets {
        let lacking = ("lacking", ruleset.left_out());
        let loaded = ruleset.variants().iter().map(|v| (*v, ruleset.loaded(v)));
        for (what, text) in std::iter::once(lacking).chain(loaded) {
            number += 1;
            let name = format!("r{number}");
            write_router(dir.path(), &name, number, ruleset.nft, &text);
            routers.insert((*seed, what), (name, number));
        }
    }
    let lab = TestLab::up(dir.path().to_str().unwrap());
    for (seed, ruleset) in &rulesets {
        let ask = |what, trust| {
            let (name, number) = &routers[&(*seed, what)];
            verdicts(&lab, (name, *number), ruleset.hook, trust)
        };
        let without = ask("lacking", true);
        let with: Vec<_> = ruleset.variants().iter().map(|v| ask(v, false)).collect();
        let said = ask("lacking", false);
        for (at, said) in said.iter().enumerate() {
            let flips = with.iter().any(|with| with[at] != without[at]);
            let want = if flips { Verdict::Unknown } else { without[at] };
            count.verdicts += 1;
            count.unknown += usize::from(flips);
            if *said != want {
                let (left_out, n) = (ruleset.left_out(), at + 1);
                count.wrong.push(format!(
                    "TSIM_LEFT_OUT_SEED={seed} TSIM_LEFT_OUT=1: service {n} is {said}, not {want}:\n\
                     {left_out}"
                ));
            }
        }
    }
}

#[test]
#[allow(
    clippy::print_stdout,
    reason = "how far the loop is, in the stage that shows it"
)]
fn a_verdict_is_unknown_if_and_only_if_the_left_out_rule_could_change_it() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse().unwrap());
    let total = number("TSIM_LEFT_OUT").unwrap_or(RULESETS);
    let first = number("TSIM_LEFT_OUT_SEED").unwrap_or(1);
    let mut count = Count::default();
    let mut at = first;
    while at < first + total {
        let end = (at + AT_ONCE).min(first + total);
        try_some(at..end, &mut count);
        at = end;
        let (verdicts, unknown, wrong) = (count.verdicts, count.unknown, count.wrong.len());
        println!(
            "{} rulesets, {verdicts} verdicts, {unknown} of them UNKNOWN, {wrong} wrong",
            at - first
        );
    }
    assert!(count.wrong.is_empty(), "{}", count.wrong.join("\n"));
    assert!(
        count.unknown > 0 || total < 10,
        "the generator makes nothing that matters"
    );
}
