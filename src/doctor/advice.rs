//! What the absence of each thing costs, and how to get it.

use super::Area;

/// How much hangs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// Nothing works without it.
    Needed,
    /// Something works less well, or not at all.
    Useful,
}

/// What to say about something that is absent.
#[derive(Debug)]
pub(super) struct Advice {
    area: Area,
    /// The name, or with a `*` at the end how names begin.
    name: &'static str,
    pub(super) weight: Weight,
    pub(super) costs: &'static str,
    pub(super) remedy: &'static str,
}

/// The advice for a check; the last of the table fits every one.
pub(super) fn of(area: Area, name: &str) -> &'static Advice {
    let fits = |advice: &&Advice| {
        advice.area == area
            && match advice.name.strip_suffix('*') {
                Some(begin) => name.starts_with(begin),
                None => advice.name == name,
            }
    };
    TABLE.iter().find(fits).unwrap_or(&OTHER)
}

const OTHER: Advice = Advice {
    area: Area::Kernel,
    name: "*",
    weight: Weight::Useful,
    costs: "what uses it is not available",
    remedy: "see the documentation",
};

const fn needed(
    area: Area,
    name: &'static str,
    costs: &'static str,
    remedy: &'static str,
) -> Advice {
    Advice {
        weight: Weight::Needed,
        ..useful(area, name, costs, remedy)
    }
}

const fn useful(
    area: Area,
    name: &'static str,
    costs: &'static str,
    remedy: &'static str,
) -> Advice {
    Advice {
        area,
        name,
        weight: Weight::Useful,
        costs,
        remedy,
    }
}

const ROOT: &str = "run as root, with this capability, or in a user namespace, which \
     `rootless = false` forbids";
const DEBIAN_KERNEL: &str = "a distribution's kernel; load the module where it is blacklisted";

