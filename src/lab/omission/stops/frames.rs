//! Whether rules stop what a bridge hands on from one of its ports to another.

use super::{Filters, PossibleStop, StopQuery};
use crate::{
    firewall::rule::{Field, Packet, words},
    model::IfName,
};

/// A packet that a bridge hands on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BridgedFrame<'a> {
    /// What is known of it, but for interfaces.
    pub packet: &'a Packet,
    pub bridge: &'a IfName,
    /// The ports by which it comes and leaves.
    pub comes: &'a IfName,
    pub leaves: &'a IfName,
    /// Whether it meets rules of IP, too (br_netfilter), which take the bridge for its interface.
    pub meets_ip_rules: bool,
}

impl Filters {
    /// What stops the frame or may stop it, of the rules that it surely meets; what does so surely, where
    /// something does.
    #[must_use]
    pub(crate) fn stop_of_bridged(&self, frame: &BridgedFrame<'_>) -> Option<PossibleStop> {
        let BridgedFrame {
            bridge,
            comes,
            leaves,
            ..
        } = *frame;
        let mut found = Vec::new();
        // Whether connections are tracked below IP, and how, the facts do not tell.
        let mut untold = frame.packet.clone();
        untold.forget(Field::State);
        let ingress = StopQuery::OnDevice(&untold, comes);
        found.extend(self.possible_stop("ingress", ingress));
        for (hook, iif, oif) in [
            ("prerouting", true, false),
            ("forward", true, true),
            ("postrouting", false, true),
        ] {
            let with = |packet: &Packet, incoming: &IfName, outgoing: &IfName| {
                let mut packet = packet.clone();
                for (field, name, has) in [
                    (Field::Incoming, incoming, iif),
                    (Field::Outgoing, outgoing, oif),
                ] {
                    if has {
                        packet = packet.with_device(field, name.as_str());
                    }
                }
                packet
            };
            let packet = with(&untold, comes, leaves);
            found.extend(self.possible_stop(hook, StopQuery::Bridged(&packet)));
            if frame.meets_ip_rules {
                let packet = with(frame.packet, bridge, bridge);
                let query = StopQuery::OnPorts(&packet, comes, oif.then_some(leaves));
                found.extend(self.possible_stop(hook, query));
            }
        }
        let egress = StopQuery::OnDevice(&untold, leaves);
        found.extend(self.possible_stop("egress", egress));
        let sure = found.iter().position(|stop| stop.sure);
        (!found.is_empty()).then(|| found.swap_remove(sure.unwrap_or(0)))
    }
}

/// A rule of iptables(8) without its tests for ports of bridges, where those are true; none where one is
/// not, xt_physdev(8).
pub(super) fn of_other_tests(
    text: &str,
    comes: &IfName,
    leaves: Option<&IfName>,
) -> Option<String> {
    let mut rest: Vec<&str> = Vec::new();
    let mut words = words(text).into_iter().peekable();
    let mut negated = false;
    while let Some(word) = words.next() {
        let is = match word {
            "!" => {
                negated = true;
                continue;
            }
            "-m" if words.peek() == Some(&"physdev") => {
                words.next();
                continue;
            }
            "--physdev-in" => Some(fits(words.next()?, Some(comes))),
            "--physdev-out" => Some(fits(words.next()?, leaves)),
            "--physdev-is-in" => Some(true),
            "--physdev-is-out" | "--physdev-is-bridged" => Some(leaves.is_some()),
            _ => None,
        };
        match is {
            Some(is) if is == negated => return None,
            Some(_) => {}
            None => {
                rest.extend(negated.then_some("!"));
                rest.push(word);
            }
        }
        negated = false;
    }
    Some(rest.join(" "))
}

/// Whether a rule of nft(8) is for ARP alone, and so not for packets.
pub(super) fn is_for_arp(text: &str) -> bool {
    let words = words(text);
    let mut tests = words.windows(3);
    tests.any(|test| matches!(test, ["ether", "type", "arp"] | ["meta", "protocol", "arp"]))
}

