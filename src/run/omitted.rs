//! What the lab lacks, weighed against a verdict: one that an omission can change is not known.

use std::{cell::OnceCell, collections::BTreeMap};

use crate::{
    firewall::rule::{Field, Packet, Rule},
    lab::{
        LabState, RouterState,
        omission::{
            AskedBridge, Endpoints, FactsPlace, Met, Omission, PacketOutcome, Passage, Reach,
        },
        topology::{Ruleset, Warning},
    },
    model::{IfName, RouterName},
    netlink::object::Family,
    run::report::Verdict,
};

/// What a router lacks that can change a verdict.
#[derive(Debug, Clone, Default)]
pub(crate) struct Omitted {
    warnings: Vec<Warning>,
    /// Rules of the router that give packets another destination.
    redirecting: Vec<Rule>,
    /// Its rulesets with what it lacks of them.
    rulesets: Vec<Ruleset>,
    /// How they are walked through, by packets of IPv4 and of IPv6; read when it is first needed.
    reach: [OnceCell<Option<Reach>>; 2],
    /// Whether verdicts are given all the same.
    trust: bool,
}

/// A packet at a router, as the question and the measurement know it.
#[derive(Debug, Clone)]
pub(crate) struct KnownPacket {
    /// All that is known of what it looked like.
    pub packet: Packet,
    /// Between what it went; none where that is not known.
    pub course: Option<Endpoints>,
    /// What became of it.
    pub outcome: PacketOutcome,
    /// Whether [`KnownPacket::packet`] has the addresses and ports that it had behind the router's NAT.
    pub behind_nat: bool,
    /// The packet as it came in, the first of its connection; none where that is not known.
    pub came: Option<Packet>,
    /// The interface that routing leads it to if no rule has a part in that.
    pub planned: Option<IfName>,
    /// Bridges behind which it goes on and that are asked by themselves.
    pub apart: Vec<AskedBridge>,
}

impl Omitted {
    /// What router `name` of `lab` lacks; with `trust`, that is only said.
    #[must_use]
    pub(crate) fn of(lab: &LabState, router: &RouterState, trust: bool) -> Self {
        let own = |warning: &&Warning| concerns_router(warning, &router.name) && warning.matters();
        let warnings: Vec<Warning> = lab.warnings.iter().filter(own).cloned().collect();
        if warnings.is_empty() {
            return Self::default();
        }
        Self {
            warnings,
            redirecting: router
                .redirecting
                .iter()
                .map(|text| Rule::of(text))
                .collect(),
            rulesets: router.rulesets.clone(),
            reach: Default::default(),
            trust,
        }
    }

    /// Whether the router lacks nothing.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.warnings.is_empty()
    }

    /// Whether packets with other ports may meet other omissions. Whether the packet was seen `behind_nat`
    /// counts, see [`KnownPacket::behind_nat`].
    #[must_use]
    pub(crate) fn looks_at_ports(&self, behind_nat: bool) -> bool {
        let mut omissions = self.warnings.iter().filter_map(|w| w.omission.as_ref());
        (!behind_nat && !self.redirecting.is_empty())
            || omissions.any(|omission| omission.concern.looks_at_ports())
    }

    /// The verdict and reason with what is missing taken into account.
    #[must_use]
    pub(crate) fn weigh(
        &self,
        verdict: Verdict,
        reason: Option<String>,
        seen: &KnownPacket,
    ) -> (Verdict, Option<String>) {
        if self.is_empty() || verdict == Verdict::Unknown {
            return (verdict, reason);
        }
        match self.note(seen) {
            Some(note) => self.told(verdict, reason, &note),
            None => (verdict, reason),
        }
    }

    /// The verdict and reason where an omission can change what became of the packet.
    #[must_use]
    pub(crate) fn told(
        &self,
        verdict: Verdict,
        reason: Option<String>,
        note: &str,
    ) -> (Verdict, Option<String>) {
        let found = reason.map_or_else(String::new, |reason| format!("; {reason}"));
        if self.trust {
            return (
                verdict,
                Some(format!("trusting the facts without {note}{found}")),
            );
        }
        let without = match verdict {
            Verdict::Yes => "it passes without that",
            _ => "it is stopped without that",
        };
        (
            Verdict::Unknown,
            Some(format!("the lab lacks {note}; {without}{found}")),
        )
    }

    /// The omissions that can change what became of the packet; none where no one can.
    #[must_use]
    pub(crate) fn note(&self, seen: &KnownPacket) -> Option<String> {
        let packet = self.packet(seen);
        let passage = Passage {
            packet: &packet,
            course: seen.course,
            outcome: seen.outcome,
            apart: &seen.apart,
        };
        let met = OnceCell::new();
        let met = || met.get_or_init(|| self.met(seen)).clone();
        let can = |omission: &Omission| omission.concern.may_change(&passage, met);
        let mut found = self
            .warnings
            .iter()
            .filter(|w| w.omission.as_ref().is_some_and(can));
        let first = found.next()?;
        Some(match found.count() {
            0 => format!("{first}"),
            more => format!("{first} (and {more} more that may concern it)"),
        })
    }

    /// Which of the missing rules the packet can have met; none where that cannot be told.
    fn met(&self, seen: &KnownPacket) -> Option<Met> {
        let mut packet = seen.came.clone()?;
        let family = packet.family?;
        let reach = match family {
            Family::V4 => &self.reach[0],
            Family::V6 => &self.reach[1],
        };
        let missing = || {
            let omissions = self.warnings.iter().filter_map(|w| w.omission.as_ref());
            let rules = omissions.flat_map(|omission| omission.concern.rules());
            rules
                .map(|(at, rule)| (at.clone(), rule.text.clone()))
                .collect::<BTreeMap<FactsPlace, String>>()
        };
        let reach = reach.get_or_init(|| Reach::of(&self.rulesets, &missing(), family));
        let reach = reach.as_ref()?;
        let planned = seen
            .planned
            .as_ref()
            .filter(|out| out.as_str() != "lo" && !reach.may_lead_elsewhere());
        if let Some(out) = planned
            && packet.devices(Field::Outgoing).is_none()
        {
            packet = packet.with_device(Field::Outgoing, out.as_str());
        }
        reach.met(&packet, &self.courses(seen), seen.outcome)
    }

    /// The courses that it can have been on. What was stopped was where its headers led it, or where a rule
    /// did that gave it another destination.
    fn courses(&self, seen: &KnownPacket) -> Vec<Endpoints> {
        let to_router = seen.planned.as_ref().map(|out| out.as_str() == "lo");
        match (seen.course, to_router) {
            (Some(course), _) => vec![course],
            (None, _) if seen.outcome == PacketOutcome::Passed => Vec::new(),
            (None, Some(false)) if !self.may_redirect(seen) => vec![Endpoints::Forwarded],
            (None, Some(true)) if !self.may_redirect(seen) => vec![Endpoints::Delivered],
            (None, _) => vec![Endpoints::Forwarded, Endpoints::Delivered],
        }
    }

    fn may_redirect(&self, seen: &KnownPacket) -> bool {
        let redirects = |rule: &Rule| rule.concerns(&seen.packet);
        self.redirecting.iter().any(redirects)
    }

    /// What is known of the packet: where a rule may have given it another destination that is not
    /// known, no destination is.
    fn packet(&self, seen: &KnownPacket) -> Packet {
        let mut packet = seen.packet.clone();
        if !seen.behind_nat && self.may_redirect(seen) {
            packet.forget(Field::Destination);
            packet.forget(Field::DestinationPort);
            packet.forget(Field::Outgoing);
        }
        packet
    }
}

