//! Facts: what was collected from a real router, one file per router.
//!
//! Two formats, told apart by the file's name.
//!
//! **`*.txt`**, what the collector writes; the router is named after the file (`hq-gw_facts.txt`
//! or `hq-gw.txt`). Each section holds the output of one command:
//!
//! ```text
//! === TSIM_SECTION_START:policy_rules ===
//! TITLE: IP Policy Rules
//! COMMAND: /sbin/ip rule show
//! TIMESTAMP: 2025-07-01 10:00:00
//! ---
//! 0:      from all lookup local
//!
//! EXIT_CODE: 0
//! === TSIM_SECTION_END:policy_rules ===
//! ```
//!
//! | section | what | |
//! |---|---|---|
//! | `interfaces` | `ip addr show` | needed |
//! | `routing_table` or `routing_table_main` | `ip route show`, with or without `-o` | needed |
//! | `routing_table_NAME`, `routing_table_ID` | other tables; `rt_tables` or the number in TITLE, `(100)`, or in COMMAND, `table 100`, says which | |
//! | `rt_tables` | /etc/iproute2/rt_tables | |
//! | `policy_rules` | `ip rule show` | |
//! | `ipv6_routing_table…`, `ipv6_policy_rules` | `ip -6 route show`, `ip -6 rule show` | |
//! | `ip_forwarding`, `ipv6_forwarding` | `0` or `1`; IPv6 follows IPv4 where it is missing | |
//! | `sysctl` | `sysctl -a`; what decides about packets is taken over | |
//! | `ipset_save`, `iptables_save`, `ip6tables_save` | what the tools save, with or without counters | |
//! | `links`, `wireguard`, `neighbours`, `lldp` | `ip -d link show`, `wg show` (which hides private keys), `ip neigh show`, `lldpctl -f keyvalue`: who is at the other end of a link | |
//! | `nft_ruleset` | `nft list ruleset`; tables that `iptables_save` has too are left to it | |
//!
//! Sections may stand in any order and anywhere, `EXIT_CODE` may be missing. What else the
//! collector writes is not needed; a section of an unknown name is a notice.
//!
//! **`*.json`**, our own format for labs written by hand, see [`json`] and
//! `netns-fixtures/facts.schema.json`.
//!
//! **`links.toml`** says which interfaces are joined where the facts do not tell, see
//! [`links`](super::links).
//!
//! Other files in the directory do not count, nor do `*.schema.json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{
    omission::{Omission, OmissionKind, PacketSet},
    topology::{At, InterfaceKind, LinkFacts, Origin, Ruleset, RulesetKind, Warning},
};
use crate::{
    files::{self, ReadError},
    model::{IfName, NameError, RouterName},
    netlink::object::{Address, Family, Mac, PolicyRule, Route},
};

mod addr;
mod addr_forms;
mod all_tables;
mod arp;
mod away;
mod busybox;
mod connected;
mod device_hooks;
pub(crate) mod exchange;
mod firewall;
mod forwarding;
mod ip_json;
pub mod json;
mod link_layer;
mod link_types;
mod links;
mod listing;
mod neighbours;
mod nexthops;
mod nft_json;
mod proxy;
mod realms;
mod return_path;
mod route;
mod rule;
mod section;
mod sets;
mod shared;
mod signs;
mod sysctl;
mod text;
mod vlans;
mod vrf;
mod whole;
mod wireguard;
mod words;

pub(in crate::lab) use link_layer::is_of_guest;
#[cfg(test)]
pub(in crate::lab) use text::NOT_NEEDED;

/// A POSIX shell script that collects a router's facts.
pub const COLLECTOR: &str = include_str!("collect.sh");

/// Largest facts file in bytes. Real ones have some 100 kB; a router with a million ipset
/// elements stays below this.
pub const MAX_FILE: u64 = 64 << 20;

