//! The way of a packet through a lab, router by router, as the routers' own kernels route it.
//!
//! Each step is a look-up in the router's namespace for a packet that comes in on the interface
//! where the step before sent it, so policy rules count, and so do `rp_filter` and forwarding.
//! Firewalls do not: that is what jobs are for.

mod end;
mod entries;
mod entry;
mod fit;
mod onward;
mod walk;
mod wiring;

use std::{fmt, io, net::IpAddr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{
    end::{End, LastHop, SharedLink},
    entries::{MAX_ENTRIES, entries},
    entry::{Entry, EntryName, EntryNameError},
    onward::Onward,
    walk::trace,
    wiring::{Plug, Undelivered, Wiring, anycast},
};
use super::sockets::SocketsError;
use crate::{
    model::{IfName, Known, LabName, Protocol, RouterName},
    netlink::NetlinkError,
};

/// A trace could not be made.
#[derive(Debug, Error)]
pub enum TraceError {
    /// Source and destination are of different families.
    #[error("source {source_address} and destination {destination} are of different families")]
    Families {
        /// The source.
        source_address: IpAddr,
        /// The destination.
        destination: IpAddr,
    },
    /// No router is near the source.
    #[error(
        "no router of lab {lab} has a subnet with {source_address} or routes it out of the lab: \
         name the first router with --from ROUTER:INTERFACE"
    )]
    NoStart {
        /// The lab.
        lab: LabName,
        /// The source.
        source_address: IpAddr,
    },
    /// There is no such router.
    #[error("lab {lab} has no router {router}{known}")]
    NoRouter {
        /// The lab.
        lab: LabName,
        /// The router.
        router: RouterName,
        /// The lab's routers.
        known: Known,
    },
    /// The router sends packets to the source nowhere, so none can come in from it.
    #[error("router {router} has no interface towards {source_address}")]
    NotFacing {
        /// The router.
        router: RouterName,
        /// The source.
        source_address: IpAddr,
    },
    /// The router has no such interface, or it is on no segment.
    #[error("router {router} has no interface {interface} on a segment: {allowed} are allowed")]
    NoInterface {
        /// The router.
        router: RouterName,
        /// The interface.
        interface: IfName,
        /// Those that it has.
        allowed: String,
    },
    /// A router cannot be reached.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// The kernel refused a look-up.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// The packet whose way is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracePacket {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Transport protocol; without one, policy rules that look at it do not match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Firewall mark that it has in every router.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mark: u32,
    /// TOS / DS field octet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tos: u8,
}

impl TracePacket {
    /// A packet of no particular protocol.
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            protocol: None,
            source_port: None,
            destination_port: None,
            mark: 0,
            tos: 0,
        }
    }
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// One router on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The router.
    pub router: RouterName,
    /// Where the packet comes in; none where the router itself is the source.
    pub iface_in: Option<IfName>,
    /// Where it leaves; none where it does not.
    pub iface_out: Option<IfName>,
    /// To whom it is sent on that link: the gateway, or the destination itself.
    pub next_hop: Option<IpAddr>,
}

/// The way of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The lab.
    pub lab: LabName,
    /// The packet.
    #[serde(flatten)]
    pub packet: TracePacket,
    /// Where the user said that it enters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<EntryName>,
    /// The routers, in the order in which it passes them.
    pub hops: Vec<Hop>,
    /// How it ends.
    pub end: End,
    /// The other ways that it may take: by other entries, next hops, or owners of a next hop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_ways: Vec<WayOn>,
    /// Choices that were made, and what is odd.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One way from an entry to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayOn {
    /// The routers, in the order in which the packet passes them.
    pub hops: Vec<Hop>,
    /// How it ends.
    pub end: End,
}

impl Trace {
    /// All ways, the first included.
    pub fn ways(&self) -> impl Iterator<Item = (&[Hop], &End)> {
        let others = self.other_ways.iter();
        let others = others.map(|way| (way.hops.as_slice(), &way.end));
        [(self.hops.as_slice(), &self.end)]
            .into_iter()
            .chain(others)
    }

    /// Whether the packet gets where it is to go, as far as routing is concerned; none where the
    /// facts do not tell, or its ways disagree.
    #[must_use]
    pub fn arrives(&self) -> Option<bool> {
        let first = self.end.arrives();
        let agree = self.ways().all(|(_, end)| end.arrives() == first);
        first.filter(|_| agree)
    }

