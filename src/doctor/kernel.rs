//! Kernel features, each tried out in a namespace of its own making.

use std::io;

use super::{Area, Check, check, tools::ask};
use crate::{
    firewall::{Support, nft::support, with_causes},
    model::{IfName, NameError},
    netlink::{Batch, BridgeOptions, LinkChange, Netlink, NetlinkErrors, NewVeth, VethEnd},
    netns::{self, NetnsError, tool::Tools},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

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

/// What is said of each feature where no namespace could be made.
pub const UNTRIED: &str = "there is no namespace to try it in";

type OwnProbe = fn(&Tools) -> Support;

/// How a feature is tried.
enum Probe {
    /// In a way of its own.
    Own(OwnProbe),
    /// By loading a rule into a table of iptables.
    Rule(&'static str, String),
    /// By making a set of this type with these options.
    Set(&'static str, &'static str),
}

/// Features that have a probe of their own.
const OWN: [(&str, OwnProbe); 11] = [
    ("veth", |_| link(add_veth)),
    ("bridges", |_| link(add_bridge)),
    ("nf_tables", |_| support::tables()),
    ("owner_tables", |_| support::owner_tables()),
    ("dynamic_sets", |_| support::dynamic_sets()),
    ("traces", |_| traces()),
    ("netdev_egress", netdev_egress),
    ("nflog", |_| nflog()),
    ("xtables_nft", |tools| {
        xtables(tools, "iptables-nft-restore")
    }),
    ("xtables_legacy", |tools| {
        xtables(tools, "iptables-legacy-restore")
    }),
    ("match_set", match_set),
];

/// Every feature that is tried inside a namespace.
fn features() -> Vec<(String, Probe)> {
    let own = OWN.map(|(name, probe)| (name.to_owned(), Probe::Own(probe)));
    let matches = MATCHES.map(|(name, options)| {
        let rule = format!("-A FORWARD -m {name} {options}");
        (format!("match_{name}"), Probe::Rule("filter", rule))
    });
    let targets = TARGETS.map(|(table, chain, name, options)| {
        let rule = format!("-A {chain} -j {name} {options}");
        (format!("target_{name}"), Probe::Rule(table, rule))
    });
    let sets = SETS.map(|(kind, options)| (format!("ipset_{kind}"), Probe::Set(kind, options)));
    let all = own.into_iter().chain(matches).chain(targets).chain(sets);
    all.collect()
}

/// Tries everything. Without the right to make a namespace nothing can be told.
pub(super) fn checks(tools: &Tools) -> Vec<Check> {
    let try_one = |(name, probe): (String, Probe)| {
        let support = match probe {
            Probe::Own(probe) => probe(tools),
            Probe::Rule(table, rule) => load(tools, "iptables-restore", table, &rule),
            Probe::Set(kind, options) => make_set(tools, kind, kind, options),
        };
        to_check(name, support)
    };
    let try_all = || features().into_iter().map(try_one).collect();
    match netns::in_scratch(try_all) {
        Ok(checks) => with_namespaces(Support::Yes, checks),
        Err(error) => with_namespaces(no_namespace(&error), untried()),
    }
}

fn to_check(name: String, support: Support) -> Check {
    check(Area::Kernel, name, support, String::new())
}

fn with_namespaces(namespaces: Support, others: Vec<Check>) -> Vec<Check> {
    let mut checks = vec![to_check("namespaces".to_owned(), namespaces)];
    checks.extend(others);
    checks
}

fn untried() -> Vec<Check> {
    let why = || Support::Unknown(UNTRIED.to_owned());
    let names = features().into_iter().map(|(name, _)| name);
    names.map(|name| to_check(name, why())).collect()
}

/// `unshare` answers EINVAL where the kernel has no network namespaces.
fn no_namespace(error: &NetnsError) -> Support {
    let words = with_causes(error);
    match error {
        NetnsError::Scratch(source) if source.raw_os_error() == Some(libc::EINVAL) => {
            Support::No(words)
        }
        _ => Support::Unknown(words),
    }
}

/// Sends one batch of changes to the links of the calling thread's namespace.
fn link(fill: impl FnOnce(&mut Batch<'_>) -> Result<(), NameError>) -> Support {
    let mut netlink = match Netlink::open_here("of the probe") {
        Ok(netlink) => netlink,
        Err(error) => return Support::Unknown(with_causes(&error)),
    };
    let mut batch = netlink.batch("the probe");
    if let Err(error) = fill(&mut batch) {
        return Support::Unknown(error.to_string());
    }
    Support::from_attempt(batch.send(), |NetlinkErrors(errors)| {
        let errno = errors.first()?.errno()?;
        Some(errno as i32)
    })
}

fn add_veth(batch: &mut Batch<'_>) -> Result<(), NameError> {
    batch.add_veth(&NewVeth {
        near: VethEnd::new(IfName::new("near")?),
        near_up: false,
        master: None,
        far: VethEnd::new(IfName::new("far")?),
    });
    Ok(())
}

fn add_bridge(batch: &mut Batch<'_>) -> Result<(), NameError> {
    batch.add_bridge(&IfName::new("bridge")?, &BridgeOptions::default());
    Ok(())
}

fn traces() -> Support {
    let loopback_up = link(|batch| {
        batch.set_link(&IfName::new("lo")?, &LinkChange::up());
        Ok(())
    });
    match loopback_up {
        Support::Yes => support::traces(),
        Support::No(words) | Support::Unknown(words) => Support::Unknown(words),
    }
}

/// Through nft(8), because nothing here makes such chains: it is facts that may have them.
fn netdev_egress(tools: &Tools) -> Support {
    let chain = "type filter hook egress device lo priority 0;";
    let table = format!("table netdev tsim_probe {{\nchain probe {{\n{chain}\n}}\n}}\n");
    ask(tools, "nft", &["-f", "-"], &table)
}

/// Makes nfnetlink_log the logger of this namespace: `NFULNL_MSG_CONFIG` with
/// `NFULNL_CFG_CMD_PF_BIND` (linux/netfilter/nfnetlink_log.h). Loads the module as well.
fn nflog() -> Support {
    let mut request = Vec::with_capacity(28);
    request.extend(28u32.to_ne_bytes());
    request.extend(((libc::NFNL_SUBSYS_ULOG as u16) << 8 | 1).to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    request.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    // struct nfgenmsg, then the attribute NFULA_CFG_CMD, padded.
    request.extend([libc::AF_INET as u8, 0, 0, 0]);
    request.extend(5u16.to_ne_bytes());
    request.extend(1u16.to_ne_bytes());
    request.extend([3, 0, 0, 0]);
    Support::from_attempt(acknowledged(&request), io::Error::raw_os_error)
}

/// Sends one nfnetlink request; the kernel answers before `send` returns.
fn acknowledged(request: &[u8]) -> io::Result<()> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    let mut reply = Vec::with_capacity(1024);
    socket.recv(&mut reply, libc::MSG_DONTWAIT)?;
    let errno = reply.get(16..20).and_then(|bytes| bytes.try_into().ok());
    match errno.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The flavour of iptables that `restore` belongs to, with what our own taps use.
fn xtables(tools: &Tools, restore: &str) -> Support {
    let rule = "-A POSTROUTING -m comment --comment tsim -m dscp --dscp 32 -j RETURN";
    load(tools, restore, "mangle", rule)
}

fn match_set(tools: &Tools) -> Support {
    match make_set(tools, "matched", "hash:ip", "") {
        Support::Yes => {
            let rule = "-A FORWARD -m set --match-set matched src";
            load(tools, "iptables-restore", "filter", rule)
        }
        other => other,
    }
}

fn load(tools: &Tools, restore: &str, table: &str, rule: &str) -> Support {
    ask(
        tools,
        restore,
        &["--noflush", "--wait"],
        &format!("*{table}\n{rule}\nCOMMIT\n"),
    )
}

fn make_set(tools: &Tools, name: &str, kind: &str, options: &str) -> Support {
    let script = format!("create {name} {kind} {options}\n");
    ask(tools, "ipset", &["restore"], &script)
}
