//! A question is asked in rounds: what is planned is measured, the walk says what else must be asked,
//! and so on until it is through.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    QuickClosing, QuickError, back,
    branch::{self, Branch, By},
    bridges,
    course::{Course, Translators},
    digest,
    inquiry::{Inquiry, Prepared, Sends},
    lots,
    plan::Plan,
    ports,
    tables::Tables,
    visit::{Sender, Visit, VisitResult},
    visited::Visited,
    walk::{Walk, WalkNeeds, WayEnd},
};
use crate::{
    firewall::taps::{Departed, ProbeWays},
    lab::{LabState, sockets::RouterSockets, trace::Entry},
    model::RouterName,
    run::{
        packet::Probe,
        probe::WireSocket,
        report::{EndKind, Verdict},
        resolve::ResolveError,
        unjoined::{ReachedLink, unjoined},
        unseen_entries::UnseenEntry,
    },
};

/// More rounds than a packet's TTL allows legs are not needed.
const MAX_ROUNDS: usize = 64;

/// What came of measuring.
pub(super) enum InquiryOutcome {
    /// Everything is known.
    Through(Through),
    /// The way leads to routers that are not locked.
    Larger(BTreeSet<RouterName>),
}

/// All that was measured, and where it leads.
pub(super) struct Through {
    pub(super) visited: Vec<Visited>,
    /// The ways of each probe, by its index.
    pub(super) ways: Vec<Vec<WayEnd>>,
    pub(super) measured: Vec<(RouterName, VisitResult)>,
    pub(super) wire: Option<WireSocket>,
    /// Those into copies of routers.
    pub(super) wires: Vec<WireSocket>,
    /// Named routers that no packet was planned to come to.
    pub(super) aside: Vec<Entry>,
}

impl Through {
    /// Nothing is measured yet.
    fn new(wire: Option<WireSocket>, aside: Vec<Entry>) -> Self {
        Self {
            visited: Vec::new(),
            ways: Vec::new(),
            measured: Vec::new(),
            wire,
            wires: Vec::new(),
            aside,
        }
    }
}

