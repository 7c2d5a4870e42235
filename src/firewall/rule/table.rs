//! The table of targets, statements and matches: what each means, under all of its names.

use super::Field;
use crate::model::protocol_number;

/// What a target of iptables, a statement of nft, or an expression of nf_tables does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetAction {
    Accept,
    Drop,
    Reject,
    Return,
    Queue,
    /// Rewrites the source, or the destination.
    TranslateSource,
    TranslateDestination,
    /// Rewrites the destination to an address of the router.
    Redirect,
    /// Rewrites whichever the hook allows.
    TranslateEither,
    AnswerItself,
    Proxy,
    SendOn,
    Copy,
    Remember,
    Note,
    Set(Field),
    /// Measures a rate, and lets other rules decide by it.
    CountRate,
}

/// What a match of iptables, or an expression of nft or nf_tables, is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// The packet.
    Packet(&'static [Field]),
    Rate,
    Quota,
    /// What a connection has moved before; its first packet has a sure answer.
    Moved,
    Chance,
    Clock,
    /// What was seen before.
    Seen,
    /// How many connections are open.
    Open,
    /// Something that somebody outside sets.
    Outside,
    IpsecPolicy,
    /// What the sender's operating system is like.
    System,
}

/// Names: targets of iptables-extensions(8), first words of statements of nft(8), expressions.
type Names = &'static [&'static str];

/// Targets and statements. A name of iptables is in capitals, so one list serves all; expressions
/// that are named differently from statements stand beside them.
pub(super) const ACTIONS: &[(Names, TargetAction)] = {
    use TargetAction::*;
    &[
        (&["ACCEPT", "accept"], Accept),
        (&["DROP", "drop", "TARPIT", "STEAL"], Drop),
        (&["REJECT", "reject"], Reject),
        (&["RETURN", "return"], Return),
        (&["NFQUEUE", "QUEUE", "queue"], Queue),
        (
            &["SNAT", "MASQUERADE", "SAME", "snat", "masquerade", "masq"],
            TranslateSource,
        ),
        (&["DNAT", "dnat"], TranslateDestination),
        (&["REDIRECT", "redirect", "redir"], Redirect),
        (&["NETMAP", "nat"], TranslateEither),
        (&["SYNPROXY", "synproxy"], AnswerItself),
        (&["TPROXY", "tproxy"], Proxy),
        (&["fwd"], SendOn),
        (&["TEE", "dup"], Copy),
        (&["SET", "dynset"], Remember),
        (&["RATEEST"], CountRate),
        (
            &[
                "LOG",
                "NFLOG",
                "ULOG",
                "TRACE",
                "AUDIT",
                "IDLETIMER",
                "LED",
                "log",
                "counter",
                "last",
                "flow",
                "flow_offload",
            ],
            Note,
        ),
        (&["MARK", "HMARK"], Set(Field::Mark)),
        (&["CONNMARK"], Set(Field::ConnectionMark)),
        (&["TOS", "DSCP", "ECN"], Set(Field::Tos)),
        (&["TTL", "HL"], Set(Field::Ttl)),
        (&["TCPMSS", "TCPOPTSTRIP", "reset"], Set(Field::TcpOptions)),
        (&["CLASSIFY"], Set(Field::Priority)),
        (&["CT", "NOTRACK", "notrack"], Set(Field::Tracking)),
        (&["CHECKSUM"], Note),
        (&["SECMARK", "CONNSECMARK"], Note),
    ]
};