/// What was collected from one router. What the lab cannot have is in `warnings` instead.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterFacts {
    /// The router.
    pub name: RouterName,
    /// The file, for messages.
    pub file: String,
    /// Interfaces in the order of the facts.
    pub interfaces: Vec<At<InterfaceFacts>>,
    /// Routes of all tables but `local`, without those that the kernel makes from the addresses.
    pub routes: Vec<At<Route>>,
    /// Policy rules of both families, the kernel's own included.
    pub rules: Vec<At<PolicyRule>>,
    /// Families whose rules the file lists; of the others the kernel's own are taken.
    rule_families: BTreeSet<Family>,
    /// Tables that the file has, empty ones included.
    pub tables: BTreeSet<(Family, u32)>,
    /// Rulesets in the order in which they are to be loaded.
    pub rulesets: Vec<Ruleset>,
    /// Path below /proc/sys and value, in the order in which they are to be set.
    pub sysctls: Vec<(String, String)>,
    /// What could not be read or represented.
    pub warnings: Vec<Warning>,
    /// Routes that could not be read: which packets that concerns only the others tell.
    pub lost_routes: Vec<LostRoute>,
    /// Policy rules that could not be read: which packets that concerns the rulesets tell, too.
    pub lost_rules: Vec<LostRule>,
    /// Lines of routes that have a realm, which the lab's routes have not.
    realms: Vec<usize>,
    /// The router's own addresses as the kernel's routes of table local have them.
    own: Vec<At<IpAddr>>,
    /// Families of which the file lists such routes.
    own_listed: BTreeSet<Family>,
}

/// A policy rule that could not be read or represented.
#[derive(Debug, Clone, PartialEq)]
pub struct LostRule {
    /// Where it stands.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// Those of its selectors that could be read.
    pub rule: PolicyRule,
    /// Whether it selects by a user other than root, so that it matches nothing that is forwarded.
    pub of_users: bool,
}

/// A route that could not be read or represented.
#[derive(Debug, Clone, PartialEq)]
pub struct LostRoute {
    /// Where it stands.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// Its destination, table and metric, where they could be read.
    pub route: Option<Route>,
}

/// One interface of a router as its facts have it.
#[derive(Debug, Clone, PartialEq)]
pub struct InterfaceFacts {
    /// Name.
    pub name: IfName,
    /// What it is.
    pub kind: InterfaceKind,
    /// Hardware address, where it has one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Its group, which rules may ask for; 0 is that of every new interface.
    pub group: u32,
    /// Addresses of both families.
    pub addresses: Vec<Address>,
    /// What leads to the other end of its link.
    pub link: LinkFacts,
    /// Joined with the interfaces of the same segment; if absent, subnets decide.
    pub segment: Option<String>,
}