fn concerns_router(warning: &Warning, router: &RouterName) -> bool {
    warning.router.as_ref().is_none_or(|own| own == router)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lab::{
            omission::{Concern, Extent, Hooks, OmissionKind, RuleExtent},
            topology::Origin,
        },
        netlink::object::Family,
    };

    fn omitted(rule: &str, redirecting: &[&str], trust: bool) -> Omitted {
        let router = RouterName::new("r").unwrap();
        let origin = Origin {
            file: "r_facts.txt".to_owned(),
            line: 45,
        };
        let extent = RuleExtent::new(rule, true, true, None, Hooks::ALL);
        let omission = Omission {
            kind: OmissionKind::Rule,
            concern: Concern(vec![Extent::Rule(extent)]),
        };
        let warning = Warning::omission(origin, &router, "not loaded", omission);
        Omitted {
            warnings: vec![warning],
            redirecting: redirecting.iter().map(|text| Rule::of(text)).collect(),
            trust,
            ..Omitted::default()
        }
    }

    fn seen(port: u16) -> KnownPacket {
        KnownPacket {
            packet: Packet::of(Family::V4)
                .with(Field::Protocol, 6_u8)
                .with(Field::DestinationPort, port),
            course: None,
            outcome: PacketOutcome::Passed,
            behind_nat: false,
            came: None,
            planned: None,
            apart: Vec::new(),
        }
    }

    const GEOIP: &str = "-A FORWARD -p tcp --dport 443 -m geoip --source-country RU -j DROP";

    #[test]
    fn what_an_omission_can_change_is_unknown_and_names_it() {
        let (verdict, why) = omitted(GEOIP, &[], false).weigh(Verdict::Yes, None, &seen(443));
        assert_eq!(verdict, Verdict::Unknown);
        let why = why.unwrap();
        assert!(why.contains("r_facts.txt:45"), "{why}");
        let (verdict, why) = omitted(GEOIP, &[], false).weigh(Verdict::Yes, None, &seen(80));
        assert_eq!((verdict, why), (Verdict::Yes, None));
    }

    #[test]
    fn who_trusts_the_facts_gets_the_verdict_with_the_note() {
        let (verdict, why) = omitted(GEOIP, &[], true).weigh(Verdict::Yes, None, &seen(443));
        assert_eq!(verdict, Verdict::Yes);
        assert!(why.unwrap().contains("r_facts.txt:45"));
    }

    #[test]
    fn a_destination_that_may_have_been_rewritten_is_not_known() {
        let nat = "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.2.0.8:443";
        let with_nat = omitted(GEOIP, &[nat], false);
        assert_eq!(
            with_nat.weigh(Verdict::Yes, None, &seen(80)).0,
            Verdict::Unknown
        );
        assert_eq!(
            with_nat.weigh(Verdict::Yes, None, &seen(81)).0,
            Verdict::Yes
        );
        let behind = KnownPacket {
            behind_nat: true,
            ..seen(80)
        };
        assert_eq!(with_nat.weigh(Verdict::Yes, None, &behind).0, Verdict::Yes);
    }
}
