//! Random rulesets: the verdict is what a capture shows, whatever the rules are, and the ruleset is
//! afterwards what it was before.
//!
//! A ruleset is a list of rules, and its text follows from that list alone. One that fails is
//! shrunk by leaving out rules as long as it still fails, and is printed with its seed. Give it a
//! name and an expectation, and it is a case of the table.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

use tsim::{firewall::Backend, netlink::object::Family, run::report::Verdict};

use super::{
    asked_once,
    bed::CaseBed,
    file::{CaseFile, Expected, Loader, Run, services},
    seeds,
};

/// How many rulesets a plain test run tries.
const RULESETS: u64 = 100;
const SERVICES: &str = "22,23,80,443,8080,53/udp,123/udp,ping,36412/sctp,esp,gre,ip/89";
/// What rules of nft look for that is neither TCP nor UDP.
const PROTOCOLS: [&str; 6] = [
    "meta l4proto { icmp, ipv6-icmp }",
    "sctp dport 36412",
    "meta l4proto esp",
    "meta l4proto gre",
    "meta l4proto 89",
    "meta l4proto { gre, esp, sctp }",
];
static REFUSED: AtomicU64 = AtomicU64::new(0);

#[test]
fn random_rulesets_have_the_verdicts_that_a_capture_shows() {
    let tried = seeds::try_all("FUZZ", RULESETS, fails);
    let refused = REFUSED.load(Ordering::Relaxed);
    println!(
        "{refused} of {} rulesets were refused by the tools",
        tried.count
    );
    tried.assert_right(refused);
}

/// What is wrong with the ruleset of this seed, shrunk.
fn fails(seed: u64) -> Option<String> {
    let ruleset = Ruleset::random(&mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let mut wrong = ruleset.wrong()?;
    let mut smallest = ruleset;
    loop {
        let smaller = smallest.smaller().into_iter();
        let found = smaller
            .map(|ruleset| (ruleset.wrong(), ruleset))
            .find_map(|(wrong, ruleset)| Some((wrong?, ruleset)));
        match found {
            Some((why, ruleset)) => (wrong, smallest) = (why, ruleset),
            None => break,
        }
    }
    let Run { loader, family, .. } = smallest.run;
    Some(format!(
        "TSIM_FUZZ_SEED={seed} ({loader:?}, {family:?}):\n{}\n{wrong}",
        smallest.text()
    ))
}

/// xorshift64*: good enough for tests, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        (mixed >> 33) as usize % end
    }

    pub(crate) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A ruleset in the making: rules in chains, and the policies of these.
#[derive(Clone)]
struct Ruleset {
    run: Run,
    chains: Vec<Chain>,
    rules: Vec<(usize, String)>,
}

/// Where DNAT sends packets to `port`.
fn target(random: &mut Random, port: &str) -> String {
    match random.below(6) {
        0 => "{other}".to_owned(),
        1 => format!("{{dst}}:1{port}"),
        2 => format!("{{other}}:2{port}"),
        3 => "{dst}:23".to_owned(),
        4 => "{gw}:22".to_owned(),
        _ => "{dst}:8080".to_owned(),
    }
}

/// Index of the chain that others jump to.
const SUB: usize = 0;

#[derive(Clone)]
struct Chain {
    /// nft: the line behind `type`; iptables: the table. Empty for one that others jump to.
    hook: String,
    name: String,
    drops: bool,
    nat: bool,
}

impl Ruleset {
    fn random(random: &mut Random) -> Self {
        let loader = random.one(&[Loader::Nft, Loader::IptablesNft, Loader::IptablesLegacy]);
        let family = random.one(&[Family::V4, Family::V6]);
        let backend = random.one(&loader.backends());
        let mut ruleset = Self {
            run: Run {
                loader,
                backend,
                family,
            },
            chains: Vec::new(),
            rules: Vec::new(),
        };
        match loader {
            Loader::Nft => ruleset.native(random),
            _ => ruleset.iptables(random),
        }
        ruleset
    }

