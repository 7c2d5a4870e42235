//! Plans of chains: how many routers, what they do to packets, and what is asked, as plain data.
//!
//! A plan follows from its seed alone. Most of it are [`Motif`]s: a router changes or parts packets,
//! and another one stops them by what was changed, so that the answer is wrong for whoever does not
//! carry the change along. A new kind of thing on the way is a new motif here, and what it puts on
//! the routers in [`super::world`].

use std::fmt;

use super::{back::plan::BackMotif, forks::plan::ForkMotif};

/// xorshift64*: good enough for tests, and the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        (mixed >> 33) as usize % end
    }

    pub(super) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What a service is above IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Sctp,
    /// The echo request of the family's ICMP.
    Ping,
    /// The timestamp request of IPv4's ICMP.
    Timestamp,
    Esp,
    Gre,
    Ospf,
}

impl Protocol {
    pub(super) fn number(self, v6: bool) -> u8 {
        match self {
            Self::Ping | Self::Timestamp if v6 => 58,
            Self::Ping | Self::Timestamp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Gre => 47,
            Self::Esp => 50,
            Self::Ospf => 89,
            Self::Sctp => 132,
        }
    }

    pub(super) fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }
}

/// A service: a protocol, and its port where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

impl Service {
    /// The name of a protocol with ports.
    pub(super) fn protocol(self) -> &'static str {
        match self.protocol {
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
            _ => "tcp",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Ping => f.write_str("ping"),
            Protocol::Timestamp => f.write_str("timestamp/icmp"),
            Protocol::Esp => f.write_str("esp"),
            Protocol::Gre => f.write_str("gre"),
            Protocol::Ospf => f.write_str("ip/89"),
            _ => write!(f, "{}/{}", self.port, self.protocol()),
        }
    }
}

pub(super) const fn tcp(port: u16) -> Service {
    let protocol = Protocol::Tcp;
    Service { protocol, port }
}

pub(super) const fn udp(port: u16) -> Service {
    let protocol = Protocol::Udp;
    Service { protocol, port }
}

pub(super) const SERVICES: [Service; 10] = [
    tcp(22),
    tcp(25),
    tcp(80),
    tcp(443),
    tcp(3306),
    tcp(8080),
    tcp(9100),
    udp(53),
    udp(123),
    udp(514),
];

/// Where DNAT and REDIRECT send packets that had another port.
pub(super) const OTHER_PORT: u16 = 8443;

/// A router of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The one with this number, from 0, on the straight way.
    On(usize),
    /// The one on the detour between that router and the next.
    Detour(usize),
    /// The one beside the router behind that one: it has both segments of it.
    Twin(usize),
    /// The second gateway on the source's segment.
    Second,
    /// The destination's own gateway, by which no request comes.
    Back,
}

/// How policy routing chooses packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// By a mark that a rule sets.
    Mark,
    /// By protocol and port.
    Port,
    /// By the TOS that they come with.
    Tos,
}

/// Whose address source NAT gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Snat {
    /// The outgoing interface's, by masquerade.
    Masquerade,
    /// One of no segment.
    Pool,
}

/// Where policy routing sends packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Branch {
    /// By the detour, whose router drops some of them.
    Detour,
    /// Nowhere: an unreachable route.
    DeadEnd,
}

/// One thing that a chain's routers do, and what gives it away further on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Motif {
    /// Source NAT for some services; a later router drops by source address.
    Source {
        at: Place,
        how: Snat,
        services: Vec<Service>,
        dropper: usize,
        /// Whether those with the new address are dropped, or those with the old.
        new: bool,
    },
    /// What is sent to an address of no segment goes on to the destination for some services.
    Published { at: usize, services: Vec<Service> },
    /// DNAT to another port of the destination, which a later router drops, or alone lets by.
    Port {
        at: usize,
        service: Service,
        dropper: usize,
        dropped: bool,
    },
    /// REDIRECT to a port of the router itself, which may be closed.
    Redirect {
        at: usize,
        service: Service,
        closed: bool,
    },
    /// Policy routing.
    Policy {
        at: usize,
        by: By,
        to: Branch,
        services: Vec<Service>,
        /// What the detour's router drops.
        dropped: Vec<Service>,
    },
    /// DSCP rewritten for some services; a later router drops by it.
    Dscp {
        at: usize,
        services: Vec<Service>,
        value: u8,
        dropper: usize,
    },
    /// The next router's route back is the detour; with a strict reverse path filter or without.
    Asymmetric { at: usize, strict: bool },
    /// A second gateway on the source's segment, and rules of the two.
    Entries {
        dropped_first: Vec<Service>,
        dropped_second: Vec<Service>,
        asked: Asked,
    },
    /// A plain filter: drops or rejects some services, or alone lets them by.
    Filter {
        at: Place,
        services: Vec<Service>,
        how: Filter,
    },
    /// Established connections are let by first, invalid packets dropped.
    Stateful { at: usize },
    /// Something that answers meet.
    Back(BackMotif),
    /// A way that forks, begins or ends inside a router, or is too narrow.
    Fork(ForkMotif),
}

