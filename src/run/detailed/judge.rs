//! From what was observed to a status and a sentence; pure code.
//!
//! The packets' ways outrank what the client felt where both speak: a client that waited in vain
//! cannot know whether its request or the answer was lost.

use std::{fmt, net::IpAddr};

use nix::errno::Errno;

use super::{
    connect::{Experience, IcmpError},
    result::{Refuser, ServiceStatus},
};
use crate::{
    model::{IfName, RouterName},
    run::{outside::OutsideReason, probe::no_way, sentence::untaken},
};

/// What follows if nobody tells a sender that its packets are too long (RFC 2923).
const BLACK_HOLE: &str = "the sender was not told so: a black hole of path MTU discovery";

/// A rule that hands packets to a program of the router (TPROXY), which the lab has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proxied {
    /// The port on which the program listens; none or 0 for the packet's own.
    pub(super) port: Option<u16>,
    /// The rule.
    pub(super) rule: String,
    /// Whether it lets packets go on where nobody listens.
    pub(super) lets_go: bool,
}

impl fmt::Display for Proxied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = match self.port {
            Some(port) => format!("port {port}"),
            None => "its own port".to_owned(),
        };
        write!(
            f,
            "it ends on the router itself, taken by TPROXY to {port} by {}, if a program listens \
             there; the lab has none",
            self.rule
        )
    }
}

/// What became of the packets of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PacketFate {
    /// None was seen.
    NotSeen,
    /// A program takes it by this rule, if one listens, and no route leads it there then; otherwise it goes
    /// on.
    Untaken(String),
    /// All went on behind the router's last chain, or to the router itself.
    Passed,
    /// All went on so, and nobody tells a router the hardware address of the next one, in words.
    Unanswered(String),
    /// One left by this interface, and the source host is at another one.
    Astray(IfName),
    /// One left towards this neighbour, to whom requests go, too: one host of the job stands for it, and not both.
    Ambiguous(IpAddr),
    /// One left the lab by this interface, towards this neighbour; the source is outside the lab.
    Outside(IfName, IpAddr),
    /// It went over the link that client and server share, past all routers.
    Direct {
        /// The router whose bridge the link is, where that may translate the answer back.
        tracked_by: Option<RouterName>,
    },
    /// It was for this address on the server's own link, and nobody there has it.
    Unowned(IpAddr),
    /// A rule or policy ended one.
    Stopped {
        /// Who, e.g. `rule 4 of chain FORWARD (table filter): …`.
        by: String,
        /// What it answers with, if it rejects.
        rejects_with: Option<String>,
    },
    /// A rule hands it to a program of the router (TPROXY) that the lab has not.
    Proxied(Proxied),
    /// Something ended one that is no rule of nf_tables.
    Lost(OutsideReason),
    /// At this hook something ended one that nf_tables does not trace.
    Within(String),
}

/// What was observed of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Observation<'a> {
    pub(super) experience: Option<&'a Experience>,
    /// Whether packets could be followed at all.
    pub(super) traced: bool,
    pub(super) request: PacketFate,
    pub(super) answer: PacketFate,
    /// Whether the router itself sent something to the source, and it went out.
    pub(super) own_left: bool,
    /// Whether the destination host saw the request.
    pub(super) arrived: bool,
    /// The address that the destination host has.
    pub(super) destination: IpAddr,
    /// The address that the client calls.
    pub(super) called: IpAddr,
    /// Addresses of the routers.
    pub(super) routers: Vec<&'a IpAddr>,
    /// Whether the request is sent back to the source itself.
    pub(super) turns_back: bool,
    /// Whether the router itself is the client.
    pub(super) itself: bool,
    /// Whether the destination is an address that all routers of a subnet have.
    pub(super) anycast: bool,
}

/// A status, the sentence that goes with it, and who said no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) status: ServiceStatus,
    pub(super) message: String,
    pub(super) refused_by: Option<Refuser>,
}

impl Judged {
    fn new(status: ServiceStatus, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            refused_by: None,
        }
    }

    fn by(self, refuser: Refuser) -> Self {
        let refused_by = Some(refuser);
        Self { refused_by, ..self }
    }
}

