//! Verdicts from end to end in words, for the terminal and the viewer alike.

use std::fmt;

use super::report::{EndKind, Verdict, VerdictScope};
use crate::model::Service;

/// How a way ends, as the rest of a sentence that begins with its services.
#[must_use]
pub(crate) fn sentence(
    verdict: Verdict,
    kind: EndKind,
    router: Option<&str>,
    reason: Option<&str>,
    scope: VerdictScope,
) -> String {
    let why = reason
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    let at = router
        .map(|router| format!(" at {router}"))
        .unwrap_or_default();
    match (verdict, scope) {
        (Verdict::Yes, VerdictScope::Whole) => format!("arrives{why}"),
        (Verdict::Yes, VerdictScope::Named) => format!("gets through the named routers{why}"),
        (Verdict::No, _) if kind == EndKind::Stopped => format!("stops first{at}{why}"),
        (Verdict::No, _) => format!("does not arrive{why}"),
        (Verdict::Unknown, _) if kind == EndKind::NotKnown => format!("is not known{at}{why}"),
        (Verdict::Unknown, _) => format!("is not known{why}"),
    }
}

/// What becomes of a packet that a rule of TPROXY hands over, where no route leads it to the router itself.
#[must_use]
pub(crate) fn untaken(rule: &impl fmt::Display) -> String {
    format!(
        "where a program listens for what {rule} takes, it is lost, since no route leads it to the router \
         itself (a policy rule by its mark, and a route of type local); where none listens, it goes on, and \
         no facts tell"
    )
}

/// Services of one protocol with neighbouring ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The one with the lowest port.
    pub first: Service,
    /// The one with the highest.
    pub last: Service,
}

impl Span {
    /// A service by itself.
    #[must_use]
    pub(crate) fn one(service: Service) -> Self {
        Self {
            first: service,
            last: service,
        }
    }

    /// Takes the service in if it is the next one.
    pub(crate) fn extend(&mut self, service: Service) -> bool {
        let next = self.last.protocol == service.protocol
            && self.last.port.checked_add(1) == Some(service.port);
        if next {
            self.last = service;
        }
        next
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last {
            return first.fmt(f);
        }
        write!(f, "{}-{}/{}", first.port, last.port, first.protocol)
    }
}

/// A list of services, neighbours folded, cut after a dozen entries with a count of the rest.
#[must_use]
pub(crate) fn folded(services: &[Service]) -> String {
    const MOST: usize = 12;
    let mut spans: Vec<Span> = Vec::new();
    for &service in services {
        if !spans.last_mut().is_some_and(|span| span.extend(service)) {
            spans.push(Span::one(service));
        }
    }
    let shown: Vec<_> = spans.iter().take(MOST).map(Span::to_string).collect();
    match spans.len().saturating_sub(MOST) {
        0 => shown.join(","),
        more => format!("{} and {more} more", shown.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceLimits, parse_services};

    fn folded_text(list: &str) -> String {
        folded(&parse_services(list, Protocol::Tcp, ServiceLimits::default()).unwrap())
    }

    #[test]
    fn neighbours_of_one_protocol_are_folded_and_long_lists_are_cut() {
        assert_eq!(folded_text("22,80-82,83/udp"), "22/tcp,80-82/tcp,83/udp");
        let odd: Vec<String> = (0..14).map(|n| (2 * n + 1).to_string()).collect();
        assert!(folded_text(&odd.join(",")).ends_with("23/tcp and 2 more"));
    }

    #[test]
    fn a_no_names_its_router_only_where_that_stops_it() {
        let no = |kind| {
            sentence(
                Verdict::No,
                kind,
                Some("gw"),
                Some("why"),
                VerdictScope::Whole,
            )
        };
        assert_eq!(no(EndKind::Stopped), "stops first at gw: why");
        assert_eq!(no(EndKind::Loop), "does not arrive: why");
        let yes = |scope| sentence(Verdict::Yes, EndKind::Delivered, Some("gw"), None, scope);
        assert_eq!(yes(VerdictScope::Whole), "arrives");
        assert_eq!(yes(VerdictScope::Named), "gets through the named routers");
    }
}
