//! Rules as the kernel holds them: a list of expressions, each a name with attributes.
//!
//! What is compared with what goes through registers. The tests that nft and iptables-nft make of
//! addresses, ports, protocols, interfaces, marks and states are read; any other is one that may
//! hold.

use super::{
    Alone, Caveat, Does, Field, Rule, RuleVerdict, Test, nft,
    table::{self, TargetAction},
    xtables,
};
use crate::firewall::nft::wire::{Attributes, array};

/// linux/netfilter/nf_tables.h.
mod attr {
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const META_SREG: u16 = 3;
    pub(super) const CT_KEY: u16 = 2;
    pub(super) const CT_SREG: u16 = 4;
    pub(super) const PAYLOAD_BASE: u16 = 2;
    pub(super) const PAYLOAD_OFFSET: u16 = 3;
    pub(super) const PAYLOAD_LENGTH: u16 = 4;
    pub(super) const PAYLOAD_SREG: u16 = 5;
    pub(super) const CMP_OPERATOR: u16 = 2;
    pub(super) const CMP_DATA: u16 = 3;
    pub(super) const RANGE_OPERATOR: u16 = 2;
    pub(super) const RANGE_FROM: u16 = 3;
    pub(super) const RANGE_TO: u16 = 4;
    pub(super) const BITWISE_MASK: u16 = 4;
    pub(super) const BITWISE_XOR: u16 = 5;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const OBJREF_TYPE: u16 = 1;
    pub(super) const LOOKUP_DREG: u16 = 3;
    pub(super) const NAT_TYPE: u16 = 1;
    pub(super) const NAT_FLAGS: u16 = 7;
    pub(super) const REDIR_FLAGS: u16 = 3;
    pub(super) const IMMEDIATE_DREG: u16 = 1;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    pub(super) const DYNSET_NAME: u16 = 1;
    pub(super) const DYNSET_OPERATOR: u16 = 3;
    pub(super) const RT_KEY: u16 = 2;
    pub(super) const SOCKET_KEY: u16 = 1;
    pub(super) const LOOKUP_SET: u16 = 1;
    pub(super) const QUEUE_NUMBER: u16 = 1;
    /// `NFTA_MATCH_NAME` and `NFTA_TARGET_NAME`.
    pub(super) const XT_NAME: u16 = 1;
    /// `NFTA_MATCH_INFO`.
    pub(super) const XT_INFO: u16 = 3;
}

/// `NF_DROP`, `NF_ACCEPT`, `NFT_JUMP`, `NFT_GOTO`, `NFT_RETURN`, as they are in the attribute.
const VERDICTS: [(u32, &str); 5] = [
    (0, "drop"),
    (1, "accept"),
    ((-3i32) as u32, "jump"),
    ((-4i32) as u32, "goto"),
    ((-5i32) as u32, "return"),
];

/// Expressions that load a register with what is not understood further.
const LOADERS: [&str; 10] = [
    "rt", "fib", "socket", "exthdr", "tunnel", "xfrm", "inner", "osf", "numgen", "hash",
];

/// What the register holds that the next test looks at.
#[derive(Debug, Clone, Copy, Default)]
struct Loaded {
    of: Option<Field>,
    /// The shift of a value within its field, and whether it is in host byte order.
    host_order: bool,
    mask: Option<u32>,
}

impl Loaded {
    /// What a register holds behind a mask; nothing that is known where bits are flipped.
    fn bitwise(&mut self, data: Attributes<'_>) {
        let of = |attribute| {
            data.nested(attribute)
                .and_then(|data| data.find(attr::DATA_VALUE))
        };
        let (mask, xor) = (of(attr::BITWISE_MASK), of(attr::BITWISE_XOR));
        let plain = xor.is_some_and(|xor| xor.iter().all(|byte| *byte == 0));
        self.mask = mask.and_then(|mask| value(mask, self.host_order));
        if !plain || self.mask.is_none() {
            self.of = None;
        }
    }
}