    fn native(&mut self, random: &mut Random) {
        self.chain("", "sub", false, false);
        for number in 0..1 + random.below(4) {
            let hook = random.one(&[
                "prerouting",
                "forward",
                "forward",
                "forward",
                "postrouting",
                "input",
            ]);
            let nat = random.chance(15) && hook != "forward";
            let priority = match random.below(4) {
                _ if nat => 100 - 200 * i32::from(matches!(hook, "prerouting" | "input")),
                0 => i32::MIN + 1,
                1 => i32::MAX - 1,
                _ => random.one(&[-300, -150, -10, 0, 10, 50, 300]),
            };
            let kind = if nat { "nat" } else { "filter" };
            let hook = format!("{kind} hook {hook} priority {priority}");
            let drops = random.chance(15) && !nat;
            self.chain(&hook, &format!("c{number}"), drops, nat);
        }
        for _ in 0..1 + random.below(12) {
            let chain = random.below(self.chains.len());
            let rule = self.native_rule(random, chain);
            self.rules.push((chain, rule));
        }
    }

    fn native_rule(&self, random: &mut Random, chain: usize) -> String {
        let port = random.one(&["22", "23", "80", "443", "53", "123", "8080"]);
        let other = random.one(&["1-100", "1000-9000", "{ 22, 80, 53 }", "{ 20-25, 8080 }"]);
        let nat = self.chains[chain].nat;
        let matches = match random.below(20) {
            16.. => random.one(&PROTOCOLS).to_owned(),
            0 => format!("tcp dport {port}"),
            1 => format!("udp dport {port}"),
            2 => format!("th dport {other}"),
            3 => format!("tcp dport != {port}"),
            4 => "{ip} saddr {src-net}".to_owned(),
            5 => "{ip} daddr {other}".to_owned(),
            6 => "iifname \"in\"".to_owned(),
            7 => format!("ct state new tcp dport {port}"),
            8 => "ct state invalid".to_owned(),
            9 => "meta l4proto udp".to_owned(),
            10 => "{ip} dscp 10".to_owned(),
            11 => "meta mark 7".to_owned(),
            12 => "tcp flags syn".to_owned(),
            13 => "meta l4proto tcp meta length <= 100".to_owned(),
            14 => "tcp sport 1024-65535".to_owned(),
            _ => format!("meta l4proto {{ tcp, udp }} th dport {port}"),
        };
        let hooked = self.chains[chain].hook.as_str();
        let does = match random.below(if nat { 4 } else { 14 }) {
            _ if nat && hooked.contains("prerouting") && PROTOCOLS.contains(&&*matches) => {
                "dnat to {other}".to_owned()
            }
            _ if nat && hooked.contains("prerouting") => {
                let protocol = if matches.contains("udp") {
                    "udp"
                } else {
                    "tcp"
                };
                let to = target(random, port);
                return format!("meta l4proto {protocol} {matches} dnat to {to}");
            }
            _ if nat && hooked.contains("postrouting") => {
                random.one(&["masquerade", "snat to {far}"]).to_owned()
            }
            _ if nat => "accept".to_owned(),
            0..=2 => "accept".to_owned(),
            3..=5 => "drop".to_owned(),
            6 if hooked.contains("post") => "drop".to_owned(),
            6 => "reject".to_owned(),
            7 if chain != SUB => "jump sub".to_owned(),
            8 if chain != SUB => "goto sub".to_owned(),
            7 | 8 => "return".to_owned(),
            9 => "meta mark set 7".to_owned(),
            10 => "{ip} dscp set 10".to_owned(),
            11 => "counter".to_owned(),
            12 if hooked.contains("prerouting") => "notrack".to_owned(),
            12 => "return".to_owned(),
            // nft(8) ends itself where it lists ports of a protocol that has none.
            _ if PROTOCOLS.contains(&&*matches) => "counter".to_owned(),
            _ => format!("th dport vmap {{ {port} : drop, 81 : accept }}"),
        };
        format!("{matches} {does}")
    }

