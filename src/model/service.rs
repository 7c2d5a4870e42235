//! Services: a port and a protocol, and the text form that users type them in.

use std::{collections::HashSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Transport protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// The assigned number, as in the IPv4 protocol field (IANA).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = ServiceError;
    fn from_str(text: &str) -> Result<Self, ServiceError> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(ServiceError::Protocol(text.to_owned())),
        }
    }
}

/// What a job asks about: a destination port of a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Service {
    /// Destination port, 1 to 65,535.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.port, self.protocol))
    }
}

/// How much one job may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Most services in one list, after duplicates were folded.
    pub max_services: usize,
}

impl ServiceLimits {
    /// Every port of both protocols.
    pub const ALL: usize = 2 * 65_535;
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            max_services: Self::ALL,
        }
    }
}

/// A list of services was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ServiceError {
    /// Nothing between two commas, or an empty list.
    #[error("empty entry in the service list {0:?}: write for example `22,80,443/tcp,53/udp`")]
    Empty(String),
    /// Not a port and no service name.
    #[error(
        "service {0:?} is neither a port (1-65535), a range (8000-8100), `all` nor a known name \
         such as `ssh`, `https` or `dns`"
    )]
    Unknown(String),
    /// A number outside 1 to 65,535.
    #[error("port {0} is out of range: 1 to 65535 are allowed")]
    Port(String),
    /// A range whose ends are the wrong way round.
    #[error("port range {0:?} is empty: its first port exceeds its last")]
    Backwards(String),
    /// Not a protocol that tsim can probe.
    #[error("protocol {0:?} is not allowed: `tcp` and `udp` are, after the port (`443/tcp`)")]
    Protocol(String),
    /// More services than the limit.
    #[error("more than {limit} services were asked for; raise --max-services to allow more")]
    TooMany {
        /// The limit in force.
        limit: usize,
    },
}

/// Names that are understood without a port, with the protocol they stand for when none is typed.
/// From the IANA service name registry and customary usage.
const NAMES: &[(&str, u16, Protocol)] = &[
    ("dhcp", 67, Protocol::Udp),
    ("dns", 53, Protocol::Udp),
    ("domain", 53, Protocol::Udp),
    ("ftp", 21, Protocol::Tcp),
    ("ftp-data", 20, Protocol::Tcp),
    ("http", 80, Protocol::Tcp),
    ("http-alt", 8080, Protocol::Tcp),
    ("https", 443, Protocol::Tcp),
    ("imap", 143, Protocol::Tcp),
    ("imaps", 993, Protocol::Tcp),
    ("isakmp", 500, Protocol::Udp),
    ("kerberos", 88, Protocol::Tcp),
    ("ldap", 389, Protocol::Tcp),
    ("ldaps", 636, Protocol::Tcp),
    ("mssql", 1433, Protocol::Tcp),
    ("mysql", 3306, Protocol::Tcp),
    ("nfs", 2049, Protocol::Tcp),
    ("ntp", 123, Protocol::Udp),
    ("pop3", 110, Protocol::Tcp),
    ("pop3s", 995, Protocol::Tcp),
    ("postgresql", 5432, Protocol::Tcp),
    ("radius", 1812, Protocol::Udp),
    ("rdp", 3389, Protocol::Tcp),
    ("redis", 6379, Protocol::Tcp),
    ("rsync", 873, Protocol::Tcp),
    ("sip", 5060, Protocol::Udp),
    ("smb", 445, Protocol::Tcp),
    ("smtp", 25, Protocol::Tcp),
    ("smtps", 465, Protocol::Tcp),
    ("snmp", 161, Protocol::Udp),
    ("ssh", 22, Protocol::Tcp),
    ("submission", 587, Protocol::Tcp),
    ("syslog", 514, Protocol::Udp),
    ("telnet", 23, Protocol::Tcp),
    ("tftp", 69, Protocol::Udp),
    ("vnc", 5900, Protocol::Tcp),
    ("wireguard", 51820, Protocol::Udp),
];