impl Rule {
    /// Reads the nested attributes of `NFTA_RULE_EXPRESSIONS`.
    pub(in crate::firewall) fn of_expressions(list: Attributes<'_>) -> Self {
        let mut rule = Self::default();
        let mut loaded = Loaded::default();
        for (_, expression) in list {
            let expression = Attributes(expression);
            let name = expression.text(attr::EXPR_NAME).unwrap_or_default();
            let data = expression.nested(attr::EXPR_DATA);
            rule.express(name, data.unwrap_or(Attributes(&[])), &mut loaded);
        }
        rule.open_made_up()
    }

    fn express(&mut self, name: &str, data: Attributes<'_>, loaded: &mut Loaded) {
        if LOADERS.contains(&name) {
            *loaded = Loaded::default();
        }
        match name {
            // `NFT_SOCKET_MARK`, `NFT_SOCKET_WILDCARD`.
            "socket" => match data.be32(attr::SOCKET_KEY) {
                Some(1 | 2) => self.ask(other("socket wildcard", Field::Other), false),
                _ => self.by_name(name),
            },
            "meta" => self.meta(data, loaded),
            "ct" => self.connection(data, loaded),
            "payload" => self.payload(data, loaded),
            "bitwise" => loaded.bitwise(data),
            "cmp" => self.compare(data, *loaded),
            "range" => self.range(data, *loaded),
            "lookup" => self.lookup(data, *loaded),
            "immediate" => self.immediate(data),
            "objref" => self.object(data),
            "match" => self.xtables_match(data),
            "target" => self.xtables_target(data),
            "dynset" => {
                let name = data.text(attr::DYNSET_NAME).unwrap_or_default();
                // `NFT_DYNSET_OP_DELETE` is 2.
                let place = format!("set {name}");
                self.does.push(match data.be32(attr::DYNSET_OPERATOR) {
                    Some(2) => Does::Forget(place),
                    _ => Does::Remember(place),
                });
            }
            "limit" | "quota" | "numgen" | "hash" | "connlimit" => self.by_name(name),
            // `NFT_RT_XFRM`.
            "rt" if data.be32(attr::RT_KEY) == Some(4) => self.by_name("rt ipsec"),
            // `NFTA_EXTHDR_OP` is `NFT_EXTHDR_OP_TCPOPT`, and nothing is stored.
            "exthdr" if data.be32(6) == Some(1) && data.find(7).is_none() => {
                self.ask(other("tcp option ", Field::TcpOptions), false);
            }
            "queue" => {
                let number = data.find(attr::QUEUE_NUMBER).and_then(|n| array(n, 0));
                let number = number.map_or(0, u16::from_be_bytes);
                let bypass = false;
                self.decide(RuleVerdict::Queue { number, bypass });
            }
            "reject" => self.decide(RuleVerdict::Reject("port-unreachable".to_owned())),
            "nat" => self.nat(data),
            "redir" => {
                self.by_action(name);
                self.draw_targets(
                    TargetAction::Redirect,
                    data.be32(attr::REDIR_FLAGS).unwrap_or(0),
                );
            }
            _ => self.by_action(name),
        }
    }

    fn lookup(&mut self, data: Attributes<'_>, loaded: Loaded) {
        let of_port = loaded.of == Some(Field::SourcePort);
        let port = of_port.then_some(Field::SourcePort);
        let reads: Vec<Field> = port.into_iter().chain([Field::Sets]).collect();
        let set = data.text(attr::LOOKUP_SET).unwrap_or_default();
        self.ask(Test::other(&format!("lookup @{set}"), &reads), false);
        if data.find(attr::LOOKUP_DREG).is_some() {
            self.does.push(Does::Choose(vec![(None, unknown("a map"))]));
        }
    }

