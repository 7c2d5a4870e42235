//! What tests of a rule say of questions for a neighbour, which go to all of a link or to a group: ARP to the
//! link layer's broadcast address, neighbour discovery to the group of the address that is asked for (RFC
//! 4861 section 7.2.2). Tests of ports, addresses and the like are told of elsewhere.

use std::net::IpAddr;

use super::StopQuery;
use crate::{
    firewall::rule::{Field, Match, Packet, Rule, RuleVerdict, Test, Truth},
    netlink::object::{Family, Mac},
};

/// Whom a question goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// All of the link, as ARP does.
    Everybody,
    /// A group of IPv6.
    Group,
}

/// What a test that nobody else understands says of the question or answer that is asked about.
pub(super) fn answer(test: &Match, asked: StopQuery<'_>) -> Truth {
    let Test::Other { text, .. } = test.test.itself() else {
        return Truth::CannotTell;
    };
    let listed = text.replace([',', '{', '}'], " ");
    let words = listed.split_whitespace();
    let words: Vec<&str> = words.filter(|word| !["==", "!="].contains(word)).collect();
    let packet = asked.packet();
    let is_among = |names: &[&str], skipped: usize| {
        let mut values = words.iter().skip(skipped);
        Some(values.any(|value| names.contains(value)))
    };
    let is_in = match (words.as_slice(), reach(asked), packet) {
        (["meta", "pkttype", ..] | ["pkttype", "--pkt-type", ..], Some((reach, true)), _) => {
            is_among(&[reach.kind()], 2)
        }
        (["fib", "daddr", "type", ..], Some((Reach::Group, _)), _) => is_among(&["multicast"], 3),
        (["fib", "daddr", ".", _, "type", ..], Some((Reach::Group, _)), _) => {
            is_among(&["multicast"], 5)
        }
        (["addrtype", "--dst-type", types], Some((Reach::Group, _)), _) => {
            Some(types.split(',').any(|kind| kind == "MULTICAST"))
        }
        (["ether", "daddr", rest @ ..], Some((reach, _)), _) => reach.is_sent_to(rest),
        (["meta", "protocol", ..], Some((Reach::Everybody, _)), _) => is_among(&["arp"], 2),
        (["icmpv6", "code", ..], _, Some(packet)) if discovers(packet) => {
            is_among(&["0", "no-route"], 2)
        }
        (of_header, _, Some(packet)) if discovers(packet) && is_of_extension(of_header) => {
            Some(of_header.contains(&"missing"))
        }
        ([kind], _, Some(packet)) if discovers(packet) => of_kind_and_code(kind, packet),
        (_, _, Some(packet)) if discovers(packet) => of_pairs(text, packet),
        _ => None,
    };
    match is_in.map(|is_in| is_in != test.negated) {
        Some(true) => Truth::Yes,
        Some(false) => Truth::No,
        None => Truth::CannotTell,
    }
}

/// Whether a rule may stop neighbour discovery by tests that cannot be told and have nothing to do with who
/// asks or is asked, as of a processor, a rate or raw bits. Of one host or another, most packets know
/// nothing, and [`Filters::named_within`](super::Filters::named_within) asks about each.
pub(super) fn may_stop(rule: &Rule, asked: StopQuery<'_>) -> bool {
    let Some(packet) = asked.packet().filter(|packet| discovers(packet)) else {
        return false;
    };
    let stops =
        |verdict: &RuleVerdict| matches!(verdict, RuleVerdict::Drop | RuleVerdict::Reject(_));
    let is_opaque = |test: &Test| {
        let of_all = [Field::Other, Field::Priority, Field::Ttl, Field::Length];
        let reads = test.reads();
        !matches!(test.itself(), Test::Address { .. } | Test::Device { .. })
            && reads.iter().all(|field| of_all.contains(field))
    };
    let fits = |test: &Match| match test.answer(packet) {
        Truth::Yes => true,
        Truth::No => false,
        Truth::CannotTell => match answer(test, asked) {
            Truth::Yes => true,
            Truth::No => false,
            Truth::CannotTell => is_opaque(&test.test),
        },
    };
    rule.verdicts().any(stops) && rule.matches.iter().all(fits)
}

/// Whom a question goes to, and whether it comes in: of what leaves, no rule sees the link layer's type.
fn reach(asked: StopQuery<'_>) -> Option<(Reach, bool)> {
    match asked {
        StopQuery::Arp(_) => Some((Reach::Everybody, true)),
        StopQuery::Packet(packet) | StopQuery::OnDevice(packet, _) => {
            let to = packet.addresses(Field::Destination)?;
            let is_group =
                |to: &ipnet::IpNet| matches!(to.addr(), IpAddr::V6(to) if to.is_multicast());
            let comes_in = packet.devices(Field::Incoming).is_some();
            to.iter().all(is_group).then_some((Reach::Group, comes_in))
        }
        StopQuery::Bridged(_) | StopQuery::OnPorts(..) | StopQuery::ArpTable => None,
    }
}

