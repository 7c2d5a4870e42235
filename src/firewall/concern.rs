//! Whether a rule can concern a probe at all, read in its text.

use std::net::IpAddr;

use ipnet::IpNet;

use super::text::{after, is_xtables, words};
use crate::model::Protocol;

/// What is known of a probe: every address and port that it had on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its destination ports.
    pub ports: Vec<u16>,
    /// Its source addresses; none where they are not known.
    pub sources: Vec<IpAddr>,
    /// Its destination addresses; none where they are not known.
    pub destinations: Vec<IpAddr>,
}

/// Whether the rule `text` may match the probe, going by the protocol, the addresses, the
/// destination ports and the state of the connection that it names. What is not understood may
/// match.
#[must_use]
pub fn concerns(text: &str, subject: &Subject) -> bool {
    let words = words(text);
    let negated = words.iter().any(|word| word == "!" || word == "!=");
    if negated {
        return true;
    }
    let matched = if is_xtables(&words) {
        xtables(&words)
    } else {
        nft(&words)
    };
    let has = |nets: &Option<IpNet>, addresses: &[IpAddr]| {
        nets.is_none_or(|net| {
            addresses.is_empty() || addresses.iter().any(|address| net.contains(address))
        })
    };
    let protocol = subject.protocol.to_string();
    matched.opens
        && matched.protocol.is_none_or(|named| named == protocol)
        && (matched.ports).is_none_or(|ranges| subject.ports.iter().any(|p| holds(&ranges, *p)))
        && has(&matched.source, &subject.sources)
        && has(&matched.destination, &subject.destinations)
}

/// What a rule names; none is everything.
struct Matched {
    protocol: Option<String>,
    ports: Option<Vec<(u16, u16)>>,
    source: Option<IpNet>,
    destination: Option<IpNet>,
    /// Whether it may match the first packet of a connection, which is new or untracked.
    opens: bool,
}

fn holds(ranges: &[(u16, u16)], port: u16) -> bool {
    ranges
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&port))
}

/// Whether one of these states of a connection, separated by commas, is that of a first packet.
fn opens(states: &str) -> bool {
    const LATER: [&str; 3] = ["invalid", "established", "related"];
    let later = |state: &str| LATER.contains(&state.trim().to_ascii_lowercase().as_str());
    !states.split(',').all(later)
}

fn net(text: &str) -> Option<IpNet> {
    let one = || text.parse().ok().map(|address: IpAddr| address.into());
    text.parse().ok().or_else(one)
}

fn xtables(words: &[String]) -> Matched {
    let named = after(words, "-p").filter(|name| *name != "all" && name.parse::<u8>().is_err());
    let ports = after(words, "--dport").or_else(|| after(words, "--dports"));
    let states = after(words, "--ctstate").or_else(|| after(words, "--state"));
    Matched {
        protocol: named.map(str::to_owned),
        ports: ports.and_then(|ports| ranges(ports.split(','), ':')),
        source: after(words, "-s").and_then(net),
        destination: after(words, "-d").and_then(net),
        opens: states.is_none_or(opens),
    }
}

fn nft(words: &[String]) -> Matched {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let behind = |first: &[&str], second: &[&str]| {
        let mut pairs = words.windows(3);
        let found = pairs.find(|w| first.contains(&w[0]) && second.contains(&w[1]));
        found.map(|w| w[2])
    };
    let one = |value: &str| !value.starts_with(['{', '@', '$']) && value != "vmap";
    let l4 = behind(&["meta", "ip", "ip6"], &["l4proto", "protocol", "nexthdr"]);
    let l4 = l4.filter(|value| one(value) && value.parse::<u8>().is_err());
    let carried = words.windows(2).find_map(|pair| match pair {
        [
            "tcp" | "udp",
            "dport" | "sport" | "flags" | "option" | "length",
        ]
        | ["icmp" | "icmpv6", "type" | "code"] => Some(pair[0]),
        _ => None,
    });
    let state = behind(&["ct"], &["state"]).filter(|value| one(value));
    let address = |field| behind(&["ip", "ip6"], &[field]).and_then(net);
    Matched {
        protocol: l4.or(carried).map(str::to_owned),
        ports: nft_ports(&words),
        source: address("saddr"),
        destination: address("daddr"),
        opens: state.is_none_or(opens),
    }
}

