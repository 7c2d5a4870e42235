//! Where a way forks behind a router: several next hops over one interface, or several routers that
//! answer for one next hop (VRRP and the like); or at a route with next hops over several interfaces.

use std::{fmt, net::IpAddr};

use crate::{
    lab::trace::Entry,
    model::{IfName, RouterName},
    netlink::object::{NextHop, Route},
};

/// A router whose route to an address has next hops over several interfaces. All its routes with these
/// next hops count as one: a packet meets one of them, whatever its address has become by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpreadRoute {
    pub(super) router: RouterName,
    pub(super) to: IpAddr,
    pub(super) hops: Vec<NextHop>,
}

/// One of these next hops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SingleHop {
    pub(super) spread: SpreadRoute,
    pub(super) hop: NextHop,
}

impl SpreadRoute {
    /// Each of its next hops.
    pub(super) fn singles(&self) -> impl Iterator<Item = SingleHop> + '_ {
        self.hops.iter().map(|hop| SingleHop {
            spread: self.clone(),
            hop: hop.clone(),
        })
    }

    /// Whether this is such a route.
    pub(super) fn is_by(&self, route: &Route) -> bool {
        self.has(&route.next_hops)
    }

    /// Whether the next hops are over several interfaces.
    pub(super) fn is_over_several(&self) -> bool {
        let mut hops = self.hops.iter().map(|hop| &hop.dev);
        let first = hops.next();
        hops.any(|dev| Some(dev) != first)
    }

    /// Whether both count as one.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.router == other.router && self.has(&other.hops)
    }

    /// Whether a route with these next hops is meant.
    pub(super) fn has(&self, hops: &[NextHop]) -> bool {
        let same = |a: &NextHop, b: &NextHop| (&a.dev, a.via) == (&b.dev, b.via);
        hops.len() == self.hops.len() && hops.iter().all(|a| self.hops.iter().any(|b| same(a, b)))
    }

    /// What there is to choose from, as quick jobs say it.
    pub(super) fn choice(&self) -> String {
        let number = match self.hops.len() {
            2 => "two".to_owned(),
            3 => "three".to_owned(),
            more => more.to_string(),
        };
        let (router, to) = (&self.router, self.to);
        format!("the route of {router} to {to} has {number} next hops")
    }

    /// It in words, and why each of the next hops was not measured.
    pub(super) fn text(&self, why: Option<&str>) -> String {
        let router = &self.router;
        let why = why.map_or(String::new(), |why| {
            format!(" (not measured one by one: {why})")
        });
        format!("{router} has several next hops on several interfaces{why}")
    }
}

impl fmt::Display for SingleHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.dev(), self.spread.router)
    }
}

impl SingleHop {
    /// The interface.
    pub(super) fn dev(&self) -> &str {
        self.hop.dev.as_ref().map_or("no interface", IfName::as_str)
    }
}

/// Routers behind an interface, to any of which packets may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Junction {
    pub(super) router: RouterName,
    pub(super) out: IfName,
    pub(super) to: Vec<Entry>,
}

/// One of the routers of a fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) router: RouterName,
    pub(super) out: IfName,
    pub(super) to: Entry,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} behind {}", self.to.router, self.router)
    }
}

impl Junction {
    /// Each of its routers.
    pub(super) fn choices(&self) -> impl Iterator<Item = Choice> + '_ {
        self.to.iter().map(|to| Choice {
            router: self.router.clone(),
            out: self.out.clone(),
            to: to.clone(),
        })
    }

    /// It in words.
    pub(super) fn text(&self) -> String {
        let names: Vec<String> = self.to.iter().map(ToString::to_string).collect();
        format!(
            "{} may each get it from {}",
            names.join(" and "),
            self.router
        )
    }
}
