//! Plans of chains whose way forks, begins or ends inside a router, and whose packets are more than
//! TCP's and UDP's, or of a size.

use super::super::{
    back::plan::BackMotif,
    plan::{Loader, Motif, OTHER_PORT, Place, Plan, Protocol, Random, Service, tcp, udp},
    rules::{Act, Chain, Draw, End, Match},
    world::{Net, Putting, name},
};

/// How many services each of these chains is asked about.
const ASKED: usize = 6;
/// The mark by which a router's own packets are routed.
const MARK: u32 = 78;
/// The addresses that the destination has besides, by their number in its segment.
const OTHER_HOST: usize = 110;
/// The ports that lots send on to.
const PORTS: u16 = 8450;

const fn of(protocol: Protocol, port: u16) -> Service {
    Service { protocol, port }
}

/// What is asked about, besides UDP's port 53.
const SERVICES: [Service; 13] = [
    tcp(22),
    tcp(80),
    tcp(443),
    tcp(3306),
    udp(123),
    udp(514),
    of(Protocol::Sctp, 36_412),
    of(Protocol::Sctp, 2_905),
    of(Protocol::Ping, 0),
    of(Protocol::Timestamp, 0),
    of(Protocol::Esp, 0),
    of(Protocol::Gre, 0),
    of(Protocol::Ospf, 0),
];

/// How a route has its next hops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Hops {
    /// Whether those over two interfaces have a third beside one of them.
    pub(in super::super) third: bool,
    /// Whether each has another weight.
    pub(in super::super) weights: bool,
    /// Whether they are objects of ip-nexthop(8), to which routes refer.
    pub(in super::super) objects: bool,
}

impl Hops {
    fn some(random: &mut Random) -> Self {
        Self {
            third: random.chance(40),
            weights: random.chance(40),
            objects: random.chance(40),
        }
    }
}

/// Where lots may send a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Target {
    /// To a port of the destination, by its number.
    Port(u16),
    /// To another address of the destination.
    Address(usize),
    /// To the router that draws.
    Own,
}

/// One thing that a way of these chains meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum ForkMotif {
    /// A router has two next hops on one segment: the next router, and one beside it.
    Twin {
        at: usize,
        how: Hops,
        dropped: Vec<Service>,
        masqueraded: Vec<Service>,
    },
    /// Lots decide where some services go; a later router drops what goes to some targets.
    Lots {
        at: usize,
        draw: Draw,
        services: Vec<Service>,
        targets: Vec<Target>,
        dropper: usize,
        dropped: Vec<Target>,
    },
    /// A router sends, from its address on the segment before it or behind it.
    Begins {
        at: usize,
        behind: bool,
        dropped: Vec<Service>,
        /// Services that are routed by a mark over the detour, whose router drops some.
        marked: Vec<Service>,
        aside: Vec<Service>,
    },
    /// A router is called, by its address on the segment before it or behind it.
    Ends {
        at: usize,
        behind: bool,
        dropped: Vec<Service>,
    },
    /// What is for the destination is sent on to the router itself.
    Itself {
        at: usize,
        services: Vec<Service>,
        closed: Vec<Service>,
    },
    /// The segment behind a router is narrow, or its route says so, and packets have a size.
    Narrow {
        at: usize,
        mtu: u16,
        by_route: bool,
        size: u16,
    },
}

/// What these chains have, beside what is put on others, too.
pub(super) const FEATURES: [&str; 7] = [
    "hops of one link",
    "several next hops",
    "random DNAT",
    "from a router",
    "to a router",
    "DNAT to itself",
    "sizes",
];

/// What else can be on a chain of these.
const OTHERS: [&str; 9] = [
    "SNAT",
    "masquerade",
    "published by DNAT",
    "DNAT to another port",
    "REDIRECT",
    "policy by mark",
    "policy by port",
    "DSCP",
    "asymmetric",
];

impl ForkMotif {
    pub(in super::super) fn feature(&self) -> &'static str {
        match self {
            Self::Twin { .. } => "hops of one link",
            Self::Lots { .. } => "random DNAT",
            Self::Begins { .. } => "from a router",
            Self::Ends { .. } => "to a router",
            Self::Itself { .. } => "DNAT to itself",
            Self::Narrow { .. } => "sizes",
        }
    }

    /// Whether there is a detour behind that router.
    pub(in super::super) fn has_detour(&self, router: usize) -> bool {
        matches!(self, Self::Begins { at, marked, .. } if *at == router && !marked.is_empty())
    }
}

