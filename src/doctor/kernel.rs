//! Kernel features, each tried out in a namespace of its own making.

use std::io;

use super::{Area, Check, check, loaded, tools::ask};
use crate::{
    firewall::{Support, netfilter_socket, nft::support},
    model::{IfName, NameError, WithCauses},
    netlink::{Batch, BridgeOptions, LinkChange, Netlink, NetlinkErrors, NewVeth, VethEnd},
    netns::{self, NetnsError, tool::Tools},
};

/// What is said of each feature where no namespace could be made.
pub const UNTRIED: &str = "there is no namespace to try it in";

type OwnProbe = fn(&Tools) -> Support;

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

/// Tries everything. Without the right to make a namespace nothing can be told.
pub(super) fn checks(tools: &Tools) -> Vec<Check> {
    let own = OWN.iter().map(|(name, probe)| {
        let support = probe(tools);
        to_check((*name).to_owned(), support)
    });
    let loaded = || {
        loaded::groups()
            .into_iter()
            .flat_map(|group| group.try_all(tools))
    };
    let try_all = || {
        let loaded = loaded().map(|(name, support)| to_check(name, support));
        own.chain(loaded).collect()
    };
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
    let own = OWN.iter().map(|(name, _)| (*name).to_owned());
    let loaded = loaded::groups()
        .into_iter()
        .flat_map(loaded::FeatureGroup::into_names);
    own.chain(loaded)
        .map(|name| to_check(name, why()))
        .collect()
}

/// `unshare` answers EINVAL where the kernel has no network namespaces.
fn no_namespace(error: &NetnsError) -> Support {
    let words = WithCauses(error).to_string();
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
        Err(error) => return Support::Unknown(WithCauses(&error).to_string()),
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
    let socket = netfilter_socket::connect_here()?;
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
    let input = loaded::rule("mangle", rule);
    ask(tools, restore, &loaded::RESTORE, &input)
}

/// The set is there before the rule that looks into it.
fn match_set(tools: &Tools) -> Support {
    match ask(tools, "ipset", &["restore"], "create matched hash:ip\n") {
        Support::Yes => {
            let rule = "-A FORWARD -m set --match-set matched src";
            let input = loaded::rule("filter", rule);
            ask(tools, "iptables-restore", &loaded::RESTORE, &input)
        }
        other => other,
    }
}
