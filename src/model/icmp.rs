//! Types of ICMP as services: those that open an exchange.
//!
//! Connection tracking takes any other for INVALID unless it has seen what it answers
//! (`nf_conntrack_icmp.c`, `nf_conntrack_icmpv6.c`), so asking for one alone would say nothing of
//! the answers and errors that a router lets through.

use super::{Protocol, ServiceError};

/// Type, name and protocol of each message that opens an exchange; IANA's registries.
const OPENING: [(u16, &str, Protocol); 6] = [
    (8, "ping", Protocol::Icmp),
    (13, "timestamp", Protocol::Icmp),
    (15, "information", Protocol::Icmp),
    (17, "address-mask", Protocol::Icmp),
    (128, "ping", Protocol::Icmpv6),
    (139, "node-information", Protocol::Icmpv6),
];

/// The name of a type; none for other protocols.
pub(super) fn name(protocol: Protocol, kind: u16) -> Option<&'static str> {
    let known = OPENING
        .iter()
        .find(|(number, _, of)| (*number, *of) == (kind, protocol));
    known.map(|(_, name, _)| *name)
}

/// What answers the messages that open an exchange, by protocol.
const REPLIES: [(u16, u16, Protocol); 6] = [
    (8, 0, Protocol::Icmp),
    (13, 14, Protocol::Icmp),
    (15, 16, Protocol::Icmp),
    (17, 18, Protocol::Icmp),
    (128, 129, Protocol::Icmpv6),
    (139, 140, Protocol::Icmpv6),
];

/// The type that answers one that opens an exchange.
pub(crate) fn reply_to(protocol: Protocol, kind: u16) -> Option<u16> {
    let mut replies = REPLIES.iter();
    let reply = replies.find(|(opening, _, of)| (*opening, *of) == (kind, protocol));
    reply.map(|(_, reply, _)| *reply)
}

/// The type that opened the exchange in which this one answers.
pub(crate) fn opened_by(protocol: Protocol, kind: u16) -> Option<u16> {
    let mut replies = REPLIES.iter();
    let reply = replies.find(|(_, reply, of)| (*reply, *of) == (kind, protocol));
    reply.map(|(opening, ..)| *opening)
}

/// Whether a kernel answers this type by itself, as Linux does (icmp(7)).
pub(crate) fn is_answered_by_kernel(kind: u16) -> bool {
    matches!(kind, 8 | 13 | 128)
}

/// The type that IPv6 has for one of IPv4's.
pub(super) fn in_v6(kind: u16) -> Option<u16> {
    let name = name(Protocol::Icmp, kind)?;
    let six = OPENING
        .iter()
        .find(|(_, known, of)| (*known, *of) == (name, Protocol::Icmpv6));
    six.map(|(number, ..)| *number)
}

/// Reads `ping`, `icmp`, `icmpv6`, or a type's number or name before `/icmp` or `/icmpv6`; none
/// for what is no ICMP.
pub(super) fn parse(entry: &str) -> Result<Option<(u16, Protocol)>, ServiceError> {
    let (kind, protocol) = match entry.split_once('/') {
        Some((kind, "icmp")) => (kind, Protocol::Icmp),
        Some((kind, "icmpv6")) => (kind, Protocol::Icmpv6),
        Some(_) => return Ok(None),
        None => match entry {
            "ping" | "icmp" => ("ping", Protocol::Icmp),
            "icmpv6" => ("ping", Protocol::Icmpv6),
            _ => return Ok(None),
        },
    };
    // Names as in iptables-extensions(8) and nft(8).
    let kind = match kind {
        "echo" | "echo-request" => "ping",
        "timestamp-request" => "timestamp",
        other => other,
    };
    let meant = |(number, name, of): &&(u16, &str, Protocol)| {
        *of == protocol && (*name == kind || number.to_string() == kind)
    };
    if let Some((number, ..)) = OPENING.iter().find(meant) {
        return Ok(Some((*number, protocol)));
    }
    Err(ServiceError::NoOpening(
        entry.to_owned(),
        why_not(protocol, kind),
    ))
}

/// Why no job asks about a type.
fn why_not(protocol: Protocol, kind: &str) -> &'static str {
    const ERROR: &str = "an ICMP error answers another packet, and without that one connection \
                         tracking takes it for invalid: ask about the service whose errors it brings";
    const REPLY: &str = "a reply answers a request, and without it connection tracking takes it for \
                         invalid: ask about the request, as in `ping`";
    const LINK: &str =
        "neighbour discovery, router messages and listener reports stay on their link";
    const UNKNOWN: &str = "no exchange begins with this type; `ping` and `timestamp/icmp` do";
    let names_of_errors = [
        "destination-unreachable",
        "source-quench",
        "redirect",
        "time-exceeded",
        "parameter-problem",
        "packet-too-big",
        "fragmentation-needed",
    ];
    if names_of_errors.contains(&kind) {
        return ERROR;
    }
    if kind.ends_with("reply") {
        return REPLY;
    }
    match (protocol, kind.parse::<u8>()) {
        (Protocol::Icmp, Ok(3 | 4 | 5 | 11 | 12)) | (Protocol::Icmpv6, Ok(0..=127)) => ERROR,
        (Protocol::Icmp, Ok(0 | 14 | 16 | 18)) | (Protocol::Icmpv6, Ok(129 | 140)) => REPLY,
        (Protocol::Icmp, Ok(9 | 10)) | (Protocol::Icmpv6, Ok(130..=138 | 143)) => LINK,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_opens_an_exchange_is_a_service_and_the_rest_is_told_why_not() {
        assert_eq!(parse("ping").unwrap(), Some((8, Protocol::Icmp)));
        assert_eq!(
            parse("echo-request/icmpv6").unwrap(),
            Some((128, Protocol::Icmpv6))
        );
        assert_eq!(parse("13/icmp").unwrap(), Some((13, Protocol::Icmp)));
        assert_eq!(parse("443/tcp").unwrap(), None);
        for (entry, why) in [
            ("3/icmp", "ICMP error answers another packet"),
            ("time-exceeded/icmp", "ICMP error answers another packet"),
            ("2/icmpv6", "ICMP error answers another packet"),
            ("echo-reply/icmp", "ask about the request"),
            ("129/icmpv6", "ask about the request"),
            ("135/icmpv6", "stay on their link"),
            ("99/icmp", "no exchange begins"),
            ("rm -rf/icmp", "no exchange begins"),
        ] {
            let error = parse(entry).unwrap_err().to_string();
            assert!(error.contains(why), "{entry}: {error}");
        }
    }
}