/// Matches of iptables-extensions(8) and expressions of nft(8) by their first words, apart from
/// those that are understood in full.
const MATCHES: &[(Names, About)] = {
    use About::*;
    use Field::*;
    &[
        (&["limit", "hashlimit", "rateest"], Rate),
        (&["quota", "quota2"], Quota),
        (&["connbytes", "ct bytes", "ct packets", "ct avgpkt"], Moved),
        // Of a hash as an expression nobody sees what goes into it, and any processor may take a packet.
        (
            &[
                "statistic",
                "random",
                "numgen",
                "hash",
                "meta random",
                "cpu",
                "meta cpu",
            ],
            Chance,
        ),
        (&["time", "meta time", "meta hour", "meta day"], Clock),
        (&["recent", "meter"], Seen),
        (&["connlimit", "ct count"], Open),
        (&["condition", "nfacct", "hashroute"], Outside),
        (
            &["policy", "ipsec", "meta secpath", "meta ipsec", "rt ipsec"],
            IpsecPolicy,
        ),
        (&["osf"], System),
        (
            &["tcp", "udp", "udplite", "sctp", "dccp", "multiport", "th"],
            Packet(&[SourcePort, DestinationPort, TcpFlags, TcpOptions]),
        ),
        (
            &[
                "icmp",
                "icmp6",
                "icmpv6",
                "igmp",
                "ah",
                "esp",
                "comp",
                "mh",
                "eui64",
                "frag",
                "hbh",
                "dst",
                "rt",
                "srh",
                "ipv6header",
                "exthdr",
            ],
            Packet(&[]),
        ),
        (
            &["conntrack", "state", "ct", "helper", "connlabel", "cluster"],
            Packet(&[State, Tracking, ConnectionMark]),
        ),
        (&["mark", "meta mark"], Packet(&[Mark])),
        (&["connmark", "ct mark"], Packet(&[ConnectionMark])),
        (&["dscp", "tos", "ecn"], Packet(&[Tos])),
        (&["ttl", "hl"], Packet(&[Ttl])),
        (&["length", "meta length"], Packet(&[Length])),
        (&["tcpmss", "tcp option"], Packet(&[TcpOptions])),
        (
            &["iprange", "addrtype", "fib", "rpfilter", "realm"],
            Packet(&[Source, Destination, Mark, Incoming]),
        ),
        (
            &["set"],
            Packet(&[Source, Destination, SourcePort, DestinationPort, Sets]),
        ),
        (
            &["mac", "ether", "vlan", "pkttype", "meta pkttype", "physdev"],
            Packet(&[Link]),
        ),
        (
            &[
                "devgroup",
                "meta iifgroup",
                "meta oifgroup",
                "meta iiftype",
                "meta oiftype",
            ],
            Packet(&[Incoming, Outgoing]),
        ),
        (
            &["owner", "cgroup", "meta skuid", "meta skgid", "meta cgroup"],
            Packet(&[]),
        ),
        (&["meta priority"], Packet(&[Priority])),
        (
            &["jhash", "symhash", "string", "u32", "bpf", "ip", "ip6"],
            Packet(&[
                Source,
                Destination,
                SourcePort,
                DestinationPort,
                Tos,
                Ttl,
                Length,
                TcpOptions,
            ]),
        ),
        (
            &["socket"],
            Packet(&[Source, Destination, SourcePort, DestinationPort, Mark]),
        ),
    ]
};

/// What the target, statement or expression `name` does; none where it is not known.
pub(super) fn action(name: &str) -> Option<TargetAction> {
    let row = ACTIONS.iter().find(|(names, _)| names.contains(&name));
    row.map(|(_, action)| *action)
}

/// The targets and statements that rewrite addresses or ports.
pub(super) fn translating() -> impl Iterator<Item = &'static str> {
    use TargetAction::{Redirect, TranslateDestination, TranslateEither, TranslateSource};
    let rewriting = [
        TranslateSource,
        TranslateDestination,
        TranslateEither,
        Redirect,
    ];
    let rows = ACTIONS
        .iter()
        .filter(move |(_, action)| rewriting.contains(action));
    rows.flat_map(|(names, _)| names.iter().copied())
}

/// What the match or expression `name` is about; all there is where it is not known.
pub(super) fn about(name: &str) -> About {
    let row = MATCHES.iter().find(|(names, _)| names.contains(&name));
    row.map_or(About::Packet(&[Field::Other]), |(_, about)| *about)
}

