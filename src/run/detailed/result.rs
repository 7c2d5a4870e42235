//! What a detailed job found out, as a plain value: statuses, rules, ways of packets, figures.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::connect::IcmpError;
use crate::{
    model::{HostName, IfName, LabName, RouterName, RunId, Service},
    run::report::{EndKind, Verdict},
};

/// How a real client fared with a service through one router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ServiceStatus {
    /// It was answered.
    Ok,
    /// The destination host itself refused: the router let everything through.
    Refused,
    /// Nothing came back, and the request did not reach the destination host.
    Timeout,
    /// Somebody on the way said no, by ICMP or by a TCP reset.
    Rejected,
    /// There is no way for the packet: no route, an unreachable route, a neighbour that is not
    /// there.
    Unreachable,
    /// The request arrived and the answer did not come back.
    Partial,
    /// It could not be known; the message says why.
    Unknown,
}

impl fmt::Display for ServiceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Refused => "REFUSED",
            Self::Timeout => "TIMEOUT",
            Self::Rejected => "REJECTED",
            Self::Unreachable => "UNREACHABLE",
            Self::Partial => "PARTIAL",
            Self::Unknown => "UNKNOWN",
        })
    }
}

impl ServiceStatus {
    /// Whether the service works through the router, in the words of the quick job.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Ok | Self::Refused => Verdict::Yes,
            Self::Unknown => Verdict::Unknown,
            Self::Timeout | Self::Rejected | Self::Unreachable | Self::Partial => Verdict::No,
        }
    }
}

/// The result of a detailed job. Its form as JSON is in [`super::json`].
#[derive(Debug, Clone, PartialEq)]
pub struct DetailedReport {
    /// When it began, RFC 3339.
    pub started_at: String,
    /// The lab.
    pub lab: LabName,
    /// The job.
    pub run_id: RunId,
    /// Source address.
    pub source: IpAddr,
    /// Source port, where one was asked for; otherwise each connection had a fresh one.
    pub source_port: Option<u16>,
    /// Destination address.
    pub destination: IpAddr,
    /// The routers, in the order of the path.
    pub routers: Vec<RouterWay>,
    /// One entry per service, in the order asked for.
    pub services: Vec<ServiceResult>,
    /// Who was locked, and for how long.
    pub locks: Vec<LockTime>,
    /// What the reader should know beside the results.
    pub warnings: Vec<String>,
    /// How long each phase took.
    pub timing_ms: DetailedTiming,
}

/// A router on the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterWay {
    /// The router.
    pub name: RouterName,
    /// Interface towards the source.
    pub iface_in: Option<IfName>,
    /// Interface towards the destination; `lo` for the router itself.
    pub iface_out: Option<IfName>,
    /// Gateway towards the destination; none for a destination on the link.
    pub next_hop: Option<IpAddr>,
}

/// How long a router was waited for and held, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LockTime {
    /// The router.
    pub router: RouterName,
    /// From asking for all routers until all were had.
    pub waited_ms: f64,
    /// Until it was released.
    pub held_ms: f64,
}

/// Duration of each phase in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DetailedTiming {
    /// Resolving services, routers and interfaces.
    pub resolve: f64,
    /// Making source and destination hosts.
    pub hosts: f64,
    /// Waiting for router locks.
    pub lock: f64,
    /// Connecting and reading evidence.
    pub measure: f64,
    /// Undoing everything.
    pub undo: f64,
    /// All of it.
    pub total: f64,
}

/// One service over its whole way.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceResult {
    /// The service.
    pub service: Service,
    /// Whether it gets from the source to the destination and back.
    pub end: DetailedEndToEnd,
    /// One entry per router that it has to do with, in the order of the way.
    pub tests: Vec<RouterTest>,
}

impl ServiceResult {
    /// Whether the service works from end to end.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.end.result
    }

    /// The test at a router, if the service has to do with it.
    #[must_use]
    pub fn at(&self, router: &RouterName) -> Option<&RouterTest> {
        self.tests.iter().find(|test| test.router == *router)
    }
}

/// What one attempt or several came to: a service's end, and the tests of the routers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ServiceTest {
    pub(super) end: DetailedEndToEnd,
    pub(super) tests: Vec<RouterTest>,
}

/// Whether a service gets from the source to the destination, and the answer back.
#[derive(Debug, Clone, PartialEq)]
pub struct DetailedEndToEnd {
    /// The verdict.
    pub result: Verdict,
    /// How the client fared.
    pub status: ServiceStatus,
    /// Why, in a sentence.
    pub reason: Option<String>,
    /// The router that the reason is about.
    pub router: Option<RouterName>,
    /// The request's way, as far as it was seen.
    pub way: Vec<TakenLeg>,
    /// The answer's way, as far as it was seen.
    pub answer: Vec<TakenLeg>,
    /// How the way ends.
    pub kind: EndKind,
    /// What is to be said of that.
    pub note: Option<String>,
}

