//! The files of the case table, as pure code. `netns-fixtures/cases/README.md` describes them.

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path};

use serde::Deserialize;
use tsim::{
    firewall::Backend,
    model::{Protocol, Service, ServiceLimits, parse_services},
    netlink::object::Family,
    run::report::Verdict,
};

use crate::kernels;

/// What a file says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct CaseFile {
    #[serde(skip)]
    pub(crate) name: String,
    #[expect(dead_code, reason = "for readers of the file, who must be given one")]
    title: String,
    #[expect(dead_code, reason = "for readers of the file, who must be given one")]
    why: String,
    #[serde(default)]
    pub(crate) needs: Vec<String>,
    families: Option<Vec<u8>>,
    source: Option<String>,
    to: Option<String>,
    #[serde(default)]
    pub(crate) dscp: u8,
    #[serde(default)]
    pub(crate) fresh: bool,
    #[serde(default)]
    pub(crate) burst: bool,
    #[serde(default)]
    ip: Vec<String>,
    #[serde(default)]
    pub(crate) sysctl: BTreeMap<String, String>,
    ipset: Option<String>,
    iptables: Option<String>,
    ip6tables: Option<String>,
    nft: Option<String>,
    nft6: Option<String>,
    expect: Option<String>,
    expect_iptables: Option<String>,
    expect_nft: Option<String>,
    #[serde(default)]
    warns: Vec<String>,
    #[serde(default)]
    leaves: bool,
    #[serde(default)]
    except: Vec<Exception>,
}

/// Where something else is right than in general, and why.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    rules: Option<Loader>,
    by: Option<Backend>,
    family: Option<u8>,
    /// Only where the kernel lets rules write this part of IP's header, as nft(8) names it.
    writes: Option<String>,
    expect: Option<String>,
    warns: Option<Vec<String>>,
    #[expect(dead_code, reason = "for readers of the file, who must be given one")]
    why: String,
}

/// Who loads the rules into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Loader {
    Nft,
    IptablesNft,
    IptablesLegacy,
}

impl Loader {
    /// The back ends that can measure what it loads.
    pub(crate) fn backends(self) -> [Backend; 2] {
        match self {
            Self::Nft | Self::IptablesNft => [Backend::Nft, Backend::IptablesNft],
            Self::IptablesLegacy => [Backend::Nft, Backend::IptablesLegacy],
        }
    }
}

/// What is right for one service.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) service: Service,
    pub(crate) verdict: Verdict,
    /// One of these is in the reason; none is asked for where there is none.
    pub(crate) because: Vec<String>,
}

/// Every case, by name.
pub(crate) fn all(dir: &Path) -> Vec<CaseFile> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    files.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> CaseFile {
    let text = fs::read_to_string(path).unwrap();
    let case: CaseFile =
        toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    CaseFile { name, ..case }
}

/// The services in a list such as `22,53/udp`.
pub(crate) fn services(list: &str) -> impl Iterator<Item = Service> {
    let services = parse_services(list, Protocol::Tcp, ServiceLimits::default());
    services.unwrap().into_iter()
}

impl CaseFile {
    /// A case of nothing but rules.
    pub(crate) fn of_rules(loader: Loader, rules: String) -> Self {
        let mut case: Self = toml::from_str("title = ''\nwhy = ''").unwrap();
        match loader {
            Loader::Nft => case.nft = Some(rules),
            _ => case.iptables = Some(rules),
        }
        case
    }

    /// The same router and question with other rules, of nft.
    pub(crate) fn with_rules(&self, rules: String) -> Self {
        Self {
            nft: Some(rules),
            nft6: None,
            ..self.clone()
        }
    }

    pub(crate) fn families(&self) -> Vec<Family> {
        let named = |number: &u8| match number {
            4 => Family::V4,
            6 => Family::V6,
            other => panic!("{}: there is no IPv{other}", self.name),
        };
        let numbers = self.families.as_deref().unwrap_or(&[4, 6]);
        numbers.iter().map(named).collect()
    }

    pub(crate) fn loaders(&self) -> Vec<Loader> {
        let nft = self.nft.is_some() || self.nft6.is_some();
        let iptables = self.iptables.is_some() || self.ip6tables.is_some();
        assert!(nft || iptables, "{}: no rules", self.name);
        let mut loaders = Vec::new();
        loaders.extend(nft.then_some(Loader::Nft));
        loaders.extend(iptables.then_some(Loader::IptablesNft));
        loaders.extend(iptables.then_some(Loader::IptablesLegacy));
        loaders
    }

    /// The ruleset in the words of the family.
    pub(crate) fn rules(&self, loader: Loader, family: Family) -> String {
        let (four, six) = match loader {
            Loader::Nft => (&self.nft, &self.nft6),
            _ => (&self.iptables, &self.ip6tables),
        };
        let text = match family {
            Family::V4 => four.as_ref(),
            Family::V6 => six.as_ref().or(four.as_ref()),
        };
        fill(text.map_or("", String::as_str), family)
    }

    pub(crate) fn ipset(&self, family: Family) -> Option<String> {
        self.ipset.as_ref().map(|text| fill(text, family))
    }

    pub(crate) fn ip(&self, family: Family) -> Vec<String> {
        self.ip.iter().map(|line| fill(line, family)).collect()
    }

