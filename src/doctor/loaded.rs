//! Kernel features that show by a tool loading something: matches and targets of rules, types of
//! sets.

use super::tools::ask;
use crate::{firewall::Support, netns::tool::Tools};

/// Matches of rules as collected from routers, with the least that they need.
const MATCHES: [(&str, &str); 14] = [
    ("comment", "--comment x"),
    ("connmark", "--mark 1"),
    ("conntrack", "--ctstate NEW"),
    ("dscp", "--dscp 1"),
    ("hashlimit", "--hashlimit-name x --hashlimit-upto 1/s"),
    ("iprange", "--src-range 192.0.2.1-192.0.2.9"),
    ("limit", "--limit 1/s"),
    ("mac", "--mac-source 02:00:00:00:00:01"),
    ("mark", "--mark 1"),
    ("multiport", "-p tcp --dports 1,2"),
    ("recent", "--set --name tsim_probe"),
    ("state", "--state NEW"),
    ("statistic", "--mode random --probability 0.5"),
    ("string", "--algo bm --string x"),
];

/// Targets: table, chain, name, options.
const TARGETS: [(&str, &str, &str, &str); 9] = [
    ("mangle", "PREROUTING", "CONNMARK", "--save-mark"),
    ("mangle", "PREROUTING", "DSCP", "--set-dscp 1"),
    ("mangle", "PREROUTING", "MARK", "--set-mark 1"),
    (
        "mangle",
        "FORWARD",
        "TCPMSS",
        "-p tcp --tcp-flags SYN SYN --clamp-mss-to-pmtu",
    ),
    ("nat", "POSTROUTING", "MASQUERADE", ""),
    ("nat", "PREROUTING", "DNAT", "--to-destination 192.0.2.1"),
    ("filter", "FORWARD", "LOG", ""),
    ("filter", "FORWARD", "NFLOG", "--nflog-group 1"),
    ("filter", "FORWARD", "REJECT", ""),
];

/// Types of ipset(8) with what they need beside their name.
const SETS: [(&str, &str); 15] = [
    ("bitmap:ip", "range 192.0.2.0/24"),
    ("bitmap:ip,mac", "range 192.0.2.0/24"),
    ("bitmap:port", "range 0-100"),
    ("hash:ip", ""),
    ("hash:ip,mac", ""),
    ("hash:ip,mark", ""),
    ("hash:ip,port", ""),
    ("hash:ip,port,ip", ""),
    ("hash:ip,port,net", ""),
    ("hash:mac", ""),
    ("hash:net", ""),
    ("hash:net,iface", ""),
    ("hash:net,net", ""),
    ("hash:net,port", ""),
    ("list:set", ""),
];

/// Arguments of iptables-restore(8): nothing that is there goes, and nobody else's lock fails it.
pub(super) const RESTORE: [&str; 2] = ["--noflush", "--wait"];

/// Features that one tool loads.
pub(super) struct FeatureGroup {
    tool: &'static str,
    args: &'static [&'static str],
    /// Names, and the input that loads each.
    features: Vec<(String, String)>,
}

/// Input of iptables-restore(8) that adds one rule.
pub(super) fn rule(table: &str, rule: &str) -> String {
    format!("*{table}\n{rule}\nCOMMIT\n")
}

/// Everything that is tried this way.
pub(super) fn groups() -> [FeatureGroup; 2] {
    let matches = MATCHES.iter().map(|(name, options)| {
        let text = format!("-A FORWARD -m {name} {options}");
        (format!("match_{name}"), rule("filter", &text))
    });
    let targets = TARGETS.iter().map(|(table, chain, name, options)| {
        let text = format!("-A {chain} -j {name} {options}");
        (format!("target_{name}"), rule(table, &text))
    });
    let sets = SETS.iter().map(|(kind, options)| {
        let input = format!("create {kind} {kind} {options}\n");
        (format!("ipset_{kind}"), input)
    });
    [
        FeatureGroup {
            tool: "iptables-restore",
            args: &RESTORE,
            features: matches.chain(targets).collect(),
        },
        FeatureGroup {
            tool: "ipset",
            // A set that an attempt before has made is no failure.
            args: &["-exist", "restore"],
            features: sets.collect(),
        },
    ]
}

impl FeatureGroup {
    /// Loads all at once; where that fails, each by itself.
    pub(super) fn try_all(self, tools: &Tools) -> Vec<(String, Support)> {
        let all: String = self.features.iter().map(|(_, input)| &**input).collect();
        let together = ask(tools, self.tool, self.args, &all).is_yes();
        let one = |(name, input): (String, String)| {
            let support = if together {
                Support::Yes
            } else {
                ask(tools, self.tool, self.args, &input)
            };
            (name, support)
        };
        self.features.into_iter().map(one).collect()
    }

    /// The names of its features.
    pub(super) fn into_names(self) -> impl Iterator<Item = String> {
        self.features.into_iter().map(|(name, _)| name)
    }
}
