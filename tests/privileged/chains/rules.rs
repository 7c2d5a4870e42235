//! Firewall rules of chains, and their text for nft(8) and iptables-restore(8).

use std::{collections::BTreeMap, fmt::Write};

use super::plan::Service;

/// The chains that rules can be in, in the order of a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chain {
    Raw,
    Mark,
    Dnat,
    Input,
    Forward,
    Rewrite,
    Snat,
}

impl Chain {
    /// The chain's name, and what nft(8) says of it.
    fn nft(self) -> (&'static str, &'static str) {
        match self {
            Self::Raw => ("raw", "type filter hook prerouting priority -300"),
            Self::Mark => ("prerouting", "type filter hook prerouting priority -150"),
            Self::Dnat => ("dstnat", "type nat hook prerouting priority -100"),
            Self::Input => ("input", "type filter hook input priority 0"),
            Self::Forward => ("forward", "type filter hook forward priority 0"),
            Self::Rewrite => ("postrouting", "type filter hook postrouting priority -150"),
            Self::Snat => ("srcnat", "type nat hook postrouting priority 100"),
        }
    }

    /// Table and chain of iptables(8).
    fn iptables(self) -> (&'static str, &'static str) {
        match self {
            Self::Raw => ("raw", "PREROUTING"),
            Self::Mark => ("mangle", "PREROUTING"),
            Self::Dnat => ("nat", "PREROUTING"),
            Self::Input => ("filter", "INPUT"),
            Self::Forward => ("filter", "FORWARD"),
            Self::Rewrite => ("mangle", "POSTROUTING"),
            Self::Snat => ("nat", "POSTROUTING"),
        }
    }
}

/// Which packets a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Match {
    Service(Service),
    /// Protocol and destination port.
    To(Service, String),
    /// From that prefix, or from anywhere else.
    From(String, bool),
    Dscp(u8),
    /// The service's answers, by the port that they come from.
    AnswerOf(Service),
    /// What comes in from a segment, by its number; from any, without one.
    In(Option<usize>),
    Established,
    Invalid,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Accept,
    Drop,
    Reject,
    Mark(u32),
    Dscp(u8),
    /// To this address, and port.
    Dnat(String, Option<u16>),
    Redirect(u16),
    Snat(String),
    Masquerade,
    /// Connection tracking in that zone.
    Zone(u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: Chain,
    pub(super) which: Match,
    pub(super) act: Act,
}

/// The rules of one router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) rules: Vec<Rule>,
    /// Whether the forward chain drops what no rule accepts.
    pub(super) drops: bool,
}

impl Rules {
    pub(super) fn add(&mut self, chain: Chain, which: Match, act: Act) {
        self.rules.push(Rule { chain, which, act });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && !self.drops
    }

    /// Rules by chain, those of connections first, accepting ones last.
    fn by_chain(&self) -> BTreeMap<Chain, Vec<&Rule>> {
        let mut chains: BTreeMap<Chain, Vec<&Rule>> = BTreeMap::new();
        if self.drops {
            chains.entry(Chain::Forward).or_default();
        }
        for rule in &self.rules {
            chains.entry(rule.chain).or_default().push(rule);
        }
        for rules in chains.values_mut() {
            rules.sort_by_key(|rule| match (&rule.which, &rule.act) {
                (Match::Established | Match::Invalid, _) => 0,
                (_, Act::Accept) => 2,
                _ => 1,
            });
        }
        chains
    }

    pub(super) fn nft(&self, v6: bool) -> String {
        let family = if v6 { "ip6" } else { "ip" };
        let mut text = format!("table {family} chain_test {{\n");
        for (chain, rules) in self.by_chain() {
            let (name, hook) = chain.nft();
            let policy = match chain == Chain::Forward && self.drops {
                true => "drop",
                false => "accept",
            };
            writeln!(text, "chain {name} {{\n{hook}; policy {policy};").unwrap();
            for rule in rules {
                writeln!(
                    text,
                    "{} {}",
                    nft_match(&rule.which, family),
                    nft_act(&rule.act, family)
                )
                .unwrap();
            }
            text.push_str("}\n");
        }
        text + "}\n"
    }

