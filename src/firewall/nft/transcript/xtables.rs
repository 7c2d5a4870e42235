//! Rules of iptables in nf_tables, whose matches and targets come as the structures of iptables.

use super::{Beyond, append};
use crate::firewall::nft::wire::Attributes;

/// linux/netfilter/nf_tables.h and nf_tables_compat.h.
mod attr {
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    /// The name of a match or a target.
    pub(super) const NAME: u16 = 1;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const PAYLOAD_BASE: u16 = 2;
    pub(super) const PAYLOAD_OFFSET: u16 = 3;
    pub(super) const CMP_OP: u16 = 2;
    pub(super) const CMP_DATA: u16 = 3;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const RULE_COMPAT: u16 = 5;
    pub(super) const COMPAT_PROTOCOL: u16 = 1;
    pub(super) const COMPAT_FLAGS: u16 = 2;
}

/// `NFT_META_L4PROTO`.
const L4PROTO: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK: u32 = 1;
/// `NFPROTO_*`, and where the header has the protocol.
const PROTOCOL_AT: [(u8, u32); 2] = [(2, 9), (10, 6)];
/// `NFT_CMP_EQ` and `NFT_CMP_NEQ`.
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
/// `NFT_RULE_COMPAT_F_INV`.
const INVERTED: u32 = 2;

/// Matches and targets whose structures say all and mean the same in every namespace. Those of sets, which
/// have a set's number, and of programs and estimators are none.
const PLAIN: &[&str] = &[
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CT",
    "DNAT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "LOG",
    "MARK",
    "MASQUERADE",
    "NETMAP",
    "NFLOG",
    "NFQUEUE",
    "NOTRACK",
    "REDIRECT",
    "REJECT",
    "SNAT",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TPROXY",
    "TRACE",
    "TTL",
    "addrtype",
    "ah",
    "comment",
    "connbytes",
    "connlimit",
    "connmark",
    "conntrack",
    "dccp",
    "dscp",
    "dst",
    "ecn",
    "esp",
    "eui64",
    "frag",
    "hashlimit",
    "hbh",
    "helper",
    "hl",
    "icmp",
    "icmp6",
    "ipcomp",
    "iprange",
    "ipv6header",
    "length",
    "limit",
    "mac",
    "mark",
    "mh",
    "multiport",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "recent",
    "rpfilter",
    "rt",
    "sctp",
    "socket",
    "state",
    "statistic",
    "string",
    "tcp",
    "tcpmss",
    "time",
    "tos",
    "ttl",
    "u32",
    "udp",
];

/// What such a rule says of its protocol beside its expressions, for matches and targets that are of one only.
/// The kernel does not tell; it is what the rule compares the protocol with, as iptables puts it into both.
pub(super) fn compat(family: u8, expressions: Attributes<'_>) -> Result<Vec<u8>, Beyond> {
    let (mut asked, mut loaded, mut foreign) = (None, false, false);
    for (_, expression) in expressions {
        let expression = Attributes(expression);
        let data = expression
            .nested(attr::EXPR_DATA)
            .unwrap_or(Attributes(&[]));
        let mut loads = false;
        match expression.text(attr::EXPR_NAME).ok_or(Beyond)? {
            "match" | "target" => {
                foreign = true;
                data.text(attr::NAME)
                    .filter(|name| PLAIN.contains(name))
                    .ok_or(Beyond)?;
            }
            "meta" => loads = data.be32(attr::META_KEY) == Some(L4PROTO),
            "payload" => {
                let at = data.be32(attr::PAYLOAD_OFFSET).unwrap_or_default();
                loads = data.be32(attr::PAYLOAD_BASE) == Some(NETWORK)
                    && PROTOCOL_AT.contains(&(family, at));
            }
            "cmp" if loaded && asked.is_none() => asked = protocol(data),
            _ => {}
        }
        loaded = loads;
    }
    if !foreign {
        return Ok(Vec::new());
    }
    if !PROTOCOL_AT.iter().any(|(known, _)| *known == family) {
        return Err(Beyond);
    }
    let (number, flags) = asked.unwrap_or_default();
    let (mut said, mut whole) = (Vec::new(), Vec::new());
    append(
        &mut said,
        attr::COMPAT_PROTOCOL,
        &u32::from(number).to_be_bytes(),
    );
    append(&mut said, attr::COMPAT_FLAGS, &flags.to_be_bytes());
    let nested = attr::RULE_COMPAT | libc::NLA_F_NESTED as u16;
    append(&mut whole, nested, &said);
    Ok(whole)
}

/// The protocol that a comparison is with, and whether it must be another.
fn protocol(comparison: Attributes<'_>) -> Option<(u8, u32)> {
    let value = comparison.nested(attr::CMP_DATA)?.find(attr::DATA_VALUE)?;
    let flags = match comparison.be32(attr::CMP_OP)? {
        EQUAL => 0,
        UNEQUAL => INVERTED,
        _ => return None,
    };
    match value {
        [number] => Some((*number, flags)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(name: &str, data: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let (mut told, mut whole, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        data.iter()
            .for_each(|(kind, payload)| append(&mut told, *kind, payload));
        append(&mut whole, attr::EXPR_NAME, format!("{name}\0").as_bytes());
        append(&mut whole, attr::EXPR_DATA, &told);
        append(&mut bytes, 1, &whole);
        bytes
    }

    fn number(value: u32) -> Vec<u8> {
        value.to_be_bytes().to_vec()
    }

    fn is(operator: u32, protocol: u8) -> Vec<u8> {
        let mut value = Vec::new();
        append(&mut value, attr::DATA_VALUE, &[protocol]);
        let protocol = [(attr::CMP_OP, number(operator)), (attr::CMP_DATA, value)];
        [
            expression("meta", &[(attr::META_KEY, number(L4PROTO))]),
            expression("cmp", &protocol),
        ]
        .concat()
    }

    fn called(name: &str) -> Vec<u8> {
        expression("match", &[(attr::NAME, format!("{name}\0").into_bytes())])
    }

    fn said(family: u8, parts: &[Vec<u8>]) -> Option<(u32, u32)> {
        let bytes = compat(family, Attributes(&parts.concat())).unwrap();
        let said = Attributes(&bytes).nested(attr::RULE_COMPAT)?;
        Some((
            said.be32(attr::COMPAT_PROTOCOL)?,
            said.be32(attr::COMPAT_FLAGS)?,
        ))
    }

    #[test]
    fn a_rule_says_which_protocol_its_matches_are_for() {
        assert_eq!(said(2, &[is(EQUAL, 6)]), None);
        assert_eq!(said(2, &[is(EQUAL, 6), called("tcp")]), Some((6, 0)));
        assert_eq!(
            said(10, &[is(UNEQUAL, 17), called("length")]),
            Some((17, INVERTED))
        );
        assert_eq!(said(2, &[called("length")]), Some((0, 0)));
    }

    #[test]
    fn what_means_another_thing_elsewhere_is_beyond_messages() {
        for (family, name) in [(2, "set"), (2, "bpf"), (2, "unheard-of"), (7, "tcp")] {
            assert_eq!(
                compat(family, Attributes(&called(name))),
                Err(Beyond),
                "{name}"
            );
        }
    }
}
