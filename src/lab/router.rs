//! Gives a router's namespace what its facts have: addresses, routes, rules, rulesets.

use std::{collections::BTreeSet, net::IpAddr};

use nix::errno::Errno;

use super::{
    LabError, UpProgress, kernel_settings,
    omission::{self, Omission, OmissionKind, PacketSet},
    plan,
    rulesets::{self, Loaders, RouterRulesets},
    segments::write_known,
    state::RouterState,
    topology::{At, Router, Warning},
};
use crate::{
    model::{IfName, LabName, WithCauses},
    netlink::{
        LinkChange, Netlink, NetlinkError, NetlinkErrors,
        object::{Family, PolicyRule, Route},
        sysctl,
    },
    netns::NetnsFd,
};

/// Sets up the namespace of the calling thread, called `netns`, before it has any interface:
/// interfaces take over what is set then. Returns what of the facts this kernel does not have.
pub(super) fn settle_here(router: &Router, netns: &str) -> Result<Vec<Warning>, LabError> {
    let (forwarding, others): (Vec<_>, Vec<_>) =
        global_settings(router).partition(|(key, _)| kernel_settings::comes_first(key));
    let mut warnings = write(router, netns, &forwarding);
    write_known(netns, &kernel_settings::ROUTER)?;
    let others: Vec<_> = others
        .into_iter()
        .filter(|(key, _)| !is_conntrack(key))
        .collect();
    warnings.extend(write(router, netns, &others));
    Ok(warnings)
}

/// Routes that the kernel does not take, with what it said of each.
type Refused<'r> = (Vec<&'r At<Route>>, Vec<(usize, NetlinkError)>);

type Setting<'a> = &'a (String, String);

fn global_settings(router: &Router) -> impl Iterator<Item = Setting<'_>> {
    router
        .sysctls
        .iter()
        .filter(|(key, _)| interface_of(key).is_none())
}

/// Whether the setting comes into being with connection tracking, which may be a module that the
/// first rule loads.
fn is_conntrack(key: &str) -> bool {
    key.starts_with("net/netfilter/nf_conntrack_")
}

/// The interface that the setting `key` is about.
fn interface_of(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once("/conf/")?;
    let (interface, _) = rest.split_once('/')?;
    (!matches!(interface, "all" | "default")).then_some(interface)
}

/// Whether the setting is about an interface of `router` and differs from what that has anyway. What is set
/// of one that the router does not show decides about no packet, and the MTU of IPv6 is the link's
/// unless somebody made it smaller.
fn is_set_here(router: &Router, (key, value): Setting<'_>) -> bool {
    let Some(name) = interface_of(key) else {
        return false;
    };
    let mut interfaces = router.interfaces.iter();
    let shown = interfaces.find(|interface| interface.name.as_str() == name);
    shown.is_some_and(|interface| {
        let smaller = |mtu: u32| value.parse().is_ok_and(|value: u32| value < mtu);
        !key.ends_with("/mtu") || interface.mtu.is_none_or(smaller)
    })
}

fn write(router: &Router, netns: &str, settings: &[Setting<'_>]) -> Vec<Warning> {
    let pairs: Vec<(&str, &str)> = settings
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let errors = sysctl::write_here(netns, &pairs).err().unwrap_or_default();
    let warning = |error: sysctl::SysctlError| {
        let omission = omission::of_sysctl(error.path().unwrap_or_default());
        let message = WithCauses(&error).to_string();
        Warning::omission(router.origin(0), &router.name, message, omission)
    };
    errors
        .into_iter()
        .filter(|error| !is_off(error))
        .map(warning)
        .collect()
}

/// Whether it is no loss: a kernel before 6.17 forwards by force nowhere.
fn is_off(error: &sysctl::SysctlError) -> bool {
    matches!(error, sysctl::SysctlError::Write { path, value, .. }
        if path.ends_with("/force_forwarding") && value == "0")
}

/// What it takes to fill one router.
pub(super) struct RouterJob<'a> {
    pub(super) lab: &'a LabName,
    pub(super) router: &'a Router,
    pub(super) state: &'a RouterState,
    pub(super) netns: &'a NetnsFd,
    pub(super) rulesets: &'a RouterRulesets<'a>,
    pub(super) loaders: &'a Loaders,
    pub(super) progress: &'a dyn UpProgress,
}

