//! Services: a protocol, with a port or an ICMP type where it has one, and the text form that users
//! type them in.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::File,
    io::Read,
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{DidYouMean, Protocol, alike, icmp, protocol::ALIASES, shipped};

/// What a job asks about: a destination port of a protocol, or a protocol without ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Service {
    /// Destination port, 1 to 65,535; the type of ICMP; 0 for a protocol that has neither.
    pub port: u16,
    /// Protocol above IP.
    pub protocol: Protocol,
}

impl Service {
    /// The same service as packets of one family carry it: `ping` is another protocol and type in
    /// IPv6 than in IPv4.
    ///
    /// # Errors
    /// [`ServiceError::Family`] where that family has none such.
    pub fn in_family(self, v6: bool) -> Result<Self, ServiceError> {
        let (protocol, port) = match (self.protocol, v6) {
            (Protocol::Icmp, true) => (Protocol::Icmpv6, icmp::in_v6(self.port)),
            (Protocol::Icmpv6, false) | (Protocol::Other(AH), true) => (self.protocol, None),
            (protocol, _) => (protocol, Some(self.port)),
        };
        let refused = || ServiceError::Family {
            service: self.to_string(),
            family: if v6 { "IPv6" } else { "IPv4" },
        };
        Ok(Self {
            protocol,
            port: port.ok_or_else(refused)?,
        })
    }
}

/// The authentication header, RFC 4302. IPv6 takes it for an extension header, which rules skip.
const AH: u8 = 51;

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, protocol } = self;
        f.pad(&match icmp::name(*protocol, *port) {
            Some("ping") => "ping".to_owned(),
            Some(name) => format!("{name}/{protocol}"),
            None if protocol.has_ports() || protocol.has_types() => format!("{port}/{protocol}"),
            None => protocol.to_string(),
        })
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
        "service {entry:?} is neither a port (1-65535), a range (8000-8100), `all`, `ping`, `esp`, \
         `gre`, `ip/NUMBER` nor a known name such as `ssh`, `https` or `dns`{}",
        DidYouMean(alike.as_deref())
    )]
    Unknown {
        /// What was typed.
        entry: String,
        /// The name that is most like it.
        alike: Option<String>,
    },
    /// A number outside 1 to 65,535.
    #[error("port {0} is out of range: 1 to 65535 are allowed")]
    Port(String),
    /// A range whose ends are the wrong way round.
    #[error("port range {0:?} is empty: its first port exceeds its last")]
    Backwards(String),
    /// Not a protocol that tsim can probe.
    #[error(
        "protocol {0:?} is not allowed: `tcp`, `udp` and `sctp` are, after the port (`443/tcp`), \
         `icmp` and `icmpv6` after the type, `ping`, `esp`, `gre` and `ip/NUMBER` without"
    )]
    Protocol(String),
    /// No shipped group has that name.
    #[error("{entry} is no service group{}; `tsim services` lists them", DidYouMean(alike.as_deref()))]
    Group {
        /// What was typed.
        entry: String,
        /// The group that is most like it.
        alike: Option<String>,
    },
    /// A port where the protocol has none, or none where it has.
    #[error("{0:?} is not a service: {1}")]
    Shape(String, &'static str),
    /// A type of ICMP that no exchange begins with.
    #[error("{0:?} cannot be asked about: {1}")]
    NoOpening(String, &'static str),
    /// A service that one family does not have.
    #[error("{service} does not exist in {family}")]
    Family {
        /// The service.
        service: String,
        /// The family of the source and the destination.
        family: &'static str,
    },
    /// More services than the limit.
    #[error("more than {limit} services were asked for; raise --max-services to allow more")]
    TooMany {
        /// The limit in force.
        limit: usize,
    },
}

/// The names that [`parse_services`] understands, without those of `/etc/services`.
pub fn service_names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|(name, ..)| *name)
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

