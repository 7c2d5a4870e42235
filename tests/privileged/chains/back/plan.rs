//! Plans of chains in which something happens to answers: they go another way than requests, past
//! routers that know of no connection, or back to where they came from.

use super::super::{
    forks::plan::Hops,
    plan::{Filter, Motif, Place, Plan, Random, SERVICES, Service},
    rules::{Act, Chain, Match},
    world::Putting,
};

/// The mark that answers get.
const MARK: u32 = 77;
/// How many services each of these chains is asked about.
const ASKED: usize = 5;

/// One thing that answers meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum BackMotif {
    /// What belongs to no connection is dropped, where answers alone may pass.
    Invalid { at: Place },
    /// The zone of connection tracking follows from where packets come in; the same for all of them, or
    /// another one for answers, whose connections and translations are not known then.
    Zones {
        at: usize,
        apart: bool,
        masqueraded: Vec<Service>,
        invalid: bool,
    },
    /// The answers of some services are dropped.
    Dropped { at: Place, services: Vec<Service> },
    /// Only some services begin connections; all else has to belong to one.
    Known { at: Place, services: Vec<Service> },
    /// The destination's gateway is a router by which no request comes.
    Gateway,
    /// Two routers translate the source.
    Twice {
        first: usize,
        masqueraded: Vec<Service>,
        second: usize,
        translated: Vec<Service>,
    },
    /// The answers of some services get a mark at the router behind this one, by which they are routed
    /// over the detour.
    Marked { at: usize, services: Vec<Service> },
    /// A router has two next hops over two interfaces, to the next router and to the detour's, which
    /// drops some services; and that one has two for answers, perhaps.
    Spread {
        at: usize,
        back: bool,
        how: Hops,
        dropped: Vec<Service>,
        masqueraded: Vec<Service>,
    },
    /// The address that is called leads back to the source's own segment.
    Hairpin(Hairpin),
}

/// A destination on the source's own segment, which is called by an address of no segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Hairpin {
    /// The router that translates the destination.
    at: usize,
    /// The services of which it translates the source, too.
    masqueraded: Vec<Service>,
    /// Whether the source itself is the destination.
    pub(in super::super) own: bool,
}

/// What these chains have, beside what is put on others, too.
pub(super) const FEATURES: [&str; 10] = [
    "INVALID drops",
    "zones",
    "answers dropped",
    "answers by mark",
    "known connections",
    "own gateway",
    "NAT on several routers",
    "several next hops",
    "hairpin",
    "calls itself",
];

/// What else can be on a chain of these.
const OTHERS: [&str; 8] = [
    "SNAT",
    "masquerade",
    "published by DNAT",
    "DNAT to another port",
    "REDIRECT",
    "policy by mark",
    "asymmetric",
    "entries",
];

impl BackMotif {
    pub(in super::super) fn feature(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "INVALID drops",
            Self::Zones { .. } => "zones",
            Self::Dropped { .. } => "answers dropped",
            Self::Marked { .. } => "answers by mark",
            Self::Known { .. } => "known connections",
            Self::Gateway => "own gateway",
            Self::Twice { .. } => "NAT on several routers",
            Self::Spread { .. } => "several next hops",
            Self::Hairpin(Hairpin { own: false, .. }) => "hairpin",
            Self::Hairpin(Hairpin { own: true, .. }) => "calls itself",
        }
    }

    /// Whether there is a detour behind that router.
    pub(in super::super) fn has_detour(&self, router: usize) -> bool {
        let other =
            matches!(self, Self::Spread { at, .. } | Self::Marked { at, .. } if *at == router);
        other || self.makes_detour(router)
    }

    /// Whether the answers of the router behind that one come by the detour.
    pub(in super::super) fn makes_detour(&self, router: usize) -> bool {
        matches!(self, Self::Invalid { at: Place::Detour(at) } if *at == router)
    }
}