    /// A match of iptables.
    fn xtables_match(&mut self, data: Attributes<'_>) {
        let name = data.text(attr::XT_NAME).unwrap_or_default();
        let info = data.find(attr::XT_INFO).unwrap_or_default();
        // `option` of `struct xt_tcp`, linux/netfilter/xt_tcpudp.h.
        if let Some(option) = info.get(8).filter(|option| name == "tcp" && **option != 0) {
            let text = format!("tcp --tcp-option {option}");
            self.ask(other(&text, Field::TcpOptions), false);
        }
        for of in [Field::SourcePort, Field::DestinationPort] {
            if let Some((test, negated)) = ports_of(name, info, of) {
                self.ask(test, negated);
            }
        }
        if name == "socket" {
            // `XT_SOCKET_TRANSPARENT`, `XT_SOCKET_NOWILDCARD`, linux/netfilter/xt_socket.h.
            let flags = info.first().copied().unwrap_or(0);
            let nowildcard = if flags & 2 == 0 { "" } else { " --nowildcard" };
            let transparent = if flags & 1 == 0 { "" } else { " --transparent" };
            let text = format!("socket{nowildcard}{transparent}");
            return self.ask(other(&text, Field::Other), false);
        }
        self.by_name(name);
    }

    /// A target of iptables.
    fn xtables_target(&mut self, data: Attributes<'_>) {
        let name = data.text(attr::XT_NAME).unwrap_or_default();
        let read = Self::of_iptables(&format!("-j {name}"));
        self.matches.extend(read.matches);
        self.does
            .extend(read.does.into_iter().map(|does| match does {
                // A chain is an expression of its own: this is a target that is not known.
                Does::Decide(RuleVerdict::Jump(name)) => Does::Decide(unknown(&name)),
                does => does,
            }));
        // The flags of `struct nf_nat_range`, or behind a count of ranges.
        let info = data.find(attr::XT_INFO).unwrap_or_default();
        let flags = |at| array(info, at).map_or(0, u32::from_ne_bytes);
        if matches!(name, "DNAT" | "REDIRECT") {
            self.draw_targets(TargetAction::TranslateDestination, flags(0) | flags(4));
        }
    }

    fn nat(&mut self, data: Attributes<'_>) {
        // `NFT_NAT_SNAT` is 0.
        let action = match data.be32(attr::NAT_TYPE) {
            Some(0) => TargetAction::TranslateSource,
            _ => TargetAction::TranslateDestination,
        };
        self.does
            .push(Does::Translate(xtables::translation(action, "")));
        self.draw_targets(action, data.be32(attr::NAT_FLAGS).unwrap_or(0));
    }

    fn by_action(&mut self, name: &str) {
        let does = match table::action(name) {
            Some(action @ (TargetAction::TranslateSource | TargetAction::Redirect)) => {
                Does::Translate(xtables::translation(action, ""))
            }
            Some(TargetAction::Copy) => Does::Copy,
            Some(TargetAction::Note) => Does::Note,
            Some(TargetAction::AnswerItself) => Does::Decide(RuleVerdict::AnswerItself),
            Some(TargetAction::SendOn) => Does::Decide(RuleVerdict::SendOn),
            Some(TargetAction::Proxy) => Does::Decide(RuleVerdict::Proxy {
                port: None,
                or_drop: false,
            }),
            Some(TargetAction::Set(field)) => set(field),
            _ => return self.by_name(name),
        };
        self.does.push(does);
    }

    /// A test of which only the name is known.
    fn by_name(&mut self, name: &str) {
        let test = match nft::by_name(name) {
            Some(caveat) => Test::Varies(caveat.alone(Alone::Either)),
            None if name == "connlimit" => return self.by_name("ct count"),
            // What loads a register is no test yet.
            None if matches!(
                name,
                "rt" | "fib" | "socket" | "exthdr" | "byteorder" | "tunnel" | "xfrm" | "inner"
            ) =>
            {
                if name == "xfrm" {
                    self.by_name("ipsec");
                }
                return;
            }
            None => other(name, Field::Other),
        };
        self.ask(test, false);
    }