/// Reads a list such as `22,80,443/tcp,53/udp,8000-8100,https,all/udp,ping,36412/sctp,esp,ip/89`.
///
/// Blanks part entries as commas do, and `tcp/22`, `80:90` and capital letters are read as well.
/// Entries without a protocol get `default_proto`; a service name stands for its customary one, and `@web`
/// for the shipped group of that name ([`Groups`](super::Groups)).
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
    for entry in grouped(entries(text)?)? {
        let (first, last, protocol) = parse_entry(&entry, default_proto)?;
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

/// The entries of a list, between commas or blanks, in small letters.
fn entries(text: &str) -> Result<Vec<String>, ServiceError> {
    let mut entries = Vec::new();
    for part in text.split(',') {
        let before = entries.len();
        entries.extend(part.split_whitespace().map(str::to_lowercase));
        if entries.len() == before {
            return Err(ServiceError::Empty(text.to_owned()));
        }
    }
    Ok(entries)
}

/// The entries with those of shipped groups in the groups' places.
fn grouped(entries: Vec<String>) -> Result<Vec<String>, ServiceError> {
    if !entries.iter().any(|entry| entry.starts_with('@')) {
        return Ok(entries);
    }
    let mut all = Vec::new();
    for entry in entries {
        match entry.strip_prefix('@') {
            None => all.push(entry),
            Some(name) => match shipped::shipped_list(name) {
                Some(list) => all.extend(list.split(',').map(str::to_owned)),
                None => {
                    let alike = shipped::shipped_alike(name).map(|name| format!("@{name}"));
                    return Err(ServiceError::Group { entry, alike });
                }
            },
        }
    }
    Ok(all)
}

/// One entry as first port, last port and protocol.
fn parse_entry(entry: &str, default: Protocol) -> Result<(u16, u16, Protocol), ServiceError> {
    let turned = turn(entry);
    let entry = turned.as_deref().unwrap_or(entry);
    if let Some((port, protocol)) = parse_portless(entry)? {
        return Ok((port, port, protocol));
    }
    let (ports, protocol) = match entry.split_once('/') {
        Some((ports, protocol)) => (ports, Some(protocol.parse()?)),
        None => (entry, None),
    };
    if ports == "all" {
        return Ok((1, u16::MAX, protocol.unwrap_or(default)));
    }
    let is_number = |b: u8| b.is_ascii_digit() || RANGE.contains(&char::from(b));
    if !ports.bytes().all(is_number) {
        let (port, usual) = named(ports).ok_or_else(|| unknown(entry, ports))?;
        return Ok((port, port, protocol.unwrap_or(usual)));
    }
    let (first, last) = ports.split_once(RANGE).unwrap_or((ports, ports));
    let (first, last) = (parse_port(first, entry)?, parse_port(last, entry)?);
    if first > last {
        return Err(ServiceError::Backwards(entry.to_owned()));
    }
    Ok((first, last, protocol.unwrap_or(default)))
}

/// The port and customary protocol of a service's name: ours first, then this machine's.
fn named(name: &str) -> Option<(u16, Protocol)> {
    let ours = NAMES.iter().find(|(known, ..)| *known == name);
    let ours = ours.map(|(_, port, usual)| (*port, *usual));
    ours.or_else(|| of_machine().get(name).copied())
}

/// The names of services(5) on this machine, aliases included. A file that cannot be read, or is larger
/// than any such file, has none.
fn of_machine() -> &'static HashMap<String, (u16, Protocol)> {
    static NAMES: OnceLock<HashMap<String, (u16, Protocol)>> = OnceLock::new();
    const MOST: u64 = 4 << 20;
    NAMES.get_or_init(|| {
        let mut text = String::new();
        let read = File::open("/etc/services").and_then(|f| f.take(MOST).read_to_string(&mut text));
        match read {
            Ok(_) => services_file(&text),
            Err(_) => HashMap::new(),
        }
    })
}

/// Reads services(5). Where a name stands for several protocols, the first line counts.
fn services_file(text: &str) -> HashMap<String, (u16, Protocol)> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let (Some(name), Some(number)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((port, protocol)) = number.split_once('/') else {
            continue;
        };
        let (Ok(port @ 1..), Ok(protocol)) = (port.parse(), protocol.parse::<Protocol>()) else {
            continue;
        };
        for name in std::iter::once(name).chain(words) {
            names.entry(name.to_lowercase()).or_insert((port, protocol));
        }
    }
    names
}

/// What stands between the ends of a range: a hyphen, or a colon as iptables prints it.
const RANGE: [char; 2] = ['-', ':'];

/// The entry with its protocol behind the port or type, where it stands before, as in `tcp/22`.
fn turn(entry: &str) -> Option<String> {
    let (first, second) = entry.split_once('/')?;
    let protocol: Protocol = first.parse().ok()?;
    let is_turned = protocol.has_ports() || protocol.has_types();
    (is_turned && second.parse::<Protocol>().is_err()).then(|| format!("{second}/{first}"))
}

/// A name that nothing has, with the one that is most like it.
fn unknown(entry: &str, name: &str) -> ServiceError {
    let names = NAMES.iter().map(|(name, ..)| *name);
    ServiceError::Unknown {
        entry: entry.to_owned(),
        alike: alike(name, names).map(str::to_owned),
    }
}