impl Inquiry<'_> {
    /// Measures what is planned, walks, and asks again where something else comes than was planned.
    pub(super) fn ask(
        &self,
        plan: &Plan,
        prepared: Prepared,
        sockets: &mut RouterSockets,
        go_on: &dyn Fn() -> Result<(), QuickError>,
    ) -> Result<InquiryOutcome, QuickError> {
        let mut tables = Tables::new(self.wiring, sockets, self.family());
        let mut through = Through::new(prepared.wire, prepared.aside);
        let mut visits = prepared.visits;
        let mut maybe = prepared.maybe;
        for round in 0.. {
            go_on()?;
            self.measure(&mut tables, plan, &visits, &mut through)?;
            let mut needs = WalkNeeds {
                packets: Vec::new(),
                closed: round >= MAX_ROUNDS,
            };
            let ways = self.walk(plan, &prepared.starts, &through.visited, &mut needs);
            let mut packets = needs.packets;
            if packets.is_empty() {
                // Routers that nothing came to are measured with what would come without NAT.
                packets = unmet(std::mem::take(&mut maybe), &through.visited);
                if packets.is_empty() {
                    through.ways = ways;
                    break;
                }
            } else {
                let routers = packets.iter().map(|(at, _)| at.router.clone());
                let strange: BTreeSet<RouterName> = routers
                    .filter(|router| !prepared.routers.contains(router))
                    .collect();
                if !strange.is_empty() {
                    through.measured.into_iter().for_each(|(_, a)| a.close());
                    return Ok(InquiryOutcome::Larger(strange));
                }
                if !self.many {
                    let walk = Walk::new(&through.visited, self.wiring, self.named());
                    self.add_ahead(&mut tables, &mut packets, &walk, &prepared.routers)?;
                }
            }
            visits = self.again(tables.sockets, packets, &mut through.wire)?;
        }
        self.weigh(plan, &prepared.unseen, sockets, &mut through);
        Ok(InquiryOutcome::Through(through))
    }

    /// Makes these visits, and digests what they answered.
    fn measure(
        &self,
        tables: &mut Tables<'_>,
        plan: &Plan,
        visits: &[Visit],
        through: &mut Through,
    ) -> Result<(), QuickError> {
        let answers = plan.measure_all(visits, self.dir)?;
        for (visit, answer) in visits.iter().zip(answers) {
            let mut visited = self.digest_lots(tables, visit, &answer)?;
            through.measured.push((visit.at.router.clone(), answer));
            let branched = self.branches(tables, plan, visit, through)?;
            visited.iter_mut().for_each(|v| v.leave_out(&branched));
            through.visited.extend(visited);
        }
        Ok(())
    }

    /// Adds the ways by routers without facts, what the answers' ways make of the others, and the routers that
    /// they pass at layer 2.
    fn weigh(
        &self,
        plan: &Plan,
        unseen: &[Vec<UnseenEntry>],
        sockets: &mut RouterSockets,
        through: &mut Through,
    ) {
        for (probe, ways) in plan.probes.iter().zip(&mut through.ways) {
            let of_pair = unseen.get(plan.pair_of(probe.index));
            ways.extend(of_pair.into_iter().flatten().map(by_unseen));
            doubt_unjoined(self.lab, ways);
        }
        if self.named().is_none() {
            back::weigh(
                (self.lab, self.wiring),
                sockets,
                &through.visited,
                &mut through.ways,
            );
        }
        if !self.bridges.is_empty() {
            for (probe, ways) in plan.probes.iter().zip(&mut through.ways) {
                for way in ways {
                    bridges::cross(self.bridges, probe.headers.protocol, self.terms, way);
                }
            }
        }
    }

    /// Follows every probe from where it starts; `needs` is what must be asked to follow it further.
    fn walk(
        &self,
        plan: &Plan,
        starts: &[Vec<Entry>],
        visited: &[Visited],
        needs: &mut WalkNeeds,
    ) -> Vec<Vec<WayEnd>> {
        let walk = Walk::new(visited, self.wiring, self.named());
        let ways = plan.probes.iter().map(|probe| {
            let mut ways = Vec::new();
            for entry in starts.get(plan.pair_of(probe.index)).into_iter().flatten() {
                walk.follow(entry, *probe, needs, &mut ways);
            }
            ways
        });
        ways.collect()
    }

    /// Measures the probes that a router may send by several interfaces, each next hop by itself.
    /// Returns their indexes.
    fn branches(
        &self,
        tables: &mut Tables<'_>,
        plan: &Plan,
        visit: &Visit,
        through: &mut Through,
    ) -> Result<HashSet<u32>, QuickError> {
        let mut indexes = HashSet::new();
        for fork in branch::forks(tables, &visit.at, &visit.probes)? {
            for cut in fork.cut(visit, &plan.tools)? {
                let visited = match &cut.visit {
                    Err(why) => Visited {
                        branch: Some(Arc::clone(&cut.branch)),
                        ..digest::unmeasured(&visit.at, &fork.probes, why)
                    },
                    Ok(copied) => {
                        let answer = plan.measure(copied, self.dir)?;
                        let ways = answer.ways();
                        let branch = Some(&cut.branch);
                        let mut visited = self.digest(tables, copied, &answer, ways, branch)?;
                        visited.doubt_lots(answer.targets());
                        through.measured.push((visit.at.router.clone(), answer));
                        visited
                    }
                };
                through.visited.push(visited);
                through.wires.extend(cut.wire);
            }
            indexes.extend(fork.probes.iter().map(|probe| probe.index));
        }
        Ok(indexes)
    }

    /// What became of the probes of a visit; of those that chance sends to several targets, of one
    /// after the other.
    fn digest_lots(
        &self,
        tables: &mut Tables<'_>,
        visit: &Visit,
        answer: &VisitResult,
    ) -> Result<Vec<Visited>, QuickError> {
        let mut plain = self.digest(tables, visit, answer, answer.ways(), None)?;
        let drawn = answer.targets();
        let mut all = Vec::new();
        for number in 0.. {
            let Some(ways) = lots::nth(drawn, number) else {
                break;
            };
            let branch = Arc::new(Branch {
                router: visit.at.router.clone(),
                by: By::Lot(number),
            });
            let mut one = self.digest(tables, visit, answer, Some(&ways), Some(&branch))?;
            let none = |index: &u32| drawn.get(index).is_none_or(|left| left.len() <= number);
            let others = one.probes.iter().map(|probe| probe.index).filter(none);
            one.leave_out(&others.collect());
            all.push(one);
        }
        plain.leave_out(&drawn.keys().copied().collect());
        all.insert(0, plain);
        Ok(all)
    }

    fn digest(
        &self,
        tables: &mut Tables<'_>,
        visit: &Visit,
        answer: &VisitResult,
        ways: Option<&ProbeWays>,
        branch: Option<&Arc<Branch>>,
    ) -> Result<Visited, QuickError> {
        let measured = match answer {
            VisitResult::Unmeasured(why) => {
                return Ok(digest::unmeasured(&visit.at, &visit.probes, why));
            }
            VisitResult::Measured(measured) => measured,
        };
        let hidden = matches!(visit.from, Ok(Sender::Wire(_)));
        let state = self.lab.router(&visit.at.router);
        let by_set = state
            .as_ref()
            .is_ok_and(|router| router.asks_hardware_addresses);
        if hidden && (measured.nature.link || by_set) {
            let why = "its rules may look at the source's hardware address, which is not known \
                       behind the first router";
            return Ok(digest::unmeasured(&visit.at, &visit.probes, why));
        }
        let place = (&visit.at, visit.probes.as_slice());
        let walks = self.terms.from.is_none() && self.named().is_none();
        let mut visited = digest::digest(
            (self.lab, self.bridges),
            (self.terms.trust_facts, walks),
            tables,
            place,
            (measured, ways),
            branch,
        )?;
        if self.terms.size.is_some() {
            let interfaces = state.as_ref().map_or(&[][..], |router| &router.interfaces);
            ports::judge_lengths(tables, interfaces, &mut visited)?;
        }
        if matches!(visit.from, Ok(Sender::Itself(_))) {
            ports::doubt_own(tables, &mut visited)?;
        } else {
            let any_port = self.terms.source_port.is_none();
            ports::doubt_open(tables, &mut visited, any_port)?;
            let by_set = state.map_or(&[][..], |router| &router.asking_port_sets);
            ports::doubt_sets(by_set, &mut visited, any_port);
        }
        Ok(visited)
    }

    /// Adds to the packets that a walk needs those that will come to further routers if nothing changes
    /// them on their way there, so that all are measured side by side. Of the locked routers alone.
    fn add_ahead(
        &self,
        tables: &mut Tables<'_>,
        packets: &mut Vec<(Entry, Probe)>,
        walk: &Walk<'_>,
        locked: &BTreeSet<RouterName>,
    ) -> Result<(), ResolveError> {
        let named = self.named();
        let allowed = |router: &RouterName| {
            locked.contains(router) && named.is_none_or(|names| names.contains(router))
        };
        let mut places: BTreeMap<Entry, Vec<Probe>> = BTreeMap::new();
        for (at, probe) in packets.iter() {
            places.entry(at.clone()).or_default().push(*probe);
        }
        let here: BTreeSet<Entry> = places.keys().cloned().collect();
        let translators = &mut Translators::new(self.lab);
        let course = Course::plan(tables, places.into_iter().collect(), &allowed, translators)?;
        for stop in course.stops.into_iter().filter(|s| !here.contains(&s.at)) {
            let mut coming = stop.probes;
            coming.retain(|probe| !walk.is_measured(&stop.at, probe));
            packets.extend(coming.into_iter().map(|probe| (stop.at.clone(), probe)));
        }
        Ok(())
    }

    /// The visits that a walk needs. Packets with one tag come to a place in one visit each.
    fn again(
        &self,
        sockets: &mut RouterSockets,
        packets: Vec<(Entry, Probe)>,
        wire: &mut Option<WireSocket>,
    ) -> Result<Vec<Visit>, QuickError> {
        let mut places: BTreeMap<Entry, Vec<BTreeMap<u32, Probe>>> = BTreeMap::new();
        for (at, probe) in packets {
            let visits = places.entry(at).or_default();
            let same = |known: &Probe| known.headers == probe.headers;
            if visits.iter().any(|v| v.get(&probe.index).is_some_and(same)) {
                continue;
            }
            match visits.iter_mut().find(|v| !v.contains_key(&probe.index)) {
                Some(visit) => _ = visit.insert(probe.index, probe),
                None => visits.push([(probe.index, probe)].into()),
            }
        }
        let visits = places
            .into_iter()
            .flat_map(|(at, all)| all.into_iter().map(move |probes| (at.clone(), probes)));
        let visit = |(at, probes): (Entry, BTreeMap<u32, Probe>)| {
            let probes = probes.into_values().collect();
            self.visit(sockets, (at, probes), Sends::Hidden, None, wire)
        };
        visits.map(visit).collect()
    }
}

