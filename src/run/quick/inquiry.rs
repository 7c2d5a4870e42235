//! A question put to a lab: where its packets enter, what is planned, and what is asked again until
//! the walk is through.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use super::{
    Pair, QuickClosing, QuickError, Terms, back,
    branch::{self, Branch, By},
    course::{Course, PlannedProbes, Translators},
    digest, lots,
    plan::Plan,
    ports,
    tables::Tables,
    visit::{Sender, Visit, VisitResult},
    visited::{Ending, Visited},
    walk::{Walk, WalkNeeds, WayEnd},
};
use crate::{
    firewall::taps::{Departed, ProbeWays},
    lab::{
        Lab,
        hosts::{HostState, Hosts},
        sockets::RouterSockets,
        trace::{self, Entry, EntryName, MAX_ENTRIES, TraceError, TracePacket, Wiring},
    },
    model::{RouterId, RouterName},
    netlink::object::{Family, Mac},
    netns::{NetnsDir, visit},
    registry::HostSpec,
    run::{
        packet::{Headers, Probe},
        probe::WireSocket,
        report::{EndKind, Verdict},
        resolve::{self, ResolveError, RouterChoice},
    },
};

/// More rounds than a packet's TTL allows legs are not needed.
const MAX_ROUNDS: usize = 64;

/// A burst of questions in its lab.
pub(super) struct Inquiry<'a> {
    pub(super) terms: &'a Terms,
    /// All of one family.
    pub(super) pairs: &'a [Pair],
    pub(super) lab: &'a Lab,
    pub(super) dir: &'a NetnsDir,
    pub(super) wiring: &'a Wiring,
    /// Whether this is one of many bursts, and not a job by itself.
    pub(super) many: bool,
}

/// Where a pair's packets enter, and how all its services end where nothing has to be asked.
pub(super) type Begun = (Vec<Entry>, Option<Ending>);

/// What is known before anything is measured.
enum Beginning {
    /// All services end like this, and no router is asked.
    Settled(Ending),
    /// Their packets enter here.
    Enter(Vec<Entry>),
}

/// What is to be measured first, and what is needed for it.
pub(super) struct Prepared {
    /// Where the packets of each pair enter.
    starts: Vec<Vec<Entry>>,
    /// For each pair, routers without facts, which may be entries, too.
    unheard: Vec<Vec<RouterName>>,
    pub(super) visits: Vec<Visit>,
    pub(super) hosts: Vec<HostSpec>,
    /// Routers to be locked.
    pub(super) routers: BTreeSet<RouterName>,
    /// Named routers that no packet is planned to come to.
    pub(super) aside: Vec<Entry>,
    /// What comes behind routers that may translate it, if they do not.
    maybe: Vec<(Entry, Probe)>,
    wire: Option<WireSocket>,
}

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