/// Whether a test asks for a header between those of IPv6 and of the transport, of which neighbour discovery
/// has none.
fn is_of_extension(words: &[&str]) -> bool {
    const HEADERS: [&str; 12] = [
        "exthdr",
        "hbh",
        "dst",
        "frag",
        "mh",
        "srh",
        "comp",
        "ah",
        "esp",
        "ipcomp",
        "ipv6header",
        "rt",
    ];
    let [header, field, ..] = words else {
        return false;
    };
    // nft(8) has one word for the routing header and for what the routing table says.
    let of_routes = ["classid", "nexthop", "mtu", "ipsec", "ip", "ip6"];
    HEADERS.contains(header) && !(*header == "rt" && of_routes.contains(field))
}

fn discovers(packet: &Packet) -> bool {
    packet.family == Some(Family::V6) && packet.numbers(Field::Icmpv6Type).is_some()
}

/// `icmpv6 type . ip6 hoplimit { nd-neighbor-solicit . 255, … }`: each part by itself.
fn of_pairs(text: &str, packet: &Packet) -> Option<bool> {
    let (keys, elements) = text.split_once('{')?;
    let keys = keys.trim().trim_end_matches(['!', '=']).split(" . ");
    let keys: Vec<&str> = keys.map(str::trim).collect();
    let mut truths = elements
        .trim_end_matches(['}', ' '])
        .split(',')
        .map(|element| {
            let values: Vec<&str> = element.split(" . ").map(str::trim).collect();
            let parts = keys.iter().zip(&values);
            let mut parts =
                parts.map(|(key, value)| Rule::of_nft(&format!("{key} {value}")).may_match(packet));
            match keys.len() == values.len() {
                true => parts.min(),
                false => parts.next().map(|_| Truth::CannotTell),
            }
        });
    let first = truths.next()??;
    match truths.try_fold(first, |most, truth| Some(most.max(truth?)))? {
        Truth::Yes => Some(true),
        Truth::No => Some(false),
        Truth::CannotTell => None,
    }
}

/// `135/0` of iptables: type and code; the code of neighbour discovery is 0.
fn of_kind_and_code(word: &str, packet: &Packet) -> Option<bool> {
    let (kind, code) = word.split_once('/')?;
    let (kind, code): (u32, u32) = (kind.parse().ok()?, code.parse().ok()?);
    let kinds = packet.numbers(Field::Icmpv6Type)?;
    Some(code == 0 && kinds.iter().all(|of| *of == (kind, kind)))
}

impl Reach {
    /// The type of the link layer, by the name that nft(8) and iptables-extensions(8) have for it.
    fn kind(self) -> &'static str {
        match self {
            Self::Everybody => "broadcast",
            Self::Group => "multicast",
        }
    }

    /// Whether frames to it have the hardware address that `words` of nft(8) name, as
    /// `33:33:00:00:00:00/16` or `& ff:ff:00:00:00:00 == 33:33:00:00:00:00`. None where only the last octets
    /// tell, which are of the neighbour's address (RFC 2464 section 7).
    fn is_sent_to(self, words: &[&str]) -> Option<bool> {
        let (known, octets): ([u8; 6], usize) = match self {
            Self::Everybody => ([0xff; 6], 6),
            Self::Group => ([0x33, 0x33, 0xff, 0, 0, 0], 3),
        };
        let (wanted, mask) = match words {
            ["&", mask, wanted] => (octets_of(wanted)?, octets_of(mask)?),
            [one] => match one.split_once('/') {
                Some((wanted, bits)) => (octets_of(wanted)?, mask_of(bits.parse().ok()?)),
                None => (octets_of(one)?, [0xff; 6]),
            },
            _ => return None,
        };
        let differs = |at: &usize| (known[*at] ^ wanted[*at]) & mask[*at] != 0;
        if (0..octets).any(|at| differs(&at)) {
            return Some(false);
        }
        (octets..6).all(|at| mask[at] == 0).then_some(true)
    }
}

fn octets_of(text: &str) -> Option<[u8; 6]> {
    text.parse().ok().map(|Mac(octets)| octets)
}

