//! What jobs change in a lab while they run, and what of it is there at one moment.

use std::{collections::BTreeSet, fs, net::IpAddr};

use tsim::{
    firewall::conntrack::Conntrack,
    model::RouterName,
    netlink::{
        Netlink,
        object::{Family, Neighbour, Route},
    },
    netns::NetnsFd,
    registry::RegistryManager,
};

use crate::quick::TestLab;

/// Words of an entry of connection tracking that change as time goes by do not begin like these.
const LASTING: [&str; 7] = [
    "src=", "dst=", "sport=", "dport=", "type=", "code=", "zone=",
];

/// The state of one namespace, as far as jobs change it.
#[derive(Debug)]
pub(crate) struct Untouched {
    name: String,
    /// As the kernel lists them: addresses, ports and zones.
    connections: BTreeSet<String>,
    expectations: BTreeSet<String>,
    /// A number for each of both, of tuple, zone and id: one that went and came again has another.
    entries: Vec<u64>,
    /// Those that somebody has set, and those for whoever is no router.
    neighbours: Vec<Neighbour>,
    /// Of which the MTU of the path was told.
    exceptions: Vec<IpAddr>,
    routes: Vec<Route>,
    ruleset: String,
}

/// The kinds of which there is something that was not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    pub(crate) connections: bool,
    pub(crate) expectations: bool,
    pub(crate) neighbours: bool,
    pub(crate) exceptions: bool,
    pub(crate) rulesets: bool,
}

impl Untouched {
    /// Of these routers, and of hosts that somebody has put there.
    pub(crate) fn all(lab: &TestLab, routers: &[&str], hosts: &[NetnsFd]) -> Vec<Self> {
        let router = |name: &&str| {
            let netns = lab.lab.router_netns(&RouterName::new(*name).unwrap());
            ((*name).to_owned(), netns.unwrap())
        };
        let routers: Vec<(String, NetnsFd)> = routers.iter().map(router).collect();
        let of_router = |(_, netns): &(String, NetnsFd)| {
            let addresses = Netlink::open(netns).unwrap().addresses().unwrap();
            addresses.into_iter().map(|(_, a)| a.local.addr())
        };
        let known: BTreeSet<IpAddr> = routers.iter().flat_map(of_router).collect();
        let routers = routers.iter().map(|(name, netns)| {
            let ruleset = crate::quick::ruleset(lab, name);
            Self::of(name, netns, ruleset, &known)
        });
        let hosts = hosts
            .iter()
            .map(|netns| Self::of(netns.name().as_str(), netns, String::new(), &known));
        routers.chain(hosts).collect()
    }

    fn of(name: &str, netns: &NetnsFd, ruleset: String, routers: &BTreeSet<IpAddr>) -> Self {
        let mut netlink = Netlink::open(netns).unwrap();
        let mut new = Self {
            name: name.to_owned(),
            connections: lines(netns, "nf_conntrack", connection),
            expectations: lines(netns, "nf_conntrack_expect", expectation),
            entries: netns
                .enter(|| Conntrack::open_here().map(|entries| entries.known()))
                .unwrap()
                .unwrap(),
            neighbours: Vec::new(),
            exceptions: Vec::new(),
            routes: Vec::new(),
            ruleset,
        };
        for family in [Family::V4, Family::V6] {
            let mut neighbours = netlink.neighbours(family).unwrap();
            // What routers learn of each other is theirs.
            neighbours.retain(|n| {
                let set = n.state & Neighbour::PERMANENT != 0;
                set || !(n.address.is_multicast() || routers.contains(&n.address))
            });
            new.neighbours.extend(neighbours);
            let exceptions = netlink.route_exceptions(family).unwrap();
            new.exceptions.extend(exceptions);
            new.routes.extend(netlink.routes(family, None).unwrap());
        }
        new
    }

    /// Fails where something is another than it was.
    pub(crate) fn assert_same(now: &[Self], before: &[Self], when: &str) {
        for (now, before) in now.iter().zip(before) {
            let each = now.parts().into_iter().zip(before.parts());
            for ((what, now_there), (_, was_there)) in each {
                let at = &now.name;
                assert_eq!(now_there, was_there, "{when}: {what} of {at}");
            }
        }
    }

    fn parts(&self) -> [(&'static str, String); 7] {
        [
            ("connections", format!("{:?}", self.connections)),
            ("expectations", format!("{:?}", self.expectations)),
            ("entries", format!("{:?}", self.entries)),
            ("neighbours", format!("{:?}", self.neighbours)),
            ("exceptions", format!("{:?}", self.exceptions)),
            ("routes", format!("{:?}", self.routes)),
            ("rules", self.ruleset.clone()),
        ]
    }

    /// What is there in `now` that was not there in `before`, by kinds.
    pub(crate) fn since(now: &[Self], before: &[Self]) -> Traces {
        let mut traces = Traces::default();
        for (now, before) in now.iter().zip(before) {
            traces.connections |= !now.connections.is_subset(&before.connections);
            traces.expectations |= !now.expectations.is_subset(&before.expectations);
            traces.neighbours |= now.neighbours != before.neighbours;
            traces.exceptions |= now.exceptions != before.exceptions;
            traces.rulesets |= now.ruleset != before.ruleset;
        }
        traces
    }
}

fn lines(netns: &NetnsFd, file: &str, part: fn(&str) -> String) -> BTreeSet<String> {
    let path = format!("/proc/thread-self/net/{file}");
    let text = netns.enter(|| fs::read_to_string(path)).unwrap();
    // Without the modules there is nothing.
    let text = text.unwrap_or_default();
    text.lines().map(part).collect()
}

fn connection(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let lasting = |word: &&str| LASTING.iter().any(|key| word.starts_with(key));
    let rest = words.split_off(words.len().min(3));
    words.extend(rest.into_iter().filter(lasting));
    words.join(" ")
}

/// All but how long it lasts yet.
fn expectation(line: &str) -> String {
    let (_, rest) = line.trim().split_once(' ').unwrap_or_default();
    rest.to_owned()
}

/// Everything that the registry holds of jobs and hosts, in words.
pub(crate) fn registered(lab: &TestLab) -> String {
    let registry = RegistryManager::open(&lab.config).unwrap();
    let hosts: Vec<_> = registry.hosts().unwrap();
    let taken = (
        registry.source_host_leases().unwrap(),
        registry.neighbor_leases().unwrap(),
        registry.dscp_allocations().unwrap(),
        registry.locks_held().unwrap(),
        registry.tap_notes().unwrap(),
    );
    format!("{:?} {hosts:?} {taken:?}", lab.bed.left())
}
