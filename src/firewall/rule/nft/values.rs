//! Values of nft(8), and the tests that they make.

use super::varying::two;
use crate::{
    firewall::rule::{
        Field, Test,
        table::{self, About},
        words::unquoted,
        xtables::net,
    },
    netlink::object::Family,
};

/// A field with the way its values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Address(Field),
    Device(Field),
    Number(Field),
    Family,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    /// No operator: equal, or some bits of it.
    Plain,
    Equal,
    Not,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// One test that any of several fulfils; none where one of them is not understood.
pub(super) fn joined(tests: &[Option<Test>]) -> Option<Test> {
    let mut tests = tests.iter();
    let mut all = tests.next()?.clone()?;
    for test in tests {
        match (&mut all, test.as_ref()?) {
            (Test::Number { ranges, .. }, Test::Number { ranges: more, .. }) => ranges.extend(more),
            (Test::Address { nets, .. }, Test::Address { nets: more, .. }) => nets.extend(more),
            (Test::Device { names, .. }, Test::Device { names: more, .. }) => {
                names.extend(more.iter().cloned());
            }
            _ => return None,
        }
    }
    Some(all)
}

pub(super) fn meta(field: &str) -> Option<Kind> {
    Some(match field {
        "mark" => Kind::Number(Field::Mark),
        "l4proto" => Kind::Number(Field::Protocol),
        "length" => Kind::Number(Field::Length),
        "iifname" | "iif" => Kind::Device(Field::Incoming),
        "oifname" | "oif" => Kind::Device(Field::Outgoing),
        "nfproto" | "protocol" => Kind::Family,
        _ => return None,
    })
}

pub(super) fn network(field: &str) -> Option<Kind> {
    Some(match field {
        "saddr" => Kind::Address(Field::Source),
        "daddr" => Kind::Address(Field::Destination),
        "protocol" | "nexthdr" => Kind::Number(Field::Protocol),
        "dscp" => Kind::Number(Field::Tos),
        "ttl" | "hoplimit" => Kind::Number(Field::Ttl),
        "length" => Kind::Number(Field::Length),
        _ => return None,
    })
}

pub(super) fn transport(protocol: &str, field: &str) -> Option<Kind> {
    Some(match (protocol, field) {
        (_, "sport") => Kind::Number(Field::SourcePort),
        (_, "dport") => Kind::Number(Field::DestinationPort),
        ("tcp", "flags") => Kind::Number(Field::TcpFlags),
        ("tcp", "option maxseg size") => Kind::Number(Field::TcpOptions),
        ("icmp", "type") => Kind::Number(Field::IcmpType),
        ("icmpv6", "type") => Kind::Number(Field::Icmpv6Type),
        _ => return None,
    })
}

pub(super) fn connection(field: &str) -> Option<Kind> {
    Some(match field {
        "state" => Kind::Number(Field::State),
        "mark" => Kind::Number(Field::ConnectionMark),
        _ => return None,
    })
}

/// What a key reads.
pub(super) fn reads(key: &str) -> Vec<Field> {
    let mut fields = Vec::new();
    for part in key.split(" . ") {
        let mut words = part.split(' ');
        let kind = match (words.next(), words.next()) {
            (Some("meta"), Some(field)) => meta(field),
            (Some("ip" | "ip6"), Some(field)) => network(field),
            (Some("ct"), Some(field)) => connection(field),
            (Some(protocol), Some(field)) => transport(protocol, field),
            (Some(field), None) => meta(field),
            _ => None,
        };
        match kind {
            Some(Kind::Address(of) | Kind::Device(of) | Kind::Number(of)) => fields.push(of),
            Some(Kind::Family) => {}
            None => match table::about(two(part)) {
                About::Packet(more) => fields.extend(more),
                _ => fields.push(Field::Other),
            },
        }
    }
    fields
}

/// A test of `key` by pairs of type and code of ICMPv6, as a test of the type: what is asked about here, echo
/// and neighbour discovery, has code 0 (`no-route`), and others are those of errors. None for another key, or
/// where that cannot be told.
pub(super) fn kinds_of_icmpv6(key: &str, values: &[&str]) -> Option<Test> {
    let of = Field::Icmpv6Type;
    if key != "icmpv6 type . icmpv6 code" {
        return None;
    }
    let words: Vec<&str> = values.iter().copied().filter(|word| *word != ".").collect();
    let mut ranges = Vec::new();
    for pair in words.chunks(2) {
        let [kind, code] = pair else { return None };
        let kind = number_of(of, kind)?;
        match *code {
            "no-route" | "0" => ranges.push((kind, kind)),
            _ if kind < FIRST_QUESTION => {}
            _ => return None,
        }
    }
    (!ranges.is_empty()).then_some(Test::Number {
        of,
        mask: u32::MAX,
        ranges,
    })
}

/// The first type of ICMPv6 that is no error (RFC 4443).
const FIRST_QUESTION: u32 = 128;

/// One value of a numeric field.
pub(super) fn number_of(of: Field, word: &str) -> Option<u32> {
    match of {
        Field::Protocol => table::protocol(word),
        Field::State => table::state(word),
        Field::IcmpType => table::icmp_type(word),
        Field::Icmpv6Type => table::icmpv6_type(word),
        Field::TcpFlags => table::tcp_flag(word).or_else(|| table::number(word)),
        Field::Tos => table::dscp(word),
        _ => table::number(word),
    }
}