    fn iptables(&mut self, random: &mut Random) {
        self.chain("filter", "sub", false, false);
        for (table, name) in [
            ("filter", "FORWARD"),
            ("raw", "PREROUTING"),
            ("mangle", "PREROUTING"),
            ("mangle", "FORWARD"),
            ("mangle", "POSTROUTING"),
            ("nat", "PREROUTING"),
            ("nat", "POSTROUTING"),
            ("filter", "INPUT"),
            ("security", "FORWARD"),
        ] {
            if table == "filter" || random.chance(40) {
                let nat = table == "nat";
                self.chain(table, name, random.chance(15) && !nat, nat);
            }
        }
        for _ in 0..1 + random.below(12) {
            let chain = random.below(self.chains.len());
            let rule = self.iptables_rule(random, chain);
            self.rules.push((chain, rule));
        }
    }

    fn iptables_rule(&self, random: &mut Random, at: usize) -> String {
        let chain = &self.chains[at];
        let port = random.one(&["22", "23", "80", "443", "53", "123", "8080", "1:100"]);
        let untracked = chain.hook == "raw";
        let matches = match random.below(14) {
            11.. => self.iptables_protocol(random).to_owned(),
            0 | 1 => format!("-p tcp -m tcp --dport {port}"),
            2 => format!("-p udp -m udp --dport {port}"),
            3 => format!("-p tcp -m tcp ! --dport {port}"),
            4 => "-p tcp -m multiport --dports 22,80:90,8080".to_owned(),
            5 => "-s {src-net}".to_owned(),
            6 => "-d {other}/{bits}".to_owned(),
            7 if !untracked => "-p tcp -m conntrack --ctstate NEW".to_owned(),
            8 => "-m dscp --dscp 10".to_owned(),
            9 => "-m mark --mark 0x7".to_owned(),
            _ => "-p tcp -m length --length 0:100".to_owned(),
        };
        let does = match (chain.hook.as_str(), chain.name.as_str()) {
            ("nat", "PREROUTING") => {
                let one = port.split(':').next().unwrap_or_default();
                if random.chance(20) {
                    let which = self.iptables_protocol(random);
                    return format!("{which} -j DNAT --to-destination {{other}}");
                }
                let to = target(random, one);
                let to_all = random.chance(30);
                let ports = if to_all { "1:10000" } else { one };
                return format!("-p tcp -m tcp --dport {ports} -j DNAT --to-destination {to}");
            }
            ("nat", _) => random.one(&["MASQUERADE", "SNAT --to-source {far}"]),
            ("mangle", _) => random.one(&[
                "MARK --set-mark 7",
                "DSCP --set-dscp 10",
                "ACCEPT",
                "DROP",
                "RETURN",
            ]),
            ("raw", _) => random.one(&["CT --notrack", "ACCEPT", "DROP", "RETURN"]),
            ("filter", "sub") => random.one(&["ACCEPT", "DROP", "RETURN", "REJECT"]),
            ("filter", _) => random.one(&["ACCEPT", "DROP", "RETURN", "REJECT", "sub"]),
            _ => random.one(&["ACCEPT", "DROP", "RETURN"]),
        };
        format!("{matches} -j {does}")
    }