impl DetailedEndToEnd {
    /// It is not known, for this reason.
    #[must_use]
    pub fn unknown(reason: String) -> Self {
        Self {
            result: Verdict::Unknown,
            status: ServiceStatus::Unknown,
            reason: Some(reason),
            router: None,
            way: Vec::new(),
            answer: Vec::new(),
            kind: EndKind::NotKnown,
            note: None,
        }
    }
}

/// One router on a way that a packet really took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenLeg {
    /// The router.
    pub router: RouterName,
    /// Where the packet came in; none where the router itself sent it.
    pub iface_in: Option<IfName>,
    /// Where it left; none where it did not.
    pub iface_out: Option<IfName>,
    /// To whom it was sent on that link.
    pub next_hop: Option<IpAddr>,
    /// Addresses and ports that it came with.
    pub came: KnownHeaders,
    /// Addresses and ports as they were when it was last seen there.
    pub headers: KnownHeaders,
    /// Of a router that passes it on at layer 2, where no packet is seen, whether its rules let it pass.
    pub bridged: Option<Verdict>,
}

impl fmt::Display for TakenLeg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |name: &Option<IfName>| name.as_ref().map_or("-", IfName::as_str).to_owned();
        let (came_by, left_by) = (name(&self.iface_in), name(&self.iface_out));
        write!(f, "{} ({came_by} → {left_by})  {}", self.router, self.came)?;
        if self.came != self.headers {
            write!(f, " ⇒ {}", self.headers)?;
        }
        if let Some(verdict) = self.bridged {
            write!(f, ", bridged: {verdict}")?;
        }
        match self.next_hop {
            Some(hop) => write!(f, ", to {hop}"),
            None => Ok(()),
        }
    }
}

/// How a service came to a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CameBy {
    /// The request reached it.
    Reached,
    /// The answer reached it, and no request.
    ByAnswer,
    /// Nothing reached it: it was measured on its own, and does not count.
    NotReached,
    /// It is on no way of the service: it was measured on its own, and does not count.
    NotOnTheWay,
}

fn badness(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Yes => 0,
        Verdict::No => 1,
        Verdict::Unknown => 2,
    }
}

impl DetailedReport {
    /// The worst verdict of all: UNKNOWN, then NO, then YES.
    #[must_use]
    pub fn overall(&self) -> Verdict {
        let verdicts = self.services.iter().map(ServiceResult::verdict);
        verdicts.max_by_key(|v| badness(*v)).unwrap_or(Verdict::Yes)
    }

    /// How many services have each verdict: YES, NO, UNKNOWN.
    #[must_use]
    pub fn count(&self) -> (usize, usize, usize) {
        let of = |want| self.services.iter().filter(|s| s.verdict() == want).count();
        (of(Verdict::Yes), of(Verdict::No), of(Verdict::Unknown))
    }
}

/// How a service was measured on a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// Alone: every counter between two readings moved because of it, or of traffic that is not
    /// the job's.
    Singly,
    /// The first attempt alone, and as nothing decided it, once more together with others that
    /// were undecided. Counters are those of the first attempt.
    Together,
    /// Not at all.
    Not,
}

/// One service through one router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterTest {
    /// The host from which the client connected; none when there was none.
    pub source_host: Option<HostName>,
    /// The router.
    #[serde(rename = "via_router")]
    pub router: RouterName,
    /// Interface where packets came in.
    #[serde(rename = "incoming_interface")]
    pub iface_in: Option<IfName>,
    /// Interface where they left, or were to leave; `lo` for the router itself.
    #[serde(rename = "outgoing_interface")]
    pub iface_out: Option<IfName>,
    /// How the service came to it.
    pub reach: CameBy,
    /// The result.
    pub status: ServiceStatus,
    /// The result in a sentence, with the reason where it is not a plain OK.
    pub message: String,
    /// From the first packet until the connection was made or the datagram came back.
    pub latency_ms: Option<f64>,
    /// How often it was tried.
    pub attempts: u32,
    /// How it was measured.
    pub measured: Measured,
    /// The ICMP error that the client got.
    pub icmp: Option<IcmpError>,
    /// Who sent the no that the client got.
    pub refused_by: Option<Refuser>,
    /// Rules and policies that let its packets through.
    #[serde(rename = "allowing_rules")]
    pub allowing: Vec<RuleEvidence>,
    /// The rule or policy that stopped a packet of it.
    #[serde(rename = "blocking_rules")]
    pub blocking: Vec<RuleEvidence>,
    /// Rules that saw its packets and decided nothing, or rewrote them.
    #[serde(rename = "touched_rules")]
    pub touched: Vec<RuleEvidence>,
    /// Rules whose counters moved and that saw no packet of it.
    pub other_traffic: Vec<RuleEvidence>,
    /// The ways of its packets, rule by rule. Packets that went the same way are one entry.
    pub trace: Vec<PacketWay>,
    /// How addresses or ports were rewritten.
    pub nat: Vec<Nat>,
    /// What makes this result less than certain.
    pub warnings: Vec<String>,
}

