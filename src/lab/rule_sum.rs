//! What the kernel held of a router's firewall rules when the lab was made.
//!
//! Reading 20,000 rules back takes a third of the time that loading them takes, for a question that few
//! ask, so `lab up` does not. Who asks first has the rulesets loaded once more, by the same loaders, into
//! a namespace that nobody else sees. The kernel numbers tables, chains, rules and sets in the order in
//! which they come, so that it holds there what it held then.

use std::path::PathBuf;

use super::{
    LabError, fallback, plan,
    rulesets::{self, Loaders, RouterRulesets},
    state::{LabState, RouterState},
    topology::Router,
};
use crate::{
    firewall::ruletext::sum_held,
    model::RouterId,
    netlink::{BridgeOptions, Netlink, NetlinkErrors},
    netns::NetnsFd,
};

/// A sum of the firewall rules of `router`, a router of the lab of `state`, as they were when it was made,
/// by the loaders in `tool_dirs`; none where the kernel does not tell of them.
///
/// # Errors
/// [`LabError`] when a loader is missing, or the rulesets cannot be loaded.
pub(super) fn sum_as_made(
    tool_dirs: &[PathBuf],
    state: &LabState,
    (router, made): (&Router, &RouterState),
) -> Result<Option<u64>, LabError> {
    let loaders = Loaders::find(tool_dirs, rulesets::kinds(router), state.legacy)?;
    // Nobody sees the name but who reads an error.
    let label = RouterId::new(state.lab.clone(), router.name.clone()).netns();
    let netns = NetnsFd::unnamed(label)?;
    interfaces(made, &netns)?;
    netns.enter(|| rulesets::load_here(&RouterRulesets::new(router), &loaders, &()))??;
    Ok(sum_held(&netns))
}

/// Makes a device for each of the router's interfaces, with its name and number, by either of which rules ask
/// for it. Bridges are the devices without another end that every kernel has which can hold a lab.
fn interfaces(made: &RouterState, netns: &NetnsFd) -> Result<(), LabError> {
    let mut netlink = Netlink::open(netns).map_err(NetlinkErrors::from)?;
    let all = || made.interfaces.iter().filter(|i| i.index != plan::LOOPBACK);
    let names: Vec<_> = all().map(|interface| &interface.name).collect();
    fallback::make_way(&mut netlink, &names)?;
    let mut batch = netlink.batch(netns.name().as_str());
    for interface in all() {
        let options = BridgeOptions {
            index: Some(interface.index),
            mtu: None,
            up: false,
            stp: false,
            multicast_snooping: false,
        };
        batch.add_bridge(&interface.name, &options);
    }
    Ok(batch.send()?)
}
