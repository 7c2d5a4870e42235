//! tsim's own facts format: one JSON file per router, for labs written by hand.
//!
//! Routes and policy rules are written as ip(8) prints them, rulesets as the tools save them.
//! The schema is `netns-fixtures/facts.schema.json`.
//!
//! ```json
//! {
//!   "version": 1,
//!   "name": "r1",
//!   "interfaces": [
//!     {"name": "lan", "addresses": ["10.0.1.1/24", "2001:db8:1::1/64"]},
//!     {"name": "up", "mac": "02:00:00:00:00:11", "addresses": ["10.0.12.1/24"]}
//!   ],
//!   "routes": ["default via 10.0.12.2 dev up"],
//!   "rules": ["100: from 10.0.1.0/24 fwmark 0x1 lookup isp2"],
//!   "tables": {"isp2": 100},
//!   "nft": {"file": "r1.nft"}
//! }
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv6Net};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    FactsError, InterfaceFacts, LostRoute, LostRule, MAX_FILE, RouterFacts, read_text, route, rule,
    sysctl,
    words::{TableNames, Words, address_with_len},
};
use crate::{
    lab::topology::{At, Clock, InterfaceKind, LinkFacts, Origin, Ruleset, RulesetKind, Warning},
    model::{IfName, RouterName, printable},
    netlink::object::{Address, Family, Mac, Route, Scope},
};

/// One router. Unknown keys are refused.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "tsim facts of one router")]
struct File {
    /// Where the schema is, for editors.
    #[serde(rename = "$schema")]
    #[expect(dead_code, reason = "only editors read it")]
    schema: Option<String>,
    /// Version of the format: 1.
    #[schemars(range(min = 1, max = 1))]
    version: u32,
    /// The router's name: ASCII letters, digits, `_`, `-`, `.`; at most 64 bytes.
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    )]
    name: String,
    /// Which families the router forwards; both unless said otherwise.
    #[serde(default)]
    forwarding: Forwarding,
    /// Interfaces; `lo` with its addresses is there without being listed.
    #[serde(default)]
    interfaces: Vec<Interface>,
    /// Names of routing tables and their numbers.
    #[serde(default)]
    tables: BTreeMap<String, u32>,
    /// Routes as `ip route show` prints them, e.g. `default via 10.0.0.1 dev eth0 table isp2`.
    /// Routes to the interfaces' own subnets arise from the addresses. `default` without a
    /// gateway is IPv4; write `::/0` for IPv6.
    #[serde(default)]
    routes: Vec<String>,
    /// IPv4 policy rules as `ip rule show` prints them, e.g. `100: from 10.0.0.0/8 lookup isp2`.
    /// The kernel's own three are there without being listed.
    #[serde(default)]
    rules: Vec<String>,
    /// IPv6 policy rules, likewise.
    #[serde(default)]
    ipv6_rules: Vec<String>,
    /// What `ipset save` prints.
    ipset: Option<Text>,
    /// What `iptables-save` prints.
    iptables: Option<Text>,
    /// What `ip6tables-save` prints.
    ip6tables: Option<Text>,
    /// What `nft list ruleset` prints.
    nft: Option<Text>,
    /// Whether the times of `nft` are UTC (`TZ=UTC0 nft list ruleset`), and the router's kernel has no other
    /// time zone; without, rules that ask for the time are left out.
    #[serde(default)]
    utc: bool,
    /// Settings as path below /proc/sys and value, e.g. `"net/ipv4/conf/all/rp_filter": "1"`.
    #[serde(default)]
    sysctls: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Forwarding {
    /// net.ipv4.ip_forward
    #[serde(default = "yes")]
    ipv4: bool,
    /// net.ipv6.conf.all.forwarding
    #[serde(default = "yes")]
    ipv6: bool,
}

impl Default for Forwarding {
    fn default() -> Self {
        Self {
            ipv4: true,
            ipv6: true,
        }
    }
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Interface {
    /// At most 15 bytes.
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = r"^[A-Za-z0-9_@+=][A-Za-z0-9_.@+=-]*$")
    )]
    name: String,
    /// Ethernet unless said otherwise.
    #[serde(default = "ethernet")]
    kind: InterfaceKind,
    /// Hardware address; made up if absent.
    #[schemars(regex(pattern = r"^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$"))]
    mac: Option<String>,
    /// MTU in bytes; 1500 if absent.
    #[schemars(range(min = 68, max = 65535))]
    mtu: Option<u32>,
    /// Administratively up; true unless said otherwise.
    #[serde(default = "yes")]
    up: bool,
    /// Addresses with prefix length, or `ADDRESS peer ADDRESS/LENGTH`. An interface with IPv6
    /// addresses gets a link-local one unless one is listed.
    #[serde(default)]
    addresses: Vec<String>,
    /// Interfaces with the same segment are joined; if absent, the subnets decide.
    segment: Option<String>,
}