/// The mask of a prefix of so many bits.
fn mask_of(bits: usize) -> [u8; 6] {
    let octet = |at: usize| !(0xff_u16 >> bits.saturating_sub(at * 8).min(8)) as u8;
    std::array::from_fn(octet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{firewall::rule::Rule, model::IfName};

    fn question() -> Packet {
        let group: ipnet::IpNet = "ff02::1:ff00:0/104".parse().unwrap();
        Packet::of(Family::V6)
            .with(Field::Protocol, 58_u32)
            .with(Field::Icmpv6Type, 135_u32)
            .with(Field::Ttl, 255_u32)
            .with_address(Field::Destination, group)
            .with_device(Field::Incoming, "eth0")
    }

    fn says(rule: &str, asked: StopQuery<'_>) -> Truth {
        let rule = Rule::of_text(rule, rule.starts_with('-'));
        let answers = rule.matches.iter().map(|test| match &test.test {
            Test::Other { .. } => answer(test, asked),
            _ => Truth::Yes,
        });
        answers.min().unwrap()
    }

    #[test]
    fn a_solicitation_goes_to_a_group() {
        let question = question();
        for (rule, truth) in [
            ("meta pkttype multicast drop", Truth::Yes),
            ("meta pkttype { broadcast, multicast } drop", Truth::Yes),
            ("meta pkttype != host drop", Truth::Yes),
            ("meta pkttype host drop", Truth::No),
            ("ether daddr 33:33:00:00:00:00/16 drop", Truth::Yes),
            (
                "ether daddr & ff:ff:00:00:00:00 == 33:33:00:00:00:00 drop",
                Truth::Yes,
            ),
            ("ether daddr 33:33:ff:00:00:01 drop", Truth::CannotTell),
            ("ether daddr 33:33:00:00:00:01 drop", Truth::No),
            ("fib daddr type multicast drop", Truth::Yes),
            ("fib daddr type != { local, unicast } drop", Truth::Yes),
            ("fib daddr . iif type != local drop", Truth::Yes),
            ("fib daddr type local drop", Truth::No),
            ("rt type 0 drop", Truth::No),
            ("exthdr hbh missing drop", Truth::Yes),
            ("exthdr frag exists drop", Truth::No),
            ("rt nexthop fe80::1 drop", Truth::CannotTell),
            ("-A INPUT -m rt --rt-type 0 -j DROP", Truth::No),
            ("-A INPUT -m ipv6header ! --header hop -j DROP", Truth::Yes),
            ("icmpv6 code 0 drop", Truth::Yes),
            (
                "icmpv6 type . ip6 hoplimit { nd-router-advert . 255, nd-neighbor-solicit . 255 } accept",
                Truth::Yes,
            ),
            (
                "icmpv6 type . ip6 hoplimit { nd-neighbor-advert . 255 } accept",
                Truth::No,
            ),
            (
                "icmpv6 type . ip6 hoplimit != { nd-neighbor-advert . 255, nd-neighbor-solicit . 1 } drop",
                Truth::Yes,
            ),
            (
                "icmpv6 type . ip6 saddr { nd-neighbor-solicit . fd01::9 } drop",
                Truth::CannotTell,
            ),
            ("icmpv6 code port-unreachable drop", Truth::No),
            (
                "-A INPUT -m pkttype --pkt-type multicast -j DROP",
                Truth::Yes,
            ),
            (
                "-A INPUT -m pkttype ! --pkt-type unicast -j DROP",
                Truth::Yes,
            ),
            (
                "-A INPUT -m addrtype --dst-type MULTICAST -j DROP",
                Truth::Yes,
            ),
            (
                "-A INPUT -m addrtype ! --dst-type LOCAL -j DROP",
                Truth::Yes,
            ),
            (
                "-A INPUT -p icmpv6 -m icmp6 --icmpv6-type 135/0 -j DROP",
                Truth::Yes,
            ),
            (
                "-A INPUT -p icmpv6 -m icmp6 --icmpv6-type 136/0 -j DROP",
                Truth::No,
            ),
        ] {
            assert_eq!(says(rule, StopQuery::Packet(&question)), truth, "{rule}");
        }
        let mut leaves = question;
        leaves.forget(Field::Incoming);
        let told = says("meta pkttype multicast drop", StopQuery::Packet(&leaves));
        assert_eq!(
            told,
            Truth::CannotTell,
            "a packet that leaves has no type yet"
        );
    }

    #[test]
    fn a_test_that_says_nothing_of_who_asks_leaves_open_whether_it_is_stopped() {
        let question = question();
        for (rule, may) in [
            ("meta cpu 0 drop", true),
            ("@th,0,8 135 drop", true),
            ("exthdr hbh missing icmpv6 type 135 drop", true),
            ("exthdr hbh missing icmpv6 type 136 drop", false),
            ("exthdr hbh missing accept", false),
            ("ip6 saddr fd01::9 drop", false),
            ("ip6 saddr @blocked drop", false),
            ("fib saddr . iif oif missing drop", false),
            ("ether saddr 02:00:00:00:00:01 drop", false),
            ("-A INPUT -m rpfilter --invert -j DROP", false),
            ("rt type 0 drop", false),
            ("-A INPUT -m set --match-set blocked src -j DROP", false),
        ] {
            let read = Rule::of_text(rule, rule.starts_with('-'));
            assert_eq!(may_stop(&read, StopQuery::Packet(&question)), may, "{rule}");
        }
    }

    #[test]
    fn arp_asks_everybody() {
        let eth0 = IfName::new("eth0").unwrap();
        for (rule, truth) in [
            ("meta pkttype broadcast drop", Truth::Yes),
            ("meta pkttype multicast drop", Truth::No),
            ("ether daddr ff:ff:ff:ff:ff:ff drop", Truth::Yes),
            ("ether daddr 02:00:00:00:00:01 drop", Truth::No),
            ("meta protocol != { ip, ip6 } drop", Truth::Yes),
            ("fib daddr type multicast drop", Truth::CannotTell),
        ] {
            assert_eq!(says(rule, StopQuery::Arp(&eth0)), truth, "{rule}");
        }
    }
}
