//! One router while a job holds it: its packets are followed, its rules counted, and what the job
//! leaves in it is taken out again.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
};

use nix::errno::Errno;

use super::{
    DetailedClosing, DetailedError, MeasureError, Setup,
    attempt::{AnswerHome, RouterWatch},
    chance,
    evidence::{Clerk, EvidenceError, RulesByEffect},
    exceptions::KnownExceptions,
    journey::Sighting,
    judge::{PacketFate, Proxied},
    legacy::{LegacyRouter, LegacySnapshot},
    noted::NotedConnections,
    result::{Direction, Nat, PacketWay, RuleEvidence},
    site::{Connector, Station, StretchRound},
    way,
};
use crate::{
    fault,
    firewall::{
        RulePlace,
        conntrack::Conntrack,
        nft::{
            Ownership,
            counters::{BaseChain, CounterSnapshot, base_chains, snapshot},
            trace::{
                TraceSockets,
                flow::{FlowEnd, FlowSpec, FlowTracer},
            },
            watch::{RulesetChanges, RulesetWatch},
        },
        rule::Rule,
    },
    model::{IfName, Protocol},
    netlink::Netlink,
    netlink::object::{Family, Mac, Neighbour},
    netns::NetnsId,
};

/// Said of a router whose kernel has no owner tables (before 5.12).
const TRACE_STAYS: &str = "traces of this kernel stay in the router if the job is killed, until the \
                           next job or `tsim reconcile` sweeps them";

/// `NUD_PERMANENT`, linux/neighbour.h: an entry that somebody set.
const NUD_PERMANENT: u16 = 0x80;
/// `NUD_INCOMPLETE` and `NUD_FAILED`: nobody has answered, and packets may wait for it.
const NUD_UNANSWERED: u16 = 0x01 | 0x20;

/// A router that is watched.
pub(super) struct Post<'a> {
    setup: &'a Setup<'a>,
    pub(super) station: &'a Station,
    pub(super) clerk: Clerk<'a>,
    pub(super) watch: Option<RouterWatch>,
    /// Its addresses.
    pub(super) addresses: Vec<IpAddr>,
    conntrack: Option<Conntrack>,
    noted: Option<NotedConnections>,
    exceptions: Option<KnownExceptions>,
    rulesets: Option<RulesetWatch>,
    legacy: Option<LegacyRouter<'a>>,
    netlink: Netlink,
    neighbours: Vec<Neighbour>,
    family: Family,
    counters: CounterReading,
    pub(super) notes: Vec<String>,
    pub(super) closing: Vec<DetailedClosing>,
}

/// One reading of everything that counts.
#[derive(Debug, Default)]
pub(super) struct CounterReading {
    nft: CounterSnapshot,
    legacy: LegacySnapshot,
}

/// What one router's packets and counters say about a service.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) request: Option<PacketFate>,
    pub(super) answer: Option<PacketFate>,
    pub(super) rules: RulesByEffect,
    pub(super) trace: Vec<PacketWay>,
    pub(super) nat: Vec<Nat>,
    /// What may end otherwise another time, in words.
    pub(super) doubt: Option<String>,
    /// The rule that hands the request to a program which the lab has not.
    pub(super) proxied: Option<Proxied>,
}

/// Why connections of the job stay.
fn stays(error: &io::Error) -> String {
    format!(
        "the job's connections stay in the router's connection tracking until they time out: \
         {error}"
    )
}

