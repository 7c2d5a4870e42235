//! Tests of the source port, where a question leaves that open.

use super::{Alone, Caveat, Field, Match, Rule, Test};

/// The ports that a Linux host gives to its connections unless told otherwise,
/// `net.ipv4.ip_local_port_range`, ip(7).
pub(crate) const CLIENT_PORTS: (u16, u16) = (32_768, 60_999);

/// Which ports of its client a packet may have had as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenPorts {
    /// None but the one that it has.
    #[default]
    None,
    /// As source, any that hosts give to their connections.
    Clients,
    /// As source, any that a router chose in the place of the client's.
    Translated,
    /// As destination of an answer, any that hosts give to their connections.
    Answered,
}

impl OpenPorts {
    /// What `open` leaves open where packets come as they were sent, and what where a router has
    /// given them another port.
    #[must_use]
    pub fn of(open: bool, translated: bool) -> Self {
        match (open, translated) {
            (_, true) => Self::Translated,
            (true, false) => Self::Clients,
            (false, false) => Self::None,
        }
    }

    fn field(self) -> Option<Field> {
        match self {
            Self::None => None,
            Self::Clients | Self::Translated => Some(Field::SourcePort),
            Self::Answered => Some(Field::DestinationPort),
        }
    }

    fn range(self) -> (u32, u32) {
        match self {
            // A port from 1024 is translated to one from 1024 (`nf_nat_l4proto_unique_tuple()`).
            Self::Translated => (1024, 65_535),
            _ => (CLIENT_PORTS.0.into(), CLIENT_PORTS.1.into()),
        }
    }

    /// So few of a client's ports are another service's, most likely: one connection in a hundred.
    /// Routers choose from ranges of any length.
    fn few(self) -> u32 {
        let (first, last) = self.range();
        match self {
            Self::Translated => 0,
            _ => (last - first + 1) / 100,
        }
    }
}

impl Rule {
    /// Makes tests that open ports answer differently depend on more than the packet.
    pub fn leave_source_port_open(&mut self, open: OpenPorts) {
        for test in &mut self.matches {
            if let Some(detail) = tells_apart(test, open) {
                test.test = Test::Varies(Caveat::SourcePort(detail).alone(Alone::Either));
            }
        }
    }

    /// Whether it tells open ports apart.
    #[must_use]
    pub fn tells_ports_apart(&self, open: OpenPorts) -> bool {
        let mut tests = self.matches.iter();
        tests.any(|test| tells_apart(test, open).is_some())
    }
}

/// What a test asks of the port, if open ports answer it differently.
fn tells_apart(test: &Match, open: OpenPorts) -> Option<String> {
    let field = open.field()?;
    let (first, last) = open.range();
    match &test.test {
        Test::Number { of, mask, ranges } if *of == field => {
            let of_clients = |(from, to): &(u32, u32)| {
                let (first, last) = ((*from).max(first), (*to).min(last));
                (last + 1).saturating_sub(first)
            };
            let held: u32 = ranges.iter().map(of_clients).sum();
            let others = (last - first + 1).saturating_sub(held);
            let differs = *mask != u32::MAX || (held > open.few() && others > open.few());
            differs.then(|| {
                let one = |(from, to): &(u32, u32)| match from == to {
                    true => from.to_string(),
                    false => format!("{from}-{to}"),
                };
                let all: Vec<String> = ranges.iter().map(one).collect();
                let not = if test.negated { "not " } else { "" };
                let chosen = match open {
                    OpenPorts::Translated => " of those that a router may choose",
                    _ => "",
                };
                format!("{not}{}{chosen}", all.join(", "))
            })
        }
        // A set: what it holds is not known here.
        Test::Other { text, reads } => {
            let port = reads.contains(&field) && reads.contains(&Field::Sets);
            let address = [Field::Source, Field::Destination];
            (port && !address.iter().any(|field| reads.contains(field))).then(|| text.clone())
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
            let tells = Rule::of(text).tells_ports_apart(OpenPorts::Clients);
            assert_eq!(tells, apart, "{text}");
        }
        let few = Rule::of("-A f -p tcp --sport 2001:2002 -j DROP");
        assert!(few.tells_ports_apart(OpenPorts::Translated));
        assert!(!few.tells_ports_apart(OpenPorts::Clients));
        let answers = Rule::of("-A f -p tcp --dport 45000:65535 -j DROP");
        assert!(answers.tells_ports_apart(OpenPorts::Answered));
        assert!(!answers.tells_ports_apart(OpenPorts::Translated));
    }
}
