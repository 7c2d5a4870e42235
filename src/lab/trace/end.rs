//! How the way of a packet ends, and in which words every job says so.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Entry;
use crate::model::{IfName, RouterName};

/// How a way ends. The router is the last hop's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum End {
    /// On the segment where the destination is.
    Delivered {
        /// The segment.
        segment: String,
    },
    /// The destination is the router itself.
    Local,
    /// The destination is a broadcast or multicast address.
    NotUnicast,
    /// A blackhole route or rule.
    Blackhole,
    /// An unreachable route or rule.
    Unreachable,
    /// A prohibit route or rule.
    Prohibit,
    /// No route.
    NoRoute,
    /// The router has a route, but does not forward.
    NotForwarding,
    /// The router accepts no packet from the source on this interface (`rp_filter`, martians), or
    /// policy rules lead it to a blackhole; the kernel does not say which.
    Refused,
    /// To somebody who is no router of the lab; the destination is in no subnet of the lab.
    Leaves {
        /// The segment that it leaves by.
        segment: String,
    },
    /// To somebody who is no router of the lab, although the destination is in a subnet of the lab:
    /// it is not known whether it gets there.
    Elsewhere {
        /// The segment that it leaves by.
        segment: String,
        /// Where the destination's subnet is.
        places: Vec<Entry>,
    },
    /// To one of a tunnel's ends; nothing tells which, or whether the lab has it.
    SomeEnd {
        /// The tunnel's segment.
        segment: String,
        /// The ends that the lab has.
        ends: Vec<Entry>,
    },
    /// To somebody whose facts the lab does not have, though the link to it is known.
    Absent {
        /// The segment that it leaves by.
        segment: String,
        /// The ends without facts, as `router:interface`; those that it may be, as `router`, where
        /// the facts of whole routers are missing.
        ends: Vec<String>,
    },
    /// WireGuard drops it: no peer of the last router's interface has the destination among its
    /// allowed addresses.
    NoPeer,
    /// WireGuard drops it: the other end does not allow the source from the last router.
    NotAllowed {
        /// The other end.
        at: Entry,
    },
    /// From host to host on one link: no router is passed.
    SameLink(SharedLink),
    /// Nobody gets it: the interface that has the next hop is down, or it leaves by one on no
    /// segment.
    NextHopUnknown {
        /// The segment that the packet leaves on; none for an interface on no segment.
        segment: Option<String>,
    },
    /// The packet comes to a router where it was, on the same interface. The last hop is the one
    /// that sends it there.
    Loop {
        /// That router.
        to: RouterName,
    },
}

impl End {
    /// Whether the packet gets where it is to go, as far as routing is concerned; none where the
    /// facts do not tell.
    #[must_use]
    pub fn arrives(&self) -> Option<bool> {
        match self {
            Self::Delivered { .. } | Self::Local | Self::Leaves { .. } => Some(true),
            Self::SameLink(link) => link.is_sure().then_some(true),
            Self::Elsewhere { .. } | Self::SomeEnd { .. } | Self::Absent { .. } => None,
            _ => Some(false),
        }
    }

    /// What happens to a packet that ends so, as a sentence.
    #[must_use]
    pub fn text(&self, last: &LastHop<'_>) -> String {
        let LastHop {
            router,
            out,
            next_hop,
            source,
            destination: to,
        } = *last;
        match self {
            Self::Delivered { segment } => format!("{to} is on segment {segment}"),
            Self::Local => format!("{to} is {router} itself"),
            Self::NotUnicast => format!("{to} is a broadcast or multicast address at {router}"),
            Self::Blackhole => format!("{router} discards it: blackhole"),
            Self::Unreachable => format!("{router} refuses it: unreachable"),
            Self::Prohibit => format!("{router} refuses it: prohibit"),
            Self::NoRoute => format!("{router} has no route to {to}"),
            Self::NotForwarding => format!("{router} does not forward"),
            Self::Refused => format!(
                "{router} does not accept it from {source} there (rp_filter, martian source), or \
                 discards it"
            ),
            Self::SameLink(link) => link.text(source, to),
            Self::Loop { to } => format!("{router} sends it back to {to}: a loop"),
            Self::Leaves { segment } if next_hop == to => {
                format!("it leaves the lab at {router} by segment {segment}")
            }
            Self::Leaves { .. } => format!("it leaves the lab at {router} towards {next_hop}"),
            Self::Elsewhere { segment, places } => last.elsewhere(segment, places),
            Self::SomeEnd { segment, ends } => format!(
                "{router} sends it into the tunnel {segment}, and nothing tells to which end: {} or \
                 one that the lab does not have",
                names(ends)
            ),
            Self::Absent { ends, .. } => format!(
                "{router} sends it to {}, and the lab lacks facts of that router",
                ends.join(" or ")
            ),
            Self::NoPeer => {
                let out = out.map(|name| format!(" {name}")).unwrap_or_default();
                format!(
                    "{router} drops it: no peer of its WireGuard interface{out} has {to} among its \
                     allowed IPs"
                )
            }
            Self::NotAllowed { at } => format!(
                "{at} drops it: {source} is not among the allowed IPs of its WireGuard peer {router}"
            ),
            Self::NextHopUnknown { segment } => {
                let down = |name| format!(" on segment {name}: its interface is down");
                let on = segment.as_ref().map(down).unwrap_or_default();
                format!("{router} sends it to {next_hop}, and nobody takes it{on}")
            }
        }
    }
}

