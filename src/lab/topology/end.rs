//! An interface that wants a segment.

use super::{Origin, Warning};
use crate::{
    lab::{facts::InterfaceFacts, omission::Omission},
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
        Warning::new(self.origin(), &self.router, message)
    }

    /// The same, where the lab lacks `omission` because of it.
    pub(super) fn omission(&self, message: String, omission: Omission) -> Warning {
        Warning::omission(self.origin(), &self.router, message, omission)
    }

    fn origin(&self) -> Origin {
        Origin {
            file: self.file.clone(),
            line: self.line,
        }
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