    /// Writes the trace for people.
    ///
    /// # Errors
    /// When `out` cannot be written to.
    pub fn write_text(&self, out: &mut dyn io::Write) -> io::Result<()> {
        writeln!(out, "{} in lab {}", self.packet, self.lab)?;
        for (number, (hops, end)) in self.ways().enumerate() {
            if number > 0 {
                writeln!(out, "or")?;
            }
            write_hops(hops, out)?;
            writeln!(out, "     {}", self.end_of(hops, end))?;
        }
        for warning in &self.warnings {
            writeln!(out, "note: {warning}")?;
        }
        Ok(())
    }

    /// The end of the first way as a sentence, with the router that it happens at.
    #[must_use]
    pub fn end_text(&self) -> String {
        self.end_of(&self.hops, &self.end)
    }

    /// The end of a way of this packet as a sentence.
    #[must_use]
    pub fn end_of(&self, hops: &[Hop], end: &End) -> String {
        let last = hops.last();
        let (source, destination) = (self.packet.source, self.packet.destination);
        end.text(&LastHop {
            router: last.map_or("the first router", |hop| hop.router.as_str()),
            out: last.and_then(|hop| hop.iface_out.as_ref()),
            next_hop: last.and_then(|hop| hop.next_hop).unwrap_or(destination),
            source,
            destination,
        })
    }
}

fn write_hops(hops: &[Hop], out: &mut dyn io::Write) -> io::Result<()> {
    let width = |text: fn(&Hop) -> usize| hops.iter().map(text).max().unwrap_or(0);
    let routers = width(|hop| hop.router.as_str().len());
    let ins = width(|hop| hop.iface_in.as_ref().map_or(1, |name| name.as_str().len()));
    let outs = width(|hop| hop.iface_out.as_ref().map_or(1, |name| name.as_str().len()));
    for (number, hop) in hops.iter().enumerate() {
        let name = |name: &Option<IfName>| name.as_ref().map_or("-", IfName::as_str).to_owned();
        let line = format!(
            "{:3}  {:routers$}  {:ins$} > {:outs$}  {}",
            number + 1,
            hop.router,
            name(&hop.iface_in),
            name(&hop.iface_out),
            hop.next_hop.map(|ip| ip.to_string()).unwrap_or_default(),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

impl fmt::Display for TracePacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.source, self.destination)?;
        if let Some(protocol) = self.protocol {
            match self.destination_port {
                Some(port) => write!(f, " {port}/{protocol}")?,
                None => write!(f, " {protocol}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Trace {
        let hop = |router: &str, out: Option<&str>, next: Option<&str>| Hop {
            router: router.parse().unwrap(),
            iface_in: Some("eth0".parse().unwrap()),
            iface_out: out.map(|name| name.parse().unwrap()),
            next_hop: next.map(|ip| ip.parse().unwrap()),
        };
        Trace {
            lab: "corp".parse().unwrap(),
            packet: TracePacket {
                protocol: Some(Protocol::Tcp),
                destination_port: Some(443),
                ..TracePacket::new("10.0.0.9".parse().unwrap(), "10.9.0.9".parse().unwrap())
            },
            hops: vec![
                hop("hq-gw", Some("wg0"), Some("10.1.0.2")),
                hop("dc", None, None),
            ],
            from: None,
            end: End::NoRoute,
            other_ways: Vec::new(),
            warnings: vec!["odd".to_owned()],
        }
    }

    #[test]
    fn json_reads_back_and_is_what_a_job_reads() {
        let json = serde_json::to_value(example()).unwrap();
        assert_eq!(json["source"], "10.0.0.9");
        assert_eq!(json["hops"][0]["router"], "hq-gw");
        assert_eq!(json["hops"][0]["next_hop"], "10.1.0.2");
        assert_eq!(json["hops"][1]["iface_out"], serde_json::Value::Null);
        assert_eq!(json["end"]["kind"], "no_route");
        assert_eq!(serde_json::from_value::<Trace>(json).unwrap(), example());
    }

    #[test]
    fn text_names_the_router_where_it_ends() {
        let mut text = Vec::new();
        example().write_text(&mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "10.0.0.9 to 10.9.0.9 443/tcp in lab corp\n\
             \x20 1  hq-gw  eth0 > wg0  10.1.0.2\n\
             \x20 2  dc     eth0 > -\n\
             \x20    dc has no route to 10.9.0.9\n\
             note: odd\n"
        );
    }
}
