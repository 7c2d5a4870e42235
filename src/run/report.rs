//! What a quick job answers, in the shape that it is printed in.

pub mod json;

use std::{fmt, net::IpAddr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    lab::trace::End,
    model::{Dscp, IfName, Protocol, RouterName, RunId, Service},
};

/// Whether a service gets through a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// A packet capture at the router's far side would have shown the probe.
    Yes,
    /// It would not have.
    No,
    /// It could not be known; the reason says why.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Yes => "YES",
            Self::No => "NO",
            Self::Unknown => "UNKNOWN",
        })
    }
}

/// The answer of a quick job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuickReport {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// DSCP value that the job held.
    pub dscp: Dscp,
    /// The job.
    pub run_id: RunId,
    /// What measured: `nft`, `iptables-nft` or `iptables-legacy`.
    pub backend: String,
    /// What the verdicts from end to end are about.
    #[serde(default)]
    pub scope: VerdictScope,
    /// Whether each service gets from the source to the destination, in the order asked for.
    #[serde(default)]
    pub end_to_end: Vec<EndToEnd>,
    /// One entry per router, in the order asked for.
    pub routers: Vec<RouterReport>,
    /// What the reader should know beside the verdicts.
    pub warnings: Vec<String>,
    /// How long each phase took.
    pub timing_ms: Timing,
}

/// What verdicts from end to end are about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerdictScope {
    /// The whole way from the source to the destination.
    #[default]
    Whole,
    /// The way through the routers that were named.
    Named,
}

/// Whether a service gets from the source to the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndToEnd {
    /// Destination port as asked for.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The verdict.
    pub result: Verdict,
    /// Why, where the verdict is not a plain YES.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
    /// The router where the way ends; none where no router is passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterName>,
    /// How the way ends.
    pub end: EndKind,
    /// The routers that its packet really came to, in order.
    pub way: Vec<Leg>,
}

impl EndToEnd {
    /// The service that this is about.
    #[must_use]
    pub fn service(&self) -> Service {
        Service {
            port: self.port,
            protocol: self.protocol,
        }
    }
}

/// How a way ends.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// On a segment whose prefix has the destination.
    Delivered,
    /// At a router that has the destination's address.
    Itself,
    /// It leaves the lab, which does not have the destination.
    Leaves,
    /// The last of the named routers hands it over.
    HandedOver,
    /// Source and destination are on one link.
    SameLink,
    /// It leaves the lab, although the destination is in a subnet of the lab.
    Elsewhere,
    /// In a tunnel of which nothing tells to which end it leads.
    SomeEnd,
    /// At a router of which there are no facts.
    Absent,
    /// A WireGuard interface drops it: no peer's allowed addresses have it.
    NoPeer,
    /// Nobody has the next hop, or its interface is down.
    Nobody,
    /// At a router that stops it.
    Stopped,
    /// At a router of which it is not known whether it stops it, or how it leaves.
    NotKnown,
    /// It comes back to where it was.
    Loop,
    /// A router would be asked a second time, and remembers the first.
    SecondVisit,
    /// To a broadcast address.
    Broadcast,
    /// To a multicast address.
    Multicast,
    /// Several entries or next hops, which disagree.
    Disagree,
}

impl From<&End> for EndKind {
    fn from(end: &End) -> Self {
        match end {
            End::Delivered { .. } => Self::Delivered,
            End::Local => Self::Itself,
            End::NotUnicast => Self::Broadcast,
            End::Leaves { .. } => Self::Leaves,
            End::Elsewhere { .. } => Self::Elsewhere,
            End::SomeEnd { .. } => Self::SomeEnd,
            End::Absent { .. } => Self::Absent,
            End::NoPeer | End::NotAllowed { .. } => Self::NoPeer,
            End::SameLink(_) => Self::SameLink,
            End::NextHopUnknown { .. } => Self::Nobody,
            End::Loop { .. } => Self::Loop,
            End::Blackhole
            | End::Unreachable
            | End::Prohibit
            | End::NoRoute
            | End::NotForwarding
            | End::Refused => Self::Stopped,
        }
    }
}

/// One router of a way, with the packet as it left; or as it came in, where it did not leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// The router and its interfaces.
    #[serde(flatten)]
    pub hop: Arc<LegHop>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    #[serde(deserialize_with = "port_or_none")]
    pub sport: u16,
    /// Destination port.
    #[serde(deserialize_with = "port_or_none")]
    pub dport: u16,
}

/// Detailed jobs write null where a packet has no ports.
fn port_or_none<'de, D: Deserializer<'de>>(port: D) -> Result<u16, D::Error> {
    Option::deserialize(port).map(Option::unwrap_or_default)
}

