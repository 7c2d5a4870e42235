//! Whether a rule can concern a service at all, read in its text.

use super::text::{after, is_xtables, words};
use crate::model::Protocol;

/// Whether the rule `text` may match a packet of this protocol to one of these ports, going by the
/// protocol and destination ports that it names. What is not understood may match.
#[must_use]
pub fn concerns(text: &str, protocol: Protocol, ports: &[u16]) -> bool {
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
    let protocol_fits = matched
        .protocol
        .is_none_or(|named| named == protocol.to_string());
    let port_fits = matched
        .ports
        .is_none_or(|ranges| ports.iter().any(|port| holds(&ranges, *port)));
    protocol_fits && port_fits
}

/// What a rule names; none is everything.
#[derive(Default)]
struct Matched {
    protocol: Option<String>,
    ports: Option<Vec<(u16, u16)>>,
}

fn holds(ranges: &[(u16, u16)], port: u16) -> bool {
    ranges
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&port))
}

fn xtables(words: &[String]) -> Matched {
    let named = after(words, "-p").filter(|name| matches!(*name, "tcp" | "udp"));
    let ports = after(words, "--dport").or_else(|| after(words, "--dports"));
    Matched {
        protocol: named.map(str::to_owned),
        ports: ports.and_then(|ports| ranges(ports.split(','), ':')),
    }
}

fn nft(words: &[String]) -> Matched {
    let Some(at) = words.iter().position(|word| word == "dport") else {
        return Matched::default();
    };
    let named = at.checked_sub(1).map(|before| words[before].as_str());
    let named = named.filter(|name| matches!(*name, "tcp" | "udp"));
    let rest = &words[at + 1..];
    let list: Vec<&str> = match rest.first().map(String::as_str) {
        Some("{") => rest[1..]
            .iter()
            .take_while(|word| *word != "}")
            .map(|word| word.trim_end_matches(','))
            .collect(),
        Some(one) => vec![one],
        None => vec![],
    };
    Matched {
        protocol: named.map(str::to_owned),
        ports: ranges(list.into_iter(), '-'),
    }
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
            assert_eq!(concerns(text, Protocol::Tcp, &[80]), want, "{text}");
        }
        assert!(concerns(
            "tcp dport 8080 accept",
            Protocol::Tcp,
            &[80, 8080]
        ));
    }
}