/// Of `packets` those whose tag came to no visit of their router.
fn unmet(packets: Vec<(Entry, Probe)>, visited: &[Visited]) -> Vec<(Entry, Probe)> {
    let met = visited.iter().flat_map(|visit| {
        let tags = visit.probes.iter().map(|probe| probe.index);
        tags.map(|tag| (&visit.at.router, tag))
    });
    let met: HashSet<(&RouterName, u32)> = met.collect();
    let mut packets = packets;
    packets.retain(|(at, probe)| !met.contains(&(&at.router, probe.index)));
    packets
}

/// Leaves open what ways deliver to one address on segments that are not joined.
fn doubt_unjoined(lab: &LabState, ways: &mut [WayEnd]) {
    let links: Vec<ReachedLink<'_>> = ways.iter().filter_map(reached_link).collect();
    let Some(why) = unjoined(lab, &links) else {
        return;
    };
    let why: Arc<str> = why.into();
    for way in ways.iter_mut() {
        if reached_link(way).is_some() {
            (way.verdict, way.kind) = (Verdict::Unknown, EndKind::Disagree);
            way.reason = Some(Arc::clone(&why));
        }
    }
}

/// Where a way gets through to, if that is on a link of its last router.
fn reached_link(way: &WayEnd) -> Option<ReachedLink<'_>> {
    let delivered = way.verdict == Verdict::Yes && way.kind == EndKind::Delivered;
    let last = way.legs.last().filter(|_| delivered)?;
    Some(ReachedLink {
        router: &last.hop.router,
        interface: last.hop.iface_out.as_ref()?,
        destination: last.destination,
    })
}