impl<'a> Post<'a> {
    /// Begins to watch a router of `site`, and notes that `client`, the source host's namespace, will have
    /// learned something of paths.
    pub(super) fn open(
        setup: &'a Setup<'a>,
        site: &StretchRound,
        station: &'a Station,
        client: Option<NetnsId>,
    ) -> Result<Self, DetailedError> {
        let netns = &*station.netns;
        let (trace, conntrack, rulesets) = netns.enter(|| {
            let rulesets = RulesetWatch::open_here();
            (
                TraceSockets::open_here(),
                Conntrack::open_here(),
                rulesets.ok(),
            )
        })?;
        let fail = setup.at(station);
        let mut notes: Vec<String> = conntrack.as_ref().err().map(stays).into_iter().collect();
        let mut trace = match trace {
            Ok(sockets) => Some(sockets),
            Err(error) => {
                notes.push(format!("packets cannot be followed: {error}"));
                None
            }
        };
        let chains = match &mut trace {
            Some(sockets) => base_chains(sockets.control()).map_err(&fail)?,
            None => HashMap::new(),
        };
        let clerk = clerk(setup, site, station, chains)?;
        let family = Family::of(site.from());
        let legacy = LegacyRouter::find(netns, setup.tools, site.from());
        let mut netlink = Netlink::open(netns).map_err(setup.at(station))?;
        let neighbours = netlink.neighbours(family).map_err(setup.at(station))?;
        let exceptions = KnownExceptions::of(setup, netns, family);
        let known = (conntrack.as_ref().ok(), exceptions.as_ref());
        let noted = NotedConnections::begin(setup, site, station, known, client)?;
        let mut post = Self {
            setup,
            station,
            addresses: clerk.observer.addresses(),
            clerk,
            watch: None,
            conntrack: conntrack.ok(),
            noted,
            exceptions,
            rulesets,
            legacy: legacy.map_err(setup.at(station))?,
            netlink,
            neighbours,
            family,
            counters: CounterReading::default(),
            notes,
            closing: Vec::new(),
        };
        if let Some(sockets) = trace {
            post.follow(sockets, site)?;
        }
        Ok(post)
    }

    /// Begins to follow packets of the site's hosts and of its other routers.
    fn follow(&mut self, sockets: TraceSockets, site: &StretchRound) -> Result<(), DetailedError> {
        let alone = site.stations.len() == 1;
        let spec = FlowSpec {
            run_id: self.setup.run_id.clone(),
            family: self.family,
            own_to: (alone && site.source.host().is_some()).then(|| site.from()),
            ends: self.ends(site),
        };
        fault::step("detailed.trace").map_err(DetailedError::system("follow packets"))?;
        let tracer = FlowTracer::start(sockets, &spec).map_err(self.setup.at(self.station))?;
        if tracer.ownership() == Ownership::Unowned {
            self.notes.push(TRACE_STAYS.to_owned());
        }
        let place = site.source.place();
        let interface = place.and_then(|(_, interface)| self.index(interface));
        let home = AnswerHome {
            source: site.from(),
            interface: interface.filter(|_| alone).unwrap_or(0),
        };
        let watch =
            RouterWatch::new(tracer, home).map_err(DetailedError::system("follow packets"))?;
        self.watch = Some(watch);
        Ok(())
    }

    /// Who sends packets of the job to this router.
    fn ends(&self, site: &StretchRound) -> Vec<FlowEnd> {
        let map = self.setup.map;
        let router = self.station.name();
        let mut ends = Vec::new();
        for interface in map.interfaces(router) {
            let Some(index) = self.index(&interface.name) else {
                continue;
            };
            let mut senders: Vec<Mac> = Vec::new();
            for host in [site.source.host(), site.destination.as_ref()]
                .into_iter()
                .flatten()
            {
                let segment = map.segment(&host.router.router, &host.interface);
                if segment.is_some() && segment == interface.segment {
                    senders.push(host.mac);
                }
            }
            let others = site.stations.iter().filter(|s| s.name() != router);
            for other in others.flat_map(|s| map.interfaces(s.name())) {
                if other.segment.is_some() && other.segment == interface.segment {
                    senders.extend(other.mac);
                }
            }
            ends.extend(senders.into_iter().map(|mac| FlowEnd {
                interface: interface.name.clone(),
                index,
                mac,
            }));
        }
        ends
    }

    /// The number of an interface.
    pub(super) fn index(&self, interface: &IfName) -> Option<u32> {
        self.clerk.observer.index(interface)
    }

    /// Reads all counters; returns what they were before.
    pub(super) fn count(&mut self) -> Result<CounterReading, DetailedError> {
        let fail = self.setup.at(self.station);
        let nft = match &mut self.watch {
            Some(watch) => snapshot(watch.tracer().control()).map_err(fail)?,
            None => CounterSnapshot::default(),
        };
        let legacy = match &self.legacy {
            Some(legacy) => legacy.read().map_err(self.setup.at(self.station))?,
            None => LegacySnapshot::default(),
        };
        Ok(std::mem::replace(
            &mut self.counters,
            CounterReading { nft, legacy },
        ))
    }

