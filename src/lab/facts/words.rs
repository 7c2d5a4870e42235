//! Words of a line of ip(8) output, and the numbers that its names stand for.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use crate::{
    model::{IfName, protocol_number},
    netlink::object::{Family, Route, Scope},
};

/// The words of one line, left to right.
pub(super) struct Words<'a>(std::iter::Peekable<std::str::SplitAsciiWhitespace<'a>>);

impl<'a> Words<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        Self(line.split_ascii_whitespace().peekable())
    }

    pub(super) fn next(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    pub(super) fn peek(&mut self) -> Option<&'a str> {
        self.0.peek().copied()
    }

    /// Takes the next word if it is `word`.
    pub(super) fn take(&mut self, word: &str) -> bool {
        self.0.next_if(|w| *w == word).is_some()
    }

    /// The word after `key`.
    pub(super) fn value(&mut self, key: &str) -> Result<&'a str, String> {
        self.next()
            .ok_or_else(|| format!("nothing stands after `{key}`"))
    }

    /// The word after `key`, read as a `T`.
    pub(super) fn parse<T: FromStr>(&mut self, key: &str) -> Result<T, String> {
        let word = self.value(key)?;
        word.parse()
            .map_err(|_| format!("`{key} {word}` cannot be read"))
    }

    /// The word after `key`, read as an interface name.
    pub(super) fn interface(&mut self, key: &str) -> Result<IfName, String> {
        IfName::new(self.value(key)?).map_err(|e| e.to_string())
    }
}

/// A prefix as ip(8) prints it: a lone address is a whole one, host bits are cleared.
pub(super) fn prefix(word: &str, family: Option<Family>) -> Result<IpNet, String> {
    let net = match word {
        "default" | "all" | "any" if family == Some(Family::V6) => "::/0".parse().ok(),
        "default" | "all" | "any" => "0.0.0.0/0".parse().ok(),
        word => address_with_len(word),
    };
    let net = net.ok_or_else(|| format!("`{word}` is not a prefix"))?;
    let found = Family::of(net.addr());
    if family.is_some_and(|wanted| wanted != found) {
        return Err(format!("`{word}` is not of the family of this section"));
    }
    Ok(net.trunc())
}

/// An address with its prefix length, host bits kept; a lone address is a whole one.
pub(super) fn address_with_len(word: &str) -> Option<IpNet> {
    word.parse()
        .ok()
        .or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from))
}

/// An unsigned number, decimal or `0x` hexadecimal.
pub(super) fn number(word: &str) -> Option<u32> {
    match word.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

/// What is said of a line that is left out.
pub(super) fn not_read(text: &str) -> String {
    format!("not read: {}", text.trim())
}

/// Names of routing tables and their numbers.
#[derive(Debug, Clone)]
pub(super) struct TableNames(BTreeMap<String, u32>);

impl Default for TableNames {
    /// What every system has, /etc/iproute2/rt_tables.
    fn default() -> Self {
        let own = [
            ("default", 253),
            ("main", Route::MAIN),
            ("local", Route::LOCAL),
        ];
        Self(own.map(|(name, id)| (name.to_owned(), id)).into())
    }
}

impl TableNames {
    pub(super) fn insert(&mut self, name: &str, id: u32) {
        self.0.insert(name.to_owned(), id);
    }

    /// The number of a table given by number or by name.
    pub(super) fn id(&self, word: &str) -> Option<u32> {
        number(word).or_else(|| self.0.get(word).copied())
    }
}

fn find<T: Copy>(table: &[(&str, T)], word: &str) -> Option<T> {
    table.iter().find(|(n, _)| *n == word).map(|(_, v)| *v)
}

/// Scope by name or number, /etc/iproute2/rt_scopes.
pub(super) fn scope(word: &str) -> Option<Scope> {
    const SCOPES: [(&str, Scope); 10] = [
        ("global", Scope::Global),
        ("universe", Scope::Global),
        ("0", Scope::Global),
        ("site", Scope::Site),
        ("link", Scope::Link),
        ("253", Scope::Link),
        ("host", Scope::Host),
        ("254", Scope::Host),
        ("nowhere", Scope::Nowhere),
        ("255", Scope::Nowhere),
    ];
    find(&SCOPES, word)
}

/// Routing protocol by name or number, /etc/iproute2/rt_protos.
pub(super) fn route_protocol(word: &str) -> Option<u8> {
    const PROTOCOLS: [(&str, u8); 23] = [
        ("unspec", 0),
        ("redirect", 1),
        ("kernel", 2),
        ("boot", 3),
        ("static", 4),
        ("gated", 8),
        ("ra", 9),
        ("mrt", 10),
        ("zebra", 11),
        ("bird", 12),
        ("dnrouted", 13),
        ("xorp", 14),
        ("ntk", 15),
        ("dhcp", 16),
        ("mrouted", 17),
        ("keepalived", 18),
        ("babel", 42),
        ("openr", 99),
        ("bgp", 186),
        ("isis", 187),
        ("ospf", 188),
        ("rip", 189),
        ("eigrp", 192),
    ];
    find(&PROTOCOLS, word).or_else(|| word.parse().ok())
}

/// TOS octet by number (hexadecimal with or without `0x`, as ip(8) reads it) or by name,
/// /etc/iproute2/rt_dsfield.
pub(super) fn tos(word: &str) -> Option<u8> {
    const NAMES: [(&str, u8); 27] = [
        ("default", 0),
        ("mincost", 2),
        ("reliability", 4),
        ("throughput", 8),
        ("lowdelay", 0x10),
        ("CS0", 0),
        ("CS1", 0x20),
        ("CS2", 0x40),
        ("CS3", 0x60),
        ("CS4", 0x80),
        ("CS5", 0xa0),
        ("CS6", 0xc0),
        ("CS7", 0xe0),
        ("AF11", 0x28),
        ("AF12", 0x30),
        ("AF13", 0x38),
        ("AF21", 0x48),
        ("AF22", 0x50),
        ("AF23", 0x58),
        ("AF31", 0x68),
        ("AF32", 0x70),
        ("AF33", 0x78),
        ("AF41", 0x88),
        ("AF42", 0x90),
        ("AF43", 0x98),
        ("EF", 0xb8),
        ("LE", 0x04),
    ];
    let hex = word.strip_prefix("0x").unwrap_or(word);
    find(&NAMES, word).or_else(|| u8::from_str_radix(hex, 16).ok())
}

/// IP protocol by name or number, /etc/protocols.
pub(super) fn ip_protocol(word: &str) -> Option<u8> {
    // `ip -N rule` writes the number behind the word.
    let number = word.strip_prefix("ipproto-").unwrap_or(word);
    protocol_number(word).or_else(|| number.parse().ok())
}
