//! Tests of what a job makes up: hardware addresses of hosts, what packets carry, what every sender
//! fills in its own way, and the router's sockets.

use super::{Caveat, Field, Match, Rule, Test, Varying, caveat::Alone, table};

/// The number of TCP in IP's header.
const TCP: u32 = 6;
/// What a sender sets in the first packet that knows congestion notification (RFC 3168).
const ECN: u32 = 0xc0;

impl Rule {
    /// Makes tests of what a job makes up depend on more than the packet.
    pub(super) fn open_made_up(mut self) -> Self {
        let protocol = self.matches.iter().find_map(|test| match &test.test {
            Test::Number { of, ranges, .. } if *of == Field::Protocol && !test.negated => {
                ranges.first().map(|(number, _)| *number)
            }
            _ => None,
        });
        for test in &mut self.matches {
            if let Some(caveat) = made_up(test, protocol) {
                let within = std::mem::replace(&mut test.test, Test::other("", &[]));
                // The flags of a first packet are taken for known, but for these.
                let known = within.reads() != [Field::TcpFlags];
                test.test = Test::Varies(Varying {
                    within: known.then(|| Box::new(within)),
                    ..caveat.alone(Alone::Either)
                });
            }
        }
        self
    }
}

/// What a test asks of that a job makes up, in a packet of `protocol`; none where it asks nothing.
fn made_up(test: &Match, protocol: Option<u32>) -> Option<Caveat> {
    let not = if test.negated { "not " } else { "" };
    match &test.test {
        Test::Number { of, mask, ranges } => {
            let one = |(from, to): &(u32, u32)| match from == to {
                true => from.to_string(),
                false => format!("{from}-{to}"),
            };
            let all = ranges.iter().map(one).collect::<Vec<_>>().join(", ");
            match of {
                Field::Ttl => Some(Caveat::System(format!("{not}ttl {all}"))),
                Field::Length => Some(Caveat::Length(format!("{not}{all}"))),
                Field::TcpFlags if mask & !ECN == 0 => {
                    Some(Caveat::System(format!("{not}tcp flags ecn, cwr")))
                }
                Field::TcpOptions => Some(Caveat::System(format!("{not}mss {all}"))),
                _ => None,
            }
        }
        Test::Other { text, .. } => {
            let caveat = of_text(text, protocol)?;
            Some(caveat(format!("{not}{}", text.replace(" , ", ","))))
        }
        _ => None,
    }
}

/// The same of a test that is not understood further, by how it begins.
fn of_text(text: &str, protocol: Option<u32>) -> Option<fn(String) -> Caveat> {
    const HARDWARE: [&str; 2] = ["mac", "eui64"];
    const CONTENT: [&str; 15] = [
        "string",
        "bpf",
        "tcp sequence",
        "tcp window",
        "tcp checksum",
        "udp checksum",
        "ip checksum",
        "ip id",
        "ip6 flowlabel",
        "icmp id",
        "icmpv6 id",
        "icmp sequence",
        "icmpv6 sequence",
        "esp",
        "ah",
    ];
    const LENGTH: [&str; 5] = [
        "length",
        "meta length",
        "udp length",
        "ip length",
        "ip6 length",
    ];
    const SYSTEM: [&str; 7] = [
        "ttl",
        "hl",
        "ip ttl",
        "ip6 hoplimit",
        "tcpmss",
        "ecn --ecn-tcp",
        "tcp --tcp-option",
    ];
    // Of transparent proxies, whose place TPROXY tells, and of the sender.
    const OF_PROXIES: [&str; 2] = ["transparent", "cgroup"];
    let begins = |words: &[&str]| words.iter().any(|word| begins_with(text, word));
    if begins(&HARDWARE) || text.contains("ether saddr") {
        Some(Caveat::Hardware)
    } else if begins(&CONTENT)
        || raw(text, protocol)
        || text.strip_prefix("u32").is_some_and(u32_made_up)
    {
        Some(Caveat::Content)
    } else if begins(&LENGTH) {
        Some(Caveat::Length)
    } else if (text == "ecn" || begins(&SYSTEM) || text.starts_with("tcp option "))
        && !is_of_all(text)
        || text.strip_prefix("ip frag-off").is_some_and(asks_df)
    {
        Some(Caveat::System)
    } else if begins(&["socket"]) && !OF_PROXIES.iter().any(|word| text.contains(word)) {
        Some(Caveat::Sockets)
    } else {
        None
    }
}