    pub(crate) fn source(&self, family: Family) -> IpAddr {
        let text = self.source.as_deref().unwrap_or("{src}");
        fill(text, family).parse().unwrap()
    }

    pub(crate) fn to(&self, family: Family) -> IpAddr {
        let text = self.to.as_deref().unwrap_or("{dst}");
        fill(text, family).parse().unwrap()
    }

    fn exception(&self, run: Run) -> impl Iterator<Item = &Exception> {
        self.except.iter().filter(move |except| {
            except.rules.is_none_or(|rules| rules == run.loader)
                && except.by.is_none_or(|by| by == run.backend)
                && except.family.is_none_or(|n| n == number(run.family))
                && except.writes.as_deref().is_none_or(kernels::lets_write)
        })
    }

    /// What is right for each service.
    pub(crate) fn expected(&self, run: Run) -> Vec<Expected> {
        let own = match run.loader {
            Loader::Nft => self.expect_nft.as_ref(),
            _ => self.expect_iptables.as_ref(),
        };
        let text = self.exception(run).find_map(|e| e.expect.as_ref());
        let text = text.or(own).or(self.expect.as_ref());
        let text = fill(text.expect("a case says what is right"), run.family);
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .flat_map(|line| expectation(line, &self.name))
            .map(|expected| Expected {
                service: expected
                    .service
                    .in_family(run.family == Family::V6)
                    .unwrap(),
                ..expected
            })
            .collect()
    }

    /// Whether the router's own rules remember probes, so that its sets are not as before.
    pub(crate) fn leaves(&self) -> bool {
        self.leaves
    }

    /// What the job must warn about.
    pub(crate) fn warns(&self, run: Run) -> Vec<String> {
        let text = self.exception(run).find_map(|e| e.warns.as_ref());
        let list = text.unwrap_or(&self.warns).iter();
        list.map(|line| fill(line, run.family)).collect()
    }
}

/// One way to ask a case's question.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) loader: Loader,
    pub(crate) backend: Backend,
    pub(crate) family: Family,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let loader = match self.loader {
            Loader::Nft => "nft",
            Loader::IptablesNft => "iptables-nft",
            Loader::IptablesLegacy => "iptables-legacy",
        };
        write!(
            f,
            "{loader} rules by {}, IPv{}",
            self.backend,
            number(self.family)
        )
    }
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// `VERDICT SERVICES: FRAGMENT | FRAGMENT`, as in `NO 80,53/udp: rule 2 of`.
fn expectation(line: &str, case: &str) -> Vec<Expected> {
    let (head, because) = match line.split_once(": ") {
        Some((head, because)) => (head, because.split(" | ").collect()),
        None => (line, Vec::new()),
    };
    let (verdict, services) = head
        .trim()
        .split_once(' ')
        .unwrap_or_else(|| panic!("{case}: {line:?}"));
    let verdict = match verdict {
        "YES" => Verdict::Yes,
        "NO" => Verdict::No,
        "UNKNOWN" => Verdict::Unknown,
        other => panic!("{case}: there is no verdict {other}"),
    };
    let expected = |service| Expected {
        service,
        verdict,
        because: because.iter().map(|text| text.trim().to_owned()).collect(),
    };
    self::services(services.trim()).map(expected).collect()
}

/// Puts the family's words in.
fn fill(text: &str, family: Family) -> String {
    // Name, IPv4, IPv6. Addresses: README.md of the cases.
    const WORDS: [(&str, &str, &str); 22] = [
        ("{src}", "10.0.0.2", "2001:db8:a::2"),
        ("{src-net}", "10.0.0.0/24", "2001:db8:a::/64"),
        ("{near}", "10.0.0.1", "2001:db8:a::1"),
        ("{dst}", "10.9.0.2", "2001:db8:b::2"),
        ("{dst-net}", "10.9.0.0/24", "2001:db8:b::/64"),
        ("{other}", "10.9.0.3", "2001:db8:b::3"),
        ("{copy}", "10.9.0.9", "2001:db8:b::9"),
        ("{hair}", "10.0.0.3", "2001:db8:a::3"),
        ("{far}", "10.9.0.1", "2001:db8:b::1"),
        ("{alt}", "10.8.0.1", "2001:db8:c::1"),
        ("{gw}", "10.8.0.2", "2001:db8:c::2"),
        ("{remote}", "192.0.2.7", "2001:db8:ffff::7"),
        ("{remote-net}", "192.0.2.0/24", "2001:db8:ffff::/64"),
        ("{any}", "0.0.0.0/0", "::/0"),
        ("{dst}:", "10.9.0.2:", "[2001:db8:b::2]:"),
        ("{other}:", "10.9.0.3:", "[2001:db8:b::3]:"),
        ("{gw}:", "10.8.0.2:", "[2001:db8:c::2]:"),
        ("{ip}", "ip", "ip6"),
        ("{inet}", "inet", "inet6"),
        ("{addr}", "ipv4_addr", "ipv6_addr"),
        ("{bits}", "32", "128"),
        ("{icmp}", "icmp", "icmp6"),
    ];
    let mut words = WORDS;
    // The longer name first: `{dst}:` before `{dst}`.
    words.sort_by_key(|(name, ..)| std::cmp::Reverse(name.len()));
    words
        .iter()
        .fold(text.to_owned(), |text, (name, four, six)| {
            let word = match family {
                Family::V4 => four,
                Family::V6 => six,
            };
            text.replace(name, word)
        })
}
