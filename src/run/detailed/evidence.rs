//! From followed packets and counters to evidence in the words of the user's own tools.
//!
//! What the trace shows comes first; counters stand beside it. A counter that rose by more than
//! the trace explains is said, and never taken for a rule that decided.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use thiserror::Error;

use super::{
    head::{self, packet_head},
    journey::Sighting,
    judge::{PacketFate, Proxied},
    result::{Direction, RuleEvidence},
};
use crate::{
    firewall::{
        RulePlace,
        nft::{
            NftError, NftSocket,
            counters::{BaseChain, CounterSnapshot, Counts},
            trace::{PacketHead, StepKind, StoppedBy, TraceDecision, TraceStep, flow::FlowPacket},
        },
        place::HookPoint,
        rule::OpenPorts,
        ruletext::{RuleBook, RuleSource, RuleText},
    },
    model::IfName,
    netlink::NetlinkError,
    netns::{NetnsFd, tool::Tools},
    run::{
        chosen_port::PortRules,
        explain::{ExplainError, WatchedSets},
        outside::{Counters, Observer, OutsideReason, judge},
    },
};

/// Evidence could not be read.
#[derive(Debug, Error)]
pub enum EvidenceError {
    /// The ruleset could not be read.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The router could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// What varies in the router's rules could not be found out.
    #[error(transparent)]
    Explain(#[from] ExplainError),
}

/// Puts one router's evidence into words.
#[derive(Debug)]
pub(super) struct Clerk<'a> {
    pub(super) netns: &'a NetnsFd,
    pub(super) tools: &'a Tools,
    pub(super) book: RuleBook,
    /// For packets to which a router has given a source port.
    pub(super) book_of_translated: RuleBook,
    pub(super) sets: WatchedSets,
    chains: HashMap<RulePlace, BaseChain>,
    pub(super) observer: Observer<'a>,
    /// Whether the question leaves the source port open.
    pub(super) any_port: bool,
    /// The client's address as it sends.
    pub(super) client: IpAddr,
    /// Rules of the lab's routers that choose source ports.
    pub(super) choosing: PortRules,
    /// Rules of this router that ask sets for ports.
    pub(super) asking_port_sets: &'a [String],
    /// Interfaces behind which it makes no difference which of several next hops is taken.
    pub(super) settled: Vec<IfName>,
    notes: BTreeSet<String>,
}

/// Rules by what they did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct RulesByEffect {
    pub(super) allowing: Vec<RuleEvidence>,
    pub(super) blocking: Vec<RuleEvidence>,
    pub(super) touched: Vec<RuleEvidence>,
    pub(super) other_traffic: Vec<RuleEvidence>,
}

/// What a rule did with a role's worth of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Touched,
    Allowed,
    Blocked,
}

/// One rule or policy that the trace saw.
#[derive(Debug)]
struct Seen<'p> {
    step: &'p TraceStep,
    role: Role,
    packets: u64,
}

impl<'a> Clerk<'a> {
    pub(super) fn new(
        netns: &'a NetnsFd,
        tools: &'a Tools,
        chains: HashMap<RulePlace, BaseChain>,
        (client, any_port, any_sender): (IpAddr, bool, bool),
    ) -> Result<Self, EvidenceError> {
        Ok(Self {
            netns,
            tools,
            book: RuleBook::new()
                .of_open_ports(OpenPorts::as_sent(any_port))
                .of_any_sender(any_sender),
            book_of_translated: RuleBook::new().of_any_sender(any_sender),
            sets: WatchedSets::default(),
            chains,
            observer: Observer::new(netns)?,
            any_port,
            client,
            choosing: PortRules::default(),
            asking_port_sets: &[],
            settled: Vec::new(),
            notes: BTreeSet::new(),
        })
    }

    /// What the reader should know about the router's rules, and why texts are missing.
    pub(super) fn notes(&self) -> Vec<String> {
        let failures = self.book.failures().iter().cloned();
        failures.chain(self.notes.iter().cloned()).collect()
    }

