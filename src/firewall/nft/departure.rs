//! How a probe left, as keys of two sets that the last taps fill.
//!
//! ```text
//! set p0 { mark . addr . addr . mark . mark }              tag, source, destination, ports, TOS
//! set w0 { mark . iface_index . addr . mark . mark }       tag, outgoing interface, next hop, TTL, mark
//! ```
//!
//! Two sets, because nft(8) lists keys of at most five fields. The TOS field is the header's bytes
//! from the first one that holds bits of it, the TTL field those up to the TTL; both are filled up
//! with zeroes. What is at POSTROUTING's very end is what leaves: NAT comes before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::wire::array;
use crate::{
    firewall::{layout, taps::Departed},
    model::Protocol,
    sys::nftnl::{Expr, Family, Header, Meta, RouteKey},
};

/// Types of fields as nft(8) numbers them (enum datatypes in its datatype.h), and how many bits each
/// takes in the type of a key.
const MARK: u32 = 19;
const IPV4: u32 = 7;
const IPV6: u32 = 8;
const INTERFACE: u32 = 20;
const TYPE_BITS: u32 = 6;

/// A key of several fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// Its type, as nft(8) prints it.
    pub(super) kind: u32,
    /// Its length in bytes.
    pub(super) len: u32,
    /// What is loaded behind the tag: from which word on, and what.
    fields: Vec<(u32, Expr<'static>)>,
}

impl Key {
    /// The tag, addresses, ports and TOS.
    pub(super) fn packet(family: Family) -> Self {
        let load = |header, offset, len| Expr::LoadPayload {
            header,
            offset,
            len,
        };
        let network = |offset, len| load(Header::Network, offset, len);
        let ports = load(Header::Transport, 0, 4);
        match family {
            Family::Ip6 => Self::new(&[
                (IPV6, 16, network(8, 16)),
                (IPV6, 16, network(24, 16)),
                (MARK, 4, ports),
                (MARK, 4, network(0, 2)),
            ]),
            _ => Self::new(&[
                (IPV4, 4, network(12, 4)),
                (IPV4, 4, network(16, 4)),
                (MARK, 4, ports),
                (MARK, 4, network(1, 1)),
            ]),
        }
    }

    /// The tag, outgoing interface, next hop, TTL and mark.
    pub(super) fn way(family: Family) -> Self {
        let last = |offset| Expr::LoadPayload {
            header: Header::Network,
            offset,
            len: 1,
        };
        let (next_hop, ttl) = match family {
            Family::Ip6 => ((IPV6, 16, Expr::LoadRoute(RouteKey::NextHop6)), last(7)),
            _ => ((IPV4, 4, Expr::LoadRoute(RouteKey::NextHop4)), last(8)),
        };
        Self::new(&[
            (INTERFACE, 4, Expr::LoadMeta(Meta::Oif)),
            next_hop,
            (MARK, 4, ttl),
            (MARK, 4, Expr::LoadMeta(Meta::Mark)),
        ])
    }