    /// What a rule looks for that is neither TCP nor UDP.
    fn iptables_protocol(&self, random: &mut Random) -> &'static str {
        let echo = match self.run.family {
            Family::V4 => "-p icmp --icmp-type echo-request",
            Family::V6 => "-p icmpv6 --icmpv6-type echo-request",
        };
        random.one(&[
            echo,
            "-p sctp --dport 36412",
            "-p esp",
            "-p gre",
            "-p 89",
            "! -p tcp",
        ])
    }

    fn chain(&mut self, hook: &str, name: &str, drops: bool, nat: bool) {
        self.chains.push(Chain {
            hook: hook.to_owned(),
            name: name.to_owned(),
            drops,
            nat,
        });
    }

    /// The same with one rule or one policy less.
    fn smaller(&self) -> Vec<Self> {
        let rules = (0..self.rules.len()).map(|at| {
            let mut smaller = self.clone();
            smaller.rules.remove(at);
            smaller
        });
        let drops = |at: &usize| self.chains[*at].drops;
        let policies = (0..self.chains.len()).filter(drops).map(|at| {
            let mut smaller = self.clone();
            smaller.chains[at].drops = false;
            smaller
        });
        rules.chain(policies).collect()
    }

    fn text(&self) -> String {
        match self.run.loader {
            Loader::Nft => self.native_text(),
            _ => self.iptables_text(),
        }
    }

    fn native_text(&self) -> String {
        let mut text = "table {ip} fuzz {\n".to_owned();
        for (at, chain) in self.chains.iter().enumerate() {
            text += &format!("  chain {} {{\n", chain.name);
            if !chain.hook.is_empty() {
                let policy = if chain.drops { "drop" } else { "accept" };
                text += &format!("    type {}; policy {policy};\n", chain.hook);
            }
            let rules = self.rules.iter().filter(|(of, _)| *of == at);
            rules.for_each(|(_, rule)| text += &format!("    {rule}\n"));
            text += "  }\n";
        }
        text + "}\n"
    }

    fn iptables_text(&self) -> String {
        let mut text = String::new();
        for table in ["raw", "mangle", "nat", "filter", "security"] {
            let here = |at: &usize| self.chains[*at].hook == table;
            let chains: Vec<usize> = (0..self.chains.len()).filter(here).collect();
            if chains.is_empty() {
                continue;
            }
            text += &format!("*{table}\n");
            for &at in &chains {
                let Chain { name, drops, .. } = &self.chains[at];
                let policy = match at {
                    SUB => "-",
                    _ if *drops => "DROP",
                    _ => "ACCEPT",
                };
                text += &format!(":{name} {policy} [0:0]\n");
            }
            for (at, rule) in self.rules.iter().filter(|(at, _)| chains.contains(at)) {
                text += &format!("-A {} {rule}\n", self.chains[*at].name);
            }
            text += "COMMIT\n";
        }
        text
    }

    /// What is wrong with the answer about this ruleset; none when nothing is.
    fn wrong(&self) -> Option<String> {
        let case = CaseFile::of_rules(self.run.loader, self.text());
        let asked: Vec<Expected> = services(SERVICES)
            .map(|service| Expected {
                service: service.in_family(self.run.family == Family::V6).unwrap(),
                verdict: Verdict::Unknown,
                because: Vec::new(),
            })
            .collect();
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let Run { loader, family, .. } = self.run;
            let Ok(bed) = CaseBed::new(&case, loader, family) else {
                // What the tools refuse is no ruleset.
                REFUSED.fetch_add(1, Ordering::Relaxed);
                return Vec::new();
            };
            let (report, seen, changed) = asked_once(&bed, &case, self.run, &asked);
            let mut wrong: Vec<String> = changed.into_iter().collect();
            for (answer, seen) in report.routers[0].services.iter().zip(seen) {
                let unknown = answer.result == Verdict::Unknown;
                // UNKNOWN is for the back ends that cannot see everything.
                let may = self.run.backend != Backend::Nft;
                let reason = answer.reason.as_deref().unwrap_or_default();
                let taken = answer.result == Verdict::Yes && reason.contains(super::TAKEN);
                if answer.result != seen && !taken && !(unknown && may) {
                    wrong.push(format!(
                        "{} by {}: {} ({reason}), and the capture shows {seen}",
                        answer.service(),
                        self.run.backend,
                        answer.result
                    ));
                }
                let unreasoned = answer.result == Verdict::No && answer.reason.is_none();
                wrong.extend(unreasoned.then(|| format!("{}: no reason", answer.service())));
            }
            wrong
        }));
        let wrong = checked.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            vec![format!("panicked: {}", text.unwrap_or_default())]
        });
        (!wrong.is_empty()).then(|| wrong.join("\n"))
    }
}