    /// What became of the packets of one direction.
    pub(super) fn fate(
        &mut self,
        socket: &mut NftSocket,
        seen: &[Sighting],
        direction: Direction,
    ) -> Result<PacketFate, EvidenceError> {
        let mine = seen.iter().filter(|s| s.direction == Some(direction));
        let mine = mine.map(|s| &s.packet);
        let Some(first) = mine.clone().next() else {
            return Ok(PacketFate::NotSeen);
        };
        // The client's kernel says with an error of ICMP that no socket awaits an answer, as where that
        // comes from another port: no request is lost with it.
        let of_request = |packet: &&FlowPacket| {
            direction == Direction::Answer || packet.first.protocol() == first.first.protocol()
        };
        let mut mine = mine.filter(of_request);
        let ended = |p: &&FlowPacket| !matches!(p.stopped_by(), StoppedBy::Nothing(_));
        let Some(packet) = mine.find(ended) else {
            return Ok(PacketFate::Passed);
        };
        Ok(match packet.stopped_by() {
            StoppedBy::Rule(step) => self.stopped_by_rule(socket, step)?,
            StoppedBy::Policy(step) => PacketFate::Stopped {
                by: format!("the policy of {}", self.chain(socket, &step.place)?),
                rejects_with: None,
            },
            StoppedBy::Within(hook) => PacketFate::Within(hook.to_string()),
            StoppedBy::After(hook) => PacketFate::Lost(self.lost(packet, hook)?),
            StoppedBy::Nothing(_) => PacketFate::Passed,
        })
    }

    fn stopped_by_rule(
        &mut self,
        socket: &mut NftSocket,
        step: &TraceStep,
    ) -> Result<PacketFate, EvidenceError> {
        let rule = self.rule(socket, &step.place)?;
        if step.decision == TraceDecision::Drop
            && let Some(port) = rule.parsed().proxied_to()
        {
            return Ok(PacketFate::Proxied(Proxied {
                port,
                rule: rule.to_string(),
                lets_go: false,
            }));
        }
        let by = match step.decision {
            TraceDecision::Queue(queue) => format!("{rule}, which hands it to NFQUEUE {queue}"),
            TraceDecision::Stolen => format!("{rule}, which takes it away"),
            _ => rule.to_string(),
        };
        Ok(PacketFate::Stopped {
            by,
            rejects_with: rejected_with(&rule),
        })
    }

    /// Why a packet got lost between hooks.
    pub(super) fn lost(
        &mut self,
        packet: &FlowPacket,
        after: HookPoint,
    ) -> Result<OutsideReason, EvidenceError> {
        let Some(head) = packet_head(packet) else {
            return Ok(OutsideReason::Unknown {
                after,
                evidence: Vec::new(),
            });
        };
        let way = self.observer.ways(&[head])?.pop().flatten();
        let rose = Counters::default();
        let observed = self
            .observer
            .observe(Some(after), head, way.as_ref(), rose)?;
        Ok(judge(&observed))
    }

    /// A packet's headers as routing saw them.
    pub(super) fn routed_head(&self, packet: &FlowPacket) -> Option<PacketHead> {
        // Routing is over when POSTROUTING rewrites the source.
        Some(PacketHead {
            source: packet.first.source,
            source_port: head::ports(&packet.first).0,
            ..packet_head(packet)?
        })
    }

    /// The neighbour to which the router sends a packet that it let through; none when that cannot
    /// be told.
    pub(super) fn next_hop(&mut self, packet: &FlowPacket) -> Option<IpAddr> {
        let head = self.routed_head(packet)?;
        let way = self.observer.ways(&[head]).ok()?.pop().flatten()?;
        Some(way.via.unwrap_or(head.destination))
    }

