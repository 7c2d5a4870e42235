//! Who gets what a router sends out: the other end of the wire, by the lab's wiring alone.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Entry, Plug, Wiring};
use crate::{
    lab::topology::InterfaceKind,
    model::{IfName, RouterName},
};

/// Who gets a packet that a router sends out of one of its interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Onward {
    /// These routers, at these interfaces: more than one where several answer for the next hop
    /// (VRRP and the like), or where nothing tells which of a tunnel's ends it is.
    Routers(Vec<Entry>),
    /// The destination, on a segment in whose prefix it is.
    Delivered {
        /// The segment.
        segment: String,
    },
    /// Somebody who is no router of the lab, and the destination is in no subnet of the lab.
    Leaves {
        /// The segment that it leaves by.
        segment: String,
    },
    /// Somebody who is no router of the lab, although the destination is in a subnet of the lab:
    /// it is not known whether it gets there.
    Elsewhere {
        /// The segment that it leaves by.
        segment: String,
        /// The interfaces whose subnet has the destination.
        places: Vec<Entry>,
    },
    /// One of several ends of a tunnel, and nothing tells which, or whether the lab has it.
    SomeEnd {
        /// The tunnel.
        segment: String,
        /// The ends that the lab has.
        ends: Vec<Entry>,
    },
    /// Nobody: who has the next hop has the interface down, or the packet leaves by one without a
    /// segment.
    Nobody {
        /// The segment; none for an interface on none.
        segment: Option<String>,
    },
}

/// A segment that source and destination share, so that no router passes their packets on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedLink {
    /// The segment.
    pub segment: String,
    /// Routers whose bridge the segment is and that filter what they bridge.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filtered_by: Vec<RouterName>,
}

impl SharedLink {
    /// What becomes of packets from `source` to `destination`, as a sentence.
    #[must_use]
    pub fn text(&self, source: IpAddr, destination: IpAddr) -> String {
        let segment = &self.segment;
        let both = format!("{source} and {destination} are both on segment {segment}");
        if self.filtered_by.is_empty() {
            return format!("{both}: no router is passed");
        }
        let names: Vec<&str> = self.filtered_by.iter().map(RouterName::as_str).collect();
        format!(
            "{both}, which is a bridge of {}, where bridged packets meet rules that are not asked",
            names.join(", ")
        )
    }
}

impl Wiring {
    /// Who gets a packet to `destination` that `router` sends out of `out` to `next_hop`, which is
    /// the destination itself where the route names no gateway.
    #[must_use]
    pub fn onward(
        &self,
        router: &RouterName,
        out: &IfName,
        next_hop: IpAddr,
        destination: IpAddr,
    ) -> Onward {
        let plug = self.plug(router, out);
        let Some((plug, segment)) = plug.and_then(|plug| Some((plug, self.segment(plug)?))) else {
            return Onward::Nobody { segment: None };
        };
        let segment = segment.to_owned();
        let reached = self.reached(plug, next_hop);
        let up: Vec<&Plug> = reached.iter().filter(|plug| plug.up).copied().collect();
        if !up.is_empty() {
            return Onward::Routers(entries(&up));
        }
        if !reached.is_empty() {
            return Onward::Nobody {
                segment: Some(segment),
            };
        }
        let here = (next_hop == destination)
            .then(|| self.prefix_on(plug, destination))
            .flatten();
        let places = self.places(destination, here);
        if here.is_some() && places.is_empty() {
            return Onward::Delivered { segment };
        }
        if here.is_none() && plug.kind == InterfaceKind::Tunnel {
            match self.other_ends(plug).as_slice() {
                [] => {}
                // A tunnel knows no neighbours: what goes in comes out at the other end.
                [end] => return Onward::Routers(entries(&[end])),
                ends if places.is_empty() => {
                    return Onward::SomeEnd {
                        segment,
                        ends: entries(ends),
                    };
                }
                ends => return Onward::Routers(entries(ends)),
            }
        }
        if places.is_empty() {
            Onward::Leaves { segment }
        } else {
            Onward::Elsewhere { segment, places }
        }
    }

    /// The length of the longest prefix on the segment of `plug` that has `address`.
    fn prefix_on(&self, plug: &Plug, address: IpAddr) -> Option<u8> {
        let near = self.plugs.iter();
        let near = near.filter(|other| other.up && other.segment == plug.segment);
        near.filter_map(|other| other.prefix(address)).max()
    }

    /// The interfaces whose subnet has `address`, by a longer prefix than `longer_than`.
    fn places(&self, address: IpAddr, longer_than: Option<u8>) -> Vec<Entry> {
        let has = |plug: &&Plug| plug.up && plug.prefix(address) > longer_than;
        let plugs: Vec<&Plug> = self.plugs.iter().filter(has).collect();
        entries(&plugs)
    }

    /// The interfaces of other routers on the segment of `plug` that are up.
    fn other_ends(&self, plug: &Plug) -> Vec<&Plug> {
        let other =
            |end: &&Plug| end.up && end.segment == plug.segment && end.router != plug.router;
        self.plugs.iter().filter(other).collect()
    }

    /// The segment that `source` and `destination` share as hosts of one subnet; none where either
    /// is an address of a router, or the link is a tunnel, whose hosts do not hear each other.
    #[must_use]
    pub fn shared_link(&self, source: IpAddr, destination: IpAddr) -> Option<SharedLink> {
        if !self.owners(source).is_empty() || !self.owners(destination).is_empty() {
            return None;
        }
        let near = self.neighbours(source);
        let shares = |plug: &&Plug| plug.shares(source, destination);
        let all = near
            .iter()
            .all(|plug| plug.kind != InterfaceKind::Tunnel && shares(plug));
        let first = near.first().filter(|_| all)?;
        Some(SharedLink {
            segment: self.segment(first)?.to_owned(),
            filtered_by: Vec::new(),
        })
    }
}

fn entries(plugs: &[&Plug]) -> Vec<Entry> {
    plugs.iter().map(|plug| plug.entry()).collect()
}
