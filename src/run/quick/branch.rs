//! Routers whose route for a packet has several next hops on several interfaces.
//!
//! Which of them a packet takes, a hash decides that is another on the real router. Rules that look
//! at the outgoing interface, and masquerading, see only the one that was taken, so each is measured
//! in a [copy of the router](crate::lab::copy) whose route has that next hop alone.

use std::{net::IpAddr, sync::Arc};

use super::{
    QuickError, lots,
    measure::step,
    tables::{Out, Tables, classes, query},
    visit::{Sender, Visit},
};
use crate::{
    lab::{
        copy::{CopyError, RouterCopy},
        trace::Entry,
    },
    model::{IfName, RouterName},
    netlink::object::{Family, Mac, NextHop, Route},
    netns::tool::Tools,
    run::{
        packet::{Headers, Probe},
        probe::WireSocket,
        resolve::ResolveError,
    },
};

/// One of several ways that a router may send a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Branch {
    pub(super) router: RouterName,
    pub(super) by: By,
}

/// What chooses among several ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum By {
    /// A route, which has several next hops.
    Route {
        /// Where the packets go, in words.
        to: String,
        /// How many next hops the route has.
        of: usize,
        /// This one.
        dev: IfName,
        via: Option<IpAddr>,
    },
    /// Lots that rules draw; this is the target with this number.
    Lot(usize),
}

impl Branch {
    /// What there is to choose from, in words.
    pub(super) fn choice(&self) -> String {
        match &self.by {
            By::Route { to, of, .. } => {
                let number = match of {
                    2 => "two".to_owned(),
                    3 => "three".to_owned(),
                    more => more.to_string(),
                };
                format!(
                    "the route of {} to {to} has {number} next hops",
                    self.router
                )
            }
            By::Lot(_) => format!("chance at {} decides where it goes", self.router),
        }
    }

    /// This one of the ways, in words, for a packet that leaves to `to`.
    pub(super) fn name(&self, (to, port): (IpAddr, u16)) -> String {
        match &self.by {
            By::Route { dev, .. } => dev.to_string(),
            By::Lot(_) => lots::name(to, port),
        }
    }

    /// The way out of a copy of the router that has no other.
    pub(super) fn way_out(&self) -> Option<Out> {
        match &self.by {
            By::Route { dev, via, .. } => Some((dev.clone(), *via)),
            By::Lot(_) => None,
        }
    }
}

/// Probes of a visit that may leave by several interfaces.
#[derive(Debug)]
pub(super) struct Fork {
    route: Route,
    pub(super) probes: Vec<Probe>,
}

/// A copy of a router with one of the next hops, and what is to be measured there.
pub(super) struct Cut {
    pub(super) branch: Arc<Branch>,
    /// None where the copy could not be made; why.
    pub(super) visit: Result<Visit, String>,
    /// Holds the copy.
    _copy: Option<RouterCopy>,
    pub(super) wire: Option<WireSocket>,
}

/// The probes at a place that may leave by several interfaces.
pub(super) fn forks(
    tables: &mut Tables<'_>,
    at: &Entry,
    probes: &[Probe],
) -> Result<Vec<Fork>, ResolveError> {
    let rules = tables.rules(&at.router)?;
    let mut fib = None;
    let mut forks = Vec::new();
    for class in classes(&rules, probes) {
        let Some(first) = class.first() else { continue };
        for mark in tables.ask_with_marks(at, &first.headers)? {
            if !leaves_open(tables, at, &first.headers, mark)? {
                continue;
            }
            let fib = match &mut fib {
                Some(fib) => fib,
                None => fib.insert(tables.fib(&at.router)?),
            };
            let decision = fib.decide(&query(at, &first.headers, mark));
            if let Some(route) = decision.route.filter(several_devs) {
                add(&mut forks, route, class.into_owned());
                break;
            }
        }
    }
    Ok(forks)
}

/// Takes note of probes that a route leaves open; those of one route need one copy for each next hop.
fn add(forks: &mut Vec<Fork>, route: Route, class: Vec<Probe>) {
    match forks.iter_mut().find(|fork| fork.route == route) {
        Some(fork) => {
            fork.probes.extend(class);
            fork.probes.sort_by_key(|probe| probe.index);
        }
        None => forks.push(Fork {
            route,
            probes: class,
        }),
    }
}

