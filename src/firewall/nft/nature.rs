//! What rules may do with packets, beside letting them through or not: what a walk from router to
//! router must know of them.

use std::ops::BitOrAssign;

use super::wire::Attributes;

/// linux/netfilter/nf_tables.h.
mod attr {
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const META_SREG: u16 = 3;
    pub(super) const PAYLOAD_BASE: u16 = 2;
    pub(super) const PAYLOAD_OFFSET: u16 = 3;
    pub(super) const PAYLOAD_LENGTH: u16 = 4;
    pub(super) const PAYLOAD_SREG: u16 = 5;
    pub(super) const EXTHDR_SREG: u16 = 7;
    /// `NFTA_MATCH_NAME` and `NFTA_TARGET_NAME`.
    pub(super) const XT_NAME: u16 = 1;
}

/// `NFT_PAYLOAD_LL_HEADER`.
const LINK_HEADER: u32 = 0;

/// What rules may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nature {
    /// They may change a packet, or what decides on its way, its mark for example.
    pub changes: bool,
    /// They go by connections, or keep something of them.
    pub stateful: bool,
    /// They look at the sender's hardware address.
    pub link: bool,
    /// They hand packets to a program if one listens, and let them go on if none does: nft's tproxy.
    pub proxies: bool,
}

impl Nature {
    /// Rules of which nothing is known.
    pub const ANYTHING: Self = Self {
        changes: true,
        stateful: true,
        link: true,
        // iptables' TPROXY drops what nobody takes, which is seen.
        proxies: false,
    };

    /// One bit each, in the order of the fields.
    pub(super) fn bits(self) -> u8 {
        let bits = [self.changes, self.stateful, self.link, self.proxies].into_iter();
        bits.zip(0..)
            .fold(0, |bits, (bit, at)| bits | u8::from(bit) << at)
    }

    /// What [`Self::bits`] gave.
    pub(super) fn of_bits(bits: u8) -> Self {
        let bit = |at: u8| bits >> at & 1 == 1;
        Self {
            changes: bit(0),
            stateful: bit(1),
            link: bit(2),
            proxies: bit(3),
        }
    }

    /// That of one rule, as NFT_MSG_GETRULE tells of it.
    pub(super) fn of(rule: Attributes<'_>) -> Self {
        let mut nature = Self::default();
        let expressions = rule.nested(attr::RULE_EXPRESSIONS).into_iter().flatten();
        for (_, expression) in expressions {
            let expression = Attributes(expression);
            let name = expression.text(attr::EXPR_NAME).unwrap_or_default();
            let data = expression.nested(attr::EXPR_DATA);
            let data = data.unwrap_or(Attributes(&[]));
            let xt = data.text(attr::XT_NAME).unwrap_or_default();
            nature |= Self {
                changes: changes(name, xt, data),
                stateful: stateful(name, xt),
                link: link(name, xt, data),
                proxies: name == "tproxy",
            };
        }
        nature
    }

    /// That of one rule of iptables, by the names of its matches, and of its target where that is
    /// neither a chain nor a plain verdict.
    pub(in crate::firewall) fn of_xtables<'a>(
        matches: impl IntoIterator<Item = &'a str>,
        target: Option<&str>,
    ) -> Self {
        let none = Attributes(&[]);
        let mut nature = Self::default();
        let matches = matches.into_iter().map(|name| ("match", name));
        for (kind, name) in matches.chain(target.map(|name| ("target", name))) {
            nature |= Self {
                changes: changes(kind, name, none),
                stateful: stateful(kind, name),
                link: link(kind, name, none),
                proxies: false,
            };
        }
        nature
    }
}

impl BitOrAssign for Nature {
    fn bitor_assign(&mut self, other: Self) {
        self.changes |= other.changes;
        self.stateful |= other.stateful;
        self.link |= other.link;
        self.proxies |= other.proxies;
    }
}

/// Whether an expression may change a packet. What is not known may.
fn changes(name: &str, xt: &str, data: Attributes<'_>) -> bool {
    match name {
        "bitwise" | "byteorder" | "cmp" | "connlimit" | "counter" | "ct" | "dynset" | "fib"
        | "hash" | "immediate" | "inner" | "last" | "limit" | "log" | "lookup" | "match"
        | "notrack" | "numgen" | "objref" | "osf" | "quota" | "range" | "reject" | "rt"
        | "socket" | "xfrm" => false,
        // Only those that store.
        "meta" => data.find(attr::META_SREG).is_some(),
        "payload" => data.find(attr::PAYLOAD_SREG).is_some(),
        "exthdr" => data.find(attr::EXTHDR_SREG).is_some(),
        // These change nothing that another router or the routing looks at.
        "target" => ![
            "LOG", "NFLOG", "REJECT", "TRACE", "AUDIT", "TCPMSS", "CHECKSUM", "CT", "NOTRACK",
        ]
        .contains(&xt),
        _ => true,
    }
}