/// Whether a port has this name, which may end in a plus sign for any that begin so.
fn fits(name: &str, port: Option<&IfName>) -> bool {
    let port = port.map_or("", IfName::as_str);
    match name.strip_suffix('+') {
        Some(start) => port.starts_with(start),
        None => port == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lab::topology::{Ruleset, RulesetKind},
        netlink::object::Family,
    };

    /// What of `text` stops a packet to 81/tcp that goes from eth0 to eth1 of br0, and whether surely.
    fn stop(kind: RulesetKind, text: &str, meets_ip_rules: bool) -> Option<bool> {
        let filters = Filters::of(&[Ruleset::for_test(kind, text)]);
        let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        let packet = Packet::of(Family::V4)
            .with(Field::Protocol, 6_u8)
            .with(Field::DestinationPort, 81_u16)
            .with_address(Field::Source, address("10.1.0.9"))
            .with_address(Field::Destination, address("10.2.0.9"));
        let [bridge, comes, leaves] = ["br0", "eth0", "eth1"].map(|name| name.parse().unwrap());
        let stop = filters.stop_of_bridged(&BridgedFrame {
            packet: &packet,
            bridge: &bridge,
            comes: &comes,
            leaves: &leaves,
            meets_ip_rules,
        });
        stop.map(|stop| stop.sure)
    }

    #[test]
    fn rules_of_iptables_ask_for_ports_where_frames_meet_them() {
        for (rule, sure) in [
            (
                "-m physdev --physdev-in eth0 -p tcp -m tcp --dport 81 -j DROP",
                Some(true),
            ),
            (
                "-m physdev --physdev-in eth1 -p tcp -m tcp --dport 81 -j DROP",
                None,
            ),
            (
                "-m physdev ! --physdev-in eth1 -p tcp -m tcp --dport 81 -j DROP",
                Some(true),
            ),
            (
                "-m physdev --physdev-in eth+ --physdev-out eth1 -j DROP",
                Some(true),
            ),
            (
                "-m physdev --physdev-in eth+ --physdev-out eth0 -j DROP",
                None,
            ),
            (
                "-m physdev --physdev-is-bridged -p tcp -m tcp --dport 82 -j DROP",
                None,
            ),
            ("-m physdev ! --physdev-is-bridged -j DROP", None),
            (
                "-m physdev --physdev-is-bridged -m set --match-set s src -j DROP",
                Some(false),
            ),
            (
                "-m comment --comment \"not --physdev-in eth1 now\" -m physdev --physdev-in eth0 -j DROP",
                Some(true),
            ),
            ("-i br0 -o br0 -j DROP", Some(true)),
            ("-i eth0 -j DROP", None),
        ] {
            let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {rule}\nCOMMIT\n");
            assert_eq!(stop(RulesetKind::Iptables, &text, true), sure, "{rule}");
            assert_eq!(stop(RulesetKind::Iptables, &text, false), None, "{rule}");
        }
        // By which port it leaves is not known before the bridge has looked.
        for (rule, sure) in [
            ("--physdev-in eth0", Some(true)),
            ("--physdev-out eth1", None),
        ] {
            let chain = ":PREROUTING ACCEPT [0:0]\n-A PREROUTING";
            let text = format!("*raw\n{chain} -m physdev {rule} -j DROP\nCOMMIT\n");
            assert_eq!(stop(RulesetKind::Iptables, &text, true), sure, "{rule}");
        }
    }

    #[test]
    fn rules_of_family_bridge_see_ports_as_interfaces() {
        for (hook, rule, sure) in [
            ("forward", "tcp dport 81 drop", Some(true)),
            ("forward", "tcp dport 80 drop", None),
            (
                "forward",
                "iifname \"eth0\" oifname \"eth1\" drop",
                Some(true),
            ),
            ("forward", "iifname \"eth1\" drop", None),
            ("forward", "ether type arp drop", None),
            (
                "forward",
                "tcp dport 81 drop comment \"as ether type arp is\"",
                Some(true),
            ),
            ("forward", "iifname \"br0\" drop", None),
            ("prerouting", "ip saddr 10.1.0.0/16 drop", Some(true)),
            ("postrouting", "ip saddr @bad drop", Some(false)),
            ("input", "drop", None),
        ] {
            let text = format!(
                "table bridge x {{\n\tchain c {{\n\t\ttype filter hook {hook} priority filter; \
                 policy accept;\n\t\t{rule}\n\t}}\n}}\n"
            );
            assert_eq!(stop(RulesetKind::Nft, &text, false), sure, "{hook} {rule}");
        }
    }
}