fn ethernet() -> InterfaceKind {
    InterfaceKind::Ethernet
}

/// A ruleset: lines, one text, or a file beside this one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Text {
    /// One string per line.
    Lines(Vec<String>),
    /// The whole text.
    Whole(String),
    /// A file in the same directory.
    File(Beside),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Beside {
    /// Its name, without any directory.
    file: PathBuf,
}

/// The format's JSON Schema, `netns-fixtures/facts.schema.json`.
#[cfg(test)]
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).into()
}

/// Reads the facts in `text`; `path` is where they come from.
///
/// # Errors
/// [`FactsError`] when the text is no JSON of this format or a file that it names is missing.
pub(super) fn read(path: &Path, label: &str, text: &str) -> Result<RouterFacts, FactsError> {
    let refuse = |line, message| FactsError::Json {
        origin: Origin {
            file: label.to_owned(),
            line,
        },
        message,
    };
    let file: File = serde_json::from_str(text).map_err(|e| {
        let message = match is_processed(text) {
            true => PROCESSED.to_owned(),
            false => e.to_string(),
        };
        refuse(e.line(), message)
    })?;
    let places = Places::of(text);
    if file.version != 1 {
        let message = format!("version {} is not known; 1 is allowed", file.version);
        return Err(refuse(places.line_of("version"), message));
    }
    let name = RouterName::new(file.name.as_str()).map_err(|source| FactsError::Name {
        origin: Origin {
            file: label.to_owned(),
            line: places.line_of(&file.name),
        },
        source,
    })?;
    let mut reader = Reader {
        facts: RouterFacts::new(name, label),
        tables: TableNames::default(),
        path,
        places,
    };
    reader.all(file)?;
    Ok(reader.facts)
}

const PROCESSED: &str = "these are processed facts of the Python system, which lack firewall rules in a \
    form that can be loaded: the file that its collector wrote on the router, NAME_facts.txt, is wanted";

/// Whether `text` is what the Python system makes of the collector's file.
fn is_processed(text: &str) -> bool {
    let Ok(serde_json::Value::Object(file)) = serde_json::from_str(text) else {
        return false;
    };
    ["routing", "firewall", "metadata"]
        .iter()
        .any(|key| file.contains_key(*key))
}

/// Where strings stand in a JSON text. JSON values do not know where they stand, and a message
/// without a line is of little help.
struct Places<'a> {
    /// Lines, in ascending order, of each string as it is written between its quotes.
    lines: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Places<'a> {
    /// Reads `text`, which was found to be JSON, once.
    fn of(text: &'a str) -> Self {
        let mut lines: HashMap<_, Vec<usize>> = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            for string in Strings(line) {
                lines.entry(string).or_default().push(number);
            }
        }
        Self { lines }
    }

    /// The first line from line `from` on that holds `value` as a string.
    fn first_from(&self, value: &str, from: usize) -> Option<usize> {
        let written = serde_json::Value::from(value).to_string();
        let inner = written.strip_prefix('"')?.strip_suffix('"')?;
        let lines = self.lines.get(inner)?;
        lines
            .get(lines.partition_point(|line| *line < from))
            .copied()
    }

    /// The first line that holds `value` as a string; 0 if none does.
    fn line_of(&self, value: &str) -> usize {
        self.first_from(value, 0).unwrap_or(0)
    }
}

/// The strings in what is left of a line of JSON, which no string goes beyond.
struct Strings<'a>(&'a str);

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (_, inner) = self.0.split_once('"')?;
        let mut escaped = false;
        let end = inner.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        })?;
        let (string, rest) = inner.split_at(end);
        self.0 = rest.strip_prefix('"')?;
        Some(string)
    }
}

struct Reader<'a> {
    facts: RouterFacts,
    tables: TableNames,
    path: &'a Path,
    places: Places<'a>,
}