/// Who told the client no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refuser {
    /// The router.
    Router,
    /// The destination host.
    Destination,
    /// Somebody with another address.
    Other,
}

/// A direction of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the source to the destination.
    Request,
    /// Back.
    Answer,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Request => "request",
            Self::Answer => "answer",
        })
    }
}

/// A rule, or the policy of a chain, and what it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleEvidence {
    /// Chain.
    pub chain: String,
    /// The rule as the user's own tool prints it, `policy drop` for a policy.
    pub rule: String,
    /// Table.
    pub table: String,
    /// Family of the table: `ip`, `ip6`, `inet`, …
    pub family: String,
    /// Position in its chain, counted from 1; none for a policy.
    pub position: Option<usize>,
    /// The kernel's handle; none for a policy, and for a rule of iptables-legacy.
    pub handle: Option<u64>,
    /// What it decided: `accept`, `drop`, `jump web`, …
    pub action: String,
    /// Packets counted before; none for a rule without a counter.
    pub packets_before: Option<u64>,
    /// Packets counted after.
    pub packets_after: Option<u64>,
    /// The difference.
    pub packet_increase: Option<u64>,
    /// The same in bytes.
    pub byte_increase: Option<u64>,
    /// Packets of this test that the trace saw it match.
    pub packets_traced: u64,
    /// Packets that it counted beyond those: other traffic, or packets that a match behind the
    /// counter refused.
    pub unexplained: u64,
}

/// What is known of a packet's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KnownHeaders {
    /// Source address.
    pub source: IpAddr,
    /// Source port; none for ICMP.
    pub source_port: Option<u16>,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port; none for ICMP.
    pub destination_port: Option<u16>,
}

impl KnownHeaders {
    /// Those of an answer to a packet that has these.
    pub(super) fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
        }
    }
}

impl fmt::Display for KnownHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: IpAddr, port: Option<u16>| match port {
            Some(port) => std::net::SocketAddr::new(address, port).to_string(),
            None => address.to_string(),
        };
        let from = end(self.source, self.source_port);
        write!(
            f,
            "{from} → {}",
            end(self.destination, self.destination_port)
        )
    }
}

/// The way of a packet through the router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketWay {
    /// Which way it went.
    pub direction: Direction,
    /// What it was: `tcp SYN`, `udp`, `icmp 3/3`.
    pub packet: String,
    /// Its headers as it came in.
    pub headers: KnownHeaders,
    /// How many packets went this way.
    pub count: u64,
    /// What each chain did with it, in order.
    pub steps: Vec<Step>,
    /// Where it ended.
    pub end: String,
    /// Whether it went on behind the router's last chain.
    pub passed: bool,
}

/// One step of a packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Step {
    /// Hook: `prerouting`, `forward`, …
    pub hook: String,
    /// Family of the table.
    pub family: String,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Position of the rule; none for a chain's end and policy.
    pub position: Option<usize>,
    /// The rule's text; `end of chain` and `policy accept` else.
    pub rule: String,
    /// What was decided.
    pub verdict: String,
}

/// A rewriting of addresses or ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// Of which packets.
    pub direction: Direction,
    /// Headers before.
    pub before: KnownHeaders,
    /// Headers behind the router.
    pub after: KnownHeaders,
}

impl RouterTest {
    /// Whether packets of the service came to the router, so that it has a part in the result.
    #[must_use]
    pub fn counts(&self) -> bool {
        matches!(self.reach, CameBy::Reached | CameBy::ByAnswer)
    }

    /// A test that was not made.
    #[must_use]
    pub fn not_made(way: &RouterWay, status: ServiceStatus, message: String) -> Self {
        Self {
            source_host: None,
            router: way.name.clone(),
            iface_in: way.iface_in.clone(),
            iface_out: way.iface_out.clone(),
            reach: CameBy::Reached,
            status,
            message,
            latency_ms: None,
            attempts: 0,
            measured: Measured::Not,
            icmp: None,
            refused_by: None,
            allowing: Vec::new(),
            blocking: Vec::new(),
            touched: Vec::new(),
            other_traffic: Vec::new(),
            trace: Vec::new(),
            nat: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// A service's file name in a directory of results: `443_tcp`.
#[must_use]
pub fn file_stem(service: Service) -> String {
    let Service { port, protocol } = service;
    format!("{port}_{}", protocol.to_string().replace('/', "_"))
}