/// Bits written as `(fin | syn)` or `0xff`.
pub(super) fn bits(of: Field, words: &[&str]) -> Option<u32> {
    let parts = words.iter().flat_map(|word| word.split(['(', ')', '|']));
    let mut parts = parts.map(str::trim).filter(|part| !part.is_empty());
    parts.try_fold(0, |bits, part| Some(bits | number_of(of, part)?))
}

/// `tcp flags syn`, `tcp flags syn / fin,syn`, `tcp flags & (fin | syn) == syn`.
pub(super) fn flags_test(
    values: &[&str],
    mask: Option<u32>,
    comparison: Comparison,
) -> Option<Test> {
    let test = |mask, ranges| Test::Number {
        of: Field::TcpFlags,
        mask,
        ranges,
    };
    let of = Field::TcpFlags;
    if let Some(at) = values.iter().position(|value| *value == "/") {
        let value = bits(of, &values[..at])?;
        return Some(test(bits(of, &values[at + 1..])?, vec![(value, value)]));
    }
    let value = bits(of, values)?;
    match (mask, comparison) {
        (Some(0), _) => None,
        (Some(mask), Comparison::Not) if value == 0 => Some(test(mask, vec![(0, 0)])),
        (Some(mask), _) => Some(test(mask, vec![(value, value)])),
        // Without an operator any of these bits.
        (None, Comparison::Plain) => Some(test(value, vec![(1, value)])),
        (None, Comparison::Equal | Comparison::Not) => Some(test(0xff, vec![(value, value)])),
        _ => None,
    }
}

pub(super) fn masked_test(of: Field, mask: u32, values: &[&str]) -> Option<Test> {
    let value = match values {
        [value] => number_of(of, value)?,
        _ => return None,
    };
    (mask != 0).then(|| Test::Number {
        of,
        mask,
        ranges: vec![(value, value)],
    })
}

/// A test of one or several values.
pub(super) fn values_test(kind: Kind, values: &[&str], comparison: Comparison) -> Option<Test> {
    if values.is_empty() || values.iter().any(|value| value.starts_with(['@', '$'])) {
        return None;
    }
    let equal = matches!(
        comparison,
        Comparison::Plain | Comparison::Equal | Comparison::Not
    );
    Some(match kind {
        _ if !equal && !matches!(kind, Kind::Number(_)) => return None,
        Kind::Address(of) => Test::Address {
            of,
            nets: values
                .iter()
                .map(|value| nets(value))
                .collect::<Option<Vec<_>>>()?
                .concat(),
        },
        Kind::Device(of) => Test::Device {
            of,
            names: values
                .iter()
                .map(|value| unquoted(value).into_owned())
                .collect(),
        },
        Kind::Family => match values {
            ["ipv4" | "ip"] => Test::Family(Family::V4),
            ["ipv6" | "ip6"] => Test::Family(Family::V6),
            _ => return None,
        },
        Kind::Number(Field::Tos) => Test::Number {
            of: Field::Tos,
            mask: 0xfc,
            ranges: (values.iter())
                .map(|value| table::dscp(value).map(|d| (d << 2, d << 2)))
                .collect::<Option<Vec<_>>>()
                .filter(|_| equal)?,
        },
        Kind::Number(of) => Test::Number {
            of,
            mask: u32::MAX,
            ranges: numbers(of, values, comparison)?,
        },
    })
}

/// An address, a net, or a range of addresses.
pub(crate) fn nets(value: &str) -> Option<Vec<ipnet::IpNet>> {
    use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

    if let Some(net) = net(value) {
        return Some(vec![net]);
    }
    let (first, last) = value.split_once('-')?;
    Some(match (first.parse().ok()?, last.parse().ok()?) {
        (std::net::IpAddr::V4(first), std::net::IpAddr::V4(last)) => {
            Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
        }
        (std::net::IpAddr::V6(first), std::net::IpAddr::V6(last)) => {
            Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
        }
        _ => return None,
    })
}

fn numbers(of: Field, values: &[&str], comparison: Comparison) -> Option<Vec<(u32, u32)>> {
    let one = |value: &&str| -> Option<(u32, u32)> {
        // Names of ICMP types have hyphens in them.
        match (number_of(of, value), value.split_once('-')) {
            (None, Some((first, last))) => Some((number_of(of, first)?, number_of(of, last)?)),
            (number, _) => number.map(|number| (number, number)),
        }
    };
    let ranges: Vec<(u32, u32)> = values.iter().map(one).collect::<Option<_>>()?;
    let single = ranges.first().map(|(first, _)| *first)?;
    Some(match comparison {
        Comparison::Plain | Comparison::Equal | Comparison::Not => ranges,
        Comparison::Less => vec![(0, single.checked_sub(1)?)],
        Comparison::LessOrEqual => vec![(0, single)],
        Comparison::Greater => vec![(single.checked_add(1)?, u32::MAX)],
        Comparison::GreaterOrEqual => vec![(single, u32::MAX)],
    })
}