impl Reader<'_> {
    fn all(&mut self, file: File) -> Result<(), FactsError> {
        for (name, id) in &file.tables {
            self.tables.insert(name, *id);
            let both = [Family::V4, Family::V6];
            self.facts.tables.extend(both.map(|family| (family, *id)));
        }
        self.sysctls(&file);
        self.interfaces(file.interfaces)?;
        for route in &file.routes {
            self.route(route);
        }
        for (family, rules) in [(Family::V4, &file.rules), (Family::V6, &file.ipv6_rules)] {
            for rule in rules {
                self.rule(rule, family);
            }
        }
        let clock = if file.utc {
            Clock::UTC
        } else {
            Clock::default()
        };
        let texts = [
            (RulesetKind::Ipset, "ipset", file.ipset),
            (RulesetKind::Iptables, "iptables", file.iptables),
            (RulesetKind::Ip6tables, "ip6tables", file.ip6tables),
            (RulesetKind::Nft, "nft", file.nft),
        ];
        for (kind, key, text) in texts {
            if let Some(text) = text {
                let (text, origin) = self.ruleset(key, text)?;
                self.facts.rulesets.push(Ruleset {
                    kind,
                    text,
                    origin,
                    in_one_line: false,
                    clock,
                });
            }
        }
        super::device_hooks::name_devices(&mut self.facts);
        self.facts.add_kernels_rules();
        super::proxy::model(&mut self.facts, &[]);
        super::away::model(&mut self.facts);
        Ok(())
    }

    fn warn(&mut self, line: usize, message: String) {
        let origin = self.facts.origin(line);
        let warning = Warning::new(origin, &self.facts.name, message);
        self.facts.warnings.push(warning);
    }

    fn interfaces(&mut self, list: Vec<Interface>) -> Result<(), FactsError> {
        let lo = |i: &Interface| i.kind == InterfaceKind::Loopback || i.name == "lo";
        if !list.iter().any(lo) {
            self.facts.interfaces.push(At::new(0, loopback()?));
        }
        for interface in list {
            let line = self.places.line_of(&interface.name);
            match self.interface(interface) {
                Ok(interface) => self.facts.interfaces.push(At::new(line, interface)),
                Err(message) => {
                    return Err(FactsError::Json {
                        origin: self.facts.origin(line),
                        message,
                    });
                }
            }
        }
        Ok(())
    }

    fn interface(&mut self, from: Interface) -> Result<InterfaceFacts, String> {
        let name = IfName::new(from.name).map_err(|e| e.to_string())?;
        if from.kind == InterfaceKind::Loopback && name.as_str() != "lo" {
            return Err(format!("{name} cannot be a loopback: only lo is"));
        }
        let mac = from
            .mac
            .map(|mac| mac.parse::<Mac>().map_err(|e| e.to_string()));
        let mac = mac.transpose()?;
        let addresses = from.addresses.iter().map(|text| address(text));
        let mut addresses: Vec<Address> = addresses.collect::<Result<_, _>>()?;
        let seed = format!("{}:{name}", self.facts.name);
        addresses.extend(missing_link_local(&addresses, || {
            mac.unwrap_or_else(|| Mac::made_up(&seed)).link_local()
        }));
        Ok(InterfaceFacts {
            kind: if name.as_str() == "lo" {
                InterfaceKind::Loopback
            } else {
                from.kind
            },
            name,
            mac,
            mtu: from.mtu,
            up: from.up,
            group: 0,
            addresses,
            link: LinkFacts::default(),
            segment: from.segment.map(|name| printable(&name).into_owned()),
        })
    }

    fn route(&mut self, text: &str) {
        let line = self.places.line_of(text);
        match route::parse(text, None, Route::MAIN, &self.tables) {
            Ok(parsed) => {
                if parsed.has_realm {
                    self.facts.realms.push(line);
                }
                for ignored in parsed.ignored {
                    let message = format!("the route is made without {ignored}");
                    let notice =
                        Warning::notice(self.facts.origin(line), &self.facts.name, message);
                    self.facts.warnings.push(notice);
                }
                let family = Family::of(parsed.route.destination.addr());
                self.facts.tables.insert((family, parsed.route.table));
                self.facts.routes.push(At::new(line, parsed.route));
            }
            Err(refused) => self.facts.lost_routes.push(LostRoute {
                line,
                message: format!("route left out: {}: {text}", refused.reason),
                route: refused.known.map(|route| *route),
            }),
        }
    }

    fn rule(&mut self, text: &str, family: Family) {
        let line = self.places.line_of(text);
        match rule::parse(text, family, &self.tables) {
            Ok(rule) => self.facts.rules.push(At::new(line, rule)),
            Err(refused) => {
                let message = format!("policy rule left out: {}: {text}", refused.reason);
                self.facts.lost_rules.push(LostRule {
                    line,
                    message,
                    rule: *refused.known,
                    of_users: refused.of_users,
                });
            }
        }
    }

    fn sysctls(&mut self, file: &File) {
        let flag = |on: bool| if on { "1" } else { "0" };
        let facts = &mut self.facts;
        facts.set_sysctl("net/ipv4/ip_forward", flag(file.forwarding.ipv4));
        facts.set_sysctl("net/ipv6/conf/all/forwarding", flag(file.forwarding.ipv6));
        for (key, value) in &file.sysctls {
            // As a path, or as sysctl(8) has it.
            let path = sysctl::parse(&format!("{key} = {value}")).map(|(path, _)| path);
            if let Some(path) = path.filter(|path| sysctl::matters(path)) {
                self.facts.set_sysctl(&path, value);
            } else {
                let message = format!("sysctl {key} is not one that a lab sets; left out");
                self.warn(self.places.line_of(key), message);
            }
        }
    }

    fn ruleset(&self, key: &str, text: Text) -> Result<(String, Origin), FactsError> {
        let line = self.places.line_of(key);
        match text {
            Text::Lines(lines) => {
                let first = lines.first().map(String::as_str);
                let first = first.and_then(|first| self.places.first_from(first, line));
                let first = first.unwrap_or(line);
                let text = lines
                    .iter()
                    .flat_map(|line| [line.as_str(), "\n"])
                    .collect();
                Ok((text, self.facts.origin(first)))
            }
            Text::Whole(text) => Ok((text, self.facts.origin(line))),
            Text::File(beside) => self.beside(&beside.file),
        }
    }

    fn beside(&self, file: &Path) -> Result<(String, Origin), FactsError> {
        let shown = file.display().to_string();
        if file.file_name() != Some(file.as_os_str()) {
            return Err(FactsError::Json {
                origin: self.facts.origin(self.places.line_of(&shown)),
                message: format!("{shown:?} is not a file name; a file beside this one is allowed"),
            });
        }
        let path = self.path.with_file_name(file);
        let text = read_text(&path, MAX_FILE)?;
        let label = Path::new(&self.facts.file).with_file_name(file);
        let origin = Origin {
            file: label.display().to_string(),
            line: 1,
        };
        Ok((text, origin))
    }
}

