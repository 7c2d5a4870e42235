//! A question put to a lab: where its packets enter, and what is planned to be measured first.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use super::{
    Pair, QuickError, Terms,
    course::{Course, PlannedProbes, Translators},
    plan::Plan,
    tables::Tables,
    visit::{Sender, Visit},
    visited::Ending,
};
use crate::{
    lab::{
        Bridges, Lab,
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
        unseen_entries::{UnseenEntry, unseen_entries},
    },
};

/// A burst of questions in its lab.
pub(super) struct Inquiry<'a> {
    pub(super) terms: &'a Terms,
    /// All of one family.
    pub(super) pairs: &'a [Pair],
    pub(super) lab: &'a Lab,
    pub(super) dir: &'a NetnsDir,
    pub(super) wiring: &'a Wiring,
    pub(super) bridges: &'a Bridges<'a>,
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
    pub(super) starts: Vec<Vec<Entry>>,
    /// For each pair, where its packets may enter, too.
    pub(super) unseen: Vec<Vec<UnseenEntry>>,
    pub(super) visits: Vec<Visit>,
    pub(super) hosts: Vec<HostSpec>,
    /// Routers to be locked.
    pub(super) routers: BTreeSet<RouterName>,
    /// Named routers that no packet is planned to come to.
    pub(super) aside: Vec<Entry>,
    /// What comes behind routers that may translate it, if they do not.
    pub(super) maybe: Vec<(Entry, Probe)>,
    pub(super) wire: Option<WireSocket>,
}

impl<'a> Inquiry<'a> {
    pub(super) fn named(&self) -> Option<&'a [RouterName]> {
        match &self.terms.routers {
            RouterChoice::Named(names) => Some(names),
            _ => None,
        }
    }

    pub(super) fn family(&self) -> Family {
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

    /// How a question ends whose addresses settle it.
    fn settled(&self, source: IpAddr, destination: IpAddr) -> Option<Ending> {
        if destination.is_multicast() {
            let reason = format!("{destination} is a multicast address: who gets it is not known");
            let end = Ending::new(Verdict::Unknown, EndKind::Multicast, reason);
            return Some(end);
        }
        if self.wiring.is_anycast(source) {
            let reason = format!(
                "{source} is an anycast address of a subnet's routers (RFC 4291 section 2.6.1), which nobody \
                 sends from"
            );
            let end = Ending::new(Verdict::Unknown, EndKind::NotKnown, reason);
            return Some(end);
        }
        if matches!(destination, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            let reason = format!(
                "{destination} is a link-local address, which may be another host's on each link: no router \
                 forwards packets to it"
            );
            let end = Ending::new(Verdict::Unknown, EndKind::NotKnown, reason);
            return Some(end);
        }
        if matches!(destination, IpAddr::V4(v4) if v4.is_broadcast()) {
            let reason = format!("{destination} is for all on one link: no router hands it on");
            let end = Ending::new(Verdict::No, EndKind::Broadcast, reason);
            return Some(end);
        }
        None
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
        if let Some(end) = self.settled(source, destination) {
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
        let unseen = self
            .pairs
            .iter()
            .map(|pair| self.unseen(pair, there.unwrap_or_default()));
        let mut prepared = Prepared {
            starts: starts.to_vec(),
            unseen: unseen.collect::<Result<_, _>>()?,
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
                    probes,
                    ..PlannedProbes::none(at)
                })
                .collect();
        }
        for stop in course.stops {
            let maybe = stop.maybe.iter().map(|probe| (stop.at.clone(), *probe));
            prepared.maybe.extend(maybe);
            self.prepare_visits(&stop, &mut prepared, (hosts, there), plan)?;
        }
        Ok(prepared)
    }

    /// The visits of one place, with the hosts that they are made from.
    fn prepare_visits(
        &self,
        stop: &PlannedProbes,
        prepared: &mut Prepared,
        (hosts, there): (&mut Hosts, Option<&[HostState]>),
        plan: &Plan,
    ) -> Result<(), QuickError> {
        let starts_here = |probe: &Probe| {
            let starts = prepared.starts.get(plan.pair_of(probe.index));
            starts.is_some_and(|starts| starts.contains(&stop.at))
        };
        for (sends, probes) in self.by_sender(&stop.at, &stop.probes, starts_here) {
            let host = match (there, sends) {
                (Some(there), Sends::Host(source)) => {
                    self.host(&stop.at, source, &prepared.hosts, hosts, there)?
                }
                _ => None,
            };
            let (at, wire) = (stop.at.clone(), &mut prepared.wire);
            let visit = self.visit(hosts.routers(), (at, probes), sends, host.as_ref(), wire)?;
            prepared.visits.push(visit);
            prepared.hosts.extend(host.and_then(Result::ok));
        }
        Ok(())
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
                probes: plan.probes.clone(),
                ..PlannedProbes::none(at)
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

    /// Where else the packets of a pair may enter; none where an entry was chosen.
    fn unseen(&self, pair: &Pair, there: &[HostState]) -> Result<Vec<UnseenEntry>, ResolveError> {
        let Inquiry { terms, wiring, .. } = self;
        let open = terms.from.is_none() && matches!(terms.routers, RouterChoice::Trace);
        if !open || terms.trust_facts {
            return Ok(Vec::new());
        }
        let all = unseen_entries(self.lab, wiring, pair.source, pair.destination);
        if all.is_empty() || !resolve::placed_by_hand(&terms.lab, pair.source, there)?.is_empty() {
            return Ok(Vec::new());
        }
        Ok(all)
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
    pub(super) fn visit(
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
}

/// What sends probes to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sends {
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

fn packet(source: IpAddr, destination: IpAddr, probe: Option<&Probe>) -> TracePacket {
    TracePacket {
        protocol: probe.map(|probe| probe.headers.protocol),
        source_port: probe.map(|probe| probe.headers.source_port),
        destination_port: probe.map(|probe| probe.headers.destination_port),
        tos: probe.map_or(0, |probe| probe.headers.tos),
        ..TracePacket::new(source, destination)
    }
}
