//! What the routers' own tables say of a packet: which of several look the same to policy rules,
//! and where a router sends it.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    lab::{
        sockets::RouterSockets,
        trace::{Entry, Wiring},
    },
    model::{IfName, RouterName},
    netlink::{
        Fib, Lookup, LookupQuery,
        object::{Family, PolicyRule, PortRange},
    },
    run::{
        packet::{Headers, Probe},
        resolve::ResolveError,
    },
};

/// The tables of a lab's routers, and the wires between them.
pub(super) struct Tables<'a> {
    pub(super) wiring: &'a Wiring,
    pub(super) sockets: &'a mut RouterSockets,
    family: Family,
    rules: HashMap<RouterName, Arc<[PolicyRule]>>,
    /// What was asked before, by router.
    outs: HashMap<(RouterName, LookupQuery), Vec<Out>>,
    lookups: HashMap<(RouterName, LookupQuery), Lookup>,
}

/// One way out of a router: the interface, and the gateway if there is one.
pub(super) type Out = (IfName, Option<IpAddr>);

impl<'a> Tables<'a> {
    pub(super) fn new(wiring: &'a Wiring, sockets: &'a mut RouterSockets, family: Family) -> Self {
        Self {
            wiring,
            sockets,
            family,
            rules: HashMap::new(),
            outs: HashMap::new(),
            lookups: HashMap::new(),
        }
    }

    /// The policy rules of a router, read once.
    pub(super) fn rules(&mut self, router: &RouterName) -> Result<Arc<[PolicyRule]>, ResolveError> {
        if let Some(rules) = self.rules.get(router) {
            return Ok(Arc::clone(rules));
        }
        let rules = self.sockets.router(router)?.rules(self.family);
        let rules: Arc<[PolicyRule]> = rules.map_err(lookup_failed)?.into();
        self.rules.insert(router.clone(), Arc::clone(&rules));
        Ok(rules)
    }

    /// The router's policy rules and routes themselves.
    pub(super) fn fib(&mut self, router: &RouterName) -> Result<Fib, ResolveError> {
        let rules = self.rules(router)?.to_vec();
        let routes = self.sockets.router(router)?.routes(self.family, None);
        Ok(Fib::new(rules, routes.map_err(lookup_failed)?))
    }

    /// How the kernel of the router at `at` routes a packet that comes in there, asked once.
    pub(super) fn lookup(
        &mut self,
        at: &Entry,
        headers: &Headers,
        mark: u32,
    ) -> Result<Lookup, ResolveError> {
        let asked = (at.router.clone(), query(at, headers, mark));
        if let Some(known) = self.lookups.get(&asked) {
            return Ok(known.clone());
        }
        let netlink = self.sockets.router(&at.router)?;
        let found = netlink.lookup_one(&asked.1).map_err(lookup_failed)?;
        self.lookups.insert(asked, found.clone());
        Ok(found)
    }

    /// All ways out that the route of such a packet has, asked once; none where it goes nowhere.
    pub(super) fn outs(
        &mut self,
        at: &Entry,
        headers: &Headers,
        mark: u32,
    ) -> Result<Vec<Out>, ResolveError> {
        let asked = (at.router.clone(), query(at, headers, mark));
        if !self.outs.contains_key(&asked) {
            self.ask(at, headers, [mark])?;
        }
        Ok(self.outs.get(&asked).cloned().unwrap_or_default())
    }

    /// Asks the router, at once, for the ways out of such a packet with every mark that its policy rules know, and
    /// without; returns the marks.
    pub(super) fn ask_with_marks(
        &mut self,
        at: &Entry,
        headers: &Headers,
    ) -> Result<BTreeSet<u32>, ResolveError> {
        let rules = self.rules(&at.router)?;
        let marks = rules.iter().filter_map(|rule| Some(rule.fwmark?.0));
        let marks: BTreeSet<u32> = marks.chain([0]).collect();
        self.ask(at, headers, marks.iter().copied())?;
        Ok(marks)
    }

    /// Asks the router, at once, for most of what is to be known of the ways of such probes.
    pub(super) fn ask_ahead(&mut self, at: &Entry, probes: &[Probe]) -> Result<(), ResolveError> {
        match probes.first() {
            Some(first) => self.ask_with_marks(at, &first.headers).map(drop),
            None => Ok(()),
        }
    }

    /// Asks the router, at once, for the ways out of such a packet with each of these marks.
    fn ask(
        &mut self,
        at: &Entry,
        headers: &Headers,
        marks: impl IntoIterator<Item = u32>,
    ) -> Result<(), ResolveError> {
        let queries = marks.into_iter().map(|mark| query(at, headers, mark));
        let asked = queries.map(|query| (at.router.clone(), query));
        let new: Vec<_> = asked
            .filter(|asked| !self.outs.contains_key(asked))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let queries: Vec<LookupQuery> = new.iter().map(|(_, query)| query.clone()).collect();
        let netlink = self.sockets.router(&at.router)?;
        let hops = netlink.all_next_hops(&queries).map_err(lookup_failed)?;
        let outs = hops.into_iter().map(|hops| {
            let hops = hops.into_iter();
            hops.filter_map(|hop| Some((hop.dev?, hop.via))).collect()
        });
        self.outs.extend(new.into_iter().zip(outs));
        Ok(())
    }
}

