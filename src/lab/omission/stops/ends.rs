//! How a packet of which not all is known may leave the chains that it comes to.
//!
//! [`Filters::stop`] passes over what cannot be told. Here each way is followed that the packet may
//! take: it is surely stopped where all of them end so, and may be where one does.

use super::{Base, Chain, DEEPEST, Filters, Layer, StopQuery, Table, Written, answer, names};
use crate::firewall::rule::{Does, Packet, RuleVerdict, Truth};

/// What stops a packet, or may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PossibleStop {
    /// Whether no way leads past it.
    pub sure: bool,
    /// The rule or policy.
    pub text: String,
}

/// How a packet may leave a rule or a chain.
#[derive(Debug, Default)]
struct ChainEnds {
    /// Stopped, by this.
    stop: Option<String>,
    /// Translated, by this.
    translated: Option<String>,
    /// Let through the base chain.
    accepted: bool,
    /// Back to where the chain was called from, or to the policy.
    returned: bool,
    /// On to the next rule.
    next: bool,
}

impl ChainEnds {
    fn add(&mut self, other: Self) {
        self.stop = self.stop.take().or(other.stop);
        self.translated = self.translated.take().or(other.translated);
        self.accepted |= other.accepted;
        self.returned |= other.returned;
        self.next |= other.next;
    }

    fn next() -> Self {
        Self {
            next: true,
            ..Self::default()
        }
    }
}

impl Filters {
    /// What stops the packet at `hook` or may stop it; what does so surely, where something does.
    #[must_use]
    pub(crate) fn possible_stop(&self, hook: &str, asked: StopQuery<'_>) -> Option<PossibleStop> {
        let mut found: Option<PossibleStop> = None;
        for table in self.0.iter().filter(|table| table.sees(asked)) {
            for chain in table.chains.values() {
                let stop = table.possible_stop(chain, hook, asked);
                let sure = stop.as_ref().is_some_and(|stop| stop.sure);
                if sure || found.is_none() {
                    found = stop;
                }
                if sure {
                    return found;
                }
            }
        }
        found
    }

    /// What may stop ARP in a table of that family.
    #[must_use]
    pub(crate) fn possible_stop_of_arp(&self) -> Option<PossibleStop> {
        let tables = self.0.iter().filter(|table| table.layer == Layer::Arp);
        let mut chains = tables.flat_map(|table| table.chains.values().map(move |c| (table, c)));
        chains.find_map(|(table, chain)| {
            let base = chain.base.as_ref()?;
            table.stop_by(base, table.ends(chain, StopQuery::ArpTable, 0))
        })
    }

    /// What gives the first packet of a connection another address or port at `hook`, or may.
    #[must_use]
    pub(crate) fn translation(&self, hook: &str, packet: &Packet) -> Option<PossibleStop> {
        let asked = StopQuery::Packet(packet);
        let tables = self.0.iter().filter(|table| table.sees(asked));
        let mut chains = tables.flat_map(|table| table.chains.values().map(move |c| (table, c)));
        chains.find_map(|(table, chain)| {
            let base = chain.base.as_ref()?;
            let ends = (base.nat && base.hook == hook).then(|| table.ends(chain, asked, 0))?;
            Some(PossibleStop {
                sure: !(ends.accepted || ends.returned || ends.stop.is_some()),
                text: ends.translated?,
            })
        })
    }
}

impl Table {
    /// Whether the packet comes to chains of this table.
    pub(super) fn sees(&self, asked: StopQuery<'_>) -> bool {
        match asked {
            StopQuery::Packet(packet) | StopQuery::OnPorts(packet, ..) => {
                self.layer == Layer::Ip && self.family.is_none_or(|own| packet.family == Some(own))
            }
            StopQuery::Bridged(_) => self.layer == Layer::Bridge,
            StopQuery::OnDevice(..) | StopQuery::Arp(_) => self.layer == Layer::Device,
            StopQuery::ArpTable => self.layer == Layer::Arp,
        }
    }