/// The number of a protocol by its name or number.
pub(super) fn protocol(name: &str) -> Option<u32> {
    protocol_number(name)
        .map(u32::from)
        .or_else(|| number(name))
}

/// The number of an ICMPv6 type of neighbour discovery (RFC 4861) by its name in nft(8) or
/// ip6tables(8), or of any type by its number. A code behind it narrows it further, and is not read.
pub(super) fn icmpv6_type(name: &str) -> Option<u32> {
    Some(match name {
        "nd-router-solicit" | "router-solicitation" => 133,
        "nd-router-advert" | "router-advertisement" => 134,
        "nd-neighbor-solicit" | "neighbor-solicitation" | "neighbour-solicitation" => 135,
        "nd-neighbor-advert" | "neighbor-advertisement" | "neighbour-advertisement" => 136,
        "nd-redirect" | "redirect" => 137,
        "echo-request" | "ping" => 128,
        "echo-reply" | "pong" => 129,
        "destination-unreachable" => 1,
        "packet-too-big" => 2,
        "time-exceeded" | "ttl-exceeded" => 3,
        "parameter-problem" => 4,
        "mld-listener-query" => 130,
        "mld-listener-report" => 131,
        "mld-listener-done" | "mld-listener-reduction" => 132,
        "router-renumbering" => 138,
        "ind-neighbor-solicit" => 141,
        "ind-neighbor-advert" => 142,
        "mld2-listener-report" => 143,
        _ => return number(name),
    })
}

/// The number of an ICMP type (RFC 792) by its name in nft(8) or iptables(8), or of any type by its number.
/// Names that mean a type with a code are not read.
pub(super) fn icmp_type(name: &str) -> Option<u32> {
    Some(match name {
        "echo-reply" | "pong" => 0,
        "destination-unreachable" => 3,
        "source-quench" => 4,
        "redirect" => 5,
        "echo-request" | "ping" => 8,
        "router-advertisement" => 9,
        "router-solicitation" => 10,
        "time-exceeded" | "ttl-exceeded" => 11,
        "parameter-problem" => 12,
        "timestamp-request" => 13,
        "timestamp-reply" => 14,
        "info-request" => 15,
        "info-reply" => 16,
        "address-mask-request" => 17,
        "address-mask-reply" => 18,
        _ => return number(name),
    })
}

/// A decimal or hexadecimal number.
pub(super) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A state of connection tracking by its name, in any case.
pub(super) fn state(name: &str) -> Option<u32> {
    use super::TrackingState::*;
    Some(match name.to_ascii_lowercase().as_str() {
        "invalid" => Invalid as u32,
        "established" => Established as u32,
        "related" => Related as u32,
        "new" => New as u32,
        "untracked" => Untracked as u32,
        _ => return None,
    })
}

/// A flag of TCP by its name, in any case.
pub(super) fn tcp_flag(name: &str) -> Option<u32> {
    const NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "all" => Some(0x3f),
        "none" => Some(0),
        _ => NAMES
            .iter()
            .position(|known| *known == name)
            .map(|bit| 1 << bit),
    }
}

/// A DSCP value by its name, RFC 2474, 2597, 3246, 5865, 8622.
pub(super) fn dscp(name: &str) -> Option<u32> {
    let name = name.to_ascii_lowercase();
    let digit = |from: usize| name.get(from..from + 1)?.parse::<u32>().ok();
    match name.as_str() {
        "be" | "df" => Some(0),
        "ef" => Some(46),
        "va" => Some(44),
        "le" | "lephb" => Some(1),
        _ if name.starts_with("cs") => digit(2).map(|class| class * 8),
        _ if name.starts_with("af") => Some(digit(2)? * 8 + digit(3)? * 2),
        _ => number(&name),
    }
}
