//! What a plan puts on each router: addresses, routes, policy rules and firewall rules.

use super::{
    forks::plan::Hops,
    plan::{Branch, By, Filter, Motif, OTHER_PORT, Place, Plan, Service, Snat},
    rules::{Act, Chain, Match, Rules},
};

/// The hosts' number in their segments.
const HOST: usize = 100;
/// That of the destination on the source's own segment.
const SERVER: usize = 101;
/// TOS octet that policy rules look for, and its DSCP.
const TOS: u8 = 0x10;

/// A router, or a host.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    /// Segment and address with its prefix length. The interface is called `s` and the segment.
    pub(super) interfaces: Vec<(usize, String)>,
    /// As for `ip route add`.
    pub(super) routes: Vec<String>,
    /// As for `ip rule add`.
    pub(super) policy: Vec<String>,
    /// Routes that have several next hops: where to, and all gateways.
    pub(super) spread: Vec<(String, Vec<String>)>,
    /// As for `ip nexthop add`, for routes that refer to them.
    pub(super) next_hops: Vec<String>,
    /// Whether routes are shown with the numbers of next hops alone.
    pub(super) numbers_only: bool,
    /// Segments that are narrower than others.
    pub(super) mtus: Vec<(usize, u16)>,
    /// Interfaces with a strict reverse path filter.
    pub(super) strict: Vec<usize>,
    pub(super) rules: Rules,
    pub(super) is_host: bool,
}

impl Node {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            interfaces: Vec::new(),
            routes: Vec::new(),
            policy: Vec::new(),
            spread: Vec::new(),
            next_hops: Vec::new(),
            numbers_only: false,
            mtus: Vec::new(),
            strict: Vec::new(),
            rules: Rules::default(),
            is_host: false,
        }
    }

    fn via(&mut self, to: &str, gateway: &str) {
        self.routes.push(format!("{to} via {gateway}"));
    }

    /// A route with several next hops, each with the segment that it is on.
    fn via_any(&mut self, to: &str, hops: &[(usize, String)], how: Hops) {
        let weight = |at: usize| if how.weights { at + 2 } else { 1 };
        let gateways = hops.iter().map(|(_, gateway)| gateway.clone());
        self.spread.push((to.to_owned(), gateways.collect()));
        if !how.objects {
            let hop = |(at, (_, via)): (usize, &(usize, String))| {
                format!(" nexthop via {via} weight {}", weight(at))
            };
            let all: String = hops.iter().enumerate().map(hop).collect();
            return self.routes.push(format!("{to}{all}"));
        }
        self.numbers_only = how.weights;
        let first = self.next_hops.len() + 1;
        let mut group = Vec::new();
        for (at, (segment, gateway)) in hops.iter().enumerate() {
            let number = first + at;
            self.next_hops
                .push(format!("id {number} via {gateway} dev s{segment}"));
            group.push(format!("{number},{}", weight(at)));
        }
        let number = first + hops.len();
        self.next_hops
            .push(format!("id {number} group {}", group.join("/")));
        self.routes.push(format!("{to} nhid {number}"));
    }
}

/// All routers and the two hosts of a plan.
#[derive(Debug)]
pub(super) struct World {
    pub(super) v6: bool,
    pub(super) routers: Vec<Node>,
    pub(super) source: Node,
    pub(super) destination: Node,
    /// Who sends: the source, or a router.
    pub(super) sender: String,
    /// What is asked about.
    pub(super) asked: (String, String),
    /// The destination's subnet and the router that is its gateway, where others could be it, too.
    pub(super) gateway: Option<(String, String)>,
}

impl World {
    pub(super) fn of(plan: &Plan) -> Self {
        let net = Net(plan);
        let places = (0..plan.routers)
            .map(Place::On)
            .chain((0..plan.routers).map(Place::Detour))
            .chain((0..plan.routers).map(Place::Twin))
            .chain([Place::Second, Place::Back]);
        let places: Vec<Place> = places.filter(|place| plan.has(*place)).collect();
        let routers = places.iter().map(|place| net.router(*place)).collect();
        let mut world = Self {
            v6: plan.v6,
            routers,
            source: net.source(),
            destination: net.destination(),
            sender: net.sender(),
            asked: net.asked(),
            gateway: plan
                .has(Place::Back)
                .then(|| (net.prefix(plan.routers), name(Place::Back))),
        };
        for (number, motif) in plan.motifs.iter().enumerate() {
            Putting {
                plan,
                net: &net,
                world: &mut world,
            }
            .put(number, motif);
        }
        world
    }