impl Motif {
    /// Its feature of these chains, if it is one.
    pub(super) fn fork_feature(&self) -> Option<&'static str> {
        match self {
            Self::Fork(fork) => Some(fork.feature()),
            Self::Back(back) => Some(back.feature()),
            _ => None,
        }
    }
}

impl Plan {
    /// The plan of a seed for chains whose ways fork, begin or end inside a router. Any seven in a row
    /// have each feature.
    pub(super) fn with_forks(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0xf0f4);
        let mut plan = Self::new(seed);
        plan.v6 = random.chance(50);
        plan.routers = 2 + random.below(3);
        plan.motifs.clear();
        let number = usize::try_from(seed % FEATURES.len() as u64).unwrap();
        let mut features = vec![FEATURES[number]];
        if random.chance(50) {
            let more = 1 + random.below(FEATURES.len() - 1);
            features.push(FEATURES[(number + more) % FEATURES.len()]);
        }
        plan.services = Self::services(features.contains(&"sizes"), plan.v6, &mut random);
        for feature in &features {
            let motif = plan.fork_motif(feature, &mut random);
            plan.motifs.push(motif);
        }
        let other = random.one(&OTHERS);
        // Only what is for one address is published.
        let other = match other {
            "published by DNAT" if features.contains(&"to a router") => "SNAT",
            other => other,
        };
        let motif = match random.chance(30) {
            true => plan.noise(&mut random),
            false => plan.motif(other, &mut random),
        };
        plan.motifs.push(motif);
        if features.contains(&"from a router") && other == "policy by port" {
            // What a plain host can send of it without a client of its own is routed without ports.
            let sctp = |service: &Service| service.protocol == Protocol::Sctp;
            plan.services.retain(|service| !sctp(service));
        }
        plan
    }

    /// What is asked about. Clients of TCP agree on smaller segments, whatever size is asked for.
    fn services(sized: bool, v6: bool, random: &mut Random) -> Vec<Service> {
        let mut services = SERVICES.to_vec();
        services.retain(|service| match service.protocol {
            Protocol::Tcp => !sized,
            Protocol::Timestamp => !v6 && !sized,
            _ => true,
        });
        while services.len() >= ASKED {
            services.remove(random.below(services.len()));
        }
        services.push(udp(53));
        services
    }

    fn fork_motif(&self, feature: &str, random: &mut Random) -> Motif {
        let (at, _) = self.two(random);
        let router = random.below(self.routers);
        let few = |percent, share, random: &mut Random| match random.chance(percent) {
            true => self.some(share, random),
            false => Vec::new(),
        };
        Motif::Fork(match feature {
            "hops of one link" => ForkMotif::Twin {
                at,
                how: Hops::some(random),
                dropped: few(70, 40, random),
                masqueraded: few(30, 40, random),
            },
            "several next hops" => {
                return Motif::Back(BackMotif::Spread {
                    at,
                    back: random.chance(30),
                    how: Hops::some(random),
                    dropped: few(70, 40, random),
                    masqueraded: few(40, 50, random),
                });
            }
            "random DNAT" => self.lots(random),
            "from a router" => {
                let marked = few(50, 50, random);
                ForkMotif::Begins {
                    at: if marked.is_empty() { router } else { at },
                    behind: random.chance(50),
                    dropped: self.some(30, random),
                    marked,
                    aside: self.some(50, random),
                }
            }
            "to a router" => ForkMotif::Ends {
                at: router,
                behind: random.chance(50),
                dropped: self.some(40, random),
            },
            "DNAT to itself" => ForkMotif::Itself {
                at: router,
                services: self.some(60, random),
                closed: few(60, 50, random),
            },
            _ => {
                let mtu = random.one(&[1280, 1300, 1400, 1492]);
                ForkMotif::Narrow {
                    at: router,
                    mtu,
                    by_route: random.chance(30),
                    size: random.one(&[mtu - 4, mtu, mtu + 4, mtu + 4, 1500]),
                }
            }
        })
    }

    fn lots(&self, random: &mut Random) -> ForkMotif {
        let (at, dropper) = self.two(random);
        let draw = match random.below(8) {
            0..=2 => Draw::Chance,
            3 => Draw::Turn,
            4 | 5 => Draw::Ports,
            6 if self.loader == Loader::Nft => Draw::Hash,
            _ => Draw::Addresses,
        };
        let count = 2 + random.below(2);
        let ports = match draw {
            Draw::Ports => true,
            Draw::Addresses => false,
            _ => random.chance(50),
        };
        let mut targets: Vec<Target> = match ports {
            true => (PORTS..).take(count).map(Target::Port).collect(),
            false => (0..count).map(Target::Address).collect(),
        };
        let dropped = match random.below(4) {
            0 => Vec::new(),
            1 => targets.clone(),
            _ => targets[..1].to_vec(),
        };
        if !matches!(draw, Draw::Ports | Draw::Addresses) && random.chance(20) {
            targets.push(Target::Own);
        }
        let mut services = self.services.clone();
        services.retain(|service| {
            let drawn_by_each = service.protocol == Protocol::Ping && !ports;
            (service.protocol.has_ports() || drawn_by_each) && random.chance(90)
        });
        if services.is_empty() {
            services.push(udp(53));
        }
        ForkMotif::Lots {
            at,
            draw,
            services,
            targets,
            dropper,
            dropped,
        }
    }

    /// The length of the packets, where they have one.
    pub(in super::super) fn size(&self) -> Option<u16> {
        self.motifs.iter().find_map(|motif| match motif {
            Motif::Fork(ForkMotif::Narrow { size, .. }) => Some(*size),
            _ => None,
        })
    }

    /// Whether something is decided by lots.
    pub(super) fn draws(&self) -> bool {
        let draws = |motif: &Motif| matches!(motif, Motif::Fork(ForkMotif::Lots { .. }));
        self.motifs.iter().any(draws)
    }

    pub(in super::super) fn has_twin(&self, router: usize) -> bool {
        let has = |motif: &Motif| matches!(motif, Motif::Fork(ForkMotif::Twin { at, .. }) if *at == router);
        // One router has the next hops of one of them, unless that has a third.
        match self.spread(router) {
            Some(_) => self.hops(router).third,
            None => self.motifs.iter().any(has),
        }
    }

    /// How that router has its next hops.
    pub(in super::super) fn hops(&self, router: usize) -> Hops {
        let of_spread = self.motifs.iter().find_map(|motif| match motif {
            Motif::Back(BackMotif::Spread { at, how, .. }) if *at == router => Some(*how),
            _ => None,
        });
        let mut twins = self.motifs.iter().filter_map(|motif| match motif {
            Motif::Fork(ForkMotif::Twin { at, how, .. }) if *at == router => Some(*how),
            _ => None,
        });
        of_spread.or_else(|| twins.next()).unwrap_or_default()
    }
}