/// Whether an expression goes by connections.
fn stateful(name: &str, xt: &str) -> bool {
    match name {
        "ct" | "nat" | "masq" | "redir" | "connlimit" | "flow_offload" | "synproxy" => true,
        "match" => xt == "state" || xt == "helper" || xt == "cluster" || xt.starts_with("conn"),
        "target" => [
            "CT",
            "DNAT",
            "SNAT",
            "MASQUERADE",
            "REDIRECT",
            "NETMAP",
            "SYNPROXY",
            "CONNMARK",
            "CONNSECMARK",
        ]
        .contains(&xt),
        _ => false,
    }
}

fn link(name: &str, xt: &str, data: Attributes<'_>) -> bool {
    match name {
        "payload" => data.be32(attr::PAYLOAD_BASE) == Some(LINK_HEADER) && of_sender(data),
        "match" => xt == "mac",
        _ => false,
    }
}

/// Whether an expression reads the source in Ethernet's header, bytes 6 to 11. A router's own address and
/// the protocol above are those of any packet that comes to it.
fn of_sender(data: Attributes<'_>) -> bool {
    let number = |kind| data.be32(kind);
    match (number(attr::PAYLOAD_OFFSET), number(attr::PAYLOAD_LENGTH)) {
        (Some(offset), Some(length)) => offset < 12 && offset.saturating_add(length) > 6,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = 4 + payload.len();
        let mut bytes = (length as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    fn of(name: &str, data: &[u8]) -> Nature {
        let mut inner = attribute(attr::EXPR_NAME, format!("{name}\0").as_bytes());
        inner.extend(attribute(attr::EXPR_DATA, data));
        let list = attribute(1, &inner);
        Nature::of(Attributes(&attribute(attr::RULE_EXPRESSIONS, &list)))
    }

    fn number(kind: u16, value: u32) -> Vec<u8> {
        attribute(kind, &value.to_be_bytes())
    }

    fn xt(name: &str) -> Vec<u8> {
        attribute(attr::XT_NAME, format!("{name}\0").as_bytes())
    }

    #[test]
    fn what_filters_does_nothing_else() {
        let network = number(attr::PAYLOAD_BASE, 1);
        for (name, data) in [
            ("meta", number(1, 8)),
            ("payload", network),
            ("match", xt("tcp")),
            ("target", xt("REJECT")),
            ("immediate", Vec::new()),
        ] {
            assert_eq!(of(name, &data), Nature::default(), "{name}");
        }
    }

    #[test]
    fn only_nfts_own_tproxy_lets_packets_go_on_without_a_listener() {
        assert!(of("tproxy", &[]).proxies);
        assert!(!of("target", &xt("TPROXY")).proxies);
    }

    #[test]
    fn what_changes_packets_goes_by_connections_or_the_link_is_found() {
        let nature = |changes, stateful, link| Nature {
            changes,
            stateful,
            link,
            proxies: false,
        };
        let changes = nature(true, false, false);
        assert_eq!(of("meta", &number(attr::META_SREG, 1)), changes);
        assert_eq!(of("payload", &number(attr::PAYLOAD_SREG, 1)), changes);
        assert_eq!(of("target", &xt("MARK")), changes);
        assert_eq!(of("something new", &[]), changes);
        assert_eq!(of("masq", &[]), nature(true, true, false));
        assert_eq!(of("match", &xt("conntrack")), nature(false, true, false));
        assert_eq!(of("match", &xt("mac")), nature(false, false, true));
        let link = number(attr::PAYLOAD_BASE, LINK_HEADER);
        assert_eq!(of("payload", &link), nature(false, false, true));
        // The destination, the source, both, the protocol.
        for (offset, length, source) in [(0, 6, false), (6, 6, true), (0, 12, true), (12, 2, false)]
        {
            let of_header = [
                link.clone(),
                number(attr::PAYLOAD_OFFSET, offset),
                number(attr::PAYLOAD_LENGTH, length),
            ];
            let of_header = of("payload", &of_header.concat());
            assert_eq!(of_header, nature(false, false, source), "{offset} {length}");
        }
    }
}