/// A segment that source and destination share, so that no router passes their packets on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedLink {
    /// The segment.
    pub segment: String,
    /// Routers whose bridge the segment is and that filter what they bridge.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filtered_by: Vec<RouterName>,
    /// Routers whose bridge the segment is and that track the connections over it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tracked_by: Vec<RouterName>,
    /// Routers that answer for hosts of the link, and may pass on what is for these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxied_by: Vec<RouterName>,
    /// Routers whose bridge the segment is, with isolated ports, behind which hosts are apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolated_by: Vec<RouterName>,
    /// Routers that have the destination elsewhere, and do not answer for it on the link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<RouterName>,
    /// Routers with several interfaces that have the prefix, of which none is known to have both behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between: Vec<RouterName>,
    /// Routers that translate packets to the destination alone, and do not answer for it on the link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub translated_by: Vec<RouterName>,
    /// Whether the destination is the broadcast address of their subnet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_all: bool,
    /// Other segments with the same prefix, on which either may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub or_on: Vec<String>,
}

impl SharedLink {
    /// Whether packets surely pass from one to the other.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        let doubts = [
            &self.filtered_by,
            &self.proxied_by,
            &self.isolated_by,
            &self.silent,
            &self.between,
            &self.translated_by,
        ];
        !self.to_all && self.or_on.is_empty() && doubts.iter().all(|routers| routers.is_empty())
    }

    /// What becomes of packets from `source` to `destination`, as a sentence.
    #[must_use]
    pub fn text(&self, source: IpAddr, destination: IpAddr) -> String {
        let segment = &self.segment;
        let names = |routers: &[RouterName]| {
            let names: Vec<&str> = routers.iter().map(RouterName::as_str).collect();
            names.join(", ")
        };
        if self.to_all {
            return format!(
                "{destination} is the broadcast address of segment {segment}: nobody makes a connection to it, and who takes a datagram is not known"
            );
        }
        if !self.or_on.is_empty() {
            return format!(
                "{source} and {destination} may each be on segment {segment} or {}, which have the \
                 same prefix and are not joined",
                self.or_on.join(", ")
            );
        }
        if !self.between.is_empty() {
            return format!(
                "{source} and {destination} are both in {segment}, which several interfaces of {} have: \
                 no neighbour table of the facts says that one of them has both behind it",
                names(&self.between)
            );
        }
        let both = format!("{source} and {destination} are both on segment {segment}");
        if !self.filtered_by.is_empty() {
            return format!(
                "{both}, which is a bridge of {}, where bridged packets meet rules that are not \
                 asked",
                names(&self.filtered_by)
            );
        }
        if !self.proxied_by.is_empty() {
            return format!(
                "{both}, where {} answers ARP for others (proxy_arp_pvlan): whether {destination} \
                 answers first is not known",
                names(&self.proxied_by)
            );
        }
        if !self.isolated_by.is_empty() {
            return format!(
                "{both}, which is a bridge of {} with isolated ports or such as hold frames back: \
                 behind two of them they do not reach each other",
                names(&self.isolated_by)
            );
        }
        let silent = (&self.silent, "has it elsewhere");
        let in_vain = [silent, (&self.translated_by, "translates it")];
        let mut in_vain = in_vain.iter().filter(|(routers, _)| !routers.is_empty());
        match in_vain.next() {
            Some((routers, what)) => format!(
                "{source} looks for {destination} on segment {segment}, and {}, which {what}, does not answer there",
                names(routers)
            ),
            None => format!("{both}: no router is passed"),
        }
    }
}

/// The router that had a packet last, and how it sent it on.
#[derive(Debug, Clone, Copy)]
pub struct LastHop<'a> {
    /// The router's name.
    pub router: &'a str,
    /// The interface by which it sent the packet; none where it did not.
    pub out: Option<&'a IfName>,
    /// To whom: the destination itself where the route names no gateway.
    pub next_hop: IpAddr,
    /// The packet's source address, as it left.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
}

impl LastHop<'_> {
    /// Where it was sent, although the destination is at `places`.
    fn elsewhere(&self, segment: &str, places: &[Entry]) -> String {
        if let Some(text) = self.on_either(places) {
            return text;
        }
        let how = match self.next_hop == self.destination {
            true => format!("out on segment {segment}"),
            false => format!(
                "to {}, which no router has on segment {segment}",
                self.next_hop
            ),
        };
        let (places, router) = (names(places), self.router);
        format!(
            "{} is behind {places}, but {router} sends it {how}",
            self.destination
        )
    }

    /// That `places`, where they are interfaces of the router itself, may have the destination as
    /// well as the one by which it sent the packet without a gateway.
    fn on_either(&self, places: &[Entry]) -> Option<String> {
        let own = |place: &&Entry| place.router.as_str() == self.router;
        let others: Vec<&str> = places
            .iter()
            .filter(own)
            .filter_map(|place| Some(place.iface_in.as_ref()?.as_str()))
            .collect();
        let out = self.out?;
        (others.len() == places.len() && self.next_hop == self.destination).then(|| {
            format!(
                "{} sends it by {out}, and {} may be on {} instead, which has the same prefix: no \
                 neighbour table of the facts says that it is on {out}",
                self.router,
                self.destination,
                others.join(" or ")
            )
        })
    }
}

/// The routers of these entries, each once where they follow each other.
fn names(entries: &[Entry]) -> String {
    let mut names: Vec<&str> = entries.iter().map(|e| e.router.as_str()).collect();
    names.dedup();
    names.join(", ")
}