/// Fills the router's namespace, whose interfaces exist; returns what it lacks.
pub(super) fn fill(job: &RouterJob<'_>) -> Result<Vec<Warning>, LabError> {
    job.netns.enter(|| fill_here(job))?
}

fn fill_here(job: &RouterJob<'_>) -> Result<Vec<Warning>, LabError> {
    let netns = job.netns.name().as_str();
    let mut filler = Filler {
        job,
        netlink: Netlink::open_here(netns).map_err(NetlinkErrors::from)?,
        warnings: Vec::new(),
    };
    for interface in &job.state.interfaces {
        filler
            .netlink
            .learn(interface.name.clone(), interface.index);
    }
    filler.links()?;
    filler.addresses()?;
    let settings = job.router.sysctls.iter();
    let of_interfaces = settings.filter(|setting| is_set_here(job.router, setting));
    filler
        .warnings
        .extend(write(job.router, netns, &of_interfaces.collect::<Vec<_>>()));
    // Before the rules: the kernel looks a gateway up by the rules that there are, and the routes
    // of the real router came in an order that nobody knows any more.
    filler.routes()?;
    filler.rules()?;
    let Filler {
        mut netlink,
        mut warnings,
        ..
    } = filler;
    warnings.extend(rulesets::load_here(
        job.rulesets,
        job.loaders,
        job.progress,
    )?);
    let conntrack = global_settings(job.router).filter(|(key, _)| is_conntrack(key));
    warnings.extend(write(job.router, netns, &conntrack.collect::<Vec<_>>()));
    // The kernel had the time of the rulesets to take notice of links and addresses.
    netlink.await_settled().map_err(NetlinkErrors::from)?;
    Ok(warnings)
}

struct Filler<'a> {
    job: &'a RouterJob<'a>,
    netlink: Netlink,
    warnings: Vec<Warning>,
}