    fn meta(&mut self, data: Attributes<'_>, loaded: &mut Loaded) {
        let key = data.be32(attr::META_KEY);
        if data.find(attr::META_SREG).is_some() {
            return self.does.push(match key {
                Some(3) => set(Field::Mark),
                Some(2) => set(Field::Priority),
                // `NFT_META_NFTRACE`, `NFT_META_SECMARK`.
                Some(12 | 14) => Does::Note,
                _ => set(Field::Other),
            });
        }
        // `NFT_META_*`.
        let of = match key {
            Some(0) => Some(Field::Length),
            Some(3) => Some(Field::Mark),
            Some(6) => Some(Field::Incoming),
            Some(7) => Some(Field::Outgoing),
            Some(16) => Some(Field::Protocol),
            _ => None,
        };
        *loaded = Loaded {
            of,
            host_order: matches!(key, Some(0 | 3)),
            mask: None,
        };
        // `CPU`, `PRANDOM`, `SECPATH`, `TIME_NS` to `TIME_HOUR`.
        match key {
            Some(0) => self.ask(other("meta length", Field::Length), false),
            Some(20) => self.by_name("meta cpu"),
            Some(24) => self.by_name("meta random"),
            Some(25) => self.by_name("meta secpath"),
            Some(30..=32) => self.by_name("meta time"),
            // `NFT_META_SKUID`, `NFT_META_SKGID`, `NFT_META_CGROUP`.
            Some(10 | 11 | 23) => self.ask(other("meta skuid", Field::Other), false),
            _ => {}
        }
    }

    fn connection(&mut self, data: Attributes<'_>, loaded: &mut Loaded) {
        let key = data.be32(attr::CT_KEY);
        if data.find(attr::CT_SREG).is_some() {
            return self.does.push(match key {
                Some(3) => set(Field::ConnectionMark),
                // `NFT_CT_SECMARK`, `NFT_CT_LABELS`, `NFT_CT_EVENTMASK`.
                Some(4 | 13 | 18) => Does::Note,
                _ => set(Field::Tracking),
            });
        }
        let of = match key {
            Some(0) => Some(Field::State),
            Some(3) => Some(Field::ConnectionMark),
            _ => None,
        };
        *loaded = Loaded {
            of,
            host_order: true,
            mask: None,
        };
        // `NFT_CT_PKTS`, `NFT_CT_BYTES`, `NFT_CT_AVGPKT`.
        if matches!(key, Some(14..=16)) {
            self.by_name("ct bytes");
        }
    }

    /// Notes that chance chooses the port that a packet is sent to.
    fn draw_targets(&mut self, action: TargetAction, flags: u32) {
        /// `NF_NAT_RANGE_PROTO_RANDOM_ALL`, linux/netfilter/nf_nat.h.
        const RANDOM: u32 = 1 << 2 | 1 << 4;
        let destination = matches!(
            action,
            TargetAction::TranslateDestination | TargetAction::Redirect
        );
        if destination && flags & RANDOM != 0 {
            let random = Caveat::Random("the port".to_owned()).alone(Alone::Chooses);
            self.ask(Test::Varies(random), false);
        }
    }

    fn payload(&mut self, data: Attributes<'_>, loaded: &mut Loaded) {
        let at = (
            data.be32(attr::PAYLOAD_BASE),
            data.be32(attr::PAYLOAD_OFFSET),
            data.be32(attr::PAYLOAD_LENGTH),
        );
        // The network header is base 1, what follows it 2.
        let of = match at {
            (Some(1), Some(12), Some(4)) | (Some(1), Some(8), Some(16)) => Some(Field::Source),
            (Some(1), Some(16), Some(4)) | (Some(1), Some(24), Some(16)) => {
                Some(Field::Destination)
            }
            (Some(1), Some(9), Some(1)) => Some(Field::Protocol),
            (Some(2), Some(13), Some(1)) => Some(Field::TcpFlags),
            (Some(2), Some(0), Some(2)) => Some(Field::SourcePort),
            (Some(2), Some(2), Some(2)) => Some(Field::DestinationPort),
            _ => None,
        };
        if data.find(attr::PAYLOAD_SREG).is_some() {
            return self.does.push(set(of.unwrap_or(match at.0 {
                Some(0) => Field::Link,
                _ => Field::Tos,
            })));
        }
        self.made_up(at);
        *loaded = Loaded {
            of,
            ..Loaded::default()
        };
    }