fn lookup_failed(error: crate::netlink::NetlinkError) -> ResolveError {
    ResolveError::Trace(error.into())
}

pub(super) fn query(at: &Entry, headers: &Headers, mark: u32) -> LookupQuery {
    LookupQuery {
        from: Some(headers.source),
        iif: at.iface_in.clone(),
        mark,
        tos: headers.tos,
        ip_proto: Some(headers.protocol.number()),
        sport: Some(headers.source_port),
        dport: Some(headers.destination_port),
        ..LookupQuery::to(headers.destination)
    }
}

/// Groups of probes that differ in nothing that routing looks at. Within a group the order is kept.
pub(super) fn classes<'a>(rules: &[PolicyRule], probes: &'a [Probe]) -> Vec<Cow<'a, [Probe]>> {
    let choosy: Vec<&PolicyRule> = rules.iter().filter(|rule| looks_at_ports(rule)).collect();
    let first = probes.first().map(|probe| routed(&probe.headers));
    let alike = |probe: &Probe| Some(routed(&probe.headers)) == first;
    if choosy.is_empty() && probes.iter().all(alike) {
        // So it mostly is, and there may be 65,535.
        return first.into_iter().map(|_| Cow::Borrowed(probes)).collect();
    }
    let mut classes: Vec<Vec<Probe>> = Vec::new();
    let mut known: HashMap<(Headers, Vec<bool>), usize> = HashMap::new();
    let mut last: Option<(Headers, usize)> = None;
    for probe in probes {
        let routed = routed(&probe.headers);
        let number = match last {
            Some((same, number)) if choosy.is_empty() && same == routed => number,
            _ => {
                let chosen = choosy.iter().map(|rule| selects(rule, &probe.headers));
                *known.entry((routed, chosen.collect())).or_insert_with(|| {
                    classes.push(Vec::new());
                    classes.len() - 1
                })
            }
        };
        last = Some((routed, number));
        if let Some(class) = classes.get_mut(number) {
            class.push(*probe);
        }
    }
    classes.into_iter().map(Cow::Owned).collect()
}

/// The headers without ports and TTL, which routes do not look at.
pub(super) fn routed(headers: &Headers) -> Headers {
    Headers {
        source_port: 0,
        destination_port: 0,
        protocol: crate::model::Protocol::Tcp,
        ttl: 0,
        size: None,
        options_open: false,
        chosen: None,
        ..*headers
    }
}

/// Whether a policy rule looks at protocol or ports.
pub(super) fn looks_at_ports(rule: &PolicyRule) -> bool {
    rule.sport.is_some() || rule.dport.is_some() || rule.ip_proto.is_some()
}

/// Whether what a policy rule says of ports and protocol fits.
pub(super) fn selects(rule: &PolicyRule, headers: &Headers) -> bool {
    let within = |range: Option<PortRange>, port: u16| {
        range.is_none_or(|r| (r.first..=r.last).contains(&port))
    };
    rule.ip_proto.is_none_or(|p| p == headers.protocol.number())
        && within(rule.sport, headers.source_port)
        && within(rule.dport, headers.destination_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Protocol, netlink::object::RuleAction};

    #[test]
    fn probes_are_grouped_by_the_rules_that_select_them() {
        let rule = |priority| PolicyRule::new(Family::V4, priority, RuleAction::Table(100));
        let mut web = rule(1);
        web.dport = Some(PortRange {
            first: 80,
            last: 80,
        });
        let mut udp = rule(2);
        udp.ip_proto = Some(17);
        let probe = |index, protocol, destination_port| Probe {
            index,
            headers: Headers {
                source: "10.0.0.1".parse().unwrap(),
                destination: "10.9.0.1".parse().unwrap(),
                protocol,
                source_port: 40_000,
                destination_port,
                tos: 0,
                ttl: 64,
                size: None,
                options_open: false,
                chosen: None,
            },
        };
        let probes = [
            probe(0, Protocol::Tcp, 79),
            probe(1, Protocol::Tcp, 80),
            probe(2, Protocol::Tcp, 81),
            probe(3, Protocol::Udp, 53),
        ];
        let indexes = |rules: &[PolicyRule]| -> Vec<Vec<u32>> {
            let of = |class: Cow<'_, [Probe]>| class.iter().map(|p| p.index).collect();
            classes(rules, &probes).into_iter().map(of).collect()
        };
        assert_eq!(
            indexes(&[web, udp, rule(3)]),
            [vec![0, 2], vec![1], vec![3]]
        );
        assert_eq!(indexes(&[rule(3)]), [vec![0, 1, 2, 3]]);
    }
}