    /// Puts into words what the router did with packets.
    pub(super) fn examine(
        &mut self,
        seen: &[Sighting],
        before: &CounterReading,
        answered: bool,
    ) -> Result<Evidence, DetailedError> {
        let mut evidence = self
            .words(seen, before)
            .map_err(self.setup.at::<EvidenceError>(self.station))?;
        self.add_legacy(before, &mut evidence, answered);
        let lots = || chance::of_legacy_lots(self.counters.legacy.rules(), seen);
        evidence.doubt = evidence.doubt.take().or_else(lots);
        Ok(evidence)
    }

    fn words(
        &mut self,
        seen: &[Sighting],
        before: &CounterReading,
    ) -> Result<Evidence, EvidenceError> {
        let Some(watch) = &mut self.watch else {
            return Ok(Evidence::default());
        };
        let socket = watch.tracer().control();
        let clerk = &mut self.clerk;
        let counters = (&before.nft, &self.counters.nft);
        let request = clerk.fate(socket, seen, Direction::Request)?;
        let proxied = match &request {
            PacketFate::Proxied(proxied) => Some(proxied.clone()),
            _ => clerk.proxied(socket, seen)?,
        };
        Ok(Evidence {
            request: Some(request),
            answer: Some(clerk.fate(socket, seen, Direction::Answer)?),
            rules: clerk.rules(socket, seen, counters)?,
            trace: way::ways(clerk, socket, seen)?,
            nat: way::nat(seen),
            doubt: clerk.doubt(socket, seen)?,
            proxied,
        })
    }

    /// What iptables-legacy's counters add; a rule of it that stopped the request ends the search.
    fn add_legacy(&self, before: &CounterReading, evidence: &mut Evidence, answered: bool) {
        let legacy = self.counters.legacy.since(&before.legacy);
        let undecided = matches!(
            evidence.request,
            None | Some(PacketFate::NotSeen | PacketFate::Within(_) | PacketFate::Lost(_))
        );
        if let Some(rule) = legacy.blocking.first().filter(|_| undecided && !answered) {
            evidence.request = Some(stopped_by(rule));
            evidence.doubt = evidence.doubt.take().or_else(|| chance::of_legacy(rule));
        }
        evidence.rules.allowing.extend(legacy.allowing);
        evidence.rules.blocking.extend(legacy.blocking);
        evidence.rules.touched.extend(legacy.touched);
    }

    /// The neighbour to which the router sent a packet.
    pub(super) fn next_hop(
        &mut self,
        packet: &crate::firewall::nft::trace::flow::FlowPacket,
    ) -> Option<IpAddr> {
        self.clerk.next_hop(packet)
    }

    /// Leaves no connection tracking entry that a later service or job could be answered by.
    pub(super) fn forget(
        &mut self,
        protocol: Protocol,
        (client, to): (SocketAddr, SocketAddr),
        addresses: &HashSet<IpAddr>,
    ) {
        let Some(conntrack) = &mut self.conntrack else {
            return;
        };
        if let Err(error) = conntrack.forget(protocol, (client, to), addresses) {
            self.notes.push(stays(&error));
            self.conntrack = None;
        }
    }

    /// Forgets what packets made known of paths, as far as the kernel does.
    pub(super) fn forget_paths(&self) {
        if let Some(known) = &self.exceptions {
            _ = known.forget_new(&self.station.netns);
        }
    }

    /// Ends the trace, and leaves no connections behind that were not there.
    pub(super) fn stop(&mut self, addresses: &HashSet<IpAddr>) -> Result<(), DetailedError> {
        self.notes.extend(self.clerk.notes());
        let kept = self.exceptions.take();
        let kept = kept.map(|known| known.forget_new(&self.station.netns));
        self.notes.extend(kept.and_then(Result::err));
        if let Some(conntrack) = &mut self.conntrack {
            match conntrack.forget_new(addresses) {
                Ok(()) => self.strike(),
                Err(error) => self.notes.push(stays(&error)),
            }
        }
        let Some(watch) = self.watch.take() else {
            return Ok(());
        };
        let (sockets, stopped) = watch.into_tracer().stop();
        self.closing.push(DetailedClosing::Trace(sockets));
        stopped.map_err(self.setup.at(self.station))
    }