fn begins_with(text: &str, word: &str) -> bool {
    let rest = text.strip_prefix(word);
    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
}

/// Whether a test asks for options that systems give to every first packet of TCP, or to none: the
/// segment size, the window's scale, whether blocks may be acknowledged, and such blocks.
fn is_of_all(text: &str) -> bool {
    let of_all = ["maxseg", "window", "sack-permitted", "sack-perm", "sack"];
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["tcp", "--tcp-option", number] => ["2", "3", "4", "5"].contains(&number),
        ["tcp", "option", name, "exists" | "missing", ..] => of_all.contains(&name),
        _ => false,
    }
}

/// Whether a test of IPv4's flags and fragment offset, without these words, asks for "don't fragment". One
/// system sets it in all first packets, another in those of TCP, and routers may take it away; no first
/// packet is a fragment.
fn asks_df(test: &str) -> bool {
    const DF: u32 = 0x4000;
    let mut words = test.split_whitespace();
    match words.next() {
        Some("&" | "and") => words
            .next()
            .and_then(table::number)
            .is_none_or(|mask| mask & DF != 0),
        _ => true,
    }
}

/// Whether a test reads bits of a header that differ from sender to sender, or what is behind it.
fn raw(text: &str, protocol: Option<u32>) -> bool {
    if text.starts_with("@ih") {
        return true;
    }
    // Commas are words of their own where nft(8) was read.
    let mut numbers = text.split([',', ' ']).filter(|word| !word.is_empty());
    let Some(base) = numbers.next().and_then(|word| word.strip_prefix('@')) else {
        return false;
    };
    let mut number = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    let (Some(first), Some(length)) = (number(), number()) else {
        return true;
    };
    let last = first.saturating_add(length.max(1)) - 1;
    let overlaps = |from: u32, to: u32| first <= to && last >= from;
    match (base, protocol) {
        // The source of Ethernet.
        ("ll", _) => overlaps(48, 95),
        // IPv4's length, identification, TTL, checksum; IPv6's flow label, length, hop limit.
        ("nh", _) => overlaps(16, 47) || overlaps(56, 71) || overlaps(80, 95),
        // TCP's sequence number; window and checksum; options and data.
        ("th", Some(TCP)) => overlaps(32, 63) || overlaps(112, 143) || last >= 160,
        ("th", _) => last >= 32,
        _ => true,
    }
}