    /// A key of the tag and these fields: type, length in bytes, how it is loaded.
    fn new(fields: &[(u32, u32, Expr<'static>)]) -> Self {
        let mut key = Self {
            kind: MARK,
            len: 4,
            fields: Vec::new(),
        };
        for (kind, len, load) in fields {
            key.fields.push((key.len / 4, load.clone()));
            key.kind = key.kind << TYPE_BITS | kind;
            key.len += len;
        }
        key
    }

    /// The same for probes of `protocol`, whose ports are elsewhere or are none.
    pub(super) fn of(&self, protocol: Protocol) -> Self {
        let moved = |(word, load): &(u32, Expr<'static>)| match load {
            Expr::LoadPayload {
                header: header @ Header::Transport,
                len,
                ..
            } => {
                let load = Expr::LoadPayload {
                    header: *header,
                    offset: layout::ports_offset(protocol),
                    len: *len,
                };
                (*word, load)
            }
            other => (*word, other.clone()),
        };
        Self {
            fields: self.fields.iter().map(moved).collect(),
            ..*self
        }
    }

    /// The expressions that load it, `tag` first.
    pub(super) fn load<'a>(&'a self, tag: Expr<'a>) -> impl Iterator<Item = Expr<'a>> {
        let behind = |(word, load): &'a (u32, Expr<'static>)| Expr::Behind(*word, load);
        std::iter::once(tag).chain(self.fields.iter().map(behind))
    }
}

/// What the first set says of a probe: its tag and how it left, without the way.
pub(super) fn packet(family: Family, key: &[u8]) -> Option<(u32, Departed)> {
    let ((source, destination), at) = match family {
        Family::Ip6 => ((v6(key, 4)?, v6(key, 20)?), 36),
        _ => ((v4(key, 4)?, v4(key, 8)?), 12),
    };
    let [a, b, c, d] = array(key, at)?;
    let [tos, behind, ..] = array::<4>(key, at + 4)?;
    let left = Departed {
        source,
        destination,
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
        tos: match family {
            // The traffic class lies across the first two bytes (RFC 8200, section 3).
            Family::Ip6 => tos << 4 | behind >> 4,
            _ => tos,
        },
        ttl: 0,
        oif: 0,
        next_hop: None,
        mark: 0,
    };
    Some((tag(key)?, left))
}

/// Adds what the second set says to what is known of the same probe.
pub(super) fn add_way(family: Family, key: &[u8], left: &mut Departed) -> Option<()> {
    let (next_hop, at) = match family {
        Family::Ip6 => (v6(key, 8)?, 24),
        _ => (v4(key, 8)?, 12),
    };
    left.oif = u32::from_ne_bytes(array(key, 4)?);
    left.next_hop = Some(next_hop);
    left.ttl = *key.get(at)?;
    left.mark = u32::from_ne_bytes(array(key, at + 4)?);
    Some(())
}

/// The tag that a key begins with.
pub(super) fn tag(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(array(key, 0)?))
}

fn v4(key: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from(array::<4>(key, at)?).into())
}

fn v6(key: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv6Addr::from(array::<16>(key, at)?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_at_most_five_fields_and_fit_the_registers() {
        for family in [Family::Ip, Family::Ip6] {
            for key in [Key::packet(family), Key::way(family)] {
                assert!(key.kind >> (5 * TYPE_BITS) == 0 && key.len <= 64);
                assert_eq!(key.fields.len(), 4);
            }
        }
        assert_eq!(Key::packet(Family::Ip).len, 20);
        assert_eq!(Key::packet(Family::Ip6).len, 44);
    }

    #[test]
    fn what_the_sets_say_is_read_back() {
        let mut key = vec![
            1, 2, 3, 4, 10, 0, 0, 1, 10, 9, 0, 50, 0x9c, 0x40, 0, 80, 0x28,
        ];
        key.resize(20, 0);
        let (tag, mut left) = packet(Family::Ip, &key).unwrap();
        assert_eq!(tag, 0x0102_0304);
        let mut way = vec![1, 2, 3, 4];
        way.extend(7u32.to_ne_bytes());
        way.extend([10, 0, 0, 3, 63, 0, 0, 0]);
        way.extend(0x400u32.to_ne_bytes());
        add_way(Family::Ip, &way, &mut left).unwrap();
        let want = Departed {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.9.0.50".parse().unwrap(),
            source_port: 40_000,
            destination_port: 80,
            tos: 0x28,
            ttl: 63,
            oif: 7,
            next_hop: Some("10.0.0.3".parse().unwrap()),
            mark: 0x400,
        };
        assert_eq!(left, want);
        assert!((0..way.len()).all(|end| add_way(Family::Ip, &way[..end], &mut left).is_none()));
    }

    #[test]
    fn the_traffic_class_of_ipv6_lies_across_two_bytes() {
        let mut key = vec![0; 36];
        key.extend([0, 22, 0, 80, 0x6b, 0x8f, 0, 0]);
        assert_eq!(packet(Family::Ip6, &key).unwrap().1.tos, 0xb8);
    }
}