    /// Who is called: the destination, or the source itself.
    pub(super) fn server(&self) -> &Node {
        match self.destination.interfaces.is_empty() {
            true => &self.source,
            false => &self.destination,
        }
    }

    pub(super) fn at(&mut self, place: Place) -> Option<&mut Node> {
        let name = name(place);
        self.routers.iter_mut().find(|node| node.name == name)
    }
}

/// A router's name.
pub(super) fn name(place: Place) -> String {
    match place {
        Place::On(at) => format!("r{at}"),
        Place::Detour(at) => format!("d{at}"),
        Place::Twin(at) => format!("t{at}"),
        Place::Second => "second".to_owned(),
        Place::Back => "back".to_owned(),
    }
}

/// The addresses of a chain.
///
/// The segments of the straight way are 0 and so on; those of the detour behind router N are 100 + N
/// and 150 + N.
pub(super) struct Net<'a>(pub(super) &'a Plan);

impl Net<'_> {
    pub(super) fn prefix(&self, segment: usize) -> String {
        match self.0.v6 {
            true => format!("fd40:0:0:{segment:x}::/64"),
            false => format!("10.40.{segment}.0/24"),
        }
    }

    pub(super) fn address(&self, segment: usize, number: usize) -> String {
        match self.0.v6 {
            true => format!("fd40:0:0:{segment:x}::{number:x}"),
            false => format!("10.40.{segment}.{number}"),
        }
    }

    pub(super) fn of(&self, segment: usize, place: Place) -> String {
        self.address(segment, number(place))
    }

    pub(super) fn host(&self, segment: usize) -> String {
        self.address(segment, HOST)
    }

    /// An address of no segment, for source NAT.
    pub(super) fn pool(&self, place: Place) -> String {
        match self.0.v6 {
            true => format!("2001:db8:5::{:x}", number(place)),
            false => format!("198.51.100.{}", number(place)),
        }
    }

    pub(super) fn published(&self) -> String {
        match self.0.v6 {
            true => "2001:db8:ff::10".to_owned(),
            false => "198.18.0.10".to_owned(),
        }
    }

    /// The destination's own address.
    pub(super) fn target(&self) -> String {
        if let Some(hairpin) = self.0.hairpin() {
            return self.address(0, if hairpin.own { HOST } else { SERVER });
        }
        match (self.0.far, self.0.v6) {
            (false, _) => self.host(self.0.routers),
            (true, true) => "2001:db8:cb::50".to_owned(),
            (true, false) => "203.0.113.50".to_owned(),
        }
    }

    pub(super) fn interface(&self, segment: usize, number: usize) -> (usize, String) {
        let length = if self.0.v6 { 64 } else { 24 };
        (
            segment,
            format!("{}/{length}", self.address(segment, number)),
        )
    }

    fn source(&self) -> Node {
        let mut node = Node::new("source");
        node.is_host = true;
        node.interfaces.push(self.interface(0, HOST));
        node.via("default", &self.of(0, Place::On(0)));
        if self.0.has(Place::Second) {
            let gateway = self.of(0, Place::Second);
            node.via("default table 2", &gateway);
            node.policy.push("pref 100 fwmark 2 lookup 2".to_owned());
        }
        node
    }

    fn destination(&self) -> Node {
        let last = self.0.routers;
        let mut node = Node::new("destination");
        node.is_host = true;
        if let Some(hairpin) = self.0.hairpin() {
            if !hairpin.own {
                node.interfaces.push(self.interface(0, SERVER));
                node.via("default", &self.of(0, Place::On(0)));
            }
            return node;
        }
        node.interfaces.push(self.interface(last, HOST));
        if self.0.far {
            let length = if self.0.v6 { 128 } else { 32 };
            let own = (last, format!("{}/{length}", self.target()));
            node.interfaces.push(own);
            // What is behind the gateway is its to say, and it has everybody answer.
            if self.0.published() {
                let called = (last, format!("{}/{length}", self.published()));
                node.interfaces.push(called);
            }
        }
        let gateway = match self.0.has(Place::Back) {
            true => Place::Back,
            false => Place::On(last - 1),
        };
        node.via("default", &self.of(last, gateway));
        node
    }

    fn router(&self, place: Place) -> Node {
        let mut node = Node::new(&name(place));
        let segments = match place {
            Place::On(at) => {
                let mut segments = vec![at, at + 1];
                if self.0.has_detour(at) {
                    segments.push(100 + at);
                }
                if at > 0 && self.0.has_detour(at - 1) {
                    segments.push(150 + at - 1);
                }
                segments
            }
            Place::Detour(at) => vec![100 + at, 150 + at],
            Place::Twin(at) => vec![at + 1, at + 2],
            Place::Second => vec![0, 1],
            Place::Back => vec![self.0.routers, self.0.routers - 1],
        };
        let own = number(place);
        let interfaces = segments.iter().map(|segment| self.interface(*segment, own));
        node.interfaces = interfaces.collect();
        self.route(place, &mut node);
        node
    }

    fn route(&self, place: Place, node: &mut Node) {
        let last = self.0.routers - 1;
        let (onward, at, back) = match place {
            Place::Twin(before) => {
                let at = before + 1;
                (self.onward(at), at, Some(self.of(at, Place::On(before))))
            }
            Place::On(at) => {
                let onward = self.onward(at);
                let back = at
                    .checked_sub(1)
                    .map(|before| self.of(at, Place::On(before)));
                (onward, at, back)
            }
            Place::Detour(at) => {
                let back = self.of(100 + at, Place::On(at));
                let onward = self.of(150 + at, Place::On(at + 1));
                (Some(onward), at + 1, Some(back))
            }
            Place::Second => (Some(self.of(1, Place::On(1))), 0, None),
            Place::Back => (Some(self.of(last, Place::On(last - 1))), 0, None),
        };
        if let Some(onward) = onward {
            match place {
                Place::On(at) if self.spread(at).is_some() || self.0.has(Place::Twin(at)) => {
                    let mut hops = vec![(at + 1, onward)];
                    if self.0.has(Place::Twin(at)) {
                        hops.push((at + 1, self.of(at + 1, Place::Twin(at))));
                    }
                    if self.spread(at).is_some() {
                        hops.push((100 + at, self.of(100 + at, Place::Detour(at))));
                    }
                    node.via_any("default", &hops, self.0.hops(at));
                }
                _ => node.via("default", &onward),
            }
        }
        let Some(back) = back else { return };
        let by_detour = |at: usize| self.of(150 + at - 1, Place::Detour(at - 1));
        let detoured = matches!(place, Place::On(_)) && self.asymmetric(at - 1);
        for segment in 0..at {
            let gateway = match detoured {
                true => by_detour(at),
                false => back.clone(),
            };
            let either = matches!(place, Place::On(_)) && self.spread(at - 1) == Some(true);
            match either && !detoured {
                true => {
                    let hops = [(at, gateway), (150 + at - 1, by_detour(at))];
                    node.via_any(&self.prefix(segment), &hops, Hops::default());
                }
                false => node.via(&self.prefix(segment), &gateway),
            }
        }
        for before in (0..at).filter(|before| self.0.has_detour(*before)) {
            let mine = |segment: usize| node.interfaces.iter().any(|(own, _)| *own == segment);
            let beside = matches!(place, Place::On(_)) && before + 1 == at;
            let missing = [100 + before, 150 + before].into_iter();
            for segment in missing.filter(|s| !mine(*s)).collect::<Vec<_>>() {
                let gateway = match beside {
                    true => by_detour(at),
                    false => back.clone(),
                };
                node.via(&self.prefix(segment), &gateway);
            }
        }
        for before in 0..at {
            node.via(&self.pool(Place::On(before)), &back);
        }
    }

    /// Where the router with this number sends what is for the destination.
    fn onward(&self, at: usize) -> Option<String> {
        match at + 1 == self.0.routers {
            false => Some(self.of(at + 1, Place::On(at + 1))),
            true => self.0.far.then(|| self.host(at + 1)),
        }
    }

    fn spread(&self, router: usize) -> Option<bool> {
        let detour = self.0.has(Place::Detour(router));
        self.0.spread(router).filter(|_| detour)
    }

    fn asymmetric(&self, router: usize) -> bool {
        let is = |motif: &Motif| match motif {
            Motif::Asymmetric { at, .. } => *at == router,
            Motif::Back(back) => back.makes_detour(router),
            _ => false,
        };
        self.0.has_detour(router) && self.0.motifs.iter().any(is)
    }
}