/// The way by a router of which it is not known whether the packets enter there.
fn by_unseen(unseen: &UnseenEntry) -> WayEnd {
    let UnseenEntry {
        router,
        reason,
        kind,
    } = unseen;
    WayEnd {
        entry: Entry {
            router: router.clone(),
            iface_in: None,
        },
        verdict: Verdict::Unknown,
        kind: *kind,
        reason: Some(reason.as_str().into()),
        router: Some(router.clone()),
        legs: Vec::new(),
        branches: Vec::new(),
        steps: Vec::new(),
        crossed: Vec::new(),
    }
}

impl VisitResult {
    /// How probes left, where that was noted.
    fn ways(&self) -> Option<&ProbeWays> {
        match self {
            Self::Measured(measured) => measured.ways.as_ref(),
            Self::Unmeasured(_) => None,
        }
    }

    /// How copies left of probes that chance sends to several targets.
    fn targets(&self) -> &BTreeMap<u32, Vec<Departed>> {
        const NONE: &BTreeMap<u32, Vec<Departed>> = &BTreeMap::new();
        match self {
            Self::Measured(measured) => &measured.targets,
            Self::Unmeasured(_) => NONE,
        }
    }

    /// Closes what is left open of it.
    fn close(self) {
        if let Self::Measured(measured) = self {
            drop::<Vec<QuickClosing>>(measured.closing);
        }
    }
}
