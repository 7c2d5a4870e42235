//! An interface that wants a segment.

use super::{Origin, Warning};
use crate::{
    lab::facts::InterfaceFacts,
    model::RouterName,
    netlink::object::{Address, Scope},
};

/// One interface that wants a segment.
pub(super) struct LinkEnd {
    /// Indices into the topology: router, then interface.
    pub(super) at: (usize, usize),
    pub(super) router: RouterName,
    /// Where the facts have it.
    pub(super) file: String,
    pub(super) line: usize,
    pub(super) facts: InterfaceFacts,
}

impl LinkEnd {
    /// A warning about it, with its place in the facts.
    pub(super) fn warning(&self, message: String) -> Warning {
        let origin = Origin {
            file: self.file.clone(),
            line: self.line,
        };
        Warning::new(origin, &self.router, message)
    }

    /// `ROUTER:INTERFACE`.
    pub(super) fn label(&self) -> String {
        format!("{}:{}", self.router, self.facts.name)
    }

    /// Addresses that can make it share a segment.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Address> {
        let counts = |a: &&Address| {
            !matches!(a.scope, Scope::Link | Scope::Host) && !a.local.addr().is_loopback()
        };
        self.facts.addresses.iter().filter(counts)
    }
}