    /// Notes that bits of a packet are read that may be made up, as nft(8) writes them.
    fn made_up(&mut self, at: (Option<u32>, Option<u32>, Option<u32>)) {
        let (Some(base), Some(offset), Some(length)) = at else {
            return;
        };
        let header = match base {
            0 => "ll",
            // What is not a single field is a part of an address.
            1 if (offset, length) == (8, 1) || offset < 8 => "nh",
            2 => "th",
            3 => "ih",
            _ => return,
        };
        let text = format!("@{header},{},{}", 8 * offset, 8 * length);
        self.ask(other(&text, Field::Other), false);
    }

    fn compare(&mut self, data: Attributes<'_>, loaded: Loaded) {
        let bytes = data
            .nested(attr::CMP_DATA)
            .and_then(|d| d.find(attr::DATA_VALUE));
        // `NFT_CMP_EQ`, `NFT_CMP_NEQ`.
        let operator = data.be32(attr::CMP_OPERATOR);
        if let Some(test) = bytes.and_then(|bytes| port_bound(operator?, bytes, loaded)) {
            return self.ask(test, false);
        }
        let negated = operator == Some(1);
        let known = matches!(operator, Some(0 | 1));
        let test = bytes
            .filter(|_| known)
            .and_then(|bytes| compared(bytes, loaded));
        self.ask(test.unwrap_or_else(|| other("cmp", Field::Other)), negated);
    }

    fn range(&mut self, data: Attributes<'_>, loaded: Loaded) {
        let bound = |kind| {
            let bytes = data.nested(kind)?.find(attr::DATA_VALUE)?;
            value(bytes, loaded.host_order)
        };
        let negated = data.be32(attr::RANGE_OPERATOR) == Some(1);
        let bounds = bound(attr::RANGE_FROM).zip(bound(attr::RANGE_TO));
        let test = loaded
            .of
            .filter(|of| is_number(*of))
            .zip(bounds)
            .map(|(of, bounds)| Test::Number {
                of,
                mask: loaded.mask.unwrap_or(u32::MAX),
                ranges: vec![bounds],
            });
        self.ask(
            test.unwrap_or_else(|| other("range", Field::Other)),
            negated,
        );
    }

    fn immediate(&mut self, data: Attributes<'_>) {
        // Register 0 is that of the verdict.
        let to_verdict = data.be32(attr::IMMEDIATE_DREG) == Some(0);
        let data = data.nested(attr::IMMEDIATE_DATA);
        let Some(verdict) = data.and_then(|data| data.nested(attr::DATA_VERDICT)) else {
            if to_verdict {
                self.decide(unknown("a verdict"));
            }
            return;
        };
        let code = verdict.be32(attr::VERDICT_CODE);
        let chain = || {
            verdict
                .text(attr::VERDICT_CHAIN)
                .unwrap_or_default()
                .to_owned()
        };
        let named = VERDICTS.iter().find(|(known, _)| Some(*known) == code);
        self.decide(match named.map(|(_, name)| *name) {
            Some("drop") => RuleVerdict::Drop,
            Some("accept") => RuleVerdict::Accept,
            Some("return") => RuleVerdict::Return,
            Some("jump") => RuleVerdict::Jump(chain()),
            Some("goto") => RuleVerdict::Goto(chain()),
            _ => unknown("a verdict"),
        });
    }

