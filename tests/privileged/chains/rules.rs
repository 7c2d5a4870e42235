//! Firewall rules of chains, and their text for nft(8) and iptables-restore(8).

use std::{collections::BTreeMap, fmt::Write};

use super::plan::{Protocol, Service};

/// The chains that rules can be in, in the order of a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chain {
    Raw,
    Mark,
    Dnat,
    Input,
    Forward,
    /// What a router's own packets meet, and what they can be routed by.
    Output,
    MarkOwn,
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
            Self::Output => ("output", "type filter hook output priority 0"),
            Self::MarkOwn => ("route", "type route hook output priority -150"),
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
            Self::Output => ("filter", "OUTPUT"),
            Self::MarkOwn => ("mangle", "OUTPUT"),
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
    /// Destination address.
    Address(String),
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
    Lots(Draw, Vec<End>),
    Redirect(u16),
    Snat(String),
    Masquerade,
    /// Connection tracking in that zone.
    Zone(u16),
}

/// An address, and a port perhaps, that a packet is sent on to.
pub(super) type End = (String, Option<u16>);

/// How one of several ends is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Draw {
    Chance,
    Turn,
    /// From a range of ports of one address.
    Ports,
    /// From a range of addresses: by those of the packet.
    Addresses,
    /// By the source address, with a seed; by rules of nft alone.
    Hash,
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

    pub(super) fn iptables(&self, v6: bool) -> String {
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
                    let which = xt_match(&rule.which, v6);
                    for act in xt_acts(&rule.act) {
                        writeln!(lines, "-A {name} {which} {act}").unwrap();
                    }
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

fn nft_service(service: Service, v6: bool) -> String {
    match service.protocol {
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
            format!("{} dport {}", service.protocol(), service.port)
        }
        Protocol::Ping if v6 => "icmpv6 type echo-request".to_owned(),
        Protocol::Ping => "icmp type echo-request".to_owned(),
        Protocol::Timestamp => "icmp type timestamp-request".to_owned(),
        other => format!("meta l4proto {}", other.number(v6)),
    }
}

fn xt_service(service: Service, v6: bool) -> String {
    match service.protocol {
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
            format!("-p {} --dport {}", service.protocol(), service.port)
        }
        Protocol::Ping if v6 => "-p icmpv6 --icmpv6-type echo-request".to_owned(),
        Protocol::Ping => "-p icmp --icmp-type echo-request".to_owned(),
        Protocol::Timestamp => "-p icmp --icmp-type timestamp-request".to_owned(),
        other => format!("-p {}", other.number(v6)),
    }
}

fn nft_match(which: &Match, family: &str) -> String {
    match which {
        Match::Service(service) => nft_service(*service, family == "ip6"),
        Match::To(service, address) => {
            let service = nft_service(*service, family == "ip6");
            format!("{family} daddr {address} {service}")
        }
        Match::Address(address) => format!("{family} daddr {address}"),
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
        Act::Lots(Draw::Ports, ends) => format!("dnat to {} random", ports(ends)),
        Act::Lots(Draw::Addresses, ends) => format!("dnat to {}", addresses(ends)),
        Act::Lots(draw, ends) => nft_lots(*draw, ends, family),
        Act::Redirect(port) => format!("redirect to :{port}"),
        Act::Snat(address) => format!("snat to {address}"),
        Act::Masquerade => "masquerade".to_owned(),
        Act::Zone(zone) => format!("ct zone set {zone}"),
    }
}

fn xt_match(which: &Match, v6: bool) -> String {
    match which {
        Match::Service(service) => xt_service(*service, v6),
        Match::To(service, address) => {
            format!("-d {address} {}", xt_service(*service, v6))
        }
        Match::Address(address) => format!("-d {address}"),
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

/// What a rule does; with several ends one rule for each.
fn xt_acts(act: &Act) -> Vec<String> {
    let Act::Lots(draw, ends) = act else {
        return vec![format!("-j {}", xt_act(act))];
    };
    match draw {
        Draw::Ports => {
            return vec![format!("-j DNAT --to-destination {} --random", ports(ends))];
        }
        Draw::Addresses => return vec![format!("-j DNAT --to-destination {}", addresses(ends))],
        _ => {}
    }
    let one = |(number, (address, port)): (usize, &End)| {
        let act = xt_act(&Act::Dnat(address.clone(), *port));
        match (ends.len() - number, draw) {
            (1, _) => format!("-j {act}"),
            (left, Draw::Turn) => {
                format!("-m statistic --mode nth --every {left} --packet 0 -j {act}")
            }
            (left, _) => {
                let chance = 1.0 / f64::from(u8::try_from(left).unwrap());
                format!("-m statistic --mode random --probability {chance:.4} -j {act}")
            }
        }
    };
    ends.iter().enumerate().map(one).collect()
}

/// The first to the last of ports in a row.
fn ports(ends: &[End]) -> String {
    let (address, first) = &ends[0];
    let last = ends[ends.len() - 1].1.unwrap();
    format!("{}-{last}", with_port(address, *first))
}

/// The first to the last of addresses in a row.
fn addresses(ends: &[End]) -> String {
    format!("{}-{}", ends[0].0, ends[ends.len() - 1].0)
}

fn nft_lots(draw: Draw, ends: &[End], family: &str) -> String {
    let with_ports = ends.iter().any(|(_, port)| port.is_some());
    let one = |(number, (address, port)): (usize, &End)| match port {
        Some(port) => format!("{number} : {address} . {port}"),
        None => format!("{number} : {address}"),
    };
    let map: Vec<String> = ends.iter().enumerate().map(one).collect();
    let to = if with_ports {
        format!("{family} to")
    } else {
        "to".to_owned()
    };
    let (of, map) = (ends.len(), map.join(", "));
    let draw = match draw {
        Draw::Turn => format!("numgen inc mod {of}"),
        Draw::Hash => format!("jhash {family} saddr mod {of} seed 0x5eed"),
        _ => format!("numgen random mod {of}"),
    };
    format!("dnat {to} {draw} map {{ {map} }}")
}

fn xt_act(act: &Act) -> String {
    match act {
        Act::Lots(..) => unreachable!("it is several"),
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
