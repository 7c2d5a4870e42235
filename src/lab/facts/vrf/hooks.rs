//! Where the rules of rulesets stand, as far as it matters to the ports of VRFs.
//!
//! What comes in by a port meets PREROUTING once with the port and once with the VRF as the interface
//! that it came in by, FORWARD and INPUT with the VRF alone (`l3mdev_ip_rcv()`), and leaves by a port.

use crate::lab::topology::{Ruleset, RulesetKind};

/// The chain that a rule is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Prerouting,
    Forward,
    Postrouting,
    /// Of another hook, which nothing that comes in meets before it is routed.
    Elsewhere,
    /// Another chain, which several may lead to, or a set.
    Anywhere,
}

/// A rule, or an element of a set.
struct Line<'a> {
    text: &'a str,
    place: Place,
    /// Whether only the first packet of a connection asks it, and that once.
    of_nat: bool,
    of_nft: bool,
    /// Whether it leads to another chain.
    jumps: bool,
}

/// Whether rules tell by which interface a packet came in, or by which one the router's own leave, and
/// `named` says that they mean it.
pub(super) fn tell_incoming(rulesets: &[Ruleset], named: impl Fn(&str) -> bool) -> bool {
    lines(rulesets).iter().any(|line| {
        let forwarded = match line.place {
            Place::Forward => true,
            Place::Postrouting => line.of_nat,
            _ => false,
        };
        match forwarded {
            true => named(&without_outgoing(line.text)),
            false => named(line.text),
        }
    })
}

/// Whether a packet that passed PREROUTING may fare otherwise there the second time.
pub(super) fn differ_the_second_time(rulesets: &[Ruleset]) -> bool {
    let all = lines(rulesets);
    let met = |line: &&Line<'_>| matches!(line.place, Place::Prerouting | Place::Anywhere);
    let (of_nat, repeated): (Vec<&Line<'_>>, Vec<&Line<'_>>) =
        all.iter().filter(met).partition(|line| line.of_nat);
    let changes = |line: &&Line<'_>| line.effect() == Effect::Changes;
    if repeated.iter().any(changes) {
        return true;
    }
    // What translates an address does so before the others are asked again.
    if of_nat.iter().any(changes) && !repeated.is_empty() {
        return true;
    }
    let marks = |line: &&Line<'_>| line.effect() == Effect::Marks;
    let mut repeated_marks = repeated.iter().chain(&of_nat).filter(|line| marks(line));
    repeated_marks.next().is_some() && repeated.iter().any(|line| line.asks_for_marks())
}

/// What a rule leaves behind that another, or itself the next time, can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Nothing,
    /// A mark, the same one however often it is set.
    Marks,
    Changes,
}

impl Line<'_> {
    fn effect(&self) -> Effect {
        match self.of_nft {
            true => of_nft(self.text),
            false => of_iptables(self.text, self.jumps),
        }
    }

    fn asks_for_marks(&self) -> bool {
        let words: Vec<&str> = self.text.split_ascii_whitespace().collect();
        let of_nft = words.windows(3).any(|three| match three {
            ["meta" | "ct", "mark", next] => *next != "set",
            _ => false,
        });
        of_nft || words.contains(&"--mark")
    }
}

fn of_iptables(rule: &str, jumps: bool) -> Effect {
    const COUNTING: [&str; 10] = [
        "recent",
        "limit",
        "hashlimit",
        "statistic",
        "quota",
        "connlimit",
        "connbytes",
        "rateest",
        "bpf",
        "u32",
    ];
    let words: Vec<&str> = rule.split_ascii_whitespace().collect();
    let behind = |option: &str| {
        // The last one: a comment, which stands before the target, may hold another.
        let mut pairs = words.windows(2).rev();
        let pair = pairs.find(|pair| pair.first() == Some(&option))?;
        pair.get(1).copied()
    };
    let mut matches = words.windows(2);
    if matches.any(|pair| matches!(pair, ["-m", name] if COUNTING.contains(name))) {
        return Effect::Changes;
    }
    match behind("-j") {
        Some("MARK") => match behind("--set-xmark").or(behind("--set-mark")) {
            Some(value) if is_kept(value) => Effect::Marks,
            _ => Effect::Changes,
        },
        None | Some("ACCEPT" | "DROP" | "RETURN" | "LOG" | "NFLOG" | "TRACE") => Effect::Nothing,
        Some(_) if jumps => Effect::Nothing,
        Some(_) => Effect::Changes,
    }
}

/// Whether a mark with a mask, `0x1/0xff`, is the same however often it is set: bits beside the mask are
/// turned over.
fn is_kept(value: &str) -> bool {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = value.split_once('/').unwrap_or((value, "0xffffffff"));
    match (number(value), number(mask)) {
        (Some(value), Some(mask)) => value & !mask == 0,
        _ => false,
    }
}