    /// A named object. By map it may be any.
    fn object(&mut self, data: Attributes<'_>) {
        match data.be32(attr::OBJREF_TYPE) {
            Some(2) => self.by_name("quota"),
            None | Some(4) => self.by_name("limit"),
            Some(5) => self.by_name("ct count"),
            // `NFT_OBJECT_CT_HELPER`, `NFT_OBJECT_CT_TIMEOUT`, `NFT_OBJECT_CT_EXPECT`.
            Some(3 | 7 | 9) => self.does.push(set(Field::Tracking)),
            // `NFT_OBJECT_SYNPROXY`.
            Some(10) => self.decide(RuleVerdict::AnswerItself),
            Some(_) => self.does.push(Does::Note),
        }
    }
}

/// What `bytes` mean as a value of what was loaded.
/// A source port up to some port, or from one on.
fn port_bound(operator: u32, bytes: &[u8], loaded: Loaded) -> Option<Test> {
    if loaded.of != Some(Field::SourcePort) || loaded.mask.is_some() {
        return None;
    }
    let port = u32::from(u16::from_be_bytes(array(bytes, 0)?));
    let most = u32::from(u16::MAX);
    // `NFT_CMP_LT` and those that follow.
    let range = match operator {
        2 => (0, port.checked_sub(1)?),
        3 => (0, port),
        4 => (port + 1, most),
        5 => (port, most),
        _ => return None,
    };
    Some(Test::Number {
        of: Field::SourcePort,
        mask: u32::MAX,
        ranges: vec![range],
    })
}

fn compared(bytes: &[u8], loaded: Loaded) -> Option<Test> {
    let of = loaded.of?;
    Some(match of {
        Field::Source | Field::Destination => {
            let address: std::net::IpAddr = match bytes.len() {
                4 => array::<4>(bytes, 0)?.into(),
                16 => array::<16>(bytes, 0)?.into(),
                // A shorter one is a net, whose length is that of the bytes.
                n @ 1..4 => {
                    let mut whole = [0; 4];
                    whole[..n].copy_from_slice(bytes);
                    let net = ipnet::Ipv4Net::new(whole.into(), 8 * n as u8).ok()?;
                    return Some(Test::Address {
                        of,
                        nets: vec![net.into()],
                    });
                }
                _ => return None,
            };
            let length = match (loaded.mask, address) {
                (None, std::net::IpAddr::V4(_)) => 32,
                (None, std::net::IpAddr::V6(_)) => 128,
                (Some(mask), std::net::IpAddr::V4(_)) => mask.leading_ones() as u8,
                // The mask of an IPv6 address is longer than what is kept of it.
                (Some(_), std::net::IpAddr::V6(_)) => return None,
            };
            Test::Address {
                of,
                nets: vec![ipnet::IpNet::new(address, length).ok()?.trunc()],
            }
        }
        Field::Incoming | Field::Outgoing => {
            let text = bytes.split(|byte| *byte == 0).next()?;
            let name = std::str::from_utf8(text).ok()?;
            let whole = text.len() < bytes.len();
            Test::Device {
                of,
                names: vec![if whole {
                    name.to_owned()
                } else {
                    format!("{name}*")
                }],
            }
        }
        _ => {
            let number = value(bytes, loaded.host_order)?;
            Test::Number {
                of,
                mask: loaded.mask.unwrap_or(u32::MAX),
                ranges: vec![(number, number)],
            }
        }
    })
}

fn is_number(of: Field) -> bool {
    !matches!(
        of,
        Field::Source | Field::Destination | Field::Incoming | Field::Outgoing
    )
}

/// Up to four bytes as a number.
fn value(bytes: &[u8], host_order: bool) -> Option<u32> {
    Some(match bytes.len() {
        1 => u32::from(bytes[0]),
        2 if host_order => u32::from(u16::from_ne_bytes(array(bytes, 0)?)),
        2 => u32::from(u16::from_be_bytes(array(bytes, 0)?)),
        4 if host_order => u32::from_ne_bytes(array(bytes, 0)?),
        4 => u32::from_be_bytes(array(bytes, 0)?),
        _ => return None,
    })
}