/// Reads a list such as `22,80,443/tcp,53/udp,8000-8100,https,all/udp`.
///
/// Entries without a protocol get `default_proto`; a service name stands for its customary one.
/// The order is kept, a service that is named again is folded into its first place.
///
/// # Errors
/// [`ServiceError`] for the first entry that is wrong, or when the list exceeds `limits`.
pub fn parse_services(
    text: &str,
    default_proto: Protocol,
    limits: ServiceLimits,
) -> Result<Vec<Service>, ServiceError> {
    let mut seen = HashSet::new();
    let mut services = Vec::new();
    for entry in text.split(',').map(str::trim) {
        if entry.is_empty() {
            return Err(ServiceError::Empty(text.to_owned()));
        }
        let (first, last, protocol) = parse_entry(entry, default_proto)?;
        for port in first..=last {
            let service = Service { port, protocol };
            if seen.insert(service) {
                if services.len() == limits.max_services {
                    return Err(ServiceError::TooMany {
                        limit: limits.max_services,
                    });
                }
                services.push(service);
            }
        }
    }
    Ok(services)
}

/// One entry as first port, last port and protocol.
fn parse_entry(entry: &str, default: Protocol) -> Result<(u16, u16, Protocol), ServiceError> {
    let (ports, protocol) = match entry.split_once('/') {
        Some((ports, protocol)) => (ports, Some(protocol.parse()?)),
        None => (entry, None),
    };
    if ports == "all" {
        return Ok((1, u16::MAX, protocol.unwrap_or(default)));
    }
    if let Some(&(_, port, usual)) = NAMES.iter().find(|(name, ..)| *name == ports) {
        return Ok((port, port, protocol.unwrap_or(usual)));
    }
    if !ports.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return Err(ServiceError::Unknown(entry.to_owned()));
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (parse_port(first, entry)?, parse_port(last, entry)?);
    if first > last {
        return Err(ServiceError::Backwards(entry.to_owned()));
    }
    Ok((first, last, protocol.unwrap_or(default)))
}

fn parse_port(text: &str, entry: &str) -> Result<u16, ServiceError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ServiceError::Unknown(entry.to_owned()));
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(ServiceError::Port(text.to_owned())),
        Ok(port) => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Service>, ServiceError> {
        parse_services(text, Protocol::Tcp, ServiceLimits::default())
    }

    fn show(text: &str) -> String {
        let list = parse(text).unwrap();
        list.iter()
            .map(Service::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn lists_keep_their_order_and_fold_duplicates() {
        assert_eq!(show("443,80,443/tcp,53/udp,80"), "443/tcp 80/tcp 53/udp");
        assert_eq!(
            show("8000-8002/udp, ssh"),
            "8000/udp 8001/udp 8002/udp 22/tcp"
        );
        assert_eq!(show("dns,dns/tcp,https"), "53/udp 53/tcp 443/tcp");
        assert_eq!(parse("all/tcp,all/udp").unwrap().len(), ServiceLimits::ALL);
    }

    #[test]
    fn entries_without_a_protocol_get_the_default() {
        let list = parse_services("53,80/tcp", Protocol::Udp, ServiceLimits::default()).unwrap();
        assert_eq!(list[0].protocol, Protocol::Udp);
        assert_eq!(list[1].protocol, Protocol::Tcp);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, want) in [
            ("0", "port 0"),
            ("70000", "port 70000"),
            ("99999999999999999999", "out of range"),
            ("9-1", "9-1"),
            ("tcp/80", "\"80\""),
            ("80/sctp", "sctp"),
            ("80,,443", "empty entry"),
            ("", "empty entry"),
            ("1-2-3", "1-2-3"),
            ("-5", "-5"),
            ("no-such-name", "no-such-name"),
            ("80;reboot", "80;reboot"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text:?}: {error}");
        }
    }

    #[test]
    fn passing_the_limit_is_an_error_not_a_cut() {
        let limits = ServiceLimits { max_services: 10 };
        assert!(parse_services("1-10,5", Protocol::Tcp, limits).is_ok());
        let error = parse_services("1-11", Protocol::Tcp, limits).unwrap_err();
        assert_eq!(error, ServiceError::TooMany { limit: 10 });
    }
}