    /// What is not struck, the next one looks for in vain.
    fn strike(&mut self) {
        let struck = self.noted.take().map(|noted| noted.strike(self.setup));
        if let Some(Err(error)) = struck {
            tracing::warn!("{}", crate::model::WithCauses(&error));
        }
    }

    /// Whether the router asks for the hardware address of a neighbour and was not told.
    pub(super) fn asks_in_vain(&mut self, interface: &IfName, address: IpAddr) -> bool {
        let is_it = |n: &Neighbour| n.dev == *interface && n.address == address;
        let now = self.netlink.neighbours(self.family);
        now.is_ok_and(|all| {
            all.iter()
                .any(|n| is_it(n) && n.state & NUD_UNANSWERED != 0)
        })
    }

    /// Deletes neighbour entries that came meanwhile: all, or those of whom nobody answered. The
    /// latter must go first, and from all routers: for packets that wait for such an answer the
    /// router tells the sender, and makes neighbours known by that.
    pub(super) fn forget_neighbours(&mut self, unanswered: bool) {
        if let Err(error) = self.delete_neighbours(unanswered) {
            let note = "neighbours that the job's packets made known stay until they time out";
            self.notes.push(format!("{note}: {error}"));
        }
    }

    /// Entries that are set are leased, and are put back with their leases.
    fn delete_neighbours(&mut self, unanswered: bool) -> Result<(), MeasureError> {
        let now = self.netlink.neighbours(self.family)?;
        let known = |new: &Neighbour| {
            let same = |n: &Neighbour| (&n.dev, n.address) == (&new.dev, new.address);
            self.neighbours.iter().any(same)
        };
        let new: Vec<&Neighbour> = now
            .iter()
            .filter(|n| n.state & NUD_PERMANENT == 0 && !known(n))
            .filter(|n| !n.address.is_multicast())
            .filter(|n| !unanswered || n.state & NUD_UNANSWERED != 0)
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut batch = self.netlink.batch(self.station.router.to_string());
        for neighbour in new {
            batch.delete_neighbour(&neighbour.dev, neighbour.address);
            batch.tolerate(Errno::ENOENT);
        }
        batch.send().map_err(MeasureError::Undo)
    }

    /// What others changed in the ruleset while it was measured.
    pub(super) fn changes(&mut self) -> Result<RulesetChanges, DetailedError> {
        let Some(mut rulesets) = self.rulesets.take() else {
            return Ok(RulesetChanges::None);
        };
        let changes = rulesets.changes();
        self.closing.push(DetailedClosing::Watch(rulesets));
        changes.map_err(self.setup.at(self.station))
    }
}

/// Who puts into words what the router of `station` does.
fn clerk<'a>(
    setup: &'a Setup<'a>,
    site: &StretchRound,
    station: &'a Station,
    chains: HashMap<RulePlace, BaseChain>,
) -> Result<Clerk<'a>, DetailedError> {
    let any_port = setup.source_port.is_none();
    let any_sender = match &site.source {
        Connector::Router { router, .. } => *router == station.router,
        Connector::Host(_) => false,
    };
    let about = (site.from(), any_port, any_sender);
    let clerk = Clerk::new(&station.netns, setup.tools, chains, about);
    let mut clerk = clerk.map_err(setup.at(station))?;
    clerk.settled = site.settled_at(station.name());
    clerk.choosing = setup.map.choosing_ports();
    clerk.asking_port_sets = setup.map.asking_port_sets(station.name());
    Ok(clerk)
}

/// What became of a request that a rule of iptables-legacy stopped.
fn stopped_by(rule: &RuleEvidence) -> PacketFate {
    let position = rule
        .position
        .map_or("the policy".to_owned(), |p| format!("rule {p}"));
    PacketFate::Stopped {
        by: format!(
            "{position} of chain {} (table {}, iptables-legacy): {}",
            rule.chain, rule.table, rule.rule
        ),
        rejects_with: Rule::of(&rule.rule).rejected_with().map(str::to_owned),
    }
}