    /// The rules that a test's packets met, with their counters.
    pub(super) fn rules(
        &mut self,
        socket: &mut NftSocket,
        packets: &[Sighting],
        (before, after): (&CounterSnapshot, &CounterSnapshot),
    ) -> Result<RulesByEffect, EvidenceError> {
        let mut rules = RulesByEffect::default();
        let seen = self.seen(packets);
        for seen in &seen {
            let place = &seen.step.place;
            let counts = (before.counts.get(place), after.counts.get(place));
            let words = self.worded(socket, seen.step)?;
            let evidence = evidence(place, words, seen.packets, counts);
            match seen.role {
                Role::Blocked => rules.blocking.push(evidence),
                Role::Allowed => rules.allowing.push(evidence),
                Role::Touched => rules.touched.push(evidence),
            }
        }
        let traced = packets.iter().flat_map(|p| &p.packet.steps);
        let traced = traced.map(|s| &s.place);
        let traced: HashSet<&RulePlace> = traced.collect();
        rules.other_traffic = self.others(socket, &traced, (before, after))?;
        Ok(rules)
    }

    /// Each rule and policy that the trace saw once, in the order in which packets met them.
    fn seen<'p>(&self, packets: &'p [Sighting]) -> Vec<Seen<'p>> {
        let mut seen: Vec<Seen<'p>> = Vec::new();
        let mut at: HashMap<&RulePlace, usize> = HashMap::new();
        for Sighting { packet, .. } in packets {
            for step in &packet.steps {
                let Some(role) = self.role(step) else {
                    continue;
                };
                match at.get(&step.place).and_then(|&i| seen.get_mut(i)) {
                    Some(known) => {
                        known.packets += 1;
                        known.role = known.role.max(role);
                    }
                    None => {
                        at.insert(&step.place, seen.len());
                        seen.push(Seen {
                            step,
                            role,
                            packets: 1,
                        });
                    }
                }
            }
        }
        seen
    }

    /// What a step did with its packet; none for a chain's end, and for a policy that lets
    /// through where nothing is filtered.
    fn role(&self, step: &TraceStep) -> Option<Role> {
        let ends = matches!(
            step.decision,
            TraceDecision::Drop | TraceDecision::Stolen | TraceDecision::Queue(_)
        );
        // Tables of iptables that are there to rewrite or mark let everything through.
        let decides = !["mangle", "raw", "security"].contains(&step.place.table.as_str());
        let filters = decides && matches!(step.hook, HookPoint::Forward | HookPoint::Input);
        match step.kind {
            StepKind::Return => None,
            _ if ends => Some(Role::Blocked),
            StepKind::Policy if filters && !self.is_nat(step) => Some(Role::Allowed),
            StepKind::Policy => None,
            StepKind::Rule if step.decision == TraceDecision::Accept && !self.is_nat(step) => {
                Some(Role::Allowed)
            }
            StepKind::Rule => Some(Role::Touched),
        }
    }

    /// Whether a step belongs to address translation, where accepting lets nothing through.
    fn is_nat(&self, step: &TraceStep) -> bool {
        let hook = hook_number(step.hook);
        let here = |(place, chain): &(&RulePlace, &BaseChain)| {
            place.family == step.place.family
                && place.table == step.place.table
                && Some(chain.hook) == hook
        };
        let mut here = self.chains.iter().filter(here).peekable();
        here.peek().is_some() && here.all(|(_, chain)| chain.kind == "nat")
    }

    /// Rules whose counters rose although the trace saw none of the test's packets there.
    fn others(
        &mut self,
        socket: &mut NftSocket,
        traced: &HashSet<&RulePlace>,
        (before, after): (&CounterSnapshot, &CounterSnapshot),
    ) -> Result<Vec<RuleEvidence>, EvidenceError> {
        let rose = |(place, now): (&RulePlace, &Counts)| {
            let then = before.counts.get(place).copied().unwrap_or_default();
            let rose = now.since(then).packets > 0;
            (rose && !traced.contains(place)).then(|| place.clone())
        };
        let mut places: Vec<RulePlace> = after.counts.iter().filter_map(rose).collect();
        places.sort_by(|a, b| {
            let key = |p: &RulePlace| (p.family, p.table.clone(), p.chain.clone(), p.handle);
            key(a).cmp(&key(b))
        });
        let mut others = Vec::with_capacity(places.len());
        for place in places {
            let counts = (before.counts.get(&place), after.counts.get(&place));
            let words = if place.handle == 0 {
                (None, "policy".to_owned(), "policy".to_owned())
            } else {
                let rule = self.rule(socket, &place)?;
                (rule.position, text_of(&rule), String::new())
            };
            others.push(evidence(&place, words, 0, counts));
        }
        Ok(others)
    }

    /// Position, text and action of a step.
    pub(super) fn worded(
        &mut self,
        socket: &mut NftSocket,
        step: &TraceStep,
    ) -> Result<(Option<usize>, String, String), EvidenceError> {
        let action = head::decision(&step.decision);
        Ok(match step.kind {
            StepKind::Return => (None, "end of chain".to_owned(), action),
            StepKind::Policy => (None, format!("policy {action}"), action),
            StepKind::Rule => {
                let rule = self.rule(socket, &step.place)?;
                let text = text_of(&rule);
                self.note_entry(&rule);
                let rejects = rejected_with(&rule).filter(|_| step.decision == TraceDecision::Drop);
                let action = rejects.map_or(action, |with| format!("reject with {with}"));
                (rule.position, text, action)
            }
        })
    }

    /// Notes a rule that remembers the packets that it matched.
    fn note_entry(&mut self, rule: &RuleText) {
        for where_to in rule.parsed().remembers() {
            let note = format!("the job's packets left an entry in {where_to}, by {rule}");
            self.notes.insert(note);
        }
    }

    fn rule(
        &mut self,
        socket: &mut NftSocket,
        place: &RulePlace,
    ) -> Result<RuleText, EvidenceError> {
        let mut source = RuleSource {
            netns: self.netns,
            tools: self.tools,
            socket,
        };
        Ok(self.book.chain(&mut source, place)?.rule(place.handle))
    }

    fn chain(
        &mut self,
        socket: &mut NftSocket,
        place: &RulePlace,
    ) -> Result<String, EvidenceError> {
        let mut source = RuleSource {
            netns: self.netns,
            tools: self.tools,
            socket,
        };
        Ok(self.book.chain(&mut source, place)?.to_string())
    }
}

