//! Where a way forks behind a router: several next hops over one interface, or several routers that
//! answer for one next hop (VRRP and the like).

use std::fmt;

use crate::{
    lab::trace::Entry,
    model::{IfName, RouterName},
};

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