/// Judges one attempt.
pub(super) fn judge(facts: &Observation<'_>) -> Judged {
    match facts.experience {
        Some(Experience::Answered(_)) if facts.anycast => {
            let message = format!(
                "the request arrived at {}, an anycast address of the router (RFC 4291 section \
                 2.6.1): programs that do not name it answer from another one",
                facts.destination
            );
            Judged::new(ServiceStatus::Unknown, message)
        }
        Some(Experience::Answered(_)) => Judged::new(ServiceStatus::Ok, "answered"),
        Some(Experience::Mute(_)) => mute(facts),
        Some(Experience::Icmp(icmp)) => icmp_error(facts, *icmp),
        Some(Experience::Reset) => reset(facts),
        // A program of the router is told when a rule of OUTPUT drops what it sends.
        Some(Experience::NotSent(Errno::EPERM)) if facts.itself => silence(facts),
        Some(Experience::NotSent(errno) | Experience::Failed(errno @ Errno::EINVAL))
            if facts.itself =>
        {
            let why = no_way(*errno).unwrap_or_else(|| errno.desc());
            let message = format!("the router has no way for it: {why}");
            Judged::new(ServiceStatus::Unreachable, message)
        }
        Some(Experience::NotSent(errno) | Experience::Failed(errno @ Errno::EMSGSIZE)) => {
            Judged::new(ServiceStatus::Unknown, not_sent(*errno))
        }
        Some(Experience::Failed(errno)) => {
            let message = format!("the client's socket failed: {}", errno.desc());
            Judged::new(ServiceStatus::Unknown, message)
        }
        None => silence(facts),
    }
}

/// Whether the packets' ways say how it ends, so that nobody needs to wait longer.
pub(super) fn is_settled(facts: &Observation<'_>) -> bool {
    match (&facts.request, &facts.answer) {
        (PacketFate::Stopped { .. } | PacketFate::Proxied(_) | PacketFate::Untaken(_), _) => true,
        (
            _,
            PacketFate::Stopped { .. }
            | PacketFate::Astray(_)
            | PacketFate::Ambiguous(_)
            | PacketFate::Outside(..)
            | PacketFate::Direct { .. },
        ) => true,
        (_, PacketFate::Unowned(_)) => true,
        (PacketFate::Lost(reason), _) if facts.experience.is_none() => reason.is_known(),
        // Who has a connection and no answer yet may still get one.
        _ => !matches!(facts.experience, None | Some(Experience::Mute(_))),
    }
}

/// The handshake was done, so both ways are open for its packets, and then not.
fn mute(facts: &Observation<'_>) -> Judged {
    let why = match (&facts.request, &facts.answer) {
        (PacketFate::Stopped { by, .. }, _) => format!("the data sent over it was stopped by {by}"),
        (PacketFate::Lost(reason @ OutsideReason::TooBig { .. }), _) => {
            format!("the data sent over it was lost: {reason}; {BLACK_HOLE}")
        }
        (_, PacketFate::Stopped { by, .. }) => format!("the answer was stopped by {by}"),
        (_, PacketFate::Astray(interface)) => astray(interface),
        (_, PacketFate::Outside(interface, hop)) => outside(interface, *hop),
        _ => "what was sent over it did not come back".to_owned(),
    };
    Judged::new(
        ServiceStatus::Partial,
        format!("the connection was made; {why}"),
    )
}

fn icmp_error(facts: &Observation<'_>, icmp: IcmpError) -> Judged {
    if facts.arrived && icmp.from == facts.destination {
        let message = format!("the destination host refused: {icmp}");
        return Judged::new(ServiceStatus::Refused, message).by(Refuser::Destination);
    }
    let refuser = if facts.routers.contains(&&icmp.from) || facts.own_left {
        Refuser::Router
    } else {
        Refuser::Other
    };
    let judged = match &facts.request {
        PacketFate::Stopped { by, .. } => Judged::new(
            ServiceStatus::Rejected,
            format!("rejected with {icmp} by {by}"),
        ),
        PacketFate::Lost(reason) => {
            Judged::new(ServiceStatus::Unreachable, format!("{icmp}: {reason}"))
        }
        _ if is_routing(icmp) => Judged::new(ServiceStatus::Unreachable, icmp.to_string()),
        _ => Judged::new(ServiceStatus::Rejected, format!("rejected with {icmp}")),
    };
    judged.by(refuser)
}

/// Whether routing, rather than a rule, usually answers with this.
fn is_routing(icmp: IcmpError) -> bool {
    match (icmp.from.is_ipv4(), icmp.kind) {
        (true, 3) => matches!(icmp.code, 0 | 1 | 4),
        (true, kind) => kind == 11,
        (false, 1) => matches!(icmp.code, 0 | 3),
        (false, kind) => matches!(kind, 2 | 3),
    }
}