impl<'a> Inquiry<'a> {
    fn named(&self) -> Option<&'a [RouterName]> {
        match &self.terms.routers {
            RouterChoice::Named(names) => Some(names),
            _ => None,
        }
    }

    fn family(&self) -> Family {
        let first = self.pairs.first();
        first.map_or(Family::V4, |pair| Family::of(pair.destination))
    }

    /// Where the packets of each pair enter, and how its services end where no router has to be asked.
    pub(super) fn begin_all(
        &self,
        sockets: &mut RouterSockets,
        there: &[HostState],
        plan: &Plan,
    ) -> Result<Vec<Begun>, ResolveError> {
        let pairs = self.pairs.iter().enumerate();
        let begun = pairs.map(|(number, pair)| {
            match self.begin(sockets, there, pair, plan.first_of(number)) {
                Ok(Beginning::Enter(entries)) => Ok((entries, None)),
                Ok(Beginning::Settled(ending)) => Ok((Vec::new(), Some(ending))),
                Err(ResolveError::Trace(
                    error @ (TraceError::NoStart { .. } | TraceError::NotFacing { .. }),
                )) if self.many => {
                    let (verdict, kind) = (Verdict::Unknown, EndKind::NotKnown);
                    let ending = Ending::new(verdict, kind, error.to_string());
                    Ok((Vec::new(), Some(ending)))
                }
                Err(error) => Err(error),
            }
        });
        begun.collect()
    }

    /// Where the packets of a pair enter.
    fn begin(
        &self,
        sockets: &mut RouterSockets,
        there: &[HostState],
        pair: &Pair,
        probe: Option<&Probe>,
    ) -> Result<Beginning, ResolveError> {
        let (source, destination) = (pair.source, pair.destination);
        if destination.is_multicast() {
            let reason = format!("{destination} is a multicast address: who gets it is not known");
            let end = Ending::new(Verdict::Unknown, EndKind::Multicast, reason);
            return Ok(Beginning::Settled(end));
        }
        let packet = packet(source, destination, probe);
        let entries = match &self.terms.routers {
            RouterChoice::Named(names) => self.through(names, sockets, &packet, there)?,
            RouterChoice::Traced(trace) if self.terms.from.is_none() => {
                let first = trace.hops.first();
                let entry = first.map(|hop| Entry {
                    router: hop.router.clone(),
                    iface_in: hop.iface_in.clone(),
                });
                match entry {
                    Some(entry) => vec![entry],
                    None => self.anywhere(sockets, &packet, there)?,
                }
            }
            _ => {
                if let Some(shared) = self.wiring.shared_link(source, destination)
                    && self.terms.from.is_none()
                {
                    let verdict = match shared.is_sure() {
                        true => Verdict::Yes,
                        false => Verdict::Unknown,
                    };
                    let text = shared.text(source, destination);
                    let end = Ending::new(verdict, EndKind::SameLink, text);
                    return Ok(Beginning::Settled(end));
                }
                self.anywhere(sockets, &packet, there)?
            }
        };
        if entries.len() > MAX_ENTRIES {
            let names: Vec<String> = entries.iter().map(ToString::to_string).collect();
            let reason = format!(
                "{source} may enter at {} places; name one with --from: {}",
                entries.len(),
                names.join(", ")
            );
            let end = Ending::new(Verdict::Unknown, EndKind::Disagree, reason);
            return Ok(Beginning::Settled(end));
        }
        Ok(Beginning::Enter(entries))
    }

    /// The entries that were named or where somebody put hosts, or else all that there may be.
    fn anywhere(
        &self,
        sockets: &mut RouterSockets,
        packet: &TracePacket,
        there: &[HostState],
    ) -> Result<Vec<Entry>, ResolveError> {
        let from = self.terms.from.as_ref();
        if from.is_none() {
            let placed = resolve::placed_by_hand(&self.terms.lab, packet.source, there)?;
            if !placed.is_empty() {
                return Ok(placed);
            }
        }
        Ok(trace::entries(self.wiring, sockets, packet, from)?)
    }

    /// The entries into the first of the named routers that packets come to.
    fn through(
        &self,
        names: &[RouterName],
        sockets: &mut RouterSockets,
        packet: &TracePacket,
        there: &[HostState],
    ) -> Result<Vec<Entry>, ResolveError> {
        for name in names {
            self.lab.router(name)?;
        }
        match self.anywhere(sockets, packet, there) {
            Ok(mut entries) => {
                entries.retain(|entry| names.contains(&entry.router));
                if !entries.is_empty() {
                    return Ok(entries);
                }
            }
            Err(ResolveError::Trace(TraceError::NoStart { .. })) => {}
            Err(error) => return Err(error),
        }
        match names.first() {
            Some(first) => self.facing(first, sockets, packet),
            None => Ok(Vec::new()),
        }
    }

    /// The entries of `router` that face the source; none where it has no way there.
    fn facing(
        &self,
        router: &RouterName,
        sockets: &mut RouterSockets,
        packet: &TracePacket,
    ) -> Result<Vec<Entry>, ResolveError> {
        let name = EntryName {
            router: router.clone(),
            interface: None,
        };
        match trace::entries(self.wiring, sockets, packet, Some(&name)) {
            Ok(entries) => Ok(entries),
            Err(TraceError::NotFacing { .. }) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Plans the ways of all probes from the places where those of their pair start, and what is needed
    /// to measure there. Without the hosts that are
    /// `there` the hidden sender sends in place of source hosts, too.
    pub(super) fn prepare(
        &self,
        hosts: &mut Hosts,
        there: Option<&[HostState]>,
        starts: &[Vec<Entry>],
        plan: &Plan,
    ) -> Result<Prepared, QuickError> {
        let named = self.named();
        let allowed = |router: &RouterName| named.is_none_or(|names| names.contains(router));
        let mut tables = Tables::new(self.wiring, hosts.routers(), self.family());
        let translators = &mut Translators::new(self.lab);
        let starting_at = starting(starts, plan);
        let mut course = Course::plan(&mut tables, starting_at, &allowed, translators)?;
        let unheard = self
            .pairs
            .iter()
            .map(|pair| self.unheard(pair, there.unwrap_or_default()));
        let mut prepared = Prepared {
            starts: starts.to_vec(),
            unheard: unheard.collect::<Result<_, _>>()?,
            visits: Vec::new(),
            hosts: Vec::new(),
            routers: course.routers(),
            aside: Vec::new(),
            maybe: Vec::new(),
            wire: None,
        };
        self.visit_named(&mut course, &mut prepared, hosts, plan)?;
        if self.many {
            // Most of many questions end at the first router, and reasons cost more than probes: the
            // walk asks the others about what really comes there.
            let starting = starting(starts, plan).into_iter();
            course.stops = starting
                .map(|(at, probes)| PlannedProbes {
                    at,
                    probes,
                    maybe: Vec::new(),
                })
                .collect();
        }
        for stop in course.stops {
            let starts_here = |probe: &Probe| {
                let starts = starts.get(plan.pair_of(probe.index));
                starts.is_some_and(|starts| starts.contains(&stop.at))
            };
            let maybe = stop.maybe.iter();
            prepared
                .maybe
                .extend(maybe.map(|probe| (stop.at.clone(), *probe)));
            for (sends, probes) in self.by_sender(&stop.at, &stop.probes, starts_here) {
                let host = match (there, sends) {
                    (Some(there), Sends::Host(source)) => {
                        self.host(&stop.at, source, &prepared.hosts, hosts, there)?
                    }
                    _ => None,
                };
                let (at, wire) = (stop.at.clone(), &mut prepared.wire);
                let visit =
                    self.visit(hosts.routers(), (at, probes), sends, host.as_ref(), wire)?;
                prepared.visits.push(visit);
                prepared.hosts.extend(host.and_then(Result::ok));
            }
        }
        Ok(prepared)
    }

    /// Adds a visit of each router that was named and that no way is planned through.
    fn visit_named(
        &self,
        course: &mut Course,
        prepared: &mut Prepared,
        hosts: &mut Hosts,
        plan: &Plan,
    ) -> Result<(), QuickError> {
        let Some(pair) = self.pairs.first() else {
            return Ok(());
        };
        for name in self.named().unwrap_or_default() {
            if course.stops.iter().any(|stop| stop.at.router == *name) {
                continue;
            }
            let packet = packet(pair.source, pair.destination, plan.probes.first());
            let facing = self.facing(name, hosts.routers(), &packet)?;
            let at = facing.into_iter().next().unwrap_or(Entry {
                router: name.clone(),
                iface_in: None,
            });
            prepared.routers.insert(name.clone());
            prepared.aside.push(at.clone());
            course.stops.push(PlannedProbes {
                at,
                probes: plan.probes.clone(),
                maybe: Vec::new(),
            });
        }
        Ok(())
    }

    /// The probes at a place by what sends them there. `starts_here` tells those that their source
    /// sends itself.
    fn by_sender(
        &self,
        at: &Entry,
        probes: &[Probe],
        starts_here: impl Fn(&Probe) -> bool,
    ) -> BTreeMap<Sends, Vec<Probe>> {
        let mut senders: BTreeMap<Sends, Vec<Probe>> = BTreeMap::new();
        for probe in probes {
            let Headers {
                source,
                destination,
                ..
            } = probe.headers;
            let sends = if starts_here(probe) && at.iface_in.is_some() {
                Sends::Host(source)
            } else if !self.is_own(at, source) {
                Sends::Hidden
            } else if self.is_own(at, destination) {
                Sends::ToItself(source, destination)
            } else {
                Sends::Itself(source)
            };
            senders.entry(sends).or_default().push(*probe);
        }
        senders
    }

    /// Routers without facts that the packets of a pair may enter by; none where an entry was chosen.
    fn unheard(&self, pair: &Pair, there: &[HostState]) -> Result<Vec<RouterName>, ResolveError> {
        let Inquiry { terms, wiring, .. } = self;
        let open = terms.from.is_none() && matches!(terms.routers, RouterChoice::Trace);
        let all = match open && !terms.trust_facts {
            true => wiring.unheard(pair.source),
            false => &[],
        };
        if all.is_empty() || !resolve::placed_by_hand(&terms.lab, pair.source, there)?.is_empty() {
            return Ok(Vec::new());
        }
        Ok(all.to_vec())
    }

    /// The source host for a place. None where the router has one with that address at another
    /// interface, which is the only one that it can have, and where a sweep finds none there: its
    /// sources may be thousands.
    fn host(
        &self,
        at: &Entry,
        source: IpAddr,
        planned: &[HostSpec],
        hosts: &mut Hosts,
        there: &[HostState],
    ) -> Result<Option<Result<HostSpec, String>>, QuickError> {
        let Some(iface) = &at.iface_in else {
            return Ok(None);
        };
        let router = RouterId::new(self.terms.lab.clone(), at.router.clone());
        let mut of_source = there
            .iter()
            .filter(|host| host.router == at.router && host.address.addr() == source);
        let elsewhere = of_source.clone().any(|host| host.interface != *iface);
        let is_planned = |host: &HostSpec| host.router == router && host.address.addr() == source;
        if elsewhere || planned.iter().any(is_planned) {
            return Ok(None);
        }
        if self.many && of_source.next().is_none() {
            return Ok(None);
        }
        let host = resolve::host_at(&router, iface, source, there, hosts)?;
        Ok(Some(host))
    }

    /// A visit from the host that is given, or from the hidden sender, or from the router itself.
    fn visit(
        &self,
        sockets: &mut RouterSockets,
        (at, probes): (Entry, Vec<Probe>),
        sends: Sends,
        host: Option<&Result<HostSpec, String>>,
        wire: &mut Option<WireSocket>,
    ) -> Result<Visit, QuickError> {
        let netns = sockets.netns(&at.router).map_err(ResolveError::from)?;
        let from = match (host, sends) {
            (Some(Ok(host)), _) => Ok(Sender::Host(host.id.netns())),
            (Some(Err(why)), _) => Err(why.clone()),
            (None, Sends::Itself(source)) => Ok(Sender::Itself(source)),
            (None, Sends::ToItself(source, destination)) => Err(format!(
                "{source} and {destination} are both {} itself: such packets go by lo and are not \
                 measured",
                at.router
            )),
            (None, Sends::Host(_) | Sends::Hidden) => self.hidden(&at, &probes, wire)?,
        };
        Ok(Visit {
            at,
            netns,
            copied: false,
            probes,
            from,
        })
    }

    /// Whether a packet that enters at no interface of the router has this address of its own.
    fn is_own(&self, at: &Entry, address: IpAddr) -> bool {
        at.iface_in.is_none() && self.wiring.owners(address).contains(&&at.router)
    }

    /// The hidden sender into a place.
    fn hidden(
        &self,
        at: &Entry,
        probes: &[Probe],
        wire: &mut Option<WireSocket>,
    ) -> Result<Result<Sender, String>, QuickError> {
        let router = self.lab.router(&at.router).map_err(QuickError::from)?;
        let Some(name) = &at.iface_in else {
            let source = probes.first().map(|probe| probe.headers.source.to_string());
            return Ok(Err(format!(
                "router {} has no route to the source {}, or has that address itself, so it is \
                 not known where its packets come in",
                at.router,
                source.unwrap_or_default()
            )));
        };
        let state = router.interface(name);
        let wired = state.and_then(|state| Some((state.port_index()?, state.mac?)));
        let Some((device, mac)) = wired else {
            return Ok(Err(format!("{at} is on no segment")));
        };
        let socket = match wire {
            Some(socket) => socket,
            None => {
                let segments = self.lab.segments_netns()?;
                let mut opened = visit(&[&segments], |_| WireSocket::open_here())?;
                let opened = opened.pop().unwrap_or(Err(io::ErrorKind::Other.into()));
                let opened = opened.map_err(|source| QuickError::ProbeSocket {
                    host: segments.name().to_string(),
                    source,
                })?;
                wire.insert(opened)
            }
        };
        let family = self.family();
        let from = Mac::made_up("tsim hidden sender");
        Ok(Ok(Sender::Wire(socket.on_wire(device, mac, from, family))))
    }

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
            let answers = plan.measure_all(&visits, self.dir)?;
            for (visit, answer) in visits.iter().zip(answers) {
                let mut visited = self.digest_lots(&mut tables, visit, &answer)?;
                through.measured.push((visit.at.router.clone(), answer));
                let branched = self.branches(&mut tables, plan, visit, &mut through)?;
                visited.iter_mut().for_each(|v| v.leave_out(&branched));
                through.visited.extend(visited);
            }
            let mut needs = WalkNeeds {
                packets: Vec::new(),
                closed: round >= MAX_ROUNDS,
            };
            let ways = self.walk(plan, &prepared.starts, &through.visited, &mut needs);
            if needs.packets.is_empty() {
                // Routers that nothing came to are measured with what would come without NAT.
                let unmet = unmet(std::mem::take(&mut maybe), &through.visited);
                if unmet.is_empty() {
                    through.ways = ways;
                    break;
                }
                visits = self.again(tables.sockets, unmet, &mut through.wire)?;
                continue;
            }
            let routers = needs.packets.iter().map(|(at, _)| at.router.clone());
            let strange: BTreeSet<RouterName> = routers
                .filter(|router| !prepared.routers.contains(router))
                .collect();
            if !strange.is_empty() {
                for (_, answer) in through.measured {
                    answer.close();
                }
                return Ok(InquiryOutcome::Larger(strange));
            }
            let packets = match self.many {
                true => needs.packets,
                false => {
                    let walk = Walk::new(&through.visited, self.wiring, self.named());
                    self.ahead(&mut tables, needs.packets, &walk, &prepared.routers)?
                }
            };
            visits = self.again(tables.sockets, packets, &mut through.wire)?;
        }
        for (probe, ways) in plan.probes.iter().zip(&mut through.ways) {
            let unheard = prepared.unheard.get(plan.pair_of(probe.index));
            let unheard = unheard.into_iter().flatten();
            ways.extend(unheard.map(|router| by_unheard(router, probe.headers.source)));
        }
        if self.named().is_none() {
            back::weigh(
                (self.lab, self.wiring),
                sockets,
                &through.visited,
                &mut through.ways,
            );
        }
        Ok(InquiryOutcome::Through(through))
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
        let mut visited = digest::digest(
            (self.lab, self.terms.trust_facts),
            tables,
            place,
            (measured, ways),
            branch,
        )?;
        if self.terms.size.is_some() {
            let interfaces = state.map_or(&[][..], |router| &router.interfaces);
            ports::judge_lengths(tables, interfaces, &mut visited)?;
        }
        if matches!(visit.from, Ok(Sender::Itself(_))) {
            ports::doubt_own(tables, &mut visited)?;
        } else if self.terms.source_port.is_none() {
            ports::doubt_open(tables, &mut visited)?;
        }
        Ok(visited)
    }

    /// Adds to the packets that a walk needs those that will come to further routers if nothing changes
    /// them on their way there, so that all are measured side by side. Of the locked routers alone.
    fn ahead(
        &self,
        tables: &mut Tables<'_>,
        mut packets: Vec<(Entry, Probe)>,
        walk: &Walk<'_>,
        locked: &BTreeSet<RouterName>,
    ) -> Result<Vec<(Entry, Probe)>, ResolveError> {
        let named = self.named();
        let allowed = |router: &RouterName| {
            locked.contains(router) && named.is_none_or(|names| names.contains(router))
        };
        let mut places: BTreeMap<Entry, Vec<Probe>> = BTreeMap::new();
        for (at, probe) in &packets {
            places.entry(at.clone()).or_default().push(*probe);
        }
        let translators = &mut Translators::new(self.lab);
        let starts = places.keys().cloned().collect::<BTreeSet<Entry>>();
        let course = Course::plan(tables, places.into_iter().collect(), &allowed, translators)?;
        for stop in course.stops {
            if !starts.contains(&stop.at) {
                let mut coming = stop.probes;
                coming.retain(|probe| !walk.is_measured(&stop.at, probe));
                packets.extend(coming.into_iter().map(|probe| (stop.at.clone(), probe)));
            }
        }
        Ok(packets)
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

/// What sends probes to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sends {
    /// A host with this address, where there is to be one, or else the hidden sender.
    Host(IpAddr),
    /// The hidden sender.
    Hidden,
    /// The router, from this address of its own.
    Itself(IpAddr),
    /// Nothing: from one address of the router to another.
    ToItself(IpAddr, IpAddr),
}