    fn possible_stop(
        &self,
        chain: &Chain,
        hook: &str,
        asked: StopQuery<'_>,
    ) -> Option<PossibleStop> {
        let base = chain.base.as_ref().filter(|b| b.hook == hook && !b.nat)?;
        if let StopQuery::OnDevice(_, device) | StopQuery::Arp(device) = asked
            && !names(&base.devices, device)
        {
            return None;
        }
        self.stop_by(base, self.ends(chain, asked, 0))
    }

    fn stop_by(&self, base: &Base, ends: ChainEnds) -> Option<PossibleStop> {
        let by_policy = ends.returned && base.drops.is_some();
        let passes = ends.accepted || (ends.returned && base.drops.is_none());
        let policy = by_policy.then(|| format!("the policy of {}", base.hook));
        let text = ends.stop.or(policy)?;
        Some(PossibleStop {
            sure: !passes,
            text,
        })
    }

    fn ends(&self, chain: &Chain, asked: StopQuery<'_>, depth: usize) -> ChainEnds {
        let mut ends = ChainEnds::default();
        for written in &chain.rules {
            let matches = answer(written.rule(&self.sets), &written.text, asked);
            if matches == Truth::No {
                continue;
            }
            let here = self.ends_at(written, asked, depth);
            let goes_on = here.next || matches != Truth::Yes;
            ends.add(here);
            if !goes_on {
                return ends;
            }
        }
        ends.returned = true;
        ends
    }

    /// How a packet may leave a rule that it matches.
    fn ends_at(&self, written: &Written, asked: StopQuery<'_>, depth: usize) -> ChainEnds {
        for does in &written.rule(&self.sets).does {
            match does {
                Does::Decide(verdict) => return self.led(verdict, written, asked, depth),
                Does::Translate(_) => {
                    return ChainEnds {
                        translated: Some(format!("`{}`", written.text.trim())),
                        ..ChainEnds::default()
                    };
                }
                Does::Choose(choices) => {
                    let mut ends = ChainEnds::default();
                    for (test, verdict) in choices {
                        let fits = match (test, asked.packet()) {
                            (Some(test), Some(packet)) => test.answer(packet),
                            _ => Truth::CannotTell,
                        };
                        if fits != Truth::No {
                            ends.add(self.led(verdict, written, asked, depth));
                        }
                        if fits == Truth::Yes {
                            return ends;
                        }
                    }
                    ends.next = true;
                    return ends;
                }
                _ => {}
            }
        }
        ChainEnds::next()
    }

