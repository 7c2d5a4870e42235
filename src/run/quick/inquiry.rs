//! A question put to a lab: where its packets enter, what is planned, and what is asked again until
//! the walk is through.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use super::{
    Closing, QuickError, QuickJob, back,
    branch::{self, Branch, By},
    course::{Course, Stop},
    digest::{self, Ending, Visited},
    lots,
    plan::{Answer, Plan, Sender, Visit},
    ports,
    tables::Tables,
    walk::{Needs, Walk, WayEnd},
};
use crate::{
    firewall::taps::{Left, Ways},
    lab::{
        Lab,
        hosts::{HostState, Hosts},
        sockets::RouterSockets,
        trace::{self, Entry, EntryName, MAX_ENTRIES, Packet, TraceError, Wiring},
    },
    model::{RouterId, RouterName},
    netlink::object::{Family, Mac},
    netns::{NetnsDir, visit},
    registry::HostSpec,
    run::{
        packet::Probe,
        probe::WireSocket,
        report::{EndKind, Verdict},
        resolve::{self, ResolveError, RouterChoice},
    },
};

/// More rounds than a packet's TTL allows legs are not needed.
const MAX_ROUNDS: usize = 64;

/// A job's question in its lab.
pub(super) struct Inquiry<'a> {
    pub(super) job: &'a QuickJob,
    pub(super) lab: &'a Lab,
    pub(super) dir: &'a NetnsDir,
    pub(super) wiring: &'a Wiring,
}

/// What is known before anything is measured.
pub(super) enum Beginning {
    /// All services end like this, and no router is asked.
    Settled(Ending),
    /// Their packets enter here.
    Enter(Vec<Entry>),
}

/// What is to be measured first, and what is needed for it.
pub(super) struct Prepared {
    pub(super) starts: Vec<Entry>,
    /// Routers without facts, which may be entries, too.
    unheard: Vec<RouterName>,
    pub(super) visits: Vec<Visit>,
    pub(super) hosts: Vec<HostSpec>,
    /// Routers to be locked.
    pub(super) routers: BTreeSet<RouterName>,
    /// Named routers that no packet is planned to come to.
    pub(super) aside: Vec<Entry>,
    wire: Option<WireSocket>,
}

/// What came of measuring.
pub(super) enum Asked {
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
    pub(super) measured: Vec<(RouterName, Answer)>,
    pub(super) wire: Option<WireSocket>,
    /// Those into copies of routers.
    pub(super) wires: Vec<WireSocket>,
    /// Named routers that no packet was planned to come to.
    pub(super) aside: Vec<Entry>,
}

