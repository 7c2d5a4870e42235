//! How a probe left, as far as the tap in mangle's POSTROUTING sees it: what nat does comes behind
//! that tap, and an entry of connection tracking that is not confirmed cannot be read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    notes::Note,
    save::{IptablesSave, RuleSave},
};
use crate::{
    firewall::{
        layout,
        nft::wire::array,
        rule::{Field, Packet},
        taps::Departed,
    },
    model::Protocol,
    netlink::object::Family,
};

/// The rules by which nat may still change what leaves.
#[derive(Debug, Default)]
pub(super) struct LaterNat {
    rules: Vec<RuleSave>,
}

impl LaterNat {
    pub(super) fn new(before: &IptablesSave) -> Self {
        let nat = before.tables.get("nat");
        let rules = nat
            .into_iter()
            .flat_map(|nat| nat.chain("POSTROUTING"))
            .cloned()
            .collect();
        Self { rules }
    }

    /// Says why it is not known how a probe leaves that came to the tap as `left`; none where no
    /// rule can match it.
    pub(super) fn doubt(&self, protocol: Protocol, left: &Departed) -> Option<String> {
        let packet = Packet::of(Family::of(left.destination))
            .with(Field::Protocol, protocol.number())
            .with(Field::SourcePort, left.source_port)
            .with(Field::DestinationPort, left.destination_port)
            .with(Field::Mark, left.mark)
            .with_address(Field::Source, left.source)
            .with_address(Field::Destination, left.destination);
        let mut rules = (1..).zip(&self.rules);
        let (number, rule) = rules.find(|(_, saved)| {
            let rule = saved.parsed();
            rule.decides() && rule.concerns(&packet)
        })?;
        let rule = format!("-A POSTROUTING {}", rule.spec);
        Some(format!(
            "rule {number} of chain POSTROUTING (table nat) may change it, which this back end \
             cannot see; the nft back end can: {rule}"
        ))
    }
}

/// A packet's headers, interface and mark as a note has them; the next hop is not in it.
pub(super) fn left(note: &Note) -> Option<Departed> {
    let packet = &note.packet;
    let (source, destination, tos, ttl): (IpAddr, IpAddr, _, _) = match packet.first()? >> 4 {
        4 => (
            Ipv4Addr::from(array::<4>(packet, 12)?).into(),
            Ipv4Addr::from(array::<4>(packet, 16)?).into(),
            *packet.get(1)?,
            *packet.get(8)?,
        ),
        _ => (
            Ipv6Addr::from(array::<16>(packet, 8)?).into(),
            Ipv6Addr::from(array::<16>(packet, 24)?).into(),
            packet[0] << 4 | packet.get(1)? >> 4,
            *packet.get(7)?,
        ),
    };
    let (protocol, transport) = note.transport()?;
    let [a, b, c, d] = array(transport, layout::ports_offset(protocol) as usize)?;
    Some(Departed {
        source,
        destination,
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
        tos,
        ttl,
        oif: note.oif,
        next_hop: None,
        mark: note.mark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(rules: &str) -> IptablesSave {
        IptablesSave::parse(&format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{rules}COMMIT\n"))
    }

    #[test]
    fn a_rule_that_may_match_is_named() {
        let left = Departed {
            source: "10.0.0.9".parse().unwrap(),
            destination: "10.9.0.50".parse().unwrap(),
            source_port: 40_000,
            destination_port: 80,
            tos: 0,
            ttl: 63,
            oif: 2,
            next_hop: None,
            mark: 0,
        };
        let other = "[0:0] -A POSTROUTING -s 192.168.0.0/16 -j MASQUERADE\n";
        assert_eq!(
            LaterNat::new(&save(other)).doubt(Protocol::Tcp, &left),
            None
        );
        let both = format!("{other}[0:0] -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\n");
        let why = LaterNat::new(&save(&both)).doubt(Protocol::Tcp, &left);
        let why = why.unwrap();
        assert!(why.starts_with("rule 2 of chain POSTROUTING"), "{why}");
    }

    #[test]
    fn headers_are_read_from_the_packet() {
        let mut packet = vec![
            0x45, 0x28, 0, 40, 0, 1, 0, 0, 63, 6, 0, 0, 10, 0, 0, 1, 10, 9, 0, 50,
        ];
        packet.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 0]);
        let note = Note {
            prefix: "o".to_owned(),
            hook: 4,
            oif: 3,
            mark: 7,
            packet,
        };
        let left = left(&note).unwrap();
        assert_eq!((left.source_port, left.destination_port), (40_000, 80));
        assert_eq!((left.tos, left.ttl, left.oif, left.mark), (0x28, 63, 3, 7));
        assert_eq!(left.destination.to_string(), "10.9.0.50");
    }
}