static TABLE: [Advice; 33] = [
    needed(
        Area::Rights,
        "user_namespaces",
        "labs need root",
        "what was found says what stands in the way; or run as root",
    ),
    needed(
        Area::Rights,
        "cap_sys_admin",
        "no network namespace can be made or entered",
        ROOT,
    ),
    needed(
        Area::Rights,
        "cap_net_admin",
        "no router can be built, no tap be put up",
        ROOT,
    ),
    needed(Area::Rights, "cap_net_raw", "no probe can be sent", ROOT),
    useful(
        Area::Rights,
        "cap_dac_override",
        "state in directories of other users cannot be shared",
        "give the directories to this user",
    ),
    useful(
        Area::Rights,
        "cap_sys_resource",
        "limits of this process cannot be raised",
        ROOT,
    ),
    needed(
        Area::Kernel,
        "namespaces",
        "routers and hosts are network namespaces: nothing works",
        "a kernel with CONFIG_NET_NS; user.max_net_namespaces above 0",
    ),
    needed(
        Area::Kernel,
        "veth",
        "routers cannot be joined: nothing works",
        "a kernel with CONFIG_VETH; load the module veth",
    ),
    needed(
        Area::Kernel,
        "bridges",
        "routers cannot be joined: nothing works",
        "a kernel with CONFIG_BRIDGE; load the module bridge",
    ),
    useful(
        Area::Kernel,
        "nf_tables",
        "taps go through iptables, which is many times slower and needs clearing after a kill",
        "a kernel with CONFIG_NF_TABLES; load the module nf_tables",
    ),
    useful(
        Area::Kernel,
        "owner_tables",
        "a killed job leaves its table until the next job on that router sweeps it",
        "Linux 5.12 or later",
    ),
    useful(
        Area::Kernel,
        "dynamic_sets",
        "taps go through iptables, which is many times slower",
        "a kernel with CONFIG_NF_TABLES",
    ),
    useful(
        Area::Kernel,
        "traces",
        "the rule that blocks cannot be named from the kernel's own trace",
        "a kernel with CONFIG_NF_TABLES",
    ),
    useful(
        Area::Kernel,
        "netdev_egress",
        "facts with nft egress chains cannot be loaded",
        "Linux 5.16 or later",
    ),
    useful(
        Area::Kernel,
        "nflog",
        "rules of iptables-legacy cannot be traced",
        "a kernel with CONFIG_NETFILTER_NETLINK_LOG; load the module nfnetlink_log",
    ),
    useful(
        Area::Kernel,
        "xtables_nft",
        "rulesets of iptables cannot be loaded through nf_tables",
        "a kernel with CONFIG_NFT_COMPAT; the package iptables",
    ),
    useful(
        Area::Kernel,
        "xtables_legacy",
        "no fall-back where nf_tables is absent; rulesets that ask for it cannot be loaded",
        "a kernel with CONFIG_IP_NF_IPTABLES_LEGACY; the package iptables; without root, kernels that do \
        not load its modules for an ordinary user want root to: modprobe -a iptable_raw iptable_mangle \
        iptable_nat iptable_filter iptable_security ip6table_raw ip6table_mangle ip6table_nat ip6table_filter \
        ip6table_security",
    ),
    useful(
        Area::Kernel,
        "landlock",
        "the programs that load rulesets may reach more of this machine; what reaches them is \
        looked at all the same",
        "Linux 6.12 or later with landlock in CONFIG_LSM or the kernel's parameter lsm=",
    ),
    useful(
        Area::Kernel,
        "seccomp",
        "the programs that load rulesets may start others; what reaches them is looked at all the \
        same",
        "a kernel with CONFIG_SECCOMP_FILTER",
    ),
    useful(
        Area::Kernel,
        "match_*",
        "rules with this match cannot be loaded; verdicts say that the ruleset is incomplete",
        DEBIAN_KERNEL,
    ),
    useful(
        Area::Kernel,
        "target_*",
        "rules with this target cannot be loaded; verdicts say that the ruleset is incomplete",
        DEBIAN_KERNEL,
    ),
    useful(
        Area::Kernel,
        "ipset_*",
        "sets of this type cannot be loaded; rules that use them are left out and reported",
        DEBIAN_KERNEL,
    ),
    useful(
        Area::Tools,
        "nft",
        "facts with nft rulesets cannot be loaded",
        "the package nftables",
    ),
    useful(
        Area::Tools,
        "ipset",
        "facts with ipsets cannot be loaded",
        "the package ipset",
    ),
    useful(
        Area::Tools,
        "iptables-legacy*",
        "no fall-back where nf_tables is absent",
        "the package iptables",
    ),
    useful(
        Area::Tools,
        "ip*",
        "facts with iptables rulesets cannot be loaded",
        "the package iptables",
    ),
    needed(
        Area::Directories,
        "registry",
        "jobs cannot tell each other what they use",
        "make it with mode 0700, owned by who runs jobs, or set registry_dir; others ask the scheduler, \
         by scheduler.socket",
    ),
    needed(
        Area::Directories,
        "labs",
        "no lab can be built",
        "make it as the registry, or set labs_dir",
    ),
    needed(
        Area::Directories,
        "namespaces",
        "namespaces cannot be given names",
        ROOT,
    ),
    useful(
        Area::Limits,
        "inotify_instances",
        "waiting jobs may find no way to wait",
        "sysctl fs.inotify.max_user_instances=1024",
    ),
    useful(
        Area::Limits,
        "inotify_watches",
        "jobs that wait for many routers may find no way to wait",
        "sysctl fs.inotify.max_user_watches=65536",
    ),
    useful(
        Area::Limits,
        "open_files",
        "jobs on hundreds of routers run out of file descriptors",
        "ulimit -n 65536, or LimitNOFILE= in the unit",
    ),
    useful(
        Area::Limits,
        "socket_buffers",
        "without root, batches and traces go out in smaller parts, and large sets of nft may not load",
        "sysctl net.core.rmem_max=8388608 net.core.wmem_max=8388608",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_name_goes_before_its_pattern() {
        let remedy = |name| of(Area::Tools, name).costs;
        assert!(remedy("iptables-legacy-restore").contains("fall-back"));
        assert!(remedy("ip6tables-restore").contains("iptables rulesets"));
        assert!(remedy("ipset").contains("ipsets"));
        assert!(of(Area::Kernel, "ipset_hash:ip").costs.contains("sets"));
    }
}