fn reset(facts: &Observation<'_>) -> Judged {
    match &facts.request {
        PacketFate::Stopped { by, .. } => {
            let message = format!("rejected with a TCP reset by {by}");
            Judged::new(ServiceStatus::Rejected, message).by(Refuser::Router)
        }
        _ if facts.arrived => {
            let message = "the destination host refused with a TCP reset";
            Judged::new(ServiceStatus::Refused, message).by(Refuser::Destination)
        }
        _ => {
            let message = "rejected with a TCP reset by the router: the request did not reach the \
                           destination host";
            Judged::new(ServiceStatus::Rejected, message).by(Refuser::Router)
        }
    }
}

fn not_sent(errno: Errno) -> String {
    match errno {
        Errno::EPERM => "the source host's own firewall drops the request".to_owned(),
        Errno::EMSGSIZE => "the request exceeds the MTU of the source host's link".to_owned(),
        errno => format!("the source host could not send: {}", errno.desc()),
    }
}

/// Nothing came back at all.
fn silence(facts: &Observation<'_>) -> Judged {
    match &facts.request {
        PacketFate::Proxied(proxied) => Judged::new(ServiceStatus::Unknown, proxied.to_string()),
        PacketFate::Untaken(rule) => Judged::new(ServiceStatus::Unknown, untaken(rule)),
        PacketFate::Stopped {
            by,
            rejects_with: Some(with),
        } => {
            let message = format!(
                "rejected with {with} by {by}; the router did not send that answer this time \
                 (net.ipv4.icmp_ratelimit, icmp_msgs_per_sec, or its own output rules)"
            );
            Judged::new(ServiceStatus::Rejected, message).by(Refuser::Router)
        }
        PacketFate::Stopped { by, .. } => Judged::new(
            ServiceStatus::Timeout,
            format!("no answer: dropped by {by}"),
        ),
        PacketFate::Lost(reason @ OutsideReason::NotSeen(_)) => {
            Judged::new(ServiceStatus::Unknown, format!("the request {reason}"))
        }
        PacketFate::Lost(reason @ OutsideReason::TooBig { .. }) => {
            let message = format!("no answer: {reason}; {BLACK_HOLE}");
            Judged::new(ServiceStatus::Unreachable, message)
        }
        PacketFate::Lost(reason) if reason.is_known() => {
            Judged::new(ServiceStatus::Unreachable, format!("no answer: {reason}"))
        }
        PacketFate::Lost(reason) => {
            Judged::new(ServiceStatus::Timeout, format!("no answer: {reason}"))
        }
        PacketFate::Within(hook) if !facts.arrived => {
            let message = format!(
                "no answer: dropped at {hook} by something that nf_tables does not trace, such \
                 as iptables-legacy or connection tracking"
            );
            Judged::new(ServiceStatus::Timeout, message)
        }
        PacketFate::NotSeen if facts.traced && !facts.arrived => Judged::new(
            ServiceStatus::Unknown,
            "the request did not come in at the router",
        ),
        _ if facts.arrived => half_way(facts),
        PacketFate::Passed if facts.turns_back => {
            let message = "no answer: the request comes back to the client itself with the client's \
                           own address as its sender, and hosts drop that";
            Judged::new(ServiceStatus::Timeout, message)
        }
        PacketFate::Unanswered(why) => Judged::new(ServiceStatus::Unknown, why.clone()),
        PacketFate::Passed => {
            let message = "the request left the router and did not reach the destination host";
            Judged::new(ServiceStatus::Unknown, message)
        }
        _ => Judged::new(
            ServiceStatus::Timeout,
            "no answer, and the destination host saw no request",
        ),
    }
}

fn astray(interface: &IfName) -> String {
    format!("the answer left the router by {interface}, where the source host is not")
}

fn outside(interface: &IfName, hop: IpAddr) -> String {
    format!(
        "the answer leaves the lab by {interface} towards {hop}, and not where the request came \
         in: whether it gets to the source is not known"
    )
}

fn ambiguous(hop: IpAddr) -> String {
    format!(
        "the answer goes to {hop}, as the request does: whether it gets to the source from there is not known"
    )
}

