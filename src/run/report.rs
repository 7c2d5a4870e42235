//! What a quick job answers, in the shape that it is printed in.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::model::{Dscp, IfName, Protocol, RouterName, RunId, Service};

/// Whether a service gets through a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// One entry per router, in the order asked for.
    pub routers: Vec<RouterReport>,
    /// What the reader should know beside the verdicts.
    pub warnings: Vec<String>,
    /// How long each phase took.
    pub timing_ms: Timing,
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
    /// One entry per service, in the order asked for.
    pub services: Vec<ServiceReport>,
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
    pub reason: Option<String>,
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
    /// The worst verdict: UNKNOWN, then NO, then YES.
    #[must_use]
    pub fn overall(&self) -> Verdict {
        let mut overall = Verdict::Yes;
        for service in self.routers.iter().flat_map(|r| &r.services) {
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
            routers: vec![RouterReport {
                name: RouterName::new("hq-gw").unwrap(),
                iface_in: Some(IfName::new("eth1").unwrap()),
                iface_out: None,
                next_hop: None,
                services: vec![ServiceReport {
                    port: 80,
                    protocol: Protocol::Tcp,
                    result: Verdict::Yes,
                    reason: None,
                }],
            }],
            warnings: vec![],
            timing_ms: Timing::default(),
        };
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.starts_with(
            r#"{"source":"10.0.0.1","destination":"10.0.1.1","dscp":32,"run_id":"r","backend":"nft","routers":[{"name":"hq-gw","iface_in":"eth1","iface_out":null,"next_hop":null,"services":[{"port":80,"protocol":"tcp","result":"YES"}]}],"warnings":[],"timing_ms":{"resolve":0.0"#
        ), "{text}");
        assert_eq!(serde_json::from_str::<QuickReport>(&text).unwrap(), report);
        assert_eq!(report.overall(), Verdict::Yes);
    }
}
