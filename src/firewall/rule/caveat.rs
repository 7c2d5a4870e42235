//! What the outcome of a rule depends on beside the packet: rate, quota, chance, time, history.
//!
//! What a connection's state says about its first packet is no such thing: that packet is always
//! new.

use std::{fmt, time::Duration};

/// What the outcome of a rule depends on beside the packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caveat {
    /// How many packets came before, per time; with the limit as the rule states it.
    RateLimited(String),
    /// How much went through before.
    Quota(String),
    /// Chance, or turn.
    Random(String),
    /// The clock.
    TimeOfDay(String),
    /// What was seen before, or is open now.
    History(String),
    /// From which port the client connects, where the question leaves that open; with the ports.
    SourcePort(String),
    /// Which user or program sends it; the job's packets are root's.
    Sender(String),
    /// What operating system the sender has. A lab's kernel has no fingerprints of any, and
    /// probes are like a Linux host's.
    System(String),
    /// The sender's hardware address. Those of a lab's hosts are made up.
    Hardware(String),
    /// What packets carry, and what every sender fills in its own way. A probe has bytes of its own.
    Content(String),
    /// How long the packet is, where the question leaves that open.
    Length(String),
    /// What packets have put into a set, taken out of it or counted there: those of this job, or of an
    /// earlier one, may be among them.
    Contents(String),
    /// What a router before this one made of bits that a probe does not carry; with the router and its rule.
    Rewritten(String),
    /// Which sockets the router has. Facts tell none, and a lab has those of its jobs.
    Sockets(String),
    /// Whether the packet came out of IPsec or will go into it. Probes come in plain.
    Ipsec(String),
}

/// What a test says of a packet before which none came that it counts, and for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    /// The packet matches: the rate, the quota is not used up.
    Matches,
    /// It does not.
    Fails,
    /// Chance decides, or what nobody here can know.
    Either,
    /// Whatever was measured: no other packet has a part in it.
    AsMeasured,
    /// It matches, and what the rule does then is chosen by it.
    Chooses,
}

impl fmt::Display for Caveat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, detail) = match self {
            Self::RateLimited(detail) => ("rate-limited", detail),
            Self::Quota(detail) => ("limited by a quota", detail),
            Self::Random(detail) => ("decided by chance or turn", detail),
            Self::TimeOfDay(detail) => ("depends on the time", detail),
            Self::History(detail) => ("depends on what was seen before", detail),
            Self::SourcePort(detail) => (
                "depends on the client's port, and --sport asks about one",
                detail,
            ),
            Self::Sender(detail) => (
                "depends on who sends it, and the job's packets are root's",
                detail,
            ),
            Self::System(detail) => ("depends on the sender's operating system", detail),
            Self::Hardware(detail) => (
                "depends on the sender's hardware address, and the lab's are made up",
                detail,
            ),
            Self::Content(detail) => (
                "depends on what packets carry, and probes carry what is made up",
                detail,
            ),
            Self::Length(detail) => (
                "depends on the packet's length, and --size asks about one",
                detail,
            ),
            Self::Contents(detail) => ("depends on what packets left in a set", detail),
            Self::Rewritten(detail) => (
                "depends on what a router before makes of the packet, and probes do not carry that",
                detail,
            ),
            Self::Sockets(detail) => (
                "depends on the router's sockets, which no facts tell",
                detail,
            ),
            Self::Ipsec(detail) => ("depends on IPsec, and probes come in plain", detail),
        };
        write!(f, "{what}: {detail}")
    }
}

impl Caveat {
    /// Whether earlier probes of the same job may have brought the outcome about.
    #[must_use]
    pub fn may_be_own_doing(&self) -> bool {
        match self {
            Self::RateLimited(_) | Self::Quota(_) | Self::Random(_) => true,
            Self::History(detail) => ["recent", "meter"]
                .iter()
                .any(|kind| detail.starts_with(kind)),
            _ => false,
        }
    }

    /// Whether it is about something that a question leaves open, or that a job makes up: no further
    /// measurement tells.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(
            self,
            Self::SourcePort(_)
                | Self::Sender(_)
                | Self::System(_)
                | Self::Hardware(_)
                | Self::Content(_)
                | Self::Length(_)
                | Self::Contents(_)
                | Self::Rewritten(_)
                | Self::Sockets(_)
        )
    }

    /// How long it takes until the rate allows one packet more; none where there is no rate, or
    /// one in bytes or of a named object.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        let Self::RateLimited(rate) = self else {
            return None;
        };
        let rate = rate.trim_start_matches("over ").split(' ').next()?;
        let (count, unit) = rate.split_once('/')?;
        let seconds = match unit {
            _ if unit.starts_with('s') => 1.0,
            _ if unit.starts_with('m') => 60.0,
            _ if unit.starts_with('h') => 3600.0,
            _ if unit.starts_with('d') => 86_400.0,
            _ if unit.starts_with('w') => 604_800.0,
            _ => return None,
        };
        let count: f64 = count.parse().ok().filter(|count| *count > 0.0)?;
        Duration::try_from_secs_f64(seconds / count).ok()
    }
}

impl Alone {
    pub(super) fn if_matches(matches: bool) -> Self {
        if matches { Self::Matches } else { Self::Fails }
    }

    /// The same of the opposite test.
    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Self::Matches => Self::Fails,
            Self::Fails => Self::Matches,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_says_when_the_next_packet_may_pass() {
        for (rate, millis) in [
            ("200/second burst 1", Some(5)),
            ("over 5/sec", Some(200)),
            ("3/min", Some(20_000)),
            ("limit name \"l1\"", None),
            ("1 mbytes/second", None),
        ] {
            let interval = Caveat::RateLimited(rate.to_owned()).interval();
            assert_eq!(interval, millis.map(Duration::from_millis), "{rate}");
        }
        assert_eq!(Caveat::Quota("5/sec".to_owned()).interval(), None);
    }
}