impl Net<'_> {
    /// The router that sends, and the segment of its address, if one does.
    fn begins(&self) -> Option<(usize, usize)> {
        self.0.motifs.iter().find_map(|motif| match motif {
            Motif::Fork(ForkMotif::Begins { at, behind, .. }) if *at < self.0.routers => {
                Some((*at, at + usize::from(*behind)))
            }
            _ => None,
        })
    }

    /// Who sends.
    pub(in super::super) fn sender(&self) -> String {
        match self.begins() {
            Some((at, _)) => name(Place::On(at)),
            None => "source".to_owned(),
        }
    }

    /// Source and destination of what is asked about.
    pub(in super::super) fn asked(&self) -> (String, String) {
        let source = match self.begins() {
            Some((at, segment)) => self.of(segment, Place::On(at)),
            None => self.host(0),
        };
        let ends = self.0.motifs.iter().find_map(|motif| match motif {
            Motif::Fork(ForkMotif::Ends { at, behind, .. }) if *at < self.0.routers => {
                Some(self.of(at + usize::from(*behind), Place::On(*at)))
            }
            _ => None,
        });
        let destination = ends.unwrap_or_else(|| match self.0.published() {
            true => self.published(),
            false => self.target(),
        });
        (source, destination)
    }

    fn end(&self, at: usize, target: Target, with_ports: bool) -> End {
        let own = self.of(at + 1, Place::On(at));
        match target {
            Target::Port(port) => (self.target(), Some(port)),
            Target::Address(number) => (self.address(self.0.routers, OTHER_HOST + number), None),
            Target::Own => (own, with_ports.then_some(OTHER_PORT)),
        }
    }
}