/// What a rule answers with when it rejects.
fn rejected_with(rule: &RuleText) -> Option<String> {
    rule.parsed().rejected_with().map(str::to_owned)
}

/// The rule's text, or what stands for it where its tool did not print it.
fn text_of(rule: &RuleText) -> String {
    let unknown = || format!("(rule with handle {})", rule.place.handle);
    rule.text.clone().unwrap_or_else(unknown)
}

fn evidence(
    place: &RulePlace,
    (position, rule, action): (Option<usize>, String, String),
    traced: u64,
    (before, after): (Option<&Counts>, Option<&Counts>),
) -> RuleEvidence {
    // A rule that appeared meanwhile began at zero.
    let before = before.copied().or_else(|| after.map(|_| Counts::default()));
    let increase = after.zip(before).map(|(after, before)| after.since(before));
    let packets = increase.map(|i| i.packets);
    RuleEvidence {
        chain: place.chain.clone(),
        rule,
        table: place.table.clone(),
        family: place.family.to_string(),
        position,
        handle: (place.handle != 0).then_some(place.handle),
        action,
        packets_before: before.map(|c| c.packets),
        packets_after: after.map(|c| c.packets),
        packet_increase: packets,
        byte_increase: increase.map(|i| i.bytes),
        packets_traced: traced,
        unexplained: packets.map_or(0, |packets| packets.saturating_sub(traced)),
    }
}

/// `NF_INET_*` of a hook.
fn hook_number(hook: HookPoint) -> Option<u32> {
    Some(match hook {
        HookPoint::Ingress => return None,
        HookPoint::Prerouting => 0,
        HookPoint::Input => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
    })
}