fn of_nft(rule: &str) -> Effect {
    const CHANGING: [&str; 17] = [
        "set", "limit", "quota", "numgen", "add", "update", "delete", "meter", "dnat", "redirect",
        "tproxy", "notrack", "queue", "dup", "fwd", "count", "synproxy",
    ];
    let words: Vec<&str> = rule.split_ascii_whitespace().collect();
    let marks = words.windows(4).find_map(|four| match four {
        ["meta", "mark", "set", value] => Some(is_kept(value)),
        _ => None,
    });
    let changing = words.iter().filter(|word| CHANGING.contains(word)).count();
    match (changing, marks) {
        (0, _) => Effect::Nothing,
        (1, Some(true)) => Effect::Marks,
        _ => Effect::Changes,
    }
}

/// A rule without the names of interfaces that packets leave by.
fn without_outgoing(rule: &str) -> String {
    let mut kept = Vec::new();
    let mut words = rule.split_ascii_whitespace().peekable();
    let mut before = "";
    while let Some(word) = words.next() {
        // Of a concatenation, the names of both stand together.
        let outgoing = matches!(word, "-o" | "--out-interface" | "oifname" | "oif");
        if outgoing && before != "." {
            let _ = words.next_if_eq(&"!=");
            match words.peek() {
                Some(&"{") if word.starts_with("oif") => {
                    while words.next().is_some_and(|word| word != "}") {}
                }
                Some(next) if !matches!(*next, "." | "vmap" | "map") => {
                    words.next();
                }
                _ => {}
            }
        } else {
            kept.push(word);
        }
        before = word;
    }
    kept.join(" ")
}

fn lines(rulesets: &[Ruleset]) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    for ruleset in rulesets {
        match ruleset.kind {
            RulesetKind::Ipset => {}
            RulesetKind::Iptables | RulesetKind::Ip6tables => iptables(&ruleset.text, &mut lines),
            RulesetKind::Nft => nft(&ruleset.text, &mut lines),
        }
    }
    lines
}

fn iptables<'a>(text: &'a str, lines: &mut Vec<Line<'a>>) {
    let mut table = "filter";
    let declared = |line: &'a str| {
        let name = line.strip_prefix(':').or(line.strip_prefix("-N "))?;
        name.split_ascii_whitespace().next()
    };
    let chains: Vec<&str> = text.lines().map(str::trim).filter_map(declared).collect();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        // Counters may stand before a rule.
        let Some((_, rule)) = line.split_once("-A ") else {
            continue;
        };
        let chain = rule.split_ascii_whitespace().next();
        let place = match chain {
            Some("PREROUTING") => Place::Prerouting,
            Some("FORWARD") => Place::Forward,
            Some("POSTROUTING") => Place::Postrouting,
            Some("INPUT" | "OUTPUT") => Place::Elsewhere,
            // Nothing leads from PREROUTING to chains of this table.
            _ if table == "filter" => Place::Elsewhere,
            _ => Place::Anywhere,
        };
        lines.push(Line {
            text: rule,
            place,
            of_nat: table == "nat",
            of_nft: false,
            jumps: rule.split_once(" -j ").is_some_and(|(_, to)| {
                let target = to.rsplit(" -j ").next().unwrap_or(to);
                let target = target.split_ascii_whitespace().next();
                target.is_some_and(|target| chains.contains(&target))
            }),
        });
    }
}

fn nft<'a>(text: &'a str, lines: &mut Vec<Line<'a>>) {
    let (mut place, mut of_nat, mut is_ip) = (Place::Anywhere, false, true);
    // Written by hand, several things may stand on one line.
    let crowded = |line: &str| line.contains("chain ") && line.contains("hook ");
    let crowded = text.lines().any(crowded);
    for line in text.lines().map(str::trim) {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("table") => {
                let family = words.next();
                is_ip = !matches!(family, Some("bridge" | "netdev" | "arp"));
            }
            Some("chain" | "set" | "map" | "flowtable") => {
                (place, of_nat) = (Place::Anywhere, false);
            }
            _ => {}
        }
        // What names a set or a limit is no rule, though it has such a word.
        let names = |word| {
            let of = [
                "table",
                "chain",
                "set",
                "map",
                "flowtable",
                "limit",
                "quota",
                "counter",
                "ct",
            ];
            of.contains(&word)
        };
        let first = line.split_ascii_whitespace().next();
        if line.ends_with('{') && !crowded && first.is_some_and(names) {
            continue;
        }
        if let Some((_, hook)) = line.split_once(" hook ").filter(|_| !crowded) {
            of_nat = line.contains("type nat ");
            place = match hook.split_ascii_whitespace().next() {
                Some("prerouting") if is_ip => Place::Prerouting,
                Some("forward") => Place::Forward,
                Some("postrouting") => Place::Postrouting,
                _ => Place::Elsewhere,
            };
        }
        lines.push(Line {
            text: line,
            place: if is_ip || crowded {
                place
            } else {
                Place::Elsewhere
            },
            of_nat,
            of_nft: true,
            jumps: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