/// The request arrived, the answer did not, and the lab cannot tell what becomes of such an answer.
fn not_known(facts: &Observation<'_>) -> Option<String> {
    match &facts.answer {
        PacketFate::Outside(interface, hop) => Some(outside(interface, *hop)),
        PacketFate::Ambiguous(hop) => Some(ambiguous(*hop)),
        PacketFate::Direct {
            tracked_by: Some(router),
        } => Some(format!(
            "the server answers the client over the bridge of {router}, which tracks connections over it \
             (br_netfilter) and may translate the answer back: the lab has no ports in the bridge"
        )),
        PacketFate::Direct { .. } if facts.called == facts.destination => Some(
            "the server answers the client directly, past the routers: whether these pass on the rest \
             of a connection whose answer they missed is not measured"
                .to_owned(),
        ),
        _ => None,
    }
}

/// The request arrived, the answer did not.
fn half_way(facts: &Observation<'_>) -> Judged {
    if let Some(why) = not_known(facts) {
        return Judged::new(
            ServiceStatus::Unknown,
            format!("the request arrived; {why}"),
        );
    }
    let why = match &facts.answer {
        PacketFate::Unanswered(why) => why.clone(),
        PacketFate::Stopped { by, .. } => format!("the answer was stopped by {by}"),
        PacketFate::Proxied(proxied) => format!("the answer: {proxied}"),
        PacketFate::Untaken(rule) => format!("the answer: {}", untaken(rule)),
        PacketFate::Lost(reason) => format!("the answer was lost: {reason}"),
        PacketFate::Within(hook) => {
            format!("the answer was dropped at {hook} by something that nf_tables does not trace")
        }
        PacketFate::Astray(interface) => astray(interface),
        PacketFate::Outside(interface, hop) => outside(interface, *hop),
        PacketFate::Ambiguous(hop) => ambiguous(*hop),
        PacketFate::Direct { .. } => format!(
            "the server answers the client directly, from {}, an address that the client did not \
             call",
            facts.destination
        ),
        PacketFate::Unowned(peer) => format!(
            "the server's answer is for {peer} on its own link, and nobody there has that address"
        ),
        PacketFate::Passed => {
            "the answer left the router and did not reach the source host".to_owned()
        }
        PacketFate::NotSeen if facts.anycast => format!(
            "at {}, an anycast address of the router (RFC 4291 section 2.6.1), Linux takes no \
             connections",
            facts.destination
        ),
        PacketFate::NotSeen if facts.traced => "no answer came back to the router".to_owned(),
        PacketFate::NotSeen => "the answer did not come back".to_owned(),
    };
    Judged::new(
        ServiceStatus::Partial,
        format!("the request arrived; {why}"),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 9));

    fn facts(experience: Option<&Experience>) -> Observation<'_> {
        Observation {
            experience,
            traced: true,
            request: PacketFate::Passed,
            answer: PacketFate::NotSeen,
            own_left: false,
            arrived: false,
            destination: HOST,
            called: ROUTER,
            routers: vec![&ROUTER],
            turns_back: false,
            itself: false,
            anycast: false,
        }
    }

    fn stopped(with: Option<&str>) -> PacketFate {
        PacketFate::Stopped {
            by: "rule 3".to_owned(),
            rejects_with: with.map(str::to_owned),
        }
    }

    fn icmp(code: u8, from: IpAddr) -> Experience {
        Experience::Icmp(IcmpError {
            kind: 3,
            code,
            from,
        })
    }

    /// Each row: experience, fate of the request and of the answer, arrived; status and a part of
    /// the message.
    #[test]
    fn each_observation_has_its_status() {
        let answered = Experience::Answered(Duration::from_micros(70));
        let mute = Experience::Mute(Duration::ZERO);
        let prohibited = icmp(13, ROUTER);
        let unreachable = icmp(0, ROUTER);
        let closed = icmp(3, HOST);
        let no_route = || PacketFate::Lost(OutsideReason::NoRoute(HOST));
        let unseen = || PacketFate::Lost(OutsideReason::NotSeen(vec![]));
        let passed = || PacketFate::Passed;
        let none = || PacketFate::NotSeen;
        let proxied = || {
            PacketFate::Proxied(Proxied {
                port: None,
                rule: "rule 1".to_owned(),
                lets_go: false,
            })
        };
        let within = || PacketFate::Within("forward".to_owned());
        let astray = || PacketFate::Astray("wan".parse().unwrap());
        let outside = || PacketFate::Outside("wan".parse().unwrap(), ROUTER);
        let unowned = || PacketFate::Unowned(HOST);
        #[rustfmt::skip]
        let table = [
            (Some(&answered), passed(), passed(), true, ServiceStatus::Ok, "answered"),
            (None, stopped(None), none(), false, ServiceStatus::Timeout, "dropped by rule 3"),
            (None, stopped(Some("icmp-x")), none(), false, ServiceStatus::Rejected, "icmp-x by rule 3"),
            (Some(&prohibited), stopped(Some("x")), none(), false, ServiceStatus::Rejected, "13"),
            (Some(&Experience::Reset), stopped(Some("x")), none(), false, ServiceStatus::Rejected, "reset by rule 3"),
            (Some(&Experience::Reset), none(), none(), false, ServiceStatus::Rejected, "did not reach"),
            (Some(&Experience::Reset), passed(), none(), true, ServiceStatus::Refused, "destination host"),
            (Some(&closed), passed(), passed(), true, ServiceStatus::Refused, "destination host"),
            (Some(&unreachable), no_route(), none(), false, ServiceStatus::Unreachable, "no route"),
            (Some(&unreachable), none(), none(), false, ServiceStatus::Unreachable, "network unreachable"),
            (None, no_route(), none(), false, ServiceStatus::Unreachable, "no route"),
            (None, within(), none(), false, ServiceStatus::Timeout, "does not trace"),
            (None, proxied(), none(), false, ServiceStatus::Unknown, "taken by TPROXY"),
            (None, unseen(), none(), false, ServiceStatus::Unknown, "did not come in"),
            (None, passed(), stopped(None), true, ServiceStatus::Partial, "answer was stopped by rule 3"),
            (None, passed(), passed(), true, ServiceStatus::Partial, "did not reach the source host"),
            (None, passed(), astray(), true, ServiceStatus::Partial, "left the router by wan"),
            (None, passed(), outside(), true, ServiceStatus::Unknown, "leaves the lab by wan"),
            (None, passed(), PacketFate::Direct { tracked_by: None }, true, ServiceStatus::Partial, "directly, from 10.9.0.9"),
            (None, passed(), unowned(), true, ServiceStatus::Partial, "nobody there has that address"),
            (None, passed(), none(), false, ServiceStatus::Unknown, "did not reach"),
            (Some(&mute), passed(), stopped(None), true, ServiceStatus::Partial, "connection was made"),
        ];
        for (experience, request, answer, arrived, status, words) in table {
            let facts = Observation {
                request,
                answer,
                arrived,
                ..facts(experience)
            };
            let judged = judge(&facts);
            assert_eq!(judged.status, status, "{facts:?}");
            assert!(judged.message.contains(words), "{judged:?}");
        }
    }

    #[test]
    fn an_answer_from_the_address_that_was_called_needs_no_router() {
        let facts = Observation {
            answer: PacketFate::Direct { tracked_by: None },
            arrived: true,
            called: HOST,
            ..facts(None)
        };
        let judged = judge(&facts);
        assert_eq!(judged.status, ServiceStatus::Unknown);
        assert!(judged.message.contains("past the routers"), "{judged:?}");
    }

    #[test]
    fn who_calls_himself_by_another_address_gets_nothing() {
        let facts = Observation {
            turns_back: true,
            ..facts(None)
        };
        let judged = judge(&facts);
        assert_eq!(judged.status, ServiceStatus::Timeout);
        assert!(judged.message.contains("comes back to the client itself"));
    }

    #[test]
    fn without_a_trace_the_destination_host_tells_both_ways_apart() {
        let untraced = |arrived| Observation {
            traced: false,
            request: PacketFate::NotSeen,
            arrived,
            ..facts(None)
        };
        assert_eq!(judge(&untraced(false)).status, ServiceStatus::Timeout);
        assert_eq!(judge(&untraced(true)).status, ServiceStatus::Partial);
    }

    #[test]
    fn the_sender_of_a_no_is_named() {
        let by = |from, own_left| {
            let experience = icmp(13, from);
            let facts = Observation {
                own_left,
                ..facts(Some(&experience))
            };
            judge(&facts).refused_by
        };
        assert_eq!(by(ROUTER, false), Some(Refuser::Router));
        assert_eq!(
            by("192.0.2.1".parse().unwrap(), true),
            Some(Refuser::Router)
        );
        assert_eq!(
            by("192.0.2.1".parse().unwrap(), false),
            Some(Refuser::Other)
        );
    }
}