fn loopback() -> Result<InterfaceFacts, FactsError> {
    let name = IfName::new("lo").map_err(|source| FactsError::Name {
        origin: Origin {
            file: String::new(),
            line: 0,
        },
        source,
    })?;
    Ok(InterfaceFacts {
        name,
        kind: InterfaceKind::Loopback,
        mac: None,
        mtu: None,
        up: true,
        group: 0,
        addresses: Vec::new(),
        link: LinkFacts::default(),
        segment: None,
    })
}

/// `10.0.0.1/24`, or `10.0.0.1 peer 10.0.0.2/32`.
fn address(text: &str) -> Result<Address, String> {
    let refuse = || {
        format!("{text:?} is no address: ADDRESS/LENGTH or ADDRESS peer ADDRESS/LENGTH is allowed")
    };
    let mut words = Words::new(text);
    let local = words.next().and_then(address_with_len).ok_or_else(refuse)?;
    let peer = match (words.next(), words.next(), words.next()) {
        (None, _, _) => None,
        (Some("peer"), Some(peer), None) => Some(address_with_len(peer).ok_or_else(refuse)?),
        _ => return Err(refuse()),
    };
    let len = peer.map_or(local.prefix_len(), |peer| peer.prefix_len());
    let local = IpNet::new(local.addr(), len).map_err(|_| refuse())?;
    Ok(Address {
        local,
        peer,
        scope: if is_link_local(local) {
            Scope::Link
        } else {
            Scope::Global
        },
        prefix_route: true,
    })
}

fn is_link_local(address: IpNet) -> bool {
    matches!(address, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

/// What the kernel would add: without a link-local address a router cannot look for the neighbours
/// that it forwards to (ndisc_send_ns() in the kernel).
fn missing_link_local(addresses: &[Address], make: impl FnOnce() -> Ipv6Addr) -> Option<Address> {
    let v6 = |a: &Address| matches!(a.local, IpNet::V6(net) if !net.addr().is_loopback());
    if !addresses.iter().any(v6) || addresses.iter().any(|a| is_link_local(a.local)) {
        return None;
    }
    Some(Address {
        local: Ipv6Net::new(make(), 64).ok()?.into(),
        peer: None,
        scope: Scope::Link,
        prefix_route: true,
    })
}