/// Whether a program of iptables' `u32` reads other bits than IPv4's TOS, fragment offset, protocol and
/// addresses, and what follows a header of 20 bytes: the ports. What it computes a place from is not
/// understood.
fn u32_made_up(program: &str) -> bool {
    let program = program.trim().trim_start_matches("--u32").trim();
    let fixed = |term: &str| {
        let place = term.split('=').next().unwrap_or_default().trim();
        let end = place.find(|c: char| !c.is_ascii_alphanumeric());
        let (at, rest) = place.split_at(end.unwrap_or(place.len()));
        let mask = match rest.trim().strip_prefix('&') {
            Some(mask) => table::number(mask.trim()),
            None => rest.trim().is_empty().then_some(u32::MAX),
        };
        let Some((at, mask)) = table::number(at).zip(mask) else {
            return false;
        };
        let of_byte = |byte: u32| (byte, (mask >> (24 - 8 * byte)) & 0xff);
        let read = (0..4_u32).map(of_byte).filter(|(_, bits)| *bits != 0);
        // The second bit of byte 6 is "don't fragment".
        read.map(|(byte, bits)| (at.saturating_add(byte), bits))
            .all(|(byte, bits)| match byte {
                6 => bits & 0x40 == 0,
                _ => matches!(byte, 0 | 1 | 7 | 9 | 12..=23),
            })
    };
    program.is_empty() || !program.split("&&").all(fixed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        firewall::rule::{Packet, Truth},
        netlink::object::Family,
    };

    fn caveat(text: &str) -> String {
        Rule::of(text)
            .caveat()
            .map_or_else(String::new, ToString::to_string)
    }

    #[test]
    fn what_a_job_makes_up_is_left_open() {
        let hardware = "depends on the sender's hardware address";
        let content = "depends on what packets carry";
        let length = "depends on the packet's length";
        let system = "depends on the sender's operating system";
        let sockets = "depends on the router's sockets";
        for (text, begins) in [
            (
                "-A f -m mac --mac-source 02:11:22:33:44:55 -j DROP",
                hardware,
            ),
            ("ether saddr 02:11:22:33:44:55 drop", hardware),
            ("ip saddr . ether saddr @pairs accept", hardware),
            ("ether daddr 02:11:22:33:44:55 accept", ""),
            ("-A f -p esp -m esp --espspi 300 -j DROP", content),
            ("esp spi 300 drop", content),
            ("icmp sequence 7 drop", content),
            ("-A f -p esp -j DROP", ""),
            (
                "-A f -m string --algo bm --string \"x -j\" -j DROP",
                content,
            ),
            ("-A f -m u32 --u32 \"0>>22&0x3C@12=1\" -j DROP", content),
            (
                "-A f -m u32 --u32 \"6&0xFF=0x6 && 20&0xFFFF=80\" -j DROP",
                "",
            ),
            ("-A f -m u32 --u32 \"4&0x4000=0\" -j DROP", content),
            ("-A f -m u32 --u32 \"4&0x1FFF=0\" -j DROP", ""),
            ("ip frag-off & 0x4000 != 0 drop", system),
            ("ip frag-off 0 drop", system),
            ("ip frag-off & 0x1fff != 0 drop", ""),
            ("tcp flags ecn drop", system),
            ("tcp flags syn drop", ""),
            ("@ih,0,32 0x1 drop", content),
            ("meta l4proto udp @th,64,32 0x1 drop", content),
            ("meta l4proto tcp @th,160,32 0x1 drop", content),
            ("meta l4proto tcp @th,104,8 0x2 drop", ""),
            ("meta l4proto tcp @th,16,16 0x50 drop", ""),
            ("ip id 7 drop", content),
            ("socket wildcard 0 tcp dport 80 drop", sockets),
            ("tcp dport 81 socket mark 0x1 drop", sockets),
            ("-A f -m socket -j DROP", sockets),
            ("-A f -m socket --nowildcard -j DROP", sockets),
            ("-A f -m socket --transparent --nowildcard -j DROP", ""),
            ("socket transparent 1 drop", ""),
            ("-A f -m length --length 0:99 -j DROP", length),
            ("meta length > 1000 drop", length),
            ("-A f -m ttl --ttl-eq 63 -j DROP", system),
            ("ip6 hoplimit < 63 drop", system),
            ("-A f -p tcp -m tcpmss --mss 1300:1460 -j DROP", system),
            ("tcp option maxseg size 1-1300 drop", system),
            ("tcp option maxseg exists drop", ""),
            ("tcp option timestamp exists drop", system),
            ("-A f -p tcp -m tcp --tcp-option 8 -j DROP", system),
            ("-A f -p tcp -m tcp --tcp-option 2 -j DROP", ""),
            ("-A f -p tcp -m ecn --ecn-tcp-ece -j DROP", system),
            ("-A f -m mac --mac-source 02:11:22:33:44:55 -j LOG", ""),
            ("-A f -m pkttype --pkt-type broadcast -j DROP", ""),
        ] {
            let said = caveat(text);
            assert!(said.starts_with(begins), "{text}: {said}");
            assert!(said.is_empty() == begins.is_empty(), "{text}: {said}");
        }
    }

    #[test]
    fn what_all_senders_are_like_is_known() {
        let packet = Packet::of(Family::V4).within(Field::Length, 40, 80);
        let packet = packet.with(Field::Ttl, 63u32).with(Field::Ttl, 127u32);
        for (text, answer) in [
            ("-A f -m length --length 1000:65535 -j DROP", Truth::No),
            ("-A f -m length --length 0:999 -j DROP", Truth::Yes),
            ("-A f -m length ! --length 0:999 -j DROP", Truth::No),
            ("-A f -m length --length 0:60 -j DROP", Truth::CannotTell),
            ("ip ttl < 63 drop", Truth::No),
            ("ip ttl 63 drop", Truth::CannotTell),
        ] {
            assert_eq!(Rule::of(text).may_match(&packet), answer, "{text}");
            let at_best = Rule::of(text).may_match_at_best(&packet);
            assert_eq!(at_best == Truth::No, answer == Truth::No, "{text}");
        }
    }
}