/// The places where probes start, each with those that start there.
fn starting(starts: &[Vec<Entry>], plan: &Plan) -> Vec<(Entry, Vec<Probe>)> {
    let mut places: Vec<(Entry, Vec<Probe>)> = Vec::new();
    for probe in &plan.probes {
        for start in starts.get(plan.pair_of(probe.index)).into_iter().flatten() {
            match places.iter_mut().find(|(at, _)| at == start) {
                Some((_, probes)) => probes.push(*probe),
                None => places.push((start.clone(), vec![*probe])),
            }
        }
    }
    places
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

/// The way by a router without facts, of which it is not known whether the source uses it.
fn by_unheard(router: &RouterName, source: IpAddr) -> WayEnd {
    let reason = format!(
        "the lab has no facts of {router}, which may be a gateway of {source}, too; name the one that \
         it uses with --from"
    );
    WayEnd {
        entry: Entry {
            router: router.clone(),
            iface_in: None,
        },
        verdict: Verdict::Unknown,
        kind: EndKind::Absent,
        reason: Some(reason.into()),
        router: Some(router.clone()),
        legs: Vec::new(),
        branches: Vec::new(),
        steps: Vec::new(),
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

fn packet(source: IpAddr, destination: IpAddr, probe: Option<&Probe>) -> TracePacket {
    TracePacket {
        protocol: probe.map(|probe| probe.headers.protocol),
        source_port: probe.map(|probe| probe.headers.source_port),
        destination_port: probe.map(|probe| probe.headers.destination_port),
        tos: probe.map_or(0, |probe| probe.headers.tos),
        ..TracePacket::new(source, destination)
    }
}
