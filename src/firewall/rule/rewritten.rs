//! Bits of headers that routers rewrite and a probe does not carry from one router to the next: the next
//! one is asked with those that the job made, and what its rules say of them is not known.
//!
//! Addresses, ports, TOS and TTL are carried, and what every sender fills in its own way (identification,
//! flow label, window, checksums, options) leaves verdicts open anyway. These are all others.

use super::{Alone, Caveat, Field, Match, Packet, Rule, Test};

/// Bits behind the beginning of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bits {
    /// As nft(8) calls it: `nh` of IP, `th` behind it; `icmp` where that is one of ICMP or ICMPv6.
    header: &'static str,
    first: u32,
    last: u32,
}

/// Names of nft(8) for such bits.
const NAMED: [(&str, Bits); 14] = [
    // So nft(8) lists a rule that sets the code of ICMP. (Ports of TCP and UDP go by their names.)
    ("th sport", message(0, 15)),
    ("icmp type", message(0, 7)),
    ("icmp code", message(8, 15)),
    ("icmpv6 type", message(0, 7)),
    ("icmpv6 code", message(8, 15)),
    ("ip version", network(0, 3)),
    ("ip hdrlength", network(4, 7)),
    ("ip6 version", network(0, 3)),
    ("tcp ackseq", transport(64, 95)),
    ("tcp doff", transport(96, 99)),
    ("tcp reserved", transport(100, 103)),
    ("tcp flags", transport(104, 111)),
    ("tcp urgptr", transport(144, 159)),
    ("sctp vtag", transport(32, 63)),
];

const fn network(first: u32, last: u32) -> Bits {
    Bits {
        header: "nh",
        first,
        last,
    }
}

const fn transport(first: u32, last: u32) -> Bits {
    Bits {
        header: "th",
        first,
        last,
    }
}

const fn message(first: u32, last: u32) -> Bits {
    Bits {
        header: "icmp",
        first,
        last,
    }
}

impl Bits {
    /// Those that a text of nft(8) begins with.
    fn of(text: &str) -> Option<Self> {
        let named = NAMED.iter().find(|(name, _)| {
            let rest = text.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        });
        named.map(|(_, bits)| *bits).or_else(|| Self::raw(text))
    }

    /// `@th,104,8`
    fn raw(text: &str) -> Option<Self> {
        let mut parts = text.split([',', ' ']).filter(|part| !part.is_empty());
        let header = match parts.next()? {
            "@nh" => "nh",
            "@th" => "th",
            _ => return None,
        };
        let first: u32 = parts.next()?.parse().ok()?;
        let length: u32 = parts.next()?.parse().ok()?;
        let last = first.checked_add(length.checked_sub(1)?)?;
        Some(Self {
            header,
            first,
            last,
        })
    }

    fn meet(self, other: Self) -> bool {
        // What a rule reads by offset may be of any header behind IP.
        let behind_ip = |header: &str| header != "nh";
        let same =
            self.header == other.header || (behind_ip(self.header) && behind_ip(other.header));
        same && self.first <= other.last && other.first <= self.last
    }

    /// Whether all of it is carried: addresses, TOS and TTL; ports. Flags and offset of fragments are those of
    /// any first packet, apart from "don't fragment", which leaves verdicts open.
    fn is_carried(self) -> bool {
        let within = |first, last| first <= self.first && self.last <= last;
        match self.header {
            "nh" => within(8, 15) || within(48, 71) || within(96, 159),
            "icmp" => false,
            _ => within(0, 31),
        }
    }
}

/// What routers of a lab rewrite of these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewritten(Vec<RewritingRule>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct RewritingRule {
    bits: Bits,
    rule: Rule,
    /// The router and the rule.
    by: String,
}

impl Rewritten {
    /// Nothing.
    pub(crate) const NOTHING: Self = Self(Vec::new());

    /// By the rules of routers, as text.
    pub(crate) fn of<'a>(rules: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let rules = rules.into_iter().flat_map(|(router, text)| {
            let all = rewritten_by(text).into_iter();
            all.map(move |bits| RewritingRule {
                bits,
                rule: Rule::of_nft(text),
                by: format!("{router} by `{text}`"),
            })
        });
        Self(rules.collect())
    }

    /// What may be rewritten of packets like one of these.
    pub(crate) fn of_packets(&self, packets: impl IntoIterator<Item = Packet>) -> Self {
        if self.is_empty() {
            return Self::NOTHING;
        }
        let packets: Vec<Packet> = packets.into_iter().collect();
        let mut rules = self.0.clone();
        rules.retain(|rewriting| packets.iter().any(|p| rewriting.rule.concerns(p)));
        Self(rules)
    }

    /// Whether there is nothing of the kind.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn by(&self, bits: Bits) -> Option<&str> {
        let mut rules = self.0.iter().filter(|rule| rule.bits.meet(bits));
        rules.next().map(|rule| rule.by.as_str())
    }
}