/// How a policy rule chooses a service.
fn lookup(service: Service, v6: bool) -> String {
    let protocol = service.protocol.number(v6);
    match service.protocol.has_ports() {
        true => format!("ipproto {protocol} dport {}", service.port),
        false => format!("ipproto {protocol}"),
    }
}

fn number(place: Place) -> usize {
    match place {
        Place::On(at) => 11 + at,
        Place::Detour(at) => 51 + at,
        Place::Twin(at) => 71 + at,
        Place::Second => 31,
        Place::Back => 32,
    }
}

/// Puts motifs on routers. What a shorter chain does not have is left out.
pub(super) struct Putting<'a> {
    pub(super) plan: &'a Plan,
    pub(super) net: &'a Net<'a>,
    pub(super) world: &'a mut World,
}

impl Putting<'_> {
    pub(super) fn rule(&mut self, place: Place, chain: Chain, which: Match, act: Act) {
        if let Some(node) = self.world.at(place) {
            node.rules.add(chain, which, act);
        }
    }

    pub(super) fn drop_all(&mut self, place: Place, services: &[Service]) {
        for service in services {
            self.rule(place, Chain::Forward, Match::Service(*service), Act::Drop);
        }
    }

    fn put(&mut self, number: usize, motif: &Motif) {
        match motif {
            Motif::Source {
                at,
                how,
                services,
                dropper,
                new,
            } => self.source_nat(*at, *how, services, (*dropper, *new)),
            Motif::Published { at, services } => {
                for service in services {
                    let which = Match::To(*service, self.net.published());
                    let act = Act::Dnat(self.net.target(), None);
                    self.rule(Place::On(*at), Chain::Dnat, which, act);
                }
            }
            Motif::Port {
                at,
                service,
                dropper,
                dropped,
            } => {
                let act = Act::Dnat(self.net.target(), Some(OTHER_PORT));
                self.rule(Place::On(*at), Chain::Dnat, Match::Service(*service), act);
                let port = if *dropped { OTHER_PORT } else { service.port };
                self.drop_all(Place::On(*dropper), &[Service { port, ..*service }]);
            }
            Motif::Redirect {
                at,
                service,
                closed,
            } => {
                let place = Place::On(*at);
                let (which, act) = (Match::Service(*service), Act::Redirect(OTHER_PORT));
                self.rule(place, Chain::Dnat, which, act);
                if *closed {
                    let port = OTHER_PORT;
                    let which = Match::Service(Service { port, ..*service });
                    self.rule(place, Chain::Input, which, Act::Drop);
                }
            }
            Motif::Policy {
                at,
                by,
                to,
                services,
                dropped,
            } => {
                self.policy(number, *at, (*by, *to), services);
                self.drop_all(Place::Detour(*at), dropped);
            }
            Motif::Dscp {
                at,
                services,
                value,
                dropper,
            } => {
                for service in services {
                    let (which, act) = (Match::Service(*service), Act::Dscp(*value));
                    self.rule(Place::On(*at), Chain::Rewrite, which, act);
                }
                let which = Match::Dscp(*value);
                self.rule(Place::On(*dropper), Chain::Forward, which, Act::Drop);
            }
            Motif::Asymmetric { at, strict } => {
                if let Some(node) = self.world.at(Place::On(at + 1)).filter(|_| *strict) {
                    node.strict.push(at + 1);
                }
            }
            Motif::Entries {
                dropped_first,
                dropped_second,
                ..
            } => {
                self.drop_all(Place::On(0), dropped_first);
                self.drop_all(Place::Second, dropped_second);
            }
            Motif::Filter { at, services, how } => self.filter(*at, services, *how),
            Motif::Stateful { at } => {
                let place = Place::On(*at);
                self.rule(place, Chain::Forward, Match::Established, Act::Accept);
                self.rule(place, Chain::Forward, Match::Invalid, Act::Drop);
            }
            Motif::Back(back) => self.put_back(back),
            Motif::Fork(fork) => self.put_fork(fork),
        }
    }

    fn source_nat(
        &mut self,
        at: Place,
        how: Snat,
        services: &[Service],
        (dropper, new): (usize, bool),
    ) {
        let Place::On(router) = at else { return };
        let (act, becomes) = match how {
            Snat::Pool => (Act::Snat(self.net.pool(at)), self.net.pool(at)),
            Snat::Masquerade => (Act::Masquerade, self.net.of(router + 1, at)),
        };
        for service in services {
            let which = Match::Service(*service);
            self.rule(at, Chain::Snat, which, act.clone());
        }
        let dropped = if new { becomes } else { self.net.prefix(0) };
        let which = Match::From(dropped, true);
        self.rule(Place::On(dropper), Chain::Forward, which, Act::Drop);
    }

    fn policy(&mut self, number: usize, at: usize, (by, to): (By, Branch), services: &[Service]) {
        let gateway = self.net.of(100 + at, Place::Detour(at));
        let (place, table, mark) = (Place::On(at), 200 + number, 1 + number);
        let Some(node) = self.world.at(place) else {
            return;
        };
        match to {
            Branch::DeadEnd => node
                .routes
                .push(format!("unreachable default table {table}")),
            Branch::Detour if !self.plan.has(Place::Detour(at)) => return,
            Branch::Detour => node.via(&format!("default table {table}"), &gateway),
        }
        let v6 = self.plan.v6;
        let first = 1000 + 100 * number;
        let mut choose = |number: usize, what: &str| {
            let rule = format!("pref {} {what} lookup {table}", first + number);
            node.policy.push(rule);
        };
        match by {
            By::Mark => choose(0, &format!("fwmark {mark}")),
            By::Tos => choose(0, &format!("tos {TOS:#x}")),
            By::Port => {
                for (number, service) in services.iter().enumerate() {
                    choose(number, &lookup(*service, v6));
                }
            }
        }
        for service in services {
            let which = Match::Service(*service);
            match by {
                By::Mark => {
                    let act = Act::Mark(u32::try_from(mark).unwrap());
                    self.rule(place, Chain::Mark, which, act);
                }
                By::Tos if at == 0 => self.rule(place, Chain::Mark, which, Act::Dscp(TOS >> 2)),
                By::Tos => {
                    let before = Place::On(at - 1);
                    self.rule(before, Chain::Rewrite, which, Act::Dscp(TOS >> 2));
                }
                By::Port => {}
            }
        }
    }

    /// Routes what has a mark to this gateway.
    pub(super) fn route_marked(&mut self, place: Place, mark: u32, gateway: &str) {
        if let Some(node) = self.world.at(place) {
            node.via("default table 99", gateway);
            node.policy
                .push(format!("pref 900 fwmark {mark} lookup 99"));
        }
    }

    pub(super) fn filter(&mut self, at: Place, services: &[Service], how: Filter) {
        let act = match how {
            Filter::Drop => Act::Drop,
            Filter::Reject => Act::Reject,
            Filter::AllowAlone => Act::Accept,
        };
        for service in services {
            let which = Match::Service(*service);
            self.rule(at, Chain::Forward, which, act.clone());
        }
        if let Some(node) = self.world.at(at).filter(|_| how == Filter::AllowAlone) {
            node.rules.drops = true;
        }
    }
}
