//! What namespaces learn of the way to an address from ICMP errors about the job's packets, such as the
//! MTU of a path: exceptions of routes, which `ip route show cache` lists.
//!
//! They come about where large packets begin, and stay for ten minutes: the next job would be refused by
//! its own source.

use std::net::IpAddr;

use super::Setup;
use crate::{
    model::WithCauses,
    netlink::{Netlink, forget_exceptions, object::Family},
    netns::NetnsFd,
};

/// The exceptions that a namespace had before.
#[derive(Debug)]
pub(super) struct KnownExceptions {
    family: Family,
    before: Vec<IpAddr>,
}

impl KnownExceptions {
    /// Notes what is there; none where no packet is large enough to bring one about, or where what is
    /// there cannot be told.
    pub(super) fn of(setup: &Setup<'_>, netns: &NetnsFd, family: Family) -> Option<Self> {
        setup.size?;
        let before = Netlink::open(netns).and_then(|mut n| n.route_exceptions(family));
        Some(Self {
            family,
            before: before.ok()?,
        })
    }

    /// Whether all that will be there is the job's.
    pub(super) fn are_none(&self) -> bool {
        self.before.is_empty()
    }

    /// Removes those that came since; why they stay, where they do.
    pub(super) fn forget_new(&self, netns: &NetnsFd) -> Result<(), String> {
        let why = match forget_exceptions(netns, self.family, &self.before) {
            Ok(true) => return Ok(()),
            Ok(false) => "others were there before, and the kernel forgets all or none".to_owned(),
            Err(error) => WithCauses(&error).to_string(),
        };
        Err(format!(
            "what the job's packets made known of paths stays until it times out: {why}"
        ))
    }
}