fn set(field: Field) -> Does {
    Does::Set {
        field,
        mask: u32::MAX,
        value: None,
    }
}

fn unknown(what: &str) -> RuleVerdict {
    RuleVerdict::Unknown(what.to_owned())
}

fn other(text: &str, reads: Field) -> Test {
    Test::Other {
        text: text.to_owned(),
        reads: vec![reads],
    }
}

/// What a match of iptables asks of the port `of` either end, with whether a packet has to fail it: the
/// beginning of `struct xt_tcp` and `struct xt_udp` (linux/netfilter/xt_tcpudp.h), and `struct
/// xt_multiport_v1`.
fn ports_of(name: &str, info: &[u8], of: Field) -> Option<(Test, bool)> {
    const PORTS: usize = 15;
    // Where the ports begin, the bit that inverts them (`XT_TCP_INV_SRCPT`, `XT_TCP_INV_DSTPT`, the same of
    // UDP), and `XT_MULTIPORT_SOURCE` and `XT_MULTIPORT_DESTINATION`.
    let (begin, bit, flag) = match of {
        Field::SourcePort => (0, 1, 0_u8),
        _ => (4, 2, 1),
    };
    let port = |at: usize| Some(u32::from(u16::from_ne_bytes(array(info, at)?)));
    let (ranges, negated) = match name {
        "tcp" | "udp" => {
            let inverted = info.get(if name == "tcp" { 11 } else { 8 })? & bit != 0;
            (vec![(port(begin)?, port(begin + 2)?)], inverted)
        }
        "multiport" if info.first() == Some(&flag) => {
            let count = usize::from(*info.get(1)?).min(PORTS);
            let mut ranges = Vec::new();
            let mut at = 0;
            while at < count {
                let first = port(2 + 2 * at)?;
                let is_range = *info.get(2 + 2 * PORTS + at)? != 0;
                at += usize::from(is_range);
                ranges.push((first, port(2 + 2 * at)?));
                at += 1;
            }
            (ranges, *info.get(2 + 3 * PORTS)? != 0)
        }
        _ => return None,
    };
    if ranges == [(0, u16::MAX.into())] {
        return None;
    }
    let mask = u32::MAX;
    Some((Test::Number { of, mask, ranges }, negated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_matches_of_iptables_ask_for_are_read() {
        let ports = |all: &[u16]| -> Vec<u8> { all.iter().flat_map(|p| p.to_ne_bytes()).collect() };
        let number = |of, ranges: &[(u32, u32)]| Test::Number {
            of,
            mask: u32::MAX,
            ranges: ranges.to_vec(),
        };
        let (source, destination) = (Field::SourcePort, Field::DestinationPort);
        // `-p tcp ! --sport 1000 --dport 80:90`: ports, option, two masks of flags, what is inverted.
        let tcp = [ports(&[1000, 1000, 80, 90]), vec![0, 0, 0, 1]].concat();
        let said = (number(source, &[(1000, 1000)]), true);
        assert_eq!(ports_of("tcp", &tcp, source), Some(said));
        let said = (number(destination, &[(80, 90)]), false);
        assert_eq!(ports_of("tcp", &tcp, destination), Some(said));
        let udp = [ports(&[0, u16::MAX, 53, 53]), vec![2]].concat();
        assert_eq!(ports_of("udp", &udp, source), None);
        let said = (number(destination, &[(53, 53)]), true);
        assert_eq!(ports_of("udp", &udp, destination), Some(said));
        // `-m multiport --dports 22,79:81`
        let mut multi = [vec![1, 3], ports(&[22, 79, 81]), ports(&[0; 12])].concat();
        multi.extend((0..15).map(|at| u8::from(at == 1)));
        multi.push(0);
        let said = (number(destination, &[(22, 22), (79, 81)]), false);
        assert_eq!(ports_of("multiport", &multi, destination), Some(said));
        assert_eq!(ports_of("multiport", &multi, source), None);
    }
}