/// How a plain filter works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Drop,
    Reject,
    AllowAlone,
}

/// Which entry is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    First,
    Second,
    /// None is named.
    Any,
}

/// What loads the routers' rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loader {
    Nft,
    IptablesNft,
    IptablesLegacy,
}

/// A chain, and what is asked about it.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) v6: bool,
    pub(super) loader: Loader,
    /// Routers on the straight way, two or more.
    pub(super) routers: usize,
    /// Whether the destination is behind a gateway that is no router of the facts.
    pub(super) far: bool,
    /// DSCP of the packets as they are sent.
    pub(super) dscp: u8,
    pub(super) motifs: Vec<Motif>,
    pub(super) services: Vec<Service>,
}

/// The features; the family is counted beside them.
pub(super) const FEATURES: [&str; 12] = [
    "SNAT",
    "masquerade",
    "published by DNAT",
    "DNAT to another port",
    "REDIRECT",
    "policy by mark",
    "policy by port",
    "policy by TOS",
    "DSCP",
    "asymmetric",
    "rp_filter",
    "entries",
];

impl Plan {
    /// The plan of a seed. Any twelve seeds in a row have each feature at least three times.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut plan = Self {
            seed,
            v6: random.chance(50),
            loader: random.one(&[Loader::Nft, Loader::IptablesNft, Loader::IptablesLegacy]),
            routers: 2 + random.below(5),
            far: random.chance(25),
            dscp: random.one(&[0, 0, 0, 46]),
            motifs: Vec::new(),
            services: SERVICES.to_vec(),
        };
        let number = usize::try_from(seed % FEATURES.len() as u64).unwrap();
        for offset in [0, 3, 7] {
            let feature = FEATURES[(number + offset) % FEATURES.len()];
            // Linux has no such filter for IPv6.
            plan.v6 &= feature != "rp_filter";
            let motif = plan.motif(feature, &mut random);
            plan.motifs.push(motif);
        }
        if random.chance(40) {
            let motif = plan.noise(&mut random);
            plan.motifs.push(motif);
        }
        plan
    }

    /// About that share of the services, at least one.
    pub(super) fn some(&self, percent: usize, random: &mut Random) -> Vec<Service> {
        let chosen = self.services.iter().filter(|_| random.chance(percent));
        let chosen: Vec<Service> = chosen.copied().collect();
        match chosen.is_empty() {
            true => vec![random.one(&self.services)],
            false => chosen,
        }
    }

    /// Those that have ports.
    pub(super) fn with_ports(&self) -> Vec<Service> {
        let mut services = self.services.clone();
        services.retain(|service| service.protocol.has_ports());
        services
    }

    /// A router before the last one, and one behind it.
    pub(super) fn two(&self, random: &mut Random) -> (usize, usize) {
        let at = random.below(self.routers - 1);
        (at, at + 1 + random.below(self.routers - 1 - at))
    }

    pub(super) fn motif(&self, feature: &str, random: &mut Random) -> Motif {
        let (at, dropper) = self.two(random);
        let services = self.some(40, random);
        let service = random.one(&self.with_ports());
        let policy = |by, random: &mut Random| Motif::Policy {
            // A TOS that another router sets, where there is one before.
            at: match by {
                By::Tos => at.max(1).min(self.routers - 2),
                _ => at,
            },
            by,
            to: match random.chance(80) {
                true => Branch::Detour,
                false => Branch::DeadEnd,
            },
            services: services.clone(),
            dropped: self.some(70, random),
        };
        match feature {
            "SNAT" | "masquerade" => {
                let new = random.chance(60);
                Motif::Source {
                    at: Place::On(at),
                    how: match feature {
                        "SNAT" => Snat::Pool,
                        _ => Snat::Masquerade,
                    },
                    services: self.some(if new { 40 } else { 70 }, random),
                    dropper,
                    new,
                }
            }
            "published by DNAT" => Motif::Published {
                at,
                services: self.some(80, random),
            },
            "DNAT to another port" => Motif::Port {
                at,
                service,
                dropper,
                dropped: random.chance(60),
            },
            "REDIRECT" => Motif::Redirect {
                at: random.below(self.routers),
                service,
                closed: random.chance(40),
            },
            "policy by mark" => policy(By::Mark, random),
            "policy by port" => policy(By::Port, random),
            "policy by TOS" => policy(By::Tos, random),
            "DSCP" => Motif::Dscp {
                at,
                services: self.some(60, random),
                value: random.one(&[4, 10, 18]),
                dropper,
            },
            "asymmetric" | "rp_filter" => Motif::Asymmetric {
                at,
                strict: feature == "rp_filter",
            },
            _ => Motif::Entries {
                dropped_first: self.some(20, random),
                dropped_second: self.some(20, random),
                asked: random.one(&[Asked::First, Asked::Second, Asked::Second, Asked::Any]),
            },
        }
    }

    pub(super) fn noise(&self, random: &mut Random) -> Motif {
        let at = random.below(self.routers);
        if random.chance(30) {
            return Motif::Stateful { at };
        }
        let how = random.one(&[Filter::Drop, Filter::Reject, Filter::AllowAlone]);
        let percent = if how == Filter::AllowAlone { 80 } else { 20 };
        Motif::Filter {
            at: Place::On(at),
            services: self.some(percent, random),
            how,
        }
    }

    /// The features that it has, of [`FEATURES`] and the family.
    pub(super) fn features(&self) -> Vec<&'static str> {
        let one = |motif: &Motif| match motif {
            Motif::Source { how, .. } => Some(match how {
                Snat::Pool => "SNAT",
                Snat::Masquerade => "masquerade",
            }),
            Motif::Published { .. } => Some("published by DNAT"),
            Motif::Port { .. } => Some("DNAT to another port"),
            Motif::Redirect { .. } => Some("REDIRECT"),
            Motif::Policy { by, .. } => Some(match by {
                By::Mark => "policy by mark",
                By::Port => "policy by port",
                By::Tos => "policy by TOS",
            }),
            Motif::Dscp { .. } => Some("DSCP"),
            Motif::Asymmetric { strict, .. } => Some(match strict {
                true => "rp_filter",
                false => "asymmetric",
            }),
            Motif::Entries { .. } => Some("entries"),
            Motif::Filter { .. } | Motif::Stateful { .. } => None,
            Motif::Back(back) => Some(back.feature()),
            Motif::Fork(fork) => Some(fork.feature()),
        };
        let mut all: Vec<&str> = self.motifs.iter().filter_map(one).collect();
        all.push(if self.v6 { "IPv6" } else { "IPv4" });
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Which entry is asked about; none where there is only one.
    pub(super) fn asked(&self) -> Option<Asked> {
        self.motifs.iter().find_map(|motif| match motif {
            Motif::Entries { asked, .. } => Some(*asked),
            _ => None,
        })
    }

    /// Whether the address that is asked about is one that a router translates.
    pub(super) fn published(&self) -> bool {
        let is = |motif: &Motif| matches!(motif, Motif::Published { .. });
        self.motifs.iter().any(is) || self.hairpin().is_some()
    }

    /// The place of a router, which a chain that was made shorter may not have.
    pub(super) fn has(&self, place: Place) -> bool {
        match place {
            Place::On(at) => at < self.routers,
            Place::Detour(at) => at + 1 < self.routers && self.has_detour(at),
            Place::Twin(at) => at + 1 < self.routers && self.has_twin(at),
            Place::Second => self.asked().is_some(),
            Place::Back => self.has_back(),
        }
    }

    /// Whether there is a detour between that router and the next.
    pub(super) fn has_detour(&self, router: usize) -> bool {
        let uses = |motif: &Motif| match motif {
            Motif::Policy { at, to, .. } => *at == router && *to == Branch::Detour,
            Motif::Asymmetric { at, .. } => *at == router,
            Motif::Back(back) => back.has_detour(router),
            Motif::Fork(fork) => fork.has_detour(router),
            _ => false,
        };
        router + 1 < self.routers && self.motifs.iter().any(uses)
    }

    /// Plans that are this one without something.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut plan = self.clone();
            change(&mut plan);
            all.push(plan);
        };
        for motif in 0..self.motifs.len() {
            add(&|plan| _ = plan.motifs.remove(motif));
        }
        if self.routers > 2 {
            add(&|plan| plan.routers -= 1);
        }
        if self.services.len() > 1 {
            let half = self.services.len() / 2;
            add(&|plan| _ = plan.services.drain(..half));
            add(&|plan| plan.services.truncate(half));
        }
        if self.far {
            add(&|plan| plan.far = false);
        }
        if self.dscp != 0 {
            add(&|plan| plan.dscp = 0);
        }
        if self.loader != Loader::Nft {
            add(&|plan| plan.loader = Loader::Nft);
        }
        all
    }
}