impl<'a> Inquiry<'a> {
    fn named(&self) -> Option<&'a [RouterName]> {
        match &self.job.routers {
            RouterChoice::Named(names) => Some(names),
            _ => None,
        }
    }

    /// Where the question's packets enter.
    pub(super) fn begin(
        &self,
        sockets: &mut RouterSockets,
        there: &[HostState],
        probe: Option<&Probe>,
    ) -> Result<Beginning, ResolveError> {
        let (source, destination) = (self.job.source, self.job.destination);
        if destination.is_multicast() {
            let reason = format!("{destination} is a multicast address: who gets it is not known");
            let end = Ending::new(Verdict::Unknown, EndKind::Multicast, reason);
            return Ok(Beginning::Settled(end));
        }
        let packet = packet(source, destination, probe);
        let entries = match &self.job.routers {
            RouterChoice::Named(names) => self.through(names, sockets, &packet, there)?,
            RouterChoice::Traced(trace) if self.job.from.is_none() => {
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
                    && self.job.from.is_none()
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
        packet: &Packet,
        there: &[HostState],
    ) -> Result<Vec<Entry>, ResolveError> {
        let from = self.job.from.as_ref();
        if from.is_none() {
            let placed = resolve::placed_by_hand(&self.job.lab, packet.source, there)?;
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
        packet: &Packet,
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
        packet: &Packet,
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

    /// Plans the ways of `probes` from `starts`, and what is needed to measure there. Without the
    /// hosts that are `there` the hidden sender sends in place of source hosts, too.
    pub(super) fn prepare(
        &self,
        hosts: &mut Hosts,
        there: Option<&[HostState]>,
        starts: &[Entry],
        probes: &[Probe],
    ) -> Result<Prepared, QuickError> {
        let family = Family::of(self.job.destination);
        let named = self.named();
        let allowed = |router: &RouterName| named.is_none_or(|names| names.contains(router));
        let mut tables = Tables::new(self.wiring, hosts.routers(), family);
        let mut course = Course::plan(&mut tables, starts, probes, &allowed)?;
        let mut prepared = Prepared {
            starts: starts.to_vec(),
            unheard: self.unheard(there.unwrap_or_default())?,
            visits: Vec::new(),
            hosts: Vec::new(),
            routers: course.routers(),
            aside: Vec::new(),
            wire: None,
        };
        for name in named.unwrap_or_default() {
            if course.stops.iter().any(|stop| stop.at.router == *name) {
                continue;
            }
            let packet = packet(self.job.source, self.job.destination, probes.first());
            let facing = self.facing(name, hosts.routers(), &packet)?;
            let at = facing.into_iter().next().unwrap_or(Entry {
                router: name.clone(),
                iface_in: None,
            });
            prepared.routers.insert(name.clone());
            prepared.aside.push(at.clone());
            course.stops.push(Stop {
                at,
                probes: probes.to_vec(),
                first: false,
            });
        }
        for stop in course.stops {
            let host = match there {
                Some(there) if stop.first => self.host(&stop.at, &prepared.hosts, hosts, there)?,
                _ => None,
            };
            let (sockets, wire) = (hosts.routers(), &mut prepared.wire);
            let visit = self.visit(sockets, (stop.at, stop.probes), host.as_ref(), wire)?;
            prepared.visits.push(visit);
            prepared.hosts.extend(host.and_then(Result::ok));
        }
        Ok(prepared)
    }

    /// Routers without facts that the packets may enter by; none where an entry was chosen.
    fn unheard(&self, there: &[HostState]) -> Result<Vec<RouterName>, ResolveError> {
        let Inquiry { job, wiring, .. } = self;
        let open = job.from.is_none() && matches!(job.routers, RouterChoice::Trace);
        let all = match open && !job.trust_facts {
            true => wiring.unheard(job.source),
            false => &[],
        };
        if all.is_empty() || !resolve::placed_by_hand(&job.lab, job.source, there)?.is_empty() {
            return Ok(Vec::new());
        }
        Ok(all.to_vec())
    }

    /// The source host for a place. None where the router has one with that address at another
    /// interface, which is the only one that it can have.
    fn host(
        &self,
        at: &Entry,
        planned: &[HostSpec],
        hosts: &mut Hosts,
        there: &[HostState],
    ) -> Result<Option<Result<HostSpec, String>>, QuickError> {
        let Some(iface) = &at.iface_in else {
            return Ok(None);
        };
        let source = self.job.source;
        let router = RouterId::new(self.job.lab.clone(), at.router.clone());
        let elsewhere = there.iter().any(|host| {
            host.router == at.router && host.address.addr() == source && host.interface != *iface
        });
        if elsewhere || planned.iter().any(|host| host.router == router) {
            return Ok(None);
        }
        let host = resolve::host_at(&router, iface, source, there, hosts)?;
        Ok(Some(host))
    }

    /// A visit from the host that is given, or from the hidden sender.
    fn visit(
        &self,
        sockets: &mut RouterSockets,
        (at, probes): (Entry, Vec<Probe>),
        host: Option<&Result<HostSpec, String>>,
        wire: &mut Option<WireSocket>,
    ) -> Result<Visit, QuickError> {
        let netns = sockets.netns(&at.router).map_err(ResolveError::from)?;
        let from = match host {
            Some(Ok(host)) => Ok(Sender::Host(host.id.netns())),
            Some(Err(why)) => Err(why.clone()),
            None if self.is_own(&at) => self.itself(&at)?,
            None => self.hidden(&at, wire)?,
        };
        Ok(Visit {
            at,
            netns,
            copied: false,
            probes,
            from,
        })
    }

    /// Whether the router sends the question's packets itself.
    fn is_own(&self, at: &Entry) -> bool {
        at.iface_in.is_none() && self.wiring.owners(self.job.source).contains(&&at.router)
    }

    /// The router as the sender, where its raw packets are routed as a program's would be.
    fn itself(&self, at: &Entry) -> Result<Result<Sender, String>, QuickError> {
        let destination = self.job.destination;
        if self.wiring.owners(destination).contains(&&at.router) {
            return Ok(Err(format!(
                "{} and {destination} are both {} itself: such packets go by lo and are not \
                 measured",
                self.job.source, at.router
            )));
        }
        Ok(Ok(Sender::Itself(self.job.source)))
    }

    /// The hidden sender into a place.
    fn hidden(
        &self,
        at: &Entry,
        wire: &mut Option<WireSocket>,
    ) -> Result<Result<Sender, String>, QuickError> {
        let router = self.lab.router(&at.router).map_err(QuickError::from)?;
        let Some(name) = &at.iface_in else {
            return Ok(Err(format!(
                "router {} has no route to the source {}, or has that address itself, so it is \
                 not known where its packets come in",
                at.router, self.job.source
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
        let family = Family::of(self.job.destination);
        let from = Mac::made_up("tsim hidden sender");
        Ok(Ok(Sender::Wire(
            socket.into_wire(device, mac, from, family),
        )))
    }

    /// Measures what is planned, walks, and asks again where something else comes than was planned.
    pub(super) fn ask(
        &self,
        plan: &Plan,
        prepared: Prepared,
        sockets: &mut RouterSockets,
        go_on: &dyn Fn() -> Result<(), QuickError>,
    ) -> Result<Asked, QuickError> {
        let family = Family::of(self.job.destination);
        let mut tables = Tables::new(self.wiring, sockets, family);
        let mut through = Through {
            visited: Vec::new(),
            ways: Vec::new(),
            measured: Vec::new(),
            wire: prepared.wire,
            wires: Vec::new(),
            aside: prepared.aside,
        };
        let mut visits = prepared.visits;
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
            let mut needs = Needs {
                packets: Vec::new(),
                closed: round >= MAX_ROUNDS,
            };
            let walk = Walk::new(&through.visited, self.wiring, self.named());
            let ways = plan.probes.iter().map(|probe| {
                let from = prepared.starts.iter();
                from.flat_map(|entry| walk.follow(entry, *probe, &mut needs))
                    .collect()
            });
            let ways: Vec<Vec<WayEnd>> = ways.collect();
            if needs.packets.is_empty() {
                through.ways = ways;
                break;
            }
            let routers = needs.packets.iter().map(|(at, _)| at.router.clone());
            let strange: BTreeSet<RouterName> = routers
                .filter(|router| !prepared.routers.contains(router))
                .collect();
            if !strange.is_empty() {
                for (_, answer) in through.measured {
                    answer.close();
                }
                return Ok(Asked::Larger(strange));
            }
            visits = self.again(tables.sockets, needs, &mut through.wire)?;
        }
        for ways in &mut through.ways {
            let unheard = prepared.unheard.iter();
            ways.extend(unheard.map(|router| by_unheard(router, self.job.source)));
        }
        if self.named().is_none() {
            back::weigh(self.wiring, sockets, &through.visited, &mut through.ways);
        }
        Ok(Asked::Through(through))
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
        answer: &Answer,
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
        answer: &Answer,
        ways: Option<&Ways>,
        branch: Option<&Arc<Branch>>,
    ) -> Result<Visited, QuickError> {
        let measured = match answer {
            Answer::Unmeasured(why) => {
                return Ok(digest::unmeasured(&visit.at, &visit.probes, why));
            }
            Answer::Measured(measured) => measured,
        };
        let hidden = matches!(visit.from, Ok(Sender::Wire(_)));
        let state = self.lab.router(&visit.at.router);
        let by_set = state.is_ok_and(|router| router.asks_hardware_addresses);
        if hidden && (measured.nature.link || by_set) {
            let why = "its rules may look at the source's hardware address, which is not known \
                       behind the first router";
            return Ok(digest::unmeasured(&visit.at, &visit.probes, why));
        }
        let place = (&visit.at, visit.probes.as_slice());
        let mut visited = digest::digest(
            (self.lab, self.job.trust_facts),
            tables,
            place,
            (measured, ways),
            branch,
        )?;
        if matches!(visit.from, Ok(Sender::Itself(_))) {
            ports::doubt_own(tables, &mut visited)?;
        } else if self.job.source_port.is_none() {
            ports::doubt_open(tables, &mut visited)?;
        }
        Ok(visited)
    }

    /// The visits that a walk needs. Packets with one tag come to a place in one visit each.
    fn again(
        &self,
        sockets: &mut RouterSockets,
        needs: Needs,
        wire: &mut Option<WireSocket>,
    ) -> Result<Vec<Visit>, QuickError> {
        let mut places: BTreeMap<Entry, Vec<BTreeMap<u32, Probe>>> = BTreeMap::new();
        for (at, probe) in needs.packets {
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
            self.visit(sockets, (at, probes), None, wire)
        };
        visits.map(visit).collect()
    }
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

impl Answer {
    /// How probes left, where that was noted.
    fn ways(&self) -> Option<&Ways> {
        match self {
            Self::Measured(measured) => measured.ways.as_ref(),
            Self::Unmeasured(_) => None,
        }
    }

    /// How copies left of probes that chance sends to several targets.
    fn targets(&self) -> &BTreeMap<u32, Vec<Left>> {
        const NONE: &BTreeMap<u32, Vec<Left>> = &BTreeMap::new();
        match self {
            Self::Measured(measured) => &measured.targets,
            Self::Unmeasured(_) => NONE,
        }
    }

    /// Closes what is left open of it.
    fn close(self) {
        if let Self::Measured(measured) = self {
            drop::<Vec<Closing>>(measured.closing);
        }
    }
}

fn packet(source: IpAddr, destination: IpAddr, probe: Option<&Probe>) -> Packet {
    Packet {
        protocol: probe.map(|probe| probe.headers.protocol),
        source_port: probe.map(|probe| probe.headers.source_port),
        destination_port: probe.map(|probe| probe.headers.destination_port),
        tos: probe.map_or(0, |probe| probe.headers.tos),
        ..Packet::new(source, destination)
    }
}
