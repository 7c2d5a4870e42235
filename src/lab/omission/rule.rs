//! Packets that a rule of a ruleset may match, and what the rule can do with them.

use serde::{Deserialize, Serialize};

use super::{
    AskedBridge, FactsPlace, Hooks, PacketOutcome, PacketSet, Passage,
    damage::{Damage, damage_of},
};
use crate::{
    firewall::rule::{Field, Match, Packet, Rule, RuleVerdict, Test},
    model::{IfName, RouterName},
    netlink::object::Family,
};

/// A rule that is missing, where it stood, and what it can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleExtent {
    /// The rule, as the tool saved it; nothing is a rule that matches every packet.
    pub text: String,
    /// Whether it is a rule of iptables-save(8), and not one of nft(8).
    pub xtables: bool,
    /// The family that it sees; none is both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The hooks that its chain is reached from.
    pub hooks: Hooks,
    /// Whether it can stop a packet that would pass without it.
    pub may_stop: bool,
    /// Whether it can let a packet pass that would be stopped without it.
    pub may_pass: bool,
    /// Whether all that it can let pass is what its own hook stops.
    pub here_only: bool,
    /// Where it stands in the facts; none where that is not one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<FactsPlace>,
    /// The packets that come by it, where it is a rule of a bridge on a link of the router; none where it
    /// is the router's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_bridge: Option<PacketSet>,
    /// Whose bridge that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<(RouterName, IfName)>,
}

impl RuleExtent {
    /// The rule `text`, reached from `hooks`; in a chain that only `filters`, accepting a packet
    /// means no more than to ask the rest of the chain no more. What may be several rules is unknown,
    /// and reached from anywhere.
    #[must_use]
    pub fn new(
        text: &str,
        xtables: bool,
        filters: bool,
        family: Option<Family>,
        hooks: Hooks,
    ) -> Self {
        let rule = Rule::of_text(text, xtables);
        let (text, effect) = match damage_of(text, xtables, &rule) {
            Damage::None => (
                text.to_owned(),
                effect(&rule, filters && !hooks.decides_routes()),
            ),
            Damage::Cut(text) => (text, ANYTHING),
            Damage::Several => return Self::unknown(family, Hooks::ALL),
        };
        Self {
            text,
            xtables,
            family,
            hooks,
            may_stop: effect.stop,
            may_pass: effect.pass,
            here_only: effect.plain,
            at: None,
            on_bridge: None,
            bridge: None,
        }
    }

    /// A rule of which nothing is known but where it stands.
    #[must_use]
    pub fn unknown(family: Option<Family>, hooks: Hooks) -> Self {
        Self {
            text: String::new(),
            xtables: false,
            family,
            hooks,
            may_stop: true,
            may_pass: true,
            here_only: false,
            at: None,
            on_bridge: None,
            bridge: None,
        }
    }

    /// The same, standing there.
    #[must_use]
    pub fn standing_at(self, at: FactsPlace) -> Self {
        Self {
            at: Some(at),
            ..self
        }
    }

    /// The same as a rule of that bridge, which those of `packets` that get through come by.
    #[must_use]
    pub fn on_bridge(self, bridge: &(RouterName, IfName), packets: PacketSet) -> Self {
        let packets = PacketSet {
            family: self.family,
            passed_only: true,
            ..packets
        };
        Self {
            on_bridge: Some(packets),
            bridge: Some(bridge.clone()),
            at: None,
            ..self
        }
    }

    /// Whether any packet can be changed by it.
    pub(super) fn has_effect(&self) -> bool {
        (self.may_stop || self.may_pass) && !self.hooks.is_empty()
    }

    /// Whether with the rule the packet might have fared otherwise.
    pub(super) fn may_change(&self, passage: &Passage<'_>) -> bool {
        if let Some(packets) = &self.on_bridge {
            let is_it = |asked: &AskedBridge| {
                packets.interface.as_ref() == Some(&asked.interface)
                    && self.bridge.as_ref() == Some(&asked.bridge)
            };
            return !passage.apart.iter().any(is_it)
                && packets.may_be(passage)
                && self.matches_on_bridge(passage.packet);
        }
        let mut met = self.hooks.met(passage.course, passage.outcome);
        let reached = match passage.outcome {
            PacketOutcome::Passed => self.may_stop && met.next().is_some(),
            // A rule that only lets pass does so for its own hook.
            PacketOutcome::Stopped(Some(at)) if self.here_only => {
                self.may_pass && met.any(|h| h == at)
            }
            PacketOutcome::Stopped(_) => self.may_pass && met.next().is_some(),
        };
        let family = |own| passage.packet.family.is_none_or(|family| family == own);
        reached && self.family.is_none_or(family) && self.matches(passage.packet)
    }

    /// Whether it may match the packet as a bridge hands it on.
    #[must_use]
    pub fn may_match_bridged(&self, packet: &Packet) -> bool {
        let same = |own| packet.family.is_none_or(|family| family == own);
        self.family.is_none_or(same) && self.matches_on_bridge(packet)
    }

    /// Whether it changes what it matches, or nothing is known of it.
    #[must_use]
    pub fn may_rewrite(&self) -> bool {
        let rule = Rule::of_text(&self.text, self.xtables);
        self.text.is_empty()
            || rule.translation().is_some()
            || rule.changes().any(Field::is_sent)
            || ends_unread(&rule)
    }

    /// Whether it may match the packet at a bridge, which has interfaces and marks of its own.
    fn matches_on_bridge(&self, packet: &Packet) -> bool {
        let mut packet = packet.clone();
        for own in [
            Field::Incoming,
            Field::Outgoing,
            Field::Mark,
            Field::ConnectionMark,
        ] {
            packet.forget(own);
        }
        self.matches(&packet)
    }