    /// Where a verdict leads.
    fn led(
        &self,
        verdict: &RuleVerdict,
        written: &Written,
        asked: StopQuery<'_>,
        depth: usize,
    ) -> ChainEnds {
        let stopped = || Some(format!("`{}`", written.text.trim()));
        match verdict {
            RuleVerdict::Drop | RuleVerdict::Reject(_) => ChainEnds {
                stop: stopped(),
                ..ChainEnds::default()
            },
            RuleVerdict::Accept => ChainEnds {
                accepted: true,
                ..ChainEnds::default()
            },
            RuleVerdict::Return => ChainEnds {
                returned: true,
                ..ChainEnds::default()
            },
            RuleVerdict::Jump(name) | RuleVerdict::Goto(name) => {
                let Some(called) = self.chains.get(name).filter(|_| depth < DEEPEST) else {
                    // A target that nobody here knows may do anything.
                    return ChainEnds {
                        stop: stopped(),
                        ..ChainEnds::next()
                    };
                };
                let ends = self.ends(called, asked, depth + 1);
                let comes_back = matches!(verdict, RuleVerdict::Jump(_));
                ChainEnds {
                    next: ends.returned && comes_back,
                    returned: ends.returned && !comes_back,
                    ..ends
                }
            }
            // What becomes of it elsewhere is not known.
            _ => ChainEnds {
                stop: stopped(),
                accepted: true,
                ..ChainEnds::next()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        firewall::rule::{Field, Packet, TrackingState},
        lab::topology::{Ruleset, RulesetKind},
        netlink::object::Family,
    };

    fn asked(kind: RulesetKind, text: &str) -> Option<(bool, String)> {
        let filters = Filters::of(&[Ruleset::for_test(kind, text)]);
        let packet = Packet::of(Family::V4)
            .with(Field::Protocol, 6u32)
            .with(Field::SourcePort, 80u32)
            .with_state(TrackingState::Invalid)
            .with_device(Field::Outgoing, "eth1");
        let stop = filters.possible_stop("forward", StopQuery::Packet(&packet))?;
        Some((stop.sure, stop.text))
    }

    #[test]
    fn what_may_stop_a_packet_is_told_from_what_surely_does_in_iptables() {
        let table = |policy: &str, rules: &str| {
            format!("*filter\n:FORWARD {policy} [0:0]\n:c - [0:0]\n{rules}\nCOMMIT\n")
        };
        for (policy, rules, sure) in [
            (
                "ACCEPT",
                "-A FORWARD -p tcp -m tcp --sport 80 -j DROP",
                Some(true),
            ),
            (
                "ACCEPT",
                "-A FORWARD -p tcp -m tcp --sport 81 -j DROP",
                None,
            ),
            (
                "ACCEPT",
                "-A FORWARD -o eth1 -m conntrack --ctstate INVALID -j DROP",
                Some(true),
            ),
            (
                "ACCEPT",
                "-A FORWARD -o eth1 -m conntrack --ctstate NEW -j DROP",
                None,
            ),
            ("ACCEPT", "-A FORWARD -d 10.0.0.0/8 -j DROP", Some(false)),
            ("DROP", "-A FORWARD -d 10.0.0.0/8 -j ACCEPT", Some(false)),
            ("DROP", "-A FORWARD -o eth1 -j ACCEPT", None),
            ("DROP", "-A FORWARD -o eth2 -j ACCEPT", Some(true)),
            (
                "ACCEPT",
                "-A FORWARD -o eth1 -j c\n-A c -p udp -j RETURN\n-A c -j DROP",
                Some(true),
            ),
            (
                "ACCEPT",
                "-A FORWARD -o eth1 -j c\n-A c -p tcp -j RETURN\n-A c -j DROP",
                None,
            ),
            (
                "DROP",
                "-A FORWARD -g c\n-A FORWARD -j ACCEPT\n-A c -p tcp -j RETURN",
                Some(true),
            ),
            (
                "ACCEPT",
                "-A FORWARD -d 10.0.0.0/8 -j c\n-A c -j DROP",
                Some(false),
            ),
        ] {
            let got = asked(RulesetKind::Iptables, &table(policy, rules));
            assert_eq!(got.map(|stop| stop.0), sure, "{policy} {rules}");
        }
    }

    #[test]
    fn what_may_stop_a_packet_is_told_from_what_surely_does_in_nft() {
        let table = |policy: &str, rule: &str| {
            format!(
                "table inet f {{\n\tchain c {{\n\t\ttype filter hook forward priority filter; \
                 policy {policy};\n\t\t{rule}\n\t}}\n}}\n"
            )
        };
        for (policy, rule, sure) in [
            ("accept", "tcp sport 80 drop", Some(true)),
            ("accept", "tcp sport 81 drop", None),
            (
                "accept",
                "ct state vmap { established : accept, invalid : drop }",
                Some(true),
            ),
            (
                "drop",
                "ct state vmap { established : accept, new : drop }",
                Some(true),
            ),
            (
                "drop",
                "ct state vmap { invalid : accept, new : drop }",
                None,
            ),
            ("accept", "ip daddr 10.0.0.0/8 drop", Some(false)),
            ("accept", "ip daddr @blocked drop", Some(false)),
            ("accept", "ip6 daddr 2001:db8::/32 drop", None),
        ] {
            let got = asked(RulesetKind::Nft, &table(policy, rule));
            assert_eq!(got.map(|stop| stop.0), sure, "{policy} {rule}");
        }
    }
}