/// Whether the kernel has next hops on several interfaces for such a packet.
fn leaves_open(
    tables: &mut Tables<'_>,
    at: &Entry,
    headers: &Headers,
    mark: u32,
) -> Result<bool, ResolveError> {
    let outs = tables.outs(at, headers, mark)?;
    let first = outs.first().map(|(dev, _)| dev);
    Ok(outs.iter().any(|(dev, _)| Some(dev) != first))
}

fn several_devs(route: &Route) -> bool {
    let first = route.next_hops.first().and_then(|hop| hop.dev.as_ref());
    route.next_hops.iter().any(|hop| hop.dev.as_ref() != first)
}

impl Fork {
    /// A copy for each next hop.
    pub(super) fn cut(&self, visit: &Visit, tools: &Tools) -> Result<Vec<Cut>, QuickError> {
        let to = self.to();
        let hops = self.route.next_hops.iter();
        let branches = hops.filter_map(|hop| {
            let branch = Branch {
                router: visit.at.router.clone(),
                by: By::Route {
                    to: to.clone(),
                    of: self.route.next_hops.len(),
                    dev: hop.dev.clone()?,
                    via: hop.via,
                },
            };
            Some((hop, Arc::new(branch)))
        });
        branches
            .map(|(hop, branch)| self.one(visit, tools, hop, branch))
            .collect()
    }

    /// Where the packets go: the address, or else the route's prefix.
    fn to(&self) -> String {
        let mut all = self.probes.iter().map(|probe| probe.headers.destination);
        match all.next() {
            Some(first) if all.all(|other| other == first) => first.to_string(),
            _ => self.route.destination.to_string(),
        }
    }

    /// What sends the probes to a copy of the router, or why nothing can; with the socket that it
    /// sends by.
    fn sender(
        &self,
        visit: &Visit,
        copy: &RouterCopy,
    ) -> Result<(Result<Sender, String>, Option<WireSocket>), QuickError> {
        let no = |why: String| Ok((Err(why), None));
        let interface = match (&visit.from, &visit.at.iface_in) {
            (Ok(Sender::Itself(source)), _) => return Ok((Ok(Sender::Itself(*source)), None)),
            (Err(why), _) => return no(why.clone()),
            (Ok(_), None) => return no("it is not known where its packets come in".to_owned()),
            (Ok(_), Some(interface)) => interface,
        };
        let Some((outside, number, mac)) = copy.wire(interface) else {
            return no(format!("{interface} has no wire"));
        };
        let opened = outside.enter(WireSocket::open_here)?;
        let socket = opened.map_err(|source| QuickError::ProbeSocket {
            host: outside.name().to_string(),
            source,
        })?;
        let to = self.probes.first().map(|p| p.headers.destination);
        let family = to.map_or(Family::V4, Family::of);
        let sender = Mac::made_up("tsim hidden sender");
        let sent = socket.on_wire(number, mac, sender, family);
        Ok((Ok(Sender::Wire(sent)), Some(socket)))
    }

    /// Makes a copy of the router that has this next hop only.
    fn one(
        &self,
        visit: &Visit,
        tools: &Tools,
        hop: &NextHop,
        branch: Arc<Branch>,
    ) -> Result<Cut, QuickError> {
        let made = RouterCopy::of(&visit.netns, tools).and_then(|copy| {
            copy.cut(&self.route, hop)?;
            Ok(copy)
        });
        step("quick.copy")?;
        let failed = |why: String| Cut {
            visit: Err(format!(
                "{}, each of which needs a copy of the router: {why}",
                branch.choice()
            )),
            branch: Arc::clone(&branch),
            _copy: None,
            wire: None,
        };
        let copy = match made {
            Ok(copy) => copy,
            Err(CopyError::Netns(error)) => return Err(error.into()),
            Err(error) => return Ok(failed(error.to_string())),
        };
        if let Some(lacks) = copy.differences().first() {
            return Ok(failed(format!("it would lack something: {lacks}")));
        }
        let (from, wire) = self.sender(visit, &copy)?;
        let visit = Visit {
            at: visit.at.clone(),
            netns: Arc::clone(copy.netns()),
            copied: true,
            probes: self.probes.clone(),
            from,
        };
        Ok(Cut {
            branch,
            visit: Ok(visit),
            _copy: Some(copy),
            wire,
        })
    }
}
