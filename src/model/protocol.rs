//! Protocols above IP that a service can have.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;

use super::{ServiceError, text_in_json};

/// Protocols by the names that iptables, nft and ip print, `/etc/protocols`.
const NAMES: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipencap", 4),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmp6", 58),
    ("icmpv6", 58),
    ("ipv6-icmp", 58),
    ("ospf", 89),
    ("pim", 103),
    ("comp", 108),
    ("ipcomp", 108),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("mh", 135),
    ("udplite", 136),
];

/// The number of an IP protocol by a name of it.
pub(crate) fn protocol_number(name: &str) -> Option<u8> {
    let named = NAMES.iter().find(|(known, _)| *known == name);
    named.map(|(_, number)| *number)
}

/// Protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(with = "String")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
    /// ICMP of IPv4, RFC 792.
    Icmp,
    /// ICMP of IPv6, RFC 4443.
    Icmpv6,
    /// IPsec's encrypted payload, RFC 4303.
    Esp,
    /// Generic routing encapsulation, RFC 2784.
    Gre,
    /// Any other, by its number.
    Other(u8),
}

impl Protocol {
    /// Those with a name of their own.
    const NAMED: [(Self, u8, &'static str); 7] = [
        (Self::Tcp, 6, "tcp"),
        (Self::Udp, 17, "udp"),
        (Self::Sctp, 132, "sctp"),
        (Self::Icmp, 1, "icmp"),
        (Self::Icmpv6, 58, "icmpv6"),
        (Self::Esp, 50, "esp"),
        (Self::Gre, 47, "gre"),
    ];

    /// The assigned number, as in the IPv4 protocol field (IANA).
    #[must_use]
    pub fn number(self) -> u8 {
        if let Self::Other(number) = self {
            return number;
        }
        let named = Self::NAMED.iter().find(|(protocol, ..)| *protocol == self);
        named.map_or(0, |(_, number, _)| *number)
    }

    /// The protocol with this number.
    #[must_use]
    pub fn of(number: u8) -> Self {
        let named = Self::NAMED.iter().find(|(_, known, _)| *known == number);
        named.map_or(Self::Other(number), |(protocol, ..)| *protocol)
    }

    /// Whether services of it are told apart by ports.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }

    /// Whether services of it are told apart by ICMP types.
    #[must_use]
    pub fn has_types(self) -> bool {
        matches!(self, Self::Icmp | Self::Icmpv6)
    }
}

/// Names of further protocols, as in /etc/protocols.
pub(super) const ALIASES: [(&str, u8); 5] = [
    ("igmp", 2),
    ("ipip", 4),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
];

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMED.iter().find(|(protocol, ..)| protocol == self) {
            Some((.., name)) => f.pad(name),
            None => f.pad(&format!("ip/{}", self.number())),
        }
    }
}

impl FromStr for Protocol {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        let refused = || ServiceError::Protocol(text.to_owned());
        if let Some(number) = text.strip_prefix("ip/") {
            return number.parse().map(Self::of).map_err(|_| refused());
        }
        let named = Self::NAMED.iter().find(|(.., name)| *name == text);
        named.map(|(protocol, ..)| *protocol).ok_or_else(refused)
    }
}

text_in_json!(Protocol);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_name_that_is_read_back() {
        for number in 0..=u8::MAX {
            let protocol = Protocol::of(number);
            assert_eq!(protocol.number(), number);
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
        }
    }
}