/// Facts that cannot be used at all.
#[derive(Debug, Error)]
pub enum FactsError {
    /// The directory cannot be listed.
    #[error("cannot read the facts directory {path}")]
    ReadDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing to build a lab from.
    #[error("{path} holds no facts: files named *_facts.txt, *.txt or *.json are wanted")]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any facts file.
    #[error("{path} has more than {most} bytes, the most that is read")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How many are read.
        most: u64,
    },
    /// A file is binary.
    #[error("{origin}: not text: {found}")]
    NotText {
        /// Where the first wrong byte stands.
        origin: Origin,
        /// What was found.
        found: String,
    },
    /// A section does not end.
    #[error("{origin}: section `{section}` has no end: the file was cut; collect the facts again")]
    Cut {
        /// Where the section begins.
        origin: Origin,
        /// The section.
        section: String,
    },
    /// A section does not begin.
    #[error(
        "{origin}: section `{section}` ends here and begins nowhere: the file was damaged; collect the \
         facts again"
    )]
    Unbegun {
        /// Where the section ends.
        origin: Origin,
        /// The section.
        section: String,
    },
    /// A section that no router is without is missing.
    #[error("{file} has no section `{section}`: no facts file, or it was cut")]
    Lacks {
        /// The file.
        file: String,
        /// The section.
        section: String,
    },
    /// A file of our own format is wrong.
    #[error("{origin}: {message}")]
    Json {
        /// Where.
        origin: Origin,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// `links.toml` is wrong.
    #[error("{origin}: {message}")]
    Links {
        /// Where.
        origin: Origin,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// A router's name is not allowed.
    #[error("{origin}: a router cannot have this name")]
    Name {
        /// Where the name stands.
        origin: Origin,
        /// Why.
        #[source]
        source: NameError,
    },
    /// Two files are about one router.
    #[error("router {router} has two facts files, {first} and {second}: remove one")]
    Duplicate {
        /// The router.
        router: RouterName,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
}

/// Reads the facts of all routers in `dir`, in the order of their names.
///
/// # Errors
/// [`FactsError`] when the directory or one of its files cannot be used; a lab from half of the
/// routers would answer wrongly.
pub fn load_dir(dir: &Path) -> Result<Vec<RouterFacts>, FactsError> {
    let files = facts_files(dir)?;
    together(dir, files.iter().map(|path| load_file(path)))
}

/// As [`load_dir`], but a file that cannot be used does not refuse the others: its router is
/// missing, and each such router is a warning.
///
/// # Errors
/// [`FactsError`] when no file can be used, or nothing tells which router a file is about.
pub fn load_usable(dir: &Path) -> Result<(Vec<RouterFacts>, Vec<Warning>), FactsError> {
    let mut missing = Vec::new();
    let mut usable = Vec::new();
    let mut first = None;
    for path in facts_files(dir)? {
        match load_file(&path) {
            Ok(facts) => usable.push(facts),
            Err(error) => {
                let Some(warning) = missing_router(&path, &error) else {
                    return Err(error);
                };
                missing.push(warning);
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(error) if usable.is_empty() => Err(error),
        _ => Ok((together(dir, usable.into_iter().map(Ok))?, missing)),
    }
}

/// The router that the file at `path` should have been about, by the file's name.
fn missing_router(path: &Path, error: &FactsError) -> Option<Warning> {
    let name = path.file_name()?.to_string_lossy();
    let name = name.strip_suffix(".json").unwrap_or(&name);
    let router = RouterName::new(text::router_of(name)).ok()?;
    let origin = Origin {
        file: path.display().to_string(),
        line: 0,
    };
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    let cause = cause.unwrap_or_default();
    let message = format!("router {router} is missing from the lab: {error}{cause}");
    let omission = Omission::of_everything(OmissionKind::Router);
    Some(Warning::omission(origin, &router, message, omission))
}

fn together(
    dir: &Path,
    all: impl Iterator<Item = Result<RouterFacts, FactsError>>,
) -> Result<Vec<RouterFacts>, FactsError> {
    let mut routers: BTreeMap<RouterName, RouterFacts> = BTreeMap::new();
    for facts in all {
        let facts = facts?;
        let (router, second) = (facts.name.clone(), facts.file.clone());
        if let Some(first) = routers.insert(router.clone(), facts) {
            return Err(FactsError::Duplicate {
                router,
                first: first.file,
                second,
            });
        }
    }
    if routers.is_empty() {
        return Err(FactsError::Empty { path: dir.into() });
    }
    Ok(routers.into_values().collect())
}

fn facts_files(dir: &Path) -> Result<Vec<PathBuf>, FactsError> {
    let refuse = |source| FactsError::ReadDir {
        path: dir.into(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        // Hidden files are what other programs leave beside: `._r1_facts.txt`, `.~lock.r1_facts.txt`.
        let is_facts = |n: String| {
            let is_json = n.ends_with(".json") && !n.ends_with(".schema.json");
            !n.starts_with('.') && (n.ends_with(".txt") || is_json)
        };
        if name.is_some_and(is_facts) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads the facts of one router; the file's name says the format.
///
/// # Errors
/// [`FactsError`] when the file cannot be used.
pub fn load_file(path: &Path) -> Result<RouterFacts, FactsError> {
    let mut facts = read_file(path)?;
    neighbours::model(&mut facts);
    realms::model(&mut facts);
    Ok(facts)
}

fn read_file(path: &Path) -> Result<RouterFacts, FactsError> {
    let label = path.display().to_string();
    let text = read_text(path, MAX_FILE)?;
    if path.extension().is_some_and(|e| e == "json") {
        return json::read(path, &label, &text);
    }
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = RouterName::new(text::router_of(&file_name)).map_err(|source| FactsError::Name {
        origin: Origin {
            file: label.clone(),
            line: 0,
        },
        source,
    })?;
    text::read(name, &label, &plain(text))
}

/// What is said of an interface without a carrier.
fn no_carrier(name: &IfName) -> String {
    format!("{name} had no carrier; in the lab it has one")
}

/// The text without what a terminal adds to what was shown there: colours, and carriage returns.
fn plain(text: String) -> String {
    if !text.contains(['\r', '\u{1b}']) {
        return text;
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(['\r', '\u{1b}']) {
        let (before, from) = rest.split_at(at);
        plain.push_str(before);
        rest = from.get(1..).unwrap_or_default();
        if from.starts_with('\r') {
            // Alone it ends a line, too.
            let ends = rest.trim_start_matches('\r').starts_with('\n');
            plain.push_str(if ends { "" } else { "\n" });
        } else if let Some(behind) = behind_colour(rest) {
            rest = behind;
        } else {
            plain.push('\u{1b}');
        }
    }
    plain + rest
}

/// What stands behind the rest of a sequence that sets a colour, or clears to the end of the line.
fn behind_colour(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix('[')?;
    let rest = parameters.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
    rest.strip_prefix(['m', 'K'])
}

/// A whole file as text, unless it has more than `most` bytes or is binary. It is opened in
/// its directory, and is no symbolic link: facts come from strangers, and root may read anything.
pub(super) fn read_text(path: &Path, most: u64) -> Result<String, FactsError> {
    let refuse = |error| FactsError::Read {
        path: path.into(),
        source: io::Error::from(error),
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let name = Path::new(path.file_name().unwrap_or_default());
    match files::read_beneath(dir.unwrap_or(Path::new(".")), name, most) {
        Ok(bytes) => decode(&path.display().to_string(), bytes),
        Err(ReadError::TooLarge { .. }) => Err(FactsError::TooLarge {
            path: path.into(),
            most,
        }),
        Err(error) => Err(refuse(error)),
    }
}

fn decode(file: &str, bytes: Vec<u8>) -> Result<String, FactsError> {
    let refuse = |at: usize, bytes: &[u8], what: &str| {
        let before = bytes.get(..at).unwrap_or(bytes);
        let byte = bytes.get(at).copied().unwrap_or(0);
        FactsError::NotText {
            origin: Origin {
                file: file.to_owned(),
                line: 1 + before.iter().filter(|b| **b == b'\n').count(),
            },
            found: format!("{what} 0x{byte:02x} at byte {at}"),
        }
    };
    // As a shell of Windows writes with `>`: byte order mark, or every other byte of plain text 0.
    let marked = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    let of_pairs = bytes.get(..8).is_some_and(|first| {
        let zeros = |from: usize| first.iter().skip(from).step_by(2).all(|b| *b == 0);
        zeros(0) != zeros(1)
    });
    if let Some(at) = bytes.iter().position(|b| *b == 0)
        && (marked || of_pairs)
    {
        let what = "text in UTF-16, which is to be saved as UTF-8 (not binary),";
        return Err(refuse(at, &bytes, what));
    }
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err(refuse(at, &bytes, "binary data,"));
    }
    let text = String::from_utf8(bytes).unwrap_or_else(|error| with_latin1(error.as_bytes()));
    if let Some(at) = text
        .find("&lt;LOOPBACK")
        .or_else(|| text.find("&lt;BROADCAST"))
    {
        let before = text.get(..at).unwrap_or_default();
        return Err(FactsError::NotText {
            origin: Origin {
                file: file.to_owned(),
                line: 1 + before.matches('\n').count(),
            },
            found: "HTML, in which &lt; stands for <: save the collector's output as plain text"
                .to_owned(),
        });
    }
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// Text of which some bytes are no UTF-8: each of these is the character that it is in Latin-1, as in
/// comments that somebody wrote on an old machine. What differed before differs still.
fn with_latin1(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + bytes.len() / 8);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| char::from(*byte)));
    }
    text
}

impl RouterFacts {
    fn new(name: RouterName, file: &str) -> Self {
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        Self {
            name,
            file: file.to_owned(),
            interfaces: Vec::new(),
            routes: Vec::new(),
            rules: Vec::new(),
            rule_families: BTreeSet::new(),
            tables: BTreeSet::new(),
            rulesets: Vec::new(),
            sysctls: sysctl::DEFAULTS.map(own).to_vec(),
            warnings: Vec::new(),
            lost_routes: Vec::new(),
            lost_rules: Vec::new(),
            realms: Vec::new(),
            own: Vec::new(),
            own_listed: BTreeSet::new(),
        }
    }

    /// A place in this router's facts.
    #[must_use]
    pub fn origin(&self, line: usize) -> Origin {
        Origin {
            file: self.file.clone(),
            line,
        }
    }

    /// A setting of an interface, or that of `all` where it is more (`IN_DEV_MAXCONF`); 0 where neither is
    /// known. `family` is `ipv4` or `ipv6`.
    fn most_of(&self, family: &str, name: &IfName, key: &str) -> u32 {
        let of = |whose: &str| -> Option<u32> {
            let value = self.sysctl(&format!("net/{family}/conf/{whose}/{key}"));
            value?.trim().parse().ok()
        };
        of("all").max(of(name.as_str())).unwrap_or(0)
    }

    fn sysctl(&self, key: &str) -> Option<&str> {
        let found = self.sysctls.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str())
    }

    fn set_sysctl(&mut self, key: &str, value: &str) {
        // What `all` says of this reaches the interfaces that are there, and a lab has none then.
        let key = match key {
            "net/ipv6/conf/all/force_forwarding" => "net/ipv6/conf/default/force_forwarding",
            other => other,
        };
        match self.sysctls.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => value.clone_into(old),
            None => self.sysctls.push((key.to_owned(), value.to_owned())),
        }
    }

    /// Notes that an interface had no carrier, so that what leaves by it is lost; once, however often it is
    /// shown.
    fn without_carrier(&mut self, line: usize, name: IfName) {
        if self.had_no_carrier(&name) {
            return;
        }
        let message = no_carrier(&name);
        let packets = [PacketSet::by(name)];
        let omission = Omission::of_packets(OmissionKind::Interface, packets);
        let warning = Warning::omission(self.origin(line), &self.name, message, omission);
        self.warnings.push(warning);
    }

    /// Whether that was said of an interface.
    fn had_no_carrier(&self, name: &IfName) -> bool {
        let message = no_carrier(name);
        self.warnings.iter().any(|known| known.message == message)
    }

    /// Adds the kernel's own rules where the file does not list the family's rules itself.
    fn add_kernels_rules(&mut self) {
        for family in [Family::V4, Family::V6] {
            if self.rule_families.contains(&family) {
                continue;
            }
            for own in PolicyRule::kernel_defaults(family) {
                if !self.rules.iter().any(|rule| rule.value == own) {
                    self.rules.push(At::new(0, own));
                }
            }
        }
    }

    /// Sets come before the rules that refer to them, and tables of nft(8) that are older than those
    /// of iptables-nft before these: of chains of one priority the newer one is asked first.
    fn order_rulesets(&mut self) {
        self.rulesets.sort_by_key(|ruleset| ruleset.kind);
        let kinds = |kind| self.rulesets.iter().filter(move |r| r.kind == kind).count();
        if kinds(RulesetKind::Nft) > 1 {
            let newer = self.rulesets.len() - kinds(RulesetKind::Nft);
            let sets = kinds(RulesetKind::Ipset);
            self.rulesets
                .get_mut(sets..=newer)
                .unwrap_or_default()
                .rotate_right(1);
        }
    }
}

#[cfg(test)]
mod tests;
