//! Tests of the source port, where a question leaves that open.

use super::{Alone, Caveat, Field, Match, Rule, Test};

/// Which ports of its client a packet may have had as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenPorts {
    /// None but the one that it has.
    #[default]
    None,
    /// As source, any that hosts give to their connections.
    Clients,
    /// As source, any of these that a router chooses from in the place of the client's.
    Translated(PortChoice),
    /// As destination of an answer, any of these.
    Answered(PortChoice),
}

/// Ports of which any may be taken, the first and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortChoice {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl PortChoice {
    /// What a Linux host gives to its connections unless told otherwise, `net.ipv4.ip_local_port_range`,
    /// ip(7).
    pub const OF_CLIENTS: Self = Self {
        first: 32_768,
        last: 60_999,
    };

    /// What the kernel chooses from where nothing else is said: a port from 1024 is translated to one
    /// from 1024 (`nf_nat_l4proto_unique_tuple()`).
    pub const OF_ROUTERS: Self = Self {
        first: 1024,
        last: u16::MAX,
    };

    /// Whether `port` is one of them.
    #[must_use]
    pub fn has(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// These and the `other` ones, and what is between them.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }
}

impl OpenPorts {
    /// What a question that is `open` leaves open where packets come as they were sent.
    #[must_use]
    pub fn as_sent(open: bool) -> Self {
        match open {
            true => Self::Clients,
            false => Self::None,
        }
    }

    fn field(self) -> Option<Field> {
        match self {
            Self::None => None,
            Self::Clients | Self::Translated(_) => Some(Field::SourcePort),
            Self::Answered(_) => Some(Field::DestinationPort),
        }
    }

    fn choice(self) -> PortChoice {
        match self {
            Self::Translated(choice) | Self::Answered(choice) => choice,
            Self::None | Self::Clients => PortChoice::OF_CLIENTS,
        }
    }

    fn range(self) -> (u32, u32) {
        let PortChoice { first, last } = self.choice();
        (first.into(), last.into())
    }

    /// So few of a client's ports are another service's, most likely: one connection in a hundred.
    /// Routers choose from ranges of any length.
    fn few(self) -> u32 {
        let (first, last) = self.range();
        match self.choice() == PortChoice::OF_CLIENTS {
            true => (last - first + 1) / 100,
            false => 0,
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
                    OpenPorts::Translated(_) => " of those that a router may choose",
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
        let chosen = |first, last| OpenPorts::Translated(PortChoice { first, last });
        assert!(few.tells_ports_apart(OpenPorts::Translated(PortChoice::OF_ROUTERS)));
        assert!(few.tells_ports_apart(chosen(2000, 2003)));
        assert!(!few.tells_ports_apart(chosen(2001, 2002)));
        assert!(!few.tells_ports_apart(chosen(3000, 3003)));
        assert!(!few.tells_ports_apart(OpenPorts::Clients));
        let answers = Rule::of("-A f -p tcp --dport 45000:65535 -j DROP");
        assert!(answers.tells_ports_apart(OpenPorts::Answered(PortChoice::OF_CLIENTS)));
        assert!(!answers.tells_ports_apart(OpenPorts::Translated(PortChoice::OF_ROUTERS)));
    }
}