impl Putting<'_> {
    pub(in super::super) fn put_fork(&mut self, motif: &ForkMotif) {
        match motif {
            ForkMotif::Twin {
                at,
                dropped,
                masqueraded,
                ..
            } => {
                self.drop_all(Place::Twin(*at), dropped);
                self.masquerade(*at, masqueraded);
            }
            ForkMotif::Lots { .. } => self.put_lots(motif),
            ForkMotif::Begins {
                at,
                dropped,
                marked,
                aside,
                ..
            } => {
                let place = Place::On(*at);
                self.each(place, Chain::Output, dropped, &Act::Drop);
                if self.plan.has(Place::Detour(*at)) && !marked.is_empty() {
                    self.each(place, Chain::MarkOwn, marked, &Act::Mark(MARK));
                    let gateway = self.net.of(100 + at, Place::Detour(*at));
                    self.route_marked(place, MARK, &gateway);
                    self.drop_all(Place::Detour(*at), aside);
                }
            }
            ForkMotif::Ends { at, dropped, .. } => {
                self.each(Place::On(*at), Chain::Input, dropped, &Act::Drop);
            }
            ForkMotif::Itself {
                at,
                services,
                closed,
            } => {
                let place = Place::On(*at);
                for service in services {
                    let port = service.protocol.has_ports().then_some(OTHER_PORT);
                    let act = Act::Dnat(self.net.of(at + 1, place), port);
                    self.rule(place, Chain::Dnat, Match::Service(*service), act);
                }
                for service in closed {
                    let port = if service.port == 0 { 0 } else { OTHER_PORT };
                    let which = Match::Service(Service { port, ..*service });
                    self.rule(place, Chain::Input, which, Act::Drop);
                }
            }
            ForkMotif::Narrow {
                at, mtu, by_route, ..
            } => self.narrow(*at, *mtu, *by_route),
        }
    }

    fn each(&mut self, place: Place, chain: Chain, services: &[Service], act: &Act) {
        for service in services {
            self.rule(place, chain, Match::Service(*service), act.clone());
        }
    }

    fn masquerade(&mut self, at: usize, services: &[Service]) {
        self.each(Place::On(at), Chain::Snat, services, &Act::Masquerade);
    }

    fn put_lots(&mut self, motif: &ForkMotif) {
        let ForkMotif::Lots {
            at,
            draw,
            services,
            targets,
            dropper,
            dropped,
        } = motif
        else {
            return;
        };
        let port = |target: &Target| matches!(target, Target::Port(_));
        let with_ports = targets.iter().any(port);
        let ends = targets.iter();
        let ends: Vec<End> = ends
            .map(|target| self.net.end(*at, *target, with_ports))
            .collect();
        for service in services {
            let act = Act::Lots(*draw, ends.clone());
            self.rule(Place::On(*at), Chain::Dnat, Match::Service(*service), act);
        }
        for (segment, address) in self.others(targets) {
            self.world.destination.interfaces.push((segment, address));
        }
        for target in dropped {
            match target {
                Target::Port(port) => {
                    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                        let which = Match::Service(of(protocol, *port));
                        self.rule(Place::On(*dropper), Chain::Forward, which, Act::Drop);
                    }
                }
                _ => {
                    let (address, _) = self.net.end(*at, *target, false);
                    let which = Match::Address(address);
                    self.rule(Place::On(*dropper), Chain::Forward, which, Act::Drop);
                }
            }
        }
    }

    /// The addresses that the destination has for lots.
    fn others(&self, targets: &[Target]) -> Vec<(usize, String)> {
        let of = |target: &Target| match target {
            Target::Address(number) => {
                Some(self.net.interface(self.plan.routers, OTHER_HOST + number))
            }
            _ => None,
        };
        targets.iter().filter_map(of).collect()
    }

    fn narrow(&mut self, at: usize, mtu: u16, by_route: bool) {
        if by_route {
            let spread = |node: &super::super::world::Node| node.spread.is_empty();
            let node = self.world.at(Place::On(at)).filter(|node| spread(node));
            let routes = node.into_iter().flat_map(|node| &mut node.routes);
            for route in routes.filter(|route| route.starts_with("default via")) {
                route.push_str(&format!(" mtu lock {mtu}"));
            }
            return;
        }
        let world = &mut self.world;
        let hosts = [&mut world.source, &mut world.destination];
        for node in world.routers.iter_mut().chain(hosts) {
            if node
                .interfaces
                .iter()
                .any(|(segment, _)| *segment == at + 1)
            {
                node.mtus.push((at + 1, mtu));
            }
        }
    }
}