/// Where a packet passes a router.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LegHop {
    /// The router.
    pub router: RouterName,
    /// Where it comes in; none where the router itself sends it.
    pub iface_in: Option<IfName>,
    /// Where it leaves; `lo` for the router itself, none where it does not leave.
    pub iface_out: Option<IfName>,
    /// To whom it is sent on that link.
    pub next_hop: Option<IpAddr>,
    /// Of a router that passes it on at layer 2, whether its rules let it pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridged: Option<Verdict>,
}

/// The answers of one router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterReport {
    /// The router.
    pub name: RouterName,
    /// Interface towards the source, where probes come in.
    pub iface_in: Option<IfName>,
    /// Interface towards the destination; none if there is no route, `lo` for the router itself.
    pub iface_out: Option<IfName>,
    /// Gateway towards the destination; none for a destination on the link.
    pub next_hop: Option<IpAddr>,
    /// Whether some service's packet really came here.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub on_way: bool,
    /// Whether it passes the packets on at layer 2, from one port of a bridge to another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bridged: bool,
    /// One entry per service that was measured here, or passed it, in the order asked for.
    pub services: Vec<ServiceReport>,
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

/// The answer for one service on one router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Destination port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The verdict.
    pub result: Verdict,
    /// Why, where the verdict is not a plain YES.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
    /// Whether its packet really came here. If not, this is what would become of the packet that
    /// would come, and does not count.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub reached: bool,
}

impl ServiceReport {
    /// The service that this is about.
    #[must_use]
    pub fn service(&self) -> Service {
        Service {
            port: self.port,
            protocol: self.protocol,
        }
    }
}

/// Duration of each phase in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Resolving services, routers and interfaces.
    pub resolve: f64,
    /// Waiting for router locks.
    pub lock: f64,
    /// Making and leasing source hosts.
    pub hosts: f64,
    /// Installing taps.
    pub install: f64,
    /// Sending probes.
    pub probe: f64,
    /// Reading taps.
    pub read: f64,
    /// Finding reasons.
    pub explain: f64,
    /// Undoing everything.
    pub undo: f64,
    /// All of it.
    pub total: f64,
}

impl QuickReport {
    /// The worst verdict from end to end: UNKNOWN, then NO, then YES.
    #[must_use]
    pub fn overall(&self) -> Verdict {
        let mut overall = Verdict::Yes;
        for service in &self.end_to_end {
            match service.result {
                Verdict::Unknown => return Verdict::Unknown,
                Verdict::No => overall = Verdict::No,
                Verdict::Yes => {}
            }
        }
        overall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_exactly_the_documented_shape() {
        let report = QuickReport {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.1.1".parse().unwrap(),
            dscp: Dscp::new(32).unwrap(),
            run_id: RunId::new("r").unwrap(),
            backend: "nft".to_owned(),
            scope: VerdictScope::Whole,
            end_to_end: vec![EndToEnd {
                port: 80,
                protocol: Protocol::Tcp,
                result: Verdict::Yes,
                reason: None,
                router: Some(RouterName::new("hq-gw").unwrap()),
                end: EndKind::Delivered,
                way: vec![Leg {
                    hop: Arc::new(LegHop {
                        router: RouterName::new("hq-gw").unwrap(),
                        iface_in: Some(IfName::new("eth1").unwrap()),
                        iface_out: None,
                        next_hop: None,
                        bridged: None,
                    }),
                    source: "10.0.0.1".parse().unwrap(),
                    destination: "10.0.1.1".parse().unwrap(),
                    sport: 40_000,
                    dport: 80,
                }],
            }],
            routers: vec![RouterReport {
                name: RouterName::new("hq-gw").unwrap(),
                iface_in: Some(IfName::new("eth1").unwrap()),
                iface_out: None,
                next_hop: None,
                on_way: true,
                bridged: false,
                services: vec![ServiceReport {
                    port: 80,
                    protocol: Protocol::Tcp,
                    result: Verdict::Yes,
                    reason: None,
                    reached: true,
                }],
            }],
            warnings: vec![],
            timing_ms: Timing::default(),
        };
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.starts_with(
            r#"{"source":"10.0.0.1","destination":"10.0.1.1","dscp":32,"run_id":"r","backend":"nft","scope":"whole","end_to_end":[{"port":80,"protocol":"tcp","result":"YES","router":"hq-gw","end":"delivered","way":[{"router":"hq-gw","iface_in":"eth1","iface_out":null,"next_hop":null,"source":"10.0.0.1","destination":"10.0.1.1","sport":40000,"dport":80}]}],"routers":[{"name":"hq-gw","iface_in":"eth1","iface_out":null,"next_hop":null,"services":[{"port":80,"protocol":"tcp","result":"YES"}]}],"warnings":[],"timing_ms":{"resolve":0.0"#
        ), "{text}");
        assert_eq!(serde_json::from_str::<QuickReport>(&text).unwrap(), report);
        assert_eq!(report.overall(), Verdict::Yes);
    }
}