impl Filler<'_> {
    fn owner(&self) -> String {
        format!("router {}.{}", self.job.lab, self.job.router.name)
    }

    fn omit(&mut self, line: usize, message: String, omission: Omission) {
        let router = self.job.router;
        let warning = Warning::omission(router.origin(line), &router.name, message, omission);
        self.warnings.push(warning);
    }

    /// Interfaces that were up in the facts, and loopback, without which nothing is local.
    fn links(&mut self) -> Result<(), LabError> {
        let owner = self.owner();
        let mut batch = self.netlink.batch(owner);
        for interface in &self.job.state.interfaces {
            let facts = self.job.router.interfaces.iter();
            let group = facts.clone().find(|i| i.name == interface.name);
            let change = LinkChange {
                up: (interface.up || interface.index == plan::LOOPBACK).then_some(true),
                group: group.map(|i| i.group).filter(|group| *group != 0),
                arp: interface.noarp.then_some(false),
                ..LinkChange::default()
            };
            if change.up.is_some() || change.group.is_some() {
                batch.set_link(&interface.name, &change);
            }
        }
        Ok(batch.send()?)
    }

    fn addresses(&mut self) -> Result<(), LabError> {
        let interfaces = self.job.router.interfaces.iter();
        let all = interfaces.flat_map(|i| i.addresses.iter().map(move |a| (i.line, &i.name, a)));
        // The kernel lists the newest address of IPv6 first, and prefers it where nothing else
        // tells two apart, as in masquerading.
        let (mut all, v4): (Vec<(usize, &IfName, _)>, Vec<_>) =
            all.partition(|(_, _, address)| address.local.addr().is_ipv6());
        all.reverse();
        all.extend(v4);
        let owner = self.owner();
        let mut batch = self.netlink.batch(owner);
        for (_, name, address) in &all {
            batch.add_address(name, address);
            if address.local.addr().is_loopback() {
                // The kernel gave it to lo already.
                batch.tolerate(Errno::EEXIST);
            }
        }
        for (at, error) in batch.send_each() {
            let reason = refusal(error)?;
            let Some((line, _, address)) = all.get(at) else {
                continue;
            };
            let net = address.local.trunc();
            let omission = Omission::of_packets(
                OmissionKind::Address,
                [PacketSet::to(net), PacketSet::from(net)],
            );
            self.omit(*line, format!("address left out: {reason}"), omission);
        }
        Ok(())
    }

    /// Routes on the link first, then those whose gateways they reach, and again as long as that
    /// helps: a gateway may be reached by another gateway.
    fn routes(&mut self) -> Result<(), LabError> {
        let routes = &self.job.router.routes;
        let (mut pending, behind): (Vec<&At<Route>>, Vec<&At<Route>>) = routes
            .iter()
            .partition(|route| route.next_hops.iter().all(|hop| hop.via.is_none()));
        pending.extend(behind);
        loop {
            let owner = self.owner();
            let mut batch = self.netlink.batch(owner);
            for route in &pending {
                batch.append_route(route);
            }
            let errors = batch.send_each();
            let failed: Vec<_> = errors
                .iter()
                .filter_map(|(at, _)| pending.get(*at).copied())
                .collect();
            if failed.is_empty() {
                return self.routes_to_itself(&[]);
            }
            let helped = failed.len() < pending.len();
            if !helped || !errors.iter().any(|(_, error)| may_work_later(error)) {
                let (failed, errors) = self.routes_on_link(failed, errors)?;
                self.left_out_routes(&failed, errors)?;
                return self.routes_to_itself(&failed);
            }
            pending = failed;
        }
    }

    /// Makes routes whose gateway the kernel does not find on the link. It looks for that when a
    /// route is added, and not when addresses or other routes go afterwards: a router that lists such
    /// a route goes by it. Returns those that it refuses all the same.
    fn routes_on_link<'r>(
        &mut self,
        failed: Vec<&'r At<Route>>,
        errors: Vec<(usize, NetlinkError)>,
    ) -> Result<Refused<'r>, LabError> {
        let (mut rest, mut left, mut tried) = (Vec::new(), Vec::new(), Vec::new());
        for (route, (at, error)) in failed.into_iter().zip(errors) {
            let gateways = route.next_hops.iter().all(|hop| hop.via.is_some());
            let on_link = may_work_later(&error) && gateways && !self.contradicts(route, &error);
            match on_link && !route.next_hops.is_empty() {
                true => tried.push((route, (at, error))),
                false => {
                    rest.push(route);
                    left.push((at, error));
                }
            }
        }
        if tried.is_empty() {
            return Ok((rest, left));
        }
        let owner = self.owner();
        let mut batch = self.netlink.batch(owner);
        for (route, _) in &tried {
            let mut route = route.value.clone();
            route.next_hops.iter_mut().for_each(|hop| hop.onlink = true);
            batch.append_route(&route);
        }
        let refused: Vec<usize> = batch.send_each().into_iter().map(|(at, _)| at).collect();
        for (at, (route, error)) in tried.into_iter().enumerate() {
            if refused.contains(&at) {
                rest.push(route);
                left.push(error);
                continue;
            }
            let router = self.job.router;
            let message = format!(
                "route to {} in table {}: nothing says that its gateway is on the link; it is taken \
                 to be",
                route.destination, route.table
            );
            let origin = router.origin(route.line);
            self.warnings
                .push(Warning::notice(origin, &router.name, message));
        }
        Ok((rest, left))
    }

    /// A gateway that is the router itself means the link where the address was there before the
    /// route, and nobody where it came later; a listing shows no difference.
    fn routes_to_itself(&mut self, failed: &[&At<Route>]) -> Result<(), LabError> {
        let router = self.job.router;
        let addresses = router.interfaces.iter().flat_map(|i| &i.addresses);
        let own: BTreeSet<IpAddr> = addresses.map(|address| address.local.addr()).collect();
        let to_itself = |route: &&At<Route>| {
            let mut gateways = route.next_hops.iter().filter_map(|hop| hop.via);
            let main = route.table == Route::MAIN && !failed.contains(route);
            main && gateways.any(|via| own.contains(&via))
        };
        let tables = omission::TableRules::of(&router.rules, &router.rulesets, &router.sysctls);
        let all: Vec<&Route> = router.routes.iter().map(|at| &at.value).collect();
        for route in router.routes.iter().filter(to_itself) {
            let message = format!(
                "route to {} in table {}: its gateway is the router itself, which means the link if \
                 the address is older than the route, and nobody if it is not",
                route.destination, route.table
            );
            let omission = tables.of_route(route, &all, &all).of_passed();
            self.omit(route.line, message, omission);
        }
        Ok(())
    }

    /// Whether the rest of the facts says that the gateway is elsewhere. In table main a router may
    /// have come to that by and by; a table of its own where all is so was not taken from a router.
    fn contradicts(&self, route: &Route, error: &NetlinkError) -> bool {
        let router = self.job.router;
        let named: Vec<&Route> = router.routes.iter().map(|at| &at.value).collect();
        let interfaces = router.interfaces.iter();
        let own = interfaces.flat_map(|i| i.addresses.iter().map(move |a| (&i.name, a)));
        route.table != Route::MAIN
            && may_work_later(error)
            && omission::no_kernel_uses(route, own, &named)
    }

    fn left_out_routes(
        &mut self,
        failed: &[&At<Route>],
        errors: Vec<(usize, NetlinkError)>,
    ) -> Result<(), LabError> {
        let router = self.job.router;
        let tables = omission::TableRules::of(&router.rules, &router.rulesets, &router.sysctls);
        let named: Vec<&Route> = router.routes.iter().map(|at| &at.value).collect();
        let made = router.routes.iter().filter(|made| !failed.contains(made));
        let made: Vec<&Route> = made.map(|at| &at.value).collect();
        for (route, (_, error)) in failed.iter().zip(errors) {
            let contradicts = self.contradicts(route, &error);
            let reason = refusal(error)?;
            let omission = match contradicts {
                true => Omission::of_contradiction(OmissionKind::Route),
                false => tables.of_route(route, &named, &made),
            };
            self.omit(route.line, format!("route left out: {reason}"), omission);
        }
        Ok(())
    }

    /// The facts' rules, and none of the kernel's own that they do not have.
    fn rules(&mut self) -> Result<(), LabError> {
        let own: Vec<PolicyRule> = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(PolicyRule::kernel_defaults)
            .collect();
        let wanted = &self.job.router.rules;
        let new: Vec<_> = wanted.iter().filter(|rule| !own.contains(rule)).collect();
        let owner = self.owner();
        let mut batch = self.netlink.batch(owner);
        for rule in &new {
            batch.add_rule(rule);
        }
        for rule in own
            .iter()
            .filter(|own| !wanted.iter().any(|rule| rule.value == **own))
        {
            batch.delete_rule(rule);
        }
        for (at, error) in batch.send_each() {
            let reason = refusal(error)?;
            let Some(rule) = new.get(at) else { continue };
            let router = self.job.router;
            let tables = omission::TableRules::of(&router.rules, &router.rulesets, &router.sysctls);
            let omission = tables.of_policy_rule(rule);
            self.omit(
                rule.line,
                format!("policy rule left out: {reason}"),
                omission,
            );
        }
        Ok(())
    }
}

/// Whether a route that was refused so may be taken when others are there.
fn may_work_later(error: &NetlinkError) -> bool {
    let unreachable = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EINVAL];
    error
        .errno()
        .is_some_and(|errno| unreachable.contains(&errno))
}

/// Why the kernel does not take an object; an error that is not about the object is passed on.
fn refusal(error: NetlinkError) -> Result<String, LabError> {
    match error {
        NetlinkError::Refused { .. }
        | NetlinkError::NoInterface { .. }
        | NetlinkError::Unsendable { .. } => Ok(error.to_string()),
        other => Err(NetlinkErrors::from(other).into()),
    }
}