    fn matches(&self, packet: &Packet) -> bool {
        self.text.is_empty() || Rule::of_text(&self.text, self.xtables).concerns(packet)
    }
}

/// Whether the words of a rule of nft(8) that could not be read may be what it does.
pub(super) fn ends_unread(rule: &Rule) -> bool {
    let unread = |m: &Match| matches!(m.test, Test::Other { .. });
    rule.verdicts().next().is_none() && rule.matches.iter().any(unread)
}

struct Effect {
    stop: bool,
    pass: bool,
    /// Letting pass means no more than to end the walk through this hook's chain.
    plain: bool,
}

fn effect(rule: &Rule, filters: bool) -> Effect {
    let mut effect = Effect {
        stop: false,
        pass: false,
        plain: true,
    };
    for verdict in rule.verdicts() {
        match verdict {
            RuleVerdict::Drop | RuleVerdict::Reject(_) => effect.stop = true,
            RuleVerdict::Accept if filters => effect.pass = true,
            _ => effect = ANYTHING,
        }
    }
    // What a packet carries or is noted in may be asked for elsewhere, by rules and by routes.
    let matters = |field: Field| !matches!(field, Field::Priority | Field::TcpOptions);
    if rule.changes().any(matters) || rule.remembers().next().is_some() {
        effect = ANYTHING;
    }
    effect
}

const ANYTHING: Effect = Effect {
    stop: true,
    pass: true,
    plain: false,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        firewall::{
            place::HookPoint,
            rule::{Packet, TrackingState},
        },
        lab::omission::Endpoints,
    };

    fn change(rule: &str, port: u16, outcome: PacketOutcome) -> bool {
        let xtables = rule.starts_with("-A");
        let hook = if rule.contains("INPUT") {
            "input"
        } else {
            "forward"
        };
        let extent = RuleExtent::new(rule, xtables, true, None, Hooks::named(hook));
        let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        let packet = Packet::of(Family::V4)
            .with(Field::Protocol, 6_u8)
            .with(Field::DestinationPort, port)
            .with_address(Field::Source, address("10.1.0.9"))
            .with_address(Field::Destination, address("10.2.0.9"))
            .with_device(Field::Incoming, "eth0")
            .with_device(Field::Outgoing, "eth1")
            .with_state(TrackingState::New);
        extent.may_change(&Passage {
            packet: &packet,
            course: Some(Endpoints::Forwarded),
            outcome,
            apart: &[],
        })
    }

    const PASSED: PacketOutcome = PacketOutcome::Passed;
    const STOPPED: PacketOutcome = PacketOutcome::Stopped(Some(HookPoint::Forward));

    #[test]
    fn a_rule_changes_what_it_can_match_and_only_the_other_way() {
        for (rule, port, passed, stopped) in [
            (
                "-A FORWARD -p tcp --dport 443 -m geoip --source-country RU -j DROP",
                443,
                true,
                false,
            ),
            (
                "-A FORWARD -p tcp --dport 443 -m geoip --source-country RU -j DROP",
                80,
                false,
                false,
            ),
            (
                "-A FORWARD -m geoip --source-country DE -j ACCEPT",
                80,
                false,
                true,
            ),
            (
                "-A FORWARD -m geoip --source-country DE -j mychain",
                80,
                true,
                true,
            ),
            (
                "-A FORWARD -m geoip --source-country DE -j RETURN",
                80,
                true,
                true,
            ),
            (
                "-A FORWARD -m geoip --source-country DE -j LOG",
                80,
                false,
                false,
            ),
            ("-A FORWARD -i eth1 -m geoip -j DROP", 80, false, false),
            ("-A FORWARD ! -i eth1 -m geoip -j DROP", 80, true, false),
            (
                "-A FORWARD -i eth+ -o eth+ -m geoip -j DROP",
                80,
                true,
                false,
            ),
            ("-A INPUT -m geoip -j DROP", 80, false, false),
            ("iifname \"eth9\" nosuch 1 drop", 80, false, false),
            ("iifname != \"eth9\" nosuch 1 drop", 80, true, false),
            ("iifname { \"eth9\" } nosuch 1 drop", 80, false, false),
            ("tcp dport 80 nosuch 1", 80, true, true),
            ("tcp dport 80 counter packets 0 bytes", 80, true, true),
            ("udp dport 53 accept tcp dport 80 drop", 80, true, true),
            ("-A FORWARD -p tcp -m tcp --dport 80 >", 80, true, true),
            ("-A FORWARD -p udp -m udp --dport 80 >", 80, false, false),
            (
                "-A FORWARD -p udp -j DROP-A INPUT -p tcp -j DROP",
                80,
                true,
                true,
            ),
            ("tcp dport 80 counter accept", 80, false, true),
        ] {
            assert_eq!(change(rule, port, PASSED), passed, "{rule}");
            assert_eq!(change(rule, port, STOPPED), stopped, "{rule}");
        }
    }

    #[test]
    fn an_accept_of_one_hook_does_not_undo_a_drop_of_another() {
        let at = |hook| PacketOutcome::Stopped(Some(hook));
        let accept = "-A FORWARD -m geoip -j ACCEPT";
        assert!(!change(accept, 80, at(HookPoint::Postrouting)));
        assert!(!change(accept, 80, at(HookPoint::Prerouting)));
        let jump = "-A FORWARD -m geoip -j mine";
        assert!(change(jump, 80, at(HookPoint::Postrouting)));
        assert!(!change(jump, 80, at(HookPoint::Prerouting)));
    }
}