/// Whether a rule of nft(8) rewrites such bits.
pub(crate) fn rewrites_headers(text: &str) -> bool {
    !rewritten_by(text).is_empty()
}

/// What a rule of nft(8) rewrites of these: `tcp urgptr set 0`, `@th,144,16 set 0`.
fn rewritten_by(text: &str) -> Vec<Bits> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let sets = (1..words.len()).filter(|at| words[*at] == "set");
    let of = |at: usize| {
        let raw = words[at - 1]
            .starts_with('@')
            .then(|| Bits::raw(words[at - 1]));
        raw.unwrap_or_else(|| Bits::of(&words.get(at.checked_sub(2)?..at)?.join(" ")))
    };
    let rewritten = sets.filter_map(of);
    rewritten.filter(|bits| !bits.is_carried()).collect()
}

impl Rule {
    /// Makes tests of bits that routers before this one may have rewritten depend on more than the packet.
    pub fn leave_rewritten_open(&mut self, rewritten: &Rewritten) {
        if rewritten.is_empty() {
            return;
        }
        for test in &mut self.matches {
            if let Some(by) = read(test).and_then(|bits| rewritten.by(bits)) {
                let caveat = Caveat::Rewritten(by.to_owned());
                test.test = Test::Varies(caveat.alone(Alone::Either));
            }
        }
    }
}

/// The bits that a test reads, as far as ports and addresses do not stand for them.
fn read(test: &Match) -> Option<Bits> {
    match &test.test {
        Test::Number {
            of: Field::TcpFlags,
            ..
        } => Some(transport(104, 111)),
        Test::Number {
            of: Field::IcmpType | Field::Icmpv6Type,
            ..
        } => Some(message(0, 7)),
        Test::Other { text, .. } if text.starts_with("u32") || text.starts_with("bpf") => {
            Some(transport(64, 159))
        }
        Test::Other { text, .. } => Bits::of(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_on_bits_that_another_router_rewrites_are_left_open() {
        let rewriting = |text| Rewritten::of([("r1", text)]);
        for (rewrites, reads, open) in [
            ("tcp dport 80 tcp urgptr set 5", "tcp urgptr 5 drop", true),
            (
                "tcp dport 80 tcp urgptr set 5",
                "tcp urgptr != 5 drop",
                true,
            ),
            (
                "tcp urgptr set 5",
                "meta l4proto tcp @th,144,16 0x5 drop",
                true,
            ),
            ("@th,144,16 set 0x5", "tcp urgptr 5 drop", true),
            ("tcp urgptr set 5", "tcp flags syn drop", false),
            ("tcp urgptr set 5", "tcp dport 80 drop", false),
            ("tcp flags set 0x22", "-A f -p tcp --syn -j DROP", true),
            ("tcp flags set 0x22", "tcp flags & urg == urg drop", true),
            ("icmp code set 5", "icmp code 5 drop", true),
            ("icmp code set 5", "@th,8,8 0x5 drop", true),
            ("icmp code set 5", "tcp dport 80 drop", false),
            ("icmp code set 5", "icmp type 8 drop", false),
            (
                "icmp type echo-request th sport set th sport & 65285 | 5",
                "icmp code 5 drop",
                true,
            ),
            ("tcp sport set 5", "icmp code 5 drop", false),
            ("icmpv6 type set 5", "icmpv6 type 5 drop", true),
            (
                "icmp type set 13",
                "-A f -p icmp -m icmp --icmp-type 8 -j DROP",
                true,
            ),
            ("ip dscp set 46", "@nh,8,8 0xb8 drop", false),
            ("ip id set 7", "tcp flags syn drop", false),
            ("ip frag-off set 0", "ip frag-off & 0x1fff != 0 drop", false),
            ("@nh,64,8 set 0x9", "@nh,64,8 0x9 drop", false),
            ("meta mark set 0x1", "@th,144,16 0x5 drop", false),
        ] {
            let mut rule = Rule::of(reads);
            let before = rule.caveat().is_some();
            rule.leave_rewritten_open(&rewriting(rewrites));
            let said = rule.caveat().map(ToString::to_string).unwrap_or_default();
            let opened = said.contains(&format!("r1 by `{rewrites}`"));
            assert_eq!(opened, open, "{rewrites}, {reads}: {said} {before}");
        }
    }
}