fn nft_ports(words: &[&str]) -> Option<Vec<(u16, u16)>> {
    let at = words.iter().position(|word| *word == "dport")?;
    let rest = &words[at + 1..];
    let list: Vec<&str> = match rest.first() {
        Some(&"{") => rest[1..]
            .iter()
            .take_while(|word| **word != "}")
            .map(|word| word.trim_end_matches(','))
            .collect(),
        Some(one) => vec![one],
        None => vec![],
    };
    ranges(list.into_iter(), '-')
}

/// Ports and ranges of ports; none when one of them is something else, such as a set.
fn ranges<'a>(list: impl Iterator<Item = &'a str>, between: char) -> Option<Vec<(u16, u16)>> {
    let range = |text: &str| {
        let (first, last) = text.split_once(between).unwrap_or((text, text));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    list.map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject {
            protocol: Protocol::Tcp,
            ports: vec![80],
            sources: vec!["10.0.0.2".parse().unwrap()],
            destinations: vec!["10.9.0.2".parse().unwrap()],
        }
    }

    #[test]
    fn a_rule_for_another_host_protocol_or_state_does_not_concern() {
        for (text, want) in [
            ("-A f -s 10.0.0.0/24 -m limit --limit 1/sec -j ACCEPT", true),
            (
                "-A f -s 10.7.0.0/24 -m limit --limit 1/sec -j ACCEPT",
                false,
            ),
            ("-A f -d 10.9.0.3/32 -j ACCEPT", false),
            ("-A f -p icmp -m limit --limit 1/sec -j ACCEPT", false),
            (
                "-A f -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                false,
            ),
            ("-A f -m conntrack --ctstate RELATED,NEW -j ACCEPT", true),
            ("ip saddr 10.0.0.2 limit rate 1/second accept", true),
            ("ip saddr 10.7.0.0/16 limit rate 1/second accept", false),
            (
                "ip saddr { 10.7.0.1, 10.0.0.2 } limit rate 1/second accept",
                true,
            ),
            ("ip saddr @trusted limit rate 1/second accept", true),
            ("meta l4proto icmp limit rate 1/second accept", false),
            ("meta l4proto tcp limit rate 1/second accept", true),
            ("icmp type echo-request limit rate 1/second accept", false),
            (
                "udp sport 53 meta l4proto udp limit rate 1/second drop",
                false,
            ),
            (
                "ct state established,related limit rate 1/second accept",
                false,
            ),
            ("ct state vmap { established : accept, new : jump x }", true),
            ("ct state new limit rate 1/second accept", true),
        ] {
            assert_eq!(concerns(text, &subject()), want, "{text}");
        }
    }

    #[test]
    fn a_rule_for_another_port_or_protocol_does_not_concern() {
        for (text, want) in [
            (
                "-A f -p tcp -m tcp --dport 80 -m limit --limit 5/sec -j ACCEPT",
                true,
            ),
            ("-A f -p tcp -m tcp --dport 81 -j ACCEPT", false),
            ("-A f -p udp -m udp --dport 80 -j ACCEPT", false),
            ("-A f -p tcp -m tcp --dport 79:81 -j ACCEPT", true),
            ("-A f -p tcp -m multiport --dports 22,79:81 -j ACCEPT", true),
            ("-A f -p tcp -m multiport --dports 22,443 -j ACCEPT", false),
            ("-A f -p tcp -m tcp ! --dport 80 -j DROP", true),
            ("-A f -m limit --limit 5/sec -j ACCEPT", true),
            ("tcp dport 80 accept", true),
            ("tcp dport { 22, 79-81 } accept", true),
            ("tcp dport { 22, 443 } accept", false),
            ("udp dport 80 accept", false),
            ("th dport 80 accept", true),
            ("tcp dport @web accept", true),
            ("tcp dport != 22 drop", true),
            ("limit rate 5/second accept", true),
        ] {
            assert_eq!(concerns(text, &subject()), want, "{text}");
        }
        let rewritten = Subject {
            ports: vec![80, 8080],
            ..subject()
        };
        assert!(concerns("tcp dport 8080 accept", &rewritten));
    }
}
