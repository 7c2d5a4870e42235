//! The namespace's own counters of packets that the IP stack discards, proc_net(5).

use std::{collections::BTreeMap, fs, io};

/// Where the files are; `/proc/net` would show the main thread's namespace.
const DIR: &str = "/proc/thread-self/net";

/// Counters of discarded packets by name, IPv4's and IPv6's.
///
/// Only those that say that a packet went nowhere; RFC 4293 and net/ipv4/proc.c say when.
const NAMES: [&str; 26] = [
    "Ip.InHdrErrors",
    "Ip.InAddrErrors",
    "Ip.InUnknownProtos",
    "Ip.InDiscards",
    "Ip.OutDiscards",
    "Ip.OutNoRoutes",
    "Ip.FragFails",
    "IpExt.InNoRoutes",
    "IpExt.InTruncatedPkts",
    "IpExt.InCsumErrors",
    "TcpExt.IPReversePathFilter",
    "Ip6InHdrErrors",
    "Ip6InTooBigErrors",
    "Ip6InNoRoutes",
    "Ip6InAddrErrors",
    "Ip6InUnknownProtos",
    "Ip6InTruncatedPkts",
    "Ip6InDiscards",
    "Ip6OutDiscards",
    "Ip6OutNoRoutes",
    "Ip6FragFails",
    "XfrmInNoPols",
    "XfrmInPolBlock",
    "XfrmOutPolBlock",
    "XfrmFwdHdrError",
    "XfrmOutNoStates",
];

/// A reading of the counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    /// Reads the counters of the calling thread's namespace.
    ///
    /// # Errors
    /// When a file cannot be read; one that the kernel does not have is none.
    pub(crate) fn read_here() -> io::Result<Self> {
        let mut counters = Self::default();
        for file in ["snmp", "netstat", "snmp6", "xfrm_stat"] {
            match fs::read_to_string(format!("{DIR}/{file}")) {
                Ok(text) if matches!(file, "snmp" | "netstat") => counters.add_pairs(&text),
                Ok(text) => counters.add_lines(&text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(counters)
    }

    /// What rose since `before`, by how much.
    #[must_use]
    pub(crate) fn since(&self, before: &Self) -> Self {
        let rose = |(&name, &now): (&&'static str, &u64)| {
            let more = now.saturating_sub(before.get(name));
            (more > 0).then_some((name, more))
        };
        Self(self.0.iter().filter_map(rose).collect())
    }

    /// One counter; 0 when the kernel does not have it.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// The counters as `InDiscards +1`, for a reading that is a difference.
    #[must_use]
    pub(crate) fn evidence(&self) -> Vec<String> {
        let one = |(name, more): (&&str, &u64)| format!("{name} +{more}");
        self.0.iter().map(one).collect()
    }

    /// Pairs of lines, `Ip: NAME …` and `Ip: NUMBER …`.
    fn add_pairs(&mut self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let Some((group, names)) = pair[0].split_once(": ") else {
                continue;
            };
            let values = pair[1].split_once(": ").map_or("", |(_, values)| values);
            for (name, value) in names.split(' ').zip(values.split(' ')) {
                self.add(&format!("{group}.{name}"), value);
            }
        }
    }

    /// Lines of a name and a number.
    fn add_lines(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(value)) = (words.next(), words.next()) {
                self.add(name, value);
            }
        }
    }

    fn add(&mut self, name: &str, value: &str) {
        let known = NAMES.iter().find(|known| **known == name);
        if let (Some(known), Ok(value)) = (known, value.parse()) {
            self.0.insert(known, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_read_and_only_what_rose_is_evidence() {
        let mut before = Counters::default();
        before.add_pairs(
            "TcpExt: SyncookiesSent IPReversePathFilter\nTcpExt: 0 4\n\
             Ip: Forwarding InDiscards\nIp: 1 7\n",
        );
        before.add_lines("Ip6InReceives                   \t9\nIp6InNoRoutes \t2\n");
        let mut after = before.clone();
        after.add_pairs("TcpExt: SyncookiesSent IPReversePathFilter\nTcpExt: 0 5\n");
        after.add_lines("Ip6InNoRoutes\t3\n");
        let rose = after.since(&before);
        assert_eq!(rose.get("TcpExt.IPReversePathFilter"), 1);
        assert_eq!(
            rose.evidence(),
            ["Ip6InNoRoutes +1", "TcpExt.IPReversePathFilter +1"]
        );
    }
}