    pub(super) fn iptables(&self) -> String {
        let chains = self.by_chain();
        let mut text = String::new();
        for table in ["raw", "mangle", "nat", "filter"] {
            let mine = chains
                .iter()
                .filter(|(chain, _)| chain.iptables().0 == table);
            let mut lines = String::new();
            for (chain, rules) in mine {
                let name = chain.iptables().1;
                for rule in rules {
                    let (which, act) = (xt_match(&rule.which), xt_act(&rule.act));
                    writeln!(lines, "-A {name} {which} -j {act}").unwrap();
                }
            }
            let drops = self.drops && table == "filter";
            if lines.is_empty() && !drops {
                continue;
            }
            let policy = if drops { ":FORWARD DROP [0:0]\n" } else { "" };
            write!(text, "*{table}\n{policy}{lines}COMMIT\n").unwrap();
        }
        text
    }
}

fn nft_match(which: &Match, family: &str) -> String {
    match which {
        Match::Service(service) => format!("{} dport {}", service.protocol(), service.port),
        Match::To(service, address) => format!(
            "{family} daddr {address} {} dport {}",
            service.protocol(),
            service.port
        ),
        Match::From(prefix, true) => format!("{family} saddr {prefix}"),
        Match::From(prefix, false) => format!("{family} saddr != {prefix}"),
        Match::Dscp(value) => format!("{family} dscp {value}"),
        Match::AnswerOf(service) => format!("{} sport {}", service.protocol(), service.port),
        Match::In(Some(segment)) => format!("iifname s{segment}"),
        Match::In(None) => String::new(),
        Match::Established => "ct state established,related".to_owned(),
        Match::Invalid => "ct state invalid".to_owned(),
    }
}

fn nft_act(act: &Act, family: &str) -> String {
    match act {
        Act::Accept => "accept".to_owned(),
        Act::Drop => "drop".to_owned(),
        Act::Reject => "reject".to_owned(),
        Act::Mark(mark) => format!("meta mark set {mark}"),
        Act::Dscp(value) => format!("{family} dscp set {value}"),
        Act::Dnat(address, port) => format!("dnat to {}", with_port(address, *port)),
        Act::Redirect(port) => format!("redirect to :{port}"),
        Act::Snat(address) => format!("snat to {address}"),
        Act::Masquerade => "masquerade".to_owned(),
        Act::Zone(zone) => format!("ct zone set {zone}"),
    }
}

fn xt_match(which: &Match) -> String {
    match which {
        Match::Service(service) => {
            format!("-p {} --dport {}", service.protocol(), service.port)
        }
        Match::To(service, address) => {
            let protocol = service.protocol();
            format!("-d {address} -p {protocol} --dport {}", service.port)
        }
        Match::From(prefix, true) => format!("-s {prefix}"),
        Match::From(prefix, false) => format!("! -s {prefix}"),
        Match::Dscp(value) => format!("-m dscp --dscp {value}"),
        Match::AnswerOf(service) => format!("-p {} --sport {}", service.protocol(), service.port),
        Match::In(Some(segment)) => format!("-i s{segment}"),
        Match::In(None) => String::new(),
        Match::Established => "-m conntrack --ctstate ESTABLISHED,RELATED".to_owned(),
        Match::Invalid => "-m conntrack --ctstate INVALID".to_owned(),
    }
}

fn xt_act(act: &Act) -> String {
    match act {
        Act::Accept => "ACCEPT".to_owned(),
        Act::Drop => "DROP".to_owned(),
        Act::Reject => "REJECT".to_owned(),
        Act::Mark(mark) => format!("MARK --set-mark {mark}"),
        Act::Dscp(value) => format!("DSCP --set-dscp {value}"),
        Act::Dnat(address, port) => {
            format!("DNAT --to-destination {}", with_port(address, *port))
        }
        Act::Redirect(port) => format!("REDIRECT --to-ports {port}"),
        Act::Snat(address) => format!("SNAT --to-source {address}"),
        Act::Masquerade => "MASQUERADE".to_owned(),
        Act::Zone(zone) => format!("CT --zone {zone}"),
    }
}

fn with_port(address: &str, port: Option<u16>) -> String {
    match port {
        None => address.to_owned(),
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
    }
}
