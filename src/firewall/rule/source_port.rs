//! Tests of the source port, where a question leaves that open.

use super::{Alone, Caveat, Field, Match, Rule, Test, Varying};

/// The ports that a Linux host gives to its connections unless told otherwise,
/// `net.ipv4.ip_local_port_range`, ip(7).
pub(crate) const CLIENT_PORTS: (u16, u16) = (32_768, 60_999);

impl Rule {
    /// Makes tests that a client's ports answer differently depend on more than the packet: a
    /// client may have any of them.
    pub fn leave_source_port_open(&mut self) {
        for test in &mut self.matches {
            if let Some(detail) = tells_apart(test) {
                test.test = Test::Varies(Varying {
                    caveat: Caveat::SourcePort(detail),
                    alone: Alone::Either,
                    list: None,
                });
            }
        }
    }

    /// Whether it tells a client's ports apart.
    pub(super) fn tells_source_ports_apart(&self) -> bool {
        self.matches.iter().any(|test| tells_apart(test).is_some())
    }
}

/// The ends of [`CLIENT_PORTS`].
const FIRST: u32 = CLIENT_PORTS.0 as u32;
const LAST: u32 = CLIENT_PORTS.1 as u32;
/// So few of a client's ports are another service's, most likely: one connection in a hundred.
const FEW: u32 = (LAST - FIRST + 1) / 100;

/// What a test asks of the source port, if a client's ports answer it differently.
fn tells_apart(test: &Match) -> Option<String> {
    match &test.test {
        Test::Number {
            of: Field::SourcePort,
            mask,
            ranges,
        } => {
            let of_clients = |(from, to): &(u32, u32)| {
                let (first, last) = ((*from).max(FIRST), (*to).min(LAST));
                (last + 1).saturating_sub(first)
            };
            let held: u32 = ranges.iter().map(of_clients).sum();
            let others = (LAST - FIRST + 1).saturating_sub(held);
            let differs = *mask != u32::MAX || (held > FEW && others > FEW);
            differs.then(|| {
                let one = |(from, to): &(u32, u32)| match from == to {
                    true => from.to_string(),
                    false => format!("{from}-{to}"),
                };
                let all: Vec<String> = ranges.iter().map(one).collect();
                let not = if test.negated { "not " } else { "" };
                format!("{not}{}", all.join(", "))
            })
        }
        // A set: what it holds is not known here.
        Test::Other { text, reads } => {
            let port = reads.contains(&Field::SourcePort) && reads.contains(&Field::Sets);
            (port && !reads.contains(&Field::Source)).then(|| text.clone())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_no_client_has_tell_none_apart() {
        for (text, apart) in [
            ("-A f -p tcp --sport 45000:65534 -j DROP", true),
            ("-A f -p tcp ! --sport 45000:65534 -j DROP", true),
            ("-A f -p tcp --sport 1024:65535 -j ACCEPT", false),
            ("-A f -p tcp --sport 32768:60999 -j ACCEPT", false),
            ("-A f -p udp --sport 53 -j ACCEPT", false),
            (
                "-A f -p tcp -m multiport --sports 53,40000:50000 -j ACCEPT",
                true,
            ),
            (
                "-A f -p tcp -m multiport --sports 53,40000 -j ACCEPT",
                false,
            ),
            ("udp sport 33440 drop", false),
            ("tcp sport 40000-50000 accept", true),
            ("tcp sport >= 1024 accept", false),
            ("tcp sport @high accept", true),
            ("ip saddr @trusted accept", false),
            ("-A f -m set --match-set trusted src -j ACCEPT", false),
        ] {
            assert_eq!(Rule::of(text).tells_source_ports_apart(), apart, "{text}");
        }
    }
}