impl Plan {
    /// The plan of a seed for chains whose answers are looked at. Any nine in a row have each feature.
    pub(super) fn with_answers(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0xa15e);
        let mut plan = Self::new(seed);
        plan.dscp = 0;
        plan.far = random.chance(10);
        plan.routers = 2 + random.below(4);
        plan.motifs.clear();
        plan.services = SERVICES.to_vec();
        while plan.services.len() > ASKED {
            let one = random.below(plan.services.len());
            plan.services.remove(one);
        }
        let number = usize::try_from(seed / 3).unwrap();
        let features: &[&str] = match seed % 3 {
            0 if number.is_multiple_of(2) => &["hairpin"],
            0 => &["calls itself"],
            1 => &FEATURES[..4],
            _ => &FEATURES[4..8],
        };
        for feature in features {
            let motif = plan.back_motif(feature, &mut random);
            plan.motifs.push(Motif::Back(motif));
        }
        if seed.is_multiple_of(3) {
            plan.far = false;
            let noise = ["zones", "known connections", "INVALID drops"];
            let noise = random.one(&noise[..1 + number % 3]);
            let motif = plan.back_motif(noise, &mut random);
            plan.motifs.push(Motif::Back(motif));
        } else {
            let other = random.one(&OTHERS);
            let motif = plan.motif(other, &mut random);
            plan.motifs.push(motif);
        }
        plan
    }

    fn back_motif(&self, feature: &str, random: &mut Random) -> BackMotif {
        let at = random.below(self.routers);
        let anywhere = match random.chance(50) && self.has_back() {
            true => Place::Back,
            false => Place::On(at),
        };
        match feature {
            "INVALID drops" => BackMotif::Invalid {
                at: match self.hairpin() {
                    Some(_) => Place::On(0),
                    None => Place::Detour(random.below(self.routers - 1)),
                },
            },
            "zones" => BackMotif::Zones {
                at: self.hairpin().map_or(at, |hairpin| hairpin.at),
                apart: random.chance(50),
                masqueraded: self.some(50, random),
                invalid: random.chance(30),
            },
            "answers dropped" => BackMotif::Dropped {
                at: anywhere,
                services: self.some(30, random),
            },
            "known connections" => BackMotif::Known {
                at: match self.hairpin() {
                    Some(_) => Place::On(0),
                    None => anywhere,
                },
                services: self.some(80, random),
            },
            "answers by mark" => BackMotif::Marked {
                at: random.below(self.routers - 1),
                services: self.some(60, random),
            },
            "several next hops" => BackMotif::Spread {
                at: random.below(self.routers - 1),
                back: random.chance(50),
                how: Hops::default(),
                dropped: match random.chance(60) {
                    true => self.some(30, random),
                    false => Vec::new(),
                },
                masqueraded: match random.chance(40) {
                    true => self.some(40, random),
                    false => Vec::new(),
                },
            },
            "own gateway" => BackMotif::Gateway,
            "NAT on several routers" => {
                let first = random.below(self.routers - 1);
                BackMotif::Twice {
                    first,
                    masqueraded: self.some(70, random),
                    second: first + 1 + random.below(self.routers - 1 - first),
                    translated: self.some(70, random),
                }
            }
            _ => BackMotif::Hairpin(Hairpin {
                at: random.below(2),
                masqueraded: self.some(60, random),
                own: feature == "calls itself",
            }),
        }
    }

    /// Whether the destination has a gateway by which no request comes.
    pub(in super::super) fn has_back(&self) -> bool {
        self.motifs.contains(&Motif::Back(BackMotif::Gateway))
    }

    /// Whether that router has two next hops for requests, and whether the one behind it has two for
    /// answers; none where it has one.
    pub(in super::super) fn spread(&self, router: usize) -> Option<bool> {
        self.motifs.iter().find_map(|motif| match motif {
            Motif::Back(BackMotif::Spread { at, back, .. }) if *at == router => Some(*back),
            _ => None,
        })
    }

    /// How the destination is on the source's segment, if it is.
    pub(in super::super) fn hairpin(&self) -> Option<&Hairpin> {
        self.motifs.iter().find_map(|motif| match motif {
            Motif::Back(BackMotif::Hairpin(hairpin)) => Some(hairpin),
            _ => None,
        })
    }
}

impl Putting<'_> {
    pub(in super::super) fn put_back(&mut self, motif: &BackMotif) {
        match motif {
            BackMotif::Invalid { at } => self.invalid(*at),
            BackMotif::Zones {
                at,
                apart,
                masqueraded,
                invalid,
            } => {
                let place = Place::On(*at);
                let from = apart.then_some(*at);
                self.rule(place, Chain::Raw, Match::In(from), Act::Zone(7));
                self.translate(place, masqueraded, &Act::Masquerade);
                if *invalid {
                    self.invalid(place);
                }
            }
            BackMotif::Dropped { at, services } => {
                for service in services {
                    let which = Match::AnswerOf(*service);
                    self.rule(*at, Chain::Forward, which, Act::Drop);
                }
            }
            BackMotif::Known { at, services } => {
                self.rule(*at, Chain::Forward, Match::Established, Act::Accept);
                self.filter(*at, services, Filter::AllowAlone);
            }
            BackMotif::Gateway => {}
            BackMotif::Marked { at, services } => self.marked(*at, services),
            BackMotif::Spread {
                at,
                dropped,
                masqueraded,
                ..
            } => {
                for service in dropped {
                    let which = Match::Service(*service);
                    self.rule(Place::Detour(*at), Chain::Forward, which, Act::Drop);
                }
                self.translate(Place::On(*at), masqueraded, &Act::Masquerade);
            }
            BackMotif::Twice {
                first,
                masqueraded,
                second,
                translated,
            } => {
                self.translate(Place::On(*first), masqueraded, &Act::Masquerade);
                let place = Place::On(*second);
                let pool = Act::Snat(self.net.pool(place));
                self.translate(place, translated, &pool);
            }
            BackMotif::Hairpin(hairpin) => self.hairpin(hairpin),
        }
    }

    fn invalid(&mut self, at: Place) {
        self.rule(at, Chain::Forward, Match::Invalid, Act::Drop);
    }

    fn marked(&mut self, at: usize, services: &[Service]) {
        let place = Place::On(at + 1);
        for service in services {
            let (which, act) = (Match::AnswerOf(*service), Act::Mark(MARK));
            self.rule(place, Chain::Mark, which, act);
        }
        if self.plan.has(Place::Detour(at)) {
            let gateway = self.net.of(150 + at, Place::Detour(at));
            self.route_marked(place, MARK, &gateway);
        }
    }

    fn translate(&mut self, at: Place, services: &[Service], act: &Act) {
        for service in services {
            let which = Match::Service(*service);
            self.rule(at, Chain::Snat, which, act.clone());
        }
    }

    fn hairpin(&mut self, hairpin: &Hairpin) {
        let place = Place::On(hairpin.at);
        for service in &self.plan.services {
            let which = Match::To(*service, self.net.published());
            let act = Act::Dnat(self.net.target(), None);
            self.rule(place, Chain::Dnat, which, act);
        }
        self.translate(place, &hairpin.masqueraded, &Act::Masquerade);
    }
}