/// An entry of a protocol that has no ports; none for one that has.
fn parse_portless(entry: &str) -> Result<Option<(u16, Protocol)>, ServiceError> {
    let shape = |why| Err(ServiceError::Shape(entry.to_owned(), why));
    if let Some(found) = icmp::parse(entry)? {
        return Ok(Some(found));
    }
    let alias = ALIASES.iter().find(|(alias, _)| *alias == entry);
    let protocol = match (alias, entry.strip_prefix("ip/")) {
        (Some((_, number)), _) => Protocol::of(*number),
        (None, Some(_)) => entry.parse()?,
        (None, None) => match entry.split_once('/') {
            None => match entry.parse::<Protocol>() {
                Ok(protocol) => protocol,
                Err(_) => return Ok(None),
            },
            Some((_, protocol)) => match protocol.parse::<Protocol>()? {
                protocol if protocol.has_ports() => return Ok(None),
                _ => return shape("this protocol has no ports, so it stands alone"),
            },
        },
    };
    match protocol {
        _ if protocol.has_ports() => shape("the port is missing, as in `443/tcp`"),
        Protocol::Icmp | Protocol::Icmpv6 => shape("write `ping`, or the type as in `13/icmp`"),
        // IPv6's extension headers stand between the header and what it carries.
        Protocol::Other(0 | 43 | 44 | 59 | 60) => shape("that is no protocol but a part of IPv6"),
        // Connection tracking and rules read the ports and the checksum of these.
        Protocol::Other(33 | 136) => shape(
            "packets of this protocol have ports, and tsim makes them of tcp, udp and sctp alone",
        ),
        _ => Ok(Some((0, protocol))),
    }
}

fn parse_port(text: &str, entry: &str) -> Result<u16, ServiceError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(unknown(entry, entry));
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
        assert_eq!(show("22,@LDAP,389"), "22/tcp 389/tcp 636/tcp");
    }

    #[test]
    fn lists_may_be_written_as_other_tools_print_them() {
        assert_eq!(show("22 443,  80 "), "22/tcp 443/tcp 80/tcp");
        assert_eq!(show("tcp/22,UDP/53,22/TCP,HTTPS"), "22/tcp 53/udp 443/tcp");
        assert_eq!(
            show("80:82,udp/500:501"),
            "80/tcp 81/tcp 82/tcp 500/udp 501/udp"
        );
        assert_eq!(show("icmp/13 sctp/36412"), "timestamp/icmp 36412/sctp");
    }

    #[test]
    fn names_of_the_machine_are_read_with_their_aliases() {
        let text = "# services\nsunrpc 111/tcp portmapper # RPC\nsunrpc 111/udp\nntalk 518/udp\n\
                    odd x/tcp\nzero 0/tcp\nold 3/dccp\nlonely\n";
        let names = services_file(text);
        assert_eq!(names["sunrpc"], (111, Protocol::Tcp));
        assert_eq!(names["portmapper"], (111, Protocol::Tcp));
        assert_eq!(names["ntalk"], (518, Protocol::Udp));
        assert_eq!(names.len(), 3);
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
            ("80/dccp", "dccp"),
            ("80/esp", "no ports"),
            ("tcp", "port is missing"),
            ("ip/6", "port is missing"),
            ("ip/1", "ping"),
            ("ip/256", "ip/256"),
            ("ip/44", "part of IPv6"),
            ("ip/33", "have ports"),
            ("ip/136", "have ports"),
            ("80,,443", "empty entry"),
            ("", "empty entry"),
            ("1-2-3", "1-2-3"),
            ("-5", "-5"),
            ("no-such-name", "no-such-name"),
            ("htps", "did you mean `https`?"),
            ("postgresqk/tcp", "did you mean `postgresql`?"),
            ("tcp/udp", "\"tcp/udp\""),
            ("80;reboot", "80;reboot"),
            ("22,@databasess", "did you mean `@databases`?"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text:?}: {error}");
        }
    }

    #[test]
    fn protocols_without_ports_stand_alone() {
        assert_eq!(
            show("ping,esp,gre,ip/89,ip/50,vrrp,36412/sctp,13/icmp,ping/icmpv6"),
            "ping esp gre ip/89 ip/112 36412/sctp timestamp/icmp ping"
        );
        assert_eq!(show("80-81/sctp,icmp"), "80/sctp 81/sctp ping");
        let texts = ["ping", "esp", "ip/89", "timestamp/icmp", "9/sctp"];
        assert_eq!(show(&texts.join(",")), texts.join(" "));
    }

    #[test]
    fn a_ping_is_that_of_its_family() {
        let ping = parse("ping").unwrap()[0];
        let six = ping.in_family(true).unwrap();
        assert_eq!((six.protocol, six.port), (Protocol::Icmpv6, 128));
        assert_eq!(ping.in_family(false), Ok(ping));
        for (text, v6) in [
            ("timestamp/icmp", true),
            ("128/icmpv6", false),
            ("ip/51", true),
        ] {
            let error = parse(text).unwrap()[0].in_family(v6).unwrap_err();
            assert!(
                error.to_string().contains("does not exist in IPv"),
                "{error}"
            );
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
